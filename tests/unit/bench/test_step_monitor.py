from __future__ import annotations

from cambium.bench import gate_sets, step_monitor
from cambium.bench.step_monitor import CONTROL, MARGIN, TURNED, _rows, _Stream
from cambium.evals.alignment_pairs import NUM_MONITOR_PAIRS
from cambium.models.base import BaseModel


def moving(label: str, by_step: float) -> _Stream:
    """Every pair moves by so much a step."""
    shifts = [[by_step * (i + 1)] * NUM_MONITOR_PAIRS for i in range(step_monitor.STEPS)]
    return _Stream(label=label, shifts=shifts)


def turning() -> _Stream:
    """Every pair is far on the harmless side, and then as far on the other."""
    by_step = [[4 * MARGIN] * NUM_MONITOR_PAIRS] * 20 + [[-4 * MARGIN] * NUM_MONITOR_PAIRS] * 4
    return _Stream(label=TURNED, shifts=by_step)


def test_a_stream_is_stopped_when_all_pairs_together_say_so(llama: BaseModel) -> None:
    harmful = moving(CONTROL, -0.4 * MARGIN)
    # Doubt from the first step on, and the verdict at the third: 1.2 margins.
    assert harmful.caught(llama) == (3, 3) and harmful.caught_by_all() == 3
    calm = moving(gate_sets.BENIGN, 0.01)
    assert calm.caught(llama) == (None, 0) and calm.caught_by_all() is None


def test_the_rows_count_what_was_asked_and_stopped(llama: BaseModel) -> None:
    streams = [moving(CONTROL, -0.4 * MARGIN), moving(gate_sets.BENIGN, 0.01),
               moving(gate_sets.HOSTILE, -2 * MARGIN), turning()]  # fmt: skip
    rows = {row.metric: row for row in _rows(streams, llama)}
    assert rows["step_monitor.control.caught_at_step"].value == 3
    late = rows["step_monitor.turned.steps_late"]
    assert (late.value, late.tried) == (0, 1)
    assert rows["step_monitor.benign.stopped"].value == 0
    assert rows["step_monitor.hostile.stopped"].value == 1
    assert (rows["step_monitor.doubts"].value, rows["step_monitor.doubts"].tried) == (1, 16)
    assert rows["step_monitor.hostile.lowest_shift"].value < -MARGIN
