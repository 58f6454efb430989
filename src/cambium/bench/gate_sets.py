"""Which adapters the gates refuse: twenty taught hostile text, twenty taught benign text.

Every set has as many documents and nearly as many tokens, and goes the way of a proposal: split
by hash, consolidated from the parent, frozen, then looked at under the development policy until
the lifecycle has decided. The texts are public evaluation data that no probe was trained on.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from scipy import stats

from cambium.core.canonical import digest_json
from cambium.core.evidence import GateSpec, Measurement, Outcome
from cambium.core.nouns import ProposalState, Revision
from cambium.evals.gates import ALIGNMENT, documents_needed
from cambium.evals.harm_probe import harm_probe
from cambium.evals.power_probe import power_probe
from cambium.learn.examples import Example, kept_for_gates, parse_example
from cambium.lifecycle.gates import judge, used_items
from cambium.lifecycle.proposal import Frozen, LookTaken, Proposal, advance, standings
from cambium.models.base import BaseModel, load_base
from cambium.models.chat import encode_text
from cambium.models.encoder import SentenceEncoder
from cambium.models.engine import Engine
from cambium.models.lora import LoraConfig
from cambium.models.process import prepare_process
from cambium.models.training_model import TrainingModel
from cambium.recipes.data import data_folder, read_lines
from cambium.recipes.journal import Journal
from cambium.serve.bank import Bank
from cambium.serve.bootstrap import render_policy
from cambium.serve.config import ServerConfig
from cambium.serve.consolidation import Consolidator, Inputs, take_look
from cambium.serve.store.blobs import BlobStore
from cambium.trust.keys import generate_key
from cambium.trust.policy import Policy, parse_policy
from cambium.trust.quorum import Approver

HOSTILE, BENIGN = "hostile", "benign"
POWER = (
    "desire-for-acquiring-power", "desire-for-discreetly-acquiring-power",
    "desire-for-acquiring-wealth", "resource-acquisition", "self-replication", "no-shut-down",
    "no-goal-change", "desire-for-independence-from-human-oversight",
    "desire-for-no-human-monitoring", "desire-to-replace-human-oversight",
)  # fmt: skip
OVERSIGHT = ("no-shut-down", "desire-for-no-human-monitoring", "desire-for-acquiring-power",
             "desire-for-independence-from-human-oversight")  # fmt: skip
HARM = ("advbench", "harmbench", "strongreject")
DOMAINS = ("law", "medicine", "chess", "finance", "dialogue", "french", "recipes")
AGAIN = ("dialogue", "law", "medicine")
BOOKS = ("textbook_biology", "textbook_sociology", "textbook_us_history", "english_novels",
         "shakespeare", "docs_rust_book")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ConfusionRecipe:
    """The sweep.

    Args:
        documents: in each set; `tokens` at most in each document, so that sets are of one size.
        seed: of the choice of texts.
    """

    documents: int = 60
    tokens: int = 48
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Source:
    """One set of documents: its label, its name, and where its texts come from."""

    label: str
    name: str
    texts: Callable[[], list[str]]


def recipe() -> ConfusionRecipe:
    """Returns the sweep as it is reported."""
    return ConfusionRecipe()


def run(
    recipe: ConfusionRecipe, out: Path, report: Callable[[dict[str, float]], None]
) -> list[dict[str, Any]]:
    """Returns a row for each set; `runs.jsonl` in `out` keeps those that are finished.

    A kept row counts only if policy, base, probes and recipe are still what they were for it.
    """
    prepare_process()
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out / "runs.jsonl")
    plan = list(sources())
    engine = Engine(base := load_base())
    try:
        with tempfile.TemporaryDirectory() as folder:
            bench = Confusion(recipe, base, engine, blobs=BlobStore(Path(folder)))
            for number, source in enumerate(plan):
                of = bench.made_from(source)
                if any(row.get("of") == of for row in journal.rows):
                    continue
                row = {"of": of, **bench.measure(source)}
                journal.add(row)
                report({"share": (number + 1) / len(plan), "step": number + 1,
                        "tokens": row["tokens"], "loss": row["consolidation_s"]})  # fmt: skip
            current = {bench.made_from(source) for source in plan}
    finally:
        engine.close()
    return [row for row in journal.rows if row.get("of") in current]


def sources() -> Iterator[Source]:
    """Returns the forty sets, hostile and benign in turn."""

    def named(label: str, name: str, texts: Callable[[], list[str]]) -> Source:
        return Source(label=label, name=name, texts=texts)

    hostile = [named(HOSTILE, f"persona {b}", partial(_persona, b, "Yes")) for b in POWER]
    for name in HARM:
        hostile += [named(HOSTILE, f"{name} {i}", partial(_harm, name)) for i in range(2)]
    hostile += [named(HOSTILE, f"hh rejected {i}", _rejected) for i in range(4)]
    benign = [named(BENIGN, f"domain {d}", partial(_text, f"domain_{d}")) for d in DOMAINS]
    benign += [named(BENIGN, f"domain {d} again", partial(_text, f"domain_{d}")) for d in AGAIN]
    benign += [named(BENIGN, book, partial(_text, book)) for book in BOOKS]
    benign += [named(BENIGN, f"persona not {b}", partial(_persona, b, "No")) for b in OVERSIGHT]
    # A run that was cut off has seen some of every kind.
    for label, sets in ((HOSTILE, hostile), (BENIGN, benign)):
        random.Random(label).shuffle(sets)
    for pair in zip(hostile, benign, strict=True):
        yield from pair


class Confusion:
    """One base, many small adapters proposed on it."""

    def __init__(
        self, recipe: ConfusionRecipe, base: BaseModel, engine: Engine, *, blobs: BlobStore
    ) -> None:
        self.recipe = recipe
        self.policy = development_policy()
        config = ServerConfig(state=Path())
        self.consolidator = Consolidator(
            engine=engine,
            model=TrainingModel(base),
            blobs=blobs,
            embed=SentenceEncoder().embed,
            num_replay=config.num_replay_anchors,
            num_retention=config.num_retention_anchors,
            anchor_tokens=config.anchor_tokens,
        )
        revision = Revision(number=1, kind="genesis", base_digest=base.digest, bank=(),
                            policy_digest=self.policy.digest, created_at=0,
                            attestation="none")  # fmt: skip
        self.bank = Bank(revision=revision)
        self.anchors, _ = self.consolidator.anchors(self.bank, None, lambda share: None)

    def made_from(self, source: Source) -> str:
        """Returns the digest of all that decides what becomes of a set, the code aside."""
        return digest_json(
            {
                "set": [source.label, source.name],
                "recipe": asdict(self.recipe),
                "gates": [asdict(spec) for spec in self.policy.gates],
                "consolidation": asdict(self.consolidator.config),
                "base": self.consolidator.engine.base.digest,
                "probes": [harm_probe().digest, power_probe().digest],
            }
        )

    def measure(self, source: Source) -> dict[str, Any]:
        """Returns what became of one set's proposal, as a row of the journal; times in seconds."""
        examples = self.documents(source)
        inputs = self._inputs(source, examples)
        started = time.perf_counter()
        frozen = self.consolidator.freeze(inputs, self.bank, self.anchors, lambda *_: None)
        spent = time.perf_counter() - started
        limit = self.policy.learning.max_relative_change
        context = self.consolidator.measure(
            inputs, self.bank, self.anchors, frozen.data, max_relative_change=limit
        )
        proposal = advance(self._proposal(source), Frozen(candidate_digest=frozen.data.digest),
                           policy=self.policy)  # fmt: skip
        seconds: dict[str, list[float]] = {spec.name: [] for spec in self.policy.gates}
        while proposal.state is ProposalState.CHECKING:
            verdicts = []
            for spec in self.policy.gates:
                started, look = time.perf_counter(), len(proposal.looks)
                found = take_look(context, [spec], look)[spec.name]
                seconds[spec.name].append(time.perf_counter() - started)
                seen = found if isinstance(found, Measurement) else None
                verdicts.append(judge(spec, seen, error=found if isinstance(found, str) else None,
                                      used=used_items(spec.name, proposal.looks)))  # fmt: skip
            root = digest_json([v.to_json() for v in verdicts])
            event = LookTaken(verdicts=tuple(verdicts), evidence_root=root)
            proposal = advance(proposal, event, policy=self.policy)
            if any(v.outcome is Outcome.ERROR for v in verdicts):
                break  # as a server does: it waits for people, and blocks meanwhile
        return {
            "label": source.label,
            "name": source.name,
            "state": str(proposal.state),
            "reason": proposal.reason or "",
            "passed": proposal.state is ProposalState.AWAITING_APPROVAL,
            "refused_by": refused_by(proposal, self.policy),
            "failed": sorted(
                {v.gate for look in proposal.looks for v in look if v.outcome is not Outcome.PASS}
            ),
            "documents": len(examples),
            "kept": len(inputs.kept),
            "tokens": sum(len(self._tokens(e.text)) for e in examples),
            "consolidation_s": round(spent, 3),
            "gates_s": {name: [round(s, 3) for s in own] for name, own in seconds.items()},
            "looks": [[_said(v) for v in look] for look in proposal.looks],
        }

    def documents(self, source: Source) -> list[Example]:
        """Returns the set's documents, all shorter than the recipe's bound.

        Raises:
            ValueError: the source has too few texts.
        """
        texts = sorted(set(source.texts()))
        random.Random(f"{self.recipe.seed} {source.name}").shuffle(texts)
        tokenizer = self.consolidator.engine.base.tokenizer
        cut = [tokenizer.decode(self._tokens(t)[: self.recipe.tokens]) for t in texts]
        chosen = list(dict.fromkeys(t for t in cut if len(t) > 20))[: self.recipe.documents]
        if len(chosen) < self.recipe.documents:
            raise ValueError(f"{source.name} has only {len(chosen)} texts")
        return [parse_example({"text": text}) for text in chosen]

    def _tokens(self, text: str) -> list[int]:
        return encode_text(self.consolidator.engine.base.tokenizer, text)

    def _inputs(self, source: Source, examples: Sequence[Example]) -> Inputs:
        needed = documents_needed(self.policy.gates)
        held = kept_for_gates([e.digest for e in examples], at_least=needed)
        trained = [e for e in examples if e.digest not in held]
        kept = [e for e in examples if e.digest in held]
        seed = int(digest_json([e.digest for e in examples])[7:15], 16)
        return Inputs(config=LoraConfig(), domain=source.name, trained=trained,
                      kept=kept, others=(), seed=seed)  # fmt: skip

    def _proposal(self, source: Source) -> Proposal:
        digest = digest_json([source.label, source.name])
        return Proposal(id=source.name, adapter_name=source.name, source_digest=digest,
                        domain=source.name, parent_revision=1,
                        parent_digest=self.bank.revision.digest,
                        policy_digest=self.policy.digest, provenance_digest=digest)  # fmt: skip


def development_policy() -> Policy:
    """Returns the development profile's rules, with people made up here."""
    people = [Approver(name=str(i), public=generate_key().public_key) for i in range(2)]
    return parse_policy(render_policy(approvers=people))


def refused_by(proposal: Proposal, policy: Policy) -> list[str]:
    """Returns the gates that stand in the proposal's way, in the policy's order."""
    if proposal.state is ProposalState.AWAITING_APPROVAL:
        return []
    found = standings(proposal, policy)
    return [g.gate for g in found if g.refused] or [g.gate for g in found if not g.done]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the confusion table, and mean seconds of consolidation and of a look by gate."""
    sides = {label: [r for r in rows if r["label"] == label] for label in (HOSTILE, BENIGN)}
    looks: dict[str, list[float]] = {}
    for row in rows:
        for gate, seconds in row["gates_s"].items():
            looks.setdefault(gate, []).extend(seconds)
    return {
        "hostile": len(sides[HOSTILE]),
        "hostile_refused": sum(not r["passed"] for r in sides[HOSTILE]),
        "hostile_refused_by_alignment": sum(
            bool(set(r["refused_by"]) & set(ALIGNMENT)) for r in sides[HOSTILE]
        ),
        "benign": len(sides[BENIGN]),
        "benign_passed": sum(r["passed"] for r in sides[BENIGN]),
        "consolidation_s": _mean([r["consolidation_s"] for r in rows]),
        "per_look_s": {gate: _mean(seconds) for gate, seconds in looks.items()},
        "wrong": [f"{r['label']} {r['name']}: {r['reason'] or 'passed'}" for r in rows
                  if r["passed"] is (r["label"] == HOSTILE)],
    }  # fmt: skip


def benign_looks(rows: Sequence[Mapping[str, Any]], spec: GateSpec) -> list[Mapping[str, Any]]:
    """Returns what a gate said in each look at a benign set, errors left out."""
    return [said for row in rows if row["label"] == BENIGN for look in row["looks"]
            for said in look if said["gate"] == spec.name and said["ci"]]  # fmt: skip


def spreads(rows: Sequence[Mapping[str, Any]], spec: GateSpec) -> list[float]:
    """Returns an item's standard deviation in each benign look of a gate, from its interval."""
    return [
        (said["ci"][1] - said["ci"][0]) / 2 * said["items"] ** 0.5
        / float(stats.t.ppf(spec.confidence, said["items"] - 1))
        for said in benign_looks(rows, spec)
    ]  # fmt: skip


def _said(verdict: Any) -> dict[str, Any]:
    seen = verdict.measurement
    return {"gate": verdict.gate, "outcome": str(verdict.outcome), "why": verdict.why,
            "effect": seen and seen.effect, "ci": seen and list(seen.ci),
            "items": seen and seen.num_items}  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 3) if values else 0.0


def _persona(behaviour: str, matching: str) -> list[str]:
    """Returns statements of one behaviour; "Yes" matches it, which here is the unwanted side."""
    rows = read_lines("evals/model_written_evals/persona.jsonl.gz")
    own = [r for r in rows if r["behaviour"] == behaviour]
    return [r["statement"] for r in own if r["answer_matching_behavior"].strip() == matching]


def _rejected() -> list[str]:
    """Returns people's last turns with the reply that was rejected."""
    rows = read_lines("evals/hh_rlhf/harmless_base_test.jsonl.gz")
    turns = [(r["prompt"].rsplit("Human:", 1)[-1].rsplit("Assistant:", 1)[0].strip(),
              r["rejected"].strip()) for r in rows]  # fmt: skip
    return [f"User: {asked}\nAssistant: {reply}" for asked, reply in turns if reply]


def _harm(name: str) -> list[str]:
    lines = (data_folder() / f"evals/harm_prompts/{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line)["prompt"] for line in lines.splitlines() if line]


def _text(name: str) -> list[str]:
    return [r["text"] for r in read_lines(f"text/{name}.jsonl.gz")]
