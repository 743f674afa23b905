"""How a model is asked, and where its answer ends: by its chat template, or by a few-shot completion prompt."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from sinterlm.chat import PLAIN, FewShot, encode_completion, encode_prompt, question_of, with_system
from sinterlm.records import Prompt
from sinterlm.template import TemplateOptions
from sinterlm.thoughts import opened_thought, split_thoughts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUM_TAG_TOKENS = 16
"""How many of a prompt's last tokens are searched for the tag of a thought."""


class Asking(NamedTuple):
    """Turns prompts into tokens, and tokens into answers."""

    tokenizer: PreTrainedTokenizerBase
    few_shot: FewShot | None
    """None asks by chat template."""
    system: str | None
    end_tokens: frozenset[int]
    options: TemplateOptions = PLAIN
    """Options of the chat template."""
    thought_tokens: frozenset[int] = frozenset()
    """Special tokens that stay in an answer's text."""

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids up to where the answer begins; what prompts share is encoded together with the rest.

        Raises:
            TemplateRefusal: The model cannot be asked this prompt.
        """
        if self.few_shot is None:
            return encode_prompt(self.tokenizer, with_system(prompt.messages, self.system), self.options)
        text = self.few_shot.prefix + self.few_shot.render(question_of(prompt.messages))
        return encode_completion(self.tokenizer, text)

    def is_finished(self, tokens: Sequence[int]) -> bool:
        """Whether an answer is complete; its last token is new."""
        if tokens[-1] in self.end_tokens:
            return True
        if self.few_shot is None:
            return False
        # The stop text ends in the new token, and each of its tokens is at least one byte of it. One more token is
        # decoded because the first of a run may lose its space.
        last = tokens[-len(self.few_shot.stop.encode()) - 1 :]
        return self.few_shot.stop in self._decode(last)

    def read(self, tokens: Sequence[int], prompt_tokens: Sequence[int] = ()) -> str:
        """The answer's text, up to the stop text: without special tokens, and stripped of white space.

        A thought that the prompt opened and the limit cut gets its opening tag back: it would pass for an answer.
        """
        text = self._decode(tokens)
        if self.few_shot is not None:
            return text.split(self.few_shot.stop)[0].strip()
        text = text.strip()
        return self.reopen_thought(text, prompt_tokens) if tokens and not self.is_finished(tokens) else text

    def reopen_thought(self, text: str, prompt_tokens: Sequence[int]) -> str:
        """A cut answer, with the opening tag of its thought if the prompt opened one that the answer does not close."""
        opened = opened_thought(str(self.tokenizer.decode(list(prompt_tokens[-_NUM_TAG_TOKENS:]))))
        return f"{opened.opening}\n{text}" if opened and split_thoughts(text).answer == text else text

    def _decode(self, tokens: Sequence[int]) -> str:
        runs = groupby(tokens, key=self.thought_tokens.__contains__)
        return "".join(
            str(self.tokenizer.decode(list(run), skip_special_tokens=not is_tag, clean_up_tokenization_spaces=False))
            for is_tag, run in runs
        )
