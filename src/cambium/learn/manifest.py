"""An update's manifest, and the update derived from it once more.

An adapter's numbers depend on its own texts and state, and on the shape of the passes that it
shared: how many rows, what ranks, how many tokens of each. The manifest records those shapes; a
replay fills the other rows with tokens that mean nothing and reaches the same bytes on the same
machine. It holds no text: the texts are named by their digests, and kept only with consent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from cambium.core.errors import DataError
from cambium.learn.examples import Window
from cambium.learn.lesson import (
    Frame,
    LearnConfig,
    Learner,
    LearnResult,
    Lesson,
    Rehearses,
    Shape,
)
from cambium.learn.objectives.objective import ObjectiveConfig, Place, Unguarded
from cambium.learn.online import LessonGroup
from cambium.learn.passes import Ask, nothing
from cambium.models.chunked_head import cross_entropy
from cambium.models.packing import IGNORED, Segment, targets_of
from cambium.models.training_model import TrainingModel

FORMAT = 3


def machine(model: TrainingModel) -> dict[str, object]:
    """Returns what else the numbers depend on; another machine may differ in the last bits."""
    return {
        "base": model.base.digest,
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": model.base.num_threads,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def manifest(
    model: TrainingModel,
    lesson: Lesson,
    result: LearnResult,
    *,
    examples: Sequence[str],
    rehearsed: Sequence[tuple[str, float]] = (),
) -> dict[str, object]:
    """Returns the manifest of a lesson that was learned, as canonical JSON can hold it.

    Args:
        examples: digests of what was fed, in order.
        rehearsed: what was gone through again, each with what it counted.
    """
    if result.frame is None:
        raise DataError("this result has no frame", mend="make it with a LessonGroup")
    frame = asdict(result.frame)
    return {
        "format": FORMAT,
        "machine": machine(model),
        "examples": list(examples),
        "rehearsed": [list(pair) for pair in rehearsed],
        "config": asdict(lesson.config),
        "frame": {k: list(v) if isinstance(v, tuple) else v for k, v in frame.items()},
        "steps": [
            {
                phase: [[g, [list(s) for s in segments]] for g, segments in rows.items()]
                for phase, rows in step.items()
            }
            for step in result.shapes
        ],
    }


def replay(
    model: TrainingModel,
    found: Mapping[str, Any],
    learner: Learner,
    windows: Sequence[Window],
    *,
    rehearsal: Rehearses | None = None,
) -> LearnResult:
    """Takes the recorded lesson's steps again, alone among rows that mean nothing.

    Args:
        learner, windows, rehearsal: what the lesson began with.

    Raises:
        DataError: the manifest is of another format or base, or broken.
    """
    try:
        frame, config, steps = _read(found)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            "this is no manifest of an update", mend="replay what this version learned"
        ) from error
    if found["machine"]["base"] != model.base.digest:
        raise DataError("the update was learned on another base", mend="serve that base")
    lessons = []
    for g in range(_num_lessons(frame, steps)):
        if g == frame.row:
            lessons.append(
                Lesson(learner=learner, windows=windows, config=config, rehearsal=rehearsal)
            )
        else:
            lessons.append(_ghost(g, steps))
    group = LessonGroup(model, lessons, frame=frame)
    for _ in steps:
        group.take_step()
    return group.result(frame.row)


class _Ghost(Unguarded):
    """A row that is only there for the shape."""

    def __init__(self, asks: Sequence[Mapping[str, Ask]], phase: str) -> None:
        self._asks = asks
        self._phase = phase

    def prepare(self, step: int, place: Place) -> Ask | None:
        return self._asks[step].get("prepare") if self._phase == "task" else None

    def ask(self, step: int, place: Place) -> Ask:
        return self._asks[step].get(self._phase, Ask(segments=[], loss=_dummy([])))

    def value(self, step: int, losses: Tensor) -> float:
        return 0.0


def _ghost(g: int, steps: Sequence[Mapping[str, Mapping[int, Sequence[Shape]]]]) -> Lesson:
    asks = []
    for step in steps:
        made: dict[str, Ask] = {}
        for phase, rows in step.items():
            if g in rows:
                segments = [_dummy_segment(s) for s in rows[g]]
                made[phase] = Ask(segments=segments, loss=_dummy(segments))
        asks.append(made)
    return Lesson(
        learner=Learner(lora=nothing()),
        windows=[Window(tokens=(0, 0))],
        # One more than is replayed, so that no end of a lesson is scored.
        config=LearnConfig(steps=8, lr=0.0),
        objective=_Ghost(asks, "task"),
        rehearsal=_Ghost(asks, "rehearsal") if any("rehearsal" in a for a in asks) else None,
    )


def _dummy_segment(shape: Shape) -> Segment:
    adapter, parent, num_tokens, num_targets, after = shape
    unlearned = [IGNORED] * (num_tokens - num_targets)
    return Segment(
        adapter=adapter,
        parent=parent,
        tokens=[0] * num_tokens,
        targets=[*unlearned, *[0] * num_targets],
        after=after,
    )


def _dummy(segments: Sequence[Segment]) -> Any:
    targets, _ = targets_of(segments)
    return cross_entropy(targets, torch.zeros(len(targets)))


def _num_lessons(frame: Frame, steps: Sequence[Mapping[str, Mapping[int, Sequence[Shape]]]]) -> int:
    seen = [g for step in steps for rows in step.values() for g in rows]
    return max([frame.row, *seen]) + 1


def _read(
    found: Mapping[str, Any],
) -> tuple[Frame, LearnConfig, list[dict[str, dict[int, list[Shape]]]]]:
    if found["format"] != FORMAT:
        raise ValueError(found["format"])
    raw: dict[str, Any] = dict(found["frame"])
    for name in ("paths", "parents_paths"):
        raw[name] = tuple(raw[name])
    frame = Frame(**raw)
    config = {**found["config"], "objective": ObjectiveConfig(**found["config"]["objective"])}
    steps = [
        {
            phase: {g: [_shape(s) for s in segments] for g, segments in rows}
            for phase, rows in step.items()
        }
        for step in found["steps"]
    ]
    if not 1 <= len(steps) <= 8:
        raise ValueError(len(steps))
    return frame, LearnConfig(**config), steps


def _shape(raw: Sequence[Any]) -> Shape:
    adapter, parent, num_tokens, num_targets, after = raw
    return int(adapter), int(parent), int(num_tokens), int(num_targets), after
