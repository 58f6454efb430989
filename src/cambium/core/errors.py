"""Every error a caller can meet, under one root, each with a code that never changes.

A message says what is wrong and why; `mend` says what to do about it. HTTP statuses stand in
one table, `cambium.serve.api.problems`. A gate's "no" is not an error: it is a `Verdict`.
"""

from __future__ import annotations

from typing import ClassVar


class CambiumError(Exception):
    """The root: something went wrong that the caller can read about."""

    code: ClassVar[str] = "internal"

    def __init_subclass__(cls, *, code: str) -> None:
        super().__init_subclass__()
        cls.code = code

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


class SystemKilled(CambiumError, code="killed"):
    """Somebody pulled the kill switch; only the quorum lifts it."""


class ConfigError(CambiumError, code="config_invalid"):
    """The server or a command was set up wrongly."""


class DataError(CambiumError, code="invalid_request"):
    """Input that cannot be used; nothing was changed."""


class NotUtf8(DataError, code="not_utf8"):
    """Bytes that are not UTF-8 text."""


class TooLarge(DataError, code="too_large"):
    """Input over a bound of the policy."""


class LossUnavailable(DataError, code="loss_unavailable"):
    """A loss this server does not offer."""


class NotFound(CambiumError, code="not_found"):
    """A name that nothing answers to."""


class ModelNotFound(NotFound, code="model_not_found"):
    """A model or adapter name that nothing answers to; never the base instead."""


class AdapterNotFound(NotFound, code="adapter_not_found"):
    """No adapter has this name or digest."""


class DomainNotFound(NotFound, code="domain_not_found"):
    """The policy does not list this domain, or no adapter serves it."""


class ProposalNotFound(NotFound, code="proposal_not_found"):
    """No proposal has this id."""


class RevisionNotFound(NotFound, code="revision_not_found"):
    """No revision has this number."""


class TraceNotFound(NotFound, code="trace_not_found"):
    """No answered request has this id."""


class ModelError(CambiumError, code="model_unusable"):
    """A model that cannot be loaded or run."""


class AdapterExpired(CambiumError, code="adapter_expired"):
    """An ephemeral adapter past its time to live."""


class AdapterQuarantined(CambiumError, code="adapter_quarantined"):
    """An adapter that failed its alignment check; it stays out for good."""


class Unauthenticated(CambiumError, code="unauthenticated"):
    """No bearer token, or one that this server does not know."""


class RoleMissing(CambiumError, code="role_missing"):
    """The token's roles do not include what the route asks for."""


class RateLimited(CambiumError, code="rate_limited"):
    """More requests than the token may send; `detail["retry_after_s"]` says when to go on."""


class ConsentMissing(CambiumError, code="consent_missing"):
    """Proposing needs examples that were given with consent."""


class BudgetExceeded(CambiumError, code="budget_exceeded"):
    """The policy's budget for this adapter or this server is spent."""


class IllegalTransition(CambiumError, code="illegal_transition"):
    """An event that the proposal's state does not allow."""


class NotMergeable(CambiumError, code="not_mergeable"):
    """A merge whose preconditions do not hold; `detail["blockers"]` lists them."""


class GateBroken(CambiumError, code="gate_broken"):
    """A gate that could not be measured."""


class StorageFull(CambiumError, code="storage_full"):
    """The disk took no more; nothing was changed."""


class StateLocked(CambiumError, code="state_locked"):
    """Another process holds the state folder."""


class StateCorrupt(CambiumError, code="state_corrupt"):
    """Stored bytes do not hash to their name, or a row refers to missing bytes."""


class Stopped(CambiumError, code="stopped"):
    """The server is closing; unfinished work goes on after the next start."""


class TrustError(CambiumError, code="trust_error"):
    """The root of what fails a check of trust; never a `ValueError`."""


class PolicyMissing(TrustError, code="policy_missing"):
    """No signed policy: the state can learn but not merge."""


class PolicyInvalid(TrustError, code="policy_invalid"):
    """A policy that cannot be read, or whose signature does not verify."""


class SignatureInvalid(TrustError, code="signature_invalid"):
    """A signature that does not verify over exactly this payload."""


class KeyUnknown(TrustError, code="key_unknown"):
    """A key that is not enrolled, or is revoked."""


class DuplicateSigner(TrustError, code="duplicate_signer"):
    """The same key bytes signed already; they count once."""


class ThresholdNotMet(TrustError, code="quorum_missing"):
    """Fewer distinct valid signatures than the policy asks for."""


class Expired(TrustError, code="signature_expired"):
    """A signature or attestation past its time."""


class ReplayDetected(TrustError, code="state_version_stale"):
    """A signature made for an earlier state version."""


class DigestMismatch(TrustError, code="digest_mismatch"):
    """Bytes or a target that differ from what was signed."""


class AttestationRefused(TrustError, code="attestation_refused"):
    """Evidence that the policy's attestation requirement does not accept."""


class AuditBroken(TrustError, code="audit_broken"):
    """The audit log does not verify."""
