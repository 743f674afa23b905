"""Finds keys of servers in recipes: they belong into the environment, because recipes are shared and stored."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sinterlm.explain import KeyPath, Problem

_KEY = re.compile(
    r"(?<![A-Za-z0-9])("
    r"sk-(?=[\w-]*\d)[\w-]{20,}"  # OpenAI, Anthropic, OpenRouter, DeepSeek, ...
    r"|hf_[A-Za-z0-9]{20,}|gsk_[A-Za-z0-9]{20,}|xai-[A-Za-z0-9]{20,}|nvapi-[\w-]{20,}|r8_[A-Za-z0-9]{20,}"
    r"|AIza[\w-]{30,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{20,}"
    r"|[Bb]earer [\w.~+/-]{8,})"
)
"""Matches keys as the larger vendors make them."""
_NAMES = {"api_key", "apikey", "api-key", "x-api-key", "authorization", "password", "access_token"}
"""Names, in lower case, under which clients expect a key itself."""


def find_secrets(value: Any, path: KeyPath = ()) -> Iterator[Problem]:
    """Yield every place of a recipe that seems to hold a key, never the key."""
    if isinstance(value, dict):
        for key, part in value.items():
            if isinstance(key, str) and _KEY.search(key):
                yield Problem(path, f"a key of it looks like the key of a server (not shown here). {_REMEDY}")
            elif str(key).lower() in _NAMES and part is not None:
                yield Problem((*path, key), f"this is where the key of a server would be (not shown here). {_REMEDY}")
            else:
                yield from find_secrets(part, (*path, key))
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from find_secrets(part, (*path, place))
    elif isinstance(value, str) and _KEY.search(value):
        yield Problem(path, f"this looks like the key of a server (not shown here). {_REMEDY}")


_REMEDY = (
    "Put it into an environment variable, and the variable's name under `api_key_env`. A key that was in a file is "
    "better replaced by a new one"
)
