"""Time and peak memory of selecting rows, against the budget of 60 s and 1 GB for WRPO's.

    .venv/bin/python benchmarks/selection.py
    .venv/bin/python benchmarks/selection.py --policy fusepo temperature=0.1
    .venv/bin/python benchmarks/selection.py --scores pass-or-fail      # nearly every choice is a tie

Synthetic candidates are made one prompt at a time, and policies read them as a stream. The time to make them is
measured separately and included in the total. Other work on the machine distorts processor seconds the least.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from sinterlm.records import Candidates, Message, Prompt, Response, Score, Scored
from sinterlm.selection import tally_selection
from sinterlm.selection.policies import POLICIES

T = TypeVar("T")


def generate_candidates(
    *, num_prompts: int, num_sources: int, num_samples: int, num_characters: int, scores: str
) -> Iterator[Candidates]:
    generator = random.Random(0)

    def answer(prompt_id: str, source: str, index: int) -> Scored:
        content = f"{generator.random()} ".ljust(num_characters, "x")
        response_id = f"{prompt_id}-{source}-{index}"
        response = Response(response_id, prompt_id, source, index, content, "stop", 100, num_characters // 4)
        value = generator.random()
        if scores == "graded":
            return Scored(response, Score(response_id, "reward-model", value))
        return Scored(response, Score(response_id, "exact-match", float(value < 0.5), value < 0.5))

    for number in range(num_prompts):
        prompt = Prompt(f"prompt-{number}", (Message("user", f"Question {number}?"),))
        yield Candidates(
            prompt,
            tuple(
                answer(prompt.id, f"source-{source}", index)
                for source in range(num_sources)
                for index in range(num_samples)
            ),
            tuple(answer(prompt.id, "target-sft", index) for index in range(num_samples)),
        )


class Seconds(NamedTuple):
    """Wall-clock and processor seconds."""

    wall: float
    processor: float


def timed(do: Callable[[], T]) -> tuple[T, Seconds]:
    start, started_on_processor = time.perf_counter(), time.process_time()
    result = do()
    return result, Seconds(time.perf_counter() - start, time.process_time() - started_on_processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=60_000)
    parser.add_argument("--sources", type=int, default=10)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--characters", type=int, default=2_000, help="length of an answer")
    parser.add_argument("--policy", choices=POLICIES, default="wrpo")
    parser.add_argument("options", nargs="*", metavar="KEY=NUMBER", help="options of the policy")
    parser.add_argument("--scores", choices=("graded", "pass-or-fail"), default="graded")
    arguments = parser.parse_args()
    size: dict[str, Any] = {
        "num_prompts": arguments.prompts,
        "num_sources": arguments.sources,
        "num_samples": arguments.samples,
        "num_characters": arguments.characters,
        "scores": arguments.scores,
    }

    keys = {key: json.loads(value) for key, _, value in (option.partition("=") for option in arguments.options)}
    policy = POLICIES[arguments.policy].model_validate({"kind": arguments.policy, **keys})
    _, generation = timed(lambda: deque(generate_candidates(**size), maxlen=0))
    selection, total = timed(lambda: policy.select(generate_candidates(**size), seed=0, stage="select"))
    peak_memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _, tally = timed(lambda: tally_selection(selection))
    result = {
        **size,
        "policy": arguments.policy,
        "num_rows": len(selection.rows),
        "num_dropped": len(selection.dropped),
        "total_seconds": round(total.wall, 1),
        "total_processor_seconds": round(total.processor, 1),
        "generation_processor_seconds": round(generation.processor, 1),
        "selection_processor_seconds": round(total.processor - generation.processor, 1),
        "tally_processor_seconds": round(tally.processor, 1),
        "peak_memory_bytes": peak_memory_bytes,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
