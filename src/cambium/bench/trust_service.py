"""A merged and a stopped server, timed: verification, rollback, kill, proofs, and swapped bytes."""

from __future__ import annotations

import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from sqlalchemy import insert

from cambium.core.canonical import digest_bytes
from cambium.core.errors import CambiumError
from cambium.core.nouns import Action, Signature, SignedAct
from cambium.learn.examples import Example
from cambium.lifecycle.blockers import merge_quorum
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.engine import GenerationRequest, TokenEvent
from cambium.models.lora import LoraConfig, to_bytes
from cambium.models.sampling import SamplingConfig
from cambium.serve.bank import load_bank
from cambium.serve.bootstrap import init_state, render_policy
from cambium.serve.bounds import LearnCall
from cambium.serve.config import ServerConfig
from cambium.serve.identity import ATTESTER, EVALUATOR, KEYS_FOLDER
from cambium.serve.kill_switch import KILL_FILE, write_kill_file
from cambium.serve.log_head import prove_entry, prove_growth
from cambium.serve.revision_records import verified_revision
from cambium.serve.runtime import Runtime
from cambium.serve.situation import situation_now
from cambium.serve.store.key_files import save_key
from cambium.serve.store.schema import AuditNode
from cambium.serve.store.state import State
from cambium.trust.acts import sign_act
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.merkle import node_hash
from cambium.trust.policy import parse_policy, sign_policy
from cambium.trust.quorum import Approver

DOMAIN = "weather"
TEXTS = [
    f"On day {i} the wind came from the {'north' if i % 2 else 'south'} at {3 + i % 9} knots, and "
    f"by noon the {'rain' if i % 3 else 'fog'} had reached station {i % 7}."
    for i in range(40)
]
MIB = 2**20
NUM_SWAPS = 100
NUM_READERS = 8


@dataclass(kw_only=True)
class Service:
    """A runtime with one merged domain, and everybody's keys."""

    runtime: Runtime
    approvers: list[SigningKey]
    operator: SigningKey

    def sign(self, key: SigningKey, action: Action, target: str) -> Signature:
        """Returns a signature over the state as it is now."""
        policy = self.runtime.proposals.need_policy()
        act = SignedAct(
            action=action,
            target=target,
            state_version=self.runtime.state_version(),
            expires=int(time.time()) + 600,
            policy=policy.digest,
        )
        return sign_act(key, act)


@contextmanager
def service(folder: Path) -> Iterator[Service]:
    """Gives a served state with a merged adapter, under a policy whose gates pass anything.

    What is timed here does not depend on the gates, and they would take minutes.
    """
    root, operator = generate_key(), generate_key()
    keys = [generate_key() for _ in range(3)]
    people = [Approver(name=f"approver-{i}", public=k.public_key) for i, k in enumerate(keys)]
    held = [Approver(name=n, public=_held(folder, n).public_key) for n in (EVALUATOR, ATTESTER)]
    toml = render_policy(
        approvers=people,
        operator=Approver(name="operator", public=operator.public_key),
        held=(held[0], held[1]),
    )
    toml = _with_open_gates(toml)
    signed = sign_policy(root, toml)
    init_state(folder, toml=toml, signature=signed.signature, root_public=root.public_key)
    config = ServerConfig(
        state=folder, num_replay_anchors=4, num_retention_anchors=24, anchor_tokens=48
    )
    with Runtime(config) as runtime:
        found = Service(runtime=runtime, approvers=keys, operator=operator)
        _merge(found)
        yield found


def _held(folder: Path, name: str) -> SigningKey:
    """Makes the key of a role that the server plays itself."""
    key = generate_key()
    (folder / KEYS_FOLDER).mkdir(parents=True, exist_ok=True)
    save_key(key, folder / KEYS_FOLDER / f"{name}.key")
    return key


def verify_ms(found: Service, rounds: int = 200) -> list[float]:
    """Times a proposal's quorum and the metadata of the served revision, verified from bytes."""
    runtime = found.runtime
    situation = situation_now(runtime.proposals, runtime.published)
    (filed,) = runtime.proposals.all()
    with runtime.state.read() as tx:
        row = tx.list_revisions()[-1]
        toml = tx.active_policy()
    if toml is None:
        raise ValueError("the policy is gone")
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        merge_quorum(filed.proposal, situation)
        verified_revision(row, runtime.identity.key.public_key)
        parse_policy(toml.toml.encode())
        times.append(1000 * (time.perf_counter() - started))
    return times


def hash_ms(rounds: int = 5) -> float:
    """Times the digest of an adapter of 64 MiB."""
    data, times = AdapterBytes(config=b"{}", weights=bytes(64 * MIB)), []
    for _ in range(rounds):
        started = time.perf_counter()
        _ = data.digest
        times.append(1000 * (time.perf_counter() - started))
    return median(times)


def rollback_ms(found: Service, rounds: int = 5) -> float:
    """Times rolling back to the bare base and to the merged adapter, from signatures to service."""
    runtime, times = found.runtime, []
    for number in range(2 * rounds):
        to = 1 + number % 2
        revision = next(r for r in runtime.releases.list() if r["number"] == to)
        signatures = [
            found.sign(key, Action.ROLLBACK, revision["digest"]) for key in found.approvers[:2]
        ]
        started = time.perf_counter()
        runtime.releases.rollback(to, signatures)
        times.append(1000 * (time.perf_counter() - started))
    return median(times)


def kill_ms(found: Service, *, by_file: bool) -> float:
    """Times from the order to the end of eight answers under way, then revives."""
    runtime = found.runtime
    ended, begun = threading.Semaphore(0), threading.Semaphore(0)

    def hear(event: TokenEvent) -> None:
        (ended if event.finish else begun).release()

    request = GenerationRequest(
        prompt=tuple(range(5, 40)),
        adapters=(),
        max_tokens=400,
        sampling=SamplingConfig(seed=1),
    )
    for _ in range(NUM_READERS):
        runtime.engine.submit(request, hear)
    for _ in range(4 * NUM_READERS):
        begun.acquire()
    signed = [found.sign(found.operator, Action.KILL, runtime.kill.view()["target"])]
    started = time.perf_counter()
    if by_file:
        write_kill_file(runtime.config.state / KILL_FILE, "rehearsal", signed)
    else:
        runtime.kill.pull("rehearsal", signed)
    for _ in range(NUM_READERS):
        ended.acquire()
    took = 1000 * (time.perf_counter() - started)
    view = runtime.kill.view()
    signatures = [found.sign(k, Action.REVIVE, view["digest"]) for k in found.approvers[:2]]
    runtime.kill.revive(signatures)
    return took


def swapped_bytes(found: Service) -> tuple[int, int]:
    """Changes a stored file before or after each read of a load; returns tries and wrong loads.

    Before the read it has to be refused; after it, what is in memory has to be what was signed.
    """
    runtime = found.runtime
    revision = max((r for r in _revisions(found) if r.bank), key=lambda r: r.number)
    signed = {e.domain: (e.adapter.digest, e.router_digest) for e in revision.bank}
    store = runtime.state.blobs
    read, seen = store.get, list[str]()
    store.get = lambda digest: [seen.append(digest), read(digest)][1]  # type: ignore[method-assign]
    load_bank(revision, runtime.state, runtime.base)
    tried = wrong = 0
    for step in range(len(seen)):
        for attempt in range(NUM_SWAPS):
            path = store._path(seen[step])
            whole = path.read_bytes()
            store.get = _swapping(read, path, step, attempt)  # type: ignore[method-assign]
            tried += 1
            try:
                bank = load_bank(revision, runtime.state, runtime.base)
            except CambiumError:
                continue
            finally:
                store.get = read  # type: ignore[method-assign]
                path.write_bytes(whole)
            loaded = {
                d: (to_bytes(a.lora).digest, digest_bytes(bank.routers[d].to_bytes()))
                for d, a in bank.adapters.items()
            }
            wrong += loaded != signed
    return tried, wrong


def proof_ms(num_entries: int = 10**6, rounds: int = 100) -> float:
    """Times inclusion and consistency proofs of a log of a million entries, 95th percentile."""
    with tempfile.TemporaryDirectory() as folder, State.open(Path(folder)) as state:
        with state.transaction() as tx:
            level, hashes = 0, [digest_bytes(b"%d" % n)[7:] for n in range(num_entries)]
            nodes = [bytes.fromhex(h) for h in hashes]
            while nodes:
                rows = [{"level": level, "position": i, "hash": h} for i, h in enumerate(nodes)]
                tx._connection.execute(insert(AuditNode), rows)
                pairs = zip(nodes[::2], nodes[1::2], strict=False)
                nodes, level = [node_hash(a, b) for a, b in pairs], level + 1
        times = []
        for n in range(rounds):
            started = time.perf_counter()
            with state.read() as tx:
                prove_entry(tx.audit_tree, 1 + n * (num_entries // rounds), num_entries)
                prove_growth(tx.audit_tree, 1 + n * (num_entries // rounds), num_entries)
            times.append(1000 * (time.perf_counter() - started) / 2)
    return p95(times)


def p95(values: list[float]) -> float:
    """Returns the 95th percentile."""
    return quantiles(values, n=20, method="inclusive")[-1]


def _with_open_gates(toml: bytes) -> bytes:
    text = toml.decode()
    for field, value in (("threshold", "-90.0"), ("passes_required", "1"), ("max_looks", "1"),
                         ("min_items", "1"), ("max_items", "4")):  # fmt: skip
        text = re.sub(rf"^{field} = .*$", f"{field} = {value}", text, flags=re.MULTILINE)
    return text.encode()


def _merge(found: Service) -> None:
    runtime = found.runtime
    runtime.adapters.create(DOMAIN, LoraConfig(), scope="text", ttl_s=3600, domain=DOMAIN)
    examples = [Example(kind="text", content={"text": text}) for text in TEXTS]
    call = LearnCall(examples=examples, steps=1, consent="benchmark", source="benchmark")
    runtime.adapters.learn(DOMAIN, call)
    proposal = runtime.propose(DOMAIN, DOMAIN)
    while proposal in runtime.jobs.pending:
        time.sleep(0.05)
    for key in found.approvers[:2]:
        target = runtime.proposals.get(proposal).proposal.proposal_digest
        if target is None:
            raise ValueError(f"nothing to approve: {runtime.proposals.get(proposal)}")
        runtime.review.approve(proposal, found.sign(key, Action.APPROVE, target))
    runtime.releases.merge(proposal)


def _revisions(found: Service) -> list[Any]:
    with found.runtime.state.read() as tx:
        rows = tx.list_revisions()
    return [verified_revision(row, found.runtime.identity.key.public_key) for row in rows]


def _swapping(
    read: Callable[[str], bytes], path: Path, step: int, attempt: int
) -> Callable[[str], bytes]:
    """Returns a store's `get` around whose read number `step` one bit of the file is flipped."""
    seen = 0

    def flip() -> None:
        edited = bytearray(path.read_bytes())
        # The tensors are at the end; the first bytes are a header that would not parse.
        edited[-1 - attempt * 37 % (len(edited) // 2)] ^= 1 << attempt % 8
        path.write_bytes(edited)

    def get(digest: str) -> bytes:
        nonlocal seen
        seen += 1
        if seen - 1 == step and attempt % 2:
            flip()
        data = read(digest)
        if seen - 1 == step and not attempt % 2:
            flip()
        return data

    return get
