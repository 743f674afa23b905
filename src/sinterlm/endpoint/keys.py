"""Keys of servers: from the environment alone, never from a recipe."""

from __future__ import annotations

import os

from sinterlm.errors import CredentialsError

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""The key that is sent if none is needed: some servers refuse a request without the header."""


def key_variable(base_url: str, api_key_env: str | None) -> str | None:
    """The environment variable that holds the server's key; None if no key is needed."""
    return api_key_env or ("OPENAI_API_KEY" if base_url.rstrip("/") == OPENAI_URL else None)


def find_key(base_url: str, api_key_env: str | None) -> str:
    """The server's key, from the environment.

    Raises:
        CredentialsError: The variable is unset or empty.
    """
    variable = key_variable(base_url, api_key_env)
    if variable is None:
        return NO_KEY
    key = os.environ.get(variable, "").strip()
    if not key:
        raise CredentialsError(
            f"{base_url}: the environment variable {variable} holds no key; set it and rerun the command"
        )
    return key
