"""The base of every engine's settings: what a recipe says of a model that answers, and what Sinter asks of it.

    EngineSettings  any source of answers
    AskedModel      a model that is sampled, wherever it runs
    OwnModel        a model whose weights are on this machine
    LocalModel      a model that is loaded into this process

An engine derives its settings from one of these, in its own file beside its code, and overrides what differs. The rest
of Sinter asks the methods below and never which engine it is. Nothing here imports torch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from sinterlm.chat import FewShot
from sinterlm.errors import InputError
from sinterlm.explain import Problem
from sinterlm.models import Fingerprint, describe_options, fingerprint, plain_name
from sinterlm.models.flops import Flops, count_weights, sampling_flops
from sinterlm.models.settings import ChatModel
from sinterlm.records import SamplingSettings, Usage, digest
from sinterlm.sampling.few_shot import load_few_shot
from sinterlm.sampling.protocol import Engine
from sinterlm.settings import Domains, InputPath, Positive, Seed, Settings


class EngineSettings(Settings):
    """One model's mapping in a recipe, and all that is known of it without loading anything.

    The defaults are those of an engine that looks its answers up: nothing is drawn, loaded or computed here.
    """

    description: ClassVar[str] = ""
    """The engine in one line, for ``sinterlm list engines``."""

    runs_elsewhere: ClassVar[bool] = False
    """Whether answering needs nothing of this machine, so that other models can be asked at the same time."""

    engine: str
    """Its name in recipes: a literal in every engine's own settings."""
    domains: Domains = None
    """Domains of the prompts that a source is asked; by default all prompts. The target has no such key."""

    if TYPE_CHECKING:  # a key of the mapping itself, or of a mapping within it

        @property
        def num_samples(self) -> int:
            """Answers wanted to each prompt."""

    def __hash__(self) -> int:
        """Fields may hold lists, which have no hash."""
        return hash((type(self), self.engine))

    @property
    def weights(self) -> str | None:
        """The name of the model whose weights are read on this machine; None if there is none."""
        return None

    @property
    def tolerated_failed(self) -> float:
        """The share of requests that may fail after all retries."""
        return 0.0

    @property
    def needs_machine(self) -> bool:
        """Whether answers take the processors of the machine that asks, so that a cluster's nodes can share the work.

        False for what is asked over the network or looked up.
        """
        return False

    @property
    def num_gpus(self) -> int:
        """GPUs of one machine that answers take, if it has GPUs at all."""
        return 0

    def sampling_settings(self, seed: int) -> SamplingSettings | None:
        """How training samples are drawn; None if nothing is drawn.

        Args:
            seed: The recipe's seed, for a model that names none.
        """
        return None

    def greedy_settings(self, max_new_tokens: int | None = None) -> SamplingSettings | None:
        """How the one answer for evaluation is drawn: the likeliest token at every step; None if nothing is drawn.

        Args:
            max_new_tokens: By default the model's own limit.
        """
        return None

    @abstractmethod
    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], None] | None = None,
    ) -> Engine:
        """The engine, which is cheap to build; heavy libraries are imported here at the earliest.

        Args:
            location: Weights to load instead of the mapping's own (a trained target's).
            settings: How to sample, as :meth:`sampling_settings` or :meth:`greedy_settings` gave it.
            on_loaded: Told where and in which precision the weights were loaded, if some are.
        """

    @abstractmethod
    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str | None:
        """What names the answers of the engine that :meth:`build` would build, known without building it.

        It names everything that decides an answer: weights, template, prompt format, sampling settings and seed. The
        number of samples is not part of it, so asking for more keeps what is stored.

        Args:
            location: As for :meth:`build`.
            settings: As for :meth:`build`.
            fingerprint: The hash of a model's weights and template by its name; None if it is not known yet.

        Returns:
            None if the weights are not known, or a file of answers is missing.
        """

    def flops(self, *, prompt_tokens: float, new_tokens: float) -> Flops | None:
        """What this machine computes to read and write this many tokens; None if the model's size is not known."""
        return Flops()

    def money(self, usage: Usage) -> float | None:
        """What ``usage`` costs by the recipe's price.

        Nothing for models of this machine and for recorded answers; None for a server whose price is not given.
        """
        return 0.0

    def compare_cost(self, usage: Usage) -> str:
        """For plans: what ``usage`` costs in money and time beside another way of asking; empty if there is none."""
        return ""

    def prompt_prefix(self) -> str:
        """Text that comes before every prompt, e.g. the examples of a few-shot prompt."""
        return ""

    def files(self) -> dict[str, Path]:
        """The files that the mapping names, by dotted key."""
        return {name: value for name, value in self if isinstance(value, Path)}

    def find_problems(self) -> Iterator[Problem]:
        """Keys that do not go together, by their path within the mapping."""
        yield from ()

    def check(self, name: str) -> None:
        """Check, before the first answer is sampled, that this machine has what the engine needs.

        Args:
            name: The source's name, for messages.

        Raises:
            SinterError: What is missing, and what to do.
        """
        for key, path in self.files().items():
            if not path.is_file():
                raise InputError(f"{path}: there is no such file ({key} of {name})")

    def provenance(self, location: str | None = None) -> str:
        """Where the answers come from, in a few words: for model cards, reports, exports and plans.

        Args:
            location: As for :meth:`build`.
        """
        weights = location or self.weights
        return plain_name(weights) if weights else f"answers of the engine {self.engine}"


class Sampling(Settings):
    """How one model is sampled for training data."""

    num_samples: Positive = 5
    """Answers to each prompt."""
    temperature: Annotated[float, Field(ge=0)] = 0.8
    """Sampling temperature; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Nucleus sampling."""
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    """Above 1, tokens of the prompt and of the answer so far become less likely: positive logits are divided by it,
    negative ones multiplied.
    """
    max_new_tokens: Positive = 512
    """A longer answer is cut; its finish reason is then ``length``."""
    seed: Seed | None = None
    """By default the recipe's own seed."""


class PromptFormat(Settings):
    """How a model is asked: its chat template (with a system prompt, if any), or a few-shot completion prompt."""

    system: str | None = None
    """A system prompt. It is put before the prompt's messages, unless they begin with one. For templates without a
    system role it opens the first user turn.
    """
    few_shot: InputPath | None = None
    """For sources only: a few-shot file, relative to the recipe, for models without a chat template. The prompt must
    then be one question, and ``system`` cannot be given. The target is always asked by its chat template, with
    which it is trained.
    """

    def load_few_shot(self) -> FewShot | None:
        """The few-shot prompt; None for a model that is asked by its chat template."""
        return load_few_shot(self.few_shot) if self.few_shot else None


class AskedModel(EngineSettings):
    """A model that is sampled, wherever it runs."""

    prompt: PromptFormat = PromptFormat()
    """How the model is asked; by default the chat template."""
    sampling: Sampling = Sampling()
    """How it is sampled for training data."""

    @property
    def num_samples(self) -> int:
        """Answers wanted to each prompt."""
        return self.sampling.num_samples

    def sampling_settings(self, seed: int) -> SamplingSettings:
        """See :meth:`EngineSettings.sampling_settings`."""
        sampling = self.sampling
        return SamplingSettings(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_new_tokens,
            seed=seed if sampling.seed is None else sampling.seed,
            repetition_penalty=sampling.repetition_penalty,
        )

    def greedy_settings(self, max_new_tokens: int | None = None) -> SamplingSettings:
        """See :meth:`EngineSettings.greedy_settings`; nothing is drawn, so the seed is always 0."""
        limit = max_new_tokens or self.sampling.max_new_tokens
        return SamplingSettings(temperature=0.0, top_p=1.0, max_new_tokens=limit, seed=0)

    def prompt_prefix(self) -> str:
        """See :meth:`EngineSettings.prompt_prefix`."""
        few_shot = self.prompt.load_few_shot()
        return few_shot.prefix if few_shot else ""

    def files(self) -> dict[str, Path]:
        """See :meth:`EngineSettings.files`."""
        few_shot = self.prompt.few_shot
        return super().files() | ({"prompt.few_shot": few_shot} if few_shot else {})

    def find_problems(self) -> Iterator[Problem]:
        """See :meth:`EngineSettings.find_problems`."""
        if self.prompt.few_shot and self.prompt.system is not None:
            reason = "a few-shot prompt has no place for a system prompt; remove one of the two"
            yield Problem(("prompt", "system"), reason)

    def provenance(self, location: str | None = None) -> str:
        """See :meth:`EngineSettings.provenance`."""
        return f"{super().provenance(location)}, {'few-shot prompt' if self.prompt.few_shot else 'chat'}"


class OwnModel(AskedModel):
    """A model whose weights are on this machine, in this process or in a server."""

    if TYPE_CHECKING:
        model: str

    active_billions: Annotated[float, Field(gt=0)] | None = None
    """Weights that each token passes through, in billions. Only ``sinterlm plan`` reads it, when the files are missing
    and the name does not say.
    """

    @property
    def weights(self) -> str:
        """See :attr:`EngineSettings.weights`."""
        return self.model

    @property
    def num_weights(self) -> float | None:
        """Weights that a token passes through; None if that is not known."""
        return count_weights(self.model, self.active_billions)

    def flops(self, *, prompt_tokens: float, new_tokens: float) -> Flops | None:
        """See :meth:`EngineSettings.flops`."""
        size = self.num_weights
        return None if size is None else sampling_flops(size, prompt_tokens=prompt_tokens, new_tokens=new_tokens)


class LocalModel(OwnModel, ChatModel):
    """A model that is loaded into this process."""

    @property
    def needs_machine(self) -> bool:
        """See :attr:`EngineSettings.needs_machine`."""
        return True

    @property
    def num_gpus(self) -> int:
        """One, which ``device`` may rule out."""
        return 0 if self.device == "cpu" else 1

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str | None:
        """Hash of engine, weights, prompt format, sampling settings and seed; None if the weights are not known.

        The chat template's variables and date belong to it only if they decide something. Device and dtype change an
        answer by rounding only, so they are not part of it.
        """
        assert settings is not None
        weights = fingerprint(location or self.model)
        if weights is None:
            return None
        few_shot = self.prompt.load_few_shot()
        named = asdict(settings)
        if settings.repetition_penalty == 1:  # none: answers stored before the penalty existed keep their name
            del named["repetition_penalty"]
        options = describe_options(location or self.model, self.chat_template_kwargs, self.template_date)
        return digest(
            {
                "engine": self.engine,
                "weights": weights,
                "few_shot": few_shot and few_shot.identity,
                "system": self.prompt.system,
                "settings": named,
                **({} if few_shot else options),
            }
        )

    def find_problems(self) -> Iterator[Problem]:
        """See :meth:`EngineSettings.find_problems`."""
        if self.prompt.few_shot and self.chat_template_kwargs:
            reason = "a few-shot prompt goes through no chat template; remove one of the two"
            yield Problem(("chat_template_kwargs",), reason)
        yield from super().find_problems()
