"""De-duplication and decontamination: which prompts are dropped, which stay, and what is reported."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sinterlm.errors import InputError
from sinterlm.formats.questions import read_questions
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.pipeline.progress import SilentReporter
from sinterlm.pipeline.run import run_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.records import Dropped, Message, Prompt
from sinterlm.selection.overlap import (
    CONTAMINATED,
    DUPLICATE,
    NEAR_DUPLICATE,
    Distinct,
    decontaminate,
    deduplicate,
    split_words,
)
from sinterlm.store import Store
from tests.published_data import FOLDER, needs_published_data
from tests.tiny_fusion import write_tiny_fusion


def prompt(text: str, name: str | None = None, *before: Message) -> Prompt:
    return Prompt(name or text, (*before, Message("user", text)))


def prompts(*texts: str) -> list[Prompt]:
    return [prompt(text, str(number)) for number, text in enumerate(texts)]


def kept(distinct: Distinct) -> list[str]:
    return [prompt.id for prompt in distinct.prompts]


# --- de-duplication --------------------------------------------------------------------------------------------------


def test_the_first_of_equal_texts_is_kept() -> None:
    found = deduplicate(
        prompts("What is  2+3?", "what is 2+3?\n", "What is 2-3?", "What is 2+3", "What is \uff12+3?"),
        ngram=None,
        similarity=1,
    )
    assert kept(found) == ["0", "2", "3"], "letter case, white space and full-width digits aside"
    assert [(match.prompt_id, match.reason, match.other) for match in found.matches] == [
        ("1", DUPLICATE, "0"),
        ("4", DUPLICATE, "0"),
    ]
    assert found.dropped("prompts")[0] == Dropped("1", "prompts", DUPLICATE, "0 (overlap 1.00)")


def test_another_system_prompt_makes_no_other_question() -> None:
    found = deduplicate(
        [prompt("Who?", "a", Message("system", "Be brief.")), prompt("Who?", "b")], ngram=None, similarity=1
    )
    assert kept(found) == ["a"]


def test_near_duplicates_by_hand() -> None:
    """Ten words have 8 trigrams. Another last word: 7 shared of 9 in all, 0.778. Two words more: 8 of 10."""
    text = "one two three four five six seven eight nine ten"
    other = text.replace("ten", "zero")
    longer = f"{text} eleven twelve"
    for similarity, expected in ((0.77, ["0"]), (0.78, ["0", "1"]), (0.8, ["0", "1"]), (0.81, ["0", "1", "2"])):
        found = deduplicate(prompts(text, other, longer), ngram=3, similarity=similarity)
        assert kept(found) == expected, similarity
    (first, second) = deduplicate(prompts(text, other, longer), ngram=3, similarity=0.5).matches
    assert (first.prompt_id, first.reason, first.other) == ("1", NEAR_DUPLICATE, "0")
    assert (first.overlap, second.overlap) == pytest.approx((7 / 9, 8 / 10))
    assert (first.prompt, first.other_text) == (other, text)


def test_the_most_similar_is_named() -> None:
    base = [f"w{number}" for number in range(40)]
    far, near = [*base[:36], *"abcd"], [*base[:39], "x"]
    found = deduplicate(prompts(*map(" ".join, (far, near, base))), ngram=2, similarity=0.9)
    assert [(match.prompt_id, match.other) for match in found.matches] == [("2", "1")]


def test_short_prompts_are_compared_as_wholes() -> None:
    assert kept(deduplicate(prompts("What is 2+3?", "What is 2+4?", "What is 2+3?"), ngram=13, similarity=0.1)) == [
        "0",
        "1",
    ]


def test_chinese_is_compared_by_characters() -> None:
    found = deduplicate(
        prompts("法国的首都是哪座城市呢", "法国的首都是哪座城市吗", "德国有多少人口呢"), ngram=3, similarity=0.7
    )
    assert kept(found) == ["0", "2"]


def jaccard(one: str, other: str, ngram: int) -> float:
    """From the definition, on sets of tuples."""
    first, second = (
        {tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)}
        for words in (split_words(one), split_words(other))
    )
    return len(first & second) / len(first | second) if first | second else 0.0


TEXTS = st.lists(st.lists(st.sampled_from("abcde"), max_size=14).map(" ".join), max_size=12)


@given(texts=TEXTS, ngram=st.integers(1, 4), similarity=st.sampled_from([0.1, 0.3, 0.5, 0.55, 2 / 3, 0.8, 1.0]))
def test_it_is_the_comparison_of_all_pairs(texts: list[str], ngram: int, similarity: float) -> None:
    """The rarest n-grams find every candidate: the result equals that of comparing all pairs."""
    expected: list[int] = []
    for number, text in enumerate(texts):
        if not any(text == texts[other] or jaccard(text, texts[other], ngram) >= similarity for other in expected):
            expected.append(number)
    found = deduplicate(prompts(*texts), ngram=ngram, similarity=similarity)
    assert kept(found) == list(map(str, expected))
    for one, other in combinations(found.prompts, 2):
        assert jaccard(one.messages[0].content, other.messages[0].content, ngram) < similarity
    for match in found.matches:
        text, earlier = (
            texts[int(match.prompt_id)],
            [texts[other] for other in expected if other < int(match.prompt_id)],
        )
        best = 1.0 if match.reason == DUPLICATE else max(jaccard(text, other, ngram) for other in earlier)
        assert match.overlap == pytest.approx(best)


@given(texts=TEXTS)
def test_twice_is_once(texts: list[str]) -> None:
    once = deduplicate(prompts(*texts), ngram=2, similarity=0.6)
    assert deduplicate(once.prompts, ngram=2, similarity=0.6) == Distinct(once.prompts, [])
    assert len(once.prompts) + len(once.matches) == len(texts)


# --- decontamination -------------------------------------------------------------------------------------------------

QUESTION = Prompt(
    "gsm8k.jsonl, line 1",
    (
        Message(
            "user", "Janet's ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins."
        ),
    ),
)
"""18 words: the apostrophe separates two."""


def match_of(text: str, question: Prompt = QUESTION, *, ngram: int = 13, coverage: float = 0.0) -> Any:
    found = decontaminate([prompt(text)], [question], ngram=ngram, coverage=coverage)
    assert len(found.prompts) + len(found.matches) == 1
    return found.matches[0] if found.matches else None


def test_a_shared_run_of_words_is_found_whatever_stands_around_it() -> None:
    words = split_words(QUESTION.messages[0].content)
    assert len(words) == 18
    match = match_of(f"Solve this!  {' '.join(words[2:15]).upper()} (so on).")
    assert (match.reason, match.other) == (CONTAMINATED, "gsm8k.jsonl, line 1")
    assert match.overlap == pytest.approx(13 / 18)
    assert match.shared == " ".join(words[2:15])
    assert match.other_text == QUESTION.messages[0].content
    assert match_of(f"Solve: {' '.join(words[2:14])}") is None, "twelve words are one too few"


def test_coverage_is_a_share_of_the_questions_words() -> None:
    words = split_words(QUESTION.messages[0].content)
    text = f"{' '.join(words[:5])} and then {' '.join(words[9:14])}"
    match = match_of(text, ngram=5)
    assert match.overlap == pytest.approx(10 / 18)
    assert match.shared == " ".join(words[:5])
    assert match_of(text, ngram=5, coverage=10 / 18) is not None
    assert match_of(text, ngram=5, coverage=0.56) is None


@pytest.mark.parametrize(
    ("question", "text", "is_found"),
    [
        ("Who wrote the book Dracula?", "Tell me: who wrote the book Dracula?", True),  # five words, anywhere
        ("Who wrote the book Dracula?", "Who wrote the book of Kells?", False),
        ("Who wrote Dracula?", "Tell me: who wrote Dracula?", False),  # three, within others
        ("Who wrote Dracula?", "WHO wrote Dracula", True),  # three, and nothing else
        ("", "...", False),
    ],
)
def test_short_questions(question: str, text: str, is_found: bool) -> None:
    assert (match_of(text, prompt(question, "q")) is not None) == is_found


def test_the_question_of_most_overlap_is_named_and_the_first_of_equals() -> None:
    long = "a b c d e f g h i j k l m n o p"
    questions = [prompt(f"{long} q r s t", "part"), prompt(long, "whole"), prompt(long, "again")]
    found = decontaminate([prompt(f"{long} q")], questions, ngram=13, coverage=0)
    assert [(match.other, match.overlap) for match in found.matches] == [("whole", 1.0)]


def test_all_turns_count() -> None:
    turns = (Message("user", "Hello."), Message("assistant", "Hi."), QUESTION.messages[0])
    found = decontaminate([Prompt("p", turns)], [QUESTION], ngram=13, coverage=0)
    assert not found.prompts


def test_every_turn_of_a_question_is_one() -> None:
    """Each has fewer words than an n-gram, and the first is a third of all: asking it means asking the benchmark."""
    first, second = "What norms are there when doing business in Japan?", "And which of them changed? " * 4
    question = Prompt("q", (Message("user", first), Message("user", second)))
    match = match_of(first, question, coverage=0.5)
    assert (match.other, match.overlap, match.other_text) == ("q", 1.0, first)


def test_the_rule_of_a_table_is_no_trace() -> None:
    """More operators than words; 13 words of a sum are a match."""
    rule = "| --- | --- | --- | --- |\n" * 3
    assert match_of(f"Sort this: {rule}", prompt(f"Explain this: {rule}", "q")) is None
    assert match_of("Say 1+2-3*4/5+6-7 now", prompt("Compute 1+2-3*4/5+6-7 please", "q")) is not None


@needs_published_data
@pytest.mark.parametrize("settings", [{"ngram": 13, "coverage": 0.0}, {"ngram": 8, "coverage": 0.5}])
@pytest.mark.parametrize(
    "name",
    [
        "mt_bench/question.jsonl",
        "alpaca_eval/gpt4_1106_preview/model_outputs.json",
        "arena_hard/question.jsonl",
        "math500/test.jsonl",
        "humaneval/HumanEval.jsonl.gz",
    ],
)
def test_whoever_asks_a_benchmarks_question_is_found(name: str, settings: Any) -> None:
    questions = read_questions(FOLDER / name)
    asked = [Prompt(question.id, (turn,)) for question in questions for turn in question.messages]
    found = decontaminate(asked, questions, **settings)
    assert not found.prompts
    assert all(match.overlap == 1 for match in found.matches)


@given(
    words=st.lists(st.sampled_from("abcdef"), max_size=20),
    question=st.lists(st.sampled_from("abcdef"), min_size=5, max_size=12),
    ngram=st.integers(5, 8),
)
def test_it_is_what_the_definition_says(words: Sequence[str], question: Sequence[str], ngram: int) -> None:
    """A prompt is dropped if and only if it contains ``ngram`` consecutive words of the question (or all, if fewer)."""
    length = min(ngram, len(question))
    runs = [question[start : start + length] for start in range(len(question) - length + 1)]
    expected = any(words[start : start + length] == run for run in runs for start in range(len(words) - length + 1))
    match = match_of(" ".join(words), prompt(" ".join(question), "q"), ngram=ngram)
    assert (match is not None) == expected
    if match:
        assert f" {match.shared} " in f" {' '.join(question)} "
        assert len(match.shared.split()) >= length


# --- in a recipe -----------------------------------------------------------------------------------------------------


def fuse(recipe: Path, *overrides: str) -> tuple[Fusion, dict[str, float], list[Dropped]]:
    fusion = Fusion(load_recipe(recipe, overrides).recipe)
    run_fusion(fusion, SilentReporter(), until="prompts")
    store = Store(fusion.store_path, read_only=True)
    return fusion, dict(store.finished_stages(fusion.run_name)["prompts"].counts), list(store.dropped(fusion.run_name))


def test_a_recipe_drops_and_lists_them(tmp_path: Path) -> None:
    recipe = write_tiny_fusion(tmp_path)
    (tmp_path / "bench.jsonl").write_text(json.dumps({"question": "Say: what is 4 plus 5?"}) + "\n")
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write(json.dumps({"id": "again", "prompt": "what is  5 plus 1?", "answers": ["6"]}) + "\n")
    settings = ("prompts.deduplicate={ngram: none}", "prompts.decontaminate={against: bench.jsonl, ngram: 5}")
    fusion, counts, dropped = fuse(recipe, *settings)
    assert sum(counts.values()) == 31, "32 and one again, less one like it, less one of the benchmark"
    assert dropped == [
        Dropped("again", "prompts", DUPLICATE, "sum-5-1 (overlap 1.00)"),
        Dropped("sum-4-5", "prompts", CONTAMINATED, "bench.jsonl, line 1 (overlap 0.83)"),
    ]
    listed = [json.loads(line) for line in (fusion.output / "overlaps.jsonl").read_text().splitlines()]
    assert [(match["prompt_id"], match["shared"]) for match in listed] == [
        ("sum-4-5", "what is 4 plus 5"),
        ("again", ""),
    ]
    assert "before de-duplication" in " ".join(plan_fusion(fusion).notes)
    again = Fusion(load_recipe(fusion.output / "recipe.yaml").recipe)
    assert again.recipe.prompts == fusion.recipe.prompts, "the resolved recipe says the same"


def test_a_changed_benchmark_redoes_the_prompts(tmp_path: Path) -> None:
    recipe, bench = write_tiny_fusion(tmp_path), tmp_path / "bench.jsonl"
    settings = "prompts.decontaminate={against: [bench.jsonl], ngram: 5}"
    bench.write_text('{"question": "What is 4 plus 5?"}\n')
    assert [drop.subject for drop in fuse(recipe, settings)[2]] == ["sum-4-5"]
    bench.write_text('{"question": "What is 7 plus 3?"}\n')
    assert [drop.subject for drop in fuse(recipe, settings)[2]] == ["sum-7-3"]
    (tmp_path / "run" / "overlaps.jsonl").unlink()
    fuse(recipe, settings)
    assert (tmp_path / "run" / "overlaps.jsonl").is_file(), "a list that was deleted is made again"
    fuse(recipe)
    bench.unlink()
    with pytest.raises(InputError, match=r"bench\.jsonl: no such file"):
        fuse(recipe, settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prompts.deduplicate={similarity: 0}", "more than 0.0"),
        ("prompts.deduplicate={similarity: 80}", "at most 1.0"),
        ("prompts.decontaminate={ngram: 13}", "against"),
        ("prompts.decontaminate={against: []}", "at least 1"),
        ("prompts.decontaminate={against: b.jsonl, coverage: 2}", "at most 1.0"),
    ],
)
def test_settings_out_of_bounds_are_refused(tmp_path: Path, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(write_tiny_fusion(tmp_path), [setting])
