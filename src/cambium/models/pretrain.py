"""Pretraining of a small Llama: packed windows, Muon for matrices, AdamW for the rest.

Resumable: the folder `checkpoint/` under the output holds everything but the corpus.
Shapes: B windows per micro-batch, T tokens per window.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Size of the model and the budget of its training.

    The budget ends at `num_tokens` or after `max_minutes`, whichever comes first; the learning
    rate decays over the last `decay_share` of it.
    """

    vocab_size: int = 8192
    d_model: int = 320
    n_layers: int = 6
    n_heads: int = 5
    d_mlp: int = 896
    context: int = 512
    windows_per_step: int = 32
    windows_per_micro_batch: int = 8
    num_tokens: int = 60_000_000
    max_minutes: float = 65.0
    muon_lr: float = 4e-3
    adam_lr: float = 3e-3
    weight_decay: float = 0.05
    warmup_steps: int = 40
    decay_share: float = 0.35
    checkpoint_every_steps: int = 100
    compiled: bool = True
    seed: int = 20


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token streams with the number of times each is to be read per epoch of the mixture."""

    streams: dict[str, np.ndarray]
    repeats: dict[str, float]
    held_out: dict[str, np.ndarray]


def build_model(config: PretrainConfig) -> LlamaForCausalLM:
    """Returns a fresh Llama with tied embeddings, fp32, depth-scaled initialisation."""
    torch.manual_seed(config.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.d_model,
            intermediate_size=config.d_mlp,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_heads,
            max_position_embeddings=config.context,
            tie_word_embeddings=True,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(weight, std=0.02 / math.sqrt(2 * config.n_layers))
    return model


def pretrain(
    config: PretrainConfig,
    corpus: Corpus,
    out: Path,
    report: Callable[[dict[str, float]], None],
) -> LlamaForCausalLM:
    """Trains a model on `corpus`, resuming from `out/checkpoint` if there is one.

    Args:
        report: called after every step with step, tokens, minutes, loss (nats per token), share.

    Returns:
        The trained model in fp32, in eval mode.
    """
    model = build_model(config)
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    muon = torch.optim.Muon(
        matrices,
        lr=config.muon_lr,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    adam = torch.optim.AdamW(others, lr=config.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    state = _load_checkpoint(out, model, (muon, adam))
    loss_fn = torch.compile(_micro_loss) if config.compiled else _micro_loss
    windows = _windows(config, corpus, skip=state["windows"])
    while (share := _budget_share(config, state)) < 1.0:
        started = time.monotonic()
        scale = _lr_scale(config, int(state["step"]), share)
        for optimizer, lr in ((muon, config.muon_lr), (adam, config.adam_lr)):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
        batch = torch.stack([next(windows) for _ in range(config.windows_per_step)])
        loss = 0.0
        for part in batch.split(config.windows_per_micro_batch):
            weighted = loss_fn(model, part) * (len(part) / len(batch))
            weighted.backward()
            loss += float(weighted.detach())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        state["step"] += 1
        state["windows"] += config.windows_per_step
        state["minutes"] += (time.monotonic() - started) / 60
        report({**state, "loss": loss, "share": share, "tokens": state["windows"] * config.context})
        if state["step"] % config.checkpoint_every_steps == 0:
            _save_checkpoint(out, model, (muon, adam), state)
    _save_checkpoint(out, model, (muon, adam), state)
    return model.eval()


@torch.no_grad()
def held_out_loss(
    model: nn.Module, tokens: np.ndarray, context: int, max_windows: int = 64
) -> float:
    """Returns the mean loss in nats per token over the first windows of a held-out stream."""
    losses = []
    for start in range(0, min(len(tokens) - 1, max_windows * context), context):
        window = torch.from_numpy(tokens[start : start + context + 1].astype(np.int64))
        if len(window) < 2:
            break
        logits = model(input_ids=window[None, :-1]).logits[0].float()
        losses.append(nn.functional.cross_entropy(logits, window[1:], reduction="none"))
    return float(torch.cat(losses).mean())


def _micro_loss(model: nn.Module, part: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=part[:, :-1]).logits
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())


def _windows(config: PretrainConfig, corpus: Corpus, *, skip: float) -> Iterator[Tensor]:
    """Yields shuffled windows of T + 1 tokens; epoch e is shuffled with seed + e."""
    epoch = 0
    passed = 0
    while True:
        rng = np.random.default_rng(config.seed + epoch)
        starts: list[tuple[str, int]] = []
        for name, stream in corpus.streams.items():
            offset = int(rng.integers(config.context))
            all_starts = np.arange(offset, len(stream) - config.context - 1, config.context)
            wanted = corpus.repeats[name] * len(all_starts)
            rounds = math.ceil(corpus.repeats[name])
            picks = np.concatenate([rng.permutation(all_starts) for _ in range(rounds)])
            starts += [(name, int(s)) for s in picks[: int(wanted)]]
        for i in rng.permutation(len(starts)):
            passed += 1
            if passed > skip:
                name, start = starts[i]
                piece = corpus.streams[name][start : start + config.context + 1]
                yield torch.from_numpy(piece.astype(np.int64))
        epoch += 1


def _budget_share(config: PretrainConfig, state: dict[str, float]) -> float:
    by_tokens = state["windows"] * config.context / config.num_tokens
    return max(by_tokens, state["minutes"] / config.max_minutes)


def _lr_scale(config: PretrainConfig, step: int, share: float) -> float:
    warmup = min(1.0, (step + 1) / config.warmup_steps)
    return warmup * min(1.0, max(0.02, (1.0 - share) / config.decay_share))


def _save_checkpoint(
    out: Path,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    state: dict[str, float],
) -> None:
    folder = out / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    for i, optimizer in enumerate(optimizers):
        for j, slots in optimizer.state_dict()["state"].items():
            for key, value in slots.items():
                tensors[f"optimizer.{i}.{j}.{key}"] = torch.as_tensor(value).detach()
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "next.safetensors",
              metadata={"state": json.dumps(state)})  # fmt: skip
    (folder / "next.safetensors").replace(folder / "last.safetensors")


def _load_checkpoint(
    out: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, float]:
    path = out / "checkpoint" / "last.safetensors"
    if not path.exists():
        return {"step": 0.0, "windows": 0.0, "minutes": 0.0}
    tensors = load_file(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for i, optimizer in enumerate(optimizers):
        saved = optimizer.state_dict()
        for key, value in tensors.items():
            kind, *rest = key.split(".")
            if kind == "optimizer" and rest[0] == str(i):
                saved["state"].setdefault(int(rest[1]), {})[rest[2]] = value
        optimizer.load_state_dict(saved)
    header_size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + header_size])
    return json.loads(header["__metadata__"]["state"])
