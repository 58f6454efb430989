"""What people do with proposals: make one, look again, approve, reject."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import (
    ConsentMissing,
    DataError,
    DigestMismatch,
    IllegalTransition,
)
from cambium.core.nouns import Act, Action, Signature, tenant_of
from cambium.evals.gates import documents_needed
from cambium.learn.examples import kept_for_gates
from cambium.lifecycle.blockers import blockers
from cambium.lifecycle.evidence import is_void
from cambium.lifecycle.ledger import series_cost, spent
from cambium.lifecycle.proposal import FROZEN, Approved, Proposal, Rejected, Waived, advance
from cambium.lifecycle.proposal import standings as gate_standings
from cambium.lifecycle.situation import Situation
from cambium.models.adapter_kinds import KINDS, AdapterConfig, config_record, kind_of
from cambium.serve.approvers import need_approver
from cambium.serve.behaviour import Describer
from cambium.serve.bounds import check_domain
from cambium.serve.checking import Checker
from cambium.serve.consolidation import check_kind
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.evaluating import EvidenceChecks
from cambium.serve.jobs import JobRunner
from cambium.serve.live_adapter import LiveAdapter
from cambium.serve.proposal_records import Filed
from cambium.serve.proposals import UNDECIDED, Proposals
from cambium.serve.publish import Published
from cambium.serve.situation import situation_now
from cambium.serve.store.records import ApprovalRow, ExampleRecord, LearnRecord
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import check_act, signature_to_json
from cambium.trust.policy import Policy
from cambium.trust.quorum import Approver


class Review:
    """The desk where proposals are filed and judged by people.

    Acts on one proposal do not overlap, in whichever process of the state: each is read, checked
    and written in one transaction of the state's one writer.
    """

    def __init__(
        self,
        proposals: Proposals,
        *,
        published: Published,
        adapters: EphemeralAdapters,
        jobs: JobRunner,
        checker: Checker,
        describer: Describer,
    ) -> None:
        self.proposals = proposals
        self.checker = checker
        self._published = published
        self._adapters = adapters
        self._jobs = jobs
        self._deciding = describer.deciding
        self.describer = describer
        self._spent: tuple[tuple[int, str], float] | None = None
        self._evidence = EvidenceChecks(proposals)

    def propose(self, adapter: str, domain: str, kind: str | None = None) -> Filed:
        """Files a proposal to consolidate what an adapter learned into a domain.

        Args:
            kind: of the candidate; without one, that of the adapter which serves the domain, or
                LoRA where none does.

        Raises:
            ConsentMissing: nothing was fed with consent.
            PolicyMissing, DomainNotFound, AdapterNotFound, AdapterExpired, AdapterQuarantined,
            AttestationRefused, AdapterKindRefused: nothing is filed.
        """
        policy = self.proposals.need_policy()
        check_domain(domain, policy=policy, tenant=tenant_of(adapter))
        live = self._adapters.get_live(adapter)
        record = live.record
        if record.domain not in (None, domain):
            raise DataError(f"adapter {adapter!r} was made for domain {record.domain!r}",
                            mend="propose it into that domain")  # fmt: skip
        with self.proposals.state.read() as tx:
            examples = tx.list_examples(adapter)
            steps = tx.list_learn_steps(adapter)
        if not examples:
            raise ConsentMissing(
                f"nothing was fed to {adapter!r} with consent, so nothing may be kept",
                mend="send examples with consent, then propose",
            )
        config = self._config(kind, domain, live)
        now = self.proposals.now_ms()
        self.proposals.need_attested(self._published.bank.revision, measurement=record.digest)
        kept = kept_for_gates([e.digest for e in examples], at_least=documents_needed(policy.gates))
        provenance = _provenance(examples, steps, config, kept)
        with self._deciding.transaction() as tx:
            if self.proposals.need_policy() != policy:
                raise IllegalTransition("the policy has changed meanwhile", mend="propose it again")
            head = self._published.bank.revision  # no release of any process can pass it by
            proposal = Proposal(
                id=f"p-{secrets.token_hex(6)}",
                adapter_name=adapter,
                source_digest=record.digest,
                domain=domain,
                parent_revision=head.number,
                parent_digest=head.digest,
                policy_digest=policy.digest,
                provenance_digest=digest_json(provenance),
            )
            filed = Filed(proposal=proposal, provenance=provenance, created_at=now)
            self.proposals.write(filed, tx, kind="proposal.filed")
        self.enqueue(proposal.id)
        return filed

    def _config(self, kind: str | None, domain: str, live: LiveAdapter) -> AdapterConfig:
        """Returns what the candidate shall be."""
        bank = self._published.bank
        kind = kind or bank.kind(domain) or "lora"
        check_kind(kind, domain, bank)
        if kind == kind_of(live.lora.config):
            return live.lora.config
        return KINDS[kind].config()

    def resume(self) -> None:
        """Queues the jobs of proposals that a stop of the server left undecided."""
        self.end_withdrawn()
        for head, _ in self.proposals.heads():
            if head.state in UNDECIDED or (head.state in FROZEN and self._is_void(head.id)):
                self.enqueue(head.id)

    def _is_void(self, proposal_id: str) -> bool:
        """Returns whether a proposal has to be looked at anew; see `lifecycle.evidence.is_void`."""
        proposal = self.proposals.get(proposal_id).proposal
        situation = situation_now(self.proposals, self._published)
        with self.proposals.state.read() as tx:
            return is_void(self.proposals.evidence(proposal, tx), situation)

    def enqueue(self, proposal_id: str) -> None:
        """Queues the job that carries a proposal on."""

        def work() -> None:
            self.checker.run(proposal_id)
            self.describe(proposal_id)

        self._jobs.submit(proposal_id, work)

    def describe(self, proposal_id: str) -> None:
        """Queues the behavioural diff of a proposal that has to have one and has none."""
        if self.describer.is_missing(self.proposals.get(proposal_id)):
            name = f"behaviour of {proposal_id}"
            self._jobs.submit(name, lambda: self.describer.run(proposal_id))

    def ask_for_diff(self, proposal_id: str, *, by: str) -> Filed:
        """Has a candidate's behavioural diff computed, whatever became of its proposal.

        Nothing about the proposal changes; under whose token it was asked for stands in the log.

        Raises:
            IllegalTransition: there is no candidate, or its diff is there or under way.
        """
        with self._deciding.transaction() as tx:
            filed = self.proposals.get(proposal_id)
            self.describer.check_askable(filed)
            body: dict[str, object] = {
                "proposal": proposal_id,
                "candidate": filed.proposal.candidate_digest,
                "by": by,
            }
            self.proposals.log(tx, kind="proposal.diff_asked", body=body)
        self.describer.want(filed)
        self.describe(proposal_id)
        return filed

    def look_again(self, proposal_id: str) -> Filed:
        """Takes one more look and returns the proposal after it; approvals are void then.

        Raises:
            IllegalTransition: it is still being worked on, decided, or out of looks.
        """
        filed = self.proposals.get(proposal_id)
        if proposal_id in self._jobs.pending:
            raise IllegalTransition(
                f"proposal {proposal_id} is being worked on", mend="wait for its looks"
            )
        state = filed.proposal.state
        if state not in FROZEN:
            raise IllegalTransition(f"proposal {proposal_id} is {state} and takes no look",
                                    mend="look at the proposal as it is now")  # fmt: skip
        with self._jobs.hold(proposal_id) as mine:
            if not mine:
                raise IllegalTransition(
                    f"another process works on proposal {proposal_id}", mend="wait for its looks"
                )
            self.checker.one_look(proposal_id)
        looked = self.proposals.get(proposal_id)
        if looked.proposal.restarts > filed.proposal.restarts:
            self.enqueue(proposal_id)  # its looks began anew, and one is seldom enough
        return looked

    def approve(self, proposal_id: str, signature: Signature, *, comment: str = "") -> Filed:
        """Adds one person's approval, verified, to the proposal as it stands.

        Args:
            comment: logged beside whose approval it is. The key signs a digest, not these words.

        Raises:
            KeyUnknown, SignatureInvalid, DigestMismatch, ReplayDetected, Expired,
            DuplicateSigner, IllegalTransition: nothing was changed.
        """
        with self._deciding.transaction() as tx:
            policy = self.proposals.need_policy()
            filed = self.proposals.get(proposal_id)
            self._need_approver(signature, policy, tx)
            if filed.proposal.proposal_digest is None:
                advance(filed.proposal, Approved(signature=signature), policy=policy)
            target = filed.proposal.proposal_digest or ""
            now = self._check_person(signature, Action.APPROVE, target, policy, tx)
            filed = filed.with_proposal(_without_spent(filed.proposal, signature, policy, now))
            said: dict[str, object] = {"signer": signature.key_id}
            said |= {"comment": comment} if comment else {}
            event = Approved(signature=signature)
            moved = self.proposals.move(filed, event, tx, kind="proposal.approved", said=said)
            _write_approvals(moved.proposal, tx, now=self.proposals.now_ms())
            return moved

    def _need_approver(
        self, signature: Signature, policy: Policy, tx: Transaction
    ) -> tuple[Approver, int]:
        """Returns whose key it is, still valid at the time that comes with it, in seconds."""
        now = self.proposals.now_ms() // 1000
        approver = need_approver(signature.key_id, policy, tx, now=now)
        return approver, now

    def _check_person(
        self, signature: Signature, action: Action, target: str, policy: Policy, tx: Transaction
    ) -> int:
        """Returns the time, in seconds, at which an approver's signature over this was verified."""
        approver, now = self._need_approver(signature, policy, tx)
        expected = Act(action=action, target=target, policy=policy.digest,
                               state_version=tx.state_version())  # fmt: skip
        check_act(signature, public_key=approver.public, expected=expected, now=now)
        return now

    def waive(self, proposal_id: str, signature: Signature, *, reason: str) -> Filed:
        """Adds one person's verified waiver of a gate; which one, its target says.

        Raises:
            KeyUnknown, SignatureInvalid, DigestMismatch, ReplayDetected, Expired,
            DuplicateSigner, IllegalTransition: nothing was changed.
        """
        with self._deciding.transaction() as tx:
            policy = self.proposals.need_policy()
            filed = self.proposals.get(proposal_id)
            targets = {filed.proposal.waiver_target(s.name): s.name for s in policy.gates}
            gate = targets.get(signature.act.target, "")
            self._check_person(signature, Action.WAIVE_GATE, signature.act.target, policy, tx)
            if not gate:
                raise DigestMismatch("the signature waives no gate of this proposal as it is now",
                                     mend="sign a gate's waiver_target")  # fmt: skip
            event = Waived(gate=gate, signature=signature)
            said: dict[str, object] = {
                "gate": gate,
                "waived_because": reason,
                "signature": signature_to_json(signature),
            }
            moved = self.proposals.move(filed, event, tx, kind="proposal.waived", said=said)
            tx.clear_approvals(proposal_id)
        # One signature of several changes nothing yet, and a look is not taken for nothing.
        if gate in moved.proposal.waived(policy.approvers.k) and moved.proposal.state in UNDECIDED:
            self.enqueue(proposal_id)
        return moved

    def reject(self, proposal_id: str, reason: str, *, by: str) -> Filed:
        """Closes a proposal for good, with the reason and under whose token.

        Raises:
            IllegalTransition: it is closed already, or no reason is given.
        """
        with self._deciding.transaction() as tx:
            filed = self.proposals.get(proposal_id)
            event = Rejected(reason=reason)
            said: dict[str, object] = {"by": by}
            return self.proposals.move(filed, event, tx, kind="proposal.rejected", said=said)

    def end_withdrawn(self) -> None:
        """Rejects what is open and was made of examples whose consent was withdrawn."""
        heads = [h for h in self.proposals.heads() if h[0].state in (*UNDECIDED, *FROZEN)]
        with self.proposals.state.read() as tx:
            withdrawn = {adapter: tx.withdrawn(adapter) for _, adapter in heads}
        for head, adapter in heads:
            examples = self.proposals.get(head.id).provenance["examples"]
            if any(e["digest"] in withdrawn[adapter] for e in examples):
                with suppress(IllegalTransition):  # somebody has decided meanwhile
                    self.reject(head.id, "consent was withdrawn for what it learned", by="server")

    def view(self, filed: Filed) -> dict[str, Any]:
        """Returns a proposal as the API shows it: gates, approvals, quorum and what blocks it."""
        return self.views([filed])[0]

    def views(self, several: Sequence[Filed]) -> list[dict[str, Any]]:
        """Returns proposals as the API shows them, all at the same moment; see `view`."""
        if not several:
            return []
        policy = self.proposals.need_policy()
        situation = situation_now(self.proposals, self._published)
        ledger = {"alpha": policy.ledger.alpha, "spent": self.spent(), "cost": series_cost(policy)}
        with self.proposals.state.read() as tx:
            signed = tx.approvals_of([filed.proposal.id for filed in several])
        at = {
            proposal: {row.key_id: row.at // 1000 for row in rows}
            for proposal, rows in signed.items()
        }
        views: list[dict[str, Any]] = []
        for filed in several:
            proposal, id = filed.proposal, filed.proposal.id
            blocked = list(blockers(proposal, situation))
            if problem := self._evidence.problem(proposal, situation):
                blocked.append(f"evidence: {problem}")
            views.append(self._view(filed, situation, ledger, at[id]) | {"blockers": blocked})
        return views

    def spent(self) -> float:
        """Returns what the looks of all proposals have cost of the policy's alpha.

        Worked out anew when the log has grown: every look is in it, in the look's own transaction.
        """
        policy = self.proposals.need_policy()
        with self.proposals.state.read() as tx:
            now = (tx.audit_size(), policy.digest)
        known = self._spent
        if known is None or known[0] != now:
            known = now, spent(self.proposals.counted(), policy)
            self._spent = known
        return known[1]

    def _view(
        self, filed: Filed, situation: Situation, ledger: dict[str, float], at: dict[str, int]
    ) -> dict[str, Any]:
        """Returns one of `views`; `at` is when each key signed, in seconds since 1970."""
        policy, proposal = situation.policy, filed.proposal
        names = {a.key_id: a.name for a in policy.approvers.list}
        progress = self.checker.progress(proposal.id)
        return {
            "id": proposal.id,
            "state": proposal.state,
            "adapter": proposal.adapter_name,
            "candidate": f"{proposal.adapter_name}@{proposal.candidate_digest}"
            if proposal.candidate_digest
            else None,
            "candidate_digest": proposal.candidate_digest,
            "proposal_digest": proposal.proposal_digest,
            "evidence_root": proposal.evidence_root,
            "domain": proposal.domain,
            "parent_revision": proposal.parent_revision,
            "policy_digest": policy.digest,
            "state_version": situation.state_version,
            "provenance": filed.provenance,
            "gates": _gate_views(proposal, filed, situation),
            "approvals": [
                {"key_id": s.key_id, "name": names.get(s.key_id, "unknown"), "at": at.get(s.key_id)}
                for s in proposal.approvals
            ],
            "quorum": {"k": policy.approvers.k, "n": len(policy.approvers.list)},
            "ledger": ledger,
            "reason": proposal.reason,
            "attestation": self.proposals.identity.attestation_label,
            "progress": {
                "stage": progress.stage,
                "share": round(progress.share, 3),
                "loss": progress.loss,
            },
            "created_at": filed.created_at // 1000,
        }


def _without_spent(proposal: Proposal, signature: Signature, policy: Policy, now: int) -> Proposal:
    """Drops what keeps somebody from signing again.

    That is expired approvals, and the part of a group's signature that the same person now makes
    anew with another expiry.
    """
    kept = [
        a
        for a in proposal.approvals
        if a.act.expires > now
        and not (policy.approvers.group and a.key_id == signature.key_id and a.act != signature.act)
    ]
    return replace(proposal, approvals=tuple(kept))


def _write_approvals(proposal: Proposal, tx: Transaction, *, now: int) -> None:
    """Writes the approvals that count, each with the time when it came."""
    came = {row.key_id: row for row in tx.list_approvals(proposal.id)}
    tx.clear_approvals(proposal.id)
    for approval in proposal.approvals:
        signature = signature_to_json(approval)
        row = came.get(approval.key_id)
        at = row.at if row is not None and row.signature == signature else now
        tx.add_approval(
            ApprovalRow(proposal=proposal.id, key_id=approval.key_id, signature=signature, at=at)
        )


def _gate_views(proposal: Proposal, filed: Filed, situation: Situation) -> list[dict[str, Any]]:
    views = []
    waived = proposal.waived(situation.policy.approvers.k)
    for spec, gate in zip(
        situation.policy.gates, gate_standings(proposal, situation.policy), strict=True
    ):
        signers = [w.signature.key_id for w in proposal.waivers if w.gate == spec.name]
        own = [v for look in proposal.looks for v in look if v.gate == spec.name]
        measured = own[-1].measurement if own else None
        error = (filed.errors or {}).get(spec.name)
        views.append(
            {
                "name": spec.name,
                "verdict": "error" if error else gate.outcome,
                "why": error or (own[-1].why if own else gate.why),
                "metric": spec.metric,
                "baseline": measured.baseline if measured else None,
                "candidate": measured.candidate if measured else None,
                "effect": measured.effect if measured else None,
                "ci": list(measured.ci) if measured else None,
                "threshold": spec.threshold,
                "mde": measured.to_json()["mde"] if measured else None,
                "passes": gate.passes_in_a_row,
                "required": spec.passes_required,
                "waivable": spec.waivable,
                "waived": spec.name in waived,
                "waiver_target": proposal.waiver_target(spec.name)
                if spec.waivable and proposal.candidate_digest
                else None,
                "waivers": signers,
                "looks": gate.looks,
                "max_looks": spec.max_looks,
                "decisive": bool(own and own[-1].decisive),
                "items": measured.num_items if measured else 0,
                "notes": list(measured.notes) if measured else [],
                "history": [
                    {"verdict": v.outcome, "why": v.why,
                     "effect": v.measurement.effect if v.measurement else None,
                     "ci": list(v.measurement.ci) if v.measurement else None}
                    for v in own
                ],
            }
        )  # fmt: skip
    return views


def _provenance(
    examples: Sequence[ExampleRecord],
    steps: Sequence[LearnRecord],
    config: AdapterConfig,
    kept: frozenset[str],
) -> dict[str, Any]:
    return {
        "examples": [
            {
                "digest": e.digest,
                "blob": e.blob,
                "kind": e.kind,
                "source": e.source,
                "consent": e.consent,
                "kept": e.digest in kept,
            }
            for e in examples
        ],
        "kept_for_gates": len(kept),
        "learning": [
            {
                "before": s.digest_before,
                "after": s.digest_after,
                "steps": s.steps,
                "source": s.source,
            }
            for s in steps
        ],
        **config_record(config),
    }
