"""The command line: a thin layer that turns arguments into calls, results into text, and errors into exit codes.

Every command imports what it needs only when it runs, so ``--help`` and ``plan`` answer without loading torch.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand

from sinterlm.errors import InputError, SinterError, Terminated, TryAgainError, memory_advice

if TYPE_CHECKING:
    from sinterlm.pipeline.fusion import Fusion
    from sinterlm.recipe.overrides import Override
    from sinterlm.terminal.terminal import Terminal

PREVIEWED_PROMPTS = 10
"""The number of prompts of ``--preview``, if none is given."""


class OptionalPreview(TyperCommand):
    """A command whose option ``--preview`` may come without its number."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the default number after ``--preview`` if no number follows it."""
        given = [*args]
        if "--preview" in given:
            place = given.index("--preview") + 1
            if place == len(given) or not given[place].isdigit():
                given.insert(place, str(PREVIEWED_PROMPTS))
        return super().parse_args(ctx, given)


app = typer.Typer(
    name="sinterlm",
    help="Fuse what several language models know into one small model, by learning from their answers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INTERRUPTED = 130
DISK_FULL_MESSAGES = (
    "No space left on device",
    "File too large",
    "Disk quota exceeded",
    "PytorchStreamWriter failed",
    "inline_container.cc",
    "iostream error",
)
"""How safetensors and torch report a full disk: in errors of their own, without an error number."""

RecipeArgument = Annotated[Path, typer.Argument(help="The recipe, a YAML file.", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, e.g. preference.wrpo.objective.alpha=0.3"),
]
FolderArgument = Annotated[Path, typer.Argument(help="The output folder of a run.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.command()
def quickstart(
    overrides: OverridesArgument = None,
    output: Annotated[Path, typer.Option(help="The output folder.")] = Path("runs/quickstart"),
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            metavar="wrpo|dpo|fuserl|fusechat3",
            help="A method to train; repeat for several. By default dpo and wrpo.",
        ),
    ] = None,
) -> None:
    """Fuse two small models into a third on this machine, in about ten minutes: no account, no GPU."""
    from sinterlm.recipe.overrides import Override
    from sinterlm.recipe.quickstart import choose_quickstart_methods, quickstart_recipe

    chosen = choose_quickstart_methods(methods or [])
    _run(quickstart_recipe(), [Override("output", str(output)), *chosen, *(overrides or [])])


@app.command(cls=OptionalPreview)
def run(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="Stop after this stage.")] = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Run only this stage.")] = None,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run Python files that the recipe names.")] = False,
    preview: Annotated[
        int | None,
        typer.Option(
            metavar="[N]", min=1, help="First take N prompts of every part (10 by default) through all but training."
        ),
    ] = None,
) -> None:
    """Carry out a recipe. Rerun the command to resume."""
    _run(recipe, overrides or [], until=until, only=only, allow_code=allow_code, preview=preview)


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    pilot: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Take lengths, rates and prices from this run, e.g. from a preview."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show a recipe's stages, what is done, and what the rest will cost. Loads no model."""
    from sinterlm.pipeline.fusion import Fusion
    from sinterlm.pipeline.plan import plan_fusion
    from sinterlm.recipe.load import load_recipe
    from sinterlm.terminal.plan import print_plan

    planned = plan_fusion(Fusion(load_recipe(recipe, overrides or []).recipe), pilot=pilot)
    if as_json:
        _print_json(planned.to_json())
    else:
        print_plan(planned, _console())


@app.command()
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show what a run has done and dropped so far."""
    from sinterlm.pipeline.status import status_of
    from sinterlm.terminal.status import print_status

    found = status_of(folder)
    if as_json:
        _print_json(found)
    else:
        print_status(found, _console())


@app.command()
def retry(
    folder: FolderArgument,
    allow_code: Annotated[bool, typer.Option("--allow-code", help="Run Python files that the recipe names.")] = False,
) -> None:
    """Ask again for what failed in a run, and redo what depends on it."""
    from sinterlm.pipeline.fusion import load_fusion
    from sinterlm.pipeline.retry import forget_failed

    fusion = load_fusion(folder)
    failed, last = forget_failed(fusion)
    if not failed:
        _console().say("nothing has failed")
        return
    _console().say(f"asking again in {', '.join(failed)}")
    _carry_out(fusion, until=last, allow_code=allow_code)


@app.command()
def report(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Print a run's table, and write its report.html and summary.json again."""
    from sinterlm.pipeline.finished import rewrite_report
    from sinterlm.terminal.summary import print_summary

    run = rewrite_report(folder)
    if as_json:
        _print_json(run.summary)
    else:
        print_summary(run, _console())


@app.command()
def compare(
    folders: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="The output folders of runs.", show_default=False)
    ],
    prompt: Annotated[
        str, typer.Option(metavar="ID", help="Show every model's answers to this prompt side by side.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="The page to write; by default comparison.html in the first run's workspace.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: their training rows, their models on the held-out questions, and any one prompt."""
    from sinterlm.pipeline.compare import compare_runs
    from sinterlm.terminal.comparison import print_comparison

    compared = compare_runs(folders, prompt=prompt, page=output)
    if as_json:
        _print_json(compared.to_json())
    else:
        print_comparison(compared, _console())


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="DIR", help="The output folder of a run, or a file of rows.")],
    format_name: Annotated[
        str, typer.Option("--format", metavar="FORMAT", help="A format; `sinterlm list formats` shows all.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The folder to write; by default export/FORMAT in the run's folder.")
    ] = None,
    rows: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Export only these rows, e.g. sft; repeat for several.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Export a run's rows for other trainers, or its answers and scores for another workspace."""
    from sinterlm.formats.row_formats import ANSWERS
    from sinterlm.pipeline.exchange import export_answers
    from sinterlm.pipeline.export import export_rows
    from sinterlm.terminal.exchange import print_exported

    if format_name == ANSWERS:
        if rows:
            raise InputError("--rows does not go with --format answers, which holds no rows; leave it out")
        exported = export_answers(path, output)
    else:
        exported = export_rows(path, output, format_name=format_name, names=rows or [])
    if as_json:
        _print_json(exported.to_json())
    else:
        print_exported(exported, _console())


@app.command(name="import")
def import_(
    folder: Annotated[
        Path, typer.Argument(help="A folder from `sinterlm export --format answers`.", show_default=False)
    ],
    workspace: Annotated[Path, typer.Option(help="The workspace to import into.")],
    as_json: JsonOption = False,
) -> None:
    """Import answers and scores, so that nothing is sampled or scored twice. Importing again changes nothing."""
    from sinterlm.pipeline.exchange import describe_merged, import_answers
    from sinterlm.terminal.exchange import print_merged

    merged = import_answers(folder, workspace)
    if as_json:
        _print_json(describe_merged(merged))
    else:
        print_merged(merged, workspace, _console())


@app.command()
def train(
    objective: Annotated[str, typer.Option(help="An objective; `sinterlm list objectives` shows all.")],
    model: Annotated[str, typer.Option(help="A hub name, a folder, or gguf:PACKAGE/FILE.gguf.")],
    data: Annotated[Path, typer.Option(help="Training rows: JSON Lines or Parquet.")],
    output: Annotated[Path, typer.Option(help="The folder for the trained model.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...", help="Hyper-parameters and training arguments, e.g. beta=0.1 learning_rate=1e-6"
        ),
    ] = None,
    settings_files: Annotated[
        list[Path] | None,
        typer.Option("--settings", metavar="FILE", help="A YAML file of the same; later files override earlier ones."),
    ] = None,
) -> None:
    """Train on rows that you already have. Rerun the command to resume."""
    from sinterlm.pipeline.own_rows import lock_output, read_job
    from sinterlm.pipeline.progress import follow_training
    from sinterlm.terminal.progress import TerminalReporter
    from sinterlm.terminal.training import print_training
    from sinterlm.training.train import train as train_model

    console = _console()
    reporter = TerminalReporter(console)
    job = read_job(objective, data, settings or [], settings_files or [])
    with lock_output(output), follow_training(reporter, objective) as report_progress:
        result = train_model(
            job.rows,
            model=model,
            objective=objective,
            hyperparameters=job.hyperparameters,
            arguments=job.arguments,
            output_dir=output,
            seed=job.seed,
            say=lambda line: reporter.say(f"  {objective}: {line}"),
            report_progress=report_progress,
        )
    print_training(result, output, console)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(metavar="objectives|policies|scorers|engines|formats", help="What to list.")],
    as_json: JsonOption = False,
) -> None:
    """List what a recipe can name."""
    from sinterlm.recipe.catalogue import catalogue
    from sinterlm.terminal.catalogue import print_catalogue

    entries = catalogue(what)
    if as_json:
        _print_json(entries)
    else:
        print_catalogue(what, entries, _console())


@app.command()
def schema(
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it to this file instead.")] = None,
) -> None:
    """Print the JSON schema of recipes, with which editors complete and check them."""
    from sinterlm.files import atomic_write
    from sinterlm.recipe.json_schema import schema_text

    if output is None:
        print(schema_text(), end="")
        return
    with atomic_write(output) as temporary:
        temporary.write_text(schema_text(), encoding="utf-8")


def _run(
    recipe: Path,
    overrides: Sequence[str | Override],
    *,
    until: str | None = None,
    only: str | None = None,
    allow_code: bool = False,
    preview: int | None = None,
) -> None:
    from sinterlm.pipeline.fusion import Fusion
    from sinterlm.recipe.load import load_recipe

    fusion = Fusion(load_recipe(recipe, overrides).recipe)
    if preview is None:
        _carry_out(fusion, until=until, only=only, allow_code=allow_code)
    else:
        _preview(fusion, preview, until=until, only=only, allow_code=allow_code)


def _preview(fusion: Fusion, num_prompts: int, *, until: str | None, only: str | None, allow_code: bool) -> None:
    from sinterlm.pipeline.preview import read_preview
    from sinterlm.pipeline.run import run_fusion
    from sinterlm.terminal.preview import print_preview
    from sinterlm.terminal.progress import TerminalReporter

    console = _console()
    preview = fusion.for_preview(num_prompts)
    run_fusion(preview, TerminalReporter(console), until=until, only=only, allow_code=allow_code)
    print_preview(read_preview(fusion), console)


def _carry_out(fusion: Fusion, *, until: str | None = None, only: str | None = None, allow_code: bool = False) -> None:
    from sinterlm.pipeline.finished import Run
    from sinterlm.pipeline.run import run_fusion
    from sinterlm.terminal.progress import TerminalReporter
    from sinterlm.terminal.summary import print_outcome

    console = _console()
    outcome = run_fusion(fusion, TerminalReporter(console), until=until, only=only, allow_code=allow_code)
    print_outcome(Run(fusion), outcome, console)


def _console() -> Terminal:
    """Standard output of the first process; wide enough for tables if there is no terminal to ask for its width."""
    from sinterlm.pipeline.launch import is_main_process
    from sinterlm.terminal.terminal import Terminal

    return Terminal(width=None if sys.stdout.isatty() else 140, quiet=not is_main_process())


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))  # ASCII: terminals obey some control characters that JSON leaves unescaped


def main() -> NoReturn:
    """Run the command and exit with the code of its outcome."""
    from sinterlm.pipeline.launch import leave_launch
    from sinterlm.terminal.terminal import guard_standard_error

    guard_standard_error()
    signal.signal(signal.SIGTERM, _raise_terminated)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 still shows what it can
    code = exit_code()
    if code == 0:  # after an error the other processes may be gone or stuck: do not wait for them
        leave_launch()
    sys.exit(code)


def exit_code() -> int:
    """Run the command that ``sys.argv`` gives, say what went wrong, and return the exit code."""
    try:
        _check_encoding()
        with _disk_full_as_try_again(), memory_advice("carrying out the command", "smaller files or models take less"):
            result = app(standalone_mode=False)
        if result == INTERRUPTED:  # typer caught the KeyboardInterrupt
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except SinterError as error:
        _complain(str(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted; rerun the command to resume")
        return INTERRUPTED
    except Terminated as error:
        _complain("terminated; rerun the command to resume")
        return error.exit_code
    except OSError as error:
        _complain(f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}")
        return InputError.exit_code
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error of typer
            error.show()
            return int(error.exit_code)
        raise


def _check_encoding() -> None:
    """Refuse paths and settings that are not UTF-8, because recipes, reports and the store cannot hold them."""
    try:
        folder = os.getcwd()
    except FileNotFoundError as error:
        raise InputError("the current folder no longer exists; go to another one") from error
    for what, text in [("the current folder", folder), *(("an argument", text) for text in sys.argv[1:])]:
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(text).decode(errors="backslashreplace")
            raise InputError(f"{what} is not UTF-8: {shown}; rename the file or folder") from None


@contextlib.contextmanager
def _disk_full_as_try_again() -> Iterator[None]:
    try:
        yield
    except TryAgainError:
        raise
    except Exception as error:
        if _is_disk_full(error):
            raise TryAgainError(
                f"the disk is full ({error}); free some space and rerun the command: nothing is lost"
            ) from error
        raise


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        said = str(error)
        if getattr(error, "errno", None) == errno.ENOSPC or any(message in said for message in DISK_FULL_MESSAGES):
            return True
        error = error.__cause__ or error.__context__
    return False


def _complain(message: str) -> None:
    from sinterlm.terminal.terminal import Terminal

    Terminal(stderr=True).say(f"sinterlm: {message}")


def _raise_terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
