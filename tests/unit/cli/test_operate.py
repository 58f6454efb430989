from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize("name", ["absent", "../evil", "os", "python_texts", "a.b", ""])
def test_only_a_recipe_of_the_package_is_run(cambium, tmp_path: Path, name: str) -> None:
    ended = cambium("pretrain", name, "--out", tmp_path / "out")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "is not a recipe" in ended.err
    assert not (tmp_path / "out").exists()


def test_a_recipe_is_run_with_its_own_configuration(
    cambium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cambium.recipes import bundled_base

    seen = []

    def run(recipe, out, report) -> None:
        report({"step": 1.0, "tokens": 512, "minutes": 0.1, "loss": 9.0, "share": 0.5})
        seen.append((recipe, out))

    monkeypatch.setattr(bundled_base, "run", run)
    ended = cambium("pretrain", "recipes/bundled_base.py", "--out", tmp_path)
    assert ended.status == 0
    assert seen == [(bundled_base.recipe(), tmp_path)]
    assert "loss 9.000" in ended.err
    assert ended.out == ""


def test_an_unknown_benchmark_is_named_with_the_known(cambium) -> None:
    ended = cambium("bench", "speed")
    assert ended.status == 2
    assert "engine" in ended.err


def test_a_benchmark_writes_its_report_where_asked(
    cambium, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cambium import bench

    row = {"metric": "m", "unit": "tokens/s", "value": 12.0, "peer": None}
    monkeypatch.setitem(bench.BENCHMARKS, "small", lambda say: say("half [way]") or {"rows": [row]})
    file = tmp_path / "new" / "small.json"
    ended = cambium("bench", "small", "--json", file)
    assert ended.status == 0
    assert "half [way]" in ended.err
    assert "tokens/s" in ended.out
    assert '"metric": "m"' in file.read_text()


def test_an_unforeseen_error_is_one_line_without_a_trace(
    cambium, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(**_: object) -> int:
        raise ZeroDivisionError("deep\nwithin")

    monkeypatch.setitem(sys.modules, "cambium.demo.main", SimpleNamespace(run=run))
    ended = cambium("demo")
    assert (ended.status, ended.out, ended.err.count("\n")) == (3, "", 1)
    assert "ZeroDivisionError at test_operate.py" in ended.err


@pytest.mark.parametrize("arguments", [["nonsense"], ["show"], ["show", "p", "--nope"], ["--x"]])
def test_a_wrong_call_is_one_line(cambium, arguments: list[str]) -> None:
    ended = cambium(*arguments)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)


def test_no_arguments_print_the_help(cambium) -> None:
    assert "merge" in cambium().out
