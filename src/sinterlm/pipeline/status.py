"""What a run has done so far, read from its folder and the store alone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sinterlm.models import cached_fingerprint
from sinterlm.pipeline.forecast import Forecast
from sinterlm.pipeline.fusion import load_fusion
from sinterlm.pipeline.ledger import describe_failed, describe_ledger, read_ledger
from sinterlm.pipeline.outputs import find_stage_damage
from sinterlm.pipeline.stage import stage_keys
from sinterlm.pipeline.stages import build_stages
from sinterlm.store import Store


def status_of(folder: Path) -> dict[str, Any]:
    """Stages with their state, time and counts, what was dropped and why, what was spent, what failed and was noticed.

    A state is ``done``, ``damaged`` (a file that it left is missing or has another size), ``outdated`` (done under
    another recipe), ``to do``, or ``unknown`` if weights have not been read on this machine.

    Raises:
        InputError: ``folder`` holds no run.
    """
    fusion = load_fusion(folder)
    unknown: list[str] = []

    def known(model: str) -> str | None:
        found = cached_fingerprint(model)
        if found is None:
            unknown.append(model)
        return found

    stages = build_stages(fusion)
    keys = stage_keys(stages, known)
    with closing(Store(fusion.store_path, read_only=True)) as store:
        past = store.finished_stages(fusion.run_name)
        forecast = Forecast(fusion, store=store)
        dropped = store.count_dropped(fusion.run_name)
        ledger = read_ledger(fusion, store)
        entries = []
        for stage in stages:
            entry: dict[str, Any] = {"name": stage.name, "state": "to do"}
            if stage.name in past:
                was = past[stage.name]
                state = "done"
                if was.key != keys[stage.name]:
                    state = "unknown" if unknown else "outdated"
                elif find_stage_damage(stage, was, fusion.output, read=False):
                    state = "damaged"
                entry |= {
                    "state": state,
                    "seconds": round(was.seconds, 2),
                    "peak_memory_bytes": was.peak_memory_bytes,
                    "counts": dict(was.counts),
                    "finished_at": was.finished_at,
                }
            elif counts := stage.progress(forecast):
                entry["counts"] = dict(counts)
            entries.append(entry)
    return {
        "output": str(fusion.output),
        "workspace": str(fusion.workspace),
        "stages": entries,
        "dropped": dropped,
        "spent": describe_ledger(ledger),
        "failed": describe_failed(ledger),
        "notes": [asdict(note) for note in ledger.noticed],
    }
