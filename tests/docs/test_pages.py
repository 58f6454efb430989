"""Documentation cannot lag: every error code, gate, route and benchmark has its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cambium.bench import BENCHMARKS
from cambium.core import errors
from cambium.evals import errors as eval_errors
from cambium.evals.gates import GATES
from cambium.serve import errors as serve_errors
from cambium.serve.api.problems import STATUS

DOCS = Path(__file__).parents[2] / "docs"


def _codes() -> set[str]:
    found = [v for m in (errors, eval_errors, serve_errors) for v in vars(m).values()]
    kinds = [k for k in found if isinstance(k, type) and issubclass(k, errors.CambiumError)]
    return {k.code for k in kinds}


def test_every_error_code_has_a_status_and_a_line() -> None:
    page = (DOCS / "reference" / "errors.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", page, re.MULTILINE))
    assert _codes() == set(STATUS)
    assert {code: str(status) for code, status in STATUS.items()} == documented


@pytest.mark.parametrize("gate", sorted(GATES))
def test_every_gate_is_described(gate: str) -> None:
    assert f"`{gate}`" in (DOCS / "reference" / "gates.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_benchmark_is_described(name: str) -> None:
    assert f"`{name}`" in (DOCS / "how-to" / "benchmark.md").read_text(encoding="utf-8")


def test_every_variable_of_the_environment_is_described() -> None:
    page = (DOCS / "reference" / "environment.md").read_text(encoding="utf-8")
    source = (DOCS.parent / "src").rglob("*.py")
    named = {v for f in source for v in re.findall(r'"(CAMBIUM_[A-Z_]+)"', f.read_text("utf-8"))}
    assert "CAMBIUM_TOKEN" in named
    assert not {name for name in named if f"`{name}`" not in page}


def test_links_between_pages_resolve() -> None:
    broken = []
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.relative_to(DOCS.parent)}: {target}")
    assert not broken
