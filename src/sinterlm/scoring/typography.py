"""Typography: one table that folds several ways to write one thing into one.

Minus signs and hyphens, quotation marks and apostrophes, characters without width, digits of other scripts, full-width
forms, fractions and superscripts: a text says the same with each. Exact match and mathematics compare folded texts.
"""

from __future__ import annotations

import re
import unicodedata

_SAME = {
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u2212\u02d7\ufe58\ufe63\uff0d\u2796",
    "'": "\u2018\u2019\u201a\u201b\u2032\u02b9\u02bc\u00b4\uff07\ua78c",
    '"': "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u301d\u301e\u301f\uff02",
    "/": "\u2044\u2215\uff0f",
    "*": "\u2217\u204e\u2731",
    ":": "\u2236\ua789",
    ".": "\u066b",
    ",": "\u066c",
    # Without width: joiners, marks of direction, soft hyphens, byte order marks, variation selectors, tatweel.
    "": "\u00ad\u034f\u061c\u0640\u180e\u200b\u200c\u200d\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufe0e\ufe0f\ufeff"
    "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069",
}
_FOLDED = {ord(character): folded for folded, characters in _SAME.items() for character in characters}
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ", "0123456789+-()ni")
_SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_FRACTION = re.compile("(\\d?)\\s?([\u00bc-\u00be\u2150-\u215e\u2189])")
_GROUPING_SPACE = re.compile("(?<=\\d)[\u00a0\u2007\u2009\u202f](?=\\d{3}(?!\\d))")


def fold(text: str) -> str:
    """Write a text with one character for each meaning; letter case and punctuation stay.

    >>> fold("\u22125 and 3½ and \uff11\u0662 and 10⁵ and it\u2019s")
    "-5 and 3 1/2 and 12 and 10^5 and it's"
    """
    if text.isascii():
        return text
    text = _GROUPING_SPACE.sub("", text)
    text = _FRACTION.sub(_spelt_fraction, text)
    text = _SUPERSCRIPT.sub(_spelt_superscript, text)
    text = unicodedata.normalize("NFKC", text.translate(_FOLDED)).translate(_FOLDED)
    return "".join(map(_ascii_digit, text))


def _spelt_fraction(found: re.Match[str]) -> str:
    whole, fraction = found.groups()
    return f"{whole} " * bool(whole) + unicodedata.normalize("NFKC", fraction).replace("\u2044", "/")


def _spelt_superscript(found: re.Match[str]) -> str:
    power = found[0].translate(_SUPERSCRIPTS)
    return f"^{power}" if len(power) == 1 or power.isdigit() else f"^({power})"


def _ascii_digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if not character.isascii() and character.isdecimal() else character
