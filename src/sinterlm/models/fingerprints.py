"""A hash of a model's content, and the size of its weights; loads nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from sinterlm.errors import InputError
from sinterlm.models.files import model_files, tokenizer_files, weight_files
from sinterlm.models.gguf import GGUF_PREFIX, converted_path, gguf_file, gguf_fingerprint, present_gguf
from sinterlm.models.hashes import file_hash, known_hash
from sinterlm.models.locate import present_folder, resolve_model, resolve_tokenizer
from sinterlm.records import digest

FLOAT32_BYTES = 4
TOKENIZER_PREFIX = "tokenizer:"
"""``tokenizer:NAME`` is the tokenizer and chat template of a model whose weights may be elsewhere."""
Fingerprint = Callable[[str], str | None]
"""Returns the hash of a model's content by its name; None if it is not known yet."""


def fingerprint(name: str) -> str:
    """SHA-256 over everything that decides a model's answers: weights, configs, tokenizer and template.

    For a GGUF file, its bytes and the way it is converted decide them. File hashes are cached, see ``hashes``.

    Args:
        name: As in :func:`~sinterlm.models.resolve_model`, or such a name after :data:`TOKENIZER_PREFIX`.
    """
    is_tokenizer, name = name.startswith(TOKENIZER_PREFIX), name.removeprefix(TOKENIZER_PREFIX)
    if name.startswith(GGUF_PREFIX):
        return gguf_fingerprint(file_hash(gguf_file(name)))
    folder = resolve_tokenizer(name) if is_tokenizer else resolve_model(name)
    files = tokenizer_files(folder) if is_tokenizer else model_files(folder)
    return digest({_name_in(folder, path): file_hash(path) for path in files})


def cached_fingerprint(name: str) -> str | None:
    """The fingerprint if it is already known, otherwise None: this never hashes, converts or downloads."""
    files_of = tokenizer_files if name.startswith(TOKENIZER_PREFIX) else model_files
    name = name.removeprefix(TOKENIZER_PREFIX)
    if name.startswith(GGUF_PREFIX):
        path = present_gguf(name)
        gguf_hash = known_hash(path) if path else None
        return gguf_fingerprint(gguf_hash) if gguf_hash else None
    folder = present_folder(name)
    if folder is None:
        return None
    try:
        hashes = {_name_in(folder, path): known_hash(path) for path in files_of(folder)}
    except (InputError, OSError):  # not a whole model; loading it will say what is wrong
        return None
    return digest(hashes) if all(hashes.values()) else None


def known_weights_bytes(name: str) -> int | None:
    """The size of a model's weights in float32, in which they are trained and saved, whatever their files' precision.

    It is read from the files' headers; None if they are not on this machine in a form that can be loaded.
    """
    if name.startswith(GGUF_PREFIX):
        gguf = present_gguf(name)
        gguf_hash = known_hash(gguf) if gguf else None
        folder = converted_path(gguf, gguf_hash) if gguf and gguf_hash else None
    else:
        folder = present_folder(name)
    try:
        counts = [_count_weights(path) for path in weight_files(folder)] if folder else []
    except (InputError, OSError, SafetensorError):
        return None
    return FLOAT32_BYTES * sum(counts) or None


def _name_in(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _count_weights(path: Path) -> int:
    with safe_open(path, framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping
