"""What holds at the moment of deciding, and who counts in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cambium.core.nouns import Act, Action, Revision, Signature
from cambium.trust.attestation import AttestationResult
from cambium.trust.dsse import count_signers
from cambium.trust.keys import PublicKey
from cambium.trust.policy import Policy, Role
from cambium.trust.quorum import Approver, QuorumResult, count_quorum


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Whose signature counts now, and over what; `now` is in seconds since 1970, UTC.

    Args:
        revoked_keys: ids of keys that no longer count, whatever the policy lists.
    """

    policy: Policy
    state_version: int
    now: int
    revoked_keys: frozenset[str] = frozenset()

    def count(
        self,
        signatures: Sequence[Signature],
        *,
        action: Action,
        target: str,
        k: int | None = None,
        people: Sequence[Approver] | None = None,
    ) -> QuorumResult:
        """Returns who of `people` (the approvers) signed this act as things stand, each verified.

        Raises:
            PolicyInvalid: a quorum of `k` (the policy's) of them cannot be.
        """
        expected = Act(action=action, target=target, policy=self.policy.digest,
                       state_version=self.state_version)  # fmt: skip
        approvers = self.policy.approvers
        return count_quorum(
            [s for s in signatures if s.key_id not in self.revoked_keys],
            approvers=approvers.list if people is None else people,
            expectation=expected,
            k=k or approvers.k,
            now=self.now,
        )


@dataclass(frozen=True, kw_only=True)
class Situation(Counting):
    """What holds at the moment of deciding.

    Args:
        server: the key of the server in office, which signs what it records.
        attestation: None when nothing was attested, which blocks.
        quarantined: digests of adapters that no revision may serve again.
    """

    head: Revision
    server: PublicKey
    attestation: AttestationResult | None
    quarantined: frozenset[str] = frozenset()
    killed: bool = False

    def lacks(self, envelope: object, role: Role | None, name: str) -> tuple[str, bool]:
        """Returns why fewer than k of a role signed an envelope, and whether that was otherwise.

        Nothing, where enough did. A role that the policy leaves out is the server's key's; in
        production it is nobody's. It was otherwise where a signature of theirs counts no more.

        Raises:
            SignatureInvalid: the envelope is malformed.
        """
        if role is None and self.policy.profile == "production":
            return f"a production policy says who the {name} are, and this one does not", False
        server = Approver(name="server", public=self.server)
        k, people = (role.k, role.list) if role else (1, [server])
        have, refused = count_signers(envelope, people, revoked=self.revoked_keys, now=self.now)
        why = "".join(f"; {reason}" for reason in refused)
        return ("", False) if have >= k else (f"{have} of {k} {name} signed{why}", bool(refused))
