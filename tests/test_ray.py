"""A run on a real Ray cluster of two nodes, one of which is killed: the same answers and scores as in one process."""

from __future__ import annotations

import platform
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from sinterlm.errors import InputError, TryAgainError
from sinterlm.pipeline.executors.fleet import Fleet
from sinterlm.pipeline.executors.worker import Home, Worker, release
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import SilentReporter, Task
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.executors import Placement
from sinterlm.recipe.load import load_recipe
from tests.fake_ray import FakeRay, Reference
from tests.tiny_fusion import write_tiny_fusion

pytestmark = pytest.mark.xdist_group("ray")  # one cluster for all tests

ONE_SOURCE = (
    "sources={{tiny: {{engine: transformers, model: {folder}/models/source, "
    "sampling: {{num_samples: 4, temperature: 1.0, max_new_tokens: 350}}}}}}"
)
"""Answers so long that a few questions fill a batch."""


class Watcher(SilentReporter):
    """Keeps what a run says, and does something once after the first answers have come."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.lines: list[str] = []
        self._act: Callable[[], object] | None = act

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def task(self, label: str, total: int, unit: str) -> Iterator[Task]:
        yield self

    def advance(self, count: int, note: str = "") -> None:
        if act := self._act:
            self._act = None
            act()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    started = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    yield started
    started.shutdown()


def fuse(recipe: Path, output: Path, watcher: Watcher, *overrides: str, until: str) -> list[str]:
    loaded = load_recipe(recipe, [f"output={output}", *overrides]).recipe
    return run_fusion(Fusion(loaded), watcher, until=until).done_now


def made(output: Path) -> dict[str, Any]:
    connection = sqlite3.connect(output / "store.sqlite")
    tables = {
        "responses": "SELECT * FROM responses ORDER BY id",
        "scores": "SELECT * FROM scores ORDER BY response_id, scorer, answers_hash",
        "dropped": "SELECT stage, subject, reason, detail FROM dropped ORDER BY stage, subject, reason, detail",
    }
    rows: dict[str, Any] = {name: connection.execute(query).fetchall() for name, query in tables.items()}
    connection.close()
    return rows


def add_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)


def on(cluster: Cluster) -> str:
    return f"executor={{kind: ray, address: '{cluster.address}'}}"


def test_a_node_that_dies_loses_nothing_and_doubles_nothing(tmp_path: Path, cluster: Cluster) -> None:
    recipe = write_tiny_fusion(tmp_path, num_questions=48)
    source = ONE_SOURCE.format(folder=tmp_path)
    fuse(recipe, tmp_path / "local", Watcher(), source, until="sample-sources")
    doomed = add_node(cluster)
    watcher = Watcher(lambda: cluster.remove_node(doomed, allow_graceful=False))
    fuse(recipe, tmp_path / "ray", watcher, source, on(cluster), until="sample-sources")
    assert "Ray cluster: 2 nodes, 2 CPU cores, 0 GPUs" in watcher.lines
    assert any("lost a worker" in line for line in watcher.lines), "the node had work when it died"
    assert len(made(tmp_path / "ray")["responses"]) == 40 * 4
    assert made(tmp_path / "ray") == made(tmp_path / "local")
    redone = fuse(recipe, tmp_path / "local", Watcher(), source, on(cluster), until="sample-sources")
    assert redone == [], "the executor decides no answer"


@pytest.mark.slow
def test_nodes_that_die_change_no_answer_and_no_score(tmp_path: Path, cluster: Cluster) -> None:
    """One node dies in every stage that samples or scores, and another one comes; a reward model scores."""
    recipe = write_tiny_fusion(tmp_path)
    fuse(recipe, tmp_path / "local", Watcher(), until="score-target")
    nodes = [add_node(cluster)]

    class Killer(Watcher):
        def say(self, text: str) -> None:
            super().say(text)
            if "loaded on" in text:
                cluster.remove_node(nodes.pop(), allow_graceful=False)
                nodes.append(add_node(cluster))

    killer = Killer()
    fuse(recipe, tmp_path / "ray", killer, on(cluster), until="score-target")
    assert sum("loaded on" in line for line in killer.lines) >= 3
    assert made(tmp_path / "ray") == made(tmp_path / "local")
    cluster.remove_node(nodes.pop())


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_an_interrupted_run_leaves_no_worker(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """The cluster is this machine's own, which the command starts; the next command resumes in this process."""
    recipe = write_tiny_fusion(tmp_path, num_questions=48)
    source = ONE_SOURCE.format(folder=tmp_path)
    command = [sys.executable, "-m", "sinterlm", "run", str(recipe), source, "--until", "sample-sources"]
    own = [f"output={tmp_path}/run", "executor={kind: ray, address: local}"]
    with subprocess.Popen([*command, *own], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any("loaded on" in line for line in process.stdout)
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in started)
        process.send_signal(number)
        said = process.stdout.read()
    assert process.returncode == code, said
    _, alive = psutil.wait_procs(started, 10)
    assert alive == []
    fuse(recipe, tmp_path / "run", Watcher(), source, until="sample-sources")
    fuse(recipe, tmp_path / "local", Watcher(), source, until="sample-sources")
    assert made(tmp_path / "run") == made(tmp_path / "local")


def test_nothing_listens_at_the_address(tmp_path: Path) -> None:
    recipe = write_tiny_fusion(tmp_path)
    with pytest.raises(InputError, match=r"no Ray cluster at 127\.0\.0\.1:9 .*refused.*; give the HOST:PORT"):
        fuse(
            recipe, tmp_path / "run", Watcher(), "executor={kind: ray, address: '127.0.0.1:9'}", until="sample-sources"
        )
    with pytest.raises(InputError, match=r"executor\.address.*is an address of Ray Client"):
        fuse(recipe, tmp_path / "run", Watcher(), "executor={kind: ray, address: 'ray://a:1'}", until="sample-sources")
    with pytest.raises(InputError, match=r"executor\.sources\.tinny.*did you mean tiny"):
        fuse(recipe, tmp_path / "run", Watcher(), "executor={kind: ray, sources: {tinny: {}}}", until="sample-sources")


class Doubling:
    """Doubles every number of a unit; what it builds is a scorer to the workers."""

    paths: dict[str, Path] = {}

    def build(self, say: Callable[[str], None]) -> Doubling:
        return self

    def score(self, unit: Sequence[int]) -> list[int]:
        if 13 in unit:
            raise InputError("13 is unlucky")
        return [2 * number for number in unit]

    def close(self) -> None:
        pass


def fleet(copied: Any = None, placement: Placement | None = None, **settings: Any) -> Fleet:
    how: dict[str, Any] = {"num_gpus": 1, "say": lambda line: None} | settings
    return Fleet("gemma", copied or Doubling(), placement or Placement(), **how)


def test_whatever_workers_are_lost_every_unit_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time, one call ends; before that one worker in ten is lost with all that it was given."""
    num_lost = 0
    for seed in range(100):
        rng = random.Random(seed)

        def choose(references: Sequence[Reference], rng: random.Random = rng) -> Reference:
            nonlocal num_lost
            chosen = rng.choice(references)
            if rng.random() < 0.1:
                chosen.actor.is_lost = True
                num_lost += 1
            return chosen

        with monkeypatch.context() as patch:
            cluster = FakeRay([{"CPU": 2}, {"CPU": 1}], choose).install(patch)
            workers = fleet()
            units = [[place, seed + 100] for place in range(rng.randrange(40)) if place != 13]
            done = list(workers.work(iter(units)))
            assert sorted(done) == [(place, [2 * number for number in unit]) for place, unit in enumerate(units)]
            assert len(cluster.running) <= 3
            workers.close()
            assert cluster.running == []
    assert num_lost > 100


def test_the_next_unit_is_taken_only_when_a_worker_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay([{"CPU": 3}]).install(monkeypatch)
    taken: list[int] = []
    units = ([number] for number in range(100, 200) if taken.append(number) is None)  # type: ignore[func-returns-value]
    for num_done, _ in enumerate(fleet().work(units)):
        assert len(taken) <= num_done + 3 * 2 + 1, "two at each of three workers, and the one that was done"


def test_work_that_is_closed_early_leaves_nothing_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay([{"CPU": 2}]).install(monkeypatch)
    workers = fleet()
    first = workers.work([[1], [2], [3], [4], [5]])
    next(first)
    first.close()
    assert sorted(result for _, result in workers.work([[7], [8]])) == [[14], [16]]


def test_a_unit_that_ends_every_worker_is_not_tried_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(references: Sequence[Reference]) -> Reference:
        for reference in references:
            if reference.actor.num_given:
                reference.actor.is_lost = True
        return references[0]

    FakeRay([{"CPU": 1}], choose).install(monkeypatch)
    lines: list[str] = []
    with pytest.raises(TryAgainError, match=r"workers are lost again and again, the last on node .* too little memory"):
        list(fleet(say=lines.append).work([[1]]))
    assert len(lines) == 5
    assert "gemma: lost a worker" in lines[0]


def test_what_a_worker_raises_ends_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay([{"CPU": 1}]).install(monkeypatch)
    with pytest.raises(InputError, match=f"^node {re.escape(platform.node())}: 13 is unlucky$"):
        list(fleet().work([[1], [13]]))


@pytest.mark.parametrize(
    ("placement", "nodes", "num_workers"),
    [
        (Placement(), [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 9.0}], 6),
        (Placement(gpus=3), [{"CPU": 8.0, "GPU": 4.0}, {"CPU": 2.0, "GPU": 4.0}], 2),
        (Placement(cpus=3), [{"CPU": 8.0}, {"CPU": 2.0}], 2),
        (Placement(gpus=0, cpus=4), [{"CPU": 8.0, "GPU": 1.0}], 2),
        (Placement(copies=2), [{"CPU": 8.0}], 2),
        (Placement(copies=5), [{"CPU": 1.0}], 5),
        (Placement(), [{"CPU": 64.0}], 20),
    ],
)
def test_as_many_workers_start_as_nodes_have_room_for(
    placement: Placement, nodes: list[Mapping[str, float]], num_workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 20 units of work, each worker gets at least one."""
    cluster = FakeRay(nodes).install(monkeypatch)
    workers = fleet(placement=placement)
    assert len(list(workers.work([[number] for number in range(100, 120)]))) == 20
    assert len(cluster.running) == num_workers
    assert all(options["max_restarts"] == options["max_task_retries"] == 0 for options in cluster.options)


def test_a_model_that_fits_on_no_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeRay([{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}]).install(monkeypatch)
    with pytest.raises(
        InputError, match=r"gemma needs 1 CPU core and 4 GPUs on one node, but .* 8 CPU cores and 2 GPU"
    ):
        next(fleet(placement=Placement(gpus=4)).work([[1]]))


def test_a_node_without_a_models_folder_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "gemma"
    home = Home("gemma", release(), {"model": missing})
    with pytest.raises(InputError, match=f"node {re.escape(platform.node())}: there is no {missing} .model of gemma.*"):
        Worker(Doubling()).start(home)
    with pytest.raises(InputError, match=r"has Sinter .*, but this is 0\.0\.1; install the same on every node"):
        Worker(Doubling()).start(home._replace(release="0.0.1"))
