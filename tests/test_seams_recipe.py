"""Every key of a recipe reaches what it names.

Collecting the tests walks the schema. Each of its keys has an entry in SEAMS: a change of its value, and what must
change at the far end, beyond Sinter's own records. That may be what a model reads and how its tokens are drawn, the
requests to a server, how long a program may run, the arguments of Transformers' trainer, or rows and figures on disk. A
key without an entry fails, so no new setting is forgotten on its way.

If a mapping occurs at several places of a recipe, its keys are checked at the first; at the others, one entry checks
that the mapping gets there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
import torch
from pydantic import BaseModel

from sinterlm.errors import SandboxError
from sinterlm.recipe.schema import Recipe
from sinterlm.scoring.code.sandbox import check_isolation
from tests.tiny import build_tokenizer
from tests.world import NUM_PROMPTS, RECIPES, THOUGHT, Done, World, open_world, tokenizer_of

pytestmark = pytest.mark.xdist_group("seams-recipe")  # the tests' shared fixtures are made once, in one process

# --- the keys of the schema -------------------------------------------------------------------------------------------

KINDS = ("kind", "engine")
TOLD_LATER = {"sft.objective": "preference.*.objective, where objectives have hyper-parameters"}


def keys_of(settings: type[BaseModel], seen: set[type[BaseModel]], place: str = "") -> Iterator[str]:
    """Every key below a mapping, such as ``sources.*[transformers].device``; each mapping only once."""
    for name, info in settings.model_fields.items():
        path = place + name
        if name in KINDS and get_args(info.annotation):  # it picks the mapping's form
            continue
        found = [(many, form) for many, form in forms_in(info.annotation) if form not in seen]
        if path in TOLD_LATER:
            continue
        if not found:
            yield path
        seen.update(form for _, form in found)
        for many, form in found:
            yield from keys_of(form, seen, f"{path}{'.*' if many else ''}{kind_of(form)}.")


def forms_in(annotation: Any, many: bool = False) -> Iterator[tuple[bool, type[BaseModel]]]:
    """The mappings that a value of this type may be, and whether it contains them by name."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Annotated, list):
        yield from forms_in(arguments[0], many)
    elif origin is dict:
        yield from forms_in(arguments[1], many=True)
    elif origin in (Union, UnionType):
        for argument in arguments:
            yield from forms_in(argument, many)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield many, annotation


def kind_of(form: type[BaseModel]) -> str:
    """What picks the form: its kind or engine, or both if it is not the usual form of its kind."""
    fields = [form.model_fields[key] for key in KINDS if key in form.model_fields]
    names = [get_args(field.annotation) for field in fields if field is fields[0] or field.is_required()]
    return f"[{' '.join(name for own in names for name in own)}]" if names and names[0] else ""


KEYS = list(keys_of(Recipe, {Recipe}))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with open_world(tmp_path_factory.mktemp("world")) as opened:
        yield opened


# --- what each key must change ----------------------------------------------------------------------------------------

CHANGES = object()
"""Matches any value other than the one before."""


@dataclass(frozen=True)
class Seam:
    """A change of one key, and what it changes."""

    change: str
    look: Callable[[Done], Any]
    before: Any = CHANGES
    after: Any = CHANGES
    given: tuple[str, ...] = field(default=())
    until: str = "select-m"
    trains: bool = True
    """Whether a model must be trained; otherwise the trainer's arguments show the change."""
    together: tuple[str, ...] = ()
    """Changes of other keys in the same run; each shows elsewhere."""
    resumes: bool = False
    """Whether the changed recipe resumes from what the unchanged one has left."""


Look = Callable[[Done], Any]
Given = tuple[str, ...]


def contents(role: str | None, name: str = "m") -> Callable[[Done], Any]:
    return lambda d: d.contents(role, name)


def answers_of(source: str) -> Callable[[Done], Any]:
    """Whether rows contain answers of the source."""
    return lambda d: {content[0] for content in d.contents(None)} & {source} == {source}


ids: Callable[[Done], Any] = Done.ids
ALL = {f"n{number}" for number in range(NUM_PROMPTS)}
EVEN = {f"n{number}" for number in range(0, NUM_PROMPTS, 2)}

SOURCE = (
    "sources={s: {engine: transformers, model: FOLDER/letters, sampling: {num_samples: 2, max_new_tokens: 4}}}",
    "prompts.path=few.jsonl",
)
TWO_SOURCES = (*SOURCE, "sources.t={engine: transformers, model: FOLDER/others, sampling: {num_samples: 2}}")
SERVED = (
    "sources={s: {engine: endpoint, model: m, base_url: URL, sampling: {num_samples: 2, max_new_tokens: 4}}}",
    "prompts.path=few.jsonl",
)
SERVED_TOGETHER = (
    "sources.s.model=other",
    "sources.s.extra_body={top_k: 1}",
    "sources.s.api_key_env=SEAMS_KEY",
    "sources.s.concurrency=1",
    "sources.s.revision=v2",
    "sources.s.sampling={num_samples: 1, temperature: 0.5, top_p: 0.25, repetition_penalty: 1.5, seed: 9}",
)
ON_RAY = ("executor={kind: ray}", *SOURCE)
BY_JOBS = (
    "sources={s: {engine: batch, model: m, base_url: JOBS, poll_seconds: 0.01, "
    "sampling: {num_samples: 2, max_new_tokens: 4}}}",
    "prompts.path=few.jsonl",
)
ASKING_SOURCE = (*SOURCE, "sources.s.model=FOLDER/asking")
TARGET = (
    "prompts.path=few.jsonl",
    "target.samples=null",
    "target.sampling={num_samples: 2, max_new_tokens: 4}",
)
ASKING_TARGET = (*TARGET, "target.model=FOLDER/asking")
GREEDY = "target.sampling.temperature=0"


def sampled(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()) -> Seam:
    """Visible in the target's own samples."""
    return Seam(change, look, before, after, given=(*TARGET, *given), until="sample-target")


def of_source(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = SOURCE) -> Seam:
    """Visible in a source's prompts and answers."""
    return Seam(change, look, before, after, given=given, until="sample-sources")


def served(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()) -> Seam:
    """Visible in the requests to a source's server."""
    seam = of_source(change, look, before, after, given=(*SERVED, *given))
    return replace(seam, together=SERVED_TOGETHER if change in SERVED_TOGETHER else ())


def by_jobs(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()) -> Seam:
    """Visible in the batch jobs of a source."""
    return of_source(change, look, before, after, given=(*BY_JOBS, *given))


def of_requests(*fields: str) -> Callable[[Done], Any]:
    """What the requests say of fields."""
    return lambda d: {tuple(request.get(field) for field in fields) for request in d.requests}


def scored(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, *, given: Given) -> Seam:
    """Visible in a scorer's inputs and in its scores."""
    return Seam(change, look, before, after, given=given, until="score-sources")


def selected(
    select: str, change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()
) -> Seam:
    """Visible in the rows of a method."""
    method = f"preference.m={{select: {{{select}}}, objective: {{kind: wrpo}}}}"
    objective = {"wrpo": "wrpo", "fusepo": "fusepo", "fusepo-rloo": "fusepo-rloo", "rloo": "rloo"}
    kind = select.split(",")[0].removeprefix("kind: ")
    method = method.replace("kind: wrpo}}", f"kind: {objective.get(kind, 'dpo')}}}}}")
    return Seam(f"preference.m.select.{change}", look, before, after, given=(method, *given), resumes=True)


def tuned(select: str, change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()) -> Seam:
    """Visible in the rows of a fine-tuning."""
    objective = "fusesft" if "fusesft" in select else "sft"
    sft = f"sft={{select: {{{select}}}, objective: {{kind: {objective}}}}}"
    return Seam(
        f"sft.select.{change}", look, before, after, given=(sft, "prompts.split.sft=1.0", "preference={}", *given),
        until="select-sft", resumes=True,
    )  # fmt: skip


def trained(
    change: str,
    look: Look,
    before: Any = CHANGES,
    after: Any = CHANGES,
    given: Given = (),
    *,
    trains: bool = False,
    resumes: bool = True,
) -> Seam:
    """Visible in the arguments of a method's trainer or, if it trains, in the training."""
    given = ("target.model=FOLDER/tiny", *given)
    return Seam(change, look, before, after, given, until="train-m", trains=trains, resumes=resumes)


def objective_of(done: Done) -> Any:
    """The objective of the trainer, with all its hyper-parameters."""
    (arguments,) = done.arguments
    return arguments.objective, arguments.resolved_objective.values


BEST = "kind: best-of-sources"
FUSESFT = "kind: fusesft, temperature: 1.0"
FUSEPO = "kind: fusepo, temperature: 1.0"
FUSEPO_RLOO = "kind: fusepo-rloo, temperature: 1.0"
FUSECHAT3 = "kind: fusechat3, window: none"
A0_TO_A3, B0_TO_B3 = {"a0", "a1", "a3"}, {"b0", "b1", "b2", "b3"}

EXACT = ("scorer={kind: exact-match}",)
THINKING = ("sources={t: {engine: recorded, path: thoughts.jsonl}}",)
MATHEMATICS = (
    "scorer={kind: mathematics, timeout_seconds: 3}",
    "prompts.path=sums.jsonl",
    "sources={t: {engine: recorded, path: thinking.jsonl}}",
    "target.samples.path=any.jsonl",
)
CODE = (
    "scorer={kind: code}",
    "prompts.path=programs.jsonl",
    "sources={t: {engine: recorded, path: busy.jsonl}}",
    "target.samples.path=any.jsonl",
)
PYTHON = ("scorer={kind: python, path: mine.py}", "prompts.path=few.jsonl")
READER = ("scorer={kind: KIND, model: FOLDER/MODEL}", "prompts.path=few.jsonl")
JUDGE = ("scorer={kind: judge, model: m, base_url: URL}", "prompts.path=few.jsonl")
ASKED_TOGETHER = (
    "scorer.model=other",
    "scorer.explain=false",
    "scorer.temperature=0.5",
    "scorer.max_tokens=99",
    "scorer.response_format=json_object",
    "scorer.extra_body={top_k: 1}",
    "scorer.api_key_env=SEAMS_KEY",
    "scorer.concurrency=1",
)
REWARDS = (
    "scorer={kind: reward-model, engine: endpoint, model: FOLDER/reward, base_url: URL}",
    "prompts.path=few.jsonl",
)
REWARDED_TOGETHER = ("scorer.served_model=other", "scorer.api_key_env=SEAMS_KEY", "scorer.concurrency=1")
ASKING_REWARD = ("scorer.model=FOLDER/asking-reward",)
LONG_ANSWERS = ("sources={a: {engine: recorded, path: long.jsonl}}",)
TWO_ANSWERS = ("prompts.path=one.jsonl", "sources={a: {engine: recorded, path: a.jsonl, num_samples: 2}}")
"""So few that a limit of the rate takes a second."""
PAIRWISE = ("scorer.mode=pairwise",)
COMBINATION = (
    "scorer={kind: combination, rule: weighted-sum, parts: {x: {kind: exact-match}, y: {kind: recorded, path: "
    "scores.jsonl}}}",
    "prompts.path=few.jsonl",
)
HELD_OUT = (
    "prompts={path: prompts.jsonl, split: {held_out: 2, preference: 0}}",
    "preference={}",
    "evaluation={held_out: {scorer: {kind: exact-match}}}",
    "target.samples=null",
    "target.sampling={max_new_tokens: 4}",
)

BY_DOMAIN = (
    "scorer={kind: by-domain, domains: {even: {kind: recorded, path: scores.jsonl}}, other: {kind: exact-match}}",
    "prompts.path=few.jsonl",
)
SFT = ("sft={select: {kind: best-of-sources}}", "prompts.split.sft=0.5", "target.model=FOLDER/tiny")
DEVELOPMENT = (
    "prompts.split.held_out=1",
    "prompts.split.development=2",
    "evaluation={held_out: {scorer: {kind: exact-match}, max_new_tokens: 1}}",
)
EXTRA = (
    *SFT,
    "preference={m: {select: {kind: fusechat3, window: none}, objective: {kind: dpo}}, "
    "k: {select: {kind: fusechat3, window: none, windows: {even: [50.0, 60.0]}}, objective: {kind: dpo}}}",
)


def reader(kind: str, model: str, other: str, asking: str, *, length: int) -> dict[str, list[Seam]]:
    """The keys of a model that reads dialogues."""
    given = tuple(line.replace("KIND", kind).replace("MODEL", model) for line in READER)
    asked = (*given, f"scorer.model=FOLDER/{asking}")
    long = (*given, "sources={a: {engine: recorded, path: long.jsonl}}")

    def read(done: Done) -> Any:
        return [read for name in (model, other, asking) for read in done.read(name)]

    def texts(done: Done) -> str:
        return " ".join(entry.text for entry in read(done))

    keys: dict[str, Seam] = {
        "thoughts": scored("scorer.thoughts=keep", lambda d: "hm" in texts(d), False, True, given=given + THINKING),
        "model": scored(f"scorer.model=FOLDER/{other}", lambda d: len(d.read(other)) > 0, False, True, given=given),
        "max_length": scored(
            f"scorer.max_length={length}", lambda d: max(entry.num_tokens for entry in read(d)) <= length, False,
            True, given=long,
        ),
        "truncate": scored("scorer.truncate=middle", Done.scores, given=(*long, f"scorer.max_length={length}")),
        "batch_tokens": scored(
            "scorer.batch_tokens=1", lambda d: max(entry.num_rows for entry in read(d)) > 1, True, False,
            given=given,
        ),
        "float32_head": scored(
            "scorer.float32_head=false",
            lambda d: all(score == float(torch.tensor(score).bfloat16()) for score in d.scores()), False, True,
            given=(*given, "scorer.dtype=bfloat16"),
        ),
        "device": scored("scorer.device=cuda:7", lambda d: "cuda:7" in d.error, False, True, given=given),
        "dtype": scored(
            "scorer.dtype=bfloat16", lambda d: {entry.dtype for entry in read(d)}, CHANGES, {torch.bfloat16},
            given=given,
        ),
        "chat_template_kwargs": scored(
            "scorer.chat_template_kwargs={mark: special}", lambda d: "<special" in texts(d), False, True,
            given=asked,
        ),
        "template_date": scored(
            "scorer.template_date=2020-05-03", lambda d: "03 May 2020" in texts(d), False, True, given=asked
        ),
    }  # fmt: skip
    return {f"scorer[{kind}].{key}": [seam] for key, seam in keys.items()}


def ratio(one: str, other: str, name: str = "m") -> Callable[[Done], Any]:
    """How many times more one answer weighs than another."""
    return lambda d: d.weights(name)[one] / d.weights(name)[other]


def takes_even(done: Done) -> bool:
    """Whether a fine-tuning learns from the preference prompts of the domain `even`."""
    return done.ids("sft") >= done.part("preference") & EVEN


def first_text(done: Done) -> str:
    return str(done.requests[0]["messages"][0]["content"])


def judged(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()) -> Seam:
    seam = scored(change, look, before, after, given=(*JUDGE, *given))
    return replace(seam, together=ASKED_TOGETHER if change in ASKED_TOGETHER else ())


def rewarded(change: str, look: Look, before: Any = CHANGES, after: Any = CHANGES, given: Given = ()) -> Seam:
    """Visible in the requests to a reward model behind a server."""
    seam = scored(change, look, before, after, given=(*REWARDS, *given))
    return replace(seam, together=REWARDED_TOGETHER if change in REWARDED_TOGETHER else ())


def sent_texts(done: Done) -> str:
    """The dialogues whose tokens were sent."""
    tokenizer = build_tokenizer("llama3")
    return " ".join(str(tokenizer.decode(request["input"])) for request in done.requests)


def objective(change: str, kind: str, *, select: str = "kind: wrpo", trains: bool = False) -> Seam:
    """Visible in the trainer's objective or, if it trains, in the loss or the gradient of the first step.

    What each hyper-parameter does to a loss, test_objectives.py and test_trl_parity.py show.
    """
    method = f"preference.m={{select: {{{select}}}, objective: {{{kind}}}, train: {TRAIN}}}"
    look = Done.steps if trains else objective_of
    return trained(f"preference.m.objective.{change}", look, given=("prompts.path=few.jsonl", method), trains=trains)


TRAIN = "{max_steps: 1, learning_rate: 0.01, per_device_train_batch_size: 16, max_length: 128}"
ON_POLICY = "kind: on-policy"

RELAY = "command: [FOLDER/bin/vllm, '{model}', --port, '{port}'], env: {RELAY_TO: URL}"
SERVER = f"engine: managed, {RELAY}, sampling: {{num_samples: 2, max_new_tokens: 4}}"


def managed(place: str, change: str, look: Look, before: Any, after: Any = CHANGES, given: Given = ()) -> Seam:
    """Visible in the requests to the server that is started for a source (``sources.s``) or the target.

    Args:
        place: The model's place in the recipe.
        change: The key and its value, after the place.
        look: See :class:`Seam`.
        before: See :class:`Seam`.
        after: See :class:`Seam`.
        given: Changes after the place in both runs.
    """
    of_target = place == "target"
    form = f"{{{SERVER}, model: FOLDER/letters{', protocol: chat' if of_target else ''}}}"
    start = f"target={form}" if of_target else f"sources={{s: {form}}}"
    until = "sample-target" if of_target else "sample-sources"
    changes = (start, "prompts.path=few.jsonl", *(f"{place}.{each}" for each in given))
    changed = f"{place}{change}" if change.startswith("=") else f"{place}.{change}"
    return Seam(changed, look, before, after, given=changes, until=until)


def managed_seams(key: str, place: str) -> dict[str, list[Seam]]:
    """Entries of the keys that a managed source and a managed target have in common."""
    named = of_requests("model")
    thinks = ("arguments=[--served-model-name, thinker]",)
    fails = ("arguments=[--served-model-name, flaky]", "max_retries=0")
    slow = ("arguments=[--served-model-name, slow]", "max_retries=0")
    dies = ("env={RELAY_TO: URL, RELAY_DIES: once}", "concurrency=1", "sampling.num_samples=1")
    silent = ("command=[sh, -c, 'sleep 2', '{port}', '{model}']", "restarts=0")
    seams: dict[str, tuple[Any, ...]] = {
        "prompt": ("prompt.system=Be brief.", first_text, CHANGES, "Be brief."),
        "sampling": ("sampling={temperature: 0.5}", of_requests("temperature", "max_tokens"), {(0.8, 4)}, {(0.5, 512)}),
        "model": ("model=FOLDER/others", lambda d: {Path(r["model"]).name for r in d.requests}, {"letters"},
                  {"others"}),
        "extra_body": ("extra_body={top_k: 1}", of_requests("top_k"), {(None,)}, {(1,)}),
        "revision": ("revision=fp8", lambda d: {row["identity"] for row in d.table("responses")}, CHANGES),
        "concurrency": ("concurrency=1", lambda d: d.most_open, CHANGES, 1),
        "command": ("command=[FOLDER/bin/vllm, '{model}', --port, '{port}', --served-model-name, other]",
                    lambda d: {r["model"] for r in d.requests} == {"other"}, False, True),
        "arguments": ("arguments=[--served-model-name, other]", named, CHANGES, {("other",)}),
        "env": ("env={RELAY_TO: URL, RELAY_NAME: other}", named, CHANGES, {("other",)}),
        "preset": ("={engine: managed, preset: vllm, protocol: chat, model: FOLDER/letters, env: {PATH: FOLDER/bin, "
                   "RELAY_TO: URL}}", of_requests("top_k", "min_p"), {(None, None)}, {(-1, 0.0)}),
        "reasoning": (f"reasoning={'apart' if place == 'target' else 'in-answer'}",
                      lambda d: THOUGHT in {row["content"] for row in d.table("responses")}, CHANGES, CHANGES, thinks),
        "max_failed": ("max_failed=0.5", lambda d: "max_failed" in d.error, True, False, fails),
        "max_retries": ("max_retries=0", lambda d: bool(d.error), False, True, fails[:1]),
        "timeout_seconds": ("timeout_seconds=0.1", lambda d: bool(d.error), False, True, slow),
        "health_timeout": ("health_timeout=0.001", lambda d: "did not answer within" in d.error, False, True, silent),
        "restarts": ("restarts=0", lambda d: "allows" in d.error, False, True, dies),
    }  # fmt: skip
    return {f"{key}.{name}": [managed(place, *seam)] for name, seam in seams.items()}


SENDS_TOKENS = ("protocol=tokens", "model=FOLDER/asking")


def sent_tokens(done: Done) -> str:
    """The text of the token ids that a managed target's server was asked to continue."""
    return str(tokenizer_of(done.folder.parents[1] / "asking").decode(done.requests[0]["prompt"]))


SEAMS: dict[str, list[Seam]] = {
    **managed_seams("target[managed]", "target"),
    **managed_seams("sources.*[managed]", "sources.s"),
    "target[managed].protocol": [
        managed("target", "protocol=tokens", lambda d: {type(r.get("prompt")) for r in d.requests}, {type(None)},
                {list})
    ],
    "sources.*[managed].protocol": [
        managed("sources.s", "={engine: managed, protocol: completions, prompt: {few_shot: shots.yaml}, model: "
                f"FOLDER/letters, {RELAY}}}", lambda d: "A shot\nA: Bang." in d.requests[0].get("prompt", ""), False,
                True)
    ],
    "target[managed].chat_template_kwargs": [
        managed("target", "chat_template_kwargs={mark: special}", lambda d: "<special" in sent_tokens(d), False, True,
                SENDS_TOKENS)
    ],
    "target[managed].template_date": [
        managed("target", "template_date=2020-05-03", lambda d: "03 May 2020" in sent_tokens(d), False, True,
                SENDS_TOKENS)
    ],
    "target[managed].samples": [
        managed("target", "samples={engine: recorded, path: own.jsonl}", lambda d: len(d.requests), CHANGES, 0)
    ],
    "target[managed].domains": [
        managed("target", "domains=[even]", lambda d: "remove it" in d.error, False, True)
    ],
    "sources.*[managed].domains": [
        managed("sources.s", "domains=[even]", lambda d: len({r["messages"][0]["content"] for r in d.requests}), 2, 1)
    ],
    "target[managed].active_billions": [
        Seam("target.active_billions=70.0", lambda d: d.stage("sample-target")["gpu_hours"], until="",
             given=(f"target={{{SERVER}, model: someone/else}}", "prompts.path=FOLDER/prompts.jsonl"))
    ],
    "sources.*[managed].active_billions": [
        Seam("sources.s.active_billions=70.0", lambda d: d.stage("sample-sources")["gpu_hours"], until="",
             given=(f"sources={{s: {{{SERVER}, model: someone/else}}}}", "prompts.path=FOLDER/prompts.jsonl"))
    ],
    "output": [Seam("output=FOLDER/elsewhere", lambda d: (RECIPES[0].parent / "elsewhere/rows").is_dir(), False, True)],
    "workspace": [
        Seam("workspace=FOLDER/shared", lambda d: (RECIPES[0].parent / "shared/store.sqlite").is_file(), False, True)
    ],
    "seed": [Seam("seed=1", lambda d: [a.content for row in d.rows() for a in row.responses])],
    "template_date": [
        of_source("template_date=2020-05-03", lambda d: d.has_read("03 May 2020"), False, True, given=ASKING_SOURCE)
    ],
    "executor[ray].address": [
        of_source("executor.address=10.0.0.1:6379", lambda d: d.cluster.addresses, ["auto"], ["10.0.0.1:6379"],
                  given=ON_RAY)
    ],
    "executor[ray].target.gpus": [
        sampled("executor.target.gpus=2", lambda d: d.placed("num_gpus"), {1}, {2}, given=ON_RAY[:1])
    ],
    "executor[ray].target.cpus": [
        sampled("executor.target.cpus=3", lambda d: d.placed("num_cpus"), {1}, {3}, given=ON_RAY[:1])
    ],
    "executor[ray].target.copies": [
        sampled("executor.target.copies=1", lambda d: ("needs 1 CPU core and 9 GPUs" in d.error, len(d.letters())),
                (True, 0), (False, 4), given=("executor={kind: ray, target: {gpus: 9}}",))
    ],
    "executor[ray].sources": [
        of_source("executor.sources={s: {cpus: 3}}", lambda d: d.placed("num_cpus"), {1}, {3}, given=ON_RAY)
    ],
    "executor[ray].scorer": [
        scored("executor.scorer={gpus: 2}", lambda d: (d.placed("num_gpus"), len(d.read("reward")) > 0), ({1}, True),
               ({2}, True),
               given=(ON_RAY[0], "scorer={kind: reward-model, model: FOLDER/reward}", "prompts.path=few.jsonl"))
    ],
    "budget.money": [
        served("budget.money=0.001", lambda d: (len(d.requests) < 16, "budget is reached" in d.error), (False, False),
               (True, True), given=("prompts.path=prompts.jsonl", "sources.s.price={output: 1000.0}",
                                    "sources.s.concurrency=1"))
    ],
    "budget.tokens": [of_source("budget.tokens=1", lambda d: len(d.letters()), 8, 4, given=TWO_SOURCES)],
    "budget.hours": [of_source("budget.hours=0.00000001", lambda d: len(d.letters()), 8, 4, given=TWO_SOURCES)],
    "until.rows": [Seam("until.rows=5", lambda d: len(d.ids()), 16, 5, given=("until={rows: 16}",))],
    "until.candidates": [Seam("until.candidates=3", lambda d: len(d.ids()), 16, 3, given=("until={rows: 16}",))],
    "preview": [Seam("preview=3", Done.parts, {"preference": 16}, {"preference": 3}, until="prompts")],
    "prompts.path": [Seam("prompts.path=few.jsonl", ids, ALL, {"n1", "n2"})],
    "prompts.sizes": [
        Seam(
            "prompts.sizes={even: 1, odd: 3}", lambda d: d.stage("sample-sources")["calls"], CHANGES, 4, until="",
            given=("prompts={path: missing.jsonl, split: {preference: 8}, sizes: {even: 1}}",
                   "sources={s: {engine: transformers, model: someone/else, domains: [even]}}",
                   "sources.s.sampling.num_samples=2"),
        )
    ],
    "prompts.deduplicate.ngram": [
        Seam(
            "prompts.deduplicate.ngram=1", Done.parts, {"preference": 2}, {"preference": 1},
            given=("prompts={path: near.jsonl, deduplicate: {ngram: 5}}",), until="prompts",
        )
    ],
    "prompts.deduplicate.similarity": [
        Seam(
            "prompts.deduplicate.similarity=0.7", Done.parts, {"preference": 2}, {"preference": 1},
            given=("prompts={path: near.jsonl, deduplicate: {ngram: 5}}",), until="prompts",
        )
    ],
    "prompts.decontaminate.against": [
        Seam(
            "prompts.decontaminate.against=same.jsonl", Done.parts, {"preference": 2}, {"preference": 1},
            given=("prompts={path: near.jsonl, decontaminate: {against: bench.jsonl, ngram: 10}}",), until="prompts",
        )
    ],
    "prompts.decontaminate.ngram": [
        Seam(
            "prompts.decontaminate.ngram=4", lambda d: (d.parts(), d.error[:6]), ({"preference": 2}, ""),
            CHANGES, given=("prompts={path: near.jsonl, decontaminate: {against: bench.jsonl}}",), until="prompts",
        )
    ],
    "prompts.decontaminate.coverage": [
        Seam(
            "prompts.decontaminate.coverage=0.9", lambda d: (d.parts(), d.error[:6]), CHANGES,
            ({"preference": 2}, ""), until="prompts",
            given=("prompts={path: near.jsonl, decontaminate: {against: bench.jsonl, ngram: 4}}",),
        )
    ],
    "prompts.split.held_out": [
        Seam("prompts.split.held_out=3", Done.parts, {"preference": 16}, {"held_out": 3, "preference": 13},
             until="prompts")
    ],
    "prompts.split.sft": [
        Seam("prompts.split.sft=0.25", lambda d: len(d.ids("sft")), 8, 4, until="select-sft",
             given=("prompts.split.sft=0.5", "sft={select: {kind: best-of-sources}}"))
    ],
    "prompts.split.sft_domains": [
        Seam("prompts.split.sft_domains={even: 0}", lambda d: d.part("sft") <= ALL - EVEN, False, True,
             given=("prompts.split.sft=0.5", "sft={select: {kind: best-of-sources}}"), until="prompts")
    ],
    "prompts.split.development": [
        Seam("prompts.split.development=3", Done.parts, {"preference": 16}, {"development": 3, "preference": 13},
             until="prompts")
    ],
    "prompts.split.preference": [Seam("prompts.split.preference=5", lambda d: len(d.ids()), 16, 5)],
    "target[transformers].prompt.system": [
        Seam("target.prompt.system=Be brief.", lambda d: {row.messages[0].content for row in d.rows()}, CHANGES,
             {"Be brief."}),
        sampled("target.prompt.system=Be brief.", lambda d: d.has_read("Be brief."), False, True),
    ],
    "target[transformers].prompt.few_shot": [
        sampled("target.prompt.few_shot=shots.yaml", lambda d: "remove few_shot" in d.error, False, True)
    ],
    "target[transformers].sampling.num_samples": [
        sampled("target.sampling.num_samples=3", lambda d: len(d.letters()), 4, 6)
    ],
    "target[transformers].sampling.temperature": [
        sampled(GREEDY, lambda d: set(d.letters()) == {"AAAA"}, False, True)
    ],
    "target[transformers].sampling.top_p": [
        sampled("target.sampling.top_p=0.5", lambda d: set("".join(d.letters())) == {"A"}, False, True),
        sampled("target.sampling.top_p=0.7", lambda d: set("".join(d.letters())), set("ABCD"), {"A", "B"},
                given=("target.sampling={num_samples: 4, max_new_tokens: 8, temperature: 1.0, top_p: 1.0}",)),
    ],
    "target[transformers].sampling.repetition_penalty": [
        sampled("target.sampling.repetition_penalty=10.0", lambda d: set(d.letters()), {"AAAA"}, {"ABCD"},
                given=(GREEDY,))
    ],
    "target[transformers].sampling.max_new_tokens": [
        sampled("target.sampling.max_new_tokens=2", lambda d: {len(text) for text in d.letters()}, {4}, {2})
    ],
    "target[transformers].sampling.seed": [
        sampled("target.sampling.seed=5", lambda d: sorted(d.letters()))
    ],
    "target[transformers].domains": [
        Seam("target.domains=[even]", lambda d: "remove it" in d.error, False, True)
    ],
    "target[transformers].model": [
        sampled("target.model=FOLDER/others", lambda d: set(d.letters()), {"AAAA"}, {"WWWW"}, given=(GREEDY,))
    ],
    "target[transformers].active_billions": [
        Seam("target.active_billions=70.0", lambda d: d.stage("sample-target")["gpu_hours"], until="",
             given=("target.samples=null", "target.model=someone/else", "prompts.path=FOLDER/prompts.jsonl"))
    ],
    "target[transformers].device": [
        sampled("target.device=cuda:7", lambda d: "cuda:7" in d.error, False, True)
    ],
    "target[transformers].dtype": [
        sampled("target.dtype=bfloat16", lambda d: {read.dtype for read in d.reads}, CHANGES, {torch.bfloat16})
    ],
    "target[transformers].chat_template_kwargs": [
        sampled("target.chat_template_kwargs={mark: special}", lambda d: d.has_read("<special"), False, True,
                given=("target.model=FOLDER/asking",)),
    ],
    "target[transformers].template_date": [
        sampled("target.template_date=2020-05-03", lambda d: d.has_read("03 May 2020"), False, True,
                given=("target.model=FOLDER/asking",)),
    ],
    "target[transformers].samples[recorded].path": [
        Seam("target.samples.path=own2.jsonl", contents("chosen_target"), {"t0", "t1"}, {"t0"})
    ],
    "target[transformers].samples[recorded].num_samples": [
        Seam("target.samples.num_samples=2", contents("rejected"), {"t2"}, {"t0", "t1"})
    ],
    "target[transformers].samples[recorded].domains": [Seam("target.samples.domains=[even]", ids, ALL, EVEN)],
    "sources.*[transformers].prompt": [
        of_source("sources.s.prompt.few_shot=shots.yaml", lambda d: d.has_read("A shot\nA: Bang."), False, True),
        of_source("sources.s.prompt.system=Be brief.", lambda d: d.has_read("Be brief."), False, True),
    ],
    "sources.*[transformers].sampling": [
        of_source(
            "sources.s.sampling={num_samples: 3, temperature: 0, repetition_penalty: 10.0, max_new_tokens: 3}",
            lambda d: (len(d.letters()), set(d.letters())), CHANGES, (6, {"ABC"}),
        ),
        of_source("sources.s.sampling.top_p=0.5", lambda d: set("".join(d.letters())), CHANGES, {"A"}),
        of_source("sources.s.sampling.seed=5", lambda d: sorted(d.letters())),
    ],
    "sources.*[transformers].domains": [
        of_source("sources.s.domains=[even]", lambda d: len(d.letters()), 4, 2),
        Seam("sources.a.domains=[odd]", lambda d: {r.prompt_id for r in d.rows() for a in r.responses
                                                     if a.source == "a"} <= ALL - EVEN, False, True),
    ],
    "sources.*[transformers].model": [
        of_source("sources.s.model=FOLDER/others", lambda d: set("".join(d.letters())) <= set("WXYZ"), False, True)
    ],
    "sources.*[transformers].active_billions": [
        Seam("sources.s.active_billions=70.0", lambda d: d.stage("sample-sources")["gpu_hours"], until="",
             given=(SOURCE[0], "sources.s.model=someone/else"))
    ],
    "sources.*[transformers].device": [
        of_source("sources.s.device=cuda:7", lambda d: "cuda:7" in d.error, False, True)
    ],
    "sources.*[transformers].dtype": [
        of_source("sources.s.dtype=bfloat16", lambda d: {read.dtype for read in d.reads}, CHANGES, {torch.bfloat16})
    ],
    "sources.*[transformers].chat_template_kwargs": [
        of_source("sources.s.chat_template_kwargs={mark: special}", lambda d: d.has_read("<special"), False, True,
                  given=ASKING_SOURCE)
    ],
    "sources.*[endpoint].prompt": [
        served("sources.s.prompt.system=Be brief.", first_text, CHANGES, "Be brief.")
    ],
    "sources.*[endpoint].sampling": [
        served(SERVED_TOGETHER[-1], of_requests("temperature", "top_p", "repetition_penalty", "max_tokens"),
               {(0.8, 0.95, None, 4)}, {(0.5, 0.25, 1.5, 512)})
    ],
    "sources.*[endpoint].domains": [
        served("sources.s.domains=[even]", lambda d: len({r["messages"][0]["content"] for r in d.requests}), 2, 1)
    ],
    "sources.*[endpoint].model": [
        served("sources.s.model=other", of_requests("model"), {("m",)}, {("other",)})
    ],
    "sources.*[endpoint].revision": [
        served("sources.s.revision=v2", lambda d: {row["identity"] for row in d.table("responses")})
    ],
    "sources.*[endpoint].protocol": [
        served("sources.s={engine: endpoint, protocol: completions, model: m, base_url: URL, prompt: {few_shot: "
               "shots.yaml}}", lambda d: "A shot\nA: Bang." in d.requests[0].get("prompt", ""), False, True)
    ],
    "sources.*[endpoint].extra_body": [
        served("sources.s.extra_body={top_k: 1}", of_requests("top_k"), {(None,)}, {(1,)})
    ],
    "sources.*[endpoint].reasoning": [
        served("sources.s.reasoning=in-answer", lambda d: {row["content"] for row in d.table("responses")},
               {"a1"}, {THOUGHT}, given=("sources.s.model=thinker",))
    ],
    "sources.*[endpoint].max_failed": [
        served("sources.s.max_failed=0.5", lambda d: "max_failed" in d.error, True, False,
               given=("sources.s.model=flaky", "sources.s.max_retries=0"))
    ],
    "sources.*[endpoint].base_url": [
        served("sources.s.base_url=http://127.0.0.1:9/v1", lambda d: (len(d.requests), bool(d.error)), CHANGES,
               (0, True), given=("sources.s.max_retries=0",))
    ],
    "sources.*[endpoint].api_key_env": [
        served("sources.s.api_key_env=SEAMS_KEY", lambda d: {h["authorization"] for h in d.headers}, CHANGES,
               {"Bearer secret"})
    ],
    "sources.*[endpoint].concurrency": [
        served("sources.s.concurrency=1", lambda d: d.most_open, CHANGES, 1)
    ],
    "sources.*[endpoint].requests_per_minute": [
        served("sources.s.requests_per_minute=60", lambda d: d.most_open, CHANGES, 1,
               given=("sources.s.sampling.num_samples=1",))
    ],
    "sources.*[endpoint].tokens_per_minute": [
        served("sources.s.tokens_per_minute=4000", lambda d: d.most_open, CHANGES, 1,
               given=("sources.s.sampling.num_samples=1",))
    ],
    "sources.*[endpoint].timeout_seconds": [
        served("sources.s.timeout_seconds=0.1", lambda d: bool(d.error), False, True,
               given=("sources.s.model=slow", "sources.s.max_retries=0", "sources.s.sampling.num_samples=1"))
    ],
    "sources.*[endpoint].max_retries": [
        served("sources.s.max_retries=0", lambda d: bool(d.error), False, True, given=("sources.s.model=flaky",))
    ],
    "sources.*[endpoint].price.input": [
        served("sources.s.price={input: 1000.0}", Done.spent, 0.0, 0.008)
    ],
    "sources.*[endpoint].price.output": [
        served("sources.s.price={output: 1000.0}", Done.spent, 0.0, 0.004)
    ],
    "sources.*[endpoint].price.cached_input": [
        served("sources.s.price={cached_input: 1000.0}", Done.spent, 0.0, 0.004)
    ],
    "sources.*[batch].prompt": [
        by_jobs("sources.s.prompt.system=Be brief.", lambda d: d.job_requests[0]["messages"][0]["content"], CHANGES,
                "Be brief.")
    ],
    "sources.*[batch].sampling": [
        by_jobs("sources.s.sampling.max_new_tokens=7", lambda d: d.job_requests[0]["max_tokens"], 4, 7)
    ],
    "sources.*[batch].domains": [
        by_jobs("sources.s.domains=[even]", lambda d: len(d.job_requests), 2, 1)
    ],
    "sources.*[batch].model": [
        by_jobs("sources.s.model=other", lambda d: {request["model"] for request in d.job_requests}, {"m"}, {"other"})
    ],
    "sources.*[batch].revision": [
        by_jobs("sources.s.revision=v2", lambda d: {row["identity"] for row in d.table("responses")})
    ],
    "sources.*[batch].protocol": [
        by_jobs("sources.s={engine: batch, protocol: completions, model: m, base_url: JOBS, poll_seconds: 0.01, "
                "prompt: {few_shot: shots.yaml}}", lambda d: d.jobs[0]["endpoint"], "/v1/chat/completions",
                "/v1/completions")
    ],
    "sources.*[batch].extra_body": [
        by_jobs("sources.s.extra_body={top_k: 1}", lambda d: {request.get("top_k") for request in d.job_requests},
                {None}, {1})
    ],
    "sources.*[batch].reasoning": [
        by_jobs("sources.s.reasoning=in-answer", lambda d: {row["content"] for row in d.table("responses")},
                {"a1"}, {THOUGHT}, given=("sources.s.model=thinker",))
    ],
    "sources.*[batch].max_failed": [
        by_jobs("sources.s.max_failed=0.5", lambda d: "max_failed" in d.error, True, False,
                given=("sources.s.model=half", "sources.s.sampling.num_samples=1"))
    ],
    "sources.*[batch].base_url": [
        by_jobs("sources.s.base_url=http://127.0.0.1:9/v1", lambda d: (len(d.jobs), bool(d.error)), (1, False),
                (0, True), given=("sources.s.max_retries=0",))
    ],
    "sources.*[batch].api_key_env": [
        by_jobs("sources.s.api_key_env=SEAMS_KEY", lambda d: d.job_keys, CHANGES, {"Bearer secret"})
    ],
    "sources.*[batch].timeout_seconds": [
        by_jobs("sources.s.timeout_seconds=0.1", lambda d: bool(d.error), False, True,
                given=("sources.s.model=slow", "sources.s.max_retries=0"))
    ],
    "sources.*[batch].max_retries": [
        by_jobs("sources.s.max_retries=0", lambda d: bool(d.error), False, True, given=("sources.s.model=flaky",))
    ],
    "sources.*[batch].price": [
        by_jobs("sources.s.price={output: 1000.0}", Done.spent, 0.0, 0.008)
    ],
    "sources.*[batch].command": [
        by_jobs("sources.s={engine: batch, model: m, sampling: {num_samples: 2}, poll_seconds: 0.01, command: [PYTHON, "
                "-m, tests.run_batch, -i, '{input}', -o, '{output}', --model, m]}",
                lambda d: (len(d.jobs), len(d.table("responses"))), (1, 4), (0, 4))
    ],
    "sources.*[batch].chunk": [
        by_jobs("sources.s.chunk=1", lambda d: len(d.jobs), 1, 2)
    ],
    "sources.*[batch].concurrency": [
        by_jobs("sources.s.concurrency=1", lambda d: d.most_jobs, 2, 1, given=("sources.s.chunk=1",))
    ],
    "sources.*[batch].poll_seconds": [
        by_jobs("sources.s.poll_seconds=1.5", lambda d: d.job_looks[1] - d.job_looks[0] > 1.4, False, True)
    ],
    "sources.*[batch].completion_window": [
        by_jobs("sources.s.completion_window=1h", lambda d: d.jobs[0]["completion_window"], "24h", "1h")
    ],
    "sources.*[batch].batch_discount": [
        by_jobs("sources.s.batch_discount=0.25", Done.spent, 0.008, 0.012, given=("sources.s.price={output: 1000.0}",))
    ],
    "sources.*[batch].lost_jobs": [
        by_jobs("sources.s.lost_jobs=ask-again", lambda d: "lost_jobs" in d.error, True, False,
                given=("sources.s.model=forgetful",))
    ],
    "sources.*[transformers].template_date": [
        of_source("sources.s.template_date=2020-05-03", lambda d: d.has_read("03 May 2020"), False, True,
                  given=ASKING_SOURCE)
    ],
    "scorer[exact-match].thoughts": [
        scored("scorer.thoughts=keep", lambda d: set(d.scores()), {1.0}, {0.0}, given=EXACT + THINKING)
    ],
    "scorer[mathematics].thoughts": [
        scored("scorer.thoughts=keep", lambda d: "I say 7" in str(d.asked_workers), False, True,
               given=MATHEMATICS)
    ],
    "scorer[mathematics].timeout_seconds": [
        scored("scorer.timeout_seconds=0.25", lambda d: {asked[0] for asked in d.asked_workers}, {3.0}, {0.25},
               given=MATHEMATICS)
    ],
    "scorer[mathematics].num_workers": [
        scored("scorer.num_workers=5", lambda d: 5 in d.workers, False, True, given=MATHEMATICS)
    ],
    "scorer[code].thoughts": [
        scored("scorer.thoughts=refuse", Done.scores, [1.0], [None], given=(*CODE, "sources.t.path=thoughtful.jsonl"))
    ],
    "scorer[code].timeout_seconds": [
        scored("scorer.timeout_seconds=0.3", Done.scores, [1.0], [0.0], given=CODE)
    ],
    "scorer[code].num_workers": [
        scored("scorer.num_workers=5", lambda d: 5 in d.workers, False, True, given=CODE)
    ],
    "scorer[python].thoughts": [
        scored("scorer.thoughts=keep", Done.scores, [2.0] * 2, [19.0] * 2, given=PYTHON + THINKING)
    ],
    "scorer[python].path": [scored("scorer.path=yours.py", lambda d: set(d.scores()), {2.0}, {-2.0}, given=PYTHON)],
    "scorer[python].function": [
        scored("scorer.function=score_twice", lambda d: set(d.scores()), {2.0}, {4.0}, given=PYTHON)
    ],
    "scorer[python].needs_answers": [
        scored("scorer.needs_answers=true", lambda d: "needs accepted answers" in d.error, False, True,
               given=(*PYTHON, "prompts.path=open.jsonl"))
    ],
    **reader("reward-model", "reward", "reward2", "asking-reward", length=60),
    **reader("armorm", "armorm", "armorm2", "asking-armorm", length=120),
    "scorer[reward-model endpoint].model": [
        rewarded("scorer.model=FOLDER/asking-reward", sent_texts)
    ],
    "scorer[reward-model endpoint].chat_template_kwargs": [
        rewarded("scorer.chat_template_kwargs={mark: special}", lambda d: "<special" in sent_texts(d), False, True,
                 given=ASKING_REWARD)
    ],
    "scorer[reward-model endpoint].template_date": [
        rewarded("scorer.template_date=2020-05-03", lambda d: "03 May 2020" in sent_texts(d), False, True,
                 given=ASKING_REWARD)
    ],
    "scorer[reward-model endpoint].thoughts": [
        rewarded("scorer.thoughts=keep", lambda d: "hm" in sent_texts(d), False, True, given=THINKING)
    ],
    "scorer[reward-model endpoint].max_length": [
        rewarded("scorer.max_length=60", lambda d: max(len(request["input"]) for request in d.requests) <= 60, False,
                 True, given=LONG_ANSWERS)
    ],
    "scorer[reward-model endpoint].truncate": [
        rewarded("scorer.truncate=middle", sent_texts, given=(*LONG_ANSWERS, "scorer.max_length=60"))
    ],
    "scorer[reward-model endpoint].served_model": [
        rewarded("scorer.served_model=other", lambda d: {request.get("model") for request in d.requests}, {None},
                 {"other"})
    ],
    "scorer[reward-model endpoint].protocol": [
        rewarded("scorer.protocol=score", lambda d: {"text_1" in request for request in d.requests}, {False}, {True})
    ],
    "scorer[reward-model endpoint].revision": [
        rewarded("scorer.revision=v2", lambda d: {row["scorer"] for row in d.table("scores")})
    ],
    "scorer[reward-model endpoint].base_url": [
        rewarded("scorer.base_url=http://127.0.0.1:9/v1", lambda d: (len(d.requests), "127.0.0.1:9" in d.error),
                 CHANGES, (0, True), given=("scorer.max_retries=0",)),
        rewarded("scorer.base_url=[http://127.0.0.1:9/v1, URL]", lambda d: bool(d.requests), False, True,
                 given=("scorer.base_url=http://127.0.0.1:9/v1", "scorer.max_retries=1")),
    ],
    "scorer[reward-model endpoint].api_key_env": [
        rewarded("scorer.api_key_env=SEAMS_KEY", lambda d: {h["authorization"] for h in d.headers}, CHANGES,
                 {"Bearer secret"})
    ],
    "scorer[reward-model endpoint].concurrency": [
        rewarded("scorer.concurrency=1", lambda d: d.most_open, CHANGES, 1)
    ],
    "scorer[reward-model endpoint].requests_per_minute": [
        rewarded("scorer.requests_per_minute=90", lambda d: d.most_open, CHANGES, 1, given=TWO_ANSWERS)
    ],
    "scorer[reward-model endpoint].tokens_per_minute": [
        rewarded("scorer.tokens_per_minute=3000", lambda d: d.most_open, CHANGES, 1, given=TWO_ANSWERS)
    ],
    "scorer[reward-model endpoint].timeout_seconds": [
        rewarded("scorer.timeout_seconds=0.1", lambda d: bool(d.error), False, True,
                 given=("scorer.served_model=slow", "scorer.max_retries=0", *TWO_ANSWERS))
    ],
    "scorer[reward-model endpoint].max_retries": [
        rewarded("scorer.max_retries=0", lambda d: bool(d.error), False, True, given=("scorer.served_model=flaky",))
    ],
    "scorer[reward-model endpoint].price": [rewarded("scorer.price={input: 1000.0}", Done.spent, 0.0)],
    "scorer[judge].thoughts": [
        judged("scorer.thoughts=keep", lambda d: "hm" in first_text(d), False, True, given=THINKING)
    ],
    "scorer[judge].model": [
        judged("scorer.model=other", lambda d: {request["model"] for request in d.requests}, {"m"}, {"other"})
    ],
    "scorer[judge].mode": [
        judged("scorer.mode=pairwise", lambda d: (len(d.requests), set(d.scores())), (16, {7.0}), (30, {0.5}))
    ],
    "scorer[judge].rubric": [
        judged("scorer.rubric={wit: How funny., depth: How deep.}", lambda d: "How deep." in first_text(d), False,
               True, given=("scorer.mode=rubric", "scorer.rubric={wit: How funny.}"))
    ],
    "scorer[judge].baseline": [
        judged("scorer.baseline=FOLDER/baseline.jsonl", lambda d: "the baseline" in first_text(d), False, True,
               given=PAIRWISE)
    ],
    "scorer[judge].explain": [
        judged("scorer.explain=false", lambda d: "explanation" in json.dumps(d.requests), True, False)
    ],
    "scorer[judge].temperature": [
        judged("scorer.temperature=0.5", lambda d: {r.get("temperature") for r in d.requests}, {0.0}, {0.5}),
        judged("scorer.temperature=none", lambda d: {r.get("temperature") for r in d.requests}, {0.0}, {None}),
    ],
    "scorer[judge].max_tokens": [
        judged("scorer.max_tokens=99", lambda d: {r["max_completion_tokens"] for r in d.requests}, {2048}, {99})
    ],
    "scorer[judge].response_format": [
        judged("scorer.response_format=json_object", lambda d: {r["response_format"]["type"] for r in d.requests},
               {"json_schema"}, {"json_object"})
    ],
    "scorer[judge].extra_body": [
        judged("scorer.extra_body={top_k: 1}", lambda d: {r.get("top_k") for r in d.requests}, {None}, {1})
    ],
    "scorer[judge].revision": [
        judged("scorer.revision=v2", lambda d: {row["scorer"] for row in d.table("scores")})
    ],
    "scorer[judge].base_url": [
        judged("scorer.base_url=http://127.0.0.1:9/v1", lambda d: (len(d.requests), "127.0.0.1:9" in d.error),
               (16, False), (0, True), given=("scorer.max_retries=0",))
    ],
    "scorer[judge].api_key_env": [
        judged("scorer.api_key_env=SEAMS_KEY", lambda d: {h["authorization"] for h in d.headers}, CHANGES,
               {"Bearer secret"})
    ],
    "scorer[judge].concurrency": [
        judged("scorer.concurrency=1", lambda d: d.most_open, CHANGES, 1)
    ],
    "scorer[judge].requests_per_minute": [
        judged("scorer.requests_per_minute=90", lambda d: d.most_open, CHANGES, 1, given=TWO_ANSWERS)
    ],
    "scorer[judge].tokens_per_minute": [
        judged("scorer.tokens_per_minute=30000", lambda d: d.most_open, CHANGES, 1, given=TWO_ANSWERS)
    ],
    "scorer[judge].price": [judged("scorer.price={input: 1000.0}", Done.spent, 0.0)],
    "scorer[judge].max_retries": [
        judged("scorer.max_retries=0", lambda d: bool(d.error), False, True, given=("scorer.model=flaky",))
    ],
    "scorer[judge].timeout_seconds": [
        judged("scorer.timeout_seconds=0.1", lambda d: bool(d.error), False, True,
               given=("scorer.model=slow", "scorer.max_retries=0", "prompts.path=one.jsonl",
                      "sources={a: {engine: recorded, path: a.jsonl, num_samples: 1}}"))
    ],
    "scorer[judge].max_invalid": [
        judged("scorer.max_invalid=0.5", lambda d: "max_invalid" in d.error, True, False,
               given=("scorer.model=confused",))
    ],
    "scorer[recorded].path": [Seam("scorer.path=turned.jsonl", contents("chosen_source"), CHANGES, {"b2", "b3"})],
    "scorer[recorded].missing": [
        Seam("scorer.missing=drop", lambda d: "no score" in d.error, True, False, given=("scorer.path=gaps.jsonl",))
    ],
    "scorer[combination].rule": [
        scored("scorer.rule=gate", Done.scores, given=COMBINATION)
    ],
    "scorer[combination].parts": [
        scored("scorer.parts.y.path=turned.jsonl", Done.scores, given=COMBINATION)
    ],
    "scorer[combination].weights": [
        scored("scorer.weights={x: 100.0}", lambda d: max(s for s in d.scores() if s is not None) > 100, False, True,
               given=COMBINATION)
    ],
    "scorer[combination].failing_value": [
        scored("scorer.failing_value=-50.0", lambda d: -50.0 in d.scores(), False, True,
               given=(*COMBINATION, "scorer.rule=gate"))
    ],
    "scorer[combination].step": [
        scored("scorer.step=5.0", Done.scores, given=(*COMBINATION, "scorer.rule=rank"))
    ],
    "scorer[by-domain].domains": [
        scored("scorer.domains={even: {kind: exact-match}}", lambda d: 7.0 in d.scores(), True, False,
               given=BY_DOMAIN)
    ],
    "scorer[by-domain].other": [
        scored("scorer.other={kind: recorded, path: turned.jsonl}", lambda d: -7.0 in d.scores(), False, True,
               given=BY_DOMAIN)
    ],
    "sft.select[best-of-sources].sources": [
        tuned(BEST, "sources=[b]", contents("chosen", "sft"), {"a0", "a1", "b0"}, {"b0"})
    ],
    "sft.select[best-of-sources].num_samples": [
        tuned(BEST, "num_samples=1", contents("chosen", "sft"), {"a0", "a1", "b0"}, {"a0", "b0"})
    ],
    "sft.select[best-of-sources].ties": [
        tuned(BEST, "ties=first", contents("chosen", "sft"), {"a0", "a1", "b0"}, {"a0", "a1"})
    ],
    "sft.select[best-of-sources].truncated": [
        tuned(BEST, "truncated=keep", contents("chosen", "sft"), {"a0", "a1", "b0"}, {"a0", "a2"})
    ],
    "sft.select[fusesft].sources": [
        tuned(FUSESFT, "sources=[b]", contents(None, "sft"), CHANGES, B0_TO_B3)
    ],
    "sft.select[fusesft].num_samples": [
        tuned(FUSESFT, "num_samples=1", contents(None, "sft"), CHANGES, {"a0", "b0"})
    ],
    "sft.select[fusesft].temperature": [
        tuned(FUSESFT, "temperature=2.0", ratio("a1", "a0", "sft"), pytest.approx(math.e**2), pytest.approx(math.e))
    ],
    "sft.select[fusesft].keep": [
        tuned(FUSESFT, "keep=each-source", lambda d: {len(row.responses) for row in d.rows("sft")}, {4}, {2})
    ],
    "sft.select[fusesft].num_responses": [
        tuned(FUSESFT, "num_responses=2", lambda d: {len(row.responses) for row in d.rows("sft")}, {4}, {2})
    ],
    "sft.select[fusesft].ties": [
        tuned(FUSESFT, "ties=first", contents(None, "sft"), CHANGES, {"a0", "a1"},
              given=("sft.select.num_responses=1",))
    ],
    "sft.select[fusesft].truncated": [
        tuned(FUSESFT, "truncated=keep", lambda d: "a2" in d.contents(None, "sft"), False, True)
    ],
    "sft.extra_prompts.dropped_by": [
        Seam("sft.extra_prompts.dropped_by=k", takes_even, False, True, until="select-sft",
             given=(*EXTRA, "sft.extra_prompts={dropped_by: m}"))
    ],
    "sft.extra_prompts.domains": [
        Seam("sft.extra_prompts.domains=[odd]", takes_even, True, False, until="select-sft",
             given=(*EXTRA, "sft.extra_prompts={dropped_by: k}"))
    ],
    "sft.train": [
        Seam("sft.train={learning_rate: 0.5, max_steps: 1}",
             lambda d: [(a.learning_rate, a.max_steps) for a in d.arguments], CHANGES, [(0.5, 1)],
             given=(*SFT, "sft.train={max_steps: 2}"), until="train-sft", trains=False, resumes=True)
    ],
    "sft.grid": [
        Seam("sft.grid=[{train.learning_rate: [0.25, 0.5]}]", lambda d: [a.learning_rate for a in d.arguments],
             [0.125], [0.25],  # of its first cell
             given=(*SFT, "sft.train={max_steps: 1, learning_rate: 0.125}", *DEVELOPMENT), until="train-sft",
             trains=False, resumes=True)
    ],
    "preference.*.select[wrpo].sources": [
        selected("kind: wrpo", "sources=[b]", contents("chosen_source"), {"a0", "a1", "b0"}, {"b0"})
    ],
    "preference.*.select[wrpo].num_samples": [
        selected("kind: wrpo", "num_samples=1", contents("chosen_source"), {"a0", "a1", "b0"}, {"a0", "b0"})
    ],
    "preference.*.select[wrpo].rank": [
        selected("kind: wrpo, ties: first", "rank=3", contents("chosen_source"), {"a0", "a1"}, {"a0", "b0"})
    ],
    "preference.*.select[wrpo].rejected_source": [
        selected("kind: wrpo", "rejected_source=true", contents("rejected_source"), set(), CHANGES)
    ],
    "preference.*.select[wrpo].min_margin": [selected("kind: wrpo", "min_margin=3.0", ids, ALL, {"n1"})],
    "preference.*.select[wrpo].ties": [
        selected("kind: wrpo", "ties=first", contents("chosen_source"), {"a0", "a1", "b0"}, {"a0", "a1"})
    ],
    "preference.*.select[wrpo].target_ties": [
        selected("kind: wrpo", "target_ties=drop", ids, ALL, {"n0"}, given=EXACT)
    ],
    "preference.*.select[wrpo].truncated": [
        selected("kind: wrpo", "truncated=keep", contents("chosen_target"), {"t0", "t1"}, {"t0", "t3"})
    ],
    "preference.*.select[fusepo].sources": [
        selected(FUSEPO, "sources=[b]", contents("chosen"), CHANGES, {"b0"})
    ],
    "preference.*.select[fusepo].num_samples": [
        selected(FUSEPO, "num_samples=2", contents("rejected"), CHANGES, {"a0", "a1", "b1"})
    ],
    "preference.*.select[fusepo].temperature": [
        selected(FUSEPO, "temperature=2.0", ratio("a1", "b0"), given=("scorer.path=uneven.jsonl",))
    ],
    "preference.*.select[fusepo].min_margin": [
        selected(FUSEPO, "min_margin=3.0", contents("chosen"), {"a0", "a1", "b0"}, {"b0"})
    ],
    "preference.*.select[fusepo].ties": [
        selected(FUSEPO, "ties=first", contents("rejected"), {"a0", "a3", "b2", "b3"}, {"a0", "a3", "b2"})
    ],
    "preference.*.select[fusepo].truncated": [
        selected(FUSEPO, "truncated=keep", contents("chosen"), {"a0", "a1", "b0"}, {"a0", "a2", "b0"})
    ],
    "preference.*.select[fusepo-rloo].sources": [
        selected(FUSEPO_RLOO, "sources=[b]", contents(None), CHANGES, B0_TO_B3)
    ],
    "preference.*.select[fusepo-rloo].num_samples": [
        selected(FUSEPO_RLOO, "num_samples=2", contents(None), CHANGES, {"a0", "a1", "b0", "b1"})
    ],
    "preference.*.select[fusepo-rloo].temperature": [
        selected(FUSEPO_RLOO, "temperature=2.0", ratio("a1", "b0"), given=("scorer.path=uneven.jsonl",))
    ],
    "preference.*.select[fusepo-rloo].truncated": [
        selected(FUSEPO_RLOO, "truncated=keep", lambda d: "a2" in d.contents(None), False, True)
    ],
    "preference.*.select[fusechat3].sources": [
        selected(FUSECHAT3, "sources=[b]", contents("chosen"), {"a0", "a1", "b0"}, {"b0"})
    ],
    "preference.*.select[fusechat3].num_samples": [
        selected(FUSECHAT3, "num_samples=2", contents("rejected"), CHANGES, {"a0", "a1", "b1"})
    ],
    "preference.*.select[fusechat3].window": [
        selected(FUSECHAT3, "window=[5.0, 6.5]", contents("chosen"), {"a0", "a1", "b0"}, {"b0"})
    ],
    "preference.*.select[fusechat3].windows": [
        selected(FUSECHAT3, "windows={even: [5.0, 6.5]}",
                 lambda d: {a.content for row in d.rows() if row.prompt_id in EVEN for a in row.responses
                            if a.role == "chosen"}, {"a0", "a1", "b0"}, {"b0"})
    ],
    "preference.*.select[fusechat3].ties": [
        selected(FUSECHAT3, "ties=first", contents("chosen"), {"a0", "a1", "b0"}, {"a0", "a1"})
    ],
    "preference.*.select[fusechat3].truncated": [
        selected(FUSECHAT3, "truncated=keep", contents("chosen"), {"a0", "a1", "b0"}, {"a0", "a2"})
    ],
    "preference.*.select[on-policy].min_margin": [selected(ON_POLICY, "min_margin=3.0", ids, ALL, {"n1"})],
    "preference.*.select[on-policy].ties": [
        selected(ON_POLICY, "ties=first", contents("chosen"), {"t0", "t1"}, {"t0"})
    ],
    "preference.*.select[on-policy].truncated": [
        selected(ON_POLICY, "truncated=keep", contents("chosen"), {"t0", "t1"}, {"t0", "t3"})
    ],
    "preference.*.select[rloo].truncated": [
        selected("kind: rloo", "truncated=keep", contents(None), {"t0", "t1", "t2"}, {"t0", "t1", "t2", "t3"})
    ],
    "preference.*.objective.kind": [objective("kind=ln-dpo", "kind: dpo", select=ON_POLICY)],
    "preference.*.objective.base": [objective("base=ipo", "kind: wrpo")],
    "preference.*.objective.beta": [objective("beta=0.5", "kind: dpo", select=ON_POLICY)],
    "preference.*.objective.gamma": [objective("gamma=0.5", "kind: simpo", select=ON_POLICY)],
    "preference.*.objective.tau": [objective("tau=0.5", "kind: ipo", select=ON_POLICY)],
    "preference.*.objective.average_logps": [objective("average_logps=true", "kind: ipo", select=ON_POLICY)],
    "preference.*.objective.label_smoothing": [objective("label_smoothing=0.25", "kind: dpo", select=ON_POLICY)],
    "preference.*.objective.alpha": [objective("alpha=0.5", "kind: wrpo, alpha_schedule: constant", trains=True)],
    "preference.*.objective.alpha_schedule": [objective("alpha_schedule=constant", "kind: wrpo")],
    "preference.*.objective.rejected_mix": [
        objective("rejected_mix=true", "kind: wrpo, alpha_schedule: constant",
                  select="kind: wrpo, rejected_source: true")
    ],
    "preference.*.objective.baseline": [objective("baseline=all", "kind: fusepo-rloo", select=FUSEPO_RLOO)],
    "preference.*.objective.kl": [
        objective("kl=0.5", "kind: rloo", select="kind: rloo")
    ],
    "score": [
        Seam("score=on-demand", lambda d: len(d.table("scores")), CHANGES, CHANGES, until="score-target")
    ],
    "preference.*.target_samples": [
        Seam("preference.m.target_samples=target", lambda d: {read.model for read in d.reads}, CHANGES,
             {"tiny"}, given=(*SFT, "sft.train={max_steps: 1}", "target.samples=null",
                              "target.sampling={num_samples: 2, max_new_tokens: 2}"), until="sample-target")
    ],
    "preference.*.train": [
        trained("preference.m.train.learning_rate=0.5", lambda d: [a.learning_rate for a in d.arguments], [0.1],
                [0.5]),
        trained("preference.m.train.weight_decay=0.25", lambda d: [a.weight_decay for a in d.arguments], [0.0],
                [0.25]),
        trained("preference.m.train.max_length=24", lambda d: d.arguments[0].max_length, 128, 24),
    ],
    "preference.*.grid": [
        trained("preference.m.grid=[{train.learning_rate: [0.25, 0.5]}]",
                lambda d: [a.learning_rate for a in d.arguments], [0.1], [0.25], given=DEVELOPMENT)  # of its first cell
    ],
    "preference.*.sft": [
        Seam("preference.m.sft={select: {kind: best-of-sources}, train: {max_steps: 1}}",
             lambda d: sorted(path.name for path in (d.folder / "rows").iterdir()), ["m.parquet"],
             ["m-sft.parquet", "m.parquet"], given=("prompts.split.sft=0.5", "target.model=FOLDER/tiny"))
    ],
    "evaluation.held_out.scorer": [
        Seam("evaluation.held_out.scorer={kind: recorded, path: scores.jsonl, missing: drop}",
             lambda d: sorted(d.figures()["models"]["a"]), CHANGES, ["score"],
             given=HELD_OUT, until="evaluate")
    ],
    "evaluation.held_out.max_new_tokens": [
        Seam("evaluation.held_out.max_new_tokens=2", lambda d: set(d.letters()), {"AAAA"}, {"AA"},
             given=HELD_OUT, until="sample-held-out")
    ],
}  # fmt: skip


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_a_changed_key_is_seen_at_the_far_end(key: str, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    assert key in SEAMS, f"the recipe has a new key: say in SEAMS what a change of {key} changes"
    monkeypatch.setenv("SEAMS_KEY", "secret")
    for seam in SEAMS[key]:
        if "kind: code" in str(seam.given):
            try:
                check_isolation()
            except SandboxError as error:
                pytest.skip(str(error))
        name = key.rpartition(".")[2]
        assert name in seam.change, "the change is of this key"
        done = world.carry_out(seam.given, seam.until, seam.trains)
        before = seam.look(done)
        assert not seam.together or seam.change in seam.together
        changed = (*seam.given, *(seam.together or [seam.change]))
        after = seam.look(world.carry_out(changed, seam.until, seam.trains, done.folder if seam.resumes else None))
        assert before != after
        assert before == (before if seam.before is CHANGES else seam.before)
        assert after == (after if seam.after is CHANGES else seam.after)


def test_no_entry_is_of_a_key_that_is_gone() -> None:
    assert sorted(SEAMS.keys() - set(KEYS)) == []
