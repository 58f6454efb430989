"""The recipe of the bundled base: corpora, mixture, tokenizer, training, model card."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cambium.models import tokenizer as tok
from cambium.models.pretrain import Corpus, PretrainConfig, held_out_loss, pretrain
from cambium.models.process import prepare_process
from cambium.recipes import python_texts
from cambium.recipes.model_card import write_card

# How often each corpus is read while the mixture is read once: little of the Victorian
# novels, more of what is closest to how people write to a server.
MIXTURE = {
    "english_novels": 0.6,
    "textbook_biology": 1.5,
    "textbook_sociology": 1.5,
    "textbook_us_history": 1.5,
    "docs_rust_book": 1.5,
    "shakespeare": 0.5,
    "python_reference": 3.0,
    "python_docstrings": 3.0,
    "conversations": 2.0,
}


@dataclass(frozen=True, kw_only=True)
class BundledBaseRecipe:
    """Everything that decides the bundled base's bytes on a given machine."""

    mixture: dict[str, float] = field(default_factory=lambda: dict(MIXTURE))
    tokenizer: tok.TokenizerConfig = tok.TokenizerConfig()
    training: PretrainConfig = PretrainConfig()
    threads: int = 2


def recipe() -> BundledBaseRecipe:
    """Returns the configuration of the base that ships with Cambium."""
    return BundledBaseRecipe()


def run(recipe: BundledBaseRecipe, out: Path, report: Callable[[dict[str, float]], None]) -> None:
    """Trains the base and writes model, tokenizer and card into `out`."""
    prepare_process()
    torch.set_num_threads(recipe.threads)
    texts = load_texts()
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = tok.train_tokenizer((d for docs in texts.values() for d in docs), recipe.tokenizer)
    corpus, counts = tokenize(texts, recipe.mixture, tokenizer)
    curve: list[list[float]] = []
    minutes = [0.0]

    def record(row: dict[str, float]) -> None:
        if row["step"] % 10 == 0:
            curve.append([row["tokens"], round(row["loss"], 4)])
        minutes[0] = row["minutes"]
        report(row)

    model = pretrain(recipe.training, corpus, out, record)
    write(model, tokenizer, out)
    context = recipe.training.context
    card = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocab_size": recipe.training.vocab_size,
        "special_tokens": list(tok.SPECIAL_TOKENS),
        "minutes": round(minutes[0], 1),
        "tokens_in_corpora": counts,
        "mixture": recipe.mixture,
        "tokens_trained": curve[-1][0] if curve else 0,
        "loss_curve": curve,
        "held_out_nats_per_token": {
            name: round(held_out_loss(model, stream, context), 4)
            for name, stream in corpus.held_out.items()
        },
    }
    (out / "training.json").write_text(json.dumps(card, indent=1))
    write_card(
        out,
        context=context,
        decay_share=recipe.training.decay_share,
        seed=recipe.training.seed,
    )


def write(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes `model` in bf16 safetensors with its tokenizer, in Hugging Face's layout."""
    weights = {
        name: p.detach().to(torch.bfloat16).contiguous() for name, p in model.named_parameters()
    }
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = torch.bfloat16
    model.config.architectures = ["LlamaForCausalLM"]
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)


def load_texts() -> dict[str, list[str]]:
    """Returns the training documents by corpus, held-out documents of Python's prose excluded.

    Raises:
        FileNotFoundError: `CAMBIUM_DATA` (default `../shared/data`) has no folder `text`.
    """
    folder = Path(os.environ.get("CAMBIUM_DATA", "../shared/data")) / "text"
    texts: dict[str, list[str]] = {}
    for name in MIXTURE:
        path = folder / f"{name}.jsonl.gz"
        if path.exists():
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                texts[name] = [json.loads(line)["text"] for line in lines]
        elif not name.startswith(("python_", "conversations")):
            raise FileNotFoundError(f"{path} is missing: set CAMBIUM_DATA to the corpora's folder")
    for name, documents in (
        ("python_reference", python_texts.reference_prose()),
        ("python_docstrings", python_texts.docstrings()),
    ):
        texts[name] = [d.text for d in documents if not python_texts.is_held_out(d.text)]
    texts["conversations"] = _conversations(texts)
    return texts


def tokenize(
    texts: dict[str, list[str]], mixture: dict[str, float], tokenizer: PreTrainedTokenizerFast
) -> tuple[Corpus, dict[str, int]]:
    """Returns the corpora as token streams; one document in fifty is kept for the model card."""
    backend = tokenizer.backend_tokenizer
    bos = tokenizer.convert_tokens_to_ids(tok.BOS)
    streams: dict[str, np.ndarray] = {}
    held: dict[str, np.ndarray] = {}
    for name, documents in texts.items():
        parts: dict[bool, list[int]] = {True: [], False: []}
        for start in range(0, len(documents), 1000):
            batch = documents[start : start + 1000]
            for text, encoded in zip(batch, backend.encode_batch(batch), strict=True):
                kept = hashlib.sha256(text.encode()).digest()[1] % 50 == 0
                parts[kept] += [bos, *encoded.ids]
        streams[name] = np.array(parts[False], dtype=np.uint16)
        held[name] = np.array(parts[True], dtype=np.uint16)
    corpus = Corpus(streams=streams, repeats=mixture, held_out=held)
    return corpus, {name: len(stream) for name, stream in streams.items()}


def _conversations(texts: dict[str, list[str]]) -> list[str]:
    """Makes question-and-answer turns out of titled sections, so that chat roles mean something."""
    questions = ("Tell me about {}.", "What should I know about {}?", "Explain: {}")
    turns = []
    for name in ("textbook_biology", "textbook_sociology", "textbook_us_history", "docs_rust_book"):
        for i, text in enumerate(texts[name]):
            title, _, body = text.partition("\n\n")
            if 4 < len(title) < 80 and len(body) > 200 and title != "Introduction":
                answer = body[:1200].rsplit("\n", 1)[0] if len(body) > 1200 else body
                asked = questions[i % 3].format(title)
                turns.append(f"{tok.USER}{asked}{tok.END}{tok.ASSISTANT}{answer}{tok.END}")
    return turns
