"""The engine that answers from a file made elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
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
    from sinterlm.formats import RecordedAnswer


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
        answered = [item for item in items if item.index < len(self._answers_to(item.prompt))]
        if items and not answered:
            raise InputError(self._no_match(items[0].prompt))
        return [answered] if answered else []

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Look up batch after batch."""
        for batch in batches:
            yield [self._generation(item) for item in batch]

    def unused(self, prompts: Sequence[Prompt], *, num_samples: int) -> list[Unused]:
        """Answers that no prompt asks for: those to other prompts, and those beyond ``num_samples``.

        Prompts of one text have the same samples: at each place the answer of the first prompt that has one there.
        """
        keys = {key for prompt in prompts for key in (("id", prompt.id), ("content", prompt.content_hash))}
        unmatched = [
            _unused(answer, "unmatched-recorded-answer")
            for key, answers in self._answers.items()
            if key not in keys
            for answer in answers
        ]
        surplus: list[Unused] = []
        used: dict[str, list[RecordedAnswer]] = {}
        for prompt in prompts:
            taken = used.setdefault(prompt.content_hash, [])
            for place, answer in enumerate(self._answers_to(prompt)):
                if place >= num_samples:
                    surplus.append(_unused(answer, "surplus-recorded-answer"))
                elif place == len(taken):
                    taken.append(answer)
                elif answer.content.strip() != taken[place].content.strip():
                    surplus.append(_unused(answer, "another-answer-to-the-same-text"))
        return unmatched + surplus

    def close(self) -> None:
        """Forget the answers that were read."""
        self.__dict__.pop("_answers", None)

    @cached_property
    def _answers(self) -> dict[tuple[str, str], list[RecordedAnswer]]:
        """The file's answers by ("id", prompt id) or ("content", content hash)."""
        from sinterlm.formats import read_recorded

        answers: dict[tuple[str, str], list[RecordedAnswer]] = {}
        for answer in read_recorded(self._path):
            key = ("content", answer.content_hash or "") if answer.prompt_id is None else ("id", answer.prompt_id)
            answers.setdefault(key, []).append(answer)
        return {key: sorted(group, key=lambda answer: (answer.source, answer.index)) for key, group in answers.items()}

    def _answers_to(self, prompt: Prompt) -> list[RecordedAnswer]:
        return self._answers.get(("id", prompt.id), []) + self._answers.get(("content", prompt.content_hash), [])

    def _generation(self, item: Item) -> Generation:
        names = [_name(answer) for answer in self._answers_to(item.prompt)[: item.index + 1]]
        answer = self._answers_to(item.prompt)[item.index]
        return Generation(
            prompt_id=item.prompt.id,
            index=item.index,
            content=answer.content.strip(),
            finish_reason=answer.finish_reason,
            num_prompt_tokens=0,
            num_tokens=0,
            name=(names[-1], names.count(names[-1]) - 1),
        )

    def _no_match(self, prompt: Prompt) -> str:
        kind, name = next(iter(self._answers))
        example = f"prompt_id {name!r}" if kind == "id" else f"a prompt with the content hash {name[:12]}"
        return (
            f"{self._path}: none of its answers belongs to a prompt of this run; the file answers {example}, "
            f"the run asks prompt {prompt.id!r} (content hash {prompt.content_hash[:12]}); "
            "expected `prompt_id` or `prompt` as in the file of prompts"
        )


def _unused(answer: RecordedAnswer, reason: str) -> Unused:
    return Unused(answer.prompt_id or answer.content_hash or "", answer.index, reason)


@lru_cache(maxsize=1024)  # each answer to a prompt is numbered among those before it
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
