"""Every error a caller can meet, under one root, each with a code that never changes.

A message says what is wrong and why; `mend` says what to do about it. HTTP statuses stand in
one table, `cambium.serve.api.problems`. A gate's "no" is not an error: it is a `Verdict`.
"""

from __future__ import annotations


class CambiumError(Exception):
    """The root: something went wrong that the caller can read about."""

    code = "internal"

    def __init__(
        self, message: str, *, mend: str = "", detail: dict[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend
        self.detail = detail or {}

    def one_line(self) -> str:
        """Returns what, why and the mend on one line."""
        line = " ".join(self.message.split())
        return f"{line}: {self.mend}" if self.mend else line


class SystemKilled(CambiumError):
    """Somebody pulled the kill switch; only the quorum lifts it."""

    code = "killed"


class ConfigError(CambiumError):
    """The server or a command was set up wrongly."""

    code = "config_invalid"


class DataError(CambiumError):
    """Input that cannot be used; nothing was changed."""

    code = "invalid_request"


class NotUtf8(DataError):
    """Bytes that are not UTF-8 text."""

    code = "not_utf8"


class TooLarge(DataError):
    """Input over a bound of the policy."""

    code = "too_large"


class LossUnavailable(DataError):
    """A loss this server does not offer."""

    code = "loss_unavailable"


class NotFound(CambiumError):
    """A name that nothing answers to."""

    code = "not_found"


class ModelNotFound(NotFound):
    """A model or adapter name that nothing answers to; never the base instead."""

    code = "model_not_found"


class AdapterNotFound(NotFound):
    """No adapter has this name or digest."""

    code = "adapter_not_found"


class DomainNotFound(NotFound):
    """The policy does not list this domain, or no adapter serves it."""

    code = "domain_not_found"


class ProposalNotFound(NotFound):
    """No proposal has this id."""

    code = "proposal_not_found"


class RevisionNotFound(NotFound):
    """No revision has this number."""

    code = "revision_not_found"


class TraceNotFound(NotFound):
    """No answered request has this id."""

    code = "trace_not_found"


class ModelError(CambiumError):
    """A model that cannot be loaded or run."""

    code = "model_unusable"


class AdapterExpired(CambiumError):
    """An ephemeral adapter past its time to live."""

    code = "adapter_expired"


class AdapterQuarantined(CambiumError):
    """An adapter that failed its alignment check; it stays out for good."""

    code = "adapter_quarantined"


class Unauthenticated(CambiumError):
    """No bearer token, or one that this server does not know."""

    code = "unauthenticated"


class RoleMissing(CambiumError):
    """The token's roles do not include what the route asks for."""

    code = "role_missing"


class RateLimited(CambiumError):
    """More requests than the token may send; `detail["retry_after_s"]` says when to go on."""

    code = "rate_limited"


class ConsentMissing(CambiumError):
    """Proposing needs examples that were given with consent."""

    code = "consent_missing"


class BudgetExceeded(CambiumError):
    """The policy's budget for this adapter or this server is spent."""

    code = "budget_exceeded"


class IllegalTransition(CambiumError):
    """An event that the proposal's state does not allow."""

    code = "illegal_transition"


class NotMergeable(CambiumError):
    """A merge whose preconditions do not hold; `detail["blockers"]` lists them."""

    code = "not_mergeable"


class GateBroken(CambiumError):
    """A gate that could not be measured."""

    code = "gate_broken"


class StorageFull(CambiumError):
    """The disk took no more; nothing was changed."""

    code = "storage_full"


class StateLocked(CambiumError):
    """Another process holds the state folder."""

    code = "state_locked"


class StateCorrupt(CambiumError):
    """Stored bytes do not hash to their name, or a row refers to missing bytes."""

    code = "state_corrupt"


class Stopped(CambiumError):
    """The server is closing; unfinished work goes on after the next start."""

    code = "stopped"


class TrustError(CambiumError):
    """The root of what fails a check of trust; never a `ValueError`."""

    code = "trust_error"


class PolicyMissing(TrustError):
    """No signed policy: the state can learn but not merge."""

    code = "policy_missing"


class PolicyInvalid(TrustError):
    """A policy that cannot be read, or whose signature does not verify."""

    code = "policy_invalid"


class SignatureInvalid(TrustError):
    """A signature that does not verify over exactly this payload."""

    code = "signature_invalid"


class KeyUnknown(TrustError):
    """A key that is not enrolled, or is revoked."""

    code = "key_unknown"


class DuplicateSigner(TrustError):
    """The same key bytes signed already; they count once."""

    code = "duplicate_signer"


class ThresholdNotMet(TrustError):
    """Fewer distinct valid signatures than the policy asks for."""

    code = "quorum_missing"


class Expired(TrustError):
    """A signature or attestation past its time."""

    code = "signature_expired"


class ReplayDetected(TrustError):
    """A signature made for an earlier state version."""

    code = "state_version_stale"


class DigestMismatch(TrustError):
    """Bytes or a target that differ from what was signed."""

    code = "digest_mismatch"


class AttestationRefused(TrustError):
    """Evidence that the policy's attestation requirement does not accept."""

    code = "attestation_refused"


class AuditBroken(TrustError):
    """The audit log does not verify."""

    code = "audit_broken"
