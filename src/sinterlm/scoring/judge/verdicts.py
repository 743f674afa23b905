"""Verdicts: the form of one, and how a judge's reply is read as one.

A verdict is the whole reply, read as one JSON object. Whatever else a reply holds, or lacks, makes it invalid; then the
answer has no score, and the detail says why.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from sinterlm.scoring.judge.prompts import EXPLANATION, ResponseFormat
from sinterlm.thoughts import split_thoughts

if TYPE_CHECKING:
    from sinterlm.endpoint import Reply

MAX_SHOWN = 300
"""Characters of an invalid reply that are kept."""

_FENCED = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)


class Verdict(BaseModel):
    """What a judge replies; no value is converted, and no other key allowed."""

    model_config = ConfigDict(extra="forbid", strict=True)


class InvalidVerdict(Exception):
    """A reply that is not a verdict; says why."""


def read_verdict(form: type[Verdict], reply: Reply) -> dict[str, Any]:
    """The verdict that is a whole reply, apart from the judge's thoughts before it and a code fence around it.

    Raises:
        InvalidVerdict: The reply is no verdict, or more than one.
    """
    if reply.problem:
        raise InvalidVerdict(reply.problem)
    text = reply.content.strip()
    if not text.startswith(("{", "`")):  # a verdict may quote the tags of thoughts
        text = split_thoughts(text).answer.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        fields = json.loads(text, object_pairs_hook=_unambiguous)
        if not isinstance(fields, dict):
            raise ValueError("it is none")
        return form.model_validate(fields).model_dump(by_alias=True)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidVerdict(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (ValueError, RecursionError) as error:
        raise InvalidVerdict(f"the reply is not one JSON object ({error}): {_shown(text)}") from None


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice")
    return fields


def verdict_form(fields: Mapping[str, Any], *, explain: bool) -> type[Verdict]:
    """The form of a verdict with these fields, by any name, the explanation before them."""
    named = {**({EXPLANATION: str} if explain else {}), **fields}
    # A field's own name must be an identifier that no model has already; a criterion's may be any text.
    attributes: dict[str, Any] = {
        f"field_{number}": (kind, Field(alias=name)) for number, (name, kind) in enumerate(named.items())
    }
    return create_model("Verdict", __base__=Verdict, **attributes)


def describe_form(name: ResponseFormat, form: type[Verdict]) -> dict[str, Any]:
    """What tells the server the form of a verdict."""
    if name == "json_schema":
        schema = {"name": "verdict", "strict": True, "schema": form.model_json_schema()}
        return {"response_format": {"type": name, "json_schema": schema}}
    return {"response_format": {"type": name}}


def _shown(text: str) -> str:
    return repr(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")
