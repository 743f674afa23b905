"""Engines compared with a plain path without cache, batch or shared prefix, and with a float64 nucleus."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
)

from sinterlm.chat import FewShot, encode_completion, encode_prompt, end_token_ids, with_system
from sinterlm.errors import InputError
from sinterlm.models import load_model, load_tokenizer
from sinterlm.records import Message, Prompt, SamplingSettings, digest
from sinterlm.sampling.drawing import draw_tokens, draw_uniforms
from sinterlm.sampling.protocol import Generation, Item
from sinterlm.sampling.recorded import RecordedEngine, RecordedSource
from sinterlm.sampling.settings import PromptFormat
from sinterlm.sampling.transformers_engine import TransformersEngine, TransformersSource
from tests.tiny import FAMILIES, build_tokenizer, save_tiny

GREEDY = SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=12, seed=0)
SAMPLED = SamplingSettings(temperature=0.9, top_p=0.8, max_new_tokens=12, seed=3)
FEW_SHOT = FewShot(
    "Question: {question}\nAnswer: {answer}\n\n",
    (("The opposite of hot?", "cold"), ("Two plus three?", "five"), ("The capital of France?", "Paris")),
)
QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of the model?",
    "What is the capital of the model, and why is it so far away from all the other questions?",
    "What is the opposite of cold?",
    "x",
    "Two plus three is",
)
PROMPTS = [Prompt(f"q{number}", (Message("user", text),)) for number, text in enumerate(QUESTIONS)]
ITEMS = [Item(prompt, index) for prompt in PROMPTS for index in range(3)]


def save_tiny_gemma3(folder: Path) -> Path:
    """A Gemma 3 whose sliding window is shorter than every prompt, with one full-attention layer."""
    tokenizer = build_tokenizer("gemma")
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Gemma3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_gpt2(folder: Path) -> Path:
    """Positions from a table, which has no entry for padding."""
    tokenizer = build_tokenizer("chatml")
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_gemma2(folder: Path) -> Path:
    """Bounded attention scores and logits."""
    tokenizer = build_tokenizer("gemma")
    config = Gemma2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        query_pre_attn_scalar=8,
        sliding_window=8,
        attn_logit_softcapping=1.0,
        final_logit_softcapping=5.0,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stir(folder: Path) -> Path:
    """Move the weights far from their initial values, so the output depends on the whole input."""
    model = load_model(str(folder))
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    models = {family: stir(save_tiny(root / family, family=family)) for family in FAMILIES}
    for name, save in {"gemma2": save_tiny_gemma2, "gemma3": save_tiny_gemma3, "gpt2": save_tiny_gpt2}.items():
        models[name] = stir(save(root / name))
    return models


def build(
    folder: Path, settings: SamplingSettings, few_shot: FewShot | None = None, **other: object
) -> TransformersEngine:
    arguments = {"system": None, **other}
    return TransformersEngine(str(folder), few_shot=few_shot, settings=settings, **arguments)  # type: ignore[arg-type]


def run(engine: TransformersEngine | RecordedEngine, items: Sequence[Item]) -> dict[tuple[str, int], Generation]:
    answers = [answer for batch in engine.sample(engine.batches(items)) for answer in batch]
    return {(answer.prompt_id, answer.index): answer for answer in answers}


def find(prompt_id: str) -> Prompt:
    return next(prompt for prompt in PROMPTS if prompt.id == prompt_id)


def nucleus_reference(probabilities: NDArray[np.float64], uniform: float, top_p: float) -> int:
    """Sort all tokens, keep the shortest run that reaches top_p, and walk along it: float64, one row."""
    order = np.argsort(-probabilities, kind="stable")
    mass = np.cumsum(probabilities[order])
    kept = int(np.searchsorted(mass, top_p)) + 1
    return int(order[np.searchsorted(mass[:kept], uniform * mass[:kept][-1], side="right")])


class Plain:
    """The library's own model on the whole text for every token: no cache, no batch, no prefix."""

    def __init__(self, folder: Path) -> None:
        self.model, self.tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
        self.model.set_attn_implementation("eager")  # the only attention that bounds Gemma 2's scores
        self.ends = end_token_ids(self.tokenizer)

    def encode(self, prompt: Prompt, few_shot: FewShot | None) -> list[int]:
        if few_shot is None:
            return encode_prompt(self.tokenizer, prompt.messages)
        return encode_completion(self.tokenizer, few_shot.prefix + few_shot.render(prompt.messages[0].content))

    def tokens(
        self, encoded: list[int], settings: SamplingSettings, uniforms: Iterable[float] | None = None
    ) -> list[int]:
        tokens = list(encoded)
        for uniform in [0.0] * settings.max_new_tokens if uniforms is None else uniforms:
            with torch.inference_mode():
                logits = self.model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
            if settings.temperature == 0:
                tokens.append(int(logits.argmax()))
            else:
                probabilities = torch.softmax(logits / settings.temperature, dim=-1).numpy()
                tokens.append(nucleus_reference(probabilities, uniform, settings.top_p))
            if tokens[-1] in self.ends:
                break
        return tokens[len(encoded) :]

    def generation(self, item: Item, settings: SamplingSettings, few_shot: FewShot | None = None) -> Generation:
        encoded = self.encode(item.prompt, few_shot)
        uniforms = draw_uniforms(settings.seed, item.prompt.content_hash, item.index, settings.max_new_tokens)
        tokens = self.tokens(encoded, settings, uniforms)
        stop = few_shot.stop if few_shot else "no such text"
        needed = next((k for k in range(1, len(tokens)) if stop in self.decode(tokens[:k])), len(tokens))
        text = self.decode(tokens[:needed])
        is_whole = stop in text or tokens[needed - 1] in self.ends
        content, reason = text.split(stop)[0].strip(), "stop" if is_whole else "length"
        return Generation(item.prompt.id, item.index, content, reason, len(encoded), needed)  # type: ignore[arg-type]

    def decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


# --- drawing ---------------------------------------------------------------------------------------------------------


def grid_frequencies(probabilities: torch.Tensor, top_p: float, points: int) -> NDArray[np.float64]:
    """How often evenly spread uniform numbers draw each token: its width, to within one point."""
    uniforms = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    tokens = draw_tokens(probabilities[None].float(), uniforms[None], top_p=top_p)[0]
    return np.bincount(tokens.numpy(), minlength=len(probabilities)) / points


@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("size", [50, 5000])
@pytest.mark.parametrize("sharpness", [0.01, 1.0, 4.0])
def test_draws_have_the_nucleus_distribution(top_p: float, size: int, sharpness: float) -> None:
    """Sharpness 0.01 over 5,000 tokens is nearly flat, so the 1,024 likeliest fall short of every top_p."""
    generator = torch.Generator().manual_seed(7)
    logits = sharpness * torch.randn(size, generator=generator, dtype=torch.float64)
    probabilities = torch.softmax(logits, dim=-1).numpy()
    order = np.argsort(-probabilities)
    kept = order[: int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1]
    expected = np.zeros(size)
    expected[kept] = probabilities[kept] / probabilities[kept].sum()

    points = 200_000
    found = grid_frequencies(torch.from_numpy(probabilities), top_p, points)

    np.testing.assert_allclose(found, expected, atol=1.5 / points)
    assert set(np.flatnonzero(found)) <= set(kept)


def test_rows_of_one_batch_keep_their_own_distribution() -> None:
    """Sharp rows around a flat one; only the flat one's draws need the whole order."""
    sharp, flat = torch.zeros(3000), torch.arange(3000, 0, -1) / torch.arange(3001).sum()
    sharp[7] = 1.0
    uniforms = torch.linspace(0, 0.999, 4, dtype=torch.float64).repeat(3, 1)
    tokens = draw_tokens(torch.stack([sharp, flat, sharp]), uniforms, top_p=0.9)
    assert tokens[[0, 2]].tolist() == [[7] * 4] * 2
    assert tokens[1].tolist() == [nucleus_reference(flat.double().numpy(), u, 0.9) for u in uniforms[1].tolist()]


def test_uniform_numbers_depend_on_the_key_alone() -> None:
    numbers = draw_uniforms(0, "hash", 1, 64)
    assert (numbers == draw_uniforms(0, "hash", 1, 64)).all()
    assert (numbers[:10] == draw_uniforms(0, "hash", 1, 10)).all()
    assert ((numbers >= 0) & (numbers < 1)).all()
    for other in [(1, "hash", 1), (0, "other", 1), (0, "hash", 2)]:
        assert (numbers != draw_uniforms(*other, 64)).all()


# --- the engine against the plain path -------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("few_shot", [None, FEW_SHOT], ids=["chat", "few-shot"])
@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma2", "gemma3", "gpt2"])
def test_shared_computation_changes_no_token(
    folders: dict[str, Path], name: str, few_shot: FewShot | None, settings: SamplingSettings
) -> None:
    plain = Plain(folders[name])
    found = run(build(folders[name], settings, few_shot), ITEMS)
    expected = [plain.generation(item, settings, few_shot) for item in ITEMS]
    assert [found[answer.prompt_id, answer.index] for answer in expected] == expected


@pytest.mark.parametrize("name", ["chatml", "mistral", "gemma3"])
def test_greedy_equals_generate(folders: dict[str, Path], name: str) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folders[name])
    tokenizer = load_tokenizer(str(folders[name]))
    found = run(build(folders[name], GREEDY), ITEMS)
    for prompt, index in ITEMS:
        encoded = torch.tensor([encode_prompt(tokenizer, prompt.messages)])
        output = model.generate(
            encoded, attention_mask=torch.ones_like(encoded), do_sample=False, max_new_tokens=GREEDY.max_new_tokens
        )
        text = str(tokenizer.decode(output[0, encoded.shape[1] :], skip_special_tokens=True))
        assert found[prompt.id, index].content == text.strip()


@pytest.mark.parametrize("penalty", [0.6, 1.5])
def test_a_repetition_penalty_is_that_of_generate(folders: dict[str, Path], penalty: float) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(folders["chatml"])
    tokenizer = load_tokenizer(str(folders["chatml"]))
    found = run(build(folders["chatml"], replace(GREEDY, repetition_penalty=penalty)), ITEMS)
    assert found != run(build(folders["chatml"], GREEDY), ITEMS)
    for prompt, index in ITEMS:
        encoded = torch.tensor([encode_prompt(tokenizer, prompt.messages)])
        output = model.generate(
            encoded,
            attention_mask=torch.ones_like(encoded),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
            repetition_penalty=penalty,
        )
        text = str(tokenizer.decode(output[0, encoded.shape[1] :], skip_special_tokens=True))
        assert found[prompt.id, index].content == text.strip()


def test_samples_of_a_prompt_differ_and_repeat(folders: dict[str, Path]) -> None:
    found = run(build(folders["chatml"], SAMPLED), ITEMS)
    assert len({answer.content for answer in found.values()}) > len(PROMPTS)
    assert found == run(build(folders["chatml"], SAMPLED), ITEMS)
    assert found != run(build(folders["chatml"], replace(SAMPLED, seed=4)), ITEMS)


@pytest.mark.parametrize("few_shot", [None, FEW_SHOT], ids=["chat", "few-shot"])
def test_answers_do_not_depend_on_the_batch(folders: dict[str, Path], few_shot: FewShot | None) -> None:
    together = run(build(folders["gemma3"], SAMPLED, few_shot), ITEMS)
    engine = build(folders["gemma3"], SAMPLED, few_shot)
    alone = {key: answer for item in ITEMS for key, answer in run(engine, [item]).items()}
    assert alone == together


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_padding_is_out_of_sight(folders: dict[str, Path], name: str) -> None:
    """Prompts of all lengths with different openings, so prompts of neighbouring lengths are padded."""
    texts = [f"{chr(ord('a') + number)}{' cold' * number}" for number in range(24)]
    items = [Item(Prompt(text, (Message("user", text),)), 0) for text in texts]
    plain = Plain(folders[name])
    found = run(build(folders[name], GREEDY), items)
    assert [found[item.prompt.id, 0] for item in items] == [plain.generation(item, GREEDY) for item in items]


def test_prompt_of_many_columns_is_read_in_parts(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(build(folders["gemma3"], SAMPLED), ITEMS)
    monkeypatch.setattr("sinterlm.sampling.prefix_cache.TOKENS_AT_ONCE", 16)
    assert run(build(folders["gemma3"], SAMPLED), ITEMS) == whole


def test_prompts_that_share_nothing_with_the_prefix(folders: dict[str, Path]) -> None:
    """With its own system message, or with several turns, a prompt differs from the others within the prefix."""
    odd = [
        Prompt("system", (Message("system", "Answer with one word."), Message("user", "x"))),
        Prompt("turns", (Message("user", "hot"), Message("assistant", "cold"), Message("user", "and five?"))),
    ]
    items = [Item(prompt, 0) for prompt in [*odd, *PROMPTS]]
    found = run(build(folders["chatml"], SAMPLED, system="Answer."), items)
    plain = Plain(folders["chatml"])
    for prompt, index in items:
        asked = replace(prompt, messages=with_system(prompt.messages, "Answer."))
        uniforms = draw_uniforms(SAMPLED.seed, prompt.content_hash, index, SAMPLED.max_new_tokens)
        tokens = plain.tokens(plain.encode(asked, None), SAMPLED, uniforms)
        assert found[prompt.id, index].content == plain.decode(tokens).strip()


def test_prompt_of_one_token_beside_longer_ones(folders: dict[str, Path]) -> None:
    bare = FewShot("{question}{answer}\n", ())
    items = [Item(prompt, 0) for prompt in PROMPTS]
    found = run(build(folders["chatml"], GREEDY, bare), items)
    assert min(answer.num_prompt_tokens for answer in found.values()) == 1
    plain = Plain(folders["chatml"])
    assert list(found.values()) == [plain.generation(Item(find(key), 0), GREEDY, bare) for key, _ in found]


# --- where an answer ends --------------------------------------------------------------------------------------------


def greedy_text(folder: Path, few_shot: FewShot | None) -> Generation:
    return run(build(folder, GREEDY, few_shot), [Item(PROMPTS[0], 0)])[PROMPTS[0].id, 0]


def test_few_shot_answer_ends_before_a_stop_text_of_several_tokens(folders: dict[str, Path]) -> None:
    asked = FewShot("Q {question} A {answer}\u2603", ())
    plain = Plain(folders["llama3"])
    tokens = plain.tokens(plain.encode(PROMPTS[0], asked), GREEDY)
    pieces = [plain.decode([token]) for token in tokens]
    first = next(k for k in range(2, 10) if "".join(pieces[k : k + 3]).isascii() and tokens[k] not in tokens[:k])
    stop = "".join(pieces[first : first + 3])

    cut = greedy_text(folders["llama3"], replace(asked, template="Q {question} A {answer}" + stop))

    assert (cut.finish_reason, cut.num_tokens) == ("stop", first + 3)
    assert cut.content == plain.decode(tokens[:first]).strip()
    assert greedy_text(folders["llama3"], asked).finish_reason == "length"


def save_with_end(folder: Path, target: Path, token: int) -> Path:
    """The same model with a generation config that stops at one more token."""
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, token]
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def test_chat_answer_ends_at_a_token_of_the_generation_config(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = Plain(folders["mistral"])
    tokens = plain.tokens(plain.encode(PROMPTS[0], None), GREEDY)
    position = next(k for k in range(1, 12) if tokens[k] not in tokens[:k])
    cut = greedy_text(save_with_end(folders["mistral"], tmp_path, tokens[position]), None)
    assert (cut.finish_reason, cut.num_tokens) == ("stop", position + 1)
    assert greedy_text(folders["mistral"], None).finish_reason == "length"


def test_stop_at_the_last_allowed_token_is_no_cut(folders: dict[str, Path], tmp_path: Path) -> None:
    plain = Plain(folders["mistral"])
    [token, *_] = plain.tokens(plain.encode(PROMPTS[0], None), GREEDY)
    one_token = replace(GREEDY, max_new_tokens=1)
    ended = run(build(save_with_end(folders["mistral"], tmp_path, token), one_token), ITEMS[:1])
    assert ended["q0", 0].finish_reason == "stop"
    assert run(build(folders["mistral"], one_token), ITEMS[:1])["q0", 0].finish_reason == "length"


# --- batches and identity --------------------------------------------------------------------------------------------


def test_batches_hold_whole_prompts_of_like_length(folders: dict[str, Path]) -> None:
    engine = build(folders["chatml"], SAMPLED, batch_tokens=100)
    batches = engine.batches(ITEMS)
    assert len(batches) > 1
    assert {item for batch in batches for item in batch} == set(ITEMS)
    assert sum(map(len, batches)) == len(ITEMS)
    for prompt in PROMPTS:
        assert sum(prompt in [item.prompt for item in batch] for batch in batches) == 1
    lengths = [len(item.prompt.messages[0].content) for batch in batches for item in batch]
    assert lengths == sorted(lengths)
    assert batches == engine.batches(list(reversed(ITEMS)))
    assert engine.batches([]) == []


def write_few_shot(path: Path, few_shot: FewShot) -> Path:
    examples = [{"question": question, "answer": answer} for question, answer in few_shot.examples]
    path.write_text(json.dumps({"template": few_shot.template, "examples": examples}))
    return path


def test_identity_names_what_decides_an_answer(folders: dict[str, Path], tmp_path: Path) -> None:
    def identity(settings: SamplingSettings = SAMPLED, **changes: Any) -> str | None:
        return TransformersSource(**{"model": str(folders["chatml"])} | changes).identity(settings=settings)

    three = write_few_shot(tmp_path / "three.yaml", FEW_SHOT)
    two = write_few_shot(tmp_path / "two.yaml", replace(FEW_SHOT, examples=FEW_SHOT.examples[:2]))
    others: list[dict[str, Any]] = [
        {"model": str(folders["llama3"])},
        {"prompt": PromptFormat(few_shot=three)},
        {"prompt": PromptFormat(few_shot=two)},
        {"prompt": PromptFormat(system="Answer with one word.")},
        {"settings": replace(SAMPLED, temperature=0.7)},
        {"settings": replace(SAMPLED, top_p=0.7)},
        {"settings": replace(SAMPLED, max_new_tokens=13)},
        {"settings": replace(SAMPLED, seed=4)},
        {"settings": replace(SAMPLED, repetition_penalty=1.05)},
    ]
    assert len({identity(), *(identity(**changes) for changes in others)}) == len(others) + 1
    assert identity() == identity(device="cpu", dtype="float32")
    # Without a penalty the name is the same as before penalties existed, so stored answers are found again.
    settings = {"temperature": 0.9, "top_p": 0.8, "max_new_tokens": 12, "seed": 3}
    named = {"engine": "transformers", "weights": "w", "few_shot": None, "system": None, "settings": settings}
    x = TransformersSource(model="x")
    assert x.identity(settings=SAMPLED, fingerprint=lambda model: "w") == digest(named)
    assert x.identity(settings=SAMPLED, fingerprint=lambda model: None) is None


def test_weights_are_loaded_by_the_first_sample_and_released(folders: dict[str, Path]) -> None:
    placements: list[str] = []
    engine = build(folders["chatml"], GREEDY, on_loaded=placements.append)
    batches = engine.batches(ITEMS[:1])
    assert placements == []
    assert list(engine.sample([])) == []
    first = list(engine.sample(batches))
    assert placements == ["cpu, float32"]
    engine.close()
    assert list(engine.sample(batches)) == first
    assert len(placements) == 2


def test_few_rows_of_a_large_vocabulary_at_once(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(build(folders["chatml"], SAMPLED), ITEMS)
    monkeypatch.setattr("sinterlm.sampling.drawing.PROBABILITIES_AT_ONCE", 1)
    assert run(build(folders["chatml"], SAMPLED), ITEMS) == whole


def test_wrong_prompt_formats_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="few-shot prompt has no place for a system prompt"):
        build(folders["chatml"], GREEDY, FEW_SHOT, system="Answer.")
    turns = Prompt("talk", (Message("user", "a"), Message("assistant", "b"), Message("user", "c")))
    engine = build(folders["chatml"], GREEDY, FEW_SHOT)
    question = Prompt("question", (Message("user", "What is the opposite of hot?"),))
    ((refused, answered),) = engine.sample([[Item(turns, 0), Item(question, 0)]])
    assert (refused.content, refused.finish_reason, refused.num_tokens) == ("", "prompt-refused", 0)
    assert "one question, not messages of the roles user, assistant, user" in refused.problem
    assert answered == next(engine.sample([[Item(question, 0)]]))[0]


# --- recorded answers ------------------------------------------------------------------------------------------------


def write_lines(path: Path, *lines: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_recorded_answers_are_joined_by_id_and_by_text(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "answers.jsonl",
        {"prompt_id": "q0", "response": "Paris"},
        {"prompt": QUESTIONS[3], "response": "hot"},
        {"prompt_id": "q0", "response": "Lyon", "finish_reason": "length"},
        {"prompt_id": "elsewhere", "response": "nothing"},
    )
    found = run(RecordedEngine(path), ITEMS)
    assert {key: (answer.content, answer.finish_reason) for key, answer in found.items()} == {
        ("q0", 0): ("Paris", "stop"),
        ("q0", 1): ("Lyon", "length"),
        ("q3", 0): ("hot", "stop"),
    }


def test_recorded_answers_of_two_models_are_all_samples(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "answers.jsonl",
        {"prompt_id": "q0", "source": "b", "index": 0, "response": "third"},
        {"prompt_id": "q0", "source": "a", "index": 4, "response": "second"},
        {"prompt_id": "q0", "source": "a", "index": 1, "response": "first"},
    )
    found = run(RecordedEngine(path), ITEMS)
    assert [found["q0", index].content for index in range(3)] == ["first", "second", "third"]


def test_recorded_answers_to_prompts_of_one_text_are_used_once(tmp_path: Path) -> None:
    """The first prompt's; of the second those at places that the first leaves, and the others are told."""
    path = write_lines(
        tmp_path / "answers.jsonl",
        {"prompt_id": "first", "response": "Paris"},
        {"prompt_id": "second", "response": "Lyon"},
        {"prompt_id": "second", "index": 1, "response": "Nice"},
        {"prompt_id": "second", "index": 2, "response": "Brest"},
    )
    message = (Message("user", "What is the capital of France?"),)
    unused = RecordedEngine(path).unused([Prompt("first", message), Prompt("second", message)], num_samples=2)
    assert list(unused) == [
        ("second", 0, "another-answer-to-the-same-text"),
        ("second", 2, "surplus-recorded-answer"),
    ]


def test_recorded_file_that_answers_nothing_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "answers.jsonl", {"prompt_id": "elsewhere", "response": "nothing"})
    with pytest.raises(InputError, match=r"answers prompt_id 'elsewhere', the run asks prompt 'q0'"):
        RecordedEngine(path).batches(ITEMS)


def test_recorded_identity_is_the_files_content(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", {"prompt_id": "q0", "response": "Paris"})
    same = write_lines(tmp_path / "same.jsonl", {"prompt_id": "q0", "response": "Paris"})
    other = write_lines(tmp_path / "other.jsonl", {"prompt_id": "q0", "response": "Lyon"})
    identities = [RecordedSource(engine="recorded", path=path).identity() for path in (one, same, other)]
    assert identities[0] == identities[1]
    assert identities[0] != identities[2]
