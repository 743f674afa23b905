"""What must hold before the first answer is paid for: found at once here, or hours later in a stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from sinterlm.chat import encode_prompt
from sinterlm.errors import InputError
from sinterlm.formats import read_prompts
from sinterlm.models import check_trainable, load_tokenizer
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stages import split_parts
from sinterlm.pipeline.stored_scorer import StoredScorer
from sinterlm.recipe.build import build_hyperparameters
from sinterlm.recipe.grid import apply_choice, list_choices
from sinterlm.recipe.schema import Recipe, scorer_for, scorers_in
from sinterlm.records import Message, Prompt
from sinterlm.scoring.scorers import Scorer
from sinterlm.scoring.settings import Preflight, build_scorer
from sinterlm.store import Store
from sinterlm.template import TemplateOptions


def check_inputs(
    fusion: Fusion, store: Store | None = None, *, reads_target: bool = True, allow_code: bool = False
) -> None:
    """Check that prompts, scorers, files of answers, and (where it is read) target and training settings fit together.

    Raises:
        InputError: What does not fit, and what to do.
        CredentialsError: There is no key for the server of a judge.
        SandboxError: Programs in answers are to be scored, and there is no sandbox to run them in.
    """
    parts = split_parts(fusion.recipe, read_prompts(fusion.recipe.prompts.path))
    _check_prompts(fusion, parts)
    for participant in (*fusion.sources, fusion.answering_for(fusion.target)):
        participant.config.check(participant.name)
    for scorer in fusion.recipe.scorers.values():
        for part in scorers_in(scorer):
            part.check(Preflight(allow_code=allow_code, has_scores=partial(_has_scored, part, store)))
    _check_tests(fusion, parts)
    if reads_target and fusion.trained:
        _check_training(fusion)


def _has_scored(scorer: Scorer, store: Store | None) -> bool:
    return store is not None and StoredScorer(build_scorer(scorer), store).has_scored()


def _check_prompts(fusion: Fusion, parts: Mapping[str, Sequence[Prompt]]) -> None:
    recipe = fusion.recipe
    used = {
        "sft": recipe.needs_sft_part,
        "preference": recipe.preference,
        "held_out": recipe.evaluation.held_out,
        "development": any(training.grid for training in fusion.trainings.values()),
    }
    for part, use in used.items():
        if use and not parts[part]:
            sizes = ", ".join(f"{name} {len(prompts)}" for name, prompts in parts.items())
            raise InputError(
                f"prompts.split leaves no prompt for {part} ({sizes}); raise its share or bring more prompts"
            )
    known = {prompt.domain for prompts in parts.values() for prompt in prompts}
    for place, domains in _named_domains(recipe):
        if not known & set(domains):
            raise InputError(
                f"{place}: no prompt is of {' or '.join(map(repr, domains))}; the domains of {recipe.prompts.path} are "
                f"{', '.join(map(repr, sorted(known)))}"
            )
    for part, scorer in _scorers_of_parts(fusion).items():
        own = {prompt.domain: scorer_for(scorer, prompt.domain) for prompt in parts[part]}
        needing = {domain for domain, config in own.items() if build_scorer(config).needs_answers}
        unanswered = [prompt.id for prompt in parts[part] if not prompt.answers and prompt.domain in needing]
        if unanswered:
            raise InputError(
                f"{recipe.prompts.path}: scorer {scorer.kind} needs accepted answers, but {len(unanswered)} prompts "
                f"of the {part} part have none, e.g. {unanswered[0]!r}; add `answers`, or use another scorer"
            )


def _check_tests(fusion: Fusion, parts: Mapping[str, Sequence[Prompt]]) -> None:
    """That the scorers can tell answers to their prompts apart; of those that ask."""
    for part, scorer in _scorers_of_parts(fusion).items():
        for domain in {prompt.domain: None for prompt in parts[part]}:
            prompts = [prompt for prompt in parts[part] if prompt.domain == domain]
            for config in scorers_in(scorer, domain=domain):
                if check := getattr(build_scorer(config), "check_prompts", None):
                    try:
                        check(prompts)
                    except InputError as error:
                        raise InputError(f"{fusion.recipe.prompts.path}: {error}") from None


def _scorers_of_parts(fusion: Fusion) -> dict[str, Scorer]:
    recipe = fusion.recipe
    scorers = {part: recipe.scorer for part in fusion.training_parts}
    if recipe.evaluation.held_out:
        scorers |= dict.fromkeys(("held_out", "development"), recipe.evaluation.held_out.scorer)
    return scorers


def _named_domains(recipe: Recipe) -> Iterator[tuple[str, Sequence[str]]]:
    """Where the recipe names domains; of those at one place the prompts must have one."""
    for name, source in recipe.sources.items():
        if source.domains:
            yield f"sources.{name}.domains", source.domains
    yield from (("prompts.split.sft_domains", [domain]) for domain in recipe.prompts.split.sft_domains)
    for path, scorer in recipe.scorers.items():
        for part in scorers_in(scorer):
            yield from ((f"{'.'.join(path)} {part.kind}", [domain]) for domain in part.named_domains)
    own = {f"preference.{method}.sft": preference.sft for method, preference in recipe.preference.items()}
    for place, sft in {"sft": recipe.sft, **own}.items():
        extra = sft.extra_prompts if sft else None
        yield from ((f"{place}.extra_prompts.domains", [domain]) for domain in (extra and extra.domains) or ())
    for method, preference in recipe.preference.items():
        for key, domain in preference.select.named_domains():
            yield f"preference.{method}.select.{key}", [domain]


def _check_training(fusion: Fusion) -> None:
    from sinterlm.training.check import check_arguments  # brings torch in

    recipe = fusion.recipe
    check_trainable(recipe.target.model)
    target = recipe.target
    options = TemplateOptions.of(target.chat_template_kwargs, target.template_date)
    encode_prompt(load_tokenizer(target.model), [Message("user", "What is the capital of France?")], options)
    for training in fusion.trainings.values():
        choices = [choice for entry in training.grid for choice in list_choices(entry)]
        for settings in [training, *(apply_choice(training, choice) for choice in choices)]:
            objective = settings.objective
            check_arguments(objective.kind, build_hyperparameters(objective), settings.train, seed=recipe.seed)
