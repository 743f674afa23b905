"""What sampling, scoring and training of a fusion compute; None where the size of a model is not known."""

from __future__ import annotations

from sinterlm.models.flops import Flops, training_flops
from sinterlm.objectives.named import resolve_objective
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.recipe.build import build_hyperparameters
from sinterlm.recipe.schema import (
    Training,
)
from sinterlm.scoring.scorers import Scorer
from sinterlm.training.arguments import DEFAULT_MAX_LENGTH

USUAL_ANSWER_TOKENS = 512
"""Of an answer to an open question, where the store has no mean and the limit is higher: an estimate. WRPO's models
write 2,100 to 2,400 characters a question of AlpacaEval-2 (arXiv 2412.03187, appendix D)."""
USUAL_PROMPT_TOKENS = 200
"""Of a prompt of a file that is not here: an estimate."""
TRAINING_DEFAULTS = {
    "num_train_epochs": 3,
    "max_steps": -1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "max_length": DEFAULT_MAX_LENGTH,
}
"""Of Transformers and our own arguments, of those that say how much is trained."""


def usual_tokens(ask: SamplingRequest) -> int:
    """Of one answer, before there is any."""
    return min(ask.settings.max_new_tokens, USUAL_ANSWER_TOKENS) if ask.settings else USUAL_ANSWER_TOKENS


def cost_of_scoring(scorer: Scorer, *, tokens: float) -> Flops | None:
    """What the models of a scorer compute to read ``tokens`` tokens; other scorers compute next to nothing."""
    return scorer.flops(tokens)


def cost_of_training(fusion: Fusion, name: str, *, num_prompts: int, prompt_tokens: float) -> Flops | None:
    """What one training computes where every prompt of its part gives a row.

    Args:
        fusion: The fusion.
        name: ``sft``, or the preference method.
        num_prompts: In its part of the prompts.
        prompt_tokens: Of all of them.
    """
    training, target = fusion.trainings[name], fusion.recipe.target
    weights = target.num_weights
    if weights is None:
        return None
    arguments = TRAINING_DEFAULTS | training.train
    answers = [usual_tokens(fusion.for_training(source)) for source in fusion.sources]
    epochs = float(arguments["num_train_epochs"])
    answer = min(sum(answers) / len(answers), arguments["max_length"])
    if arguments["max_steps"] > 0:
        batch = arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"]
        epochs = arguments["max_steps"] * batch / max(num_prompts, 1)
    objective = resolve_objective(training.objective.kind, build_hyperparameters(training.objective))
    return training_flops(
        weights,
        tokens=prompt_tokens + num_prompts * answer * responses_in_row(fusion, training),
        epochs=epochs,
        needs_reference=objective.needs_reference,
        recomputes=any(arguments.get(key) for key in ("activation_checkpointing", "gradient_checkpointing")),
    )


def responses_in_row(fusion: Fusion, training: Training) -> int:
    """How many answers a row holds, at most."""
    return training.select.responses_in_row(
        source_samples=[fusion.for_training(source).num_samples for source in fusion.sources],
        target_samples=fusion.for_training(fusion.answering_for(fusion.target)).num_samples,
    )
