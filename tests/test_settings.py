"""Settings of `sinterlm train` in files: the shipped numbers of the papers, and how files and overrides combine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from sinterlm.errors import InputError
from sinterlm.formats.yaml_file import read_yaml
from sinterlm.objectives.named import OBJECTIVES, resolve_objective
from sinterlm.recipe.load import load_recipe, read_train_settings
from tests.test_recipe import RECIPE

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "objectives"
SHARED = FOLDER / "shared.yaml"

PAPERS: Mapping[str, Mapping[str, Any]] = {
    # WRPO, section 4.1 and Table 6, with the baselines that it compares with
    "sft": {"learning_rate": 7e-6, "num_train_epochs": 1},
    "dpo": {"beta": 0.01, "learning_rate": 3e-7},
    "ipo": {"tau": 0.01, "average_logps": False, "learning_rate": 1e-6},
    "simpo": {"beta": 10, "gamma": 1.0, "learning_rate": 6e-7},
    "wrpo": {"base": "dpo", "beta": 0.01, "alpha": 0.1, "alpha_schedule": "ramp", "learning_rate": 3e-7},
    "wrpo-ipo": {"base": "ipo", "tau": 0.01, "average_logps": False, "alpha": 0.1, "learning_rate": 1e-6},
    "wrpo-simpo": {"base": "simpo", "beta": 10, "gamma": 0, "alpha": 0.5, "learning_rate": 6e-7},
    "wrpo-ln-dpo": {"base": "ln-dpo", "beta": 10, "alpha": 0.1, "learning_rate": 8e-7},
    # FuseChat-3.0, by target
    "sft-fusechat3-llama": {"learning_rate": 5e-6, "num_train_epochs": 3},
    "sft-fusechat3-qwen-gemma": {"learning_rate": 2e-6, "num_train_epochs": 3},
    "ln-dpo": {"beta": 10, "learning_rate": 8e-7},
    "ln-dpo-fusechat3-llama-3.2": {"beta": 10, "learning_rate": 1e-6},
    "dpo-fusechat3-qwen-2.5-7b": {"beta": 0.01, "learning_rate": 3e-7},
    "dpo-fusechat3-gemma-2-9b": {"beta": 0.01, "learning_rate": 5e-7},
    # SimPO's README: gamma / beta = 0.3
    "simpo-llama-3": {"beta": 10, "gamma": 3.0, "learning_rate": 1e-6},
    # FuseRL gives no numbers, so these are WRPO's
    "fusesft": {"average_logps": False, "learning_rate": 7e-6},
    "fusepo": {"base": "dpo", "beta": 0.01, "learning_rate": 3e-7},
    "fusepo-simpo": {"base": "simpo", "beta": 10, "gamma": 1.0, "learning_rate": 6e-7},
    "fusepo-rloo": {"baseline": "source", "kl": 0, "learning_rate": 3e-7},
    "rloo": {"baseline": "all", "kl": 0, "learning_rate": 3e-7},
}
BATCH, MAX_LENGTH, WARMUP = 128, 2048, 0.1


def objective_of(name: str) -> str:
    """The objective of a settings file with this name, such as ``wrpo`` for ``wrpo-ipo``."""
    return max((known for known in OBJECTIVES if f"{name}-".startswith(f"{known}-")), key=len)


def test_every_objective_has_its_file_and_every_file_its_numbers() -> None:
    names = {path.stem for path in FOLDER.glob("*.yaml")} - {SHARED.stem}
    assert names == PAPERS.keys()
    assert set(OBJECTIVES) <= names


@pytest.mark.parametrize("name", PAPERS)
def test_shipped_settings_are_the_papers(name: str) -> None:
    objective = objective_of(name)
    settings = read_train_settings(objective, [], [SHARED, FOLDER / f"{name}.yaml"])
    values = resolve_objective(objective, settings.hyperparameters).values
    given = {**values, **settings.arguments}
    assert {key: given[key] for key in PAPERS[name]} == PAPERS[name]
    assert given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] == BATCH
    assert given["max_length"] == MAX_LENGTH
    assert given["warmup_steps"] == WARMUP
    assert given["lr_scheduler_type"] == "cosine"
    assert given["num_train_epochs"] == PAPERS[name].get("num_train_epochs", 1)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_number_has_its_source_beside_it(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    assert all("#" in line for line in lines if not line.startswith("base:"))
    shared = read_yaml(SHARED).value
    if path != SHARED:
        same = {key for key, value in read_yaml(path).value.items() if shared.get(key) == value}
        assert not same, "shared settings are only in shared.yaml"


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text)
    return folder / name


def test_the_command_line_holds_over_files_and_a_later_file_over_an_earlier(tmp_path: Path) -> None:
    first = write(tmp_path, "first.yaml", "beta: 0.1\nlearning_rate: 1e-6\nmax_length: 64\nseed: 3\n")
    second = write(tmp_path, "second.yaml", "beta: 0.2\nlearning_rate: 2e-6\n")
    settings = read_train_settings("dpo", ["learning_rate=3e-6"], [first, second])
    assert settings.hyperparameters == {"beta": 0.2}
    assert settings.arguments == {"learning_rate": 3e-6, "max_length": 64}
    assert settings.seed == 3


@pytest.mark.parametrize(
    ("second", "override", "message"),
    [
        (
            "learning_rate: 1e-6\nalhpa: 0.1\n",
            "seed=1",
            "second.yaml:2: alhpa: unknown training argument; did you mean",
        ),
        ("\nalpha: 2\n", "seed=1", "second.yaml:2: alpha: found 2, expected a number, at least 0, at most 1"),
        ("alpha: 0.3\n", "alpha=3", "command line: alpha: found 3, expected a number, at least 0, at most 1"),
        ("base: simpo\ntau: 1\n", "seed=1", "second.yaml:2: tau: unknown training argument"),
        ("- alpha\n", "seed=1", "second.yaml: found a list, expected lines of KEY: VALUE"),
        ("", "seed=1", "second.yaml: found nothing, expected lines of KEY: VALUE"),
    ],
)
def test_a_wrong_setting_is_refused_where_it_stands(tmp_path: Path, second: str, override: str, message: str) -> None:
    files = [write(tmp_path, "first.yaml", "alpha: 0.5\n"), write(tmp_path, "second.yaml", second)]
    with pytest.raises(InputError) as error:
        read_train_settings("wrpo", [override], files)
    assert str(error.value).startswith(f"{tmp_path}/{message}" if message.startswith("second") else message)


@pytest.mark.parametrize(
    ("objective", "policy", "message"),
    [
        ("{kind: fusepo}", "on-policy", "have no weights, but the objective 'fusepo' needs rows with weights; "),
        ("{kind: fusepo-rloo}", "wrpo", "have no weights, but the objective 'fusepo-rloo' needs rows with weights; "),
        (
            "{kind: wrpo, rejected_mix: true}",
            "wrpo",
            "hold chosen_source, chosen_target, rejected, but the objective 'wrpo' needs chosen_source, "
            "chosen_target, rejected, rejected_source; ",
        ),
        (
            "{kind: simpo}",
            "wrpo",
            "hold chosen_source, chosen_target, rejected, but the objective 'simpo' needs chosen",
        ),
        ("{kind: simpo, gamma: 1.0}", "on-policy", None),
        ("{kind: ln-dpo}", "fusechat3", None),
        ("{kind: ipo}", "on-policy", None),
        ("{kind: rloo}", "on-policy", None),
        ("{kind: wrpo, base: simpo, gamma: 0.5, rejected_mix: false}", "wrpo", None),
    ],
)
def test_an_objective_must_fit_the_rows_of_its_policy(
    tmp_path: Path, objective: str, policy: str, message: str | None
) -> None:
    kept, _, _ = RECIPE.partition("\npreference:")
    text = f"{kept}\npreference: {{x: {{select: {{kind: {policy}}}, objective: {objective}}}}}\n"
    path = write(tmp_path, "recipe.yaml", text)
    if message is None:
        assert load_recipe(path).recipe.preference["x"].select.kind == policy
        return
    with pytest.raises(InputError) as error:
        load_recipe(path)
    assert f"preference.x.select.kind: rows of {policy!r} {message}" in str(error.value)
    assert "policies that give them: " in str(error.value)
