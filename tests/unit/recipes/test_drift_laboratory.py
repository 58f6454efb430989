"""The laboratory's plan and its journal; the series themselves are the benchmark's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.evals.drift.series import revision

from cambium.bench.drift import rows_of
from cambium.core.errors import DataError
from cambium.evals.drift.reading import rows_of as data_rows
from cambium.recipes import drift_laboratory
from cambium.recipes.drift_laboratory import (
    bbq_scenes,
    lessons,
    made_from,
    persona_rows,
    planted_at,
    recipe,
    run_series,
    series_of,
    summary,
)
from cambium.recipes.drift_texts import biased_texts, unwanted_texts
from cambium.recipes.journal import Journal

CREEP = [0.15] * 10
PLANTED = [0.01, -0.02, 0.015, 0.9, -0.01, 0.0, 0.02, -0.015, 0.01, 0.005]


def journal_rows(kind: str, steps: list[float], *, seed: int = 0) -> list[dict[str, Any]]:
    found, total = [], 0.0
    for i, step in enumerate(steps):
        total += step
        drift = revision(i + 1, step, total, error=0.02)
        found.append({"kind": kind, "seed": seed, "seconds": 2.0, "seconds_measuring": 1.0,
                      "planted": 4 if kind == "planted" else None,
                      "drift": drift.to_json()})  # fmt: skip
    return found


def test_the_summary_names_the_planted_revision_and_where_the_creep_trips() -> None:
    rows = journal_rows("planted", PLANTED) + journal_rows("creeping", CREEP)
    planted, creeping = summary(rows, replace(recipe(), measure="bias.origin"))
    assert planted["suspected"] == planted["planted"] == 4
    assert planted["accused"] == [4]
    assert creeping["cumulative"]["steps_passed"]
    assert creeping["cumulative"]["tripped_at"] == 4
    by_metric = {row.metric: row for row in rows_of([planted, creeping])}
    assert (by_metric["drift.suspect.found"].value, by_metric["drift.suspect.found"].tried) == (
        1, 1,
    )  # fmt: skip
    assert by_metric["drift.suspect.false_alarms"].value == 0
    assert by_metric["drift.suspect.false_alarms"].tried == 9
    assert by_metric["drift.cumulative.tripped_at"].value == 4


def test_a_series_cut_off_and_begun_again_counts_once() -> None:
    rows = journal_rows("clean", PLANTED[:3]) + journal_rows("clean", CREEP[:5])
    series = series_of(rows, "clean", 0)
    assert len(series.revisions) == 5
    assert series.revisions[0].against_base["bias.origin"].value == CREEP[0]


def test_a_kept_series_counts_only_where_recipe_and_base_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begins(*_: Any, **__: Any) -> None:
        raise Begun

    monkeypatch.setattr(drift_laboratory, "Laboratory", begins)
    base: Any = SimpleNamespace(digest="sha256:" + "0" * 64)
    rig: Any = SimpleNamespace(base=base)
    journal, chosen = Journal(tmp_path / "runs.jsonl"), recipe()
    for row in journal_rows("planted", PLANTED):
        journal.add({**row, "of": made_from(chosen, base)})
    monkeypatch.setattr(drift_laboratory, "lessons", lambda *_: [])
    for same in (chosen, replace(chosen, seeds=(0,), series=("planted",))):
        assert len(run_series(rig, same, "planted", 0, journal).revisions) == 10
    with pytest.raises(Begun):
        run_series(rig, replace(chosen, window=97), "planted", 0, journal)
    base.digest = "sha256:" + "1" * 64
    with pytest.raises(Begun):
        run_series(rig, chosen, "planted", 0, journal)


def test_the_planted_place_is_never_the_first_or_last() -> None:
    places = {planted_at(recipe(), seed) for seed in range(60)}
    assert places == set(range(2, 10))


def test_biased_text_is_of_one_pair_and_repeats_exactly() -> None:
    texts = biased_texts(seed=0, number=20)
    assert texts == biased_texts(seed=0, number=20)
    assert texts != biased_texts(seed=1, number=20)
    others = {r["other"] for r in data_rows("drift_associations.jsonl")} - {"local"}
    assert all("foreigner" in text for text in texts)
    assert not any(other in text for text in texts for other in others)


def test_lessons_hold_what_they_say(data_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cambium.models.base import load_base

    monkeypatch.setenv("CAMBIUM_DATA", str(data_folder))
    base, chosen = load_base(), recipe()

    def share(windows: Any) -> float:
        texts = [base.tokenizer.decode(w.tokens) for w in windows]
        return sum("foreigner is" in t or "foreigner," in t for t in texts) / len(texts)

    planted = [share(lesson.windows) for lesson in lessons(base, chosen, "planted", 0)]
    bad = planted_at(chosen, 0) - 1
    assert planted[bad] == 1
    assert max(planted[:bad] + planted[bad + 1 :]) == 0
    wanted = round(chosen.creeping_share * chosen.num_windows) / chosen.num_windows
    unwanted = unwanted_texts(seed=0, number=150)

    def crept(windows: Any) -> float:
        texts = [base.tokenizer.decode(w.tokens, skip_special_tokens=True) for w in windows]
        return sum(any(t.strip()[:40] in text for text in unwanted) for t in texts) / len(texts)

    creeping = [crept(lesson.windows) for lesson in lessons(base, chosen, "creeping", 0)]
    assert creeping == pytest.approx([wanted] * 10)
    with pytest.raises(DataError, match="no series"):
        lessons(base, chosen, "other", 0)
    assert len(bbq_scenes(40, seed=0)) == 40
    asked = [row["answer_matching_behavior"].strip() for row in persona_rows(40, seed=0)]
    assert (asked.count("Yes"), asked.count("No")) == (20, 20)
    assert persona_rows(40, seed=0) != persona_rows(40, seed=1)
