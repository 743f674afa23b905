"""The engine that runs a model in this process, on the CPU or one GPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from sinterlm.chat import FewShot, end_token_ids, thought_token_ids
from sinterlm.context import context_length, length_of_plain_positions
from sinterlm.errors import InputError, first_line, memory_advice, out_of_memory
from sinterlm.models import describe_placement, load_model, load_tokenizer
from sinterlm.records import PROMPT_REFUSED, PROMPT_TOO_LONG, FinishReason, Message, Prompt, SamplingSettings
from sinterlm.sampling.asking import Asking
from sinterlm.sampling.protocol import Generation, Item
from sinterlm.sampling.settings import LocalModel
from sinterlm.template import TemplateOptions, TemplateRefusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sinterlm.attention.rows import Prefix

BATCH_TOKENS = 16_384
CHARACTERS_PER_TOKEN = 3
"""A low estimate: batches are formed before any tokenizer is loaded."""
PROBES = ("a", "1")
"""Two questions that have nothing in common: every prompt begins with what both encodings begin with."""


class _Loaded(NamedTuple):
    model: PreTrainedModel
    asking: Asking
    prefix: Prefix | None
    """None if the model cannot share what prompts begin with."""
    context: float
    """Limit of prompt and answer together, in tokens."""
    shared_length: float
    """Up to this many tokens, the positions of a row do not depend on the lengths of others."""


class TransformersSource(LocalModel):
    """A model that runs in this process."""

    description: ClassVar = (
        "a model in this process, on the CPU or one GPU: a folder, a hub name, or a GGUF file in a package"
    )

    engine: Literal["transformers"] = "transformers"

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], None] | None = None,
    ) -> TransformersEngine:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.build`."""
        assert settings is not None
        return TransformersEngine(
            location or self.model,
            few_shot=self.prompt.load_few_shot(),
            system=self.prompt.system,
            settings=settings,
            device=self.device,
            dtype=self.dtype,
            chat_template_kwargs=self.chat_template_kwargs,
            template_date=self.template_date,
            on_loaded=on_loaded,
        )


class TransformersEngine:
    """Samples a causal language model, asked by its chat template or by a few-shot completion prompt.

    An answer ends at the template's end-of-turn or an eos; a few-shot answer also ends at the text that follows
    ``{answer}`` in the template. Its content is stripped of white space and of special tokens other than the tags of a
    thought; its token count includes the token that ended it.

    Prompt and answer together fit into the model's context. A prompt that leaves no room for one token of an answer
    gets an empty generation with the finish reason ``prompt-too-long``, and a prompt that the template refuses one
    with ``prompt-refused``.

    What prompts begin with is computed once, if a check with a few tokens gives the logits of the library's own
    attention. Any other model is sampled by Transformers' own generate, prompt by prompt.

    Args:
        model: Hub name, folder or ``gguf:PACKAGE/FILE.gguf``.
        few_shot: The completion prompt; None asks by chat template.
        system: System prompt for messages that have none; with a chat template only.
        chat_template_kwargs: Variables of the chat template.
        template_date: What the chat template uses as today's date, e.g. 2026-11-30.
        settings: How tokens are drawn.
        device: ``auto`` or a torch device.
        dtype: ``auto`` or a torch dtype's name. Device and dtype change an answer by rounding only, so they are not
            part of the identity.
        on_loaded: Told where the weights were loaded, e.g. ``cpu, float32``, and why sampling is slow if it is.
        batch_tokens: Roughly the tokens of a batch: prompts and answers of all its samples.
    """

    def __init__(
        self,
        model: str,
        *,
        few_shot: FewShot | None,
        system: str | None,
        settings: SamplingSettings,
        device: str = "auto",
        dtype: str = "auto",
        chat_template_kwargs: Mapping[str, Any] | None = None,
        template_date: str | None = None,
        on_loaded: Callable[[str], None] | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if few_shot is not None and system is not None:
            raise InputError(f"model {model}: a few-shot prompt has no place for a system prompt; give one of the two")
        self._name = model
        self._few_shot = few_shot
        self._system = system
        self._settings = settings
        self._device = device
        self._dtype = dtype
        self._options = TemplateOptions.of(chat_template_kwargs, template_date)
        self._on_loaded = on_loaded
        self._batch_tokens = batch_tokens
        self._loaded: _Loaded | None = None

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Put prompts of similar length together, and all samples of a prompt into one batch."""
        ordered = sorted(items, key=lambda item: (_length(item.prompt), item.prompt.id, item.index))
        batches: list[list[Item]] = []
        room = 0
        for _, group in groupby(ordered, key=lambda item: item.prompt.id):
            samples = list(group)
            prompt_tokens = _length(samples[0].prompt) // CHARACTERS_PER_TOKEN
            needed = len(samples) * (prompt_tokens + self._settings.max_new_tokens)
            if not batches or needed > room:
                batches.append([])
                room = self._batch_tokens
            batches[-1].extend(samples)
            room -= needed
        return batches

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer batch after batch; the first loads the weights."""
        advice = "a lower max_new_tokens, a smaller model or, on an accelerator, dtype: bfloat16 takes less"
        for batch in batches:
            with memory_advice(f"sampling model {self._name!r}", advice):
                answers = self._answer(self._load(), batch)
            yield answers

    def close(self) -> None:
        """Release the weights."""
        if self._loaded is not None:
            from accelerate.utils import release_memory

            self._loaded = None
            release_memory()

    def _load(self) -> _Loaded:
        from sinterlm.attention.plug import CannotShareError
        from sinterlm.attention.spans import count_shared
        from sinterlm.sampling.prefix_cache import compute_prefix
        from sinterlm.sampling.sharing import share_prefixes

        if self._loaded is None:
            model = load_model(self._name, device=self._device, dtype=self._dtype)
            tokenizer = load_tokenizer(self._name)
            end_tokens = end_token_ids(tokenizer, self._options) | _generation_ends(model)
            asking = Asking(
                tokenizer, self._few_shot, self._system, end_tokens, self._options, thought_token_ids(tokenizer)
            )
            probes = [asking.encode(Prompt("", (Message("user", probe),))) for probe in PROBES]
            placement, prefix = describe_placement(model), None
            with self._understood_errors(model):
                try:
                    share_prefixes(model, probes[0])
                    prefix = compute_prefix(model, probes[0][: count_shared(probes)])
                except CannotShareError as error:
                    self._check_generation(model, probes[0])
                    placement += f"; sampled prompt by prompt, which is slow ({error})"
            self._loaded = _Loaded(
                model,
                asking,
                prefix,
                context=context_length(model) or math.inf,
                shared_length=length_of_plain_positions(model.config) or math.inf,
            )
            if self._on_loaded is not None:
                self._on_loaded(placement)
        return self._loaded

    def _answer(self, loaded: _Loaded, batch: Sequence[Item]) -> list[Generation]:
        asking = loaded.asking
        encoded: dict[str, list[int]] = {}
        problems: dict[str, str] = {}
        for name, prompt in {item.prompt.id: item.prompt for item in batch}.items():
            try:
                encoded[name] = asking.encode(prompt)
            except TemplateRefusal as refusal:
                problems[name] = str(refusal)
        fitting = [item for item in batch if 0 < len(encoded.get(item.prompt.id, ())) < loaded.context]
        with self._understood_errors(loaded.model):
            answers = dict(zip(fitting, self._sample(loaded, fitting, encoded), strict=True))
        return [
            Generation(
                prompt_id=item.prompt.id,
                index=item.index,
                content=asking.read(answers.get(item, ()), encoded.get(item.prompt.id, ())),
                finish_reason=_finish_reason(asking, answers.get(item), problems.get(item.prompt.id)),
                num_prompt_tokens=len(encoded.get(item.prompt.id, ())),
                num_tokens=len(answers.get(item, ())),
                problem=problems.get(item.prompt.id, ""),
            )
            for item in batch
        ]

    def _sample(
        self, loaded: _Loaded, items: Sequence[Item], encoded: Mapping[str, Sequence[int]]
    ) -> Sequence[list[int]]:
        """The tokens of every answer."""
        if not items:
            return []
        import numpy as np

        from sinterlm.attention.plug import attend_as_before, plug_in
        from sinterlm.sampling.decoding import decode
        from sinterlm.sampling.drawing import draw_uniforms
        from sinterlm.sampling.one_by_one import generate

        settings = self._settings
        prompts = [encoded[item.prompt.id] for item in items]
        uniforms = np.stack(
            [
                draw_uniforms(settings.seed, item.prompt.content_hash, item.index, settings.max_new_tokens)
                for item in items
            ]
        )
        room = [int(min(settings.max_new_tokens, loaded.context - len(prompt))) for prompt in prompts]
        how: dict[str, Any] = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "repetition_penalty": settings.repetition_penalty,
            "is_finished": loaded.asking.is_finished,
        }
        longest = max(len(prompt) + count for prompt, count in zip(prompts, room, strict=True))
        if loaded.prefix is not None and longest <= loaded.shared_length:
            plug_in(loaded.model)
            return decode(loaded.model, loaded.prefix, prompts, uniforms, most_tokens=room, **how)
        attend_as_before(loaded.model)
        answers: list[list[int]] = []
        for _, group in groupby(range(len(items)), key=lambda place: items[place].prompt.id):
            places = list(group)
            prompt, count = prompts[places[0]], room[places[0]]
            at_once = max(1, self._batch_tokens // (len(prompt) + count))
            for start in range(0, len(places), at_once):
                points = uniforms[places[start : start + at_once], :count]
                answers += generate(loaded.model, prompt, points, **how)
        return answers

    @contextmanager
    def _understood_errors(self, model: PreTrainedModel) -> Iterator[None]:
        """Turn logits that are not finite into an error that says what to do."""
        try:
            yield
        except FloatingPointError as error:
            dtype = str(model.dtype).removeprefix("torch.")
            raise InputError(
                f"model {self._name}: {error} in {dtype}; "
                + ("its weights may be damaged" if dtype == "float32" else "sample it with dtype: float32")
            ) from error

    def _check_generation(self, model: PreTrainedModel, tokens: Sequence[int]) -> None:
        """Find out before the first prompt whether Transformers samples the model."""
        import numpy as np

        from sinterlm.sampling.one_by_one import generate

        try:
            generate(model, tokens, np.zeros((1, 2)), temperature=0, top_p=1, is_finished=lambda _: False)
        except Exception as error:  # of any kind: nothing but tokens went in
            if out_of_memory(error) or isinstance(error, FloatingPointError):
                raise
            raise InputError(
                f"model {self._name}: Transformers cannot sample {type(model).__name__} ({type(error).__name__}: "
                f"{first_line(error)}); sample it elsewhere and use the engine `recorded`"
            ) from error


def _finish_reason(asking: Asking, tokens: Sequence[int] | None, problem: str | None) -> FinishReason:
    if tokens is None:
        return PROMPT_REFUSED if problem else PROMPT_TOO_LONG
    return "stop" if asking.is_finished(tokens) else "length"


def _length(prompt: Prompt) -> int:
    """Characters of the prompt's own messages; what all prompts share takes no room of its own."""
    return sum(len(message.content) for message in prompt.messages)


def _generation_ends(model: PreTrainedModel) -> set[int]:
    """The tokens at which the model's own generation config stops."""
    config = model.generation_config
    ends = config.eos_token_id if config is not None else None
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)
