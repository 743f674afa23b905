"""Write a trained model as a folder that Transformers loads, however it was trained (in shards, as an adapter)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer import TRAINING_ARGS_NAME

from sinterlm.models import load_trainable_model
from sinterlm.training.generation import StartSettings, restore_config, set_aside, write_generation_config
from sinterlm.training.lora import hide_base, merge_adapter
from sinterlm.training.output_folder import ADAPTER
from sinterlm.training.trainer import FusionTrainer


def save_model(
    trainer: FusionTrainer,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    start: str,
    settings: StartSettings,
) -> None:
    """Write weights, tokenizer with its template, and the start's generation config with the template's end-of-turn.

    Call it in every process. An adapter is written to its own folder, beside the merged model.
    """
    if trainer.is_fsdp_enabled:  # checkpoints may be one shard per process; the model must be whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.args.lora_r is None:
        restore_config(cast(PreTrainedModel, trainer.accelerator.unwrap_model(trainer.model)), settings)
        _save_by_trainer(trainer, folder)
    else:
        _save_by_trainer(trainer, folder / ADAPTER)
        if trainer.is_world_process_zero():
            unset_hf_deepspeed_config()  # otherwise ZeRO-3 would shard the model that is loaded here, too
            base = load_trainable_model(start)
            set_aside(base, tokenizer)
            merged = merge_adapter(base, folder / ADAPTER)
            restore_config(merged, settings)
            merged.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            hide_base(folder / ADAPTER, start)
    if trainer.is_world_process_zero():
        write_generation_config(settings, tokenizer, folder, trainer.args.template_options)


def _save_by_trainer(trainer: FusionTrainer, folder: Path) -> None:
    trainer.save_model(str(folder))
    # Transformers pickles its arguments beside the model; the card states them instead.
    (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
