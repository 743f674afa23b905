"""A folder of Parquet files with a card, which ``datasets.load_dataset`` and the hub's viewer read as it is.

README.md                              the card
CONFIGURATION/train-00000-of-00001.parquet
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from sinterlm.errors import InputError
from sinterlm.files import atomic_folder
from sinterlm.streams import chunks

TAG = "sinterlm"
SPLIT = "train"
FILE_NAME = f"{SPLIT}-00000-of-00001.parquet"
ROW_GROUP = 1_000
"""Records in a row group: the hub's viewer reads this many to show a page."""

_NAME = re.compile(r"[\w-][\w.-]*")


class Card(NamedTuple):
    """What the card says for people, and for the hub's search."""

    title: str
    text: str
    tags: Sequence[str] = ()


class Around(NamedTuple):
    """What stands around the records of a data set: its card, and text files beside it by name, as lines or pieces."""

    card: Card
    files: Mapping[str, Iterable[str]] = {}


class Records(NamedTuple):
    """What one configuration of a data set holds; read once, as a stream."""

    schema: pa.Schema
    records: Iterable[Mapping[str, Any]]


class _Written(NamedTuple):
    """One configuration as it was written."""

    schema: pa.Schema
    num_records: int
    num_bytes: int
    """In memory."""
    file_bytes: int


def write_dataset(
    folder: Path, configurations: Mapping[str, Records], describe: Callable[[Mapping[str, int]], Around]
) -> dict[str, int]:
    """Write a data set; it appears whole, in place of one that was written there before.

    Args:
        folder: Where it goes.
        configurations: By name, each written in turn. One without records is left out.
        describe: Called once all records are written, with their numbers by configuration, those without any left out.
            Title and text of the card come from it; its metadata comes from the configurations.

    Returns:
        The number of records of every configuration that was written.

    Raises:
        InputError: The folder holds something else, there is no record, or a name cannot be a folder's.
        TryAgainError: The disk is full.
    """
    _check_replaceable(folder)
    for name in configurations:
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{name!r} cannot name a configuration of a data set, nor its folder; expected letters, digits, '_', "
                "'-' and '.', not starting with '.': rename it"
            )
    with atomic_folder(folder) as temporary:
        written = {name: _write_parquet(temporary / name / FILE_NAME, part) for name, part in configurations.items()}
        filled = {name: part for name, part in written.items() if part.num_records}
        counts = {name: part.num_records for name, part in filled.items()}
        around = describe(counts)
        if not filled:
            raise InputError(f"{folder}: there is nothing to write ({', '.join(written)}: no records)")
        for name in written.keys() - filled.keys():
            shutil.rmtree(temporary / name)
        for name, pieces in around.files.items():
            with (temporary / name).open("w", encoding="utf-8") as file:
                file.writelines(pieces)
        (temporary / "README.md").write_text(_render(around.card, filled), encoding="utf-8")
    return counts


def describe_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """The columns as the card's metadata names them.

    >>> describe_features(pa.schema({"score": pa.float64(), "answers": pa.list_(pa.string())}))
    [{'name': 'score', 'dtype': 'float64'}, {'name': 'answers', 'list': 'string'}]
    """
    return [{"name": field.name, **_describe_type(field.type)} for field in schema]


def _describe_type(type_: pa.DataType) -> dict[str, Any]:
    if pa.types.is_struct(type_):
        return {"struct": describe_features(type_)}
    if pa.types.is_list(type_):
        inner = _describe_type(type_.value_type)
        return {"list": inner.get("struct") or inner.get("dtype") or inner}
    return {"dtype": {"double": "float64"}.get(str(type_), str(type_))}


def _check_replaceable(folder: Path) -> None:
    """Refuse to replace ``folder`` unless nothing is lost: it is missing, empty, or a data set of ours."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if TAG not in _tags_of(folder / "README.md"):
        raise InputError(f"{folder}: holds files that are not an export; give --output a new or empty folder")


def _tags_of(card: Path) -> Sequence[str]:
    """The tags of a data set's card; none if the file is missing or no card."""
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return ()
    return metadata.get("tags") or ()


def _write_parquet(path: Path, part: Records) -> _Written:
    path.parent.mkdir()
    num_records = num_bytes = 0
    with pq.ParquetWriter(path, part.schema) as writer:
        for chunk in chunks(part.records, ROW_GROUP):
            table = pa.Table.from_pylist(chunk, schema=part.schema)
            writer.write_table(table)
            num_records += len(chunk)
            num_bytes += table.nbytes
    return _Written(part.schema, num_records, num_bytes, path.stat().st_size)


def _render(card: Card, written: Mapping[str, _Written]) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    metadata = DatasetCardData(
        pretty_name=card.title,
        tags=[TAG, *card.tags],
        task_categories=["text-generation"],
        configs=[
            {"config_name": name, "data_files": [{"split": SPLIT, "path": f"{name}/{FILE_NAME}"}]} for name in written
        ],
        dataset_info=[
            {
                "config_name": name,
                "features": describe_features(part.schema),
                "splits": [{"name": SPLIT, "num_bytes": part.num_bytes, "num_examples": part.num_records}],
                "download_size": part.file_bytes,
                "dataset_size": part.num_bytes,
            }
            for name, part in written.items()
        ],
    )
    sizes = "\n".join(
        f"| `{name}` | {part.num_records:,} | {', '.join(f'`{key}`' for key in part.schema.names)} |"
        for name, part in written.items()
    )
    return str(
        DatasetCard(
            f"---\n{metadata.to_yaml()}\n---\n\n# {card.title}\n\n{card.text}\n\n"
            f"| configuration | rows | columns |\n| --- | --- | --- |\n{sizes}\n"
        )
    )
