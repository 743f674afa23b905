"""Runs side by side: equal things are shown once, different ones apart, and the figures are those of the runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sinterlm.errors import InputError
from sinterlm.evaluation.figures import Figures
from sinterlm.evaluation.rates import Rate, compare_models
from sinterlm.formats import read_rows
from sinterlm.pipeline.compare import Compared, compare_runs
from sinterlm.pipeline.fusion import Fusion, load_fusion
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.quickstart import choose_quickstart_methods, list_quickstart_methods, quickstart_recipe
from sinterlm.records import Candidates, Dropped, Message, Prompt, Response, RowResponse, Score, Scored, TrainingRow
from sinterlm.report import write_report
from sinterlm.report.data import HeldOut, ReportData, RunFacts, TrainingRun
from sinterlm.report.merge import merge_reports
from sinterlm.selection.tally import tally_selection
from sinterlm.terminal.comparison import print_comparison
from sinterlm.terminal.terminal import Terminal
from tests.pages import needs_browser, open_page, parse
from tests.test_pipeline import fuse
from tests.tiny_fusion import write_tiny_fusion

pytestmark = pytest.mark.xdist_group("compare")  # the tests' shared fixtures are made once, in one process

# --- two runs that a reader can count ---


def answer(prompt_id: str, source: str, index: int, *, weights: str, passed: bool) -> Scored:
    """An answer of the model with these weights, which its id names."""
    content = f"{'yes' if passed else 'no'} {index}"
    response = Response(f"{weights}/{prompt_id}/{index}", prompt_id, source, index, content, "stop", 5, 2)
    return Scored(response, Score(response.id, "exact-match:1", float(passed), passed))


def prompt(prompt_id: str) -> Prompt:
    return Prompt(prompt_id, (Message("user", f"{prompt_id}?"),), ("yes",))


def row(prompt_id: str, *responses: tuple[str, str, int, float]) -> TrainingRow:
    return TrainingRow(
        prompt_id,
        (Message("user", f"{prompt_id}?"),),
        tuple(
            RowResponse(f"answer {index}", role, source, index, score)  # type: ignore[arg-type]
            for role, source, index, score in responses
        ),
    )


def report_of(name: str, *, held_out: Mapping[str, tuple[bool, bool]], weights: str, loss: float) -> ReportData:
    """A run with the source ``gemma``, one SFT row and one WRPO row.

    Args:
        name: The run's name.
        held_out: For each question, whether gemma and the run's ``target-sft`` answer it correctly.
        weights: The weights of ``target-sft``.
        loss: The loss of the first WRPO step.
    """
    learn = Candidates(
        prompt("learn"), tuple(answer("learn", "gemma", i, weights="g", passed=i == 0) for i in range(3))
    )
    prefer = Candidates(
        prompt("prefer"),
        tuple(answer("prefer", "gemma", i, weights="g", passed=i == 1) for i in range(3)),
        tuple(answer("prefer", "target-sft", i, weights=weights, passed=i == 0) for i in range(2)),
    )
    quadruple = row(
        "prefer",
        ("chosen_source", "gemma", 1, 1.0),
        ("chosen_target", "target-sft", 0, 0.75),
        ("rejected", "target-sft", 1, 0.25),
    )
    return ReportData(
        run=RunFacts(name, "org/target", {"gemma": "org/gemma, chat"}, "exact-match", 0, 10.0, methods=["wrpo"]),
        parts={
            "sft": [learn],
            "preference": [prefer],
            "held_out": [Candidates(prompt(question), ()) for question in held_out],
        },
        rows={"sft": [row("learn", ("chosen", "gemma", 0, 1.0))], "wrpo": [quadruple]},
        dropped=[Dropped("other", "select-wrpo", "tied-target-answers", "0 and 0")],
        held_out=HeldOut(
            "exact-match",
            figures=Figures(
                {"gemma": {"exact_match": Rate(0, 0, 0, 1)}, "target-sft": {"exact_match": Rate(0, 0, 0, 1)}}
            ),
            answers={
                "gemma": [answer(q, "gemma", 0, weights="greedy-g", passed=g) for q, (g, _) in held_out.items()],
                "target-sft": [
                    answer(q, "target-sft", 0, weights=f"greedy-{weights}", passed=t) for q, (_, t) in held_out.items()
                ],
            },
            featured="target-sft",
        ),
        training=[
            TrainingRun("sft", "sft", [{"step": 1, "loss": 2.0}]),
            TrainingRun("wrpo", "wrpo: beta 0.1", [{"step": 1, "loss": loss}]),
        ],
    )


def two_reports() -> dict[str, ReportData]:
    """Both hold out ``q2`` and ``q3``. Their fine-tuned targets differ, and so does everything that follows."""
    return {
        "a": report_of(
            "a", held_out={"q1": (True, True), "q2": (True, True), "q3": (False, True)}, weights="A", loss=0.7
        ),
        "b": report_of(
            "b", held_out={"q2": (True, False), "q3": (False, True), "q4": (True, True)}, weights="B", loss=0.6
        ),
    }


def test_what_is_the_same_stands_once_and_what_differs_carries_its_run() -> None:
    merged = merge_reports(two_reports())
    assert list(merged.rows) == ["sft", "wrpo (a)", "wrpo (b)"]
    assert [run.name for run in merged.training] == ["sft", "wrpo (a)", "wrpo (b)"]
    assert merged.run.methods == ["wrpo (a)", "wrpo (b)"]
    assert [(drop.stage, drop.subject) for drop in merged.dropped] == [
        ("select-wrpo (a)", "other"),
        ("select-wrpo (b)", "other"),
    ]
    assert [response.source for response in next(iter(merged.rows["wrpo (b)"])).responses] == [
        "gemma",
        "target-sft (b)",
        "target-sft (b)",
    ]
    (asked,) = merged.parts["preference"]
    assert [(each.response.source, each.response.index) for each in (*asked.sources, *asked.target)] == [
        *(("gemma", index) for index in range(3)),
        *((f"target-sft ({run})", index) for run in "ab" for index in range(2)),
    ]


def test_held_out_figures_are_those_of_the_shared_questions() -> None:
    """Gemma answers one of q2 and q3 correctly, a's target-sft both and b's one: b minus a is (-1 + 0) / 2."""
    merged = merge_reports(two_reports())
    assert merged.held_out is not None
    rates = {model: figures["exact_match"] for model, figures in merged.held_out.figures.models.items()}
    assert {model: (rate.value, rate.n) for model, rate in rates.items()} == {
        "gemma": (0.5, 2),
        "target-sft (a)": (1.0, 2),
        "target-sft (b)": (0.5, 2),
    }
    differences = {(found.model, found.other): found.difference for found in merged.held_out.figures.comparisons}
    assert {pair: difference.value for pair, difference in differences.items()} == {
        ("target-sft (a)", "gemma"): 0.5,
        ("target-sft (b)", "gemma"): 0.0,
        ("target-sft (b)", "target-sft (a)"): -0.5,
    }
    assert differences["target-sft (b)", "target-sft (a)"][1:] == (-1.0, 0.0, 2)
    assert merged.held_out.featured == "target-sft (b)"
    assert merged.notes == [
        "All 2 runs choose their training rows from the same 6 answers of the sources.",
        "Held-out figures are those of the 2 questions that all runs held out (of a 3, b 3).",
    ]


def test_two_trainings_on_the_same_rows() -> None:
    """Losses tell trainings apart, times do not."""
    a = two_reports()["a"]
    sft, wrpo = a.training
    slower = replace(sft, metrics=[{**step, "step_seconds": 9.0} for step in sft.metrics])
    other = replace(wrpo, metrics=[{"step": 1, "loss": 0.5}])
    merged = merge_reports({"a": a, "b": replace(a, training=[slower, other])})
    assert list(merged.rows) == ["sft", "wrpo"]
    assert [run.name for run in merged.training] == ["sft", "wrpo (a)", "wrpo (b)"]
    assert merged.run.methods == ["wrpo (a)", "wrpo (b)"]
    assert [drop.stage for drop in merged.dropped] == ["select-wrpo"]


def test_equal_runs_are_one() -> None:
    a = two_reports()["a"]
    merged = merge_reports({"a": a, "copy": a})
    assert list(merged.rows) == ["sft", "wrpo"]
    assert merged.held_out is not None
    assert list(merged.held_out.figures.models) == ["gemma", "target-sft"]
    assert merged.dropped == a.dropped


def test_answers_that_only_one_run_has_are_told() -> None:
    reports = two_reports()
    reports["b"] = replace(reports["b"], parts={"held_out": reports["b"].parts["held_out"]})
    assert merge_reports(reports).notes[0].startswith("Of 6 answers of the sources to training prompts, 0 are in all 2")


def test_figures_of_different_scorers_are_left_out() -> None:
    reports = two_reports()
    held_out = reports["b"].held_out
    assert held_out is not None
    reports["b"] = replace(reports["b"], held_out=replace(held_out, scorer="reward-model org/rm"))
    merged = merge_reports(reports)
    assert merged.held_out is None
    assert "different scorers (exact-match, reward-model org/rm)" in merged.notes[1]


def test_a_run_without_figures_yet_does_not_hide_those_of_the_other() -> None:
    reports = two_reports()
    reports["b"] = replace(reports["b"], held_out=None)
    merged = merge_reports(reports)
    assert merged.held_out is not None
    assert merged.held_out.figures.models["gemma"]["exact_match"].n == 3
    assert merged.notes[1] == "No held-out figures yet: b."


def test_one_id_with_two_prompts_is_refused() -> None:
    reports = two_reports()
    other = replace(prompt("learn"), messages=(Message("user", "something else?"),))
    parts = {**reports["b"].parts, "sft": [Candidates(other, ())]}
    reports["b"] = replace(reports["b"], parts=parts)
    with pytest.raises(InputError, match="a and b ask different things under the prompt id 'learn'"):
        merge_reports(reports)


def test_runs_may_differ_in_the_targets_system_prompt() -> None:
    reports = two_reports()
    (learn,) = reports["b"].parts["sft"]
    with_system = replace(learn.prompt, messages=(Message("system", "Be brief."), *learn.prompt.messages))
    parts = {**reports["b"].parts, "sft": [replace(learn, prompt=with_system)]}
    merged = merge_reports({**reports, "b": replace(reports["b"], parts=parts)})
    assert [len(each.sources) for each in merged.parts["sft"]] == [3]


def test_models_are_compared_over_what_both_answered() -> None:
    def scores(passes: Mapping[str, bool]) -> dict[str, Score]:
        return {key: Score(key, "exact-match:1", float(passed), passed) for key, passed in passes.items()}

    found = compare_models(
        {
            "gemma": scores({"q1": True, "q2": False}),
            "sft": scores({"q2": True, "q3": True}),
            "dpo": scores({"q2": False, "q3": True}),
        },
        ["sft", "dpo", "not evaluated"],
    )
    assert [(each.model, each.other, each.difference.value, each.difference.n) for each in found] == [
        ("sft", "gemma", 1.0, 1),
        ("dpo", "gemma", 0.0, 1),
        ("dpo", "sft", -0.5, 2),
    ]


# --- its page ---


@needs_browser
def test_page_in_the_browser(tmp_path: Path) -> None:
    write_report(replace(merge_reports(two_reports()), case="prefer"), tmp_path / "comparison.html")
    page = open_page(tmp_path / "comparison.html", fragment="#q=prefer", profile=tmp_path / "profile")
    root = page.root
    assert not page.console
    assert [note.text for note in root.by_id("notes").find_all("li")] == merge_reports(two_reports()).notes
    assert root.by_id("selection-outcomes").table == [
        ["rows", "1", "1", "1"],
        ["tied-target-answers", "", "1", "1"],
    ]
    assert root.by_id("selection-roles").table[1:4] == [
        ["wrpo (a)", "1", "chosen_source", "1", "1.000", "8", "gemma 100.0"],
        ["wrpo (a)", "1", "chosen_target", "1", "0.750", "8", "target-sft (a) 100.0"],
        ["wrpo (a)", "1", "rejected", "1", "0.250", "8", "target-sft (a) 100.0"],
    ]
    assert [[*line[:5], *line[6:]] for line in root.by_id("selection-margins").table[:2]] == [
        ["wrpo (a)", "chosen_source minus rejected", "1", "+0.750", "+0.750", "+0.0", "+0.0"],
        ["wrpo (a)", "chosen_target minus rejected", "1", "+0.500", "+0.500", "+0.0", "+0.0"],
    ]
    described = {
        figure.find_all("h3")[0].text: figure.find_all("svg")[0].attributes["aria-label"]
        for figure in root.find_all("figure")
    }
    assert (
        "wrpo (b): source's chosen (y_ws) 1, target's chosen (y_wt) 0.75"
        in described["How good the answers of each role are"]
    )
    assert "sft, 1 answers: gemma 100.0 %" in described["Whose answers are preferred"]
    assert "wrpo (a), chosen_source minus rejected: score 0.75, length 0" in described["How far apart the pairs are"]
    assert root.by_id("run").find_all("h3")[1].text == "b"
    assert not any(element.attributes.get("id") == "likelihood" for element in root.walk())


def test_long_names_stay_apart_in_the_charts(tmp_path: Path) -> None:
    """The run at the end of their names tells them apart."""
    reports = {f"seeds-of-a-long-name/{run}": data for run, data in two_reports().items()}
    write_report(merge_reports(reports), tmp_path / "comparison.html")
    figures = parse((tmp_path / "comparison.html").read_text()).find_all("figure")
    (chart,) = (each for each in figures if each.find_all("h3")[0].text.startswith("What fusion gained"))
    labels = [text.text for text in chart.find_all("text") if " minus " in text.text]
    assert len(labels) == len(set(labels)) == 3
    assert all(len(label) <= 64 for label in labels)


def test_one_prompt_stands_under_every_model(tmp_path: Path) -> None:
    write_report(replace(merge_reports(two_reports()), case="prefer"), tmp_path / "comparison.html")
    case = parse((tmp_path / "comparison.html").read_text()).by_id("case")
    shown = {
        article.find_all("h4")[0].text: [given.text for given in article.find_all(css_class="answer")]
        for article in case.find_all("article")
    }
    assert shown == {
        "gemma": ["no 0 ✗ fail", "yes 1 ✓ pass wrpo (a): chosen_sourcewrpo (b): chosen_source", "no 2 ✗ fail"],
        "target-sft (a)": ["yes 0 ✓ pass wrpo (a): chosen_target", "no 1 ✗ fail wrpo (a): rejected"],
        "target-sft (b)": ["yes 0 ✓ pass wrpo (b): chosen_target", "no 1 ✗ fail wrpo (b): rejected"],
    }


def test_a_prompt_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no prompt has the id 'nope'; an existing id, for example, is 'learn'"):
        write_report(replace(merge_reports(two_reports()), case="nope"), tmp_path / "comparison.html")


def test_weights_are_drawn_by_source(tmp_path: Path) -> None:
    """Two sources with weights 0.75 and 0.25: entropy 0.75 log(4/3) + 0.25 log 4 = 0.5623."""
    weighted = TrainingRow(
        "learn",
        (Message("user", "learn?"),),
        (
            RowResponse("yes", "chosen", "gemma", 0, 1.0, weight=0.75),
            RowResponse("oui", "chosen", "other", 0, 1.0, weight=0.25),
        ),
    )
    data = replace(two_reports()["a"], rows={"fusesft": [weighted]})
    write_report(data, tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text())
    assert root.by_id("selection-weights").table == [["fusesft", "2.0", "0.562", "0.750", "gemma 75.0, other 25.0"]]
    (figure,) = (
        each for each in root.find_all("figure") if each.find_all("h3")[0].text == "Whose answers carry the weight"
    )
    assert figure.find_all("svg")[0].attributes["aria-label"] == (
        "Bar chart of share of the weight. fusesft, entropy 0.56: gemma 75.0 %, other 25.0 %."
    )


# --- real runs ---


FUSERL = """\
  fuserl:
    sft:
      select: {kind: fusesft, temperature: 1.0, num_responses: 2, truncated: keep}
      objective: {kind: fusesft}
      train: {learning_rate: 1e-3, max_steps: 3, per_device_train_batch_size: 4, max_length: 128}
    select: {kind: fusepo, temperature: 1.0, truncated: keep}
    objective: {kind: fusepo, base: dpo, beta: 0.1}
    train: {learning_rate: 0.0, max_steps: 2, per_device_train_batch_size: 4, max_length: 128}
"""


OTHER = """\
extends: recipe.yaml
output: {folder}/other
workspace: {folder}/run
preference: {{wrpo: null, fuserl: {{sft: {{train: {{max_steps: 1}}}}}}}}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a FuseRL recipe whose preference training learns nothing, and another run in its workspace."""
    path = write_tiny_fusion(tmp_path_factory.mktemp("compare"), num_questions=24)
    text = path.read_text().replace("max_steps: 6", "max_steps: 2").replace("save_steps: 2", "save_strategy: 'no'")
    path.write_text(text.replace("evaluation:", f"{FUSERL}evaluation:"))
    other = path.with_name("other.yaml")
    other.write_text(OTHER.format(folder=path.parent))
    fuse(path)
    fuse(other)
    return path


@pytest.fixture(scope="module")
def compared(recipe: Path) -> Compared:
    return compare_runs([recipe.parent / "run", recipe.parent / "other"])


def test_a_method_starts_from_its_own_sft(recipe: Path) -> None:
    """Its preference training has a learning rate of 0, so its model does not change and all rewards are equal."""
    run = recipe.parent / "run"
    start, fused, shared = (
        load_file(run / name / "model.safetensors") for name in ("target-fuserl-sft", "target-fuserl", "target-sft")
    )
    assert all(start[name].equal(fused[name]) for name in start)
    assert not all(start[name].equal(shared[name]) for name in start)
    accuracies = json.loads((run / "evaluation.json").read_text())["reward_accuracies"]
    assert {rate["value"] for rate in accuracies["target-fuserl"].values()} == {0.0}
    assert {len(each.responses) for each in read_rows(run / "rows" / "fuserl-sft.parquet")} == {2}
    steps = (run / "target-fuserl-sft" / "metrics.jsonl").read_text().splitlines()
    assert len(steps) == 3


def test_a_change_of_its_sft_redoes_nothing_of_the_other_methods(recipe: Path) -> None:
    changed = ("preference.fuserl.sft.train.learning_rate=2e-3",)
    before, after = (
        stage_keys(build_stages(Fusion(load_recipe(recipe, overrides).recipe)), str) for overrides in ((), changed)
    )
    assert [name for name in before if before[name] != after[name]] == [
        "train-fuserl-sft",
        "train-fuserl",
        "sample-held-out",
        "score-held-out",
        "evaluate",
        "report",
    ]


def test_a_method_that_is_called_like_the_sft_of_another_is_refused(recipe: Path) -> None:
    dpo = "preference.fuserl-sft={select: {kind: on-policy}, objective: {kind: dpo}}"
    with pytest.raises(InputError, match=re.escape("preference.fuserl-sft: the `sft` of 'fuserl' has this name")):
        load_recipe(recipe, (dpo,))


def test_mistakes_in_a_methods_sft_are_found_at_their_key(recipe: Path) -> None:
    with pytest.raises(InputError, match=re.escape("preference.fuserl.sft.train.learning_rat: unknown")):
        load_recipe(recipe, ("preference.fuserl.sft.train.learning_rat=1",))


def test_runs_of_one_workspace_share_all_but_what_differs(compared: Compared, recipe: Path) -> None:
    assert list(compared.selections) == ["sft", "fuserl-sft", "wrpo", "dpo", "fuserl"]
    figures = compared.to_json()
    assert figures["runs"] == {name: str(recipe.parent / name) for name in ("run", "other")}
    assert figures["notes"] == [
        f"All 2 runs choose their training rows from the same {16 * (2 + 2 + 1)} answers of the sources."
    ]
    assert list(figures["held_out"]) == [
        "tiny", "shots", "old-answers", "target", "target-sft", "target-fuserl-sft (run)", "target-sft-wrpo",
        "target-sft-dpo", "target-fuserl (run)", "target-fuserl-sft (other)", "target-fuserl (other)",
    ]  # fmt: skip
    summary = json.loads((recipe.parent / "run" / "summary.json").read_text())
    for name in ("tiny", "target", "target-sft-wrpo", "target-sft-dpo"):
        assert figures["held_out"][name] == pytest.approx(summary["held_out"][name])
    assert figures["held_out"]["target-fuserl (run)"] == pytest.approx(summary["held_out"]["target-fuserl"])
    known = {(each["model"], each["other"], each["metric"]): each for each in summary["held_out_differences"]}
    same = [each for each in figures["held_out_differences"] if (each["model"], each["other"], each["metric"]) in known]
    assert len(same) >= 2 * 2 * 4
    assert all(each == pytest.approx(known[each["model"], each["other"], each["metric"]]) for each in same)
    crossed = {(each["model"], each["other"]) for each in figures["held_out_differences"]}
    assert ("target-fuserl (other)", "target-fuserl (run)") in crossed


def test_selections_are_tallied_from_the_rows_on_disk(compared: Compared, recipe: Path) -> None:
    summary = json.loads((recipe.parent / "run" / "summary.json").read_text())
    figures = compared.to_json()
    for name in ("wrpo", "dpo", "fuserl"):
        rows = read_rows(recipe.parent / "run" / "rows" / f"{name}.parquet")
        assert figures["selections"][name]["num_rows"] == len(rows)
        assert figures["selections"][name] == summary["selections"][name]
    assert compared.selections["fuserl"].weights is not None
    assert tally_selection.__module__ == "sinterlm.selection.tally"


def test_reasons_stand_whole_however_many_trainings_there_are(compared: Compared) -> None:
    selections = {f"{name} ({number})": tally for number in range(3) for name, tally in compared.selections.items()}
    said = StringIO()
    print_comparison(compared._replace(selections=selections), Terminal(file=said, width=140))
    reasons = {reason for tally in compared.selections.values() for reason in tally.drops}
    assert reasons
    assert reasons <= set(said.getvalue().split())


def test_the_command_shows_one_prompt_and_writes_the_page(recipe: Path, tmp_path: Path) -> None:
    run, page = recipe.parent / "run", tmp_path / "page.html"
    prompt_id = read_rows(run / "rows" / "wrpo.parquet")[0].prompt_id
    case: dict[str, Any] = compare_runs([run], prompt=prompt_id, page=page).to_json()["prompt"]
    assert case["id"] == prompt_id
    assert {sample["model"] for sample in case["samples"]} == {"tiny", "shots", "old-answers", "target-sft"}
    (chosen,) = (sample for sample in case["samples"] if "wrpo: chosen_source" in sample["roles"])
    assert chosen["score"] == max(sample["score"] for sample in case["samples"] if sample["model"] != "target-sft")
    assert parse(page.read_text()).by_id("case").find_all("article")
    page.unlink()
    command = [sys.executable, "-m", "sinterlm", "compare", run, "--prompt", prompt_id, "--output", page]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert f"prompt {prompt_id}" in done.stdout
    assert chosen["text"].split()[0] in done.stdout
    assert f"The page: {page}" in done.stdout
    assert page.is_file()


def test_a_workspace_may_move_with_its_runs(recipe: Path, tmp_path: Path) -> None:
    """The workspace is a run's folder next to the other's; moved alone, the other still finds the old workspace."""
    for name in ("run", "other"):
        shutil.copytree(recipe.parent / name, tmp_path / "both" / name, ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(tmp_path / "both" / "other", tmp_path / "alone" / "other")
    assert load_fusion(tmp_path / "both" / "other").workspace == tmp_path / "both" / "run"
    assert load_fusion(tmp_path / "both" / "run").workspace == tmp_path / "both" / "run"
    alone = load_fusion(tmp_path / "alone" / "other")
    assert alone.workspace == recipe.parent / "run"
    assert alone.run_name == load_fusion(recipe.parent / "other").run_name


@pytest.mark.parametrize(
    ("folders", "message"),
    [(("gone",), "holds no run"), (("run", "run"), "a run is given twice")],
)
def test_folders_that_cannot_be_compared(recipe: Path, folders: Sequence[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare_runs([recipe.parent / folder for folder in folders])


# --- the quickstart's methods ---


def test_the_quickstart_runs_its_recipe_unless_methods_are_named() -> None:
    assert choose_quickstart_methods([]) == []
    assert list(list_quickstart_methods()) == ["dpo", "wrpo", "fusechat3", "fuserl"]


@pytest.mark.parametrize(
    ("names", "trained"),
    [
        (["wrpo", "dpo"], ["target-sft", "target-sft-dpo", "target-sft-wrpo"]),
        (["fuserl"], ["target-fuserl-sft", "target-fuserl"]),
        (["fusechat3"], ["target-sft", "target-sft-fusechat3"]),
        (
            ["fuserl", "fusechat3", "wrpo", "dpo"],
            [
                "target-sft",
                "target-fuserl-sft",
                "target-sft-dpo",
                "target-sft-wrpo",
                "target-sft-fusechat3",
                "target-fuserl",
            ],
        ),
    ],
)
def test_methods_of_the_quickstart(names: Sequence[str], trained: Sequence[str]) -> None:
    forwards, backwards = (
        load_recipe(quickstart_recipe(), choose_quickstart_methods(order)).recipe for order in (names, names[::-1])
    )
    assert forwards == backwards
    assert [model.name for model in Fusion(forwards).trained] == trained


def test_all_methods_of_the_quickstart_are_trained_alike() -> None:
    """They may differ in rows and objectives only."""
    recipe = load_recipe(quickstart_recipe(), choose_quickstart_methods(list(list_quickstart_methods()))).recipe
    trainings = [method.train for method in recipe.preference.values()]
    assert all(train == trainings[0] for train in trainings)
    assert recipe.sft is not None
    assert all(method.sft.train == recipe.sft.train for method in recipe.preference.values() if method.sft)


def test_a_method_that_the_quickstart_does_not_have() -> None:
    with pytest.raises(InputError, match=r"--method: .*'fusrl'.*did you mean fuserl"):
        choose_quickstart_methods(["wrpo", "fusrl"])
