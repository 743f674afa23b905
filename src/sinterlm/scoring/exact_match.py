"""Exact match: whether an answer is one of the accepted answers, after a normalisation of both.

Normalisation, in this order:

1. typography folded (see ``typography.py``): minus signs, apostrophes, digits of other scripts, ...;
2. case folded, and Turkish dotted and dotless i made one;
3. white space stripped at both ends, and every run of it inside made one space;
4. commas that group digits by three dropped (``1,000`` becomes ``1000``);
5. punctuation and backticks stripped at both ends; a minus or decimal point before a digit stays, and so does what
   belongs to a name (``C#``, ``.NET``, the grade ``A-``);
6. one leading article dropped (``a``, ``an``, ``the``), and punctuation stripped once more.

A text of nothing but punctuation is left as it is, so that no empty answer is ever right.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import ClassVar, Literal

from sinterlm.errors import InputError
from sinterlm.records import Score
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.settings import AnswerReader
from sinterlm.scoring.typography import fold

NORMALISATION = 2
"""Goes up with every change of the normalisation, so that older scores are not used."""

GROUPING_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
"""The comma of 1,000, which does not change the value."""
_ARTICLE = re.compile(r"(?:a|an|the) (?=\S)")
_SIGNED = re.compile(r"-?\.?\d|\.[^\W\d_]")
_NAME_END = re.compile(r"\w#+$|(?<!\w)[^\W\d]{1,2}-$")
"""The end of a name that ends in a punctuation mark: F#, C-."""
_KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
_HANGUL = r"\uac00-\ud7a3"
_WITHOUT_SPACES = re.compile(
    r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf"  # Thai to Tai Tham
    rf"\u3041-\u309f{_KATAKANA}\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"  # kana, Han
)
"""Letters of scripts that put no space between words."""
_IN_KATAKANA = re.compile(f"[{_KATAKANA}]{{2}}")
_KOREAN_ENDING = re.compile(
    "(?:으로부터|으로써|으로서|으로는|에서는|에서도|에서|에게서|에게|에는|에도|에|께서|께|으로|로부터|로서|로써|로|은|는|이랑|랑|이|가|을|를|의|와|과|하고"
    "|도|만|부터|까지|보다|처럼|이나|나|이란|란|이라는|라는|이라고|라고|이라|라|인데|인|이며|며|이고|고|이지만|지만"
    "|입니다|이었습니다|였습니다|이었다|였다|이다|다|이에요|예요|이죠|죠|이야|야|임|요)?"
    rf"(?![\w{_HANGUL}])"
)
"""Particles and forms of the copula, which follow a Korean word without a space."""
_IS_HANGUL = re.compile(f"[{_HANGUL}]")
_SIGN_BEFORE = re.compile(r"(?<!\w)[-.]$|\d[.,]$|(?<!\w)-\.$")
_DIGIT_BEFORE = re.compile(r"\d$")
_DECIMALS_AFTER = re.compile(r"[.,]\d")
_NAME_AFTER = re.compile(r"\+\+|#|\+(?!\w)|&\w|-(?![\w-])")
_NAME_BEFORE = re.compile(r"(?:\w&|(?<![\w.])\.)$")
"""Characters beside a word that make it another name: C++, C#, R&D, A-, .NET."""


class ExactMatch(AnswerReader):
    """Whether an answer equals an accepted one, as text."""

    kind: Literal["exact-match"]

    description: ClassVar = (
        "1 if the answer equals an accepted answer, apart from letter case, articles and outer punctuation; otherwise 0"
    )

    @property
    def rules(self) -> int:
        """The normalisation."""
        return NORMALISATION

    def build_reader(self) -> ExactMatchScorer:
        """The scorer of answers without thoughts."""
        return ExactMatchScorer()


class ExactMatchScorer:
    """Gives 1 to an answer that equals an accepted one after normalisation, else 0.

    ``contains`` in the detail is 1 if a normalised accepted answer occurs in the normalised answer as whole words,
    numbers as whole numbers: ``5`` is not in ``15``, ``1.5`` or ``-5``.
    """

    answers_at_once = 1_024
    """Each takes microseconds, and what is given at once is written at once."""

    @property
    def identity(self) -> str:
        """Names kind and normalisation."""
        return f"exact-match:{NORMALISATION}"

    @property
    def needs_answers(self) -> bool:
        """Accepted answers decide every score."""
        return True

    def score(self, exchanges: Sequence[Exchange]) -> list[Score]:
        """Compare every response with its prompt's accepted answers.

        Raises:
            InputError: A prompt has no accepted answers.
        """
        return [self._score_one(entry) for entry in exchanges]

    def close(self) -> None:
        """Nothing is held."""

    def _score_one(self, exchange: Exchange) -> Score:
        prompt, response = exchange
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
    text = fold(text).casefold().replace("i\u0307", "i").replace("\u0131", "i")
    text = " ".join(unicodedata.normalize("NFKC", text).split())
    text = _strip_punctuation(GROUPING_COMMA.sub("", text))
    return _strip_punctuation(_ARTICLE.sub("", text, count=1) if _ARTICLE.match(text) else text)


def is_within(answer: str, text: str) -> bool:
    """Whether a normalised answer occurs in a normalised text as whole words, or as a whole number.

    In a script that is written without spaces a word may begin and end anywhere, except within a run of Katakana; a
    Korean word may be followed by a particle.
    """
    start = text.find(answer)
    while start >= 0:
        if _begins_at(answer, text, start) and _ends_at(answer, text, start + len(answer)):
            return True
        start = text.find(answer, start + 1)
    return False


def _begins_at(answer: str, text: str, start: int) -> bool:
    before = text[max(0, start - 3) : start]
    belongs = _SIGN_BEFORE if answer[0].isdigit() else _NAME_BEFORE if answer[0].isalnum() else _DIGIT_BEFORE
    if belongs.search(before):
        return False
    return not before or _is_boundary(before[-1], answer[0], outer=before[-1])


def _ends_at(answer: str, text: str, end: int) -> bool:
    after = text[end : end + 1]
    if not after:
        return True
    if answer[-1].isdigit() and _DECIMALS_AFTER.match(text, end):
        return False
    if answer[-1].isalpha() and _NAME_AFTER.match(text, end):
        return False
    if _IS_HANGUL.match(answer[-1]) and _KOREAN_ENDING.match(text, end):
        return True
    return _is_boundary(answer[-1], after, outer=after)


def _is_boundary(left: str, right: str, *, outer: str) -> bool:
    """Whether a word may end between two characters; ``outer`` is the one outside the answer."""
    if unicodedata.category(right).startswith("M"):
        return False
    if not _is_letter(outer):
        return True
    if _IN_KATAKANA.fullmatch(left + right):
        return False
    return any(map(_WITHOUT_SPACES.match, (left, right)))


def _is_letter(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def _strip_punctuation(text: str) -> str:
    start, end = 0, len(text)
    while start < end and _is_stripped(text[start]) and not _is_signed(text, start):
        start += 1
    while end > start and _is_stripped(text[end - 1]) and not _NAME_END.search(text[max(start, end - 40) : end]):
        end -= 1
    return text[start:end] or text


def _is_signed(text: str, start: int) -> bool:
    return _SIGNED.match(text, start) is not None and text[max(0, start - 1) : start] != "."


def _is_stripped(character: str) -> bool:
    return character in " `" or unicodedata.category(character).startswith("P")
