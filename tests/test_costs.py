"""Money and time: what a plan says before, and what a run may spend. Every figure is derived by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from sinterlm.errors import BudgetError, InputError
from sinterlm.pipeline.budget import Budget as SpendingLimits
from sinterlm.pipeline.forecast import Forecast, Past
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.schema import Budget
from sinterlm.records import Message, Prompt, Response, Spent, Usage, response_id
from sinterlm.sampling.settings import Sampling
from sinterlm.store import Store
from sinterlm.terminal.plan import print_plan
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
