"""Thoughts in a table of what models write, and of answers that only mention the tags."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from sinterlm import thoughts
from sinterlm.thoughts import has_thoughts, split_thoughts

THOUGHT = "5 + 5 is \\boxed{12}? No."
ANSWER = "The answer is 10."

FORMS = {
    "DeepSeek-R1, Qwen3": "<think>\n{}\n</think>\n\n{}",
    "on one line": "<think>{}</think>{}",
    "with spaces": "<think> {} </think> {}",
    "after white space": "\n\n <think>{}</think>\n{}",
    "after a byte order mark": "\ufeff<think>{}</think>\n{}",
    "thinking": "<thinking>{}</thinking>\n{}",
    "thought": "<thought>\n{}\n</thought>\n\n{}",
    "upper case, in a frame": "<Thought>{}</Thought>\n<Output>\n{}\n</Output>",
    "reasoning, in a frame": "<reasoning>\n{}\n</reasoning>\n<answer>\n{}\n</answer>\n",
    "a frame left open": "<think>{}</think>\n<answer>{}",
    "Granite 3.3": "<think>{}</think><response>{}</response>",
    "Magistral": "[THINK]{}[/THINK]{}",
    "Kimi": "◁think▷{}◁/think▷{}",
    "Seed-OSS": "<seed:think>{}</seed:think>{}",
    "LongCat": "<longcat_think>\n{}\n</longcat_think>\n{}",
    "Apertus": "<|inner_prefix|>{}<|inner_suffix|>{}",
    "Gemma 4": "<|channel>thought\n{}<channel|>{}",
    "Sky-T1": "<|begin_of_thought|>\n\n{}\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n{}\n\n<|end_of_solution|>",
    "Command A": "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "gpt-oss": "<|channel|>analysis<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "gpt-oss, bare": "<|channel|>analysis<|message|>{}<|channel|>final<|message|>{}",
    "gpt-oss, special tokens left out": "analysis{}assistantfinal{}",
    "Granite 3.2": "Here is my thought process:\n{}\nHere is my response:\n{}",
    "opened in the prompt": "{}\n</think>\n\n{}",
    "opened in the prompt, DeepSeek-V3.1": "Okay. {}</think>{}",
    "opened in the prompt, with spaces": "{} </think> {}",
    "opened in the prompt, in a frame": "So it is 12 </think> <answer>{1}</answer>",
    "opened in the prompt, a space before": "So it is 12 </think>\n\n{1}",
    "opened in the prompt, Seed-OSS": "{}\n</seed:think>\n{}",
    "a closing tag in quotes": "<think>{} So I end with `</think>`, now.</think>{}",
    "a closing tag in a sentence": "<think>{} So I write </think> at the end.\n</think>\n\n{}",
    "a lone closing tag, the opening one mentioned": "The user asks for <think> tags. {}\n</think>\n\n{}",
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
def test_thought_and_answer_are_told_apart(form: str) -> None:
    thoughts, answer = split_thoughts(form.format(THOUGHT, ANSWER))
    assert answer == ANSWER
    assert "12" in thoughts
    assert has_thoughts(form.format(THOUGHT, ANSWER))


MENTIONS = [
    "Begin with <think> and end with </think>. That is all.",
    "To end a thought, write </think>.",
    "To end a thought, write </think>\nThat is all.",
    "The tag is `</think>`",
    "The tag is </think>",
    "</think> closes a thought.",
    "Put </think> behind the thought, then the answer.",
    "The tags (<think></think>) enclose it.",
    "Use <think>...</think> for it.\n\nThat is all.",
    'The token "</think>" ends it; so does \u201c</thinking>\u201d.',
    "Write:\n\n```\n<think>\n5 + 5\n</think>\n10\n```\n",
    "Write:\n\n```\n5 + 5\n</think>\n10\n```\n\nThat is all.",
    "<p>\n<think>\nx\n</think>\n</p>",
    "The answer.\n\n<think>\nWas that right?\n</think>\n\nYes.",
    "analysis of variance",
    "Here is my thought process: I add.",
    "Thought: I add.\nAnswer: 10",
    "  10\n",
    "",
]


@pytest.mark.parametrize("content", MENTIONS)
def test_text_that_only_mentions_tags_stays_whole(content: str) -> None:
    assert split_thoughts(content) == ("", content)
    assert not has_thoughts(content)


@pytest.mark.parametrize(
    ("content", "thoughts", "answer"),
    [
        ("<think>first</think>\n<think>second</think>\n10", "first\n\nsecond", "10"),
        ("<think>first</think>\n<thinking>second</thinking>10", "first\n\nsecond", "10"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b<|end|>"
            "<|start|>assistant<|channel|>final<|message|>10<|return|>",
            "a<|end|><|start|>assistant<|channel|>commentary<|message|>b",
            "10",
        ),
        ("<|channel|>final<|message|>10", "", "10"),
        ("<think>\n\n</think>\n\n10", "", "10"),
        ("\n</think>\n\n10", "", "10"),
        ("<think>5 + 5 is \\boxed{10}, so", "5 + 5 is \\boxed{10}, so", ""),
        ("<think>", "", ""),
        ("5 + 5 = 10.\n</think>", "5 + 5 = 10.", ""),
        ("<think>a</think>It is `</think>` that ends it.", "a", "It is `</think>` that ends it."),
        ("<think>a</think>\n\n  10  \n", "a", "10  \n"),
    ],
)
def test_thoughts_and_answer(content: str, thoughts: str, answer: str) -> None:
    assert split_thoughts(content) == (thoughts, answer)


@pytest.mark.parametrize(
    "content", ["<think></think>" * 20_000, "a </think> b " * 20_000, "<think> x `</think>` " * 20_000, "<" * 300_000]
)
def test_time_is_bounded_on_any_text(content: str) -> None:
    started = time.process_time()
    split_thoughts(content)
    assert time.process_time() - started < 5


def test_needs_no_torch() -> None:
    code = "import sys, sinterlm.thoughts; print(any(name in sys.modules for name in ('torch', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("pair", thoughts._PAIRS, ids=[pair.opening for pair in thoughts._PAIRS])
def test_every_tag_begins_as_is_looked_for_first(pair: thoughts._Pair) -> None:
    """Texts that do not begin so, and texts without such a mark, are read no further."""
    opening, closing = (re.sub(r"^(\(\?:)?\\?", "", tag) for tag in (pair.opening, pair.closing))
    assert thoughts._BEGIN.match(opening)
    assert pair.is_prose or thoughts._MARK.match(closing)
