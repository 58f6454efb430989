"""Where proposals are kept: read, moved by `lifecycle`, and logged in the same transaction."""

from __future__ import annotations

import base64
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from cambium.core.errors import AttestationRefused
from cambium.core.nouns import ProposalState, Revision
from cambium.lifecycle.blockers import find_attestation_refusal
from cambium.lifecycle.proposal import FINAL, Event, Proposal, advance
from cambium.lifecycle.situation import Situation
from cambium.serve.identity import Identity
from cambium.serve.kill_switch import KillSwitch
from cambium.serve.log_head import sign_newest
from cambium.serve.proposal_records import Filed, from_row, to_row
from cambium.serve.quarantined import quarantined
from cambium.serve.rules import Rules
from cambium.serve.store.records import EvidenceRow, ProposalHead, ProposalRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.policy import Policy

# Records are long, and lists read the same ones again and again.
MAX_VERIFIED = 64
UNDECIDED = (ProposalState.CONSOLIDATING, ProposalState.CHECKING)


@dataclass(frozen=True, kw_only=True)
class Proposals:
    """The filed proposals of one state, under the policy in force."""

    state: State
    identity: Identity
    rules: Rules
    kill: KillSwitch
    now_ms: Callable[[], int]
    # By id, without what grows: what never changes of a proposal, and all that the ledger counts
    # of a decided one. Records are long, and a list of a thousand must not read them all.
    _known: dict[str, Proposal] = field(default_factory=lambda: {})
    # Records by id: one whose row reads as it did when it was verified is not hashed again.
    _verified: OrderedDict[str, tuple[ProposalRow, Filed]] = field(default_factory=OrderedDict)

    def need_policy(self) -> Policy:
        """Returns the signed policy.

        Raises:
            PolicyMissing: this state has none, so nothing can be held to a bar.
        """
        return self.rules.need()

    def situation(self, head: Revision, *, measurement: str) -> Situation:
        """Returns what holds now, with a fresh attestation where one can be made.

        Args:
            head: the revision that is served.
            measurement: digest of what is to be attested.

        Raises:
            PolicyMissing: this state has no policy.
        """
        with self.state.read() as tx:
            holding = Situation(
                policy=self.need_policy(),
                state_version=tx.state_version(),
                now=self.now_ms() // 1000,
                revoked_keys=frozenset(
                    k.key_id for k in tx.list_keys() if k.revoked_at is not None
                ),
                head=head,
                server=self.identity.key_in(tx).public_key,
                attestation=None,
                quarantined=quarantined(tx),
                killed=self.kill.killed is not None,
            )
            if holding.killed:
                return holding
            try:
                result = self.identity.attest(holding, tx, measurement=measurement)
            except AttestationRefused:
                return holding  # lifecycle says so among what blocks
        return replace(holding, attestation=result)

    def need_attested(self, head: Revision, *, measurement: str) -> None:
        """Returns where what is to be done is attested as the policy in force demands.

        Raises:
            SystemKilled: nothing is attested any more.
            PolicyMissing, AttestationRefused: the policy does not accept it.
        """
        self.kill.check()
        if why := find_attestation_refusal(self.situation(head, measurement=measurement)):
            raise AttestationRefused(f"attestation refused: {why}",
                                     mend="attest with what the policy accepts")  # fmt: skip

    def get(self, proposal_id: str) -> Filed:
        """Returns a filed proposal.

        Raises:
            ProposalNotFound: no proposal has this id.
        """
        with self.state.read() as tx:
            return self._from_row(tx.get_proposal(proposal_id))

    def all(self) -> list[Filed]:
        """Returns every proposal, oldest first."""
        with self.state.read() as tx:
            return [self._from_row(row) for row in tx.list_proposals()]

    def several(self, ids: Sequence[str]) -> list[Filed]:
        """Returns the proposals of these ids, in this order."""
        with self.state.read() as tx:
            return [self._from_row(row) for row in tx.proposals_of(ids)]

    def in_state(self, *states: ProposalState) -> list[Filed]:
        """Returns every proposal that is in one of these states, oldest first."""
        with self.state.read() as tx:
            heads = tx.proposal_heads()
            rows = tx.proposals_of([head.id for head in heads if head.state in states])
        return [self._from_row(row) for row in rows]

    def _from_row(self, row: ProposalRow) -> Filed:
        """Returns what a row says, verified; see `from_row`."""
        known = self._verified.get(row.id)
        if known is not None and known[0] == row:
            return known[1]
        filed = from_row(row)
        self._verified[row.id] = (row, filed)
        while len(self._verified) > MAX_VERIFIED:
            self._verified.popitem(last=False)
        return filed

    def heads(self) -> list[tuple[ProposalHead, str]]:
        """Returns what lists are made of, oldest first: each head, and its adapter's name."""
        with self.state.read() as tx:
            heads = tx.proposal_heads()
        self._know([head.id for head in heads if head.id not in self._known])
        return [(head, self._known[head.id].adapter_name) for head in heads]

    def counted(self) -> list[Proposal]:
        """Returns every proposal as far as the ledger counts it; a decided one is read once."""
        with self.state.read() as tx:
            heads = tx.proposal_heads()
        known = self._known
        self._know([
            head.id for head in heads if head.id not in known or known[head.id].state not in FINAL
        ])  # fmt: skip
        return [known[head.id] for head in heads]

    def _know(self, ids: Sequence[str]) -> None:
        for filed in self.several(ids):
            proposal = filed.proposal
            counts = ((),) if proposal.looks else ()
            self._known[proposal.id] = replace(proposal, looks=counts, approvals=(), waivers=())

    def move(
        self,
        filed: Filed,
        event: Event,
        tx: Transaction,
        *,
        kind: str,
        said: dict[str, object] | None = None,
    ) -> Filed:
        """Advances a proposal and writes it with its log entry, which also holds what was `said`.

        Raises:
            IllegalTransition: its state does not allow the event.
        """
        moved = filed.with_proposal(advance(filed.proposal, event, policy=self.need_policy()))
        self.write(moved, tx, kind=kind, said=said)
        return moved

    def end(self, filed: Filed, event: Event, tx: Transaction) -> str:
        """Closes a proposal whether or not the system is killed; returns its id."""
        moved = filed.with_proposal(advance(filed.proposal, event, policy=self.need_policy()))
        tx.put_proposal(to_row(moved, at=self.now_ms()))
        return filed.proposal.id

    def write(
        self, filed: Filed, tx: Transaction, *, kind: str, said: dict[str, object] | None = None
    ) -> None:
        """Writes a proposal as it is with a log entry that names it by its digests."""
        now = self.now_ms()
        proposal = filed.proposal
        tx.put_proposal(to_row(filed, at=now))
        body: dict[str, object] = {
            "proposal": proposal.id,
            "state": str(proposal.state),
            "candidate": proposal.candidate_digest,
            "proposal_digest": proposal.proposal_digest,
            "reason": proposal.reason,
            **(said or {}),
        }
        self.log(tx, kind=kind, body=body)

    def log(self, tx: Transaction, *, kind: str, body: dict[str, object]) -> None:
        """Appends to the audit log and signs its checkpoint, in the caller's transaction.

        Raises:
            SystemKilled: nothing that would be logged here may happen.
        """
        self.kill.check_recorded(tx)
        tx.audit(kind, body=body, at=self.now_ms())
        sign_newest(tx, self.identity.key_in(tx))

    def evidence(self, proposal: Proposal, tx: Transaction) -> list[dict[str, object]]:
        """Returns the envelopes of the proposal's looks against its present parent, in order.

        Looks against an earlier parent stay stored, but speak of another comparison. Nothing is
        verified here: `lifecycle.evidence.check_evidence` does that.
        """
        return [row.envelope for row in self.evidence_rows(proposal, tx)]

    def evidence_rows(self, proposal: Proposal, tx: Transaction) -> list[EvidenceRow]:
        """Returns the rows of `evidence`; where looks began anew, the newest of each."""
        order = {spec.name: i for i, spec in enumerate(self.need_policy().gates)}
        rows = sorted(tx.list_evidence(proposal.id), key=lambda r: r.at)
        newest = {
            (row.look, order.get(row.gate, -1)): row
            for row in rows
            if row.look < len(proposal.looks) and _parent_of(row.envelope) == proposal.parent_digest
        }
        return [newest[place] for place in sorted(newest)]


def _parent_of(envelope: dict[str, object]) -> object:
    statement = json.loads(base64.b64decode(str(envelope["payload"])))
    return statement["predicate"]["parent"]["digest"]
