"""What names a source's answers in the store, known without loading a model or importing torch."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from sinterlm.chat import FewShot
from sinterlm.records import SamplingSettings, digest


def transformers_identity(
    weights: str, *, few_shot: FewShot | None, system: str | None, settings: SamplingSettings
) -> str:
    """Hash of weights (a fingerprint: template included), prompt format, sampling settings and seed.

    Device and dtype change an answer by rounding only; the number of samples not at all: they are no part of it.
    """
    return digest(
        {
            "engine": "transformers",
            "weights": weights,
            "few_shot": few_shot and few_shot.identity,
            "system": system,
            "settings": asdict(settings),
        }
    )


def recorded_identity(path: Path) -> str:
    """Hash of the file's content."""
    return digest({"engine": "recorded", "content": hashlib.sha256(path.read_bytes()).hexdigest()})
