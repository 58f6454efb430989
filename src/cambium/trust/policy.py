"""The signed policy: one TOML text, read strictly, in force as long as no other replaces it."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    TypeAdapter,
    ValidationError,
)
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
            request teaches; `min_entropy`: mean entropy of the prompt, nats, likewise;
            `max_margin`: the likeliest token's mean lead in nats, up to which it does.
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
    max_margin: Annotated[Number, Field(ge=0)] | None = None


def _public(given: object) -> PublicKey:
    try:
        return given if isinstance(given, PublicKey) else PublicKey(raw=str(given))
    except SignatureInvalid as error:
        raise ValueError(error.message) from error


@checked(frozen=True, kw_only=True, config=_STRICT)
class Listed(Approver):
    """A person as a policy lists them: with a real key, and saying until when it counts."""

    name: Text
    public: Annotated[PublicKey, PlainValidator(_public), PlainSerializer(lambda key: key.raw)]
    expires: Annotated[int, Field(ge=0, le=MAX_NUMBER)] = Field(...)


@checked(frozen=True, kw_only=True, config=_STRICT)
class Role:
    """Any `k` of these people do it, counted by their keys."""

    k: Whole
    list: tuple[Listed, ...]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Approvers(Role):
    """Who lets a merge pass; `group` is the key that theirs are shares of, in order, or empty."""

    group: Annotated[str, Field(pattern="^([0-9a-f]{96})?$")]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Rollback:
    """How many approvers take back what was merged, and whose key does it alone; mostly none."""

    k: Whole
    emergency: Texts


@checked(frozen=True, kw_only=True, config=_STRICT)
class Kill:
    """What is served after a kill, and who may order one beside the approvers."""

    then: Literal["nothing", "base"]
    operators: tuple[Listed, ...]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Domains:
    """Names a proposal may be for (`*`: every one), and whose a domain is; others are shared."""

    allowed: SomeTexts
    owners: dict[Text, Text]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Attestation:
    """Labels that are accepted; an empty list accepts nothing."""

    accept: Texts


@checked(frozen=True, kw_only=True, config=_STRICT)
class Scopes:
    """Safety scopes that an adapter may be made for."""

    names: SomeTexts


@checked(frozen=True, kw_only=True, config=_STRICT)
class Ledger:
    """What the looks of all proposals under this policy may cost; see `lifecycle.ledger`."""

    alpha: Annotated[Number, Field(gt=0)]


@checked(frozen=True, kw_only=True, config=_STRICT)
class Gate(GateSpec):
    """A gate's bar, every field of it stated."""

    name: Text
    metric: Text
    threshold: Number
    passes_required: Whole = Field(...)
    max_looks: Annotated[Whole, Field(le=MAX_LOOKS)] = Field(...)
    min_items: Whole = Field(...)
    max_items: Whole = Field(...)
    confidence: Annotated[Number, Field(gt=0.5, lt=1)] = Field(...)
    required: Annotated[bool, Field(ge=True)] = Field(...)  # undemanded, it protects nothing
    waivable: bool = Field(...)


@checked(frozen=True, kw_only=True, config=_STRICT)
class Policy:
    """The rules in force, in the TOML's own shape; `parse_policy` is the way to get one.

    Args:
        version: the policy's own number, raised by whoever changes it.
        state: random digits that name the one state it is for; through the digest of the policy
            they are in every signature, so that none counts on another state.
        evaluators: whose signatures make evidence count; None for the server's own key.
        attesters: whose signatures make an attestation's result count; None likewise.
    """

    version: Whole
    state: Annotated[str, Field(pattern="^[0-9a-f]{32}$")]
    profile: Literal["development", "production"]
    approvers: Approvers
    rollback: Rollback
    kill: Kill
    domains: Domains
    learning: LearningBudget
    traffic: TrafficBudget
    attestation: Attestation
    scopes: Scopes
    ledger: Ledger
    gates: tuple[Gate, ...]
    evaluators: Role | None = None
    attesters: Role | None = None

    @cached_property
    def content(self) -> Mapping[str, object]:
        """Returns what the digest covers; a table that is not there is not in it."""
        return _POLICY.dump_python(self, mode="json", exclude_none=True)

    @cached_property
    def digest(self) -> str:
        """Returns the digest of the content's canonical JSON; comments do not count."""
        return digest_json(dict(self.content))

    @property
    def emergency(self) -> tuple[Approver, ...]:
        """Returns those of its people who may roll back alone."""
        alone = self.rollback.emergency
        people = (*self.approvers.list, *self.kill.operators)
        return tuple(person for person in people if person.public.raw in alone)

    @property
    def people(self) -> Mapping[str, tuple[Listed, ...]]:
        """Returns who is listed, by role."""
        evaluators, attesters = (r.list if r else () for r in (self.evaluators, self.attesters))
        return {"approver": self.approvers.list, "operator": self.kill.operators,
                "evaluator": evaluators, "attester": attesters}  # fmt: skip

    def allows_domain(self, domain: str, *, tenant: str) -> bool:
        """Returns whether a tenant may propose for `domain`: listed, and shared or its own."""
        listed = "*" in self.domains.allowed or domain in self.domains.allowed
        return listed and self.may_use(domain, tenant)

    def may_use(self, domain: str, tenant: str) -> bool:
        """Returns whether a domain is shared or the tenant's own."""
        return self.domains.owners.get(domain, tenant) == tenant


_POLICY = TypeAdapter(Policy)


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
    policy = _read(toml)
    _check_numbers(policy)
    _check_people(policy)
    _check_gates(policy, known_gates)
    return policy


def _policy_act(toml: bytes, policy: Policy, *, state_version: int) -> SignedAct:
    return SignedAct(action=Action.POLICY, target=digest_bytes(toml), policy=policy.digest,
                     state_version=state_version, expires=STANDING)  # fmt: skip


def _read(toml: bytes) -> Policy:
    if len(toml) > MAX_POLICY_BYTES:
        raise PolicyInvalid("the policy is over a megabyte", mend="shorten it")
    try:
        # As JSON: in a list of Python, a strict reader would ask for a tuple.
        return _POLICY.validate_json(json.dumps(tomllib.loads(toml.decode("utf-8"))))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = {"missing": "is missing", "unexpected_keyword_argument": "is unknown"}
        where = ".".join(str(part) for part in first["loc"])
        raise PolicyInvalid(f"the policy: {where} {why.get(first['type'], first['msg'])}",
                            mend="correct the policy's text") from error  # fmt: skip
    except (ValueError, TypeError, RecursionError) as error:
        raise PolicyInvalid(f"the policy is not TOML: {error}", mend="correct the text") from error


def _check_people(policy: Policy) -> None:
    approvers, group = policy.approvers.list, policy.approvers.group
    everybody = [person for people in policy.people.values() for person in people]
    doubled = (len({p.public.raw for p in everybody}), len({p.name for p in everybody}))
    if doubled != (len(everybody),) * 2:
        raise PolicyInvalid("two people share a key or a name, or one has two roles",
                            mend="list each person once")  # fmt: skip
    roles = (("approvers", policy.approvers), ("evaluators", policy.evaluators),
             ("attesters", policy.attesters))  # fmt: skip
    asked = [(name, role.k, len(role.list)) for name, role in roles if role]
    for where, k, n in (*asked, ("rollback", policy.rollback.k, len(approvers))):
        if k > n:
            raise PolicyInvalid(f"{where}.k = {k}, but {n} are listed", mend="declare 1 <= k <= n")
    partial = {approver.public.scheme.is_partial for approver in approvers}
    if partial != {bool(group)} or (group and policy.rollback.k != policy.approvers.k):
        raise PolicyInvalid("a group's key goes with shares alone, and with rollback.k = k",
                            mend="list one ceremony's shares, or leave group empty")  # fmt: skip
    alone = [person for person in policy.emergency if not person.public.scheme.is_partial]
    if len(alone) != len(policy.rollback.emergency):
        raise PolicyInvalid("an emergency key is no approver's or operator's, or only a share",
                            mend="list keys of people who are named here")  # fmt: skip
    if group:
        publics = [bytes.fromhex(approver.public.raw) for approver in approvers]
        check_group(bytes.fromhex(group), publics, k=policy.approvers.k)
    if policy.profile == "production" and SOFTWARE_DEV in policy.attestation.accept:
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
