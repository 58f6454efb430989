"""Benchmark `engine`: many adapters in one batch, and how soon a correction is served.

The peer is `transformers` generate with PEFT's mixed-adapter batches on the same weights; the
limit of decoding is reading the weights of base and adapters once per step at the measured
memory bandwidth.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cambium.bench import learn_to_served, observed
from cambium.bench.report import Row, interleaved, memory_bandwidth, result
from cambium.models.base import BUNDLED, BaseModel, load_base
from cambium.models.engine import Engine, GenerationRequest
from cambium.models.lora import Lora, LoraConfig, fresh_lora, to_bytes
from cambium.models.process import prepare_process
from cambium.models.sampling import SamplingConfig

NUM_ADAPTERS = 16
NEW_TOKENS = 64
ROUNDS = 5
PROMPT = "The following text explains, in plain words, what a reader of number {} should know about"


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the rows of the benchmark; `say` is told what is being measured."""
    prepare_process()
    base = load_base()
    adapters = [_trained_looking(base, seed) for seed in range(NUM_ADAPTERS)]
    prompts = [base.tokenizer.encode(PROMPT.format(i), add_special_tokens=False)
               for i in range(NUM_ADAPTERS)]  # fmt: skip
    engine = Engine(base)
    say(f"{NUM_ADAPTERS} requests over {NUM_ADAPTERS} adapters, {ROUNDS} rounds beside PEFT")
    with tempfile.TemporaryDirectory() as folder:
        peer = _peft_model(base, adapters, Path(folder))
        contenders = {
            "cambium": lambda: _engine_rate(engine, adapters, prompts),
            "peft": lambda: _peft_rate(peer, base.tokenizer, prompts),
        }
        for contender in contenders.values():
            contender()
        rates = interleaved(contenders, ROUNDS)
    engine.close()
    step_bytes = 4 * (sum(p.numel() for p in base.model.parameters())
                      + sum(a.num_parameters() for a in adapters))  # fmt: skip
    limit = NUM_ADAPTERS * memory_bandwidth() / step_bytes
    setting = f"{NUM_ADAPTERS} requests x {NEW_TOKENS} new tokens, r 8 on all projections, fp32"
    return result(
        "engine",
        [
            Row(metric="engine.tokens_per_s.16x16", unit="tokens/s", value=rates["cambium"],
                peer="transformers generate + PEFT adapter_names", peer_value=rates["peft"],
                ratio=rates["cambium"] / rates["peft"], limit=limit, setting=setting),
            *learn_to_served.rows(base, say),
            *observed.rows(say),
        ],
    )  # fmt: skip


def _engine_rate(engine: Engine, adapters: list[Lora], prompts: list[list[int]]) -> float:
    done = threading.Barrier(len(adapters) + 1)
    counts: list[int] = []

    def ask(adapter: Lora, prompt: list[int]) -> None:
        request = GenerationRequest(prompt=prompt, adapters=(adapter,), max_tokens=NEW_TOKENS,
                                    sampling=SamplingConfig(temperature=0))  # fmt: skip
        events = engine.generate(request)
        counts.append(sum(e.token_id is not None for e in events))
        done.wait()

    started = time.perf_counter()
    for adapter, prompt in zip(adapters, prompts, strict=True):
        threading.Thread(target=ask, args=(adapter, prompt), daemon=True).start()
    done.wait()
    return sum(counts) / (time.perf_counter() - started)


@torch.inference_mode()
def _peft_rate(peer: Any, tokenizer: Any, prompts: list[list[int]]) -> float:
    longest = max(map(len, prompts))
    pad = [[0] * (longest - len(p)) for p in prompts]
    ids = torch.tensor([z + p for z, p in zip(pad, prompts, strict=True)])
    mask = torch.tensor([[0] * len(z) + [1] * len(p) for z, p in zip(pad, prompts, strict=True)])
    started = time.perf_counter()
    out = peer.generate(input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS,
                        min_new_tokens=NEW_TOKENS, do_sample=False,
                        adapter_names=[f"a{i}" for i in range(len(prompts))],
                        pad_token_id=tokenizer.pad_token_id or 0)  # fmt: skip
    return (out.shape[1] - longest) * len(prompts) / (time.perf_counter() - started)


def _trained_looking(base: BaseModel, seed: int) -> Lora:
    lora = fresh_lora(LoraConfig(), base.sites, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    b = {path: torch.randn(t.shape, generator=generator) * 0.01 for path, t in lora.b.items()}
    return Lora(config=lora.config, a=lora.a, b=b)


def _peft_model(base: BaseModel, adapters: list[Lora], folder: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32)
    for i, adapter in enumerate(adapters):
        data = to_bytes(adapter)
        (folder / f"a{i}").mkdir()
        (folder / f"a{i}" / "adapter_config.json").write_bytes(data.config)
        (folder / f"a{i}" / "adapter_model.safetensors").write_bytes(data.weights)
    peer = PeftModel.from_pretrained(model, folder / "a0", adapter_name="a0")
    for i in range(1, len(adapters)):
        peer.load_adapter(folder / f"a{i}", adapter_name=f"a{i}")
    return peer.eval()
