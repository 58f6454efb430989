"""Rows as frozen values: what the store takes and gives, never a live database object.

Times are whole milliseconds since 1970, UTC. A field that holds JSON takes plain JSON values
and comes back equal; sequences come back as tuples where the field is a tuple.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cambium.core.nouns import DEFAULT_TENANT, ProposalState
from cambium.serve.adapter_states import AdapterState


def _nothing() -> dict[str, object]:
    return {}


@dataclass(frozen=True, kw_only=True)
class AdapterRecord:
    """An adapter as it now stands; one row for each name.

    Args:
        digest: of the adapter's bytes (`AdapterBytes.digest`); what `name@digest` names.
        config_json: the exact text of `adapter_config.json`, which the digest covers.
        parent_revision: number of the revision that it was started from.
        expires_at: None for an adapter without a time to live.
        weights_blob: digest of `adapter_model.safetensors`; None once it has expired.
        optimizer_blob: digest of the optimizer's state; None before the first step.
        steps: optimizer steps taken so far.
        owner: the process that teaches it, where several share the state; it counts while that
            process lives.
    """

    name: str
    digest: str
    state: AdapterState
    tenant: str
    domain: str | None
    scope: str
    config_json: str
    parent_revision: int
    created_at: int
    expires_at: int | None
    weights_blob: str | None
    optimizer_blob: str | None = None
    steps: int = 0
    detail: dict[str, object] = field(default_factory=_nothing)
    owner: str | None = None

    def ended(self) -> AdapterRecord:
        """Returns the row of this adapter once its time is over; a quarantine stays one."""
        quarantined = self.state is AdapterState.QUARANTINED
        state = AdapterState.QUARANTINED if quarantined else AdapterState.EXPIRED
        return replace(self, state=state, weights_blob=None, optimizer_blob=None)


@dataclass(frozen=True, kw_only=True)
class VersionRecord:
    """A frozen or stable version, which `name@digest` finds for ever."""

    name: str
    digest: str
    config_json: str
    weights_blob: str
    created_at: int


@dataclass(frozen=True, kw_only=True)
class LearnRecord:
    """One accepted call to learn.

    Args:
        losses: mean loss of each step, nats per token.
        num_examples: examples given; the examples themselves are rows only with consent.
        consent: what was consented to; None without consent.
        manifest: what derives the update again; empty for calls from before there were any.
        id: given by the store.
    """

    adapter: str
    at: int
    digest_before: str
    digest_after: str
    losses: tuple[float, ...]
    steps: int
    num_examples: int
    consent: str | None
    source: str | None
    monitors: dict[str, object] = field(default_factory=_nothing)
    manifest: dict[str, object] = field(default_factory=_nothing)
    id: int | None = None


@dataclass(frozen=True, kw_only=True)
class ExampleRecord:
    """One example that was given with consent.

    Args:
        digest: of the example's content, by which the same example is kept once.
        blob: digest of the stored bytes.
        consent: what was consented to; never empty.
        id: given by the store.
    """

    adapter: str
    digest: str
    blob: str
    kind: str
    source: str | None
    consent: str
    at: int
    id: int | None = None


@dataclass(frozen=True, kw_only=True)
class ReplayRecord:
    """One window of a kept example in an adapter's replay buffer; fields as in `ReplayRow`.

    Args:
        key: the example's digest, `:` and the window's number.
        embedding: float32, little-endian.
    """

    adapter: str
    key: str
    pointer: str
    source: str
    consent: str
    num_tokens: int
    embedding: bytes
    loss: float
    novelty: float
    born: int
    replays: int
    in_reservoir: bool


@dataclass(frozen=True, kw_only=True)
class ProposalRow:
    """A proposal: its state for lists, and the whole record."""

    id: str
    state: ProposalState
    record: dict[str, object]
    created_at: int
    updated_at: int


@dataclass(frozen=True, kw_only=True)
class ProposalHead:
    """What a list of proposals is ordered by, without their records."""

    id: str
    state: ProposalState
    created_at: int


@dataclass(frozen=True, kw_only=True)
class EvidenceRow:
    """One signed statement about a proposal's candidate; `digest` is of the envelope's JSON."""

    digest: str
    proposal: str
    look: int
    gate: str
    envelope: dict[str, object]
    at: int


@dataclass(frozen=True, kw_only=True)
class ApprovalRow:
    """One person's signature on a proposal."""

    proposal: str
    key_id: str
    signature: dict[str, object]
    at: int


@dataclass(frozen=True, kw_only=True)
class RevisionRow:
    """A signed revision; `digest` is of the manifest's JSON."""

    number: int
    digest: str
    manifest: dict[str, object]
    signature: dict[str, object]
    at: int


@dataclass(frozen=True, kw_only=True)
class TokenRow:
    """A bearer token's standing; the token itself is known to its holder alone.

    Args:
        hash: SHA-256 of the token, which is too random to be guessed from it.
        requests_per_minute: what its holder may send, all of it at once after a quiet minute.
        expires_at: None for a token without an end.
    """

    token_id: str
    hash: str
    name: str
    tenant: str
    roles: tuple[str, ...]
    requests_per_minute: int
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None


@dataclass(frozen=True, kw_only=True)
class TraceRow:
    """What stood behind one answer."""

    request_id: str
    at: int
    record: dict[str, object]
    tenant: str = DEFAULT_TENANT


@dataclass(frozen=True, kw_only=True)
class PolicyRow:
    """A signed policy; `toml` is the exact text that was signed."""

    digest: str
    toml: str
    signature: dict[str, object]
    created_at: int


@dataclass(frozen=True, kw_only=True)
class KeyRow:
    """An enrolled public key; `revoked_at` is None while it counts."""

    key_id: str
    name: str
    role: str
    public: str
    enrolled_at: int
    revoked_at: int | None = None
