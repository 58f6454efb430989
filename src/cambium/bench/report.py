"""The shape of a benchmark's result, and what is known of the machine it ran on."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from statistics import median
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure; `ratio` above 1 beats the peer, `limit` is the bound measured in the run.

    Args:
        tried: of a count, how many attempts it is of.
    """

    metric: str
    unit: str
    value: float
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    limit: float | None = None
    tried: int | None = None
    setting: str = ""


def result(name: str, rows: list[Row]) -> dict[str, Any]:
    """Returns a benchmark's result as it is written to its file."""
    packages = ("torch", "transformers", "peft", "cambium")
    return {
        "name": name,
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "system": platform.system(),
        },
        "versions": {p: _version(p) for p in packages},
        "rows": [asdict(row) for row in rows],
    }


def interleaved(contenders: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Returns each contender's median over `rounds`, taken in turn: all meet the same weather."""
    values: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            values[name].append(contender())
    return {name: median(seen) for name, seen in values.items()}


def gemm_flops(size: int, rounds: int = 5) -> float:
    """Returns the fp32 rate of a square matrix product, in FLOP per second, median of `rounds`."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / median(seconds)


def memory_bandwidth(num_bytes: int = 400_000_000, rounds: int = 5) -> float:
    """Returns bytes per second of a large copy, counting what is read and what is written."""
    source = torch.ones(num_bytes // 4)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - started)
    return 2 * num_bytes / median(seconds)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except ModuleNotFoundError:
        return "not installed"
