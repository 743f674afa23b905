"""Several runs as the data of one page, so that their selections and models are side by side.

What the runs share is shown once: a model that gave the same answers, rows that are the same, a training with the same
steps. If one name means different things in two runs, the run's name is added to it, as in ``target-sft (a)``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import chain, combinations
from operator import eq
from typing import NamedTuple, TypeVar

from sinterlm.errors import InputError
from sinterlm.evaluation.figures import Figures, compute_figures
from sinterlm.records import Candidates, Dropped, Prompt, Score, Scored, TrainingRow
from sinterlm.report.data import HeldOut, Part, ReportData, RunFacts
from sinterlm.report.tallies import kind_of

T = TypeVar("T")
H = TypeVar("H", bound=Hashable)
_Answers = Mapping[Hashable, tuple[str, str]]
"""By what was asked, the ids of a model's answer and of its scorer."""


def merge_reports(reports: Mapping[str, ReportData]) -> ReportData:
    """Merge the data of several runs into that of one page.

    Held-out figures are computed again, over the questions that all runs held out. What is measured on each run's own
    quadruples (log-probabilities, accuracies of internal rewards) is left out.

    Args:
        reports: The data of every run, by a name that is unique among them.

    Raises:
        InputError: Two runs have different prompts under one id.
    """
    _check_prompts(reports)
    renamed = _relabel_trainings(_relabel_models(reports))
    held_out, held_out_notes = _merge_held_out(renamed)
    runs = [replace(data.run, name=name) for name, data in renamed.items()]
    return ReportData(
        run=RunFacts(
            name=", ".join(reports),
            target=" and ".join(_unique(run.target for run in runs)),
            sources=dict(chain.from_iterable(run.sources.items() for run in runs)),
            scorer=" and ".join(_unique(run.scorer for run in runs)),
            seed=runs[0].seed,
            seconds=sum(run.seconds for run in runs),
            methods=_unique(chain.from_iterable(run.methods for run in runs)),
        ),
        parts=_merge_parts([data.parts for data in renamed.values()]),
        rows=dict(chain.from_iterable(data.rows.items() for data in renamed.values())),
        dropped=_unique(chain.from_iterable(data.dropped for data in renamed.values())),
        drop_explanations=dict(chain.from_iterable(data.drop_explanations.items() for data in renamed.values())),
        held_out=held_out,
        training=list({run.name: run for data in renamed.values() for run in data.training}.values()),
        searches=list({found.name: found for data in renamed.values() for found in data.searches}.values()),
        compared=runs,
        notes=[
            _describe_answers(renamed),
            *held_out_notes,
            *(f"{name}: {note}" for name, data in reports.items() for note in data.notes),
        ],
    )


def _unique(values: Iterable[H]) -> list[H]:
    return list(dict.fromkeys(values))


def _check_prompts(reports: Mapping[str, ReportData]) -> None:
    known: dict[str, tuple[str, object]] = {}
    for name, data in reports.items():
        for prompt in (candidates.prompt for prompts in data.parts.values() for candidates in prompts):
            # A system prompt is the target's, and runs may differ in it.
            asked = ([message for message in prompt.messages if message.role != "system"], prompt.answers)
            other, same = known.setdefault(prompt.id, (name, asked))
            if same != asked:
                raise InputError(
                    f"{other} and {name} ask different things under the prompt id {prompt.id!r} (or accept different "
                    "answers); only runs with the same prompts can be compared"
                )


def _label(found: Mapping[str, Mapping[str, T]], is_same: Callable[[T, T], bool]) -> dict[str, dict[str, str]]:
    """For each run, the label of each name: the name itself, or with the run if the name means different things.

    Args:
        found: For each run, what each name means in it.
        is_same: Whether two meanings are the same.
    """
    meanings: defaultdict[str, list[T]] = defaultdict(list)
    for names in found.values():
        for name, meaning in names.items():
            meanings[name].append(meaning)
    clear = {name for name, given in meanings.items() if all(is_same(a, b) for a, b in combinations(given, 2))}
    return {run: {name: name if name in clear else f"{name} ({run})" for name in names} for run, names in found.items()}


# -- models ------------------------------------------------------------------------------------------------------


def _relabel_models(reports: Mapping[str, ReportData]) -> dict[str, ReportData]:
    labels = _label({run: _find_answers(data) for run, data in reports.items()}, _is_same_model)
    return {run: _rename_models(data, labels[run]) for run, data in reports.items()}


def _find_answers(data: ReportData) -> dict[str, _Answers]:
    """Every model of a run with the ids of its answers, sampled ones apart from greedy ones."""
    greedy = data.held_out.answers if data.held_out else {}
    evaluated = data.held_out.figures.models if data.held_out else {}
    found: dict[str, dict[Hashable, tuple[str, str]]] = {name: {} for name in (*data.run.sources, *evaluated)}
    for is_greedy, answers in ((False, _sampled(data)), (True, chain.from_iterable(greedy.values()))):
        for response, score in answers:
            key = (is_greedy, response.prompt_id, response.index)
            found.setdefault(response.source, {})[key] = (response.id, score.scorer)
    return dict(found)


def _sampled(data: ReportData) -> Iterator[Scored]:
    for prompts in data.parts.values():
        for candidates in prompts:
            yield from candidates.sources
            yield from candidates.target


def _is_same_model(answers: _Answers, others: _Answers) -> bool:
    """Whether answers to the same questions are the same: their ids are hashes of weights, settings and template."""
    shared = answers.keys() & others.keys()
    return (bool(shared) or not answers or not others) and all(answers[key] == others[key] for key in shared)


def _rename_models(data: ReportData, labels: Mapping[str, str]) -> ReportData:
    if all(label == name for name, label in labels.items()):
        return data

    def rename(scored: Scored) -> Scored:
        response = scored.response
        return scored._replace(response=replace(response, source=labels[response.source]))

    held_out = data.held_out
    return replace(
        data,
        run=replace(data.run, sources={labels[name]: what for name, what in data.run.sources.items()}),
        parts={
            part: [
                replace(asked, sources=tuple(map(rename, asked.sources)), target=tuple(map(rename, asked.target)))
                for asked in prompts
            ]
            for part, prompts in data.parts.items()
        },
        rows={name: [_rename_in_row(row, labels) for row in rows] for name, rows in data.rows.items()},
        held_out=held_out
        and replace(
            held_out,
            figures=Figures(),  # computed again, over the questions that all runs share
            answers={labels[name]: list(map(rename, answers)) for name, answers in held_out.answers.items()},
            featured=labels.get(held_out.featured, ""),
        ),
    )


def _rename_in_row(row: TrainingRow, labels: Mapping[str, str]) -> TrainingRow:
    responses = [
        replace(
            response,
            source=labels.get(response.source, response.source),
            group=labels.get(response.group, response.group),
        )
        for response in row.responses
    ]
    return replace(row, responses=tuple(responses))


# -- trainings ---------------------------------------------------------------------------------------------------


def _relabel_trainings(reports: Mapping[str, ReportData]) -> dict[str, ReportData]:
    """Relabel rows, trainings and searches separately: different trainings may use the same rows."""
    rows = _label({run: _find_selections(data) for run, data in reports.items()}, eq)
    trainings = _label({run: _find_trainings(data) for run, data in reports.items()}, eq)
    searches = _label({run: {found.name: found for found in data.searches} for run, data in reports.items()}, eq)
    return {
        run: _rename_trainings(data, _Labels(rows[run], trainings[run], searches[run])) for run, data in reports.items()
    }


class _Labels(NamedTuple):
    """Labels by the name that a training has in its run."""

    rows: Mapping[str, str]
    trainings: Mapping[str, str]
    searches: Mapping[str, str]


def _find_selections(data: ReportData) -> dict[str, object]:
    """Every training's rows, and what its selection dropped."""
    drops: defaultdict[str, list[Dropped]] = defaultdict(list)
    for drop in data.dropped:
        drops[drop.stage].append(drop)
    return {name: (rows, drops[f"select-{name}"]) for name, rows in data.rows.items()}


def _find_trainings(data: ReportData) -> dict[str, object]:
    """Every training with its steps, without the time that they took."""
    times = ("step_seconds", "tokens_per_second")
    return {
        run.name: (run.description, [{key: step[key] for key in step if key not in times} for step in run.metrics])
        for run in data.training
    }


def _rename_trainings(data: ReportData, labels: _Labels) -> ReportData:
    stages = {
        f"{work}-{name}": f"{work}-{label}"
        for work, own in zip(("select", "train", "search"), labels, strict=True)
        for name, label in own.items()
    }

    def rename(drop: Dropped) -> Dropped:
        return replace(drop, stage=stages.get(drop.stage, drop.stage))

    return replace(
        data,
        run=replace(data.run, methods=[labels.trainings.get(name, name) for name in data.run.methods]),
        rows={labels.rows[name]: rows for name, rows in data.rows.items()},
        dropped=list(map(rename, data.dropped)),
        training=[replace(run, name=labels.trainings[run.name]) for run in data.training],
        searches=[replace(search, name=labels.searches[search.name]) for search in data.searches],
    )


# -- prompts and answers -----------------------------------------------------------------------------------------


def _merge_parts(runs: Sequence[Mapping[Part, Collection[Candidates]]]) -> dict[Part, list[Candidates]]:
    """Every prompt once, in the part that the first run gives it, with the answers that all runs have."""
    asked: dict[str, list[Candidates]] = defaultdict(list)
    parts: dict[str, Part] = {}
    for by_part in runs:
        for part, prompts in by_part.items():
            for candidates in prompts:
                asked[candidates.prompt.id].append(candidates)
                parts.setdefault(candidates.prompt.id, part)
    merged: dict[Part, list[Candidates]] = defaultdict(list)
    for prompt_id, part in parts.items():
        merged[part].append(reduce(_join, asked[prompt_id]))
    return dict(merged)


def _join(one: Candidates, other: Candidates) -> Candidates:
    return replace(
        one, sources=_join_answers(one.sources, other.sources), target=_join_answers(one.target, other.target)
    )


def _join_answers(answers: Sequence[Scored], others: Sequence[Scored]) -> tuple[Scored, ...]:
    by_sample = {(scored.response.source, scored.response.index): scored for scored in (*answers, *others)}
    return tuple(by_sample.values())


def _describe_answers(reports: Mapping[str, ReportData]) -> str:
    """Whether the selections choose from the same answers."""
    answers = [
        {
            scored.response.id
            for part in ("sft", "preference")
            for each in data.parts.get(part, ())
            for scored in each.sources
        }
        for data in reports.values()
    ]
    num_shared, num_all = len(set.intersection(*answers)), len(set.union(*answers))
    if num_shared == num_all:
        return f"All {len(reports)} runs choose their training rows from the same {num_all:,} answers of the sources."
    return (
        f"Of {num_all:,} answers of the sources to training prompts, {num_shared:,} are in all {len(reports)} runs, "
        "so their selections differ in their answers, not only in their policies."
    )


# -- held-out questions ------------------------------------------------------------------------------------------


def _merge_held_out(reports: Mapping[str, ReportData]) -> tuple[HeldOut | None, list[str]]:
    """Figures over the questions that all runs held out, and notes on them."""
    evaluated = {run: data.held_out for run, data in reports.items() if data.held_out}
    if not evaluated:
        return None, []
    without = [run for run in reports if run not in evaluated]
    notes = [f"No held-out figures yet: {', '.join(without)}."] if without else []
    scorers = _unique(held_out.scorer for held_out in evaluated.values())
    if len(scorers) > 1:
        return None, [
            *notes,
            f"Held-out figures are left out: they come from different scorers ({', '.join(scorers)}).",
        ]
    asked = {run: {each.prompt.id: each.prompt for each in reports[run].parts["held_out"]} for run in evaluated}
    shared = {
        key: prompt for key, prompt in next(iter(asked.values())).items() if all(key in own for own in asked.values())
    }
    if not shared:
        return None, [*notes, "Held-out figures are left out: no question is held out in all runs."]
    if any(len(own) > len(shared) for own in asked.values()):
        sizes = ", ".join(f"{run} {len(own):,}" for run, own in asked.items())
        notes.append(
            f"Held-out figures are those of the {len(shared):,} questions that all runs held out (of {sizes})."
        )
    answers = {label: given for held_out in evaluated.values() for label, given in held_out.answers.items()}
    scores = {label: _scores(answers[label], shared) for label in sorted(answers, key=_rank)}
    figures = compute_figures(
        scores,
        {key: prompt.domain for key, prompt in shared.items()},
        fused=[label for label in scores if kind_of(label) == "fused"],
    )
    merged = HeldOut(
        scorer=scorers[0],
        figures=figures,
        answers={label: answers[label] for label in figures.models},
        featured=next((held_out.featured for held_out in reversed(evaluated.values()) if held_out.featured), ""),
    )
    return merged, notes


def _rank(model: str) -> int:
    """Sources first, then targets, then fused models; each kind in the order of the runs."""
    return ("source", "target", "fused").index(kind_of(model))


def _scores(answers: Iterable[Scored], shared: Mapping[str, Prompt]) -> dict[str, Score]:
    return {response.prompt_id: score for response, score in answers if response.prompt_id in shared}
