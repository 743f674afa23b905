"""Silences what Transformers prints while it loads or saves: we say in our own words what matters."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_REPORTS = "transformers.modeling_utils"
"""The logger of Transformers' table of weights that were missing or left over."""


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide Transformers' progress bars for reading and writing weights; those of downloads stay."""
    from transformers.utils import logging as transformers_logging

    previous = transformers_logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
    try:
        yield
    finally:
        transformers_logging.set_tqdm_hook(previous)


@contextmanager
def without_load_report() -> Iterator[None]:
    """Hide Transformers' table of missing and unexpected weights."""

    def is_wanted(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger(_REPORTS)
    logger.addFilter(is_wanted)
    try:
        yield
    finally:
        logger.removeFilter(is_wanted)
