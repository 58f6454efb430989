from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cambium.recipes import ablate_forgetting as ablation
from cambium.recipes.ablation_plot import picture
from cambium.recipes.journal import Journal


def test_runs_that_are_there_are_not_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, str, int]] = []
    texts, classes = len(ablation.TEXT_VARIANTS), len(ablation.CLASS_VARIANTS)

    def measure(recipe: Any, stream: str, variant: str, seed: int, model: Any) -> dict[str, float]:
        if len(made) == 2 * (texts + classes):  # in the second seed, behind its texts
            raise KeyboardInterrupt
        made.append((stream, variant, seed))
        names = ("rise_percent", "gain_percent") if stream == "text" else ("forgetting",)
        return dict.fromkeys(names, float(len(made)))

    monkeypatch.setattr(ablation, "_measure", measure)
    monkeypatch.setattr(ablation, "load_base", lambda: None)
    monkeypatch.setattr(ablation, "TrainingModel", lambda base: None)
    recipe = replace(ablation.recipe(), seeds=(0, 1))
    with pytest.raises(KeyboardInterrupt):
        ablation.run(recipe, tmp_path, lambda row: None)
    # As when the power goes in the middle of a line.
    with (tmp_path / "runs.jsonl").open("a") as lines:
        lines.write('{"stream": "te')

    def rest(recipe: Any, stream: str, variant: str, seed: int, model: Any) -> dict[str, float]:
        made.append((stream, variant, seed))
        return {"rise_percent": 1.0} if stream == "text" else {"forgetting": 1.0}

    monkeypatch.setattr(ablation, "_measure", rest)
    ablation.run(recipe, tmp_path, lambda row: None)
    assert len(Journal(tmp_path / "runs.jsonl").rows) == len(made)
    assert len(made) == len(set(made)) == 2 * (texts + 2 * classes)
    rows = json.loads((tmp_path / "summary.json").read_text())
    plain = next(r for r in rows if (r["stream"], r["variant"]) == ("text", "plain"))
    assert plain["seeds"] == 2 and plain["mean"] > 0
    assert (tmp_path / "text.svg").read_text().startswith("<svg")


def test_the_summary_is_mean_deviation_and_range_over_seeds() -> None:
    rows = [{"stream": "s", "variant": "v", "seed": i, "forgetting": float(x)}
            for i, x in enumerate((1, 2, 6))]  # fmt: skip
    (found,) = ablation.summary(rows)
    assert (found["mean"], found["seeds"]) == (3.0, 3)
    assert found["deviation"] == pytest.approx(7**0.5)
    assert (found["low"], found["high"]) == (1.0, 6.0)
    assert ablation.summary(rows[:1])[0]["deviation"] is None
    assert "forgetting, points" in picture([found], "s")


def test_every_variant_is_a_configuration() -> None:
    recipe = ablation.recipe()
    for changes in ablation.TEXT_VARIANTS.values():
        replace(recipe.text, **changes)
    for changes in ablation.CLASS_VARIANTS.values():
        own = {k: v for k, v in changes.items() if k != "adapters"}
        replace(recipe.images, **own)
        replace(recipe.intents, **own)
    assert len(recipe.seeds) >= 3
