"""One look for all charts: drawn by matplotlib in stand-in colours, shown in the page's CSS variables.

Matplotlib writes fixed colours, but the page has a light and a dark scheme. So charts are drawn in one stand-in colour
per meaning, which becomes ``var(--meaning)`` in the SVG, and ``page.css`` defines that for both schemes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any
from xml.etree import ElementTree

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure


class Colour(StrEnum):
    """Stand-in colours by meaning; the same meaning has the same colour in every chart of the page."""

    INK = "#010101"
    MUTED = "#010102"
    GRID = "#010103"
    PAPER = "#010104"
    SOURCE = "#010105"
    """Sources, and what comes from them (y_ws)."""
    TARGET = "#010106"
    """The target before fusion, and its own answers (y_wt)."""
    FUSED = "#010107"
    REJECTED = "#010108"

    @property
    def variable(self) -> str:
        """The CSS variable that replaces it."""
        return f"var(--{self.name.lower()})"


_RC: dict[Any, object] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "sinterlm",  # the same data give the same bytes
    "text.parse_math": False,  # a model's name may hold a dollar sign
    "font.family": "DejaVu Sans",  # ships with matplotlib: the layout does not depend on the machine
    "font.size": 9,
    "text.color": Colour.INK,
    "axes.edgecolor": Colour.MUTED,
    "axes.labelcolor": Colour.MUTED,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.titlecolor": Colour.INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.xmargin": 0.02,
    "grid.color": Colour.GRID,
    "grid.linewidth": 0.7,
    "xtick.color": Colour.MUTED,
    "ytick.color": Colour.MUTED,
    "ytick.labelcolor": Colour.INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
}


@contextmanager
def chart_style() -> Iterator[None]:
    """Draw figures within this context."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        # Only the layout is measured in this font; the reader's browser has the glyph.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def printable(text: str, limit: int = 34) -> str:
    """``text`` as a chart's label: no control characters, which SVG cannot hold, and not longer than ``limit``.

    A longer one loses its middle: its end tells models of several runs apart.
    """
    text = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    half = limit // 2
    return text if len(text) <= limit else f"{text[: limit - half - 1]}…{text[-half:]}"


def inline_svg(figure: Figure, *, name: str, description: str) -> Markup:
    """The figure as an ``<svg>`` element for the page, in the page's colours and font.

    Args:
        figure: A figure drawn within :func:`chart_style`, in colours of :class:`Colour`.
        name: A name that is unique in the page; it keeps the ids of different charts apart.
        description: What the chart says, for readers who cannot see it.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _adapt(key.rpartition("}")[2], value, name) for key, value in element.attrib.items()
        }
    root.find("defs").clear()  # type: ignore[union-attr]  # a style for all elements: page.css has it for charts only
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _adapt(attribute: str, value: str, name: str) -> str:
    match attribute:
        case "id":
            return f"{name}-{value}"
        case "href":
            return f"#{name}-{value.removeprefix('#')}"
        case "clip-path":
            return value.replace("url(#", f"url(#{name}-")
        case "style":
            value = value.replace("'DejaVu Sans'", "inherit")
            return re.sub("|".join(Colour), lambda match: Colour(match[0]).variable, value)
        case _:
            return value
