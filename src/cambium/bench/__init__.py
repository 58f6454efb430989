"""Benchmarks: each measures Cambium and a peer in the same run; see `docs/how-to/benchmark.md`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cambium.bench import (
    diff,
    drift,
    engine,
    forgetting,
    gates,
    learn,
    learning_rate,
    pages,
    step_monitor,
    trust,
)

BENCHMARKS: dict[str, Callable[[Callable[[str], None]], dict[str, Any]]] = {
    "diff": diff.run,
    "drift": drift.run,
    "engine": engine.run,
    "forgetting": forgetting.run,
    "gates": gates.run,
    "learn": learn.run,
    "learning_rate": learning_rate.run,
    "pages": pages.run,
    "step_monitor": step_monitor.run,
    "trust": trust.run,
}
