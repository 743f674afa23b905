"""A small world in which every setting of a recipe has a visible effect, and the effects of a run at the far end.

The pipeline is real: the command runs recipes on recorded answers, tiny models and a scripted server. One model says
the first of four letters half of the time, whatever the prompt, so its answers show how it was sampled.
"""

from __future__ import annotations

import concurrent.futures
import gc
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pebble
import psutil
import pytest
import torch
import transformers
import typer.testing
from transformers import LlamaConfig, LlamaModel, Trainer
from typer.testing import CliRunner

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.formats import read_rows
from sinterlm.formats.shared import dump_response, dump_score
from sinterlm.records import TrainingRow
from sinterlm.store import Store
from tests.batch_server import BatchServer, Json, refusal, reply, serve_batches
from tests.chat_server import Answer, ScriptedServer, serve
from tests.fake_ray import FakeRay
from tests.test_armorm import save_checkpoint
from tests.tiny import build_model, build_tokenizer, save_tiny, save_tiny_reward_model

RECIPE = """\
prompts: {path: prompts.jsonl}
target: {model: FOLDER/letters, samples: {engine: recorded, path: own.jsonl}}
sources:
  a: {engine: recorded, path: a.jsonl}
  b: {engine: recorded, path: b.jsonl}
scorer: {kind: recorded, path: scores.jsonl}
preference:
  m:
    select: {kind: wrpo}
    objective: {kind: wrpo}
    train: {max_steps: 2, learning_rate: 0.1, per_device_train_batch_size: 16, max_length: 128}
"""
NUM_PROMPTS = 16
LENGTH = ("a2", "t3")
"""Answers that the token limit cut."""
SCORES = {
    "a0": 5, "a1": 7, "a2": 9, "a3": 5, "b0": 7, "b1": 4, "b2": 1, "b3": 1, "t0": 3, "t1": 3, "t2": 1, "t3": 6,
}  # fmt: skip
POOR = {"a0": 2.0, "a1": 1.5, "a2": 1.5, "a3": 1.2, "b0": 1.4, "b1": 1.3, "b2": 1.1, "b3": 1.1}
"""The scores of the sources' answers to the first prompt, whose accepted answer is the target's own."""
THOUGHT = "<think>hm</think>a1"


def write_world(folder: Path) -> None:
    """Models, prompts, answers and scores that make every setting visible."""
    save_letters(folder / "letters", "ABCD")
    save_letters(folder / "others", "WXYZ")
    save_tiny(folder / "tiny")
    save_tiny_reward_model(folder / "reward")
    save_tiny_reward_model(folder / "reward2", seed=1)
    for name in ("armorm", "armorm2"):
        (folder / name).mkdir()
        save_checkpoint(folder / name)
    for name, source in (("asking", "letters"), ("asking-reward", "reward"), ("asking-armorm", "armorm")):
        copy_with_template(folder / source, folder / name)
    prompts: list[dict[str, Any]] = [
        {
            "id": f"n{number}",
            "prompt": f"Question number {number}?",
            "answers": ["a1", "b0"] if number else ["a1", "b0", "t1"],
            "domain": "odd" if number % 2 else "even",
        }
        for number in range(NUM_PROMPTS)
    ]
    scores: list[dict[str, Any]] = [
        {"prompt_id": prompt["id"], "response": content, "score": score_of(number, content)}
        for number, prompt in enumerate(prompts)
        for content in SCORES
    ]
    sums: list[dict[str, Any]] = [
        {"id": f"s{n}", "prompt": f"What is {n} plus 2?", "answers": [str(n + 2)]} for n in range(2)
    ]
    programs: list[dict[str, Any]] = [{"id": "p0", "prompt": "Write `double`.", "answers": ["assert double(2) == 4"]}]
    near = ["one two three four five six seven eight nine ten", "one two three four five six seven eight nine eleven"]
    question = "see one two three four five six and then say something else altogether to me please, will you now"
    files: dict[str, Sequence[Mapping[str, Any]]] = {
        "prompts": prompts,
        "few": prompts[1:3],
        "near": [{"id": str(number), "prompt": text} for number, text in enumerate(near)],
        "bench": [{"question": question}],
        "same": [{"question": near[0]}],
        "open": [{"id": prompt["id"], "prompt": prompt["prompt"]} for prompt in prompts[1:3]],
        "sums": sums,
        "programs": programs,
        "scores": scores,
        "one": prompts[1:2],
        "uneven": [{**line, "score": 6.0} if line["response"] == "b0" else line for line in scores],
        "long": [answer(prompt, f"{prompt['id']} {'well ' * 20} end") for prompt in prompts],
        "turned": [{**line, "score": -line["score"]} for line in scores],
        "gaps": [line for line in scores if line["response"] != "b3"],
        **{name: [answer(p, content) for p in prompts for content in SCORES if content[0] == name] for name in "ab"},
        "own": [answer(prompt, content) for prompt in prompts for content in SCORES if content[0] == "t"],
        "own2": [answer(prompt, content) for prompt in prompts for content in ("t0", "t2")],
        "thoughts": [answer(prompt, THOUGHT) for prompt in prompts],
        "any": [answer(prompt, "a1") for prompt in [*sums, *programs, *({"id": str(n)} for n in range(2))]],
        "thinking": [answer(prompt, f"<think>I say 7</think>{prompt['answers'][0]}") for prompt in sums],
        "busy": [answer(programs[0], BUSY)],
        "thoughtful": [answer(programs[0], f"<think>\n```python\n{WRONG}```\n</think>\n```python\n{RIGHT}```")],
        "baseline": [answer(prompt, "the baseline") for prompt in prompts],
    }
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (folder / "mine.py").write_text(MINE)
    (folder / "yours.py").write_text(MINE.replace("len(", "-len("))
    (folder / "shots.yaml").write_text(
        'template: "Q: {question}\\nA: {answer}\\n\\n"\nexamples: [{question: A shot, answer: Bang.}]\n'
    )
    (folder / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(folder)))
    program = folder / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\n{Path(__file__).with_name('relay.py').read_text()}")
    program.chmod(0o755)


RIGHT = "def double(number):\n    return 2 * number\n"
WRONG = "def double(number):\n    return 3 * number\n"
BUSY = f"```python\nimport time\n{RIGHT}while time.process_time() < 0.6:\n    pass\n```"
"""Right, after more than half a second of computing."""


MINE = """\
def score(prompt, response):
    return float(len(response.content))

def score_twice(prompt, response):
    return 2.0 * len(response.content)
"""


def score_of(number: int, content: str) -> float:
    if number == 1 and content == "t0":
        return 9.0
    return POOR.get(content, SCORES[content]) if number == 0 else float(SCORES[content])


def answer(prompt: Mapping[str, Any], content: str) -> dict[str, Any]:
    return {
        "prompt_id": prompt["id"],
        "response": content,
        "finish_reason": "length" if content in LENGTH else "stop",
    }


def save_letters(folder: Path, letters: str) -> None:
    """A model that says the first letter half of the time and each later one less often, whatever the prompt."""
    tokenizer = build_tokenizer()
    model = build_model(tokenizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_parameter("model.norm.weight").fill_(1)
        model.get_parameter("model.embed_tokens.weight")[:, 0] = 1
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(letter_head(model.config, letters))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def letter_head(config: LlamaConfig, letters: str, shares: Sequence[float] = (0.5, 0.25, 0.15, 0.1)) -> torch.Tensor:
    """The output layer that gives each letter its share, if every last hidden state is (sqrt(size), 0, ...)."""
    tokenizer = build_tokenizer()
    head = torch.zeros(int(config.vocab_size), int(config.hidden_size))
    head[:, 0] = -20.0
    for letter, share in zip(letters, shares, strict=True):
        head[tokenizer.convert_tokens_to_ids(letter), 0] = math.log(share) + 3  # positive, for repetition penalties
    return head / math.sqrt(config.hidden_size)


ASKING = "{{ '<' + (mark | default('plain')) + ' ' + strftime_now('%d %B %Y') + '>' }}"


def copy_with_template(source: Path, folder: Path) -> None:
    """A model whose chat template takes a variable and writes the date."""
    shutil.copytree(source, folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = ASKING + str(tokenizer.chat_template)
    tokenizer.save_pretrained(folder)


# --- what is seen at the far end --------------------------------------------------------------------------------------


class Read(NamedTuple):
    """The inputs of one forward pass of a model."""

    model: str
    text: str
    num_rows: int
    num_tokens: int
    dtype: torch.dtype


@dataclass
class Done:
    """A run and what was observed of it."""

    folder: Path
    error: str
    said: str
    reads: list[Read]
    requests: list[dict[str, Any]]
    headers: list[Mapping[str, str]]
    most_open: int
    arguments: list[Any]
    """Transformers' TrainingArguments with ours, one for each trainer."""
    workers: list[int]
    """The arguments of every pool that was opened."""
    asked_workers: list[tuple[Any, ...]]
    """The arguments of all calls to pools of processes, with the time limit last."""
    overrides: tuple[str, ...] = ()
    jobs: list[Json] = field(default_factory=list)
    """The batch jobs that were submitted."""
    job_requests: list[Json] = field(default_factory=list)
    """The bodies of their requests."""
    job_keys: set[str] = field(default_factory=set)
    most_jobs: int = 0
    job_looks: list[float] = field(default_factory=list)
    cluster: FakeRay = field(default_factory=lambda: FakeRay([{"CPU": 4.0, "GPU": 2.0}]))
    """Where the run works if its executor is Ray."""

    def placed(self, what: str) -> set[Any]:
        """How many ``num_cpus`` or ``num_gpus`` each of its workers got."""
        return {options[what] for options in self.cluster.options}

    def rows(self, name: str = "m") -> list[TrainingRow]:
        return read_rows(self.folder / "rows" / f"{name}.parquet")

    def contents(self, role: str | None, name: str = "m") -> set[str]:
        """The texts of the answers of this role over all rows; of all roles if none is given."""
        return {answer.content for row in self.rows(name) for answer in row.responses if role in (None, answer.role)}

    def weights(self, name: str = "m") -> dict[str, float]:
        """The weights by answer, for the third prompt; weighted rows only."""
        row = next(row for row in self.rows(name) if row.prompt_id == "n2")
        return {answer.content: answer.weight for answer in row.responses if answer.weight is not None}

    def ids(self, name: str = "m") -> set[str]:
        return {row.prompt_id for row in self.rows(name)}

    def parts(self) -> dict[str, int]:
        with Store(self.folder / "store.sqlite", read_only=True) as store:
            names = ("held_out", "sft", "development", "preference")
            return {name: len(prompts) for name in names if (prompts := list(store.prompts(".", name)))}

    def part(self, name: str) -> set[str]:
        with Store(self.folder / "store.sqlite", read_only=True) as store:
            return {prompt.id for prompt in store.prompts(".", name)}

    def table(self, name: str) -> list[dict[str, Any]]:
        """The run's stored responses or scores, as they are exported."""
        with Store(self.folder / "store.sqlite", read_only=True) as store:
            if name == "responses":
                return [dict(dump_response(stored)) for stored in store.all_responses()]
            return [dict(dump_score(stored)) for stored in store.all_scores()]

    def letters(self) -> list[str]:
        """The answers of a model of letters."""
        return [row["content"] for row in self.table("responses") if row["content"][:1] in set("ABCDWXYZ")]

    def spent(self) -> float:
        """The money in the ledger."""
        with Store(self.folder / "store.sqlite", read_only=True) as store:
            return sum(line.money or 0.0 for line in store.ledger())

    def scores(self) -> list[float | None]:
        return sorted((row["value"] for row in self.table("scores")), key=str)

    def read(self, name: str) -> list[Read]:
        return [read for read in self.reads if read.model == name]

    def has_read(self, text: str) -> bool:
        return any(text in read.text for read in self.reads)

    def steps(self) -> list[tuple[float, float]]:
        """Loss and norm of the gradient of every step."""
        lines = next(self.folder.glob("target*m/metrics.jsonl")).read_text().splitlines()
        return [(step["loss"], step["grad_norm"]) for step in map(json.loads, lines)]

    def figures(self) -> dict[str, Any]:
        figures: dict[str, Any] = json.loads((self.folder / "evaluation.json").read_text())
        return figures

    def plan(self) -> dict[str, Any]:
        planned: dict[str, Any] = json.loads(command("plan", RECIPES[0], *self.overrides, "--json")[0])
        return planned

    def stage(self, name: str) -> dict[str, Any]:
        """The plan of a stage."""
        return next(entry for entry in self.plan()["stages"] if entry["name"] == name)


RECIPES: list[Path] = []
"""The single recipe, once it is written."""


def command(*arguments: object) -> tuple[str, str]:
    """The output of a Sinter command, and its error."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", parser_of)  # building it takes as long as a small stage
        result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    return result.output, "" if result.exception is None else str(result.exception)


@cache
def parser_of(app: typer.Typer) -> Any:
    return typer.main.get_command(app)


class World:
    """Runs the recipe with changes, and observes it."""

    def __init__(self, folder: Path, server: ScriptedServer, jobs: BatchServer) -> None:
        self.folder, self.server, self.jobs = folder, server, jobs
        self.carry_out = cache(self._carry_out)
        self._number = 0

    def _carry_out(
        self, overrides: tuple[str, ...], until: str, trains: bool = True, after: Path | None = None
    ) -> Done:
        """Carry the recipe out until a stage.

        Args:
            overrides: Changes of the recipe.
            until: The last stage.
            trains: Whether models are trained; otherwise a command ends once a trainer has its arguments.
            after: The folder of a run to resume; only what the changes concern is done again.
        """
        self._number += 1
        output = self.folder / "runs" / str(self._number)
        fill = {
            "FOLDER": str(self.folder),
            "URL": self.server.url,
            "JOBS": self.jobs.url,
            "PYTHON": sys.executable,
        }
        for name, value in fill.items():
            overrides = tuple(override.replace(name, value) for override in overrides)
        done = Done(output, "", "", [], [], [], 0, [], [], [])
        done.overrides = (f"output={output}", *overrides)
        if after:
            shutil.copytree(after, output)
        before, self.server.most_open = len(self.server.requests), 0
        jobs_before, self.jobs.most_open, self.jobs.keys, self.jobs.looks = len(self.jobs.batches), 0, set(), []
        for job in self.jobs.batches.values():
            job["status"] = "cancelled" if job["status"] == "validating" else job["status"]
        FAILED.clear()
        if until:
            with watched(done, trains=trains):
                done.said, done.error = command("run", RECIPES[0], *done.overrides, "--until", until, "--allow-code")
        done.requests, done.headers = (
            self.server.requests[before:],
            [{name.lower(): value for name, value in headers.items()} for headers in self.server.headers[before:]],
        )
        done.most_open = self.server.most_open
        done.jobs = list(self.jobs.batches.values())[jobs_before:]
        done.job_requests = [request["body"] for job in done.jobs for request in self.jobs.requests_of(job)]
        done.job_keys, done.most_jobs, done.job_looks = self.jobs.keys, self.jobs.most_open, self.jobs.looks
        return done


@contextmanager
def watched(done: Done, *, trains: bool) -> Iterator[None]:
    """Record inputs of models, arguments of trainers and calls of workers; math-verify's workers are not started."""
    forward, train = LlamaModel.forward, Trainer.train
    open_threads = concurrent.futures.ThreadPoolExecutor.__init__

    def read(model: Any, input_ids: Any = None, *arguments: Any, **more: Any) -> Any:
        if input_ids is not None:
            name = Path(model.config._name_or_path)
            text = tokenizer_of(name).decode(input_ids.flatten().tolist())
            done.reads.append(Read(name.name, text, len(input_ids), input_ids.shape[-1], model.dtype))
        return forward(model, input_ids, *arguments, **more)

    def trained(trainer: Any, *arguments: Any, **more: Any) -> Any:
        done.arguments.append(trainer.args)
        return train(trainer, *arguments, **more)

    def not_trained(model: Any, config: Any, *arguments: Any, **more: Any) -> Any:
        done.arguments.append(config)
        raise InputError("nothing is trained")

    def threads(pool: Any, max_workers: int | None = None, *arguments: Any, **more: Any) -> None:
        done.workers.append(max_workers or 0)
        open_threads(pool, max_workers, *arguments, **more)

    def processes(pool: Any, max_workers: int = 0, *arguments: Any, **more: Any) -> None:
        done.workers.append(max_workers)

    def schedule(pool: Any, function: Any, args: Sequence[Any], timeout: float) -> Any:
        done.asked_workers.append((*args, timeout))
        future: concurrent.futures.Future[str] = concurrent.futures.Future()
        future.set_result("right")
        return future

    with pytest.MonkeyPatch.context() as patch:
        done.cluster.install(patch)
        patch.setattr("sinterlm.pipeline.executors.ray_executor.Connection._check_address", lambda connection: None)
        patch.setattr(LlamaModel, "forward", read)
        patch.setattr(Trainer, "train", trained)
        if not trains:
            patch.setattr("sinterlm.training.train.FusionTrainer", not_trained)
        patch.setattr(concurrent.futures.ThreadPoolExecutor, "__init__", threads)
        patch.setattr(pebble.ProcessPool, "__init__", processes)
        patch.setattr(psutil.Process, "children", lambda process, recursive=False: [])  # watching memory is slow
        patch.setattr(os, "fsync", lambda file: None)
        for name, fake in (("schedule", schedule), ("stop", lambda pool: None), ("join", lambda pool: None)):
            patch.setattr(pebble.ProcessPool, name, fake, raising=False)
        yield


@cache
def tokenizer_of(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


def judge(request: Mapping[str, Any]) -> Answer:
    """Grades everything 7 and calls every game a tie, depending on the request; `flaky` fails at first."""
    if request.get("model") == "flaky" and not FAILED:
        FAILED.append("once")
        return Answer(status=500, headers={"retry-after-ms": "1"})
    if request.get("model") == "slow":
        time.sleep(0.4)
    if "prompt" in request:
        return Answer(body=json.dumps({"choices": [{"text": " a1", "finish_reason": "stop"}]}))
    if request.get("model") == "thinker":
        return Answer(THOUGHT)
    if "use_activation" in request:
        return reward(request)
    text = request["messages"][0]["content"]
    fields = json.dumps(request.get("response_format", {}))
    if request["model"] == "confused" and "b2" in text:
        return Answer("I cannot say.")
    reasons = {"explanation": "So."} if '"explanation"' in text + fields else {}
    if '"tie"' in fields:
        return Answer(json.dumps({**reasons, "verdict": "tie"}))
    names = [name for name in ("wit", "depth") if f'"{name}"' in text + fields] or ["grade"]
    return Answer(json.dumps({**reasons, **dict.fromkeys(names, 7)}))


def reward(request: Mapping[str, Any]) -> Answer:
    """Scores a dialogue by its length, as vLLM replies."""
    length = len(request.get("input") or request["text_1"])
    value = 0.5 if request["use_activation"] else float(length)
    usage = {"prompt_tokens": length} if "input" in request else {}
    return Answer(body=json.dumps({"data": [{"probs": [value], "score": value}], "usage": usage}))


FAILED: list[str] = []


class Jobs(BatchServer):
    """Jobs of some models go wrong, those of `flaky` and `forgetful` once."""

    def create(self, body: Json) -> tuple[int, Json]:
        model = self.requests_of(body)[0]["body"]["model"]
        if model == "slow":
            time.sleep(0.4)
        if model == "flaky" and not FAILED:
            FAILED.append(model)
            return 500, {}
        status, batch = super().create(body)
        if model == "forgetful" and not FAILED:
            FAILED.append(model)
            del self.batches[batch["id"]]
        return status, batch


def work_off(request: Json) -> Json:
    """Answers a1; refuses the first request to `half`."""
    model = request["body"]["model"]
    if model == "half" and not FAILED:
        FAILED.append(model)
        return refusal(request, "it has no mind to")
    return reply(request, texts=[THOUGHT if model == "thinker" else "a1"] * request["body"].get("n", 1))


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """The world in an empty folder, with its judge."""
    write_world(folder)
    gc.collect()
    gc.freeze()  # each training collects garbage: the imported libraries need not be scanned every time
    RECIPES[:] = [folder / "recipe.yaml"]
    with serve(judge, seconds=0.01) as server, serve_batches(Jobs(work=work_off)) as jobs:
        yield World(folder, server, jobs)
    gc.unfreeze()
