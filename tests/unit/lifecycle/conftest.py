from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
from tests.looked import ENVELOPES, evidence_of
from tests.policies import make_policy

from cambium.core.canonical import digest_bytes
from cambium.core.evidence import Measurement, Verdict
from cambium.core.nouns import Action, ProposalState, Revision, Signature, SignedAct
from cambium.lifecycle.evidence import evidence_root, look_statements
from cambium.lifecycle.gates import judge, used_items
from cambium.lifecycle.proposal import Approved, Frozen, LookTaken, Proposal, Waived, advance
from cambium.lifecycle.publish import authorise_genesis
from cambium.lifecycle.situation import Situation
from cambium.trust.acts import sign_act
from cambium.trust.attestation import AttestationResult, appraise
from cambium.trust.dsse import countersign, seal
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import Policy
from cambium.trust.providers.software_dev import SoftwareDevAttester

NOW = 50_000


def attested_by(result: AttestationResult, *keys: SigningKey) -> AttestationResult:
    """Returns the result under the signatures of these keys alone."""
    envelope = replace(result, signatures=()).envelope()
    for key in keys:
        envelope = countersign(key, envelope)
    return replace(result, signatures=tuple(envelope["signatures"]))  # type: ignore[arg-type]


@dataclass(kw_only=True)
class World:
    """Real keys, a real policy, a real attester: a proposal's surroundings, without a server."""

    keys: list[SigningKey]
    server: SigningKey
    policy: Policy
    attestation: AttestationResult
    head: Revision
    state_version: int = 3
    looks_made: int = 0
    evaluators: tuple[SigningKey, ...] = ()  # who sign looks beside the server

    candidate: str = digest_bytes(b"candidate")
    router: str = digest_bytes(b"router")
    now: int = NOW

    @property
    def situation(self) -> Situation:
        return Situation(
            head=self.head,
            policy=self.policy,
            server=self.server.public_key,
            state_version=self.state_version,
            attestation=self.attestation,
            now=NOW,
        )

    def propose(self, *, domain: str = "code") -> Proposal:
        return Proposal(
            id="p1",
            adapter_name="learner",
            source_digest=digest_bytes(b"source"),
            domain=domain,
            parent_revision=self.head.number,
            parent_digest=self.head.digest,
            policy_digest=self.policy.digest,
            provenance_digest=digest_bytes(b"provenance"),
        )

    def measure(self, gate: str, ci: tuple[float, float] | None = None) -> Measurement:
        """A measurement on items that no look has used; by default one above the bar."""
        spec = next(spec for spec in self.policy.gates if spec.name == gate)
        above = max(0.0, spec.threshold)
        ci = ci or (above + 0.1, above + 0.2)
        self.looks_made += 1
        return Measurement(
            gate=gate,
            metric=spec.metric,
            baseline=2.0,
            candidate=1.9,
            effect=sum(ci) / 2,
            ci=ci,
            mde=float("inf"),
            num_items=spec.min_items,
            items_digest=digest_bytes(b"items %d" % self.looks_made),
            subject={"candidate": self.candidate, "seed": 7},
        )

    def look(self, proposal: Proposal, **overrides: Verdict) -> LookTaken:
        """One look in which every gate passes, but for the overrides; its envelopes are kept."""
        verdicts = tuple(
            overrides.get(spec.name)
            or judge(spec, self.measure(spec.name), used=used_items(spec.name, proposal.looks))
            for spec in self.policy.gates
        )
        statements = look_statements(
            proposal, verdicts, look=len(proposal.looks), policy=self.policy
        )
        added: list[dict[str, object]] = []
        for statement in statements:
            envelope = seal(self.server, statement)
            for key in self.evaluators:
                envelope = countersign(key, envelope)
            added.append(envelope)
        envelopes = [*evidence_of(proposal), *added]
        root = evidence_root(envelopes)
        ENVELOPES[root] = envelopes
        return LookTaken(verdicts=verdicts, evidence_root=root)

    def failing(self, gate: str, ci: tuple[float, float] = (-9.0, 9.0)) -> Verdict:
        spec = next(spec for spec in self.policy.gates if spec.name == gate)
        return judge(spec, self.measure(gate, ci))

    def evidence(self, proposal: Proposal) -> list[dict[str, object]]:
        return evidence_of(proposal)

    def sign(self, index: int, target: str | None, action: Action = Action.APPROVE) -> Signature:
        act = SignedAct(
            action=action,
            target=target or "",
            state_version=self.state_version,
            expires=NOW + 600,
            policy=self.policy.digest,
        )
        return sign_act(self.keys[index], act)

    def waiver(self, proposal: Proposal, gate: str, index: int) -> Waived:
        target = proposal.waiver_target(gate)
        return Waived(gate=gate, signature=self.sign(index, target, Action.WAIVE_GATE))

    def approve(self, proposal: Proposal, *indices: int) -> Proposal:
        for index in indices:
            event = Approved(signature=self.sign(index, proposal.proposal_digest))
            proposal = advance(proposal, event, policy=self.policy)
        return proposal

    def checking(self) -> Proposal:
        frozen = Frozen(candidate_digest=self.candidate)
        return advance(self.propose(), frozen, policy=self.policy)

    def awaiting(self) -> Proposal:
        proposal = self.checking()
        for _ in range(2):
            proposal = advance(proposal, self.look(proposal), policy=self.policy)
        assert proposal.state == ProposalState.AWAITING_APPROVAL
        return proposal

    def mergeable(self) -> Proposal:
        proposal = self.approve(self.awaiting(), 0, 1)
        assert proposal.state == ProposalState.MERGEABLE
        return proposal

    def fresh(self) -> World:
        """The same surroundings with nothing looked at."""
        return replace(self, looks_made=0)


@pytest.fixture(name="attested_by")
def attested_by_() -> Callable[..., AttestationResult]:
    return attested_by


@pytest.fixture(scope="session")
def surroundings() -> World:
    keys = [generate_key() for _ in range(3)]
    policy, nonce = make_policy(keys), "ab" * 32
    attester = SoftwareDevAttester(generate_key())
    attestation = appraise(
        attester.attest(nonce, now=NOW, measurement=digest_bytes(b"code")),
        nonce=nonce,
        accept=policy.attestation.accept,
        verifier=attester.verifier,
        now=NOW,
    )
    server = generate_key()
    genesis = authorise_genesis(base_digest=digest_bytes(b"base"), policy=policy, now=NOW)
    return World(
        keys=keys,
        server=server,
        policy=policy,
        attestation=attested_by(attestation, server),
        head=genesis.revision,
    )


@pytest.fixture
def world(surroundings: World) -> World:
    return surroundings.fresh()
