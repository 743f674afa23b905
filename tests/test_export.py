"""Data sets that others can load and train on, and answers that another workspace need not pay for."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, SplitDict, load_dataset
from huggingface_hub import DatasetCard
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sinterlm import cli
from sinterlm.errors import InputError, ToleranceError, TryAgainError
from sinterlm.files import atomic_folder
from sinterlm.formats import read_rows, read_training_file, write_rows
from sinterlm.formats.dataset import FILE_NAME, Around, Card, Records, write_dataset
from sinterlm.formats.row_formats import FORMATS
from sinterlm.locks import folder_lock
from sinterlm.pipeline.exchange import export_answers, import_answers
from sinterlm.pipeline.export import export_rows
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.records import (
    Message,
    Prompt,
    Response,
    RowResponse,
    SamplingSettings,
    Score,
    TrainingRow,
    response_id,
)
from sinterlm.store import ScoreKey, Store
from tests.tiny import build_model, build_tokenizer
from tests.tiny_fusion import write_tiny_fusion

# TRL 1.16 still reads this property of a model under its old name.
LETS_TRL_TRAIN = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
ROLES: dict[str, Sequence[Any]] = {
    "sft": ("chosen",),
    "dpo": ("chosen", "rejected"),
    "wrpo": ("chosen_source", "chosen_target", "rejected"),
}


def row(number: int, roles: Sequence[Any], *before: Message) -> TrainingRow:
    words = {"chosen": "Five.", "chosen_source": "It is five.", "chosen_target": "5", "rejected": "Cold."}
    responses = tuple(
        RowResponse(words[role], role, "gemma" if role == "chosen_source" else "target", score=place / 4)
        for place, role in enumerate(roles)
    )
    return TrainingRow(f"p{number}", (*before, Message("user", f"What is {number} plus three?")), responses)


@pytest.fixture(params=ROLES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def rows_file(folder: Path, kind: str, *more: TrainingRow) -> Path:
    path = folder / f"{kind}.parquet"
    write_rows(path, [*(row(number, ROLES[kind]) for number in range(8)), *more])
    return path


def load(folder: Path, name: str) -> Dataset:
    return load_dataset(str(folder), name, split="train", cache_dir=str(folder.parent / "cache"))


# --- what datasets and TRL make of it --------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", [name for name, row in FORMATS.items() if row.reads])
def test_the_card_is_what_datasets_reads(tmp_path: Path, format_name: str, kind: str) -> None:
    """The metadata names the files' columns, and the rows are unchanged, in every format that has such rows."""
    path = rows_file(tmp_path, kind)
    try:
        exported = export_rows(path, tmp_path / "out", format_name=format_name)
    except ToleranceError:
        assert (format_name, kind) in {
            *(("wrpo", kind) for kind in ("sft", "dpo")),
            *(("trl-messages", kind) for kind in ("dpo", "wrpo")),
            *(("ultrafeedback-armorm", kind) for kind in ("sft", "wrpo")),
            ("fusechat3", "wrpo"),
        }
        return
    loaded, path = load(exported.folder, kind), exported.folder / kind / FILE_NAME
    (info,) = DatasetCard.load(exported.folder / "README.md").data.dataset_info
    assert Features._from_yaml_list(info["features"]) == loaded.features
    assert Features.from_arrow_schema(pq.read_schema(path)) == loaded.features
    (split,) = SplitDict._from_yaml_list(info["splits"]).values()
    assert (split.name, split.num_examples, split.num_bytes) == ("train", len(loaded), info["dataset_size"])
    assert info["download_size"] == path.stat().st_size
    assert info["dataset_size"] == pytest.approx(pq.read_table(path).nbytes, rel=0.05), "but for the maps of nulls"
    assert exported.counts == {kind: len(loaded)}
    assert set(loaded["prompt_id"]) == {f"p{number}" for number in range(8)}
    assert read_training_file(path, ()), "what is written, Sinter reads"


@LETS_TRL_TRAIN
@pytest.mark.parametrize(
    ("kind", "format_name", "trainer", "config"),
    [
        ("sft", "trl", SFTTrainer, SFTConfig),
        ("sft", "trl-messages", SFTTrainer, SFTConfig),
        ("dpo", "trl", DPOTrainer, DPOConfig),
        ("wrpo", "trl", DPOTrainer, DPOConfig),
        ("dpo", "trl-unpaired", KTOTrainer, KTOConfig),
        ("wrpo", "trl-unpaired", KTOTrainer, KTOConfig),
    ],
)
def test_trl_trains_on_it(tmp_path: Path, kind: str, format_name: str, trainer: Any, config: Any) -> None:
    exported = export_rows(rows_file(tmp_path, kind), tmp_path / "out", format_name=format_name)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    before = {name: weights.clone() for name, weights in model.named_parameters()}
    settings = config(
        output_dir=str(tmp_path / "trained"), use_cpu=True, bf16=False, max_steps=1, per_device_train_batch_size=4,
        learning_rate=1e-2, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
        activation_checkpointing=False,  # TRL's default has a name that Transformers has removed
    )  # fmt: skip
    reference = {} if trainer is SFTTrainer else {"ref_model": build_model(tokenizer)}
    rows = load(exported.folder, kind)
    run = trainer(model, args=settings, train_dataset=rows, processing_class=tokenizer, **reference)
    run.train()
    assert 0 < run.state.log_history[0]["loss"] < 20
    assert any(not weights.equal(before[name]) for name, weights in model.named_parameters())


def test_llama_factory_finds_its_rows(tmp_path: Path, kind: str) -> None:
    """Every column that ``dataset_info.json`` names is in the file that it names."""
    folder = export_rows(rows_file(tmp_path, kind), tmp_path / "out", format_name="llamafactory").folder
    (entry,) = json.loads((folder / "dataset_info.json").read_text()).values()
    assert entry["formatting"] == "sharegpt"
    assert entry.get("ranking", False) == (kind != "sft")
    record = pq.read_table(folder / entry["file_name"]).to_pylist()[0]
    assert set(entry["columns"].values()) <= record.keys()
    turns = [turn["from"] for turn in record["conversations"]]
    if kind == "sft":
        assert turns == ["human", "gpt"]
    else:
        assert turns == ["human"]
        assert {record["chosen"]["from"], record["rejected"]["from"]} == {"gpt"}


# --- the folder ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_listed(tmp_path: Path) -> None:
    with_system = row(9, ROLES["wrpo"], Message("system", "Be brief."))
    path = rows_file(tmp_path, "wrpo", with_system)
    exported = export_rows(path, tmp_path / "out", format_name="wrpo")
    (dropped,) = exported.dropped
    assert (dropped.subject, dropped.stage, dropped.reason) == ("p9", "export-wrpo", "prompt-of-several-messages")
    (line,) = (exported.folder / "dropped.jsonl").read_text().splitlines()
    assert json.loads(line)["subject"] == "p9"
    assert "1: prompt-of-several-messages" in (exported.folder / "README.md").read_text()
    assert exported.to_json()["dropped"] == {"prompt-of-several-messages": 1}


def test_a_pair_of_two_models_stays_one(tmp_path: Path) -> None:
    """The rejected answer of a quadruple's pair is the target's, also after a round trip through TRL's format."""
    trl = export_rows(rows_file(tmp_path, "wrpo"), tmp_path / "trl", format_name="trl").folder / "wrpo" / FILE_NAME
    assert {record["source_rejected"] for record in pq.read_table(trl).to_pylist()} == {"target"}
    exported = export_rows(trl, tmp_path / "out", format_name="fusechat3")
    assert exported.counts == {"wrpo": 8}, "the target's own pairs"
    assert {drop.reason for drop in exported.dropped} == {"pair-of-two-models"}


@pytest.mark.parametrize(("format_name", "key"), [("fusechat3", "dataset"), ("trl", "domain")])
def test_a_file_keeps_its_domains(tmp_path: Path, format_name: str, key: str) -> None:
    """FuseChat-3.0's ``dataset`` is a domain; if it is not text, it means something else."""
    pair = {
        "source_model": "qwen", "prompt": [{"role": "user", "content": "Sort."}],
        "chosen": [{"role": "assistant", "content": "sorted"}], "rejected": [{"role": "assistant", "content": "sort"}],
    }  # fmt: skip
    records = [{**pair, "id": 1, "dataset": "leetcode"}, {**pair, "id": 2, "domain": "code"}, {**pair, "dataset": 3}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(records))
    folder = export_rows(path, tmp_path / "out", format_name=format_name).folder
    assert list(load(folder, "train")[key]) == ["leetcode", "code", ""]


def test_an_export_takes_the_place_of_an_export_only(tmp_path: Path) -> None:
    path, output = rows_file(tmp_path, "dpo"), tmp_path / "out"
    export_rows(path, output, format_name="trl")
    exported = export_rows(path, output, format_name="llamafactory")
    assert sorted(file.name for file in output.iterdir()) == ["README.md", "dataset_info.json", "dpo"]
    assert exported.counts == {"dpo": 8}
    assert f"Training rows from `{path.name}`." in (output / "README.md").read_text()
    shutil.rmtree(output)
    output.mkdir()
    export_rows(path, output, format_name="trl")
    mine = tmp_path / "mine"
    texts = {"notes.txt": b"dear to me", "README.md": b"---\ntags:\n- other\n---\n- sinterlm\n\xff"}
    for name, text in texts.items():
        mine.mkdir(exist_ok=True)
        (mine / name).write_bytes(text)
        with pytest.raises(InputError, match="mine: holds files that are not an export; give --output a new"):
            export_rows(path, mine, format_name="trl")
    assert sorted(file.name for file in mine.iterdir()) == ["README.md", "notes.txt"]


def test_a_failed_export_leaves_the_former_one(tmp_path: Path) -> None:
    def records(error: Exception) -> Iterator[dict[str, str]]:
        yield {"a": "new"}
        raise error

    schema, card, folder = pa.schema({"a": pa.string()}), Card("title", "text"), tmp_path / "out"
    write_dataset(folder, {"one": Records(schema, [{"a": "old"}])}, lambda counts: Around(card))
    with pytest.raises(InputError):
        write_dataset(folder, {"one": Records(schema, records(InputError("no")))}, lambda counts: Around(card))
    with pytest.raises(TryAgainError, match="out: the disk is full"):
        write_dataset(
            folder, {"one": Records(schema, records(OSError(errno.ENOSPC, "no space")))}, lambda counts: Around(card)
        )
    with pytest.raises(InputError, match="out: there is nothing to write"):
        write_dataset(folder, {"one": Records(schema, [])}, lambda counts: Around(card))
    assert load(folder, "one").to_list() == [{"a": "old"}]
    assert os.listdir(tmp_path) == ["out"] or sorted(os.listdir(tmp_path)) == ["cache", "out"]


@pytest.mark.parametrize("name", ["..", "../elsewhere", "a b", ".hidden", ""])
def test_a_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    part = Records(pa.schema({"a": pa.string()}), [{"a": "x"}])
    with pytest.raises(InputError, match="cannot name a configuration of a data set"):
        write_dataset(tmp_path / "out", {name: part}, lambda counts: Around(Card("title", "text")))
    assert not any(tmp_path.iterdir())


def test_many_records_are_written_in_groups(tmp_path: Path) -> None:
    schema = pa.schema({"a": pa.int64()})
    stream = ({"a": number} for number in range(2_500))
    assert write_dataset(tmp_path / "out", {"one": Records(schema, stream)}, lambda counts: Around(Card("t", "t"))) == {
        "one": 2_500
    }
    written = pq.ParquetFile(tmp_path / "out" / "one" / FILE_NAME)
    assert written.metadata.num_row_groups == 3
    assert written.read().column("a").to_pylist() == list(range(2_500))


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "new" / "folder") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file").write_text("all of it")
        assert not (tmp_path / "new" / "folder").exists()
    assert (tmp_path / "new" / "folder" / "inner" / "file").read_text() == "all of it"
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_what_a_killed_process_left_of_a_folder_goes(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for ending in ("tmp", "old"):
        (tmp_path / f".folder.{ended.pid}.{ending}" / "inner").mkdir(parents=True)
    with atomic_folder(tmp_path / "folder"):
        pass
    assert os.listdir(tmp_path) == ["folder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format_name": "csv"}, "unknown format 'csv'; choose from sinterlm, ultrafeedback-armorm, wrpo"),
        ({"format_name": "trl", "names": ["sft"]}, "unknown rows 'sft'; choose from dpo"),
    ],
)
def test_what_there_is_not_is_said(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export_rows(rows_file(tmp_path, "dpo"), tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="holds no run"):
        export_rows(tmp_path, tmp_path / "out", format_name="trl")
    with pytest.raises(InputError, match=r"none\.jsonl: no such file or folder; expected the output folder of a run"):
        export_rows(tmp_path / "none.jsonl", tmp_path / "out", format_name="trl")


# --- a run -----------------------------------------------------------------------------------------------------------


def run(recipe: Path, *overrides: str, until: str) -> dict[str, Any]:
    """Run a recipe; returns the counts of its stages."""
    fusion = Fusion(load_recipe(recipe, overrides).recipe)
    run_fusion(fusion, SilentReporter(), until=until)
    with closing(Store(fusion.store_path, read_only=True)) as store:
        return {name: dict(stage.counts) for name, stage in store.finished_stages(fusion.run_name).items()}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose sources are sampled and scored, and whose SFT rows are selected."""
    path = write_tiny_fusion(tmp_path_factory.mktemp("fusion"), num_questions=24)
    run(path, until="select-sft")
    return path


@pytest.fixture
def folder(recipe: Path) -> Path:
    return recipe.parent / "run"


def command(*arguments: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["sinterlm", *map(str, arguments)])
    return cli.exit_code()


def test_a_run_is_exported_by_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("export", folder, "--format", "fusechat3", "--output", tmp_path / "out", "--json")
    assert command(*arguments, monkeypatch=monkeypatch) == 0
    selected = read_rows(folder / "rows" / "sft.parquet")
    assert json.loads(capsys.readouterr().out) == {
        "folder": str(tmp_path / "out"), "counts": {"sft": len(selected)}, "dropped": {},
    }  # fmt: skip
    for record, row in zip(load(tmp_path / "out", "sft"), selected, strict=True):
        (response,) = row.responses
        assert (record["prompt_id"], record["source_model"]) == (row.prompt_id, response.source)
        assert record["dataset"] == ("even" if int(row.prompt_id.split("-")[1]) % 2 == 0 else "odd")
        assert record["conversations"][-1] == {"from": "gpt", "value": response.content}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "source `tiny`: source" in card
    assert str(folder.parent) not in card, "no path of this machine"


def test_all_answers_of_a_model_with_their_scores(folder: Path, tmp_path: Path) -> None:
    exported = export_rows(folder, tmp_path / "out", format_name="ultrafeedback-armorm", names=["tiny"])
    with closing(sqlite3.connect(folder / "store.sqlite")) as store:
        query = "SELECT content, value FROM responses JOIN scores ON response_id = id"
        stored = set(store.execute(query).fetchall())
    records = load(exported.folder, "tiny").to_list()
    assert exported.counts == {"tiny": len(records)}
    assert len(records) + len(exported.dropped) == 16, "24 prompts, 8 of them held out"
    for record in records:
        answers = list(zip(record["all_generated_responses"], record["all_rm_scores"], strict=True))
        assert len(answers) == 2
        assert set(answers) <= stored
        best, worst = max(answers, key=lambda answer: answer[1]), min(answers, key=lambda answer: answer[1])
        assert (record["chosen"][-1]["content"], record["rejected"][-1]["content"]) == (best[0], worst[0])


# --- answers that are shared -----------------------------------------------------------------------------------------


def test_a_second_workspace_samples_and_scores_nothing_again(recipe: Path, folder: Path, tmp_path: Path) -> None:
    first = run(recipe, until="select-sft")
    shared = export_answers(folder, tmp_path / "shared").folder
    merged = import_answers(shared, tmp_path / "second")
    assert merged.new_responses == merged.new_scores == first["score-sources"]["answers"] > 0
    second = run(recipe, f"output={tmp_path / 'second'}", until="select-sft")
    sampled = {name: count for name, count in second["sample-sources"].items() if name.endswith("sampled now")}
    assert len(sampled) == 3
    assert not any(sampled.values()), "every answer was there"
    assert second["score-sources"]["scored now"] == 0, "and every score"
    rows = "rows/sft.parquet"
    assert (tmp_path / "second" / rows).read_bytes() == (folder / rows).read_bytes()


def test_a_workspace_and_its_copy_share_the_same(folder: Path, tmp_path: Path) -> None:
    shared = export_answers(folder, tmp_path / "shared").folder
    merged = import_answers(shared, tmp_path / "second")
    again = import_answers(shared, tmp_path / "second")
    assert (again.new_responses, again.new_scores) == (0, 0)
    assert (again.known_responses, again.known_scores) == (merged.new_responses, merged.new_scores)
    assert not merged.dropped
    assert not again.dropped
    copy = export_answers(tmp_path / "second", tmp_path / "copy").folder
    files = [f"{part}/{FILE_NAME}" for part in ("responses", "scores")]
    for file in files:
        one, other = (pq.read_table(path / file) for path in (shared, copy))
        # Prompts are stored with a run, and the copy has not read them yet.
        assert one.drop_columns([name for name in ("prompt",) if name in one.column_names]) == other.drop_columns(
            [name for name in ("prompt",) if name in other.column_names]
        )
    assert {message["role"] for record in load(shared, "responses") for message in record["prompt"]} == {"user"}


def test_answers_by_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared, workspace = tmp_path / "shared", tmp_path / "second"
    assert command("export", folder, "--format", "answers", "--output", shared, monkeypatch=monkeypatch) == 0
    assert "responses: " in capsys.readouterr().out
    assert command("import", shared, "--workspace", workspace, "--json", monkeypatch=monkeypatch) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["new_responses"] > 0
    assert found["dropped"] == {}
    assert command("import", shared, "--workspace", workspace, monkeypatch=monkeypatch) == 0
    assert "0 answers and 0 scores are new" in capsys.readouterr().out
    wrong = ("export", folder, "--format", "answers", "--rows", "sft")
    assert command(*wrong, monkeypatch=monkeypatch) == 2
    assert "--rows does not go with --format answers" in capsys.readouterr().err


PROMPT = Prompt("capital", (Message("user", "What is the capital of France?"),), ("Paris",))


def response(index: int, content: str, identity: str = "gemma@1") -> Response:
    key = response_id(identity, PROMPT.content_hash, index)
    return Response(key, PROMPT.id, "gemma", index, content, "stop", 7, 1, SamplingSettings(seed=-3))


def workspace_of(folder: Path, *responses: Response, scorer: str = "exact") -> Path:
    with closing(Store(folder / "store.sqlite")) as store:
        store.add_responses("gemma@1", [(PROMPT, response) for response in responses])
        store.add_scores(
            (PROMPT, Score(response.id, scorer, float("nan") if response.index else 0.5, None, {"n": response.index}))
            for response in responses
        )
    return folder


def scores_of(workspace: Path, *responses: Response) -> list[Score | None]:
    with closing(Store(workspace / "store.sqlite", read_only=True)) as store:
        keys = [ScoreKey(response.id, "exact", PROMPT.answers_hash) for response in responses]
        found = store.scores(keys)
        return [found.get(key) for key in keys]


def test_another_answer_under_the_same_key_is_dropped_with_its_score(tmp_path: Path) -> None:
    """A score belongs to a text: here the other workspace sampled a different one, as another machine might."""
    theirs = export_answers(workspace_of(tmp_path / "a", response(0, "Paris"), response(1, "Lyon")), tmp_path / "s")
    mine = tmp_path / "b"
    with closing(Store(mine / "store.sqlite")) as store:
        store.add_responses("gemma@1", [(PROMPT, response(0, "Rome"))])
    merged = import_answers(theirs.folder, mine)
    assert (merged.new_responses, merged.new_scores) == (1, 1)
    assert [(drop.subject, drop.reason) for drop in merged.dropped] == [
        (response(0, "").id, "another-answer-is-stored"),
        (response(0, "").id, "score-of-no-stored-answer"),
    ]
    first, second = scores_of(mine, response(0, "Rome"), response(1, "Lyon"))
    assert first is None
    assert second is not None
    assert second.value != second.value, "a score that is not a number stays so"
    assert second.detail == {"n": 1}


Change = Callable[[list[dict[str, Any]]], None]


def change(folder: Path, part: str, edit: Change) -> None:
    path = folder / part / FILE_NAME
    table = pq.read_table(path)
    records = table.to_pylist()
    edit(records)
    pq.write_table(pa.Table.from_pylist(records, schema=table.schema), path)


def set_(key: str, value: Any) -> Change:
    return lambda records: records[-1].__setitem__(key, value)


@pytest.mark.parametrize(
    ("part", "edit", "message"),
    [
        ("responses", set_("content", None), "`content` is missing; expected text"),
        ("responses", set_("index", 7), "`id` is '.*'; expected the hash of identity, prompt_hash and index, "),
        ("responses", set_("index", -1), "`index` is -1; expected a whole number, 0 to"),
        ("responses", set_("num_tokens", None), "`num_tokens` is missing; expected a whole number"),
        ("responses", set_("finish_reason", "eos"), '`finish_reason` is "eos"; expected one of stop, length'),
        ("responses", set_("finish_reason", None), "`finish_reason` is missing; expected one of stop, length"),
        ("responses", set_("prompt_hash", "abc"), '`prompt_hash` is "abc"; expected a SHA-256 as 64'),
        (
            "responses",
            set_("prompt", [{"role": "user", "content": "?"}]),
            "`prompt` is not what `prompt_hash` names",
        ),
        (
            "responses",
            set_("sampling", {"temperature": float("inf")}),
            r"`sampling\.temperature` is Infinity; expected",
        ),
        ("scores", set_("response_id", "x"), '`response_id` is "x"; expected a SHA-256'),
        ("scores", set_("scorer", None), "`scorer` is missing; expected text"),
        ("scores", set_("value", float("inf")), "`value` is Infinity; expected a finite number"),
    ],
)  # fmt: skip
def test_a_wrong_row_is_named_and_nothing_is_written(tmp_path: Path, part: str, edit: Change, message: str) -> None:
    shared = export_answers(workspace_of(tmp_path / "a", response(0, "Paris"), response(1, "Lyon")), tmp_path / "s")
    change(shared.folder, part, edit)
    with pytest.raises(InputError, match=rf"{part}/train-00000-of-00001\.parquet, row 2(, )?:? ?{message}"):
        import_answers(shared.folder, tmp_path / "b")
    with closing(sqlite3.connect(tmp_path / "b" / "store.sqlite")) as store:
        assert store.execute("SELECT COUNT(*) FROM responses").fetchone() == (0,)


@pytest.mark.parametrize(
    ("detail", "found"),
    [
        (None, "`detail` is missing; expected text"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[1]", "`detail` is [1]; expected a JSON object"),
        ("null", "`detail` is null; expected a JSON object"),
        (r'{"judge": "\ud800"}', r"\ud800 is half of a surrogate pair"),
        ('{"a": 1, "a": 2}', 'the key "a" is given twice'),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"a": ' * 500 + "1" + "}" * 500, "`detail` is nested too deeply; expected 32 levels at most"),
        ('{"a": ' + "9" * 5000 + "}", "a number with too many digits"),
        ('{"a": "' + "x" * 2**20 + '"}', "`detail` has 1,048,585 characters; expected 1,048,576 at most"),
        ('{"reason": {"a": 1}}', '`reason` is {"a": 1}; expected text'),
        ('{"problem": 5}', "`problem` is 5; expected text"),
        ('{"contains": "no"}', '`contains` is "no"; expected a finite number'),
        ('{"contains": NaN}', "`contains` is NaN; expected a finite number"),
    ],
)
def test_a_score_of_an_odd_detail_is_dropped_and_the_others_are_taken(
    tmp_path: Path, detail: str | None, found: str
) -> None:
    shared = export_answers(workspace_of(tmp_path / "a", response(0, "Paris"), response(1, "Lyon")), tmp_path / "s")
    change(shared.folder, "scores", set_("detail", detail))
    merged = import_answers(shared.folder, tmp_path / "b")
    assert (merged.new_responses, merged.new_scores) == (2, 1)
    [dropped] = merged.dropped
    assert dropped.reason == "unreadable-score-detail"
    assert dropped.subject in (response(0, "Paris").id, response(1, "Lyon").id)
    assert ", row 2" in dropped.detail
    assert found in dropped.detail
    assert len(dropped.detail) < 500


def test_a_score_without_its_answer_is_dropped(tmp_path: Path) -> None:
    shared = export_answers(workspace_of(tmp_path / "a", response(0, "Paris"), response(1, "Lyon")), tmp_path / "s")
    change(shared.folder, "responses", list.clear)
    merged = import_answers(shared.folder, tmp_path / "b")
    assert [drop.reason for drop in merged.dropped] == ["score-of-no-stored-answer"] * 2
    assert merged[:4] == (0, 0, 0, 0)


def test_what_is_no_shared_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none: no such folder; expected one that `sinterlm export --format answers`"):
        import_answers(tmp_path / "none", tmp_path / "b")
    with pytest.raises(InputError, match=r"responses.*\.parquet: no such file; expected a folder that"):
        import_answers(tmp_path, tmp_path / "b")
    assert not (tmp_path / "b").exists()
    with pytest.raises(InputError, match="rows: is a file; expected a workspace"):
        export_answers(rows_file(tmp_path, "sft").rename(tmp_path / "rows"))
    with closing(Store(tmp_path / "empty" / "store.sqlite")), pytest.raises(InputError, match="nothing to write"):
        export_answers(tmp_path / "empty", tmp_path / "s")
    with pytest.raises(InputError, match="holds no run"):
        export_answers(tmp_path / "nowhere", tmp_path / "s")


def test_a_workspace_in_use_is_left_alone(tmp_path: Path) -> None:
    shared = export_answers(workspace_of(tmp_path / "a", response(0, "Paris")), tmp_path / "s")
    with folder_lock(tmp_path / "b", tmp_path / "b"), pytest.raises(TryAgainError, match="is in use"):
        import_answers(shared.folder, tmp_path / "b")


def test_a_killed_import_has_written_nothing_and_the_same_command_ends_it(tmp_path: Path) -> None:
    num_answers = 3_000
    shared = export_answers(
        workspace_of(tmp_path / "a", *(response(index, "x" * 2_000) for index in range(num_answers))), tmp_path / "s"
    ).folder
    arguments = [sys.executable, "-m", "sinterlm", "import", str(shared), "--workspace", str(tmp_path / "b")]
    process = subprocess.Popen(arguments)
    log = tmp_path / "b" / "store.sqlite-wal"
    deadline = time.monotonic() + 60
    while process.poll() is None and not (log.exists() and log.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was at work when it was killed"
    with closing(Store(tmp_path / "b" / "store.sqlite")) as store:
        assert sum(1 for _ in store.all_responses()) == 0
    merged = import_answers(shared, tmp_path / "b")
    assert (merged.new_responses, merged.new_scores) == (num_answers, num_answers)


def published(folder: Path, best: Sequence[int]) -> tuple[Path, list[dict[str, Any]]]:
    """A recipe with only recorded answers and scores, as in train.json of princeton-nlp/*-ultrafeedback-armorm."""
    records = [
        {
            "prompt_id": f"p{number}",
            "prompt": f"What is {number} plus 3?",
            "all_generated_responses": [f"It is {number + 3}, answer {index}." for index in range(3)],
            "all_rm_scores": [0.17 if index == place else 0.11 for index in range(3)],
        }
        for number, place in enumerate(best)
    ]
    (folder / "train.json").write_text(json.dumps(records))
    return write_tiny_fusion(folder), records


PUBLISHED = (
    "prompts={path: train.json, split: {sft: 1.0}}",
    "sources={llama: {engine: recorded, path: train.json}}",
    "scorer={kind: recorded, path: train.json}",
    "preference={}",
    "evaluation={}",
)


def test_an_answer_without_a_score_is_none_of_the_exported(tmp_path: Path) -> None:
    """A score that is not a number cannot be read back, and decides neither best nor worst."""
    recipe, records = published(tmp_path, [0, 1, 2])
    records[1]["all_rm_scores"].pop()
    scores = [
        {"prompt_id": record["prompt_id"], "response": answer, "score": score}
        for record in records
        for answer, score in zip(record["all_generated_responses"], record["all_rm_scores"], strict=False)
    ]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, scores)))
    scorer = "scorer={kind: recorded, path: scores.jsonl, missing: drop}"
    run(recipe, *PUBLISHED, scorer, until="score-sources")
    exported = export_rows(tmp_path / "run", tmp_path / "out", format_name="ultrafeedback-armorm")
    (dropped,) = exported.dropped
    assert (dropped.subject, dropped.reason, dropped.detail) == ("p1", "no-score", "1 of 3 answers have none")
    written = read_training_file(exported.folder / "llama" / FILE_NAME, ("chosen", "rejected"))
    assert {row.prompt_id: row.with_role("chosen").index for row in written} == {"p0": 0, "p2": 2}


def test_a_published_file_is_prompts_answers_and_scores_of_a_recipe(tmp_path: Path) -> None:
    """Best-of-sources chooses what the file's authors chose."""
    best = [number % 3 for number in range(12)]
    recipe, _ = published(tmp_path, best)
    counts = run(recipe, *PUBLISHED, until="select-sft")
    assert counts["score-sources"]["answers"] == 36
    rows = {row.prompt_id: row.responses for row in read_rows(tmp_path / "run" / "rows" / "sft.parquet")}
    assert {name: (answer.index, answer.score) for name, (answer,) in rows.items()} == {
        f"p{number}": (best[number], 0.17) for number in range(12)
    }
