"""What commands print: tables and records for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from cambium.cli.failures import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Where nobody's terminal says how wide it is, rows should not wrap.
PIPE_WIDTH = 160
_DIGEST_SHOWN = len("sha256:") + 12


def print_json(value: object) -> None:
    """Prints `value` as JSON, everything beyond ASCII escaped."""
    print(json.dumps(value, indent=2))


def print_line(text: str) -> None:
    """Prints one line for people."""
    print(visible(text))


def print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str], *, title: str = "") -> None:
    """Prints a table; `columns` are fields of the rows, absent ones shown as a dash."""
    from rich.table import Table

    _print_title(title)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    console().print(table)
    if not rows:
        console().print("none", style="dim")


def print_record(record: dict[str, Any], title: str = "") -> None:
    """Prints a record: single values first, then its tables and its parts, each under its name."""
    from rich.table import Table
    from rich.text import Text

    _print_title(title)
    plain = {k: v for k, v in record.items() if not _is_part(v)}
    table = Table(box=None, pad_edge=False, show_header=False)
    for name, value in plain.items():
        table.add_row(Text(visible(name.replace("_", " ")), style="dim"), _cell(value, full=True))
    if plain:
        console().print(table)
    for name, value in record.items():
        heading = f"{title} · {name}" if title else name
        if isinstance(value, dict) and value:
            print_record(value, heading)
        elif isinstance(value, list) and _is_part(value):
            columns = list(dict.fromkeys(key for row in value for key in row))
            print_rows(value, columns, title=heading)


@contextmanager
def progress(*, estimate: bool = False) -> Iterator[Progress]:
    """Gives a progress display on standard error, so that standard output stays clean."""
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
    ]
    if estimate:
        columns += [TextColumn("left:"), TimeRemainingColumn()]
    with Progress(*columns, console=console(stderr=True)) as shown:
        yield shown


def hide_loading_bars() -> None:
    """Keeps transformers from drawing on standard error, which is for this command's own words."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def console(*, stderr: bool = False) -> Console:
    """Returns a console for one of the standard streams as it is now."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(file=stream, width=width, highlight=False)


def _print_title(title: str) -> None:
    from rich.text import Text

    if title:
        console().print(Text(f"\n{visible(title)}", style="bold"))


def _is_part(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _cell(value: object, *, full: bool = False) -> Any:
    """Returns a cell whose text Rich takes literally."""
    from rich.text import Text

    if value is None or value == [] or value == {}:
        return Text("–", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, float):
        return Text(f"{value:.4g}")
    if isinstance(value, list) and all(isinstance(v, str | int | float) for v in value):
        return Text(visible(", ".join(str(v) for v in value)))
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if text.startswith("sha256:") and not full:
        text = text[:_DIGEST_SHOWN]
    return Text(visible(text))
