"""The tracker: every merged revision against the bare base and against its parent."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from cambium.core.errors import DataError
from cambium.evals.drift import bias, calibration, composition, concept, diversity, value
from cambium.evals.drift.reading import Arm, DriftInputs, Measure, Reading

# Each measure gives one or more readings, named `measure.part`.
MEASURES: Mapping[str, Measure] = {
    "concept": Measure(observe=concept.observe, compare=concept.compare),
    "value": Measure(observe=value.observe, compare=value.compare),
    "bias": Measure(observe=bias.observe, compare=bias.compare),
    "diversity": Measure(observe=diversity.observe, compare=diversity.compare),
    "calibration": Measure(observe=calibration.observe, compare=calibration.compare),
    "composition": Measure(observe=composition.observe, compare=composition.compare),
}

Observation = Mapping[str, Any]
Known = MutableMapping[tuple[str, str], Observation]


@dataclass(frozen=True, kw_only=True)
class Merge:
    """One merge to be looked at: its number and name, and the three models."""

    revision: int
    base: Arm
    parent: Arm
    now: Arm
    label: str = ""


@dataclass(frozen=True, kw_only=True)
class RevisionDrift:
    """One revision's readings.

    Args:
        digest: of the model it made; `parent` and `base` those it is held against.
        inputs: digest of what all were asked; readings compare only where it is the same.
        against_base, against_parent: by the readings' names, in the order of `MEASURES`.
        label: what people call it, such as the domain of a merge.
    """

    revision: int
    digest: str
    parent: str
    base: str
    inputs: str
    against_base: Mapping[str, Reading]
    against_parent: Mapping[str, Reading]
    label: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the drift as it stands in files and answers."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class DriftSeries:
    """Revisions of one base in the order of their merges; it only grows."""

    revisions: tuple[RevisionDrift, ...] = ()

    def appended(self, drift: RevisionDrift) -> DriftSeries:
        """Returns the series with one more revision.

        Raises:
            DataError: its number is not above the last, it has another base, or it was asked
                other things, so that its readings would not compare.
        """
        if self.revisions:
            last = self.revisions[-1]
            if drift.revision <= last.revision:
                raise DataError(f"revision {drift.revision} does not follow {last.revision}",
                                mend="append revisions in the order of their merges")  # fmt: skip
            if (drift.base, drift.inputs) != (last.base, last.inputs):
                raise DataError(
                    f"revision {drift.revision} was measured from another base or on other inputs",
                    mend="begin a new series, or measure with the series' own inputs",
                )
        return DriftSeries(revisions=(*self.revisions, drift))

    def measures(self) -> tuple[str, ...]:
        """Returns the names of all readings in the series, in the order of their first coming."""
        return tuple(dict.fromkeys(m for r in self.revisions for m in r.against_base))

    def to_json(self) -> list[dict[str, Any]]:
        """Returns the series as JSON can hold it."""
        return [drift.to_json() for drift in self.revisions]

    @staticmethod
    def from_json(found: list[dict[str, Any]]) -> DriftSeries:
        """Returns the series that `to_json` wrote.

        Raises:
            DataError: it is something else.
        """
        series = DriftSeries()
        for row in found:
            series = series.appended(drift_from_json(row))
        return series


def drift_from_json(row: Mapping[str, Any]) -> RevisionDrift:
    """Returns the drift of one revision that `to_json` wrote.

    Raises:
        DataError: it is something else.
    """
    names = {f.name for f in fields(RevisionDrift)}
    try:
        own = {name: row[name] for name in names}
        for side in ("against_base", "against_parent"):
            own[side] = {name: Reading(**reading) for name, reading in row[side].items()}
        return RevisionDrift(**own)
    except (AttributeError, KeyError, TypeError) as error:
        raise DataError(f"this is no drift of a revision: {error!r}",
                        mend="give what the tracker wrote") from error  # fmt: skip


def measure_drift(
    merge: Merge, *, inputs: DriftInputs, known: Known | None = None
) -> RevisionDrift:
    """Returns what changed from the bare base and from the parent to this revision.

    Every reading is paired: the same items in each arm, with clustered intervals over them.

    Args:
        known: observations by subject and inputs, read and written; so a line of revisions
            observes the base once, and each revision once.

    Raises:
        GateBroken: a model whose numbers are not finite.
        DataError: items that a model's context cannot hold.
    """
    kept: Known = {} if known is None else known
    first, second, third = (
        observe(arm, inputs, kept) for arm in (merge.base, merge.parent, merge.now)
    )
    return RevisionDrift(
        revision=merge.revision,
        digest=merge.now.subject.digest,
        parent=merge.parent.subject.digest,
        base=merge.base.subject.digest,
        inputs=inputs.digest,
        against_base=_readings(first, third),
        against_parent=_readings(second, third),
        label=merge.label,
    )


def observe(arm: Arm, inputs: DriftInputs, known: Known) -> Observation:
    """Returns what every measure sees of one arm, from `known` where it was seen before."""
    key = (arm.subject.digest, inputs.digest)
    if key not in known:
        known[key] = {name: one.observe(arm, inputs) for name, one in MEASURES.items()}
    return known[key]


def _readings(before: Observation, after: Observation) -> dict[str, Reading]:
    found = [
        reading
        for name, measure in MEASURES.items()
        for reading in measure.compare(before[name], after[name])
    ]
    return {reading.measure: reading for reading in found}
