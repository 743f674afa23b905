"""A reward model: the one output of a sequence-classification model that reads the whole dialogue."""

from __future__ import annotations

from typing import ClassVar, Literal

from sinterlm.chat import end_token_ids
from sinterlm.errors import InputError
from sinterlm.models import load_reward_model, load_tokenizer
from sinterlm.scoring.dialogues import Reading
from sinterlm.scoring.loaded_reader import Batch, Loaded, LoadedReader, LoadedScorer


class RewardModel(LoadedReader):
    """A sequence-classification model with one output, which grades answers."""

    kind: Literal["reward-model"]
    engine: Literal["transformers"] = "transformers"
    """``transformers``: the model is loaded into this process."""

    description: ClassVar = (
        "the output of a sequence-classification model, in this process or behind a server, which reads with its own "
        "tokenizer and chat template"
    )
    placement: ClassVar = {*LoadedReader.placement, "engine"}

    def build_reader(self) -> RewardModelScorer:
        """The scorer; its first ``score`` loads the model."""
        return RewardModelScorer(**self.arguments)


class RewardModelScorer(LoadedScorer):
    """Scores by any sequence-classification model with one output, which is read at the last token of the dialogue."""

    kind = "reward-model"

    def _load(self) -> Loaded:
        model = load_reward_model(self._name, device=self._device, dtype=self._dtype, float32_head=self._float32_head)
        if model.config.num_labels != 1:
            raise InputError(
                f"reward model {self._name}: {model.config.num_labels} outputs; expected a sequence-classification "
                "model with one (num_labels: 1)"
            )
        tokenizer = load_tokenizer(self._name)
        text_config = model.config.get_text_config()
        if text_config.pad_token_id is None:
            # Without one the model reads its output at the last token; so it does with one that ends no dialogue. No
            # text ends in a special token: if a template writes nothing after an answer, the answer ends it.
            ends = end_token_ids(tokenizer, self._options)
            specials = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
            text_config.pad_token_id = min(specials - ends or set(range(len(tokenizer))) - ends)
        return Loaded(model, tokenizer, text_config.pad_token_id)

    def _read(self, loaded: Loaded, batch: Batch) -> list[Reading]:
        outputs = loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return [Reading(value) for value in outputs.logits[:, 0].float().tolist()]
