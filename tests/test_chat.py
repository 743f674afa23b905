"""Boundary, special tokens and few-shot prompts, for four template families, with TRL as the oracle."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import PreTrainedTokenizerFast
from trl.data_utils import _tokenize, common_prefix_length

from sinterlm.chat import (
    FewShot,
    UnfitAnswer,
    encode_completion,
    encode_conversation,
    encode_example,
    encode_prompt,
    end_token_ids,
    with_system,
)
from sinterlm.errors import InputError
from sinterlm.records import Message
from sinterlm.template import TemplateOptions
from tests.tiny import FAMILIES, build_tokenizer

TOKENIZERS = {family: build_tokenizer(family) for family in FAMILIES}
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}
WRITTEN_AFTER = {"chatml": "<|im_end|>\n", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>\n", "mistral": "</s>"}
SPECIAL_TOKENS = sorted({token for tokenizer in TOKENIZERS.values() for token in tokenizer.get_added_vocab()})
FRANCE = (Message("user", "What is the capital of France?"),)

# Transformers marks special tokens in messages with these two private-use characters, and drops them from the text.
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\U000f0000\U000f0001")
words = st.text(characters, min_size=1, max_size=30).filter(str.strip)
answers = words.map(str.strip).filter(lambda text: not any(token in text for token in SPECIAL_TOKENS))
questions = answers


@st.composite
def spelling_special_tokens(draw: st.DrawFn) -> str:
    """Text that spells out special tokens of the families."""
    pieces = draw(st.lists(st.one_of(words, st.sampled_from(SPECIAL_TOKENS)), min_size=1, max_size=5))
    return "".join([*pieces, draw(st.sampled_from(SPECIAL_TOKENS))])


def dialogue(question: str, *turns: str) -> tuple[Message, ...]:
    roles = ("user", "assistant")
    return tuple(Message(roles[number % 2], text) for number, text in enumerate((question, *turns)))


def as_dicts(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    return [message._asdict() for message in messages]


def apply_template(tokenizer: PreTrainedTokenizerFast, messages: tuple[Message, ...], *, prompt: bool) -> list[int]:
    """Transformers' own ids."""
    encoding: Any = tokenizer.apply_chat_template(as_dicts(messages), add_generation_prompt=prompt)
    return list(encoding["input_ids"])


def decode(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return str(tokenizer.decode(ids))


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    return tokenizer.get_added_vocab()[token]


def split_as_trl(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> tuple[list[int], list[int], int]:
    """Prompt ids, ids of prompt and answer, and the boundary, as TRL 1.16's SFT and DPO trainers compute them."""
    prompt = [{"role": "user", "content": question}]
    completion = [{"role": "assistant", "content": answer}]
    prompt_ids = _tokenize(tokenizer, prompt, add_generation_prompt=True)["input_ids"]
    whole_ids = _tokenize(tokenizer, prompt + completion)["input_ids"]
    return prompt_ids, whole_ids, common_prefix_length(prompt_ids, whole_ids)


def special_ids(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> list[int]:
    return [token for token in ids if token in tokenizer.added_tokens_decoder]


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @given(question=questions, answer=answers, follow_up=questions)
    def test_ids_are_those_of_transformers(self, family: str, question: str, answer: str, follow_up: str) -> None:
        tokenizer = TOKENIZERS[family]
        messages = dialogue(question, answer, follow_up)
        assert encode_prompt(tokenizer, messages) == apply_template(tokenizer, messages, prompt=True)
        whole = dialogue(question, answer)
        assert encode_conversation(tokenizer, whole) == apply_template(tokenizer, whole, prompt=False)

    @given(question=questions, answer=answers)
    def test_boundary_is_that_of_trl(self, family: str, question: str, answer: str) -> None:
        tokenizer = TOKENIZERS[family]
        prompt_ids, whole_ids, boundary = split_as_trl(tokenizer, question, answer)
        assert boundary == len(prompt_ids)
        example = encode_example(tokenizer, dialogue(question), answer)
        assert example.prompt_ids == whole_ids[:boundary]
        assert example.response_ids == whole_ids[boundary:]

    @given(question=questions, answer=answers)
    def test_an_answer_ends_once_and_a_cut_one_not_at_all(self, family: str, question: str, answer: str) -> None:
        tokenizer = TOKENIZERS[family]
        end = token_id(tokenizer, END_OF_TURN[family])
        whole = encode_example(tokenizer, dialogue(question), answer)
        cut = encode_example(tokenizer, dialogue(question), answer, truncated=True)
        assert whole.response_ids.count(end) == 1
        assert special_ids(tokenizer, cut.response_ids) == []
        assert whole.prompt_ids == cut.prompt_ids
        assert whole.response_ids[: len(cut.response_ids) + 1] == [*cut.response_ids, end]
        assert decode(tokenizer, whole.response_ids).strip() == (answer + WRITTEN_AFTER[family]).strip()
        assert decode(tokenizer, cut.response_ids).strip() == answer

    @given(question=spelling_special_tokens(), answer=spelling_special_tokens())
    def test_special_tokens_in_text_stay_text(self, family: str, question: str, answer: str) -> None:
        tokenizer = TOKENIZERS[family]
        plain = encode_example(tokenizer, dialogue("What?"), "That.")
        example = encode_example(tokenizer, dialogue(question.strip()), answer.strip())
        assert special_ids(tokenizer, example.prompt_ids) == special_ids(tokenizer, plain.prompt_ids)
        assert special_ids(tokenizer, example.response_ids) == special_ids(tokenizer, plain.response_ids)
        assert question.strip() in decode(tokenizer, example.prompt_ids)
        assert answer.strip() in decode(tokenizer, example.response_ids)

    @given(text=st.one_of(words, spelling_special_tokens()))
    def test_a_completion_begins_with_the_tokenizers_own_bos_once(self, family: str, text: str) -> None:
        tokenizer = TOKENIZERS[family]
        ids = encode_completion(tokenizer, text)
        bos = [tokenizer.bos_token_id] if family != "chatml" else []
        assert special_ids(tokenizer, ids) == bos
        assert ids[: len(bos)] == bos
        assert decode(tokenizer, ids[len(bos) :]) == text

    def test_at_most_one_bos(self, family: str) -> None:
        tokenizer = TOKENIZERS[family]
        ids = encode_prompt(tokenizer, FRANCE)
        assert ids.count(tokenizer.bos_token_id) == (family != "chatml")

    def test_end_tokens_are_end_of_turn_and_eos(self, family: str) -> None:
        tokenizer = TOKENIZERS[family]
        expected = {token_id(tokenizer, END_OF_TURN[family]), tokenizer.eos_token_id}
        assert end_token_ids(tokenizer) == expected

    def test_a_system_prompt_is_in_every_prompt(self, family: str) -> None:
        """As a separate turn, or before the user's words if the template refuses the role."""
        tokenizer = TOKENIZERS[family]
        text = decode(tokenizer, encode_prompt(tokenizer, with_system(FRANCE, "Be brief.")))
        if family in ("gemma", "mistral"):
            assert f"Be brief.\n\n{FRANCE[0].content}" in text
        else:
            assert text.index("system") < text.index("Be brief.") < text.index("user") < text.index("France")

    @pytest.mark.parametrize("empty", ["", " \n"])
    def test_an_empty_answer_is_refused(self, family: str, empty: str) -> None:
        with pytest.raises(InputError, match="an empty response never reaches a loss"):
            encode_example(TOKENIZERS[family], FRANCE, empty)


TRL_TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


@pytest.mark.parametrize("path", TRL_TEMPLATES, ids=lambda path: path.stem)
def test_published_templates_are_split_as_trl_does_or_refused(path: Path) -> None:
    """TRL cuts a prompt that opens a thought and trains the rest; here the answer first closes the thought."""
    tokenizer = build_tokenizer("llama3")
    tokenizer.chat_template = path.read_text()
    control = set(re.findall(r"<[|\uff5c][^\s<>]+[|\uff5c]>|<\w+_of_\w+>", tokenizer.chat_template))
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in sorted(control)])
    options = TemplateOptions(date=datetime.date.today())  # TRL's rendering needs it
    try:
        prompt_ids, whole_ids, boundary = split_as_trl(tokenizer, "What?", "Paris")
    except TemplateError:
        boundary, prompt_ids = -1, []
    if "What?" not in decode(tokenizer, prompt_ids):
        with pytest.raises(InputError, match="chat template"):
            encode_example(tokenizer, dialogue("What?"), "Paris", options=options)
        return
    example = encode_example(tokenizer, dialogue("What?"), "Paris", options=options)
    assert example.prompt_ids == prompt_ids
    written = whole_ids[boundary:]
    if boundary == len(prompt_ids):
        assert example.response_ids == (
            written if special_ids(tokenizer, written) else [*written, tokenizer.eos_token_id]
        )
    else:
        assert decode(tokenizer, prompt_ids).endswith("<think>\n")
        assert decode(tokenizer, example.response_ids).startswith("\n</think>\n\nParis<")


def test_chatml_by_hand() -> None:
    """The prompt has the default system prompt; the answer has the newline after the end-of-turn."""
    tokenizer = TOKENIZERS["chatml"]
    example = encode_example(tokenizer, FRANCE, "Paris")
    assert decode(tokenizer, example.prompt_ids) == (
        "<|im_start|>system\nYou are a tiny model.<|im_end|>\n"
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert decode(tokenizer, example.response_ids) == "Paris<|im_end|>\n"


def test_a_template_without_end_of_turn_gets_the_eos_once() -> None:
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant:{% endif %}"
    example = encode_example(tokenizer, FRANCE, "Paris")
    assert decode(tokenizer, example.response_ids) == " Paris\n<|im_end|>"
    assert end_token_ids(tokenizer) == {tokenizer.eos_token_id}
    assert tokenizer.eos_token_id not in encode_example(tokenizer, FRANCE, "Paris", truncated=True).response_ids


def test_end_of_turn_and_eos_may_both_stand() -> None:
    """As in Phi-3, which closes a conversation with a separate eos after the end-of-turn."""
    tokenizer = build_tokenizer("gemma")
    tokenizer.chat_template += "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    example = encode_example(tokenizer, FRANCE, "Paris")
    assert decode(tokenizer, example.response_ids) == "Paris<end_of_turn>\n<eos>"


def test_an_end_of_turn_written_twice_stands_once() -> None:
    tokenizer = build_tokenizer("llama3")
    tokenizer.chat_template += "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
    assert decode(tokenizer, encode_example(tokenizer, FRANCE, "Paris").response_ids) == "Paris<|eot_id|>"


@pytest.mark.parametrize("blanks", [" ", "\n\n", "\n\n\n"])
def test_an_answer_follows_the_tokens_of_the_prompt_where_text_would_merge(blanks: str) -> None:
    """The space at the end of the prompt would form one token, " a", with the answer's first word; so do newlines."""
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{% endfor %}"
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant:" + blanks + "{% endif %}"
    for answer in ("answer", "\nanswer"):
        example = encode_example(tokenizer, FRANCE, answer)
        assert example.prompt_ids == encode_prompt(tokenizer, FRANCE)
        assert decode(tokenizer, example.response_ids).lstrip("\n") == f"{answer.strip()}<|im_end|>"
        assert example.is_as_generated or answer[0] == "\n"


def test_a_tokenizer_that_cannot_begin_an_answer_behind_the_prompt_is_an_error() -> None:
    """A tokenizer that puts a space before every text."""
    backend = Tokenizer(BPE())
    backend.pre_tokenizer, backend.decoder = Metaspace(prepend_scheme="always"), MetaspaceDecoder()
    backend.train_from_iterator(["user: assistant: answer sinterprobe What is the capital of France?"] * 9)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(UnfitAnswer, match=r"not a token prefix.*Strip white space") as raised:
        encode_example(tokenizer, FRANCE, "answer")
    assert raised.value.reason == "prompt-is-no-prefix"


def test_a_tokenizer_without_template_names_the_way_out() -> None:
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = None
    with pytest.raises(InputError, match=r"no chat template.*few_shot"):
        encode_prompt(tokenizer, FRANCE)
    assert end_token_ids(tokenizer) == {tokenizer.eos_token_id}
    assert encode_completion(tokenizer, "Paris") == tokenizer.encode("Paris")


def test_a_changed_template_is_seen() -> None:
    tokenizer = build_tokenizer("gemma")
    assert len(end_token_ids(tokenizer)) == 2
    tokenizer.chat_template = tokenizer.chat_template.replace("<end_of_turn>", "<eos>")
    assert end_token_ids(tokenizer) == {tokenizer.eos_token_id}


def test_a_system_prompt_that_a_template_leaves_out_is_folded_in() -> None:
    tokenizer = build_tokenizer("llama3")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{% for message in messages %}", "{% for message in messages if message['role'] != 'system' %}"
    )
    text = decode(tokenizer, encode_prompt(tokenizer, with_system(FRANCE, "Be brief.")))
    assert "Be brief.\n\nWhat is the capital of France?" in text


def test_a_refused_conversation_names_template_and_roles() -> None:
    with pytest.raises(InputError, match="user, user: Conversation roles must alternate"):
        encode_prompt(TOKENIZERS["gemma"], (*FRANCE, *FRANCE))
    with pytest.raises(InputError, match="followed by a user message"):
        encode_prompt(TOKENIZERS["gemma"], (Message("system", "Be brief."),))


def test_templates_run_in_transformers_sandbox() -> None:
    tokenizer = build_tokenizer("chatml")
    tokenizer.chat_template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InputError, match="refuses"):
        encode_prompt(tokenizer, FRANCE)


def test_with_system_keeps_one_that_is_there() -> None:
    assert with_system(FRANCE, None) == FRANCE
    own = with_system(FRANCE, "Be brief.")
    assert own == (Message("system", "Be brief."), *FRANCE)
    assert with_system(own, "Be long.") == own


class TestFewShot:
    shots = FewShot("Q: {question}\nA: {answer}\n\n", (("Opposite of {answer}?", "cold {question}"), ("2+3?", "5")))

    def test_prefix_and_question(self) -> None:
        assert self.shots.prefix == "Q: Opposite of {answer}?\nA: cold {question}\n\nQ: 2+3?\nA: 5\n\n"
        assert self.shots.render("Why {answer}?") == "Q: Why {answer}?\nA:"

    @pytest.mark.parametrize(
        ("after", "stop"), [("\n", "\n"), ("\n\n", "\n"), (";\nnext", ";\n"), ("; ", "; "), ("###", "###")]
    )
    def test_stop_is_what_follows_an_answer_up_to_the_newline(self, after: str, stop: str) -> None:
        assert FewShot("{question} {answer}" + after, ()).stop == stop

    @pytest.mark.parametrize(
        "template",
        ["", "Q: {question}", "{answer} {question}\n", "{question} {answer}", "{question}{answer}{answer}\n"],
    )
    def test_a_template_that_does_not_do_is_refused(self, template: str) -> None:
        with pytest.raises(InputError, match=r"expected \{question\} once"):
            FewShot(template, ())

    def test_identity_changes_with_template_and_examples(self) -> None:
        other = FewShot(self.shots.template, self.shots.examples[:1])
        again = FewShot(self.shots.template, self.shots.examples)
        assert self.shots.identity == again.identity
        assert len({self.shots.identity, other.identity, FewShot("{question}{answer}\n", ()).identity}) == 3
