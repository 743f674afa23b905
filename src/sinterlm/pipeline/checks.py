"""What must hold before the first answer is paid for: found at once here, or hours later in a stage."""

from __future__ import annotations

from sinterlm.chat import encode_prompt
from sinterlm.errors import InputError
from sinterlm.formats import read_prompts
from sinterlm.models import load_tokenizer
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.stages import split_parts
from sinterlm.recipe.build import build_hyperparameters, build_scorer
from sinterlm.recipe.grid import apply_choice, list_choices
from sinterlm.recipe.schema import RecordedSource
from sinterlm.records import Message


def check_inputs(fusion: Fusion) -> None:
    """Check that prompts, scorers, files of answers, target and training settings fit together.

    Raises:
        InputError: What does not fit, and what to do.
    """
    _check_prompts(fusion)
    for source in fusion.sources:
        if isinstance(source.config, RecordedSource) and not source.config.path.is_file():
            raise InputError(f"{source.config.path}: there is no such file (recorded answers of {source.name})")
    if fusion.trained:
        _check_training(fusion)


def _check_prompts(fusion: Fusion) -> None:
    recipe = fusion.recipe
    parts = split_parts(recipe, read_prompts(recipe.prompts.path))
    used = {
        "sft": recipe.sft,
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
    scorers = {part: recipe.scorer for part in fusion.training_parts}
    if recipe.evaluation.held_out:
        scorers |= dict.fromkeys(("held_out", "development"), recipe.evaluation.held_out.scorer)
    for part, scorer in scorers.items():
        unanswered = [prompt.id for prompt in parts[part] if not prompt.answers]
        if unanswered and build_scorer(scorer).needs_answers:
            raise InputError(
                f"{recipe.prompts.path}: scorer {scorer.kind} needs accepted answers, but {len(unanswered)} prompts "
                f"of the {part} part have none, e.g. {unanswered[0]!r}; add `answers`, or use another scorer"
            )


def _check_training(fusion: Fusion) -> None:
    from sinterlm.training.train import check_arguments  # brings torch in

    recipe = fusion.recipe
    encode_prompt(load_tokenizer(recipe.target.model), [Message("user", "What is the capital of France?")])
    for training in fusion.trainings.values():
        choices = [choice for entry in training.grid for choice in list_choices(entry)]
        for settings in [training, *(apply_choice(training, choice) for choice in choices)]:
            objective = settings.objective
            check_arguments(objective.kind, build_hyperparameters(objective), settings.train, seed=recipe.seed)
