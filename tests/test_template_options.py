"""`chat_template_kwargs`, `template_date` and `thoughts`, each visible in the tokens at the far end."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from transformers import AutoTokenizer

from sinterlm.errors import InputError
from sinterlm.models import cached_fingerprint, fingerprint, writes_date
from sinterlm.pipeline import run as run_module
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.stage import RunContext, stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.recipe.load import load_recipe, read_train_settings, resolve_text
from sinterlm.records import Message, Prompt, Response, RowResponse, SamplingSettings, TrainingRow
from sinterlm.sampling.settings import LocalModel
from sinterlm.scoring.dialogues import encode_dialogue
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.scorers import AnyScorer
from sinterlm.scoring.settings import build_scorer
from sinterlm.template import TemplateOptions
from sinterlm.training import trainer as trainer_module
from sinterlm.training.encoding import EncodedRows, encode_rows
from sinterlm.training.train import train
from tests.tiny import save_tiny, save_tiny_reward_model
from tests.tiny_fusion import write_tiny_fusion

QUESTION = Prompt("p", (Message("user", "What is 1 plus 2?"),))
ROWS = [
    TrainingRow(f"p{number}", (Message("user", f"What is {number} plus 2?"),), responses)
    for number, responses in enumerate([(RowResponse("three", "chosen"), RowResponse("two", "rejected"))] * 4)
]
DATED = "{{ 'Today is ' + strftime_now('%d %B %Y') + '.\n' }}"
SWITCH = (
    "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)
CPU = {"use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 4, "save_steps": 1, "learning_rate": 1e-2}


def change_template(folder: Path, *, before: str = "", after: str = "") -> Path:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = before + tokenizer.chat_template + after
    tokenizer.save_pretrained(folder)
    return folder


def at(monkeypatch: pytest.MonkeyPatch, day: str) -> None:
    """Another day on the clock that Sinter reads; templates have no clock of their own."""

    class Day(datetime.date):
        @classmethod
        def today(cls) -> Any:
            return cls.fromisoformat(day)

    for module in ("sinterlm.training.template_date", "sinterlm.pipeline.fusion"):
        monkeypatch.setattr(f"{module}.date", Day)


@pytest.fixture
def prompts_seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The prompt tokens of every row that a training encodes, in order."""
    seen: list[list[int]] = []

    def noting(*arguments: Any, **settings: Any) -> EncodedRows:
        encoded = encode_rows(*arguments, **settings)
        seen.extend(row["input_ids"][: row["num_prompt_tokens"]] for row in encoded.rows)
        return encoded

    monkeypatch.setattr(trainer_module, "encode_rows", noting)
    return seen


# --- sinterlm train --------------------------------------------------------------------------------------------------


def test_settings_of_train_reach_the_tokens_and_the_references_key(
    tmp_path: Path, prompts_seen: list[list[int]]
) -> None:
    model = change_template(save_tiny(tmp_path / "model"), before=DATED, after=SWITCH)
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts, keys = [], set()
    for number, settings in enumerate(
        (
            ["template_date=2026-11-30"],
            ["template_date=2026-12-01"],
            ["template_date=2026-11-30", "chat_template_kwargs={enable_thinking: false}"],
        )
    ):
        given = read_train_settings("dpo", settings)
        prompts_seen.clear()
        train(
            ROWS[:1],
            model=str(model),
            objective="dpo",
            output_dir=tmp_path / str(number),
            arguments={**CPU, "max_steps": 1, **given.arguments},
            cache_dir=tmp_path / "reference",
        )
        texts.append(str(tokenizer.decode(prompts_seen[0])))
        keys |= {path.name for path in (tmp_path / "reference").iterdir()}
        card = (tmp_path / str(number) / "README.md").read_text()
        assert f"template_date: `{settings[0].partition('=')[2]}`" in card
    assert "Today is 30 November 2026." in texts[0]
    assert "Today is 01 December 2026." in texts[1]
    assert texts[2] == texts[0] + "<think>\n\n</think>\n\n"
    assert len(keys) == 3


THINKING = [
    TrainingRow(name, QUESTION.messages, (RowResponse(text),))
    for name, text in [("thinking", "<think>\n1 and 2\n</think>\n\nthree"), ("bare", "three")]
]


def responses_trained(rows: list[Any], tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row["input_ids"][row["num_prompt_tokens"] :]).split("<")[0] for row in rows]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ([], ["", "three"]),
        (["thoughts=keep"], ["", "three"]),
        (["thoughts=strip"], ["three", "three"]),
        (["thoughts=refuse"], ["three"]),
    ],
)
def test_thoughts_of_train_and_of_a_recipe_reach_the_tokens(
    setting: list[str], expected: list[str], recipe_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kept thought begins with its tag."""
    from sinterlm.pipeline.stages import train as stage

    class Enough(Exception):
        pass

    seen: list[Any] = []

    def noting(*arguments: Any, **settings: Any) -> EncodedRows:
        seen.append(encode_rows(*arguments, **settings))
        raise Enough

    monkeypatch.setattr(trainer_module, "encode_rows", noting)
    target = recipe_path.parent / "models" / "target"
    arguments = {**CPU, **read_train_settings("sft", [*setting, "template_date=2026-11-30"]).arguments}
    with pytest.raises(Enough):
        train(THINKING, model=str(target), objective="sft", output_dir=tmp_path / "out", arguments=arguments)
    overrides = ["template_date=2026-11-30", *(f"sft.train.{key}" for key in setting)]
    fusion = Fusion(load_recipe(recipe_path, overrides).recipe)
    monkeypatch.setattr("sinterlm.formats.row_files.read_rows", lambda path: THINKING)
    run = RunContext(fusion, None, SilentReporter())  # type: ignore[arg-type]  # a training asks no store
    with pytest.raises(Enough):
        stage.fit(run, "sft", fusion.recipe.sft, output=tmp_path / "trained", label="sft")  # type: ignore[arg-type]
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert [responses_trained(encoded.rows, tokenizer) for encoded in seen] == [expected] * 2
    dropped = [[(drop.subject, drop.reason) for drop in encoded.dropped] for encoded in seen]
    assert dropped == [[("thinking", "holds-thoughts")] if len(expected) == 1 else []] * 2


@pytest.mark.parametrize("setting", ["template_date=tomorrow", "thoughts=drop", "chat_template_kwargs=none"])
def test_train_refuses_what_is_no_value(setting: str, tmp_path: Path) -> None:
    def go() -> None:
        arguments = read_train_settings("sft", [setting]).arguments
        train(ROWS, model=str(tmp_path), objective="dpo", output_dir=tmp_path / "out", arguments=arguments)

    with pytest.raises(InputError, match=f"{setting.partition('=')[0]}.*expected"):
        go()


def test_a_training_resumed_on_another_day_takes_the_first_ones_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts_seen: list[list[int]]
) -> None:
    model = change_template(save_tiny(tmp_path / "model"), before=DATED)
    said: list[str] = []

    def go(output: str, stop_at: int | None = None) -> None:
        def stop(step: int, num_steps: int, loss: float) -> None:
            if step == stop_at:
                raise KeyboardInterrupt

        train(
            ROWS,
            model=str(model),
            objective="dpo",
            output_dir=tmp_path / output,
            arguments=CPU,
            say=said.append,
            report_progress=stop,
        )

    at(monkeypatch, "2026-11-30")
    go("whole")
    first = list(prompts_seen)
    with pytest.raises(KeyboardInterrupt):
        go("killed", stop_at=3)
    at(monkeypatch, "2026-12-01")
    prompts_seen.clear()
    go("killed")
    assert prompts_seen == first
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    assert said.count("the chat template uses 2026-11-30 as today's date (template_date)") == 3
    result = (tmp_path / "killed" / "training.json").read_text()
    at(monkeypatch, "2026-12-02")
    go("killed")  # finished: nothing is done again
    assert (tmp_path / "killed" / "training.json").read_text() == result


def test_of_several_processes_one_decides_the_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prompts_seen: list[list[int]]
) -> None:
    """A process that looks at the clock after midnight takes the date of the one that looked before."""
    model = change_template(save_tiny(tmp_path / "model"), before=DATED)

    def go(output: str) -> None:
        train(ROWS, model=str(model), objective="dpo", output_dir=tmp_path / output, arguments=CPU)

    at(monkeypatch, "2026-11-30")
    go("before")
    before = list(prompts_seen)
    prompts_seen.clear()
    at(monkeypatch, "2026-12-01")
    monkeypatch.setattr(
        "sinterlm.training.train.broadcast_object_list",
        lambda objects: ["2026-11-30" if item == "2026-12-01" else item for item in objects],
    )
    go("after")
    assert prompts_seen == before
    settings = [json.loads((tmp_path / name / "training.json").read_text())["settings"] for name in ("before", "after")]
    assert settings[0] == settings[1]


# --- recipes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fusion whose target and reward model write the date, and whose target has a switch."""
    folder = tmp_path_factory.mktemp("fusion")
    path = write_tiny_fusion(folder)
    change_template(folder / "models" / "target", before=DATED, after=SWITCH)
    change_template(folder / "models" / "reward", before=DATED)
    return path


def keys_of(fusion: Fusion) -> dict[str, str]:
    return stage_keys(build_stages(fusion), fingerprint)


def test_keys_of_a_recipe_reach_sampling_training_and_scoring(recipe_path: Path) -> None:
    plain, dated, switched = (
        Fusion(load_recipe(recipe_path, overrides).recipe)
        for overrides in (
            ["template_date=2026-11-30"],
            ["template_date=2026-12-01"],
            ["template_date=2026-11-30", "target.chat_template_kwargs={enable_thinking: false}"],
        )
    )
    texts, identities = [], set()
    for fusion in (plain, dated, switched):
        target = fusion.recipe.target
        assert isinstance(target, LocalModel)
        asking = target.build(settings=SamplingSettings())._load().asking
        sampled = asking.encode(QUESTION)
        options = TemplateOptions.of(target.chat_template_kwargs, target.template_date)
        assert target.template_options.get("template_date") == target.template_date
        assert asking.options == options
        texts.append(str(asking.tokenizer.decode(sampled)))
        identities.add(target.identity(settings=SamplingSettings()))
    assert "Today is 30 November 2026." in texts[0]
    assert "Today is 01 December 2026." in texts[1]
    assert texts[2] == texts[0] + "<think>\n\n</think>\n\n"
    assert len(identities) == 3
    scorers = [build_scorer(fusion.recipe.scorer) for fusion in (plain, dated, switched)]
    assert scorers[0].identity == scorers[2].identity != scorers[1].identity
    keys = [keys_of(fusion) for fusion in (plain, dated, switched)]
    for stage in ("train-sft", "sample-target", "sample-held-out"):
        assert len({own[stage] for own in keys}) == 3, stage
    assert keys[0]["sample-sources"] == keys[1]["sample-sources"] == keys[2]["sample-sources"]
    assert keys[0]["score-sources"] == keys[2]["score-sources"] != keys[1]["score-sources"]


def test_what_a_training_of_a_recipe_sees(
    recipe_path: Path, monkeypatch: pytest.MonkeyPatch, prompts_seen: list[list[int]]
) -> None:
    """The stage passes on the target's options."""
    from sinterlm.pipeline.stages import train as stage

    fusion = Fusion(
        load_recipe(
            recipe_path, ["template_date=2026-11-30", "target.chat_template_kwargs={enable_thinking: false}"]
        ).recipe
    )
    rows = [TrainingRow("p", QUESTION.messages, (RowResponse("three", "chosen"),))]
    monkeypatch.setattr("sinterlm.formats.row_files.read_rows", lambda path: rows)
    run = RunContext(fusion, None, SilentReporter())  # type: ignore[arg-type]  # a training asks no store
    stage.fit(run, "sft", fusion.recipe.sft, output=recipe_path.parent / "trained", label="sft")  # type: ignore[arg-type]
    text = str(AutoTokenizer.from_pretrained(fusion.recipe.target.model).decode(prompts_seen[0]))
    assert text.startswith("Today is 30 November 2026.\n")
    assert text.endswith("<think>\n\n</think>\n\n")


def test_reward_models_read_the_given_date_and_the_whole_answer(tmp_path: Path) -> None:
    folder = change_template(save_tiny_reward_model(tmp_path / "reward"), before=DATED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    response = Response("r", "p", "s", 0, "three", "stop", 1, 1)
    options = TemplateOptions.of(None, "2026-11-30")
    found = encode_dialogue(tokenizer, Exchange(QUESTION, response), options, max_length=500, truncate="end")
    assert "Today is 30 November 2026." in tokenizer.decode(found.tokens)  # type: ignore[union-attr]


def test_keys_of_a_recipes_scorer_decide_its_scores(tmp_path: Path) -> None:
    """The number is that of the dialogue that its template writes with them."""
    folder = change_template(
        save_tiny_reward_model(tmp_path / "reward"),
        before=DATED,
        after="{% if short is defined %}{{ short }}{% endif %}",
    )
    entry = Exchange(QUESTION, Response("r", "p", "s", 0, "three", "stop", 1, 1))
    config: dict[str, Any] = {"kind": "reward-model", "model": str(folder), "max_length": 500}
    scores, names = [], []
    for keys in (
        {"template_date": "2026-11-30"},
        {"template_date": "2026-11-30"},
        {"template_date": "2026-12-01"},
        {"template_date": "2026-11-30", "chat_template_kwargs": {"short": "Be short."}},
    ):
        scorer = build_scorer(TypeAdapter(AnyScorer).validate_python(config | keys))
        scores += [round(score.value, 5) for score in scorer.score([entry])]
        names.append(scorer.identity)
    assert (scores[0], names[0]) == (scores[1], names[1])
    assert len(set(scores)) == len(set(names)) == 3


def test_an_answer_that_a_reward_models_template_cuts_has_no_score(tmp_path: Path) -> None:
    from sinterlm.scoring.reward_model import RewardModelScorer

    folder = save_tiny_reward_model(tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "message['content'].split('</think>')[-1]"
    )
    tokenizer.chat_template += "{% if 'six' in messages[-1]['content'] %}{{ 1 / 0 }}{% endif %}"
    tokenizer.save_pretrained(folder)
    scorer = RewardModelScorer(
        str(folder), max_length=500, truncate="end", batch_tokens=1000, float32_head=True, device="cpu"
    )
    texts = ["three", "End it with </think>. That is all.", "six"]
    answered = [Exchange(QUESTION, Response(str(n), "p", "s", n, text, "stop", 1, 1)) for n, text in enumerate(texts)]
    scores = scorer.score(answered)
    assert [score.detail.get("reason") for score in scores] == [
        None,
        "answer-written-otherwise",
        "refused-by-the-chat-template",
    ]


def test_the_date_is_that_of_the_first_command(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = [f"output={recipe_path.parent / 'dated'}"]

    def fusion(*overrides: str) -> Fusion:
        return Fusion(load_recipe(recipe_path, [*output, *overrides]).recipe)

    class Listening(SilentReporter):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    at(monkeypatch, "2026-11-30")
    first, reporter = fusion(), Listening()
    first.workspace.mkdir(parents=True, exist_ok=True)
    run_module.run_fusion(first, reporter, until="prompts")
    assert [line.partition(" uses ")[2] for line in reporter.lines if " uses " in line] == [
        "2026-11-30 as today's date (template_date)"
    ] * 2
    at(monkeypatch, "2026-12-01")
    assert keys_of(fusion()) == keys_of(first)
    (recipe_path.parent / "resolved.yaml").write_text(resolve_text(first.recipe))
    assert keys_of(Fusion(load_recipe(recipe_path.parent / "resolved.yaml").recipe)) == keys_of(first)
    reporter.lines.clear()
    other = fusion("template_date=2026-12-24")
    assert other.recipe.target.template_date == "2026-12-24"
    run_module.run_fusion(other, reporter, until="prompts")
    assert any(line.startswith("the date was 2026-11-30 before") for line in reporter.lines)
    assert fusion().recipe.target.template_date == "2026-12-24"


def test_models_that_ask_for_no_date_are_named_as_before(recipe_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = recipe_path.parent / "models" / "source"
    assert (writes_date(str(source)), writes_date(str(recipe_path.parent / "models" / "target"))) == (False, True)
    assert writes_date("org/not-here") is None
    at(monkeypatch, "2026-11-30")
    fusion = Fusion(load_recipe(recipe_path).recipe)
    tiny = fusion.recipe.sources["tiny"]
    assert isinstance(tiny, LocalModel)
    assert tiny.template_date is None
    assert tiny.template_options == {}
    settings = SamplingSettings()
    dated = tiny.model_copy(update={"template_date": "2026-11-30"})
    assert tiny.identity(settings=settings) == dated.identity(settings=settings)
    assert cached_fingerprint(str(source)) == fingerprint(str(source))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("template_date=tomorrow", "template_date.*expected a date such as 2026-11-30"),
        ("sft.train.template_date=2026-11-30", "sft.train.template_date.*it belongs to the run; set template_date"),
        ("sft.train.chat_template_kwargs={a: 1}", "belongs to the model.*target.chat_template_kwargs"),
        ("sources.shots.chat_template_kwargs={a: 1}", "a few-shot prompt goes through no chat template"),
        ("sft.train.thoughts=drop", "keep or strip or refuse"),
    ],
)
def test_recipes_say_where_a_key_belongs(override: str, message: str, recipe_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        load_recipe(recipe_path, [override])
    assert re.search(message, str(raised.value)), str(raised.value)
