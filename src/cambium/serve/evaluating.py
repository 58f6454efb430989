"""What evaluators have signed of a proposal's evidence, and how one who is elsewhere adds theirs.

Whoever holds an evaluator's key that this server does not hold reads the statements, and signs each
of them. The signature goes into the same envelope; nothing that approvers sign changes by it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cambium.core.canonical import digest_json
from cambium.core.errors import (
    DigestMismatch,
    IllegalTransition,
    KeyUnknown,
    SignatureInvalid,
    TrustError,
)
from cambium.lifecycle.evidence import check_evidence, record_digest
from cambium.lifecycle.proposal import FINAL, Proposal
from cambium.lifecycle.situation import Situation
from cambium.serve.following import Following
from cambium.serve.proposals import Proposals
from cambium.serve.store.transaction import Transaction
from cambium.trust.dsse import count_signers
from cambium.trust.policy import Policy, Role


class EvidenceChecks:
    """Says for views what is wrong with evidence, verified once for each state of it.

    What is in a view decides nothing: a merge verifies everything again.
    """

    def __init__(self, proposals: Proposals) -> None:
        self._proposals = proposals
        # By proposal: as of what it was verified, and what came of it.
        self._known: dict[str, tuple[tuple[object, ...], str]] = {}

    def problem(self, proposal: Proposal, situation: Situation) -> str:
        """Returns why the evidence of an open proposal's looks does not count, or nothing."""
        if proposal.state in FINAL or not proposal.looks:
            return ""
        role = situation.policy.evaluators
        expired = [p.key_id for p in role.list if p.has_expired(situation.now)] if role else []
        with self._proposals.state.read() as tx:
            standing = (tx.audit_size(), situation.server.raw, situation.policy.digest,
                        situation.revoked_keys, *expired)  # fmt: skip
            known = self._known.get(proposal.id)
            if known is not None and known[0] == standing:
                return known[1]
            envelopes = self._proposals.evidence(proposal, tx)
        problem = ""
        try:
            check_evidence(proposal, envelopes=envelopes, situation=situation)
        except TrustError as error:
            problem = error.message
        self._known[proposal.id] = standing, problem
        return problem


def evidence_of(proposals: Proposals, proposal_id: str) -> dict[str, Any]:
    """Returns the envelopes of a proposal's looks, in order, and who has to sign them."""
    with proposals.state.read() as tx:
        return _view(proposals.get(proposal_id).proposal, proposals, tx)


def add_evaluation(
    proposals: Proposals,
    proposal_id: str,
    key_id: str,
    signatures: Mapping[str, str],
    *,
    deciding: Following,
) -> dict[str, Any]:
    """Adds an evaluator's signatures over all evidence of a proposal as it stands.

    Args:
        signatures: strict base64, over each envelope's payload as DSSE encodes it, by the digest of
            the envelope as the server recorded it.

    Raises:
        KeyUnknown: the key is no evaluator's of the policy, or counts no more.
        IllegalTransition: the proposal is decided, or nothing was looked at yet.
        DigestMismatch: there is other evidence by now.
        SignatureInvalid: one does not verify; nothing was added.
    """
    with deciding.transaction() as tx:
        proposal, policy = proposals.get(proposal_id).proposal, proposals.need_policy()
        if proposal.state in FINAL or not proposal.looks:
            raise IllegalTransition(f"proposal {proposal_id} has no evidence to sign",
                                    mend="look at the proposal as it is now")  # fmt: skip
        role = _only(policy, key_id)
        rows = {record_digest(r.envelope): r for r in proposals.evidence_rows(proposal, tx)}
        if rows.keys() != signatures.keys():
            raise DigestMismatch("these signatures are over other evidence than there is now",
                                 mend="sign what GET /proposals/{id}/evidence shows")  # fmt: skip
        revoked = {k.key_id for k in tx.list_keys() if k.revoked_at}
        for digest, row in rows.items():
            signed = _with_signature(row.envelope, key_id, signatures[digest])
            now = proposals.now_ms() // 1000
            have, refused = count_signers(signed, role.list, revoked=revoked, now=now)
            if not have:
                why = "; ".join(refused) or "the key is nobody's"
                raise SignatureInvalid(f"this signature does not count: {why}",
                                       mend="sign with a key that the policy lists")  # fmt: skip
            tx.replace_evidence(
                row.digest, replace(row, envelope=signed, digest=digest_json(signed))
            )
        body: dict[str, object] = {
            "proposal": proposal.id,
            "evidence_root": proposal.evidence_root,
            "evaluator": key_id,
        }
        proposals.log(tx, kind="proposal.evaluated", body=body)
        return _view(proposal, proposals, tx)


def _only(policy: Policy, key_id: str) -> Role:
    """Returns the role of the one evaluator whose key this is."""
    listed = policy.evaluators.list if policy.evaluators else ()
    own = tuple(person for person in listed if person.key_id == key_id)
    if not own:
        raise KeyUnknown(f"{key_id[:80]!r} is no evaluator's key of this policy",
                         mend="see `evaluators` in GET /policy")  # fmt: skip
    return Role(k=1, list=own)


def _with_signature(envelope: dict[str, Any], key_id: str, signature: str) -> dict[str, object]:
    try:
        base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as error:
        raise SignatureInvalid("a signature is strict base64", mend="send it so") from error
    others = [s for s in envelope["signatures"] if s["keyid"] != key_id]
    return {**envelope, "signatures": [*others, {"keyid": key_id, "sig": signature}]}


def _view(proposal: Proposal, proposals: Proposals, tx: Transaction) -> dict[str, Any]:
    rows, policy = proposals.evidence_rows(proposal, tx), proposals.need_policy()
    role = policy.evaluators
    names = {person.key_id: person.name for person in role.list} if role else {}
    return {
        "proposal": proposal.id,
        "evidence_root": proposal.evidence_root,
        "needed": {"k": role.k if role else 1, "evaluators": [*names.values()] or ["server"]},
        "evidence": [
            {
                "digest": record_digest(row.envelope),
                "look": row.look,
                "gate": row.gate,
                # Whoever is not listed any more is named by the key, not taken for the server.
                "signed_by": ["server", *(names.get(k, k) for k in _keys(row.envelope)[1:])],
                "envelope": row.envelope,
            }
            for row in rows
        ],
    }


def _keys(envelope: dict[str, Any]) -> list[str]:
    return [signature["keyid"] for signature in envelope["signatures"]]
