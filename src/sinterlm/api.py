"""Sinter for notebooks and scripts, as in ``from sinterlm import run_fusion``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sinterlm.pipeline import plan, run
from sinterlm.pipeline.finished import Run, load_run
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import Reporter
from sinterlm.recipe.load import load_recipe, parse_recipe
from sinterlm.recipe.schema import Recipe
from sinterlm.terminal.progress import TerminalReporter
from sinterlm.terminal.terminal import Terminal

__all__ = ["load_run", "plan_fusion", "run_fusion"]

AnyRecipe = str | Path | Mapping[str, Any] | Recipe
"""A recipe file, the content of one, or a recipe that has been read."""


def run_fusion(
    recipe: AnyRecipe,
    overrides: Sequence[str] = (),
    *,
    until: str | None = None,
    only: str | None = None,
    allow_code: bool = False,
    reporter: Reporter | None = None,
) -> Run:
    """Run a recipe as ``sinterlm run`` does; repeat the call to resume.

    Args:
        recipe: A recipe file, or the content of one, whose paths are then relative to the current folder.
        overrides: Changes to it, e.g. ``["seed=1", "preference.wrpo.objective.alpha=0.3"]``.
        until: The last stage to do; by default all are done.
        only: The one stage to do.
        allow_code: Whether to run the Python files that the recipe names.
        reporter: Receives the progress; by default it is printed as on the command line.

    Raises:
        SinterError: Whenever the command line would exit with a code other than 0; the subclass says which.
    """
    fusion = Fusion(_read(recipe, overrides))
    run.run_fusion(fusion, reporter or TerminalReporter(Terminal()), until=until, only=only, allow_code=allow_code)
    return Run(fusion)


def plan_fusion(recipe: AnyRecipe, overrides: Sequence[str] = (), *, pilot: str | Path | None = None) -> plan.Plan:
    """What a recipe will do, what of it is done, and what the rest will take; loads no model.

    Args:
        recipe: As for :func:`run_fusion`.
        overrides: Changes to it.
        pilot: The output folder of a run that has asked the same models: their lengths, rates and prices.

    Raises:
        InputError: The recipe is wrong, or ``pilot`` holds no run.
    """
    return plan.plan_fusion(Fusion(_read(recipe, overrides)), pilot=None if pilot is None else Path(pilot))


def _read(recipe: AnyRecipe, overrides: Sequence[str]) -> Recipe:
    if isinstance(recipe, str | Path):
        return load_recipe(Path(recipe), overrides).recipe
    if isinstance(recipe, Recipe):
        if not overrides:
            return recipe
        recipe = recipe.model_dump(mode="json", exclude_unset=True)
    return parse_recipe(recipe, overrides)
