"""The software attester of the development profile, labelled `software-dev` wherever it goes.

It proves only that this process held this key and answered this nonce. It proves nothing about
the host, the loaded code, the secrecy of memory or any hardware: whoever can read the root key's
file can make the same evidence. No production policy accepts it.
"""

from __future__ import annotations

from cambium.core.canonical import canonical_json
from cambium.trust.attestation import (
    CLAIMS_TYPE,
    MAX_LIFETIME_S,
    PROFILES,
    SOFTWARE_DEV,
    Evidence,
    TrustedRoot,
    endorsement_bytes,
)
from cambium.trust.keys import SigningKey, generate_key


class SoftwareDevAttester:
    """Answers nonces with a session key that lives in this process and that a root vouched for."""

    def __init__(self, root: SigningKey) -> None:
        self._session = generate_key()
        self._root = root.public_key
        message = endorsement_bytes(self._session.public_key, SOFTWARE_DEV)
        self._endorsement = root.sign(message)

    @property
    def trusted_root(self) -> TrustedRoot:
        """Returns the root under the one label that it can vouch for."""
        return TrustedRoot(profile=SOFTWARE_DEV, public=self._root)

    def attest(self, nonce: str, *, now: int, measurement: str) -> Evidence:
        """Returns evidence that answers `nonce`, valid for 300 s; `measurement` is a digest."""
        profile = PROFILES[SOFTWARE_DEV]
        payload = canonical_json(
            {
                "type": CLAIMS_TYPE,
                "profile": SOFTWARE_DEV,
                "hardware_rooted": profile.hardware_rooted,
                "debug": profile.debug,
                "nonce": nonce,
                "session": self._session.key_id,
                "issued_at": now,
                "expires_at": now + MAX_LIFETIME_S,
                "measurement": measurement,
            }
        )
        return Evidence(
            root=self._root.key_id,
            session=self._session.public_key.raw,
            endorsement=self._endorsement,
            payload=payload,
            signature=self._session.sign(payload),
        )
