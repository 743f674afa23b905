"""The fields of settings that name a model and say how it is loaded and asked."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from sinterlm.models.locate import absolute_name
from sinterlm.settings import expected


def _check_date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise expected("a date such as 2026-11-30") from None


ModelName = Annotated[str, AfterValidator(absolute_name)]
"""As in :func:`~sinterlm.models.resolve_model`; where it names a folder, absolute once read."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TemplateVariables = dict[str, Any]
"""Variables of a chat template, beside the conversation."""
TemplateDate = Annotated[str, AfterValidator(_check_date)] | None
"""What a chat template takes for today; by default the recipe's, and else the day of the run's first command."""
