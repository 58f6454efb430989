from __future__ import annotations

import subprocess
import sys

import pytest

from cambium.models import process


def test_it_says_whether_the_allocator_agreed() -> None:
    # In a process of its own: the setting holds for a whole process.
    code = "from cambium.models.process import prepare_process as k; print(repr(k()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("True", "False")
    assert done.stdout.strip() == "True" or not sys.platform.startswith("linux")


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "platform", "darwin")
    assert process.prepare_process() is False


def test_without_mallopt_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: object())
    assert process.prepare_process() is False


def test_a_refused_setting_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        @staticmethod
        def mallopt(name: int, value: int) -> int:
            return 0 if name == process._M_TOP_PAD else 1

    monkeypatch.setattr(process.ctypes, "CDLL", lambda name: Library)
    assert process.prepare_process() is False
