"""From messages to token ids and the boundary of the answer; chat templates are applied only here.

    messages -> template (Jinja, in Transformers' sandbox) -> text -> token ids

Four rules hold everywhere:

- The template writes every special token; the tokenizer adds none (for raw completions: its own BOS, once).
- What a user or a model wrote stays text, even if it spells a token of the template, such as ``<|im_end|>``.
- The generation prompt belongs to the prompt; everything that the template writes after it is the answer, as in TRL
  1.16.
- An answer is trained word for word after the prompt that generation sees. If the template would write a finished
  answer differently (for example, without its thought), the answer follows the prompt as generation would leave it.

Nothing here imports torch or Transformers before a tokenizer is passed in.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from sinterlm.errors import InputError
from sinterlm.records import Message, digest
from sinterlm.template import TemplateOptions, TemplateRefusal, literals_of, render
from sinterlm.thoughts import closes_thought, is_thought_tag, opened_thought, split_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = "sinterprobe"
"""A message that no template changes, used to find what the template writes around a message."""

PLAIN = TemplateOptions()

REFUSED = "refused-by-the-chat-template"
NO_PREFIX = "prompt-is-no-prefix"
OTHER_WORDS = "answer-written-otherwise"
THOUGHT_AFTER_CLOSED = "thought-after-a-closed-one"


class UnfitAnswer(InputError):
    """An answer that cannot be trained word for word after its prompt.

    Args:
        reason: A fixed phrase with hyphens, by which reports count.
        message: What is wrong, and what to do.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class EncodedText(NamedTuple):
    """A rendered conversation."""

    text: str
    """The text, with marks around what only spells a token."""
    ids: list[int]


class EncodedExample(NamedTuple):
    """A prompt and one answer as token ids; the model reads their concatenation."""

    prompt_ids: list[int]
    response_ids: list[int]
    is_as_generated: bool = False
    """Whether the answer has generation's form, because template or tokenizer would write it differently."""


@dataclass(frozen=True)
class FewShot:
    r"""A completion prompt for models without a chat template: filled-in examples, then the question.

    Example: ``FewShot("Q: {question}\nA: {answer}\n\n", (("What is the opposite of hot?", "cold"),))``

    Args:
        template: One example, with ``{question}``, then ``{answer}``, then text that ends an answer.
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
        """The text before the question, between question and answer, and after the answer."""
        before, rest = self.template.split("{question}")
        between, after = rest.split("{answer}")
        return before, between, after

    @cached_property
    def prefix(self) -> str:
        """All examples filled in; the same for every question, so that a model can compute it once."""
        before, between, after = self._parts
        return "".join(before + question + between + answer + after for question, answer in self.examples)

    def render(self, question: str) -> str:
        """The text after the prefix: the template up to the answer, without the white space that begins an answer."""
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
    """The messages, with ``system`` as the system message if it is given and they have none."""
    if system is None or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def fold_system(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation, with a system message put before the first user message's text.

    Raises:
        TemplateRefusal: No user message follows the system message.
    """
    if not messages or messages[0].role != "system":
        return tuple(messages)
    system, *turns = messages
    if not turns or turns[0].role != "user":
        raise TemplateRefusal("a system message must be followed by a user message, for models without a system role")
    return (Message("user", f"{system.content}\n\n{turns[0].content}"), *turns[1:])


def question_of(messages: Sequence[Message]) -> str:
    """The one question that a few-shot prompt can hold.

    Raises:
        TemplateRefusal: The messages are not one question.
    """
    if [message.role for message in messages] != ["user"]:
        roles = ", ".join(message.role for message in messages)
        raise TemplateRefusal(
            f"a few-shot prompt holds one question, not messages of the roles {roles}; ask this model by its chat "
            "template, or only the domains that it can be asked (domains)"
        )
    return messages[0].content


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The tokenizer's template, or ``default`` if it has several, as in Transformers; None if it has none.

    Raises:
        InputError: There are several, and none of them is ``default``.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        if "default" not in template:
            names = ", ".join(sorted(template))
            raise InputError(f"{_name(tokenizer)} has the chat templates {names}; expected one that is named default")
        template = template["default"]
    return template if isinstance(template, str) else None


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: TemplateOptions = PLAIN
) -> list[int]:
    """Token ids of the conversation, up to where the model's answer begins."""
    return render_prompt(tokenizer, messages, options).ids


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: TemplateOptions = PLAIN
) -> EncodedText:
    """Text and token ids of the conversation, up to where the model's answer begins."""
    text = _render(tokenizer, _as_text(tokenizer, messages, options), options, add_generation_prompt=True)
    return EncodedText(text, _tokenise(tokenizer, text))


def encode_conversation(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: TemplateOptions = PLAIN
) -> list[int]:
    """Token ids of a whole dialogue, answers included, as reward models read it."""
    text = _render(tokenizer, _as_text(tokenizer, messages, options), options, add_generation_prompt=False)
    return _tokenise(tokenizer, text)


def encode_answered(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], content: str, options: TemplateOptions = PLAIN
) -> list[int]:
    """Token ids of a prompt and an answer to it, word for word, as a reward model judges them.

    Raises:
        UnfitAnswer: The template or the tokenizer changes the answer.
        TemplateRefusal: The template refuses the conversation.
    """
    marked = _as_text(tokenizer, (*messages, Message("assistant", content)), options)
    text = _render(tokenizer, marked, options, add_generation_prompt=False)
    answer = marked[-1].content.strip()
    if answer not in text:
        raise UnfitAnswer(
            OTHER_WORDS,
            f"the chat template of {_name(tokenizer)} does not write the whole answer {_shorten(content)}",
        )
    ids = _tokenise(tokenizer, text)
    _check_words(tokenizer, ids, _without_marks(answer))
    return ids


def encode_example(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    content: str,
    *,
    truncated: bool = False,
    prompt: EncodedText | None = None,
    options: TemplateOptions = PLAIN,
) -> EncodedExample:
    """Token ids of a prompt and of one answer to it, divided where generation begins.

    Args:
        tokenizer: The tokenizer of the model that is trained.
        messages: The prompt.
        content: The answer.
        truncated: Whether the token limit cut the answer; it then gets no end-of-turn, so that the model does not
            learn to stop in mid-sentence.
        prompt: The result of :func:`render_prompt`, if it is known from another answer.
        options: Options of the template.

    Returns:
        Prompt and response ids. The response has every word of the answer and exactly one end-of-turn, or none if it
        is truncated.

    Raises:
        UnfitAnswer: The answer cannot be written word for word after the tokens of the prompt.
        InputError: The answer is empty, or the template cannot be used.
    """
    if not content.strip():
        raise InputError("an empty response never reaches a loss: drop the row, or sample the answer again")
    prompt = prompt or render_prompt(tokenizer, messages, options)
    marked = _as_text(tokenizer, (*messages, Message("assistant", content)), options)
    answer = marked[-1].content.strip()
    _check_thought(tokenizer, prompt.text, content)
    whole = _render_or_none(tokenizer, marked, options)
    is_as_generated = False
    if whole is None or not _continues(whole, prompt.text, answer):
        whole = prompt.text + _continuation(tokenizer, prompt.text, answer, options)
        is_as_generated = True
    whole = whole.removesuffix(_template_facts(tokenizer, options).header)
    whole_ids = _tokenise(tokenizer, whole)
    response_ids = whole_ids[len(prompt.ids) :]
    if whole_ids[: len(prompt.ids)] != prompt.ids:
        # GPT-2's rules, for one, join newlines at the end of a text but split them before a word. Generation continues
        # the tokens of the prompt as they are alone.
        response_ids = _tokenise(tokenizer, whole[len(prompt.text) :])
        is_as_generated = True
        if tokenizer.decode(prompt.ids + response_ids) != tokenizer.decode(whole_ids):
            raise UnfitAnswer(NO_PREFIX, _no_prefix(tokenizer, prompt.ids, whole_ids))
    _check_words(tokenizer, response_ids, _without_marks(whole[len(prompt.text) :]))
    response_ids = _end_once(tokenizer, response_ids, options, truncated=truncated)
    return EncodedExample(prompt.ids, response_ids, is_as_generated)


def encode_completion(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of raw text that a base model continues: the tokenizer's own BOS if it adds one, no EOS."""
    added = tokenizer.encode("")
    bos = added[:1] if added[:1] == [tokenizer.bos_token_id] else []
    return bos + list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def thought_token_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Special tokens that are tags of a thought; a text without them cannot tell thought and answer apart."""
    added = tokenizer.added_tokens_decoder.items()
    return frozenset(number for number, token in added if token.special and is_thought_tag(token.content))


def end_token_ids(tokenizer: PreTrainedTokenizerBase, options: TemplateOptions = PLAIN) -> frozenset[int]:
    """Tokens that end an answer: the template's end-of-turn and the tokenizer's eos."""
    ends = {tokenizer.eos_token_id}
    if chat_template_of(tokenizer) is not None:
        ends.add(_end_of_turn(tokenizer, options))
    return frozenset(end for end in ends if end is not None)


# --- text ------------------------------------------------------------------------------------------------------------

_MARKS = str.maketrans("", "", "\U000f0000\U000f0001")
"""Removes the private-use characters that Transformers puts around what only spells a token."""


def _without_marks(text: str) -> str:
    return text.translate(_MARKS)


def _as_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: TemplateOptions
) -> Sequence[Message]:
    """The messages, with marks around text that spells a token of the template, so that it stays text."""
    from transformers.utils.chat_template_utils import mark_control_tokens

    facts = _template_facts(tokenizer, options)
    patterns = [facts.said if message.role == "assistant" else facts.written for message in messages]
    if not any(pattern.search(message.content) for pattern, message in zip(patterns, messages, strict=True)):
        return messages
    return [
        Message(message.role, mark_control_tokens(message.content, pattern))
        for pattern, message in zip(patterns, messages, strict=True)
    ]


def _tokenise(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # Sanitising walks the whole added vocabulary (27 ms per call for Gemma's), so it is done only if needed.
    has_marks = "\U000f0000" in text or "\U000f0001" in text
    try:
        return list(tokenizer(text, add_special_tokens=False, sanitize_control_tokens=has_marks)["input_ids"])
    except ValueError as error:  # the tokenizer's plain vocabulary has the token, too
        raise TemplateRefusal(f"{_name(tokenizer)}: {error}; change that text") from error
    except TypeError as error:
        raise TemplateRefusal(
            f"{_name(tokenizer)} cannot read half of a surrogate pair (\\ud800 to \\udfff)"
        ) from error


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    options: TemplateOptions,
    *,
    add_generation_prompt: bool,
) -> str:
    """The template's text; a system message that it refuses or leaves out goes to the start of the first user turn."""

    def apply(messages: Sequence[Message]) -> str:
        return _apply_template(tokenizer, messages, options, add_generation_prompt=add_generation_prompt)

    if not messages or messages[0].role != "system":
        return apply(messages)
    try:
        text = apply(messages)
    except TemplateRefusal as refusal:
        try:
            return apply(fold_system(messages))
        except TemplateRefusal as again:
            raise refusal if len(messages) > 1 and messages[1].role == "user" else again from None
    if _template_facts(tokenizer, options).keeps_system:
        return text
    # A template may change the system prompt (some read and remove a switch such as `/no_think`). But if any other
    # system prompt gives the same text, the template does not read it.
    is_read = text != apply((Message("system", PROBE), *messages[1:]))
    return text if is_read else apply(fold_system(messages))


def _render_or_none(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], options: TemplateOptions
) -> str | None:
    """A finished dialogue as the template writes it; None if the template refuses it."""
    try:
        return _render(tokenizer, messages, options, add_generation_prompt=False)
    except TemplateRefusal:
        return None


def _apply_template(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    options: TemplateOptions,
    *,
    add_generation_prompt: bool,
) -> str:
    return render(
        _require_template(tokenizer),
        messages,
        options,
        name=f"the chat template of {_name(tokenizer)}",
        add_generation_prompt=add_generation_prompt,
        special_tokens=tokenizer.special_tokens_map,
    )


# --- answers ---------------------------------------------------------------------------------------------------------


def _check_thought(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> None:
    """Refuse an answer with a thought if the prompt ends with a closed one.

    Raises:
        UnfitAnswer: The answer has a thought.
    """
    if closes_thought(prompt) and split_thoughts(answer).answer != answer:
        raise UnfitAnswer(
            THOUGHT_AFTER_CLOSED,
            f"the chat template of {_name(tokenizer)} ends the prompt with an empty thought, and the answer has "
            "another; train without thoughts (thoughts: strip), or have the template leave the thought to the model"
            " (chat_template_kwargs)",
        )


def _continues(whole: str, prompt: str, answer: str) -> bool:
    """Whether a finished dialogue is the prompt, which opens no thought, and then the answer word for word."""
    return whole.startswith(prompt) and answer in whole[len(prompt) :] and not opened_thought(prompt)


def _continuation(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str, options: TemplateOptions) -> str:
    """What generation writes after the prompt to give this answer, including the end-of-turn.

    If the prompt opens a thought, an answer with a thought continues it, and an answer without one first closes it.
    """
    facts = _template_facts(tokenizer, options)
    if opened := opened_thought(prompt):
        if answer.startswith(opened.opening):
            answer = answer.removeprefix(opened.opening)
            answer = answer.lstrip("\n") if prompt.endswith("\n") else answer
        elif split_thoughts(_without_marks(answer)).answer == _without_marks(answer):
            answer = f"\n{opened.closing}\n\n{answer}"
    return facts.before_answer + answer + facts.after_answer


def _check_words(tokenizer: PreTrainedTokenizerBase, response_ids: list[int], written: str) -> None:
    """Check that the tokens decode to what was written, except for white space and the normal form of characters.

    Raises:
        UnfitAnswer: They do not.
    """
    read = str(tokenizer.decode(response_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if written in read or _words(written) in _words(read):
        return
    raise UnfitAnswer(
        OTHER_WORDS,
        f"{_name(tokenizer)} cannot write the answer: its tokens turn {_shorten(written)} into {_shorten(read)}",
    )


def _words(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _end_once(
    tokenizer: PreTrainedTokenizerBase, response_ids: list[int], options: TemplateOptions, *, truncated: bool
) -> list[int]:
    """The answer's tokens, with exactly one end-of-turn, or none if the answer was truncated."""
    end = _end_of_turn(tokenizer, options)
    if end not in response_ids:
        return response_ids if truncated else [*response_ids, end]
    first = response_ids.index(end)
    if truncated:
        return response_ids[:first]
    return response_ids if end not in response_ids[first + 1 :] else response_ids[: first + 1]


def _end_of_turn(tokenizer: PreTrainedTokenizerBase, options: TemplateOptions) -> int:
    """The token that the template writes after an answer; the tokenizer's eos if it writes none."""
    end = _template_facts(tokenizer, options).end_of_turn
    if end is None:
        end = tokenizer.eos_token_id
    if end is None:
        raise InputError(
            f"{_name(tokenizer)}: neither the chat template nor the tokenizer has a token that ends a turn"
        )
    return int(end)


# --- what is known of a template -------------------------------------------------------------------------------------


class _TemplateFacts(NamedTuple):
    """Facts that are found once for a tokenizer, its template and the options."""

    chat_template: str
    options: TemplateOptions
    written: re.Pattern[str]
    """Matches the tokens that only the template may write: special tokens, and added tokens that it writes."""
    said: re.Pattern[str]
    """Matches those that a model may not write in an answer either; it may write the tags of a thought."""
    end_of_turn: int | None
    """The first of ``said`` that the template writes after an answer."""
    before_answer: str
    """White space that the template writes between generation prompt and answer."""
    after_answer: str
    """Everything that the template writes after an answer, including ``header``."""
    header: str
    """The header of the next answer, if the template writes one after every answer; otherwise empty."""
    keeps_system: bool
    """Whether the template writes the system prompt at every turn of a conversation."""


_FACTS: WeakKeyDictionary[PreTrainedTokenizerBase, _TemplateFacts] = WeakKeyDictionary()


def _require_template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = chat_template_of(tokenizer)
    if template is None:
        raise InputError(
            f"{_name(tokenizer)} has no chat template; a base model needs a few-shot prompt (`prompt: {{few_shot: F}}`)"
        )
    return template


def _template_facts(tokenizer: PreTrainedTokenizerBase, options: TemplateOptions) -> _TemplateFacts:
    template = _require_template(tokenizer)
    facts = _FACTS.get(tokenizer)
    if facts is None or facts.chat_template != template or facts.options != options:
        facts = _FACTS[tokenizer] = _find_facts(tokenizer, template, options)
    return facts


def _find_facts(tokenizer: PreTrainedTokenizerBase, template: str, options: TemplateOptions) -> _TemplateFacts:
    name = f"the chat template of {_name(tokenizer)}"
    question, answer = Message("user", PROBE), Message("assistant", PROBE)
    prompt = _apply_template(tokenizer, (question,), options, add_generation_prompt=True)
    whole = _apply_template(tokenizer, (question, answer), options, add_generation_prompt=False)
    if whole.count(PROBE) != 2:  # templates for images and text read no plain text
        raise InputError(f"{name} leaves out or changes what messages of plain text say")
    after_answer = whole.rpartition(PROBE)[2]
    between = whole.removeprefix(prompt).partition(PROBE)[0] if whole.startswith(prompt) else ""
    # `all_special_tokens` misses those without a name of their own, Gemma's <end_of_turn> for one.
    added = tokenizer.added_tokens_decoder.values()
    specials = {token.content for token in added if token.special}
    # Templates may build a token from pieces, so it may be in no literal.
    others = {token.content for token in added if not token.content.isspace()} - specials
    turns = {token for token in others if token in prompt or token in whole}
    literals = literals_of(template, name=name)
    said = {token for token in specials | turns if not is_thought_tag(token)}
    written = specials | turns | {token for token in others if token in literals}
    end = _any_of(said).search(after_answer)
    tail = after_answer[end.end() :] if end else ""
    return _TemplateFacts(
        template,
        options,
        _any_of(written),
        _any_of(said),
        tokenizer.added_tokens_encoder[end.group()] if end else None,
        between if between.isspace() else "",
        after_answer,
        tail.lstrip() if end and prompt.endswith(tail) else "",
        _keeps_system(tokenizer, options),
    )


def _keeps_system(tokenizer: PreTrainedTokenizerBase, options: TemplateOptions) -> bool:
    system, *turns = (Message(role, f"{PROBE} {role}") for role in ("system", "user", "assistant", "user", "assistant"))
    try:
        return all(
            system.content
            in _apply_template(
                tokenizer, (system, *turns[:length]), options, add_generation_prompt=turns[length - 1].role == "user"
            )
            for length in range(1, len(turns) + 1)
        )
    except TemplateRefusal:
        return False


def _any_of(tokens: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)")


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__!r}"


def _no_prefix(tokenizer: PreTrainedTokenizerBase, prompt_ids: list[int], whole_ids: list[int]) -> str:
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt_ids, whole_ids, strict=False)) if a != b),
        min(len(prompt_ids), len(whole_ids)),
    )
    return (
        f"the chat template of {_name(tokenizer)}: the prompt is not a token prefix of prompt and answer. "
        f"Alone, the prompt ends in {tokenizer.decode(prompt_ids[same:])!r}; "
        f"before an answer it reads {tokenizer.decode(whole_ids[same : same + 16])!r}. "
        "Strip white space from the beginning of the answer, or use a template that writes the prompt the same way "
        "with and without an answer"
    )
