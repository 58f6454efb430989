"""Benchmarks: each measures Cambium and a peer in the same run; see `docs/how-to/benchmark.md`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

Benchmark = Callable[[Callable[[str], None]], dict[str, Any]]


def _in_module(name: str) -> Benchmark:
    """Returns the `run` of a module that is imported when it is called.

    The writers that `trust_crash` kills live in this package too, and load no tensors.
    """

    def run(say: Callable[[str], None]) -> dict[str, Any]:
        return import_module(f"cambium.bench.{name}").run(say)

    return run


BENCHMARKS: dict[str, Benchmark] = {
    "diff": _in_module("diff"),
    "drift": _in_module("drift"),
    "engine": _in_module("engine"),
    "forgetting": _in_module("forgetting"),
    "gates": _in_module("gates"),
    "learn": _in_module("learn"),
    "learning_rate": _in_module("learning_rate"),
    "pages": _in_module("pages"),
    "step_monitor": _in_module("step_monitor"),
    "trust": _in_module("trust"),
}
