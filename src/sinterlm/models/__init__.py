"""A model and its tokenizer from a hub name, a folder, or a GGUF file inside an installed package.

    name -> resolve_model -> a folder (safetensors, config, tokenizer, template) -> load_model, load_tokenizer, ...
    name -> fingerprint: what decides the model's answers, as one hash

    files         the files of a model folder: which belong to the model, and whether they are what they should be
    locate        a name -> the folder, downloaded or converted where it has to be
    gguf          GGUF files inside packages, and their conversion
    fingerprints  a model's hash, and the size of its weights
    hashes        hashes of files, kept
    quiet         what Transformers prints, kept silent
    templates     what decides a chat template's text
    load          models and tokenizers, looked at before and after they are loaded

Weights are read from safetensors only, and no code of a checkpoint is ever run. Finding and naming a model needs no
torch: it is imported where one is loaded or converted.
"""

from sinterlm.models.fingerprints import (
    FLOAT32_BYTES,
    Fingerprint,
    cached_fingerprint,
    fingerprint,
    known_weights_bytes,
)
from sinterlm.models.gguf import GGUF_PREFIX
from sinterlm.models.load import (
    check_trainable,
    computes_bfloat16,
    describe_placement,
    load_model,
    load_model_of,
    load_reward_model,
    load_tokenizer,
    load_trainable_model,
)
from sinterlm.models.locate import absolute_name, hub_revision, plain_name, resolve_model, split_revision
from sinterlm.models.quiet import without_bars
from sinterlm.models.templates import describe_options, writes_date

__all__ = [
    "FLOAT32_BYTES",
    "GGUF_PREFIX",
    "Fingerprint",
    "absolute_name",
    "cached_fingerprint",
    "check_trainable",
    "computes_bfloat16",
    "describe_options",
    "describe_placement",
    "fingerprint",
    "hub_revision",
    "known_weights_bytes",
    "load_model",
    "load_model_of",
    "load_reward_model",
    "load_tokenizer",
    "load_trainable_model",
    "plain_name",
    "resolve_model",
    "split_revision",
    "without_bars",
    "writes_date",
]
