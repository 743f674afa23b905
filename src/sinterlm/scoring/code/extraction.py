"""From an answer to a program: which of its text is Python, and which of that defines what the tests use.

Models wrap code in many ways. Fenced blocks are found by CommonMark's rules; what these miss (a closing fence with text
after it, a fence within a docstring) is found by trying where the block becomes Python. Every repair is tried only on
text that is not Python without it.
"""

from __future__ import annotations

import ast
import html
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence, Set
from itertools import islice
from typing import NamedTuple

from markdown_it import MarkdownIt

from sinterlm.scoring.code.syntax import (
    IMPORTS,
    Definition,
    bound_names,
    has_definition,
    is_trivial,
    names_bound_by,
    names_loaded,
    names_stored,
    parse,
    source_of,
    statements_of,
)

MAX_CHARACTERS = 100_000
"""Limit of an answer's characters; a longer one is not read."""
MAX_READ_CHARACTERS = 2_000_000
"""Limit of the characters of all readings of one answer: what is not understood by then does not count."""

_MARKDOWN = MarkdownIt("commonmark")
_MARKDOWN.core.ruler.enableOnly(["normalize", "block"])
_MARKDOWN.block.ruler.disable(["reference", "html_block"])

_LANGUAGES = ("python", "python3", "python2", "py", "py3", "ipython", "ipython3", "pycon", "sage", "pyodide")
_NO_LANGUAGES = (
    "",
    "code",
    "text",
    "txt",
    "plaintext",
    "plain",
    "diff",
    "markdown",
    "md",
    "solution",
    "answer",
    "none",
)
_FENCE = re.compile(r"`{3,}|~{3,}")
_LATE_FENCE = re.compile(r"[ \t>]*(?:[-*+]|\d+[.)])?[ \t]*(?:`{3,}|~{3,})")
_TAGS = re.compile(
    r"</?(?:pre|code|python|answer|solution|response|program)\b[^<>\n]{0,200}>|\[/?(?:python|code|answer|solution)\]"
    r"|\\(?:begin|end)\{(?:lstlisting|verbatim|minted|code)\}(?:\[[^\]\n]*\]|\{python\})?",
    re.IGNORECASE,
)
_CODE_LINE = re.compile(
    r"(?:async def|def|class|import|from|for|while|if|try|with)\b|@|print\(|\w[\w.\[\], ]*(?::[^=]*)?=(?!=)|\w+\("
)
_INVISIBLE = dict.fromkeys([0xFEFF, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2060, 0x00AD])
_TYPOGRAPHY = str.maketrans(
    dict.fromkeys("\u00a0\u1680\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000", " ")
    | dict.fromkeys("\u2018\u2019\u201a\u201b\u2032", "'")
    | dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"')
    | {"\u2028": "\n", "\u2029": "\n", "\u2212": "-", "\uff08": "(", "\uff09": ")", "\uff1a": ":", "\uff0c": ","}
)
_PROMPT = re.compile(r"^[ \t]*(?:>>>|\.\.\.)(?: |$)", re.MULTILINE)
_CELL = re.compile(r"^(?:In|Out)[ \t]*\[[ \d*]*\]:[ \t]?", re.MULTILINE)
_MAGIC = re.compile(r"^[ \t]*[%!].*$", re.MULTILINE)
_LINE_NUMBER = re.compile(r"^[ \t]*\d+(?:[ \t]*[.:|)][ \t]?|[ \t]|$)", re.MULTILINE)
_CODE_ON_FENCE = re.compile(r"\w*[ \t]+((?:async def|def|class|import|from)\b.*|@.*)")
_READS_INPUT = re.compile(r"\binput\(|\bstdin\b|\bopen\(0")
_MAX_TRIES = 40
_INDENT = "    "


class Block(NamedTuple):
    """A piece of an answer that may be code."""

    language: str
    """As the fence says it, in lower case; empty if it says none."""
    raw: str
    """As it was written, for the rest of a function that the prompt begins."""
    code: str
    """All of it that is Python; empty if nothing is."""


class Program(NamedTuple):
    """The program that an answer's code makes."""

    text: str
    """The prompt's code, if it has any, with the answer's after it or in it."""
    defined: frozenset[str]
    """What the answer itself defines of it, at the top level."""


class _Budget:
    """Bounds what is parsed for one answer."""

    def __init__(self) -> None:
        self._left = MAX_READ_CHARACTERS

    def parse(self, code: str) -> ast.Module | None:
        self._left -= len(code)
        return parse(code) if self._left > 0 else None

    def spend(self, num_characters: int) -> None:
        self._left -= num_characters

    def is_spent(self) -> bool:
        return self._left <= 0


def build_program(
    answer: str, begun: str = "", *, wanted: Set[str] = frozenset(), as_script: bool = False
) -> Program | None:
    """The program of an answer; None if nothing in it is Python.

    Args:
        answer: Without thoughts; with fenced blocks or none, with prose around, the whole program or the continuation
            of ``begun``.
        begun: The prompt's code, which the program begins with.
        wanted: What the tests use: the blocks that define some of it are the program, with what these need of the
            others. So a block that only shows the use decides nothing.
        as_script: The program reads input and prints; ``wanted`` does not matter.
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    answer = answer.replace("\r\n", "\n").replace("\r", "\n")
    budget = _Budget()
    found: list[Block] = []
    for view in _views(answer):
        blocks = find_blocks(view, budget)
        found = found if any(block.raw.strip() for block in found) else blocks
        for chosen in _by_language(blocks):
            text = _script(chosen) if as_script else _definers(chosen, wanted)
            if text:
                return Program(f"{begun}\n\n{text}" if begun else text, frozenset(bound_names(text)))
    if name := unfinished(begun):
        bodies = [block.raw for block in reversed(found) if block.language in (*_LANGUAGES, *_NO_LANGUAGES)]
        for body in bodies or [answer]:
            if text := _continued(begun, body, budget):
                return Program(text, frozenset(bound_names(text) - bound_names(begun) | {name}))
    text = "\n\n".join(block.code for block in found if block.code and block.language in (*_LANGUAGES, *_NO_LANGUAGES))
    return Program(f"{begun}\n\n{text}", frozenset(bound_names(text))) if text else None


def find_blocks(text: str, budget: _Budget | None = None) -> list[Block]:
    """The blocks of a text in order: fenced ones, or else indented ones, or else its lines that are Python."""
    budget = budget or _Budget()
    found: list[Block] = []
    tries = 0
    while text and tries < _MAX_TRIES:
        tries += 1
        rest = ""
        lines = text.split("\n")
        for token in _MARKDOWN.parse(text) if _FENCE.search(text) else ():
            if token.type != "fence" or budget.is_spent():
                continue
            language, content = _language(token.info), token.content
            if code := _CODE_ON_FENCE.match(token.info):
                content = f"{code[1]}\n{content}"
            if language in ("markdown", "md") or (not language and _FENCE.search(content)):
                inner = find_blocks(content, budget) if _FENCE.search(content) else []
                if inner and any(block.code for block in inner):
                    found += inner
                    continue
            behind = lines[token.map[1] :] if token.map and token.level == 0 else []
            block, end = _read_block(language, content, token.markup, behind, budget)
            found.append(block)
            if end is not None:  # the block does not end where CommonMark says
                rest = end
                break
        if not found:
            found = _unfenced(text, budget)
        text = rest
        if budget.is_spent():
            break
    return found


def _unfenced(text: str, budget: _Budget) -> list[Block]:
    """The code of a text without a fence: all of it, its lines that are Python, or what is indented."""
    for code in _repaired(text):
        if budget.parse(code):
            return [Block("", text, code)]
    if parts := _python_lines(_clean(text), budget):
        return [Block("", text, "\n\n".join(parts))]
    tokens = _MARKDOWN.parse(text) if re.search(r"^(?: {4}|\t)", text, re.MULTILINE) and not budget.is_spent() else []
    indented = [token.content for token in tokens if token.type == "code_block"]
    return [Block("", text, code) for content in indented for code in _repaired(content) if budget.parse(code)][:1]


def _read_block(
    language: str, content: str, fence: str, behind: Sequence[str], budget: _Budget
) -> tuple[Block, str | None]:
    """A fenced block; and the text to read next, if the block does not end at its fence."""
    if language not in (*_LANGUAGES, *_NO_LANGUAGES):
        return Block(language, content, ""), None
    for code in _repaired(content):
        if budget.parse(code):
            return Block(language, content, code), None
    # A fence with text after it, or at the end of a line of code, closes the block; one within a docstring does not.
    whole = content + (f"{fence}\n" + "\n".join(behind) if behind else "")
    budget.spend(len(whole))
    raw = content
    for mark in islice(re.finditer(re.escape(fence[:3]) + r"+", whole), _MAX_TRIES):
        if mark.start() < len(raw):
            raw = content[: mark.start()]
        if mark.start() == len(content):
            continue
        for code in _repaired(whole[: mark.start()]):
            if budget.parse(code):
                line_end = whole.find("\n", mark.end())
                return Block(language, whole[: mark.start()], code), whole[line_end + 1 :] if line_end >= 0 else ""
        if budget.is_spent():
            break
    return Block(language, raw, "\n".join(_python_lines(_clean(raw), budget))), None


def _views(answer: str) -> Iterator[str]:
    """The answer as it is, and then with other things that may surround code read as fences."""
    yield answer
    if "```" in answer:
        lines = answer.split("\n")
        loosened = "\n".join(
            line if "```" not in line or _LATE_FENCE.match(line) else line.replace("```", "\n```", 1) for line in lines
        )
        if loosened != answer:
            yield loosened
    if "`" in answer:
        yield re.sub(r"`+(?:python3?\b|py3?\b)?[ \t]*", "\n", answer)
    if _TAGS.search(answer):
        yield re.sub(r"\n{3,}", "\n\n", _TAGS.sub("\n", html.unescape(answer)))


def _by_language(blocks: list[Block]) -> Iterator[list[Block]]:
    """The blocks marked as Python; then these and the unmarked ones."""
    readable = [block for block in blocks if block.code]
    python = [block for block in readable if block.language in _LANGUAGES]
    if python:
        yield python
    both = [block for block in readable if block.language in (*_LANGUAGES, *_NO_LANGUAGES)]
    if len(both) > len(python):
        yield both


def _language(info: str) -> str:
    r"""The language that the line of a fence names, as in ``{.python .x}``, ``Python title="x"`` or ``py{1,3}``."""
    found = re.match(r"[\s{.]*([\w+#-]*)", info)
    return found[1].lower() if found else ""


def _repaired(code: str) -> Iterator[str]:
    """A text and what it may be meant as: each further repair only if it changes the text."""
    repairs = (
        textwrap.dedent,
        lambda text: textwrap.dedent(text.translate(_INVISIBLE)),
        lambda text: textwrap.dedent(_clean(text)),
        html.unescape,
        lambda text: _without_prompts(text) if _PROMPT.search(text) else text,
        lambda text: _MAGIC.sub("", _CELL.sub("", text)),
        _without_diff,
        lambda text: textwrap.dedent(_LINE_NUMBER.sub("", text)) if _is_numbered(text) else text,
    )
    seen = set()
    for repair in repairs:
        code = repair(code)
        if code not in seen:
            seen.add(code)
            yield code


def _clean(text: str) -> str:
    return text.translate(_INVISIBLE).translate(_TYPOGRAPHY)


def _without_prompts(text: str) -> str:
    """What was typed in a session of the interpreter."""
    lines = [line.strip() for line in text.split("\n") if _PROMPT.match(line)]
    return "\n".join(line[4:] for line in lines)


def _without_diff(text: str) -> str:
    """The new text of a diff; other text as it is."""
    lines = text.split("\n")
    is_diff = any(line.startswith(("@@", "+++ ", "diff ")) for line in lines) or (
        any(line.startswith("+") for line in lines)
        and all(line.startswith(("+", "-", " ", "\t")) or not line for line in lines)
    )
    if not is_diff:
        return text
    headers = ("+++", "---", "@@", "diff ", "index ", "-", "\\")
    kept = [line for line in lines if not line.startswith(headers)]
    return textwrap.dedent("\n".join(line[1:] if line[:1] in ("+", " ") else line for line in kept))


def _is_numbered(text: str) -> bool:
    lines = [line for line in text.split("\n") if line.strip()]
    return bool(lines) and all(_LINE_NUMBER.match(line) for line in lines)


def _python_lines(text: str, budget: _Budget) -> list[str]:
    """The longest runs of lines that are Python, each from a line that looks like code."""
    lines = text.split("\n")
    parts, start = [], 0
    while start < len(lines) and not budget.is_spent():
        end = _end_of_python(lines, start, budget) if _CODE_LINE.match(lines[start]) else start
        if end > start:
            parts.append("\n".join(lines[start:end]))
        start = max(end, start + 1)
    return parts


def _end_of_python(lines: Sequence[str], start: int, budget: _Budget) -> int:
    """The line after the longest Python that begins at ``start``; ``start`` itself if none does."""
    end = len(lines)
    while end > start and not budget.is_spent():
        failed = _failing_line("\n".join(lines[start:end]), budget)
        if failed is None:
            return end
        end = min(start + failed - 1, end - 1)
        while end > start and (not lines[end].strip() or lines[end][0].isspace() or lines[end][0] in ")]}"):
            end -= 1
    return start


def _failing_line(code: str, budget: _Budget) -> int | None:
    """The line of code, from 1, that is not Python; None if all of it is."""
    if budget.parse(code):
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            ast.parse(code)
    except SyntaxError as error:
        return error.lineno or 1
    except (ValueError, RecursionError, MemoryError):
        pass
    return 1


def _script(blocks: Sequence[Block]) -> str:
    """The last block that reads input, or else the last; with the others before it if it needs these."""
    reading = [place for place, block in enumerate(blocks) if _READS_INPUT.search(block.code)]
    last = reading[-1] if reading else len(blocks) - 1
    return _with_needed(blocks, [last])


def _definers(blocks: Sequence[Block], wanted: Set[str]) -> str:
    """The blocks that define something of what is wanted; empty if none does."""
    sketched = [_sketched(block.code) for block in blocks]
    defining = [bound_names(block.code) - names for block, names in zip(blocks, sketched, strict=True)]
    if not wanted & set().union(*defining):  # of a sketch the prompt's tests will say what it is
        defining = [bound_names(block.code) for block in blocks]
    chosen = [place for place, names in enumerate(defining) if names & wanted]
    if not wanted:
        chosen = [place for place, block in enumerate(blocks) if has_definition(parse(block.code))]
    return _with_needed(blocks, chosen or ([] if wanted else [*range(len(blocks))]))


def _sketched(code: str) -> set[str]:
    """The functions that a text only sketches: ``...`` or ``pass`` is all of their body."""
    return {
        node.name
        for node in statements_of(code)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and all(
            isinstance(part, ast.Pass) or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))
            for part in node.body
        )
    }


def _with_needed(blocks: Sequence[Block], chosen: Sequence[int]) -> str:
    """The chosen blocks, and what the other ones define that these need."""
    text = "\n\n".join(blocks[place].code for place in chosen)
    others = [block.code for place, block in enumerate(blocks) if place not in chosen]
    if not others or not text:
        return text
    statements = [
        (source_of(code, node), names_bound_by(node), node) for code in others for node in statements_of(code)
    ]
    is_needed = [False] * len(statements)
    missing = names_loaded(text) - names_stored(text)
    while True:
        found = [
            place
            for place, (_, bound, node) in enumerate(statements)
            if not is_needed[place]
            and (bound & missing or (isinstance(node, ast.ImportFrom) and node.names[0].name == "*"))
        ]
        if not found:
            break
        for place in found:
            is_needed[place] = True
            missing |= names_loaded(statements[place][0])
    needed = [source for (source, _, _), is_in in zip(statements, is_needed, strict=True) if is_in]
    return "\n\n".join([*needed, text])


def unfinished(begun: str) -> str:
    """What the prompt's code only begins: the last function or class at its top level without a body."""
    stubs = [node for node in statements_of(begun) if isinstance(node, Definition) and _last_stub(node)]
    return stubs[-1].name if stubs else ""


def _last_stub(node: ast.stmt) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The last function without a body in a definition, or itself."""
    if isinstance(node, ast.ClassDef):
        return next((found for member in reversed(node.body) if (found := _last_stub(member))), None)
    return node if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and is_trivial(node) else None


def _continued(begun: str, body: str, budget: _Budget) -> str:
    """The prompt's code with the body of its unfinished function; empty if the text is not one."""
    name = unfinished(begun)
    stub = next(
        found
        for node in reversed(statements_of(begun))
        if getattr(node, "name", "") == name and (found := _last_stub(node))
    )
    lines = begun.split("\n")
    first = stub.body[0]
    is_one_line = first.lineno == stub.lineno or not lines[first.lineno - 1][: first.col_offset].isspace()
    own = re.match(r"[ \t]*", lines[stub.lineno - 1])
    indent = (own[0] if own else "") + _INDENT if is_one_line else lines[first.lineno - 1][: first.col_offset]
    header = lines[: first.lineno - (0 if is_one_line else 1)]
    if is_one_line:
        header[-1] = header[-1].encode()[: first.col_offset].decode()
    docstring = isinstance(first, ast.Expr)
    kept = [
        textwrap.indent(textwrap.dedent(source_of(begun, node)), indent)
        for place, node in enumerate(stub.body)
        if isinstance(node, (*IMPORTS, ast.Assign, ast.AnnAssign)) or (place == 0 and docstring and not is_one_line)
    ]
    behind = lines[stub.end_lineno :]
    defines_method = re.match(rf"\s*(?:async\s+)?def\s+{re.escape(stub.name)}\b", body)
    if defines_method:
        header, kept = lines[: min([stub.lineno, *(item.lineno for item in stub.decorator_list)]) - 1], []
        indent = own[0] if own else ""
    for inside, after in _bodies(body):
        text = "\n".join([*header, *kept, textwrap.indent(inside, indent), *([after] if after else []), *behind])
        if budget.parse(text):
            return text
        if budget.is_spent():
            break
    return ""


def _bodies(text: str) -> Iterator[tuple[str, str]]:
    """The part of a text that may be the body of a function, and what may follow the function; without prose around."""
    lines = _clean(text).strip("\n").split("\n")
    indented = next((place for place, line in enumerate(lines) if line[:1].isspace()), 0)
    for start in dict.fromkeys((0, indented)):
        outer = [place for place in range(start + 1, len(lines)) if lines[place] and not lines[place][0].isspace()]
        for end in [len(lines), *reversed(outer)][:_MAX_TRIES]:
            if lines[start][:1].isspace() and outer and outer[0] < end:
                yield textwrap.dedent("\n".join(lines[start : outer[0]])), "\n".join(lines[outer[0] : end])
            else:
                yield textwrap.dedent("\n".join(lines[start:end])), ""
                yield lines[start].lstrip() + "\n" + textwrap.dedent("\n".join(lines[start + 1 : end])), ""
