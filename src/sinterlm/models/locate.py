"""A model's name -> the folder that holds it.

A name is a folder, a hub name (``org/name``, or ``org/name@REVISION`` for a branch, tag or commit), or
``gguf:PACKAGE/FILE.gguf``.
"""

from __future__ import annotations

import os
from pathlib import Path

from sinterlm.errors import InputError
from sinterlm.models.files import (
    DESCRIPTION_FILES,
    WEIGHTS,
    check_description,
    check_folder,
    index_to_fetch,
    shards_of,
)
from sinterlm.models.gguf import GGUF_PREFIX, converted_folder, gguf_file


def resolve_model(name: str) -> Path:
    """The folder that holds a model; downloads or converts it on first use.

    Args:
        name: A folder, a hub name, or ``gguf:PACKAGE/FILE.gguf`` for a file inside an installed package.

    Raises:
        InputError: There is no such package, file, folder or hub repository, or it does not hold a whole model.
    """
    if name.startswith(GGUF_PREFIX):
        return converted_folder(gguf_file(name))
    return check_folder(folder_named(name) or _snapshot(name))


def resolve_tokenizer(name: str) -> Path:
    """The folder that holds a model's tokenizer, with or without weights; of a hub model only small files are fetched.

    Raises:
        InputError: As in :func:`resolve_model`, weights aside.
    """
    if name.startswith(GGUF_PREFIX):
        return resolve_model(name)
    return check_description(folder_named(name) or _snapshot(name, weights=False))


def absolute_name(name: str) -> str:
    """The model's name, valid in any working directory: a folder's name becomes absolute, others stay as they are."""
    folder = folder_named(name)
    return str(folder.absolute()) if folder else name


def plain_name(name: str) -> str:
    """The model's name for others to read: for a folder on this machine, only its last part."""
    path = Path(name).expanduser()
    return path.absolute().name if path.is_absolute() or folder_named(name) else name


def split_revision(name: str) -> tuple[str, str | None]:
    """A hub name's repository, and the branch, tag or commit that it pins.

    >>> split_revision("org/name@v1.0")
    ('org/name', 'v1.0')
    """
    repository, _, revision = name.partition("@")
    return repository, revision or None


def hub_revision(name: str) -> str | None:
    """The commit of a hub model on this machine; None for other models, and if it is not known."""
    if name.startswith(GGUF_PREFIX) or folder_named(name):
        return None
    folder = present_folder(name)
    return folder.name if folder and folder.parent.name == "snapshots" else None


def folder_named(name: str) -> Path | None:
    """The folder that ``name`` names; None if it does not name one."""
    folder = os.path.expanduser(name)
    return Path(folder) if os.path.isdir(folder) else None


def present_folder(name: str) -> Path | None:
    """The folder of a model that is on this machine, whole or not; None if it is not here. Uses no network."""
    folder = folder_named(name)
    repository, revision = split_revision(name)
    if folder is not None or repository.count("/") > 1:  # a path without a folder: a model that will be trained
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except (OSError, HFValidationError):
        return None


def _snapshot(name: str, *, weights: bool = True) -> Path:
    """The hub's files on this machine; downloads what is missing unless ``HF_HUB_OFFLINE`` forbids it.

    Only the weights that Transformers loads are fetched: a repository may hold them in other layouts as well.

    Raises:
        InputError: There is no such repository, or it cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    repository, revision = split_revision(name)
    try:
        folder = Path(
            snapshot_download(
                repository,
                revision=revision,
                allow_patterns=[*DESCRIPTION_FILES, *((WEIGHTS, "*.safetensors.index.json") if weights else ())],
                ignore_patterns=["*/*"],  # a pattern also matches files in subfolders
            )
        )
        index = index_to_fetch(folder) if weights else None
        missing = [shard for shard in shards_of(index) if not (folder / shard).is_file()] if index else []
        if missing:
            snapshot_download(repository, revision=folder.name, allow_patterns=missing)
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise InputError(
            f"model {name!r}: there is no such folder (looked for {os.path.abspath(os.path.expanduser(name))}), "
            f"and the hub gave none: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    return folder
