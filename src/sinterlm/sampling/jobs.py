"""Answers by jobs: files of many requests that something else answers in its own time, hours or a day later.

A job outlives the command that submits it, so its state is kept outside the process (:class:`KeepsJobs`), and every
item has at most one job that answers it or may still answer it:

    submitting   written before the job is submitted, so that a command that is killed meanwhile leaves a trace; the
                 next one looks for a job of this name, and takes it over or forgets it
    submitted    it runs somewhere, or its results were not read yet
    collected    it is over; ``items`` are those that its results answer

What a job has not answered is put into another job. Results are joined by our own key, never by position.
"""

from __future__ import annotations

import json
import math
import re
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from threading import Event
from typing import IO, Any, Final, NamedTuple, Protocol

from sinterlm.endpoint.replies import parse_json, refusal_kind, said, shown
from sinterlm.errors import InputError, SinterError, TryAgainError
from sinterlm.files import full_disk_said, make_folder
from sinterlm.records import PROMPT_REFUSED, Failure, Usage
from sinterlm.sampling.protocol import Answered, Generation, Item, Job, JobBook
from sinterlm.sampling.served_model import Requests, check_reply
from sinterlm.sampling.server_habits import NotAsked, ServerHabits
from sinterlm.sampling.streamed import sample_streamed
from sinterlm.streams import chunks
from sinterlm.template import TemplateRefusal

SUBMITTING: Final = "submitting"
SUBMITTED: Final = "submitted"
COLLECTED: Final = "collected"

MAX_JOBS = 4
"""How many jobs an item is put into, one after another, before it counts as failed."""
MAX_REFUSED = 5
"""How many requests a server may refuse before its first answer; then it refuses the settings."""
MAX_FILE_BYTES = 200 * 10**6
"""The largest file of requests that servers take."""
LINES_AT_ONCE = 200
"""Results that are handed over at a time."""

Handle = Mapping[str, Any]
"""What a runner needs to find its job again, as JSON."""


class Progress(NamedTuple):
    """How far a job is."""

    is_over: bool
    """Whether nothing more will be answered."""
    num_done: int = 0
    """Requests that are done."""
    ended: str = ""
    """How it ended, as a failure's kind, e.g. ``expired``."""
    problem: str = ""
    """Why another job would end without an answer too; empty if it would not."""
    is_full: bool = False
    """Whether the job was refused because too much is waiting already."""


class Runner(Protocol):
    """Where jobs run: at a provider, or on this machine."""

    most: int
    """Jobs at once."""
    place: str
    """For messages: the server's address, or the program."""

    def submit(self, name: str, requests: IO[bytes], url: str, folder: Path, note: Callable[[Handle], None]) -> Handle:
        """Start the job ``name``.

        Args:
            name: A name that no other job has.
            requests: One JSON object a line.
            url: What they are for, e.g. ``/v1/chat/completions``.
            folder: For files of the job.
            note: Told what to keep already, before the job may have started.

        Raises:
            SinterError: It cannot be started.
        """
        ...

    def find(self, name: str, handle: Handle, folder: Path) -> Handle | None:
        """Look for a job that may have been submitted; if there is none, make sure that it does not start later."""
        ...

    def poll(self, name: str, handle: Handle, folder: Path) -> Progress:
        """Ask how far the job is."""
        ...

    def results(self, name: str, handle: Handle, folder: Path) -> Iterator[bytes]:
        """Yield the lines of a job that is over, in any order."""
        ...

    def close(self) -> None:
        """Release what is held. Jobs at a provider run on."""
        ...


Key = tuple[str, int]
"""An item as jobs know it: the beginning of the prompt's hash, and the sample index."""


@dataclass(slots=True, eq=False)
class _Job:
    name: str
    state: str
    handle: Handle
    known: Mapping[str, Any]
    """What was known of the server when it was submitted: see :attr:`ServerHabits.known`."""
    spans: list[str]
    """The items that it answers, or may still answer, in the form of ``custom_id``."""
    wanted: dict[Key, Item] = field(default_factory=dict)
    """Items of this command that wait for it."""
    num_done: int = 0


def key_of(item: Item) -> Key:
    """The item as jobs know it, whatever ids recipes give to prompts."""
    return item.prompt.content_hash[:40], item.index


def span_of(items: Sequence[Item]) -> str:
    """The ``custom_id`` of a request: fewer than 64 letters, digits and hyphens, which every server takes.

    Args:
        items: Items of one prompt whose indices follow one another.
    """
    return _span([key_of(item) for item in items])


def _span(keys: Sequence[Key]) -> str:
    return f"{keys[0][0]}-{keys[0][1]}-{keys[-1][1]}"


def keys_in(span: object) -> list[Key]:
    """The items of a request, from its ``custom_id``; none if it is not one of ours."""
    matched = _SPAN.fullmatch(span) if isinstance(span, str) else None
    if matched is None:
        return []
    prompt, first, last = matched.groups()
    return [(prompt, index) for index in range(int(first), int(last) + 1)]


_SPAN = re.compile(r"([0-9a-f]{40})-([0-9]{1,6})-([0-9]{1,6})")
_CUSTOM_ID = re.compile(rf'"custom_id"\s*:\s*"({_SPAN.pattern})"')


def is_json(line: bytes) -> bool:
    """Whether a line that no newline ends is whole."""
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


class JobEngine:
    """Answers items by jobs.

    Args:
        requests: How items become requests, and replies become answers.
        runner: Where jobs run.
        chunk: Requests in a job.
        poll_seconds: How often running jobs are looked at.
    """

    def __init__(self, requests: Requests, runner: Runner, *, chunk: int, poll_seconds: float) -> None:
        self._requests = requests
        self._runner = runner
        self._chunk = chunk
        self._poll_seconds = poll_seconds
        self._url = f"/v1{requests.path}"
        self._most = runner.most
        self._notes: deque[str] = deque()
        self._habits = ServerHabits(requests, self._notes.append)
        self._split: dict[Key, str] = {}
        """Items of refused requests for several samples, which are asked alone, and what was said."""
        self._limits: dict[str, int] = {}
        """By the prompt's hash, the limit on an answer's tokens that its length leaves."""
        self._kept: JobBook = {}
        self._folder = Path(gettempdir())
        self._closed = Event()
        self._jobs: list[_Job] = []
        self._job_of: dict[Key, _Job] = {}
        self._again: deque[list[Item]] = deque()
        self._num_jobs: Counter[Key] = Counter()
        self._has_answered = False

    def keep_jobs(self, jobs: JobBook, folder: Path) -> None:
        """See :meth:`~sinterlm.sampling.protocol.KeepsJobs.keep_jobs`."""
        self._kept, self._folder = jobs, folder

    def batches(self, items: Sequence[Item]) -> list[list[Item]]:
        """All items at once; see :meth:`stream`."""
        return [list(items)] if items else []

    def sample(self, batches: Iterable[Sequence[Item]]) -> Iterator[list[Generation]]:
        """Answer batch after batch by :meth:`stream`."""
        return sample_streamed(self, batches)

    def close(self) -> None:
        """Stop waiting for jobs; the next command collects what they answer. May be called from any thread."""
        self._closed.set()
        self._runner.close()

    def stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        """See :meth:`~sinterlm.sampling.protocol.Streams.stream`."""
        try:
            yield from self._stream(items)
        except SinterError:
            if not self._closed.is_set():  # a call that was under way may have been given up
                raise

    def _stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        self._recover()
        supply = self._grouped(self._without_job(items))
        while not self._closed.is_set():
            yield from self._fill(supply)
            running = self._running
            if not running:
                break
            yield self._said()
            is_any_over = False
            for job in running:
                if self._closed.is_set():
                    return
                progress = self._runner.poll(job.name, job.handle, self._folder)
                job.num_done = progress.num_done
                if progress.is_over:
                    is_any_over = True
                    yield from self._collect(job, progress)
            if not is_any_over:
                self._closed.wait(self._poll_seconds)
        if self._notes:
            yield self._said()

    @property
    def _running(self) -> list[_Job]:
        """The jobs whose answers are waited for."""
        return [job for job in self._jobs if job.wanted]

    def _said(self, failures: Sequence[Failure] = ()) -> Answered:
        """What was noticed, and how it goes."""
        running = self._running
        num_requests = sum(len(job.spans) for job in running)
        state = f"{len(running)} jobs, {sum(job.num_done for job in running):,} of {num_requests:,} requests done"
        notes = [self._notes.popleft() for _ in range(len(self._notes))]
        return Answered((), failures, notes=notes, state=state)

    # -- what is kept --------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Take over the jobs of earlier commands, also of one that was killed while it submitted."""
        self._jobs, self._job_of = [], {}
        for name, (state, detail) in list(self._kept.items()):
            job = _Job(name, state, detail["handle"], detail["server"], detail["requests"])
            if state == SUBMITTING:
                found = self._runner.find(name, job.handle, self._folder)
                if found is None:
                    job.state, job.spans = COLLECTED, []
                else:
                    job.state, job.handle = SUBMITTED, found
                self._keep(job)
            if (most := job.known.get("most")) is not None:
                self._habits.most = min(most, self._habits.most or most)
            self._know(job)

    def _know(self, job: _Job) -> None:
        self._jobs.append(job)
        for span in job.spans:
            for key in keys_in(span):
                self._job_of[key] = job

    def _keep(self, job: _Job) -> None:
        self._kept[job.name] = Job(
            job.state, {"handle": dict(job.handle), "server": dict(job.known), "requests": job.spans}
        )

    # -- submitting ----------------------------------------------------------------------------------------------

    def _without_job(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield the items that no job answers; the others wait for theirs."""
        for item in items:
            key = key_of(item)
            job = self._job_of.get(key)
            if job is None:
                yield item
            else:
                job.wanted[key] = item

    def _grouped(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Yield the items of each request: of one prompt, with indices that follow one another."""
        group: list[Item] = []
        for item in items:
            follows = group and (item.prompt.id, item.index) == (group[-1].prompt.id, group[-1].index + 1)
            if group and not (follows and len(group) < (self._habits.most or math.inf)):
                yield group
                group = []
            group.append(item)
        if group:
            yield group

    def _fill(self, supply: Iterator[list[Item]]) -> Iterator[Answered]:
        """Submit jobs until enough run, or nothing is left to ask."""
        make_folder(self._folder)
        while len(self._running) < self._most and not self._closed.is_set():
            with full_disk_said(self._folder), TemporaryFile(dir=self._folder) as file:
                requests: dict[str, list[Item]] = {}
                while len(requests) < self._chunk:
                    items = self._again.popleft() if self._again else next(supply, None)
                    if items is None:
                        break
                    prompt, indices = items[0].prompt, [item.index for item in items]
                    try:
                        body = self._habits.body(prompt, indices, limit=self._limits.get(prompt.content_hash))
                    except TemplateRefusal as error:
                        yield Answered(NotAsked(PROMPT_REFUSED, str(error)).generations(prompt, indices))
                        continue
                    name = span_of(items)
                    request = {"custom_id": name, "method": "POST", "url": self._url, "body": body}
                    line = json.dumps(request, allow_nan=False).encode() + b"\n"
                    if name in requests or (requests and file.tell() + len(line) > MAX_FILE_BYTES):
                        self._again.appendleft(items)
                        break
                    requests[name] = items
                    file.write(line)
                if not requests:
                    return
                file.flush()
                self._submit(requests, file)

    def _submit(self, requests: Mapping[str, Sequence[Item]], file: IO[bytes]) -> None:
        job = _Job(uuid.uuid4().hex, SUBMITTING, {}, self._habits.known, list(requests))
        job.wanted = {key_of(item): item for items in requests.values() for item in items}
        self._keep(job)

        def note(handle: Handle) -> None:
            job.handle = handle
            self._keep(job)

        job.handle = self._runner.submit(job.name, file, self._url, self._folder, note)
        job.state = SUBMITTED
        self._keep(job)
        self._know(job)

    # -- collecting ----------------------------------------------------------------------------------------------

    def _collect(self, job: _Job, progress: Progress) -> Iterator[Answered]:
        """Give the answers of a job that is over, and ask again for what it has not answered.

        A kill may lose the answers before they are stored. The job is therefore kept as the one that answers them: the
        next command reads its results again.
        """
        reading = _Reading(
            job, self._requests, self._habits, self._runner.place, limits=self._limits, split=self._split
        )
        for chunk in chunks(self._runner.results(job.name, job.handle, self._folder), LINES_AT_ONCE):
            yield reading.read(chunk)
        missing, job.wanted = job.wanted, {}
        for span in job.spans:
            for key in keys_in(span):
                if self._job_of.get(key) is job:
                    del self._job_of[key]
        job.spans, job.state, job.known = reading.answered, COLLECTED, self._habits.known
        for span in job.spans:
            self._job_of.update(dict.fromkeys(keys_in(span), job))
        self._keep(job)
        self._limits |= reading.limits
        self._split |= reading.to_split
        self._has_answered |= bool(reading.answered)
        if not reading.answered:
            self._check_failed(progress, reading)
        if missing:
            if progress.ended:
                self._notes.append(f"a job ended as {progress.ended} before all was answered; the rest is asked again")
            yield self._ask_again(missing, reading, progress)

    def _check_failed(self, progress: Progress, reading: _Reading) -> None:
        """Decide what a job without any answer means.

        Raises:
            SinterError: Other jobs would fail as well.
        """
        if len(reading.refused) >= MAX_REFUSED and not self._has_answered:
            raise InputError(
                f"{self._runner.place}: all requests of a job are refused ({reading.refused[0]}); check the model's "
                "name and settings"
            )
        if not progress.problem:
            return
        if not progress.is_full:
            raise InputError(progress.problem)
        if not self._running:
            raise TryAgainError(progress.problem)
        self._most = len(self._running)

    def _ask_again(self, missing: Mapping[Key, Item], reading: _Reading, progress: Progress) -> Answered:
        failures: list[Failure] = []
        again: list[Item] = []
        for key, item in missing.items():
            self._num_jobs[key] += not progress.is_full
            if self._num_jobs[key] >= MAX_JOBS:
                kind, detail = reading.reasons.get(key, (progress.ended or "not-answered", ""))
                failures.append(Failure(item.prompt.id, item.index, kind, detail))
            elif key in reading.to_split:
                self._again.append([item])
            else:
                again.append(item)
        self._again.extend(self._grouped(again))
        return self._said(failures)


class _Reading:
    """The results of one job, as far as they were read.

    Args:
        job: Whatever is answered no longer waits for it.
        requests: Reads replies.
        habits: Told what is found out about the server.
        place: For messages.
        limits: The limits of the job's requests on tokens, by the prompt's hash.
        split: Items that are asked alone because they were refused together, and what was said.
    """

    def __init__(
        self,
        job: _Job,
        requests: Requests,
        habits: ServerHabits,
        place: str,
        *,
        limits: Mapping[str, int],
        split: Mapping[Key, str],
    ) -> None:
        self._wanted = job.wanted
        self._requests = requests
        self._habits = habits
        self._place = place
        self._asked_limits = limits
        self._asked_split = split
        self._asked = ServerHabits(requests, lambda note: None, job.known)
        self.answered: list[str] = []
        """The items that were answered, in the form of ``custom_id``, whether this command wants them or not."""
        self.to_split: dict[Key, str] = {}
        """Items of refused requests for several samples, each of which may be taken alone, and what was said."""
        self.limits: dict[str, int] = {}
        """New limits on an answer's tokens."""
        self.reasons: dict[Key, tuple[str, str]] = {}
        """Why items were not answered: kind and detail."""
        self.refused: list[str] = []
        """What was said of requests that were refused for a reason that is not known."""

    def read(self, lines: Iterable[bytes]) -> Answered:
        """Read lines of the results."""
        parts = [self._read_line(line) for line in lines]
        return Answered(
            [generation for part in parts for generation in part.generations],
            [failure for part in parts for failure in part.failures],
            sum((part.usage for part in parts), Usage()),
        )

    def _read_line(self, line: bytes) -> Answered:
        try:
            value = parse_json(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            found = _CUSTOM_ID.search(line.decode(errors="replace"))
            return self._fail(keys_in(found and found[1]), "not-a-reply", shown(line))
        keys = keys_in(value.get("custom_id"))
        response = value.get("response")
        response = response if isinstance(response, dict) else {}
        status, body = response.get("status_code"), response.get("body")
        if status == 200:
            return self._read_reply(keys, body)
        error = json.dumps(body or value.get("error") or response).encode()
        if not isinstance(status, int) or status in (408, 409, 429) or not 400 <= status < 500:
            kind = "server-error" if isinstance(status, int) else "not-answered"
            self.reasons.update(dict.fromkeys(keys, (kind, said(status or 0, error))))
            return Answered(())
        return self._read_refusal(keys, status, error)

    def _read_reply(self, keys: Sequence[Key], body: Any) -> Answered:
        """The answers among a reply's that are waited for."""
        wanted = {key: self._wanted.pop(key) for key in keys if key in self._wanted}
        if not wanted:  # another recipe's, or given twice
            self.answered += [_span(keys)] if keys else []
            return Answered(())
        prompt = next(iter(wanted.values())).prompt
        try:
            check_reply(body)
        except ValueError:
            self._wanted |= wanted
            return self._fail(keys, "not-a-reply", shown(json.dumps(body).encode()))
        read = self._requests.read(body, prompt, [index for _, index in keys])
        self._habits.notice(self._place, read)
        num_read = len(read.generations)
        self.answered.append(_span(keys[:num_read]))
        if left := {key: item for key, item in wanted.items() if key in keys[num_read:]}:
            self._wanted |= left
            self._habits.give_most(num_read, f"gives {num_read} of {len(keys)} answers")
        elif len(keys) == 1 and keys[0] in self._asked_split:
            self._habits.give_most(1, self._asked_split[keys[0]])
        indices = {index for _, index in wanted}
        generations = [generation for generation in read.generations if generation.index in indices]
        return Answered(generations, usage=read.usage + Usage(1))

    def _read_refusal(self, keys: Sequence[Key], status: int, error: bytes) -> Answered:
        """What a refused request means for the items that wait for it."""
        items = [self._wanted[key] for key in keys if key in self._wanted]
        if not items:
            return Answered(())
        prompt, detail = items[0].prompt, said(status, error)
        limit = self._asked_limits.get(prompt.content_hash)
        body = self._asked.body(prompt, [index for _, index in keys], limit=limit)
        kind = refusal_kind(status, error)
        met = self._habits.meet_refusal(body, len(keys), limit, kind=kind, detail=detail)
        if isinstance(met, NotAsked):
            for key in keys:
                self._wanted.pop(key, None)
            self.answered.append(_span(keys))
            return Answered(met.generations(prompt, [item.index for item in items]), usage=Usage(1))
        if met is None:
            self.refused.append(detail)
            return self._fail(keys, kind, detail)
        if met.limit is not None:
            self.limits[prompt.content_hash] = met.limit
        if met.most < len(keys):
            self.to_split.update(dict.fromkeys(keys, detail))
        self.reasons.update(dict.fromkeys(keys, (kind, detail)))
        return Answered((), usage=Usage(1))

    def _fail(self, keys: Iterable[Key], kind: str, detail: str) -> Answered:
        """Items that failed for good; the next command asks for them again."""
        items = [self._wanted.pop(key) for key in keys if key in self._wanted]
        return Answered((), [Failure(item.prompt.id, item.index, kind, detail) for item in items], Usage(1))
