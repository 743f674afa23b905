"""Seams between stages, by behaviour: held-out rewards by hand, seeds, what a comparison separates, baselines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer

from tests.world import NUM_PROMPTS, World, command, letter_head, open_world

pytestmark = pytest.mark.xdist_group("seams")  # the tests' shared fixtures are made once, in one process

TURNED = (0.1, 0.25, 0.15, 0.5)
FEW = "prompts.path=few.jsonl"
SAMPLED_TARGET = (FEW, "target.samples=null", "target.sampling={num_samples: 2, max_new_tokens: 8}")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


def test_internal_rewards_of_held_out_quadruples_by_hand(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference gives A, B, C, D the probabilities 0.5, 0.25, 0.15, 0.1; the training reverses them.

    y_ws is D, y_wt A and y_l B, with log-ratios log 5, -log 5 and 0. So the source's answer is ranked above the
    rejected one, the target's is not, and with alpha 0.75 the compound reward, log 5 / 2, is above 0. Exchanging policy
    and reference, or an alpha of 0, would each reverse one of the figures.
    """

    def learn(trainer: Any, *arguments: Any, **more: Any) -> Any:
        result = train(trainer, *arguments, **more)
        with torch.no_grad():
            trainer.model.lm_head.weight.copy_(letter_head(trainer.model.config, "ABCD", TURNED))
        return result

    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", learn)
    names = [f"n{number}" for number in range(NUM_PROMPTS)]
    scores = {"A": 5, "B": 1, "D": 9}
    lines = [{"prompt_id": name, "response": text, "score": score} for name in names for text, score in scores.items()]
    write_lines(world.folder / "letter-scores.jsonl", lines)
    write_lines(world.folder / "d.jsonl", [line for line in lines if line["response"] == "D"])
    write_lines(world.folder / "ab.jsonl", [line for line in lines if line["response"] != "D"])
    done = world.carry_out(
        (
            "prompts.split.held_out=3",
            "sources={d: {engine: recorded, path: d.jsonl}}",
            "target.samples.path=ab.jsonl",
            "target.sampling.max_new_tokens=1",
            "scorer.path=letter-scores.jsonl",
            "evaluation={held_out: {scorer: {kind: recorded, path: letter-scores.jsonl}}}",
            "preference.m.objective={kind: wrpo, alpha: 0.75}",
            "preference.m.train.learning_rate=1e-9",
        ),
        "evaluate",
    )
    assert done.error == ""
    figures, models = done.figures(), ("target", "target-m")
    assert figures["num_quadruples"] == 3
    accuracies = figures["reward_accuracies"]["target-m"]
    assert {name: rate["value"] for name, rate in accuracies.items()} == {
        "source_chosen": 1.0,
        "target_chosen": 0.0,
        "chosen": 1.0,
    }
    # Each answer is its letter, the end of turn and a newline; both models give the last two the same probability.
    logps = figures["average_logps"]
    gains = {
        answers: [after - before for before, after in zip(*(logps[model][answers] for model in models), strict=True)]
        for answers in ("chosen_source", "target")
    }
    assert gains["chosen_source"] == pytest.approx([math.log(5) / 3] * 3, abs=1e-3)
    assert gains["target"] == pytest.approx([-math.log(5) / 3, 0] * 3, abs=1e-3)
    # Greedily the target answers A, and the trained model D.
    assert {name: rates["score"]["value"] for name, rates in figures["models"].items()} == {
        "d": 9.0,
        "target": 5.0,
        "target-m": 9.0,
    }
    gaps = {(gap["model"], gap["other"]): gap["difference"] for gap in figures["differences"]}
    assert gaps == {("target-m", "d"): 0.0, ("target-m", "target"): 4.0}


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_the_recipes_seed_draws_the_samples_of_models_that_name_none(world: World) -> None:
    drawn = {
        (seed, own): sorted(
            world.carry_out(
                (*SAMPLED_TARGET, f"seed={seed}", *([f"target.sampling.seed={own}"] if own is not None else [])),
                "sample-target",
            ).letters()
        )
        for seed, own in ((1, None), (2, None), (1, 2), (2, 2))
    }
    assert drawn[1, None] != drawn[2, None]
    assert drawn[1, 2] == drawn[2, 2] == drawn[2, None]


def test_the_recipes_seed_splits_the_prompts(world: World) -> None:
    parts = [
        world.carry_out(("prompts.split.held_out=4", f"seed={seed}"), "prompts").part("held_out") for seed in (1, 2, 1)
    ]
    assert parts[0] == parts[2] != parts[1]


def test_the_recipes_seed_breaks_ties(world: World) -> None:
    chosen = [
        [row.responses[0].content for row in world.carry_out((f"seed={seed}",), "select-m").rows()] for seed in (1, 2)
    ]
    assert chosen[0] != chosen[1]
    assert {*chosen[0], *chosen[1]} == {"a0", "a1", "b0"}


def test_the_recipes_seed_orders_the_rows_of_a_training(world: World) -> None:
    """Visible in Transformers' arguments and in the losses of single rows."""
    runs = [
        world.carry_out(
            (
                "target.model=FOLDER/tiny",
                "preference.m.select.ties=first",
                "preference.m.objective={kind: wrpo, base: simpo}",
                "preference.m.train={max_steps: 3, per_device_train_batch_size: 1, learning_rate: 1e-9}",
                f"seed={seed}",
            ),
            "train-m",
        )
        for seed in (1, 2)
    ]
    assert [done.arguments[0].seed for done in runs] == [1, 2]
    assert runs[0].steps() != runs[1].steps()


# --- a comparison -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_other", "separate"), [(0, False), (1, True), (NUM_PROMPTS, True)])
def test_a_comparison_keeps_models_apart_that_answer_only_some_prompts_alike(
    world: World, num_other: int, separate: bool
) -> None:
    write_lines(
        world.folder / f"other-{num_other}.jsonl",
        [
            {"prompt_id": f"n{number}", "response": "t0" if number < num_other else "a1"}
            for number in range(NUM_PROMPTS)
        ],
    )
    write_lines(
        world.folder / "alike.jsonl", [{"prompt_id": f"n{number}", "response": "a1"} for number in range(NUM_PROMPTS)]
    )
    runs = [
        world.carry_out(
            (
                f"sources={{x: {{engine: recorded, path: {path}.jsonl}}}}",
                "prompts.split={held_out: 1.0}",
                "preference={}",
                "target={model: FOLDER/letters, sampling: {max_new_tokens: 1}}",
                "evaluation={held_out: {scorer: {kind: exact-match}}}",
            ),
            "report",
        )
        for path in ("alike", f"other-{num_other}")
    ]
    assert [done.error for done in runs] == ["", ""]
    printed, error = command("compare", *(done.folder for done in runs), "--json")
    assert error == ""
    held_out = json.loads(printed)["held_out"]
    right = [held_out[name]["exact_match"] for name in held_out if name.split()[0] == "x" or name.endswith("x")]
    assert len(right) == (2 if separate else 1), held_out
    assert sorted(right)[-1] == 1.0
    assert sorted(right)[0] == pytest.approx(1 - num_other / NUM_PROMPTS)


# --- a judge ----------------------------------------------------------------------------------------------------------


def test_a_judge_compares_with_the_first_accepted_answer(world: World) -> None:
    """The baselines are a1, then b0."""
    done = world.carry_out(
        (
            FEW,
            "scorer={kind: judge, model: m, base_url: URL, mode: pairwise}",
            "sources={x: {engine: recorded, path: long.jsonl}}",
        ),
        "score-sources",
    )
    texts = [request["messages"][0]["content"] for request in done.requests]
    assert len(texts) == 4, "two prompts, each answer once as A and once as B"
    assert all("a1" in text and "b0" not in text for text in texts)


# --- rows that compare nothing ----------------------------------------------------------------------------------------


def test_a_row_stays_if_only_the_sources_answer_equals_the_rejected_one(world: World) -> None:
    """One step per remaining row: the third is dropped because its two target answers are the same."""
    answers = [("no", "yes", "no"), ("nay", "aye", "nay"), ("yes", "no", "no")]
    rows = [
        {
            "prompt": [{"role": "user", "content": f"Is it so, {number}?"}],
            **{
                role: [{"role": "assistant", "content": text}]
                for role, text in zip(("chosen_source", "chosen_target", "rejected"), texts, strict=True)
            },
        }
        for number, texts in enumerate(answers)
    ]
    write_lines(world.folder / "rows.jsonl", rows)
    output = world.folder / "alike"
    settings = ["num_train_epochs=1", "per_device_train_batch_size=1", "max_length=128", "use_cpu=true"]
    names = ("--objective", "wrpo", "--model", world.folder / "tiny", "--data", world.folder / "rows.jsonl")
    _, error = command("train", *names, "--output", output, *settings)
    assert error == ""
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
