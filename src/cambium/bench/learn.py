"""Benchmark `learn`: many adapters in one training step, beside PEFT one adapter at a time.

Both sides train the same adapters on the same texts with AdamW and clipping, in one run and in
turn. The peer gets whichever of its settings is fastest here. The limit is the matrix products of
the step alone, at the model's own shapes, timed in the same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

from cambium.bench.report import Row, interleaved, result
from cambium.models.adapter_stack import AdapterStack, StackAdamW
from cambium.models.base import BUNDLED, BaseModel, load_base
from cambium.models.chunked_head import cross_entropy
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.models.packing import Segment, pack
from cambium.models.process import prepare_process
from cambium.models.training_model import TrainingModel
from cambium.recipes import python_texts

SETTINGS = ((16, 32), (16, 128), (64, 32))
SCALING = ((16, 32), (256, 32))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LR = 1e-4
CLIP = 0.5
ROUNDS = 7
FIRST_INPUTS = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
PEER = "PEFT, one adapter after another"


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the rows of the benchmark; `say` is told what is being measured."""
    prepare_process()
    base = load_base()
    rows: list[Row] = []
    for name, dtype in DTYPES.items():
        model = TrainingModel(base, dtype)
        for adapters, tokens in SETTINGS:
            say(f"{adapters} adapters x {tokens} tokens, {name}, {ROUNDS} rounds beside PEFT")
            rows += _beside_peer(model, adapters, tokens, name)
        say(f"cost per adapter, {name}")
        rows += _scaling(model, name)
    rows += _memory(base)
    return result("learn", rows)


def _beside_peer(model: TrainingModel, adapters: int, tokens: int, name: str) -> list[Row]:
    texts = _texts(model.base, adapters, tokens)
    ours = _Ours(model, texts)
    peer, setting = _fastest_peer(model, texts)
    products = _products(model, adapters * tokens)
    contenders = {"ours": ours.step, "peer": peer.step, "products": products}
    seconds = interleaved(contenders, ROUNDS)
    size = adapters * tokens
    rows = [
        Row(metric=f"learn.step.{adapters}x{tokens}.{name}", unit="tokens/s",
            value=size / seconds["ours"], peer=PEER, peer_value=size / seconds["peer"],
            ratio=seconds["peer"] / seconds["ours"], limit=size / seconds["products"],
            setting=f"r 8 on all projections, AdamW, clip {CLIP}; peer: {setting}")
    ]  # fmt: skip
    if (adapters, tokens) == (16, 128):
        rows.append(
            Row(metric=f"learn.gemm_share.16x128.{name}", unit="share of the GEMM rate",
                value=seconds["products"] / seconds["ours"], limit=1.0,
                setting="the step's matrix products alone, at the same shapes, over the step")
        )  # fmt: skip
    return rows


def _scaling(model: TrainingModel, name: str) -> list[Row]:
    contenders = {str(n): _Ours(model, _texts(model.base, n, tokens)).step for n, tokens in SCALING}
    for contender in contenders.values():
        contender()
    seconds = interleaved(contenders, 5)
    few, many = (1000 * seconds[str(n)] / n for n, _ in SCALING)
    return [
        Row(metric=f"learn.ms_per_adapter.{n}.{name}", unit="ms", value=value,
            ratio=few / value, setting=f"{n} adapters x 32 tokens; ratio to 16 adapters")
        for (n, _), value in zip(SCALING, (few, many), strict=True)
    ]  # fmt: skip


def _memory(base: BaseModel) -> list[Row]:
    """Returns bytes held per adapter against its weights, gradients and both moments."""
    loras = [fresh_lora(LoraConfig(), base.sites, seed=i) for i in range(16)]
    stack = AdapterStack(loras, base.sites, dtype=torch.bfloat16)
    stack.zero_grad()
    adam = StackAdamW(stack, lr=torch.full((16,), LR), max_grad_norm=torch.full((16,), CLIP))
    tensors = [stack.weights, stack.grad, adam.mean, adam.square]
    tensors += [half for path in stack.paths for half in stack.halves(path)]
    held = sum(t.numel() * t.element_size() for t in tensors) / 16
    needed = 4 * 4 * loras[0].num_parameters()
    return [
        Row(metric="learn.bytes_per_adapter", unit="bytes", value=held, limit=needed,
            setting=f"{held / needed:.3f} of weights, gradients and optimiser state in fp32")
    ]  # fmt: skip


class _Ours:
    def __init__(self, model: TrainingModel, texts: Tensor) -> None:
        self.model = model
        number, tokens = texts.shape[0], texts.shape[1] - 1
        sites = model.base.sites
        loras = [fresh_lora(LoraConfig(), sites, seed=i) for i in range(number)]
        self.stack = AdapterStack(loras, sites, dtype=model.dtype)
        self.adam = StackAdamW(
            self.stack,
            lr=torch.full((number,), LR, dtype=torch.float64),
            max_grad_norm=torch.full((number,), CLIP),
        )
        segments = [
            Segment(adapter=i, tokens=row[:-1], targets=row[1:])
            for i, row in enumerate(texts.tolist())
        ]
        self.pack = pack(segments)
        self.loss = cross_entropy(
            texts[:, 1:].flatten(), torch.full((number * tokens,), 1 / tokens)
        )
        self.active = torch.ones(number, dtype=torch.bool)

    def step(self) -> float:
        started = time.perf_counter()
        self.stack.zero_grad()
        self.model.train_pass(self.pack, self.stack, self.loss)
        self.adam.step(self.active)
        return time.perf_counter() - started


class _Peft:
    def __init__(self, model: TrainingModel, texts: Tensor, *, attention: str, wide: bool) -> None:
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        plain = AutoModelForCausalLM.from_pretrained(
            BUNDLED, dtype=model.dtype, attn_implementation=attention
        )
        config = PeftConfig(r=8, lora_alpha=16, target_modules="all-linear", lora_dropout=0.0)
        self.model: Any = get_peft_model(plain, config, "a0", autocast_adapter_dtype=wide)
        for i in range(1, len(texts)):
            self.model.add_adapter(f"a{i}", config, autocast_adapter_dtype=wide)
        self.model.train()
        self.texts = texts
        self.weights = [self._weights(i) for i in range(len(texts))]
        self.optimizers = [torch.optim.AdamW(w, lr=LR, weight_decay=0.0) for w in self.weights]

    def _weights(self, i: int) -> list[Tensor]:
        return [p for n, p in self.model.named_parameters() if f".a{i}." in n]

    def step(self) -> float:
        started = time.perf_counter()
        for i, weights in enumerate(self.weights):
            self.model.set_adapter(f"a{i}")
            row = self.texts[i : i + 1]
            logits = self.model(input_ids=row[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits[0].float(), row[0, 1:])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, CLIP)
            self.optimizers[i].step()
            self.optimizers[i].zero_grad(set_to_none=True)
        return time.perf_counter() - started


def _fastest_peer(model: TrainingModel, texts: Tensor) -> tuple[_Peft, str]:
    """Returns the peer in the setting that is fastest for this data, after a warm-up."""
    found: list[tuple[float, str, _Peft]] = []
    for attention in ("sdpa", "eager"):
        for wide in (True, False) if model.dtype == torch.bfloat16 else (True,):
            peer = _Peft(model, texts[:4], attention=attention, wide=wide)
            peer.step()
            name = f"{attention} attention, adapters in {'fp32' if wide else 'bf16'}"
            found.append((median(peer.step() for _ in range(3)), name, peer))
    _, name, _ = min(found, key=lambda one: one[0])
    attention, wide = name.split()[0], name.endswith("fp32")
    peer = _Peft(model, texts, attention=attention, wide=wide)
    peer.step()
    return peer, name


def _products(model: TrainingModel, size: int) -> Callable[[], float]:
    """Returns a timing of the step's products with base weights, but those into embeddings."""
    network: Any = model.base.model
    paths = sorted(model.base.sites)
    modules = [network.get_submodule(path) for path in paths]
    modules.append(network.get_output_embeddings())
    weights: list[Tensor] = [module.weight.to(model.dtype) for module in modules]
    # The first layer's query, key and value need no gradient of their input.
    lowest = {i for i, path in enumerate(paths) if path.startswith(FIRST_INPUTS)}
    inputs = {w.shape[1]: torch.randn(size, w.shape[1], dtype=model.dtype) for w in weights}
    outputs = {w.shape[0]: torch.randn(size, w.shape[0], dtype=model.dtype) for w in weights}

    def timed() -> float:
        started = time.perf_counter()
        for i, weight in enumerate(weights):
            torch.mm(inputs[weight.shape[1]], weight.T)
            if i not in lowest:
                torch.mm(outputs[weight.shape[0]], weight)
        return time.perf_counter() - started

    timed()
    return timed


def _texts(base: BaseModel, number: int, tokens: int) -> Tensor:
    """Returns token ids of the language reference, shape [number tokens + 1]."""
    ids: list[int] = []
    for document in python_texts.reference_prose():
        ids += base.tokenizer.encode(document.text, add_special_tokens=False)
        if len(ids) >= number * (tokens + 1):
            break
    return torch.tensor(ids[: number * (tokens + 1)]).view(number, tokens + 1)
