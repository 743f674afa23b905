"""What a run has spent, on which model in which stage; what failed, and what was noticed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sinterlm.pipeline.fusion import Fusion
from sinterlm.report.data import Cost, FailedKind, Ledger, Noticed
from sinterlm.sampling.settings import EngineSettings
from sinterlm.scoring.settings import ScorerSettings
from sinterlm.store import Store


def read_ledger(fusion: Fusion, store: Store) -> Ledger:
    """The run's ledger, in the order of its models and stages."""
    settings = _settings_by_model(fusion)
    failed = [FailedKind(*kind) for kind in store.count_failures(fusion.run_name)]
    num_failed: Counter[tuple[str, str]] = Counter()
    for kind in failed:
        num_failed[kind.stage, kind.model] += kind.number
    costs = []
    for stage, model, usage, items, money, seconds in store.ledger(fusion.run_name):
        is_known = money > 0 or model not in settings or settings[model].money(usage) is not None
        number = num_failed.pop((stage, model), 0)
        costs.append(Cost(stage, model, usage, items, money if is_known else None, seconds, number))
    order = {model: place for place, model in enumerate(settings)}
    costs.sort(key=lambda cost: order.get(cost.model, len(order)))
    return Ledger(costs, failed, [Noticed(*note) for note in store.notes(fusion.run_name)])


def _settings_by_model(fusion: Fusion) -> dict[str, EngineSettings | ScorerSettings]:
    """What the recipe says of every model, by its name in the ledger."""
    scorers = [part for scorer in fusion.recipe.scorers.values() for part in scorer.walk()]
    return {
        **{participant.name: participant.config for participant in fusion.participants},
        **{scorer.title: scorer for scorer in scorers},
    }


def describe_cost(cost: Cost) -> dict[str, Any]:
    """A cost as ``summary.json``, ``status`` and ``compare`` write it."""
    named = {"stage": cost.stage, "model": cost.model}
    return {
        **{key: name for key, name in named.items() if name},
        "answers": cost.items,
        **cost.usage._asdict(),
        "money": cost.money,
        "seconds": round(cost.seconds, 3),
        "failed": cost.num_failed,
    }


def describe_ledger(ledger: Ledger) -> Mapping[str, Any]:
    """What was spent as ``summary.json``, ``status`` and ``compare`` write it: the sum, and each model by stage."""
    return {"total": describe_cost(ledger.total), "models": list(map(describe_cost, ledger.costs))}


def describe_failed(ledger: Ledger) -> list[dict[str, Any]]:
    """Failed requests by kind, with one example each."""
    return [
        {
            "stage": kind.stage,
            "model": kind.model,
            "kind": kind.kind,
            "number": kind.number,
            "example": {
                "prompt_id": kind.example.prompt_id,
                "index": kind.example.index,
                "detail": kind.example.detail,
            },
        }
        for kind in ledger.failed
    ]
