"""What must hold before the first answer is paid for: found at once here, or hours later in a stage."""

from __future__ import annotations

from sinterlm.formats import read_prompts
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.stages.prompts import split_parts
from sinterlm.store import Store


def check_inputs(
    fusion: Fusion, store: Store | None = None, *, reads_target: bool = True, allow_code: bool = False
) -> None:
    """Let every stage check what it is going to read.

    Args:
        fusion: What is to be done.
        store: What is known already; None before the first command.
        reads_target: Whether a stage to be done reads the target's weights.
        allow_code: Whether files of code that the recipe names may be run.

    Raises:
        InputError: What does not fit, and what to do.
        CredentialsError: There is no key for the server of a judge.
        SandboxError: Programs in answers are to be scored, and there is no sandbox to run them in.
    """
    parts = split_parts(fusion.recipe, read_prompts(fusion.recipe.prompts.path))
    inputs = Inputs(fusion, parts, store, reads_target=reads_target, allow_code=allow_code)
    for stage in build_stages(fusion):
        stage.check(inputs)
