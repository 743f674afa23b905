"""Money and time: what a plan says before, and what a run may spend. Every figure is derived by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from io import StringIO
from pathlib import Path

import pytest

from sinterlm.pipeline.forecast import Forecast, Past
from sinterlm.pipeline.fusion import Fusion, SamplingRequest
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.sampling_cost import estimate_sampling
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Message, Prompt, Response, Spent, Usage, response_id
from sinterlm.sampling.settings import Sampling
from sinterlm.store import Store
from sinterlm.terminal.plan import print_plan
from sinterlm.terminal.terminal import Terminal
from tests.priced import Priced

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
SAMPLED = Sampling(num_samples=2, max_new_tokens=100)


@pytest.fixture
def fusion(tmp_path: Path) -> Fusion:
    """Six prompts of 4 tokens, asked twice each of a served model that has a price."""
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"id": name, "prompt": f"How much is it {name[1]}"}) + "\n" for name in IDS)
    )
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
