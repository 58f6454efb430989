"""The gates: what they refuse and let pass, the rule of looks, and parity with lm-eval."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cambium.bench import gate_confusion, harness_parity, look_rule
from cambium.bench.report import result

# Forty adapters take the better part of an hour; a run that was cut off goes on.
FOLDER = Path("out/bench/gates")


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the result; finished adapters are kept in `out/bench/gates`."""
    rows = [*look_rule.rows(say), *harness_parity.rows(say)]
    sets = gate_confusion.sets(say, folder=FOLDER)
    rows += look_rule.rows_in_force(say, sets)
    found = result("gates", [*gate_confusion.rows(sets), *rows])
    return {**found, "sets": gate_confusion.shortly(sets)}
