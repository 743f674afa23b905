"""Prompts that a preference method drops go to SFT: which ones, what decides it, and what is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sinterlm import cli
from sinterlm.errors import InputError
from sinterlm.formats import read_rows, read_rows_of_others
from sinterlm.formats.dataset import FILE_NAME
from sinterlm.pipeline.checks import check_inputs
from sinterlm.pipeline.compare import compare_runs
from sinterlm.pipeline.export import export_rows
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.run import Outcome, run_fusion
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.pipeline.status import status_of
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Message, Prompt
from sinterlm.selection.split import hand_over
from sinterlm.store import FinishedStage, Store
from tests.test_pipeline import Lines
from tests.tiny import save_tiny

PAIR, RIGHT, WRONG = ("yes", "no"), ("yes", "Yes."), ("no", "never")
"""The source's answers to the first prompts: once right and once wrong; always right (no pair); never right."""
ANSWERS = {
    "sum-pair": PAIR,
    "sum-right": (*RIGHT, "no"),
    "sum-wrong": WRONG,
    "sum-both": PAIR,
    "code-pair": PAIR,
    "code-right": RIGHT,
    **{f"chat-{number}": RIGHT for number in range(4)},
}
RECIPE = """\
output: {folder}/run
prompts: {{path: prompts.jsonl, split: {{sft: 0.5, sft_domains: {{sum: 0, code: 0}}, preference: rest}}}}
target: {{model: {folder}/target, samples: {{engine: recorded, path: own.jsonl, num_samples: 2}}}}
sources: {{source: {{engine: recorded, path: answers.jsonl, num_samples: 3}}}}
scorer: {{kind: exact-match}}
sft:
  select: {{kind: best-of-sources}}
  extra_prompts: {{dropped_by: dpo, domains: [sum]}}
  train: &train {{max_steps: 1, max_length: 64}}
preference:
  own: {{select: {{kind: on-policy}}, objective: {{kind: dpo}}, train: *train}}
  dpo: {{select: {{kind: fusechat3, num_samples: 2}}, objective: {{kind: ln-dpo}}, train: *train}}
"""
STAGES = [
    "prompts", "sample-sources", "score-sources", "select-dpo", "select-sft", "train-sft", "sample-target",
    "score-target", "select-own", "train-own", "train-dpo", "report",
]  # fmt: skip


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with ten prompts: half of the chats go to SFT; all others are preference prompts, for both methods."""
    folder = tmp_path_factory.mktemp("extra")
    save_tiny(folder / "target")
    prompts = [
        {"id": name, "prompt": f"Is it so, {name}?", "answers": ["yes"], "domain": name.split("-")[0]}
        for name in ANSWERS
    ]
    answers = [{"prompt_id": name, "response": text} for name, given in ANSWERS.items() for text in given]
    own = [{"prompt_id": name, "response": text} for name in ANSWERS for text in PAIR]
    for name, lines in (("prompts", prompts), ("answers", answers), ("own", own)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(folder=folder))
    return path


@pytest.fixture(scope="module")
def run(recipe: Path) -> Path:
    """The whole run."""
    outcome = fuse(recipe)
    assert outcome == (STAGES, [])
    return recipe.parent / "run"


def fuse(recipe: Path, *overrides: str, until: str | None = None) -> Outcome:
    return run_fusion(Fusion(load_recipe(recipe, overrides).recipe), Lines(), until=until)


def ids(run: Path, name: str) -> list[str]:
    return [row.prompt_id for row in read_rows(run / "rows" / f"{name}.parquet")]


def parts(run: Path) -> dict[str, list[str]]:
    with Store(run / "store.sqlite", read_only=True) as store:
        return {part: [prompt.id for prompt in store.prompts(".", part)] for part in ("sft", "preference")}


def drops(run: Path, stage: str) -> dict[str, str]:
    with Store(run / "store.sqlite", read_only=True) as store:
        return {drop.subject: drop.reason for drop in store.dropped(".") if drop.stage == stage}


# -- which prompts go where --------------------------------------------------------------------------------------------


def test_by_hand(run: Path) -> None:
    """Two prompts of `sum` have a pair and stay. The one always right goes to SFT, and so does the one never right,
    which SFT drops in turn. `code` and `chat` are not named, so prompts dropped there go nowhere.
    """
    split = parts(run)
    assert len(split["sft"]) == 2
    assert all(name.startswith("chat") for name in split["sft"])
    chats = {name for name in split["preference"] if name.startswith("chat")}
    assert set(ids(run, "dpo")) == {"sum-pair", "sum-both", "code-pair"}
    assert drops(run, "select-dpo") == {
        "sum-wrong": "no-passing-source-answer",
        **dict.fromkeys(("sum-right", "code-right", *chats), "no-source-pair"),
    }
    assert ids(run, "sft") == [*split["sft"], "sum-right"]
    assert drops(run, "select-sft") == {"sum-wrong": "no-passing-source-answer"}


def test_another_method_from_the_same_sft_does_not_learn_from_what_went_there(run: Path) -> None:
    """The target has a pair for every prompt; without `extra_prompts` each would give a row."""
    assert ids(run, "own") == [name for name in parts(run)["preference"] if name not in ("sum-right", "sum-wrong")]
    assert drops(run, "select-own") == {}
    assert not set(ids(run, "sft")) & {*ids(run, "own"), *ids(run, "dpo")}


def test_without_domains_every_prompt_that_is_dropped_goes(recipe: Path, tmp_path: Path) -> None:
    """They keep the split's order; the split itself gives SFT none."""
    split = "prompts.split={sft: 0, preference: rest}"
    fuse(recipe, f"output={tmp_path}", "sft.extra_prompts={dropped_by: dpo}", split, until="select-sft")
    of_pairs = {"sum-pair", "sum-both", "code-pair"}
    assert set(ids(tmp_path, "dpo")) == of_pairs
    assert ids(tmp_path, "sft") == [
        name for name in parts(tmp_path)["preference"] if name not in (*of_pairs, "sum-wrong")
    ]


def test_a_method_with_its_own_sft_keeps_the_prompts_to_itself(recipe: Path, tmp_path: Path) -> None:
    own = "{select: {kind: best-of-sources}, extra_prompts: {dropped_by: dpo, domains: [sum, code]}}"
    changes = ("sft.extra_prompts=null", f"preference.dpo.sft={own}")
    fuse(recipe, f"output={tmp_path}", *changes, until="select-own")
    split = parts(tmp_path)
    assert ids(tmp_path, "sft") == split["sft"]
    assert sorted(ids(tmp_path, "dpo-sft")) == sorted([*split["sft"], "sum-right", "code-right"])
    assert ids(tmp_path, "own") == split["preference"], "it starts from the other SFT"


def test_prompts_of_one_content_stay_together() -> None:
    def asked(name: str, text: str, domain: str) -> Prompt:
        return Prompt(name, (Message("user", text),), domain=domain)

    one, same = asked("1", "What?", "sum"), asked("2", "What?", "sum")
    other, elsewhere, alone = asked("3", "Who?", "sum"), asked("4", "Who?", "chat"), asked("5", "Why?", "chat")
    prompts = [alone, one, other, same, elsewhere]
    assert hand_over(prompts, with_row={"2"}) == ((one, same), (alone, other, elsewhere))
    assert hand_over(prompts, with_row={"2"}, domains=["sum"]) == ((alone, one, same), (other, elsewhere))
    assert hand_over(prompts, with_row=set(), domains=["code"]) == (tuple(prompts), ())
    assert hand_over([], with_row=set()) == ((), ())


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_counts_and_notes_say_where_the_dropped_prompts_went(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    counts = {name: stage["counts"] for name, stage in summary["stages"].items()}
    assert counts["select-dpo"] == {"rows": 3, "dropped": 5}
    assert counts["select-sft"] == {"rows": 3, "dropped": 1, "prompts from dpo": 2}
    assert counts["select-own"] == {"rows": 6, "dropped": 0, "prompts left to SFT": 2}
    note = "2 of the prompts that select-dpo dropped went to select-sft; the drops of select-dpo still count them."
    assert note in (run / "report.html").read_text()
    assert compare_runs([run], page=run.parent / "page.html").data.notes[0].startswith(note)
    states = {stage["name"]: stage for stage in status_of(run)["stages"]}
    assert list(states) == STAGES
    assert states["select-sft"]["counts"]["prompts from dpo"] == 2


def test_a_comparison_names_the_run_of_a_note(recipe: Path, run: Path, tmp_path: Path) -> None:
    fuse(recipe, f"output={tmp_path}", "sft.extra_prompts=null", until="select-sft")
    notes = compare_runs([run, tmp_path], page=tmp_path / "page.html").data.notes
    (note,) = (note for note in notes if "dropped went to" in note)
    assert note.split(": ")[0].endswith("run")


def test_an_export_has_every_prompt_once(run: Path) -> None:
    exported = export_rows(run, run.parent / "exported", format_name="fusechat3", names=["sft", "dpo"])
    assert exported.counts == {"sft": 3, "dpo": 3}
    domains = {
        name: sorted(domain for _, domain in read_rows_of_others(exported.folder / name / FILE_NAME))
        for name in ("sft", "dpo")
    }
    assert domains == {"sft": ["chat", "chat", "sum"], "dpo": ["code", "sum", "sum"]}


def test_a_report_before_the_selection_is_made_again(recipe: Path, tmp_path: Path) -> None:
    """SFT rows made before `extra_prompts` existed say nothing about prompts that were moved."""
    fuse(recipe, f"output={tmp_path}", "sft.extra_prompts=null", until="select-sft")
    fuse(recipe, f"output={tmp_path}", until="select-dpo")
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "dropped went to" not in (tmp_path / "report.html").read_text()


def test_the_plan_says_at_least_and_at_most(recipe: Path, tmp_path: Path) -> None:
    def notes(*overrides: str) -> list[str]:
        planned = plan_fusion(Fusion(load_recipe(recipe, (f"output={tmp_path}", *overrides)).recipe))
        return [note.split(",")[0] for note in planned.notes if note.startswith("sft: ")]

    gone = "prompts.path=gone.jsonl"
    counts = "prompts.split={sft: 100, preference: 900}"
    assert notes() == ["sft: rows of 2 to 6 prompts"], "two chats, and the four of `sum`"
    assert notes("sft.extra_prompts.domains=null") == ["sft: rows of 2 to 10 prompts"]
    assert notes("sft.extra_prompts=null") == []
    assert notes(gone) == ["sft: rows of unknown to unknown prompts"]
    assert notes(gone, counts) == ["sft: rows of 100 to 1"], "000 prompts"
    assert notes(gone, counts, "prompts.sizes={sum: 300, chat: 700}") == ["sft: rows of 100 to 400 prompts"]


# -- what is redone ----------------------------------------------------------------------------------------------------

AFTER_SFT = ["train-sft", "select-own", "train-own", "train-dpo", "report"]


@pytest.mark.parametrize(
    ("change", "redone"),
    [
        ("preference.dpo.select.ties=first", ["select-dpo", "select-sft", *AFTER_SFT]),
        ("sft.extra_prompts.domains=[sum, code]", ["select-sft", *AFTER_SFT]),
        ("sft.select.ties=first", ["select-sft", "train-sft", "train-own", "train-dpo", "report"]),
        ("preference.own.select.ties=first", ["select-own", "train-own", "report"]),
        ("preference.dpo.objective.beta=5", ["train-dpo", "report"]),
        ("sft.train.learning_rate=1e-3", ["train-sft", "train-own", "train-dpo", "report"]),
    ],
)
def test_a_change_redoes_exactly_what_depends_on_it(recipe: Path, change: str, redone: list[str]) -> None:
    before, after = (
        stage_keys(build_stages(Fusion(load_recipe(recipe, changes).recipe)), str) for changes in ((), (change,))
    )
    assert list(before) == STAGES
    assert [name for name in before if before[name] != after[name]] == redone


def test_a_kill_between_the_two_selections(
    recipe: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed midway, and while another recipe's pairs are in the folder: the rows equal an uninterrupted run's."""
    output = f"output={tmp_path}"
    finish = Store.finish_stage

    def die(store: Store, name: str, stage: FinishedStage, *arguments: object) -> None:
        if stage.name == "select-sft":
            raise KeyboardInterrupt
        finish(store, name, stage, *arguments)  # type: ignore[arg-type]  # passed on unchanged

    third_answer = "preference.dpo.select.num_samples=3"  # which gives sum-right a pair
    for changes, again in (((), []), ((third_answer,), ["select-dpo"])):
        with monkeypatch.context() as patched:
            patched.setattr(Store, "finish_stage", die)
            with pytest.raises(KeyboardInterrupt):
                fuse(recipe, output, *changes, until="select-sft")
        assert ("sum-right" in ids(tmp_path, "dpo")) == bool(changes)
        assert fuse(recipe, output, until="select-sft").done_now == [*again, "select-sft"]
        for name in ("dpo", "sft"):
            rows = Path("rows", f"{name}.parquet")
            assert (tmp_path / rows).read_bytes() == (run / rows).read_bytes()
        assert drops(tmp_path, "select-dpo") == drops(run, "select-dpo")


# -- what is refused ---------------------------------------------------------------------------------------------------

OWN_SFT = "{select: {kind: best-of-sources}}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["sft.extra_prompts.dropped_by=dop"],
            r"sft\.extra_prompts\.dropped_by: unknown method 'dop'; did you mean dpo\? \(known: dpo\)",
        ),
        (
            ["sft.extra_prompts.dropped_by=own"],
            r"sft\.extra_prompts\.dropped_by: found 'own', whose 'on-policy' rows need the target's answers after SFT; "
            r"expected a method .* sources' answers: dpo",
        ),
        (
            [f"preference.dpo.sft={OWN_SFT}"],
            r"sft\.extra_prompts\.dropped_by: found 'dpo', which does not start from this fine-tuning; .* remove",
        ),
        (
            ["preference.own.sft={select: {kind: best-of-sources}, extra_prompts: {dropped_by: dpo}}"],
            r"preference\.own\.sft\.extra_prompts\.dropped_by: found 'dpo', which does not start",
        ),
        (["sft.extra_prompts={domains: [sum]}"], r"sft\.extra_prompts\.dropped_by: missing, expected text"),
        (["sft.extra_prompts.domains=[]"], r"sft\.extra_prompts\.domains: .* at least 1 of them"),
        (
            ["sft.extra_prompts=null", "prompts.split={sft: 0}"],
            r"prompts\.split\.sft: found 0, but the recipe uses this part",
        ),
    ],
)
def test_refused(recipe: Path, changes: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(recipe, changes)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("sft.extra_prompts.domains=[sum, prose]", "sft"),
        (
            "preference.dpo.sft={select: {kind: best-of-sources}, extra_prompts: {dropped_by: dpo, domains: [prose]}}",
            "preference.dpo.sft",
        ),
    ],
)
def test_a_domain_that_no_prompt_has(recipe: Path, change: str, place: str) -> None:
    changes = [change] if place == "sft" else ["sft.extra_prompts=null", change]
    with pytest.raises(
        InputError, match=rf"^{place}\.extra_prompts\.domains: no prompt has the domain 'prose'; the domains of"
    ):
        check_inputs(Fusion(load_recipe(recipe, changes).recipe))
