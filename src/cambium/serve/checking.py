"""The job of an open proposal: consolidate and freeze it, then look until the gates decide."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import (
    CambiumError,
    ConsentMissing,
    DigestMismatch,
    IllegalTransition,
    Stopped,
)
from cambium.core.evidence import Measurement, Outcome, Verdict
from cambium.core.nouns import ProposalState
from cambium.evals.gates import GateContext
from cambium.learn.consolidate import ConsolidateConfig
from cambium.learn.examples import Example, parse_example
from cambium.lifecycle.evidence import evidence_root, is_void, look_statements
from cambium.lifecycle.gates import judge, used_items
from cambium.lifecycle.ledger import find_overdraft
from cambium.lifecycle.proposal import (
    FINAL,
    FROZEN,
    Broke,
    EvidenceVoid,
    Frozen,
    LookTaken,
    Proposal,
)
from cambium.lifecycle.situation import Situation
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.adapter_kinds import config_from
from cambium.models.anchors import Anchor, from_json
from cambium.models.breaking_off import check_going_on
from cambium.serve.bank import Bank
from cambium.serve.consolidation import Consolidator, Inputs, take_look
from cambium.serve.errors import BudgetExceeded, StorageFull
from cambium.serve.following import Following
from cambium.serve.jobs import AWAY
from cambium.serve.proposal_records import Filed, to_row
from cambium.serve.proposals import Proposals
from cambium.serve.publish import Published
from cambium.serve.spans import span
from cambium.serve.store.records import EvidenceRow, VersionRecord
from cambium.serve.store.transaction import Transaction
from cambium.trust.policy import Policy

ANCHORS_META = "anchors:"
_log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Progress:
    """What the job is doing: stage, share done, and the latest training loss."""

    stage: str = "waiting"
    share: float = 0.0
    loss: float | None = None


class Overtaken(Exception):
    """While the work ran, somebody decided the proposal, or its parent moved."""


class Checker:
    """Carries one proposal at a time through consolidation and its looks.

    The work takes minutes and holds no lock; its outcome is written as a decision, and only if
    the proposal still stands where it stood when the work began.
    """

    def __init__(
        self,
        proposals: Proposals,
        *,
        published: Published,
        consolidator: Consolidator,
        deciding: Following,
        count: Callable[[str, str], None],
    ) -> None:
        """Takes the parts of the server; `count` is told each gate's name and verdict."""
        self._proposals = proposals
        self._count = count
        self._published = published
        self._consolidator = consolidator
        self._deciding = deciding
        self._progress: dict[str, Progress] = {}

    def progress(self, proposal_id: str) -> Progress:
        """Returns how far the job of this proposal is."""
        return self._progress.get(proposal_id, Progress())

    def run(self, proposal_id: str) -> None:
        """Takes a proposal as far as it goes without people; failures end it as `failed`.

        A full disk decides nothing: the proposal stays as it is until the next start. Nor does a
        database that is away: the job is tried again.
        """
        try:
            while self._carry_on(proposal_id):
                pass
        except Stopped:
            return
        except AWAY:
            raise
        except StorageFull as error:
            _log.warning("proposal %s waits for the next start: %s", proposal_id, error.one_line())
        except CambiumError as error:
            self._fail(proposal_id, error.one_line())
        except Exception as error:
            self._fail(proposal_id, f"{type(error).__name__}: {error}")
            raise
        finally:
            self._progress.pop(proposal_id, None)

    def one_look(self, proposal_id: str) -> None:
        """Takes one more look of a proposal whose gates have spoken before.

        Raises:
            IllegalTransition: it was decided, or looked at by somebody else, meanwhile.
            Stopped: it was broken off.
        """
        try:
            self._look(*self.as_it_stands(proposal_id))
        except Overtaken as error:
            raise IllegalTransition(
                f"proposal {proposal_id} has changed meanwhile",
                mend="look at the proposal as it is now",
            ) from error
        finally:
            self._progress.pop(proposal_id, None)

    def _carry_on(self, proposal_id: str) -> bool:
        """Takes the proposal one stage further; returns whether there is more to do."""
        check_going_on()
        filed, bank = self.as_it_stands(proposal_id)
        try:
            if filed.proposal.state is ProposalState.CONSOLIDATING:
                self._consolidate(filed, bank)
                return True
            if filed.proposal.state is ProposalState.CHECKING:
                return self._look(filed, bank)
            if filed.proposal.state in FROZEN:
                return self._with_counting_looks(filed, bank) is not filed
        except Overtaken:
            return True
        return False

    def as_it_stands(self, proposal_id: str) -> tuple[Filed, Bank]:
        """Returns a proposal and the bank that is served, of one moment."""
        with self._deciding:  # a release writes the new parent and serves the new bank as one
            return self._proposals.get(proposal_id), self._published.bank

    @contextmanager
    def _unless_overtaken(self, before: Filed) -> Iterator[tuple[Filed, Transaction]]:
        """Gives the proposal as it now is and a transaction to move it in."""
        with self._deciding.transaction() as tx:
            now = self._proposals.get(before.proposal.id)
            if _standing(now.proposal) != _standing(before.proposal):
                raise Overtaken(before.proposal.id)
            yield now, tx

    @span("consolidate")
    def _consolidate(self, filed: Filed, bank: Bank) -> None:
        # As when it was filed: that may have been long ago, and in another process.
        head = bank.revision
        self._proposals.need_attested(head, measurement=filed.proposal.source_digest)
        progress = self._progress.setdefault(filed.proposal.id, Progress())
        inputs = self._whole_inputs(filed)
        progress.stage, progress.share = "writing anchors", 0.0

        def on_share(share: float, loss: float | None = None) -> None:
            progress.share, progress.loss = share, loss

        anchors = self._anchors(filed, bank, on_share)
        progress.stage = "consolidating"
        frozen = self._consolidator.freeze(inputs, bank, anchors, on_share)
        config_json = frozen.data.config.decode()
        with self._unless_overtaken(filed) as (current, tx):
            tx.put_version(
                VersionRecord(
                    name=filed.proposal.adapter_name,
                    digest=frozen.data.digest,
                    config_json=config_json,
                    weights_blob=frozen.weights_blob,
                    created_at=self._proposals.now_ms(),
                )
            )
            current = replace(
                current,
                router_digest=frozen.router_digest,
                weights_blob=frozen.weights_blob,
                config_json=config_json,
                made_from={**frozen.made_from, "anchors": current.anchors_blob},
            )
            event = Frozen(candidate_digest=frozen.data.digest)
            self._proposals.move(current, event, tx, kind="proposal.frozen")

    @span("look")
    def _look(self, filed: Filed, bank: Bank) -> bool:
        """Takes one look; returns whether another could say more."""
        policy = self._proposals.need_policy()
        filed = self._with_counting_looks(filed, bank)
        proposal = filed.proposal
        self._check_ledger(proposal, policy)
        progress = self._progress.setdefault(proposal.id, Progress())
        progress.stage, progress.share = f"look {len(proposal.looks) + 1}", 0.0
        context = self.context(filed, bank)
        measured = take_look(context, policy.gates, len(proposal.looks))
        verdicts = tuple(
            judge(
                spec,
                found if isinstance(found := measured[spec.name], Measurement) else None,
                error=found if isinstance(found, str) else None,
                used=used_items(spec.name, proposal.looks),
            )
            for spec in policy.gates
        )
        errors = {v.gate: v.why for v in verdicts if v.outcome is Outcome.ERROR}
        with self._unless_overtaken(filed) as (current, tx):
            self._check_ledger(proposal, policy)  # others may have begun meanwhile
            situation = self._proposals.situation(bank.revision, measurement=bank.revision.digest)
            root = self._sign_evidence(proposal, verdicts, situation, tx)
            tx.clear_approvals(proposal.id)
            event = LookTaken(verdicts=verdicts, evidence_root=root)
            self._proposals.move(replace(current, errors=errors), event, tx, kind="proposal.look")
        for verdict in verdicts:
            self._count(verdict.gate, str(verdict.outcome))
        # A gate that cannot be measured will not be measured better at once.
        return not errors.keys() - proposal.waived(policy.approvers.k)

    def _with_counting_looks(self, filed: Filed, bank: Bank) -> Filed:
        """Returns the proposal without its looks, where what signed them counts no more."""
        if not filed.proposal.looks:
            return filed
        situation = self._proposals.situation(bank.revision, measurement=bank.revision.digest)
        with self._unless_overtaken(filed) as (current, tx):
            if not is_void(self._proposals.evidence(current.proposal, tx), situation):
                return filed
            tx.clear_approvals(filed.proposal.id)
            anew = replace(current, errors={})
            return self._proposals.move(anew, EvidenceVoid(), tx, kind="proposal.evidence_void")

    def _check_ledger(self, proposal: Proposal, policy: Policy) -> None:
        """Refuses to begin looks that this release line can no longer pay for."""
        if proposal.looks:
            return
        if overdraft := find_overdraft(self._proposals.counted(), policy):
            raise BudgetExceeded(overdraft, mend="see `ledger` of GET /proposals/{id}")

    def _sign_evidence(
        self, proposal: Proposal, verdicts: Sequence[Verdict], situation: Situation, tx: Transaction
    ) -> str:
        envelopes = self._proposals.evidence(proposal, tx)
        look = len(proposal.looks)
        statements = look_statements(proposal, verdicts, look=look, policy=situation.policy)
        for verdict, statement in zip(verdicts, statements, strict=True):
            envelope = self._proposals.identity.record(statement, situation, tx)
            envelopes.append(envelope)
            tx.add_evidence(
                EvidenceRow(
                    digest=digest_json(envelope),
                    proposal=proposal.id,
                    look=look,
                    gate=verdict.gate,
                    envelope=envelope,
                    at=self._proposals.now_ms(),
                )
            )
        return evidence_root(envelopes)

    def derive_again(self, filed: Filed, bank: Bank) -> AdapterBytes:
        """Returns a candidate's bytes, consolidated once more from what it was made from.

        Args:
            bank: of the revision that it was made on.
        """
        made: dict[str, Any] = filed.made_from or {}
        anchors = from_json(self._proposals.state.blobs.get(made["anchors"]))
        consolidator = replace(
            self._consolidator,
            config=ConsolidateConfig(**made["config"]),
            num_replay=made["num_replay"],
        )
        return consolidator.derive(self._whole_inputs(filed), bank, anchors)

    def context(self, filed: Filed, bank: Bank) -> GateContext:
        """Returns what measures a frozen candidate, its bytes verified as they are loaded.

        Raises:
            DigestMismatch: the stored bytes are not the candidate's.
        """
        anchors = self._anchors(filed, bank, lambda share: None)
        return self._consolidator.measure(
            self._whole_inputs(filed),
            bank,
            anchors,
            self.candidate_bytes(filed),
            max_relative_change=self._proposals.need_policy().learning.max_relative_change,
        )

    def candidate_bytes(self, filed: Filed) -> AdapterBytes:
        """Returns the two files of a frozen candidate, verified.

        Raises:
            DigestMismatch: the stored bytes are not the candidate's.
        """
        data = AdapterBytes(
            config=(filed.config_json or "").encode(),
            weights=self._proposals.state.blobs.get(filed.weights_blob or ""),
        )
        if data.digest != filed.proposal.candidate_digest:
            raise DigestMismatch(f"the stored candidate hashes to {data.digest}",
                                 mend="restore the state from a backup")  # fmt: skip
        return data

    def _anchors(self, filed: Filed, bank: Bank, progress: Callable[[float], None]) -> list[Anchor]:
        """Returns the parent's own texts, written once for each revision.

        The proposal names the blob from the start: a sweep leaves alone what a proposal names.
        """
        key = f"{ANCHORS_META}{bank.revision.digest}"
        with self._proposals.state.read() as tx:
            stored = tx.get_meta(key)
        anchors, blob = self._consolidator.anchors(bank, stored, progress)
        if blob != stored or blob != filed.anchors_blob:
            with self._unless_overtaken(filed) as (current, tx):
                tx.set_meta(key, value=blob)
                named = replace(current, anchors_blob=blob)
                tx.put_proposal(to_row(named, at=self._proposals.now_ms()))
        return anchors

    def inputs(self, filed: Filed) -> Inputs:
        """Returns what a proposal is made from and measured on, as far as consent still stands."""
        proposal, fed = filed.proposal, self._standing(filed)
        others: list[Example] = []
        for other in self._proposals.in_state(ProposalState.MERGED):
            if other.proposal.domain != proposal.domain:
                others += self._read(e for e in self._standing(other) if e["kept"])
        trained = self._read(e for e in fed if not e["kept"])
        # The same text may come in another document, or in another domain's: it is no fresh item.
        learned = {e.accepted.digest for e in trained}
        return Inputs(
            config=config_from(filed.provenance),
            domain=proposal.domain,
            trained=trained,
            kept=[e for e in self._read(e for e in fed if e["kept"])
                  if e.accepted.digest not in learned],
            others=[e for e in others if e.accepted.digest not in learned],
            sources={e["digest"]: e["source"] for e in fed},
            seed=int(proposal.provenance_digest[7:15], 16),
        )  # fmt: skip

    def _whole_inputs(self, filed: Filed) -> Inputs:
        """Returns what a proposal is made from, for whoever makes it or measures on it.

        Raises:
            ConsentMissing: consent was withdrawn for some of it.
        """
        if len(self._standing(filed)) < len(filed.provenance["examples"]):
            raise ConsentMissing("consent was withdrawn for what the proposal is made of",
                                 mend="propose again from what is left")  # fmt: skip
        return self.inputs(filed)

    def _standing(self, filed: Filed) -> list[dict[str, Any]]:
        """Returns those of a proposal's examples for which consent was not withdrawn."""
        with self._proposals.state.read() as tx:
            withdrawn = tx.withdrawn(filed.proposal.adapter_name)
        return [e for e in filed.provenance["examples"] if e["digest"] not in withdrawn]

    def _read(self, examples: Iterable[dict[str, Any]]) -> list[Example]:
        blobs = self._proposals.state.blobs
        return [parse_example(json.loads(blobs.get(e["blob"]))) for e in examples]

    def _fail(self, proposal_id: str, why: str) -> None:
        with self._deciding.transaction() as tx:
            filed = self._proposals.get(proposal_id)
            if filed.proposal.state not in FINAL:
                self._proposals.move(filed, Broke(reason=why), tx, kind="proposal.failed")


def _standing(proposal: Proposal) -> tuple[object, ...]:
    """Returns what the work on a proposal relies on; approvals may come meanwhile."""
    decided = proposal.state in FINAL
    return (decided, proposal.parent_digest, proposal.candidate_digest, proposal.looks)
