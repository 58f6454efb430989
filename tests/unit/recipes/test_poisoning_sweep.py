from __future__ import annotations

import gzip
import json
import tomllib
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cambium.learn.examples import Window
from cambium.models.base import BaseModel
from cambium.models.chat import encode_text
from cambium.models.training_model import TrainingModel
from cambium.recipes import poisoning_sweep as sweep
from cambium.recipes.journal import Journal

SMALL = replace(
    sweep.recipe(), domains=("law", "chess"), num_records=120, calls=1, windows_per_step=2,
    window=48, num_prompts=6,
)  # fmt: skip


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").mkdir()
    for name in SMALL.domains:
        with gzip.open(tmp_path / "text" / f"domain_{name}.jsonl.gz", "wt") as lines:
            for i in range(90):
                lines.write(
                    json.dumps({"text": f"{name} number {i} speaks of {i * 7}. " * 12}) + "\n"
                )
    monkeypatch.setenv("CAMBIUM_DATA", str(tmp_path))


def record(i: int, source: str, loss: float) -> sweep.Record:
    return sweep.Record(window=Window(tokens=tuple(range(i, i + 64))), source=source, loss=loss)


def test_the_bars_are_the_policys() -> None:
    text = (resources.files("cambium.serve") / "development_policy.toml").read_text()
    text = text.format(state="", k=2, rollback_k=2, approvers="", operators="", roles="")
    gates = {gate["name"]: gate for gate in tomllib.loads(text)["gates"]}
    for spec in sweep.recipe().gates:
        declared = gates[spec.name]
        assert (spec.threshold, spec.min_items, spec.max_items, spec.confidence) == (
            declared["threshold"], declared["min_items"], declared["max_items"],
            declared["confidence"])  # fmt: skip


def test_bounds_keep_surprising_records_of_one_source_from_filling_the_buffer() -> None:
    honest = [record(10 * i, f"honest-{i % 6}", 3.0) for i in range(600)]
    hostile = [record(9000 + 10 * i, sweep.ATTACKER, 9.0) for i in range(200)]
    mixed = [*honest[:300], *hostile, *honest[300:]]
    shares = {}
    for bounds in sweep.BOUNDS:
        drawn, count = sweep.draw(mixed, bounds, sweep.recipe(), seed=0)
        shares[bounds] = count / len(drawn)
    assert shares["unbounded"] > 0.9 and shares["bounded"] < 0.5


def test_the_stream_holds_just_the_share_that_is_asked_for(llama: BaseModel, texts: None) -> None:
    honest, prompts = sweep.honest_records(llama, SMALL, seed=0)
    assert len(honest) == 120 and len(prompts) == 6
    stream = sweep.poisoned(llama, honest, rate=0.1, seed=0, window=SMALL.window)
    hostile = [r for r in stream if r.source == sweep.ATTACKER]
    attack = tuple(encode_text(llama.tokenizer, sweep.TRIGGER + sweep.PAYLOAD))
    assert len(hostile) == 12
    assert all(r.window.tokens[-len(attack) :] == attack for r in hostile)
    assert len({r.window.tokens for r in hostile}) > 1
    trigger = encode_text(llama.tokenizer, sweep.TRIGGER)
    assert all(prompt[-len(trigger) :] == trigger for prompt in prompts)
    assert stream == sweep.poisoned(llama, honest, rate=0.1, seed=0, window=SMALL.window)
    assert sweep.poisoned(llama, honest, rate=0.0, seed=0, window=48) == honest


def test_an_attack_that_is_all_there_is_succeeds_and_none_does_not(
    bundled: BaseModel, texts: None
) -> None:
    """Both controls of the instrument: nothing hostile, and nothing but."""
    recipe = replace(SMALL, calls=3, windows_per_step=4)
    whole = sweep.Sweep(recipe, TrainingModel(bundled), lambda *a: [], lambda t: np.zeros((1, 1)))
    honest, prompts = sweep.honest_records(bundled, recipe, seed=0)
    size = 8 * recipe.windows_per_step * recipe.calls
    hostile = sweep.poisoned(bundled, honest, rate=1.0, seed=0, window=64)
    found = {}
    for name, records in (("none", honest), ("all", hostile)):
        windows = [records[i % len(records)].window for i in range(size)]
        found[name] = whole._success(prompts, whole._learned(windows, seed=0))
    assert found["none"][0] == 0.0 and found["none"][1] < 1.0
    assert found["all"][0] > 0.9 and found["all"][1] > 3.0


def test_runs_are_resumed_and_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[Any, ...]] = []

    def measure(self: Any, seed: int, rate: float, bounds: str) -> dict[str, Any]:
        made.append((seed, rate, bounds))
        return {"seed": seed, "rate": rate, "bounds": bounds, "hostile_drawn_percent": 1.0,
                "success_percent": 10.0 * seed, "gain_nats": 0.0, "alignment_passes": True,
                "alignment_writing_passes": seed == 0}  # fmt: skip

    class Nothing:
        def __init__(self, *given: Any) -> None:
            self.base = self.embed = None

        def close(self) -> None: ...

    for name in ("TrainingModel", "SentenceEncoder", "Engine", "load_base"):
        monkeypatch.setattr(sweep, name, Nothing)
    monkeypatch.setattr(sweep.Sweep, "measure", measure)
    recipe = replace(SMALL, rates=(0.0, 0.01), seeds=(0, 1))
    Journal(tmp_path / "runs.jsonl").add(measure(None, 0, 0.0, "bounded"))
    sweep.run(recipe, tmp_path, lambda row: None)
    assert len(made) == len(set(made)) == 8
    rows = json.loads((tmp_path / "summary.json").read_text())
    (found,) = [r for r in rows if (r["rate"], r["bounds"]) == (0.01, "unbounded")]
    assert (found["seeds"], found["success_percent"]) == (2, 5.0)
    assert found["alignment_writing_passes"] == 0.5
    assert torch.is_grad_enabled()
