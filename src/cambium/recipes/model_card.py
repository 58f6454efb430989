"""The bundled base's model card, written from what its training recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import vl_convert

_CORPORA = {
    "english_novels": "57 English novels, 1840-1920 (ELTeC; public domain, markup CC BY 4.0)",
    "textbook_biology": "OpenStax Biology (CC BY 3.0, OpenStax College)",
    "textbook_sociology": "OpenStax Introduction to Sociology (CC BY 3.0, OpenStax College)",
    "textbook_us_history": "OpenStax U.S. History (CC BY 3.0, OpenStax College)",
    "docs_rust_book": "The Rust Programming Language, prose (MIT OR Apache-2.0)",
    "shakespeare": "Shakespeare, a selection (public domain)",
    "python_reference": "Python's language reference, four fifths by hash (PSF licence)",
    "python_docstrings": "docstrings of the standard library, four fifths by hash (PSF licence)",
    "conversations": "question-and-answer turns made from the titled sections above",
}

_CARD = """\
---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Cambium's bundled base

A Llama-type language model of {parameters:,} parameters (bf16, context {context}, byte-fallback
BPE of {vocab_size:,} tokens), trained from nothing by Cambium's own recipe
(`cambium pretrain bundled_base`) so that the whole loop can be run and tested without a model hub.

**For** showing and testing a server that learns. **Not for** answering anybody: it writes plausible
fragments, knows nothing reliably, and has had no alignment training of any kind.

## Training

{tokens:,} tokens in {minutes:.0f} minutes on a CPU, bf16 autocast; Muon for
matrices, AdamW for embeddings and norms, linear decay over the last {decay:.0%} of the budget,
seed {seed}.

![Training loss against tokens](loss_curve.svg)

| corpus | tokens | read | held-out nats per token | perplexity |
|---|---|---|---|---|
{rows}

Held out: one document in fifty of each corpus. Of Python's reference prose and docstrings, a
further fifth, chosen by hash, was never trained on; the demo measures on that. Special tokens:
{specials}.

## Limits

The novels carry the views of their time, and the model with them. English only. Small enough that
gates calibrated on it say little about larger models.
"""


def write_card(out: Path, *, context: int, decay_share: float, seed: int) -> None:
    """Writes `README.md` and `loss_curve.svg` beside the model, from `training.json`."""
    record: dict[str, Any] = json.loads((out / "training.json").read_text(encoding="utf-8"))
    rows = []
    for name, tokens in record["tokens_in_corpora"].items():
        loss = record["held_out_nats_per_token"][name]
        read = f"{record['mixture'][name]:g} ×"
        rows.append(
            f"| {_CORPORA[name]} | {tokens:,} | {read} | {loss:.3f} | {math.exp(loss):.1f} |"
        )
    card = _CARD.format(
        parameters=record["parameters"],
        context=context,
        vocab_size=record["vocab_size"],
        tokens=int(record["tokens_trained"]),
        minutes=record["minutes"],
        decay=decay_share,
        seed=seed,
        rows="\n".join(rows),
        specials=", ".join(f"`{token}`" for token in record["special_tokens"]),
    )
    (out / "README.md").write_text(card, encoding="utf-8")
    (out / "loss_curve.svg").write_text(_curve(record["loss_curve"]), encoding="utf-8")


def _curve(points: list[list[float]]) -> str:
    values = [{"tokens": tokens / 1e6, "loss": loss} for tokens, loss in points]
    return vl_convert.vegalite_to_svg(
        {
            "data": {"values": values},
            "mark": {"type": "line", "color": "#2f7d5b"},
            "width": 560,
            "height": 200,
            "encoding": {
                "x": {"field": "tokens", "type": "quantitative", "title": "million tokens"},
                "y": {"field": "loss", "type": "quantitative", "title": "nats per token",
                      "scale": {"zero": False}},
            },
        },
        vl_version="5.20",
    )  # fmt: skip
