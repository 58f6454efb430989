"""`cambium demo`: runs the story against a real server and writes the report."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cambium.demo import corpus
from cambium.demo.report import render
from cambium.demo.server import DemoServer, StepFailed, run_cli
from cambium.demo.story import STEPS, Story


def run(*, state: Path | None, out: Path) -> int:
    """Runs every step, writes `out/report.json` and `out/report.html`; 0 only if all held."""
    out.mkdir(parents=True, exist_ok=True)
    if state is not None:
        return _run(state, out)
    with tempfile.TemporaryDirectory(prefix="cambium-demo-") as folder:
        return _run(Path(folder) / "state", out)


def _run(state: Path, out: Path) -> int:
    console = Console()
    steps: list[dict[str, Any]] = []
    story: Story | None = None
    started = time.monotonic()
    try:
        made = run_cli("init", "--state", str(state), "--profile", "development")
        if made.returncode != 0:
            raise StepFailed(f"cambium init failed: {made.stderr}")
        with DemoServer(state) as server:
            detail = f"{server.url}, development profile, software attestation"
            steps.append(_step("start the server", started, True, detail))
            keys = {p.stem: str(p) for p in sorted((state / "keys").glob("*.key"))}
            story = Story(server=server, corpus=corpus.load(), keys=keys)
            _tell_story(story, steps, console)
    except StepFailed as error:
        steps.append(_step("start the server", started, False, str(error)))
    report = _report(steps, story)
    (out / "report.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (out / "report.html").write_text(render(report, story), encoding="utf-8")
    _show(console, report, out)
    return 0 if report["ok"] else 1


def _tell_story(story: Story, steps: list[dict[str, Any]], console: Console) -> None:
    """Runs the steps: a bar for the one under way, a line for each that is done."""
    columns = (TextColumn("{task.description:<34}"), BarColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[detail]}"))  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        for name, step in STEPS:
            task = progress.add_task(name, total=1.0, detail="")

            def tell(what: str, share: float, task: Any = task) -> None:
                progress.update(task, completed=share, detail=what[:100])

            started = time.monotonic()
            try:
                detail, ok = step(story, tell), True
            except StepFailed as error:
                detail, ok = str(error), False
            except Exception as error:  # noqa: BLE001 - whatever broke is the step's result
                detail, ok = f"{type(error).__name__}: {error}", False
            progress.remove_task(task)
            steps.append(_step(name, started, ok, detail))
            mark = "[green]ok[/green]    " if ok else "[red]failed[/red]"
            took = steps[-1]["seconds"]
            console.print(f"{mark} {name:<34}{took:6.1f} s  {escape(detail)}", highlight=False)
            if not ok:
                return


def _step(name: str, started: float, ok: bool, detail: str) -> dict[str, Any]:
    return {
        "name": name,
        "ok": ok,
        "seconds": round(time.monotonic() - started, 2),
        "detail": detail,
    }


def _report(steps: list[dict[str, Any]], story: Story | None) -> dict[str, Any]:
    complete = len(steps) == len(STEPS) + 1
    losses = story.losses if story else {}
    new = losses.get("new_domain", {})
    figures: dict[str, Any] = {
        "new_domain": {
            "loss_before": new.get("before"),
            "loss_after_learning": new.get("after_learning"),
            "loss_after_merge": new.get("after_merge"),
        },
        "old_domains": {
            name: {
                "loss_before": at.get("before"),
                "loss_after_learning": at.get("after_learning"),
                "loss_after_merge": at.get("after_merge"),
            }
            for name, at in losses.items()
            if name != "new_domain"
        },
        "refused": story.refused if story else [],
        "signed_digest": story.merge.get("signed_digest") if story else None,
        "served_digest": story.merge.get("served_digest") if story else None,
        "rollback_identical": bool(story and story.rollback_identical),
        "audit_verified": bool(story and story.audit_verified),
    }
    return {"ok": complete and all(s["ok"] for s in steps), "steps": steps, "figures": figures}


def _show(console: Console, report: dict[str, Any], out: Path) -> None:
    table = Table(title="held-out loss, nats per token")
    for heading in ("domain", "before", "after learning", "after the merge", "change"):
        table.add_column(heading, justify="left" if heading == "domain" else "right")
    figures = report["figures"]
    rows = {"new domain (library sources)": figures["new_domain"], **figures["old_domains"]}
    for name, at in rows.items():
        numbers = [at["loss_before"], at["loss_after_learning"], at["loss_after_merge"]]
        shown = ["-" if n is None else f"{n:.3f}" for n in numbers]
        change = "-" if None in (numbers[0], numbers[2]) else f"{numbers[2] / numbers[0] - 1:+.1%}"
        table.add_row(name, *shown, change)
    console.print(table)
    for refused in figures["refused"]:
        console.print(f"refused by [bold]{refused['by']}[/bold]: {refused['why']}", highlight=False)
    total = sum(step["seconds"] for step in report["steps"])
    verdict = "[green]every step held[/green]" if report["ok"] else "[red]a step did not hold[/red]"
    console.print(f"{verdict} in {total:.0f} s; report: {out / 'report.html'}", highlight=False)
