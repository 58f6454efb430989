"""A candidate's model card: what a merged adapter would say of itself to whoever is given it.

Markdown under the metadata that the Hugging Face hub reads (`model-index`). It says what was
measured and what was not; it is a preview until the proposal is merged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from cambium.core.nouns import ProposalState
from cambium.models.adapter_kinds import config_from, kind_of, shape_in_words

_CARD = """---
{metadata}
---

# {name}

{standing}

An adapter ({shape}) on `{base}`, for the domain `{domain}`.

- candidate: `{candidate}`
- proposal: `{proposal}`, evidence `{evidence}`
- parent: revision {parent}
- attested by: {attestation}

## What it learned from

{examples} documents with consent ({consent}), from {sources}; {kept} of them were kept for the
gates and never learned.

## What was measured

Each gate on items that no earlier look had used; it passes when its whole interval lies above the
threshold.

| gate | verdict | effect | interval | threshold | smallest effect it would have seen |
|---|---|---|---|---|---|
{gates}

## What it now says otherwise

{behaviour}

## What was not measured

{missing}
"""


def model_card(view: Mapping[str, Any], diff: Mapping[str, Any], *, base: str) -> str:
    """Returns the card as Markdown.

    Args:
        view: the proposal as the API shows it; `diff`: its diff.
        base: the base's name.
    """
    data = diff["data"]
    is_merged = view["state"] == ProposalState.MERGED
    return _CARD.format(
        metadata=_metadata(view, base),
        name=_text(view["adapter"]),
        standing="Merged by people's signatures." if is_merged else
        f"**A preview: the proposal {view['id']} is {view['state'].replace('_', ' ')}.**",
        shape=shape_in_words(config_from(view["provenance"])),
        base=_text(base),
        domain=_text(view["domain"]),
        candidate=view["candidate_digest"] or "not frozen yet",
        proposal=view["proposal_digest"] or "not frozen yet",
        evidence=view["evidence_root"] or "none yet",
        parent=view["parent_revision"],
        attestation=view["attestation"],
        examples=data["examples"],
        kept=data["kept_for_gates"],
        consent=_text(", ".join(data["consent"])),
        sources=_text(", ".join(data["sources"])),
        gates="\n".join(_row(gate) for gate in view["gates"]),
        behaviour=_behaviour(diff["behaviour"]),
        missing="\n".join(_missing(view, diff)),
    )  # fmt: skip


def _metadata(view: Mapping[str, Any], base: str) -> str:
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=gate["name"],
            dataset_name=f"cambium gate {gate['name']}",
            metric_type=gate["name"],
            metric_name=gate["metric"],
            metric_value=gate["effect"],
        )
        for gate in view["gates"]
        if gate["effect"] is not None
    ]
    card = ModelCardData(
        base_model=base,
        library_name="peft",
        tags=[kind_of(config_from(view["provenance"])).replace("_", "-"), "cambium"],
        model_name=view["adapter"],
        eval_results=results or None,
    )
    return card.to_yaml().strip()


def _row(gate: Mapping[str, Any]) -> str:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:+.4g}"

    ci = gate["ci"]
    interval = "–" if ci is None else f"{number(ci[0])} … {number(ci[1])}"
    verdict = f"{gate['verdict']}, waived" if gate["waived"] else str(gate["verdict"])
    return (
        f"| {gate['name']} | {verdict} | {number(gate['effect'])} | {interval} "
        f"| {number(gate['threshold'])} | {number(gate['mde'])} |"
    )


def _behaviour(found: Mapping[str, Any]) -> str:
    if not found.get("available"):
        return f"Not known: {_text(found.get('why', 'no diff was computed'))}."
    return (
        f"{found['discoveries']} of {found['num_tested']} clusters of what it writes changed "
        f"(anything at all: p = {found['omnibus']:.4f}). Not seen: {_text(found['statement'])}."
    )


def _missing(view: Mapping[str, Any], diff: Mapping[str, Any]) -> list[str]:
    said = [f"- {part}: {_text(diff[part]['why'])}" for part in ("weights", "circuits")
            if not diff[part].get("available")]  # fmt: skip
    said += [
        f"- {gate['name']}: {_text(gate['why'])}"
        for gate in view["gates"]
        if gate["effect"] is None
    ]
    return [*said, "- anything that no gate above names"]


def _text(value: str) -> str:
    """Returns what somebody else chose, as text that Markdown takes for nothing else."""
    plain = " ".join(value.split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|!" else c for c in plain)
