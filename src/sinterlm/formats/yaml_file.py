"""YAML files as plain values that remember their lines.

Scalars follow YAML 1.2's core schema: ``1e-3`` is a number, ``true`` and ``false`` are the only booleans, and ``on``,
``2026-01-31`` or ``1:30`` are text. Tags and repeated keys are refused; size, depth and what aliases expand to are
bounded, so that no file can take the machine's memory. Anchors, aliases and ``<<`` merges work.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sinterlm.errors import InputError
from sinterlm.explain import KeyPath, show_path
from sinterlm.formats.document import Document

MAX_BYTES = 2**20
MAX_DEPTH = 32
MAX_VALUES = 100_000

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")}
_CORE_SCHEMA: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
    (re.compile(r"(~|null|Null|NULL)?"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"[-+]?[0-9]{1,400}"), int),
    (re.compile(r"0o[0-7]{1,400}|0x[0-9a-fA-F]{1,400}"), lambda text: int(text, 0)),
    (re.compile(r"[-+]?(\.[0-9]+|[0-9]{1,400}(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), float),
    (re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), lambda text: float(text.replace(".", ""))),
)


def read_yaml(path: Path) -> Document:
    """Read one YAML file.

    Raises:
        InputError: The file is missing, too large, or not YAML of the kind described above.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > MAX_BYTES:
        raise InputError(f"{path}: larger than {MAX_BYTES:,} bytes, the limit for a YAML file; check the path")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    converter = _Converter(str(path))
    return Document(str(path), converter.convert(_compose(text, str(path)), (), 0), converter.places)


def parse_value(text: str, name: str) -> Any:
    """The value that ``text`` has in YAML: a scalar, ``[...]`` or ``{...}``; other text stays text (``Note: brief``).

    Args:
        text: Such as ``1e-3`` or ``{kind: dpo}``.
        name: What messages call it.
    """
    node = _compose(text, name)
    if isinstance(node, yaml.CollectionNode) and not node.flow_style:
        return text
    return _Converter(name).convert(node, (), 0)


def dump_yaml(value: Any) -> str:
    """``value`` as YAML that :func:`read_yaml` reads back unchanged."""
    return yaml.dump(value, Dumper=_CoreSchemaDumper, sort_keys=False, allow_unicode=True, width=120)


class _NodeLoader(yaml.BaseLoader):
    """Composes nodes (nothing is constructed from them) down to a bounded depth."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]  # the stubs leave it out
            raise yaml.MarkedYAMLError(problem=f"nested deeper than {MAX_DEPTH} levels", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        loader = _NodeLoader(text)
        try:
            return loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise InputError(f"{name}{line}: not valid YAML: {problem}") from error
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error


class _Converter:
    """Turns nodes into plain values and notes their places."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.places: dict[KeyPath, str] = {}
        self.num_values = 0

    def convert(self, node: yaml.Node | None, path: KeyPath, depth: int) -> Any:
        if node is None:
            return None
        self.num_values += 1
        if depth > MAX_DEPTH or self.num_values > MAX_VALUES:
            raise self.refuse(node, path, "aliases expand to too much; write out what is meant")
        if node.tag not in _PLAIN_TAGS:
            raise self.refuse(node, path, f"tags such as {node.tag} are not allowed; remove it")
        if isinstance(node, yaml.ScalarNode):
            node.value = self.read_text(node, path)
        if isinstance(node, yaml.MappingNode):
            return self.convert_mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [self.convert_item(item, (*path, index), depth) for index, item in enumerate(node.value)]
        is_plain = isinstance(node, yaml.ScalarNode) and node.style is None
        return _convert_scalar(node.value) if is_plain else node.value

    def convert_item(self, node: yaml.Node, path: KeyPath, depth: int) -> Any:
        self.places[path] = self.place(node)
        return self.convert(node, path, depth + 1)

    def convert_mapping(self, node: yaml.MappingNode, path: KeyPath, depth: int) -> dict[str, Any]:
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.refuse(key_node, path, "a key must be text")
            key, line = self.read_text(key_node, path), key_node.start_mark.line + 1
            if key in lines:
                raise self.refuse(key_node, (*path, key), f"given twice, first on line {lines[key]}; keep one of them")
            lines[key] = line
            if key == "<<" and key_node.style is None:
                merged = self.convert_merge(value_node, path, depth)
                continue
            own[key] = self.convert(value_node, (*path, key), depth + 1)
        self.places |= {(*path, key): f"{self.name}:{line}" for key, line in lines.items()}
        return merged | own

    def convert_merge(self, node: yaml.Node, path: KeyPath, depth: int) -> dict[str, Any]:
        """The keys that ``<<: *anchor`` or ``<<: [*first, *second]`` brings; of equal keys the first one's."""
        merged: dict[str, Any] = {}
        for item in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(item, yaml.MappingNode):
                raise self.refuse(item, path, "<< merges mappings only")
            merged = self.convert(item, path, depth + 1) | merged
        return merged

    def read_text(self, node: yaml.ScalarNode, path: KeyPath) -> str:
        """A scalar's text, without what YAML's escapes can write and neither files nor paths can hold."""
        # JSON, which is YAML too, writes a character beyond U+FFFF as the two halves of a surrogate pair.
        text = _PAIR.sub(lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), node.value)
        if found := _NO_TEXT.search(text):
            what = "the null character" if found[0] == "\0" else f"\\u{ord(found[0]):04x}, half of a surrogate pair"
            raise self.refuse(node, path, f"holds {what}; write text that UTF-8 can hold, without null characters")
        return text

    def place(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"

    def refuse(self, node: yaml.Node, path: KeyPath, problem: str) -> InputError:
        return InputError(": ".join(filter(None, (self.place(node), show_path(path), problem))))


def _convert_scalar(text: str) -> Any:
    for pattern, convert in _CORE_SCHEMA:
        if pattern.fullmatch(text):
            return convert(text)
    return text


class _CoreSchemaDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.2 would read as a number, as well as what YAML 1.1 would."""


_CoreSchemaDumper.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile("|".join(f"(?:{pattern.pattern})" for pattern, _ in _CORE_SCHEMA[2:])),
    list("-+.0123456789"),
)
