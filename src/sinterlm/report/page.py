"""Puts the report page together: counts, charts and prompts into ``page.html.j2``, its style and its script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sinterlm.evaluation.rates import METRICS, Comparison, Rate
from sinterlm.report import charts, numbers
from sinterlm.report.data import AverageLogps, HeldOut, ReportData, TrainingRun, unit_of
from sinterlm.report.prompt_browser import PromptBrowser, PromptSample, describe_prompt
from sinterlm.report.tallies import (
    count_drops,
    count_outcomes,
    count_source_shares,
    featured_model,
    kind_of,
    tally_scores,
    tally_selections,
)
from sinterlm.selection.tally import WeightTally

MAX_DOMAINS = 60
"""The most rows of the table by domain: the largest domains."""
MAX_NOTES = 200
"""The most notes about models of a run: the first ones."""

_NO_PROMPTS = PromptSample(Markup("[]"), num_shown=0, num_prompts=0)
_NUMBERS_BYTES = 200
"""Room for the counts that the page states once its prompts are known."""


def render_page(data: ReportData, *, max_bytes: int, seed: int) -> bytes:
    """The whole page as HTML in UTF-8 (see :func:`sinterlm.report.write_report`)."""
    template = _environment().get_template("page.html.j2")
    browser = PromptBrowser(sum(map(len, data.parts.values())), max_bytes=max_bytes, seed=seed)
    context = _context(data, browser)

    def render(prompts: PromptSample) -> bytes:
        return template.render(context, prompts=prompts).encode(errors="replace")  # answers may hold lone surrogates

    room = max_bytes - len(render(_NO_PROMPTS)) - _NUMBERS_BYTES
    return render(browser.sample(data, max_bytes=room))


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("sinterlm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{name: getattr(numbers, name) for name in numbers.__all__},
        "words": charts.words,
        "unit": unit_of,
        "kind": kind_of,
        "by_model": _group_by_model,
    }
    return environment


def _context(data: ReportData, browser: PromptBrowser) -> dict[str, Any]:
    script = _package_text("page.js")
    held_out = data.held_out if data.held_out and data.held_out.figures.models else None
    units = {unit_of(metric) for metric in held_out.figures.metrics} if held_out else set()
    tallies = tally_scores(browser.watch(data.parts))
    drops = count_drops(data.dropped)
    selections = tally_selections(data.rows, drops)
    shares = count_source_shares(selections, data.run.sources)
    weighted = {name: selection.weights for name, selection in selections.items() if selection.weights}
    scored_roles = any(role.mean_score is not None for tally in selections.values() for role in tally.roles)
    training = [run for run in data.training if charts.curve(run, "loss")[0]]
    preference = [run for run in training if charts.reward_metrics(run)]
    logps = [distribution for distribution in data.average_logps if distribution.values]
    is_graded = any(tally.num_passed is None for tally in tallies)
    charted = [tally for tally in tallies if tally.scores]
    return {
        "run": data.run,
        "methods": data.run.methods,
        "runs": data.compared or [data.run],
        "is_comparison": bool(data.compared),
        "notes": data.notes,
        "case": data.case and describe_prompt(data, data.case),
        "held_out": held_out,
        "headline": _headline(held_out) if held_out else None,
        "domains": _domains(held_out) if held_out else [],
        "max_domains": MAX_DOMAINS,
        "max_notes": MAX_NOTES,
        "is_mixed": len(units) > 1,
        "shares": shares,
        "selections": selections,
        "outcomes": count_outcomes(selections),
        "tallies": tallies,
        "is_graded": is_graded,
        "logps": _logps_table(logps),
        "training": [_training_summary(run) for run in training],
        "searches": data.searches,
        "preference": preference,
        "reward_accuracies": data.reward_accuracies,
        "rankings": charts.RANKINGS,
        "drops": drops,
        "drop_explanations": data.drop_explanations,
        "charts": {
            "held_out": held_out and charts.held_out_chart(held_out),
            "comparisons": held_out and held_out.figures.comparisons and charts.comparisons_chart(held_out),
            "shares": shares and charts.share_chart(_share_panels(shares), name="source-share", label="share of y_ws"),
            "role_scores": scored_roles and charts.role_score_chart(selections),
            "margins": any(tally.margins for tally in selections.values()) and charts.margin_chart(selections),
            "weights": weighted
            and charts.share_chart(_weight_panels(weighted), name="weights", label="share of the weight"),
            "scores": charted and (charts.score_chart if is_graded else charts.pass_rate_chart)(charted),
            "logps": logps and charts.average_logps_chart(logps),
            "rewards": preference and charts.rewards_chart(preference),
            "loss": training and charts.loss_chart(training),
            "reward_accuracy": data.reward_accuracies and charts.reward_accuracy_chart(data.reward_accuracies),
        },
        "style": Markup(_package_text("page.css")),
        "script": Markup(script),
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    }


def _share_panels(shares: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    return {
        f"{name}, {total:,} answers": {source: count / total for source, count in counts.items()}
        for name, counts in shares.items()
        for total in [sum(counts.values())]
    }


def _weight_panels(weighted: Mapping[str, WeightTally]) -> dict[str, Mapping[str, float]]:
    return {f"{name}, entropy {weights.mean_entropy:.2f}": weights.sources for name, weights in weighted.items()}


def _group_by_model(answers: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, list[Mapping[str, Any]]]]:
    """Group the answers of ``describe_prompt`` by model, in order of appearance."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for answer in answers:
        groups.setdefault(answer["model"], []).append(answer)
    return groups.items()


def _package_text(name: str) -> str:
    return resources.files("sinterlm.report").joinpath(name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class _Headline:
    """The main result in a sentence: the featured fused model against the target before fusion and the best source."""

    metric: str
    model: str
    others: Sequence[tuple[str, Comparison | None]]
    is_partly_format: bool
    """The target holds the answer far more often than it gives it in the wanted form."""


def _headline(held_out: HeldOut) -> _Headline | None:
    featured = featured_model(held_out)
    if not featured:
        return None
    metric = held_out.main_metric
    rates = {model: figures[metric] for model, figures in held_out.figures.models.items() if metric in figures}
    if featured not in rates:
        return None
    sources = [model for model in rates if kind_of(model) == "source"]
    best_source = max(sources, key=lambda source: rates[source].value, default="")
    comparisons = {c.other: c for c in held_out.figures.comparisons if c.metric == metric and c.model == featured}
    return _Headline(
        metric,
        featured,
        [(other, comparisons.get(other)) for other in ("target", best_source) if other in rates],
        is_partly_format=_is_partly_format(held_out.figures.models.get("target", {})),
    )


def _is_partly_format(target: Mapping[str, Rate]) -> bool:
    return {"exact_match", "contains"} <= target.keys() and target["contains"].low > target["exact_match"].high


@dataclass(frozen=True, slots=True)
class _Domain:
    """One row of the table by domain: a cell per model, None if it has no figure."""

    name: str
    metric: str
    """The domain's main metric: a scorer may pass or fail answers of some domains and grade those of others."""
    n: int
    cells: Sequence[tuple[Rate, float] | None]
    """Main figure, and how strongly its cell is tinted, from 0 to 1."""


def _domains(held_out: HeldOut) -> list[_Domain]:
    """The table by domain, largest domains first."""
    by_domain: dict[str, dict[str, Mapping[str, Rate]]] = {}
    for model, domains in held_out.figures.domains.items():
        for domain, figures in domains.items():
            by_domain.setdefault(domain, {})[model] = figures
    scores = [
        figures["score"].value for models in by_domain.values() for figures in models.values() if "score" in figures
    ]
    rows = []
    for name, models in by_domain.items():
        metric = next(metric for metric in METRICS if any(metric in figures for figures in models.values()))
        row = [models.get(model, {}).get(metric) for model in held_out.figures.models]
        low, high = (0.0, 1.0) if unit_of(metric) == "rate" else (min(scores), max(scores))
        cells = [rate and (rate, (rate.value - low) / ((high - low) or 1)) for rate in row]
        rows.append(_Domain(name, metric, max(rate.n for rate in row if rate), cells))
    return sorted(rows, key=lambda row: -row.n)


def _logps_table(distributions: Sequence[AverageLogps]) -> dict[str, dict[str, float]]:
    """For each model and kind of answers, the mean of the average log-probabilities."""
    table: dict[str, dict[str, float]] = {}
    for distribution in distributions:
        means = table.setdefault(distribution.model, {})
        means[distribution.responses] = sum(distribution.values) / len(distribution.values)
    return table


def _training_summary(run: TrainingRun) -> dict[str, Any]:
    """A training run in one row: where it began and ended."""
    ends = {
        metric: curve[1]
        for metric in ("loss", "rewards/margins", "rewards/accuracies")
        for curve in [charts.curve(run, metric)]
    }
    last = run.metrics[-1]
    return {
        "name": run.name,
        "description": run.description,
        "steps": last["step"],
        "first_loss": ends["loss"][0],
        "last_loss": ends["loss"][-1],
        "last_margin": ends["rewards/margins"][-1] if ends["rewards/margins"] else None,
        "last_accuracy": ends["rewards/accuracies"][-1] if ends["rewards/accuracies"] else None,
        "num_tokens": last.get("num_tokens"),
    }
