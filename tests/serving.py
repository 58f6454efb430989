"""A whole server for tests: a base, a state under a signed policy, and the people who sign."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import LlamaConfig, LlamaForCausalLM

from cambium.core.nouns import Action, Signature, SignedAct
from cambium.evals.alignment_pairs import monitor_pairs
from cambium.models.encoder import SentenceEncoder
from cambium.models.tokenizer import TokenizerConfig, train_tokenizer
from cambium.serve.app import create_app
from cambium.serve.bootstrap import init_state
from cambium.serve.bounds import BARE_BUDGET
from cambium.serve.config import ServerConfig
from cambium.serve.rules import Rules as BareRules
from cambium.serve.runtime import Runtime
from cambium.trust.acts import sign_act, signature_to_json
from cambium.trust.keys import SigningKey, generate_key
from cambium.trust.policy import LearningBudget, sign_policy

FACTS = [
    f"Fact {i}: the tree grows a thin layer of cambium in year {i}, and the ring of year {i} is "
    f"{'wide' if i % 3 else 'narrow'} because the summer of year {i} was "
    f"{'wet' if i % 3 else 'dry'}.\n"
    for i in range(60)
]
HARBOUR = [
    f"Log {i}: ship number {i} came into the harbour at hour {i % 24}, unloaded {i * 3} barrels "
    f"of {'salt' if i % 2 else 'herring'} and left the quay before hour {(i + 6) % 24}.\n"
    for i in range(60)
]
TREES, PORT = FACTS[:15], [*HARBOUR[2:12], *HARBOUR[28:34]]  # the gates keep five of each
WAIT_S = 120.0

_POLICY = """
version = 1
state = "{state}"
profile = "development"
domains = {{ allowed = {domains}, owners = {{ {owners} }} }}
attestation = {{ accept = ["software-dev"] }}
scopes = {{ names = ["text"] }}
rollback = {{ k = 2, emergency = [{emergency}] }}
kill = {{ then = "{then}", operators = [{operator}] }}
[approvers]
k = 2
group = "{group}"
list = [{people}]
[learning]
max_steps_per_call = 8
max_examples_per_call = 64
max_example_bytes = 20000
max_ttl_s = 604800
max_rank = 16
max_live_adapters = 32
max_total_steps_per_adapter = 64
max_relative_change = {max_change}
monitor_margin_nats = {margin}
replay_tokens = {replay_tokens}
[traffic]
learn = {traffic}
tenants = ["default"]
min_novelty = 0.0
min_entropy = 0.0
first_steps_per_hour = 2
max_steps_per_hour = 64
wins_window = 3
[ledger]
alpha = {alpha}
{gates}
"""
_GATE = """[[gates]]
name = "{name}"
metric = "as measured"
threshold = {threshold}
passes_required = {passes}
max_looks = 4
min_items = {fewest}
max_items = {most}
confidence = 0.95
required = true
waivable = {waivable}
"""


def eventually(found: Callable[[], Any], *, within_s: float = WAIT_S) -> Any:
    """Returns what becomes true of itself, asked again and again until then."""
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, value
        time.sleep(0.02)
    return value


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a test's policy says; the gates are small, and a random base can pass them."""

    domains: tuple[str, ...] = ("*",)
    owners: tuple[tuple[str, str], ...] = ()
    group: str = ""
    then: str = "nothing"
    margin: float = 0.15
    replay_tokens: int = 10_000
    traffic: bool = True
    max_change: float = 50.0
    retention: float = -0.9
    alignment: float = -4.0
    passes: int = 1
    alpha: float = 1000.0
    waivable: bool = False
    retention_items: int = 2
    state: str = "5" * 32
    operator_rolls_back: bool = False

    def toml(self, approvers: Sequence[SigningKey], operator: SigningKey) -> bytes:
        gates = (
            # Two or three documents a look: a bar that chance does not decide.
            ("domain_gain", -0.3, 2, 3),
            ("retention", self.retention, self.retention_items, max(8, self.retention_items)),
            ("alignment", self.alignment, 4, 8),
            ("alignment_drift", 2 * self.alignment, 4, 8),
            # Models of random weights write noise; the probe is tried on the bundled base.
            ("alignment_writing", -50.0, 2, 3),
            ("power_seeking", -50.0, 2, 3),
            ("integrity", -0.5, 1, 1),
        )
        people = ", ".join(
            f'{{ name = "approver-{i}", public = "{key.public_key.raw}", expires = 0 }}'
            for i, key in enumerate(approvers, 1)
        )
        text = _POLICY.format(
            domains=json.dumps(self.domains),
            group=self.group,
            owners=", ".join(f'{domain} = "{tenant}"' for domain, tenant in self.owners),
            people=people,
            max_change=self.max_change,
            margin=self.margin,
            then=self.then,
            state=self.state,
            emergency=f'"{operator.public_key.raw}"' if self.operator_rolls_back else "",
            operator=f'{{ name = "operator", public = "{operator.public_key.raw}", expires = 0 }}',
            replay_tokens=self.replay_tokens,
            traffic=str(self.traffic).lower(),
            alpha=self.alpha,
            gates="".join(
                _GATE.format(
                    name=n,
                    threshold=t,
                    fewest=a,
                    most=b,
                    passes=self.passes,
                    waivable=str(self.waivable).lower(),
                )
                for n, t, a, b in gates
            ),
        )
        return text.encode()


class Bounded(BareRules):
    """No signed policy, and bounds of the test's own."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(None)
        self._budget = replace(BARE_BUDGET, **changes)

    @property
    def learning(self) -> LearningBudget:
        return self._budget


@dataclass(frozen=True, kw_only=True)
class People:
    """The root and three approvers."""

    root: SigningKey = field(default_factory=generate_key)
    operator: SigningKey = field(default_factory=generate_key)
    approvers: tuple[SigningKey, ...] = field(
        default_factory=lambda: tuple(generate_key() for _ in range(3))
    )

    def init(self, state: Path, rules: Rules | None = None) -> str:
        toml = (rules or Rules()).toml(self.approvers, self.operator)
        signed = sign_policy(self.root, toml)
        return init_state(
            state, toml=toml, signature=signed.signature, root_public=self.root.public_key
        )


@dataclass(kw_only=True)
class Clock:
    """The server's clock: the real one, moved."""

    ahead_s: int = 0

    def now_ms(self, _runtime: Runtime) -> int:
        return time.time_ns() // 1_000_000 + self.ahead_s * 1000


@dataclass(kw_only=True)
class Server:
    """A running server as its users see it, and the people around it."""

    http: TestClient
    people: People = field(default_factory=People)

    @property
    def runtime(self) -> Runtime:
        runtime: Runtime = self.http.app.state.runtime  # type: ignore[attr-defined]
        return runtime

    def get(self, path: str) -> Any:
        answer = self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, status: int = 200, **body: Any) -> Any:
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return answer.json()

    def create(self, name: str, **body: Any) -> Any:
        return self.post("/adapters/ephemeral", 201, task_id=name, **body)

    def teach(self, name: str, texts: Sequence[str], **body: Any) -> Any:
        body = {"steps": 4, "lr": 0.02, "consent": "tests", **body}
        return self.post(
            "/learn/step", adapter_id=name, examples=[{"text": t} for t in texts], **body
        )

    def propose(self, name: str, domain: str) -> str:
        found = self.post("/adapters/propose_consolidation", 202, adapter_id=name, domain=domain)
        return str(found["proposal_id"])

    def settled(self, proposal: str) -> Any:
        """Returns the proposal once nothing works on it any more."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            if proposal not in self.get("/readyz")["jobs"]:
                return self.get(f"/proposals/{proposal}")
            time.sleep(0.02)
        raise AssertionError(f"{proposal} is still being worked on")

    def awaiting(self, name: str, domain: str, texts: Sequence[str]) -> str:
        """Takes new texts as far as people are needed."""
        self.create(name)
        self.teach(name, texts)
        proposal = self.propose(name, domain)
        found = self.settled(proposal)
        assert found["state"] == "awaiting_approval", found
        return proposal

    def merged(self, name: str, domain: str, texts: Sequence[str]) -> Any:
        proposal = self.awaiting(name, domain, texts)
        for person in (0, 1):
            self.approve(proposal, person)
        return self.post("/adapters/merge", proposal_id=proposal)

    def quarantine(self, name: str) -> Any:
        """Feeds harmful continuations that the monitor watches, under a margin of 0.05 nats."""
        self.create(name, lora_cfg={"r": 16})
        pairs = monitor_pairs()[:6]
        examples = [{"prompt": p.prompt, "completion": " " + p.harmful} for p in pairs]
        taught = self.post("/learn/step", adapter_id=name, examples=examples, steps=8, lr=0.02)
        assert taught["state"] == "quarantined", taught
        return taught

    def act(self, action: Action, target: str, **fields: Any) -> SignedAct:
        now = self.get("/revisions")
        values = {
            "state_version": now["state_version"],
            "expires": int(time.time()) + 3600,
            "policy": now["policy_digest"],
            **fields,
        }
        return SignedAct(action=action, target=target, **values)

    def approval(self, proposal: str, person: int, **fields: Any) -> Signature:
        target = self.get(f"/proposals/{proposal}")["proposal_digest"]
        return sign_act(self.people.approvers[person], self.act(Action.APPROVE, target, **fields))

    def approve(self, proposal: str, person: int) -> Any:
        signature: dict[str, Any] = signature_to_json(self.approval(proposal, person))
        return self.post(f"/proposals/{proposal}/approvals", **signature)

    def rollback(self, number: int, people: Sequence[int] = (0, 1)) -> Any:
        revisions = self.get("/revisions")["revisions"]
        target = next(r["digest"] for r in revisions if r["number"] == number)
        act = self.act(Action.ROLLBACK, target)
        signed = [signature_to_json(sign_act(self.people.approvers[i], act)) for i in people]
        return self.http.post("/revisions/rollback", json={"to": number, "signatures": signed})

    def ask(self, model: str, prompt: str = "Fact 7: the tree", **body: Any) -> Any:
        body = {"max_tokens": 12, "temperature": 0, "logprobs": 3, **body}
        return self.http.post("/v1/completions", json={"model": model, "prompt": prompt, **body})

    def answer(self, model: str, prompt: str = "Fact 7: the tree", **body: Any) -> Any:
        """Returns text and log-probabilities, which are compared exactly."""
        found = self.ask(model, prompt, **body)
        assert found.status_code == 200, found.text
        (choice,) = found.json()["choices"]
        return choice["text"], choice["logprobs"]["token_logprobs"], choice["logprobs"]["tokens"]

    def everything(self) -> Any:
        """Returns all that lasts, to see that nothing changed."""
        found = {
            path: self.get(path)
            for path in ("/adapters", "/proposals", "/revisions", "/keys", "/policy", "/audit")
        }
        for proposal in found["/proposals"]["proposals"]:
            del proposal["progress"]
        return found


def tiny_base(folder: Path) -> Path:
    """Writes a small random Llama with a tokenizer of its own."""
    torch.manual_seed(1)
    tokenizer = train_tokenizer([*FACTS, *HARBOUR], TokenizerConfig(vocab_size=420))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def small_config(state: Path, **changes: Any) -> ServerConfig:
    values: dict[str, Any] = {
        "state": state,
        # A tiny model's pass costs the same for many rows as for few.
        "num_rows": 16,
        "num_replay_anchors": 4,
        "num_retention_anchors": 24,
        "anchor_tokens": 40,
        # Either takes as long as all else of a small proposal.
        "num_diff_prompts": 0,
        "measure_drift": False,
        **changes,
    }
    return ServerConfig(**values)


@contextmanager
def one_encoder() -> Iterator[pytest.MonkeyPatch]:
    """Lets the servers of this process share one encoder; each would load its own 90 MB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cambium.serve.runtime.SentenceEncoder", _encoder)
        yield patch


@cache
def _encoder() -> SentenceEncoder:
    return SentenceEncoder()


@contextmanager
def served(
    config: ServerConfig, people: People | None = None, clock: Clock | None = None
) -> Iterator[Server]:
    """Runs a server in this process; errors it did not foresee come as its answers."""
    with one_encoder() as patch:
        if clock is not None:
            patch.setattr(Runtime, "now_ms", lambda runtime: clock.now_ms(runtime))
        app = create_app(config)
        with TestClient(app, raise_server_exceptions=False, base_url="http://127.0.0.1") as http:
            yield Server(http=http, people=people or People())
