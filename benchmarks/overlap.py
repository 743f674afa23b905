"""Time and peak memory of de-duplicating and decontaminating prompts, against the budget of 60 s for 60,000.

    .venv/bin/python benchmarks/overlap.py

Synthetic prompts with words by Zipf's law and log-normal lengths (120 words on average): a fifth begin with one of 200
templates, 2 % repeat an earlier prompt, and 3 % repeat one except for a single word. 200 of 5,200 benchmark questions
contain 40 words of a prompt.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections.abc import Callable
from typing import Any

from sinterlm.records import Message, Prompt
from sinterlm.selection.overlap import Distinct, decontaminate, deduplicate

NUM_WORDS = 30_000


def generate(num_prompts: int) -> tuple[list[Prompt], list[Prompt]]:
    generator = random.Random(0)
    vocabulary = [f"w{number}" for number in range(NUM_WORDS)]
    weights = [1 / (rank + 1) for rank in range(NUM_WORDS)]

    def words(count: int) -> list[str]:
        return generator.choices(vocabulary, weights, k=count)

    templates = [words(80) for _ in range(200)]
    texts: list[list[str]] = []
    for _ in range(num_prompts):
        kind = generator.random()
        if texts and kind < 0.05:
            text = list(generator.choice(texts))
            if kind >= 0.02:
                text[generator.randrange(len(text))] = "another"
        else:
            text = words(min(int(generator.lognormvariate(4.3, 1.0)) + 3, 3_000))
            if kind < 0.24:
                text = generator.choice(templates) + text[:30]
        texts.append(text)
    questions = [words(generator.randrange(5, 120)) for _ in range(5_000)]
    questions += [generator.choice(texts)[:40] for _ in range(200)]
    return prompts_of(texts), prompts_of(questions)


def prompts_of(texts: list[list[str]]) -> list[Prompt]:
    return [Prompt(str(number), (Message("user", " ".join(text)),)) for number, text in enumerate(texts)]


def measure(work: Callable[[], Distinct]) -> tuple[Distinct, dict[str, Any]]:
    started = time.monotonic()
    distinct = work()
    seconds = round(time.monotonic() - started, 1)
    return distinct, {"seconds": seconds, "kept": len(distinct.prompts), "dropped": len(distinct.matches)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60_000)
    arguments = parser.parse_args()
    prompts, questions = generate(arguments.prompts)
    distinct, deduplication = measure(lambda: deduplicate(prompts, ngram=5, similarity=0.8))
    _, decontamination = measure(lambda: decontaminate(distinct.prompts, questions, ngram=13, coverage=0.0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {"deduplicate": deduplication, "decontaminate": decontamination, "peak_memory_bytes": peak}
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
