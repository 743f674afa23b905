"""Money and time: what a plan says before, and what a run may spend. Every figure is derived by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sinterlm.errors import BudgetError, InputError
from sinterlm.pipeline.budget import Budget as SpendingLimits
from sinterlm.pipeline.compare import compare_runs
from sinterlm.pipeline.finished import rewrite_report
from sinterlm.pipeline.forecast import Forecast, Past
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.ledger import read_ledger
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.schema import Budget
from sinterlm.records import Failure, Message, Prompt, Response, Spent, Usage, response_id
from sinterlm.sampling.settings import Sampling
from sinterlm.scoring.scorers import AnyScorer
from sinterlm.store import Store
from sinterlm.terminal.comparison import print_comparison
from sinterlm.terminal.plan import print_plan
from sinterlm.terminal.status import print_status
from sinterlm.terminal.terminal import Terminal
from tests.priced import Priced

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # Priced is in no table of engines

RECIPE = """\
prompts: {path: prompts.jsonl, split: {sft: 0}}
target: {model: someone/small-1b, samples: {engine: recorded, path: own.jsonl}}
sources:
  a: {engine: recorded, path: a.jsonl}
scorer: {kind: recorded, path: scores.jsonl}
preference:
  m: {select: {kind: wrpo}, objective: {kind: wrpo}}
"""
IDS = tuple(f"p{number}" for number in range(6))
SCORES = {"answer 0": 1.0, "answer 1": 2.0, "a": 1.5, "t": 0.5, "u": 0.0}
SAMPLED = Sampling(num_samples=2, max_new_tokens=100)


@pytest.fixture
def fusion(tmp_path: Path) -> Fusion:
    """Six prompts of 4 tokens, asked twice each of a served model that has a price."""
    files: dict[str, list[dict[str, Any]]] = {
        "prompts": [{"id": name, "prompt": f"How much is it {name[1]}"} for name in IDS],
        "own": [{"prompt_id": name, "response": answer} for name in IDS for answer in "tu"],
        "a": [{"prompt_id": name, "response": "a"} for name in IDS],
        "scores": [
            {"prompt_id": name, "response": answer, "score": score} for name in IDS for answer, score in SCORES.items()
        ],
    }
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    recipe = load_recipe(tmp_path / "recipe.yaml", [f"output={tmp_path / 'run'}"]).recipe
    return Fusion(recipe.model_copy(update={"sources": {"paid": Priced(sampling=SAMPLED)}}))


@pytest.fixture
def store(fusion: Fusion) -> Iterator[Store]:
    fusion.workspace.mkdir(parents=True)
    with closing(Store(fusion.store_path)) as store:
        yield store


def answer(request: SamplingRequest, prompt: Prompt, prompt_tokens: int, tokens: int) -> Response:
    identity = request.identity()
    assert identity is not None
    return Response(
        response_id(identity, prompt.content_hash, 0),
        prompt.id,
        request.participant.name,
        0,
        "",
        "stop",
        prompt_tokens,
        tokens,
        request.settings,
    )


def test_a_plan_prices_the_most_that_a_model_can_write(fusion: Fusion) -> None:
    """12 answers read 4 tokens each at 2 a million and write at most 100 each at 8: 96 and 9,600 millionths."""
    plan = plan_fusion(fusion)
    (sampling,) = (stage for stage in plan.stages if stage.name == "sample-sources")
    assert sampling.money == pytest.approx(96e-6 + 9_600e-6)
    assert (sampling.seconds, sampling.calls) == (None, 12)
    assert plan.to_json()["money"] == sampling.money
    console = Terminal(file=(lines := StringIO()), width=140)
    print_plan(plan, console)
    (row,) = (line for line in lines.getvalue().splitlines() if "paid" in line and "unknown" in line)
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["paid", "12", "48", "1,200", "0.0097", "unknown"]


def test_a_server_without_a_price_has_unknown_money_and_a_model_of_this_machine_none(fusion: Fusion) -> None:
    sources = {**fusion.recipe.sources, "paid": Priced(sampling=SAMPLED, has_price=False)}
    plan = plan_fusion(Fusion(fusion.recipe.model_copy(update={"sources": sources})))
    assert plan.total["money"] is None
    assert "paid: no price in the recipe" in " ".join(plan.notes)
    plan = plan_fusion(Fusion(load_recipe(fusion.recipe.prompts.path.parent / "recipe.yaml", ["output=x"]).recipe))
    assert plan.total["money"] == 0


def test_a_plan_prices_a_judge(fusion: Fusion) -> None:
    """The judge says what 12 answers and their prompts of 4 and at most 100 tokens take; it costs 1 and 2 a million."""
    price = {"input": 1.0, "output": 2.0}
    scorer = TypeAdapter[Any](AnyScorer).validate_python({"kind": "judge", "model": "j", "price": price})
    recipe = fusion.recipe.model_copy(update={"scorer": scorer})
    plan = plan_fusion(Fusion(recipe))
    (scoring,) = (stage for stage in plan.stages if stage.name == "score-sources")
    usage = scorer.expected_usage(12, 12 * (4 + 100))
    assert scoring.money == pytest.approx((usage.prompt_tokens + 2 * usage.new_tokens) / 1e6)
    assert [model.model for model in scoring.models] == ["judge j"]
    unpriced = Fusion(recipe.model_copy(update={"scorer": scorer.model_copy(update={"price": None})}))
    assert plan_fusion(unpriced).total["money"] is None


def test_a_plan_learns_lengths_rates_and_prices_from_the_ledger(fusion: Fusion, store: Store) -> None:
    """Of 12 answers one is there; it took 40 tokens read (30 of them cached), 20 written, and 3 seconds.

    The other 11: 11 x (10 x 2 + 30 x 1 + 20 x 8) = 2,310 millionths, and 33 seconds.
    """
    (request,) = fusion.rounds["sources"].requests
    prompts = [Prompt(name, (Message("user", f"How much is it {name[1]}"),)) for name in IDS]
    identity = request.identity()
    assert identity is not None
    store.add_responses(identity, [(prompts[0], answer(request, prompts[0], 40, 20))])
    store.add_spent(fusion.run_name, Spent("sample-sources", "paid", Usage(1, 40, 30, 20), 1, 0.5, 3.0))
    forecast = Forecast(fusion, {}, store, [Past(store, fusion.run_name)])
    stage = estimate_sampling("sample-sources", [(request, prompts)], forecast)
    assert (stage.calls, stage.prompt_tokens, stage.new_tokens) == (11, 440, 220)
    assert stage.money == pytest.approx(2_310e-6)
    assert stage.seconds == pytest.approx(33)
    unpriced = Priced(sampling=SAMPLED, has_price=False)
    (planned,) = estimate_sampling("sample-sources", [(request, prompts)], forecast).models
    later = forecast.with_costs("sample-sources", planned, Usage(), unpriced.money)
    assert later.money == pytest.approx(11 * 0.5), "a past run knew a price"


def test_a_plan_takes_its_pilot_from_another_workspace(fusion: Fusion, tmp_path: Path) -> None:
    """The pilot has asked half as much in 10 seconds for 600 tokens read and 100 written: 2 x (1,200 + 800)."""
    pilot = tmp_path / "pilot"
    pilot.mkdir()
    (pilot / "recipe.yaml").write_text(
        f"output: {pilot}\n{RECIPE}".replace("prompts.jsonl", f"{tmp_path}/prompts.jsonl")
    )
    with closing(Store(pilot / "store.sqlite")) as store:
        store.add_spent(".", Spent("sample-sources", "paid", Usage(6, 600, 0, 100), 6, 0.0, 10.0))
    plan = plan_fusion(fusion, pilot=pilot)
    (sampling,) = (stage for stage in plan.stages if stage.name == "sample-sources")
    assert sampling.money == pytest.approx(2 * (1_200e-6 + 800e-6))
    assert sampling.seconds == pytest.approx(20)


def with_budget(fusion: Fusion, **limits: float) -> Fusion:
    return Fusion(fusion.recipe.model_copy(update={"budget": Budget.model_validate(limits)}))


def sample_sources(fusion: Fusion) -> list[Spent]:
    run_fusion(fusion, SilentReporter(), until="sample-sources")
    return ledger(fusion)


def ledger(fusion: Fusion) -> list[Spent]:
    with closing(Store(fusion.store_path, read_only=True)) as store:
        return store.ledger(fusion.run_name)


@pytest.mark.parametrize("limits", [{"money": 300e-6}, {"tokens": 75}])
def test_a_budget_stops_what_is_not_in_flight_and_a_larger_one_resumes(fusion: Fusion, limits: dict[str, Any]) -> None:
    """Every answer costs 60 millionths and 15 tokens: 5 reach the limit, and 2 are in flight then. 12 are wanted."""
    with pytest.raises(BudgetError, match=r"budget is reached \(.*\)(.|\n)*left to ask for: 5 of paid") as stopped:
        sample_sources(with_budget(fusion, **limits))
    assert stopped.value.exit_code == 4
    (spent,) = ledger(fusion)
    assert (spent.items, spent.usage) == (7, Usage(7, 70, 0, 35))
    assert spent.money == pytest.approx(7 * 60e-6)
    with pytest.raises(BudgetError, match="5 of paid"):
        sample_sources(with_budget(fusion, **limits))
    assert ledger(fusion) == [spent], "nothing is asked beyond the budget"
    (spent,) = sample_sources(with_budget(fusion, money=1.0))
    assert (spent.items, spent.usage.requests) == (12, 12), "nothing is paid for twice"
    assert sample_sources(with_budget(fusion, **limits)) == [spent], "what is done needs no budget"


def test_a_budget_of_hours_sums_up_what_models_took() -> None:
    budget = SpendingLimits(Budget(hours=2.0), [Spent("a", "m", Usage(), 1, 0.0, 3600.0)])
    assert budget.reached() is None
    budget.add(Spent("a", "n", Usage(), 1, 0.0, 3600.0))
    assert "hours 2 of 2" in str(budget.reached())


def test_a_budget_of_money_needs_prices(fusion: Fusion) -> None:
    sources = {"paid": Priced(sampling=SAMPLED, has_price=False)}
    unpriced = Fusion(fusion.recipe.model_copy(update={"sources": sources, "budget": Budget(money=1.0)}))
    with pytest.raises(InputError, match=r"budget.money: sources.paid has no price"):
        sample_sources(unpriced)


def test_the_ledger_knows_which_money_it_does_not_know(fusion: Fusion, store: Store) -> None:
    """Two stages of one model are summed, and so are all models; an unpriced server makes the sum unknown."""
    store.add_spent(fusion.run_name, Spent("sample-sources", "paid", Usage(2, 20, 8, 10), 2, 0.25, 1.5))
    store.add_spent(fusion.run_name, Spent("sample-held-out", "paid", Usage(3, 30, 0, 15), 1, 0.5, 2.5))
    store.add_spent(fusion.run_name, Spent("sample-held-out", "target", Usage(0, 7, 0, 5), 3, 0.0, 60.0))
    total = read_ledger(fusion, store).total
    assert (total.items, total.usage, total.money, total.seconds) == (6, Usage(5, 57, 8, 30), 0.75, 64.0)
    by_model = read_ledger(fusion, store).by_model()
    assert list(by_model) == ["paid", "target"], "in the order of the recipe"
    assert (by_model["paid"].items, by_model["paid"].money, by_model["target"].money) == (3, 0.75, 0.0)
    store.add_spent(fusion.run_name, Spent("sample-sources", "free", Usage(1, 9, 0, 9), 1, 0.0, 1.0))
    sources = {**fusion.recipe.sources, "free": Priced(sampling=SAMPLED, has_price=False)}
    ledger = read_ledger(Fusion(fusion.recipe.model_copy(update={"sources": sources})), store)
    assert ledger.by_model()["free"].money is None
    assert ledger.total.money is None


@pytest.fixture
def finished(fusion: Fusion, tmp_path: Path) -> Path:
    """A run on recorded answers up to its rows, with a ledger, failures of two kinds and a note."""
    own = Fusion(load_recipe(tmp_path / "recipe.yaml", [f"output={tmp_path / 'done'}"]).recipe)
    run_fusion(own, SilentReporter(), until="select-m")
    with closing(Store(own.store_path)) as store:
        store.add_spent(own.run_name, Spent("sample-sources", "a", Usage(1_234, 5_678, 910, 1_112), 6, 1.25, 61.0))
        failures = [Failure("p3", 0, "timed-out", "no reply"), Failure("p1", 1, "timed-out", "no whole reply")]
        store.add_failures(own.run_name, "sample-sources", "a", [*failures, Failure("p0", 0, "bad", "<b>x</b>")])
        store.add_notes(own.run_name, "sample-sources", "a", ["its limit is 32"])
    return tmp_path / "done"


SPENT = {
    "answers": 6,
    "requests": 1_234,
    "prompt_tokens": 5_678,
    "cached_tokens": 910,
    "new_tokens": 1_112,
    "money": 1.25,
    "seconds": 61.0,
    "failed": 3,
}


def test_status_compare_summary_and_report_tell_what_was_spent_and_what_failed(finished: Path) -> None:
    lines = {"total": SPENT, "models": [{"stage": "sample-sources", "model": "a", **SPENT}]}
    status = status_of(finished)
    assert status["spent"] == lines
    example = {"prompt_id": "p1", "index": 1, "detail": "no whole reply"}
    assert [(kind["kind"], kind["number"], kind["example"]) for kind in status["failed"]] == [
        ("timed-out", 2, example),
        ("bad", 1, {"prompt_id": "p0", "index": 0, "detail": "<b>x</b>"}),
    ]
    assert [note["text"] for note in status["notes"]] == ["its limit is 32"]
    run = rewrite_report(finished)
    assert run.summary["spent"] == lines
    page = (finished / "report.html").read_text()
    row = page[page.index('<tbody class="costs">') : page.index("</tbody>", page.index('<tbody class="costs">'))]
    cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
    assert cells[:10] == ["a", "sample-sources", "6", "1,234", "5,678", "910", "1,112", "1.25", "1 min 1 s", "3"]
    assert cells[10] == "total"
    assert "its limit is 32" in page
    assert "prompt p0, sample 0: &lt;b&gt;x&lt;/b&gt;" in page
    compared = compare_runs([finished])
    assert compared.to_json()["spent"] == {"done": lines}
    console = Terminal(file=(printed := StringIO()), width=140)
    print_status(status, console)
    print_comparison(compared, console)
    assert printed.getvalue().count("1,234") == 2 * 2, "a line and the sum of each"
    assert "a: 2 timed-out, e.g. prompt p1, sample 1: no whole reply" in printed.getvalue()
