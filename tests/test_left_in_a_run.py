"""What a run of recorded answers leaves in folder and store, and what is reported of it: by hand, without a model."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from sinterlm import cli
from sinterlm.errors import InputError, ToleranceError
from sinterlm.pipeline.checks import check_inputs
from sinterlm.pipeline.compare import compare_runs
from sinterlm.pipeline.export import export_rows
from sinterlm.pipeline.finished import load_run, read_only, rewrite_report
from sinterlm.pipeline.forecast import Forecast, Past, show_count
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.inputs import Inputs
from sinterlm.pipeline.plan import Plan, plan_fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.report import read_report
from sinterlm.pipeline.retry import forget_failed
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.sample import sample
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.pipeline.score import _Tally
from sinterlm.pipeline.stages.score import Score as ScoreStage
from sinterlm.pipeline.stages.train import Train
from sinterlm.pipeline.status import status_of
from sinterlm.pipeline.summary import summarise
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Failure, Message, Prompt, Response, Score, response_id
from sinterlm.report.data import ReportData
from sinterlm.scoring.protocol import Exchange
from sinterlm.store import FinishedStage, Store
from sinterlm.terminal.plan import print_plan
from sinterlm.terminal.terminal import Terminal

RECIPE = """\
seed: 3
prompts: {path: prompts.jsonl}
target: {model: someone/small-1b, samples: {engine: recorded, path: own.jsonl}}
sources:
  a: {engine: recorded, path: a.jsonl}
  b: {engine: recorded, path: b.jsonl}
scorer: {kind: recorded, path: scores.jsonl}
preference:
  m: {select: {kind: wrpo}, objective: {kind: wrpo}, train: {num_train_epochs: 1}}
"""
SOURCE = "sources={s: {engine: transformers, model: other/large-2b, sampling: {num_samples: 2, max_new_tokens: 100}}}"
IDS = ("p0", "p1", "p2", "p3", "p4", "größe")
QUESTION = "How much is it {}"
"""16 characters with a digit, which count as 4 tokens."""
SCORES = {"a": 2.0, "b": 3.0, "t": 1.0, "u": 0.5}
"""Scores of the two sources' answers and of the target's two."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded")
    files: dict[str, Sequence[Mapping[str, Any]]] = {
        "prompts": [{"id": name, "prompt": QUESTION.format(number)} for number, name in enumerate(IDS)],
        "a": [{"prompt_id": name, "response": "a"} for name in IDS[:4]],
        "b": [{"prompt_id": name, "response": "b"} for name in IDS],
        "own": [{"prompt_id": name, "response": answer} for name in IDS for answer in "tu"],
        "scores": [
            {"prompt_id": name, "response": answer, "score": score} for name in IDS for answer, score in SCORES.items()
        ],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


def fusion_of(recipe: Path, output: Path, *overrides: str) -> Fusion:
    return Fusion(load_recipe(recipe, (f"output={output}", *overrides)).recipe)


def carry_out(recipe: Path, output: Path, *overrides: str, until: str) -> Path:
    run_fusion(fusion_of(recipe, output, *overrides), SilentReporter(), until=until)
    return output


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    return carry_out(recipe, recipe.parent / "run", until="select-m")


# --- retry ------------------------------------------------------------------------------------------------------------


def test_retry_does_again_what_failed_and_what_needs_it_and_no_more(recipe: Path, tmp_path: Path) -> None:
    carry_out(recipe, tmp_path, until="select-m")
    with store_of(tmp_path) as (fusion, store):
        before = store.finished_stages(fusion.run_name)
    assert forget_failed(fusion) == ([], "select-m")
    with closing(Store(fusion.store_path)) as store:
        store.add_failures(fusion.run_name, "score-sources", "judge", [Failure("p0", 0, "timed-out", "no reply")])
    assert forget_failed(fusion) == (["score-sources"], "select-m")
    with store_of(tmp_path) as (fusion, store):
        assert set(before) - set(store.finished_stages(fusion.run_name)) == {"score-sources", "select-m"}


def test_retry_by_command(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sinterlm", "retry", str(tmp_path)])
    carry_out(recipe, tmp_path, until="select-m")
    assert cli.exit_code() == 0
    assert capsys.readouterr().out == "nothing has failed\n"
    with store_of(tmp_path) as (fusion, _), closing(Store(fusion.store_path)) as store:
        store.add_failures(fusion.run_name, "sample-sources", "s", [Failure("p0", 0, "timed-out", "no reply")])
    assert cli.exit_code() == 0
    shown = capsys.readouterr().out
    assert "asking again in sample-sources" in shown
    assert "select-m done" in shown
    assert "train-m" not in shown.replace("left to do: train-m", "")
    assert cli.exit_code() == 0
    assert capsys.readouterr().out == "nothing has failed\n"


# --- status and tables ------------------------------------------------------------------------------------------------


def test_status_counts_the_drops_of_each_stage_by_reason(run: Path) -> None:
    status = status_of(run)
    assert status["dropped"] == {"sample-sources": {"no-recorded-answer": 2}}
    stages = {stage["name"]: stage for stage in status["stages"]}
    assert {name for name, stage in stages.items() if stage["state"] == "to do"} == {"train-m", "report"}
    assert stages["select-m"]["counts"] == {"rows": 6, "dropped": 0}


def test_status_counts_answers_without_a_score(recipe: Path, tmp_path: Path) -> None:
    line = {"prompt_id": "p0", "response": "b", "score": 1.0}
    (tmp_path / "one.jsonl").write_text(json.dumps(line))
    scorer = f"scorer={{kind: recorded, path: {tmp_path}/one.jsonl, missing: drop}}"
    run = carry_out(recipe, tmp_path / "run", scorer, until="score-sources")
    assert sum(status_of(run)["dropped"]["score-sources"].values()) == 9


def test_a_table_of_rows_has_a_line_for_each_answer(run: Path) -> None:
    lines = {(line["prompt_id"], line["role"]): line for line in load_run(run).table("rows")}
    assert len(lines) == 3 * len(IDS)
    assert lines["p4", "chosen_source"] == {
        "training": "m", "prompt_id": "p4", "role": "chosen_source", "source": "b", "index": 0, "score": 3.0,
        "weight": None, "response": "b",
    }  # fmt: skip
    assert lines["p4", "rejected"]["index"] == 1
    assert {role: lines["p4", role]["score"] for role in ("chosen_target", "rejected")} == {
        "chosen_target": 1.0,
        "rejected": 0.5,
    }


def test_a_text_that_two_prompts_have_is_answered_once(recipe: Path, tmp_path: Path) -> None:
    prompts = [{"id": name, "prompt": "One text"} for name in IDS]
    (tmp_path / "alike.jsonl").write_text("".join(f"{json.dumps(prompt)}\n" for prompt in prompts))
    run = load_run(carry_out(recipe, tmp_path / "run", f"prompts.path={tmp_path}/alike.jsonl", until="select-m"))
    assert {row.prompt_id for row in run.rows("m")} == {*IDS}
    assert {row.with_role("chosen_source").content for row in run.rows("m")} == {"b"}


def test_a_table_of_rows_leaves_out_trainings_without_rows(recipe: Path, tmp_path: Path) -> None:
    other = "preference.other={select: {kind: on-policy}, objective: {kind: dpo}}"
    carry_out(recipe, tmp_path, other, until="score-target")
    run_fusion(fusion_of(recipe, tmp_path, other), SilentReporter(), only="select-other")
    assert {line["training"] for line in load_run(tmp_path).table("rows")} == {"other"}


def test_a_table_of_drops_says_what_was_dropped_where_and_why(run: Path) -> None:
    lines = load_run(run).table("dropped")
    assert next(line for line in lines if line["subject"] == "größe") == {
        "stage": "sample-sources", "reason": "no-recorded-answer", "subject": "größe", "detail": "a has none",
    }  # fmt: skip
    assert [line["subject"] for line in lines if line["subject"] != "größe"] == ["p4"]


# --- pages ------------------------------------------------------------------------------------------------------------


def test_a_page_has_the_rows_and_the_answers_that_they_come_from(run: Path) -> None:
    with store_of(run) as (fusion, store):
        data = read_report(read_only(fusion, store))
        assert sorted(row.prompt_id for row in data.rows["m"]) == sorted(IDS)
        assert {part: len(found) for part, found in data.parts.items() if found} == {"preference": 6}
        (candidates,) = (found for found in data.parts["preference"] if found.prompt.id == "p4")
        assert [(each.response.content, each.score.value) for each in candidates.sources] == [("b", 3.0)]
        assert [each.score.value for each in candidates.target] == [1.0, 0.5]


def test_a_comparison_is_written_into_the_workspace_or_where_it_is_told_to(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[Path, str, int]] = []

    def write(data: ReportData, path: Path, *, seed: int) -> None:
        written.append((path, data.case, seed))

    monkeypatch.setattr("sinterlm.pipeline.compare.write_report", write)
    compared = compare_runs([run])
    assert compared.to_json()["page"] == str(compared.page) == str(run / "comparison.html")
    assert compare_runs([run], page=tmp_path / "mine.html", prompt="p4").page == tmp_path / "mine.html"
    assert written == [(run / "comparison.html", "", 3), (tmp_path / "mine.html", "p4", 3)]


def test_a_report_of_a_fine_tuning_alone_needs_its_scores(recipe: Path, tmp_path: Path) -> None:
    tuned = ("sft={select: {kind: best-of-sources}}", "preference={}", "prompts.split={sft: 1.0, preference: 0}")
    carry_out(recipe, tmp_path, *tuned, until="select-sft")
    with store_of(tmp_path) as (fusion, store):
        assert len(read_report(read_only(fusion, store)).rows["sft"]) == len(IDS)
    with closing(Store(fusion.store_path)) as store, store.transaction() as connection:
        connection.execute("DELETE FROM scores")
    with pytest.raises(InputError, match=r"score-sources has scored 10 answers, but by other rules, weights or files"):
        rewrite_report(tmp_path)


def test_scores_of_a_model_that_is_gone_are_not_missed(recipe: Path, tmp_path: Path) -> None:
    """The target is trained and sampled again; until then its old scores belong to no answer."""
    own = ("sft={select: {kind: best-of-sources}}", "prompts.split.sft=0.5", "target.samples=null")
    carry_out(recipe, tmp_path, *own, until="score-sources")
    counts = {"answers": 6.0}
    with closing(Store(tmp_path / "store.sqlite")) as store:
        fusion = fusion_of(recipe, tmp_path, *own)
        store.finish_stage(fusion.run_name, FinishedStage("score-target", "", 1.0, 0, counts))
        stage, run = ScoreStage(fusion, "target"), read_only(fusion, store)
        assert stage.show(run).summary == {}


@contextmanager
def store_of(run: Path) -> Iterator[tuple[Fusion, Store]]:
    fusion = load_run(run)._fusion
    with closing(Store(fusion.store_path, read_only=True)) as store:
        yield fusion, store


def test_a_summary_names_the_scorers(recipe: Path, tmp_path: Path) -> None:
    held_out = (
        "prompts.split={held_out: 1, preference: rest}",
        "evaluation={held_out: {scorer: {kind: recorded, path: scores.jsonl}}}",
    )
    folder = carry_out(recipe, tmp_path, *held_out, until="score-sources")
    with store_of(folder) as (fusion, store):
        summary = summarise(read_only(fusion, store), [])
    assert summary["scorers"] == {"training": "recorded", "held_out": "recorded"}
    assert summary["seed"] == 3
    assert set(summary["stages"]) == {"prompts", "sample-sources", "score-sources"}


def test_invalid_verdicts_are_counted_beside_all_answers() -> None:
    tally = _Tally("score-sources")
    prompt = Prompt("p", (Message("user", "Why?"),))
    details: list[dict[str, str]] = [{}, {"reason": "invalid-verdict"}, {"reason": "other"}]
    for index, detail in enumerate(details):
        response = Response(f"r{index}", "p", "a", index, "So.", "stop", 0, 0)
        value = math.nan if detail else 2.0
        tally.add(Exchange(prompt, response), Score(response.id, "judge", value, None, detail))
    expected = {"answers": 3, "scored now": 0, "without a score": 2, "invalid verdicts": 1, "mean score": 2.0}
    assert tally.counts == expected


# --- exports ----------------------------------------------------------------------------------------------------------


def test_an_export_tells_of_what_it_is_made(run: Path, tmp_path: Path) -> None:
    exported = export_rows(run, tmp_path / "out", format_name="wrpo")
    assert exported.to_json() == {"folder": str(tmp_path / "out"), "counts": {"m": 6}, "dropped": {}}
    card = (tmp_path / "out" / "README.md").read_text()
    expected = """\
Training rows made by fusing several models' answers.

- target: someone/small-1b
- source `a`: recorded answers, a.jsonl
- source `b`: recorded answers, b.jsonl
- scorer: recorded

The licences of these models and of the prompts apply.

Format `wrpo`: the WRPO authors' quadruples: chosen holds the source's answer and the target's.

```python
from datasets import load_dataset

rows = load_dataset("PATH", "m", split="train")
```
"""
    assert card.partition("# run\n\n")[2].partition("\n| configuration")[0] == expected


def test_an_export_of_answers_has_a_configuration_for_each_model(run: Path, tmp_path: Path) -> None:
    exported = export_rows(run, tmp_path / "out", format_name="ultrafeedback-armorm")
    assert exported.counts == {"target": 6}, "the sources have one answer to each prompt, which is no pair"
    lines = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert {line["subject"] for line in lines if line["stage"] == "export-a"} == {*IDS[:4]}
    assert {line["subject"] for line in lines if line["stage"] == "export-b"} == {*IDS}
    assert "größe" in (tmp_path / "out" / "dropped.jsonl").read_text(), "as it is, not escaped"
    with pytest.raises(InputError, match=r"unknown rows 'x'; choose from a, b, target"):
        export_rows(run, tmp_path / "out", format_name="ultrafeedback-armorm", names=["x"])


# --- plans ------------------------------------------------------------------------------------------------------------


def planned(recipe: Path, output: Path, *overrides: str) -> Plan:
    return plan_fusion(fusion_of(recipe, output, *overrides))


def test_a_plan_names_files_of_answers_that_are_missing(recipe: Path, tmp_path: Path) -> None:
    plan = planned(recipe, tmp_path, "target.samples.path=none.jsonl", "sources.a.path=no.jsonl")
    missing = [note for note in plan.notes if "answers is missing" in note]
    assert missing == ["a: its file of answers is missing", "target: its file of answers is missing"]
    assert plan.to_json()["money"] == 0.0
    assert plan.memory_bytes == 4 * 4 * 10**9


def test_prompts_of_rounds_with_one_scorer_are_checked_once(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sources' round and the target's share the preference part."""
    checked: list[str] = []
    monkeypatch.setattr("sinterlm.pipeline.stages.score._check_answers", lambda *given: checked.append(given[-1]))
    check_inputs(fusion_of(recipe, tmp_path / "run", "sft={select: {kind: best-of-sources}}"), reads_target=False)
    assert checked == ["sft", "preference"]


def test_numbers_of_prompts_are_shown_in_full() -> None:
    assert [show_count(part) for part in (1234, [Prompt("p", ())], None)] == ["1,234", "1", "unknown"]


def test_a_plan_without_the_prompts_names_every_stage(recipe: Path, tmp_path: Path) -> None:
    missing = ("prompts={path: none.jsonl, split: {held_out: 0, sft: 0.5, preference: rest}}", SOURCE)
    plan = planned(recipe, tmp_path, *missing, "sft={select: {kind: best-of-sources}}")
    assert [stage.name for stage in plan.stages][:4] == ["prompts", "sample-sources", "score-sources", "select-sft"]


def test_a_plan_says_what_the_models_are(recipe: Path, tmp_path: Path) -> None:
    plan = planned(recipe, tmp_path, SOURCE, "sources.b={engine: recorded, path: b.jsonl}")
    said = {"target": "small-1b, chat", "s": "large-2b, chat", "b": "recorded answers, b.jsonl"}
    assert {name: text.rpartition("/")[2] for name, text in plan.models.items()} == said
    console = Terminal(file=(lines := StringIO()), width=140)
    print_plan(plan, console)
    assert [line for line in lines.getvalue().splitlines() if line.startswith("b: ")] == [
        "b: recorded answers, b.jsonl"
    ]


def test_status_says_what_is_done_and_tables_have_names(recipe: Path, tmp_path: Path) -> None:
    folder = carry_out(recipe, tmp_path / "run", until="score-sources")
    states = {stage["name"]: stage["state"] for stage in status_of(folder)["stages"]}
    assert [name for name, state in states.items() if state == "done"] == ["prompts", "sample-sources", "score-sources"]
    assert {state for name, state in states.items()} == {"done", "to do"}
    with pytest.raises(InputError, match="unknown table 'answer'; did you mean answers"):
        load_run(folder).table("answer")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "passes"),
    [
        ("learning_rate: 0.1", 6 + 2),
        ("gradient_checkpointing: true", 8 + 2),
        ("activation_checkpointing: true", 8 + 2),
        ("max_steps: 3, per_device_train_batch_size: 2, gradient_accumulation_steps: 2", 12 + 2),
    ],
)
def test_the_hours_of_a_training_by_hand(recipe: Path, tmp_path: Path, argument: str, passes: int) -> None:
    """6 prompts of 4 tokens, each with three answers of 512; operations for each weight and token."""
    plan = planned(recipe, tmp_path, f"preference.m.train={{num_train_epochs: 1, {argument}}}")
    hours = next(stage.gpu_hours for stage in plan.stages if stage.name == "train-m")
    assert hours is not None
    assert hours["A100"] == pytest.approx(passes * 1e9 * 6 * (4 + 3 * 512) / 78e12 / 3600)


def figures(plan: Plan, name: str) -> tuple[Any, ...]:
    stage = next(stage for stage in plan.stages if stage.name == name)
    hours = stage.gpu_hours and stage.gpu_hours["A100"]
    return stage.calls, stage.prompt_tokens, stage.new_tokens, stage.disk_bytes, hours


def sampling_hours(calls: int, prompt_tokens: float, new_tokens: float) -> Any:
    return pytest.approx(calls * 4e9 * (prompt_tokens / 125e12 + new_tokens / 31e12) / 3600)


def test_the_figures_of_sampling_by_hand(recipe: Path, tmp_path: Path) -> None:
    """Prompts of 4 tokens, two answers of up to 100; 600 bytes for each, plus its text at 4 bytes per token."""
    plan = planned(recipe, tmp_path, SOURCE)
    assert figures(plan, "sample-sources") == (12, 48, 1200, 12_000, sampling_hours(12, 4, 100))
    assert plan.to_json()["total"]["calls"] == 12 + 12 + 6 * 5, "to sample, and to score: at most five of the target"


def test_the_figures_of_sampling_long_answers_to_prompts_that_are_not_there(recipe: Path, tmp_path: Path) -> None:
    """Their tokens are not counted; the hours assume 200 per prompt and 512 per long answer."""
    counted = (SOURCE, "prompts={path: none.jsonl, split: {preference: 5}}", "sources.s.sampling.max_new_tokens=1000")
    assert figures(planned(recipe, tmp_path, *counted), "sample-sources") == (
        10, None, 10_000, 46_000, sampling_hours(10, 200, 512),
    )  # fmt: skip
    assert figures(planned(recipe, tmp_path, *counted, "prompts.split.preference=0.5"), "sample-sources") == (None,) * 5


def test_the_figures_of_sampling_by_what_is_stored(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinterlm.pipeline.sampling_cost.cached_fingerprint", lambda model: "known")
    fusion = fusion_of(recipe, tmp_path, SOURCE)
    (request,) = fusion.rounds["sources"].requests
    prompts = [Prompt(name, (Message("user", QUESTION.format(number)),)) for number, name in enumerate(IDS)]
    identity = request.identity(lambda model: "known")
    assert identity is not None
    with closing(Store(fusion.store_path)) as store:
        store.set_prompts(fusion.run_name, {"preference": prompts})
        store.add_responses(identity, [(prompts[0], answer(request, identity, prompts[0], "stop", 30, 20))])
        stage = estimate_sampling(
            "s", [(request, prompts)], Forecast(fusion, {}, store, [Past(store, fusion.run_name)])
        )
    assert (stage.calls, stage.prompt_tokens, stage.new_tokens) == (11, 330, 220)
    assert stage.disk_bytes == 11 * (600 + 20 * 4)
    assert stage.gpu_hours is not None
    assert stage.gpu_hours["A100"] == sampling_hours(11, 30, 20)


def answer(
    request: SamplingRequest, identity: str, prompt: Prompt, reason: Any, num_prompt_tokens: int, num_tokens: int
) -> Response:
    return Response(
        response_id(identity, prompt.content_hash, 0), prompt.id, request.participant.name, 0, "", reason,
        num_prompt_tokens, num_tokens, request.settings,
    )  # fmt: skip


GRID = (
    "preference.m.grid=[{train.learning_rate: [0.1, 0.2, 0.3]}]",
    "prompts.split={held_out: 1, development: 2}",
    "evaluation={held_out: {scorer: {kind: recorded, path: scores.jsonl}, max_new_tokens: 10}}",
)


def test_the_figures_of_a_search_by_hand(recipe: Path, tmp_path: Path) -> None:
    """Three trainings on three prompts, and each model answers two; two models of 4 GB at once."""
    plan = planned(recipe, tmp_path, *GRID)
    stage = next(stage for stage in plan.stages if stage.name == "search-m")
    assert (stage.calls, stage.prompt_tokens, stage.new_tokens) == (6, 24, 60)
    assert stage.disk_bytes == 6 * (600 + 40) + 2 * 4 * 10**9
    assert stage.gpu_hours is not None
    training = 8e9 * 3 * (4 + 3 * 512) / 78e12 / 3600
    asking = 6 * 2e9 * (4 / 125e12 + 10 / 31e12) / 3600
    assert stage.gpu_hours["A100"] == pytest.approx(3 * training + asking)
    assert stage.note == ("trainings: 3 at most, 2 models at once, and up to 24.0 GB of checkpoints during training")
    unknown = planned(recipe, tmp_path, *GRID, "target.model=someone/small")
    stage = next(stage for stage in unknown.stages if stage.name == "search-m")
    assert (stage.calls, stage.disk_bytes, stage.gpu_hours, stage.note) == (6, None, None, "trainings: 3 at most")


# --- messages of stages that refuse -----------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["[{train.lr_scheduler_type: [linear, loud]}]", "[]"])
def test_every_cells_arguments_are_checked_before_the_first_answer(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: str
) -> None:
    monkeypatch.setattr("sinterlm.pipeline.stages.train._check_target", lambda fusion, inputs: None)
    own = "linear" if "loud" in grid else "loud"
    overrides = (*GRID, f"preference.m.grid={grid}", f"preference.m.train={{lr_scheduler_type: {own}}}")
    fusion = fusion_of(recipe, tmp_path, *overrides)
    inputs = Inputs(fusion, {}, None, reads_target=True, allow_code=False)
    with pytest.raises(InputError, match="loud"):
        Train(fusion, "m").check(inputs)


def test_a_selection_without_rows_says_why(recipe: Path, tmp_path: Path) -> None:
    expected = (
        r"select-m: none of its 6 prompts gives a training row \(target-margin-outside-window: 6\); "
        "check the answers and scores, or try more prompts, more samples or other sources"
    )
    with pytest.raises(ToleranceError, match=expected):
        carry_out(recipe, tmp_path, "preference.m.select.min_margin=9.0", until="select-m")


@pytest.mark.parametrize(
    ("reason", "dropped", "error"),
    [
        ("prompt-too-long", "7 tokens as s is asked", r"model s: none of the 1 prompts can be asked; the first, 'p0': "
                                                     r"prompt-too-long, 7 tokens as s is asked; use other prompts"),
        ("prompt-refused", "s: refused before, with messages of the roles system, user", "prompt-refused, s: refused"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_asked_are_dropped(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, dropped: str, error: str
) -> None:
    """As found by an earlier run: nothing is left to ask, and no model is loaded."""
    monkeypatch.setattr(SamplingRequest, "identity", lambda request: "known")
    fusion = fusion_of(recipe, tmp_path, SOURCE, "sources.s.sampling.num_samples=1")
    (request,) = fusion.rounds["sources"].requests
    prompts = [Prompt(f"p{n}", (Message("system", "Be brief."), Message("user", f"{n}?"))) for n in range(2)]
    monkeypatch.setattr(SamplingRequest, "build_engine", lambda request, on_loaded: OneByOne())
    with closing(Store(fusion.store_path)) as store:
        reasons = (reason, "stop")
        answers = [(p, answer(request, "known", p, why, 7, 3)) for p, why in zip(prompts, reasons, strict=True)]
        store.add_responses("known", answers)
        run = read_only(fusion, store)
        result = sample(run, "sample-sources", [request], prompts)
        assert [(drop.subject, drop.reason, drop.detail) for drop in result.dropped] == [
            (answers[1][1].id, "empty-answer", "s on p1, sample 0"),
            ("p0", reason, dropped),
        ]
        assert result.counts == {"s answers": 1, "s sampled now": 0, "s cut by the limit": 0}
        with pytest.raises(ToleranceError, match=error):
            sample(run, "sample-sources", [request], prompts[:1], must_answer=True)
        with pytest.raises(ToleranceError, match="model s: all 1 answers are empty"):
            sample(run, "sample-sources", [request], prompts[1:], must_answer=True)


class OneByOne:
    """An engine that is never asked."""

    def batches(self, items: Sequence[Any]) -> list[list[Any]]:
        return [[item] for item in items]

    def close(self) -> None:
        pass
