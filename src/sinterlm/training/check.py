"""Find what a training would refuse in its settings, before any model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.integrations.liger import apply_liger_kernel

from sinterlm.errors import InputError
from sinterlm.files import temporary_folder
from sinterlm.objectives.named import resolve_objective
from sinterlm.training.config import FusionConfig


def build_config(
    objective: str, hyperparameters: Mapping[str, Any], arguments: Mapping[str, Any], *, output_dir: Path, seed: int
) -> FusionConfig:
    """Check the settings of a run and complete them.

    Raises:
        InputError: An unknown objective, hyper-parameter or argument, or a value that is not accepted.
    """
    try:
        # Checked here, because FusionConfig cannot tell a hyper-parameter from an argument of its own.
        resolved = resolve_objective(objective, hyperparameters)
        for part in resolved.parts:
            resolved.part(part)
        return FusionConfig(output_dir=str(output_dir), seed=seed, objective=objective, **hyperparameters, **arguments)
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        raise _refused(error) from error


def check_arguments(
    objective: str, hyperparameters: Mapping[str, Any], arguments: Mapping[str, Any], *, seed: int = 0
) -> None:
    """Find what a training would refuse, without a model: let Transformers build its parts from the settings.

    Raises:
        InputError: An unknown name, a value that is not accepted, or a required package that is not installed.
    """
    with temporary_folder() as folder, _environment_kept():
        config = build_config(objective, hyperparameters, arguments, output_dir=folder, seed=seed)
        try:
            trainer = Trainer(nn.Linear(1, 1), config, train_dataset=[{"input_ids": [0]}])
            trainer.get_train_dataloader()
            if not config.optim_target_modules:  # names of the real model's layers
                trainer.create_optimizer_and_scheduler(num_training_steps=1)
            if config.use_liger_kernel:
                apply_liger_kernel(trainer.model, config.liger_kernel_config)
        except Exception as error:  # any kind: nothing but the arguments can have caused it
            raise _refused(error) from error


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Undo what settings do to the environment: otherwise Accelerate would shard later trainings, too."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def _refused(error: Exception) -> InputError:
    """The first line of what Transformers says about an argument, as an error in the user's input."""
    first_line = str(error).strip().partition("\n")[0]
    return InputError(f"train: {first_line or type(error).__name__}")
