"""Exact match: whether an answer is one of the accepted answers, after a normalisation of both.

Normalisation, in this order:

1. Unicode compatibility form (NFKC) and case folding;
2. white space stripped at both ends, and every run of it inside made one space;
3. commas that group digits by three dropped (``1,000`` becomes ``1000``);
4. punctuation and backticks stripped at both ends; a minus or decimal point before a digit stays;
5. one leading article dropped (``a``, ``an``, ``the``), and punctuation stripped once more.

A text of nothing but punctuation is left as it is, so that no empty answer is ever right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from sinterlm.errors import InputError
from sinterlm.records import Score
from sinterlm.scoring.protocol import Answered

NORMALISATION = 1
"""Goes up with every change of the normalisation, so that older scores are not used."""

GROUPING_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
"""The comma of 1,000, which says nothing of the value."""
_ARTICLE = re.compile(r"(?:a|an|the) (?=\S)")
_SIGNED = re.compile(r"-?\.?\d")
_NO_MORE_DIGITS = r"(?![.,]\d)"
_NO_DIGITS_BEFORE = r"(?<!\d[.,])(?<!(?<!\w)-)(?<!(?<!\w)\.)"


class ExactMatchScorer:
    """Gives 1 to an answer that equals an accepted one after normalisation, else 0.

    ``contains`` in the detail is 1 where a normalised accepted answer stands in the normalised answer as whole words,
    and numbers as whole numbers: ``5`` is not in ``15``, ``1.5`` or ``-5``.
    """

    @property
    def identity(self) -> str:
        """Names kind and normalisation."""
        return f"exact-match:{NORMALISATION}"

    @property
    def needs_answers(self) -> bool:
        """Accepted answers decide every score."""
        return True

    def score(self, answered: Sequence[Answered]) -> list[Score]:
        """Compare every response with its prompt's accepted answers.

        Raises:
            InputError: A prompt has none.
        """
        return [self._score_one(entry) for entry in answered]

    def close(self) -> None:
        """Nothing is held."""

    def _score_one(self, answered: Answered) -> Score:
        prompt, response = answered
        accepted = {normalise(answer) for answer in prompt.answers} - {""}
        if not accepted:
            raise InputError(
                f"prompt {prompt.id}: no accepted answers, which the scorer exact-match compares with; "
                "give the prompt `answers`, or score open prompts by a reward model"
            )
        found = normalise(response.content)
        matches = found in accepted
        contains = any(is_within(answer, found) for answer in accepted)
        return Score(response.id, self.identity, float(matches), matches, {"contains": float(contains)})


def normalise(text: str) -> str:
    """Bring an answer into the form in which answers are compared.

    >>> normalise(" **The Nile.** ")
    'nile'
    """
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    text = _strip_punctuation(GROUPING_COMMA.sub("", text))
    return _strip_punctuation(_ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text)


def is_within(answer: str, text: str) -> bool:
    """Whether a normalised answer stands in a normalised text as whole words, or as a whole number."""
    before = _NO_DIGITS_BEFORE if answer[0].isdigit() else ""
    after = _NO_MORE_DIGITS if answer[-1].isdigit() else ""
    return re.search(rf"(?<!\w){before}{re.escape(answer)}(?!\w){after}", text) is not None


def _strip_punctuation(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_stripped(text[start]) and not _SIGNED.match(text, start):
        start += 1
    while end > start and _is_stripped(text[end - 1]):
        end -= 1
    return text[start:end] or text


def _is_stripped(character: str) -> bool:
    return character in " `" or unicodedata.category(character).startswith("P")
