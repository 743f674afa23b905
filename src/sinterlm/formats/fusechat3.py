"""The rows of FuseChat-3.0's data sets (FuseAI/FuseChat-3.0-SFT-Data and -DPO-Data).

    SFT  dataset, source_model, conversations [{from, value}]
    DPO  dataset, source_model, prompt, chosen, rejected: answers of one source

``dataset`` is the set of prompts that a row comes from; Sinter writes the prompt's domain there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from sinterlm.formats.conversations import (
    MESSAGES,
    ConversationsRow,
    dump_answer,
    dump_messages,
    row_of_conversations,
)
from sinterlm.formats.fields import Number, Record, Reply
from sinterlm.formats.lines import Line
from sinterlm.formats.pairs import Answer, PreferencePair, chosen_of, each, pairs_of
from sinterlm.formats.shape import Misfit, Shape
from sinterlm.formats.sharegpt import TURNS, dump_turns, row_of_turns
from sinterlm.records import Message, Role, TrainingRow


class _Source(Record):
    source_model: str


class _Pair(ConversationsRow):
    chosen: Reply
    rejected: Reply
    score_rejected: Number | None = None


def read_fusechat3(line: Line) -> TrainingRow:
    """A row of either data set."""
    source = line.parse(_Source).source_model
    sources: dict[Role, str] = {"chosen": source, "rejected": source}
    if "conversations" in line.fields:
        return row_of_turns(line, sources)
    record = line.parse(_Pair)
    return row_of_conversations(line, record, {"chosen": record.chosen, "rejected": record.rejected}, sources)


def _sft_record(row: TrainingRow, answer: Answer) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "source_model": answer.response.source,
        "conversations": dump_turns([*row.messages, Message("assistant", answer.response.content)]),
        "weight": answer.weight,
        "score_chosen": answer.response.score,
    }


def _pairs_of_one_source(row: TrainingRow) -> Sequence[PreferencePair] | Misfit:
    pairs = pairs_of(row)
    if isinstance(pairs, Misfit):
        return pairs
    mixed = [pair for pair in pairs if pair.chosen.source != pair.rejected.source]
    if mixed:
        return Misfit(
            "pair-of-two-models", f"chosen of {mixed[0].chosen.source}, rejected of {mixed[0].rejected.source}"
        )
    return pairs


def _dpo_record(row: TrainingRow, pair: PreferencePair) -> dict[str, Any]:
    return {
        "prompt_id": row.prompt_id,
        "source_model": pair.chosen.source,
        "prompt": dump_messages(row.messages),
        "chosen": dump_answer(pair.chosen),
        "rejected": dump_answer(pair.rejected),
        "weight": pair.weight,
        "score_chosen": pair.chosen.score,
        "score_rejected": pair.rejected.score,
    }


_BOTH = {"prompt_id": pa.string(), "source_model": pa.string()}
_NUMBERS = {"weight": pa.float64(), "score_chosen": pa.float64()}
SFT = Shape(pa.schema({**_BOTH, "conversations": TURNS, **_NUMBERS}), each(chosen_of, _sft_record))
DPO = Shape(
    pa.schema(
        {
            **_BOTH,
            "prompt": MESSAGES,
            "chosen": MESSAGES,
            "rejected": MESSAGES,
            **_NUMBERS,
            "score_rejected": pa.float64(),
        }
    ),
    each(_pairs_of_one_source, _dpo_record),
)
