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
from functools import partial
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
from cambium.models.encoder import Encoder
from cambium.models.engine import Engine
from cambium.models.lora import Lora, from_bytes
from cambium.models.representing import represents
from cambium.serve.bank import stored_bytes
from cambium.serve.jobs import JobRunner
from cambium.serve.proposals import Proposals
from cambium.serve.publish import verified_revision

DRIFT_META = "drift:"
JOB = "drift"
MAX_DRAWN = 24
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MergeStep:
    """One merge of the line: its revision, and the domain's entry before and after."""

    revision: Revision
    domain: str
    before: BankEntry | None
    after: BankEntry


@dataclass(frozen=True, kw_only=True)
class DriftTracker:
    """Measures every merge of a state once, in order, and keeps what was read."""

    proposals: Proposals
    jobs: JobRunner
    engine: Engine
    encoder: Encoder
    num_replay: int
    is_on: bool
    _known: Known = field(default_factory=lambda: {})
    _failed: dict[int, str] = field(default_factory=lambda: {})  # by revision

    def follow(self) -> None:
        """Queues the measuring of merges that were not measured yet."""
        if self.is_on and any(self._kept(step) is None for step in self._line()):
            self.jobs.submit(JOB, self._run)

    def report(self, may_see: Callable[[str], bool]) -> dict[str, Any]:
        """Returns the series of the domains that the caller may see, and who stands out in it."""
        line = [step for step in self._line() if may_see(step.domain)]
        kept = [self._kept(step) for step in line]
        series = DriftSeries(revisions=tuple(drift for drift in kept if drift is not None))
        missing = [s.revision.number for s, drift in zip(line, kept, strict=True) if drift is None]
        return {
            "available": self.is_on,
            "series": series.to_json(),
            "pending": [n for n in missing if self.is_on and n not in self._failed],
            "failed": {str(n): self._failed[n] for n in missing if n in self._failed},
            "suspect": suspicion_json(suspect(series)),
        }

    def drawn(self, may_see: Callable[[str], bool]) -> str:
        """Returns the newest merges as a picture, SVG."""
        kept = [self._kept(step) for step in self._line() if may_see(step.domain)]
        series = DriftSeries(revisions=tuple(drift for drift in kept if drift is not None))
        newest = DriftSeries(revisions=series.revisions[-MAX_DRAWN:])
        return picture(newest, {}, suspect(series))

    def _run(self, stop: threading.Event) -> None:
        for step in self._line():
            if stop.is_set():
                return
            if self._kept(step) is not None or step.revision.number in self._failed:
                continue
            try:
                self._keep(step, self._measured(step, stop))
            except CambiumError as error:
                if stop.is_set():
                    return  # killed or closing: it is measured when the server is up again
                self._failed[step.revision.number] = error.one_line()
                _log.warning("no drift of %d: %s", step.revision.number, error.one_line())

    def _measured(self, step: MergeStep, stop: threading.Event) -> RevisionDrift:
        before, after = (self._lora(entry) for entry in (step.before, step.after))
        arm = partial(self._arm, stop)
        merge = Merge(
            revision=step.revision.number,
            base=arm("base", None, self.engine.base.digest),
            parent=arm(
                "parent",
                before,
                step.before.adapter.digest if step.before else self.engine.base.digest,
            ),
            now=arm("now", after, step.after.adapter.digest, **self._rows(step)),
            label=step.domain,
        )
        drift = measure_drift(merge, inputs=self._inputs, known=self._known)
        # Of what was observed only the base is asked for again for certain, and the newest.
        wanted = {self.engine.base.digest, step.after.adapter.digest}
        for key in [key for key in self._known if key[0] not in wanted]:
            del self._known[key]
        return drift

    @property
    def _inputs(self) -> DriftInputs:
        return DriftInputs(embed=self.encoder.embed)

    def _arm(
        self,
        stop: threading.Event,
        name: str,
        lora: Lora | None,
        digest: str,
        **rows: np.ndarray,
    ) -> Arm:
        base, adapters = self.engine.base, (lora,) if lora else ()

        def choose(prompt: str) -> tuple[Lora, ...]:
            if stop.is_set():
                raise Stopped("the server is closing", mend="ask again when it is up")
            return adapters

        subject = LocalSubject(base, name=name, digest=digest, choose=choose, engine=self.engine)
        return Arm(subject=subject, represent=represents(base, adapters), **rows)

    def _lora(self, entry: BankEntry | None) -> Lora | None:
        if entry is None:
            return None
        with self.proposals.state.read() as tx:
            version = tx.get_version(entry.adapter.name, entry.adapter.digest)
        return from_bytes(stored_bytes(self.proposals.state, version), self.engine.base.sites)

    def _rows(self, step: MergeStep) -> dict[str, np.ndarray]:
        """Returns vectors of what consolidation replayed and of what had been fed, if enough."""
        approved = step.revision.proposal_digest
        made = (f for f in self.proposals.all() if f.proposal.proposal_digest == approved)
        filed = next(made, None)
        if filed is None or filed.anchors_blob is None:
            return {}
        blobs = self.proposals.state.blobs
        tokenizer = self.engine.base.tokenizer
        anchors = json.loads(blobs.get(filed.anchors_blob))[: self.num_replay]
        replayed = [tokenizer.decode(tokens, skip_special_tokens=True) for tokens in anchors]
        fed = [e["blob"] for e in filed.provenance["examples"] if not e["kept"]]
        streamed = [parse_example(json.loads(blobs.get(blob))).text for blob in fed]
        if min(len(replayed), len(streamed)) < MIN_ROWS:
            return {}
        embed = self.encoder.embed
        return {"replayed": embed(replayed), "streamed": embed(streamed)}

    def _line(self) -> list[MergeStep]:
        """Returns every merge, oldest first, each with the one domain that it changed."""
        with self.proposals.state.read() as tx:
            rows = tx.list_revisions()
        public = self.proposals.identity.key.public_key
        return merges([verified_revision(row, public) for row in rows])

    def _kept(self, step: MergeStep) -> RevisionDrift | None:
        with self.proposals.state.read() as tx:
            found = tx.get_meta(f"{DRIFT_META}{step.revision.digest}")
        drift = drift_from_json(json.loads(found)) if found else None
        return drift if drift is not None and drift.inputs == self._inputs.digest else None

    def _keep(self, step: MergeStep, drift: RevisionDrift) -> None:
        with self.proposals.state.transaction() as tx:
            self.proposals.kill.check()
            tx.set_meta(f"{DRIFT_META}{step.revision.digest}", value=json.dumps(drift.to_json()))


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
