"""Running things here: the server, the demo, benchmarks, pretraining."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from cambium.cli.failures import WRONG_CALL, CommandFailed
from cambium.cli.output import hide_loading_bars, print_rows, progress

_MODULE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_BENCH_COLUMNS = ("metric", "value", "unit", "peer", "peer_value", "ratio", "limit", "setting")


def demo(
    state: Annotated[Path | None, typer.Option("--state", help="Keep the state here.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the report.")] = Path("out/demo"),
) -> None:
    """Run the whole loop on the bundled base and report what held."""
    from cambium.demo.main import run

    raise typer.Exit(run(state=state, out=out))


def serve(
    model: Annotated[str | None, typer.Option("--model", help="Folder or hub id.")] = None,
    state: Annotated[Path, typer.Option("--state", help="State folder.")] = Path("out/state"),
    db: Annotated[str | None, typer.Option("--db", help="Database URL.")] = None,
    host: Annotated[str, typer.Option("--host")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535)] = 8321,
    policy: Annotated[Path | None, typer.Option("--policy", help="Must be in force.")] = None,
) -> None:
    """Serve a model that learns."""
    num_threads = _one_thread_each()
    from cambium.serve.config import ServerConfig
    from cambium.serve.main import run

    hide_loading_bars()
    config = ServerConfig(
        model=model,
        state=state,
        db=db,
        host=host,
        port=port,
        policy=policy,
        log=os.environ.get("CAMBIUM_LOG") or "text",
        keep_traces_days=_days_to_keep(os.environ.get("CAMBIUM_KEEP_TRACES_DAYS", "")),
        num_threads=num_threads,
    )
    run(config)


def _days_to_keep(said: str) -> int | None:
    """Reads for how many days traces are kept; nothing is for ever."""
    if said and not re.fullmatch("[1-9][0-9]{0,4}", said):
        line = f"CAMBIUM_KEEP_TRACES_DAYS is {said!r}: give a whole number of days from 1 on"
        raise CommandFailed(line, status=WRONG_CALL)
    return int(said) if said else None


def _one_thread_each() -> int:
    """Lets no thread compute on several cores by itself; returns how many the passes may use.

    OpenMP reads this once, when torch is first imported, for all threads that will ever be.
    """
    cores = os.environ.get("OMP_NUM_THREADS", "")
    num_threads = int(cores) if cores.isdigit() else 0
    if not num_threads:
        can_tell = hasattr(os, "sched_getaffinity")  # Linux
        num_threads = len(os.sched_getaffinity(0)) if can_tell else os.cpu_count() or 1
    os.environ["OMP_NUM_THREADS"] = "1"
    return num_threads


def bench(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    report: Annotated[Path | None, typer.Option("--json", help="Write the report here.")] = None,
) -> None:
    """Run a benchmark, its peer in the same run."""
    from cambium.bench import BENCHMARKS

    if name not in BENCHMARKS:
        line = f"there is no benchmark {name!r}: use one of {', '.join(sorted(BENCHMARKS))}"
        raise CommandFailed(line, status=WRONG_CALL)
    if report is not None:
        # What cannot be made is found out now, not after minutes of measuring.
        report.parent.mkdir(parents=True, exist_ok=True)
    with progress() as shown:
        task = shown.add_task(name, total=None)

        def say(text: str) -> None:
            shown.update(task, description=text)
            if not shown.console.is_terminal:  # a log has lines, and no bar
                shown.console.print(text, markup=False, highlight=False)

        result = BENCHMARKS[name](say)
    if report is not None:
        report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print_rows(result["rows"], _BENCH_COLUMNS)


def pretrain(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="As recipes/bundled_base.py.")],
    out: Annotated[Path | None, typer.Option("--out", help="Default: out/pretrain/RECIPE.")] = None,
) -> None:
    """Train a base by a recipe; goes on where an earlier run in the same folder stopped."""
    name = Path(recipe).stem
    module = _recipe(name)
    with progress(estimate=True) as shown:
        task = shown.add_task("reading the corpora", total=1.0)

        def report(row: dict[str, float]) -> None:
            text = f"step {row['step']:.0f}, {row['tokens']:,.0f} tokens, loss {row['loss']:.3f}"
            shown.update(task, completed=row["share"], description=text)

        module.run(module.recipe(), out or Path("out/pretrain") / name, report)


def _recipe(name: str) -> Any:
    """Returns the module of a bundled recipe that can be run; no other code is ever imported."""
    found = None
    if _MODULE_NAME.fullmatch(name):
        found = importlib.util.find_spec(f"cambium.recipes.{name}")
    module = importlib.import_module(found.name) if found else None
    if module is None or not (hasattr(module, "recipe") and hasattr(module, "run")):
        line = f"{name!r} is not a recipe of this package: see src/cambium/recipes"
        raise CommandFailed(line, status=WRONG_CALL)
    return module
