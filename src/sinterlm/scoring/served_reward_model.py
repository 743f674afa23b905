"""A reward model behind vLLM or SGLang: it reads the same dialogue, token for token, as in this process.

A dialogue goes through the model's own chat template here, where its tokenizer is, and is sent as token ids. (From a
text, these servers make token ids that begin with one more BOS than the template writes.) The number of tokens that a
server says it has read must be the number that was sent.

A score is the model's raw output. By default vLLM puts it through a sigmoid, so requests ask for the raw one. A few
dialogues are also asked about with the sigmoid, and a server that answers both alike is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from sinterlm.endpoint.settings import BaseUrls, BuildEndpoint, Served
from sinterlm.errors import InputError, SinterError, TryAgainError
from sinterlm.models import TOKENIZER_PREFIX, fingerprint, load_lone_tokenizer, plain_name
from sinterlm.models.settings import ModelName
from sinterlm.records import Usage
from sinterlm.scoring.dialogues import Dialogue, DialogueReader, DialogueScorer, Opened, Reading, Truncate, Unread
from sinterlm.scoring.protocol import NO_SCORE, Exchange, Given, Supply
from sinterlm.scoring.settings import Fingerprint, Preflight

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from sinterlm.endpoint import Endpoint
    from sinterlm.models.load import LoneTokenizer

ANSWERS_AT_ONCE = 512
NUM_PROBES = 3
"""Dialogues that are asked about with and without the sigmoid."""
ALIKE = 1e-3
"""Outputs that differ by less, or by less than this share, are one output that was rounded in two ways."""

ServerProtocol = Literal["classify", "pooling", "score", "sglang"]
_Path = tuple[str | int, ...]
"""Keys and list positions from the root of a reply."""


class _Asks(NamedTuple):
    """What a server is asked, and where its reply has what."""

    path: str
    output: _Path
    """The output: a number, or a list of one."""
    num_tokens: _Path
    """How many tokens the server has read; it may not say."""
    ids: str = ""
    """The field for token ids; empty if the server takes only texts."""
    others: Mapping[str, Any] = {}
    has_sigmoid: bool = True


_USAGE = ("usage", "prompt_tokens")
_ASKS: Mapping[str, _Asks] = {
    "classify": _Asks("/classify", ("data", 0, "probs"), _USAGE, "input"),
    "pooling": _Asks("/pooling", ("data", 0, "data"), _USAGE, "input", {"task": "classify"}),
    "score": _Asks("/score", ("data", 0, "score"), _USAGE, others={"text_2": ""}),
    "sglang": _Asks("/classify", ("embedding",), ("meta_info", "prompt_tokens"), "input_ids", has_sigmoid=False),
}


class ServedRewardModel(Served, DialogueReader):
    """A sequence-classification model with one output, run by vLLM or SGLang, which grades answers."""

    kind: Literal["reward-model"]
    engine: Literal["endpoint"]
    """``endpoint``: a server runs the model."""
    model: ModelName
    """A hub name or a folder with the model's tokenizer and chat template, which are applied on this machine. It needs
    no weights. A config.json there says how many tokens the model can read.
    """
    served_model: str | None = None
    """The model's name on the server; by default requests name none, which is enough for a server of one model."""
    base_url: BaseUrls
    """The server, such as ``http://localhost:8000``; or a list of servers of the same model, which share the work."""
    protocol: ServerProtocol = "classify"
    """``classify``, ``pooling`` and ``score`` are vLLM's, ``sglang`` is SGLang's own ``/classify``. All give the same
    scores. ``score`` takes texts instead of token ids, so that it cannot ask about a few answers.
    """
    revision: str | None = None
    """Names the weights. If it is given, scores stay valid when ``base_url`` changes."""

    description: ClassVar = "a reward model behind vLLM or SGLang, read as one in this process"
    placement: ClassVar = {*Served.served_placement, "protocol"}

    def check(self, preflight: Preflight) -> None:
        """Check that there is a key for every server that needs one.

        Raises:
            CredentialsError: There is none.
        """
        super().check(preflight)
        if not preflight.has_scores():
            self.check_keys()

    def describe(self, fingerprint: Fingerprint) -> list[object]:
        """As for every reward model; the tokenizer takes the place of the weights."""
        return [*super().describe(fingerprint), {"tokenizer": fingerprint(TOKENIZER_PREFIX + self.model)}]

    def expected_usage(self, answers: int, tokens: float) -> Usage:
        """A request for each answer, which is read once."""
        return Usage(answers, round(tokens))

    def build_reader(self) -> ServedRewardScorer:
        """The scorer; its first ``score`` loads the tokenizer and asks the server."""
        # These paths are no part of the OpenAI protocol, and so not below /v1.
        urls = [url.removesuffix("/v1") for url in self.base_urls]
        return ServedRewardScorer(
            self.model,
            served_model=self.served_model,
            served_by=self.revision or urls[0],
            protocol=self.protocol,
            build_endpoint=self.model_copy(update={"base_url": urls}).build_endpoint,
            max_length=self.max_length,
            truncate=self.truncate,
            chat_template_kwargs=self.chat_template_kwargs,
            template_date=self.template_date,
        )


class _Got(NamedTuple):
    """The outcome of asking about one dialogue."""

    number: int
    reading: Reading | Unread | SinterError
    usage: Usage


class ServedRewardScorer(DialogueScorer):
    """Scores by a reward model behind a server.

    Args:
        model: Hub name or folder of the tokenizer; see :class:`~sinterlm.scoring.dialogues.DialogueScorer`, for all
            that is not named here.
        served_model: The model's name on the server; None names none.
        served_by: Names the weights, or else where they are served.
        protocol: What the server is asked.
        build_endpoint: Builds the client of the servers.
        max_length: See there.
        truncate: See there.
        template: What the chat template needs besides the conversation.
    """

    kind = "reward-model"
    answers_at_once = ANSWERS_AT_ONCE

    def __init__(
        self,
        model: str,
        *,
        served_model: str | None,
        served_by: str,
        protocol: ServerProtocol,
        build_endpoint: BuildEndpoint,
        max_length: int,
        truncate: Truncate,
        **template: Any,
    ) -> None:
        super().__init__(model, max_length=max_length, truncate=truncate, **template)
        self._served_model = served_model
        self._served_by = served_by
        self._asks = _ASKS[protocol]
        self._build_endpoint = build_endpoint
        self._notes: list[str] = []
        self._usage = Usage()
        self._supply: Supply = iter
        self._gives_raw_outputs = not self._asks.has_sigmoid

    def stream(self, exchanges: Sequence[Exchange], supply: Supply = iter) -> Iterator[Given]:
        """See :class:`~sinterlm.scoring.protocol.StreamsScores`.

        Raises:
            InputError: The server is another one than the recipe says, or gives no raw outputs.
            CredentialsError: There is no key, or the server refuses it.
            TryAgainError: The server cannot be reached, or keeps failing.
        """
        self._supply = supply
        try:
            for scores in self._score_all(exchanges):
                yield Given(scores, *self._take_usage())
        except SinterError:
            yield Given((), *self._take_usage())
            raise

    def close(self) -> None:
        """Nothing is held."""

    @cached_property
    def _endpoint(self) -> Endpoint:
        return self._build_endpoint(self._notes.append)

    @cached_property
    def _lone(self) -> LoneTokenizer:
        return load_lone_tokenizer(self._name)

    def _take_usage(self) -> tuple[Usage, list[str]]:
        """Usage and notes since the last call."""
        taken = self._usage, self._notes[:]
        self._usage = Usage()
        del self._notes[: len(taken[1])]
        return taken

    def _identify_model(self) -> dict[str, Any]:
        return {
            "engine": "endpoint",
            "model": self._served_model or plain_name(self._name),
            "served_by": self._served_by,
            "tokenizer": fingerprint(TOKENIZER_PREFIX + self._name),
        }

    def _open(self) -> Opened:
        from sinterlm.context import stated_context_length

        config = self._lone.config
        return Opened(self._lone.tokenizer, stated_context_length(config) if config else None)

    def _read_all(
        self, dialogues: Mapping[int, Dialogue], max_length: int
    ) -> Iterator[Sequence[tuple[int, Reading | Unread]]]:
        numbers = list(dialogues)
        if not self._gives_raw_outputs:
            probes = {number: dialogues[number] for number in numbers[:NUM_PROBES]}
            raw = [pair for some in self._ask(probes) for pair in some]
            self._check_raw(
                dict(raw), {number: one for some in self._ask(probes, sigmoid=True) for number, one in some}
            )
            yield raw
            numbers = numbers[NUM_PROBES:]
        yield from self._ask({number: dialogues[number] for number in numbers}, self._supply)

    def _ask(
        self, dialogues: Mapping[int, Dialogue], supply: Supply = iter, *, sigmoid: bool = False
    ) -> Iterator[Sequence[tuple[int, Reading | Unread]]]:
        async def work(job: tuple[int, Dialogue]) -> _Got:
            number, dialogue = job
            return await self._ask_one(number, dialogue, sigmoid=sigmoid)

        for some in self._endpoint.map(work, supply(dialogues.items())):
            self._usage = sum((got.usage for got in some), self._usage)
            yield [(got.number, got.reading) for got in some if not isinstance(got.reading, SinterError)]
            for got in some:
                if isinstance(got.reading, SinterError):
                    raise got.reading

    async def _ask_one(self, number: int, dialogue: Dialogue, *, sigmoid: bool) -> _Got:
        from sinterlm.endpoint import RequestFailed, RequestRefused

        body = self._body(dialogue.tokens, sigmoid=sigmoid)
        if body is None:
            problem = "no text makes the tokens that the model must read, and `protocol: score` sends texts"
            return _Got(number, Unread(NO_SCORE, f"{problem}; use `protocol: classify`"), Usage())
        try:
            received = await self._endpoint.post(self._asks.path, body, check=self._check)
        except RequestFailed as error:
            return _Got(number, TryAgainError(error.advice), Usage(error.requests))
        except RequestRefused as error:
            if error.kind == "content-filtered":
                return _Got(number, Unread(NO_SCORE, f"the server refuses the request: {error.detail}"), Usage(1))
            is_long = error.kind in ("context-too-long", "too-large")
            advice = f", and make max_length ({self._max_length}) what the server was started with" if is_long else ""
            return _Got(number, InputError(error.advice + advice), Usage(1))
        outputs, num_read = self._read(received.value)
        num_tokens = len(dialogue.tokens)
        usage = Usage(received.requests, num_read or num_tokens)
        problem = ""
        if len(outputs) != 1:
            problem = f"the model gives {len(outputs)} outputs; expected a reward model with one (num_labels: 1)"
        elif num_read not in (None, num_tokens):
            problem = (
                f"the server has read {num_read} tokens where {num_tokens} were sent: it adds some of its own, or has "
                f"another tokenizer than {self._name}; use `protocol: classify`, and the tokenizer that it was started "
                "with"
            )
        return _Got(number, InputError(f"{received.url}: {problem}") if problem else Reading(outputs[0]), usage)

    def _body(self, tokens: list[int], *, sigmoid: bool) -> dict[str, Any] | None:
        """The request; None if the server takes texts and none of them makes these tokens."""
        asks = self._asks
        content: dict[str, Any] = {asks.ids: tokens}
        if not asks.ids:
            text = find_text(self._lone.tokenizer, tokens)
            if text is None:
                return None
            content = {"text_1": text}
        if self._served_model:
            content["model"] = self._served_model
        if asks.has_sigmoid:  # its name since vLLM 0.11.1, and the one before
            content |= {"use_activation": sigmoid, "activation": sigmoid}
        return {**content, **asks.others}

    def _check(self, value: Any) -> None:
        self._read(value)

    def _read(self, value: Any) -> tuple[list[float], int | None]:
        """The outputs in a reply, and how many tokens the server has read.

        Raises:
            ValueError: It is not such a reply.
        """
        outputs = list(_numbers(_find(value, self._asks.output)))
        try:
            num_read = _find(value, self._asks.num_tokens)
        except ValueError:
            num_read = None
        return outputs, num_read if isinstance(num_read, int) else None

    def _check_raw(self, raw: Mapping[int, Reading | Unread], other: Mapping[int, Reading | Unread]) -> None:
        """Check that the server gives raw outputs, as far as this can be known.

        Raises:
            InputError: It gives probabilities, or may do so.
        """
        pairs = [
            (one.value, two.value)
            for one, two in ((raw[number], other[number]) for number in raw)
            if isinstance(one, Reading) and isinstance(two, Reading)
        ]
        if not pairs:
            return
        is_regression = getattr(self._lone.config, "problem_type", None) == "regression"  # it has no sigmoid
        if not is_regression and all(
            0 <= one <= 1 and abs(one - two) <= ALIKE * max(1.0, abs(one)) for one, two in pairs
        ):
            raise InputError(
                f"{self._served_by}: the server gives {pairs[0][0]:.4f} with `use_activation: false` and also with "
                "`true`, so this may be a probability and not the model's own output. Use a vLLM of 0.11.1 or later; "
                "if the model is a regression, put its config.json (problem_type: regression) beside the tokenizer"
            )
        self._gives_raw_outputs = True


def find_text(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> str | None:
    """A text of which the tokenizer makes these tokens, with the special tokens that it adds; None if there is none."""
    text = str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    candidates = (text.removeprefix(tokenizer.bos_token or ""), text)
    return next((each for each in candidates if list(tokenizer(each)["input_ids"]) == tokens), None)


def _numbers(found: Any) -> Iterator[float]:
    """The numbers in nested lists; a model of tokens has one for every token.

    Raises:
        ValueError: There is something else.
    """
    if isinstance(found, list):
        for part in found:
            yield from _numbers(part)
    elif isinstance(found, int | float):
        yield float(found)
    else:
        raise ValueError("not a number")


def _find(value: Any, path: _Path) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            raise ValueError(f"no {step}") from None
    return value
