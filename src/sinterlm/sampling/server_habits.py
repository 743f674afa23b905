"""What is found out about a server by asking it, so that later requests are ones that it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sinterlm.records import PROMPT_REFUSED, PROMPT_TOO_LONG, FinishReason, Prompt
from sinterlm.sampling.protocol import Generation
from sinterlm.sampling.served_model import LIMITS, Read, Requests

LONG_ANSWER, MAX_REPEATED = 30, 8
"""Characters of an answer that chance does not repeat, and how often a server may repeat such answers at first."""
_MAY_BE_LEFT_OUT = ("temperature", "top_p", "seed", *LIMITS)
_NOT_TAKEN = re.compile(
    r"unsupported|not? support|not (allowed|permitted)|unknown|unrecogni[sz]ed|unexpected|extra|only the default",
    re.IGNORECASE,
)
"""Matches refusals of a field itself. Others refuse its value."""
_NUMBER_OF_ANSWERS = re.compile(r"""(['"`])n\1|\bn (must|should|has to|is)\b|\bn ?[>=]""")
_NO_SYSTEM_ROLE = re.compile(
    r"system (role|message|prompt)s?\b.*\b(not|un) ?(supported|allowed|accept)|only user and assistant", re.IGNORECASE
)
_CONTEXT_TOKENS = re.compile(r"context (?:length|size|window)\D{1,20}(\d+)")
_PROMPT_TOKENS = re.compile(
    r"(\d+) input tokens|request \((\d+) tokens|\((\d+) in the messages|resulted in (\d+) tokens"
)
"""Match the sizes in refusals of vLLM, llama.cpp and OpenAI."""


class NotAsked(NamedTuple):
    """A model cannot be asked a prompt."""

    reason: FinishReason
    problem: str
    """What the server says."""

    def generations(self, prompt: Prompt, indices: Sequence[int]) -> list[Generation]:
        """The records of that, in place of answers."""
        found = _PROMPT_TOKENS.search(self.problem) if self.reason == PROMPT_TOO_LONG else None
        tokens = int(found[found.lastindex or 0]) if found else 0
        return [Generation(prompt.id, index, "", self.reason, tokens, 0, problem=self.problem) for index in indices]


class AskAgain(NamedTuple):
    """Another request for the same answers may be taken."""

    most: int
    """For how many of the answers."""
    limit: int | None
    """Most tokens of an answer; None for the settings'."""


class _Variety:
    """Notices a server that gives the same answer whenever it is asked, so that every sample but the first is wasted.

    Short answers are often the same, so only prompts with long ones count.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._num_repeated = 0
        self._is_known = False

    def add(self, generations: Iterable[Generation]) -> bool:
        """Look at answers; whether they make sure, for the first time, that there is no variety."""
        for each in generations:
            if self._is_known or len(each.content) < LONG_ANSWER:
                continue
            if (text := self._texts.pop(each.prompt_id, None)) is None:
                self._texts[each.prompt_id] = each.content
            elif text == each.content:
                self._num_repeated += 1
                self._is_known = self._num_repeated == MAX_REPEATED
            else:
                self._is_known = True
                self._num_repeated = 0
            if self._is_known:
                self._texts.clear()
                return self._num_repeated > 0
        return False


class ServerHabits:
    """What a server takes. Whatever is found out is said once.

    Args:
        requests: What the server is asked.
        on_note: Told what was found out.
        known: What is known already: see :attr:`known`.
    """

    def __init__(
        self, requests: Requests, on_note: Callable[[str], None], known: Mapping[str, Any] = MappingProxyType({})
    ) -> None:
        self._requests = requests
        self._on_note = on_note
        self.most: int | None = known.get("most")
        """Answers that the server gives to one request; None if it gives all."""
        self._without: set[str] = set(known.get("without", ()))
        """Fields that the server does not take."""
        self._has_system_role = known.get("has_system_role", True)
        self._names: dict[str, list[str]] = {}
        """By URL, every name that the server gave to its model."""
        self._variety = _Variety()

    @property
    def known(self) -> dict[str, Any]:
        """What decides the bodies of requests, as JSON."""
        return {"most": self.most, "without": sorted(self._without), "has_system_role": self._has_system_role}

    def body(self, prompt: Prompt, indices: Sequence[int], *, limit: int | None = None) -> dict[str, Any]:
        """The request for answers, as the server takes it: see :meth:`Requests.body`.

        Raises:
            TemplateRefusal: The model cannot be asked this prompt.
        """
        return self._requests.body(
            prompt, indices, without=self._without, limit=limit, has_system_role=self._has_system_role
        )

    def meet_refusal(
        self, body: Mapping[str, Any], num_answers: int, limit: int | None, *, kind: str, detail: str
    ) -> NotAsked | AskAgain | None:
        """Find out what a refusal means.

        Args:
            body: The request that was refused.
            num_answers: For how many answers it was.
            limit: Its limit on tokens, if it is not the settings'.
            kind: See :class:`~sinterlm.endpoint.RequestRefused`.
            detail: What the server said.

        Returns:
            None if the reason is not known.
        """
        if kind == "content-filtered":
            return NotAsked(PROMPT_REFUSED, detail)
        if kind == "refused" and self._adapt(body, detail):
            return AskAgain(num_answers, limit)
        room = room_for_an_answer(detail) if limit is None else 0
        if kind == "context-too-long" and room > 0:
            return AskAgain(num_answers, room)
        if kind != "refused":
            return NotAsked(PROMPT_TOO_LONG, detail)
        return AskAgain(1, limit) if num_answers > 1 else None

    def _adapt(self, body: Mapping[str, Any], detail: str) -> bool:
        """Find out what a refusal is about, so that later requests are not refused for it.

        Args:
            body: The request.
            detail: What the server said.

        Returns:
            Whether the request would now be another one.
        """
        messages = body.get("messages") or ({"role": ""},)
        if messages[0]["role"] == "system" and _NO_SYSTEM_ROLE.search(detail):
            if self._has_system_role:
                self._has_system_role = False
                self._on_note(f"takes no system message; it opens the first user turn instead ({detail})")
            return True
        if not _NOT_TAKEN.search(detail) or ("n" in body and _NUMBER_OF_ANSWERS.search(detail)):
            return False
        has_spare_limit = all(name in body for name in LIMITS)
        places = {
            name: found.start()
            for name in _MAY_BE_LEFT_OUT
            if name in body and (name not in LIMITS or has_spare_limit)
            if (found := re.search(rf"\b{name}\b", detail))
        }
        if not places:
            return False
        name = min(places, key=places.__getitem__)  # a server may go on to say which field it takes instead
        if name not in self._without:
            self._without.add(name)
            means = "" if name in LIMITS else f"; answers are drawn with the server's own {name}"
            self._on_note(f"does not take `{name}`{means} ({detail})")
        return True

    def give_most(self, most: int, why: str) -> None:
        """The server gives at most so many answers to one request."""
        if self.most is None or most < self.most:
            self.most = most
            asked = "one by one" if most == 1 else f"at most {most} at once"
            self._on_note(f"does not give as many answers to a request as `n` says; they are asked {asked} ({why})")

    def notice(self, url: str, read: Read) -> None:
        """Notice whether the model behind a URL has changed, and whether answers to one prompt differ."""
        names, name = self._names.setdefault(url, []), read.served_by
        if name and name not in names:
            if names:
                self._on_note(f"{url}: the model is now {name}; answers before came from {names[-1]}")
            names.append(name)
        if self._requests.draws and self._variety.add(read.generations):
            self._on_note(
                f"gave the same answer twice to each of {MAX_REPEATED} prompts: it may not draw answers at random, and "
                "then several samples are worth no more than one"
            )


def room_for_an_answer(detail: str) -> int:
    """Tokens that the context leaves after the prompt, by what a server says; at most 0 if that is not known.

    Some servers refuse a prompt that leaves less room than the limit of an answer; others cut the answer there.

    >>> room_for_an_answer("maximum context length is 4096 tokens and your request has 4000 input tokens")
    96
    """
    context, prompt = _CONTEXT_TOKENS.search(detail), _PROMPT_TOKENS.search(detail)
    return int(context[1]) - int(prompt[prompt.lastindex or 0]) if context and prompt else 0
