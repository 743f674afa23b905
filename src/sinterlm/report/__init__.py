"""One self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path

from sinterlm.report.data import ReportData

__all__ = ["ReportData", "write_report"]


def write_report(data: ReportData, path: Path, *, max_bytes: int = 20_000_000, seed: int = 0) -> None:
    """Write the report page: one HTML file that needs no network.

    Args:
        data: what the page shows.
        path: the file; it is replaced whole or not at all.
        max_bytes: size that the file keeps to; if not all prompts fit, a random sample of them is shown and the page
            says so. Everything else on the page counts all prompts in any case.
        seed: decides that sample.
    """
    from sinterlm.files import atomic_write
    from sinterlm.report.page import render_page

    page = render_page(data, max_bytes=max_bytes, seed=seed)
    with atomic_write(path) as temporary:
        temporary.write_bytes(page)
