"""Benchmark `drift`: is the one bad revision found among ten, and does a slow creep trip its bound?

Both series are constructed; see `docs/explanation/drift.md` for what that proves and what not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from cambium.bench.report import Row, result
from cambium.recipes import drift_laboratory
from cambium.recipes.drift_laboratory import DriftRecipe

# Ninety revisions take over an hour; a run that was cut off goes on.
FOLDER = Path("out/bench/drift")


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns what was found, what was falsely found, and what a revision costs.

    Finished series are kept in `out/bench/drift`.
    """
    return run_recipe(say, drift_laboratory.recipe(), out=FOLDER)


def run_recipe(say: Callable[[str], None], recipe: DriftRecipe, *, out: Path) -> dict[str, Any]:
    """Returns the result of this laboratory, each series under `series`; `out` keeps them.

    Raises:
        DataError: the folder with real data is missing.
    """
    drift_laboratory.run(
        recipe, out, lambda seen: say(f"series {seen['step']:.0f}, {seen['share']:.0%}")
    )
    found = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    return {**result("drift", rows_of(found)), "series": found}


def rows_of(found: Sequence[dict[str, Any]]) -> list[Row]:
    """Returns the rows of a laboratory's summary; a series that was not made gives none."""
    planted = [one for one in found if one["kind"] == "planted"]
    creeping = [one for one in found if one["kind"] == "creeping"]
    honest = [one for one in found if one["kind"] != "creeping"]
    revisions = max((one["num_revisions"] for one in found), default=0)
    setting = f"{revisions} revisions, constructed; seeds {sorted({o['seed'] for o in found})}"
    made: list[Row] = []

    def add(metric: str, unit: str, value: float, tried: int | None = None) -> None:
        row = Row(metric=f"drift.{metric}", unit=unit, value=value, tried=tried, setting=setting)
        made.append(row)

    if planted:
        hits = sum(one["suspected"] == one["planted"] for one in planted)
        add("suspect.found", "series", hits, len(planted))
        innocent = sum(one["num_revisions"] - (one["planted"] is not None) for one in honest)
        wrong = sum(r != one["planted"] for one in honest for r in one["accused"])
        add("suspect.false_alarms", "revisions", wrong, innocent)
    if creeping:
        looks = [one["cumulative"] for one in creeping]
        tripped = [look for look in looks if look["tripped_at"] is not None]
        if tripped:
            at = median(look["tripped_at"] for look in tripped)
            add("cumulative.tripped_at", "revision, median", at, len(creeping))
        alone = sum(look["steps_passed"] for look in tripped)
        add("cumulative.tripped_with_each_step_passing", "series", alone, len(creeping))
    add("seconds_per_revision", "s", mean(one["seconds"] for one in found))
    add("seconds_measuring", "s", mean(one["seconds_measuring"] for one in found))
    return made
