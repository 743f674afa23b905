"""One self-contained HTML page of a run."""

from __future__ import annotations

from pathlib import Path

from sinterlm.report.data import ReportData

__all__ = ["ReportData", "write_report"]


def write_report(data: ReportData, path: Path, *, max_bytes: int = 20_000_000, seed: int = 0) -> None:
    """Write the report page: one HTML file that needs no network.

    Args:
        data: What the page shows.
        path: The file; it is replaced whole or not at all.
        max_bytes: The size limit of the file. If not all prompts fit, the page shows a random sample of them and says
            so; its figures still count all prompts.
        seed: Decides that sample.
    """
    from sinterlm.files import atomic_write
    from sinterlm.report.page import render_page

    page = render_page(data, max_bytes=max_bytes, seed=seed)
    with atomic_write(path) as temporary:
        temporary.write_bytes(page)
