"""Engines' settings: what they name in the store, what they say of themselves, and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from sinterlm.records import SamplingSettings
from sinterlm.sampling.engines import Source

SETTINGS = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3)
PENALISED = SamplingSettings(temperature=0.7, top_p=0.9, max_new_tokens=64, seed=3, repetition_penalty=1.1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model whose template asks for the date, a few-shot prompt, and a file of answers."""
    model = tmp_path / "dated"
    model.mkdir()
    (model / "chat_template.jinja").write_text("{{ strftime_now('%Y') }}")
    (tmp_path / "shots.yaml").write_text(
        'template: "Q: {question}\\nA: {answer}\\n\\n"\nexamples: [{question: Hot, answer: cold}]\n'
    )
    (tmp_path / "answers.jsonl").write_text('{"prompt_id": "p", "source": "a", "index": 0, "content": "oxen"}\n')
    return tmp_path


def read_source(mapping: dict[str, Any], folder: Path) -> Any:
    return TypeAdapter(Source).validate_python(mapping, context={"folder": folder})


@pytest.mark.parametrize(
    ("mapping", "settings", "location", "expected"),
    [
        ({"model": "org/m"}, SETTINGS, None, "22a9b9b5515398b0"),
        ({"model": "org/m"}, SETTINGS, "trained", "f055b0d887da16a5"),
        ({"model": "org/m"}, PENALISED, None, "ec0c0449828b4afb"),
        (
            {"model": "org/m", "device": "cpu", "dtype": "float32", "active_billions": 2.0},
            SETTINGS,
            None,
            "22a9b9b5515398b0",
        ),
        (
            {"model": "org/m", "prompt": {"system": "Be brief."}},
            SETTINGS,
            None,
            "a54b96059669b64d",
        ),
        (
            {"model": "org/m", "prompt": {"few_shot": "shots.yaml"}},
            SETTINGS,
            None,
            "f3f8cb45c2b6f1a5",
        ),
        (
            {"model": "org/m", "chat_template_kwargs": {"enable_thinking": False}},
            SETTINGS,
            None,
            "0bbc727018dac3eb",
        ),
        (
            {"model": "FOLDER/dated", "template_date": "2026-11-30"},
            SETTINGS,
            None,
            "cef9cd3652481ebb",
        ),
        (
            {"engine": "recorded", "path": "answers.jsonl"},
            None,
            None,
            "d73d09f5367245bb",
        ),
    ],
)
def test_identities_are_those_of_every_release(
    folder: Path, mapping: dict[str, Any], settings: SamplingSettings | None, location: str | None, expected: str
) -> None:
    """Frozen: another value, and every stored answer is asked for again."""
    mapping = {"engine": "transformers"} | mapping
    if "model" in mapping:
        mapping["model"] = mapping["model"].replace("FOLDER", str(folder))
    source = read_source(mapping, folder)
    names = {"org/m": "weights", "trained": "other", f"{folder}/dated": "weights"}
    identity = source.identity(location=location, settings=settings, fingerprint=names.get)
    assert identity is not None
    assert identity[:16] == expected
