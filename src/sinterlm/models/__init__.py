"""A model and its tokenizer from a hub name, a folder, or a GGUF file inside an installed package.

    name -> resolve_model -> a folder (safetensors, config, tokenizer, template) -> load_model, load_tokenizer, ...
    name -> fingerprint: what decides the model's answers, as one hash

    files         which files of a folder belong to the model, and whether they are whole
    locate        a name -> the folder, downloaded or converted if needed
    gguf          GGUF files inside packages, and their conversion
    fingerprints  a model's hash, and the size of its weights
    hashes        cached hashes of files
    quiet         silences what Transformers prints
    templates     which options decide a chat template's text
    load          models and tokenizers, checked before and after they are loaded

Weights are read only from safetensors, and code in a checkpoint is never run. Finding and naming a model needs no
torch, which is imported only to load or convert one.
"""

from sinterlm.models.fingerprints import (
    FLOAT32_BYTES,
    TOKENIZER_PREFIX,
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
    load_lone_tokenizer,
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
    "TOKENIZER_PREFIX",
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
    "load_lone_tokenizer",
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
