"""The command line: nothing heavy is imported before a command needs it.

Commands raise; `main` turns whatever they raise into one line on standard error and an exit
status. The list of commands and options is frozen by a test.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from cambium import __version__
from cambium.cli import (
    diffing,
    drifting,
    evaluating,
    exporting,
    initialise,
    keys,
    killing,
    learning,
    operate,
    policies,
    record,
    review,
    tokens,
    vouching,
    witnessing,
)
from cambium.cli.failures import INTERRUPTED, WRONG_CALL, CommandFailed, failure

_GROUPS = {
    "Start": (initialise.init, operate.demo, operate.serve),
    "Learn": (learning.learn, review.adapters),
    "Review": (
        review.propose,
        review.proposals,
        review.show,
        diffing.diff,
        evaluating.evaluate,
        review.check,
        vouching.vouch,
        review.approve,
        review.waive,
        review.reject,
        review.merge,
        review.revisions,
        review.rollback,
        review.quarantine,
        drifting.drift,
    ),
    "Stop": (killing.kill, killing.revive),
    "Account": (exporting.export, record.log, witnessing.witness, record.trace, record.replay),
    "Develop": (operate.bench, operate.pretrain),
}
# `eval` is Python's own word.
_NAMES = {"evaluate": "eval"}


def build() -> typer.Typer:
    """Returns the application, with commands in the order of a newcomer's day."""
    app = typer.Typer(
        name="cambium",
        help="A model server that learns while it runs, and reviews every lasting change.",
        no_args_is_help=True,
        invoke_without_command=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_version)
    for panel, commands in _GROUPS.items():
        for command in commands:
            app.command(_NAMES.get(command.__name__), rich_help_panel=panel)(command)
    app.add_typer(keys.app, rich_help_panel="Start")
    app.add_typer(policies.app, rich_help_panel="Start")
    app.add_typer(tokens.app, rich_help_panel="Start")
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; a failure prints exactly one line."""
    try:
        status = build()(args=arguments, prog_name="cambium", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has gone, as with `| head`: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except TyperException as error:
        what = error.format_message()
        if not what:  # no arguments: the help has been printed
            return WRONG_CALL
        ended = CommandFailed(f"{what.rstrip('.')}: see `cambium --help`", status=WRONG_CALL)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - the last place to say it
        ended = failure(error)
    else:
        if status != INTERRUPTED:
            return status if isinstance(status, int) else 0
        ended = failure(KeyboardInterrupt())
    print(f"cambium: {ended.line}", file=sys.stderr)
    return ended.status


def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
