from __future__ import annotations

from typing import Any

import yaml

from cambium.serve.model_card import model_card

GATE = {"name": "retention", "metric": "nats per token", "verdict": "pass", "waived": False,
        "effect": -0.012, "ci": [-0.02, -0.004], "threshold": -0.03, "mde": 0.01,
        "why": "x"}  # fmt: skip
UNSEEN = {**GATE, "name": "integrity", "verdict": "missing", "effect": None, "ci": None,
          "mde": None, "why": "no look yet"}  # fmt: skip


def card(**changes: Any) -> str:
    view = {"id": "p-1", "state": "awaiting_approval", "adapter": "notes", "domain": "law",
            "candidate_digest": "sha256:c", "proposal_digest": "sha256:p", "parent_revision": 3,
            "evidence_root": "sha256:e", "attestation": "software-dev", "gates": [GATE, UNSEEN],
            "provenance": {"lora": {"r": 8, "lora_alpha": 16}}, **changes}  # fmt: skip
    diff = {
        "behaviour": {"available": False, "why": "it is being computed"},
        "weights": {"available": True},
        "circuits": {"available": False, "why": "no circuit diff is computed"},
        "data": {
            "examples": 16,
            "kept_for_gates": 5,
            "sources": ["*a*|<b>\n# c"],
            "consent": ["y"],
        },
    }
    return model_card(view, diff, base="cambium-base")


def test_the_hub_reads_its_metadata() -> None:
    head = yaml.safe_load(card().split("---")[1])
    assert (head["base_model"], head["library_name"]) == ("cambium-base", "peft")
    (result,) = head["model-index"][0]["results"]
    # What was not measured is no figure of zero.
    assert result["metrics"][0]["value"] == -0.012 and result["dataset"]["type"] == "retention"


def test_what_was_not_measured_is_said() -> None:
    found = card()
    assert "- integrity: no look yet" in found and "- circuits: no circuit diff" in found
    assert "| integrity | missing | – | – | -0.03 | – |" in found
    assert "Not known: it is being computed." in found
    assert "**A preview: the proposal p-1 is awaiting approval.**" in found
    assert "A preview" not in card(state="merged")
    assert "pass, waived" in card(gates=[{**GATE, "waived": True}])


def test_what_others_wrote_is_text() -> None:
    assert r"from \*a\*\|\<b\> \# c;" in card()
