"""The diff of a proposal, from what the spine measures: evals, weights and data.

Parts without a producer say so: absence is not a green tick.
"""

from __future__ import annotations

from typing import Any

import torch

from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.lora import delta_norms, from_bytes
from cambium.serve.proposal_records import Filed
from cambium.serve.runtime import Runtime


def diff_of(filed: Filed, runtime: Runtime) -> dict[str, Any]:
    """Returns the five parts of a proposal's diff."""
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
        },
    }


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
    modules = []
    for path, norm in sorted(delta_norms(from_bytes(data, runtime.base.sites)).items()):
        weight = float(torch.linalg.norm(runtime.base.model.get_submodule(path).weight.float()))
        modules.append({"module": path, "delta_norm": norm, "relative": norm / weight})
    return {"available": True, "digest": data.digest, "modules": modules}
