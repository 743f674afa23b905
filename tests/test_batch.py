"""The engine `batch` with a real server of batch jobs, and with a program like `vllm run-batch`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import TypeAdapter, ValidationError

from sinterlm.errors import CredentialsError, InputError, TryAgainError
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Message, Prompt, SamplingSettings, Usage
from sinterlm.sampling import provider_jobs
from sinterlm.sampling.batch import BatchSource
from sinterlm.sampling.engines import Source
from sinterlm.sampling.jobs import COLLECTED, MAX_JOBS, SUBMITTED, SUBMITTING, JobEngine, keys_in, span_of
from sinterlm.sampling.protocol import Answered, Item, Job
from sinterlm.sampling.served_model import seed_of
from tests.batch_server import BatchServer, Json, line, refusal, reply, serve_batches

SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3)


@pytest.fixture
def server() -> Iterator[BatchServer]:
    with serve_batches(BatchServer()) as server:
        yield server


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider_jobs, "FIRST_BACKOFF_SECONDS", 0.01)


class Kept(dict[str, Job]):
    """Jobs as the store keeps them: as JSON."""

    def items(self) -> Any:
        """The first job last: a store has them in any order."""
        return reversed(super().items())

    def __setitem__(self, name: str, job: Job) -> None:
        super().__setitem__(name, Job(job.state, json.loads(json.dumps(job.detail))))


def source(**keys: Any) -> BatchSource:
    found = TypeAdapter[Any](Source).validate_python({"engine": "batch", "model": "m"} | keys)
    assert isinstance(found, BatchSource)
    return found


@contextmanager
def engine(server: BatchServer, kept: Kept, folder: Path, **keys: Any) -> Iterator[JobEngine]:
    built = source(**{"base_url": server.url, "poll_seconds": 0.01, "max_retries": 2, **keys}).build(settings=SETTINGS)
    built.keep_jobs(kept, folder)
    try:
        yield built
    finally:
        built.close()


def items(count: int, num_samples: int = 1, start: int = 0) -> list[Item]:
    prompts = [Prompt(f"p{n}", (Message("user", f"What is {n} plus 1?"),)) for n in range(start, start + count)]
    return [Item(prompt, index) for prompt in prompts for index in range(num_samples)]


def joined(parts: Iterable[Answered]) -> Answered:
    parts = list(parts)
    return Answered(
        sorted((one for part in parts for one in part.generations), key=lambda one: (one.prompt_id, one.index)),
        [failure for part in parts for failure in part.failures],
        sum((part.usage for part in parts), Usage()),
        [note for part in parts for note in part.notes],
    )


def ask(server: BatchServer, kept: Kept, folder: Path, asked: Sequence[Item], **keys: Any) -> Answered:
    with engine(server, kept, folder, **keys) as built:
        return joined(built.stream(asked))


def contents(answered: Answered) -> dict[tuple[str, int], str]:
    return {(one.prompt_id, one.index): one.content for one in answered.generations}


def expected(asked: Sequence[Item]) -> dict[tuple[str, int], str]:
    """What :func:`reply` says, if all samples of a prompt are asked at once from the first on."""
    return {
        (prompt.id, index): f"{prompt.messages[0].content} #{index} {seed_of(3, prompt.content_hash, 0)}"
        for prompt, index in asked
    }


# --- from items to jobs and back --------------------------------------------------------------------------------------


def test_items_go_through_jobs_of_many_requests(server: BatchServer, tmp_path: Path) -> None:
    kept, asked = Kept(), items(7, 3)
    answered = ask(server, kept, tmp_path, asked, chunk=3)
    assert contents(answered) == expected(asked)
    assert answered.usage == Usage(7, 70, 0, 7 * 12)
    assert [len(server.files[batch["input_file_id"]].splitlines()) for batch in server.batches.values()] == [3, 3, 1]
    first = server.requests[0]
    assert first["method"] == "POST"
    assert first["url"] == "/v1/chat/completions"
    assert first["body"]["n"] == 3
    assert first["custom_id"] == span_of(asked[:3])
    assert len(first["custom_id"]) <= 64
    assert server.batches["batch_0"]["completion_window"] == "24h"
    assert {job.state for job in kept.values()} == {COLLECTED}
    assert {one.served_by for one in answered.generations} == {"m-2026-01-01"}


def test_a_base_model_is_asked_by_a_text(server: BatchServer, tmp_path: Path) -> None:
    (tmp_path / "shots.yaml").write_text(
        'template: "Q: {question}\\nA: {answer}\\n\\n"\nexamples: [{question: "Hot?", answer: cold}]\n'
    )
    prompt = {"few_shot": tmp_path / "shots.yaml"}
    answered = ask(server, Kept(), tmp_path, items(2), protocol="completions", prompt=prompt)
    assert [request["url"] for request in server.requests] == ["/v1/completions"] * 2
    assert answered.generations[0].content.startswith("Q: Hot?")


def test_what_was_answered_is_asked_by_nobody_again(server: BatchServer, tmp_path: Path) -> None:
    """A kill has lost answers before they were written: the results are read again, and nothing is paid again."""
    kept, asked = Kept(), items(5, 2)
    first = ask(server, kept, tmp_path, asked, chunk=2)
    again = ask(server, kept, tmp_path, asked[3:], chunk=2)
    assert contents(again) == {
        key: text for key, text in contents(first).items() if key not in {("p0", 0), ("p0", 1), ("p1", 0)}
    }
    assert len(server.batches) == 3
    assert set(server.answered.values()) == {1}


def test_more_samples_and_other_prompts_take_new_jobs_only_for_themselves(server: BatchServer, tmp_path: Path) -> None:
    kept = Kept()
    ask(server, kept, tmp_path, items(3, 2))
    more = ask(server, kept, tmp_path, items(4, 4))
    assert len(more.generations) == 16
    assert server.paid == 16
    assert [len(keys_in(request["custom_id"])) for request in server.requests] == [2, 2, 2, 2, 2, 2, 4]


def test_the_next_items_are_taken_only_when_there_is_room(server: BatchServer, tmp_path: Path) -> None:
    server.polls = 3
    taken: list[str] = []

    def supply() -> Iterator[Item]:
        for item in items(10):
            taken.append(item.prompt.id)
            yield item

    with engine(server, Kept(), tmp_path, chunk=2, concurrency=2) as built:
        parts = built.stream(supply())
        assert next(parts).state == "2 jobs, 0 of 4 requests done"
        assert len(taken) == 5  # one is looked at to know that the prompt before is complete
        assert len(joined(parts).generations) == 10


def test_files_stay_below_the_largest_size(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinterlm.sampling.jobs.MAX_FILE_BYTES", 700)
    asked = items(5)
    assert contents(ask(server, Kept(), tmp_path, asked)) == expected(asked)
    assert len(server.batches) == 3
    assert all(len(server.files[batch["input_file_id"]]) <= 700 for batch in server.batches.values())


# --- what servers do --------------------------------------------------------------------------------------------------


def test_what_expired_is_asked_again(server: BatchServer, tmp_path: Path) -> None:
    def work(request: Json) -> Json | None:
        if len(server.batches) == 1 and int(request["custom_id"][0], 16) % 2:
            error = {"code": "batch_expired", "message": "could not be executed before the window expired"}
            return {"custom_id": request["custom_id"], "response": None, "error": error}
        return reply(request)

    asked = items(20, 2)
    server.work, server.status = work, "expired"
    answered = ask(server, Kept(), tmp_path, asked)
    assert contents(answered) == expected(asked)
    assert not answered.failures
    assert len(server.batches) == 2
    assert server.paid == 40
    assert answered.notes == ["a job ended as expired before all was answered; the rest is asked again"]


def test_a_job_without_results_is_given_up_after_some_tries(server: BatchServer, tmp_path: Path) -> None:
    server.work, server.status = lambda request: None, "cancelled"
    answered = ask(server, Kept(), tmp_path, items(2))
    assert len(server.batches) == MAX_JOBS
    assert [(failure.prompt_id, failure.kind) for failure in answered.failures] == [
        ("p0", "cancelled"),
        ("p1", "cancelled"),
    ]


def test_one_odd_line_is_one_failed_item(server: BatchServer, tmp_path: Path) -> None:
    asked = items(5)
    odd: dict[str, Callable[[Json], Json | str | None]] = {
        "p0": lambda request: json.dumps(reply(request))[:-40],
        "p1": lambda request: line(request, 200, {"choices": []}),
        "p2": lambda request: refusal(request, "the model is in a bad mood"),
        "p3": lambda request: line(request, 200, "<html>"),
    }
    by_span = {span_of([item]): odd[item.prompt.id] for item in asked[:4]}
    server.work = lambda request: by_span.get(request["custom_id"], reply)(request)
    kept = Kept()
    answered = ask(server, kept, tmp_path, asked)
    assert list(contents(answered)) == [("p4", 0)]
    kinds = {failure.prompt_id: failure.kind for failure in answered.failures}
    assert kinds == {"p0": "not-a-reply", "p1": "not-a-reply", "p2": "refused", "p3": "not-a-reply"}
    server.work = reply
    assert contents(ask(server, kept, tmp_path, asked[:4])) == expected(asked[:4])


def test_failures_of_the_server_are_asked_again(server: BatchServer, tmp_path: Path) -> None:
    server.work = lambda request: reply(request) if len(server.batches) > 1 else line(request, 503, {"error": "busy"})
    asked = items(3, 2)
    assert contents(ask(server, Kept(), tmp_path, asked)) == expected(asked)
    assert server.paid == 6


@pytest.mark.parametrize("how", ["cut", "refused"])
def test_samples_that_n_does_not_give_are_asked_one_by_one(server: BatchServer, tmp_path: Path, how: str) -> None:
    def work(request: Json) -> Json:
        if request["body"].get("n", 1) == 1:
            return reply(request)
        return reply(request, texts=["only one"]) if how == "cut" else refusal(request, "`n` must be 1")

    server.work, kept = work, Kept()
    answered = ask(server, kept, tmp_path, items(3, 3))
    assert len(answered.generations) == 9
    assert set(server.answered.values()) == {1}
    before = len(server.requests)
    assert len(ask(server, kept, tmp_path, items(4, 3)).generations) == 12, "what was known is read again"
    assert len(server.requests) - before == 3


def test_a_field_that_the_server_does_not_take_is_left_out(server: BatchServer, tmp_path: Path) -> None:
    def work(request: Json) -> Json:
        message = "Unsupported parameter: 'max_tokens' is not supported with this model."
        return refusal(request, message) if "max_tokens" in request["body"] else reply(request)

    server.work, asked = work, items(8, 2)
    answered = ask(server, Kept(), tmp_path, asked, chunk=4)
    assert contents(answered) == expected(asked)
    assert len([note for note in answered.notes if "max_tokens" in note]) == 1


def test_a_prompt_that_is_too_long_is_not_asked_again(server: BatchServer, tmp_path: Path) -> None:
    server.work = lambda request: refusal(request, "the context is too long: 9000 input tokens")
    kept = Kept()
    answered = ask(server, kept, tmp_path, items(1, 2))
    assert [(one.finish_reason, one.num_prompt_tokens) for one in answered.generations] == [
        ("prompt-too-long", 9000)
    ] * 2


def test_a_server_that_refuses_everything_is_asked_once(server: BatchServer, tmp_path: Path) -> None:
    server.work = lambda request: refusal(request, "the model `m` does not exist", 404)
    with pytest.raises(InputError, match=r"does not exist.*check the model's name"):
        ask(server, Kept(), tmp_path, items(20), chunk=10)


def test_a_job_that_the_server_refuses_says_why(server: BatchServer, tmp_path: Path) -> None:
    server.status, server.errors = "failed", [{"code": "invalid_json_line", "message": "Line 1 is bad"}]
    kept = Kept()
    with pytest.raises(InputError, match="invalid_json_line: Line 1 is bad"):
        ask(server, kept, tmp_path, items(2))
    server.status = "completed"
    assert len(ask(server, kept, tmp_path, items(2)).generations) == 2


def test_a_full_queue_is_waited_for(server: BatchServer, tmp_path: Path) -> None:
    """Providers bound the tokens that wait. A job beyond that fails, and is submitted again when another has ended."""
    create = server.create

    def refuse_third(body: Json) -> tuple[int, Json]:
        status, batch = create(body)
        if sum(other["status"] in ("validating", "in_progress") for other in server.batches.values()) > 2:
            message = "Enqueued token limit reached for m"
            batch |= {"status": "failed", "errors": {"data": [{"code": "token_limit_exceeded", "message": message}]}}
        return status, batch

    server.create = refuse_third  # type: ignore[method-assign]
    server.polls, asked = 5, items(8)
    answered = ask(server, Kept(), tmp_path, asked, chunk=2)
    assert contents(answered) == expected(asked)
    assert server.paid == 8
    assert not answered.failures


# --- calls that fail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forgets", ["metadata", "input_file_id"])
def test_a_job_that_was_created_although_the_call_failed_is_not_created_again(
    server: BatchServer, tmp_path: Path, forgets: str
) -> None:
    """The connection breaks after the server has created the job, and jobs of other programs are newer."""
    broken: list[str] = []

    def after(call: str) -> bool:
        if call != "POST /batches" or broken:
            return False
        broken.append(call)
        server.hidden = forgets
        for _ in range(5):
            server.create({"input_file_id": "other", "endpoint": "/v1/chat/completions", "metadata": None})
        return True

    server.files["other"] = b'{"url": "/v1/chat/completions", "custom_id": "x", "body": {}}\n'
    server.after = after
    asked = items(3)
    assert contents(ask(server, Kept(), tmp_path, asked)) == expected(asked)
    assert server.calls.count("POST /batches") == 1
    assert server.paid == 3


def test_calls_are_repeated_and_resets_survived(server: BatchServer, tmp_path: Path) -> None:
    seen: set[str] = set()

    def before(call: str) -> int | None:
        if call in seen:
            return None
        seen.add(call)
        return 503

    server.before, asked = before, items(3)
    assert contents(ask(server, Kept(), tmp_path, asked)) == expected(asked)
    assert server.paid == 3
    assert seen >= {"POST /files", "POST /batches", "GET /batches", "GET /files/content"}


def test_results_that_are_cut_are_downloaded_again(server: BatchServer, tmp_path: Path) -> None:
    whole: dict[str, bytes] = {}
    finish = server.finish

    def cut(batch: Json) -> None:
        finish(batch)
        name = batch["output_file_id"]
        whole[name] = server.files[name]
        server.files[name] = whole[name][:-300]

    def before(call: str) -> None:
        if call == "GET /files/content" and server.calls.count(call) == 2:
            server.files.update(whole)

    server.finish, server.before = cut, before  # type: ignore[method-assign]
    asked = items(4)
    assert contents(ask(server, Kept(), tmp_path, asked)) == expected(asked)
    assert server.calls.count("GET /files/content") == 2
    assert len(server.batches) == 1


def test_a_job_that_the_server_does_not_know_is_refused_or_asked_again(server: BatchServer, tmp_path: Path) -> None:
    kept, asked = Kept(), items(2)
    server.polls = 100
    with engine(server, kept, tmp_path) as built:
        next(iter(built.stream(asked)))
    server.batches.clear()
    server.polls = 1
    with pytest.raises(InputError, match="lost_jobs: ask-again"):
        ask(server, kept, tmp_path, asked)
    assert contents(ask(server, kept, tmp_path, asked, lost_jobs="ask-again")) == expected(asked)


def test_a_password_in_netrc_does_not_take_the_place_of_the_key(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login someone password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("VENDOR_KEY", "sk-canary")
    ask(server, Kept(), tmp_path, items(1), api_key_env="VENDOR_KEY")
    assert server.keys == {"Bearer sk-canary"}


def test_redirects_are_not_followed_and_keys_stay_secret(
    server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VENDOR_KEY", "sk-canary")
    server.before = lambda call: 302
    with serve_batches(BatchServer()) as elsewhere:
        server.location = f"{elsewhere.url}/files?token=secret"
        with pytest.raises(InputError, match=rf"redirects to '{elsewhere.url}/files' \(code 302\)"):
            ask(server, Kept(), tmp_path, items(1), api_key_env="VENDOR_KEY")
    assert not elsewhere.calls
    server.before = lambda call: 401
    kept = Kept()
    with pytest.raises(CredentialsError, match="VENDOR_KEY") as error:
        ask(server, kept, tmp_path, items(1), api_key_env="VENDOR_KEY")
    assert server.keys == {"Bearer sk-canary"}
    assert "sk-canary" not in str(error.value) + json.dumps(kept)
    monkeypatch.delenv("VENDOR_KEY")
    with pytest.raises(CredentialsError):
        source(base_url=server.url, api_key_env="VENDOR_KEY").check("s")


def test_closing_ends_the_wait(server: BatchServer, tmp_path: Path) -> None:
    server.polls = 10**6
    kept, asked = Kept(), items(2)
    with engine(server, kept, tmp_path, poll_seconds=1000) as built:
        parts = built.stream(asked)
        next(parts)
        built.close()
        assert list(parts) == []
    server.polls = 1
    server.batches["batch_0"]["left"] = 0
    assert contents(ask(server, kept, tmp_path, asked)) == expected(asked)
    assert len(server.batches) == 1


# --- commands that end in the middle ----------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def killed_at(kept: Kept, state: str) -> Kept:
    """Jobs that are kept until one reaches ``state``, which is not kept any more."""

    class Ending(Kept):
        def __setitem__(self, name: str, job: Job) -> None:
            if job.state == state:
                raise Killed
            kept[name] = job

    return Ending()


@pytest.mark.parametrize("state", [SUBMITTING, SUBMITTED, COLLECTED])
def test_a_kill_before_a_state_is_kept_pays_nothing_twice(server: BatchServer, tmp_path: Path, state: str) -> None:
    kept, asked = Kept(), items(4, 2)
    with pytest.raises(Killed):
        ask(server, killed_at(kept, state), tmp_path, asked, chunk=3)
    assert contents(ask(server, kept, tmp_path, asked, chunk=3)) == expected(asked)
    assert set(server.answered.values()) == {1}
    assert len(server.batches) == 2


def test_a_job_that_never_reached_the_server_is_forgotten(server: BatchServer, tmp_path: Path) -> None:
    kept, asked = Kept(), items(4)
    server.before = lambda call: 500 if call == "POST /batches" else None
    with pytest.raises(TryAgainError, match="submitting a job failed, though tried 3 times"):
        ask(server, kept, tmp_path, asked)
    assert [job.state for job in kept.values()] == [SUBMITTING]
    server.before = lambda call: None
    assert contents(ask(server, kept, tmp_path, asked)) == expected(asked)
    assert list(server.files) == ["file_0", "file_output_batch_0"], "the file of the job that never was is removed"
    assert len(server.batches) == 1


# --- a program of this machine ----------------------------------------------------------------------------------------


def program(*arguments: str) -> list[str]:
    """The command line of `vllm run-batch`, for its stand-in."""
    return [sys.executable, "-m", "tests.run_batch", "-i", "{input}", "-o", "{output}", "--model", "m", *arguments]


def ask_program(command: Sequence[str], kept: Kept, folder: Path, asked: Sequence[Item], **keys: Any) -> Answered:
    built = source(command=list(command), poll_seconds=0.02, **keys).build(settings=SETTINGS)
    built.keep_jobs(kept, folder)
    try:
        return joined(built.stream(asked))
    finally:
        built.close()


def num_asked(folder: Path) -> Counter[str]:
    """How often the stand-in was asked each request."""
    return Counter(
        text for log in folder.glob("*.log") for text in log.read_text().splitlines() if text.startswith("asked")
    )


def test_a_program_works_off_files(tmp_path: Path) -> None:
    asked = items(5, 2)
    answered = ask_program(program(), Kept(), tmp_path, asked, chunk=3)
    assert contents(answered) == expected(asked)
    assert len(list(tmp_path.glob("*.results.jsonl"))) == 2
    assert not list(tmp_path.glob("*.requests.jsonl"))


@pytest.mark.parametrize("stops", ["--die-after=2", "--cut-after=2"])
def test_what_a_killed_program_has_written_is_kept(tmp_path: Path, stops: str) -> None:
    """It ends by itself in the middle, the second time with half a line."""
    once = tmp_path / "once"
    asked = items(5)
    answered = ask_program(program(stops, f"--once={once}"), Kept(), tmp_path, asked)
    assert contents(answered) == expected(asked)
    assert not answered.failures
    assert max(num_asked(tmp_path).values()) == (1 if stops == "--die-after=2" else 2)


def test_a_program_that_does_nothing_is_an_error_with_its_last_lines(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"(?s)exit code 3.*\| no such model"):
        ask_program(program("--fail"), Kept(), tmp_path, items(2))
    with pytest.raises(InputError, match="cannot be started"):
        ask_program([str(tmp_path), "{input}", "{output}"], Kept(), tmp_path, items(2))
    with pytest.raises(InputError, match="no such program"):
        source(command=["no-such-program", "{input}", "{output}"]).check("s")


def test_a_program_is_waited_for_by_the_next_command(tmp_path: Path) -> None:
    """The command was killed right after it started the program."""
    kept, asked = Kept(), items(4)
    killed = source(command=program("--seconds=0.5")).build(settings=SETTINGS)
    killed.keep_jobs(killed_at(kept, SUBMITTED), tmp_path)
    with pytest.raises(Killed):
        list(killed.stream(asked))
    assert [job.state for job in kept.values()] == [SUBMITTING]
    assert contents(ask_program(program(), kept, tmp_path, asked)) == expected(asked)
    assert set(num_asked(tmp_path).values()) == {1}
    assert len(list(tmp_path.glob("*.lock"))) == 1, "no second program was started"
    killed.close()


def test_closing_ends_the_program(tmp_path: Path) -> None:
    built = source(command=program("--seconds=100")).build(settings=SETTINGS)
    built.keep_jobs(Kept(), tmp_path)
    next(built.stream(items(2)))
    (lock,) = tmp_path.glob("*.lock")
    process = psutil.Process(int(lock.read_text()))
    built.close()
    process.wait(5)


# --- settings ---------------------------------------------------------------------------------------------------------


def test_answers_have_the_names_that_the_endpoint_gives_them() -> None:
    endpoint = TypeAdapter[Any](Source).validate_python({"engine": "endpoint", "model": "m", "base_url": "http://a/v1"})
    jobs = source(base_url="http://a/v1", chunk=7, concurrency=3, completion_window="1h", price={"input": 1.0})
    assert jobs.identity(settings=SETTINGS) == endpoint.identity(settings=SETTINGS)
    command = source(command=["run", "{input}", "{output}"])
    assert command.identity(settings=SETTINGS) not in (None, jobs.identity(settings=SETTINGS))


def test_jobs_cost_less_and_a_plan_says_so() -> None:
    usage = Usage(10, 1_000_000, 0, 500_000)
    priced = source(price={"input": 2.0, "output": 8.0}, batch_discount=0.25)
    assert priced.money(usage) == pytest.approx(4.5)
    assert priced.compare_cost(usage) == (
        "asked by jobs, each within 24h, for 4.50; asked directly and at once, it would cost 6.00"
    )
    assert source().money(usage) is None
    assert source().compare_cost(usage).endswith("for 50% less than if asked directly and at once")


def test_a_plan_compares_jobs_with_asking_directly(tmp_path: Path) -> None:
    rows = [{"id": f"p{n}", "prompt": f"How much is {n}", "answers": ["1"]} for n in range(6)]
    (tmp_path / "questions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "recipe.yaml").write_text(
        "output: run\n"
        "prompts: {path: questions.jsonl, split: {held_out: 0, sft: 6, preference: rest}}\n"
        "target: {model: someone/small-1b}\n"
        "sources: {jobs: {engine: batch, model: m, price: {output: 1000.0}, sampling: {max_new_tokens: 100}}}\n"
        "scorer: {kind: exact-match}\n"
        "sft: {select: {kind: best-of-sources}, train: {max_steps: 1}}\n"
    )
    plan = plan_fusion(Fusion(load_recipe(tmp_path / "recipe.yaml").recipe))
    assert (
        "jobs: asked by jobs, each within 24h, for 1.50; asked directly and at once, it would cost 3.00" in plan.notes
    )
    (model,) = next(stage for stage in plan.stages if stage.name == "sample-sources").models
    assert model.money == pytest.approx(6 * 5 * 100 / 1e6 * 1000 / 2)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"command": ["vllm", "{input}"]}, "must contain {output}"),
        ({"command": ["a", "{input}", "{output}"], "base_url": "http://a/v1"}, "has no meaning beside `command`"),
    ],
)
def test_keys_that_do_not_go_together(keys: Json, said: str) -> None:
    assert said in " ".join(problem.text for problem in source(**keys).find_problems())


def test_a_chunk_is_no_larger_than_providers_take() -> None:
    with pytest.raises(ValidationError):
        source(chunk=50_001)
