"""The signed policy: one TOML text, read strictly, in force as long as no other replaces it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from cambium.core.canonical import digest_bytes, digest_json
from cambium.core.errors import DigestMismatch, PolicyInvalid, SignatureInvalid
from cambium.core.evidence import GateSpec
from cambium.core.nouns import Action, Signature, SignedAct
from cambium.trust.acts import check_signature, sign_act
from cambium.trust.attestation import SOFTWARE_DEV
from cambium.trust.keys import PublicKey, SigningKey
from cambium.trust.providers.bls12_381 import check_group
from cambium.trust.quorum import Approver

KNOWN_GATES = frozenset({"domain_gain", "retention", "alignment", "alignment_drift",
                         "alignment_writing", "power_seeking", "integrity"})  # fmt: skip
MAX_POLICY_BYTES = 1_000_000
MAX_LOOKS = 5
MAX_STEPS_PER_CALL = 8
MAX_NUMBER = 2**53
# RFC 5280's "no well-defined expiration date": a policy stands until another replaces it.
STANDING = 253402300799


def _once(texts: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(texts)) < len(texts):
        raise ValueError("holds a text twice")
    return texts


def _demanded(required: bool) -> bool:
    if not required:
        raise ValueError("is false, but an undemanded gate protects nothing")
    return True


# Nothing missing, nothing unknown, nothing converted.
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Whole = Annotated[int, Field(ge=1, le=MAX_NUMBER)]
Number = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]
Text = Annotated[str, Field(pattern=r"\S")]
Texts = Annotated[tuple[Text, ...], AfterValidator(_once)]
SomeTexts = Annotated[Texts, Field(min_length=1)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class LearningBudget:
    """How much may be learned before anybody reviews it.

    Args:
        max_relative_change: cap on an adapter's cumulative ||dW|| against ||W||, each module.
        monitor_margin_nats: how far one step may move towards harm, nats per token.
        replay_tokens: room for what a lesson goes through again, kept with consent; 0 is off.
    """

    max_steps_per_call: Annotated[Whole, Field(le=MAX_STEPS_PER_CALL)]
    max_examples_per_call: Whole
    max_example_bytes: Whole
    max_ttl_s: Whole
    max_rank: Whole
    max_live_adapters: Whole
    max_total_steps_per_adapter: Whole
    max_relative_change: Annotated[Number, Field(gt=0)]
    monitor_margin_nats: Annotated[Number, Field(ge=0)]
    replay_tokens: (
        Annotated[Whole, Field(ge=10_000, le=200_000)] | Annotated[int, Field(ge=0, le=0)]
    )


@checked(frozen=True, kw_only=True, config=_STRICT)
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
    tenants: Texts
    min_novelty: Annotated[Number, Field(ge=0, le=2)]
    min_entropy: Annotated[Number, Field(ge=0)]
    first_steps_per_hour: Whole
    max_steps_per_hour: Whole
    wins_window: Whole


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Person:
    name: Text
    public: str
    expires: Annotated[int, Field(ge=0, le=MAX_NUMBER)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Approvers:
    k: Whole
    group: Annotated[str, Field(pattern="^([0-9a-f]{96})?$")]
    list: tuple[_Person, ...]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Rollback:
    k: Whole
    emergency: Texts


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Kill:
    then: Literal["nothing", "base"]
    operators: tuple[_Person, ...]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Domains:
    allowed: SomeTexts
    owners: dict[Text, Text]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Attestation:
    accept: Texts


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Scopes:
    names: SomeTexts


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Ledger:
    alpha: Annotated[Number, Field(gt=0)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class _Gate:
    name: Text
    metric: Text
    threshold: Number
    passes_required: Whole
    max_looks: Annotated[Whole, Field(le=MAX_LOOKS)]
    min_items: Whole
    max_items: Whole
    confidence: Annotated[Number, Field(gt=0.5, lt=1)]
    required: Annotated[bool, AfterValidator(_demanded)]
    waivable: bool


@checked(frozen=True, kw_only=True, config=_STRICT)
class _PolicyText:
    """The TOML's own shape."""

    version: Whole
    state: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    profile: Literal["development", "production"]
    approvers: _Approvers
    rollback: _Rollback
    kill: _Kill
    domains: _Domains
    learning: LearningBudget
    traffic: TrafficBudget
    attestation: _Attestation
    scopes: _Scopes
    ledger: _Ledger
    gates: tuple[_Gate, ...]


_POLICY_TEXT = TypeAdapter(_PolicyText)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The rules in force, as parsed; `parse_policy` is the way to get one.

    Args:
        version: the policy's own number, raised by whoever changes it.
        state: random digits that name the one state it is for; through the digest of the policy
            they are in every signature, so that none counts on another state.
        k: signatures that a merge needs; `rollback_k`: that a rollback needs.
        emergency: those of the people below who may roll back alone; mostly nobody.
        group: the public key that the approvers' keys are shares of, in order; empty for none.
        domains: names a proposal may be for; `*` allows every name.
        owners: domains and the one tenant that each belongs to; every other domain is shared.
        attestation: labels that are accepted; an empty list accepts nothing.
        operators: who may pull the kill switch beside the approvers.
        after_kill: what is served then: `nothing`, or the bare `base`.
        alpha: what the looks of all proposals under this policy may cost; see `lifecycle.ledger`.
        content: all of this in the text's own shape, which the digest covers.
    """

    version: int
    state: str
    profile: str
    k: int
    group: str
    approvers: tuple[Approver, ...]
    rollback_k: int
    emergency: tuple[Approver, ...]
    operators: tuple[Approver, ...]
    after_kill: str
    domains: tuple[str, ...]
    owners: tuple[tuple[str, str], ...]
    learning: LearningBudget
    traffic: TrafficBudget
    attestation: tuple[str, ...]
    scopes: tuple[str, ...]
    alpha: float
    gates: tuple[GateSpec, ...]
    content: Mapping[str, object]

    @cached_property
    def digest(self) -> str:
        """Returns the digest of the content's canonical JSON; comments do not count."""
        return digest_json(dict(self.content))

    def allows_domain(self, domain: str, *, tenant: str) -> bool:
        """Returns whether a tenant may propose for `domain`: listed, and shared or its own."""
        return ("*" in self.domains or domain in self.domains) and self.may_use(domain, tenant)

    def may_use(self, domain: str, tenant: str) -> bool:
        """Returns whether a domain is shared or the tenant's own."""
        return dict(self.owners).get(domain, tenant) == tenant


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
    text = _read(toml)
    alone = text.rollback.emergency
    approvers, operators = (
        tuple(map(_approver, people)) for people in (text.approvers.list, text.kill.operators)
    )
    policy = Policy(
        version=text.version,
        state=text.state,
        profile=text.profile,
        k=text.approvers.k,
        group=text.approvers.group,
        approvers=approvers,
        rollback_k=text.rollback.k,
        emergency=tuple(
            p for p in (*approvers, *operators) if p.public.raw in text.rollback.emergency
        ),
        operators=operators,
        after_kill=text.kill.then,
        domains=text.domains.allowed,
        owners=tuple(sorted(text.domains.owners.items())),
        learning=text.learning,
        traffic=text.traffic,
        attestation=text.attestation.accept,
        scopes=text.scopes.names,
        alpha=text.ledger.alpha,
        gates=tuple(GateSpec(**gate.__dict__) for gate in text.gates),
        content=_POLICY_TEXT.dump_python(text, mode="json"),
    )
    _check_numbers(policy)
    _check_people(policy, alone)
    _check_gates(policy, known_gates)
    return policy


def _policy_act(toml: bytes, policy: Policy, *, state_version: int) -> SignedAct:
    return SignedAct(action=Action.POLICY, target=digest_bytes(toml), policy=policy.digest,
                     state_version=state_version, expires=STANDING)  # fmt: skip


def _read(toml: bytes) -> _PolicyText:
    if len(toml) > MAX_POLICY_BYTES:
        raise PolicyInvalid("the policy is over a megabyte", mend="shorten it")
    try:
        # As JSON: in a list of Python, a strict reader would ask for a tuple.
        return _POLICY_TEXT.validate_json(json.dumps(tomllib.loads(toml.decode("utf-8"))))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = {"missing": "is missing", "unexpected_keyword_argument": "is unknown"}
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyInvalid(f"the policy: {where} {why.get(first['type'], first['msg'])}",
                            mend="correct the policy's text") from error  # fmt: skip
    except (ValueError, TypeError, RecursionError) as error:
        raise PolicyInvalid(f"the policy is not TOML: {error}", mend="correct the text") from error


def _approver(person: _Person) -> Approver:
    try:
        return Approver(name=person.name, public=PublicKey(raw=person.public),
                        expires=person.expires)  # fmt: skip
    except SignatureInvalid as error:
        raise PolicyInvalid(f"{person.name}: {error.message}", mend=error.mend) from error


def _check_people(policy: Policy, emergency: Texts) -> None:
    keys = {approver.public.raw for approver in policy.approvers}
    everybody = [*policy.approvers, *policy.operators]
    doubled = (len({p.public.raw for p in everybody}), len({p.name for p in everybody}))
    if doubled != (len(everybody),) * 2:
        raise PolicyInvalid("two people share a key or a name", mend="list each person once")
    for where, k in (("approvers.k", policy.k), ("rollback.k", policy.rollback_k)):
        if k > len(keys):
            raise PolicyInvalid(f"{where} = {k}, but there are {len(keys)} approvers",
                                mend="declare 1 <= k <= n")  # fmt: skip
    partial = {approver.public.scheme.is_partial for approver in policy.approvers}
    if partial != {bool(policy.group)} or (policy.group and policy.rollback_k != policy.k):
        raise PolicyInvalid("a group's key goes with shares alone, and with rollback.k = k",
                            mend="list one ceremony's shares, or leave group empty")  # fmt: skip
    alone = [person for person in policy.emergency if not person.public.scheme.is_partial]
    if len(alone) != len(emergency):
        raise PolicyInvalid("an emergency key is no approver's or operator's, or only a share",
                            mend="list keys of people who are named here")  # fmt: skip
    if policy.group:
        publics = [bytes.fromhex(approver.public.raw) for approver in policy.approvers]
        check_group(bytes.fromhex(policy.group), publics, k=policy.k)
    if policy.profile == "production" and SOFTWARE_DEV in policy.attestation:
        raise PolicyInvalid(f'a production policy never accepts "{SOFTWARE_DEV}"',
                            mend="name a hardware attestation")  # fmt: skip


def _check_numbers(policy: Policy) -> None:
    bounds: list[tuple[object, str, str]] = [
        (gate, low, high) for gate in policy.gates
        for low, high in (("passes_required", "max_looks"), ("min_items", "max_items"))
    ]  # fmt: skip
    bounds.append((policy.traffic, "first_steps_per_hour", "max_steps_per_hour"))
    for table, low, high in bounds:
        if vars(table)[low] > vars(table)[high]:
            raise PolicyInvalid(f"{low} is over {high}", mend="correct the policy's text")


def _check_gates(policy: Policy, known: frozenset[str]) -> None:
    names = [spec.name for spec in policy.gates]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise PolicyInvalid(f"gates declared twice: {doubled}", mend="declare each gate once")
    if unknown := sorted(set(names) - known):
        raise PolicyInvalid(f"unknown gates: {unknown}", mend=f"known are {sorted(known)}")
    if missing := sorted(known - set(names)):
        raise PolicyInvalid(f"gates are missing: {missing}", mend="declare every known gate")
