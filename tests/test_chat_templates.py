"""Templates that do more than frame messages: each kind with a small original template and a real tokenizer.

What is trained must be what was scored: every word of the answer, after the prompt that generation sees.
"""

from __future__ import annotations

import datetime
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from sinterlm import template as template_module
from sinterlm.chat import (
    EncodedExample,
    UnfitAnswer,
    chat_template_of,
    encode_conversation,
    encode_example,
    encode_prompt,
    end_token_ids,
    thought_token_ids,
)
from sinterlm.errors import InputError
from sinterlm.objectives.named import resolve_objective
from sinterlm.records import Message, Prompt, RowResponse, TrainingRow
from sinterlm.sampling.asking import Asking
from sinterlm.template import TemplateOptions, TemplateRefusal
from sinterlm.thoughts import split_thoughts
from sinterlm.training.encoding import EncodedRows, encode_rows
from tests.tiny import build_tokenizer

THOUGHT = "<think>\nAfrica, so the longest one.\n</think>\n\nThe Nile."
MENTION = "Begin with <think> and end with </think>. That is all."
RIVER = (Message("user", "Which river is the longest?"),)

TURN = "{{ '<|im_start|>' + m['role'] + '\n' + content + '<|im_end|>\n' }}"


def template_of(content: str = "m['content']", *, generation: str = "<|im_start|>assistant\n", turn: str = TURN) -> str:
    """A template in ChatML's form: ``content`` renders a message, ``generation`` is the generation prompt."""
    return (
        "{% for m in messages %}{% set content = " + content + " %}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '" + generation + "' }}{% endif %}"
    )


WITHOUT_THOUGHTS = "(m['content'].split('</think>')[-1] | trim) if m['role'] == 'assistant' else m['content']"
TEMPLATES = {
    "keeps thoughts": template_of(),
    "takes thoughts off": template_of(WITHOUT_THOUGHTS),
    "cuts at the first closing tag": template_of("m['content'].split('</think>', 1)[-1]"),
    "opens a thought": template_of(WITHOUT_THOUGHTS, generation="<|im_start|>assistant\n<think>\n"),
    "opens a thought without a line": template_of(WITHOUT_THOUGHTS, generation="<|im_start|>assistant\n<think>"),
    "normalises white space": template_of("m['content'].split() | join(' ')"),
    "changes words": template_of("m['content'] | replace('Nile', 'NILE') | replace('think', 'THINK')"),
    "always asks again": template_of(WITHOUT_THOUGHTS).partition("{% if add_generation_prompt")[0]
    + "{{ '<|im_start|>assistant\n' }}",
    "takes no finished dialogue": template_of()
    + "{% if messages[1:] and not add_generation_prompt and 'probe' not in messages[0]['content'] %}"
    "{{ raise_exception('no') }}{% endif %}",
}


def tokenizer_with(template: str, *added: str) -> PreTrainedTokenizerFast:
    """A real tokenizer with the tags of a thought as tokens that are not special, as Qwen3's are."""
    tokenizer = build_tokenizer("chatml")
    tokens = [AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>", *added)]
    tokenizer.add_tokens(tokens)
    tokenizer.chat_template = template
    return tokenizer


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def generated(tokenizer: PreTrainedTokenizerFast, example: EncodedExample) -> tuple[str, str]:
    return decode(tokenizer, example.prompt_ids), decode(tokenizer, example.response_ids)


def rows_of(
    tokenizer: PreTrainedTokenizerFast, *answers: str, messages: tuple[Message, ...] = RIVER, **settings: Any
) -> EncodedRows:
    rows = [TrainingRow(f"p{number}", messages, (RowResponse(text, "chosen"),)) for number, text in enumerate(answers)]
    return encode_rows(rows, tokenizer, objective=resolve_objective("sft"), max_length=512, **settings)


# --- how an answer is rendered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TEMPLATES)
@pytest.mark.parametrize("answer", ["The Nile.", THOUGHT, MENTION, "  spaced   out\n\n\ntext"])
def test_every_word_of_an_answer_is_trained(kind: str, answer: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[kind])
    example = encode_example(tokenizer, RIVER, answer)
    prompt, response = generated(tokenizer, example)
    assert example.prompt_ids == encode_prompt(tokenizer, RIVER)
    assert answer.strip().removeprefix("<think>\n") in response
    assert (prompt + response).count("<think>") == (1 if "opens" in kind else 0) + answer.count("<think>") - (
        "opens" in kind and answer == THOUGHT
    )
    assert response.count("<|im_end|>") == 1


@pytest.mark.parametrize(
    ("kind", "answer", "response"),
    [
        ("always asks again", "The Nile.", "The Nile.<|im_end|>\n"),
        ("opens a thought", "The Nile.", "\n</think>\n\nThe Nile.<|im_end|>\n"),
        ("opens a thought", THOUGHT, "Africa, so the longest one.\n</think>\n\nThe Nile.<|im_end|>\n"),
        ("opens a thought", "Africa.</think>The Nile.", "Africa.</think>The Nile.<|im_end|>\n"),
        ("opens a thought", MENTION, f"\n</think>\n\n{MENTION}<|im_end|>\n"),
        ("opens a thought without a line", THOUGHT, f"{THOUGHT.removeprefix('<think>')}<|im_end|>\n"),
        ("takes thoughts off", THOUGHT, f"{THOUGHT}<|im_end|>\n"),
        ("always asks again", THOUGHT, f"{THOUGHT}<|im_end|>\n"),
        ("takes thoughts off", "The Nile.", "The Nile.<|im_end|>\n"),
        ("cuts at the first closing tag", MENTION, f"{MENTION}<|im_end|>\n"),
    ],
)
def test_responses_by_hand(kind: str, answer: str, response: str) -> None:
    tokenizer = tokenizer_with(TEMPLATES[kind])
    assert decode(tokenizer, encode_example(tokenizer, RIVER, answer).response_ids) == response


def test_a_thought_is_the_tokens_that_a_model_writes() -> None:
    """Its tags are tokens in an answer and text if a user writes them, although neither is special."""
    tokenizer = tokenizer_with(template_of(WITHOUT_THOUGHTS, generation="<|im_start|>assistant\n<think>\n"))
    opening, closing = (tokenizer.get_added_vocab()[tag] for tag in ("<think>", "</think>"))
    example = encode_example(tokenizer, (Message("user", "What is <think> and </think>?"),), THOUGHT)
    assert example.prompt_ids.count(opening) == 1  # from the template
    assert closing not in example.prompt_ids
    assert example.response_ids.count(closing) == 1


def test_a_thought_behind_an_empty_one_is_dropped_with_the_reason() -> None:
    """The prompt tells the model not to think, so a thinking source's answer does not fit after it."""
    tokenizer = tokenizer_with(template_of(generation="<|im_start|>assistant\n<think>\n\n</think>\n\n"))
    encoded = rows_of(tokenizer, "The Nile.", THOUGHT)
    assert [(drop.subject, drop.reason) for drop in encoded.dropped] == [("p1", "thought-after-a-closed-one")]
    assert "thoughts: strip" in encoded.dropped[0].detail
    assert len(encoded.rows) == 1
    stripped = rows_of(tokenizer, "The Nile.", THOUGHT, thoughts="strip")
    assert [row["input_ids"] for row in stripped.rows] == [encoded.rows[0]["input_ids"]] * 2


@pytest.mark.parametrize(
    "closed", ["<think>\\n\\n</think>\\n", "<|START_THINKING|><|END_THINKING|>", "<|channel>thought\\n<channel|>"]
)
def test_a_closed_thought_is_known_in_every_form(closed: str) -> None:
    """Also if a finished answer contains it too, as in SmolLM3."""
    written = "('" + closed + "' if m['role'] == 'assistant' else '') + m['content']"
    for template in (template_of(), template_of(written)):
        template = template.replace("'<|im_start|>assistant\n'", f"'<|im_start|>assistant\n{closed}'")
        tokenizer = tokenizer_with(template, "<|START_THINKING|>", "<|END_THINKING|>", "<|channel>", "<channel|>")
        encoded = rows_of(tokenizer, THOUGHT, "The Nile.")
        assert [(drop.subject, drop.reason) for drop in encoded.dropped] == [("p0", "thought-after-a-closed-one")]
        assert len(encoded.rows) == 1


def test_an_answer_is_never_trained_inside_the_thought_that_the_prompt_opens() -> None:
    """For a template that writes the opening tag before every answer, even finished ones."""
    written = "('<think>' if m['role'] == 'assistant' else '') + m['content']"
    tokenizer = tokenizer_with(template_of(written, generation="<|im_start|>assistant\n<think>"))
    _, response = generated(tokenizer, encode_example(tokenizer, RIVER, "The Nile."))
    assert response == "\n</think>\n\nThe Nile.<|im_end|>\n"


@pytest.mark.parametrize("is_special", [False, True])
def test_a_sampled_thought_is_read_and_trained_as_one(is_special: bool) -> None:
    """With special tokens as tags, with a prompt that opens the thought, and with a limit that cuts it."""
    template = template_of(WITHOUT_THOUGHTS, generation="<|im_start|>assistant\n<think>\n")
    tokenizer = build_tokenizer("chatml")
    tokenizer.add_tokens([AddedToken(tag, special=is_special, normalized=False) for tag in ("<think>", "</think>")])
    tokenizer.chat_template = template
    asking = Asking(tokenizer, None, None, end_token_ids(tokenizer), thought_tokens=thought_token_ids(tokenizer))
    prompt = asking.encode(Prompt("p", RIVER))

    def sampled(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    whole = sampled("Africa.\n</think>\n\nThe Nile.<|im_end|>")
    assert asking.read(whole, prompt) == "Africa.\n</think>\n\nThe Nile."
    assert encode_example(tokenizer, RIVER, asking.read(whole, prompt)).response_ids[: len(whole)] == whole
    cut = sampled("Africa, so the")
    assert asking.read(cut, prompt) == "<think>\nAfrica, so the"
    assert split_thoughts(asking.read(cut, prompt)).answer == ""
    assert encode_example(tokenizer, RIVER, asking.read(cut, prompt), truncated=True).response_ids == cut
    cut = sampled("Africa.\n</think>\n\nThe")
    assert asking.read(cut, prompt) == "Africa.\n</think>\n\nThe"
    assert asking.read((), prompt) == ""


def test_thoughts_policies() -> None:
    tokenizer = tokenizer_with(TEMPLATES["takes thoughts off"])
    answers = ("The Nile.", THOUGHT, "<think>\nNothing more", "<think>\n\n</think>\n\nThe Nile.")
    kept, stripped, refused = (rows_of(tokenizer, *answers, thoughts=policy) for policy in ("keep", "strip", "refuse"))
    assert len(kept.rows) == 4
    assert kept.num_as_generated == 2  # nothing was removed from the cut one
    plain = kept.rows[0]["input_ids"]
    assert [row["input_ids"] for row in stripped.rows] == [plain] * 3
    assert [(drop.subject, drop.reason) for drop in stripped.dropped] == [("p2", "only-a-thought")]
    assert [(drop.subject, drop.reason) for drop in refused.dropped] == [
        ("p1", "holds-thoughts"),
        ("p2", "holds-thoughts"),
    ]


def test_a_pair_is_dropped_whole() -> None:
    tokenizer = tokenizer_with(TEMPLATES["keeps thoughts"])
    row = TrainingRow("p", RIVER, (RowResponse("The Nile.", "chosen"), RowResponse(THOUGHT, "rejected")))
    encoded = encode_rows([row], tokenizer, objective=resolve_objective("dpo"), max_length=512, thoughts="refuse")
    assert encoded.rows == []
    assert "role 'rejected'" in encoded.dropped[0].detail


def test_words_that_a_tokenizer_cannot_write_drop_the_row() -> None:
    """A word-level vocabulary has a single token for all unknown words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    words = ["<unk>", "</s>", "user:", "assistant:", "sinterprobe", "The", "Nile."]
    backend = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} </s> {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    encoded = rows_of(tokenizer, "The Nile.", "The Amazon.")
    assert [(drop.subject, drop.reason) for drop in encoded.dropped] == [("p1", "answer-written-otherwise")]


# --- conversations of several turns, system prompts ------------------------------------------------------------------

SURE = (*RIVER, Message("assistant", THOUGHT), Message("user", "Sure?"))


def test_earlier_turns_are_those_that_generation_sees() -> None:
    """The thought of an earlier turn is left out while the model answers, and returns once the dialogue is finished."""
    template = template_of(
        "m['content'].split('</think>')[-1] | trim if m['role'] == 'assistant' and add_generation_prompt"
        " else m['content']"
    )
    tokenizer = tokenizer_with(template)
    example = encode_example(tokenizer, SURE, "Yes.")
    prompt, response = generated(tokenizer, example)
    assert example.prompt_ids == encode_prompt(tokenizer, SURE)
    assert "Africa" not in prompt
    assert response == "Yes.<|im_end|>\n"


def test_a_system_prompt_in_the_last_turn_of_the_user() -> None:
    """As in Mistral Nemo: a finished dialogue would leave it out."""
    template = (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
        "{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{% if m['role'] == 'user' and loop.last and system is defined %}{{ system + '\n\n' }}{% endif %}"
        "{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    tokenizer = tokenizer_with(template)
    for turns in (RIVER, SURE):
        messages = (Message("system", "Be brief."), *turns)
        prompt, response = generated(tokenizer, encode_example(tokenizer, messages, "Yes."))
        assert prompt.endswith(f"Be brief.\n\n{turns[-1].content}<|im_end|>\n<|im_start|>assistant\n")
        assert prompt.count("Be brief.") == 1
        assert response == "Yes.<|im_end|>\n"


SWITCH = (
    "{% set mode = namespace(think=true) %}{% if messages[0]['role'] == 'system' %}"
    "{% if '/no_think' in messages[0]['content'] %}{% set mode.think = false %}{% endif %}"
    "{{ '<|im_start|>system\n' + messages[0]['content'] | replace('/no_think', '') | trim + '<|im_end|>\n' }}"
    "{% set messages = messages[1:] %}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if not mode.think %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)


@pytest.mark.parametrize(("system", "written"), [("Be terse. /no_think", "Be terse."), ("/no_think", "")])
def test_a_switch_in_the_system_prompt_is_the_templates(system: str, written: str) -> None:
    tokenizer = tokenizer_with(SWITCH)
    prompt = decode(tokenizer, encode_prompt(tokenizer, (Message("system", system), *RIVER)))
    assert prompt == (
        f"<|im_start|>system\n{written}<|im_end|>\n<|im_start|>user\n{RIVER[0].content}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@pytest.mark.parametrize("system", ["Be brief.", "user", "e"])
def test_a_system_prompt_without_a_trace_opens_the_users_turn(system: str) -> None:
    """Also a prompt whose words occur in the rendering anyway."""
    template = template_of().replace("in messages", "in messages if m['role'] != 'system'")
    tokenizer = tokenizer_with(template)
    prompt = decode(tokenizer, encode_prompt(tokenizer, (Message("system", system), *RIVER)))
    assert prompt == f"<|im_start|>user\n{system}\n\n{RIVER[0].content}<|im_end|>\n<|im_start|>assistant\n"


# --- turn tokens that are not special --------------------------------------------------------------------------------


@pytest.mark.parametrize("turn", ["'<|User|>'", "'<|' + 'Us' + 'er|>'"])
def test_turn_tokens_that_are_not_special_stay_text_in_text(turn: str) -> None:
    """As literals of the template or joined from pieces; in prompts, in answers and in the input of reward models."""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ "
        + turn
        + " }}{% else %}{{ '<|Assistant|>' }}{% endif %}"
        "{{ m['content'] }}{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
    )
    tokenizer = tokenizer_with(template, "<|User|>", "<|Assistant|>")
    user, assistant = (tokenizer.get_added_vocab()[token] for token in ("<|User|>", "<|Assistant|>"))
    spelt = "Say <|User|> and <|Assistant|>"
    example = encode_example(tokenizer, (Message("user", spelt),), f"{spelt}.")
    whole = encode_conversation(tokenizer, (Message("user", spelt), Message("assistant", f"{spelt}.")))
    for ids in (example.prompt_ids, example.prompt_ids + example.response_ids, whole):
        assert [token for token in ids if token in (user, assistant)] == [user, assistant]
        assert spelt in decode(tokenizer, ids)


# --- errors and named templates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for tool in tools %}{{ tool }}{% endfor %}", "NoneType"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[7]['content'] }}", "UndefinedError"),
        ("{{ messages['a'].b.c }}", "Undefined"),
        ("{{ ''.join(messages) }}", "TypeError"),
        ("{{ 'a'.index('b') }}", "ValueError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{{ messages | nothing }}", "nothing"),
        ("{% if %}", "TemplateSyntaxError"),
        ("{{ range(10 ** 9) }}", "OverflowError"),
        ("{{ [1, 2] | random }}", "draws at random"),
        ("{{ lipsum() }}", "draws at random"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    ],
)
def test_an_error_inside_a_template_names_tokenizer_and_template(source: str, message: str) -> None:
    tokenizer = tokenizer_with(source)
    tokenizer.name_or_path = "org/model"
    with pytest.raises(InputError, match="chat template of tokenizer 'org/model'") as raised:
        encode_prompt(tokenizer, RIVER)
    assert message in str(raised.value)


def test_the_line_of_the_template_is_named() -> None:
    with pytest.raises(TemplateRefusal, match=r"with the roles user: no such thing \(line 2 of the template\)"):
        encode_prompt(tokenizer_with("first\n{{ raise_exception('no such thing') }}"), RIVER)


def test_one_row_that_a_template_refuses_does_not_stop_the_others() -> None:
    template = template_of() + "{% if 'Amazon' in messages[0]['content'] %}{{ 1 / 0 }}{% endif %}"
    rows = [
        TrainingRow(name, (Message("user", name),), (RowResponse("Yes.", "chosen"),)) for name in ("Nile?", "Amazon?")
    ]
    encoded = encode_rows(rows, tokenizer_with(template), objective=resolve_objective("sft"), max_length=512)
    assert len(encoded.rows) == 1
    assert [(drop.subject, drop.reason) for drop in encoded.dropped] == [("Amazon?", "refused-by-the-chat-template")]
    assert "ZeroDivisionError" in encoded.dropped[0].detail


POISON: dict[str, tuple[tuple[Message, ...], str, str]] = {
    "two questions": ((*RIVER, *RIVER), "Yes.", "refused-by-the-chat-template"),
    "a tool": ((Message("tool", "x"), *RIVER), "Yes.", "refused-by-the-chat-template"),
    "no message": ((), "Yes.", "refused-by-the-chat-template"),
    "system alone": ((Message("system", "x"),), "Yes.", "refused-by-the-chat-template"),
    "half a character in the prompt": ((Message("user", "\ud800"),), "Yes.", "refused-by-the-chat-template"),
    "half a character": (RIVER, "\udfff", "refused-by-the-chat-template"),
    "a thought": (RIVER, THOUGHT, "holds-thoughts"),
    "an open thought": (RIVER, "<think>Africa", "holds-thoughts"),
    "turn tokens": (RIVER, "<end_of_turn><start_of_turn>model\n", ""),
    "marks": ((Message("user", "\U000f0000<end_of_turn>"),), "\U000f0001<eos>", ""),
    "nothing but controls": ((Message("user", "\0"),), "\0\x01", ""),
    "joined characters": (RIVER, "\U0001f469\u200d\U0001f4bb \u202eabc\u202c", ""),
    "a template": ((Message("user", "{% raw %}{{ 1 / 0 }}"),), "{{ messages }}", ""),
    "empty lines": ((Message("user", "\n\n"),), "\n\n\nYes.\n\n", ""),
}


def test_poisonous_rows_are_counted_and_the_others_trained() -> None:
    tokenizer = build_tokenizer("gemma")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for", "{{ messages[0].content[:0] }}{% if messages[1:] and messages[1].role == messages[0].role %}"
        "{{ raise_exception('roles') }}{% endif %}{% for", 1,
    )  # fmt: skip
    rows = [
        row
        for name, (messages, answer, _) in POISON.items()
        for row in (
            TrainingRow(name, messages, (RowResponse(answer, "chosen"),)),
            TrainingRow("good", RIVER, (RowResponse("The Nile.", "chosen"),)),
        )
    ]
    objective = resolve_objective("sft")
    encoded = encode_rows(rows, tokenizer, objective=objective, max_length=512, thoughts="refuse")
    reasons = {name: reason for name, (_, _, reason) in POISON.items() if reason}
    assert {drop.subject: drop.reason for drop in encoded.dropped} == reasons
    assert len(encoded.rows) == len(rows) - len(reasons)
    end = tokenizer.get_added_vocab()["<end_of_turn>"]
    assert all(row["input_ids"].count(end) == 2 for row in encoded.rows)  # of the question and of the answer


def test_of_several_named_templates_the_default_is_used(tmp_path: Any) -> None:
    tokenizer = tokenizer_with("")
    tokenizer.chat_template = {"default": template_of(), "tool_use": "{{ 1 / 0 }}"}
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert isinstance(loaded.chat_template, dict)
    plain = tokenizer_with(template_of())
    assert encode_prompt(loaded, RIVER) == encode_prompt(plain, RIVER)
    assert chat_template_of(loaded) == template_of()
    loaded.chat_template = {"rag": "", "tool_use": ""}
    with pytest.raises(InputError, match="has the chat templates rag, tool_use; expected one that is named default"):
        encode_prompt(loaded, RIVER)


# --- limits ----------------------------------------------------------------------------------------------------------

LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLING = "{% set s = namespace(t='aaaaaaaa') %}{% for i in range(99) %}{% set s.t = s.t ~ s.t %}{% endfor %}{{ s.t }}"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (LOOPS, "computes for more than"),
        ("{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}", "computes for"),
        ("{{ 10 ** (10 ** 9) }}", "computes for more than"),
        ("{{ 'a' * 4000000000 }}", "takes more than 64 MiB"),
        ("{% set n = 4000000000 %}{{ 'a' * n }}", "takes more than 64 MiB"),
        (DOUBLING, "takes more than 64 MiB"),
        ("{{ 'a' * 2000000 }}", "makes 2,000,000 characters of a conversation"),
        ("{# " + "a" * 70_000 + " #}", "has 70,006 characters"),
        # harmless except for certain conversations
        (
            template_of() + "{% if 'river' in messages[0]['content'] %}" + LOOPS + "{% endif %}",
            "computes for more than",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_a_template_without_end_is_stopped(source: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_module, "MAX_SECONDS", 0.1)
    monkeypatch.setattr(template_module, "MAX_BYTES", 2**26)
    started = time.monotonic()
    with pytest.raises(InputError, match="chat template of tokenizer") as raised:
        rows_of(tokenizer_with(source), "Yes.")
    assert message in str(raised.value)
    assert time.monotonic() - started < 30


def test_long_conversations_are_no_flood() -> None:
    messages = (Message("user", "river " * 400_000),)
    assert len(template_module.render(template_of(), messages, TemplateOptions(), name="it", add_generation_prompt=True,
                                      special_tokens={})) > 2_400_000  # fmt: skip


def test_rendering_in_another_thread_has_the_same_limits_and_leaves_none_behind() -> None:
    import resource

    tokenizer = tokenizer_with(template_of())
    before = resource.getrlimit(resource.RLIMIT_AS)
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(encode_prompt, tokenizer, RIVER).result() == encode_prompt(tokenizer, RIVER)
        refusing = tokenizer_with(template_of() + "{% if 'Nile' in messages[-1].content %}{{ 1 / 0 }}{% endif %}")
        thread.submit(encode_prompt, refusing, RIVER).result()
        with pytest.raises(TemplateRefusal, match="ZeroDivisionError"):
            thread.submit(encode_prompt, refusing, (Message("user", "The Nile?"),)).result()
        for bomb, message in (
            (LOOPS, "computes for more than"),
            ("{{ 'a' * 4000000000 }}", "takes more than 1,024 MiB"),
        ):
            with pytest.raises(InputError, match=message) as raised:
                thread.submit(encode_prompt, tokenizer_with(bomb), RIVER).result()
            assert not isinstance(raised.value, TemplateRefusal)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


# --- date and variables ----------------------------------------------------------------------------------------------

DATED = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') + '.<|im_end|>\n' }}" + template_of()


def test_the_date_is_the_given_one() -> None:
    tokenizer = tokenizer_with(DATED)
    options = TemplateOptions.of(None, "2026-11-30")
    first = encode_prompt(tokenizer, RIVER, options)
    assert "Today is 30 November 2026." in decode(tokenizer, first)
    assert encode_example(tokenizer, RIVER, "Yes.", options=options).prompt_ids == first
    assert first == encode_prompt(tokenizer, RIVER, TemplateOptions(date=datetime.date(2026, 11, 30)))
    assert first != encode_prompt(tokenizer, RIVER, TemplateOptions(date=datetime.date(2026, 12, 1)))
    with pytest.raises(InputError, match="template_date: 2026-11-30"):
        encode_prompt(tokenizer, RIVER)
    with pytest.raises(InputError, match="template_date is 'tomorrow'"):
        TemplateOptions.of(None, "tomorrow")


SWITCHED = (
    template_of(generation="<|im_start|>assistant\n")
    + "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
)


def test_variables_reach_the_template_or_are_refused() -> None:
    tokenizer = tokenizer_with(SWITCHED)
    off = TemplateOptions({"enable_thinking": False})
    prompt = decode(tokenizer, encode_prompt(tokenizer, RIVER, off))
    assert prompt == decode(tokenizer, encode_prompt(tokenizer, RIVER)) + "<think>\n\n</think>\n\n"
    prompt, response = generated(tokenizer, encode_example(tokenizer, RIVER, "The Nile.", options=off))
    assert prompt.endswith("</think>\n\n")
    assert response == "The Nile.<|im_end|>\n"
    for name in ("enable_thinkin", "messages", "strftime_now"):
        with pytest.raises(InputError, match=f"does not read {name} .*it reads .*enable_thinking"):
            encode_prompt(tokenizer, RIVER, TemplateOptions({name: False}))


def test_unfit_answers_are_errors_of_the_input() -> None:
    assert issubclass(UnfitAnswer, InputError)
