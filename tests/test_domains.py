"""Domains of prompts: which scorer scores them, and which source answers them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from sinterlm.errors import InputError
from sinterlm.pipeline.checks import check_inputs
from sinterlm.pipeline.fusion import Fusion
from sinterlm.pipeline.plan import plan_fusion
from sinterlm.recipe.load import load_recipe
from sinterlm.recipe.schema import Recipe
from sinterlm.records import Message, Prompt, Response, Score
from sinterlm.scoring.by_domain import ByDomainScorer
from sinterlm.scoring.protocol import Exchange
from sinterlm.scoring.settings import build_scorer

RECIPE = """\
output: {folder}/run
prompts: {{path: prompts.jsonl, split: {{sft: 0, preference: rest}}}}
target: {{model: org/small-1b, sampling: {{num_samples: 2}}}}
sources:
  general: {{engine: transformers, model: org/general-7b, sampling: {{num_samples: 2}}, domains: [chat, poems]}}
  sums: {{engine: transformers, model: org/sums-7b, sampling: {{num_samples: 3}}, domains: [sums]}}
scorer:
  kind: by-domain
  domains:
    sums: {{kind: exact-match}}
    poems: {{kind: reward-model, model: org/poet-2b}}
  other: {{kind: reward-model, model: org/reward-8b}}
preference:
  wrpo: {{select: {{kind: wrpo}}, objective: {{kind: wrpo}}}}
"""
PROMPTS = (
    '{"prompt": "Two and two?", "answers": ["4"], "domain": "sums"}\n'
    '{"prompt": "One and two?", "answers": ["3"], "domain": "sums"}\n'
    '{"prompt": "Hello!", "domain": "chat"}\n'
    '{"prompt": "Of the sea.", "domain": "poems"}\n'
)


@pytest.fixture
def recipe_path(tmp_path: Path) -> Path:
    (tmp_path / "prompts.jsonl").write_text(PROMPTS)
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def load(path: Path, *overrides: str) -> Recipe:
    return load_recipe(path, overrides).recipe


class Constant:
    """A scorer that gives everything one value and keeps its inputs."""

    def __init__(self, value: float, *, needs_answers: bool = False) -> None:
        self.value = value
        self.needs_answers = needs_answers
        self.identity = f"constant:{value:g}"
        self.asked: list[list[str]] = []
        self.closed = 0

    def score(self, answered: Sequence[Exchange]) -> list[Score]:
        self.asked.append([entry.response.id for entry in answered])
        return [Score(entry.response.id, self.identity, self.value, None, {"by": self.value}) for entry in answered]

    def close(self) -> None:
        self.closed += 1


def answered(key: str, domain: str) -> Exchange:
    prompt = Prompt(f"of {key}", (Message("user", "What?"),), domain=domain)
    return Exchange(prompt, Response(key, prompt.id, "source", 0, "That.", "stop", 1, 1, None))


def test_every_answer_is_scored_by_the_scorer_of_its_domain_in_order() -> None:
    sums, other = Constant(1.0), Constant(2.0)
    scorer = ByDomainScorer({"sums": sums, "products": sums}, other)
    domains = ["chat", "sums", "", "products", "sums"]
    scores = scorer.score([answered(str(place), domain) for place, domain in enumerate(domains)])
    assert [score.value for score in scores] == [2, 1, 2, 1, 1]
    assert [score.response_id for score in scores] == list("01234")
    assert {score.scorer for score in scores} == {scorer.identity}
    assert scores[0].detail == {"by": 2.0}
    assert (sums.asked, other.asked) == ([["1", "3", "4"]], [["0", "2"]]), "each is asked once"


def test_the_identity_names_domains_and_scorers() -> None:
    one, two = Constant(1.0), Constant(2.0)
    scorers = [
        ByDomainScorer({"a": one}, two),
        ByDomainScorer({"b": one}, two),
        ByDomainScorer({"a": two}, two),
        ByDomainScorer({"a": one}, one),
    ]
    assert len({scorer.identity for scorer in scorers}) == 4
    assert ByDomainScorer({"a": Constant(1.0)}, Constant(2.0)).identity == scorers[0].identity


def test_answers_are_needed_where_any_scorer_needs_them() -> None:
    open_, checked = Constant(1.0), Constant(2.0, needs_answers=True)
    assert ByDomainScorer({"a": checked}, open_).needs_answers
    assert ByDomainScorer({"a": open_}, checked).needs_answers
    assert not ByDomainScorer({"a": open_}, open_).needs_answers


def test_all_scorers_are_closed() -> None:
    scorers = [Constant(float(value)) for value in range(3)]
    ByDomainScorer({"a": scorers[0], "b": scorers[1]}, scorers[2]).close()
    assert [scorer.closed for scorer in scorers] == [1, 1, 1]


def test_a_recipe_builds_it_and_its_parts(recipe_path: Path) -> None:
    config = load(recipe_path).scorer
    wrapped: list[str] = []

    def wrap(scorer: Constant, config: object) -> Constant:
        wrapped.append(type(scorer).__name__)
        return scorer

    assert isinstance(build_scorer(config, wrap=wrap), ByDomainScorer)  # type: ignore[arg-type]  # the protocol's part
    assert wrapped == ["ThoughtPolicy", "ThoughtPolicy", "ThoughtPolicy", "ByDomainScorer"]
    assert [part.kind for part in config.walk()] == ["by-domain", "exact-match", "reward-model", "reward-model"]
    assert config.title == ("exact-match for sums, reward-model org/poet-2b for poems, else reward-model org/reward-8b")


@pytest.mark.parametrize(
    "change",
    [
        "scorer.domains.poems.model=org/other",
        "scorer.other.max_length=99",
        "scorer.domains={sums: {kind: exact-match}}",
        "scorer.domains={verse: {kind: exact-match}}",
    ],
)
def test_what_decides_scores_is_part_of_the_stage(recipe_path: Path, change: str) -> None:
    described = [load(recipe_path, *changes).scorer.describe(str) for changes in ((), (change,))]
    assert described[0] != described[1]


def test_a_part_is_checked_at_its_place(recipe_path: Path) -> None:
    part = "{kind: judge, model: m, rubric: {clear: is it}}"
    with pytest.raises(InputError, match=r"scorer\.domains\.poems\.rubric: mode: grade does not read it"):
        load(recipe_path, f"scorer.domains.poems={part}")


def test_accepted_answers_are_asked_for_in_their_domain_only(recipe_path: Path) -> None:
    fusion = Fusion(load(recipe_path, "preference={}"))  # no training, so the target's files are not needed
    check_inputs(fusion)
    with recipe_path.with_name("prompts.jsonl").open("a") as prompts:
        prompts.write('{"prompt": "Three and two?", "id": "three", "domain": "sums"}\n')
    with pytest.raises(InputError, match=r"needs accepted answers, but 1 prompts .* e\.g\. 'three'"):
        check_inputs(fusion)


def test_tests_that_say_nothing_are_refused_before_an_answer_is_sampled(recipe_path: Path) -> None:
    fusion = Fusion(load(recipe_path, "preference={}", "scorer.domains.sums={kind: code}"))
    with pytest.raises(InputError, match=r"prompt .*: the tests use nothing that an answer could define"):
        check_inputs(fusion)


def test_a_source_is_asked_the_prompts_of_its_domains(recipe_path: Path) -> None:
    fusion = Fusion(load(recipe_path))
    prompts = [answered("1", domain).prompt for domain in ("sums", "chat", "", "sums")]
    general, sums = map(fusion.for_training, fusion.sources)
    assert [prompt.domain for prompt in general.asked(prompts)] == ["chat"]
    assert [prompt.domain for prompt in sums.asked(prompts)] == ["sums", "sums"]
    assert fusion.for_training(fusion.target).asked(prompts) == prompts
    stages = {stage.name: stage for stage in plan_fusion(fusion).stages}
    assert stages["sample-sources"].calls == stages["score-sources"].calls == 2 * 2 + 2 * 3
    assert stages["sample-target"].calls == 4 * 2


def test_a_domain_that_no_prompt_has(recipe_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"sources\.sums\.domains: no prompt has the domain 'prose'; .* 'chat', 'poems', 'sums'"
    ):
        check_inputs(Fusion(load(recipe_path, "sources.sums.domains=[prose]")))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("prompts.split.sft_domains={prose: 0.5, sums: 1.0}", "prompts.split.sft_domains"),
        ("scorer.domains.prose={kind: exact-match}", "scorer by-domain"),
        (
            "evaluation.held_out.scorer={kind: by-domain, domains: {prose: &exact {kind: exact-match}}, other: *exact}",
            "evaluation.held_out.scorer by-domain",
        ),
        (
            "preference.pairs={select: {kind: fusechat3, windows: {prose: none}}, objective: {kind: dpo}}",
            "preference.pairs.select.windows",
        ),
    ],
)
def test_a_misspelt_domain_is_not_passed_over(recipe_path: Path, change: str, place: str) -> None:
    """It would have no effect, and its prompts would be treated like all others."""
    held_out = "prompts.split.held_out=1"
    with pytest.raises(
        InputError, match=rf"^{re.escape(place)}: no prompt has the domain 'prose'; the domains of .* are 'chat'"
    ):
        check_inputs(Fusion(load(recipe_path, held_out, change)))


def test_the_target_has_no_domains(recipe_path: Path) -> None:
    with pytest.raises(InputError, match=r"target\.domains: the target is asked every prompt of its part"):
        load(recipe_path, "target.domains=[sums]")
