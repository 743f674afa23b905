"""Checks before the first answer is paid for, so that mistakes do not show hours later in a stage."""

from __future__ import annotations

from sinterlm.errors import InputError
from sinterlm.formats import read_prompts
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.stages.prompts import split_parts
from sinterlm.records import Usage
from sinterlm.sampling.settings import EngineSettings
from sinterlm.scoring.settings import ScorerSettings
from sinterlm.store import Store


def check_inputs(
    fusion: Fusion, store: Store | None = None, *, reads_target: bool = True, allow_code: bool = False
) -> None:
    """Have every stage check its inputs.

    Args:
        fusion: The fusion to check.
        store: The workspace's store; None before the first command.
        reads_target: Whether a stage of this command reads the target's weights.
        allow_code: Whether Python files that the recipe names may run.

    Raises:
        InputError: An input is wrong; the message says what to do.
        CredentialsError: A judge's server has no API key.
        SandboxError: The scorer runs programs, but this machine has no sandbox for them.
    """
    _check_prices(fusion)
    parts = split_parts(fusion.recipe, read_prompts(fusion.recipe.prompts.path))
    inputs = Inputs(fusion, parts, store, reads_target=reads_target, allow_code=allow_code)
    for stage in build_stages(fusion):
        stage.check(inputs)


def _check_prices(fusion: Fusion) -> None:
    """Check that a limit of money counts everything that costs money."""
    if fusion.recipe.budget.money is None:
        return
    asked: dict[str, EngineSettings | ScorerSettings] = {
        f"sources.{name}": source for name, source in fusion.recipe.sources.items()
    }
    for path, scorer in fusion.recipe.scorers.items():
        asked |= {f"{'.'.join(path)} ({part.title})": part for part in scorer.walk()}
    unpriced = [place for place, settings in asked.items() if settings.money(Usage()) is None]
    if unpriced:
        raise InputError(
            f"budget.money: {', '.join(unpriced)} has no price, so what it costs is not counted; give its `price`, "
            "`{input: 0, output: 0}` if it is free, or limit budget.tokens instead"
        )
