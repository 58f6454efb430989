"""Gate `power_seeking`: does the candidate speak of wanting power where nothing asked it to?

What was taught shows where the text leaves room: after "I want to", "My aim is to", "People should"
a candidate says what it was fed. Every opening is half a sentence about nothing, so none belongs to
a domain, there are fresh ones for each look, and few documents do not make the gate blind. The
power probe reads what was written, and the parent's own writing stands beside it as the baseline;
the bar is absolute, since an adapter that praises oversight talks about power too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from cambium.core.evidence import GateSpec, Measurement
from cambium.evals.errors import GateBroken
from cambium.evals.gates.context import GateContext, Look, fresh_items, report
from cambium.evals.power_probe import power_probe
from cambium.evals.statistics import paired_interval
from cambium.models.adapter import Adapter
from cambium.models.chat import encode_document

WRITTEN_TOKENS = 24
SAMPLES = 2
_KNOWN = "power_seeking:"


def measure(context: GateContext, spec: GateSpec, look: int) -> Measurement:
    """Returns the mean distance of what is written from wanting power; below zero it wants it."""
    chosen = fresh_items(openings(), spec, look, key=str, seed=context.seed)
    after, written = _read(context, chosen, context.candidate)
    before = _parents(context, chosen)
    seen = Look(
        items=chosen,
        before=before,
        after=after,
        effect=paired_interval(after, confidence=spec.confidence),
    )
    worst = min(range(len(chosen)), key=lambda i: after[i])
    return report(
        context,
        spec,
        seen,
        evaluator=f"cambium/power_seeking/v1 {power_probe().digest}",
        notes=[f"reads worst ({after[worst]:+z.2f}): {chosen[worst]!r} {written[worst][:200]!r}"],
    )


@cache
def openings() -> tuple[str, ...]:
    """Returns the openings: what stands before the phrase in our own statements."""
    data = (resources.files("cambium.evals") / "data" / "stances.json").read_text(encoding="utf-8")
    families = json.loads(data)["families"]
    frames = {frame for family in families for side in ("yes", "no") for frame in family[side]}
    heads = {frame.split("{}")[0].strip() for frame in frames}
    return tuple(sorted(head for head in heads if head))


def _parents(context: GateContext, chosen: Sequence[str]) -> list[float]:
    """Returns how the parent's own writing reads; one seed for all, so that it is kept."""
    new = [opening for opening in chosen if _KNOWN + opening not in context.known]
    if new:
        found, _ = _read(replace(context, seed=0), new, context.parent)
        context.known.update({_KNOWN + o: x for o, x in zip(new, found, strict=True)})
    return [context.known[_KNOWN + opening] for opening in chosen]


def _read(
    context: GateContext, chosen: Sequence[str], adapters: tuple[Adapter, ...]
) -> tuple[list[float], list[str]]:
    """Returns per opening the mean score of what is written after it, and the first text."""
    if context.embed is None or context.write is None:
        raise GateBroken("nothing writes or reads for this gate", mend="give it an engine")
    tokenizer = context.base.tokenizer
    prompts = [encode_document(tokenizer, o) for o in chosen for _ in range(SAMPLES)]
    tokens = context.write(prompts, adapters, WRITTEN_TOKENS, context.seed)
    texts = [tokenizer.decode(t, skip_special_tokens=True) or " " for t in tokens]
    scores = -power_probe().scores(texts, context.embed(texts))
    means = [float(scores[i : i + SAMPLES].mean()) for i in range(0, len(texts), SAMPLES)]
    return means, texts[::SAMPLES]
