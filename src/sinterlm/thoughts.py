r"""Thoughts: what a reasoning model writes before its answer, told apart from the answer.

Thoughts are recognised only at the beginning of the text; several may follow one another. An opening tag that is never
closed makes everything a thought: the answer was cut before it began.

Many chat templates write the opening tag into the prompt, so the text has only the closing tag. Such a tag ends a
thought unless it is a mention, by one rule: **a lone closing tag is a mention if it is written as a word of a sentence
(in quotes or code, before a punctuation mark, or after a space within a sentence), or if an opening tag pairs with
it.** So ``To end a thought, write </think>.`` is an answer, and ``5 + 5 = 10.</think>10`` has a thought.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain, islice
from typing import Literal, NamedTuple

ThoughtRule = Literal["keep", "strip", "refuse"]
"""What to do with an answer's thoughts: keep them, strip them first, or refuse (drop) the answer."""
HOLDS_THOUGHTS = "holds-thoughts"
"""Why an answer or a row is dropped under ``refuse``."""


class Thoughts(NamedTuple):
    """A text in two parts: what the model thought, and what it answered."""

    thoughts: str
    """The thoughts without tags; several are separated by an empty line."""
    answer: str
    """The answer; the whole text if it has no thought."""


class _Pair(NamedTuple):
    """How a family of models marks a thought, as regular expressions."""

    opening: str
    closing: str
    is_prose: bool = False
    """Whether the marks are words that any text may begin with: then both must be present."""


def _tags(name: str) -> _Pair:
    return _Pair(rf"<{name}>", rf"</{name}>")


_PAIRS = (
    _tags("think"),  # DeepSeek, Qwen, QwQ, GLM, SmolLM3, Nemotron, Hunyuan, OLMo, Phi, Granite 3.3, ...
    _tags("thinking"),
    _tags("thoughts?"),  # EXAONE Deep, Gemini, Marco-o1
    _tags("reasoning"),
    _tags("seed:(?:cot_budget_reflect|think)"),  # Seed-OSS
    _tags("longcat_think"),
    _Pair(r"\[THINK\]", r"\[/THINK\]"),  # Magistral
    _Pair("◁think▷", "◁/think▷"),  # Kimi
    _Pair(r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),  # Sky-T1, OpenThinker
    _Pair(r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),  # Command A
    _Pair(r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),  # Apertus
    _Pair(r"<\|channel>thought\b", r"<channel\|>"),  # Gemma 4
    _Pair(r"<unused94>thought\b", "<unused95>"),  # MedGemma
    _Pair(  # gpt-oss
        r"(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)[^<\n]*(?:<\|constrain\|>\w+)?<\|message\|>",
        r"(?:<\|end\|>\s*)?(?:<\|start\|>assistant)?<\|channel\|>final[^<\n]*(?:<\|constrain\|>\w+)?<\|message\|>",
    ),
    _Pair("analysis", "assistantfinal", is_prose=True),  # gpt-oss, without its special tokens
    _Pair("Here(?:'s| is) my thought process:", "Here(?:'s| is) my response:", is_prose=True),  # Granite 3.2
)
_FRAMES = (
    (r"<(answer|response|output|solution)>", r"</\1>"),
    (r"<\|begin_of_(solution)\|>", r"<\|end_of_\1\|>"),
    (r"<\|START_(RESPONSE|TEXT)\|>", r"<\|END_\1\|>"),
)
"""What some formats put around the answer that follows a thought."""
_ENDS = re.compile(r"\s*<\|(?:return|end|END_OF_TURN_TOKEN)\|>\s*\Z")
_BLANK = " \t\r\n\f\v\u00a0\u200b\u2060\ufeff"
_BLANKS = re.compile(f"[{_BLANK}]*")
_QUOTES = {"`": "`", '"': '"', "'": "'", "\u201c": "\u201d", "\u2018": "\u2019", "\u00ab": "\u00bb", "(": ")"}
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_PUNCTUATION = re.compile(r"[.,;:!?)\u3002\uff0c\u3001](?!\w)")
_PARAGRAPH_OR_ANSWER = re.compile(r"[ \t\r]*\n[ \t\r]*\n\s*\S|\s*<(?:answer|response)>")
_MAX_CANDIDATES, _MAX_LOOK = 100, 1000
_MAX_THOUGHTS = 20
"""Each thought is searched to the end of the text; more than this many are a model in a loop."""


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.IGNORECASE)


_OPENING = [_compiled(pair.opening) for pair in _PAIRS]
_CLOSING = [_compiled(pair.closing) for pair in _PAIRS]
_TAGS = [number for number, pair in enumerate(_PAIRS) if not pair.is_prose]
_MARK = re.compile(r"[<\[◁]")
"""What every closing tag begins with: most answers hold none of it, and are read no further."""
_BEGIN = _compiled(r"[<\[◁ah]")
"""What every opening tag, or sentence that opens a thought, begins with."""
_ANY_CLOSING = _compiled("|".join(_PAIRS[number].closing for number in _TAGS))
_OPENS = _compiled(r"[<\[◁](?:think(?:ing)?|thoughts?|reasoning|seed:think|longcat_think)[>\]▷]\s*\Z")
_CLOSES = _compiled(rf"(?:{_ANY_CLOSING.pattern})\s*\Z")
_FRAMED = [re.compile(rf"{start}(.*?)(?:{end}\s*)?\Z", re.IGNORECASE | re.DOTALL) for start, end in _FRAMES]


def has_thoughts(content: str) -> bool:
    """Whether a text begins with a thought; an empty one, as from a model told not to think, does not count.

    >>> has_thoughts("<think>5 + 5</think>10"), has_thoughts("<think></think>10")
    (True, False)
    """
    return split_thoughts(content).thoughts != ""


def split_thoughts(content: str) -> Thoughts:
    r"""Tell the thoughts at the beginning of a text from the answer.

    >>> split_thoughts("<think>\n5 + 5\n</think>\n\nThe answer is 10.")
    Thoughts(thoughts='5 + 5', answer='The answer is 10.')
    >>> split_thoughts("Begin with <think> and end with </think>. That is all.").thoughts
    ''
    """
    thoughts: list[str] = []
    start = _skip_blanks(content, 0)
    while len(thoughts) < _MAX_THOUGHTS and (found := _opened_thought(content, start) or _lone_thought(content, start)):
        thoughts.append(content[found.start : found.end].strip(_BLANK))
        start = _skip_blanks(content, found.next)
        if start == len(content):
            break
    if not thoughts:
        return Thoughts("", content)
    return Thoughts("\n\n".join(filter(None, thoughts)), _out_of_its_frame(content[start:]))


class Opened(NamedTuple):
    """The tag of a thought that a prompt opens for the answer, and the one that closes it."""

    opening: str
    closing: str


def opened_thought(prompt: str) -> Opened | None:
    """The thought that a prompt leaves open at its end; None if it leaves none open.

    >>> opened_thought("<|im_start|>assistant <think>")
    Opened(opening='<think>', closing='</think>')
    """
    found = _OPENS.search(prompt)
    if found is None:
        return None
    opening = found[0].rstrip()
    return Opened(opening, f"{opening[0]}/{opening[1:]}")


def closes_thought(prompt: str) -> bool:
    """Whether a prompt ends with a closed thought, as if a model is told not to think."""
    return _CLOSES.search(prompt) is not None


def is_thought_tag(token: str) -> bool:
    """Whether a token is a tag that models themselves write around a thought."""
    return any(tag.fullmatch(token) for number in _TAGS for tag in (_OPENING[number], _CLOSING[number]))


class _Thought(NamedTuple):
    """Where a thought lies in a text, and where what follows it begins."""

    start: int
    end: int
    next: int


def _opened_thought(text: str, start: int) -> _Thought | None:
    """The thought that begins at ``start`` with an opening tag; without a closing tag, it extends to the text's end."""
    if not _BEGIN.match(text, start):
        return None
    for pair, opening, closing in zip(_PAIRS, _OPENING, _CLOSING, strict=True):
        if opened := opening.match(text, start):
            ends = (end for end in closing.finditer(text, opened.end()) if not _is_quoted(text, end))
            first = next(ends, None)
            if first:
                candidates = chain([first], islice(ends, _MAX_CANDIDATES))
                end = next((end for end in candidates if not _is_word(text, end, start)), first)
                return _Thought(opened.end(), end.start(), end.end())
            if not pair.is_prose:
                return _Thought(opened.end(), len(text), len(text))
    return None


def _lone_thought(text: str, start: int) -> _Thought | None:
    """The thought that begins at ``start`` without an opening tag."""
    mark = _MARK.search(text, start)
    if not mark or not _ANY_CLOSING.search(text, mark.start()):
        return None
    fences = [fence.start() for fence in _FENCE.finditer(text, start)]
    found = (_lone_closing(text, start, _OPENING[number], _CLOSING[number], fences) for number in _TAGS)
    end = min(filter(None, found), key=lambda end: end.start(), default=None)
    return end and _Thought(start, end.start(), end.end())


def _lone_closing(
    text: str, start: int, opening: re.Pattern[str], closing: re.Pattern[str], fences: Sequence[int]
) -> re.Match[str] | None:
    """The first closing tag of one kind that is not a mention.

    Args:
        text: What a model wrote.
        start: Where the thought would begin.
        opening: Matches the opening tag.
        closing: Matches the closing tag.
        fences: Where the lines begin that open or close a block of code.
    """
    openings = list(opening.finditer(text, start))
    places = [opened.start() for opened in openings]
    marks = [
        opened.start() for opened in openings if not _is_quoted(text, opened) and not _is_word(text, opened, start)
    ]
    for end in closing.finditer(text, start):
        place = end.start()
        if marks and marks[0] < place:
            return None
        line = text.rfind("\n", start, place) + 1
        has_opening_in_line = bisect_left(places, place) > bisect_left(places, line)
        num_fences = bisect_left(fences, place)
        is_in_code = num_fences % 2 == 1 and num_fences < len(fences)
        if not (has_opening_in_line or is_in_code or _is_quoted(text, end) or _is_word(text, end, start)):
            return end
    return None


def _is_quoted(text: str, tag: re.Match[str]) -> bool:
    before, after = text[max(0, tag.start() - 1) : tag.start()], text[tag.end() : tag.end() + 1]
    return before in _QUOTES and _QUOTES[before] == after


def _is_word(text: str, tag: re.Match[str], start: int) -> bool:
    """Whether a tag is written as a word of a sentence: before punctuation, or after a space within a sentence."""
    if tag.start() == start:
        return text[tag.end() : tag.end() + 1] in (" ", "\t")
    if _PUNCTUATION.match(text, tag.end()):
        return True
    before = text[max(start, tag.start() - _MAX_LOOK) : tag.start()]
    if not before.endswith((" ", "\t")) or not before.rpartition("\n")[2].strip():
        return False
    ends_a_sentence = before.rstrip().endswith((".", "!", "?", "。", "\uff01", "\uff1f"))
    return not (ends_a_sentence or _PARAGRAPH_OR_ANSWER.match(text, tag.end()))


def _skip_blanks(text: str, start: int) -> int:
    blanks = _BLANKS.match(text, start)
    return blanks.end() if blanks else start


def _out_of_its_frame(answer: str) -> str:
    answer = _ENDS.sub("", answer)
    for frame in _FRAMED:
        if found := frame.match(answer):
            return found[2].strip()
    return answer
