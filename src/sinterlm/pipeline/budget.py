"""What a run may still spend. Not part of any stage's key: a larger budget redoes nothing."""

from __future__ import annotations

from collections.abc import Iterable
from threading import Lock

from sinterlm.errors import BudgetError
from sinterlm.recipe.schema import Budget as Limits
from sinterlm.records import Spent

SECONDS_PER_HOUR = 3600


class Budget:
    """Compares a run's ledger with the recipe's ``budget``, in a running total. Any thread may call it.

    Args:
        limits: What the recipe allows.
        spent: The run's ledger so far, that of earlier commands included.
    """

    def __init__(self, limits: Limits | None = None, spent: Iterable[Spent] = ()) -> None:
        self._limits: dict[str, float] = {name: limit for name, limit in limits or () if limit is not None}
        self._spent = dict.fromkeys(Limits.model_fields, 0.0)
        self._lock = Lock()
        for line in spent:
            self.add(line)

    def add(self, spent: Spent) -> None:
        """Count what was just written to the ledger."""
        with self._lock:
            self._spent["money"] += spent.money
            self._spent["tokens"] += spent.usage.prompt_tokens + spent.usage.new_tokens
            self._spent["hours"] += spent.seconds / SECONDS_PER_HOUR

    def reached(self) -> BudgetError | None:
        """The error with which work stops; None if there is something left of every limit."""
        with self._lock:
            spent = dict(self._spent)
        for name, limit in self._limits.items():
            if spent[name] >= limit:
                used = ", ".join(
                    f"{other} {_show(spent[other])} of {_show(most)}" for other, most in self._limits.items()
                )
                return BudgetError(
                    f"the budget is reached ({used}); what was answered is kept, and the same command resumes with a "
                    f"larger budget.{name}"
                )
        return None


def _show(amount: float) -> str:
    """An amount without needless digits."""
    return f"{amount:,.0f}" if amount >= 100 or amount == int(amount) else f"{amount:.3g}"
