"""Makes small changes to the code, one at a time, and counts how many the tests notice: `make mutants`.

The mutants are made by mutmut (https://mutmut.readthedocs.io). It makes all mutants of a copy of the sources and runs
the tests once to see which test calls which function. Then it runs, in a fork for each mutant, only the tests that call
the changed function, until one fails. Running all mutants would take a day, so a sample is drawn with a seed.

    python scripts/mutants.py --number 300 --packages pipeline recipe training evaluation

Surviving mutants are printed as diffs. Judge each one: either it changes nothing that matters, or a test is missing.
"""

from __future__ import annotations

import argparse
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("src", "tests", "recipes", "docs", "examples", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md")
TESTS = {
    "pipeline": (
        *("test_left_in_a_run", "test_seams", "test_held_out_scorer", "test_pipeline", "test_export", "test_grid"),
        *("test_compare", "test_extra_prompts", "test_api", "test_domains", "test_overlap", "test_thought_policy"),
        *("test_stored_scores", "test_recorded_scores", "test_rows_alone", "test_report", "test_seams_recipe"),
        *("test_judge", "test_terminal", "test_store_reads"),
    ),
    "recipe": (
        *("test_recipe", "test_recipe_schema", "test_extension", "test_settings", "test_resolved_components"),
        *("test_template_options", "test_catalogue", "test_domains", "test_extra_prompts", "test_grid", "test_compare"),
        *("test_seams_recipe", "test_shipped_recipes"),
    ),
    "training": (
        *("test_seams_training", "test_members", "test_training", "test_fast_path", "test_trl_parity"),
        *("test_template_options", "test_router_loss", "test_loads", "test_extension", "test_context"),
        *("test_reference_parity", "test_message_fields", "test_pipeline", "test_grid"),
    ),
    "evaluation": ("test_evaluation", "test_seams", "test_compare", "test_report"),
}
"""The fast tests of each package: whole files, or one test of a file."""
FIXTURES = '''

@pytest.fixture(autouse=True)
def _for_mutants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this process can import the mutated sources: a test that starts another is skipped.

    What functions have kept is forgotten: mutants begin in a fork, with all that the first run of the tests has kept.
    """
    import subprocess
    import sys

    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.skip("starts a process"))
    for name in [name for name in sys.modules if name.startswith("sinterlm")]:
        for value in list(vars(sys.modules[name]).values()):
            if hasattr(value, "cache_clear"):
                value.cache_clear()
'''
"""Added to the tests' configuration in the copy."""
NOTICED = ("killed", "timeout", "segfault")
"""Outcomes of mutants that a test has noticed."""


def main() -> None:
    """Copy the sources, mutate the copy, run a sample of the mutants and print those that survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--number", type=int, default=300, help="mutants to run")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / "runs" / "mutants", help="folder of the copy; it is replaced"
    )
    parser.add_argument("--minutes", type=float, default=55, help="stop after this many minutes")
    parser.add_argument("--children", type=int, default=2, help="mutants to run at a time")
    arguments = parser.parse_args()
    folder, end = arguments.folder, time.monotonic() + 60 * arguments.minutes
    copy_sources(folder, arguments.packages)
    # No mutant has this name, so mutmut only makes the mutants and runs the tests once.
    printed = mutmut(folder, "run", "none")
    if "failed to collect stats" in printed:
        sys.exit(
            f"{printed}\nthe tests fail on the unchanged copy; fix them, or leave them out in {Path(__file__).name}"
        )
    names = sorted(outcomes(folder))
    sample = random.Random(arguments.seed).sample(names, min(arguments.number, len(names)))
    print(f"{len(sample)} of {len(names)} mutants", flush=True)
    with suppress(subprocess.TimeoutExpired):
        mutmut(folder, "run", "--max-children", str(arguments.children), *sample, seconds=end - time.monotonic())
    found = {name: outcome for name, outcome in outcomes(folder).items() if name in sample and outcome != "not checked"}
    counts = Counter(found.values())
    print(", ".join(f"{outcome}: {count}" for outcome, count in counts.most_common()))
    noticed = sum(counts[outcome] for outcome in NOTICED)
    print(f"noticed: {noticed} of {len(found)}, {100 * noticed / max(1, len(found)):.1f} %")
    for name, outcome in found.items():
        if outcome not in NOTICED:
            print(f"\n{name}: {outcome}\n{mutmut(folder, 'show', name)}")


def copy_sources(folder: Path, packages: Sequence[str]) -> None:
    """Copy what the tests need and add mutmut's settings."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    with (folder / "tests" / "conftest.py").open("a") as file:
        file.write(FIXTURES)
    places = dict.fromkeys(test.partition("::") for package in packages for test in TESTS[package])
    tests = [f"tests/{file}.py{mark}{name}" for file, mark, name in places if (ROOT / f"tests/{file}.py").is_file()]
    settings = {
        "source_paths": ["src/sinterlm"],
        "only_mutate": [f"src/sinterlm/{package}/*" for package in packages],
        "pytest_add_cli_args_test_selection": tests,
        # mutmut copies what the link `recipes` leads to: the recipes lie twice in its copy.
        "pytest_add_cli_args": ["-p", "no:cacheprovider", "-k", "not every_shipped_recipe"],
        "also_copy": [name for name in COPIED if name not in ("src", "tests", "pyproject.toml")],
    }
    lines = [f"{name} = {value!r}".replace("'", '"') for name, value in settings.items()]
    with (folder / "pyproject.toml").open("a") as file:
        file.write("\n".join(["", "[tool.mutmut]", *lines, ""]))


def mutmut(folder: Path, *arguments: str, seconds: float | None = None) -> str:
    """What mutmut prints, without its progress bars; it is stopped after ``seconds``."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=seconds)
    return "\n".join(line.rpartition("\r")[2] for line in result.stdout.split("\n")) + result.stderr


def outcomes(folder: Path) -> dict[str, str]:
    """The outcome of every mutant."""
    lines = mutmut(folder, "results", "--all", "true").splitlines()
    return {found[1]: found[2] for line in lines if (found := re.fullmatch(r"\s*(\S+__mutmut_\d+): (.+)", line))}


if __name__ == "__main__":
    main()
