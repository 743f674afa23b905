"""Which options of a chat template decide its text, known from the model's files; loads nothing."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from typing import Any

from sinterlm.models.gguf import GGUF_PREFIX, present_gguf
from sinterlm.models.locate import present_folder
from sinterlm.template import DATE_FUNCTION

_FILES = ("*.jinja", "chat_template.json", "tokenizer_config.json")
_MAX_GGUF_METADATA_BYTES = 2**26


def writes_date(name: str) -> bool | None:
    """Whether the model's chat template asks for the date; None if the model is not on this machine yet."""
    if name.startswith(GGUF_PREFIX):
        path = present_gguf(name)
        if path is None:
            return None
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(DATE_FUNCTION.encode(), 0, _MAX_GGUF_METADATA_BYTES) >= 0
    folder = present_folder(name)
    if folder is None or not folder.is_dir():
        return None
    files = (path for pattern in _FILES for path in folder.glob(pattern))
    return any(DATE_FUNCTION in path.read_text(encoding="utf-8", errors="replace") for path in files)


def describe_options(name: str, variables: Mapping[str, Any] | None, date: str | None) -> dict[str, Any]:
    """The options that decide the chat template's text, by the names of settings; those without effect are left out.

    Args:
        name: The model's name.
        variables: ``chat_template_kwargs``.
        date: ``template_date``.
    """
    dated = {"template_date": date} if date and writes_date(name) else {}
    return {**({"chat_template_kwargs": dict(variables)} if variables else {}), **dated}
