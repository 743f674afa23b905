"""The shared layout compared with one sequence per line: equal log-probabilities and gradients for every model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    AutoConfig,
    CpmAntConfig,
    CpmAntForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from sinterlm.attention import flash, plug, tiled, tiles
from sinterlm.attention.flash import segments
from sinterlm.attention.spans import Spans, ancestors, positions, span_starts
from sinterlm.chat import EncodedExample
from sinterlm.errors import InputError
from sinterlm.training import layout_choice, logprobs, packing, token_logps
from sinterlm.training.layout_choice import choose_layout
from sinterlm.training.logprobs import attach_response_logps, response_logps
from sinterlm.training.packing import Layout, one_to_a_line, shared
from sinterlm.training.sequence_logps import sequence_logps

VOCABULARY = 61
SIZES: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: Mapping[str, Any] = {**SIZES, "num_key_value_heads": 2}
BOTH_LAYERS = ["sliding_attention", "full_attention"]
MODELS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**GROUPED)),
    "qwen2 sliding": lambda: Qwen2ForCausalLM(
        Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=7, layer_types=BOTH_LAYERS)
    ),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=8)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **GROUPED,
            head_dim=8,
            sliding_window=6,
            layer_types=BOTH_LAYERS,
            attn_logit_softcapping=0.3,
            final_logit_softcapping=0.5,
            query_pre_attn_scalar=4,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=5, layer_types=BOTH_LAYERS)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**GROUPED, head_dim=8, sliding_window=9)),
    "phi": lambda: PhiForCausalLM(PhiConfig(**SIZES)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**GROUPED, sliding_window=11)),
    "gpt-neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)),
}


def build(name: str) -> PreTrainedModel:
    """In evaluation mode, without dropout, and with weights large enough for attention to matter."""
    torch.manual_seed(0)
    model: PreTrainedModel = MODELS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


def make_rows(
    num_responses: Sequence[int], *, seed: int = 0, beginning: int = 0, prompt: int = 14, response: int = 12
) -> list[list[EncodedExample]]:
    """A row for each number of responses; prompts share ``beginning`` tokens; lengths vary down to one token."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(most: int) -> list[int]:
        length = int(torch.randint(1, most + 1, (), generator=generator))
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    first = torch.randint(3, VOCABULARY, (beginning,), generator=generator).tolist()
    rows = []
    for count in num_responses:
        prompt_ids = first + tokens(prompt)
        rows.append([EncodedExample(prompt_ids, tokens(response)) for _ in range(count)])
    return rows


def logps_and_gradients(
    model: PreTrainedModel, rows: Sequence[Sequence[EncodedExample]], layout: Layout
) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of their sum with a different weight, also negative, for each response."""
    model.zero_grad()
    logps = response_logps(model, **layout(rows, pad_token_id=0))
    (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
    return logps.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def assert_same(
    left: tuple[Tensor, dict[str, Tensor]], right: tuple[Tensor, dict[str, Tensor]], tolerance: float = 1e-5
) -> None:
    """Compared relative to the largest entry of each tensor."""
    assert left[1].keys() == right[1].keys()
    for ours, plain in [(left[0], right[0]), *((left[1][name], right[1][name]) for name in left[1])]:
        assert float((ours - plain).abs().max()) <= tolerance * float(plain.abs().max())


@pytest.fixture(params=[0, 320], ids=["spans alone", "spans in units"])
def _units(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every span separately, and short ones with their descendants under one mask."""
    with unit_tokens(request.param):
        yield


@contextmanager
def unit_tokens(count: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "_UNIT_TOKENS", (count,))
        tiles.cut_into_tiles.cache_clear()
        yield
    tiles.cut_into_tiles.cache_clear()


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_units")
@pytest.mark.parametrize("beginning", [0, 40])
@pytest.mark.parametrize("name", MODELS)
def test_shared_prompts_change_no_number(name: str, beginning: int) -> None:
    """Rows of 1, 2, 3 and 9 responses in one line, with windows and positions that reach across the parts."""
    model, rows = build(name), make_rows([1, 2, 3, 9, 1], beginning=beginning)
    batch = shared(rows, pad_token_id=0)
    assert (batch["spans"][0] == (beginning, -1)) is bool(beginning)
    assert_same(logps_and_gradients(model, rows, shared), logps_and_gradients(model, rows, one_to_a_line))


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt-neox"])
def test_gradient_checkpointing_changes_no_number(name: str) -> None:
    """The spans reach the recomputation of a layer as they reached the first pass."""
    model, rows = build(name), make_rows([3, 1, 2])
    plain = logps_and_gradients(model, rows, one_to_a_line)
    model.train()
    model.activation_checkpointing_enable()
    attach_response_logps(model)
    model.zero_grad()
    logps = model(**shared(rows, pad_token_id=0))
    (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
    assert_same((logps.detach(), {key: value.grad for key, value in model.named_parameters()}), plain)  # type: ignore[misc]


def test_permuted_rows_and_responses_permute_the_result() -> None:
    model, rows = build("llama"), make_rows([3, 1, 4], beginning=35)

    def found(permuted: Sequence[Sequence[EncodedExample]]) -> dict[tuple[int, ...], float]:
        with torch.no_grad():
            logps = response_logps(model, **shared(permuted, pad_token_id=0)).tolist()
        examples = [example for row in permuted for example in row]
        return {
            tuple(example.prompt_ids + example.response_ids): logp
            for example, logp in zip(examples, logps, strict=True)
        }

    expected = found(rows)
    assert found([row[::-1] for row in (rows[2], rows[0], rows[1])]) == pytest.approx(expected, rel=1e-5)


def test_neighbours_and_padding_change_no_number() -> None:
    model, rows = build("gemma3"), make_rows([2, 3, 1])
    with torch.no_grad():
        together = [response_logps(model, **shared(rows, pad_token_id=pad)) for pad in (0, 7)]
        alone = torch.cat([response_logps(model, **shared([row], pad_token_id=0)) for row in rows])
    assert together[0].tolist() == together[1].tolist()
    assert together[0].tolist() == pytest.approx(alone.tolist(), rel=1e-5)


def test_padding_stands_at_no_position_of_its_own() -> None:
    """A model with 33 learnt positions, and a row that uses all 33 and has 15 tokens of padding after it."""
    torch.manual_seed(0)
    config = GPT2Config(**{**SIZES, "max_position_embeddings": 33})
    model = GPT2LMHeadModel(config).eval()
    rows = [[EncodedExample([5] * 20, [7] * 14)]]
    with torch.no_grad():
        packed, plain = (response_logps(model, **layout(rows, pad_token_id=0)) for layout in (shared, one_to_a_line))
    assert packed.tolist() == pytest.approx(plain.tolist(), rel=1e-5)


def test_half_precision_differs_by_rounding_only() -> None:
    torch.manual_seed(0)
    model, rows = LlamaForCausalLM(LlamaConfig(**GROUPED)).eval(), make_rows([3, 2], beginning=40)
    exact = logps_and_gradients(model, rows, one_to_a_line)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = logps_and_gradients(model, rows, shared)
    assert_same(rounded, exact, tolerance=3e-2)


# --- choosing the layout ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models_of_plain_attention_take_the_shared_layout(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, rows = build(name), make_rows([2, 3])
    assert choose_layout(model, rows, share_prompt="off") is one_to_a_line
    assert choose_layout(model, rows, share_prompt="on") is shared
    assert not caplog.records


OTHERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "recurrent": lambda: MambaForCausalLM(MambaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2)),
    "hybrid": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(**GROUPED, lru_width=32, attention_window_size=16, block_types=("recurrent", "attention"))
    ),
    "attention sinks": lambda: GptOssForCausalLM(
        GptOssConfig(**GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, rope_parameters=None)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_take_the_plain_layout_and_it_is_said_once(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model, rows = OTHERS[name]().eval(), make_rows([2, 3])
    own = model.config._attn_implementation
    with caplog.at_level(logging.WARNING):
        assert choose_layout(model, rows) is one_to_a_line
    assert [record.message.split(" (")[0] for record in caplog.records if record.name == layout_choice.__name__] == [
        f"{type(model).__name__}: shared prompts are computed once per response"
    ]
    assert model.config._attn_implementation == own
    assert len(sequence_logps(model, rows[0])) == 2
    with pytest.raises(InputError, match=f"{type(model).__name__} cannot share prompts.*set share_prompt to auto"):
        choose_layout(model, rows, share_prompt="on")


@pytest.mark.parametrize("share_prompt", ["auto", "off"])
def test_a_model_whose_head_bypasses_the_decoder_is_refused(share_prompt: Literal["auto", "off"]) -> None:
    """OPT's forward calls a part of its decoder: its logits would be those of the responses without their prompts."""
    model, rows = OPTForCausalLM(OPTConfig(**SIZES, word_embed_proj_dim=32)), make_rows([2])
    with pytest.raises(InputError, match=r"architecture opt cannot be trained.*not computed as a whole"):
        response_logps(model, **choose_layout(model, rows, share_prompt=share_prompt)(rows, pad_token_id=0))


def test_a_model_that_computes_something_else_where_it_is_padded_is_refused() -> None:
    """CpmAnt's tokens see later tokens, and so padding."""
    config = CpmAntConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_attention_heads=4,
        dim_head=8,
        dim_ff=48,
        num_hidden_layers=1,
    )
    model = CpmAntForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    with pytest.raises(InputError, match=r"architecture cpmant cannot be trained.*when shorter sequences are padded"):
        choose_layout(model, make_rows([2, 3]))


def test_a_model_that_computes_something_else_takes_the_plain_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its configuration says: here, spans that see no parent."""
    monkeypatch.setattr(packing._Line, "add", orphan(packing._Line.add))
    assert choose_layout(build("llama"), make_rows([2, 3])) is one_to_a_line


def test_rounding_is_no_mistake(caplog: pytest.LogCaptureFixture) -> None:
    """A tuned model is sure of its answers: bfloat16 rounds away more than a twentieth of their log-probabilities."""
    model: Any = build("llama")
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(40)
    rows = []
    for row in make_rows([1] * 4, seed=3):
        prompt = torch.tensor([row[0].prompt_ids])
        answer = model.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
        rows.append([EncodedExample(row[0].prompt_ids, answer[0, prompt.shape[1] :].tolist())] * 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert choose_layout(model, rows) is shared
    assert not caplog.messages


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_rounding_hides_no_mistake(
    weights: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An attention 5 % too large moves log-probabilities by less than bfloat16 does, and by far more than float32.

    If the weights themselves are bfloat16, it cannot be detected.
    """
    monkeypatch.setattr(plug, "tiled_attention", lambda *args, **kwargs: 1.05 * tiled.tiled_attention(*args, **kwargs))
    model = build("llama") if weights == torch.float32 else build("llama").bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        layout = choose_layout(model, make_rows([2, 3]))
    assert layout is (one_to_a_line if weights == torch.float32 else shared)
    assert len(caplog.messages) == (weights == torch.float32)


def orphan(add: Any) -> Any:
    return lambda line, token_ids, parent: add(line, token_ids, -1)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gemma3"])
def test_a_model_that_attends_by_spans_is_otherwise_as_before(name: str, tmp_path: Path) -> None:
    """Called as the library does, and saved."""
    model, rows = build(name), make_rows([2, 3])
    own, tokens = model.config._attn_implementation, torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        expected = model(input_ids=tokens).logits
        attach_response_logps(model)
        plain = model(**one_to_a_line(rows, pad_token_id=0))
        assert choose_layout(model, rows) is shared
        assert torch.allclose(model(**shared(rows, pad_token_id=0)), plain, rtol=1e-5)
        assert torch.equal(model(input_ids=tokens).logits, expected)
        assert torch.equal(model(**one_to_a_line(rows, pad_token_id=0)), plain)
        model(**shared(rows, pad_token_id=0))
    model.save_pretrained(tmp_path)
    assert "spans" not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path, attn_implementation=own)._attn_implementation == own


def test_sequence_logps_leaves_the_models_attention() -> None:
    model = build("llama")
    own = model.config._attn_implementation
    sequence_logps(model, [example for row in make_rows([2, 3]) for example in row])
    assert model.config._attn_implementation == own


# --- the line --------------------------------------------------------------------------------------------------------


def test_a_line_holds_what_predicts_and_nothing_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two prompts 1 2 3 and 1 2 4 5 that share 1 2; responses 6 7 | 8 and 9 10 11.

    The first row has the spans 3 | 6 (the 7 predicts nothing) and none for the 8, the second 4 5 9 10; a 0 fills the
    line.
    """
    monkeypatch.setattr(packing, "MIN_SHARED_BEGINNING", 2)
    monkeypatch.setattr(packing, "LINE_MULTIPLE", 3)
    first = [EncodedExample([1, 2, 3], [6, 7]), EncodedExample([1, 2, 3], [8])]
    batch = shared([first, [EncodedExample([1, 2, 4, 5], [9, 10, 11])]], pad_token_id=0)
    assert batch["spans"] == ((2, -1), (1, 0), (1, 1), (5, 0))
    assert batch["input_ids"][0].tolist() == [1, 2, 3, 6, 4, 5, 9, 10, 0]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 2, 3, 4, 5, 0]
    assert batch["predictors"].tolist() == [2, 3, 2, 5, 6, 7]
    assert batch["targets"].tolist() == [6, 7, 8, 9, 10, 11]
    assert batch["lengths"].tolist() == [2, 1, 3]


def test_only_neighbours_with_enough_in_common_share_a_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of 3 + 1, 3 + 2, 0 + 2 and twice 4 tokens: two runs, of 3 and of all 4 tokens, and one prompt between."""
    monkeypatch.setattr(packing, "MIN_SHARED_BEGINNING", 3)
    monkeypatch.setattr(packing, "LINE_MULTIPLE", 1)
    prompts = [[1, 2, 3, 4], [1, 2, 3, 5, 6], [1, 2], [7, 8, 9, 10], [7, 8, 9, 10]]
    rows = [[EncodedExample(prompt, [20, 21]), EncodedExample(prompt, [22, 23])] for prompt in prompts]
    spans = shared(rows, pad_token_id=0)["spans"]
    assert spans[:3] == ((3, -1), (1, 0), (1, 1))
    assert [span for span in spans if span[1] == -1][:3] == [(3, -1), (2, -1), (4, -1)]
    assert list(spans[11:15]) == [(1, 10)] * 4


# --- attention -------------------------------------------------------------------------------------------------------

Attention = Callable[..., Tensor]
FORESTS: Mapping[str, Spans] = {
    "row": ((40, -1), (33, 0), (100, 0), (20, 0)),
    "system prompt": ((64, -1), (7, 0), (30, 1), (90, 1), (300, 0), (5, 4), (1, 4)),
    "sequences": ((150, -1), (1, -1), (33, -1)),
    "many responses": ((3, -1), *[(length, 0) for length in range(1, 60, 3)]),
}


def visible(spans: Spans, window: int | None) -> Tensor:
    """(T, T), straight from the definition: ancestors, and the own span up to the token, within the window."""
    owner = torch.cat([torch.full((length,), span) for span, (length, _) in enumerate(spans)])
    place = torch.tensor(positions(spans))
    above = torch.tensor(
        [[other in (*ancestors(spans, span), span) for other in range(len(spans))] for span in range(len(spans))]
    )
    distance = place[:, None] - place
    seen = above[owner][:, owner] & (distance >= 0)
    return seen if window is None else seen & (distance < window)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, *, hidden: Tensor, scaling: float, softcap: float | None = None
) -> Tensor:
    """One softmax over all scores, in the precision of its inputs; (Q, H * G, D) and (K, H, D) to (Q, H * G, D)."""
    groups = query.shape[1] // key.shape[1]
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(groups, 1)) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, value.repeat_interleave(groups, 1))


def random_states(spans: Spans, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = sum(length for length, _ in spans)
    return [
        torch.randn(size, heads, 8, dtype=torch.float64, generator=generator, requires_grad=True) for heads in (6, 2, 2)
    ]


def assert_same_attention(own: Attention, spans: Spans, *, window: int | None, softcap: float | None = None) -> None:
    """Output and gradients, in float64."""
    states = random_states(spans)
    hidden = ~visible(spans, window)
    expected = dense_attention(*states, hidden=hidden, scaling=0.3, softcap=softcap)
    direction = torch.randn(expected.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((expected * direction).sum(), states)
    found = own(*states, spans=spans, scaling=0.3, window=window)
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    for ours, other in zip(torch.autograd.grad((found * direction).sum(), states), gradients, strict=True):
        assert torch.allclose(ours, other, rtol=0, atol=1e-11)


@pytest.mark.usefixtures("_units")
@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("window", [None, 1, 6, 70, 150])
@pytest.mark.parametrize("name", FORESTS)
def test_attention_in_tiles_is_attention(name: str, window: int | None, softcap: float | None) -> None:
    """Spans of one token and of several blocks, windows shorter and longer than a span."""

    def own(*states: Tensor, **settings: Any) -> Tensor:
        return tiled.tiled_attention(*states, **settings, softcap=softcap)

    assert_same_attention(own, FORESTS[name], window=window, softcap=softcap)


@st.composite
def forests(draw: st.DrawFn) -> Spans:
    lengths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=7))
    return tuple((length, draw(st.integers(-1, index - 1))) for index, length in enumerate(lengths))


@settings(max_examples=60)
@given(spans=forests(), window=st.none() | st.integers(1, 60), count=st.sampled_from([0, 30, 80, 320]))
def test_attention_in_tiles_takes_any_forest(spans: Spans, window: int | None, count: int) -> None:
    with unit_tokens(count):
        assert_same_attention(tiled.tiled_attention, spans, window=window)


def varlen_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_bounds: Tensor,
    key_bounds: Tensor,
    max_queries: int,
    max_keys: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """torch.nn.attention.varlen.varlen_attn's contract: segment by segment, causal and aligned at the ends."""
    assert enable_gqa
    assert window_size[1] == 0
    assert (max_queries, max_keys) == (int(query_bounds.diff().max()), int(key_bounds.diff().max()))
    outputs = []
    for (start, stop), (first, last) in zip(
        query_bounds.unfold(0, 2, 1).tolist(), key_bounds.unfold(0, 2, 1).tolist(), strict=True
    ):
        distance = torch.arange(last - first - (stop - start), last - first)[:, None] - torch.arange(last - first)
        hidden = (distance < 0) | ((distance > window_size[0]) & (window_size[0] >= 0))
        outputs.append(
            dense_attention(query[start:stop], key[first:last], value[first:last], hidden=hidden, scaling=scale)
        )
    return torch.cat(outputs)


@pytest.mark.parametrize("window", [None, 1, 6, 150])
@pytest.mark.parametrize("name", FORESTS)
def test_segments_for_flash_attention(name: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of a GPU's kernel; a fake with the same contract replaces it."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_reference)
    assert_same_attention(flash.flash_attention, FORESTS[name], window=window)


def test_segments_hold_ancestors_and_self() -> None:
    found = segments(((2, -1), (3, 0), (1, 1), (2, 0)), torch.device("cpu"))
    assert found.keys.tolist() == [0, 1, 0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 0, 1, 6, 7]
    assert found.query_bounds.tolist() == [0, 2, 5, 6, 8]
    assert found.key_bounds.tolist() == [0, 2, 7, 13, 17]
    assert (found.max_queries, found.max_keys) == (3, 6)


def test_positions_go_on_after_the_parents() -> None:
    spans = ((2, -1), (3, 0), (1, 1), (2, 0), (2, -1))
    assert positions(spans) == [0, 1, 2, 3, 4, 5, 2, 3, 0, 1]
    assert span_starts(spans) == [0, 2, 5, 6, 8]


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_positions", [1, 31, 100])
def test_target_logps_against_float64(num_positions: int, dtype: torch.dtype) -> None:
    """Values use the logits unchanged, and gradients are rounded to their precision once."""
    generator = torch.Generator().manual_seed(0)
    logits = (30 * torch.randn(num_positions, 3000, generator=generator)).to(dtype).requires_grad_()
    targets = torch.randint(3000, (num_positions,), generator=generator)
    incoming = torch.randn(num_positions, generator=generator)
    exact = logits.detach().double().requires_grad_()
    expected = exact.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    expected.backward(incoming.double())
    found = token_logps.target_logps(logits, targets)
    found.backward(incoming)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert logits.grad is not None
    assert exact.grad is not None
    rounding = 1e-5 if dtype == torch.float32 else 2**-8
    assert torch.allclose(logits.grad.double(), exact.grad, rtol=rounding, atol=rounding * float(incoming.abs().max()))


@pytest.mark.parametrize("chunk_positions", [1, 7, 1000])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_the_size_of_a_chunk_changes_no_number(
    name: str, chunk_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared with the whole log-softmax of each sequence in float64, including soft-capping of the logits."""
    model, rows = build(name).double(), make_rows([2, 3])
    expected = []
    for example in (example for row in rows for example in row):
        logits = model(input_ids=torch.tensor([example.prompt_ids + example.response_ids])).logits[0]
        logps = logits.log_softmax(-1)[len(example.prompt_ids) - 1 : -1]
        expected.append(logps.gather(-1, torch.tensor(example.response_ids)[:, None]).sum())
    (torch.stack(expected) * torch.linspace(-1, 2, 5)).sum().backward()
    gradients = {key: value.grad.clone() for key, value in model.named_parameters() if value.grad is not None}
    monkeypatch.setattr(logprobs, "MAX_CHUNK_LOGITS", chunk_positions * VOCABULARY)
    found = logps_and_gradients(model, rows, shared)
    assert_same(found, (torch.stack(expected).detach(), gradients), tolerance=1e-6)
