"""CLINC150, class by class: the sentence encoder with LoRA in its upper layers and one head.

Lower layers are frozen, so what they say of each text is computed once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cambium.models.encoder import SentenceEncoder
from cambium.models.lora import LinearSite, LoraConfig, fresh_lora
from cambium.recipes.class_stream import ClassStream, ClassStreamConfig, split_classes
from cambium.recipes.data import read_lines

ADAPTED_LAYERS = 3
MAX_TOKENS = 32


class IntentEncoder:
    """MiniLM with LoRA on the projections of its upper layers, and a head of unit vectors.

    Args:
        adapters: False trains all weights of the upper layers instead.
    """

    def __init__(self, texts: list[str], *, num_classes: int, seed: int, adapters: bool) -> None:
        loaded: Any = SentenceEncoder()._loaded()
        bert = loaded[0].model.requires_grad_(False).eval()
        layers = list(bert.encoder.layer)
        self._upper = layers[len(layers) - ADAPTED_LAYERS :]
        self._hidden, self._mask = _said_below(tuple(texts))
        self._halves: list[tuple[Tensor, Tensor]] = []
        if adapters:
            self._adapt(LoraConfig(r=8, lora_alpha=16), seed)
        head = torch.zeros(num_classes, self._hidden.shape[-1])
        own = [w for pair in self._halves for w in pair]
        if not adapters:
            own = [p for layer in self._upper for p in layer.parameters()]
        self._weights = [*own, head]
        for weight in self._weights:
            weight.requires_grad_()

    def parameters(self) -> list[Tensor]:
        """Returns the adapters' halves and the head [C 384]."""
        return self._weights

    def features(self, items: Tensor) -> Tensor:
        """Returns unit vectors [B 384]."""
        mask = self._mask[items]
        length = int(mask.sum(1).max())
        mask, hidden = mask[:, :length], self._hidden[items, :length]
        allowed = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        with _fast():
            for layer in self._upper:
                out = layer(hidden, allowed[:, None, None])
                hidden = out[0] if isinstance(out, tuple) else out
        kept = mask[..., None].float()
        mean = (hidden.float() * kept).sum(1) / kept.sum(1)
        return nn.functional.normalize(mean, dim=1)

    def _adapt(self, config: LoraConfig, seed: int) -> None:
        linear = {
            f"{i}.{path}": module
            for i, layer in enumerate(self._upper)
            for path, module in layer.named_modules()
            if isinstance(module, nn.Linear)
        }
        sites = {
            path: LinearSite(path=path, d_in=m.in_features, d_out=m.out_features)
            for path, m in linear.items()
        }
        lora = fresh_lora(config, sites, seed=seed)
        for path in sorted(linear):
            a, b = lora.a[path], lora.b[path]
            self._halves.append((a, b))
            linear[path].register_forward_hook(
                lambda _, args, out, a=a, b=b: out + (args[0] @ a.T) @ (config.scaling * b).T
            )


def _fast() -> torch.autocast:
    """Returns bf16 autocast where the processor multiplies bf16 in hardware, else nothing."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())


def stream(config: ClassStreamConfig, *, adapters: bool = True) -> ClassStream:
    """Returns the stream: 150 intents, those out of scope left out.

    Raises:
        DataError: the data is not there.
    """
    rows = {
        split: [r for r in read_lines(f"evals/clinc150/{split}.jsonl.gz") if r["label"] != "oos"]
        for split in ("train", "test")
    }
    labels, names = split_classes([r["label"] for split in rows.values() for r in split])
    num_train = len(rows["train"])
    model = IntentEncoder(
        [r["text"] for split in rows.values() for r in split],
        num_classes=len(names),
        seed=config.seed,
        adapters=adapters,
    )
    return ClassStream(
        model, train=labels[:num_train], test=labels[num_train:], where=num_train, config=config
    )


@lru_cache(maxsize=1)
@torch.inference_mode()
def _said_below(texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Returns what the frozen layers say, [N T 384], and which tokens are real."""
    loaded: Any = SentenceEncoder()._loaded()
    layers = list(loaded[0].model.encoder.layer)[:-ADAPTED_LAYERS]
    found = loaded.tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=MAX_TOKENS,
        return_tensors="pt",
    )
    ids, mask = found["input_ids"], found["attention_mask"].bool()
    bert = loaded[0].model
    parts = []
    for at in range(0, len(ids), 256):
        some = mask[at : at + 256]
        length = int(some.sum(1).max())
        hidden = bert.embeddings(input_ids=ids[at : at + 256, :length])
        allowed = torch.zeros(some[:, :length].shape).masked_fill(
            ~some[:, :length], torch.finfo(torch.float32).min
        )
        with _fast():
            for layer in layers:
                out = layer(hidden, allowed[:, None, None])
                hidden = out[0] if isinstance(out, tuple) else out
        hidden = hidden.float()
        parts.append(nn.functional.pad(hidden, (0, 0, 0, MAX_TOKENS - length)))
    return torch.cat(parts).clone(), mask.clone()
