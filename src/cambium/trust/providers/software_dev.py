"""The software provider of the development profile, labelled `software-dev` wherever it goes.

It proves only that this process held this key and answered this nonce. It proves nothing about
the host, the loaded code, the secrecy of memory or any hardware: whoever can read the root key's
file can make the same evidence. No production policy accepts it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cambium.core.canonical import canonical_json
from cambium.core.errors import AttestationRefused, SignatureInvalid
from cambium.trust.attestation import MAX_LIFETIME_S, SOFTWARE_DEV, Claims, require
from cambium.trust.keys import PublicKey, SigningKey, generate_key
from cambium.trust.providers.claims import read_claims

CLAIMS_TYPE = "cambium/attestation/v1"
ENDORSEMENT_TYPE = "cambium/attestation-session/v1"
_CLAIMS = {"type", "profile", "hardware_rooted", "debug", "nonce", "session", "issued_at",
           "expires_at", "measurement"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SoftwareEvidence:
    """An answer to one nonce.

    Args:
        root: key id of the root that endorsed the session key.
        session: the session's public key, as raw hex.
        endorsement: the root's signature over the session key and its profile.
        payload: canonical JSON of the claims; `signature`: the session key's over it.
    """

    root: str
    session: str
    endorsement: str
    payload: bytes
    signature: str


class SoftwareDevAttester:
    """Answers nonces with a session key that lives in this process and that a root vouched for."""

    def __init__(self, root: SigningKey) -> None:
        self._session = generate_key()
        self._root = root.public_key
        self._endorsement = root.sign(endorsement_bytes(self._session.public_key))

    @property
    def verifier(self) -> SoftwareDevVerifier:
        """Returns what trusts this attester's root, for this one label."""
        return SoftwareDevVerifier(root=self._root)

    def attest(self, nonce: str, *, now: int, measurement: str) -> SoftwareEvidence:
        """Returns evidence that answers `nonce`, valid for 300 s; `measurement` is a digest."""
        payload = canonical_json(
            {
                **_derived(nonce, self._session.public_key),
                "issued_at": now,
                "expires_at": now + MAX_LIFETIME_S,
                "measurement": measurement,
            }
        )
        return SoftwareEvidence(
            root=self._root.key_id,
            session=self._session.public_key.raw,
            endorsement=self._endorsement,
            payload=payload,
            signature=self._session.sign(payload),
        )


@dataclass(frozen=True, kw_only=True)
class SoftwareDevVerifier:
    """Trusts one root to vouch for sessions, as software and as nothing else."""

    root: PublicKey

    @property
    def label(self) -> str:
        """Returns `software-dev`."""
        return SOFTWARE_DEV

    def verify(self, evidence: SoftwareEvidence, *, nonce: str) -> Claims:
        """Returns the claims of evidence that the root vouches for and that answers `nonce`.

        Raises:
            AttestationRefused: says which check failed.
        """
        require(self.root.key_id == evidence.root, "no trusted root has the key that vouched")
        try:
            session = PublicKey(raw=evidence.session)
        except SignatureInvalid as error:
            raise AttestationRefused(
                "the session key is no public key", mend="attest again"
            ) from error
        endorsed = self.root.verify(endorsement_bytes(session), evidence.endorsement)
        require(endorsed, "the root did not vouch for this session key under this label")
        require(session.verify(evidence.payload, evidence.signature), "the claims were not signed")
        claims = read_claims(evidence.payload, _CLAIMS)
        for name, must in _derived(nonce, session).items():
            same = type(claims[name]) is type(must) and claims[name] == must
            require(same, f"the claim {name!r} is not what the verifier derived")
        issued_at, expires_at = claims["issued_at"], claims["expires_at"]
        if type(issued_at) is not int or type(expires_at) is not int:
            raise AttestationRefused("the claims' times are not whole seconds", mend="attest again")
        return Claims(
            session=session.key_id,
            measurement=str(claims["measurement"]),
            issued_at=issued_at,
            expires_at=expires_at,
        )


def endorsement_bytes(session: PublicKey) -> bytes:
    """Returns what a root signs to vouch for a session key."""
    return canonical_json(
        {"type": ENDORSEMENT_TYPE, "session": session.raw, "profile": SOFTWARE_DEV}
    )


def _derived(nonce: str, session: PublicKey) -> dict[str, object]:
    return {
        "type": CLAIMS_TYPE,
        "profile": SOFTWARE_DEV,
        "hardware_rooted": False,
        "debug": True,
        "nonce": nonce,
        "session": session.key_id,
    }
