"""Settings that name a model and say how it is loaded and asked."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator

from sinterlm.models.locate import absolute_name
from sinterlm.models.templates import describe_options, writes_date
from sinterlm.settings import Settings, expected

SettingsT = TypeVar("SettingsT", bound=Settings)


def _check_date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise expected("a date such as 2026-11-30") from None


ModelName = Annotated[str, AfterValidator(absolute_name)]
"""As in :func:`~sinterlm.models.resolve_model`; the name of a folder is absolute once read."""
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TemplateVariables = dict[str, Any]
"""Variables of a chat template, beside the conversation."""
TemplateDate = Annotated[str, AfterValidator(_check_date)] | None
"""The date that a chat template uses as today's; default: the recipe's, or the day of the run's first command."""


class TemplatedModel(Settings):
    """A model that is asked or that reads through its own chat template, which is applied on this machine."""

    model: ModelName
    """A hub name (``org/name``, or ``org/name@REVISION`` for a branch, tag or commit), a folder in Transformers'
    format, or ``gguf:PACKAGE/FILE.gguf`` for a GGUF file inside an installed Python package.
    """
    chat_template_kwargs: TemplateVariables = {}
    """Variables of the chat template, such as ``{enable_thinking: false}``; the target's also apply in training. A
    variable that the template does not read is an error.
    """
    template_date: TemplateDate = None
    """The date that this model's chat template uses as today's, such as ``2026-11-30``; by default the recipe's."""

    @property
    def template_options(self) -> dict[str, Any]:
        """The options that decide the text of the chat template; see ``describe_options``."""
        return describe_options(self.model, self.chat_template_kwargs, self.template_date)


class ChatModel(TemplatedModel):
    """A model on this machine that answers or reads through its own chat template."""

    device: str = "auto"
    """The device, as torch names it. ``auto`` is the first available of CUDA, MPS and the CPU."""
    dtype: Dtype = "auto"
    """Precision of the weights. ``auto`` is bfloat16 on CUDA, otherwise float32."""


def chat_models_in(value: Any) -> Iterator[TemplatedModel]:
    """Every model with a chat template in a recipe, or in a part of one."""
    if isinstance(value, TemplatedModel):
        yield value
    if isinstance(value, Settings):
        value = dict(value)
    if isinstance(value, dict):
        for part in value.values():
            yield from chat_models_in(part)


def with_template_date(settings: SettingsT, date: str) -> SettingsT:
    """The settings with a date for every model in them that has none and whose chat template may ask for one."""
    changed = {
        name: value for name, value in _dated(dict(settings), date).items() if value is not getattr(settings, name)
    }
    model = settings if isinstance(settings, TemplatedModel) else None
    if model and not model.template_date and writes_date(model.model) is not False:
        changed["template_date"] = date
    return settings.model_copy(update=changed) if changed else settings


def _dated(mapping: dict[str, Any], date: str) -> dict[str, Any]:
    """The mapping with dates in its parts; the mapping itself if that changes nothing."""
    changed: dict[str, Any] = {}
    for name, value in mapping.items():
        if isinstance(value, Settings):
            changed[name] = with_template_date(value, date)
        elif isinstance(value, dict):
            changed[name] = _dated(value, date)
    return mapping if all(value is mapping[name] for name, value in changed.items()) else {**mapping, **changed}
