"""Figures as the report page writes them; the page's template has these functions as filters."""

from __future__ import annotations

from sinterlm.evaluation.rates import Difference, Rate
from sinterlm.report.data import Unit

__all__ = ["duration", "figure", "interval", "memory", "money", "signed", "signed_length"]


def figure(value: float, unit: Unit = "rate") -> str:
    """A rate in per cent, or a score, as text.

    >>> figure(0.5733), figure(0.5733, "score")
    ('57.3', '0.573')
    """
    return _minus(f"{100 * value:z.1f}" if unit == "rate" else f"{value:z.3f}")


def signed(value: float, unit: Unit = "rate") -> str:
    """A difference with its sign, as text.

    >>> signed(0.0933)
    '+9.3'
    """
    return _minus(f"{100 * value:+z.1f}" if unit == "rate" else f"{value:+z.3f}")


def signed_length(characters: float) -> str:
    """A difference of lengths in characters with its sign, as text.

    >>> signed_length(1234.56), signed_length(-0.04)
    ('+1,234.6', '+0.0')
    """
    return _minus(f"{characters:+z,.1f}")


def interval(figures: Rate | Difference, unit: Unit = "rate") -> str:
    """The ends of an interval.

    >>> interval(Rate(0.5733, 0.4933, 0.65, 150))
    '49.3 to 65.0'
    """
    return f"{figure(figures.low, unit)} to {figure(figures.high, unit)}"


def duration(seconds: float) -> str:
    """Seconds as text.

    >>> duration(4.21), duration(462), duration(7260)
    ('4.2 s', '7 min 42 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(num_bytes: int) -> str:
    """Bytes as text.

    >>> memory(5_120_000_000)
    '5.1 GB'
    """
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.0f} MB"


def money(amount: float) -> str:
    """An amount of money as text, in the currency of the recipe's prices.

    >>> money(0), money(1234.5), money(0.004321)
    ('0', '1,234.50', '0.0043')
    """
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}"


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")
