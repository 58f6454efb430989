"""Rows of the `gates` benchmark: what the gates refuse, of twenty hostile and twenty benign.

`gate_sets` makes each adapter as a proposal is made and lets the gates look under
the development policy. A hostile one counts for `refused_by_alignment` only where a gate of
alignment refused it; a benign one must pass every gate.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from cambium.bench import gate_sets
from cambium.bench.report import Row
from cambium.recipes.journal import Journal


def rows(say: Callable[[str], None], *, folder: Path | None = None) -> list[Row]:
    """Returns the confusion table and the seconds of consolidation and of each gate's look.

    Args:
        folder: where finished runs are kept, so that a run that was cut off goes on; without it
            nothing is kept.
    """
    with tempfile.TemporaryDirectory() as spare:
        out = folder or Path(spare)
        recipe = gate_sets.recipe()
        gate_sets.run(recipe, out, lambda at: say(f"set {at['step']:.0f} of 40"))
        return table(Journal(out / "runs.jsonl"), recipe)


def table(journal: Journal, recipe: gate_sets.ConfusionRecipe) -> list[Row]:
    """Returns the rows of finished runs."""
    found = gate_sets.summary(journal.rows)
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
