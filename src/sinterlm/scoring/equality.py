r"""Whether two answers have the same value: math-verify's comparison, without its false positives.

Three faults of math-verify 0.9 are corrected here:

- It rounds to six decimals, so that 0.0000004 is 0.0000001. Here numbers are equal by their relative difference.
- latex2sympy reads as far as it can and drops the rest, so that ``10^-3`` is 10. Here a text is read whole or not.
- It takes ``\gamma`` for Euler's constant. Here it is a letter.

Imported by workers only: math-verify brings SymPy, which takes a second.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

from latex2sympy2_extended import NormalizationConfig, latex2sympy
from latex2sympy2_extended.latex2sympy2 import _Latex2Sympy, convert_to_pct, normalize_latex
from latex2sympy2_extended.logic import And
from latex2sympy2_extended.sets import FiniteSet
from math_verify import grader, parse, verify
from math_verify.parser import equation_split_regex
from sympy import (
    Basic,
    Eq,
    EulerGamma,
    Float,
    Ge,
    Gt,
    Integer,
    Intersection,
    Le,
    Lt,
    MatrixBase,
    Rational,
    Set,
    Symbol,
    Union,
)

from sinterlm.scoring.final_answer import (
    Reading,
    as_latex,
    as_prose,
    as_words,
    based,
    choice,
    holds_words,
    is_expression,
    only_letter,
    readings,
    with_decimal_comma,
    without_reasons,
)

EXACT_DIGITS = 50
"""Digits to which constants are computed when they are compared with each other."""
MAX_RELATIVE_ERROR = 1e-5
"""The error that a decimal such as 0.333333 for 1/3 may have; besides, it must give the number's digits."""
MIN_DIGITS = 6
"""Digits that a decimal must have to equal one with more digits."""

_NUMBER = re.compile(r"[-+]?(?:\d{1,400}|\d{0,100}\.\d{1,100})")
_TIME_OF_DAY = re.compile(r"\d{1,2}:\d{2}[ap]m")
_OR = re.compile(r"\\(?:lor|vee)(?![A-Za-z])")
_AND = re.compile(r"\\(?:land|wedge)(?![A-Za-z])")
_ORDER = re.compile(r"\s*(<|>|\\[lg]eq?(?![A-Za-z]))\s*")
_PERCENT = re.compile(r"(?![-+.\d\s]*\\?%)(.*?)\s*\\?%", re.DOTALL)
_NORMALISATION = NormalizationConfig(
    basic_latex=True, units=True, malformed_operators=True, nits=True, boxed="none", equations=False
)


class Accepted(NamedTuple):
    """An accepted answer in every form in which it is compared."""

    words: str | None
    choice: str | None
    expression: Any | None
    based: tuple[str, int] | None
    text: str | None
    """Without spaces: what is written alike is equal, even if it cannot be read."""
    is_readable: bool
    """Whether an answer that is written differently can be compared with it."""


def judge(accepted: tuple[str, ...], content: str) -> str:
    """``right``, ``wrong``, ``no-answer`` (in the response) or ``unreadable`` (the accepted answers)."""
    golds = read_accepted(accepted)
    verdict = _judge(golds, content)
    return verdict if verdict == "right" or any(gold.is_readable for gold in golds) else "unreadable"


def _judge(golds: Sequence[Accepted], content: str) -> str:
    for reading in readings(content):
        verdict = _compare(golds, reading)
        if verdict is not None:
            return "right" if verdict else "wrong"
    found = parse(as_prose(content), fallback_mode="no_fallback", parsing_timeout=None)
    if not found:
        letter = only_letter(content)
        return "right" if letter and any(gold.choice == letter for gold in golds) else "no-answer"
    is_right = any(_is_equal(gold.expression, own) for gold in golds for own in map(_canonical, found))
    return "right" if is_right else "wrong"


@lru_cache(maxsize=1024)
def read_accepted(accepted: tuple[str, ...]) -> list[Accepted]:
    """The accepted answers in every form; one of several words can always be read."""
    return [_read_accepted(text) for text in accepted if text.strip()]


def _read_accepted(text: str) -> Accepted:
    latex = as_latex(text)
    words, number = as_words(text), based(latex)
    expression = None if number else read(latex)
    is_prose = not is_expression(latex) and any(map(str.isalnum, latex))
    letter = choice(text)
    is_readable = is_prose or any(form is not None for form in (words, letter, expression, number))
    return Accepted(words, letter, expression, number, _without_spaces(latex), is_readable)


def _compare(golds: Sequence[Accepted], reading: Reading) -> bool | None:
    """Whether the reading is an accepted answer; None if it is no answer at all."""
    words = {as_words(reading.text), as_words(without_reasons(reading.text))} - {None}
    own = choice(reading.text)
    if any(gold.words in words or (own and own == gold.choice) for gold in golds):
        return True
    is_read = reading.is_marked
    own_latex = as_latex(reading.text)
    if any(gold.text and gold.text == _without_spaces(own_latex) for gold in golds):
        return True
    others = (
        with_decimal_comma(own_latex),
        reading.together and as_latex(reading.together),
        own_latex[:-2] if _TIME_OF_DAY.fullmatch(own_latex) else None,
    )
    for latex in filter(None, (own_latex, *others)):
        if number := based(latex):
            is_read = True
            if any(_is_same_number(gold, number) for gold in golds):
                return True
        elif (reading.is_marked or is_expression(latex)) and (expression := read(latex)) is not None:
            is_read = True
            if any(_is_equal_to(gold, expression, latex) for gold in golds):
                return True
    return False if is_read else None


def _is_equal_to(gold: Accepted, expression: Any, latex: str) -> bool:
    if gold.based:
        return latex.upper() == gold.based[0]
    return _is_equal(gold.expression, expression)


def _is_same_number(gold: Accepted, number: tuple[str, int]) -> bool:
    if gold.based is None:
        return isinstance(gold.expression, Integer) and _value_of(*number) == int(gold.expression)
    value = _value_of(*gold.based)
    return gold.based == number or (value is not None and value == _value_of(*number))


def _value_of(digits: str, base: int) -> int | None:
    try:
        return int(digits, base)
    except ValueError:
        return None


def _without_spaces(latex: str) -> str | None:
    bare = re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", latex)  # 1 2 is not 12
    return (bare if is_expression(latex) else bare.casefold()) or None


def read(latex: str) -> Any | None:
    """LaTeX as a SymPy expression; None if it is not mathematics as a whole.

    Raises:
        MemoryError: It is too large.
        RecursionError: It is nested too deeply.
    """
    if _NUMBER.fullmatch(latex):
        return Float(latex) if "." in latex else Integer(int(latex))
    if _TIME_OF_DAY.fullmatch(latex):
        return Symbol(latex)
    if percent := _PERCENT.fullmatch(latex):
        inner = read(percent[1].rpartition("=")[2])
        return None if inner is None else convert_to_pct(inner)
    if holds_words(latex) and not _is_text(latex):
        latex = latex.rpartition("=")[2]
        if holds_words(latex):
            return None
    try:
        normalised = normalize_latex(latex, config=_NORMALISATION)
        *chain, last = _sides(normalised)
    except (MemoryError, RecursionError):
        raise
    except Exception:  # whatever a normalisation of any text may raise
        return None
    for text in (normalised, last) if len(chain) > 1 else (normalised,):
        try:
            is_real = not grader.should_treat_as_complex(text)
            return _canonical(latex2sympy(text, is_real=is_real, convert_degrees=False, normalization_config=None))
        except (MemoryError, RecursionError):
            raise
        except Exception:  # and a parser
            continue
    return _read_in_parts(latex)


def _read_in_parts(latex: str) -> Any | None:
    """What latex2sympy reads only one by one: several answers, plus and minus, relations that are joined or chained."""
    for sign, combine in ((_OR, Union), (_AND, Intersection)):
        if len(parts := sign.split(latex)) > 1:
            relations = [read(part) for part in parts]
            letters = {letter for part in relations for letter in getattr(part, "free_symbols", ())}
            if len(letters) <= 1:
                return _together(combine, list(map(_as_set, relations)))
            return _together(_set_of, relations) if combine is Intersection else None
    if len(parts := _split(latex)) > 1:
        return _together(_set_of, [read(part) for part in parts])
    if r"\pm" in latex:
        signs = (("+", "-"), ("-", "+"))
        return _together(_set_of, [read(latex.replace(r"\pm", a).replace(r"\mp", b)) for a, b in signs])
    first, *rest = _ORDER.split(latex)
    if len(rest) > 2 and len(set(rest[::2])) == 1:
        sides = [read(first), *map(read, rest[1::2])]
        pairs = pairwise(sides if rest[0] in ("<", r"\leq", r"\le") else sides[::-1])
        relation = Lt if rest[0] in "<>" else Le
        return None if None in sides else _canonical(And(*(relation(one, other) for one, other in pairs)))
    return None


def _together(combine: Callable[..., Any], parts: Sequence[Any | None]) -> Any | None:
    if any(part is None for part in parts):
        return None
    try:
        return combine(*parts)
    except (TypeError, ValueError, NotImplementedError):
        return None


def _set_of(*values: Any) -> Any:
    """Values as one set; equations that all have the same letter on the left give their right sides."""
    letters = {value.lhs for value in values if isinstance(value, Eq)}
    if len(letters) == 1:
        values = tuple(value.rhs if isinstance(value, Eq) else value for value in values)
    return FiniteSet(*(item for value in values for item in (value if isinstance(value, FiniteSet) else (value,))))


def _as_set(relation: Any | None) -> Any | None:
    if relation is None or isinstance(relation, Set):
        return relation
    try:
        return relation.as_set()
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None


def _split(latex: str) -> list[str]:
    """A text at its commas and semicolons outside brackets."""
    parts, depth = [""], 0
    for character in latex:
        depth += (character in "([{") - (character in ")]}")
        if character in ",;" and depth <= 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part for part in map(str.strip, parts) if part]


def _is_text(latex: str) -> bool:
    return "\\text" in latex or "\\mathrm" in latex


def _sides(latex: str) -> list[str]:
    """The sides of a chain of equations; one that holds several equations is not split."""
    return [latex] if "," in latex or ";" in latex else equation_split_regex.split(latex)


def _canonical(expression: Any) -> Any:
    if isinstance(expression, And) and all(isinstance(part, Lt | Le | Gt | Ge) for part in expression.args):
        relations = (part.reversed if isinstance(part, Gt | Ge) else part for part in expression.args)
        expression = And(*sorted(relations, key=str))  # math-verify compares them one by one
    if isinstance(expression, (Basic, MatrixBase)) and expression.has(EulerGamma):
        return expression.subs(EulerGamma, Symbol("gamma", real=True))
    return expression


def _is_equal(gold: Any, own: Any) -> bool:
    """math-verify's comparison; what it cannot compare is not equal.

    Raises:
        MemoryError: It takes too much.
        RecursionError: It is nested too deeply.
    """
    if gold is None:
        return False
    try:
        return bool(verify(gold, own, timeout_seconds=None, raise_on_error=True, allow_set_relation_comp=True))
    except (MemoryError, RecursionError):
        raise
    except Exception:
        return False


# -- what replaces parts of math-verify and latex2sympy ---------------------------------------------------------------


def mend_math_verify() -> None:
    """Have math-verify compare numbers as below, and latex2sympy read a text whole; for this process."""
    grader.sympy_numeric_eq = numbers_are_equal
    if getattr(_Latex2Sympy.create_parser, "is_ours", False):
        return
    create = _Latex2Sympy.create_parser

    def create_parser(self: Any, latex: str) -> Any:
        parser = create(self, latex)
        parse_math = parser.math

        def parse_whole() -> Any:
            tree = parse_math()
            if parser.getTokenStream().LA(1) != _END:
                raise ValueError("a part of it was not read")
            return tree

        parser.math = parse_whole
        return parser

    create_parser.is_ours = True  # type: ignore[attr-defined]
    _Latex2Sympy.create_parser = create_parser


_END = -1


def numbers_are_equal(one: Any, other: Any, *_: Any) -> bool:
    """Whether two numbers, or two matrices, are equal; False if one is neither.

    Whole numbers and fractions are equal exactly, other constants to 50 digits. A decimal is equal to a number whose
    digits it gives: to one unit in its last place, and a hundred-thousandth of the number at most.
    """
    for a, b in ((one, other), (other, one)):
        percent = grader.get_pct_val(a)
        if percent is not None and grader.get_pct_val(b) is None and numbers_are_equal(percent, b):
            return True
    one, other = grader.safe_sympy_doit(one), grader.safe_sympy_doit(other)
    if isinstance(one, MatrixBase) and isinstance(other, MatrixBase):
        return one.shape == other.shape and all(map(_entries_are_equal, one.flat(), other.flat()))
    if not (getattr(one, "is_number", False) and getattr(other, "is_number", False)):
        return False
    if (isinstance(one, Rational) and isinstance(other, Rational)) or not (one.is_finite and other.is_finite):
        return bool(one == other)
    decimals = [number for number in (one, other) if number.has(Float)]
    if not decimals:
        return _differ_by(one, other, digits=EXACT_DIGITS) <= 10.0 ** (10 - EXACT_DIGITS)
    difference = _differ_by(one, other, digits=30)
    return difference <= 1e-12 or (difference <= MAX_RELATIVE_ERROR and _gives_the_digits_of(one, other))


def _entries_are_equal(one: Any, other: Any) -> bool:
    return bool(one == other) or numbers_are_equal(one, other) or grader.sympy_symbolic_eq(one, other)


def _differ_by(one: Any, other: Any, *, digits: int) -> float:
    """The difference of two constants, relative to the larger."""
    a, b = one.evalf(digits), other.evalf(digits)
    size = max(abs(a), abs(b))
    return float(abs(a - b) / size) if size else 0.0


def _gives_the_digits_of(one: Any, other: Any) -> bool:
    """Whether a decimal rounds a number whose digits never end, or a decimal with more digits."""
    a, b = (_decimal(number) if isinstance(number, Float) else None for number in (one, other))
    if a is not None and b is not None:
        shorter, longer = sorted((a, b), key=_num_decimals)
        places = _num_decimals(shorter)
        is_rounded = 0 < places < _num_decimals(longer) and len(shorter.as_tuple().digits) >= MIN_DIGITS
        return is_rounded and abs(shorter - longer) < Decimal(1).scaleb(-places)
    decimal, exact = (a, other) if a is not None else (b, one)
    if decimal is None or _ends(exact):
        return False
    unit = 10.0 ** -_num_decimals(decimal)
    return math.isclose(float(decimal), float(exact), rel_tol=0, abs_tol=unit) and _num_decimals(decimal) > 0


def _ends(exact: Any) -> bool:
    """Whether a number's decimals end."""
    if not isinstance(exact, Rational):
        return False
    rest = int(exact.q)
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest == 1


def _decimal(number: Any) -> Decimal:
    return Decimal(str(number)).normalize()


def _num_decimals(number: Decimal) -> int:
    return max(0, -int(number.as_tuple().exponent))
