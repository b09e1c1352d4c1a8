"""The command line, ``hoi-distill``. Everything heavy is imported by the command that uses it.

Exit codes: 0 done; 1 an error of ours; 2 bad input (one line says what to mend); 3 cells are empty or differ; 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer
import typer.core
from typing_extensions import override

from hoi_distill.pipeline.cli.cache import check, gc, plan, run, verify
from hoi_distill.pipeline.cli.dataset import app as dataset_app
from hoi_distill.pipeline.cli.evaluate import evaluate
from hoi_distill.pipeline.cli.labels import labels
from hoi_distill.pipeline.cli.own_data import export_table, import_, init
from hoi_distill.pipeline.cli.pair_report import pair_report
from hoi_distill.pipeline.cli.schema import schema
from hoi_distill.pipeline.cli.students import compare, evidence, experiments, page, train
from hoi_distill.pipeline.cli.swap_accuracy import swap_accuracy
from hoi_distill.pipeline.cli.teachers import detectors, teachers
from hoi_distill.pipeline.cli.triplets import triplets
from hoi_distill.pipeline.cli.use import export, predict, push
from hoi_distill.pipeline.cli.versions import versions
from hoi_distill.pipeline.cli.view import view
from hoi_distill.pipeline.console.terminal import flush_output, one_line, printable_streams
from hoi_distill.storage.errors import UserError, WorkStopped
from hoi_distill.storage.files.writable import PLAIN, reason


class _Commands(typer.core.TyperGroup):
    """Says at Ctrl-C what became of the work. Typer says nothing."""

    @override
    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("Interrupted. What was committed is kept; the same command goes on from here.", file=sys.stderr)
            raise typer.Exit(130) from None


app = typer.Typer(
    name="hoi-distill",
    cls=_Commands,
    help="Pay for the vision-language teacher once, then train as many light HOI students as you like.",
    epilog="Exit codes: 0 done, 1 internal error, 2 bad input, 3 cells are empty or differ, 130 interrupted.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(dataset_app, name="dataset")
for command in (
    *(init, plan, run, train, experiments, compare, evidence, page, view, evaluate, swap_accuracy),
    *(
        predict,
        export,
        push,
        check,
        verify,
        gc,
        teachers,
        detectors,
        schema,
        triplets,
        labels,
        pair_report,
        export_table,
    ),
):
    app.command()(command)
app.command("import")(import_)


@app.callback(invoke_without_command=True)
def _top(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the versions and the device, and exit.")] = False,
) -> None:
    if version:
        print(versions())
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())
        raise typer.Exit(2)


def main() -> None:
    """Run a command; errors that a user can mend are one line and exit code 2."""
    with printable_streams():
        code = _run(lambda: app(standalone_mode=False, prog_name="hoi-distill") or 0)
    raise SystemExit(_run(flush_output) or code)


def _run(work: Callable[[], int | None]) -> int:
    """Do some work and return its exit code. An error that a user can mend, or of the machine, is one line."""
    try:
        return work() or 0
    except SystemExit as ended:  # of typer: a shell asked for completions, or a reader has left
        return int(ended.code or 0)
    except UserError as error:
        return _say(f"hoi-distill: {error}", 2)
    except WorkStopped as error:
        return _say(f"hoi-distill: {error}", 1)
    except OSError as error:  # of a file that no reader or writer has a message for
        if error.filename is None and error.errno not in PLAIN:
            raise
        return _say(f"hoi-distill: {'' if error.filename is None else f'{error.filename}: '}{reason(error)}", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):  # which what typer says of a wrong call has
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "hoi-distill")
        said = error.format_message().rstrip(".")
        return _say(f"{command}: {said[:1].lower()}{said[1:]}; see {command} --help", 2)


def _say(line: str, code: int) -> int:
    print(one_line(line), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
