"""Prompts before their split: freed of those that another prompt or a benchmark's question says already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sinterlm.files import atomic_write
from sinterlm.formats import read_prompts
from sinterlm.formats.questions import read_questions
from sinterlm.recipe.schema import Prompts
from sinterlm.records import Prompt
from sinterlm.scoring.settings import file_digest
from sinterlm.selection.overlap import Distinct, Match, decontaminate, deduplicate


def describe_prompts(config: Prompts) -> list[object]:
    """What decides which prompts there are and in which part: files by their content."""
    described: list[object] = [file_digest(config.path), config.split.model_dump()]
    if config.deduplicate:
        described.append(config.deduplicate.model_dump())
    if config.decontaminate:
        files = list(map(file_digest, config.decontaminate.against))
        described += [config.decontaminate.model_dump(exclude={"against"}), files]
    return described


def read_distinct_prompts(config: Prompts) -> Distinct:
    """The prompts of a recipe, and a match for every one that is left out.

    Raises:
        InputError: A file is not there, or a line of another shape.
    """
    prompts: Sequence[Prompt] = read_prompts(config.path)
    matches: list[Match] = []
    if config.deduplicate:
        ngram = None if config.deduplicate.ngram == "none" else config.deduplicate.ngram
        distinct = deduplicate(prompts, ngram=ngram, similarity=config.deduplicate.similarity)
        prompts = distinct.prompts
        matches += distinct.matches
    if config.decontaminate:
        distinct = decontaminate(
            prompts,
            read_questions(*config.decontaminate.against),
            ngram=config.decontaminate.ngram,
            coverage=config.decontaminate.coverage,
        )
        prompts = distinct.prompts
        matches += distinct.matches
    return Distinct(prompts, matches)


def write_matches(path: Path, matches: Sequence[Match]) -> None:
    """Write matches for people to read, those of the greatest overlap last: the doubtful ones come first."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for match in sorted(matches, key=lambda match: match.overlap):
            file.write(json.dumps(match._asdict(), ensure_ascii=False) + "\n")
