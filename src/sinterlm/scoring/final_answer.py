r"""The final answer in a text: where it is, and how it is written as LaTeX.

It is the first of these that exists:

1. the last ``\boxed`` or ``\fbox``;
2. the last ``<answer>``;
3. after the last "answer is", "Answer:" or their like in some other languages, if an expression follows;
4. the last line, if it is nothing but an expression;
5. what is bold in the last line;
6. anywhere near the end: the last formula or number, as math-verify finds it.
"""

# ruff: noqa: RUF001  # characters that look alike are what this is about

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sinterlm.scoring.exact_match import GROUPING_COMMA, normalise
from sinterlm.scoring.typography import fold

MAX_LINE = 400
"""Characters of a line that may be an answer without a box."""


class Reading(NamedTuple):
    """A text that may be the final answer."""

    text: str
    is_marked: bool
    """Whether the answer itself says so (a box, a tag): then nothing else in it is looked at."""
    together: str | None = None
    """With the boxes before it, if "and", "or" or a comma joins them: several answers, each in its own."""


_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![A-Za-z])\s*")
_ANSWER_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
_NAMES = (
    r"(?:(?<!\w)(?:(?:answer|solution|result|option|choice|root)s?|respuesta|resposta|risposta|r[ée]ponse|antwort|ответ)"
    r"|答案|答え|정답|답)"
)
_PHRASE = re.compile(
    rf"{_NAMES}"
    r"[*_`\"]*\s*(?:(?:is|are|was|equals?|es|é|è|est|ist|будет)\b|是|为|為|は|은|는|[:=\uff1a])"
    r"|^[ \t>*_]*A[*_]*:",
    re.IGNORECASE | re.MULTILINE,
)
_SENTENCE_END = re.compile(r"[.!?](?=[\s*_`)\"']|\Z)|[\u3002\uff01\uff1f]|;\s|\n|\"\s*[,}]")
_HEDGE = re.compile(
    r"(?:(?:(?:most )?(?:likely|probably)|(?:almost )?(?:certainly|definitely|surely)|clearly|obviously|simply"
    r"|undoubtedly|actually|indeed|just|then|thus|hence|therefore|of course|for sure|without (?:a )?doubt),?\s+)+"
    r"(?=not\b|(?:(?:option|choice|letter)\s+)?(?-i:\(?[A-J](?![\w'])))",
    re.IGNORECASE,
)
"""Words before the letter of a choice, or before a "not", that do not change the answer."""
_NOT_BUT = re.compile(r"not\b[^.\n]*?\bbut\s+", re.IGNORECASE)
_EMPHASIS = re.compile(r"(?<![\w*\\)}])\*\*(?=[^\s*])([^*\n]{1,400})(?<=\S)\*\*(?![\w*({])")
_NUMBERING = re.compile(r"\W*\d+[.:)]")
"""The number of a list item or of a step, which is not an answer."""
_JOINED = re.compile(
    r"(?=.*?(?:,|\band\b|\bor\b))(?:\s|\$|\\q?quad|\\[ ,;()]|\\(?:text|mbox)\{\s*(?:and|or)\s*\}|,|\band\b|\bor\b)+",
    re.DOTALL,
)
_AND_OR = re.compile(r"\s*,?\s*(?:\\(?:text|mathrm|mbox)\{\s*(?:and|or)\s*\}|(?<![\w\\])(?:and|or)(?!\w))\s*")

_OR, _AND = (
    re.compile(rf"\s*,?\s*(?:\\(?:text|mathrm|mbox)\{{\s*{word}\s*\}}|(?<![\w\\]){word}(?!\w))\s*")
    for word in ("or", "and")
)
_RELATION = re.compile(r"[<>]|\\(?:[lg]eq?|neq?)(?![A-Za-z])")

_SYMBOLS = {
    "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "÷": r"\div ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ",
    "•": r"\cdot ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\leq ", "⩽": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ",
    "≠": r"\neq ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "°": r"^\circ ", "º": r"^\circ ",
    "∠": r"\angle ", "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "′": "'",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "θ": r"\theta ",
    "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\varphi ", "ω": r"\omega ",
    "ψ": r"\psi ", "Δ": r"\Delta ", "Ω": r"\Omega ", "Σ": r"\Sigma ",
    "\u2061": "", "\u2062": "", "\u2063": ",",
}  # fmt: skip
_UNICODE = str.maketrans(_SYMBOLS)
_CIRCLED = re.compile("[\u2460-\u2473]")
_SUBSCRIPT = re.compile("[₀-₉]+")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|log|ln|exp|gcd|lcm|min|max"
_PLAIN_FUNCTION = re.compile(rf"(?<![\\A-Za-z])({_FUNCTIONS})(?=\s*[\d({{\\A-Za-z]|\^)(?![a-z]{{2}})")
_REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|(?:display|text|script)style|limits|[bB]igg?|bf|it|rm|sf|large|Large|huge)(?![A-Za-z])", ""),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\textcircled\{(\d+)\}", r"\1, "),
        (r"^[\s$]*(?:[A-Za-z]\s*)?\\(?:approx|simeq)(?![A-Za-z])", ""),
        (r"(?<=\S)\s*\\(?:approx|simeq)(?![A-Za-z]).*", ""),
        (r"^\\(?:text|mathrm|textbf)\s*\{[^{}]*[:=]\s*\}", ""),
        (r"^(?:[Mm]inus|[Nn]egative)\s+(?=[\d.\\])", "-"),
        (r"^([-+]?\d{1,3}(?:\.\d{3}){2,})$", lambda found: found[1].replace(".", "")),
        (r"(?<=\d)\s*(?:\\(?:text|mathrm)\s*\{\s*)?([APap])\.?\s?[Mm]\.?\s*\}?$", lambda found: f"{found[1].lower()}m"),
        (r"(?<!\\)\\[,!;:>](?![A-Za-z])|\\(?:thinspace|negthinspace)(?![A-Za-z])", "\u2009"),
        (r"(?<=\d)\u2009+(?=\d{3}(?!\d))", ""),
        (r"(?<=\d)(?:\{,\}|,\u2009[\u2009 ]*)(?=\d{3}(?!\d))", ","),
        (r"\u2009", " "),
        (r"^([-+]?\d{1,3})((?: \d{3})+)(?=$|\.\d)", lambda found: found[1] + found[2].replace(" ", "")),
        (r"^([-+]?0),(\d+)$", r"\1.\2"),
        (r"\s*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?(?<!\w)(?:percent(?:age)?|pct)\s*\}?$", r"\\%"),
        (r"(?<!\\)\\ |~|\\(?:quad|qquad|hspace\*?\{[^{}]*\})(?![A-Za-z])", " "),
        (r"\\(?:text|mathrm|textrm|mathbf|textbf)\{\s*\\?[$€£¥]\s*\}|\\?[$€£¥₹]", " "),
        (r"\\(?:mathrm|text|operatorname|mathit|textit|rm)\s*\{\s*([ei])\s*\}", r"\1"),
        (r"\\(?:dfrac|tfrac|cfrac)(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
        (r"\\degree(?![A-Za-z])|\\textdegree(?![A-Za-z])", r"^\\circ "),
        (r"\*\*", "^"),
        (r"(?<![\\A-Za-z])sqrt\s*\(", r"\\sqrt("),
        (r"(?<![\\A-Za-z])(pi|infty)(?![A-Za-z])", r"\\\1 "),
        (r"(?<![\\A-Za-z])infinity(?![A-Za-z])", r"\\infty "),
        (r"\\([lg]eq)slant(?![A-Za-z])", r"\\\1 "),
        (r"(?<=\d)\.(?=\s*/)", ""),
        (r"(?<![\\A-Za-z])(?:np|math)\.(?=[a-z])", ""),
        (r"<=", r"\\leq "),
        (r">=", r"\\geq "),
        (r"!=", r"\\neq "),
        (r"\^\s*([-+]?\d+(?:\.\d+)?)(?![\d}])", r"^{\1}"),
        (r"\^\s*-\s*([A-Za-z])(?![A-Za-z])", r"^{-\1}"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"(?<![\w.}])(\d+(?:\.\d+)?|\.\d+)[eE]([-+]?\d{1,4})(?![\w.])", r"\1 \\times 10^{\2}"),
        (r"(?<![\w./}^{])(-?)(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}", r"\1(\2+\\frac{\3}{\4})"),
        (r"(?<![\w./}^{])(-?)(\d+)\s+(\d+)\s*/\s*(\d+)(?![\w.])", r"\1(\2+\\frac{\3}{\4})"),
        (r"^\\\{\s*[A-Za-z]\s*(?:\\mid|[|:])(?=[^,]*(?:[<>]|\\(?:[lg]eq?|neq?)(?![a-z])))(.*)\\\}$", r"\1"),
        (r"^[^:{]*(?:[<>]|\\[lg]eq?(?![A-Za-z]))[^:{]*:\s*(?=[(\[])", ""),
        (r"(?<![\\A-Za-z])E(?=_)", r"\\mathcal{E}"),
        (r"\*", r"\\cdot "),
        (r"^\s*([^=<>A-Za-z]*\d[^=<>A-Za-z]*)=\s*([A-Za-z])\s*$", r"\2=\1"),
    )
]  # fmt: skip
_UNIT_WORDS = (
    r"(?:(?:sq|cu)\b\.? *)?(?:(?<= )[A-Za-z]{3,}|[A-Za-z]+[aeiou][A-Za-z]+|"
    r"cm|mm|km|dm|kg|mg|lbs?|oz|ft|yd|mi|(?<= )in|hrs?|mins?|secs?|ms|kW|mL|ml|mph|[kc]m/h|m/s|km/h|USD|EUR|GB|MB)"
    r"(?:\^\{?[23]\}?|[ /-]+[A-Za-z.]+)*\.?"
)
_UNIT = re.compile(
    rf"(?<![A-Za-z\\])(?!(?:pi|sqrt|mod|choose)\b)(?:{_UNIT_WORDS}|\([A-Za-z][A-Za-z -]+\)"
    r"|[\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7a3]+)$"
)
_NUMERAL = re.compile(r"(?:[-+\d.,/^(){} ]|\\(?:frac|sqrt|pi|times|cdot)(?![A-Za-z]))+")
_SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_SCALED = re.compile(rf"^([-+]?[\d.]+)\s*(?:\\text\{{\s*)?({'|'.join(_SCALES)})(?!\w)\s*\}}?(.*)$", re.IGNORECASE)
_REPEATING = re.compile(r"(?<![\w.])(\d{0,50})\.(\d{0,50})\\(?:overline|bar)\{?(\d{1,50})\}?")
_DECIMAL_COMMA = re.compile(r"^-?\d+,(?:\d{1,2}|\d{4,})$")
_BASED = re.compile(
    r"^\(?([0-9A-Z]*[0-9][0-9A-Z]*)\)?_\{?\s*(?:\\text\{)?\s*([1-9]\d?|two|eight|ten|sixteen)\s*\}?\}?$"
)
_BASES = {"two": 2, "eight": 8, "ten": 10, "sixteen": 16}
_PLAIN = re.compile(r"\$?[-+]?\$?\d{1,100}(?:,\d{3})*(?:\.\d{1,100})?|\(?[A-Za-z]\)?")
_STYLE = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|operatorname|emph|mathsf)\s*\{([^{}]*)\}"
)
_MATHEMATICS = re.compile(r"[\d\[\]{}|^_=<>+*/\\]|\(.*[^)]$|^[^(].*\)")
_WORD = re.compile(r"[^\W\d_]{2}|[\u3040-\u30ff\u4e00-\u9fff]")
_REASONS = re.compile(
    r"(?:(?<=\byes)|(?<=\bno)|(?<=\btrue)|(?<=\bfalse))[,.:;].*|,?\s+(?:because|since)\b.*", re.IGNORECASE
)
_CHOICE = re.compile(
    r"^(?:(?:[Oo]ption|[Cc]hoice|[Ll]etter)\s+)?\(?([A-J])(?:$|[).:;](?:\s|$)|\)|,(?!\s*[A-Z0-9]\b)|\s+(?:because|since|not|non|pas)\b|[\u3000-\u9fff])"
)


def final_answer(accepted: str) -> str:
    r"""The answer in an accepted answer, which may be a whole solution.

    >>> final_answer("He pays 1,000 + 72 = $1,072.\n#### 1,072")
    '1072'
    >>> final_answer(r"Thus $x = \boxed{\frac{1}{2}}$.")
    '\\frac{1}{2}'
    """
    accepted = _without_long_gaps(accepted)
    if "####" in accepted:
        return GROUPING_COMMA.sub("", accepted.rpartition("####")[2].strip())
    boxes = [box for box in boxes_in(accepted) if box.text]
    return ", ".join(_joined(accepted, boxes)) if boxes else accepted.strip()


def is_plain(answer: str) -> bool:
    """Whether an accepted answer is a number, one letter or words, and so can be read for certain."""
    return bool(_PLAIN.fullmatch(answer)) or as_words(answer) is not None


def _without_long_gaps(text: str) -> str:
    """With two spaces or line ends at most in a row: patterns that begin with white space take long for more."""
    return re.sub(r"([ \t\u00a0])[ \t\u00a0]{2,}", r"\1\1", re.sub(r"\n(?:[ \t\r]*\n){2,}", "\n\n", text))


class Box(NamedTuple):
    """What is in a box, and where the box lies in its text."""

    text: str
    start: int
    end: int


def boxes_in(text: str) -> list[Box]:
    r"""All boxes in order; only the innermost of nested ones. ``\boxed 5`` holds one character or command."""
    boxes = []
    for found in _BOX.finditer(text):
        if text[found.end() : found.end() + 1] == "{":
            end = _closing(text, found.end() + 1)
            content = text[found.end() + 1 : end]
            end += 1
        else:
            bare = re.compile(r"\\[A-Za-z]+(?:\{[^{}]*\})*|-?\d[\d.,]*\d|\S").match(text, found.end())
            content, end = (bare[0], bare.end()) if bare else ("", found.end())
        if not _BOX.search(content):
            boxes.append(Box(content.strip(), found.start(), end))
    return boxes


def readings(content: str) -> Iterator[Reading]:
    """What may be the final answer, the likeliest first; the text at large is not among them."""
    content = _without_long_gaps(content.translate(_SUPPRESSED))
    boxes = [box for box in boxes_in(content) if box.text]
    if boxes:
        if later := _behind_a_phrase(content, boxes[-1].end):
            yield Reading(later, False)
        joined = _joined(content, boxes)
        last = boxes[-1].text
        if _PHRASE.search(last) and (inner := _behind_a_phrase(last.rstrip("}"), 0)):
            last = inner
        yield Reading(last, True, ", ".join(joined) if len(joined) > 1 else None)
        return
    if tags := _ANSWER_TAG.findall(content):
        inner = tags[-1].strip()
        if _is_short(inner):
            yield Reading(inner, True)
            return
        content = inner
    if candidate := _behind_a_phrase(content, 0):
        yield Reading(candidate, False)
    lines = [line for line in content.rstrip().rsplit("\n", 2) if line.strip()]
    if lines and len(lines[-1]) <= MAX_LINE:
        yield Reading(lines[-1].lstrip("#> \t"), False)
        emphasised = [found[1] for found in _EMPHASIS.finditer(lines[-1]) if not _NUMBERING.fullmatch(found[1])]
        if emphasised:
            yield Reading(emphasised[-1], False)


def _behind_a_phrase(content: str, start: int) -> str | None:
    """What follows the last "answer is" or its like, to the end of the sentence."""
    all_found = deque(_PHRASE.finditer(content, start), maxlen=1)
    if not all_found:
        return None
    found = all_found.pop()
    rest = _EMPHASIS.sub(r"\1", content[found.end() : found.end() + MAX_LINE]).lstrip(' \t:\uff1a*_`"')
    for idle in (_HEDGE, _NOT_BUT):
        if skipped := idle.match(rest):
            rest = rest[skipped.end() :]
    end = _SENTENCE_END.search(rest)
    return (rest[: end.start()] if end else rest).strip(' \t\r*_`"') or None


def _joined(content: str, boxes: Sequence[Box]) -> list[str]:
    """The last box, and those before it that a comma, "and" or "or" joins to it."""
    first = len(boxes) - 1
    while first and _JOINED.fullmatch(content, boxes[first - 1].end, boxes[first].start):
        first -= 1
    return [box.text for box in boxes[first:]]


_MIXED = re.compile(r"(?<![\d./-])(\d+) (\d)/(\d{1,2})(?![\d/])")
_ORDINAL = re.compile(r"(?<![\w.])\d+(?:st|nd|rd|th)(?!\w)")
_LONG_NUMBER = re.compile(r"\d{1000,}")
"""Math-verify's patterns take seconds for such a number, and no accepted answer is one."""
_SURD = re.compile(r"(?<![\w^])-?[\d.,/()+-]{0,50}[√π](?:[\d.,/()√π+-]{0,50}[\dπ)])?")
_MAX_PROSE = 10_000
_SUPPRESSED = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff"))


def as_prose(content: str) -> str:
    """The end of a text as math-verify looks for numbers and formulas in it: typography folded, emphasis taken off."""
    text = re.sub(r"\\\$(?=\s*[\d.])", "", fold(content[-_MAX_PROSE:]))
    text = re.sub(r"(?<=\d)\\[,!](?=\d{3}(?!\d))", "", text).replace("`", " ")
    text = re.sub(_NAMES, "answer", text, flags=re.IGNORECASE)
    text = _MIXED.sub(r"\1+\2/\3", text)
    text = re.sub(r"(?<![\w*\\])\*{1,3}([^*\n]{1,200}?)\*{1,3}(?![\w*])", r"\1", text)
    if "$" not in text and "\\" not in text:
        text = _SURD.sub(lambda found: f" ${as_latex(found[0])}$ ", text)
    text = _ORDINAL.sub(" ", _LONG_NUMBER.sub("", text))
    return re.sub(r"(?<=[^\x00-\x7f])(?=[-\d.$])|(?<=\d)(?=[\u3000-\u9fff\uac00-\ud7a3])", " ", text)


def as_latex(text: str) -> str:
    r"""An answer as LaTeX that latex2sympy reads, without what does not change its value.

    >>> as_latex("**1,072 dollars.**"), as_latex("10^-3"), as_latex("3 3/4")
    ('1072', '10^{-3}', '(3+\\frac{3}{4})')
    """
    for sign, command in _ROOTS.items():
        if sign in text:
            text = re.sub(rf"{sign}\s*(\d+|[A-Za-z]|π)", rf"\{command}{{\1}}", text).replace(sign, command)
    text = _SUBSCRIPT.sub(lambda found: f"_{{{found[0].translate(_SUBSCRIPTS)}}}", text)
    text = re.sub(r"(\d)\s*([\u00bc-\u00be\u2150-\u215e])", r"\1 \2", text)
    text = _EMPHASIS.sub(r"\1", _CIRCLED.sub(lambda found: f"{unicodedata.numeric(found[0]):g}, ", text))
    text = _unwrapped(fold(text.translate(_UNICODE)).replace("\n", " ").strip())
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _REPEATING.sub(_as_fraction, _unwrapped(_with_root_braces(text)))
    text = _PLAIN_FUNCTION.sub(r"\\\1", text)
    if _RELATION.search(text):
        text = _AND.sub(r" \\land ", _OR.sub(r" \\lor ", text))
    text = _AND_OR.sub("; " if "," in text and "=" in text else ", ", text)
    if not re.search(r"[(\[{]\s*[^()\[\]{}]*,", text):
        text = GROUPING_COMMA.sub("", text)
    if scaled := _SCALED.match(text):
        text = rf"{scaled[1]} \times 10^{{{_SCALES[scaled[2].lower()]}}}"
    text = _without_unit(text)
    if len(text) == 1 and not text.isascii():
        value = unicodedata.numeric(text, None)
        text = text if value is None else f"{value:g}"
    return text.strip()


def _without_unit(text: str) -> str:
    unit = _UNIT.search(text) if len(text) <= MAX_LINE else None
    number = text[: unit.start()].rstrip() if unit else ""
    return number if _NUMERAL.fullmatch(number) and re.search(r"\d|\\pi", number) else text


def _as_fraction(repeating: re.Match[str]) -> str:
    r"""``0.1\overline{6}`` as ``\frac{15}{90}``."""
    whole, fixed, period = repeating.groups()
    numerator = int(whole + fixed + period) - int(f"0{whole}{fixed}")
    return rf"\frac{{{numerator}}}{{{(10 ** len(period) - 1) * 10 ** len(fixed)}}}"


def with_decimal_comma(latex: str) -> str | None:
    """The number that ``2,74`` is if its comma is a decimal one; None if it cannot be one."""
    return latex.replace(",", ".") if _DECIMAL_COMMA.match(latex) else None


def based(latex: str) -> tuple[str, int] | None:
    """Digits and base of a number such as ``4343_6``; None if it is none."""
    found = _BASED.match(latex)
    return (found[1].upper(), _BASES.get(found[2]) or int(found[2])) if found else None


def as_words(text: str) -> str | None:
    r"""An answer in words: ``\text{(Evelyn)}`` is ``evelyn``; None if it is mathematics."""
    words = _STYLE.sub(r"\1", _unwrapped(text.strip())).replace("$", "")
    return None if _MATHEMATICS.search(words) or not _WORD.search(words) else normalise(words)


def without_reasons(text: str) -> str:
    """The text up to "because", and a yes or no without what explains it."""
    return _REASONS.sub("", _STYLE.sub(r"\1", _EMPHASIS.sub(r"\1", text)))


def only_letter(content: str) -> str | None:
    """The letter of a choice in a text that names no other."""
    found = {letter for pair in _LETTER.findall(content) for letter in pair if letter}
    return found.pop() if len(found) == 1 else None


def choice(text: str) -> str | None:
    """The letter of a choice: of ``(C)``, ``C.`` and ``C) 12``."""
    found = _CHOICE.match(_STYLE.sub(r"\1", _unwrapped(text.strip())).strip(" $"))
    return found[1] if found else None


_LETTER = re.compile(
    r"(?i:option|choice|answer)\s+\(?([A-J])(?![\w'])|(?<![A-Za-z0-9_'+-])([B-HJ]|A(?!\s+[a-z]))(?![A-Za-z0-9_'+-])"
)


def is_expression(latex: str) -> bool:
    """Whether there is no prose in it: no word, and no two letters in a row if it has a space as well."""
    latex = latex.strip()
    is_spaced = " " in latex and re.search(r"[A-Za-z]{2}", _without_commands(latex))
    return bool(latex) and not is_spaced and not holds_words(latex)


def holds_words(latex: str) -> bool:
    """Whether it has three letters in a row, or one of another script, outside commands."""
    return bool(re.search(r"[A-Za-z]{3}|[^\x00-\x7f]", _without_commands(latex)))


def _without_commands(latex: str) -> str:
    latex = re.sub(r"\\(?:begin|end)\{[a-z]+\*?\}(?:\{[lcr|]+\})?", "", latex)
    return re.sub(r"\\[A-Za-z]+", " ", re.sub(r"\\(?:text|mathrm|mbox|operatorname)\s*\{[^{}]*\}", "", latex))


def _is_short(text: str) -> bool:
    return 0 < len(text) <= MAX_LINE and "\n\n" not in text and not _PHRASE.search(text)


_WRAPPERS = [
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\$\$(.+)\$\$", r"\$([^$]+)\$", r"\\\[(.+)\\\]", r"\\\((.+)\\\)", r"\*\*(.+)\*\*", r"\*([^*]+)\*", r"__(.+)__",
        r"`+([^`]+)`+", r"\"([^\"]+)\"", r"'([^']+)'",
        r"\\(?:boxed|fbox|text|mathrm|mathbf|textbf|bm|boldsymbol)\{([^{}]*)\}",
        r"\\begin\{(?:equation|align|gather)\*?\}(.+)\\end\{(?:equation|align|gather)\*?\}",
    )
]  # fmt: skip


def _unwrapped(text: str) -> str:
    """The text without emphasis, formula delimiters, quotation marks and a full stop around it."""
    while True:
        bare = re.sub(r"(?<!\\)[\s.,;:。、]+$", "", text.strip())
        bare = re.sub(r"^[:=\s]+", "", bare)
        for wrapper in _WRAPPERS:
            if found := wrapper.fullmatch(bare):
                bare = found[1].strip()
        if bare == text:
            return text
        text = bare


def _with_root_braces(text: str) -> str:
    r"""``\sqrt(x)`` as ``\sqrt{x}``."""
    start = 0
    while (place := re.compile(r"\\sqrt(?:\[\d+\])?\s*\(").search(text, start)) is not None:
        depth, end = 1, place.end()
        while end < len(text) and depth:
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        if depth:
            return text
        text = f"{text[: place.end() - 1]}{{{text[place.end() : end - 1]}}}{text[end:]}"
        start = place.end()
    return text


def _closing(text: str, start: int) -> int:
    """The place of the brace that closes the one before ``start``; the end of the text if none does."""
    depth = 1
    for found in re.compile(r"\\[{}]|[{}]").finditer(text, start):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return found.start()
    return len(text)
