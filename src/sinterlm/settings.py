"""The base class of every component's settings, and the types of their fields.

A component declares its settings beside its code, as a subclass of :class:`Settings`; the recipe's schema is built
from them. Nothing here imports torch.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo
from pydantic_core import PydanticCustomError

MAX_SEED = 2**32 - 1
"""The largest seed that NumPy's generator accepts; Transformers seeds it along with torch's."""


class Settings(BaseModel):
    """Refuses unknown keys and silent conversions; immutable once read."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


def expected(expectation: str) -> PydanticCustomError:
    """The error of a validator that expected, for example, ``a date such as 2026-11-30``."""
    return PydanticCustomError("expected", "{expectation}", {"expectation": expectation})


def _find_input(path: Path, info: ValidationInfo) -> Path:
    folder = (info.context or {}).get("folder") or Path()
    return Path(folder, os.path.expanduser(path))


def _find_output(path: Path) -> Path:
    return Path(os.path.expanduser(path)).absolute()


InputPath = Annotated[Path, Field(strict=False), AfterValidator(_find_input)]
"""A file to read; in a recipe file, relative to that file's folder."""
OutputPath = Annotated[Path, Field(strict=False), AfterValidator(_find_output)]
"""A folder to write; relative to the current working directory, and absolute once read."""
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Domains = Annotated[list[str], Field(min_length=1)] | None
"""Domains of prompts; None means all of them."""
