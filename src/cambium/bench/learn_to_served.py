"""How soon a correction is in the answers: alone, beside a busy server, and beside PEFT.

The peer does what a team without Cambium would: a step in PEFT on a loaded model, the adapter
saved, loaded again into the model that answers, and one token asked of it.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
import torch

from cambium.bench.report import Row
from cambium.models.base import BUNDLED, BaseModel
from cambium.models.lora import LoraConfig, fresh_lora, to_bytes
from cambium.serve.child import ChildServer

WARM_UP = 3
CORRECTIONS = 25
NUM_LEARNERS = 16
NUM_READERS = 8
PERIOD_S = 2.0
BUSY_S = 30.0
LR = 2e-3
# With the words of a number, about 64 tokens.
CORRECTION = {
    "prompt": "A visitor asked on day {} at which door of the old museum the guided walk begins. "
    "The answer that we gave was wrong; the right one is",
    "completion": " this: the walk begins at the north gate, beside the fountain, at {} minutes "
    "past nine, and it ends in the garden behind the library.",
}


def rows(base: BaseModel, say: Callable[[str], None]) -> list[Row]:
    """Returns the rows of the benchmark; everything goes through HTTP to a server process."""
    with tempfile.TemporaryDirectory() as folder, ChildServer(Path(folder) / "state") as server:
        peer = _Peer(base, Path(folder) / "peer")
        say(f"learn to served: {CORRECTIONS} corrections of one step beside PEFT, then of eight")
        ours, theirs = _alone(server, peer)
        eight, _ = _alone(server, None, steps=8)
        say(f"{NUM_READERS} readers alone, {BUSY_S:.0f} s")
        _, rate_alone = _busy(server, 0)
        say(f"{NUM_READERS} readers beside {NUM_LEARNERS} learners, {BUSY_S:.0f} s")
        busy, rate_beside = _busy(server, NUM_LEARNERS)
    tokens = len(base.tokenizer.encode("".join(_correction(10).values())))
    one = f"a correction of {tokens} tokens, 1 step: HTTP request sent to an answer that uses it"
    crowd = f"{NUM_LEARNERS} learners, a correction every {PERIOD_S:.0f} s each; "
    crowd += f"{NUM_READERS} readers"
    name = "PEFT step + save + reload + one token"
    return [
        Row(metric="engine.learn_to_served_ms.p50", unit="ms", value=median(ours), peer=name,
            peer_value=median(theirs), ratio=median(theirs) / median(ours), setting=one),
        Row(metric="engine.learn_to_served_ms.p99", unit="ms", value=_p99(ours), setting=one),
        Row(metric="engine.learn_to_served_ms.8steps.p50", unit="ms", value=median(eight),
            setting="as above, 8 steps"),
        Row(metric="engine.learn_to_served_ms.busy.p50", unit="ms", value=median(busy),
            setting=crowd),
        Row(metric="engine.learn_to_served_ms.busy.p99", unit="ms", value=_p99(busy),
            peer="p99 alone", peer_value=_p99(ours), ratio=_p99(ours) / _p99(busy),
            setting=crowd),
        Row(metric="engine.readers_tokens_per_s.busy", unit="tokens/s", value=rate_beside,
            peer="the same readers alone", peer_value=rate_alone,
            ratio=rate_beside / rate_alone, setting=crowd),
    ]  # fmt: skip


def _correction(i: int) -> dict[str, str]:
    return {key: text.format(i) for key, text in CORRECTION.items()}


def _p99(values: list[float]) -> float:
    return quantiles(values, n=100, method="inclusive")[98]


def _alone(
    server: ChildServer, peer: _Peer | None, *, steps: int = 1
) -> tuple[list[float], list[float]]:
    """Returns milliseconds of every correction, and of the peer's in turn."""
    ours, theirs = [], []
    for i in range(WARM_UP + CORRECTIONS):
        # An adapter that hears the same a hundred times leaves its bounds.
        name = f"alone-{steps}-{i // 5}"
        if i % 5 == 0:
            server.http.post("/adapters/ephemeral", json={"task_id": name}).raise_for_status()
        ours.append(_correct(server.http, name, i, steps))
        if peer is not None:
            theirs.append(peer.correct(i))
    return ours[WARM_UP:], theirs[WARM_UP:]


def _correct(http: httpx.Client, name: str, i: int, steps: int) -> float:
    """Returns milliseconds from sending a correction to an answer's first use of it."""
    example = _correction(i)
    started = time.perf_counter()
    lesson = {"adapter_id": name, "examples": [example], "steps": steps}
    learned = http.post("/learn/step", json=lesson).raise_for_status().json()
    asked = {"model": name, "prompt": example["prompt"], "max_tokens": 1}
    answer = http.post("/v1/completions", json=asked).raise_for_status()
    taken = 1000 * (time.perf_counter() - started)
    if learned["digest_after"] not in answer.headers["x-cambium-adapter"]:
        raise RuntimeError("the answer did not use what was just learned")
    return taken


def _busy(server: ChildServer, num_learners: int) -> tuple[list[float], float]:
    """Returns milliseconds of the corrections and the readers' tokens per second together."""
    until = time.monotonic() + BUSY_S
    latencies: list[float] = []
    tokens: list[int] = []

    def read(reader: int) -> None:
        with httpx.Client(base_url=server.url, timeout=300.0) as http:
            while time.monotonic() < until:
                asked = {"model": "base", "max_tokens": 48, "temperature": 0,
                         "prompt": f"What reader {reader} wanted to know was"}  # fmt: skip
                answer = http.post("/v1/completions", json=asked).raise_for_status().json()
                tokens.append(answer["usage"]["completion_tokens"])

    def learn(learner: int) -> None:
        name = f"busy-{learner}"
        with httpx.Client(base_url=server.url, timeout=300.0) as http:
            http.post("/adapters/ephemeral", json={"task_id": name}).raise_for_status()
            time.sleep(PERIOD_S * learner / num_learners)
            for i in range(int(BUSY_S / PERIOD_S)):
                began = time.monotonic()
                latencies.append(_correct(http, name, i, 1))
                time.sleep(max(0.0, began + PERIOD_S - time.monotonic()))

    started = time.monotonic()
    threads = [threading.Thread(target=read, args=(i,)) for i in range(NUM_READERS)]
    threads += [threading.Thread(target=learn, args=(i,)) for i in range(num_learners)]
    for thread in threads:
        thread.start()
    for thread in threads[:NUM_READERS]:
        thread.join()
    rate = sum(tokens) / (time.monotonic() - started)
    for thread in threads:
        thread.join()
    return latencies, rate


class _Peer:
    """The same correction with PEFT: learned in one model, served by another."""

    def __init__(self, base: BaseModel, folder: Path) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        self.tokenizer = base.tokenizer
        self.folder = folder
        start = folder / "start"
        start.mkdir(parents=True)
        data = to_bytes(fresh_lora(LoraConfig(), base.sites, seed=0))
        (start / "adapter_config.json").write_bytes(data.config)
        (start / "adapter_model.safetensors").write_bytes(data.weights)

        def load(*, is_trainable: bool) -> Any:
            model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
            return PeftModel.from_pretrained(model, start, is_trainable=is_trainable)

        self.learner, self.server = load(is_trainable=True), load(is_trainable=False).eval()
        weights = [p for p in self.learner.parameters() if p.requires_grad]
        self.adam = torch.optim.AdamW(weights, lr=LR, weight_decay=0.0)

    def correct(self, i: int) -> float:
        """Returns milliseconds from having a correction to one token that uses it."""
        example = _correction(i)
        started = time.perf_counter()
        prompt = self.tokenizer.encode(example["prompt"], add_special_tokens=False)
        rest = self.tokenizer.encode(example["completion"], add_special_tokens=False)
        ids = torch.tensor([prompt + rest])
        labels = torch.tensor([[-100] * len(prompt) + rest])
        self.learner(input_ids=ids, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 0.5)
        self.adam.step()
        self.adam.zero_grad()
        self.learner.save_pretrained(self.folder / "saved")
        self.server.delete_adapter("default")
        self.server.load_adapter(self.folder / "saved", adapter_name="default")
        self.server.set_adapter("default")
        with torch.inference_mode():
            self.server.generate(input_ids=ids[:, : len(prompt)], max_new_tokens=1)
        return 1000 * (time.perf_counter() - started)
