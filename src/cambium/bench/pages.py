"""Benchmark `pages`: how soon the review room's pages are there, on a state with much in it.

One proposal with 200 clusters, five looks of every gate, 10,000 rows of evidence and 10,000 entries
in the log, beside 1,000 other proposals, thirty of them open, and the records of 10,000 requests;
all made up here. The server is a process of its own. What a browser sees is measured in
Debian's Chromium through Playwright, where both are there, and left out where not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from cambium.bench.report import Row, result
from cambium.core.canonical import digest_json
from cambium.core.evidence import GateSpec, Measurement, Outcome, Verdict
from cambium.core.nouns import ProposalState
from cambium.lifecycle.proposal import Proposal
from cambium.models.base import load_base
from cambium.models.lora import LoraConfig, fresh_lora, to_bytes
from cambium.serve.child import ChildServer
from cambium.serve.identity import server_identity
from cambium.serve.proposal_records import Filed, to_row
from cambium.serve.request_log import log_requests
from cambium.serve.store.records import EvidenceRow, TraceRow
from cambium.serve.store.state import State
from cambium.serve.store.transaction import Transaction
from cambium.trust.policy import parse_policy

NUM_CLUSTERS = 200
NUM_ROWS = 10_000
NUM_LOOKS = 5
NUM_PROPOSALS = 1000
NUM_OPEN = 30
NUM_REQUESTS = 10_000
REQUESTS_AT_ONCE = 1000
ROUNDS = 9
PROPOSAL = "p-000000000000"
TEXT = "The harbour master wrote down which ships had come in and what each of them carried. " * 3
# When the first content was painted and when all had come, in ms from the navigation on.
PAINTED = """() => new Promise((done) => new PerformanceObserver((seen, observer) => {
  const paint = seen.getEntriesByName("first-contentful-paint")[0];
  if (!paint) return;
  observer.disconnect();
  done([paint.startTime, performance.getEntriesByType("navigation")[0].loadEventEnd]);
}).observe({type: "paint", buffered: true}))"""
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync", "--disable-quic",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the rows of the benchmark; `say` is told what is being measured."""
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        say(f"a proposal of {NUM_CLUSTERS} clusters and {NUM_ROWS} rows of evidence")
        init = [sys.executable, "-m", "cambium", "init", "--state", str(state)]
        subprocess.run(init, check=True, capture_output=True)
        with ChildServer(state) as server:  # makes the first revision
            request = _ask(server)
        say(f"{NUM_PROPOSALS} more, and {NUM_REQUESTS} requests")
        _fill(state, request)
        with ChildServer(state) as server:
            paths = {"list": "/", "list_earlier": "/?earlier=500", "live": "/live",
                     "proposal": f"/review/{PROPOSAL}", "trace": f"/trace/{request}",
                     "playground": "/playground"}  # fmt: skip
            say(f"{len(paths)} pages, {ROUNDS} times each")
            rows = [_served(server, name, path) for name, path in paths.items()]
            rows.append(_static_bytes())
            chromium = os.environ.get("CAMBIUM_CHROMIUM") or shutil.which("chromium")
            if chromium is None or importlib.util.find_spec("playwright") is None:
                say("no browser here: what one sees is not measured")
            else:
                rows += _seen(server, chromium, paths)
    return result("pages", rows)


def _served(server: ChildServer, name: str, path: str) -> Row:
    took, size = [], 0
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        answer = server.http.get(path, headers={"accept": "text/html"})
        took.append((time.perf_counter() - began) * 1000)
        answer.raise_for_status()
        size = len(answer.content)
    # Ids differ from run to run, and are nothing to compare.
    shown = re.sub(r"(p|req)-[0-9a-f]+", "ID", path)
    setting = f"GET {shown}, {size / 1000:.0f} kB, median of {ROUNDS}"
    return Row(metric=f"pages.served_ms.{name}", unit="ms", value=median(took[1:]), setting=setting)


def _static_bytes() -> Row:
    folder = resources.files("cambium.serve.dashboard") / "static"
    total = sum(len(file.read_bytes()) for file in folder.iterdir())
    return Row(metric="pages.static_bytes", unit="bytes", value=total,
               setting="all scripts and styles, uncompressed")  # fmt: skip


def _seen(server: ChildServer, chromium: str, paths: dict[str, str]) -> list[Row]:
    """Returns when a browser without a cache first paints a page, and when it has all of it."""
    with _browser(chromium) as browser:
        rows = []
        for name, path in paths.items():
            paints, loads = [], []
            for _ in range(ROUNDS + 1):
                context = browser.new_context()
                page = context.new_page()
                page.goto(server.url + path, wait_until="load")
                paint, load = page.evaluate(PAINTED)
                paints.append(paint)
                loads.append(load)
                context.close()
            setting = f"Chromium, nothing cached, median of {ROUNDS}"
            rows += [
                Row(metric=f"pages.first_paint_ms.{name}", unit="ms", value=median(paints[1:]),
                    setting=setting),
                Row(metric=f"pages.loaded_ms.{name}", unit="ms", value=median(loads[1:]),
                    setting=setting),
            ]  # fmt: skip
    return rows


@contextmanager
def _browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield browser
        browser.close()


def _ask(server: ChildServer) -> str:
    """Returns the id of an answered request, whose record the others are made after."""
    body = {"model": "base", "prompt": "The harbour", "max_tokens": 4}
    answer = server.http.post("/v1/completions", json=body)
    answer.raise_for_status()
    return str(answer.headers["x-cambium-request-id"])


def _fill(folder: Path, request: str) -> None:
    """Writes the heavy proposal and all that hangs on it, the others, and the requests."""
    base = load_base()
    data = to_bytes(fresh_lora(LoraConfig(), base.sites, seed=0))
    with State.open(folder) as state:
        weights = state.blobs.put(data.weights)
        with state.transaction() as tx:
            active = tx.active_policy()
            if active is None:
                raise RuntimeError("init signs a policy")
            policy = parse_policy(active.toml.encode())
            head = tx.list_revisions()[-1]
            proposal = Proposal(
                id=PROPOSAL, adapter_name="ledger", source_digest=data.digest, domain="ledger",
                parent_revision=head.number, parent_digest=head.digest,
                policy_digest=active.digest, provenance_digest=digest_json(_provenance()),
                state=ProposalState.AWAITING_APPROVAL, candidate_digest=data.digest,
                looks=tuple(_look(policy.gates, n) for n in range(NUM_LOOKS)),
                evidence_root=digest_json("root"),
            )  # fmt: skip
            behaviour = {
                "of": {"parent": head.digest, "candidate": data.digest}, "discoveries": 40,
                "num_tested": NUM_CLUSTERS, "omnibus": 0.001, "statement": "made up",
                "config": {"q": 0.05}, "changes": [_cluster(i) for i in range(NUM_CLUSTERS)],
            }  # fmt: skip
            blob = state.blobs.put(json.dumps(behaviour).encode())
            filed = Filed(proposal=proposal, provenance=_provenance(), weights_blob=weights,
                          config_json=data.config.decode(), behaviour_blob=blob,
                          errors={}, created_at=1)  # fmt: skip
            tx.put_proposal(to_row(filed, at=1))
            _evidence(tx)
            for number in range(NUM_PROPOSALS):
                tx.put_proposal(to_row(_other(filed, number), at=number + 2))
        key = server_identity(folder, state).key
        for at in range(0, NUM_REQUESTS, REQUESTS_AT_ONCE):
            with state.transaction() as tx:
                requests = _requests(tx.get_trace(request), at)
                tx.put_traces(requests)
                log_requests(tx, requests, key)


def _other(filed: Filed, number: int) -> Filed:
    """Returns one of the many: of one look, half of them merged, the newest still open."""
    is_open = number >= NUM_PROPOSALS - NUM_OPEN
    decided = (ProposalState.MERGED, ProposalState.REJECTED)[number % 2]
    proposal = replace(
        filed.proposal,
        id=f"p-{number + 1:012x}",
        adapter_name=f"ledger-{number}",
        state=ProposalState.AWAITING_APPROVAL if is_open else decided,
        looks=filed.proposal.looks[:1],
    )
    return replace(filed, proposal=proposal, created_at=number + 2, behaviour_blob=None)


def _requests(like: TraceRow, begin: int) -> list[TraceRow]:
    """Returns requests such as the one, half a second apart, the last of them now."""
    return [
        replace(like, request_id=f"req-{number:024x}", at=like.at - 500 * (NUM_REQUESTS - number))
        for number in range(begin, begin + REQUESTS_AT_ONCE)
    ]


def _look(gates: tuple[GateSpec, ...], number: int) -> tuple[Verdict, ...]:
    def verdict(spec: GateSpec) -> Verdict:
        found = Measurement(
            gate=spec.name, metric=spec.metric, baseline=1.0, candidate=1.1,
            effect=spec.threshold + 0.1, ci=(spec.threshold + 0.05, spec.threshold + 0.15),
            mde=0.05, num_items=40, items_digest=digest_json([spec.name, number]),
        )  # fmt: skip
        return Verdict(gate=spec.name, outcome=Outcome.PASS, why="made up", measurement=found)

    return tuple(verdict(spec) for spec in gates)


def _cluster(i: int) -> dict[str, Any]:
    pair = {"prompt": TEXT, "before": TEXT, "after": TEXT}
    return {"cluster": i, "before": 0.01, "after": 0.02, "effect": 0.01, "low": 0.0, "high": 0.02,
            "q_value": 0.01 if i < NUM_CLUSTERS // 5 else 0.5, "blocks": False,
            "terms": ["harbour", "ships", "carried", "master", "wrote"], "medoids": [TEXT],
            "examples": [pair] * 3}  # fmt: skip


def _provenance() -> dict[str, Any]:
    examples = [{"digest": digest_json(i), "blob": digest_json(i), "kind": "text",
                 "source": f"book {i % 7}", "consent": "made up", "kept": i % 5 == 0}
                for i in range(200)]  # fmt: skip
    lora = {"r": 8, "lora_alpha": 16, "target_modules": ["all-linear"]}
    return {"examples": examples, "kept_for_gates": 40, "learning": [], "lora": lora}


def _evidence(tx: Transaction) -> None:
    for i in range(NUM_ROWS):
        envelope: dict[str, object] = {"payload": f"{i}"}
        tx.add_evidence(EvidenceRow(digest=digest_json(envelope), proposal=PROPOSAL, look=i,
                                    gate="retention", envelope=envelope, at=i))  # fmt: skip
        body: dict[str, object] = {"proposal": PROPOSAL, "state": "checking", "reason": None}
        tx.audit("proposal.look", body=body, at=i)
