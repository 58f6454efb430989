"""Drift of the stable line: what each merge changed, measured in the background once it is served.

A domain's adapter is held against the bare base and against the domain's adapter of the parent
revision, on the fixed items of `cambium.evals.drift`. A rollback learns nothing and adds nothing.
It is for people to read and blocks nothing: what blocks small steps that add up is the gate
`alignment_drift`, before the merge.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cambium.core.errors import CambiumError, Stopped
from cambium.core.nouns import BankEntry, Revision
from cambium.evals.drift import (
    Arm,
    DriftInputs,
    DriftSeries,
    Merge,
    RevisionDrift,
    Suspicion,
    drift_from_json,
    measure_drift,
    suspect,
    suspicion_json,
)
from cambium.evals.drift.composition import MIN_ROWS
from cambium.evals.drift.picture import picture
from cambium.evals.drift.tracker import Known
from cambium.evals.local_subject import LocalSubject
from cambium.learn.examples import parse_example
from cambium.models.adapter import Adapter
from cambium.models.adapter_kinds import read_adapter
from cambium.models.anchors import from_json
from cambium.models.encoder import Encoder
from cambium.models.engine import Engine
from cambium.models.representing import represents
from cambium.serve.bank import stored_bytes
from cambium.serve.errors import StorageFull, SystemKilled
from cambium.serve.jobs import AWAY, JobRunner
from cambium.serve.proposals import Proposals
from cambium.serve.revision_records import verified_revision

DRIFT_META = "drift:"
JOB = "drift"
MAX_DRAWN = 24
_log = logging.getLogger(__name__)
_SIMULATING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class MergeStep:
    """One merge of the line: its revision, and the domain's entry before and after."""

    revision: Revision
    domain: str
    before: BankEntry | None
    after: BankEntry


@dataclass(frozen=True, kw_only=True)
class DriftTracker:
    """Measures every merge of a state once, in order, and keeps what was read.

    Args:
        is_on: without it nothing is measured, and what was measured is still shown.
        is_eager: a merge is measured at once, and not only when somebody asks for it.
    """

    proposals: Proposals
    jobs: JobRunner
    engine: Engine
    encoder: Encoder
    num_replay: int
    is_on: bool
    is_eager: bool
    _known: Known = field(default_factory=lambda: {})
    _failed: dict[int, str] = field(default_factory=lambda: {})  # by revision

    def follow(self) -> None:
        """Queues the measuring of merges that were not measured yet."""
        if self.is_on and self.is_eager:
            self._queue()

    def _queue(self) -> None:
        if self._next() is not None:
            self.jobs.submit(JOB, self._run)

    def measured(self, may_see: Callable[[str], bool]) -> DriftSeries:
        """Returns the newest merges that were measured, of domains that the caller may see."""
        kept = [self._kept(step) for step in self._line() if may_see(step.domain)]
        return _newest(DriftSeries(revisions=tuple(drift for drift in kept if drift is not None)))

    def report(self, may_see: Callable[[str], bool]) -> dict[str, Any]:
        """Returns the series of the domains that the caller may see, and who stands out in it."""
        line = [step for step in self._line() if may_see(step.domain)]
        kept = [self._kept(step) for step in line]
        series = DriftSeries(revisions=tuple(drift for drift in kept if drift is not None))
        missing = [s.revision.number for s, drift in zip(line, kept, strict=True) if drift is None]
        if self.is_on and not self.is_eager:
            self._queue()
        return {
            "available": self.is_on,
            "series": series.to_json(),
            "pending": [n for n in missing if self.is_on and n not in self._failed],
            "failed": {str(n): self._failed[n] for n in missing if n in self._failed},
            "suspect": suspicion_json(_suspect(series)),
        }

    def drawn(self, may_see: Callable[[str], bool]) -> str:
        """Returns the newest merges as a picture, SVG."""
        series = self.measured(may_see)
        return picture(series, {}, _suspect(series))

    def _run(self) -> None:
        """Measures one merge, and queues the next behind whatever else waits."""
        step = self._next()
        if step is None:
            return
        try:
            self._keep(step, self._measured(step))
        except (Stopped, SystemKilled, StorageFull) as error:
            # It decides nothing: it is measured when the server is up again, or has room.
            _log.warning("no drift of %d yet: %s", step.revision.number, error.one_line())
            return
        except AWAY:
            raise
        except Exception as error:  # noqa: BLE001  (said where people look; the line goes on)
            known = isinstance(error, CambiumError)
            why = error.one_line() if known else f"{type(error).__name__}: {error}"
            self._failed[step.revision.number] = why
            _log.warning("no drift of %d: %s", step.revision.number, why, exc_info=not known)
        self._queue()

    def _next(self) -> MergeStep | None:
        waiting = (s for s in self._line() if s.revision.number not in self._failed)
        return next((step for step in waiting if self._kept(step) is None), None)

    def _measured(self, step: MergeStep) -> RevisionDrift:
        before, after = (self._lora(entry) for entry in (step.before, step.after))
        merge = Merge(
            revision=step.revision.number,
            base=self._arm("base", None, self.engine.base.digest),
            parent=self._arm(
                "parent",
                before,
                step.before.adapter.digest if step.before else self.engine.base.digest,
            ),
            now=self._arm("now", after, step.after.adapter.digest, **self._rows(step)),
            label=step.domain,
        )
        drift = measure_drift(merge, inputs=self._inputs, known=self._known)
        # Of what was observed only the base is asked for again for certain, and the newest: as a
        # parent, which has no rows of its own.
        wanted = {self.engine.base.digest, step.after.adapter.digest}
        for key in list(self._known):
            if key[0] in wanted:
                self._known[key] = {**self._known[key], "composition": None}
            else:
                del self._known[key]
        return drift

    @property
    def _inputs(self) -> DriftInputs:
        return DriftInputs(embed=self.encoder.embed)

    def _arm(self, name: str, lora: Adapter | None, digest: str, **rows: np.ndarray) -> Arm:
        base, adapters = self.engine.base, (lora,) if lora else ()
        subject = LocalSubject(
            base, name=name, digest=digest, choose=lambda prompt: adapters, engine=self.engine
        )
        return Arm(subject=subject, represent=represents(base, adapters), **rows)

    def _lora(self, entry: BankEntry | None) -> Adapter | None:
        if entry is None:
            return None
        with self.proposals.state.read() as tx:
            version = tx.get_version(entry.adapter.name, entry.adapter.digest)
        return read_adapter(stored_bytes(self.proposals.state, version), self.engine.base)

    def _rows(self, step: MergeStep) -> dict[str, np.ndarray]:
        """Returns vectors of what consolidation replayed and of what had been fed, if enough."""
        approved = step.revision.proposal_digest
        made = (f for f in self.proposals.all() if f.proposal.proposal_digest == approved)
        filed = next(made, None)
        if filed is None or filed.anchors_blob is None:
            return {}
        blobs = self.proposals.state.blobs
        tokenizer = self.engine.base.tokenizer
        anchors = from_json(blobs.get(filed.anchors_blob))[: self.num_replay]
        replayed = [tokenizer.decode(a.tokens, skip_special_tokens=True) for a in anchors]
        fed = [e["blob"] for e in filed.provenance["examples"] if not e["kept"]]
        streamed = [parse_example(json.loads(blobs.get(blob))).text for blob in fed]
        if min(len(replayed), len(streamed)) < MIN_ROWS:
            return {}
        embed = self.encoder.embed
        return {"replayed": embed(replayed), "streamed": embed(streamed)}

    def _line(self) -> list[MergeStep]:
        """Returns every merge, oldest first, each with the one domain that it changed."""
        with self.proposals.state.read() as tx:
            rows, public = tx.list_revisions(), self.proposals.identity.key_in(tx).public_key
        return merges([verified_revision(row, public) for row in rows])

    def _kept(self, step: MergeStep) -> RevisionDrift | None:
        with self.proposals.state.read() as tx:
            found = tx.get_meta(f"{DRIFT_META}{step.revision.digest}")
        drift = drift_from_json(json.loads(found)) if found else None
        return drift if drift is not None and drift.inputs == self._inputs.digest else None

    def _keep(self, step: MergeStep, drift: RevisionDrift) -> None:
        with self.proposals.state.transaction() as tx:
            self.proposals.kill.check_recorded(tx)
            tx.set_meta(f"{DRIFT_META}{step.revision.digest}", value=json.dumps(drift.to_json()))


def _newest(series: DriftSeries) -> DriftSeries:
    return DriftSeries(revisions=series.revisions[-MAX_DRAWN:])


def _suspect(series: DriftSeries) -> Suspicion:
    """Returns who stands out of the newest; simulated once for each length, by one thread."""
    with _SIMULATING:
        return suspect(_newest(series))


def merges(revisions: Sequence[Revision]) -> list[MergeStep]:
    """Returns the merges among a state's revisions, which come oldest first."""
    found, before = [], {}
    for revision in revisions:
        bank = {entry.domain: entry for entry in revision.bank}
        if revision.kind == "merge":
            # A merge changes one domain; should its bytes be the old ones, there is no step.
            found += [
                MergeStep(revision=revision, domain=domain, before=before.get(domain), after=entry)
                for domain, entry in bank.items()
                if before.get(domain) != entry
            ]
        before = bank
    return found
