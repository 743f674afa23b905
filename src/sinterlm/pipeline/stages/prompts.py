"""The stage ``prompts``: reads the prompts, drops duplicates and benchmark questions, and splits them into parts."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from sinterlm.errors import InputError
from sinterlm.files import atomic_write, content_digest
from sinterlm.formats import read_prompts
from sinterlm.models import Fingerprint
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.stage import RunContext, Stage, StageResult
from sinterlm.recipe.schema import Prompts as PromptSettings
from sinterlm.recipe.schema import Recipe
from sinterlm.records import Prompt
from sinterlm.selection.overlap import Distinct, Match, decontaminate, deduplicate
from sinterlm.selection.split import split_prompts


class Prompts(Stage):
    """Splits the recipe's prompts into parts, in the store."""

    name = "prompts"

    def __init__(self, fusion: Fusion) -> None:
        self._fusion = fusion
        self.outputs = fusion.matches_paths

    def configuration(self, fingerprint: Fingerprint) -> object:
        """The files by content, and how prompts are filtered and split."""
        prompts = self._fusion.recipe.prompts
        configuration: list[object] = [content_digest(prompts.path), prompts.split.model_dump()]
        if prompts.deduplicate:
            configuration.append(prompts.deduplicate.model_dump())
        if prompts.decontaminate:
            files = list(map(content_digest, prompts.decontaminate.against))
            configuration += [prompts.decontaminate.model_dump(exclude={"against"}), files]
        if self._fusion.recipe.preview:
            configuration.append({"preview": self._fusion.recipe.preview})
        return [*configuration, self._fusion.recipe.seed]

    def check(self, inputs: Inputs) -> None:
        """Check that every part in use has prompts, and that the domains that the recipe names exist."""
        recipe, parts = self._fusion.recipe, inputs.parts
        used = {
            "sft": recipe.needs_sft_part,
            "preference": recipe.preference,
            "held_out": recipe.evaluation.held_out,
            "development": any(training.grid for training in self._fusion.trainings.values()),
        }
        for part, use in used.items():
            if use and not parts[part]:
                sizes = ", ".join(f"{name} {len(prompts)}" for name, prompts in parts.items())
                raise InputError(f"prompts.split leaves no prompt for {part} ({sizes}); raise its share or add prompts")
        known = {prompt.domain for prompts in parts.values() for prompt in prompts}
        for place, domains in _named_domains(recipe):
            if not known & set(domains):
                raise InputError(
                    f"{place}: no prompt has the domain {' or '.join(map(repr, domains))}; the domains of "
                    f"{recipe.prompts.path} are {', '.join(map(repr, sorted(known)))}"
                )

    def work(self, run: RunContext) -> StageResult:
        """Write the prompts of every part to the store, and what was left out to ``overlaps.jsonl``."""
        recipe = run.fusion.recipe
        distinct = read_distinct_prompts(recipe.prompts)
        parts = split_parts(recipe, distinct.prompts)
        run.store.set_prompts(run.fusion.run_name, parts)
        for path in run.fusion.matches_paths:
            _write_matches(path, distinct.matches)
        counts = {part: len(prompts) for part, prompts in parts.items() if prompts}
        return StageResult(counts, distinct.dropped(self.name))


def split_parts(recipe: Recipe, prompts: Sequence[Prompt]) -> dict[str, tuple[Prompt, ...]]:
    """The recipe's split of its prompts, by part; of a preview, the first ones of every part."""
    split = recipe.prompts.split
    parts = split_prompts(
        prompts,
        held_out=split.held_out,
        sft=split.sft if recipe.fine_tunings else 0,
        sft_domains=split.sft_domains if recipe.fine_tunings else {},
        development=split.development,
        preference=split.preference,
        seed=recipe.seed,
    )
    return {part: own[: recipe.preview] for part, own in parts._asdict().items()}


def read_distinct_prompts(settings: PromptSettings) -> Distinct:
    """The prompts of a recipe, and a match for every prompt that is left out.

    Raises:
        InputError: A file is missing, or a line has the wrong shape.
    """
    prompts: Sequence[Prompt] = read_prompts(settings.path)
    matches: list[Match] = []
    if settings.deduplicate:
        ngram = None if settings.deduplicate.ngram == "none" else settings.deduplicate.ngram
        distinct = deduplicate(prompts, ngram=ngram, similarity=settings.deduplicate.similarity)
        prompts = distinct.prompts
        matches += distinct.matches
    if settings.decontaminate:
        from sinterlm.formats.questions import read_questions

        distinct = decontaminate(
            prompts,
            read_questions(*settings.decontaminate.against),
            ngram=settings.decontaminate.ngram,
            coverage=settings.decontaminate.coverage,
        )
        prompts = distinct.prompts
        matches += distinct.matches
    return Distinct(prompts, matches)


def _write_matches(path: Path, matches: Sequence[Match]) -> None:
    """Write matches for people to read, smallest overlap first: these are the doubtful ones."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for match in sorted(matches, key=lambda match: match.overlap):
            file.write(json.dumps(match._asdict(), ensure_ascii=False) + "\n")


def _named_domains(recipe: Recipe) -> Iterator[tuple[str, Sequence[str]]]:
    """The places in the recipe that name domains; some prompt must have one of a place's domains."""
    for name, source in recipe.sources.items():
        if source.domains:
            yield f"sources.{name}.domains", source.domains
    yield from (("prompts.split.sft_domains", [domain]) for domain in recipe.prompts.split.sft_domains)
    for path, scorer in recipe.scorers.items():
        for part in scorer.walk():
            yield from ((f"{'.'.join(path)} {part.kind}", [domain]) for domain in part.named_domains)
    own = {f"preference.{method}.sft": preference.sft for method, preference in recipe.preference.items()}
    for place, sft in {"sft": recipe.sft, **own}.items():
        extra = sft.extra_prompts if sft else None
        yield from ((f"{place}.extra_prompts.domains", [domain]) for domain in (extra and extra.domains) or ())
    for method, preference in recipe.preference.items():
        for key, domain in preference.select.named_domains():
            yield f"preference.{method}.select.{key}", [domain]
