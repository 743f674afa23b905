"""A model behind the OpenAI protocol: what a recipe says of it, what it is asked, and how its replies are read.

    ServedModel  the settings that every engine with a server shares
    Requests     prompts and sample indices -> the bodies of requests; bodies of replies -> generations

Nothing here sends anything.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, Field, model_validator

from sinterlm.chat import FewShot, fold_system, question_of, with_system
from sinterlm.explain import Problem
from sinterlm.records import PROMPT_REFUSED, FinishReason, Prompt, SamplingSettings, Usage, digest
from sinterlm.sampling.asking import Asking
from sinterlm.sampling.protocol import Generation
from sinterlm.sampling.settings import AskedModel
from sinterlm.thoughts import split_thoughts

Protocol = Literal["chat", "completions"]
ReasoningRule = Literal["apart", "in-answer"]

LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the token limit: servers differ in which one they read, and a few refuse one of them."""
_SAID_ELSEWHERE = {
    "model": "model",
    "messages": "prompt",
    "prompt": "prompt",
    "stop": "prompt.few_shot",
    "n": "sampling.num_samples",
    "temperature": "sampling.temperature",
    "top_p": "sampling.top_p",
    "seed": "sampling.seed",
    "repetition_penalty": "sampling.repetition_penalty",
    **dict.fromkeys(LIMITS, "sampling.max_new_tokens"),
}
"""Fields of a request, and the keys of the recipe that decide them."""
_CUT = ("length", "max_tokens", "model_length")
"""Finish reasons of answers that a limit cut; servers have several words for it."""
_NOT_FINISHED = ("error", "abort")
"""Finish reasons of answers that the server could not finish, although the status code is 200."""


class ServedModel(AskedModel):
    """A model that a server runs."""

    model: str
    """The model's name on the server."""
    protocol: Protocol = "chat"
    """``chat`` asks by messages, which the server puts through the model's chat template. ``completions`` asks by a
    text, for models without a chat template: ``prompt.few_shot`` must then be given.
    """
    extra_body: dict[str, Any] = {}
    """Further fields of every request, such as ``{top_k: 20, chat_template_kwargs: {enable_thinking: false}}``."""
    reasoning: ReasoningRule = "apart"
    """Where a model's reasoning goes, whether the server gives it in a field of its own or in the text: ``apart`` from
    the answer, which is then neither scored nor trained with it; or ``in-answer``, which then begins with it in
    ``<think>`` tags, as an answer of a model in this process does.
    """
    max_failed: Annotated[float, Field(ge=0, le=1)] = 0.05
    """The share of answers that may fail, after all retries, before the source counts as failed."""

    def requests(self, settings: SamplingSettings, asking: Asking | None = None) -> Requests:
        """What the server is asked for answers that are drawn by ``settings``.

        Args:
            settings: How answers are drawn.
            asking: See :class:`Requests`.
        """
        return Requests(
            self.model,
            few_shot=self.prompt.load_few_shot(),
            system=self.prompt.system,
            settings=settings,
            extra_body=self.extra_body,
            reasoning=self.reasoning,
            asking=asking,
        )

    def name_answers(self, served_by: str, settings: SamplingSettings, **more: object) -> str:
        """The identity of answers: model, prompt format, sampling settings, and what tells apart who serves the model.

        A name alone does not say which weights answer, because many servers answer to any name.

        Args:
            served_by: The model's revision, or where it is served.
            settings: How answers are drawn.
            **more: What else decides the answers, or takes the place of a part.
        """
        few_shot = self.prompt.load_few_shot()
        return digest(
            {
                "engine": "endpoint",
                "model": self.model,
                "served_by": served_by,
                "protocol": self.protocol,
                "few_shot": few_shot and few_shot.identity,
                "system": self.prompt.system,
                "settings": asdict(settings),
                "extra_body": self.extra_body,
                "reasoning": self.reasoning,
                **more,
            }
        )

    @property
    def tolerated_failed(self) -> float:
        """See ``EngineSettings``."""
        return self.max_failed

    def find_problems(self) -> Iterator[Problem]:
        """See :meth:`EngineSettings.find_problems`."""
        yield from super().find_problems()
        if self.protocol == "chat" and self.prompt.few_shot:
            reason = "a few-shot prompt is a text, which `protocol: chat` cannot ask; add `protocol: completions`"
            yield Problem(("prompt", "few_shot"), reason)
        if self.protocol == "completions" and not self.prompt.few_shot:
            reason = "`completions` asks by a few-shot prompt; add `prompt: {few_shot: FILE}`, or use `protocol: chat`"
            yield Problem(("protocol",), reason)
        for name in self.extra_body:
            if name in _SAID_ELSEWHERE and not (name == "stop" and self.protocol == "chat"):
                yield Problem(("extra_body", name), f"the key `{_SAID_ELSEWHERE[name]}` says this; remove one of them")
            elif name == "stream":
                yield Problem(("extra_body", name), "answers are read whole; remove it")


class Requests:
    """Turns prompts into the bodies of requests, and replies into generations.

    Args:
        model: Its name on the server.
        few_shot: The completion prompt; None asks by messages.
        system: System prompt for messages that have none.
        settings: How answers are drawn.
        extra_body: Further fields of every request.
        reasoning: Where reasoning goes.
        asking: Makes token ids of prompts by the model's own chat template, so that the server applies none.
    """

    def __init__(
        self,
        model: str,
        *,
        few_shot: FewShot | None,
        system: str | None,
        settings: SamplingSettings,
        extra_body: Mapping[str, Any],
        reasoning: ReasoningRule,
        asking: Asking | None = None,
    ) -> None:
        self._model = model
        self._few_shot = few_shot
        self._system = system
        self._settings = settings
        self._extra_body = extra_body
        self._reasoning = reasoning
        self._asking = asking

    @property
    def path(self) -> str:
        """Where requests are sent, below the base URL."""
        return "/completions" if self._few_shot or self._asking else "/chat/completions"

    @property
    def draws(self) -> bool:
        """Whether answers are drawn at random, so that those to one prompt differ."""
        return self._settings.temperature > 0

    def body(
        self,
        prompt: Prompt,
        indices: Sequence[int],
        *,
        without: Collection[str] = (),
        limit: int | None = None,
        has_system_role: bool = True,
    ) -> dict[str, Any]:
        """The request for answers to a prompt.

        Args:
            prompt: What is asked.
            indices: The sample indices of the answers, at least one. The request's seed is that of the first.
            without: Fields that the server does not take.
            limit: Most tokens of an answer; by default the settings'.
            has_system_role: Whether the model's chat template takes a system message; otherwise it opens the first
                user turn.

        Raises:
            TemplateRefusal: The model cannot be asked this prompt.
        """
        settings = self._settings
        fields: dict[str, Any] = {
            "model": self._model,
            **self._asked(prompt, has_system_role=has_system_role),
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "seed": seed_of(settings.seed, prompt.content_hash, indices[0]),
            **dict.fromkeys(LIMITS if self.path.startswith("/chat") else LIMITS[:1], limit or settings.max_new_tokens),
        }
        if len(indices) > 1:
            fields["n"] = len(indices)
        if settings.repetition_penalty != 1:
            fields["repetition_penalty"] = settings.repetition_penalty
        return {name: value for name, value in fields.items() if name not in without} | dict(self._extra_body)

    def _asked(self, prompt: Prompt, *, has_system_role: bool) -> dict[str, Any]:
        if self._few_shot:
            text = self._few_shot.prefix + self._few_shot.render(question_of(prompt.messages))
            return {"prompt": text, "stop": [self._few_shot.stop]}
        if self._asking:
            return {"prompt": self._asking.encode(prompt), "stop_token_ids": sorted(self._asking.end_tokens)}
        messages = with_system(prompt.messages, self._system)
        if not has_system_role:
            messages = fold_system(messages)
        return {"messages": [message._asdict() for message in messages]}

    def read(self, value: Mapping[str, Any], prompt: Prompt, indices: Sequence[int]) -> Read:
        """Read a reply.

        Args:
            value: The body, which :func:`check_reply` takes.
            prompt: What was asked.
            indices: The sample indices that were asked for; the reply may hold fewer answers, and any more are left.
        """
        reply = _Reply.model_validate(value)
        usage = reply.usage or _Usage()
        served_by = _name_server(reply)
        texts = [self._text(choice, prompt) for choice in reply.choices]
        sizes = [len(text.answer) + len(text.reasoning) for text in texts]
        new_tokens = usage.completion_tokens
        if len(texts) > 1 and reply.timings and reply.timings.predicted_n == new_tokens:
            most = self._settings.max_new_tokens * len(texts)
            new_tokens = min(most, round(new_tokens * sum(sizes) / max(sizes[0], 1)))  # llama.cpp counts the first only
        counts = share_out(new_tokens, sizes)
        generations = [
            Generation(
                prompt_id=prompt.id,
                index=index,
                content=text.answer,
                finish_reason=text.finish_reason,
                num_prompt_tokens=usage.prompt_tokens,
                num_tokens=count,
                problem=text.problem,
                reasoning=text.reasoning,
                served_by=served_by,
            )
            for index, text, count in zip(indices, texts, counts, strict=False)
        ]
        cached = usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else 0
        return Read(generations, Usage(0, usage.prompt_tokens, cached or 0, new_tokens), served_by)

    def _text(self, choice: _Choice, prompt: Prompt) -> _Text:
        """An answer, with its reasoning where the recipe wants it."""
        if choice.finish_reason == "content_filter":
            return _Text("", "", PROMPT_REFUSED, "the server's content filter has blocked the answer")
        finish_reason: FinishReason = "length" if choice.finish_reason in _CUT else "stop"
        message = choice.message or _Message(content=choice.text)
        if self._few_shot:
            text, stop, _ = (message.content or "").partition(self._few_shot.stop)  # some servers ignore or repeat it
            return _Text(text.strip(), "", "stop" if stop else finish_reason)
        content = (message.content or "").strip()
        if not content and message.refusal:
            return _Text("", "", PROMPT_REFUSED, f"the model refused: {message.refusal}")
        if self._asking and finish_reason == "length":
            content = self._asking.reopen_thought(content, self._asking.encode(prompt))
        said, answer = split_thoughts(content)
        apart = message.apart.strip()
        if self._reasoning == "apart":
            return _Text(answer.strip(), "\n\n".join(filter(None, (apart, said))), finish_reason)
        return _Text(f"<think>\n{apart}\n</think>\n\n{content}" if apart and not said else content, "", finish_reason)


class Read(NamedTuple):
    """What a reply holds."""

    generations: Sequence[Generation]
    """The answers, for the first of the sample indices that were asked for."""
    usage: Usage
    """The tokens, without the request itself."""
    served_by: str
    """See :attr:`~sinterlm.records.Response.served_by`."""


class _Text(NamedTuple):
    answer: str
    reasoning: str
    finish_reason: FinishReason
    problem: str = ""


def check_reply(value: Any) -> None:
    """Check that a body is a reply, so that nothing else is taken for something that a model said.

    Raises:
        ValueError: It is not a reply; says why.
    """
    _Reply.model_validate(value)


def seed_of(seed: int, prompt_hash: str, index: int) -> int:
    """The seed of one answer, which depends on its key alone; below 2^31, which every server can hold.

    Args:
        seed: The sampling seed.
        prompt_hash: Names the prompt's content.
        index: The sample index.
    """
    return int(digest([seed, prompt_hash, index])[:8], 16) >> 1


def share_out(total: int, sizes: Sequence[int]) -> list[int]:
    """Split a total in proportion to sizes, in whole numbers that sum up to it; evenly if all sizes are 0.

    A reply with several answers says only how many tokens they have together.

    >>> share_out(10, [3, 3, 1])
    [4, 4, 2]
    """
    sizes = sizes if any(sizes) else [1] * len(sizes)
    ends = [round(total * sum(sizes[: place + 1]) / sum(sizes)) for place in range(len(sizes))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


# --- the parts of a reply that are read; servers differ in the rest ---------------------------------------------------


class _Part(BaseModel):
    """A part of a content that is a list."""

    type: str
    text: str = ""
    thinking: str | list[_Part] = ""


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None

    @property
    def apart(self) -> str:
        """The reasoning that the server gives apart from the content; it has two names, and some servers fill both."""
        return next((text for text in (self.reasoning_content, self.reasoning) if text and isinstance(text, str)), "")

    @model_validator(mode="before")
    @classmethod
    def _join_parts(cls, value: Any) -> Any:
        """Some servers give content in parts, reasoning being one of them."""
        if not isinstance(value, Mapping) or not isinstance(value.get("content"), list):
            return value
        parts = [_Part.model_validate(part) for part in value["content"]]
        thoughts = [
            part.thinking if isinstance(part.thinking, str) else "".join(inner.text for inner in part.thinking)
            for part in parts
        ]
        return {**value, "content": "".join(part.text for part in parts), "reasoning": "".join(thoughts)}


class _Choice(BaseModel):
    message: _Message | None = None
    text: str | None = None
    """In place of a message, for the protocol ``completions``."""
    finish_reason: str | None = None
    error: Any = None
    """What a router says if the model's own server failed, although the status code is 200."""

    @model_validator(mode="after")
    def _is_an_answer(self) -> _Choice:
        if self.error is not None or self.finish_reason in _NOT_FINISHED:
            raise ValueError(f"an answer was not finished: {self.error or self.finish_reason}")
        if self.message is None and self.text is None:
            raise ValueError("a choice has neither message nor text")
        return self


class _Cached(BaseModel):
    cached_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    completion_tokens: Annotated[int, Field(ge=0)] = 0
    prompt_tokens_details: _Cached | None = None


class _Timings(BaseModel):
    """What llama.cpp says of the first answer."""

    predicted_n: int | None = None


class _Reply(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]
    model: str | None = None
    system_fingerprint: str | None = None
    usage: _Usage | None = None
    timings: _Timings | None = None


def _name_server(reply: _Reply) -> str:
    """The model as the server names it, without the folders of its machine, and the server's fingerprint."""
    model = PurePath(reply.model or "")
    name = model.name if model.is_absolute() else reply.model or ""
    return ", ".join(filter(None, (name, reply.system_fingerprint)))
