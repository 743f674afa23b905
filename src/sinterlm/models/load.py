"""Load models and tokenizers; whatever is left out, missing or impossible is reported, never passed over."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from safetensors import safe_open

from sinterlm.errors import InputError, SinterError, first_line, memory_advice
from sinterlm.files import require_undamaged_model
from sinterlm.models.files import CONFIG, TOKENIZER_FILES, read_object, weight_files
from sinterlm.models.locate import folder_named, resolve_model, resolve_tokenizer
from sinterlm.models.quiet import without_bars, without_load_report

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Model = TypeVar("Model", bound="PreTrainedModel")

logger = logging.getLogger(__name__)

_SCORES = {"ForSequenceClassification": "it gives scores; expected a causal language model"}
_FILLS_GAPS = {"ForMaskedLM": "it fills gaps in a text; expected a causal language model"}
_IS_ARMORM = {"ForRewardModelWithGating": "an ArmoRM is read by the scorer `kind: armorm`"}
_WITHOUT_CONSEQUENCE = re.compile(
    r"(^|\.)(rotary(_pos)?_emb\.|(\w*inv_freq|position_ids|masked_bias|[kv]_scale)$|(attn|attention)\.bias$)"
)
"""Tables that older versions saved with the weights but that models compute themselves; scales of a quantised cache."""
_PLACEHOLDER = re.compile(r"image|img|vision|video|audio|speech", re.IGNORECASE)
"""Special tokens of this kind may lack an embedding in a text-only model (Gemma 3's): no text becomes one."""


def load_model(name: str, *, device: str = "auto", dtype: str = "auto") -> PreTrainedModel:
    """A causal language model in eval mode.

    Args:
        name: As in :func:`resolve_model`.
        device: ``auto`` is the first available of cuda, mps and cpu.
        dtype: ``auto`` is bfloat16 on cuda, otherwise float32.

    Raises:
        InputError: There is no such model, it is a reward model, or its files do not agree with each other.
    """
    folder = _resolve_whole(name)
    config = _read_config(name, folder, refused=_SCORES | _FILLS_GAPS)
    return _load(_writer_class(name, config), name, device, dtype)


def load_trainable_model(name: str) -> PreTrainedModel:
    """A causal language model to be trained: on the CPU, in float32, in which small updates are not lost.

    Raises:
        InputError: As in :func:`load_model`, or the model is quantised.
    """
    check_trainable(name)
    return load_model(name, device="cpu", dtype="float32")


def check_trainable(name: str) -> None:
    """Find what :func:`load_trainable_model` would refuse, as far as the model's files can tell without loading it.

    Raises:
        InputError: The model cannot be trained.
    """
    folder = _resolve_whole(name)
    if method := quantisation(read_object(folder / CONFIG)):
        raise InputError(
            f"model {name!r} is quantised by {method}: full weights are trained; take the unquantised model"
        )
    _writer_class(name, _read_config(name, folder, refused=_SCORES | _FILLS_GAPS))


def load_reward_model(
    name: str, *, device: str = "auto", dtype: str = "auto", float32_head: bool = False
) -> PreTrainedModel:
    """A sequence-classification model in eval mode.

    Args:
        name: As in :func:`resolve_model`.
        device: As in :func:`load_model`.
        dtype: As in :func:`load_model`.
        float32_head: Whether what follows the backbone is computed in float32, with the weights as stored in the files.
    """
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, AutoModelForSequenceClassification

    folder = _resolve_whole(name)
    config = _read_config(name, folder, refused=_IS_ARMORM)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"model {name!r}: Transformers has no sequence-classification model of its architecture "
            f"({config.model_type}); choose another reward model"
        )
    model = _load(AutoModelForSequenceClassification, name, device, dtype)
    if float32_head:
        _compute_head_in_float32(model, folder)
    return model


def load_model_of(model_class: type[Model], name: str, *, device: str = "auto", dtype: str = "auto") -> Model:
    """A model of one of our own classes in eval mode; other arguments as in :func:`load_model`."""
    _read_config(name, _resolve_whole(name))
    return cast(Model, _load(model_class, name, device, dtype))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, with its chat template if it has one.

    Its pad token may be its eos (as in SmolLM2): recognise padding by position, never by id.

    Raises:
        InputError: The tokenizer cannot be loaded, or has a token that the model has no embedding for.
    """
    folder = _resolve_whole(name)
    return _load_tokenizer(name, folder, _read_config(name, folder))


class LoneTokenizer(NamedTuple):
    """The tokenizer of a model that runs elsewhere."""

    tokenizer: PreTrainedTokenizerBase
    config: PreTrainedConfig | None
    """The model's, if it lies beside the tokenizer and Transformers knows the architecture."""


def load_lone_tokenizer(name: str) -> LoneTokenizer:
    """As :func:`load_tokenizer`, for a model whose weights need not be on this machine.

    Raises:
        InputError: The tokenizer cannot be loaded.
    """
    from transformers import CONFIG_MAPPING

    folder = resolve_tokenizer(name)
    is_known = (folder / CONFIG).is_file() and read_object(folder / CONFIG).get("model_type") in CONFIG_MAPPING
    config = _read_config(name, folder) if is_known else None
    return LoneTokenizer(_load_tokenizer(name, folder, config), config)


def _load_tokenizer(name: str, folder: Path, config: PreTrainedConfig | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not any(path.is_file() for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise InputError(
            f"model {name!r}: no tokenizer in {folder}; expected one of {', '.join(TOKENIZER_FILES)}: "
            "put the tokenizer's files beside the weights"
        )
    with _problems(f"the tokenizer of model {name!r} cannot be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    if config:
        _check_vocabulary(name, tokenizer, getattr(config.get_text_config(decoder=True), "vocab_size", None))
    return tokenizer


def describe_placement(model: PreTrainedModel) -> str:
    """Where a model computes and in which precision, e.g. ``cpu, float32``."""
    return f"{model.device}, {str(model.dtype).removeprefix('torch.')}"


def quantisation(config: Mapping[str, Any]) -> str | None:
    """How a model's weights were quantised, by its config; None if they were not."""
    for part in (config, *(config.get(key) for key in ("text_config", "language_config", "llm_config"))):
        if not isinstance(part, Mapping):
            continue
        settings = part.get("quantization_config") or part.get("compression_config")
        if isinstance(settings, Mapping) and settings:
            method = str(settings.get("quant_method") or "a method that its config does not name")
            bits = next((n for n in (4, 8) if settings.get(f"load_in_{n}bit")), settings.get("bits"))
            return f"{method}, {bits} bits" if bits else method
    return None


def _read_config(name: str, folder: Path, *, refused: Mapping[str, str] | None = None) -> PreTrainedConfig:
    """The model's config, of an architecture that Transformers has.

    Args:
        name: The model's name.
        folder: The model's folder.
        refused: Endings of architecture names to refuse, each with the problem in words.

    Raises:
        InputError: The architecture is refused, or Transformers does not have it.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    config = read_object(folder / CONFIG)
    architectures = [str(architecture) for architecture in config.get("architectures") or ()]
    for ending, problem in (refused or {}).items():
        # With tied embeddings no weight would be missing, and a reward model would pass for a language model.
        if any(architecture.endswith(ending) for architecture in architectures):
            raise InputError(f"model {name!r} is a {', '.join(architectures)}: {problem}")
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        if config.get("auto_map"):
            problem = "it needs code of its own (auto_map), and no code that comes with a model is run"
        elif kind is None:
            problem = f"{folder / CONFIG} names no model_type"
        else:
            problem = f"Transformers {__version__} does not know its architecture {kind!r}"
        raise InputError(f"model {name!r} cannot be loaded: {problem}; choose another model, or a newer Transformers")
    with _problems(f"model {name!r} cannot be loaded: {folder / CONFIG}"):
        return cast("PreTrainedConfig", AutoConfig.from_pretrained(folder, trust_remote_code=False))


def _writer_class(name: str, config: PreTrainedConfig) -> Any:
    """The auto class that loads a model to write text; a model for images and text is loaded whole.

    Raises:
        InputError: The architecture does not continue a text.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
    )

    kind = type(config)
    whole = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(kind, None)
    causal = MODEL_FOR_CAUSAL_LM_MAPPING.get(kind, None)
    if config.is_encoder_decoder or not (whole or causal):
        raise InputError(
            f"model {name!r}: its architecture ({config.model_type}) does not continue a text; choose a causal "
            "language model"
        )
    if whole and (causal is None or getattr(whole, "__name__", None) in (config.architectures or ())):
        return AutoModelForImageTextToText
    return AutoModelForCausalLM


def _resolve_whole(name: str) -> Path:
    """The model's folder; if the model was trained here, every file is compared with its record, once per process."""
    if folder := folder_named(name):
        require_undamaged_model(folder)
    return resolve_model(name)


def _load(auto_class: Any, name: str, device: str, dtype: str) -> PreTrainedModel:
    """The model in eval mode, on its device."""
    folder = _resolve_whole(name)
    place = _device(device)
    precision = _dtype(dtype, place)
    method = quantisation(read_object(folder / CONFIG))
    problem = f"model {name!r} cannot be loaded"
    if method:
        problem += f" (quantised by {method}: install what that needs, or take the unquantised model)"
    with (
        memory_advice(
            f"loading model {name!r} ({_size(folder)} in its files)",
            "a smaller model, or on an accelerator dtype: bfloat16, takes less",
        ),
        _problems(problem),
        without_bars(),
        without_load_report(),
    ):
        model, info = auto_class.from_pretrained(
            folder,
            dtype=precision,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with the shapes
            # Packed weights cannot be moved to their device later.
            **({"device_map": {"": place}} if method else {}),
        )
        placed: PreTrainedModel = model.eval() if method else model.to(place).eval()
    _check_loaded(name, placed, info)
    return placed


def _check_loaded(name: str, model: PreTrainedModel, info: Mapping[str, Any]) -> None:
    """Check which weights the files lack, hold in another shape, or hold in addition to the model's.

    Raises:
        InputError: The model would not compute what its files are meant for.
    """
    kind = type(model).__name__
    if info["missing_keys"]:
        # Transformers fills the gap with random numbers: a causal model would pass for a reward model.
        raise InputError(f"model {name!r} cannot be loaded as {kind}: its files lack {_some(info['missing_keys'])}")
    if info["mismatched_keys"]:
        key, found, expected = min(info["mismatched_keys"])
        raise InputError(
            f"model {name!r}: its weights and its config.json do not agree: {key} has the shape {tuple(found)}, and by "
            f"the config it would be {tuple(expected)}; get both from the same version of the model"
        )
    modules = {path: sum(1 for _ in module.children()) for path, module in model.named_modules()}
    left_over = [key for key in info["unexpected_keys"] if not _WITHOUT_CONSEQUENCE.search(key)]
    if misfits := [key for key in left_over if _is_inside(key, modules)]:
        raise InputError(
            f"model {name!r}: its files hold {_some(misfits)}, which {kind} as its config.json describes it does not "
            "compute with, so its answers would be wrong; get both from the same version of the model"
        )
    parts = Counter(_part(key, modules) for key in left_over)
    del parts["lm_head"]  # in a reward model's files: the head of the language model that it was made from
    if parts:
        found = ", ".join(f"{part} ({count})" for part, count in sorted(parts.items()))
        logger.warning(
            "model %r: %s has no place for some weights of its files (%d): %s. They are left out, and a model trained "
            "from it has none of them",
            name,
            kind,
            parts.total(),
            found,
        )


def _is_inside(key: str, modules: Mapping[str, int]) -> bool:
    """Whether a weight belongs to a layer that the model has, and would change what that layer computes.

    Args:
        key: The weight's name.
        modules: The number of children of every module, by name.
    """
    owner = _owner(key, modules)
    is_own = modules[owner] == 0 or key.count(".") == owner.count(".") + 1
    return bool(owner) and (is_own or any(part.isdigit() for part in owner.split(".")))


def _part(key: str, modules: Mapping[str, int]) -> str:
    """The name of the outermost part that the weight belongs to and the model does not have."""
    owner = _owner(key, modules)
    return ".".join(key.split(".")[: owner.count(".") + 2 if owner else 1])


def _owner(key: str, modules: Collection[str]) -> str:
    """The innermost module of the model that a weight's name leads to; empty for the model itself."""
    path = key.rpartition(".")[0]
    while path and path not in modules:
        path = path.rpartition(".")[0]
    return path


def _some(keys: Collection[str]) -> str:
    first = sorted(keys)[:3]
    return ", ".join(first) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _size(folder: Path) -> str:
    return f"{sum(path.stat().st_size for path in weight_files(folder)) / 1e9:.1f} GB"


@contextmanager
def _problems(what: str) -> Iterator[None]:
    """Report whatever a library raises within it as a problem of the model's files, its only input.

    Raises:
        InputError: ``what``, and the first line of what the library says.
    """
    try:
        yield
    except SinterError:
        raise
    except Exception as error:
        said = first_line(error)
        if "custom code" in said or "trust_remote_code" in str(error):
            said = "it needs code of its own (auto_map), and no code that comes with a model is run"
        raise InputError(f"{what}: {said}") from error


def _check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, num_rows: int | None) -> None:
    """Refuse a token that a text or the template can produce but that the model has no embedding for.

    Raises:
        InputError: Which token.
    """
    if num_rows is None:
        return
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= num_rows)
    if not beyond:
        return
    added = tokenizer.added_tokens_decoder
    named = set(tokenizer.special_tokens_map.values()) if tokenizer.special_tokens_map else set()
    templates = tokenizer.chat_template
    written = "".join(templates.values()) if isinstance(templates, dict) else templates or ""
    for number, token in beyond:
        is_placeholder = number in added and added[number].special and _PLACEHOLDER.search(token)
        if not is_placeholder or token in written or token in named:
            raise InputError(
                f"model {name!r}: its tokenizer has {len(tokenizer)} tokens and its embedding {num_rows} rows, so that "
                f"{token!r} (token {number}) has none; resize the model (`resize_token_embeddings`) and save it again, "
                "or take the tokenizer that the model was published with"
            )


def _compute_head_in_float32(model: PreTrainedModel, folder: Path) -> None:
    """Restore the weights after the backbone, which loading has rounded, to float32, and convert their inputs."""
    import torch

    heads = {name: module for name, module in model.named_children() if name != model.base_model_prefix}
    for module in heads.values():
        module.float().register_forward_pre_hook(lambda _, args: tuple(value.float() for value in args))
    weights = {f"{name}.{key}": value for name, module in heads.items() for key, value in module.named_parameters()}
    with torch.no_grad():
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in weights.keys() & set(file.keys()):
                    weights[name].copy_(file.get_tensor(name))


def _device(device: str) -> torch.device:
    import torch

    if device == "auto":
        accelerators = (("cuda", torch.cuda.is_available()), ("mps", torch.backends.mps.is_available()))
        device = next((kind for kind, available in accelerators if available), "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device {device!r}: expected auto, cpu, mps, cuda or cuda:N") from error
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {device!r}: torch sees no CUDA device here; use auto or cpu")
    return place


def _dtype(dtype: str, place: torch.device) -> torch.dtype:
    import torch

    choices = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.bfloat16 if place.type == "cuda" else torch.float32
    if dtype not in choices:
        raise InputError(f"dtype {dtype!r}: expected auto, {', '.join(choices)}")
    return choices[dtype]


def computes_bfloat16(place: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16, which make them faster than in float32."""
    import torch

    if place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if place.type == "cpu":
        known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
