"""Adapters and revisions as folders; what was merged carries a signature that others verify."""

from __future__ import annotations

import io
import zipfile
from typing import TYPE_CHECKING
from urllib.parse import quote

from cambium.core.canonical import canonical_json
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.lora import concatenated, to_bytes
from cambium.serve.bank import stored_bytes
from cambium.serve.errors import AdapterNotFound, NotFound
from cambium.serve.model_signing import SIGNATURE_FILE
from cambium.serve.quarantined import refuse_quarantined
from cambium.serve.revision_records import verified_revision

if TYPE_CHECKING:
    from cambium.serve.runtime import Runtime

REVISION_FILE = "revision.json"
ROUTER_FILE = "router.safetensors"


def export_files(runtime: Runtime, name: str, digest: str | None) -> dict[str, bytes]:
    """Returns the files of an adapter's folder by name.

    A version comes as the very bytes that were frozen, with `model.sig` if it was ever merged. A
    live adapter acts on top of its parent, so it comes with it, side by side as one adapter of the
    summed rank, which is exact; nobody approved that, and nothing is signed.

    Raises:
        AdapterNotFound, AdapterExpired, AdapterQuarantined: there is nothing to export.
        DigestMismatch: stored bytes are not what the digest names.
    """
    live = runtime.adapters.find_live(name, digest)
    if live is not None:
        parts = [*live.parent, live.lora]
        lora = concatenated(parts) if len(parts) > 1 else live.lora
        return _files(to_bytes(lora, fan_in_fan_out=runtime.base.transposed))
    try:
        with runtime.state.read() as tx:
            refuse_quarantined(tx, name, str(digest))
            version = tx.get_version(name, str(digest))
            merged = {
                (entry["adapter"], entry["digest"])
                for row in tx.list_revisions()
                for entry in _bank(row.manifest)
            }
    except NotFound as error:
        raise AdapterNotFound(
            f"no kept version is {name}@{digest}"[:160], mend="see GET /adapters/NAME"
        ) from error
    files = _files(stored_bytes(runtime.state, version))
    if (name, digest) in merged:
        folder = f"{name.rpartition(':')[2]}@{digest}"
        files[SIGNATURE_FILE] = runtime.model_signer.bundle(folder, files)
    return files


def export_revision(runtime: Runtime, number: int) -> dict[str, bytes]:
    """Returns the files of a revision's folder by path, signed together.

    `revision.json` is the manifest under the server's signature; each domain has a folder with
    the very bytes that the manifest names: an adapter that PEFT loads, and its router's index.

    Raises:
        RevisionNotFound: there is no such revision.
        AdapterQuarantined: it holds what was taken out of service.
        SignatureInvalid, DigestMismatch: stored bytes are not what was signed.
    """
    state = runtime.state
    with state.read() as tx:
        server = runtime.identity.key_in(tx).public_key
        row = tx.get_revision(number)
        revision = verified_revision(row, server)
        versions = {}
        for entry in revision.bank:
            refuse_quarantined(tx, entry.adapter.name, entry.adapter.digest)
            versions[entry] = tx.get_version(entry.adapter.name, entry.adapter.digest)
    signed = {"manifest": row.manifest, "signature": row.signature, "public": server.raw}
    files = {REVISION_FILE: canonical_json(signed)}
    for entry, version in versions.items():
        folder = folder_of(entry.domain)
        for name, content in _files(stored_bytes(state, version)).items():
            files[f"{folder}/{name}"] = content
        files[f"{folder}/{ROUTER_FILE}"] = state.blobs.get(entry.router_digest)
    files[SIGNATURE_FILE] = runtime.model_signer.bundle(f"revision-{number}", files)
    return files


def folder_of(domain: str) -> str:
    """Returns a domain as one name of a folder, whatever characters it holds."""
    return quote(domain, safe="").replace(".", "%2E")


def zipped(files: dict[str, bytes]) -> bytes:
    """Returns the files as one archive; the same files give the same bytes."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name), files[name])
    return written.getvalue()


def _files(data: AdapterBytes) -> dict[str, bytes]:
    return {"adapter_config.json": data.config, "adapter_model.safetensors": data.weights}


def _bank(manifest: dict[str, object]) -> list[dict[str, str]]:
    bank = manifest["bank"]
    return list(bank.values()) if isinstance(bank, dict) else []
