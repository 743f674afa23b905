"""The engine that answers from a file made elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from sinterlm.errors import InputError
from sinterlm.files import file_sha256
from sinterlm.models import Fingerprint, fingerprint
from sinterlm.records import Prompt, SamplingSettings, digest
from sinterlm.sampling.protocol import Generation, Item, Unused
from sinterlm.sampling.settings import EngineSettings
from sinterlm.settings import InputPath, Positive

if TYPE_CHECKING:
    from sinterlm.formats import RecordedAnswer, RecordedAnswers


class RecordedSource(EngineSettings):
    """Answers made elsewhere, joined to the prompts by id or text."""

    description: ClassVar = "answers made elsewhere, from a JSON Lines or Parquet file, joined by prompt id or text"

    engine: Literal["recorded"]
    path: InputPath
    """The file of answers, relative to the recipe."""
    num_samples: Positive = 5
    """Use at most this many answers to each prompt."""

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], None] | None = None,
    ) -> RecordedEngine:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.build`."""
        return RecordedEngine(self.path)

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str | None:
        """Hash of the file's content, under which the store keeps which answers the file gives; None if it is missing.

        The answers themselves have names of their own (:attr:`~sinterlm.sampling.protocol.Generation.name`): one that
        stays the same in a file that changes keeps its scores.
        """
        if not self.path.is_file():
            return None
        return digest({"engine": "recorded", "content": file_sha256(self.path)})

    def check(self, name: str) -> None:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.check`."""
        if not self.path.is_file():
            raise InputError(f"{self.path}: there is no such file (recorded answers of {name})")

    def provenance(self, location: str | None = None) -> str:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.provenance`."""
        return f"recorded answers, {self.path.name}"


class RecordedEngine:
    """Gives the answers that a JSON Lines or Parquet file holds, joined to the prompts by id or by content.

    All answers of the file to a prompt, of any model, are its samples, numbered from 0 in the order of the model's name
    and the recorded index. Answers are stripped of white space. Items that the file does not answer are left out of
    the batches.

    Args:
        path: The file, as :func:`sinterlm.formats.read_recorded` reads it.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """Put the items that the file answers into one batch.

        Raises:
            InputError: The file answers none of them.
        """
        numbers = {item.prompt.id: len(self._answers.answers_to(item.prompt)) for item in items}
        answered = [item for item in items if item.index < numbers[item.prompt.id]]
        if items and not answered:
            raise self._no_match(items[0].prompt)
        return [answered] if answered else []

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Look up batch after batch."""
        for batch in batches:
            yield [self._look_up(item.prompt, item.index + 1)[item.index] for item in batch]

    def held(self, prompts: Iterable[Prompt], *, num_samples: int) -> Iterator[list[Generation]]:
        """Yield the answers to each of ``prompts``, in order.

        Raises:
            InputError: The file answers none of them.
        """
        first, has_found = None, False
        for prompt in prompts:
            found = self._look_up(prompt, num_samples)
            first, has_found = first or prompt, has_found or bool(found)
            yield found
        if first and not has_found:
            raise self._no_match(first)

    def unused(self, prompts: Sequence[Prompt], *, num_samples: int) -> Iterator[Unused]:
        """Yield answers that no prompt asks for: those to other prompts, and those beyond ``num_samples``.

        Prompts of one text have the same samples: at each place the answer of the first prompt that has one there.
        """
        for answer in self._answers.answers_to_others(prompts):
            yield _unused(answer, "unmatched-recorded-answer")
        sharing = Counter(prompt.content_hash for prompt in prompts)
        used: dict[str, list[str]] = {}
        for prompt in prompts:
            is_alone = sharing[prompt.content_hash] == 1
            taken: list[str] = [] if is_alone else used.setdefault(prompt.content_hash, [])
            for place, answer in enumerate(self._answers.answers_to(prompt)):
                content = answer.content.strip()
                if place >= num_samples:
                    yield _unused(answer, "surplus-recorded-answer")
                elif place == len(taken):
                    taken.append(content)
                elif content != taken[place]:
                    yield _unused(answer, "another-answer-to-the-same-text")

    def close(self) -> None:
        """Forget the answers that were read."""
        self.__dict__.pop("_answers", None)

    @cached_property
    def _answers(self) -> RecordedAnswers:
        from sinterlm.formats import index_recorded

        return index_recorded(self._path)

    def _look_up(self, prompt: Prompt, num_samples: int) -> list[Generation]:
        numbers: Counter[str] = Counter()
        generations = []
        for index, answer in enumerate(self._answers.answers_to(prompt)[:num_samples]):
            name = _name(answer)
            generations.append(
                Generation(
                    prompt_id=prompt.id,
                    index=index,
                    content=answer.content.strip(),
                    finish_reason=answer.finish_reason,
                    num_prompt_tokens=0,
                    num_tokens=0,
                    name=(name, numbers[name]),
                )
            )
            numbers[name] += 1
        return generations

    def _no_match(self, prompt: Prompt) -> InputError:
        first = self._answers.first
        assert first is not None
        example = (
            f"prompt_id {first.prompt_id!r}"
            if first.content_hash is None
            else f"a prompt with the content hash {first.content_hash[:12]}"
        )
        return InputError(
            f"{self._path}: none of its answers belongs to a prompt of this run; the file answers {example}, "
            f"the run asks prompt {prompt.id!r} (content hash {prompt.content_hash[:12]}); "
            "expected `prompt_id` or `prompt` as in the file of prompts"
        )


def _unused(answer: RecordedAnswer, reason: str) -> Unused:
    return Unused(answer.prompt_id or answer.content_hash or "", answer.index, reason)


def _name(answer: RecordedAnswer) -> str:
    """Names an answer by what it is: not by its file, nor its place there, which may change while it stays the same."""
    return digest(
        {
            "engine": "recorded",
            "source": answer.source,
            "content": answer.content.strip(),
            "finish_reason": answer.finish_reason,
        }
    )
