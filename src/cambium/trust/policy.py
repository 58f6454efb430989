"""The signed policy: one TOML text, read strictly, in force as long as no other replaces it."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields

from cambium.core.canonical import digest_bytes, digest_json
from cambium.core.errors import DigestMismatch, PolicyInvalid, SignatureInvalid
from cambium.core.evidence import GateSpec
from cambium.core.nouns import Action, Signature, SignedAct
from cambium.trust.acts import check_signature, sign_act
from cambium.trust.attestation import SOFTWARE_DEV
from cambium.trust.keys import PublicKey, SigningKey
from cambium.trust.quorum import Approver
from cambium.trust.strict_table import StrictTable

KNOWN_GATES = frozenset({"domain_gain", "retention", "alignment", "alignment_writing", "integrity"})
PROFILES = frozenset({"development", "production"})
AFTER_KILL = frozenset({"nothing", "base"})
MAX_POLICY_BYTES = 1_000_000
MAX_LOOKS = 5
MAX_STEPS_PER_CALL = 8
# RFC 5280's "no well-defined expiration date": a policy stands until another replaces it.
STANDING = 253402300799


@dataclass(frozen=True, kw_only=True)
class LearningBudget:
    """How much may be learned before anybody reviews it.

    Args:
        max_relative_change: cap on an adapter's cumulative ||dW|| against ||W||, each module.
        monitor_margin_nats: how far one step may move towards harm, nats per token.
        replay_tokens: room for what a lesson goes through again, kept with consent; 0 is off.
    """

    max_steps_per_call: int
    max_examples_per_call: int
    max_example_bytes: int
    max_ttl_s: int
    max_rank: int
    max_live_adapters: int
    max_total_steps_per_adapter: int
    max_relative_change: float
    monitor_margin_nats: float
    replay_tokens: int


@dataclass(frozen=True, kw_only=True)
class TrafficBudget:
    """What may be learned from requests, without labels; `learn = false` turns all of it off.

    Args:
        tenants: whose requests may teach; a request still has to ask for it.
        min_novelty: cosine distance, 0 to 2, to all the bank was trained on, from which a
            request teaches; `min_entropy`: mean entropy of the prompt, nats, likewise.
        first_steps_per_hour: for an adapter whose monitors have not been green yet; doubles
            while they stay green, up to `max_steps_per_hour`.
        wins_window: requests in a row over which wins must be sustained before a proposal.
    """

    learn: bool
    tenants: tuple[str, ...]
    min_novelty: float
    min_entropy: float
    first_steps_per_hour: int
    max_steps_per_hour: int
    wins_window: int


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules in force, as parsed; `parse_policy` is the way to get one.

    Args:
        version: the policy's own number, raised by whoever changes it.
        k: signatures that a merge needs; `rollback_k`: that a rollback needs.
        domains: names a proposal may be for; `*` allows every name.
        attestation: labels that are accepted; an empty list accepts nothing.
        operators: who may pull the kill switch beside the approvers.
        after_kill: what is served then: `nothing`, or the bare `base`.
    """

    version: int
    profile: str
    k: int
    approvers: tuple[Approver, ...]
    rollback_k: int
    operators: tuple[Approver, ...]
    after_kill: str
    domains: tuple[str, ...]
    learning: LearningBudget
    traffic: TrafficBudget
    attestation: tuple[str, ...]
    scopes: tuple[str, ...]
    gates: tuple[GateSpec, ...]

    def to_json(self) -> dict[str, object]:
        """Returns the content that the digest covers, in the text's own shape."""
        people, operators = (
            [{"name": a.name, "public": a.public.raw} for a in group]
            for group in (self.approvers, self.operators)
        )
        return {
            "version": self.version,
            "profile": self.profile,
            "approvers": {"k": self.k, "list": people},
            "rollback": {"k": self.rollback_k},
            "kill": {"then": self.after_kill, "operators": operators},
            "domains": {"allowed": list(self.domains)},
            "learning": dict(self.learning.__dict__),
            "traffic": {**self.traffic.__dict__, "tenants": list(self.traffic.tenants)},
            "attestation": {"accept": list(self.attestation)},
            "scopes": {"names": list(self.scopes)},
            "gates": [spec.to_json() for spec in self.gates],
        }

    @property
    def digest(self) -> str:
        """Returns the digest of the content's canonical JSON; comments do not count."""
        return digest_json(self.to_json())

    def allows_domain(self, domain: str) -> bool:
        """Returns whether a proposal may be for `domain`."""
        return "*" in self.domains or domain in self.domains


@dataclass(frozen=True, kw_only=True)
class SignedPolicy:
    """A policy's exact bytes and the root key's signature over them."""

    toml: bytes
    signature: Signature


def sign_policy(root_key: SigningKey, toml: bytes, *, state_version: int = 0) -> SignedPolicy:
    """Returns the text under the root key's signature.

    The act's target is the digest of the bytes, comments included, and its `policy` the digest of
    the content, so that both are what was signed.

    Raises:
        PolicyInvalid: the text is no valid policy; nothing invalid gets signed.
    """
    act = _policy_act(toml, parse_policy(toml), state_version=state_version)
    return SignedPolicy(toml=toml, signature=sign_act(root_key, act))


def verify_policy(signed: SignedPolicy, root_public: PublicKey) -> Policy:
    """Returns the policy of a signed text; nothing is parsed before the signature holds.

    Raises:
        SignatureInvalid: the signature is not the root key's.
        DigestMismatch: it is the root key's, but over another text or another act.
        PolicyInvalid: the signed text is no valid policy.
    """
    check_signature(signed.signature, public_key=root_public)
    act = signed.signature.act
    if act.action != Action.POLICY or act.target != digest_bytes(signed.toml):
        raise DigestMismatch("the root key signed something else than this policy text",
                             mend="sign this text with `cambium policy sign`")  # fmt: skip
    policy = parse_policy(signed.toml)
    if act != _policy_act(signed.toml, policy, state_version=act.state_version):
        raise DigestMismatch("the signed payload does not describe this policy",
                             mend="sign this text with `cambium policy sign`")  # fmt: skip
    return policy


def parse_policy(toml: bytes, *, known_gates: frozenset[str] = KNOWN_GATES) -> Policy:
    """Returns the policy that the text states; every field must be there and known.

    Raises:
        PolicyInvalid: says which field is missing, unknown or out of its range.
    """
    root = StrictTable(_load(toml), "the policy")
    root.exactly({"version", "profile", "approvers", "rollback", "kill", "domains", "learning",
                  "traffic", "attestation", "scopes", "gates"})  # fmt: skip
    approvers = root.table("approvers", {"k", "list"})
    kill = root.table("kill", {"then", "operators"})
    kill.require(kill.text("then") in AFTER_KILL, "then", f"is none of {sorted(AFTER_KILL)}")
    people = tuple(_approver(entry) for entry in approvers.tables("list"))
    policy = Policy(
        version=root.whole("version"),
        profile=root.text("profile"),
        k=approvers.whole("k"),
        approvers=people,
        rollback_k=root.table("rollback", {"k"}).whole("k"),
        operators=tuple(_approver(entry) for entry in kill.tables("operators")),
        after_kill=kill.text("then"),
        domains=root.table("domains", {"allowed"}).texts("allowed"),
        learning=_learning(root.table("learning", {f.name for f in fields(LearningBudget)})),
        traffic=_traffic(root.table("traffic", {f.name for f in fields(TrafficBudget)})),
        attestation=root.table("attestation", {"accept"}).texts("accept", may_be_empty=True),
        scopes=root.table("scopes", {"names"}).texts("names"),
        gates=tuple(_gate(entry) for entry in root.tables("gates")),
    )
    _check_people(policy)
    _check_gates(policy, known_gates)
    return policy


def _policy_act(toml: bytes, policy: Policy, *, state_version: int) -> SignedAct:
    return SignedAct(
        action=Action.POLICY,
        target=digest_bytes(toml),
        state_version=state_version,
        expires=STANDING,
        policy=policy.digest,
    )


def _load(toml: bytes) -> dict[str, object]:
    if len(toml) > MAX_POLICY_BYTES:
        raise PolicyInvalid("the policy is over a megabyte", mend="shorten it")
    try:
        return tomllib.loads(toml.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PolicyInvalid(f"the policy is not TOML: {error}", mend="correct the text") from error


def _approver(entry: StrictTable) -> Approver:
    entry.exactly({"name", "public"})
    try:
        return Approver(name=entry.text("name"), public=PublicKey(raw=entry.text("public")))
    except SignatureInvalid as error:
        raise PolicyInvalid(f"{entry.where}: {error.message}", mend=error.mend) from error


def _learning(table: StrictTable) -> LearningBudget:
    budget = LearningBudget(
        max_steps_per_call=table.whole("max_steps_per_call"),
        max_examples_per_call=table.whole("max_examples_per_call"),
        max_example_bytes=table.whole("max_example_bytes"),
        max_ttl_s=table.whole("max_ttl_s"),
        max_rank=table.whole("max_rank"),
        max_live_adapters=table.whole("max_live_adapters"),
        max_total_steps_per_adapter=table.whole("max_total_steps_per_adapter"),
        max_relative_change=table.number("max_relative_change"),
        monitor_margin_nats=table.number("monitor_margin_nats"),
        replay_tokens=table.whole("replay_tokens", least=0),
    )
    table.require(
        budget.max_steps_per_call <= MAX_STEPS_PER_CALL, "max_steps_per_call", "is over 8"
    )
    table.require(budget.max_relative_change > 0, "max_relative_change", "is not above 0")
    table.require(budget.monitor_margin_nats >= 0, "monitor_margin_nats", "is below 0")
    some = budget.replay_tokens == 0 or 10_000 <= budget.replay_tokens <= 200_000
    table.require(some, "replay_tokens", "is neither 0 nor between 10000 and 200000")
    return budget


def _traffic(table: StrictTable) -> TrafficBudget:
    budget = TrafficBudget(
        learn=table.flag("learn"),
        tenants=table.texts("tenants", may_be_empty=True),
        min_novelty=table.number("min_novelty"),
        min_entropy=table.number("min_entropy"),
        first_steps_per_hour=table.whole("first_steps_per_hour"),
        max_steps_per_hour=table.whole("max_steps_per_hour"),
        wins_window=table.whole("wins_window"),
    )
    fine = budget.first_steps_per_hour <= budget.max_steps_per_hour
    table.require(fine, "first_steps_per_hour", "is over max_steps_per_hour")
    table.require(0 <= budget.min_novelty <= 2, "min_novelty", "is not between 0 and 2")
    table.require(budget.min_entropy >= 0, "min_entropy", "is below 0")
    return budget


def _gate(entry: StrictTable) -> GateSpec:
    entry.exactly({f.name for f in fields(GateSpec)})
    spec = GateSpec(
        name=entry.text("name"),
        metric=entry.text("metric"),
        threshold=entry.number("threshold"),
        passes_required=entry.whole("passes_required"),
        max_looks=entry.whole("max_looks"),
        min_items=entry.whole("min_items"),
        max_items=entry.whole("max_items"),
        confidence=entry.number("confidence"),
        required=entry.flag("required"),
    )
    entry.require(spec.max_looks <= MAX_LOOKS, "max_looks", f"is over {MAX_LOOKS}")
    entry.require(spec.passes_required <= spec.max_looks, "passes_required", "is over max_looks")
    entry.require(spec.min_items <= spec.max_items, "min_items", "is over max_items")
    entry.require(0.5 < spec.confidence < 1, "confidence", "is not between 0.5 and 1")
    entry.require(spec.required, "required", "is false, but an undemanded gate protects nothing")
    return spec


def _check_people(policy: Policy) -> None:
    keys = {approver.public.raw for approver in policy.approvers}
    everybody = [*policy.approvers, *policy.operators]
    if (
        not len({p.public.raw for p in everybody})
        == len({p.name for p in everybody})
        == len(everybody)
    ):
        raise PolicyInvalid("two people share a key or a name", mend="list each person once")
    for where, k in (("approvers.k", policy.k), ("rollback.k", policy.rollback_k)):
        if k > len(keys):
            raise PolicyInvalid(f"{where} = {k}, but there are {len(keys)} approvers",
                                mend="declare 1 <= k <= n")  # fmt: skip
    if policy.profile not in PROFILES:
        raise PolicyInvalid(f"profile {policy.profile!r} is unknown",
                            mend='use "development" or "production"')  # fmt: skip
    if policy.profile == "production" and SOFTWARE_DEV in policy.attestation:
        raise PolicyInvalid(f'a production policy never accepts "{SOFTWARE_DEV}"',
                            mend="name a hardware attestation")  # fmt: skip


def _check_gates(policy: Policy, known: frozenset[str]) -> None:
    names = [spec.name for spec in policy.gates]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise PolicyInvalid(f"gates declared twice: {doubled}", mend="declare each gate once")
    if unknown := sorted(set(names) - known):
        raise PolicyInvalid(f"unknown gates: {unknown}", mend=f"known are {sorted(known)}")
    if missing := sorted(known - set(names)):
        raise PolicyInvalid(f"gates are missing: {missing}", mend="declare every known gate")
