"""How a trained model samples and stops once it is loaded: as its start does, and at the end-of-turn that it learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from sinterlm.chat import PLAIN, end_token_ids
from sinterlm.template import TemplateOptions

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class StartSettings(NamedTuple):
    """How a start model says it is to be used, which training must not change."""

    generation_config: GenerationConfig
    token_ids: dict[str, Any]
    """The config's own, by name."""


def set_aside(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> StartSettings:
    """Take the model's generation config and special tokens, and put the tokenizer's in their place.

    Transformers' trainer would replace a model's list of eos tokens by the tokenizer's one. It also refuses to save
    some generation configs that it loads (a temperature without ``do_sample``), and with them every checkpoint.
    """
    config = model.config.get_text_config()
    own = StartSettings(
        model.generation_config or GenerationConfig(), {name: getattr(config, name, None) for name in TOKENS}
    )
    known = {name: getattr(tokenizer, name) for name in TOKENS if getattr(tokenizer, name) is not None}
    for name, value in known.items():
        setattr(config, name, value)
    model.generation_config = GenerationConfig(**known)
    return own


def restore_config(model: PreTrainedModel, own: StartSettings) -> None:
    """Restore the start's special tokens in a model to be saved, and the cache that training switches off."""
    config = model.config.get_text_config()
    for name, value in own.token_ids.items():
        setattr(config, name, value)
    model.config.use_cache = True


def write_generation_config(
    own: StartSettings, tokenizer: PreTrainedTokenizerBase, folder: Path, options: TemplateOptions = PLAIN
) -> None:
    """Write the start model's generation config beside the trained model, unchanged except for an added stop token.

    Args:
        own: The settings of the start model.
        tokenizer: Has the template that the model was trained on, whose end-of-turn it learnt to write.
        folder: The folder of the trained model.
        options: Options of the template.
    """
    stops = own.generation_config.eos_token_id
    known = set() if stops is None else {stops} if isinstance(stops, int) else set(stops)
    own.generation_config.eos_token_id = sorted(known | end_token_ids(tokenizer, options))
    own.generation_config.to_json_file(folder / GENERATION_CONFIG_NAME)
