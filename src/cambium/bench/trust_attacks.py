"""Attacks that need no server: on signatures, manifests, the log, evidence and adapter files.

Each returns how many were tried and how many got through. What is attacked is first shown to be
accepted as it is, since otherwise everything would be refused for the wrong reason.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cambium.core.canonical import canonical_json, digest_bytes
from cambium.core.errors import AuditBroken, CambiumError, DataError
from cambium.core.nouns import Act, Action, AdapterRef, BankEntry, Revision, SignedAct
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.lora import LinearSite, LoraConfig, fresh_lora, from_bytes, to_bytes
from cambium.trust.acts import (
    check_act,
    sign_act,
)
from cambium.trust.attestation import MAX_LIFETIME_S, SOFTWARE_DEV, appraise, new_nonce
from cambium.trust.audit import (
    AuditEntry,
    Checkpoint,
    check_grown,
    grow,
    make_entry,
    sign_checkpoint,
    to_text,
    verify_log,
)
from cambium.trust.audit import (
    to_bytes as hash_bytes,
)
from cambium.trust.keys import generate_key
from cambium.trust.merkle import GrowingTree, appended, consistency_proof
from cambium.trust.providers.software_dev import SoftwareDevAttester

NOW = 1_700_000_000
DIGEST = digest_bytes(b"target")
LOG_SIZE, SEEN_SIZE = 120, 90


@dataclass(frozen=True, kw_only=True)
class Attacks:
    """How many were tried, and how many got through."""

    tried: int
    through: int


class ControlFailed(Exception):
    """The untouched original was refused, so the attacks would show nothing."""


def mutations() -> Attacks:
    """Signatures over acts and over revisions' manifests, with bytes or fields changed."""
    key, pick = generate_key(), random.Random(0)
    act = SignedAct(
        action=Action.APPROVE, target=DIGEST, state_version=3, expires=NOW + 60, policy=DIGEST
    )
    expected = Act(action=Action.APPROVE, target=DIGEST, state_version=3, policy=DIGEST)
    good = sign_act(key, act)

    def accepts(signature: Any) -> bool:
        try:
            check_act(signature, public_key=key.public_key, expected=expected, now=NOW)
        except CambiumError:
            return False
        return True

    _control(accepts(good))
    found = [accepts(replace(good, signature=s)) for s in _flipped(good.signature, 6_000, pick)]
    for field in ("target", "policy", "domain_tag"):
        text = getattr(act, field)
        changed = (text[:i] + c + text[i + 1 :] for i in range(len(text)) for c in "0f:")
        found += [
            accepts(replace(good, act=replace(act, **{field: t}))) for t in changed if t != text
        ]
    numbers = [n for n in range(1_000) if n != 3]
    found += [accepts(replace(good, act=replace(act, state_version=n))) for n in numbers]
    manifest = canonical_json(_revision().manifest())
    signature = key.sign(manifest)
    _control(key.public_key.verify(manifest, signature))
    for position in range(len(manifest)):
        for bit in range(8):
            edited = bytearray(manifest)
            edited[position] ^= 1 << bit
            found.append(key.public_key.verify(bytes(edited), signature))
    return Attacks(tried=len(found), through=sum(found))


def log_edits() -> Attacks:
    """Edits, deletions, other orders, forks and cuts, hashed and signed again by the key's holder.

    A witness saw the first entries; it is shown the best proof that the new tree can give. What is
    changed after that is held against the signed checkpoint, as whoever reads the log does.
    """
    server = generate_key()
    log = [make_entry(n + 1, at=n, kind="thing", body={"n": n}) for n in range(LOG_SIZE)]
    seen, now = (_signed(log[:n], server) for n in (SEEN_SIZE, LOG_SIZE))
    public = server.public_key
    check_grown(seen, now, _proof(log, SEEN_SIZE), public)
    _control(verify_log(log, checkpoint=now, server_public=public) == LOG_SIZE)
    tried = through = 0
    for index, rewritten in _rewritten(log):
        tried += 1
        if index < SEEN_SIZE:
            shorter = len(rewritten) < SEEN_SIZE
            proofs = [()] if shorter else [_proof(rewritten, SEEN_SIZE), _proof(log, SEEN_SIZE)]
            signed = _signed(rewritten, server)
            through += any(_holds(check_grown, seen, signed, p, public) for p in proofs)
        else:
            through += _holds(verify_log, rewritten, checkpoint=now, server_public=public)
    return Attacks(tried=tried, through=through)


def evidence() -> Attacks:
    """Corrupted, stale, wrong-nonce and debug evidence, and sound evidence under other policies."""
    root = generate_key()
    attester, nonce = SoftwareDevAttester(root), new_nonce()
    good = attester.attest(nonce, now=NOW, measurement=DIGEST)

    def accepts(found: Any = good, **changes: Any) -> bool:
        given = {"nonce": nonce, "accept": (SOFTWARE_DEV,), "now": NOW, **changes}
        try:
            appraise(found, verifier=attester.verifier, **given)
        except CambiumError:
            return False
        return True

    _control(accepts())
    pick = random.Random(0)
    tried = [accepts(nonce=new_nonce()) for _ in range(50)]
    tried += [accepts(now=NOW + s) for s in (-1, MAX_LIFETIME_S, 10**6)]
    tried += [accepts(accept=a) for a in ((), ("sev-snp",), ("tdx", "sev-snp"))]
    for name in ("root", "session", "endorsement", "signature"):
        texts = _flipped(getattr(good, name), 60, pick)
        tried += [accepts(replace(good, **{name: text})) for text in texts]
    claims = json.loads(good.payload)
    for name, value in claims.items():
        others = [None, True, 0, "x", [value], {"a": value}]
        for other in (o for o in others if o != value or type(o) is not type(value)):
            edited = canonical_json({**claims, name: other})
            tried.append(accepts(replace(good, payload=edited)))
    for _ in range(40):
        other = SoftwareDevAttester(generate_key()).attest(nonce, now=NOW, measurement=DIGEST)
        tried += [accepts(other), accepts(replace(other, root=root.key_id))]
    return Attacks(tried=len(tried), through=sum(tried))


def adapter_files() -> tuple[Attacks, Attacks]:
    """Malformed files and executable payloads in place of an adapter's weights.

    Returns:
        Payloads that ran, and files that broke the reader instead of being refused or read.
    """
    sites = {p: LinearSite(path=p, d_in=6, d_out=5) for p in ("layers.0.q", "layers.1.q")}
    data = to_bytes(fresh_lora(LoraConfig(r=2, lora_alpha=2), sites, seed=0))
    _control(from_bytes(data, sites).config.r == 2)
    broken = tried = 0
    with tempfile.TemporaryDirectory() as folder:
        canary = Path(folder) / "ran"
        payloads = list(_payloads(canary))
        for weights in [*payloads, *_malformed(data.weights)]:
            tried += 1
            try:
                from_bytes(AdapterBytes(config=data.config, weights=weights), sites)
            except DataError:
                pass
            except Exception:  # noqa: BLE001 - this is what is being counted
                broken += 1
        ran = int(canary.exists())
        _control_payload(payloads[0], canary)
    return Attacks(tried=tried, through=ran), Attacks(tried=tried, through=broken)


def _revision() -> Revision:
    adapter = AdapterRef(name="code", digest=DIGEST)
    return Revision(
        number=2, kind="merge", base_digest=DIGEST, policy_digest=DIGEST, created_at=NOW,
        bank=(BankEntry(domain="code", adapter=adapter, router_digest=DIGEST),),
        attestation=SOFTWARE_DEV, parent=DIGEST, proposal_digest=DIGEST,
    )  # fmt: skip


def _flipped(text: str, number: int, pick: random.Random) -> Iterator[str]:
    """Yields `text` with one character changed to another that hex has."""
    for _ in range(number):
        at = pick.randrange(len(text))
        other = pick.choice([c for c in "0123456789abcdef" if c != text[at]])
        yield text[:at] + other + text[at + 1 :]


def _rewritten(log: list[AuditEntry]) -> Iterator[tuple[int, list[AuditEntry]]]:
    """Yields where a history was changed, and the history, every hash in it made again."""
    bodies = [entry.body for entry in log]
    forged: dict[str, object] = {"forged": True}
    for i in range(len(log)):
        yield i, _hashed([*bodies[:i], forged, *bodies[i + 1 :]])
        yield i, _hashed([*bodies[:i], *bodies[i + 1 :]])
        yield i, _hashed([*bodies[:i], forged, *bodies[i:]])
        yield i, _hashed([*bodies[:i], *({"forged": n} for n in range(len(log) - i))])
        yield i, _hashed(bodies[:i])
        for j in {min(i + 1, len(log) - 1), len(log) - 1 - i} - {i}:
            swapped = list(bodies)
            swapped[i], swapped[j] = swapped[j], swapped[i]
            yield min(i, j), _hashed(swapped)
        for extra in (1, 7):
            start = bodies[: i + 1]
            yield i, _hashed([*bodies[:i], *({"forged": n} for n in range(extra)), *start])


def _hashed(bodies: Sequence[dict[str, object]]) -> list[AuditEntry]:
    return [make_entry(n + 1, at=n, kind="thing", body=body) for n, body in enumerate(bodies)]


def _signed(log: Sequence[AuditEntry], key: Any) -> Checkpoint:
    tree = GrowingTree()
    for entry in log:
        grow(tree, entry)
    return sign_checkpoint(key, tree.size, tree.root())


def _proof(log: Sequence[AuditEntry], first: int) -> tuple[str, ...]:
    nodes: dict[tuple[int, int], bytes] = {}

    def node(level: int, position: int) -> bytes:
        return nodes[level, position]

    for index, entry in enumerate(log):
        for level, position, found in appended(hash_bytes(entry.hash), index, node):
            nodes[level, position] = found
    return tuple(map(to_text, consistency_proof(first, len(log), node)))


def _holds(check: Callable[..., Any], *given: Any, **named: Any) -> bool:
    try:
        check(*given, **named)
    except AuditBroken:
        return False
    return True


class _Payload:
    """What pickle would run if anything unpickled it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def _payloads(canary: Path) -> Iterator[bytes]:
    """Yields pickles, bare and in the containers of other formats."""
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        code = pickle.dumps(_Payload(canary), protocol=protocol)
        yield code
        yield len(code).to_bytes(8, "little") + code
        for name in ("archive/data.pkl", "data.pkl", "adapter_model.bin", "../data.pkl"):
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                archive.writestr(name, code)
            yield packed.getvalue()
            yield b"PK" + code
            header = json.dumps({"__metadata__": {"format": "pt", "code": code.hex()}}).encode()
            yield len(header).to_bytes(8, "little") + header + packed.getvalue()


def _malformed(weights: bytes) -> Iterator[bytes]:
    """Yields 10,000 files: lengths, headers and bytes that no writer would have written."""
    pick = random.Random(0)
    size = int.from_bytes(weights[:8], "little")
    header, tensors = weights[8 : 8 + size], weights[8 + size :]
    for n in range(10_000):
        kind = n % 5
        if kind == 0:
            yield weights[: pick.randrange(len(weights))]
        elif kind == 1:
            yield pick.getrandbits(64).to_bytes(8, "little") + weights[8:]
        elif kind == 2:
            yield _framed(_with_noise(header, pick), tensors)
        elif kind == 3:
            yield _framed(_other_header(json.loads(header), pick), tensors)
        else:
            yield pick.randbytes(pick.randrange(400))


def _framed(header: bytes, tensors: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + tensors


def _with_noise(data: bytes, pick: random.Random) -> bytes:
    noisy = bytearray(data)
    for _ in range(pick.randrange(1, 6)):
        noisy[pick.randrange(len(noisy))] = pick.randrange(256)
    return bytes(noisy)


def _other_header(header: dict[str, Any], pick: random.Random) -> bytes:
    name = pick.choice(sorted(header))
    field = pick.choice(["dtype", "shape", "data_offsets"])
    header[name][field] = pick.choice(
        ["F64", "I8", "BOOL", [], [0], [-1, 2], [2**62, 2**62], [0, 2**63], [5, 1], None, {}, "x"]
    )
    return json.dumps(header).encode()


def _control(holds: bool) -> None:
    if not holds:
        raise ControlFailed("the untouched original was refused")


def _control_payload(payload: bytes, canary: Path) -> None:
    """The payload does run where something unpickles it."""
    pickle.loads(payload).close()  # noqa: S301 - our own, three lines above
    _control(canary.exists())
