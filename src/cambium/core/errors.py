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


class ConfigError(CambiumError, code="config_invalid"):
    """The server or a command was set up wrongly."""


class DataError(CambiumError, code="invalid_request"):
    """Input that cannot be used; nothing was changed."""


class ModelError(CambiumError, code="model_unusable"):
    """A model that cannot be loaded or run."""


class ConsentMissing(CambiumError, code="consent_missing"):
    """Proposing needs examples that were given with consent."""


class IllegalTransition(CambiumError, code="illegal_transition"):
    """An event that the proposal's state does not allow."""


class NotMergeable(CambiumError, code="not_mergeable"):
    """A merge whose preconditions do not hold; `detail["blockers"]` lists them."""


class Stopped(CambiumError, code="stopped"):
    """The server is closing; unfinished work goes on after the next start."""


class TrustError(CambiumError, code="trust_error"):
    """The root of what fails a check of trust; never a `ValueError`."""


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
