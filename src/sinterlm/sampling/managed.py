"""The engine that starts a server for a model on this machine, asks it, and stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import AfterValidator, Field

from sinterlm.chat import end_token_ids, thought_token_ids
from sinterlm.endpoint.settings import Pace, Served
from sinterlm.errors import InputError, SinterError, ToleranceError
from sinterlm.explain import Problem
from sinterlm.models import (
    GGUF_PREFIX,
    Fingerprint,
    describe_options,
    fingerprint,
    load_lone_tokenizer,
    plain_name,
    resolve_model,
    writes_date,
)
from sinterlm.models.files import CONFIG, read_object
from sinterlm.models.gguf import gguf_file
from sinterlm.models.settings import ModelName, TemplatedModel
from sinterlm.records import SamplingSettings
from sinterlm.sampling.asking import Asking
from sinterlm.sampling.endpoint_engine import EndpointEngine
from sinterlm.sampling.protocol import Answered, Generation, Item
from sinterlm.sampling.served_model import ReasoningRule, Requests, ServedModel
from sinterlm.sampling.server_process import ServerProcess
from sinterlm.sampling.settings import OwnModel
from sinterlm.sampling.streamed import batches_by_prompt, sample_streamed
from sinterlm.settings import expected
from sinterlm.template import TemplateOptions

if TYPE_CHECKING:
    from sinterlm.endpoint import Endpoint

_SECRET_NAME = re.compile(r"(^|_)(key|token|secret|password|passwd|credentials?)$", re.IGNORECASE)
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_STATE_LENGTH = 80
"""How many characters of a loading server's last line are shown."""


class Preset(NamedTuple):
    """A server that Sinter knows how to start."""

    command: Sequence[str]
    fields: Mapping[str, Any]
    """Fields of every request without which the server would draw by defaults of its own or of the model."""
    advice: str
    """How to get the program."""


_OWN_ENVIRONMENT = (
    "install {name} into an environment of its own, because its packages do not go with Sinter's, and name its "
    "program: `command: [/path/to/venv/bin/{name}, ...]`"
)
_ADDRESS = ("--host", "{host}", "--port", "{port}")
PRESETS: Mapping[str, Preset] = {
    "vllm": Preset(
        ("vllm", "serve", "{model}", *_ADDRESS, "--served-model-name", "{name}"),
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
        _OWN_ENVIRONMENT.format(name="vllm"),
    ),
    "sglang": Preset(
        ("sglang", "serve", "--model-path", "{model}", *_ADDRESS, "--served-model-name", "{name}"),
        {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0},
        _OWN_ENVIRONMENT.format(name="sglang"),
    ),
    "llama-server": Preset(
        ("llama-server", "--model", "{model}", *_ADDRESS, "--alias", "{name}"),
        {"top_k": 0, "min_p": 0.0},
        "install llama.cpp, or name its program: `command: [/path/to/llama-server, ...]`",
    ),
    "transformers": Preset(
        ("transformers", "serve", "{model}", *_ADDRESS), {}, "install it: pip install 'transformers[serving]'"
    ),
}


def _check_variables(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if value and _SECRET_NAME.search(name):
            raise expected(
                f"no key in a recipe, and {name} sounds like one; set it in the environment of the command, which the "
                "server inherits"
            )
    return variables


def _check_words(words: list[str]) -> list[str]:
    if any(word.startswith("--api-key") for word in words):
        raise expected("no --api-key: the server listens on this machine only, and is asked without a key")
    return words


_Words = Annotated[list[str], AfterValidator(_check_words)]


class ManagedSource(ServedModel, OwnModel, Pace):
    """A model on this machine for which Sinter starts a server."""

    description: ClassVar = (
        "a model on this machine in a server that Sinter starts and stops: vLLM, SGLang, llama.cpp or any other"
    )

    engine: Literal["managed"]
    model: ModelName
    """A hub name (``org/name``, or ``org/name@REVISION``), a folder in Transformers' format, or
    ``gguf:PACKAGE/FILE.gguf``. The server is given the folder or the GGUF file.
    """
    preset: Literal["vllm", "sglang", "llama-server", "transformers"] | None = None
    """The server to start, if its program is on the PATH: `vllm serve`, `sglang serve`, `llama-server` or
    `transformers serve`. Give either ``preset`` or ``command``.
    """
    command: Annotated[_Words, Field(min_length=1)] | None = None
    """The program and its arguments, without a shell. ``{model}`` is the folder or file of the model, ``{name}`` its
    short name, ``{host}`` and ``{port}`` where the server must listen.
    """
    arguments: _Words = []
    """Further arguments, e.g. ``[--tensor-parallel-size, "8"]``."""
    env: Annotated[dict[str, str], AfterValidator(_check_variables)] = {}
    """Environment variables of the server, beside those of the command."""
    health_timeout: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that the server may take to load the model and answer."""
    restarts: Annotated[int, Field(ge=0)] = 2
    """How often the server is started again after it ended in the middle of the work."""
    revision: str | None = None
    """Names what the answers depend on beside the model's files, such as ``fp8`` for a server that quantises. Command,
    arguments and variables are no part of the answers' name.
    """

    @property
    def words(self) -> list[str]:
        """The command with its placeholders."""
        return [*(self.command or PRESETS[self.preset or "vllm"].command), *self.arguments]

    def build(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        on_loaded: Callable[[str], None] | None = None,
    ) -> ManagedEngine:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.build`."""
        assert settings is not None
        name = location or self.model
        return ManagedEngine(
            partial(_fill, self.words, name),
            env=self.env,
            requests=partial(self._requests, name, settings),
            connect=self._connect,
            health_timeout=self.health_timeout,
            restarts=self.restarts,
            on_loaded=on_loaded,
        )

    def _requests(self, weights: str, settings: SamplingSettings, listed: Sequence[str]) -> Requests:
        """What the server is asked.

        Args:
            weights: The model's name.
            settings: How answers are drawn.
            listed: The names of the models that the server lists.
        """
        path, name = _placeholders(weights).values()
        # One that lists no name of the model answers to any, except `transformers serve`, which lists what is cached.
        only = listed[0] if len(listed) == 1 and self.preset != "transformers" else path
        changes = {
            "model": next((known for known in (path, name) if known in listed), only),
            "extra_body": {**self._fields(weights, settings), **self.extra_body},
        }
        return self.model_copy(update=changes).requests(settings, self._asking(weights))

    def _asking(self, weights: str) -> Asking | None:
        """What makes token ids of prompts; None leaves that to the server."""
        return None

    def _fields(self, weights: str, settings: SamplingSettings) -> Mapping[str, Any]:
        """Fields of every request that make the server draw as ``sampling`` says, and in no other way."""
        if self.preset is None:
            return {}
        fields = dict(PRESETS[self.preset].fields)
        if self.preset == "transformers" and not weights.startswith(GGUF_PREFIX):
            fields["generation_config"] = _plain_generation(resolve_model(weights), settings)
        if settings.repetition_penalty != 1:
            fields.pop("repetition_penalty", None)  # the request has it already
            if self.preset == "llama-server":
                fields["repeat_penalty"] = settings.repetition_penalty
        return fields

    def _connect(self, url: str, on_note: Callable[[str], None]) -> Endpoint:
        pace = {name: getattr(self, name) for name in Pace.model_fields}
        return Served(base_url=url, **pace).build_endpoint(on_note)

    def identity(
        self,
        *,
        location: str | None = None,
        settings: SamplingSettings | None = None,
        fingerprint: Fingerprint = fingerprint,
    ) -> str | None:
        """Hash of weights, prompt format, sampling settings and seed, apart from answers that other engines give.

        How the server is started is no part of it: what it changes of the answers is named by ``revision``.
        """
        assert settings is not None
        name = location or self.model
        weights = fingerprint(name)
        own = {"engine": self.engine, "model": weights, **self._options(name)}
        return weights and self.name_answers(self.revision or "", settings, **own)

    def _options(self, weights: str) -> Mapping[str, Any]:
        """The options of the model's chat template that are decided here."""
        return {}

    def check(self, name: str) -> None:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.check`.

        Raises:
            InputError: The server's program is not on this machine.
        """
        super().check(name)
        program = self.words[0]
        if shutil.which(program, path=self.env.get("PATH", os.environ.get("PATH"))) is None:
            advice = PRESETS[self.preset].advice if self.preset else "correct `command`, or install it"
            raise InputError(f"{name}: the program {program!r} of its server is not on this machine; {advice}")

    def find_problems(self) -> Iterator[Problem]:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.find_problems`."""
        yield from super().find_problems()
        if (self.command is None) == (self.preset is None):
            found = "both are given" if self.command else "neither is given"
            reason = f"a server needs either `preset` or `command`, and {found}"
            yield Problem(("command" if self.command else "preset",), reason)
        if self.command and not any("{port}" in word for word in self.command):
            reason = "the server must listen on a port that Sinter chooses; add it, e.g. --port, '{port}'"
            yield Problem(("command",), reason)
        if self.preset == "llama-server" and not self.model.startswith(GGUF_PREFIX):
            yield Problem(("model",), "llama-server reads GGUF files only; name one, gguf:PACKAGE/FILE.gguf")

    def provenance(self, location: str | None = None) -> str:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.provenance`."""
        return f"{super().provenance(location)}, served by {self.preset or Path(self.words[0]).name}"


class ManagedTemplatedModel(ManagedSource, TemplatedModel):
    """A model in a server, which is also trained: its chat template is applied on this machine."""

    protocol: Literal["tokens", "chat"] = "tokens"  # type: ignore[assignment]  # other choices than a source's
    """``tokens`` makes token ids of prompts here, by the chat template with which the target is trained; vLLM, SGLang
    and llama.cpp take them. ``chat`` leaves that to the server.
    """
    reasoning: ReasoningRule = "in-answer"
    """``in-answer`` leaves a thought in the answer, in ``<think>`` tags, as the target in this process does; ``apart``
    takes it away.
    """

    def _asking(self, weights: str) -> Asking | None:
        if self.protocol == "chat":
            return None
        tokenizer = load_lone_tokenizer(weights).tokenizer
        options = TemplateOptions.of(self.chat_template_kwargs, self.template_date)
        return Asking(
            tokenizer,
            few_shot=None,
            system=self.prompt.system,
            end_tokens=end_token_ids(tokenizer, options),
            options=options,
            thought_tokens=thought_token_ids(tokenizer),
        )

    def _fields(self, weights: str, settings: SamplingSettings) -> Mapping[str, Any]:
        fields = super()._fields(weights, settings)
        if self.protocol == "chat" and self.chat_template_kwargs:
            return {**fields, "chat_template_kwargs": self.chat_template_kwargs}
        return fields

    def _options(self, weights: str) -> Mapping[str, Any]:
        return describe_options(weights, self.chat_template_kwargs, self.template_date)

    def check(self, name: str) -> None:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.check`."""
        super().check(name)
        if self.protocol == "chat" and writes_date(self.model):
            raise InputError(
                f"{name}: its chat template writes today's date, which the server would take from its own clock; "
                "use `protocol: tokens`"
            )

    def find_problems(self) -> Iterator[Problem]:
        """See :meth:`~sinterlm.sampling.settings.EngineSettings.find_problems`."""
        yield from super().find_problems()
        if self.preset == "llama-server":
            yield Problem(("preset",), "llama-server cannot read the models that Sinter trains; use vllm or sglang")
        if self.protocol == "tokens" and self.preset == "transformers":
            yield Problem(("preset",), "`transformers serve` takes no token ids; add `protocol: chat`")
        if self.command and not any("{model}" in word for word in self.words):
            reason = "the server must load the target's trained forms too; put {model} where its folder belongs"
            yield Problem(("command",), reason)


class ManagedEngine:
    """Answers through a server that it starts for the first item, and stops when it is closed.

    Args:
        command: Makes the server's command, with ``{host}`` and ``{port}``; it may fetch the model first.
        env: Environment variables of the server, beside those of this process.
        requests: What the server is asked, by the names of the models that it lists.
        connect: Builds the client of the server at a URL; its second argument is told what the client notices.
        health_timeout: Seconds that the server may take to answer.
        restarts: How often it is started again after it ended in the middle of the work.
        on_loaded: Told where the server answers.
    """

    def __init__(
        self,
        command: Callable[[], Sequence[str]],
        *,
        env: Mapping[str, str],
        requests: Callable[[Sequence[str]], Requests],
        connect: Callable[[str, Callable[[str], None]], Endpoint],
        health_timeout: float,
        restarts: int,
        on_loaded: Callable[[str], None] | None = None,
    ) -> None:
        self._make_command = command
        self._env = env
        self._make_requests = requests
        self._connect = connect
        self._health_timeout = health_timeout
        self._restarts = restarts
        self._on_loaded = on_loaded or (lambda placement: None)
        self._log: Path | None = None
        self._server: ServerProcess | None = None
        self._engine: EndpointEngine | None = None
        self._is_closed = False

    def log_to(self, path: Path) -> None:
        """See :class:`~sinterlm.sampling.protocol.KeepsLog`."""
        self._log = path

    def stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        """See :class:`~sinterlm.sampling.protocol.Streams`.

        Raises:
            InputError: The server does not start; says what it printed last.
            ToleranceError: It ended more often in the middle of the work than it may be started again.
            SinterError: It refuses all requests, or does not work.
        """
        self._is_closed = False
        work = _Unanswered(items)
        num_ends = 0
        try:
            while work.has_more:
                server = self._start()
                try:
                    yield from self._ask(server, work)
                except SinterError:
                    if server.is_running or (num_ends == 0 and not server.has_answered):
                        raise
                if self._is_closed or server.is_running:
                    return
                num_ends += 1
                if num_ends > self._restarts:
                    raise ToleranceError(
                        f"the server ended {num_ends} times in the middle of the work, more often than `restarts` "
                        f"({self._restarts}) allows; the last time with {server.how_it_ended()}\n{server.describe()}"
                    )
                if work.has_more:
                    told = f"{server.how_it_ended()} after {server.seconds:.0f} s"
                    yield Answered((), notes=[f"the server ended ({told}) and is started again"])
        finally:
            self._stop()

    def _start(self) -> ServerProcess:
        self._stop()
        command = self._make_command()
        log = self._log or Path(tempfile.mkdtemp(prefix="sinterlm-"), "server.log")
        self._server = ServerProcess(command, env=self._env, log=log)
        return self._server

    def _ask(self, server: ServerProcess, work: _Unanswered) -> Iterator[Answered]:
        """Wait until a server answers, and ask it until the work or the server ends."""
        for line in server.wait(self._health_timeout):
            yield Answered((), state=f"server starting, {server.seconds:.0f} s: {line[:_STATE_LENGTH]}")
        self._on_loaded(f"{server.url} by {server.program}, which took {server.seconds:.0f} s to start")
        engine = EndpointEngine(self._make_requests(server.models() or ()), partial(self._connect, server.url))
        self._engine = engine

        def give_up_with_server() -> None:
            server.wait_for_end()
            engine.close()

        Thread(target=give_up_with_server, daemon=True).start()
        for answered in engine.stream(work):
            work.settle(answered)
            yield answered

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """One batch for each prompt."""
        return batches_by_prompt(items)

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer one batch after the other; :meth:`stream` asks for many at once, and starts the server once."""
        return sample_streamed(self, batches)

    def close(self) -> None:
        """Stop the server; may be called from any thread."""
        self._is_closed = True
        if self._engine:
            self._engine.close()
        self._stop()

    def _stop(self) -> None:
        if self._server:
            self._server.stop()


class _Unanswered:
    """Work that is taken bit by bit, and taken again as long as it is not answered.

    Args:
        items: The work.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self._new = iter(items)
        self._taken: dict[tuple[str, int], Item] = {}

    def __iter__(self) -> Iterator[Item]:
        """What was taken before and is not answered, then what is new."""
        yield from list(self._taken.values())
        for item in self._new:
            self._taken[item.prompt.id, item.index] = item
            yield item

    @property
    def has_more(self) -> bool:
        """Whether anything is not answered."""
        return bool(self._taken) or next(iter(self), None) is not None

    def settle(self, answered: Answered) -> None:
        """Take note of what is answered, or has failed for good."""
        for generation in answered.generations:
            self._taken.pop((generation.prompt_id, generation.index), None)
        for failure in answered.failures:
            self._taken.pop((failure.prompt_id, failure.index), None)


def _placeholders(weights: str) -> dict[str, str]:
    """What a command's placeholders mean for a model, which is fetched first if it is not on this machine."""
    is_gguf = weights.startswith(GGUF_PREFIX)
    path = gguf_file(weights) if is_gguf else resolve_model(weights)
    return {"{model}": str(path), "{name}": path.name if is_gguf else plain_name(weights)}


def _fill(words: Sequence[str], weights: str) -> list[str]:
    """A command for a model."""
    filled = list(words)
    for name, value in _placeholders(weights).items():
        filled = [word.replace(name, value) for word in filled]
    return filled


def _plain_generation(folder: Path, settings: SamplingSettings) -> str:
    """A generation config that adds nothing to the settings, and keeps the tokens that end an answer."""
    tokens: dict[str, Any] = {}
    for path in (folder / CONFIG, folder / "generation_config.json"):
        config = read_object(path) if path.is_file() else {}
        tokens |= {name: value for name, value in config.items() if name in _TOKENS and value is not None}
    penalty = settings.repetition_penalty
    return json.dumps({**tokens, "do_sample": settings.temperature > 0, "top_k": 0, "repetition_penalty": penalty})
