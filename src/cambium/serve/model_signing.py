"""OpenSSF model signatures: a stable adapter's folder, signed so that others' tools verify it.

Source: OpenSSF Model Signing v1.0: an in-toto statement that lists every file by SHA-256, in a DSSE
envelope, in a Sigstore bundle that names the key by its hash. The tools take keys on NIST curves
only, so the server holds one beside its Ed25519 key, which vouches for it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from cambium.core.canonical import canonical_json
from cambium.core.errors import ConfigError
from cambium.serve.store.durable import write_durably
from cambium.serve.store.key_files import (
    SERVER_PASSPHRASE,
    lock_key,
    passphrase_in,
    pem_of,
    private_key,
)
from cambium.trust.dsse import PAYLOAD_TYPE, STATEMENT_TYPE, encode_for_signing
from cambium.trust.keys import SigningKey

KEY_FILE = "model-signing.key"
SIGNATURE_FILE = "model.sig"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
VOUCHED_TYPE = "cambium/model-signing-key/v1"
# What the specification leaves out of every signature, whatever lies there.
_IGNORED = (SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore")


class ModelSigner:
    """Signs folders with the state's own key on P-256, made when it is first needed.

    Its file is encrypted as the server's own is; see `server_identity`.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / KEY_FILE
        self._key: ec.EllipticCurvePrivateKey | None = None
        self._lock = threading.Lock()
        if self._path.exists():
            self._load()  # one that lies open is encrypted now, not when somebody first exports

    def public_pem(self) -> str:
        """Returns the public key as the tools take it."""
        return self._public().decode("ascii")

    def vouched(self, server: SigningKey) -> dict[str, object]:
        """Returns the public key under the server's signature."""
        record: dict[str, object] = {"type": VOUCHED_TYPE, "pem": self.public_pem()}
        return {
            "pem": record["pem"],
            "payload": record,
            "key_id": server.key_id,
            "signature": server.sign(canonical_json(record)),
        }

    def bundle(self, name: str, files: Mapping[str, bytes]) -> bytes:
        """Returns the content of `model.sig` for a folder that holds exactly these files."""
        payload = canonical_json(_statement(name, files))
        signature = self._load().sign(
            encode_for_signing(PAYLOAD_TYPE, payload), ec.ECDSA(hashes.SHA256())
        )
        hint = hashlib.sha256(self._public()).hexdigest()
        bundle = {
            "mediaType": BUNDLE_TYPE,
            "verificationMaterial": {"publicKey": {"hint": hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode("ascii"),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode("ascii"), "keyid": ""}],
            },
        }
        return json.dumps(bundle).encode("ascii")

    def _public(self) -> bytes:
        return (
            self._load()
            .public_key()
            .public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )

    def _load(self) -> ec.EllipticCurvePrivateKey:
        with self._lock:
            if self._key is None:
                passphrase = passphrase_in(SERVER_PASSPHRASE)
                if not self._path.exists():
                    new = ec.generate_private_key(ec.SECP256R1())
                    write_durably(self._path, pem_of(new, passphrase), once=True)
                if passphrase:
                    lock_key(self._path, passphrase)
                key = private_key(
                    self._path.read_bytes(),
                    self._path,
                    passphrase=passphrase,
                    variable=SERVER_PASSPHRASE,
                )
                if not isinstance(key, ec.EllipticCurvePrivateKey):
                    raise ConfigError(f"{self._path} is no key on a NIST curve",
                                      mend="restore it from a backup")  # fmt: skip
                self._key = key
            return self._key


def _statement(name: str, files: Mapping[str, bytes]) -> dict[str, object]:
    digests = {path: hashlib.sha256(files[path]) for path in sorted(files)}
    root = hashlib.sha256(b"".join(d.digest() for d in digests.values()))
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root.hexdigest()}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": list(_IGNORED),
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digest.hexdigest()}
                for path, digest in digests.items()
            ],
        },
    }
