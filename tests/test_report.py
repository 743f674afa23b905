"""The report page, opened in a real browser: what it shows equals the data, and nothing in the data can act."""

from __future__ import annotations

import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sinterlm.evaluation.figures import Figures
from sinterlm.evaluation.rates import Comparison, Difference, Rate, pass_rate
from sinterlm.evaluation.rewards import RewardAccuracies
from sinterlm.records import Candidates, Dropped, Message, Prompt, Response, RowResponse, Score, Scored, TrainingRow
from sinterlm.report import write_report
from sinterlm.report.data import (
    AverageLogps,
    HeldOut,
    ReportData,
    RunFacts,
    Search,
    SearchedCell,
    StageFacts,
    TrainingRun,
)
from tests.pages import Opened, needs_browser, open_page, parse

HOSTILE = "<script>alert(1)</script></script><img src=x onerror='document.title=\"owned\"'>\u2028{{ 7 * 7 }}"


# --- data ---


def scored(prompt_id: str, source: str, index: int, content: str, *, passed: bool, finish: str = "stop") -> Scored:
    response = Response(f"{prompt_id}/{source}/{index}", prompt_id, source, index, content, finish, 40, 3)  # type: ignore[arg-type]
    return Scored(response, Score(response.id, "exact-match:1", float(passed), passed, {"contains": 1.0}))


def prompt(number: int, question: str, answer: str, domain: str) -> Prompt:
    return Prompt(f"q{number}", (Message("user", question),), (answer,), domain)


def small_run() -> ReportData:
    """Two sources and three prompts, one per part, with figures that a reader can count.

    Of gemma's 4 training answers 3 pass, of smollm2's 4 one; y_ws is gemma's in both selections.
    """
    learn, prefer, ask = (
        prompt(1, "What is the capital of France?", "Paris", "capital"),
        prompt(2, "What is the opposite of hot?", "cold", "opposite"),
        prompt(3, "What is the plural of ox?", "oxen", "plural"),
    )
    parts = {
        "sft": [
            Candidates(
                learn,
                (
                    scored("q1", "gemma", 0, "Paris", passed=True),
                    scored("q1", "gemma", 1, "Paris", passed=True),
                    scored("q1", "smollm2", 0, "France", passed=False),
                    scored("q1", "smollm2", 1, HOSTILE, passed=False, finish="length"),
                ),
            )
        ],
        "preference": [
            Candidates(
                prefer,
                (
                    scored("q2", "gemma", 0, "cold", passed=True),
                    scored("q2", "gemma", 1, "warm", passed=False),
                    scored("q2", "smollm2", 0, "cold", passed=True),
                    scored("q2", "smollm2", 1, "ice", passed=False),
                ),
                (
                    scored("q2", "target-sft", 0, "cold", passed=True),
                    scored("q2", "target-sft", 1, "lukewarm", passed=False),
                ),
            ),
            Candidates(prompt(4, "What is the opposite of up?", "down", "opposite"), ()),
        ],
        "held_out": [Candidates(ask, ())],
    }
    rows = {
        "sft": [TrainingRow("q1", learn.messages, (RowResponse("Paris", "chosen", "gemma", 1),))],
        "wrpo": [
            TrainingRow(
                "q2",
                prefer.messages,
                (
                    RowResponse("cold", "chosen_source", "gemma", 0),
                    RowResponse("cold", "chosen_target", "target-sft", 0),
                    RowResponse("lukewarm", "rejected", "target-sft", 1),
                ),
            )
        ],
        "dpo": [
            TrainingRow(
                "q2",
                prefer.messages,
                (
                    RowResponse("cold", "chosen", "target-sft", 0),
                    RowResponse("lukewarm", "rejected", "target-sft", 1),
                ),
            )
        ],
    }
    models = {
        "gemma": {"exact_match": Rate(0.3, 0.232, 0.378, 150), "contains": Rate(0.32, 0.251, 0.399, 150)},
        "smollm2": {"exact_match": Rate(0.48, 0.402, 0.559, 150), "contains": Rate(0.5, 0.421, 0.579, 150)},
        "target": {"exact_match": Rate(0.0, 0.0, 0.025, 150), "contains": Rate(0.487, 0.408, 0.566, 150)},
        "target-sft": {"exact_match": Rate(0.54, 0.46, 0.618, 150), "contains": Rate(0.553, 0.473, 0.63, 150)},
        "target-sft-wrpo": {"exact_match": Rate(0.573, 0.493, 0.65, 150), "contains": Rate(0.587, 0.507, 0.663, 150)},
    }
    held_out = HeldOut(
        scorer="exact-match",
        figures=Figures(
            models=models,
            domains={
                model: {
                    domain: {"exact_match": pass_rate([1.0] * passes + [0.0] * (n - passes))}
                    for domain, passes, n in (("plural", 30, 40), ("capital", 11, 110))
                }
                for model in models
            },
            comparisons=[
                Comparison("target-sft-wrpo", "target", "exact_match", Difference(0.573, 0.493, 0.653, 150)),
                Comparison("target-sft-wrpo", "smollm2", "exact_match", Difference(0.093, -0.007, 0.187, 150)),
                Comparison("target-sft-wrpo", "target", "contains", Difference(0.1, 0.013, 0.187, 150)),
                Comparison("target-sft-wrpo", "smollm2", "contains", Difference(0.087, -0.013, 0.18, 150)),
            ],
        ),
        answers={
            "target": [scored("q3", "target", 0, "The plural is oxes.", passed=False)],
            "target-sft-wrpo": [scored("q3", "target-sft-wrpo", 0, "oxen", passed=True)],
        },
    )
    return ReportData(
        run=RunFacts(
            name="quickstart",
            target="HuggingFaceTB/SmolLM2-135M-Instruct",
            sources={"gemma": "gemma-3-270m, few-shot prompt", "smollm2": "SmolLM2-135M, few-shot prompt"},
            scorer="exact-match",
            seed=7,
            seconds=462.0,
            stages=[
                StageFacts("sample-sources", 42.0, {"responses": 2145}, 1_900_000_000),
                StageFacts("train-wrpo", 95.5, {"rows": 128, "steps": 48}, 5_120_000_000),
            ],
            peak_memory_bytes=5_120_000_000,
        ),
        parts=parts,  # type: ignore[arg-type]
        rows=rows,
        dropped=[
            Dropped("q4", "select-wrpo", "no-eligible-source-answer", "0 answers"),
            Dropped("q4", "select-dpo", "made-up-reason", "a detail of it"),
            Dropped("q1/smollm2/0", "score", "made-up-reason", "an answer set aside"),
        ],
        held_out=held_out,
        average_logps=[
            AverageLogps(model, responses, [centre + 0.1 * step for step in range(-5, 6)])  # type: ignore[arg-type]
            for model, responses, centre in (
                ("target", "chosen_source", -4.0),
                ("target", "target", -0.75),
                ("target-sft", "chosen_source", -1.5),
                ("target-sft", "target", -1.0),
            )
        ],
        training=[
            TrainingRun(
                "sft", "SFT", [{"step": step, "loss": 2.0 / step, "num_tokens": 60 * step} for step in (1, 2, 4)]
            ),
            TrainingRun("dpo", "DPO: beta 0.1", [preference_metrics(step, None) for step in range(1, 31)]),
            TrainingRun(
                "wrpo", "WRPO: beta 0.1, alpha to 0.5", [preference_metrics(step, 30) for step in range(1, 31)]
            ),
        ],
        reward_accuracies={
            "target-sft-wrpo": RewardAccuracies(
                source_chosen=Rate(0.712, 0.62, 0.79, 104),
                target_chosen=Rate(0.654, 0.558, 0.739, 104),
                chosen=Rate(0.683, 0.588, 0.765, 104),
            )
        },
    )


def preference_metrics(step: int, ramp_steps: int | None) -> Mapping[str, float | None]:
    """One record of ``metrics.jsonl``; with ``ramp_steps`` that of WRPO."""
    shared: dict[str, float | None] = {
        "step": step,
        "loss": 0.693 - 0.004 * step,
        "rewards/chosen": 0.01 * step,
        "rewards/rejected": -0.005 * step,
        "rewards/margins": 0.015 * step,
        "rewards/accuracies": 0.75,
    }
    if ramp_steps is None:
        return shared
    return shared | {
        "rewards/source_chosen": 0.02 * step,
        "rewards/target_chosen": 0.008 * step,
        "alpha": 0.5 * step / ramp_steps,
    }


# --- the page in the browser ---


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(small_run(), path)
    return path


@pytest.fixture(scope="module")
def opened(page_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    return open_page(page_path, profile=tmp_path_factory.mktemp("profile"))


@needs_browser
def test_held_out_table_equals_the_data(opened: Opened) -> None:
    assert opened.root.by_id("held-out-figures").table == [
        ["gemma", "30.0", "23.2 to 37.8", "32.0", "25.1 to 39.9", "150"],
        ["smollm2", "48.0", "40.2 to 55.9", "50.0", "42.1 to 57.9", "150"],
        ["target", "0.0", "0.0 to 2.5", "48.7", "40.8 to 56.6", "150"],
        ["target-sft", "54.0", "46.0 to 61.8", "55.3", "47.3 to 63.0", "150"],
        ["target-sft-wrpo", "57.3", "49.3 to 65.0", "58.7", "50.7 to 66.3", "150"],
    ]
    assert opened.root.by_id("comparisons").table == [
        ["target-sft-wrpo", "target", "exact match", "+57.3", "49.3 to 65.3", "yes"],
        ["target-sft-wrpo", "smollm2", "exact match", "+9.3", "-0.7 to 18.7", "no"],
        ["target-sft-wrpo", "target", "contains", "+10.0", "1.3 to 18.7", "yes"],
        ["target-sft-wrpo", "smollm2", "contains", "+8.7", "-1.3 to 18.0", "no"],
    ]


@needs_browser
def test_headline_names_the_last_fused_model_the_target_and_the_best_source(opened: Opened) -> None:
    tiles = [tile.text for tile in opened.root.find_all(css_class="tile")]
    assert tiles == [
        "57.3 % target-sft-wrpo 95 % interval 49.3 to 65.0",
        "0.0 % target before fusion, 0.0 to 2.5",
        "48.0 % smollm2 the best source, 40.2 to 55.9",
    ]
    lede = opened.root.find_all("header")[0].text
    assert "+57.3 points (95 % interval 49.3 to 65.3: zero is outside)" in lede
    assert "+9.3 points (95 % interval -0.7 to 18.7: zero is inside, so it may be chance)" in lede


def test_headline_follows_the_featured_model(tmp_path: Path) -> None:
    data = small_run()
    assert data.held_out is not None
    write_report(replace(data, held_out=replace(data.held_out, featured="target-sft")), tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text())
    assert root.find_all(css_class="tile")[0].text == "54.0 % target-sft 95 % interval 46.0 to 61.8"
    (ask,) = [entry for entry in embedded_prompts((tmp_path / "report.html").read_text()) if entry["id"] == "q3"]
    assert ask["outcomes"] == [], "target-sft has no answer to compare"


@needs_browser
def test_form_remark_stands_where_contains_is_far_above_exact_match(opened: Opened) -> None:
    (remark,) = opened.root.find_all(css_class="remark")
    assert "in 48.7 % of the questions, but its answer is exactly that in only 0.0 %" in remark.text


@needs_browser
def test_families_are_listed_by_size(opened: Opened) -> None:
    assert opened.root.by_id("family-figures").table == [
        ["capital", "110", *["10.0"] * 5],
        ["plural", "40", *["75.0"] * 5],
    ]


@needs_browser
def test_counts_are_those_of_the_records(opened: Opened) -> None:
    """3 of gemma's 4 training answers pass, 1 of smollm2's, and 1 of target-sft's 2; 1 of smollm2's was cut."""
    assert opened.root.by_id("score-figures").table == [
        ["gemma", "4", "0.750", "3", "2 of 2", "0", "3.0"],
        ["smollm2", "4", "0.250", "1", "1 of 2", "1", "3.0"],
        ["target-sft", "2", "0.500", "1", "1 of 1", "0", "3.0"],
    ]
    assert opened.root.by_id("source-shares").table == [
        ["gemma", "1", "100.0", "1", "100.0"],
        ["smollm2", "0", "0.0", "0", "0.0"],
    ]
    assert opened.root.by_id("drop-counts").table == [
        [
            "select-wrpo",
            "no-eligible-source-answer",
            "1",
            "every answer of every source is empty, without a score, or cut by the token limit",
        ],
        ["select-dpo", "made-up-reason", "1", "for example: a detail of it"],
        ["score", "made-up-reason", "1", "for example: an answer set aside"],
    ]


@needs_browser
def test_training_tables_equal_the_metrics(opened: Opened) -> None:
    assert opened.root.by_id("training-figures").table == [
        ["sft", "SFT", "4", "240", "2.000", "0.500", "", ""],
        ["dpo", "DPO: beta 0.1", "30", "", "0.689", "0.573", "+0.450", "75.0"],
        ["wrpo", "WRPO: beta 0.1, alpha to 0.5", "30", "", "0.689", "0.573", "+0.450", "75.0"],
    ]
    assert opened.root.by_id("logp-figures").table == [
        ["target", "-4.000", "-0.750", "-3.250"],
        ["target-sft", "-1.500", "-1.000", "-0.500"],
    ]
    assert opened.root.by_id("reward-accuracies").table == [
        ["target-sft-wrpo", "71.2", "62.0 to 79.0", "65.4", "55.8 to 73.9", "68.3", "58.8 to 76.5", "104"]
    ]
    assert opened.root.find_all(css_class="stages")[0].table == [
        ["sample-sources", "42.0 s", "", "1.9 GB", "2,145 responses"],
        ["train-wrpo", "1 min 36 s", "", "5.1 GB", "128 rows, 48 steps"],
    ]


@needs_browser
def test_every_chart_has_title_caption_and_description(opened: Opened) -> None:
    figures = opened.root.find_all("figure")
    assert [figure.find_all("h3")[0].text for figure in figures] == [
        "How well each model answers",
        "What fusion gained, question by question",
        "Training answers that pass",
        "Whose answers are preferred",
        "How far apart the pairs are",
        "Average log-probability of the sources' and the target's own answers",
        "Internal rewards during preference training",
        "Does the internal reward rank held-out answers correctly?",
        "Training loss",
    ]
    for figure in figures:
        (svg,) = figure.find_all("svg")
        assert svg.attributes["role"] == "img"
        assert len(svg.attributes["aria-label"]) > 40
        assert figure.find_all("figcaption")[0].text.endswith(".")
        assert svg.find_all("text"), "text stays text"
    held_out = figures[0].find_all("svg")[0]
    assert "target-sft-wrpo: exact match 57.3, contains 58.7" in held_out.attributes["aria-label"]
    assert "questions answered (%)" in [text.text for text in held_out.find_all("text")]


@needs_browser
def test_charts_take_their_colours_from_the_colour_scheme(opened: Opened) -> None:
    """Every colour that a chart names is a CSS variable, defined for light and dark."""
    styles = ";".join(
        element.attributes.get("style", "") for svg in opened.root.find_all("svg") for element in svg.walk()
    )
    used = set(re.findall(r"(?:fill|stroke): (?!none)([^;]+)", styles))
    assert used == {
        f"var(--{name})" for name in ("ink", "muted", "grid", "paper", "source", "target", "fused", "rejected")
    }
    light, dark = opened.root.find_all("style")[0].text.split("@media (prefers-color-scheme: dark)")
    for variable in used:
        name = variable[4:-1]
        assert f"{name}: #" in light
        assert f"{name}: #" in dark


@needs_browser
def test_browser_lists_all_prompts(opened: Opened) -> None:
    prompts = opened.root.by_id("prompt-list").find_all("details")
    assert [prompt.find_all(css_class="question")[0].text for prompt in prompts] == [
        "What is the capital of France?",
        "What is the opposite of hot?",
        "What is the opposite of up?",
        "What is the plural of ox?",
    ]
    assert prompts[1].find_all(css_class="facts")[0].text == "preference · opposite · 3 of 6 samples pass"
    assert opened.root.by_id("position").text == "1 to 4 of 4"
    assert opened.root.by_id("shown-of").text.startswith("All 4 prompts of the run")


@needs_browser
@pytest.mark.parametrize(
    ("fragment", "expected"),
    [
        ("#family=opposite", ["What is the opposite of hot?", "What is the opposite of up?"]),
        ("#q=LUKEWARM", ["What is the opposite of hot?"]),
        ("#part=held_out&outcome=gained", ["What is the plural of ox?"]),
        ("#outcome=dropped", ["What is the opposite of up?"]),
        ("#q=nothing-like-it", []),
    ],
)
def test_filter_in_the_address(page_path: Path, tmp_path: Path, fragment: str, expected: list[str]) -> None:
    prompts = open_page(page_path, fragment=fragment, profile=tmp_path).root.by_id("prompt-list").find_all("details")
    assert [prompt.find_all(css_class="question")[0].text for prompt in prompts] == expected


@needs_browser
def test_pages_in_the_address(tmp_path: Path) -> None:
    write_report(large_run(45, 1, 10), tmp_path / "report.html")
    root = open_page(tmp_path / "report.html", fragment="#page=3", profile=tmp_path / "profile").root
    prompts = root.by_id("prompt-list").find_all("details")
    assert [prompt.find_all(css_class="question")[0].text for prompt in prompts] == [
        f"Question {number}?" for number in range(40, 45)
    ]
    assert root.by_id("position").text == "41 to 45 of 45"
    assert "disabled" in root.by_id("next").attributes
    assert "disabled" not in root.by_id("previous").attributes


@needs_browser
def test_filter_and_pager_by_hand(tmp_path: Path) -> None:
    """A visitor's script types, waits and turns the page, in a copy of the page whose policy lets it run."""
    write_report(large_run(500, 1, 10), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    visitor = """<script>
      const search = document.querySelector("input[name=q]");
      search.value = "question 1";
      search.dispatchEvent(new Event("input", { bubbles: true }));
      setTimeout(() => document.getElementById("next").click(), 1000);
    </script></body>"""
    html = re.sub("<meta http-equiv.*?>", "", html).replace("</body>", visitor)
    (tmp_path / "report.html").write_text(html)
    root = open_page(tmp_path / "report.html", profile=tmp_path / "profile").root
    # Questions 1, 10 to 19 and 100 to 199 match: 111; the second page begins with the 21st, which is 109.
    assert root.by_id("position").text == "21 to 40 of 111"
    assert root.by_id("prompt-list").find_all(css_class="question")[0].text == "Question 109?"


@needs_browser
def test_opened_prompt_shows_every_answer_with_score_and_roles(page_path: Path, tmp_path: Path) -> None:
    root = open_page(page_path, fragment="#q=q2", profile=tmp_path).root
    (table,) = root.by_id("prompt-list").find_all("table")
    assert [[cell.text for cell in row.children] for row in table.find_all("tbody")[0].children] == [
        ["gemma", "0", "cold", "✓ pass", "3", "wrpo: chosen_source"],
        ["gemma", "1", "warm", "✗ fail", "3", ""],
        ["smollm2", "0", "cold", "✓ pass", "3", ""],
        ["smollm2", "1", "ice", "✗ fail", "3", ""],
        ["target-sft", "0", "cold", "✓ pass", "3", "wrpo: chosen_targetdpo: chosen"],
        ["target-sft", "1", "lukewarm", "✗ fail", "3", "wrpo: rejecteddpo: rejected"],
    ]
    held_out = open_page(page_path, fragment="#q=oxen", profile=tmp_path).root.by_id("prompt-list").find_all("tbody")[0]
    assert held_out.table == [
        ["target", "The plural is oxes.", "✗ fail", "3"],
        ["target-sft-wrpo", "oxen", "✓ pass", "3"],
    ]


@needs_browser
def test_hostile_answers_are_inert_text(page_path: Path, tmp_path: Path) -> None:
    page = open_page(page_path, fragment="#q=q1", profile=tmp_path)
    texts = [element.text for element in page.root.by_id("prompt-list").find_all(css_class="text")]
    assert " ".join(HOSTILE.split()) in texts
    assert page.root.find_all("title")[0].text == "quickstart: Sinter report"
    assert not page.root.find_all("img")
    assert len(page.root.find_all("script")) == 2


@needs_browser
def test_hostile_names_are_inert_text_too(tmp_path: Path) -> None:
    data = small_run()
    assert data.held_out is not None
    hostile = f"{HOSTILE}\x07$a$"
    models = data.held_out.figures.models
    figures = replace(data.held_out.figures, models={hostile: models["gemma"], **models})
    run = replace(data.run, name=hostile, sources={hostile: hostile}, scorer=hostile)
    write_report(replace(data, run=run, held_out=replace(data.held_out, figures=figures)), tmp_path / "report.html")
    page = open_page(tmp_path / "report.html", profile=tmp_path / "profile")
    assert page.root.by_id("held-out-figures").table[0][0] == " ".join(hostile.split())
    assert not page.root.find_all("img")
    assert not page.console


@needs_browser
def test_page_refers_to_nothing_outside_and_logs_nothing(opened: Opened) -> None:
    for element in opened.root.walk():
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert element.attributes.get(name, "#").startswith("#"), (element.tag, element.attributes)
    assert "url(" not in opened.root.find_all("style")[0].text
    assert not opened.console


@needs_browser
def test_console_errors_would_be_seen(tmp_path: Path) -> None:
    """The control of the test above: its listener hears an error, and the policy stops other scripts."""
    write_report(small_run(), tmp_path / "report.html")
    tampered = (
        (tmp_path / "report.html").read_text().replace("</body>", "<script>document.title='owned'</script></body>")
    )
    (tmp_path / "report.html").write_text(tampered)
    page = open_page(tmp_path / "report.html", profile=tmp_path / "profile")
    assert page.console
    assert page.root.find_all("title")[0].text == "quickstart: Sinter report"


# --- the page as written ---


def test_same_data_give_the_same_bytes(page_path: Path, tmp_path: Path) -> None:
    write_report(small_run(), tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes() == page_path.read_bytes()


def large_run(num_prompts: int, num_answers: int, num_characters: int) -> ReportData:
    answer = "ü" * (num_characters // 2)
    candidates = [
        Candidates(
            prompt(number, f"Question {number}?", "yes", "large"),
            tuple(scored(f"q{number}", "gemma", index, answer, passed=index == 0) for index in range(num_answers)),
        )
        for number in range(num_prompts)
    ]
    return ReportData(run=small_run().run, parts={"preference": candidates})


def test_huge_run_keeps_to_20_mb_and_says_what_it_shows(tmp_path: Path) -> None:
    """4,000 prompts with 10 answers of 1,000 bytes are 40 MB of answers; figures still count all 40,000."""
    write_report(large_run(4_000, 10, 1_000), tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    size = (tmp_path / "report.html").stat().st_size
    assert 19_900_000 < size <= 20_000_000
    shown = embedded_prompts(html)
    assert f"Showing {len(shown):,} of 4,000 prompts, drawn at random" in html
    numbers = [int(entry["id"][1:]) for entry in shown]
    assert numbers == sorted(numbers)
    assert max(numbers) > 3_900, "a sample of all prompts, not the first ones"
    assert '<td class="number">40,000</td>' in html


@pytest.mark.parametrize("max_bytes", [300_000, 400_000])
def test_size_limit_holds_whatever_it_is(tmp_path: Path, max_bytes: int) -> None:
    data = replace(small_run(), parts=large_run(300, 4, 1_000).parts)
    write_report(data, tmp_path / "report.html", max_bytes=max_bytes)
    assert max_bytes - 5_500 < (tmp_path / "report.html").stat().st_size <= max_bytes


def test_seed_decides_the_sample(tmp_path: Path) -> None:
    shown = []
    for seed in (0, 0, 1):
        write_report(large_run(200, 4, 1_000), tmp_path / "report.html", max_bytes=300_000, seed=seed)
        shown.append([entry["id"] for entry in embedded_prompts((tmp_path / "report.html").read_text())])
    assert shown[0] == shown[1] != shown[2]


def embedded_prompts(html: str) -> list[dict[str, Any]]:
    content = parse(html).by_id("prompt-data").content
    prompts: list[dict[str, Any]] = json.loads("".join(content))
    return prompts


def test_texts_that_json_or_utf8_cannot_hold_are_replaced(tmp_path: Path) -> None:
    data = large_run(1, 1, 10)
    (candidates,) = data.parts["preference"]
    (answer,) = candidates.sources
    broken = Scored(
        replace(answer.response, content="a\ud800b\x00\u2029" + "x" * 30_000), replace(answer.score, value=math.nan)
    )
    parts = {"preference": [replace(candidates, sources=(broken, answer))]}
    write_report(replace(data, parts=parts), tmp_path / "report.html")  # type: ignore[arg-type]
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "\u2029" not in html
    samples = embedded_prompts(html)[0]["samples"]
    assert isinstance(samples, list)
    assert samples[0]["text"].startswith("a?b\x00\u2029xxx")
    assert samples[0]["text"].endswith("x [cut for display: 30,005 characters]")
    assert samples[0]["score"] is None


def test_missing_parts_leave_their_sections_out_and_say_why(tmp_path: Path) -> None:
    write_report(ReportData(run=small_run().run), tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text())
    assert not root.find_all("svg")
    assert [len(section.find_all(css_class="missing")) > 0 for section in root.find_all("section")] == [
        *[True] * 6,  # held out, families, answers, likelihood, training, drops
        False,  # the run
        True,  # prompts: the note for readers without JavaScript
    ]
    assert root.by_id("shown-of").text.startswith("All 0 prompts")


def test_graded_scores_show_means_and_distributions(tmp_path: Path) -> None:
    data = small_run()
    rng = random.Random(0)
    graded = {
        part: [
            replace(candidates, sources=grade(candidates.sources, rng), target=grade(candidates.target, rng))
            for candidates in prompts
        ]
        for part, prompts in data.parts.items()
    }
    held_out = HeldOut(
        scorer="reward model",
        figures=Figures(
            models={
                "gemma": {"score": Rate(0.75, 0.5, 1.0, 20)},
                "target": {"score": Rate(-1.5, -1.75, -1.25, 20)},
                "target-sft": {"score": Rate(1.0, 0.875, 1.125, 20)},
            },
            comparisons=[Comparison("target-sft", "target", "score", Difference(2.5, 2.25, 2.75, 20))],
        ),
    )
    write_report(replace(data, parts=graded, held_out=held_out), tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text())
    assert root.by_id("held-out-figures").table[1] == ["target", "-1.500", "-1.750 to -1.250", "20"]
    assert root.by_id("comparisons").table == [["target-sft", "target", "score", "+2.500", "2.250 to 2.750", "yes"]]
    assert "Scores of the training answers" in [heading.text for heading in root.find_all("h3")]
    scores = [
        score.value for prompts in graded.values() for c in prompts for r, score in c.sources if r.source == "gemma"
    ]
    assert root.by_id("score-figures").table[0] == [
        "gemma",
        "4",
        f"{sum(scores) / 4:.3f}",
        "0",
        "3.0",
    ]
    assert not root.find_all(css_class="remark")


def test_rates_and_scores_stand_beside_each_other_each_on_its_own_scale(tmp_path: Path) -> None:
    """As from a scorer by domain: a verifier for sums, a reward model for essays."""
    rates = {
        "gemma": {"exact_match": Rate(0.5, 0.25, 0.75, 8), "score": Rate(-1.5, -2.0, -1.0, 4)},
        "target-sft": {"exact_match": Rate(0.75, 0.5, 1.0, 8), "score": Rate(0.25, 0.125, 0.5, 4)},
        "target": {"score": Rate(-2.0, -2.5, -1.5, 4)},
    }
    held_out = HeldOut(
        scorer="by-domain: verifier for sums; reward model for the rest",
        figures=Figures(
            models=rates,
            domains={
                model: {
                    "sums" if metric == "exact_match" else "essays": {metric: rate} for metric, rate in found.items()
                }
                for model, found in rates.items()
            },
            comparisons=[
                Comparison("target-sft", "gemma", "exact_match", Difference(0.25, 0.125, 0.375, 8)),
                Comparison("target-sft", "gemma", "score", Difference(1.75, 1.5, 2.0, 4)),
            ],
        ),
    )
    write_report(replace(small_run(), held_out=held_out), tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text())
    assert root.by_id("held-out-figures").table == [
        ["gemma", "50.0", "25.0 to 75.0", "-1.500", "-2.000 to -1.000", "8, 4"],
        ["target-sft", "75.0", "50.0 to 100.0", "0.250", "0.125 to 0.500", "8, 4"],
        ["target", "", "", "-2.000", "-2.500 to -1.500", "4"],
    ]
    assert root.by_id("comparisons").table == [
        ["target-sft", "gemma", "exact match", "+25.0", "12.5 to 37.5", "yes"],
        ["target-sft", "gemma", "score", "+1.750", "1.500 to 2.000", "yes"],
    ]
    assert root.by_id("family-figures").table == [
        ["sums", "exact match", "8", "50.0", "75.0", ""],
        ["essays", "score", "4", "-1.500", "0.250", "-2.000"],
    ]
    tiles = [tile.text for tile in root.find_all(css_class="tile")]
    assert [tile.split()[2] for tile in tiles] == ["target-sft", "gemma"], "the target has no exact match"
    labels = [svg.attributes["aria-label"] for svg in root.find_all("svg")]
    assert labels[0].endswith(" gemma: exact match 50; target-sft: exact match 75.")
    assert "target-sft minus gemma, score: +1.75" in labels[1]


def test_alpha_is_drawn_where_a_training_has_it(tmp_path: Path) -> None:
    """What a method prefers may be a source's answer as well as the target's."""

    def texts(*names: str) -> list[str]:
        data = small_run()
        write_report(
            replace(data, training=[run for run in data.training if run.name in names]), tmp_path / "report.html"
        )
        figures = parse((tmp_path / "report.html").read_text()).find_all("figure")
        (figure,) = (each for each in figures if each.find_all("h3")[0].text.startswith("Internal rewards"))
        return [text.text for text in figure.find_all("svg")[0].find_all("text")]

    assert {"alpha", "chosen answer", "target's chosen answer (y_wt)"} <= set(texts("dpo", "wrpo"))
    alone = texts("dpo")
    assert "alpha" not in alone
    assert "chosen answer" in alone


def test_searches_show_their_cells_and_what_was_chosen(tmp_path: Path) -> None:
    rates = Search(
        "wrpo",
        "exact_match",
        [
            SearchedCell(1, "learning_rate 3e-07", Rate(0.5, 0.4, 0.6, 90), loss=0.61, margin=0.25),
            SearchedCell(2, HOSTILE, Rate(0.55, 0.45, 0.65, 90), loss=0.59, margin=-0.5, is_chosen=True),
        ],
    )
    scores = Search("sft", "score", [SearchedCell(1, "max_steps 4", Rate(-1.5, -1.75, -1.25, 20), is_chosen=True)])
    write_report(replace(small_run(), searches=[scores, rates]), tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text())
    assert [table.table for table in root.find_all(css_class="search-figures")] == [
        [["1", "max_steps 4", "-1.500", "-1.750 to -1.250", "20", "", "", "yes"]],
        [
            ["1", "learning_rate 3e-07", "50.0", "40.0 to 60.0", "90", "0.610", "+0.250", ""],
            ["2", " ".join(HOSTILE.split()), "55.0", "45.0 to 65.0", "90", "0.590", "-0.500", "yes"],
        ],
    ]
    captions = [caption.text for caption in root.find_all("caption")]
    assert "Search for the settings of wrpo, on development prompts, with 95 % intervals" in captions


def test_model_without_any_score_stands_in_the_table_only(tmp_path: Path) -> None:
    data = small_run()
    (candidates,) = data.parts["sft"]
    sources = tuple(
        Scored(answer.response, Score("", "rm", math.nan if answer.response.source == "gemma" else 0.5))
        for answer in candidates.sources
    )
    parts = {"sft": [replace(candidates, sources=sources)]}
    write_report(replace(data, parts=parts), tmp_path / "report.html")  # type: ignore[arg-type]
    root = parse((tmp_path / "report.html").read_text())
    assert [row[:3] for row in root.by_id("score-figures").table] == [["gemma", "2", "nan"], ["smollm2", "2", "0.500"]]
    description = next(
        svg.attributes["aria-label"] for svg in root.find_all("svg") if "mean" in svg.attributes["aria-label"]
    )
    assert description == "Histograms. smollm2: mean 0.5."


def grade(answers: Sequence[Scored], rng: random.Random) -> tuple[Scored, ...]:
    return tuple(Scored(answer.response, Score(answer.response.id, "rm", rng.gauss(0, 2))) for answer in answers)


def test_long_trainings_are_drawn_by_means_of_steps(tmp_path: Path) -> None:
    """100,000 steps give a page no larger than 120 points per line need; the last point is the mean of the last 833."""
    records = [{"step": step, "loss": float(step)} for step in range(1, 100_001)]
    write_report(
        replace(small_run(), training=[TrainingRun("sft", "SFT", records)], parts={}), tmp_path / "report.html"
    )
    html = (tmp_path / "report.html").read_text()
    assert len(html) < 300_000
    assert parse(html).by_id("training-figures").table == [
        ["sft", "SFT", "100,000", "", "417.500", "99584.000", "", ""]
    ]


def test_importing_the_report_loads_no_plotting_library() -> None:
    code = "import sys, sinterlm.report; print(sorted({'matplotlib', 'jinja2', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
