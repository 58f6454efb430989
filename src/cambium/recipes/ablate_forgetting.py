"""What each part of the objective is worth: every term on and off, on three real streams.

Run with `cambium pretrain ablate_forgetting`; every finished run is a line in `runs.jsonl`, and a
run that is there is not made again. The text stream is a shorter one than the benchmark's, so
that all of it fits an afternoon on two cores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from cambium.models.base import load_base
from cambium.models.process import prepare_process
from cambium.models.training_model import TrainingModel
from cambium.recipes import image_stream, intent_stream, text_stream
from cambium.recipes.ablation_plot import picture
from cambium.recipes.class_stream import ClassStreamConfig
from cambium.recipes.journal import Journal
from cambium.recipes.text_stream import TextStreamConfig

TEXT_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"replay": 0.0, "distill_weight": 0.0},
    "ewc": {"replay": 0.0, "distill_weight": 0.0, "ewc_strength": 1.0},
    "ewc x100": {"replay": 0.0, "distill_weight": 0.0, "ewc_strength": 100.0},
    "si": {"replay": 0.0, "distill_weight": 0.0, "si_strength": 1.0},
    "si x100": {"replay": 0.0, "distill_weight": 0.0, "si_strength": 100.0},
    "lwf": {"replay": 0.0, "distill_weight": 1.0},
    "replay": {"replay": 1.0, "distill_weight": 0.0},
    "replay + lwf": {"replay": 1.0, "distill_weight": 1.0},
    "all": {"replay": 1.0, "distill_weight": 1.0, "ewc_strength": 1.0, "si_strength": 1.0},
    "plain, no adapters": {"replay": 0.0, "adapters": False},
    "replay, no adapters": {"replay": 1.0, "adapters": False},
}
_NO_REPLAY = {"buffer_per_class": 0, "separate": False}
CLASS_VARIANTS: dict[str, dict[str, Any]] = {
    "plain": _NO_REPLAY,
    "ewc": {**_NO_REPLAY, "ewc_strength": 1.0},
    "ewc x100": {**_NO_REPLAY, "ewc_strength": 100.0},
    "si": {**_NO_REPLAY, "si_strength": 1.0},
    "si x100": {**_NO_REPLAY, "si_strength": 100.0},
    "lwf": {**_NO_REPLAY, "distill_weight": 1.0},
    "replay": {},
    "replay + lwf": {"distill_weight": 1.0},
    "all": {"distill_weight": 1.0, "ewc_strength": 1.0, "si_strength": 1.0},
    "plain, no adapters": {**_NO_REPLAY, "adapters": False},
    "replay, no adapters": {"adapters": False},
}


@dataclass(frozen=True, kw_only=True)
class AblationRecipe:
    """Every stream at the size it is run at here."""

    seeds: tuple[int, ...] = (0, 1, 2)
    text: TextStreamConfig = field(
        default_factory=lambda: TextStreamConfig(calls=2, windows_per_step=8, num_held=24)
    )
    intents: ClassStreamConfig = field(
        default_factory=lambda: ClassStreamConfig(classes_per_task=10, epochs=1)
    )
    images: ClassStreamConfig = field(
        default_factory=lambda: ClassStreamConfig(
            classes_per_task=2, epochs=3, lr=2e-3, buffer_per_class=50
        )
    )
    # All weights at the adapters' rate would destroy the base.
    full_lr: float = 1e-4


def recipe() -> AblationRecipe:
    """Returns the ablation as it is reported."""
    return AblationRecipe()


def run(recipe: AblationRecipe, out: Path, report: Callable[[dict[str, float]], None]) -> None:
    """Makes the runs missing in `out`, then `summary.json` and a picture of each stream."""
    prepare_process()
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "runs.jsonl")
    done = journal.rows
    model = TrainingModel(load_base())
    plan = list(_plan(recipe))
    for number, (stream, variant, seed) in enumerate(plan):
        if any((r["stream"], r["variant"], r["seed"]) == (stream, variant, seed) for r in done):
            continue
        found = _measure(recipe, stream, variant, seed, model)
        row = {"stream": stream, "variant": variant, "seed": seed, **found}
        journal.add(row)
        (out / "summary.json").write_text(json.dumps(summary(done), indent=1) + "\n")
        (out / f"{stream}.svg").write_text(picture(summary(done), stream), encoding="utf-8")
        loss = float(next(iter(found.values())))
        report({"share": (number + 1) / len(plan), "step": number + 1, "tokens": 0, "loss": loss})


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns mean, deviation and range over seeds, by stream, variant and measure."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["stream"], row["variant"]), []).append(row)
    found = []
    for (stream, variant), own in groups.items():
        for measure in (k for k in own[0] if k not in ("stream", "variant", "seed")):
            values = [float(r[measure]) for r in own]
            found.append(
                {
                    "stream": stream,
                    "variant": variant,
                    "measure": measure,
                    "mean": mean(values),
                    "deviation": stdev(values) if len(values) > 1 else None,
                    "low": min(values),
                    "high": max(values),
                    "seeds": len(values),
                }
            )
    return found


def _plan(recipe: AblationRecipe) -> Iterator[tuple[str, str, int]]:
    for seed in recipe.seeds:
        for stream, variants in (
            ("text", TEXT_VARIANTS),
            ("cifar10", CLASS_VARIANTS),
            ("clinc150", CLASS_VARIANTS),
        ):
            for variant in variants:
                yield stream, variant, seed


def _measure(
    recipe: AblationRecipe, stream: str, variant: str, seed: int, model: TrainingModel
) -> dict[str, float]:
    if stream == "text":
        config = replace(recipe.text, seed=seed, **TEXT_VARIANTS[variant])
        if not config.adapters:
            config = replace(config, lr=recipe.full_lr)
        found = text_stream.run(model, config, lambda _: None)
        return {"rise_percent": found.rise_percent(), "gain_percent": found.gain_percent(),
                "forward_transfer_percent": found.forward_transfer_percent()}  # fmt: skip
    changes = dict(CLASS_VARIANTS[variant])
    adapters = changes.pop("adapters", True)
    base, make = {
        "cifar10": (recipe.images, image_stream.stream),
        "clinc150": (recipe.intents, intent_stream.stream),
    }[stream]
    whole = replace(base, seed=seed, **changes)
    if not adapters:
        whole = replace(whole, lr=recipe.full_lr)
    result = make(whole, adapters=adapters).run(lambda _: None)
    own_task = result.own_task[-1]
    return {
        "average_accuracy": result.average(),
        "backward_transfer": result.backward_transfer(),
        "forgetting": result.forgetting(),
        "task_incremental_accuracy": sum(own_task) / len(own_task),
    }
