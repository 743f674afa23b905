"""Packages with components, as pip installs them: modules, and metadata with their entry points."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

EXTENDING = Path(__file__).resolve().parents[1] / "docs" / "extending.md"


def install(folder: Path, name: str, modules: Mapping[str, str], entry_points: Mapping[str, Mapping[str, str]]) -> None:
    """Write a package into a folder; the caller adds the folder to the path.

    Args:
        folder: The folder for packages.
        name: Name of the package and of its only distribution.
        modules: The text of each module by name.
        entry_points: By group, the object that each name refers to.
    """
    (folder / name).mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (folder / name / f"{module}.py").write_text(text)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.0\n")
    sections = [
        "\n".join([f"[{group}]", *(f"{key} = {value}" for key, value in points.items())])
        for group, points in entry_points.items()
    ]
    (info / "entry_points.txt").write_text("\n\n".join(sections) + "\n")


def worked_example(file: str) -> str:
    """The text that docs/extending.md shows for a new file, e.g. ``src/sinterlm/selection/off_policy.py``."""
    (text,) = re.findall(
        rf"^```python\n(# {re.escape(file)}\n.*?)^```$", EXTENDING.read_text(), re.DOTALL | re.MULTILINE
    )
    return str(text)
