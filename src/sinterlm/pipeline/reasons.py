"""What the reasons of drops mean, in a sentence each, for the report."""

from sinterlm.selection.overlap import REASONS as OVERLAPS
from sinterlm.selection.policies import REASONS

EXPLANATIONS = {
    **REASONS,
    **OVERLAPS,
    "no-score": "the scorer gave no number, so the answer cannot be chosen",
    "invalid-verdict": "the judge's reply held no verdict, so the answer cannot be chosen",
    "prompt-too-long": "the prompt leaves no room for an answer in the context of the model or the reward model",
    "prompt-refused": "the model cannot be asked this prompt: its chat template or few-shot prompt refuses it",
    "holds-thoughts": "the answer begins with a thought, which `thoughts: refuse` does not allow",
    "only-a-thought": "nothing is left of the answer without its thought",
    "comparison-stopped": "comparing the answer hit a limit of the scorer, which says nothing about the answer",
    "unreadable-accepted-answer": "no accepted answer of the prompt can be read as mathematics",
    "harness-limit": "the program failed on something that the scorer cannot do, which says nothing about the answer",
    "scorer-failed": "the scorer itself failed on this answer; the next run tries again",
    "refused-by-the-chat-template": "the chat template of the target or the reward model refuses this dialogue",
    "prompt-is-no-prefix": "the tokenizer cannot write an answer after the tokens of its prompt",
    "thought-after-a-closed-one": "the prompt ends with an empty thought, and the answer begins with another",
    "answer-written-otherwise": "the tokens of the target or the reward model do not say what the answer says",
    "no-recorded-score": "the file of recorded scores has none for this answer, so it cannot be chosen",
    "unmatched-recorded-answer": "a recorded answer that belongs to no prompt of the run",
    "surplus-recorded-answer": "a recorded answer beyond the source's num_samples",
    "another-answer-to-the-same-text": "two prompts have the same text, and the other one's recorded answer is used",
    "empty-answer": "the model gave an empty answer, which no policy may choose",
    "no-recorded-answer": "the file of recorded answers has none for this prompt",
    "answers-alike": "both answers of each of the row's pairs are the same, so there is nothing to compare",
    "pair-alike": "both answers of one of the row's pairs are the same; the row is used without that pair",
    "answers-alike-after-cutting": "cut at max_length tokens, both answers of each of the row's pairs are the same",
}
