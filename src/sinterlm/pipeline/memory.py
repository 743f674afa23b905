"""Measures the peak memory of a piece of work."""

from __future__ import annotations

import threading

import psutil

INTERVAL_SECONDS = 0.2


class PeakMemory:
    """Watches this process and its children while the block runs; ``bytes`` is their peak total."""

    def __init__(self) -> None:
        self.bytes = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        total = 0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                total += process.memory_info().rss
            except psutil.NoSuchProcess:  # a child that has just ended
                continue
        self.bytes = max(self.bytes, total)
