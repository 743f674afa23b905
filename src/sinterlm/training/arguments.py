"""Sinter's own arguments of a training, beside Transformers' and the objective's; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

from sinterlm.thoughts import ThoughtRule

DEFAULT_MAX_LENGTH = 1024


def choices_in_words(choices: Iterable[object]) -> str:
    """The values that an argument accepts, as YAML writes them."""
    return " or ".join(str(choice).lower() for choice in choices)


@dataclass
class FusionArguments:
    """Sinter's own arguments of a training."""

    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Maximum tokens of a prompt and one response; longer rows are cut. By default 1,024, or fewer if "
            "the model reads fewer.",
            "at_least": 2,
        },
    )
    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Tokens that a prompt keeps when it is cut; by default half of max_length.", "at_least": 1},
    )
    chunk_tokens: int | None = field(
        default=None,
        metadata={"help": "Tokens computed at once; by default as many as suit the device.", "at_least": 1},
    )
    bf16: str | bool = field(
        default=False,
        metadata={
            "help": "Compute products in bfloat16; auto: if the device does so natively.",
            "choices": ("auto", True, False),
        },
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={
            "help": "Weight of the loss that balances the router of a mixture of experts; 0 leaves it out. By default "
            "the model's own.",
            "at_least": 0,
        },
    )
    share_prompt: str | bool = field(
        default="auto",
        metadata={
            "help": "Compute a row's prompt once for all its responses: auto if the model allows it, on, or off.",
            "choices": ("auto", "on", "off", True, False),  # YAML reads on and off as true and false
        },
    )
    thoughts: str = field(
        default="keep",
        metadata={
            "help": "Answers that begin with a thought: trained with it, without it, or dropped.",
            "choices": get_args(ThoughtRule),
        },
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None, metadata={"help": "Variables of the chat template, e.g. {enable_thinking: false}."}
    )
    template_date: str | None = field(
        default=None,
        metadata={
            "help": "Date that a chat template uses as today's date, e.g. 2026-11-30; by default the run's first day."
        },
    )
    lora_r: int | None = field(
        default=None,
        metadata={"help": "Rank of the adapters that LoRA trains; by default all weights train.", "at_least": 1},
    )
    lora_alpha: int = field(
        default=32, metadata={"help": "What adapters add is scaled by lora_alpha / lora_r.", "at_least": 1}
    )
    lora_dropout: float = field(
        default=0.0, metadata={"help": "Dropout of an adapter's inputs.", "at_least": 0, "below": 1}
    )
    lora_target_modules: str | list[str] = field(
        default="all-linear", metadata={"help": "Modules that get an adapter: names, or all-linear (not the head)."}
    )
