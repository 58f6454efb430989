"""Tenants who ask and learn at the same time under the same names, over HTTP.

Every tenant has an adapter of one and the same name, taught another text, and goes on teaching it
while everybody asks, so that the weights under the name are swapped all the time. An answer is
crossed if it names a version that its tenant never had, or if its log-probabilities are not those
that this version always gives; and so is any look at what belongs to another tenant.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cambium.bench.trust_attacks import Attacks
from cambium.serve.child import ChildServer
from cambium.serve.store.state import State
from cambium.serve.tokens import Role, TokenOrder, Tokens

NAME = "helper"
PROMPT = "The code word is"
TENANTS = ("acme", "globex", "initech", "umbrella")
REQUESTS = 1200
READERS = 8
# A version has to answer several times, or nothing can be held against its answers.
ANSWERS_BETWEEN_SWAPS = 12


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One answer: who asked, which version the server named, and what it said."""

    tenant: str
    adapter: str
    scores: tuple[float, ...]


@dataclass(kw_only=True)
class House:
    """What the tenants did and got."""

    versions: dict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    answers: list[Answered] = field(default_factory=list[Answered])
    looks: Attacks = field(default_factory=lambda: Attacks(tried=0, through=0))


def crossed(answers: Sequence[Answered], versions: dict[str, set[str]]) -> int:
    """Returns how many answers came from elsewhere than they should.

    Args:
        versions: digests that each tenant's adapter ever had.
    """
    usual: dict[str, Counter[tuple[float, ...]]] = defaultdict(Counter)
    for one in answers:
        usual[one.adapter][one.scores] += 1
    said = {adapter: counts.most_common(1)[0][0] for adapter, counts in usual.items()}
    count = 0
    for one in answers:
        name, _, digest = one.adapter.partition("@")
        own = name == f"{one.tenant}:{NAME}" and digest in versions[one.tenant]
        count += not own or one.scores != said[one.adapter]
    return count


def run(say: Callable[[str], None], *, model: Path | None = None) -> tuple[Attacks, int]:
    """Returns answers and looks, tried and crossed, and how often weights were swapped.

    Args:
        model: the base's folder; None for the bundled one.
    """
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        tokens = _make_tokens(state)
        with ChildServer(state, model=model) as server:
            found = _live(server.url, tokens, say)
    swaps = sum(len(digests) - 1 for digests in found.versions.values())
    tried = len(found.answers) + found.looks.tried
    through = crossed(found.answers, found.versions) + found.looks.through
    return Attacks(tried=tried, through=through), swaps


def _make_tokens(folder: Path) -> dict[str, str]:
    with State.open(folder) as state:
        tokens = Tokens(state, now_ms=lambda: time.time_ns() // 1_000_000)
        tokens.make(TokenOrder(name="operator", tenant="*", roles=[Role.OPERATOR]))
        return {
            tenant: tokens.make(
                TokenOrder(
                    name=tenant,
                    tenant=tenant,
                    roles=[Role.LEARNER],
                    requests_per_minute=1_000_000,
                )
            )[1]
            for tenant in TENANTS
        }


def _live(url: str, tokens: dict[str, str], say: Callable[[str], None]) -> House:
    house, lock = House(), threading.Lock()
    clients = {
        tenant: httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {token}"}, timeout=300
        )
        for tenant, token in tokens.items()
    }
    for tenant, client in clients.items():
        made = client.post("/adapters/ephemeral", json={"task_id": NAME}).raise_for_status().json()
        house.versions[tenant].add(made["digest"])
        _teach(house, tenant, client, steps=8)
    say(f"{REQUESTS} requests of {len(TENANTS)} tenants, weights swapped under them")
    chance = random.Random(7)
    order = [chance.choice(TENANTS) for _ in range(REQUESTS)]
    asked = Counter[str]()
    secrets = {tenant: _private(clients[tenant]) for tenant in TENANTS}

    def ask(number: int) -> None:
        tenant = order[number]
        answer = _ask(tenant, clients[tenant])
        with lock:
            house.answers.append(answer)
            asked[tenant] += 1
            swap = asked[tenant] % ANSWERS_BETWEEN_SWAPS == 0
        if swap:
            _teach(house, tenant, clients[tenant], steps=1)
        if number % 10 == 0:
            other = TENANTS[(TENANTS.index(tenant) + 1) % len(TENANTS)]
            seen, tried = _look(clients[tenant], other, secrets[other])
            with lock:
                house.looks = Attacks(
                    tried=house.looks.tried + tried, through=house.looks.through + seen
                )

    with ThreadPoolExecutor(READERS) as readers:
        for _ in readers.map(ask, range(REQUESTS)):
            pass
    for client in clients.values():
        client.close()
    return house


def _teach(house: House, tenant: str, client: httpx.Client, *, steps: int) -> None:
    text = f"The code word is {tenant} {tenant[::-1]}, and {tenant} it stays."
    body = {"adapter_id": NAME, "examples": [{"text": text}], "steps": steps}
    taught = client.post("/learn/step", json=body).raise_for_status().json()
    # A set's own methods are whole; two lessons of one tenant may end together.
    house.versions[tenant].add(taught["digest_after"])


def _ask(tenant: str, client: httpx.Client) -> Answered:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0}
    answer = client.post("/v1/completions", json=body).raise_for_status()
    (choice,) = answer.json()["choices"]
    return Answered(
        tenant=tenant,
        adapter=answer.headers["x-cambium-adapter"],
        scores=tuple(choice["logprobs"]["token_logprobs"]),
    )


def _private(client: httpx.Client) -> dict[str, Any]:
    """Returns what a tenant alone may see: a version's digest and a request's id."""
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 1}
    answer = client.post("/v1/completions", json=body).raise_for_status()
    digest = answer.headers["x-cambium-adapter"].partition("@")[2]
    return {"digest": digest, "request": answer.headers["x-cambium-request-id"]}


def _look(client: httpx.Client, other: str, secret: dict[str, Any]) -> tuple[int, int]:
    """Tries to see what is another tenant's; returns successes and tries."""
    body = {"prompt": PROMPT, "max_tokens": 1}
    models = [f"{other}:{NAME}", f"{other}:{NAME}@{secret['digest']}", f"{NAME}@{secret['digest']}"]
    answers = [client.post("/v1/completions", json={**body, "model": m}) for m in models]
    paths = [f"/traces/{secret['request']}", *(f"/adapters/{model}" for model in models)]
    answers += [client.get(path) for path in paths]
    listed = client.get("/adapters").raise_for_status().json()["adapters"]
    foreign = any(adapter["tenant"] == other for adapter in listed)
    return sum(answer.status_code != 404 for answer in answers) + foreign, len(answers) + 1
