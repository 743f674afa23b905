"""Report pages as tests see them: parsed as written, or opened in a real browser."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium or Chrome on this machine to open the page with"
)


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    content: list[str] = field(default_factory=list)

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()

    def find_all(self, tag: str = "", css_class: str = "") -> list[Element]:
        return [
            element
            for element in self.walk()
            if tag in ("", element.tag) and css_class in ("", *element.attributes.get("class", "").split())
        ]

    def by_id(self, name: str) -> Element:
        return next(element for element in self.walk() if element.attributes.get("id") == name)

    @property
    def text(self) -> str:
        """Its text, with single spaces and with hyphens for the page's minus signs."""
        return " ".join("".join(self.content).split()).replace("\N{MINUS SIGN}", "-")

    @property
    def table(self) -> list[list[str]]:
        return [[cell.text for cell in row.children] for row in self.find_all("tr")]


class PageParser(HTMLParser):
    """Builds a tree of elements; every element has all text inside it."""

    VOID = frozenset({"meta", "input", "br", "img", "link", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.path = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self.path[-1].children.append(element)
        if tag not in self.VOID:
            self.path.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.path[-1].tag == tag, f"<{self.path[-1].tag}> closed as </{tag}>"
        self.path.pop()

    def handle_data(self, data: str) -> None:
        for element in self.path:
            element.content.append(data)


def parse(html: str) -> Element:
    parser = PageParser()
    parser.feed(html)
    assert len(parser.path) == 1, f"never closed: {[element.tag for element in parser.path[1:]]}"
    return parser.path[0]


@dataclass
class Opened:
    """A page after its script has run, and the browser's messages."""

    root: Element
    console: list[str]


def open_page(path: Path, *, fragment: str = "", profile: Path) -> Opened:
    assert BROWSER is not None
    command = [
        BROWSER,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--virtual-time-budget=5000", f"--user-data-dir={profile}", "--dump-dom"),
        path.as_uri() + fragment,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return Opened(parse(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line])
