"""Turns Arena-Bench v1, as it was published, into the files that the recipes beside this script name.

Arena-Bench v1, the forerunner of Arena-Hard, is 300 prompts of users, answers of several models, and GPT-4's scores of
these answers from 1 to 10. It stands in the history of https://github.com/lmarena/arena-hard-auto (Apache-2.0), in the
folder data/arena-bench-v1; `git log --all --oneline -- data/arena-bench-v1` shows the versions that have it.

    python recipes/arena-bench/prepare.py PATH/TO/arena-bench-v1

It needs question.jsonl, and model_answer/MODEL.jsonl and model_judgment/MODEL.jsonl of Mixtral-8x7B-Instruct-v0.1,
Starling-LM-7B-alpha, openchat_3.5, Llama-2-70b-chat and Mistral-7B-Instruct-v0.1. There is one answer of a model to a
prompt. So the first three models stand together as one source with three samples, and the other two as the target's two
samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SOURCE = ("Mixtral-8x7B-Instruct-v0.1", "Starling-LM-7B-alpha", "openchat_3.5")
TARGET = ("Llama-2-70b-chat", "Mistral-7B-Instruct-v0.1")

Answers = Mapping[str, Mapping[str, str]]
"""By model, then by prompt id."""


def main() -> None:
    """Read the published folder, write prompts, recorded answers and scores, and say how many."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", type=Path, help="the folder arena-bench-v1")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("data"), help="default: %(default)s")
    arguments = parser.parse_args()
    if missing := [path for path in published_files(arguments.published) if not path.is_file()]:
        parser.error(f"{missing[0]}: there is no such file; --help says which are needed")
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, lines in convert(arguments.published).items():
        path = arguments.output / name
        path.write_text("".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines), encoding="utf-8")
        print(f"{path}: {len(lines)} lines")


def published_files(published: Path) -> list[Path]:
    """The files that are read."""
    folders = ("model_answer", "model_judgment")
    of_models = (published / folder / f"{model}.jsonl" for folder in folders for model in (*SOURCE, *TARGET))
    return [published / "question.jsonl", *of_models]


def convert(published: Path) -> dict[str, list[dict[str, Any]]]:
    """The lines of every file that the recipes read, by the file's name."""
    questions = read_lines(published / "question.jsonl")
    answers = {
        model: {
            line["question_id"]: line["choices"][0]["turns"][0]
            for line in read_lines(published / "model_answer" / f"{model}.jsonl")
        }
        for model in (*SOURCE, *TARGET)
    }
    return {
        "prompts.jsonl": [{"id": question["question_id"], "prompt": question["turns"][0]} for question in questions],
        "source.jsonl": list(recorded(answers, SOURCE)),
        "target.jsonl": list(recorded(answers, TARGET)),
        "scores.jsonl": [line for model in answers for line in scored(published, model, answers[model])],
    }


def recorded(answers: Answers, models: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The models' answers as recorded answers."""
    for model in models:
        for prompt_id, response in answers[model].items():
            yield {"prompt_id": prompt_id, "source": model, "response": response}


def scored(published: Path, model: str, answers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """GPT-4's scores of a model's answers; a judgment that gave no number is left out."""
    for line in read_lines(published / "model_judgment" / f"{model}.jsonl"):
        if line["score"] is not None:
            prompt_id = line["question_id"]
            yield {"prompt_id": prompt_id, "response": answers[prompt_id], "score": float(line["score"])}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON Lines file."""
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


if __name__ == "__main__":
    main()
