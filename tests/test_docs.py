"""The shipped documents, recipes and examples are true: commands parse, links lead somewhere, code runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, NamedTuple

import datasets
import pytest
import torch
import typer.main
from accelerate.commands.launch import launch_command_parser
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo
from safetensors.torch import load_file
from scripts.document_keys import with_tables
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner, Result

from sinterlm import FusionConfig, chat, cli, errors, load_run, thoughts
from sinterlm.components import union_of
from sinterlm.endpoint.settings import Price
from sinterlm.errors import InputError
from sinterlm.formats import read_prompts, read_recorded, read_rows, read_training_file
from sinterlm.formats.yaml_file import dump_yaml, read_yaml
from sinterlm.models import load_tokenizer
from sinterlm.models.flops import GPUS
from sinterlm.objectives import (
    Responses,
    SequenceLogps,
    objective_losses,
    one_pair_a_row,
    resolve_objective,
    wrpo_loss,
)
from sinterlm.objectives.named import OBJECTIVES, known_hyperparameters
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.reasons import EXPLANATIONS
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe import schema
from sinterlm.recipe.executors import Local, Placement, Ray
from sinterlm.recipe.extension import EXTENDS
from sinterlm.recipe.load import load_recipe, read_train_settings
from sinterlm.recipe.quickstart import choose_quickstart_methods, quickstart_recipe
from sinterlm.records import NOT_ASKED, Candidates, Message, Prompt, Response, SamplingSettings, Score, Scored
from sinterlm.sampling.batch import BatchSource
from sinterlm.sampling.endpoint_engine import EndpointSource
from sinterlm.sampling.engines import ENGINES
from sinterlm.sampling.few_shot import load_few_shot
from sinterlm.sampling.managed import ManagedSource
from sinterlm.sampling.protocol import Item
from sinterlm.sampling.recorded import RecordedSource
from sinterlm.sampling.settings import AskedModel, PromptFormat, Sampling
from sinterlm.sampling.transformers_engine import TransformersSource
from sinterlm.scoring import mathematics
from sinterlm.scoring.armorm import OBJECTIVES as OBJECTIVES_OF_ARMORM
from sinterlm.scoring.code.running import HARNESS_LIMIT
from sinterlm.scoring.protocol import INVALID_VERDICT, NO_SCORE, SCORER_FAILED, Exchange
from sinterlm.scoring.scorers import SCORERS, SERVED
from sinterlm.scoring.settings import build_scorer
from sinterlm.selection.choices import REASONS
from sinterlm.selection.policies import POLICIES
from sinterlm.training import encoding
from sinterlm.training.arguments import DEFAULT_MAX_LENGTH, FusionArguments
from sinterlm.training.checkpoints import MAX_STEPS, MIN_STEPS
from sinterlm.training.encoding import ALIKE_AFTER_CUTTING
from sinterlm.training.logprobs import MAX_CHUNK_LOGITS
from sinterlm.training.members import find_members
from sinterlm.training.packing import MIN_SHARED_BEGINNING
from sinterlm.training.trainer import CHUNK_TOKENS, CPU_CHUNK_TOKENS
from tests.test_armorm import save_checkpoint
from tests.tiny import save_tiny

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
YAML_FILES = sorted(
    path
    for folder in ("recipes", "examples")
    for path in (ROOT / folder).rglob("*.yaml")
    if path.parent.name not in ("objectives", "accelerate", "methods")  # parts of recipes, and settings
)
BRING_YOUR_DATA = ("wrpo", "fuserl", "fusechat3", "arena-bench")
"""Folders of recipes whose prompts and recorded answers are not shipped."""


LoadText = Callable[..., schema.Recipe]


@pytest.fixture
def load_text(tmp_path: Path) -> LoadText:
    """Load a recipe from a document; the files that it names need not exist."""

    def load(text: str, overrides: Sequence[str] = ()) -> schema.Recipe:
        path = tmp_path / "shown.yaml"
        path.write_text(text)
        return load_recipe(path, overrides).recipe

    return load


class Block(NamedTuple):
    """A fenced block of a document."""

    document: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"


@cache
def read_blocks(document: Path) -> list[Block]:
    text = document.read_text()
    return [
        Block(document, text[: match.start()].count("\n") + 1, match["language"], match["text"])
        for match in re.finditer(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    ]


def blocks(*languages: str) -> list[Block]:
    return [block for document in DOCUMENTS for block in read_blocks(document) if block.language in languages]


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)


def tables(document: Path) -> dict[str, list[list[str]]]:
    """The rows of every table without its head, by the heading above it; tables under one heading are joined."""
    found: dict[str, list[list[str]]] = {}
    heading, rows_since_head = "", 0
    for line in prose(document).splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        if not line.startswith("|"):
            rows_since_head = 0
            continue
        rows_since_head += 1
        if rows_since_head > 2:
            cells = re.split(r"(?<!\\)\|", line.strip().strip("|"))
            found.setdefault(heading, []).append([cell.strip() for cell in cells])
    return found


def section_of(document: Path, heading: str) -> str:
    """The text of a section of the second level, including its heading."""
    sections = re.split(r"^## ", document.read_text(), flags=re.MULTILINE)
    (section,) = (section for section in sections if section.startswith(f"{heading}\n"))
    return section


def unquote(cell: str) -> str:
    """The text of a cell that consists of one code span."""
    match = re.fullmatch(r"`([^`]+)`", cell)
    assert match, f"expected one code span, found {cell!r}"
    return match[1]


# -- recipes and examples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_shipped_yaml_file_loads_and_so_do_the_files_that_it_names(path: Path) -> None:
    if "template" in read_yaml(path).value:
        assert load_few_shot(path).prefix
        return
    recipe = load_recipe(path).recipe
    if path.parent.name in BRING_YOUR_DATA:
        return
    assert read_prompts(recipe.prompts.path)
    for source in recipe.sources.values():
        if isinstance(source, RecordedSource):
            assert read_recorded(source.path)
        elif isinstance(source, AskedModel) and source.prompt.few_shot:
            assert load_few_shot(source.prompt.few_shot)


def test_the_recorded_answers_of_the_example_belong_to_its_prompts() -> None:
    prompts = {prompt.id for prompt in read_prompts(ROOT / "examples" / "own-prompts.jsonl")}
    answered = [answer.prompt_id for answer in read_recorded(ROOT / "examples" / "own-answers.jsonl")]
    assert set(answered) == prompts
    assert len(answered) == 2 * len(prompts)


def test_the_example_is_planned_from_a_fresh_clone(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sinterlm", "plan", "examples/own-models.yaml", f"output={tmp_path}", "--json"]
    planned = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    stages = {stage["name"]: stage for stage in json.loads(planned.stdout)["stages"]}
    assert not any(stage["done"] for stage in stages.values())
    assert stages["sample-target"]["calls"] == 8 * 5, "8 preference prompts, 5 samples"


def test_the_python_example_trains(tmp_path: Path) -> None:
    start = save_tiny(tmp_path / "start")
    command = [sys.executable, "examples/train_with_python.py", str(start), str(tmp_path / "trained")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    before, after = (load_file(folder / "model.safetensors") for folder in (start, tmp_path / "trained"))
    assert before.keys() == after.keys()
    assert not any(torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(str(tmp_path / "trained")).chat_template


@pytest.mark.slow
@pytest.mark.models
def test_the_example_fuses_as_it_stands(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sinterlm", "run", "examples/own-models.yaml", f"output={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert (tmp_path / "target-sft-wrpo" / "model.safetensors").is_file()


# -- what documents show ---------------------------------------------------------------------------------------------


def shown_commands(program: str) -> Iterator[tuple[str, str, bool]]:
    """Place and text of each shown command of ``program``, and whether it is whole (on its own line)."""
    for block in blocks("", "console", "bash", "sh", "shell"):
        for line in block.text.replace("\\\n", " ").splitlines():
            command = line.strip().removeprefix("$ ").removesuffix(" &").partition("  #")[0].strip()
            if command.startswith(f"{program} "):
                yield str(block), command, True
    for document in DOCUMENTS:
        for command in re.findall(rf"`({program} [^`]+)`", prose(document)):
            yield document.name, " ".join(command.split()), False


@pytest.mark.parametrize(("place", "command", "is_whole"), list(shown_commands("sinterlm")))
def test_shown_commands_parse(place: str, command: str, is_whole: bool, load_text: LoadText) -> None:
    check_command(place, command, is_whole=is_whole, load_text=load_text)


def check_command(place: str, command: str, *, is_whole: bool, load_text: LoadText) -> None:
    """The name, options and settings of a sinterlm command exist."""
    group: Any = typer.main.get_command(cli.app)
    name, *arguments = shlex.split(command)[1:]
    if name == "--help":
        return
    assert name in group.commands, f"{place}: sinterlm has no command {name}"
    subcommand = group.commands[name]
    options = {option for parameter in subcommand.params for option in parameter.opts if option.startswith("-")}
    given = {argument.partition("=")[0] for argument in arguments if argument.startswith("-")}
    assert given <= options | {"--help"}, f"{place}: {command}"
    if not is_whole:
        return
    values = subcommand.make_context(name, arguments).params
    overrides = values.get("overrides") or []
    if name == "train":
        files = [ROOT / path for path in values["settings_files"] or []]
        read_train_settings(values["objective"], values["settings"] or [], files)
    elif name == "quickstart":
        load_recipe(quickstart_recipe(), [*choose_quickstart_methods(values["methods"] or []), *overrides])
    elif "recipe" in values:
        shown = ROOT / values["recipe"]
        recipe = load_recipe(shown, overrides).recipe if shown.is_file() else load_text(first_recipe(), overrides)
        stages = {stage.name for stage in build_stages(Fusion(recipe))}
        assert {values.get("until"), values.get("only")} <= stages | {None}


LAUNCHERS: Mapping[str, Callable[[], argparse.ArgumentParser]] = {
    "accelerate launch": launch_command_parser,
    "torchrun": get_args_parser,
}


@pytest.mark.parametrize(
    ("launcher", "place", "command"),
    [(launcher, place, command) for launcher in LAUNCHERS for place, command, _ in shown_commands(launcher)],
)
def test_shown_launches_parse(launcher: str, place: str, command: str, load_text: LoadText) -> None:
    given = LAUNCHERS[launcher]().parse_args(shlex.split(command.removeprefix(launcher)))
    assert given.module
    if launcher == "accelerate launch":
        assert (ROOT / given.config_file).is_file(), f"{place}: {command}"
    check_command(
        place, shlex.join([given.training_script, *given.training_script_args]), is_whole=True, load_text=load_text
    )


def test_every_shipped_configuration_is_shown_in_a_launch() -> None:
    shown = " ".join(command for _, command, _ in shown_commands("accelerate launch"))
    assert all(str(path.relative_to(ROOT)) in shown for path in (ROOT / "recipes" / "accelerate").glob("*.yaml"))


def test_shown_make_targets_are_there() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for place, command, _ in shown_commands("make"):
        assert set(command.split()[1:]) <= targets, f"{place}: {command}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\(([^()\s]+)\)|src=\"([^\"]+)\"", prose(document))
    for target in filter(None, (either for pair in targets for either in pair)):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), f"{document.name}: {target}"
        assert path.is_relative_to(ROOT), f"{document.name}: {target} leaves the project"
        if anchor:
            assert anchor in anchors(path), f"{document.name}: {target} has no such heading"


def anchors(document: Path) -> set[str]:
    """The names of headings in links, by GitHub's rule."""
    headings = re.findall(r"^#+ (.+)$", prose(document), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_shown_yaml_is_a_recipe_or_part_of_one_or_a_few_shot_file(
    block: Block, load_text: LoadText, tmp_path: Path
) -> None:
    """A part of a recipe gets its required keys from the recipe at the beginning of recipes.md."""
    shown, first = tmp_path / "shown.yaml", tmp_path / "first.yaml"
    shown.write_text(block.text)
    first.write_text(first_recipe())
    value = read_yaml(shown).value
    if value.keys() == {"template", "examples"}:
        assert load_few_shot(shown).stop
        return
    if EXTENDS in value:
        (tmp_path / value[EXTENDS]).write_text(first_recipe())
        assert load_recipe(shown).recipe
        return
    assert value.keys() <= schema.Recipe.model_fields.keys()
    required = {name for name, field in schema.Recipe.model_fields.items() if field.is_required()}
    load_text(dump_yaml({name: part for name, part in read_yaml(first).value.items() if name in required} | value))


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_shown_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


def first_recipe() -> str:
    """The recipe at the beginning of recipes.md, without the defaults that can be left out."""
    return next(block.text for block in read_blocks(DOCS / "recipes.md") if block.language == "yaml")


# -- reference tables ------------------------------------------------------------------------------------------------

SECTIONS: Mapping[str, Sequence[type[BaseModel]]] = {
    "The recipe": [schema.Recipe],
    "budget": [schema.Budget],
    "executor": [Ray, Local],
    "target, sources and scorer": [Placement],
    "until": [schema.Until],
    "prompts": [schema.Prompts],
    "deduplicate": [schema.Deduplicate],
    "decontaminate": [schema.Decontaminate],
    "split": [schema.Split],
    "A model in this process": [TransformersSource, schema.Target],
    "A model behind a server": [EndpointSource],
    "A model in a server that Sinter starts": [ManagedSource],
    "The target in a server that Sinter starts": [schema.ManagedTarget],
    "A model asked by jobs": [BatchSource],
    "price": [Price],
    "Recorded answers": [RecordedSource],
    "prompt": [PromptFormat],
    "sampling": [Sampling],
    "scorer": [SCORERS["exact-match"]],
    "mathematics": [SCORERS["mathematics"]],
    "code": [SCORERS["code"]],
    "reward-model and armorm": [SCORERS["reward-model"], SCORERS["armorm"]],
    "reward-model behind a server": SERVED["reward-model"],
    "judge": [SCORERS["judge"]],
    "recorded": [SCORERS["recorded"]],
    "python": [SCORERS["python"]],
    "combination": [SCORERS["combination"]],
    "by-domain": [SCORERS["by-domain"]],
    "sft": [schema.Sft],
    "extra_prompts": [schema.ExtraPrompts],
    "preference": [schema.Preference],
    "select": list(POLICIES.values()),
    "objective": [schema.ObjectiveSettings],
    "evaluation": [schema.Evaluation],
    "held_out": [schema.HeldOut],
}
"""The headings of recipes.md that list the keys of a mapping, and its forms in the schema."""


@pytest.mark.parametrize("heading", SECTIONS)
def test_recipes_md_lists_exactly_the_keys_of_the_schema_with_their_defaults(heading: str) -> None:
    fields: dict[str, FieldInfo] = {}
    for model in SECTIONS[heading]:
        fields |= model.model_fields
    documented = {unquote(row[0]): row[2] for row in tables(DOCS / "recipes.md")[heading] if row[0] not in REASON_CELLS}
    assert documented.keys() == fields.keys()
    for key, cell in documented.items():
        default = fields[key].get_default()
        if fields[key].is_required():
            assert cell == "required", f"{heading}: {key}"
        elif isinstance(default, str | int | float):
            shown = str(default).lower() if isinstance(default, bool) else str(default)  # as in YAML
            assert unquote(cell) == shown, f"{heading}: {key}"
        else:
            assert "`" not in cell, f"{heading}: {key} has no default of its own"


def test_the_tables_of_recipes_md_are_the_docstrings_of_the_settings() -> None:
    """If this fails, run ``make docs``."""
    page = (DOCS / "recipes.md").read_text()
    assert with_tables(page) == page
    shown = {heading: tables(DOCS / "recipes.md")[heading] for heading in SECTIONS if heading != "objective"}
    assert page.count("<!-- keys: ") == len(shown)
    unsaid = [f"{heading}: {row[0]}" for heading, rows in shown.items() for row in rows if len(row[-1]) < 5]
    assert unsaid == [], "keys without a docstring"


def test_recipes_md_has_a_section_for_every_mapping_of_the_schema() -> None:
    listed = {model for models in SECTIONS.values() for model in models}
    assert listed == set(mappings_below(schema.Recipe))


def mappings_below(
    model: type[BaseModel], above: frozenset[type[BaseModel]] = frozenset()
) -> Iterator[type[BaseModel]]:
    """The model and every model that its fields name, without those that contain it."""
    yield model
    for field in model.model_fields.values():
        for below in models_in(field.annotation):
            if below not in above:
                yield from mappings_below(below, above | {model})


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


REASON_CELLS = {f"`{reason}`" for reason in REASONS}


def test_recipes_md_lists_every_reason_for_a_dropped_prompt() -> None:
    assert {row[0] for row in tables(DOCS / "recipes.md")["select"]} & REASON_CELLS == REASON_CELLS


REASONS_OF_ROWS = {
    *(chat.REFUSED, chat.NO_PREFIX, chat.OTHER_WORDS, chat.THOUGHT_AFTER_CLOSED),
    *(
        thoughts.HOLDS_THOUGHTS,
        encoding.ONLY_A_THOUGHT,
        encoding.ALIKE,
        encoding.ALIKE_AFTER_CUTTING,
        encoding.ALIKE_PAIR,
    ),
}


def test_recipes_md_lists_every_reason_for_a_row_that_is_not_trained() -> None:
    rows = tables(DOCS / "recipes.md")["Chat templates and thoughts"]
    assert {unquote(row[0]) for row in rows} >= REASONS_OF_ROWS


def test_the_report_explains_every_reason() -> None:
    of_answers = {NO_SCORE, INVALID_VERDICT, SCORER_FAILED, HARNESS_LIMIT, mathematics.STOPPED}
    assert EXPLANATIONS.keys() >= {*NOT_ASKED, *of_answers, *REASONS_OF_ROWS}


def test_recipes_md_lists_the_defaults_that_differ_from_transformers() -> None:
    from transformers import TrainingArguments

    theirs, ours = TrainingArguments.__dataclass_fields__, FusionConfig.__dataclass_fields__
    documented = {unquote(row[0]): row[1] for row in tables(DOCS / "recipes.md")["train"]}
    for name, cell in documented.items():
        assert name not in theirs or ours[name].default != theirs[name].default
        if cell.startswith("`"):
            assert cell.split("`")[1] == str(ours[name].default).lower(), name
    changed = {name for name in ours.keys() & theirs.keys() if ours[name].default != theirs[name].default}
    assert changed - {"remove_unused_columns"} == documented.keys(), "a recipe cannot set that one"


def test_recipes_md_links_every_shipped_recipe() -> None:
    linked = set(re.findall(r"\]\((\.\./[^)]*\.yaml)\)", (DOCS / "recipes.md").read_text()))
    recipes = {path for path in YAML_FILES if "extends" in (value := read_yaml(path).value) or "output" in value}
    assert {path.resolve() for path in recipes} == {(DOCS / link).resolve() for link in linked}


def test_recipes_md_gives_what_gpus_sustain() -> None:
    rows = tables(DOCS / "recipes.md")["What a plan says"]
    sustained = [
        [gpu.name, *(f"{rate / 1e12:.0f}" for rate in (gpu.reading, gpu.writing, gpu.training))] for gpu in GPUS
    ]
    assert [row[:4] for row in rows] == sustained
    assert [row[4] for row in rows] == [f"{gpu.writing / 16e9:,.0f}" for gpu in GPUS], "2 operations, 8 billion weights"


def test_recipes_md_lists_the_arguments_that_are_not_transformers() -> None:
    documented = {unquote(row[0]): row[2] for row in tables(DOCS / "recipes.md")["Sinter's own arguments"]}
    assert list(documented) == [own.name for own in dataclasses.fields(FusionArguments)]
    for own in dataclasses.fields(FusionArguments):
        assert own.default is None or unquote(documented[own.name]) == str(own.default), own.name


def test_recipes_md_names_exit_codes_that_there_are() -> None:
    ours = {error.exit_code for error in vars(errors).values() if hasattr(error, "exit_code")}
    documented = {int(row[0]) for row in tables(DOCS / "recipes.md")["Exit codes"]}
    assert documented <= ours | {0, 130}
    assert {0, 1, 2, 3, 4, 5, 6, 75, 130, 143} == documented


def show(value: object) -> str:
    """A value as written in recipes."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_papers_md_gives_the_defaults_of_every_objective_on_every_base() -> None:
    """What a base changes has its own row; rows without a base apply to the default one."""
    documented = [row for row in tables(DOCS / "papers.md")["Defaults"] if len(row) == 5]
    expected = []
    for name, objective in OBJECTIVES.items():
        own = known_hyperparameters(name)
        expected += [(name, "", key, show(parameter.default)) for key, parameter in own.items()]
        for base in objective.hyperparameters["base"].choices if "base" in objective.hyperparameters else ():
            for key, parameter in known_hyperparameters(name, base).items():
                if key not in own or parameter.default != own[key].default:
                    expected.append((name, str(base), key, show(parameter.default)))
    found = [(unquote(row[0]), row[1].strip("`"), unquote(row[2]), unquote(row[3])) for row in documented]
    assert found == expected
    assert all(row[4] for row in documented), "every default has its source"
    rates = {unquote(row[0]): unquote(row[1]) for row in tables(DOCS / "papers.md")["Defaults"] if len(row) == 3}
    assert rates == {name: str(objective.learning_rate) for name, objective in OBJECTIVES.items()}
    assert len(rates) + len(documented) == len(tables(DOCS / "papers.md")["Defaults"])


PARTS = ("reward", "mix", "link", "weighting")
"""In the order of the columns of objectives.md."""


def test_objectives_md_shows_what_every_objective_is_made_of() -> None:
    documented = {
        re.sub(r"\[`(.+)`\]\(#\1\)", r"\1", row[0]): row[1:]
        for row in tables(DOCS / "objectives.md")["The idea"][: len(OBJECTIVES)]
    }
    assert list(documented) == list(OBJECTIVES)
    for name, (*parts, needs_reference, mean_over) in documented.items():
        objective = OBJECTIVES[name]
        has_base = "base" in objective.hyperparameters
        for part, cell in zip(PARTS, parts, strict=True):
            path = getattr(objective, part)
            if path:
                assert resolve_name(path).__name__ == unquote(cell)
            elif part == "weighting":
                assert cell == ("of the rows" if objective.reads_weights else "1")
            else:
                assert cell == ("its base's" if has_base and part != "mix" else "")
        needed = objective.needs_reference
        expected = f"`{needed}`" if isinstance(needed, str) else {True: "yes", False: "no"}[needed]
        assert needs_reference == ("its base's" if has_base else expected)
        assert mean_over == objective.counts


def test_objectives_md_names_every_function_where_it_stands() -> None:
    rows = [row for row in tables(DOCS / "objectives.md")["The idea"][len(OBJECTIVES) :] if len(row) == 3]
    documented = {unquote(row[0]): row[2] for row in rows}
    paths = {path for objective in OBJECTIVES.values() for part in PARTS if (path := getattr(objective, part))}
    assert documented == {
        name: f"[{module}.py](../src/sinterlm/objectives/{module}.py)"
        for module, _, name in (path.removeprefix("sinterlm.objectives.").partition(":") for path in paths)
    }


def write_shown_rows(name: str, folder: Path) -> Path:
    """The rows that objectives.md shows for an objective, as a file."""
    section = section_of(DOCS / "objectives.md", name)
    (shown,) = re.findall(r"^```json\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    (folder / "rows.jsonl").write_text(shown)
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_md_gives_formula_hyperparameters_and_rows_of(name: str, tmp_path: Path) -> None:
    section = section_of(DOCS / "objectives.md", name)
    assert f"\n    {OBJECTIVES[name].formula}\n" in section
    documented = {unquote(row[0]): row[1:] for row in tables(DOCS / "objectives.md").get(name, [])}
    assert documented == {
        key: [f"`{show(parameter.default)}`", parameter.expected, parameter.description]
        for key, parameter in known_hyperparameters(name).items()
    }
    path = write_shown_rows(name, tmp_path)
    resolved = resolve_objective(name)
    rows = read_training_file(path, resolved.roles, check=partial(find_members, objective=resolved))
    assert len(rows) == len(path.read_text().splitlines())
    for switch, added in OBJECTIVES[name].optional_roles.items():
        fitting = [row for row in rows if {*added} <= {response.role for response in row.responses}]
        assert fitting
        assert all(find_members(row, resolve_objective(name, {switch: True})) for row in fitting)


FIRST_LOSSES = {"dpo": math.log(2), "ln-dpo": math.log(2), "ipo": 2500.0, "wrpo": math.log(2), "fusepo": math.log(2)}
"""While policy and reference are equal, all log-ratios are 0: -log sigma(0), and (0 - 1 / (2 * 0.01))^2 for IPO."""


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_rows_of_objectives_md_train_with_the_shipped_settings(name: str, tiny: Path, tmp_path: Path) -> None:
    path = write_shown_rows(name, tmp_path)
    files = [ROOT / "recipes" / "objectives" / f"{stem}.yaml" for stem in ("shared", name)]
    settings = [option for file in files for option in ("--settings", str(file))]
    arguments = ["--model", str(tiny), "--data", str(path), "--output", str(tmp_path / "out")]
    lengths = ["max_length=512", "max_prompt_length=400"]  # the tiny model's limit
    result = CliRunner().invoke(cli.app, ["train", "--objective", name, *settings, *arguments, *lengths])
    assert result.exit_code == 0, result.output
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert math.isfinite(first["loss"])
    assert first["loss"] == pytest.approx(FIRST_LOSSES.get(name, first["loss"]))
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_python_example_is_shown_as_it_is() -> None:
    shown = [block for block in blocks("python") if "FusionTrainer(" in block.text]
    assert {block.document.name for block in shown} == {"README.md", "objectives.md"}
    text = (ROOT / "examples" / "train_with_python.py").read_text()
    assert all(block.text in text for block in shown)


def test_data_flow_md_names_the_stages(load_text: LoadText) -> None:
    fusion = Fusion(load_text(first_recipe()))
    stages = {stage.name for stage in build_stages(fusion)}
    first_cells = [row[0] for row in tables(DOCS / "data-flow.md")["Stages"]]
    named = {name.replace("METHOD", "wrpo") for cell in first_cells for name in re.findall(r"`([^`]+)`", cell)}
    assert named == stages
    (diagram,) = (block for block in read_blocks(DOCS / "data-flow.md") if block.language == "mermaid")
    assert set(re.findall(r"[a-z]+(?:-[a-z]+)*", re.sub(r"\[.*?\]|^.*TD", "", diagram.text))) == stages


@pytest.mark.parametrize(
    ("key", "override"),
    [
        ("prompts.path", "prompts.path=other.jsonl"),
        ("prompts.split", "prompts.split.sft=0.5"),
        ("prompts.deduplicate", "prompts.deduplicate={}"),
        ("prompts.decontaminate", "prompts.decontaminate={against: other.jsonl}"),
        ("seed", "seed=1"),
        ("sources", "sources.large.sampling.num_samples=6"),
        ("sources", "sources.older.num_samples=2"),
        ("sources", "sources.large.domains=[poems]"),
        ("sources", "sources.large.chat_template_kwargs={enable_thinking: false}"),
        ("scorer", "scorer={kind: exact-match}"),
        ("sft.select", "sft.select.ties=first"),
        ("sft.train", "sft.train.num_train_epochs=2"),
        ("target.prompt", "target.prompt={system: x}"),
        ("target.model", "target.model=org/other"),
        ("target.chat_template_kwargs", "target.chat_template_kwargs={enable_thinking: false}"),
        ("target.sampling", "target.sampling.temperature=1"),
        ("target.samples", "target.samples={engine: recorded, path: other.jsonl}"),
        ("preference.METHOD.select", "preference.wrpo.select.ties=first"),
        ("preference.METHOD.objective", "preference.wrpo.objective.alpha=0.3"),
        ("preference.METHOD.train", "preference.wrpo.train.num_train_epochs=2"),
        ("evaluation.held_out.max_new_tokens", "evaluation.held_out.max_new_tokens=9"),
        ("evaluation.held_out.scorer", "evaluation.held_out.scorer={kind: exact-match}"),
    ],
)
def test_data_flow_md_says_what_a_change_redoes(key: str, override: str, load_text: LoadText, tmp_path: Path) -> None:
    (tmp_path / "other.jsonl").write_text("the key holds what the file says")
    rows = tables(DOCS / "data-flow.md")["What makes a stage be redone"]
    (stage,) = (unquote(row[1]) for row in rows if f"`{key}`" in row[0])

    def keys(*overrides: str) -> Mapping[str, str]:
        return stage_keys(build_stages(Fusion(load_text(first_recipe(), overrides))), str)

    before, after = keys(), keys(override)
    assert next(name for name in before if before[name] != after[name]) == stage.replace("METHOD", "wrpo")


def test_data_flow_md_names_modules_that_there_are() -> None:
    (diagram,) = (block for block in read_blocks(DOCS / "data-flow.md") if block.language == "text")
    paths = re.findall(r" {2,}((?:\w+/)?\w+\.py|\w+/(?=\n)|\w+/\w+\.py)", diagram.text)
    assert len(paths) > 8
    for path in paths:
        assert (ROOT / "src" / "sinterlm" / path).exists(), path


def test_data_flow_md_names_the_metrics_of_both_families() -> None:
    even = SequenceLogps(torch.tensor([-1.0]), torch.tensor([-1.0]))
    pair = wrpo_loss(even, even, even, beta=0.1, alpha=0.5).metrics.keys() | {"alpha"}
    two = Responses(SequenceLogps(torch.tensor([-1.0, -2.0])), torch.tensor([0, 0]), 1, scores=torch.tensor([0.0, 1.0]))
    likelihood = objective_losses(resolve_objective("rloo"), two, progress=0.0).metrics.keys()
    cells = [row[0] for row in tables(DOCS / "data-flow.md")["Metrics of a training"]]
    named = {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
    assert {name for name in named if "/" in name or name in ("alpha", "scores", "advantages")} == pair | likelihood


def test_changelog_begins_with_this_version_and_says_each_change_in_one_sentence() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    newest = re.findall(r"^## \[([^\]]+)\]", text, flags=re.MULTILINE)[0]
    assert f'version = "{newest}"' in (ROOT / "pyproject.toml").read_text()
    for entry in re.findall(r"^- (.+)$", text, flags=re.MULTILINE):
        assert entry.endswith(".")
        assert ". " not in entry, entry


# -- worked examples -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        block
        for block in blocks("python")
        if block.document.name in ("README.md", "data-flow.md", "objectives.md", "selection.md")
        and not re.search("Trainer|run_fusion", block.text)  # these need a recipe and models
    ],
    ids=str,
)
def test_shown_mathematics_is_right(block: Block) -> None:
    exec(compile(block.text, str(block), "exec"), {})


def run_shown(document: str) -> dict[str, Any]:
    """The namespace after all Python blocks of a document."""
    names: dict[str, Any] = {}
    for block in blocks("python"):
        if block.document.name == document:
            exec(compile(block.text, str(block), "exec"), names)
    return names


def test_scorers_md_reads_objectives_and_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a tiny checkpoint under the published name, in the folder where the example runs."""
    folder = tmp_path / "RLHFlow" / "ArmoRM-Llama3-8B-v0.1"
    folder.mkdir(parents=True)
    save_checkpoint(folder)
    monkeypatch.chdir(tmp_path)
    shown = run_shown("scorers.md")
    assert tuple(shown["by_name"]) == tuple(shown["weights"]) == OBJECTIVES_OF_ARMORM
    assert shown["score"].detail["objectives"] == list(shown["by_name"].values())


def test_formats_md_loads_exports_and_splits_them_for_the_authors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_shown_rows("wrpo", tmp_path).rename("wrpo.jsonl")
    for name in ("trl", "wrpo"):
        arguments = ["export", "wrpo.jsonl", "--format", name, "--output", f"runs/mine/export/{name}"]
        result = CliRunner().invoke(cli.app, arguments)
        assert result.exit_code == 0, result.output
    assert "chosen" in run_shown("formats.md")["rows"].features
    assert datasets.load_from_disk("ultrafeedback_wrpo").keys() == {"train", "test"}


def test_training_md_gives_the_numbers_of_the_code() -> None:
    text = " ".join((DOCS / "training.md").read_text().split())
    assert f"`max_length` ({DEFAULT_MAX_LENGTH:,} by default, " in text
    assert f"{CPU_CHUNK_TOKENS:,} on a CPU and {CHUNK_TOKENS:,} elsewhere" in text
    assert f"| {CPU_CHUNK_TOKENS:,} on a CPU, else {CHUNK_TOKENS:,} |" in (DOCS / "recipes.md").read_text()
    assert f"few shots; {MIN_SHARED_BEGINNING} tokens or more" in text
    assert f"{MAX_CHUNK_LOGITS // 10**6} million logits at most" in text
    assert f"at least **{MIN_STEPS} and at most {MAX_STEPS} steps apart**" in text
    assert f"one every {FusionConfig.__dataclass_fields__['save_steps'].default} steps, as Transformers" in text
    assert f"`{ALIKE_AFTER_CUTTING}`" in text


class Extension:
    """The worked example of one section of extending.md, installed as its blocks say."""

    def __init__(self, heading: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        text = section_of(DOCS / "extending.md", heading)
        self.values: dict[str, Any] = {}
        for shown in re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
            self._install(shown)

    def _install(self, text: str) -> None:
        """Run a block as the file that its first line names: a new module, or an addition to an existing one."""
        path = text.splitlines()[0].removeprefix("# ")
        name = path.removeprefix("src/").removesuffix(".py").replace("/", ".")
        module = types.ModuleType(name)
        if (ROOT / path).exists():
            vars(module).update(vars(import_module(name)))
        else:
            self._monkeypatch.setitem(sys.modules, name, module)
        before = dict(vars(module))
        exec(compile(text, path, "exec"), vars(module))
        new = {key: value for key, value in vars(module).items() if before.get(key) is not value}
        for key, value in new.items():
            if isinstance(value, dict) and isinstance(
                before.get(key), dict
            ):  # a table: its rows are added to the real one
                for row in value:
                    self._monkeypatch.setitem(before[key], row, value[row])
        self.values |= new


@pytest.fixture
def extension(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Extension:
    return Extension(request.param, monkeypatch)


def response(content: str, *, source: str = "a", index: int = 0) -> Response:
    return Response(f"{source}-{index}", "p", source, index, content, "stop", 1, 1)


QUESTION = Prompt("p", (Message("user", "What is the plural of ox?"),), ("oxen",))


@pytest.mark.parametrize("extension", ["A scorer"], indirect=True)
def test_the_worked_scorer(extension: Extension) -> None:
    assert SCORERS["word-limit"] is extension.values["WordLimit"]
    config = TypeAdapter(union_of(SCORERS, "kind")).validate_python({"kind": "word-limit", "max_words": 2})
    scorer = build_scorer(config)
    assert (config.title, config.description) == ("word-limit", "1 for an answer of at most max_words words, else 0")
    short, long = scorer.score([Exchange(QUESTION, response("two oxen")), Exchange(QUESTION, response("it is oxen"))])
    assert (short.value, short.passed, short.response_id) == (1.0, True, "a-0")
    assert (long.value, long.passed, long.detail) == (0.0, False, {"num_words": 3})
    assert scorer.identity != build_scorer(config.model_copy(update={"max_words": 3})).identity


def write_word_recipe(folder: Path, scorer: Mapping[str, Any]) -> Path:
    """A recipe of recorded answers to two questions, an answer of one word and one of three to each."""
    questions = [{"id": key, "prompt": f"What is {key}?", "answers": ["it"]} for key in ("p", "q")]
    answers = [
        {"prompt_id": key, "index": n, "response": text} for key in "pq" for n, text in enumerate(("a b c", "d"))
    ]
    for name, rows in (("questions", questions), ("answers", answers)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "output": str(folder / "run"),
        "prompts": {"path": "questions.jsonl", "split": {"sft": 1.0, "preference": 0}},
        "target": {"model": "org/target"},
        "sources": {"old": {"engine": "recorded", "path": "answers.jsonl", "num_samples": 2}},
        "scorer": scorer,
        "sft": {"select": {"kind": "best-of-sources"}},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return folder / "recipe.yaml"


def test_the_worked_function_scores_if_it_is_allowed_to(tmp_path: Path) -> None:
    """From the file beside the recipe to the rows and their description."""
    section = section_of(DOCS / "extending.md", "A scorer")
    (code,) = re.findall(r"^```python\n(# my_scorer\.py\n.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"^```yaml\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "my_scorer.py").write_text(code)
    (tmp_path / "shown.yaml").write_text(shown)
    recipe = write_word_recipe(tmp_path, read_yaml(tmp_path / "shown.yaml").value["scorer"])

    def sinterlm(*arguments: str | Path) -> Result:
        return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])

    run = ("run", recipe, "--until", "select-sft")
    refused = sinterlm(*run)
    assert isinstance(refused.exception, InputError)
    assert "my_scorer.py" in str(refused.exception)
    assert "--allow-code" in str(refused.exception)
    assert sinterlm("plan", recipe).exit_code == 0
    done = sinterlm(*run, "--allow-code")
    assert done.exit_code == 0, done.output
    assert "mean score: 0.5" in done.output
    exported = sinterlm("export", tmp_path / "run", "--format", "trl")
    assert exported.exit_code == 0, exported.output
    card = next((tmp_path / "run").rglob("README.md")).read_text()
    assert "- scorer: python my_scorer.py\n" in card
    (rows,) = (tmp_path / "run" / "rows").glob("*.parquet")
    assert {row.responses[0].content for row in read_rows(rows)} == {"d"}
    (tmp_path / "my_scorer.py").write_text(code.replace("<= 2", "<= 3"))
    assert "mean score: 1" in sinterlm(*run, "--allow-code").output
    (tmp_path / "my_scorer.py").unlink()
    with pytest.raises(
        InputError, match=r"my_scorer\.py: there is no such file \(path of the scorer python\), and scores"
    ):
        load_run(tmp_path / "run").answers("sft")


def test_the_worked_scorer_of_a_package(tmp_path: Path) -> None:
    """The same file in an installed package: listed, run and named like a built-in scorer."""
    section = section_of(DOCS / "extending.md", "A scorer")
    (code,) = re.findall(r"^```python\n(# \S*word_limit\.py\n.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    (shown,) = re.findall(r"^```toml\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    ((group, points),) = tomllib.loads(shown)["project"]["entry-points"].items()
    package, metadata = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    for folder in (package, metadata):
        folder.mkdir()
    (package / "__init__.py").touch()
    (package / "word_limit.py").write_text(code)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
    lines = (f"{name} = {path}\n" for name, path in points.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{''.join(lines)}")
    recipe = write_word_recipe(tmp_path, {"kind": "word-limit", "max_words": 2})
    script = f"""
from sinterlm import cli
for arguments in (["list", "scorers"], ["plan", {str(recipe)!r}], ["run", {str(recipe)!r}, "--until", "select-sft"],
                  ["export", {str(tmp_path / "run")!r}, "--format", "trl"]):
    cli.app(arguments, standalone_mode=False)
"""
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    assert "1 for an answer of at most max_words words, else 0" in done.stdout
    assert "mean score: 0.5" in done.stdout
    assert "- scorer: word-limit\n" in next((tmp_path / "run").rglob("README.md")).read_text()


@pytest.mark.parametrize("extension", ["An engine"], indirect=True)
@pytest.mark.usefixtures("extension")
def test_the_worked_engine(tmp_path: Path) -> None:
    """One file and one row: the recipe's union is built from the table."""
    source = TypeAdapter(union_of(ENGINES, "engine")).validate_python(
        {"engine": "generate", "model": str(save_tiny(tmp_path)), "device": "cpu", "prompt": {"system": "Be brief."}}
    )

    def sampled(indices: Sequence[int], **changes: Any) -> dict[int, str]:
        settings = SamplingSettings(**{"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 6, "seed": 0} | changes)
        engine = source.build(settings=settings)
        batches = engine.batches([Item(QUESTION, index) for index in indices])
        answers = [generation for batch in engine.sample(batches) for generation in batch]
        assert all(answer.num_tokens <= 6 for answer in answers)
        engine.close()
        return {answer.index: answer.content for answer in answers}

    forwards = sampled([0, 1, 2])
    assert sampled([2, 1, 0]) == forwards, "an answer depends on its own key alone"
    assert len(set(forwards.values())) > 1
    assert sampled([0, 1, 2], seed=1) != forwards
    assert sampled([0], temperature=0.0)[0] == sampled([1], temperature=0.0)[1], "greedy"


@pytest.mark.parametrize("extension", ["A selection policy"], indirect=True)
@pytest.mark.usefixtures("extension")
def test_the_worked_policy() -> None:
    """One file and one row: the recipe's union is built from the table."""
    config = TypeAdapter(union_of(POLICIES, "kind")).validate_python({"kind": "off-policy", "sources": ["a", "b", "c"]})
    assert set(OBJECTIVES["dpo"].roles) <= set(config.row_roles)
    assert (*config.named_sources(),) == tuple((("sources", index), name) for index, name in enumerate("abc"))
    graded = tuple(
        Scored(response(text, source=source), Score(f"{source}-0", "s", value))
        for source, text, value in (("a", "fair", 0.5), ("b", "good", 0.9), ("c", "bad", 0.1))
    )
    given = [Candidates(QUESTION, graded), Candidates(QUESTION, graded[:1])]
    selection = config.select(given, seed=0, stage="select-x")
    (row,), dropped = selection.rows, selection.dropped
    assert [(part.role, part.content) for part in row.responses] == [("chosen", "good"), ("rejected", "bad")]
    assert [(drop.stage, drop.reason) for drop in dropped] == [("select-x", "no-two-ranks-of-source-answers")]
    assert {drop.reason for drop in dropped} == config.reasons.keys()


@pytest.mark.parametrize("extension", ["An objective"], indirect=True)
@pytest.mark.usefixtures("extension")
def test_the_worked_objective() -> None:
    """beta 0.5, width 2: the losses at margins 0, 2 and 6 are 2, 1 and 0 (2 - 3 < 0), the gradients -beta, -beta, 0."""
    policy = torch.tensor([-2.0, 0.0, 4.0], requires_grad=True)
    even = torch.full((3,), -2.0)
    responses = one_pair_a_row({"chosen": SequenceLogps(policy, even), "rejected": SequenceLogps(even, even)})
    hinge = resolve_objective("hinge", {"beta": 0.5, "width": 2.0})
    result = objective_losses(hinge, responses, progress=0.0)
    torch.testing.assert_close(result.losses, torch.tensor([2.0, 1.0, 0.0]))
    torch.testing.assert_close(result.metrics["rewards/margins"], torch.tensor([0.0, 1.0, 3.0]))
    result.losses.sum().backward()
    torch.testing.assert_close(policy.grad, torch.tensor([-0.5, -0.5, 0.0]))


# -- scale.md ----------------------------------------------------------------------------------------------------------


def test_scale_md_gives_what_the_shipped_recipe_plans() -> None:
    """Calls, GPU hours and disk of every stage, as in the table; what the text says of tokens and memory."""
    result = CliRunner().invoke(cli.app, ["plan", str(ROOT / "recipes" / "wrpo" / "llama3-8b.yaml"), "--json"])
    planned = json.loads(result.output)
    page = prose(DOCS / "scale.md")
    rows = re.findall(r"^\| `([a-z-]+)` \|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|", page, flags=re.MULTILINE)
    given = {name: tuple(cell.strip() for cell in cells) for name, *cells in rows}

    def hours(stage: Mapping[str, Any], gpu: str) -> str:
        number = (stage["gpu_hours"] or {}).get(gpu)
        return "" if number is None else f"{number:.1f}" if number < 10 else f"{number:,.0f}"

    assert given == {
        stage["name"]: (
            f"{stage['calls']:,}" if stage["calls"] else "",
            hours(stage, "A100"),
            hours(stage, "H100"),
            f"{stage['disk_bytes'] / 1e9:.1f} GB" if stage["disk_bytes"] else "",
        )
        for stage in planned["stages"]
        if stage["name"] not in ("prompts", "report")
    }
    sampling = next(stage for stage in planned["stages"] if stage["name"] == "sample-sources")
    assert round(sampling["calls"] * 512 / 1e9, 1) == 1.5
    assert round(sampling["calls"] * 200 / 1e9, 1) == 0.6
    assert round(sampling["new_tokens"] / 1e9, 1) == 12.3
    assert round(sampling["calls"] * (600 + 4 * 512) / 1e9, 1) == 7.9
    assert round(sampling["gpu_hours"]["A100"] / 8 / 24, 1) == 6.4
    assert round(sampling["gpu_hours"]["A100"] / 16) == 77
    assert planned["memory_bytes"] == 128e9
    for text in ("1.5 billion", "0.6\n  billion", "12.3 billion", "7.9 GB", "6.4 days", "77 hours", "128 GB"):
        assert text in page


@pytest.mark.parametrize("block", blocks("bash"), ids=str)
def test_shown_scripts_parse(block: Block) -> None:
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)


@pytest.mark.parametrize(("reason", "code"), [("", 5), ("TERM", 143)])
def test_the_shown_job_passes_a_signal_on_and_is_queued_again(tmp_path: Path, reason: str, code: int) -> None:
    """With a command that needs a moment to end, as ours does, and ends by itself with exit code 5."""
    script = next(block.text for block in blocks("bash") if "trap" in block.text)
    fakes = {
        "sinterlm": 'trap "sleep 0.2; exit 143" TERM; touch running; for _ in $(seq 10); do sleep 0.1; done; exit 5',
        "scontrol": 'echo "$@"',
    }
    for name, text in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    command = ["bash", "-c", script]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as job:
        while not (tmp_path / "running").exists():
            time.sleep(0.01)
        if reason:
            job.send_signal(signal.SIGTERM)
        said, _ = job.communicate(timeout=20)
    assert job.returncode == code
    assert said == ("requeue 17\n" if reason else "")
