"""Signatures that wait for company: a rollback or a revival needs several, made on several days.

Each is verified when it comes and again when it is used. An act that is done raises the state's
version, and with it everything that waited is void.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.core.errors import DigestMismatch, IllegalTransition
from cambium.core.nouns import Act, Action, Signature
from cambium.serve.approvers import need_approver, standing_approvers
from cambium.serve.kill_switch import KillSwitch
from cambium.serve.quarantined import quarantined
from cambium.serve.rules import Rules
from cambium.serve.signed_records import signature_from_json
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.acts import (
    check_act,
    signature_to_json,
)
from cambium.trust.policy import Policy

_META = "waiting_signatures"


class WaitingSignatures:
    """Keeps one signature of each approver for each act until enough are there to do it."""

    def __init__(
        self, state: State, *, rules: Rules, kill: KillSwitch, now_ms: Callable[[], int]
    ) -> None:
        self._state = state
        self._rules = rules
        self._kill = kill
        self._now_ms = now_ms

    def add(self, signature: Signature) -> dict[str, Any]:
        """Keeps a signature and returns who has signed the same act, and how many are needed.

        Raises:
            PolicyMissing, KeyUnknown, SignatureInvalid, ReplayDetected, Expired: it would not
                count.
            DigestMismatch: it is for no earlier revision and no kill that stands.
            IllegalTransition: the revision holds what is in quarantine.
        """
        policy = self._rules.need()
        act = signature.act
        with self._state.transaction() as tx:
            approver = need_approver(signature.key_id, policy, tx, now=self._now_s())
            if act.target not in self._targets(act.action, tx):
                raise DigestMismatch("the signature is for no rollback and no revival that can be",
                                     mend="sign what /line or /stop shows now")  # fmt: skip
            _refuse_barred(act.target, tx)
            expected = Act(action=act.action, target=act.target, policy=policy.digest,
                                   state_version=tx.state_version())  # fmt: skip
            check_act(signature, public_key=approver.public, expected=expected, now=self._now_s())
            waiting = list(self._standing(tx, policy))
            same = [s for s in waiting if _place(s) == _place(signature)]
            # An older one that somebody sends again does not take the place of a newer one.
            if not same or same[0].act.expires <= act.expires:
                waiting = [*(s for s in waiting if s not in same), signature]
            kept = [signature_to_json(s) for s in waiting]
            tx.set_meta(_META, value=canonical_json(kept).decode())
            return self._shown(policy, waiting, act.action, act.target)

    def list(self, action: Action) -> list[dict[str, Any]]:
        """Returns the acts of this kind that somebody has signed, each with its signatures."""
        policy = self._rules.policy
        if policy is None:
            return []
        with self._state.read() as tx:
            standing = [s for s in self._standing(tx, policy) if s.act.action is action]
        targets = dict.fromkeys(s.act.target for s in standing)
        return [self._shown(policy, standing, action, target) for target in targets]

    def _shown(
        self, policy: Policy, standing: Sequence[Signature], action: Action, target: str
    ) -> dict[str, Any]:
        signed = [s for s in standing if (s.act.action, s.act.target) == (action, target)]
        names = {a.key_id: a.name for a in policy.approvers.list}
        return {
            "action": str(action),
            "target": target,
            "needed": policy.rollback.k if action is Action.ROLLBACK else policy.approvers.k,
            "signers": [{"key_id": s.key_id, "name": names[s.key_id]} for s in signed],
            "signatures": [signature_to_json(s) for s in signed],
        }

    def _standing(self, tx: Transaction, policy: Policy) -> Sequence[Signature]:
        """Returns what waits and would still count."""
        known = standing_approvers(policy, tx, now=self._now_s())
        found = [signature_from_json(s) for s in json.loads(tx.get_meta(_META) or "[]")]
        return [
            s for s in found
            if s.act.state_version == tx.state_version() and s.act.policy == policy.digest
            and s.act.expires > self._now_s() and s.key_id in known
        ]  # fmt: skip

    def _targets(self, action: Action, tx: Transaction) -> set[str]:
        killed = self._kill.killed
        if action is Action.REVIVE:
            return {killed.digest} if killed else set()
        return {r.digest for r in tx.list_revisions()[:-1]} if action is Action.ROLLBACK else set()

    def _now_s(self) -> int:
        return self._now_ms() // 1000


def _refuse_barred(target: str, tx: Transaction) -> None:
    """Refuses as the rollback itself would, before others sign what can never be done."""
    barred = quarantined(tx)
    for row in tx.list_revisions():
        manifest: dict[str, Any] = row.manifest
        if row.digest == target and any(e["digest"] in barred for e in manifest["bank"].values()):
            raise IllegalTransition("it would serve an adapter that is in quarantine",
                                    mend="name a revision without it")  # fmt: skip


def _place(signature: Signature) -> tuple[str, str, str]:
    return signature.key_id, str(signature.act.action), signature.act.target
