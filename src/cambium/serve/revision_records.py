"""Revisions as rows: signed by the server's key, and read back only where that holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cambium.core.canonical import canonical_json
from cambium.core.errors import DataError, DigestMismatch, SignatureInvalid
from cambium.core.nouns import AdapterRef, BankEntry, Revision
from cambium.serve.store.records import RevisionRow
from cambium.trust.keys import PublicKey, SigningKey


def signed_row(revision: Revision, key: SigningKey, *, at: int) -> RevisionRow:
    """Returns a revision as it is stored: manifest, digest and the server's signature."""
    manifest = revision.manifest()
    return RevisionRow(
        number=revision.number,
        digest=revision.digest,
        manifest=manifest,
        signature=sign_manifest(manifest, key),
        at=at,
    )


def verified_revision(row: RevisionRow, server_public: PublicKey) -> Revision:
    """Returns a stored revision whose signature and digest hold.

    The key is the one in the server's hands: keys in the same database would vouch for whoever
    can write to it.

    Raises:
        SignatureInvalid: the server's key did not sign this manifest.
        DigestMismatch: the row's digest or number is another one.
    """
    signature = row.signature.get("signature")
    if not isinstance(signature, str) or not server_public.verify(
        canonical_json(row.manifest), signature
    ):
        raise SignatureInvalid(f"revision {row.number} is not signed by this state's server",
                               mend="restore the state from a backup")  # fmt: skip
    revision = revision_from_manifest(row.manifest)
    if (revision.digest, revision.number) != (row.digest, row.number):
        raise DigestMismatch(f"revision {row.number} differs from its digest",
                             mend="restore the state from a backup")  # fmt: skip
    return revision


def sign_manifest(manifest: Mapping[str, Any], key: SigningKey) -> dict[str, object]:
    """Returns the server's signature as it stands beside a manifest."""
    return {"key_id": key.key_id, "signature": key.sign(canonical_json(manifest))}


def revision_from_manifest(manifest: Mapping[str, Any]) -> Revision:
    """Reads a manifest as `Revision.manifest` writes it.

    Raises:
        DataError: a field is missing or another type of record was given.
    """
    try:
        if manifest["type"] != "cambium/revision/v1":
            raise KeyError("type")
        bank = tuple(
            BankEntry(domain=domain, router_digest=entry["router"],
                      adapter=AdapterRef(name=entry["adapter"], digest=entry["digest"]))
            for domain, entry in sorted(manifest["bank"].items())
        )  # fmt: skip
        same = ("number", "kind", "created_at", "attestation", "parent", "of")
        return Revision(base_digest=manifest["base"], bank=bank, policy_digest=manifest["policy"],
                   proposal_digest=manifest["proposal"],
                   **{name: manifest[name] for name in same})  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a revision's manifest: {error}", mend="restore a backup") from error
