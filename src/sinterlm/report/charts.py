"""The charts of the report page: plain data to themed SVG. Titles and captions are in the template."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinterlm.evaluation.rates import Difference, Rate
from sinterlm.evaluation.rewards import RewardAccuracies
from sinterlm.records import Role
from sinterlm.report.data import AverageLogps, HeldOut, TrainingRun, Unit, unit_of
from sinterlm.report.tallies import Kind, ScoreTally, kind_of
from sinterlm.report.theme import Colour, chart_style, inline_svg, printable
from sinterlm.selection.tally import SelectionTally, Spread

_WIDTH = 7.6
"""Inches; the page scales the chart to its column."""
_NUM_BINS = 36
_MAX_POINTS = 120
_MAX_COLUMNS = 3
"""Panels side by side."""

_SCALES: Mapping[Unit, int] = {"rate": 100, "score": 1}
"""Rates are drawn in per cent."""

_KIND_COLOURS: Mapping[Kind, Colour] = {
    "source": Colour.SOURCE,
    "target": Colour.TARGET,
    "fused": Colour.FUSED,
}

_REWARD_LINES = {
    "rewards/source_chosen": ("source's chosen answer (y_ws)", Colour.SOURCE, "-"),
    "rewards/target_chosen": ("target's chosen answer (y_wt)", Colour.TARGET, "-"),
    "rewards/chosen": ("chosen answer", Colour.FUSED, "-"),
    "rewards/rejected": ("rejected answer (y_l)", Colour.REJECTED, "--"),
    "rewards/margins": ("margin", Colour.INK, ":"),
}
"""Metric to label, colour and line style; ``rewards/chosen`` only if it is not a mix of the first two."""

_ROLE_LOOKS: Mapping[Role | None, tuple[str, Colour, str]] = {
    "chosen_source": ("source's chosen (y_ws)", Colour.SOURCE, "o"),
    "chosen_target": ("target's chosen (y_wt)", Colour.TARGET, "o"),
    "chosen": ("chosen", Colour.FUSED, "o"),
    "rejected": ("rejected", Colour.REJECTED, "X"),
    "rejected_source": ("source's rejected", Colour.SOURCE, "X"),
    None: ("without a role", Colour.MUTED, "s"),
}
"""Role to label, colour and marker."""

RANKINGS = {
    "source_chosen": "y_ws above y_l",
    "target_chosen": "y_wt above y_l",
    "chosen": "chosen, as mixed in training, above y_l",
}
"""Fields of ``RewardAccuracies`` in words."""


def held_out_chart(held_out: HeldOut) -> Markup:
    """Every model's held-out figures with their intervals: those in the main metric's unit."""
    metrics = [metric for metric in held_out.figures.metrics if unit_of(metric) == held_out.unit]
    shown = {
        model: {key: rates[key] for key in metrics if key in rates} for model, rates in held_out.figures.models.items()
    }
    shown = {model: rates for model, rates in shown.items() if rates}
    is_rate = held_out.unit == "rate"
    scale = _SCALES[held_out.unit]
    with chart_style():
        figure = Figure((_WIDTH, 1.0 + 0.36 * len(shown)), layout="constrained")
        axes = figure.subplots()
        for row, (model, rates) in enumerate(shown.items()):
            for metric, rate in rates.items():
                _draw_interval(
                    axes,
                    row + _offset(metrics.index(metric), len(metrics)),
                    rate,
                    _KIND_COLOURS[kind_of(model)],
                    scale=scale,
                    filled=metric == metrics[0],
                )
        _label_rows(axes, list(shown))
        axes.set_xlabel("questions answered (%)" if is_rate else "mean score")
        if is_rate:
            axes.set_xlim(-1, 101)
        if len(metrics) > 1:
            for metric in metrics:
                face = Colour.MUTED if metric == metrics[0] else Colour.PAPER
                axes.plot([], [], "o", color=Colour.MUTED, markerfacecolor=face, label=words(metric))
            _legend_above(axes)
        return _to_svg(
            figure,
            "held-out",
            "Dot plot with 95 % intervals",
            (
                f"{model}: " + ", ".join(f"{words(metric)} {scale * rate.value:.4g}" for metric, rate in rates.items())
                for model, rates in shown.items()
            ),
        )


def comparisons_chart(held_out: HeldOut) -> Markup:
    """Paired differences of each fused model against the target and every source, one panel per metric."""
    metrics = list(dict.fromkeys(comparison.metric for comparison in held_out.figures.comparisons))
    pairs = list(dict.fromkeys((comparison.model, comparison.other) for comparison in held_out.figures.comparisons))
    units = [unit_of(metric) for metric in metrics]
    with chart_style():
        figure = Figure((_WIDTH, 0.9 + 0.27 * len(pairs)), layout="constrained")
        panels = figure.subplots(1, len(metrics), sharex=len(set(units)) == 1, sharey=True, squeeze=False)[0]
        for axes, metric in zip(panels, metrics, strict=True):
            axes.axvline(0, color=Colour.MUTED, linewidth=1)
            axes.set_title(words(metric))
            is_rate = unit_of(metric) == "rate"
            axes.set_xlabel("difference (percentage points)" if is_rate else "difference in mean score")
        for comparison in held_out.figures.comparisons:
            _draw_interval(
                panels[metrics.index(comparison.metric)],
                pairs.index((comparison.model, comparison.other)),
                comparison.difference,
                Colour.FUSED,
                scale=_SCALES[unit_of(comparison.metric)],
                filled=comparison.excludes_zero,
            )
        _label_rows(panels[0], [f"{printable(model, 28)} minus {printable(other, 28)}" for model, other in pairs])
        return _to_svg(
            figure,
            "comparisons",
            "Forest plot of paired differences with 95 % intervals",
            (
                f"{comparison.model} minus {comparison.other}, {words(comparison.metric)}: "
                f"{_SCALES[unit_of(comparison.metric)] * comparison.difference.value:+.3g}"
                for comparison in held_out.figures.comparisons
            ),
        )


def share_chart(shares: Mapping[str, Mapping[str, float]], *, name: str, label: str) -> Markup:
    """Share of each source, one panel per set of training rows.

    Args:
        shares: For each panel's title, the share of each source, in [0, 1].
        name: The chart's name, unique in the page.
        label: What the shares are of.
    """
    sources = list(dict.fromkeys(itertools.chain.from_iterable(shares.values())))
    num_columns = min(len(shares), _MAX_COLUMNS)
    num_rows = -(-len(shares) // num_columns)
    with chart_style():
        figure = Figure((_WIDTH, num_rows * (0.9 + 0.3 * len(sources))), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        for axes, panel in itertools.zip_longest(panels.flat, shares.items()):
            if panel is None:
                axes.set_axis_off()
                continue
            title, by_source = panel
            percent = [100 * by_source.get(source, 0) for source in sources]
            bars = axes.barh(range(len(sources)), percent, height=0.6, color=Colour.SOURCE)
            axes.bar_label(bars, fmt="%.1f %%", padding=4)
            axes.set_title(printable(title))
        axes = panels[0, 0]
        axes.set_xlim(0, 122)
        axes.set_xticks(range(0, 101, 25))
        _label_rows(axes, sources)
        figure.supxlabel(f"{label} (%)", fontsize=9, color=Colour.MUTED)
        return _to_svg(
            figure,
            name,
            f"Bar chart of {label}",
            (
                f"{title}: " + ", ".join(f"{source} {100 * share:.1f} %" for source, share in by_source.items())
                for title, by_source in shares.items()
            ),
        )


def role_score_chart(selections: Mapping[str, SelectionTally]) -> Markup:
    """Mean external score of the answers of each role, one row per set of training rows."""
    scored = {
        name: {tally.role: tally.mean_score for tally in selection.roles if tally.mean_score is not None}
        for name, selection in selections.items()
    }
    with chart_style():
        figure = Figure((_WIDTH, 1.0 + 0.34 * len(scored)), layout="constrained")
        axes = figure.subplots()
        for row, means in enumerate(scored.values()):
            if means:
                axes.plot([min(means.values()), max(means.values())], [row, row], color=Colour.MUTED, linewidth=1)
            for role, mean in means.items():
                _, colour, marker = _ROLE_LOOKS[role]
                axes.plot(mean, row, marker, color=colour, markersize=6.5)
        _label_rows(axes, list(scored))
        axes.set_xlabel("mean score")
        for role in (role for role in _ROLE_LOOKS if any(role in means for means in scored.values())):
            label, colour, marker = _ROLE_LOOKS[role]
            axes.plot([], [], marker, color=colour, label=label)
        _legend_above(axes)
        return _to_svg(
            figure,
            "role-scores",
            "Dot plot of mean scores",
            (
                f"{name}: " + ", ".join(f"{_ROLE_LOOKS[role][0]} {mean:.3g}" for role, mean in means.items())
                for name, means in scored.items()
            ),
        )


def margin_chart(selections: Mapping[str, SelectionTally]) -> Markup:
    """How far apart the pairs of each set of training rows are, by score and by length."""
    pairs = [(name, margin) for name, selection in selections.items() for margin in selection.margins]
    has_scores = any(margin.score for _, margin in pairs)
    with chart_style():
        figure = Figure((_WIDTH, 1.0 + 0.3 * len(pairs)), layout="constrained")
        panels = figure.subplots(1, 1 + has_scores, sharey=True, squeeze=False)[0]
        for axes in panels:
            axes.axvline(0, color=Colour.MUTED, linewidth=1)
        for row, (_, margin) in enumerate(pairs):
            if margin.score:
                _draw_spread(panels[0], row, margin.score)
            _draw_spread(panels[-1], row, margin.characters)
        if has_scores:
            panels[0].set_xlabel("score margin")
        panels[-1].set_xlabel("length margin (characters)")
        _label_rows(panels[0], [f"{name}: {margin.chosen} minus {margin.rejected}" for name, margin in pairs])
        return _to_svg(
            figure,
            "margins",
            "Medians with the range of the middle four fifths",
            (
                f"{name}, {margin.chosen} minus {margin.rejected}: "
                + (f"score {margin.score.median:.3g}, " if margin.score else "")
                + f"length {margin.characters.median:.3g}"
                for name, margin in pairs
            ),
        )


def pass_rate_chart(tallies: Sequence[ScoreTally]) -> Markup:
    """Every model's share of training answers that pass, and of prompts with a passing answer."""
    with chart_style():
        figure = Figure((_WIDTH, 1.0 + 0.34 * len(tallies)), layout="constrained")
        axes = figure.subplots()
        for row, tally in enumerate(tallies):
            answers = 100 * (tally.num_passed or 0) / tally.num_answers
            prompts = 100 * tally.num_prompts_passed / tally.num_prompts
            colour = _KIND_COLOURS[kind_of(tally.model)]
            axes.barh(row, answers, height=0.5, color=colour)
            axes.plot([answers, prompts], [row, row], color=colour, linewidth=1, zorder=1.5)
            axes.plot(prompts, row, "D", color=colour, markersize=5.5, markerfacecolor=Colour.PAPER)
        _label_rows(axes, [tally.model for tally in tallies])
        axes.set_xlim(0, 101)
        axes.set_xlabel("share (%)")
        axes.plot([], [], "s", color=Colour.MUTED, label="answers that pass")
        axes.plot([], [], "D", color=Colour.MUTED, markerfacecolor=Colour.PAPER, label="prompts with a passing answer")
        _legend_above(axes)
        return _to_svg(
            figure,
            "scores",
            "Bar chart of pass rates",
            (f"{tally.model}: {tally.num_passed} of {tally.num_answers} answers" for tally in tallies),
        )


def score_chart(tallies: Sequence[ScoreTally]) -> Markup:
    """Distributions of graded scores, one row per model."""
    edges = _bin_edges(np.concatenate([tally.scores for tally in tallies]))
    with chart_style():
        figure = Figure((_WIDTH, 0.7 + 0.75 * len(tallies)), layout="constrained")
        rows = figure.subplots(len(tallies), 1, sharex=True, squeeze=False)[:, 0]
        for axes, tally in zip(rows, tallies, strict=True):
            colour = _KIND_COLOURS[kind_of(tally.model)]
            _draw_histogram(axes, tally.scores, edges, colour)
            axes.axvline(tally.mean, color=colour)
            axes.set_title(printable(tally.model))
        rows[-1].set_xlabel("score")
        figure.supylabel("share of answers (%)", fontsize=9, color=Colour.MUTED)
        return _to_svg(figure, "scores", "Histograms", (f"{tally.model}: mean {tally.mean:.3g}" for tally in tallies))


def average_logps_chart(distributions: Sequence[AverageLogps]) -> Markup:
    """Average log-probabilities of y_ws and the target's own answers through training (figure 1, arXiv 2412.03187)."""
    models = list(dict.fromkeys(distribution.model for distribution in distributions))
    everything = np.concatenate([distribution.values for distribution in distributions])
    low = float(np.quantile(everything, 0.01))
    edges = _bin_edges(everything.clip(min=low))
    looks = {
        "chosen_source": ("sources' preferred answers (y_ws)", Colour.SOURCE, "-"),
        "target": ("the target's own answers", Colour.TARGET, "--"),
    }
    with chart_style():
        figure = Figure((_WIDTH, 0.9 + 0.95 * len(models)), layout="constrained")
        rows = figure.subplots(len(models), 1, sharex=True, squeeze=False)[:, 0]
        for axes, model in zip(rows, models, strict=True):
            for distribution in distributions:
                if distribution.model == model:
                    label, colour, style = looks[distribution.responses]
                    clipped = [max(value, low) for value in distribution.values]
                    _draw_histogram(axes, clipped, edges, colour, label=label, linestyle=style)
                    axes.axvline(statistics.median(distribution.values), color=colour, linestyle=style)
            axes.set_title(printable(model))
        _share_legend(figure, rows)
        rows[-1].set_xlabel("average log-probability per token (nats)")
        figure.supylabel("share of answers (%)", fontsize=9, color=Colour.MUTED)
        return _to_svg(
            figure,
            "average-logps",
            "Histograms",
            (
                f"{distribution.model}, {looks[distribution.responses][0]}: "
                f"median {statistics.median(distribution.values):.2f}"
                for distribution in distributions
            ),
        )


def rewards_chart(runs: Sequence[TrainingRun]) -> Markup:
    """Internal rewards and margin over optimizer steps, with WRPO's alpha below (figure 3, arXiv 2412.03187)."""
    num_columns = min(len(runs), _MAX_COLUMNS)
    lines: list[tuple[bool, Sequence[TrainingRun]]] = []
    for start in range(0, len(runs), num_columns):
        line = runs[start : start + num_columns]
        lines.append((False, line))
        if any(curve(run, "alpha")[0] for run in line):
            lines.append((True, line))
    heights = [0.28 if is_alpha else 1 for is_alpha, _ in lines]
    with chart_style():
        figure = Figure((_WIDTH, 3.2 * sum(heights)), layout="constrained")
        grid = figure.subplots(len(lines), num_columns, squeeze=False, height_ratios=heights)
        for places, (is_alpha, line) in zip(grid, lines, strict=True):
            for axes, run in itertools.zip_longest(places, line):
                if run is None or (is_alpha and not curve(run, "alpha")[0]):
                    axes.set_axis_off()
                elif is_alpha:
                    axes.plot(*curve(run, "alpha"), color=Colour.MUTED)
                    axes.set_ylabel("alpha")
                    axes.set_xlabel("optimizer step")
                else:
                    _draw_rewards(axes, run)
        panels = [axes for places, (is_alpha, _) in zip(grid, lines, strict=True) if not is_alpha for axes in places]
        for axes in panels[1 : len(runs)]:
            axes.sharey(panels[0])
        panels[0].set_ylabel("internal reward")
        _share_legend(figure, panels)
        return _to_svg(
            figure,
            "rewards",
            "Lines over optimizer steps, with their last values",
            (
                f"{run.name}: "
                + ", ".join(f"{_REWARD_LINES[m][0]} {curve(run, m)[1][-1]:.3g}" for m in reward_metrics(run))
                for run in runs
            ),
        )


def loss_chart(runs: Sequence[TrainingRun]) -> Markup:
    """Training loss over optimizer steps, one panel per run."""
    num_columns = min(len(runs), _MAX_COLUMNS)
    num_rows = -(-len(runs) // num_columns)
    with chart_style():
        figure = Figure((_WIDTH, 0.4 + 2.0 * num_rows), layout="constrained")
        panels = figure.subplots(num_rows, num_columns, squeeze=False).ravel()
        for axes, run in itertools.zip_longest(panels, runs):
            if run is None:
                axes.set_axis_off()
                continue
            axes.plot(*curve(run, "loss"), color=Colour.INK)
            axes.set_title(printable(run.name))
            axes.set_xlabel("optimizer step")
        panels[0].set_ylabel("loss (nats)")
        return _to_svg(
            figure,
            "loss",
            "Lines over optimizer steps",
            (
                f"{run.name} from {losses[0]:.3g} to {losses[-1]:.3g}"
                for run in runs
                for _, losses in [curve(run, "loss")]
            ),
        )


def reward_accuracy_chart(accuracies: Mapping[str, RewardAccuracies]) -> Markup:
    """Held-out accuracy of each preference model's internal reward."""
    colours = {"source_chosen": Colour.SOURCE, "target_chosen": Colour.TARGET, "chosen": Colour.INK}
    with chart_style():
        figure = Figure((_WIDTH, 1.0 + 0.6 * len(accuracies)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(50, color=Colour.MUTED, linewidth=1, linestyle="--")
        for row, rates in enumerate(accuracies.values()):
            for position, (ranking, rate) in enumerate(rates._asdict().items()):
                _draw_interval(
                    axes, row + _offset(position, len(rates)), rate, colours[ranking], scale=100, filled=True
                )
        _label_rows(axes, list(accuracies))
        axes.set_xlim(-1, 101)
        axes.set_xlabel("quadruples ranked correctly (%)")
        for ranking, label in RANKINGS.items():
            axes.plot([], [], "o", color=colours[ranking], label=label)
        _legend_above(axes)
        return _to_svg(
            figure,
            "reward-accuracy",
            "Dot plot with 95 % intervals",
            (
                f"{model}: "
                + ", ".join(f"{RANKINGS[name]} {100 * r.value:.1f} %" for name, r in rates._asdict().items())
                for model, rates in accuracies.items()
            ),
        )


def words(metric: str) -> str:
    """A metric's name for people: ``exact_match`` is "exact match"."""
    return metric.replace("_", " ")


def reward_metrics(run: TrainingRun) -> list[str]:
    """The rewards that a run logged, in the order of display; for WRPO, the two parts instead of their mix."""
    logged = [metric for metric in _REWARD_LINES if curve(run, metric)[0]]
    return [metric for metric in logged if metric != "rewards/chosen" or "rewards/source_chosen" not in logged]


def curve(run: TrainingRun, metric: str) -> tuple[list[float], list[float]]:
    """Steps and values of one metric; means over equal stretches if a chart cannot show all steps."""
    points = [(record["step"], record[metric]) for record in run.metrics if record.get(metric) is not None]
    if not points:
        return [], []
    stretches = np.array_split(np.asarray(points, dtype=float), min(len(points), _MAX_POINTS))
    steps, values = np.array([stretch.mean(axis=0) for stretch in stretches]).T
    return steps.tolist(), values.tolist()


def _to_svg(figure: Figure, name: str, kind: str, facts: Iterable[str]) -> Markup:
    """The chart for the page, described by its kind and what it says."""
    return inline_svg(figure, name=name, description=f"{kind}. {'; '.join(facts)}.")


def _offset(position: int, count: int) -> float:
    """How far the marks of one row lie from its middle, so that they do not cover each other."""
    return 0.26 * (position - (count - 1) / 2)


def _draw_interval(
    axes: Axes, row: float, figure: Rate | Difference, colour: Colour, *, scale: int, filled: bool
) -> None:
    axes.plot([scale * figure.low, scale * figure.high], [row, row], color=colour, linewidth=1.6, solid_capstyle="butt")
    face = colour if filled else Colour.PAPER
    axes.plot(scale * figure.value, row, "o", color=colour, markersize=6, markerfacecolor=face)


def _draw_rewards(axes: Axes, run: TrainingRun) -> None:
    axes.axhline(0, color=Colour.MUTED, linewidth=0.8)
    for metric in reward_metrics(run):
        label, colour, style = _REWARD_LINES[metric]
        axes.plot(*curve(run, metric), color=colour, linestyle=style, label=label)
    axes.set_title(printable(run.name))
    axes.set_xlabel("optimizer step")


def _draw_spread(axes: Axes, row: int, spread: Spread) -> None:
    """The middle four fifths as a line, the median filled, the mean hollow."""
    axes.plot([spread.tenth, spread.ninetieth], [row, row], color=Colour.INK, linewidth=1.6, solid_capstyle="butt")
    axes.plot(spread.mean, row, "D", color=Colour.INK, markersize=5, markerfacecolor=Colour.PAPER)
    axes.plot(spread.median, row, "o", color=Colour.INK, markersize=6)


def _bin_edges(values: npt.NDArray[np.float64]) -> list[float]:
    """Equal bins over all values, or around them if they differ only by rounding."""
    low, high = float(values.min()), float(values.max())
    size = max(abs(low), abs(high))
    if high - low <= max(1e-9 * size, 1e-100):
        margin = max(0.5, 1e-3 * size)
        low, high = low - margin, high + margin
    edges: list[float] = np.linspace(low, high, _NUM_BINS + 1).tolist()
    return edges


def _draw_histogram(
    axes: Axes, values: Sequence[float], edges: list[float], colour: Colour, *, label: str = "", linestyle: str = "-"
) -> None:
    weights = [100 / len(values)] * len(values)
    axes.hist(values, bins=edges, weights=weights, histtype="stepfilled", color=colour, alpha=0.2)
    axes.hist(values, bins=edges, weights=weights, histtype="step", color=colour, label=label, linestyle=linestyle)


def _label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name horizontal rows, the first on top."""
    axes.set_yticks(range(len(labels)), [printable(label, 64) for label in labels])
    axes.set_ylim(len(labels) - 0.4, -0.6)


def _legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2)


def _share_legend(figure: Figure, panels: Iterable[Axes]) -> None:
    """One legend above all panels, each label once, in the order of the fullest panel."""
    legends = sorted((axes.get_legend_handles_labels() for axes in panels), key=lambda legend: -len(legend[1]))
    handles = {label: handle for legend in legends for handle, label in zip(*legend, strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside upper left", ncols=4)
