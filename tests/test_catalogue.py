"""`sinterlm list`: the tables of components, for people and for programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.objectives.named import OBJECTIVES, resolve_objective
from sinterlm.recipe.catalogue import TABLES, catalogue
from sinterlm.selection.policies import POLICIES
from sinterlm.terminal.terminal import Terminal

WIDTH = 100


@pytest.fixture
def entries() -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in json.loads(json.dumps(catalogue("objectives")))}


def test_objectives_are_listed_with_their_parts(entries: dict[str, dict[str, Any]]) -> None:
    assert list(entries) == list(OBJECTIVES)
    dpo, rloo, fusepo = entries["dpo"], entries["rloo"], entries["fusepo"]
    assert (dpo["reward"], dpo["mix"], dpo["link"], dpo["weighting"]) == ("summed_logratio", "single", "logistic", None)
    assert dpo["formula"] == "-log σ(β LR(chosen) - β LR(rejected))"
    assert dpo["paper"] == "DPO, arXiv 2305.18290"
    assert dpo["roles"] == ["chosen", "rejected"]
    assert dpo["needs_reference"]
    assert (rloo["weighting"], rloo["reward"], rloo["per"], rloo["roles"]) == ("advantages", None, "response", [])
    assert rloo["reads_scores"]
    assert not rloo["needs_reference"], "without a KL term"
    assert (fusepo["per"], fusepo["reads_weights"]) == ("group", True)


def test_a_base_brings_its_parts_and_hyperparameters(entries: dict[str, dict[str, Any]]) -> None:
    wrpo = entries["wrpo"]
    assert list(wrpo["bases"]) == ["dpo", "ln-dpo", "ipo", "simpo"]
    assert wrpo["optional_roles"] == {"rejected_mix": ["rejected_source"]}
    simpo, ipo = wrpo["bases"]["simpo"], wrpo["bases"]["ipo"]
    assert (simpo["reward"], simpo["mix"], simpo["link"]) == ("mean_logp", "source_and_target", "logistic")
    assert not simpo["needs_reference"]
    assert simpo["hyperparameters"]["alpha"]["default"] == 0.5
    assert ipo["link"] == "squared"
    assert "tau" in ipo["hyperparameters"]
    assert "beta" not in ipo["hyperparameters"]
    assert {key: entry for key, entry in wrpo["bases"]["dpo"].items() if wrpo[key] != entry} == {}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_hyperparameters_have_default_bounds_and_source(name: str, entries: dict[str, dict[str, Any]]) -> None:
    listed = entries[name]["hyperparameters"]
    assert {key: entry["default"] for key, entry in listed.items()} == dict(resolve_objective(name).values)
    for entry in listed.values():
        assert entry.keys() == {"default", "accepts", "description", "source"}
        assert all(entry[key] for key in ("accepts", "description", "source"))


def test_policies_are_listed_with_what_their_rows_hold() -> None:
    policies = {entry["name"]: entry for entry in json.loads(json.dumps(catalogue("policies")))}
    assert list(policies) == list(POLICIES)
    wrpo, fusepo, rloo = policies["wrpo"], policies["fusepo"], policies["rloo"]
    assert (wrpo["paper"], wrpo["optional_roles"]) == (
        "WRPO, arXiv 2412.03187",
        {"rejected_source": ["rejected_source"]},
    )
    assert (fusepo["reads"], fusepo["roles"], fusepo["gives_weights"]) == (["sources"], ["chosen", "rejected"], True)
    assert (rloo["reads"], rloo["roles"], rloo["gives_weights"]) == (["target"], [], False)


@pytest.mark.parametrize("what", TABLES)
def test_the_table_is_readable_on_a_narrow_terminal(
    what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_console", lambda: Terminal(width=WIDTH))
    cli.list_(what)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    shown = "".join("".join(line.split("│")[2:3]) for line in lines).replace(" ", "")  # the second column, unwrapped
    for entry in catalogue(what):
        assert any(line.split("│")[1].strip() == entry["name"] for line in lines if line.startswith("│"))
        for key in {"description", "formula"} & entry.keys():
            assert entry[key].replace(" ", "") in shown
        for part in entry.get("paper", "").split(", "):
            assert any(part in line for line in lines)


def test_an_unknown_list_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InputError, match="unknown list 'models'; choose from objectives, policies"):
        catalogue("models")
