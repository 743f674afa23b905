"""What names a source's answers in the store, known without loading a model or importing torch.

An identity names everything that decides an answer: weights, template, prompt format, sampling settings and seed. The
number of samples does not belong to it, so that asking for more keeps those that are there.

An identity function takes the same arguments as its engine (see ``table.py``) and ``fingerprint``, which gives the hash
of a model's weights and template by its name, or None where it is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sinterlm.chat import FewShot
from sinterlm.files import file_sha256
from sinterlm.models import describe_options
from sinterlm.records import SamplingSettings, digest

Fingerprint = Callable[[str], str | None]


def transformers_identity(
    *,
    model: str,
    few_shot: FewShot | None,
    system: str | None,
    settings: SamplingSettings,
    fingerprint: Fingerprint,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    template_date: str | None = None,
    **placement: object,
) -> str | None:
    """Hash of weights, template, prompt format, sampling settings and seed; None where the weights are not known.

    The template's variables and its date belong to it where they decide something: where there are variables, and where
    the template asks for the date.
    Device and dtype change an answer by rounding only; the number of samples not at all: they are no part of it.
    """
    weights = fingerprint(model)
    if weights is None:
        return None
    named = asdict(settings)
    if settings.repetition_penalty == 1:  # none: answers that were stored before there was one keep their name
        del named["repetition_penalty"]
    return digest(
        {
            "engine": "transformers",
            "weights": weights,
            "few_shot": few_shot and few_shot.identity,
            "system": system,
            "settings": named,
            **({} if few_shot else describe_options(model, chat_template_kwargs, template_date)),
        }
    )


def recorded_identity(*, path: Path, fingerprint: Fingerprint | None = None) -> str | None:
    """Hash of the file's content, under which the store keeps which answers the file gives; None where there is none.

    The answers themselves have names of their own (:attr:`~sinterlm.sampling.protocol.Generation.name`): one that
    stays the same in a file that changes keeps its scores.
    """
    if not path.is_file():
        return None
    return digest({"engine": "recorded", "content": file_sha256(path)})
