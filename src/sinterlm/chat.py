"""From messages to token ids and the boundary of the answer: the only place where a chat template is applied.

    messages -> template (Jinja, in Transformers' sandbox) -> text -> token ids

Three rules hold everywhere:

- the template writes every special token; the tokenizer adds none (raw completions: its own BOS, once);
- what a user or a model wrote stays text, also where it spells a special token such as ``<|im_end|>``;
- the generation prompt belongs to the prompt, and all that the template writes after it is the answer, as in TRL 1.16.

Nothing here imports torch or Transformers before a tokenizer comes in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from jinja2 import TemplateError

from sinterlm.errors import InputError
from sinterlm.records import Message, digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "sinterprobe"
"""A message that no template changes, by which what the template writes around a message is found."""


class EncodedExample(NamedTuple):
    """A prompt and one answer as token ids; the model reads their concatenation."""

    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class FewShot:
    r"""A completion prompt for models without a chat template: filled-in examples, then the question.

    Example: ``FewShot("Q: {question}\nA: {answer}\n\n", (("What is the opposite of hot?", "cold"),))``

    Args:
        template: One example, with ``{question}`` and then ``{answer}``, and text after it that ends an answer.
        examples: Questions and their answers.
    """

    template: str
    examples: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        parts = re.fullmatch(r"(.*)\{question\}(.*)\{answer\}(.+)", self.template, flags=re.DOTALL)
        if parts is None or any(self.template.count(name) != 1 for name in ("{question}", "{answer}")):
            raise InputError(
                f"few-shot template {self.template!r}: expected {{question}} once, then {{answer}} once, "
                "then text that ends an answer, for example a newline"
            )

    @cached_property
    def _parts(self) -> tuple[str, str, str]:
        """What stands before the question, between question and answer, and after the answer."""
        before, rest = self.template.split("{question}")
        between, after = rest.split("{answer}")
        return before, between, after

    @cached_property
    def prefix(self) -> str:
        """All examples filled in; the same for every question, so that a model can compute it once."""
        before, between, after = self._parts
        return "".join(before + question + between + answer + after for question, answer in self.examples)

    def render(self, question: str) -> str:
        """What follows the prefix: the template up to the answer, without the white space that begins an answer."""
        before, between, _ = self._parts
        return (before + question + between).rstrip()

    @property
    def stop(self) -> str:
        """The text that ends an answer: what follows it in the template, up to the first newline."""
        after = self._parts[2]
        return after[: after.find("\n") + 1] or after

    @property
    def identity(self) -> str:
        """Hash of template and examples."""
        return digest([self.template, [list(example) for example in self.examples]])


def with_system(messages: Sequence[Message], system: str | None) -> tuple[Message, ...]:
    """The messages, headed by a system message if one is given and none is there."""
    if system is None or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of the conversation, up to where the model's answer begins."""
    return _encode(tokenizer, messages, add_generation_prompt=True)


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole dialogue, answers included, as reward models read it."""
    return _encode(tokenizer, messages, add_generation_prompt=False)


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    content: str,
    *,
    truncated: bool = False,
    prompt_ids: list[int] | None = None,
) -> EncodedExample:
    """Token ids of a prompt and of one answer to it, divided where generation begins.

    Args:
        tokenizer: The tokenizer of the model that is trained.
        messages: The prompt.
        content: The answer.
        truncated: Whether the token limit cut the answer; it then gets no end-of-turn, lest the model learn to stop
            in mid-sentence.
        prompt_ids: Of the prompt, where they are known from another answer to it.

    Returns:
        Prompt and response ids. The response holds exactly one end-of-turn, or none if it is truncated.

    Raises:
        InputError: The answer is empty, or the tokens of the prompt are no prefix of those of prompt and answer.
    """
    if not content.strip():
        raise InputError("an empty response never reaches a loss: drop the row, or sample the answer again")
    if prompt_ids is None:
        prompt_ids = encode_prompt(tokenizer, messages)
    whole_ids = encode_conversation(tokenizer, (*messages, Message("assistant", content)))
    if whole_ids[: len(prompt_ids)] != prompt_ids:
        raise InputError(_no_prefix(tokenizer, prompt_ids, whole_ids))
    return EncodedExample(prompt_ids, _end_once(tokenizer, whole_ids[len(prompt_ids) :], truncated=truncated))


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of raw text that a base model continues: the tokenizer's own BOS if it adds one, no EOS."""
    added = tokenizer.encode("")
    bos = added[:1] if added[:1] == [tokenizer.bos_token_id] else []
    return bos + list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer: the template's end-of-turn and the tokenizer's eos."""
    ends = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        ends.add(_end_of_turn(tokenizer))
    return frozenset(end for end in ends if end is not None)


def _encode(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> list[int]:
    """Render and tokenise; special tokens that stand in the messages themselves are encoded as ordinary text."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    pattern = _template_facts(tokenizer).special_tokens
    holds_specials = any(pattern.search(message.content) for message in messages)
    if holds_specials:
        messages = [Message(message.role, mark_control_tokens(message.content, pattern)) for message in messages]
    text = _render(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    # Sanitising walks the whole added vocabulary (27 ms a call for Gemma's), so only where there is something to do.
    return list(tokenizer(text, add_special_tokens=False, sanitize_control_tokens=holds_specials)["input_ids"])


def _render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The template's text; a system message that the template refuses or leaves out opens the first user turn."""
    try:
        text = _apply_template(tokenizer, messages, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        if messages[0].role != "system":
            raise _refused(tokenizer, messages, error) from error
    else:
        if messages[0].role != "system" or messages[0].content.strip() in text:
            return text
    folded = _fold_system(messages)
    try:
        return _apply_template(tokenizer, folded, add_generation_prompt=add_generation_prompt)
    except TemplateError as error:
        raise _refused(tokenizer, folded, error) from error


def _apply_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    turns = [message._asdict() for message in messages]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt))


def _fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation, the system message put before the first user's words."""
    system, *turns = messages
    if not turns or turns[0].role != "user":
        raise InputError("a system message must be followed by a user message, for models without a system role")
    return (Message("user", f"{system.content}\n\n{turns[0].content}"), *turns[1:])


def _end_once(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], *, truncated: bool) -> list[int]:
    """The answer's tokens with exactly one end-of-turn, or with none if the answer was cut."""
    end = _end_of_turn(tokenizer)
    if end in response_ids:
        first = response_ids.index(end)
        if truncated:
            return response_ids[:first]
        return response_ids if end not in response_ids[first + 1 :] else response_ids[: first + 1]
    return response_ids if truncated else [*response_ids, end]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int:
    """The special token that the template writes after an answer; the tokenizer's eos where it writes none."""
    end = _template_facts(tokenizer).end_of_turn
    if end is None:
        end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            f"{_name(tokenizer)}: neither the chat template nor the tokenizer has a token that ends a turn"
        )
    return int(end)


class _TemplateFacts(NamedTuple):
    """What is found out once for a tokenizer and its template."""

    chat_template: str
    special_tokens: re.Pattern[str]
    """Matches any of the tokenizer's special tokens."""
    end_of_turn: int | None
    """The first special token that the template writes after an answer."""


_FACTS: WeakKeyDictionary[PreTrainedTokenizerBase, _TemplateFacts] = WeakKeyDictionary()


def _template_facts(tokenizer: PreTrainedTokenizerBase) -> _TemplateFacts:
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise InputError(
            f"{_name(tokenizer)} has no chat template; a base model needs a few-shot prompt (`prompt: {{few_shot: F}}`)"
        )
    facts = _FACTS.get(tokenizer)
    if facts is None or facts.chat_template != template:
        facts = _FACTS[tokenizer] = _find_facts(tokenizer, template)
    return facts


def _find_facts(tokenizer: PreTrainedTokenizerBase, template: str) -> _TemplateFacts:
    # `all_special_tokens` misses those without a name of their own, Gemma's <end_of_turn> for one.
    specials = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    pattern = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")
    probe = _render(tokenizer, (Message("user", PROBE), Message("assistant", PROBE)), add_generation_prompt=False)
    if probe.count(PROBE) != 2:  # templates for images and text read no plain text
        raise InputError(f"the chat template of {_name(tokenizer)} leaves out what messages of plain text say")
    written = pattern.search(probe.rpartition(PROBE)[2])
    end_of_turn = tokenizer.added_tokens_encoder[written.group()] if written else None
    return _TemplateFacts(template, pattern, end_of_turn)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r}"


def _refused(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], error: TemplateError) -> InputError:
    roles = ", ".join(message.role for message in messages)
    return InputError(f"the chat template of {_name(tokenizer)} refuses a conversation with the roles {roles}: {error}")


def _no_prefix(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], whole_ids: list[int]) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt_ids, whole_ids, strict=False)) if a != b),
        min(len(prompt_ids), len(whole_ids)),
    )
    return (
        f"the chat template of {_name(tokenizer)}: the prompt is no token prefix of prompt and answer. "
        f"Alone the prompt ends in {tokenizer.decode(prompt_ids[same:])!r}, "
        f"before an answer it reads {tokenizer.decode(whole_ids[same : same + 16])!r}. "
        "Strip white space from the beginning of the answer, or use a template that writes the prompt the same way "
        "with and without an answer"
    )
