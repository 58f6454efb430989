"""The diff of a proposal, from what the spine measures: evals, weights and data.

Parts without a producer say so: absence is not a green tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.adapter_kinds import read_adapter
from cambium.models.anchors import BASE
from cambium.models.weight_diff import Weights, weights_record
from cambium.serve.lessons import kept_example
from cambium.serve.proposal_records import Filed
from cambium.serve.runtime import Runtime

MAX_DOCUMENTS, MAX_CHARS = 8, 400


def diff_of(filed: Filed, runtime: Runtime, *, seen: Callable[[str], bool]) -> dict[str, Any]:
    """Returns the five parts of a proposal's diff.

    Args:
        seen: whether a domain may be named to whoever asks.
    """
    view = runtime.review.view(filed)
    counted = ("name", "metric", "baseline", "candidate", "effect", "ci", "threshold", "verdict")
    return {
        "behaviour": _behaviour(filed, runtime),
        "evals": {
            "available": bool(filed.proposal.looks),
            "gates": [{k: gate[k] for k in counted} for gate in view["gates"]],
        },
        "weights": _weights(filed, runtime),
        "circuits": {"available": False, "why": "no circuit diff is computed by this version"},
        "data": {
            "available": True,
            "examples": len(filed.provenance["examples"]),
            "kept_for_gates": filed.provenance["kept_for_gates"],
            "sources": sorted({str(e["source"]) for e in filed.provenance["examples"]}),
            "consent": sorted({str(e["consent"]) for e in filed.provenance["examples"]}),
            "trained_on": _trained_on(filed, seen),
            "documents": documents_of(filed, runtime),
        },
    }


def documents_of(filed: Filed, runtime: Runtime) -> list[dict[str, Any]]:
    """Returns the beginnings of some documents, evenly over all in the order of their digests.

    Only of those whose consent still stands: what was withdrawn stays on disk until the sweep.
    """
    with runtime.state.read() as tx:
        standing = {e.digest: e.blob for e in tx.list_examples(filed.proposal.adapter_name)}
    there = [e for e in filed.provenance["examples"] if e["digest"] in standing]
    ordered = sorted(there, key=lambda e: str(e["digest"]))
    every = max(1, -(-len(ordered) // MAX_DOCUMENTS))
    found = []
    for example in ordered[::every]:
        text = kept_example(runtime.state, standing, example["digest"]).text
        found.append(
            {
                "digest": example["digest"],
                "source": example["source"],
                "kept": example["kept"],
                "text": text[:MAX_CHARS],
                "is_cut": len(text) > MAX_CHARS,
            }
        )
    return found


def _trained_on(filed: Filed, seen: Callable[[str], bool]) -> dict[str, Any]:
    """Returns what went into the candidate, as it was written down when it was frozen.

    A part's share is of all tokens that were gone through.
    """
    if filed.made_from is None:
        return {"available": False, "why": "the candidate is not frozen yet"}
    parts: list[dict[str, Any]] | None = filed.made_from.get("trained_on")
    if parts is None:
        return {"available": False, "why": "it was frozen before this was recorded"}
    tokens = sum(part["tokens"] for part in parts) or 1
    rows: dict[tuple[bool, str], dict[str, Any]] = {}
    for part in parts:
        of = str(part["of"] or "not recorded")
        if part["replayed"] and part["of"] not in (None, BASE) and not seen(of):
            of = "other tenants' domains"
        empty = {"replayed": part["replayed"], "of": of, "texts": 0, "tokens": 0}
        row = rows.setdefault((part["replayed"], of), empty)
        row["texts"] += part["texts"]
        row["tokens"] += part["tokens"]
    ordered = sorted(rows.values(), key=lambda row: (row["replayed"], -row["tokens"]))
    return {"available": True, "parts": [{**r, "share": r["tokens"] / tokens} for r in ordered]}


def _behaviour(filed: Filed, runtime: Runtime) -> dict[str, Any]:
    found = runtime.review.describer.found(filed)
    if found.get("pending"):
        runtime.review.describe(filed.proposal.id)
    return found


def _weights(filed: Filed, runtime: Runtime) -> dict[str, Any]:
    if filed.weights_blob is None or filed.config_json is None:
        return {"available": False, "why": "the candidate is not frozen yet"}
    data = AdapterBytes(
        config=filed.config_json.encode(), weights=runtime.state.blobs.get(filed.weights_blob)
    )
    base = runtime.base
    candidate = Weights(base=base, adapters=(read_adapter(data, base),))
    return {"digest": data.digest, **weights_record(Weights(base=base), candidate)}
