"""The files of a model folder: which of them belong to the model, and whether they are whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sinterlm.errors import InputError, memory_advice
from sinterlm.files import require_undamaged_model

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "*.model",
)
"""Files that a tokenizer can be made from; one is enough."""
DESCRIPTION_FILES = (
    CONFIG,
    "generation_config.json",
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.json",
    "*.jinja",
)
"""Files, other than its weights, that decide a model's answers."""
_OF_THE_MODEL = (CONFIG, "generation_config.json")
"""Those of them that have no part in how a text becomes tokens."""
_SMALL_OBJECTS = ("generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def description_files(folder: Path) -> list[Path]:
    """The files of the folder itself (not of its subfolders) that describe the model."""
    return sorted({path for pattern in DESCRIPTION_FILES for path in folder.glob(pattern) if path.is_file()})


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of the folder that make token ids of a text or a conversation: tokenizer and chat template."""
    return [path for path in description_files(folder) if path.name not in _OF_THE_MODEL]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the model's weights, chosen as Transformers chooses them.

    Anything else in the folder (weights in another layout or precision, shards of an earlier model, an adapter,
    checkpoints in subfolders) is not part of the model.

    Raises:
        InputError: The folder has no weights, the index cannot be read, or it names a file that is not safetensors.
    """
    index = _index_of(folder)
    if index is None:
        return [_only_file(folder)]
    return [folder / name for name in shards_of(index)]


def model_files(folder: Path) -> list[Path]:
    """All files that decide what a model answers; errors as in :func:`weight_files`."""
    index = _index_of(folder)
    return sorted({*description_files(folder), *weight_files(folder), *([index] if index else [])})


def shards_of(index: Path) -> list[str]:
    """The files that an index of weights names.

    Raises:
        InputError: The index cannot be read, or names anything but safetensors files in its folder.
    """
    content = read_object(index)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f'{index}: no "weight_map" in it; expected the file of each weight')
    if not isinstance(content.get("metadata"), dict):
        raise InputError(f'{index}: no "metadata" in it, which Transformers reads; add "metadata": {{}}')
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if not shard.endswith(".safetensors"):
            raise InputError(f"{index}: names {shard}, which is not a safetensors file; {_SAVE_AGAIN}")
        if Path(shard).is_absolute() or ".." in Path(shard).parts:
            raise InputError(f"{index}: names {shard}; expected files within its folder")
    return shards


def index_to_fetch(folder: Path) -> Path | None:
    """The index whose shards have to be fetched; None if one file holds the weights, or nothing does."""
    return _index_of(folder)


def read_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: The file is empty, not valid JSON, or not an object.
    """
    check_not_a_pointer(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # UnicodeDecodeError, too
        raise InputError(f"{path}: not valid JSON ({error}); get the file again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def check_folder(folder: Path) -> Path:
    """Return the folder, after checking that it holds a model whose files are all whole.

    Raises:
        InputError: What is missing or broken, and what to do.
    """
    require_undamaged_model(folder, read=False)
    adapter = (folder / ADAPTER_CONFIG).is_file()
    if adapter:
        _refuse_adapter(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(f"model folder {folder}: no {CONFIG} in it; expected a model in Transformers' format")
    check_description(folder)
    for path in weight_files(folder):
        _check_weights(path)
    return folder


def check_description(folder: Path) -> Path:
    """Return the folder, after checking that those files in it that describe a model are whole.

    Raises:
        InputError: Which file is not.
    """
    for path in description_files(folder):
        check_not_a_pointer(path)
        # Transformers would skip a broken small one, and lose the model's stop tokens with it.
        if path.name in (CONFIG, *_SMALL_OBJECTS):
            read_object(path)
    return folder


def check_not_a_pointer(path: Path) -> None:
    """Refuse an empty file, and the pointer that Git LFS leaves in place of a large file.

    Raises:
        InputError: The file is one of these.
    """
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise InputError(
            f"{path}: a Git LFS pointer, not {'weights' if path.suffix == '.safetensors' else 'the file itself'}: "
            "run `git lfs pull` in its folder"
        )
    if not start:
        raise InputError(f"{path}: the file is empty; get it again")


_SAVE_AGAIN = (
    "weights in other formats (.bin, .pt) can carry code and are not read: save the model again with `save_pretrained`"
)


def _index_of(folder: Path) -> Path | None:
    """The index to use: a config may name the file of the weights, and a single file takes precedence over an index."""
    named = _named_weights(folder)
    if named is not None:
        return named if named.name.endswith(".index.json") else None
    index = folder / INDEX
    return index if index.is_file() and not (folder / WEIGHTS).is_file() else None


def _named_weights(folder: Path) -> Path | None:
    """The file that the config names as that of the weights, if it names one."""
    config = folder / CONFIG
    name = read_object(config).get("transformers_weights") if config.is_file() else None
    return folder / name if isinstance(name, str) else None


def _only_file(folder: Path) -> Path:
    path = _named_weights(folder) or folder / WEIGHTS
    if path.suffix != ".safetensors":
        raise InputError(f"{folder / CONFIG}: transformers_weights names {path.name}; {_SAVE_AGAIN}")
    if path.is_file():
        return path
    if path.name != WEIGHTS:
        raise InputError(f"{folder / CONFIG}: transformers_weights names {path.name}, which is missing; get it")
    others = sorted(other.name for other in folder.glob("*.safetensors") if other.is_file())
    if not others:
        raise InputError(f"model folder {folder}: no *.safetensors in it; {_SAVE_AGAIN}")
    shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
    raise InputError(
        f"model folder {folder}: neither {WEIGHTS} nor {INDEX} in it, only {shown}; expected the former, or the latter "
        "with the files that it names: get the missing files"
    )


def _check_weights(path: Path) -> None:
    """Read a file's header, which also tells how long the file should be."""
    if not path.is_file():
        raise InputError(f"{path}: this weights file is missing, though {INDEX} names it; get it again")
    check_not_a_pointer(path)
    try:
        with memory_advice(f"opening {path}", "a smaller model takes less"), safe_open(path, framework="np"):
            pass
    except SafetensorError as error:
        raise InputError(
            f"{path}: broken or cut short, not a whole safetensors file ({error}); get it again"
        ) from error


def _refuse_adapter(folder: Path) -> None:
    """Refuse an adapter's folder, and name the whole model to use instead.

    Raises:
        InputError: Always.
    """
    if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
        raise InputError(
            f"model folder {folder}: holds both a whole model and an adapter ({ADAPTER_CONFIG}), so which is meant "
            "is unclear; move the adapter's files to another folder"
        )
    merged = folder.absolute().parent
    if (merged / CONFIG).is_file() and (merged / "training.json").is_file():
        raise InputError(f"model folder {folder}: an adapter, not a whole model; its merged model is {merged}")
    base = read_object(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    raise InputError(
        f"model folder {folder}: an adapter of {base or 'a model that it does not name'}, not a whole model; name the "
        "base model, or merge the two (PEFT: `merge_and_unload`, then `save_pretrained`) and name the merged folder"
    )
