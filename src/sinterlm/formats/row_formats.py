"""The formats of training rows. A new one is a file beside this one, and a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from sinterlm.formats.annotated import ALL_ANSWERS, ANNOTATED, read_annotated
from sinterlm.formats.fusechat3 import DPO, SFT, read_fusechat3
from sinterlm.formats.pairs import has_rejected
from sinterlm.formats.responses import RESPONSES, read_responses
from sinterlm.formats.shape import Read, Shape
from sinterlm.formats.sharegpt import RANKING, SUPERVISED, list_datasets, read_sharegpt
from sinterlm.formats.trl import (
    COMPLETION,
    LANGUAGE_MODELLING,
    PREFERENCE,
    UNPAIRED,
    read_completion,
    read_messages,
    read_pair,
    read_unpaired,
)
from sinterlm.formats.wrpo import AUTHORS_ROW, read_quadruple
from sinterlm.records import TrainingRow


class Format(NamedTuple):
    """How another tool holds training rows."""

    description: str
    reads: Mapping[str, Read] = {}
    """The key that gives a shape away, and how a line of that shape is read."""
    supervised: Shape | None = None
    """For rows of answers to learn from; None if the format has no such rows."""
    preference: Shape | None = None
    """For rows that compare answers."""
    domain_key: str = "domain"
    """The key that holds the domain of the prompt."""
    files: Callable[[Mapping[str, Shape]], Mapping[str, str]] | None = None
    """The text files that the tool wants beside the rows, given the configurations' shapes by name."""
    is_of_answers: bool = False
    """Whether a row holds all answers of one model instead of those that a policy has selected."""

    def shape_of(self, rows: Iterable[TrainingRow]) -> Shape | None:
        """How ``rows`` are written: as comparisons if one of them compares answers."""
        if self.preference is self.supervised:
            return self.supervised
        return self.preference if any(map(has_rejected, rows)) else self.supervised


ANSWERS = "answers"
"""The one format that holds no rows, but a store's answers (``shared.py``)."""
FORMATS: Mapping[str, Format] = {
    "sinterlm": Format(
        "many responses per row, with role, source, score, group and weight: nothing is left out",
        {"responses": read_responses},
        RESPONSES,
        RESPONSES,
    ),
    "ultrafeedback-armorm": Format(
        "all answers of one model with their scores, as princeton-nlp/*-ultrafeedback-armorm",
        {ALL_ANSWERS: read_annotated},
        ANNOTATED,
        ANNOTATED,
        is_of_answers=True,
    ),
    "wrpo": Format(
        "the WRPO authors' quadruples: chosen holds the source's answer and the target's",
        {"chosen_source": read_quadruple, "chosen_target": read_quadruple},
        preference=AUTHORS_ROW,
    ),
    "fusechat3": Format(
        "FuseChat-3.0's SFT rows, and its DPO rows of one source's answers",
        {"source_model": read_fusechat3},
        SFT,
        DPO,
        domain_key="dataset",
    ),
    "llamafactory": Format(
        "LLaMA-Factory's sharegpt rows, with ranking for pairs, and the dataset_info.json that it reads",
        {"conversations": read_sharegpt},
        SUPERVISED,
        RANKING,
        files=list_datasets,
    ),
    "trl-unpaired": Format(
        "TRL's unpaired preference rows: prompt, completion and label, for KTO",
        {"label": read_unpaired},
        UNPAIRED,
        UNPAIRED,
    ),
    "trl": Format(
        "TRL's prompt-completion rows, and preference rows for pairs",
        {"chosen": read_pair, "rejected": read_pair, "completion": read_completion},
        COMPLETION,
        PREFERENCE,
    ),
    "trl-messages": Format(
        "TRL's language-modelling rows: messages, the last one the answer",
        {"messages": read_messages},
        LANGUAGE_MODELLING,
    ),
    ANSWERS: Format("every answer and score of the workspace, for `sinterlm import`: they are not paid for again"),
}
"""In the order in which a line's shape is looked for: the first key that a line has decides."""


def reader_of(keys: Mapping[str, object]) -> Read | None:
    """How a line with these keys is read; None if they give away no shape."""
    return next((read for key, read in _readers() if key in keys), None)


def _readers() -> Iterator[tuple[str, Read]]:
    return (entry for row in FORMATS.values() for entry in row.reads.items())
