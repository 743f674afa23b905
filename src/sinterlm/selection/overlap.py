"""Prompts that repeat another prompt, or a question of a benchmark.

Text is compared in normal form (Unicode NFKC, letter case and white space ignored); n-grams are runs of n words. An
operator (``+``, ``=``, ...) and a Chinese or Japanese character are words too; punctuation does not count.

De-duplication keeps the first of two prompts that are the same, or whose n-grams' Jaccard similarity reaches a limit.
Candidates are found by prefix filtering (Bayardo et al., WWW 2007): if two sets have a Jaccard similarity of at
least s, and one has k elements, they share one of its k - ceil(s k) + 1 rarest. So the result is that of comparing all
pairs.

Decontamination drops a prompt that shares an n-gram with a benchmark's question (GPT-3, arXiv 2005.14165, appendix C,
takes n = 13), or that covers at least a given share of the question's words by shared n-grams (as Tulu 3, arXiv
2411.15124, with n = 8 and half of the words). Every turn of a question counts as a question: a prompt that
asks the first of two turns asks what the benchmark asks.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sinterlm.records import Dropped, Prompt

DUPLICATE = "duplicate-prompt"
NEAR_DUPLICATE = "near-duplicate-prompt"
CONTAMINATED = "prompt-overlaps-benchmark"
REASONS = {
    DUPLICATE: "another prompt says the same, letter case and white space aside",
    NEAR_DUPLICATE: "another prompt has almost the same n-grams",
    CONTAMINATED: "the prompt shares n-grams with a question of a benchmark",
}
"""Every reason for which a prompt is dropped here, and what it means."""

MIN_WORDS = 5
"""A question of fewer words is found only as a whole prompt: within others such words occur by chance."""

_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_OPERATORS = "-+*/=<>^%$|&"
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W{_IDEOGRAPHS}]+|[{_OPERATORS}]")

Grams = NDArray[np.int64]
"""A set of n-grams, as hashes or as numbers by rarity, in ascending order."""


class Match(NamedTuple):
    """A prompt that was dropped, and what it is like: for people to read and judge."""

    prompt_id: str
    reason: str
    other: str
    """The id of the prompt that was kept, or of the question."""
    overlap: float
    """For duplicates, the Jaccard similarity of their n-grams; for a question, the share of its words that the prompt
    covers, in the turn that it covers most."""
    prompt: str
    other_text: str
    shared: str = ""
    """The longest run of words that prompt and question share."""


class Distinct(NamedTuple):
    """The prompts that remain, in their order, and a match for every prompt that does not."""

    prompts: Sequence[Prompt]
    matches: Sequence[Match]

    def dropped(self, stage: str) -> list[Dropped]:
        """The matches as records of dropped prompts."""
        return [
            Dropped(match.prompt_id, stage, match.reason, f"{match.other} (overlap {match.overlap:.2f})")
            for match in self.matches
        ]


def deduplicate(prompts: Sequence[Prompt], *, ngram: int | None, similarity: float) -> Distinct:
    """Keep the first of prompts that are alike.

    Args:
        prompts: In the order in which the first is kept.
        ngram: Words in an n-gram; None compares whole texts only. Shorter prompts are compared as wholes.
        similarity: Prompts whose n-grams have at least this Jaccard similarity (0 to 1) are duplicates.
    """
    texts = list(map(text_of, prompts))
    sets = _by_rarity([_hash_grams(split_words(text), ngram) for text in texts]) if ngram else None
    first_of: dict[str, int] = {}
    kept_with: dict[int, list[int]] = {}
    kept: list[Prompt] = []
    matches: list[Match] = []
    for number, prompt in enumerate(prompts):
        normal = _normalise(texts[number])
        if normal in first_of:
            reason, other, overlap = DUPLICATE, first_of[normal], 1.0
        elif sets and (alike := _most_alike(number, sets, kept_with, similarity)):
            reason, (other, overlap) = NEAR_DUPLICATE, alike
        else:
            first_of[normal] = number
            kept.append(prompt)
            continue
        matches.append(Match(prompt.id, reason, prompts[other].id, overlap, texts[number], texts[other]))
    return Distinct(kept, matches)


def decontaminate(prompts: Sequence[Prompt], questions: Iterable[Prompt], *, ngram: int, coverage: float) -> Distinct:
    """Drop the prompts that hold a benchmark's question, or a part of it.

    Args:
        prompts: What models are to be asked.
        questions: The benchmarks' questions. A turn of fewer than ``ngram`` words, but at least :data:`MIN_WORDS`, is
            found as a whole.
        ngram: Words in an n-gram. One with more operators than words, such as the rule of a table, does not count.
        coverage: The share of a question's words that the shared n-grams must cover (0 to 1); at 0 one is enough.
    """
    index = _QuestionIndex(questions, ngram)
    kept: list[Prompt] = []
    matches: list[Match] = []
    for prompt in prompts:
        text = text_of(prompt)
        found = index.find(split_words(text))
        if found is None or found.coverage < coverage:
            kept.append(prompt)
        else:
            question = found.question
            matches.append(
                Match(prompt.id, CONTAMINATED, question.id, found.coverage, text, text_of(question), found.shared)
            )
    return Distinct(kept, matches)


def text_of(prompt: Prompt) -> str:
    """The text of a prompt that is compared: all but its system prompt."""
    return "\n".join(message.content for message in prompt.messages if message.role != "system")


def split_words(text: str) -> list[str]:
    """The words of a text in normal form.

    >>> split_words("What is 2+2,  in ROMAN numerals?")
    ['what', 'is', '2', '+', '2', 'in', 'roman', 'numerals']
    """
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def _normalise(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


# -- de-duplication ----------------------------------------------------------------------------------------------------


def _hash_grams(words: Sequence[str], ngram: int) -> Grams:
    """The set of a text's n-grams as hashes, which hold in this process only."""
    grams = set(map(hash, _grams(words, ngram)))
    return np.sort(np.fromiter(grams, np.int64, len(grams)))


def _by_rarity(sets: Sequence[Grams]) -> list[Grams]:
    """The same sets with every n-gram as a number: the fewer texts have it, the smaller."""
    grams, places, counts = np.unique(
        np.concatenate([*sets, np.empty(0, np.int64)]), return_inverse=True, return_counts=True
    )
    rank = np.empty(len(grams), np.int64)
    rank[np.argsort(counts, kind="stable")] = np.arange(len(grams))
    ends = np.cumsum([0, *map(len, sets)])
    return [np.sort(rank[places[start:end]]) for start, end in pairwise(ends)]


def _most_alike(
    number: int, sets: Sequence[Grams], kept_with: dict[int, list[int]], similarity: float
) -> tuple[int, float] | None:
    """The kept text that is most like text ``number``, with its similarity; if none is, the text itself is kept.

    Args:
        number: The text's number.
        sets: The n-grams of every text, by rarity.
        kept_with: The kept texts by the n-grams among their rarest.
        similarity: Texts at least this similar are duplicates.
    """
    own = sets[number]
    num_rarest = len(own) - math.ceil(similarity * len(own) - 1e-9) + 1  # 0.55 * 100 is 55.000000000000007
    rarest = own[:num_rarest].tolist()
    candidates = {other for gram in rarest for other in kept_with.get(gram, ())}
    likeness = {other: _jaccard(own, sets[other]) for other in sorted(candidates)}
    best = max(likeness, key=likeness.__getitem__, default=number)
    if best != number and likeness[best] >= similarity:
        return best, likeness[best]
    for gram in rarest:
        kept_with.setdefault(gram, []).append(number)
    return None


def _jaccard(one: Grams, other: Grams) -> float:
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


# -- decontamination ---------------------------------------------------------------------------------------------------


class _Found(NamedTuple):
    question: Prompt
    coverage: float
    shared: str


class _QuestionIndex:
    """The n-grams of all questions, and where they occur.

    Args:
        questions: The benchmarks' questions.
        ngram: Words in an n-gram; a shorter question is found as a whole.
    """

    def __init__(self, questions: Iterable[Prompt], ngram: int) -> None:
        self._ngram = ngram
        self._questions = [
            Prompt(question.id, (turn,)) for question in questions for turn in question.messages if turn.role == "user"
        ]
        """Every turn of the user as a question."""
        self._words = [tuple(split_words(text_of(question))) for question in self._questions]
        self._whole: dict[tuple[str, ...], int] = {}
        self._long: dict[tuple[str, ...], list[tuple[int, int]]] = {}
        """Questions by each of their n-grams, with its position."""
        self._short: dict[tuple[str, ...], list[int]] = {}
        """Questions shorter than an n-gram by their first words."""
        for number, words in enumerate(self._words):
            self._whole.setdefault(words, number)
            if len(words) >= ngram:
                for place, gram in enumerate(_grams(words, ngram)):
                    if 2 * sum(word in _OPERATORS for word in gram) <= ngram:
                        self._long.setdefault(gram, []).append((number, place))
            elif len(words) >= MIN_WORDS:
                self._short.setdefault(words[:MIN_WORDS], []).append(number)

    def find(self, words: Sequence[str]) -> _Found | None:
        """The question that ``words`` cover most, the first of equals; None if they share no n-gram with any."""
        covered: dict[int, set[int]] = {}
        whole = self._whole.get(tuple(words))
        if words and whole is not None:
            covered[whole] = set(range(len(words)))
        for gram in _grams(words, self._ngram):
            for number, place in self._long.get(gram, ()):
                covered.setdefault(number, set()).update(range(place, place + self._ngram))
        for start, gram in enumerate(_grams(words, MIN_WORDS)):
            for number in self._short.get(gram, ()):
                question = self._words[number]
                if tuple(words[start : start + len(question)]) == question:
                    covered[number] = set(range(len(question)))
        if not covered:
            return None
        share = {number: len(covered[number]) / len(self._words[number]) for number in sorted(covered)}
        best = max(share, key=share.__getitem__)
        return _Found(self._questions[best], share[best], " ".join(_longest_run(self._words[best], covered[best])))


def _grams(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    """Every n-gram, in order."""
    return zip(*(words[start:] for start in range(length)), strict=False)


def _longest_run(words: Sequence[str], places: set[int]) -> Sequence[str]:
    """The words at the longest run of consecutive places."""
    runs = groupby(enumerate(sorted(places)), key=lambda numbered: numbered[1] - numbered[0])
    longest = max(([place for _, place in run] for _, run in runs), key=len)
    return words[longest[0] : longest[-1] + 1]
