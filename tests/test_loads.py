"""Checks of every load: files that are not what their names say, weights that do not fit, too little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, GenerationConfig

from sinterlm.chat import encode_example
from sinterlm.errors import InputError, OutOfMemoryError, TryAgainError, memory_advice
from sinterlm.models import (
    cached_fingerprint,
    check_trainable,
    fingerprint,
    hub_revision,
    known_weights_bytes,
    load_model,
    load_model_of,
    load_reward_model,
    load_tokenizer,
    load_trainable_model,
    plain_name,
    resolve_model,
    split_revision,
)
from sinterlm.records import Message, Prompt, Response, RowResponse, SamplingSettings, TrainingRow
from sinterlm.sampling.protocol import Item
from sinterlm.sampling.transformers_engine import TransformersEngine
from sinterlm.scoring.armorm_model import ArmoRM
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.reward_model import RewardModelScorer
from sinterlm.training.sequence_logps import sequence_logps
from sinterlm.training.train import train
from tests.tiny import build_model, build_tokenizer, save_tiny, save_tiny_reward_model
from tests.tiny_gguf import write_gguf

ROWS = [
    TrainingRow(
        f"row-{number}",
        (Message("user", f"What is {number}?"),),
        (RowResponse(f"It is {number}.", role="chosen"), RowResponse("no", role="rejected")),
    )
    for number in range(3)
]
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 538090408\n"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
LAYER = "model.layers.0.self_attn."
Change = Callable[[Path], object]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save_untied(folder: Path) -> Path:
    """A model whose head has its own matrix."""
    model = build_model(build_tokenizer())
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach() + 0.01)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def tune(model: Path, output: Path, **arguments: Any) -> Path:
    settings = {"max_steps": 1, "learning_rate": 1e-2, "report_to": "none", **arguments}
    train(ROWS, model=str(model), objective="dpo", output_dir=output, arguments=settings)
    return output


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def configured(**values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        config = {**read(path), **values}
        path.write_text(json.dumps({key: value for key, value in config.items() if value != "left out"}))

    return change


def written(name: str, content: str | bytes) -> Change:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def renamed(name: str) -> Change:
    return lambda folder: (folder / WEIGHTS).rename(folder / name)


def indexed(content: Any) -> Change:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        (folder / INDEX).write_text(content if isinstance(content, str) else json.dumps(content))

    return change


def mapped(file: str) -> Change:
    return indexed({"metadata": {}, "weight_map": {"model.norm.weight": file}})


def weighed(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def rewrite(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        change(weights)
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def with_weight(name: str, *shape: int) -> Change:
    return weighed(lambda weights: weights.update({name: torch.ones(*shape)}))


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "LORA"}')
    (folder / WEIGHTS).rename(folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()


BROKEN: dict[str, tuple[Change, str]] = {
    "pointer as weights": (
        written(WEIGHTS, POINTER),
        r"safetensors: a Git LFS pointer, not weights: run `git lfs pull`",
    ),
    "pointer as tokenizer": (written("tokenizer.json", POINTER), r"tokenizer\.json: a Git LFS pointer"),
    "pointer as config": (written("config.json", POINTER), r"config\.json: a Git LFS pointer"),
    "empty weights": (written(WEIGHTS, ""), r"model\.safetensors: the file is empty"),
    "empty tokenizer": (written("tokenizer.json", ""), r"tokenizer\.json: the file is empty"),
    "empty config": (written("config.json", ""), r"config\.json: the file is empty"),
    "half a config": (written("config.json", "{half"), r"config\.json: not valid JSON"),
    "config of another kind": (written("config.json", "[]"), r"config\.json: holds a list; expected a JSON object"),
    "half a generation config": (
        written("generation_config.json", "{half"),
        r"generation_config\.json: not valid JSON",
    ),
    "half a tokenizer config": (written("tokenizer_config.json", "{half"), r"tokenizer_config\.json: not valid JSON"),
    "cut weights": (
        lambda folder: os.truncate(folder / WEIGHTS, 5000),
        r"model\.safetensors: broken or cut short, not a whole safetensors file",
    ),
    "zeros": (written(WEIGHTS, bytes(5000)), r"model\.safetensors: broken or cut short"),
    "a pickle by another name": (written(WEIGHTS, b"PK\x03\x04" + bytes(300)), r"model\.safetensors: broken"),
    "a pickle in the index": (
        mapped("pytorch_model.bin"),
        r"names pytorch_model\.bin, which is not a safetensors file",
    ),
    "a missing shard": (mapped("b.safetensors"), r"b\.safetensors: this weights file is missing"),
    "a shard elsewhere": (mapped("../a.safetensors"), r"names \.\./a\.safetensors; expected files within its folder"),
    "half an index": (indexed("{half"), r"index\.json: not valid JSON"),
    "an index without map": (indexed({}), r'index\.json: no "weight_map" in it'),
    "another precision alone": (
        renamed("model.fp16.safetensors"),
        r"neither model\.safetensors nor .* only model\.fp16",
    ),
    "another layout alone": (renamed("consolidated.safetensors"), r"neither .* only consolidated\.safetensors"),
    "shards without index": (renamed("model-00001-of-00002.safetensors"), r"only model-00001-of-00002\.safetensors"),
    "an adapter": (adapter, r"an adapter of org/base, not a whole model; name the base model, or merge"),
    "an adapter beside": (written("adapter_config.json", "{}"), r"holds both a whole model and an adapter"),
    "no model type": (configured(model_type="left out"), r"config\.json names no model_type"),
    "an unknown architecture": (configured(model_type="frob"), r"Transformers [\d.]+ does not know its arch\w+ 'frob'"),
    "code of its own": (
        configured(model_type="evil", auto_map={"AutoConfig": "evil.Config"}),
        r"it needs code of its own \(auto_map\), and no code that comes with a model is run",
    ),
    "a config that contradicts itself": (
        configured(num_attention_heads=5),
        r"cannot be loaded: .*config\.json: .* is not a multiple of the number of attention heads \(5\)",
    ),
}
"""A fault of a folder, for every reader: how it comes about, and the message."""

LOADERS: dict[str, Callable[[str], object]] = {
    "model": lambda name: load_model(name, device="cpu"),
    "trainable": load_trainable_model,
    "reward": lambda name: load_reward_model(name, device="cpu"),
    "armorm": lambda name: load_model_of(ArmoRM, name, device="cpu"),
    "tokenizer": load_tokenizer,
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_sentence_in_every_load(tmp_path: Path, case: str) -> None:
    change, said = BROKEN[case]
    folder = save_tiny(tmp_path / "model")
    change(folder)
    for load in LOADERS.values():
        with pytest.raises(InputError, match=said) as caught:
            load(str(folder))
        assert "\n" not in str(caught.value)


UNFIT: dict[str, tuple[Change, str]] = {
    "a bias that the config denies": (with_weight(f"{LAYER}q_proj.bias", 32), r"its files hold .*q_proj\.bias, which"),
    "a norm that the class lacks": (with_weight(f"{LAYER}q_norm.weight", 8), r"its files hold .*q_norm\.weight"),
    "packed weights without a word": (with_weight(f"{LAYER}q_proj.weight.absmax", 4), r"its files hold .*absmax"),
    "an adapter within": (with_weight(f"{LAYER}q_proj.lora_A.default.weight", 4, 32), r"its files hold .*lora_A"),
    "a lost weight": (weighed(lambda weights: weights.pop("model.norm.weight")), r"its files lack model\.norm\.weight"),
    "another shape": (with_weight("model.norm.weight", 16), r"model\.norm\.weight has the shape \(16,\), .* \(32,\)"),
    "a larger embedding": (with_weight("model.embed_tokens.weight", 400, 32), r"\(400, 32\), .* would be \(384, 32\)"),
    "a layer more by the config": (configured(num_hidden_layers=3), r"its files lack model\.layers\.2\."),
    "an encoder and decoder": (configured(model_type="t5"), r"\(t5\) does not continue a text"),
    "a model that fills gaps": (configured(architectures=["BertForMaskedLM"]), r"it fills gaps in a text"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, case: str) -> None:
    change, said = UNFIT[case]
    folder = save_tiny(tmp_path / "model")
    change(folder)
    with pytest.raises(InputError, match=said):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    "change",
    [
        with_weight(f"{LAYER}rotary_emb.inv_freq", 4),
        with_weight("model.layers.1.attn.masked_bias", 1),
        weighed(lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})),
    ],
)
def test_what_older_versions_saved_is_passed_over(
    tmp_path: Path, change: Change, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny(tmp_path / "model")
    change(folder)
    capfd.readouterr()
    load_model(str(folder), device="cpu")
    assert (caplog.text, capfd.readouterr().err) == ("", "")


def test_parts_that_a_class_has_no_place_for_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = save_tiny(tmp_path / "model")
    with_weight("model.visual.blocks.0.weight", 2)(folder)
    with_weight("v_head.summary.weight", 2)(folder)
    load_model(str(folder), device="cpu")
    assert "has no place for some weights of its files (2): model.visual (1), v_head (1)" in caplog.text


class TestQuantised:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
            ({"quant_method": "gptq", "bits": 4}, "gptq, 4 bits"),
            ({"quant_method": "awq", "bits": 4}, "awq, 4 bits"),
            ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors"),
            ({"quant_method": "fp8"}, "fp8"),
            ({"quant_method": "mxfp4"}, "mxfp4"),
        ],
    )
    @pytest.mark.parametrize("place", ["", "text_config"])
    def test_it_is_not_trained(self, tmp_path: Path, settings: dict[str, Any], said: str, place: str) -> None:
        folder = save_tiny(tmp_path / "model")
        configured(**({place: {"quantization_config": settings}} if place else {"quantization_config": settings}))(
            folder
        )
        expected = rf"is quantised by {said}: full weights are trained; take the unquantised model"
        with pytest.raises(InputError, match=expected):
            check_trainable(str(folder))
        with pytest.raises(InputError, match=expected):
            tune(folder, tmp_path / "out")

    @pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes"])
    def test_sampling_it_says_which_package_is_missing(self, tmp_path: Path, method: str) -> None:
        folder = save_tiny(tmp_path / "model")
        configured(quantization_config={"quant_method": method, "bits": 4, "load_in_4bit": True})(folder)
        with pytest.raises(InputError, match=rf"quantised by {method}, 4 bits: install what that needs.*pip install"):
            load_model(str(folder), device="cpu")


class TestVocabulary:
    def test_a_token_without_a_row(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        tokenizer = build_tokenizer()
        tokenizer.add_tokens(["<new>", "<newer>"])
        tokenizer.save_pretrained(folder)
        with pytest.raises(InputError, match=r"386 tokens and its embedding 384 rows, so that '<new>' \(token 384\)"):
            load_tokenizer(str(folder))
        with pytest.raises(InputError, match="'<new>'"):
            tune(folder, tmp_path / "out")

    @pytest.mark.parametrize("named", [False, True])
    def test_a_placeholder_that_no_text_becomes_needs_none(self, tmp_path: Path, named: bool) -> None:
        """Gemma 3's text-only models are published like this. A placeholder that the template writes would occur."""
        folder = save_tiny(tmp_path / "model")
        tokenizer = build_tokenizer()
        tokenizer.add_tokens(["<image_soft_token>"], special_tokens=True)
        if named:
            tokenizer.chat_template = f"{tokenizer.chat_template}<image_soft_token>"
        tokenizer.save_pretrained(folder)
        if named:
            with pytest.raises(InputError, match="'<image_soft_token>'"):
                load_tokenizer(str(folder))
        else:
            assert len(load_tokenizer(str(folder))) == 385

    def test_rows_without_a_token_do_no_harm(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        model = build_model(build_tokenizer())
        model.resize_token_embeddings(512)
        model.save_pretrained(folder)
        assert len(load_tokenizer(str(folder))) == 384

    def test_a_folder_without_tokenizer(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "tokenizer.json").unlink()
        with pytest.raises(InputError, match=r"no tokenizer in .*; expected one of tokenizer\.json, tekken\.json"):
            load_tokenizer(str(folder))


class TestFilesOfTheModel:
    @pytest.mark.parametrize("sharded", [False, True])
    def test_only_what_is_loaded_is_counted_and_named(self, cache: None, tmp_path: Path, sharded: bool) -> None:
        folder = save_tiny(tmp_path / "model")
        if sharded:
            (folder / WEIGHTS).unlink()
            build_model(build_tokenizer()).save_pretrained(folder, max_shard_size="20KB")
        size, name = known_weights_bytes(str(folder)), fingerprint(str(folder))
        assert size == 4 * sum(weight.numel() for weight in build_model(build_tokenizer()).parameters())
        other = save_tiny(tmp_path / "other", seed=1) / WEIGHTS
        for place in (
            "original/model.safetensors",
            "checkpoint-5/model.safetensors",
            "consolidated.safetensors",
            "model.fp16.safetensors",
            "model-00001-of-00099.safetensors",
            "adapter_model.safetensors",
        ):
            (folder / place).parent.mkdir(exist_ok=True)
            shutil.copy(other, folder / place)
        assert known_weights_bytes(str(folder)) == size
        assert cached_fingerprint(str(folder)) == fingerprint(str(folder)) == name
        weights = load_model(str(folder), device="cpu").state_dict()
        assert all(torch.equal(weights[key], own) for key, own in build_model(build_tokenizer()).state_dict().items())

    def test_tekken_belongs_to_the_model(self, cache: None, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "tokenizer.json").rename(folder / "tekken.json")
        before = fingerprint(str(folder))
        (folder / "tekken.json").write_text("{}")
        assert fingerprint(str(folder)) != before

    def test_other_weights_of_the_same_size_and_time_are_another_model(self, cache: None, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        other = save_tiny(tmp_path / "other", seed=1)
        before, times = fingerprint(str(folder)), (folder / WEIGHTS).stat()
        (folder / WEIGHTS).write_bytes((other / WEIGHTS).read_bytes())  # also the same inode
        os.utime(folder / WEIGHTS, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert (folder / WEIGHTS).stat().st_mtime_ns == times.st_mtime_ns
        assert cached_fingerprint(str(folder)) is None
        assert fingerprint(str(folder)) == fingerprint(str(other)) != before


class TestHub:
    """A hub's cache as it is on disk, and a hub that serves files."""

    @staticmethod
    def add(cache: Path, commit: str, *, branch: str = "", seed: int = 0) -> Path:
        repository = cache / "models--org--tiny"
        folder = save_tiny(repository / "snapshots" / commit, seed=seed)
        if branch:
            (repository / "refs").mkdir(exist_ok=True)
            (repository / "refs" / branch).write_text(commit)
        return folder

    def ask(self, program: str, **environment: str) -> list[str]:
        """The output of a program that uses another hub than this process."""
        done = subprocess.run(
            [sys.executable, "-c", f"from sinterlm.models import *\nfrom sinterlm.training.card import *\n{program}"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.splitlines()

    def test_a_revision_can_be_pinned(self, tmp_path: Path) -> None:
        old, new = "a" * 40, "b" * 40
        first, second = self.add(tmp_path, old, branch="v1"), self.add(tmp_path, new, branch="main", seed=1)
        program = "for name in ('org/tiny', 'org/tiny@v1', f'org/tiny@{old}'): print(resolve_model(name))\n"
        program += "print(hub_revision('org/tiny@v1'), known_weights_bytes('org/tiny@v1') > 0)\n"
        program += "print(fingerprint('org/tiny') != fingerprint('org/tiny@v1') == cached_fingerprint('org/tiny@v1'))\n"
        program += "from sinterlm.objectives.named import resolve_objective as find\n"
        program += (
            "card = render_card(CardDetails('org/tiny@v1'), objective=find('sft', {}), arguments={}, rows=[], seed=0)\n"
        )
        program += "print([line for line in card.splitlines() if 'org/tiny' in line])\n"
        said = self.ask(
            f"old = {old!r}\n{program}",
            HF_HUB_OFFLINE="1",
            HF_HUB_CACHE=str(tmp_path),
            XDG_CACHE_HOME=str(tmp_path / "hashes"),
        )
        assert said[:3] == [str(second), str(first), str(first)]
        assert said[3:5] == [f"{old} True", "True"]
        card = [
            "base_model: org/tiny",
            f"Trained from `org/tiny` at revision `{old}` by Sinter, which fuses what several models know into one.",
        ]
        assert said[5] == str(card)

    def test_an_unknown_revision(self, tmp_path: Path) -> None:
        self.add(tmp_path, "a" * 40, branch="main")
        program = "try: resolve_model('org/tiny@v9')\nexcept Exception as error: print(type(error).__name__, error)"
        (said,) = self.ask(program, HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path))
        assert said.startswith("InputError model 'org/tiny@v9': there is no such folder")

    def test_names(self) -> None:
        assert split_revision("org/name@refs/pr/3") == ("org/name", "refs/pr/3")
        assert split_revision("org/name") == ("org/name", None)
        assert hub_revision("/nowhere/at/all") is None
        assert plain_name("org/name@v1") == "org/name@v1"
        assert plain_name("/home/somebody/models/mine") == "mine"

    def test_only_what_the_index_names_is_fetched(self, tmp_path: Path) -> None:
        commit = "c" * 40
        source = tmp_path / "served"
        build_model(build_tokenizer()).save_pretrained(source, max_shard_size="20KB")
        build_tokenizer().save_pretrained(source)
        shards = [path.name for path in source.glob("*.safetensors")]
        assert len(shards) > 1
        for extra in ("consolidated.safetensors", "original/model.safetensors", "tekken.json", "pytorch_model.bin"):
            (source / extra).parent.mkdir(exist_ok=True)
            (source / extra).write_bytes(b"{}")
        asked: list[str] = []
        with_hub = serve_hub(source, commit, asked)
        program = "from pathlib import Path\nfolder = resolve_model('org/tiny')\n"
        program += "for path in sorted(folder.rglob('*')): print(path.relative_to(folder))"
        said = self.ask(
            program,
            HF_ENDPOINT=with_hub,
            HF_HUB_CACHE=str(tmp_path / "hub"),
            HF_HUB_DISABLE_XET="1",
            HF_HUB_OFFLINE="0",
        )
        assert {*shards, "tekken.json", "config.json", INDEX} <= set(said)
        assert not {"consolidated.safetensors", "original", "pytorch_model.bin"} & set(said)
        assert not any("consolidated" in path or "original" in path for path in asked)


def serve_hub(source: Path, commit: str, asked: list[str]) -> str:
    """A hub on this machine with one model; the paths of requested files are added to ``asked``."""

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/api/"):
                files = [file for file in source.rglob("*") if file.is_file()]
                siblings = [{"rfilename": file.relative_to(source).as_posix()} for file in files]
                tree = [{"type": "file", "oid": "0" * 40, "path": file["rfilename"], "size": 1} for file in siblings]
                info = {"id": "org/tiny", "sha": commit, "siblings": siblings, "private": False}
                self.answer(json.dumps(tree if "/tree/" in path else info).encode(), {"X-Repo-Commit": commit})
                return
            asked.append(path)
            file = source / path.partition(f"/resolve/{commit}/")[2]
            self.answer(file.read_bytes(), {"X-Repo-Commit": commit, "ETag": f'"{file.name}"'})

        def answer(self, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


class TestGguf:
    @pytest.mark.parametrize("length", [0, 3, 200, 42_000])
    def test_a_file_that_is_cut_short(
        self, cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
    ) -> None:
        package = tmp_path / "site" / "cut_package"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        tokenizer = build_tokenizer()
        write_gguf(package / "tiny.gguf", build_model(tokenizer), tokenizer)
        assert (package / "tiny.gguf").stat().st_size > 42_000
        os.truncate(package / "tiny.gguf", length)
        monkeypatch.syspath_prepend(tmp_path / "site")
        with pytest.raises(InputError, match=r"tiny\.gguf: (the file is empty|cannot be read as GGUF)"):
            load_model("gguf:cut_package/tiny.gguf", device="cpu")
        written("../site/cut_package/tiny.gguf", POINTER)(tmp_path / "site")
        with pytest.raises(InputError, match=r"tiny\.gguf: a Git LFS pointer"):
            load_tokenizer("gguf:cut_package/tiny.gguf")


class TestStops:
    @pytest.mark.parametrize("rank", [None, 2])
    def test_all_of_the_generation_config_is_kept(self, tmp_path: Path, rank: int | None) -> None:
        """Transformers refuses to save a temperature without `do_sample`."""
        folder = save_tiny(tmp_path / "model")
        own = {
            "temperature": 0.9,
            "top_p": 0.6,
            "repetition_penalty": 1.05,
            "eos_token_id": [5, 7, 9],
            "pad_token_id": 3,
        }
        (folder / "generation_config.json").write_text(json.dumps(own))
        configured(eos_token_id=[5, 7, 9])(folder)
        out = tune(folder, tmp_path / "out", max_steps=2, save_steps=1, **({"lora_r": rank} if rank else {}))
        found = read(out / "generation_config.json")
        assert found.items() >= {**own, "eos_token_id": [1, 5, 7, 9]}.items()
        assert read(out / "config.json")["eos_token_id"] == [5, 7, 9]
        assert not found.get("do_sample")

    @pytest.mark.parametrize(("stops", "expected"), [(5, [1, 5]), ([1, 7], [1, 7]), (None, [1])])
    def test_the_trained_end_of_turn_is_added(self, tmp_path: Path, stops: object, expected: list[int]) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": stops} if stops else {}))
        assert read(tune(folder, tmp_path / "out") / "generation_config.json")["eos_token_id"] == expected

    def test_of_a_gguf_file(self, cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        package = tmp_path / "site" / "stopping_package"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        tokenizer = build_tokenizer()
        write_gguf(package / "tiny.gguf", build_model(tokenizer), tokenizer)
        monkeypatch.syspath_prepend(tmp_path / "site")
        name = "gguf:stopping_package/tiny.gguf"
        own = GenerationConfig.from_pretrained(resolve_model(name)).eos_token_id
        train(ROWS, model=name, objective="dpo", output_dir=tmp_path / "out", arguments={"max_steps": 1})
        assert own == tokenizer.eos_token_id
        assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [own]

    def test_without_a_generation_config_the_configs_stops_count(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "generation_config.json").unlink()
        configured(eos_token_id=[5, 6])(folder)
        out = tune(folder, tmp_path / "out")
        assert GenerationConfig.from_pretrained(out).eos_token_id == [1, 5, 6]


class TestAdapters:
    @pytest.mark.parametrize("modules", [["q_proj", "lm_head"], ["embed_tokens"], r".*lm_head"])
    def test_a_shared_matrix_gets_none(self, tmp_path: Path, modules: object) -> None:
        folder = save_tiny(tmp_path / "model")
        with pytest.raises(InputError, match=r"model\.embed_tokens and lm_head share one matrix"):
            tune(folder, tmp_path / "out", lora_r=2, lora_target_modules=modules)

    @pytest.mark.parametrize(
        ("tied", "modules"),
        [(True, "all-linear"), (True, ["q_proj"]), (False, ["q_proj", "lm_head"]), (False, ["embed_tokens"])],
    )
    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Setting `save_embedding_layers`")
    def test_the_saved_model_is_the_trained_one(self, tmp_path: Path, tied: bool, modules: object) -> None:
        from peft import PeftModel

        folder = save_tiny(tmp_path / "model") if tied else save_untied(tmp_path / "model")
        out = tune(folder, tmp_path / "out", max_steps=2, lora_r=4, lora_target_modules=modules)
        ids = torch.arange(20)[None]
        base = load_model(str(folder), device="cpu")
        before, after = base(ids).logits, load_model(str(out), device="cpu")(ids).logits
        trained = PeftModel.from_pretrained(base, str(out / "adapter"))(ids).logits
        torch.testing.assert_close(after, trained)
        assert (after - before).abs().max() > 1e-4

    def test_its_folder_names_the_merged_model_and_no_folder_of_this_machine(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        out = tune(folder, tmp_path / "out", lora_r=2, deepspeed=None)
        with pytest.raises(InputError, match=rf"an adapter, not a whole model; its merged model is {out}$"):
            load_model(str(out / "adapter"))
        assert read(out / "adapter" / "adapter_config.json")["base_model_name_or_path"] == "model"
        # training.json is the run's own record, from which it resumes here.
        texts = [path for path in out.rglob("*") if path.suffix in (".json", ".md", ".jinja")]
        texts.remove(out / "training.json")
        assert len(texts) > 5
        assert [path.name for path in texts if str(tmp_path) in path.read_text()] == []


SIZES = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "depth": 1,
    "num_heads": 4,
    "out_hidden_size": 32,
    "patch_size": 4,
    "image_size": 16,
}
TOWER = {"mistral3": {"model_type": "pixtral"}}
WHOLE: dict[str, dict[str, Any]] = {
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 32, "attention_chunk_size": 64},
    "mistral3": {},
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}},
    "qwen3_5": {
        "num_hidden_layers": 2,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.filterwarnings("ignore")
def test_models_whose_decoder_lies_elsewhere_are_trained_whole(tmp_path: Path, kind: str) -> None:
    """Their log-probabilities are those of their own forward, and no weight is lost."""
    text = {**SIZES, **WHOLE[kind]}
    torch.manual_seed(0)
    if kind == "llama4_text":
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **text))
    else:
        config = AutoConfig.for_model(kind, text_config=text, vision_config={**VISION, **TOWER.get(kind, {})})
        model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(tmp_path / "model")
    build_tokenizer().save_pretrained(tmp_path / "model")

    example = encode_example(build_tokenizer(), (Message("user", "What is the capital of France?"),), "Paris")
    loaded = load_model(str(tmp_path / "model"), device="cpu")
    (logp,) = sequence_logps(loaded, [example])
    ids = torch.tensor([example.prompt_ids + example.response_ids])
    logits = load_model(str(tmp_path / "model"), device="cpu")(input_ids=ids).logits[0].log_softmax(-1)
    before = len(example.prompt_ids) - 1
    expected = sum(float(logits[before + place, token]) for place, token in enumerate(example.response_ids))
    assert logp.logp == pytest.approx(expected, abs=1e-4)

    out = tune(tmp_path / "model", tmp_path / "out")
    start, end = load_file(tmp_path / "model" / WEIGHTS), load_file(out / WEIGHTS)
    assert start.keys() == end.keys()
    assert any(not torch.equal(start[name], end[name]) for name in start)
    assert read(out / "config.json")["architectures"] == read(tmp_path / "model" / "config.json")["architectures"]


class TestMemory:
    """If memory runs out, the error is one sentence that says what to lower, wherever the memory was needed."""

    @staticmethod
    def fail(*_: object, **__: object) -> Any:
        """Torch's own message on a CPU, from a real attempt."""
        return torch.empty(2**60)

    def test_loading_under_a_limit_of_the_system(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model", hidden_size=256, num_layers=4)
        program = (
            "import resource, sys, psutil; from sinterlm import cli; from sinterlm.models import load_model\n"
            "kept = load_model(sys.argv[1], device='cpu')\n"
            "limit = psutil.Process().memory_info().vms + 2**22\n"
            "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
            "cli.app = lambda **_: load_model(sys.argv[1], device='cpu') and 0\n"
            "sys.exit(cli.exit_code())"
        )
        done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
        assert done.returncode == 2, done.stderr[-2000:]
        assert done.stderr.startswith("sinterlm: out of memory while ")
        assert str(folder) in done.stderr
        assert "Traceback" not in done.stderr

    def test_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = save_tiny(tmp_path / "model")
        monkeypatch.setattr("sinterlm.training.train.FusionTrainer.compute_loss", self.fail)
        with pytest.raises(
            OutOfMemoryError, match=r"training .*can't allocate memory.*lower chunk_tokens or max_length"
        ):
            tune(folder, tmp_path / "out")

    def test_the_reference(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The trial of shared prompts does not conclude that the model cannot share them."""
        folder = save_tiny(tmp_path / "model")
        monkeypatch.setattr("sinterlm.training.logprobs.response_logps", self.fail)
        with pytest.raises(OutOfMemoryError, match=r"preparing the training .*lower chunk_tokens"):
            tune(folder, tmp_path / "out")

    def test_sampling(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = save_tiny(tmp_path / "model")
        engine = TransformersEngine(str(folder), few_shot=None, system=None, settings=SamplingSettings(), device="cpu")
        monkeypatch.setattr("sinterlm.sampling.decoding.decode", self.fail)
        items = [Item(Prompt("a", (Message("user", "What?"),)), 0)]
        with pytest.raises(OutOfMemoryError, match=r"sampling model .*a lower max_new_tokens"):
            list(engine.sample([items]))

    def test_the_trial_of_shared_prefixes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It does not count as a model that cannot share them."""
        folder = save_tiny(tmp_path / "model")
        engine = TransformersEngine(str(folder), few_shot=None, system=None, settings=SamplingSettings(), device="cpu")
        monkeypatch.setattr("sinterlm.sampling.sharing.compute_prefix", self.fail)
        with pytest.raises(OutOfMemoryError, match="sampling model"):
            list(engine.sample([[Item(Prompt("a", (Message("user", "What?"),)), 0)]]))

    def test_scoring(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = save_tiny_reward_model(tmp_path / "reward")
        scorer = RewardModelScorer(
            str(folder), max_length=64, truncate="end", batch_tokens=512, float32_head=False, device="cpu"
        )
        monkeypatch.setattr(RewardModelScorer, "_read", self.fail)
        response = Response("r", "a", "source", 0, "No.", "stop", 0, 0)
        with pytest.raises(
            OutOfMemoryError, match=r"scoring with model .*a batch_tokens below 512, a max_length below 64"
        ):
            scorer.score([Exchange(Prompt("a", (Message("user", "What?"),)), response)])

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(12, "Cannot allocate memory"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
            RuntimeError("std::bad_alloc"),
        ],
    )
    def test_its_kinds(self, error: Exception) -> None:
        with pytest.raises(OutOfMemoryError, match=r"out of memory while trying .*: less is less"):
            self.wrap(error)

    @memory_advice("trying", "less is less")
    def wrap(self, error: Exception) -> None:
        try:
            raise error
        except Exception as cause:
            raise ValueError("a library's own words") from cause

    def test_other_errors_stay_what_they_are(self) -> None:
        for error in (ValueError("memory"), InputError("no"), TryAgainError("full")):
            with pytest.raises(type(error)), memory_advice("trying", "less"):
                raise error
