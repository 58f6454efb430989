"""The options that commands share, each with one spelling and one help text."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

Options = TypeVar("Options")

State = Annotated[
    Path | None,
    typer.Option("--state", help="Open this state folder here, instead of asking a server."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Key = Annotated[Path, typer.Option("--key", help="File of the private key to sign with.")]
Keys = Annotated[list[Path], typer.Option("--key", help="Private key file; once for each signer.")]
ProposalId = Annotated[str, typer.Argument(metavar="PROPOSAL", help="Id of the proposal.")]


def taking(options: type[Options]) -> Callable[[Callable[[Options], None]], Callable[..., None]]:
    """Makes a command out of a function of one dataclass: each field becomes a parameter.

    For commands with more options than a function should have parameters.
    """

    def decorate(function: Callable[[Options], None]) -> Callable[..., None]:
        def command(**values: Any) -> None:
            function(options(**values))

        hints = get_type_hints(options, include_extras=True)
        parameters = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=hints[field.name],
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
            )
            for field in fields(options)  # pyright: ignore[reportArgumentType]
        ]
        command.__doc__, command.__name__ = function.__doc__, function.__name__
        command.__annotations__ = {}
        command.__signature__ = inspect.Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
        return command

    return decorate


class Lane(StrEnum):
    """Which tree of the log: of what was decided, or of what was answered."""

    LIFECYCLE = "lifecycle"
    REQUESTS = "requests"


InLane = Annotated[Lane, typer.Option("--lane", help="Which of the log's two trees.")]
