"""The text stream as a caller makes it: over HTTP, with the server's own defaults.

What the server keeps and goes through again is its own business here; consent is all that differs
between the arms.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from cambium.recipes.data import read_lines
from cambium.recipes.text_stream import TextStreamResult
from cambium.serve.child import ChildServer

ADAPTER = "stream"


@dataclass(frozen=True, kw_only=True)
class ServedStreamConfig:
    """The stream; texts are cut to `num_chars`, so that one long document is not a domain."""

    # More, or texts as far from prose as chess, would take the arm that forgets past the policy's
    # cap on change, or to the step monitor's veto.
    domains: tuple[str, ...] = ("law", "recipes", "medicine", "dialogue", "finance")
    seed: int = 0
    calls: int = 3
    texts_per_call: int = 16
    num_held: int = 24
    num_chars: int = 500
    r: int = 16
    consent: bool = True


def run(config: ServedStreamConfig, say: Callable[[str], None]) -> TextStreamResult:
    """Teaches the domains in order and measures all of them after each."""
    texts = {name: _texts(name, config) for name in config.domains}
    held = {name: both[1] for name, both in texts.items()}
    with tempfile.TemporaryDirectory() as folder, ChildServer(Path(folder) / "state") as server:
        shape = {"task_id": ADAPTER, "lora_cfg": {"r": config.r}}
        _post(server.http, "/adapters/ephemeral", shape)
        losses = [_losses(server.http, "base", held)]
        for name in config.domains:
            new = texts[name][0]
            for at in range(0, len(new), config.texts_per_call):
                examples = [{"text": t} for t in new[at : at + config.texts_per_call]]
                body = {"adapter_id": ADAPTER, "examples": examples, "source": name}
                _post(server.http, "/learn/step", {**body, "consent": config.consent})
            losses.append(_losses(server.http, ADAPTER, held))
            arm = "consent" if config.consent else "no consent"
            say(f"served, {arm}, {name}: " + " ".join(f"{x:.3f}" for x in losses[-1]))
    return TextStreamResult(domains=config.domains, losses=losses)


def _texts(name: str, config: ServedStreamConfig) -> tuple[list[str], list[str]]:
    """Returns texts to learn and texts of other documents to measure."""
    found = [
        line["text"][: config.num_chars] for line in read_lines(f"text/domain_{name}.jsonl.gz")
    ]
    random.Random(f"{config.seed} {name}").shuffle(found)
    held, new = found[: config.num_held], found[config.num_held :]
    return new[: config.calls * config.texts_per_call], held


def _losses(http: httpx.Client, model: str, held: dict[str, list[str]]) -> list[float]:
    """Returns each domain's loss, nats per token."""
    found = []
    for texts in held.values():
        body = {"model": model, "prompt": texts, "max_tokens": 0, "echo": True, "logprobs": 0}
        answer = _post(http, "/v1/completions", body)
        scores = [s for c in answer["choices"] for s in c["logprobs"]["token_logprobs"][1:]]
        found.append(-sum(scores) / len(scores))
    return found


def _post(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = http.post(path, json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found
