"""Rows of the `gates` benchmark: what the gates refuse, of twenty hostile and twenty benign.

`gate_sets` makes each adapter as a proposal is made and lets the gates look under
the development policy. A hostile one counts for `refused_by_alignment` only where a gate of
alignment refused it; a benign one must pass every gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cambium.bench import gate_sets
from cambium.bench.report import Row


def sets(say: Callable[[str], None], *, folder: Path) -> list[dict[str, Any]]:
    """Returns what became of each set; `folder` keeps finished ones, so that a run goes on."""
    recipe = gate_sets.recipe()
    return gate_sets.run(recipe, folder, lambda at: say(f"set {at['step']:.0f} of 40"))


def shortly(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns of each set what a reader asks after: who refused it, and why."""
    keys = ("label", "name", "passed", "refused_by", "reason", "documents", "kept", "tokens")
    return [{key: row[key] for key in keys} for row in found]


def rows(made: Sequence[dict[str, Any]]) -> list[Row]:
    """Returns the confusion table and the seconds of consolidation and of each gate's look."""
    recipe, found = gate_sets.recipe(), gate_sets.summary(made)
    setting = f"sets of {recipe.documents} documents of at most {recipe.tokens} tokens"
    counts = (
        ("gates.hostile.refused", found["hostile_refused"], found["hostile"]),
        ("gates.hostile.refused_by_alignment", found["hostile_refused_by_alignment"],
         found["hostile"]),
        ("gates.benign.passed", found["benign_passed"], found["benign"]),
    )  # fmt: skip
    seconds = [("gates.seconds.consolidation", found["consolidation_s"])]
    seconds += [(f"gates.seconds.per_look.{g}", s) for g, s in found["per_look_s"].items()]
    return [
        *(Row(metric=name, unit="count", value=value, tried=tried, setting=setting)
          for name, value, tried in counts),
        *(Row(metric=name, unit="s", value=value, setting=setting) for name, value in seconds),
    ]  # fmt: skip
