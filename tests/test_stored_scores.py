"""Scores in the store through a recipe: what is requested once, what is counted, and what stops a run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sinterlm import cli
from sinterlm.errors import BudgetError, CredentialsError, InputError, ToleranceError, TryAgainError
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.run import run_fusion
from sinterlm.pipeline.score import scored_answers
from sinterlm.pipeline.stage import RunContext
from sinterlm.pipeline.stored_scorer import Account, StoredScorer
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.overrides import Override
from sinterlm.records import Score, Usage
from sinterlm.scoring.protocol import SCORER_FAILED, Exchange, Given, no_score
from sinterlm.scoring.settings import build_scorer
from sinterlm.store import Store
from tests.answers import answered
from tests.chat_server import Answer, ScriptedServer, serve
from tests.test_pipeline import Lines
from tests.tiny import save_tiny

NUM_PROMPTS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts, three recorded answers to each (right, wrong, in a sentence), and a target that is never asked."""
    folder = tmp_path_factory.mktemp("recorded")
    save_tiny(folder / "target")
    questions = [{"id": f"p{n}", "prompt": f"What is {n} plus 1?", "answers": [str(n + 1)]} for n in range(NUM_PROMPTS)]
    write_lines(folder / "questions.jsonl", questions)
    answers = [
        {"prompt_id": f"p{n}", "index": index, "response": text, "score": 10 * n + index}
        for n in range(NUM_PROMPTS)
        for index, text in enumerate((str(n + 1), "no idea", f"It is {n + 1}."))
    ]
    write_lines(folder / "answers.jsonl", answers)
    return folder


class FailsOnce:
    """Fails on its first answer, and gives 1 to every other."""

    identity, needs_answers = "fails-once", False

    def __init__(self) -> None:
        self.num_asked = 0

    def score(self, answered: Sequence[Exchange]) -> list[Score]:
        scores = []
        for entry in answered:
            self.num_asked += 1
            is_first = self.num_asked == 1
            failed = no_score(entry, self.identity, SCORER_FAILED, "ours", {})
            scores.append(failed if is_first else Score(entry.response.id, self.identity, 1.0, True))
        return scores

    def close(self) -> None:
        pass


def test_failure_of_a_scorer_is_not_stored(tmp_path: Path) -> None:
    entries = [answered("a", name="a"), answered("b", name="b")]
    with Store(tmp_path / "store.sqlite") as store:
        scorer = FailsOnce()
        stored = StoredScorer(scorer, store)
        first, second = stored.score(entries)
        assert (math.isnan(first.value), first.detail["reason"], second.value) == (True, "scorer-failed", 1.0)
        assert [score.value for score in stored.score(entries)] == [1.0, 1.0]
        assert scorer.num_asked == 3


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(
    folder: Path, workspace: Path, scorer: Mapping[str, Any], *, num_samples: int = 3, **others: Any
) -> Path:
    recipe = {
        "output": str(workspace),
        "prompts": {"path": str(folder / "questions.jsonl"), "split": {"sft": 0.5}},
        "target": {"model": str(folder / "target")},
        "sources": {"old": {"engine": "recorded", "path": str(folder / "answers.jsonl"), "num_samples": num_samples}},
        "scorer": scorer,
        **others,
    }
    path = workspace / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def run_scoring(
    folder: Path, workspace: Path, scorer: Mapping[str, Any], *, num_samples: int = 3, **others: Any
) -> list[str]:
    """Score the answers; returns what the run reported."""
    reporter = Lines()
    recipe = load_recipe(write_recipe(folder, workspace, scorer, num_samples=num_samples, **others)).recipe
    run_fusion(Fusion(recipe), reporter, until="score-sources")
    return reporter.lines


def counts(lines: Sequence[str]) -> dict[str, float]:
    done = next(line for line in lines if line.startswith("score-sources done"))
    return {name: float(value) for name, value in re.findall(r"([a-z][a-z ]*): ([-\d.]+)", done)}


def scores_in(workspace: Path) -> list[Any]:
    with Store(workspace / "store.sqlite", read_only=True) as store:
        return [row["scorer"] for row in store._read("SELECT scorer FROM scores")]


def judged_text(request: Mapping[str, Any]) -> str:
    text = request["messages"][0]["content"]
    match = re.search(r"\[answer ([0-9a-f]{8})\]\n(.*)\n\[end of answer \1\]", text, re.S)
    assert match
    return match[2]


def by_length(request: Mapping[str, Any]) -> Answer:
    return Answer(json.dumps({"grade": min(10, len(judged_text(request)))}))


def judge(server: ScriptedServer, **settings: Any) -> dict[str, Any]:
    return {"kind": "judge", "model": "m", "base_url": server.url, "explain": False, "max_retries": 0, **settings}


def test_a_verdict_is_paid_for_once(folder: Path, tmp_path: Path) -> None:
    """More samples, other settings for reaching the server, another recipe: only what is new is requested."""
    with serve(by_length) as server:
        assert counts(run_scoring(folder, tmp_path, judge(server), num_samples=1)) == {
            "answers": NUM_PROMPTS,
            "scored now": NUM_PROMPTS,
            "mean score": 1.1,  # 1 to 9 are one letter, 10 two
        }
        assert len(server.requests) == NUM_PROMPTS
        lines = run_scoring(folder, tmp_path, judge(server), num_samples=3)
        assert counts(lines)["scored now"] == 2 * NUM_PROMPTS
        assert len({judged_text(request) for request in server.requests}) == 2 * NUM_PROMPTS + 1
        assert len(server.requests) == 3 * NUM_PROMPTS
        for changes in ({"concurrency": 1}, {"max_invalid": 0.5}, {"timeout_seconds": 9.0}):
            run_scoring(folder, tmp_path, judge(server, **changes), num_samples=3)
        assert len(server.requests) == 3 * NUM_PROMPTS
        run_scoring(folder, tmp_path, judge(server, temperature=0.5), num_samples=3)
        assert len(server.requests) == 6 * NUM_PROMPTS


def test_a_key_is_asked_for_only_where_there_is_something_to_ask(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second recipe's verdicts are all in the store; the third has one more answer to each prompt."""
    monkeypatch.setenv("JUDGE_KEY", "k")
    with serve(by_length) as server:
        scorer = judge(server, api_key_env="JUDGE_KEY")
        run_scoring(folder, tmp_path, scorer, num_samples=2)
        monkeypatch.delenv("JUDGE_KEY")
        again = judge(server, api_key_env="JUDGE_KEY")
        both = {"kind": "combination", "rule": "rank", "parts": {"a": again, "b": {"kind": "exact-match"}}}
        run_scoring(folder, tmp_path, both, num_samples=2)
        assert len(server.requests) == 2 * NUM_PROMPTS
        with pytest.raises(CredentialsError, match="JUDGE_KEY holds no key"):
            run_scoring(folder, tmp_path, again, num_samples=3)


def test_settings_of_where_a_reward_model_computes_redo_no_stage() -> None:
    def key(**settings: Any) -> object:
        return load_scorer({"kind": "reward-model", "model": "m", **settings}).describe(lambda model: "weights")

    assert key() == key(batch_tokens=1, device="cpu")
    assert key() != key(dtype="float32")


def test_a_scorer_that_is_named_twice_is_one() -> None:
    model = {"kind": "reward-model", "model": "m"}
    gate = {"kind": "combination", "rule": "gate", "parts": {"right": {"kind": "exact-match"}, "good": model}}
    built = []

    def keep(scorer: Any, config: object) -> Any:
        built.append(type(scorer).__name__)
        return scorer

    domains = {"sums": gate, "code": gate, "prose": model}
    build_scorer(load_scorer({"kind": "by-domain", "domains": domains, "other": model}), wrap=keep)
    assert built == ["ThoughtPolicy", "ThoughtPolicy", "CombinationScorer", "ByDomainScorer"]


def test_settings_of_reaching_a_judge_redo_no_stage() -> None:
    def key(**settings: Any) -> object:
        text = {"kind": "judge", "model": "m", **settings}
        return load_scorer(text).describe(lambda model: pytest.fail(f"{model} is not on this machine"))

    assert key() == key(concurrency=1, max_retries=0, timeout_seconds=1.0, api_key_env="X", max_invalid=1.0)
    assert key() != key(model="n")
    assert key() != key(base_url="http://localhost/v1")


def load_scorer(scorer: Mapping[str, Any]) -> Any:
    from pydantic import TypeAdapter

    from sinterlm.scoring.scorers import AnyScorer

    return TypeAdapter(AnyScorer).validate_python(scorer)


def test_stage_keys_follow_the_files_and_weights_of_parts(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    config = load_scorer(
        {
            "kind": "combination",
            "rule": "rank",
            "parts": {
                "model": {"kind": "reward-model", "model": "org/model"},
                "file": {"kind": "recorded", "path": str(path)},
            },
        }
    )
    path.write_text("one")
    first = config.describe(str.upper)
    assert config.describe(str.upper) == first
    assert config.describe(str.lower) != first
    path.write_text("two")
    assert config.describe(str.upper) != first
    json.dumps(first)


def test_invalid_verdicts_are_counted_shown_and_limited(folder: Path, tmp_path: Path) -> None:
    """Ten of thirty answers (``no idea``) get no verdict; a third is more than 0.3 and less than 0.34."""

    def script(request: dict[str, Any]) -> Answer:
        return Answer("[[10]]") if judged_text(request) == "no idea" else by_length(request)

    with serve(script) as server:
        with pytest.raises(
            ToleranceError, match=r"no valid verdict on 10 of 30 answers, more than max_invalid \(0\.3\)"
        ):
            run_scoring(folder, tmp_path, judge(server, max_invalid=0.3))
        lines = run_scoring(folder, tmp_path, judge(server, max_invalid=0.34))
        assert len(server.requests) == 30, "an invalid verdict is a result, too: nobody pays for it twice"
    assert "  dropped 10: invalid-verdict" in lines
    assert counts(lines)["mean score"] == round((11 + 9 * 8 + 9) / 20, 4), "``It is 10.`` is one letter longer"
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        dropped = list(store.dropped("."))
    assert {drop.reason for drop in dropped} == {"invalid-verdict"}
    assert re.match(r"old on p\d: the reply is not one JSON object .*\[\[10\]\]", dropped[0].detail)


def test_a_server_that_was_sick_is_asked_again(folder: Path, tmp_path: Path) -> None:
    """Nothing that a server sent instead of a reply is kept, so rerunning the command fixes it."""
    is_sick = True

    def script(request: dict[str, Any]) -> Answer:
        return Answer(body="<html>502</html>") if is_sick else by_length(request)

    with serve(script) as server:
        with pytest.raises(TryAgainError, match=r"not a reply, though asked 1 times: '<html>502</html>'"):
            run_scoring(folder, tmp_path, judge(server, max_invalid=1.0))
        assert scores_in(tmp_path) == []
        is_sick = False
        assert counts(run_scoring(folder, tmp_path, judge(server)))["scored now"] == 30


def test_what_was_judged_before_a_server_fell_sick_is_kept(folder: Path, tmp_path: Path) -> None:
    """Alone and as a part of a combination, with a policy for thoughts: the last of 30 requests gets nonsense."""
    is_sick = True

    def script(request: dict[str, Any]) -> Answer:
        return Answer(body="{}") if is_sick and len(server.requests) == 30 else by_length(request)

    for name in ("alone", "part"):
        workspace = tmp_path / name
        workspace.mkdir()
        with serve(script) as server:
            scorer = judge(server, concurrency=1)
            if name == "part":
                parts = {"quality": scorer, "right": {"kind": "exact-match"}}
                scorer = {"kind": "combination", "rule": "rank", "parts": parts}
            is_sick = True
            with pytest.raises(TryAgainError, match="not a reply, though asked 1 times"):
                run_scoring(folder, workspace, scorer)
            assert len(scores_in(workspace)) >= 29
            is_sick = False
            run_scoring(folder, workspace, scorer)
            assert len(server.requests) == 31


def test_what_verdicts_cost_is_in_the_ledger(folder: Path, tmp_path: Path) -> None:
    """A busy server is asked again, which counts as a request; a verdict from the store costs nothing."""
    price = {"input": 2e6, "output": 8e6, "cached_input": 1e6}
    busy = iter([Answer(status=503, headers={"retry-after-ms": "1"})])
    with serve(lambda request: next(busy, None) or by_length(request)) as server:
        scorer = judge(server, price=price, max_retries=3)
        run_scoring(folder, tmp_path, scorer)
        run_scoring(folder, tmp_path, scorer)
        num_sent = len(server.requests)
    num_verdicts = len({(request["messages"][0]["content"]) for request in server.requests})
    with Store(tmp_path / "store.sqlite", read_only=True) as store:
        [spent] = store.ledger()
    assert (spent.stage, spent.model, spent.items) == ("score-sources", "judge m", 3 * NUM_PROMPTS)
    assert num_sent == num_verdicts + 1
    assert spent.usage == Usage(num_sent, 2 * num_verdicts, num_verdicts, num_verdicts)
    assert spent.money == pytest.approx(num_verdicts * (2.0 + 1.0 + 8.0))
    assert spent.seconds > 0


def test_a_budget_ends_judging_in_an_orderly_way(folder: Path, tmp_path: Path) -> None:
    """A verdict takes 3 tokens. What is in flight when 30 are used is finished and kept, and never asked again."""
    with serve(by_length, seconds=0.01) as server:
        scorer = judge(server, concurrency=2)
        with pytest.raises(BudgetError, match=r"the budget is reached \(tokens \d+ of 30\)") as caught:
            run_scoring(folder, tmp_path, scorer, budget={"tokens": 30})
        assert caught.value.exit_code == 4
        num_asked = len(server.requests)
        assert 10 <= num_asked <= 10 + 2 + 4  # two in flight, and a few that were waiting to be
        assert len(scores_in(tmp_path)) == num_asked
        run_scoring(folder, tmp_path, scorer, budget={"tokens": 1000})
        assert len(server.requests) == 3 * NUM_PROMPTS
        assert len({request["messages"][0]["content"] for request in server.requests}) == 3 * NUM_PROMPTS


def test_verdicts_before_an_interrupt_are_kept(tmp_path: Path) -> None:
    """The third time that verdicts come, the process dies before they are written."""

    class Dies(Account):
        num_entered = 0

        def enter(self, given: Given, seconds: float) -> None:
            self.num_entered += bool(given.scores)
            if self.num_entered == 3:
                raise KeyboardInterrupt

    entries = [answered(str(number), name=f"p{number}") for number in range(6)]
    with serve(by_length) as server, Store(tmp_path / "store.sqlite") as store:
        config = load_scorer(judge(server, concurrency=1, thoughts="keep"))
        with pytest.raises(KeyboardInterrupt):
            StoredScorer(build_scorer(config), store, account=Dies()).score(entries)
        stored = StoredScorer(build_scorer(config), store)
        left = stored.look_up(entries).num_missing
        assert 0 < left < len(entries)
        before = len(server.requests)
        assert len(stored.score(entries)) == len(entries)
        assert len(server.requests) - before == left


def test_a_judge_that_gives_no_verdict_at_all_says_why(folder: Path, tmp_path: Path) -> None:
    with (
        serve(lambda request: Answer("I like it.")) as server,
        pytest.raises(ToleranceError, match=r"none of the 30 answers .*invalid-verdict.*I like it"),
    ):
        run_scoring(folder, tmp_path, judge(server, max_invalid=1.0))


def test_parts_of_a_combination_are_scored_once_and_shared(folder: Path, tmp_path: Path) -> None:
    """The judge behind the gate sees only right answers; a recipe with just the judge then pays for the others."""
    with serve(by_length) as server:
        gate = {
            "kind": "combination",
            "rule": "gate",
            "failing_value": 0.0,
            "parts": {"right": {"kind": "exact-match"}, "quality": judge(server)},
        }
        lines = run_scoring(folder, tmp_path, gate)
        assert counts(lines) == {"answers": 30, "scored now": 30, "mean score": round(11 / 30, 4)}
        assert len(server.requests) == NUM_PROMPTS
        rank = {
            "kind": "combination",
            "rule": "rank",
            "parts": {"quality": judge(server), "right": {"kind": "exact-match"}},
        }
        run_scoring(folder, tmp_path, rank)
        assert len(server.requests) == 3 * NUM_PROMPTS
        run_scoring(folder, tmp_path, judge(server))
        run_scoring(folder, tmp_path, gate | {"failing_value": -1.0})
        assert len(server.requests) == 3 * NUM_PROMPTS
    identities = scores_in(tmp_path)
    assert sorted(identities.count(identity) for identity in set(identities)) == [30] * 5, "gates, rank, judge, match"


def test_recorded_scores_in_a_recipe(folder: Path, tmp_path: Path) -> None:
    """The file of answers contains their scores, 10 n + index: over 10 prompts and 3 answers 45 + 1 on average."""
    lines = run_scoring(folder, tmp_path, {"kind": "recorded", "path": str(folder / "answers.jsonl")})
    assert counts(lines) == {"answers": 30, "scored now": 30, "mean score": 46.0}


def test_only_answers_that_changed_are_judged_again(folder: Path, tmp_path: Path) -> None:
    """An answer's identity is its prompt, model, text and how it ended, not its file, line or place in order."""
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    plain = [{"prompt_id": row["prompt_id"], "response": row["response"]} for row in rows]
    earlier = [{**plain[0], "response": "First of all: 1"}, *plain]
    files: list[tuple[str, str, Sequence[Mapping[str, object]], int]] = [
        ("as it came", "a.jsonl", plain, 30),
        ("an empty line", "a.jsonl", [*plain, {}], 0),
        ("another name", "b.jsonl", plain, 0),
        (
            "white space around the answers",
            "b.jsonl",
            [{**row, "response": f" {row['response']}\n"} for row in plain],
            0,
        ),
        ("another order", "b.jsonl", plain[::-1], 0),
        ("its places written out", "b.jsonl", rows, 0),
        ("Parquet", "b.parquet", plain, 0),
        ("one changed", "b.jsonl", [*plain[:-1], {**plain[-1], "response": "It is ten."}], 1),
        ("one before the others", "b.jsonl", earlier, 1),
        ("one twice", "b.jsonl", [*plain, plain[-1]], 1),
        ("one cut", "b.jsonl", [*plain[:-1], {**plain[-1], "finish_reason": "length"}], 1),
        ("one of a model", "b.jsonl", [*plain[:-1], {**plain[-1], "source": "gemma"}], 1),
        ("as it came", "c.jsonl", plain, 0),
    ]
    with serve(by_length) as server:
        recipe = write_recipe(folder, tmp_path, judge(server), num_samples=4)
        for change, name, lines, expected in files:
            if name.endswith(".parquet"):
                pq.write_table(pa.Table.from_pylist(list(lines)), tmp_path / name)
            else:
                (tmp_path / name).write_text("".join(f"{json.dumps(line)}\n" if line else "\n" for line in lines))
            before, reporter = len(server.requests), Lines()
            loaded = load_recipe(recipe, [Override("sources.old.path", str(tmp_path / name))]).recipe
            run_fusion(Fusion(loaded), reporter, until="score-sources")
            assert counts(reporter.lines)["answers"] == sum(map(bool, lines)), change
            assert len(server.requests) - before == expected, change


def test_recorded_scores_follow_the_places_of_answers(folder: Path, tmp_path: Path) -> None:
    """Scores by source and index, when answers swap places."""
    answers = [{"prompt_id": f"p{n}", "response": text} for n in range(NUM_PROMPTS) for text in ("one", "two")]
    scores = [
        {"prompt_id": f"p{n}", "source": "old", "index": index, "score": index}
        for n in range(NUM_PROMPTS)
        for index in range(2)
    ]
    write_lines(tmp_path / "scores.jsonl", scores)
    scorer = {"kind": "recorded", "path": str(tmp_path / "scores.jsonl")}
    for rows in (answers, answers[::-1]):
        write_lines(tmp_path / "answers.jsonl", rows)
        recipe = write_recipe(folder, tmp_path, scorer, num_samples=2)
        overrides = [Override("sources.old.path", str(tmp_path / "answers.jsonl"))]
        fusion = Fusion(load_recipe(recipe, overrides).recipe)
        run_fusion(fusion, Lines(), until="score-sources")
        with Store(fusion.store_path) as store:
            run = RunContext(fusion, store, Lines())
            ask = fusion.for_training(fusion.sources[0])
            prompts = [prompt for part in fusion.training_parts for prompt in store.prompts(fusion.run_name, part)]
            found = scored_answers(run, fusion.recipe.scorer, ask, prompts)
        last = rows[-1]["response"]
        assert found
        assert {(each.response.content, each.score.value) for many in found.values() for each in many} == {
            (str(rows[0]["response"]), 0.0),
            (str(last), 1.0),
        }


def test_missing_files_and_keys_are_found_before_anything_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    inner = {"right": {"kind": "exact-match"}, "quality": {"kind": "judge", "model": "m"}}
    with pytest.raises(CredentialsError, match="OPENAI_API_KEY holds no key"):
        run_scoring(folder, tmp_path, {"kind": "combination", "rule": "gate", "parts": inner})
    with pytest.raises(InputError, match=r"scores\.jsonl: there is no such file \(path of the scorer recorded\)"):
        run_scoring(folder, tmp_path, {"kind": "recorded", "path": str(tmp_path / "scores.jsonl")})
    recipe = write_recipe(folder, tmp_path, {"kind": "judge", "model": "m"})
    monkeypatch.setattr("sys.argv", ["sinterlm", "run", str(recipe)])
    assert cli.exit_code() == 5
    assert "OPENAI_API_KEY" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", ["sinterlm", "plan", str(recipe)])
    assert cli.exit_code() == 0, "a plan needs no key"


@pytest.mark.parametrize(
    ("scorer", "message"),
    [
        ({"kind": "judge"}, "scorer.model: missing, expected text"),
        ({"kind": "judge", "model": "m", "mode": "rubric"}, "scorer.rubric: missing, expected criteria"),
        ({"kind": "judge", "model": "m", "rubric": {"a": "b"}}, "scorer.rubric: mode: grade does not read it"),
        ({"kind": "judge", "model": "m", "baseline": "x"}, "scorer.baseline: mode: grade does not read it"),
        ({"kind": "judge", "model": "m", "base_url": "localhost:1"}, "scorer.base_url: found 'localhost:1'"),
        (
            {"kind": "judge", "model": "m", "base_url": "https://me:k-secret@host/v1"},
            "scorer.base_url: this URL has a user (not shown",
        ),
        (
            {"kind": "judge", "model": "m", "base_url": ["http://x?key=k-secret"]},
            "this URL has parameters (not shown",
        ),
        ({"kind": "judge", "model": "m", "base_url": ["http://x", 5]}, "expected a URL, or a list of URLs"),
        ({"kind": "judge", "model": "m", "base_url": []}, "expected a URL, or a list of URLs"),
        (
            {"kind": "judge", "model": "m", "api_key": "k-secret"},
            "scorer.api_key: this is where the key of a server would be",
        ),
        (
            {"kind": "judge", "model": "m", "api_key_env": "k-secret"},
            "scorer.api_key_env: this is no name of a variable",
        ),
        ({"kind": "combination", "rule": "gate", "parts": {"a": {"kind": "exact-match"}}}, "scorer.parts: found"),
        (
            {"kind": "combination", "rule": "gate", "parts": {"a": {"kind": "exact"}, "b": {"kind": "exact-match"}}},
            "scorer.parts.a.kind: found 'exact'",
        ),
        (
            {
                "kind": "combination",
                "rule": "gate",
                "step": 2.0,
                "weights": {"c": 1.0},
                "parts": {"a": {"kind": "exact-match"}, "b": {"kind": "judge", "model": "m", "mode": "rubric"}},
            },
            "scorer.parts.b.rubric: missing",
        ),
    ],
)
def test_recipes_that_do_not_fit_are_refused(
    folder: Path, tmp_path: Path, scorer: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_recipe(write_recipe(folder, tmp_path, scorer))
    assert "k-secret" not in str(caught.value)


MATHEMATICS, EXACT_MATCH = {"kind": "mathematics"}, {"kind": "exact-match"}


@pytest.mark.parametrize(
    ("scorer", "rules"),
    [
        (EXACT_MATCH, "exact_match.NORMALISATION"),
        (MATHEMATICS, "mathematics.RULES"),
        ({"kind": "code"}, "code.scorer.VERSION"),
        ({"kind": "judge", "model": "m", "base_url": "http://127.0.0.1:1/v1"}, "judge.prompts.WORDING"),
        ({"kind": "combination", "rule": "gate", "parts": {"a": EXACT_MATCH, "b": MATHEMATICS}}, "mathematics.RULES"),
        ({"kind": "by-domain", "domains": {"x": MATHEMATICS}, "other": EXACT_MATCH}, "exact_match.NORMALISATION"),
    ],
    ids=str,
)
def test_the_description_of_a_scorer_names_its_rules(
    scorer: Mapping[str, Any], rules: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release with other rules scores again and redoes everything that depends on the scores."""
    config = load_scorer(scorer)
    before = config.describe(str.upper)
    assert config.describe(str.upper) == before
    monkeypatch.setattr(f"sinterlm.scoring.{rules}", "another")
    assert config.describe(str.upper) != before
