"""Models are asked side by side: nothing is asked twice, nothing that came is lost, and one failure stops no other."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from sinterlm.errors import BudgetError, CredentialsError, ToleranceError
from sinterlm.pipeline import ask as asking
from sinterlm.pipeline.ask import ask
from sinterlm.pipeline.fusion import Participant, SamplingRequest
from sinterlm.pipeline.halt import Halt
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.stage import RunContext
from sinterlm.records import Failure, Message, Prompt, SamplingSettings, Spent, Usage
from sinterlm.sampling.protocol import Answered, Generation, Item
from sinterlm.sampling.settings import EngineSettings
from sinterlm.store import Store

PROMPTS = [Prompt(f"p{n}", (Message("user", f"What is {n}?"),)) for n in range(3)]
STAGE = "sample-sources"


class Scripted(EngineSettings):
    """A source whose engine a test writes."""

    engine: Literal["scripted"] = "scripted"
    elsewhere: bool = True
    script: Any
    tolerated: float = 0.0

    @property
    def runs_elsewhere(self) -> bool:  # type: ignore[override]
        return self.elsewhere

    @property
    def tolerated_failed(self) -> float:
        return self.tolerated

    def money(self, usage: Usage) -> float:
        return usage.new_tokens / 100

    def build(self, **_: Any) -> Any:
        return Engine(self.script)

    def identity(self, **_: Any) -> str:
        return "identity"


class Engine:
    def __init__(self, script: Callable[[Engine, Iterable[Item]], Iterator[Answered]]) -> None:
        self.script, self.closed = script, threading.Event()

    def stream(self, items: Iterable[Item]) -> Iterator[Answered]:
        return self.script(self, items)

    def close(self) -> None:
        self.closed.set()


def generation(item: Item, text: str = "It is.") -> Generation:
    return Generation(item.prompt.id, item.index, text, "stop", 5, 2, reasoning="So.", served_by="m (fp)")


def answer(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
    for item in items:
        yield Answered([generation(item)], usage=Usage(1, 5, 1, 2), notes=["n is ignored"])


class Noted(SilentReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def say(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Any]:
        self.notes.append(f"{label}: {total} {unit}")
        yield SimpleNamespace(advance=lambda count, note="": self.notes.append(f"{count} {note}"))


class World:
    """A store, and a run in it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.halt = Store(folder / "store.sqlite"), Halt()
        fusion: Any = SimpleNamespace(run_name="run")
        self.reporter = Noted()
        self.run = RunContext(fusion, self.store, self.reporter, halt=self.halt)

    def ask(self, prompts: Sequence[Prompt] = PROMPTS, num_samples: int = 2, **scripts: Any) -> list[asking.Asked]:
        requests = [
            SamplingRequest(
                Participant(name, script if isinstance(script, Scripted) else Scripted(script=script)),
                SamplingSettings(),
                num_samples,
            )
            for name, script in scripts.items()
        ]
        return ask(self.run, STAGE, requests, prompts)

    def answers(self) -> dict[tuple[str, int], str]:
        lists = self.store.responses("identity", PROMPTS, source="a", num_samples=9)
        return {(each.prompt_id, each.index): each.content for responses in lists for each in responses}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.store.close()


def test_every_answer_is_written_with_what_it_cost(world: World) -> None:
    (result,) = world.ask(a=answer)
    assert (result.num_new, result.num_items, result.num_failed, result.tokens) == (6, 6, 0, 12)
    assert len(world.answers()) == 6
    (spent,) = world.store.ledger("run")
    assert spent == Spent(STAGE, "a", Usage(6, 30, 6, 12), 6, spent.money, spent.seconds)
    assert spent.money == pytest.approx(0.12)
    assert [note[:3] for note in world.store.notes("run")] == [(STAGE, "a", "n is ignored")]
    (found,) = next(world.store.responses("identity", PROMPTS[:1], source="a", num_samples=1))
    assert (found.reasoning, found.served_by) == ("So.", "m (fp)")


def test_a_live_view_shows_what_is_done_failed_in_flight_and_spent(world: World) -> None:
    def show(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        first, *_ = items
        usage = Usage(2, 5, 0, 250)
        yield Answered(
            [generation(first)], [Failure("p1", 0, "reset")], usage, ["n is ignored"], "3 in flight, limit 4"
        )

    world.ask(num_samples=1, a=Scripted(script=show, tolerated=1))
    begun, note, shown = world.reporter.notes
    assert (begun, note) == ("a: 3 answers", "  a: n is ignored")
    assert re.fullmatch(r"2 \d+ tokens/s, 3 in flight, limit 4, 1 failed, spent 2\.50", shown)


def test_only_what_is_missing_is_asked_for_and_one_text_once(world: World) -> None:
    asked: list[tuple[str, int]] = []

    def note(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        for item in items:
            asked.append((item.prompt.id, item.index))
            yield Answered([generation(item)])

    world.ask(PROMPTS[:1], 2, a=note)
    same_text = Prompt("again", PROMPTS[1].messages)
    world.ask([*PROMPTS, same_text], 3, a=note)
    assert asked == [("p0", 0), ("p0", 1), ("p0", 2), *[(name, n) for name in ("p1", "p2") for n in range(3)]]
    world.ask([*PROMPTS, same_text], 3, a=note)
    assert len(asked) == 9


def test_servers_are_asked_at_once_and_models_of_this_machine_meanwhile(world: World) -> None:
    together = threading.Barrier(3, timeout=20)

    def wait(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        together.wait()
        yield from answer(engine, items)

    order: list[str] = []

    def here(name: str) -> Scripted:
        def script(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
            order.append(f"{name} begins")
            if name == "c":
                together.wait()
            yield from answer(engine, items)
            order.append(f"{name} ends")

        return Scripted(script=script, elsewhere=False)

    class Own(Scripted):
        def identity(self, **_: Any) -> str:
            return "own"

    results = world.ask(a=wait, b=Own(script=wait), c=here("c"), d=here("d"))
    assert order[0] == "c begins"
    assert order[1] == "c ends"
    assert sum(result.num_new for result in results) >= 12
    assert not together.broken


def test_a_model_that_fails_does_not_stop_the_others(world: World) -> None:
    def fail(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        yield Answered([generation(next(iter(items)))])
        raise CredentialsError("the key is refused")

    class Own(Scripted):
        def identity(self, **_: Any) -> str:
            return "own"

    with pytest.raises(CredentialsError, match=r"^the key is refused$"):
        world.ask(a=fail, b=Own(script=answer))
    assert len(world.answers()) == 1
    assert {spent.model: spent.items for spent in world.store.ledger("run")} == {"a": 1, "b": 6}
    with pytest.raises(CredentialsError, match="2 models could not be asked to the end") as caught:
        world.ask(c=fail, d=fail)
    assert "\nc: the key is refused\nd: the key is refused" in str(caught.value)


def test_an_unexpected_error_in_a_thread_is_raised(world: World) -> None:
    """Otherwise the stage would count as done without the answers."""

    def fail(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        yield Answered([generation(next(iter(items)))])
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        world.ask(a=fail)
    assert len(world.answers()) == 1


@pytest.mark.parametrize(("tolerated", "error"), [(0.34, None), (0.32, ToleranceError)])
def test_failed_requests_are_kept_and_asked_for_again(world: World, tolerated: float, error: type | None) -> None:
    def fail_one(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        for item in items:
            if item.prompt.id == "p1":
                yield Answered([], [Failure("p1", item.index, "timed-out", "no reply")], Usage(8))
            else:
                yield Answered([generation(item)])

    source = Scripted(script=fail_one, tolerated=tolerated)
    if error is None:
        (result,) = world.ask(num_samples=1, a=source)
        assert (result.num_failed, result.num_items) == (1, 3)
    else:
        with pytest.raises(error, match=r"model a: 1 of 3 requests failed .* max_failed \(0.32\)"):
            world.ask(num_samples=1, a=source)
    assert list(world.store.failures("run")) == [(STAGE, "a", Failure("p1", 0, "timed-out", "no reply"))]
    (result,) = world.ask(num_samples=1, a=answer)
    assert result.num_items == 1
    assert not list(world.store.failures("run"))
    assert world.store.ledger("run")[0].usage.requests == 9


def test_a_halt_takes_no_new_item_and_keeps_what_is_in_flight(world: World) -> None:
    def stop_at_second(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        flight = []
        for item in items:
            flight.append(item)
            if len(flight) == 2:
                world.halt.stop(BudgetError("the budget of 1 is spent"))
        yield from (Answered([generation(item)]) for item in flight)

    with pytest.raises(BudgetError, match="the budget of 1"):
        world.ask(a=stop_at_second)
    assert set(world.answers()) == {("p0", 0), ("p0", 1)}


@pytest.mark.parametrize("grace", [5.0, 0.1])
def test_an_interrupt_waits_for_requests_in_flight_and_not_for_ever(
    world: World, grace: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "GRACE_SECONDS", grace)
    seen = threading.Event()

    def slow(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        item = next(iter(items))
        seen.set()
        if engine.closed.wait(0.8):
            return
        yield Answered([generation(item)])
        yield from answer(engine, items)

    def interrupted(engine: Engine, items: Iterable[Item]) -> Iterator[Answered]:
        seen.wait(5)
        yield Answered([])
        raise KeyboardInterrupt

    class Own(Scripted):
        def identity(self, **_: Any) -> str:
            return "own"

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        world.ask(a=slow, b=Own(script=interrupted, elsewhere=False))
    assert time.monotonic() - started < 3
    assert len(world.answers()) == (1 if grace == 5 else 0)
