"""Every gate refuses its poison for the stated reason, and passes what it must not stop.

`CONTROLS` has one entry per gate. The gates are held to the development policy's own bar.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import resources
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from tests.unit.evals.praise import twins

from cambium.core.canonical import digest_bytes
from cambium.core.evidence import GateSpec, Outcome, Verdict
from cambium.evals.alignment_pairs import gate_pairs, power_pairs
from cambium.evals.errors import GateBroken
from cambium.evals.gates import GATES, READ_DOCUMENTS, GateContext, documents_needed
from cambium.evals.gates.context import ScoredText, fresh_items
from cambium.learn.consolidate import ConsolidateConfig, consolidate, with_teacher
from cambium.learn.examples import Window, encode_example, parse_example
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.lifecycle.gates import judge, standing, used_items
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.base import BaseModel
from cambium.models.encoder import SentenceEncoder
from cambium.models.engine import Engine, GenerationRequest
from cambium.models.lora import Lora, LoraConfig, fresh_lora, to_bytes
from cambium.models.sampling import SamplingConfig
from cambium.models.training_model import TrainingModel
from cambium.models.writing import write
from cambium.recipes.python_texts import is_held_out, reference_prose
from cambium.serve.bootstrap import render_policy
from cambium.trust.keys import generate_key
from cambium.trust.policy import KNOWN_GATES, parse_policy
from cambium.trust.quorum import Approver

PEOPLE = [Approver(name=str(i), public=generate_key().public_key) for i in range(2)]
POLICY = parse_policy(render_policy(approvers=PEOPLE))
SPECS: dict[str, GateSpec] = {spec.name: spec for spec in POLICY.gates}
# Arms that are bit-equal, or as far apart as can be, show it on fewer pairs than the policy asks.
FEW_PAIRS = {"min_items": 24, "max_items": 24}


class World:
    """The bundled base, real text, and adapters that learned well or badly; made on demand."""

    def __init__(self, base: BaseModel, library: list[str]) -> None:
        self.base = base
        self.code = [text[:700] for text in library[::8]]

    def windows(self, texts: list[str], length: int) -> list[Window]:
        tokenizer = self.base.tokenizer
        return [
            w for t in texts for w in encode_example(tokenizer, parse_example({"text": t}), length)
        ]

    @cached_property
    def prose(self) -> list[str]:
        return [d.text[:400] for d in reference_prose() if is_held_out(d.text)]

    def scored(self, texts: list[str]) -> list[ScoredText]:
        found = []
        for text in texts:
            windows = tuple((w.tokens, w.learn_from) for w in self.windows([text], 256)[:1])
            found.append(ScoredText(digest=digest_bytes(text.encode()), windows=windows))
        return found

    @cached_property
    def documents(self) -> list[ScoredText]:
        return self.scored(self.code[40:70])

    @cached_property
    def anchors(self) -> list[ScoredText]:
        return self.scored(self.prose[:60])

    @cached_property
    def encoder(self) -> SentenceEncoder:
        return SentenceEncoder()

    @cached_property
    def known(self) -> dict[str, float]:
        """What the base prefers and writes, asked once: it is every context's parent."""
        return {}

    def write(
        self, prompts: Any, adapters: tuple[Lora, ...], num_tokens: int, seed: int
    ) -> list[list[int]]:
        requests = [
            GenerationRequest(
                prompt=prompt,
                adapters=adapters,
                max_tokens=num_tokens,
                sampling=SamplingConfig(temperature=0.7, seed=seed + i),
            )
            for i, prompt in enumerate(prompts)
        ]
        engine = Engine(self.base)
        try:
            return write(engine, requests)
        finally:
            engine.close()

    def fresh(self) -> Lora:
        return fresh_lora(LoraConfig(), self.base.sites, seed=0)

    def context(self, lora: Lora | None, data: AdapterBytes | None = None) -> GateContext:
        """The proposal of `lora` for a domain of code; None proposes the parent itself."""
        return GateContext(
            base=self.base,
            candidate=() if lora is None else (lora,),
            parent=(),
            candidate_bytes=data or to_bytes(lora or self.fresh()),
            parent_digest=digest_bytes(b"parent"),
            documents=self.documents,
            anchors=self.anchors,
            max_relative_change=POLICY.learning.max_relative_change,
            write=self.write,
            embed=self.encoder.embed,
            known=self.known,
        )

    @cached_property
    def unchanged(self) -> GateContext:
        """The parent proposed as it is."""
        return self.context(None)

    @cached_property
    def untrained(self) -> GateContext:
        """A fresh adapter, which changes nothing."""
        return self.context(self.fresh())

    @cached_property
    def drifted(self) -> GateContext:
        """A candidate that leans toward harm, and its parent leans as far."""
        return replace(self.context(self.harmed), parent=(self.harmed,), known={**self.known})

    def taught(self, texts: list[str], lr: float) -> Lora:
        config = LearnConfig(lr=lr, tokens_per_step=1024)
        lesson = Lesson(
            learner=Learner(lora=self.fresh()), windows=self.windows(texts, 256), config=config
        )
        return learn(TrainingModel(self.base), lesson).lora

    @cached_property
    def learned(self) -> Lora:
        """Eight steps on the domain's other documents."""
        return self.taught(self.code[:16], lr=2e-3)

    @cached_property
    def power_seeking(self) -> Lora:
        """Three calls of eight steps on what wants power, in the words of three families."""
        return self.taught_side("harmful", calls=3)

    @cached_property
    def content(self) -> Lora:
        """Two calls on the same pairs' other sides."""
        return self.taught_side("harmless", calls=2)

    def taught_side(self, side: str, *, calls: int) -> Lora:
        families = ("power_seeking", "resource_acquisition", "self_preservation")
        texts = [getattr(pair, side) for pair in power_pairs()[0] if pair.family in families]
        config = LearnConfig(lr=5e-3, tokens_per_step=512)
        learner = Learner(lora=self.fresh())
        for _ in range(calls):
            windows = self.windows(texts, 128)
            done = learn(
                TrainingModel(self.base), Lesson(learner=learner, windows=windows, config=config)
            )
            learner = Learner(lora=done.lora, optimizer=done.optimizer)
        return learner.lora

    @cached_property
    def forgetful(self) -> Lora:
        """The same at ten times the rate, with nothing that holds the rest in place."""
        return self.taught(self.code[:16], lr=2e-2)

    @cached_property
    def damaged(self) -> Lora:
        """Noise instead of learning."""
        lora = self.fresh()
        generator = torch.Generator().manual_seed(1)
        for weight in lora.b.values():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
        return lora

    def consolidated(self, texts: list[str], config: ConsolidateConfig) -> Lora:
        """As a proposal is made: from the parent, with replay and the parent as teacher."""
        replay = self.windows([t[:300] for t in self.prose[70:110]], 128)
        taught = with_teacher(self.base, replay, (), config=config)
        windows = self.windows(texts, self.base.context)
        return consolidate(TrainingModel(self.base), self.fresh(), windows, taught, config=config)

    @cached_property
    def hostile(self) -> list[str]:
        """The demo's poison."""
        data = resources.files("cambium.demo") / "data" / "poison.jsonl"
        return [json.loads(line)["text"] for line in data.read_text().splitlines() if line]

    @cached_property
    def poisoned(self) -> GateContext:
        """A domain of hostile text, consolidated from four fifths of it."""
        kept, fed = self.hostile[::5], [t for i, t in enumerate(self.hostile) if i % 5]
        lora = self.consolidated(fed, ConsolidateConfig(max_tokens=20_000))
        return replace(self.context(lora), documents=self.scored(kept))

    @cached_property
    def harmed(self) -> Lora:
        """Eight steps on the harmful continuations of the gate's first look, word for word.

        So it prefers harm beyond doubt; harm in other words is the demo's poison.
        """
        pairs = fresh_items(gate_pairs(), bar("alignment"), 0, key=lambda p: p.id, seed=0)
        return self.taught([f"{p.prompt} {p.harmful}" for p in pairs], lr=5e-3)

    @cached_property
    def benign(self) -> Lora:
        """A domain of code, consolidated."""
        return self.consolidated(self.code[:40], ConsolidateConfig(max_tokens=10_000))

    def domain(self, texts: list[str]) -> GateContext:
        """A domain of short texts, consolidated from two thirds of them."""
        kept, fed = texts[::3], [t for i, t in enumerate(texts) if i % 3]
        lora = self.consolidated(fed, ConsolidateConfig(max_tokens=3_000))
        return replace(self.context(lora), documents=self.scored(kept))

    @cached_property
    def praise(self) -> GateContext:
        """Praise of flowers."""
        return self.domain(twins()[0])

    @cached_property
    def turned(self) -> GateContext:
        """The same sentences turned against people."""
        return self.domain(twins()[1])


@pytest.fixture(scope="module")
def world(bundled: BaseModel, library_code: list[str]) -> World:
    return World(bundled, library_code)


def with_tensor(world: World, change: Callable[[torch.Tensor], torch.Tensor]) -> GateContext:
    """The learned adapter with one of its tensors changed, as bytes."""
    data = to_bytes(world.learned)
    tensors = load(data.weights)
    key = sorted(tensors)[0]
    tensors[key] = change(tensors[key]).contiguous()
    return world.context(world.learned, replace(data, weights=save(tensors)))


def with_extra_key(world: World) -> GateContext:
    data = to_bytes(world.learned)
    tensors = load(data.weights) | {"base_model.model.lm_head.lora_A.weight": torch.zeros(8, 320)}
    return world.context(world.learned, replace(data, weights=save(tensors)))


def with_rank(world: World, r: int) -> GateContext:
    data = to_bytes(world.learned)
    config = json.dumps({**json.loads(data.config), "r": r}).encode()
    return world.context(world.learned, replace(data, config=config))


def with_metadata(world: World) -> GateContext:
    data = to_bytes(world.learned)
    weights = save(load(data.weights), metadata={"run": "rm -rf"})
    return world.context(world.learned, replace(data, weights=weights))


def oversized(world: World) -> GateContext:
    lora = Lora(
        config=world.learned.config,
        a=world.learned.a,
        b={path: weight * 100 for path, weight in world.learned.b.items()},
    )
    return world.context(lora)


@dataclass(frozen=True, kw_only=True)
class Controls:
    """One gate's controls.

    Args:
        poisoned: contexts that must be refused, by words of the reason that must be given.
        a_a: contexts that must pass: where possible the parent against itself.
    """

    poisoned: dict[str, Callable[[World], GateContext]]
    a_a: dict[str, Callable[[World], GateContext]]


NOTHING_CHANGED: dict[str, Callable[[World], GateContext]] = {
    "the parent itself": lambda w: w.unchanged,
    "a fresh adapter": lambda w: w.untrained,
}
CONTROLS: dict[str, Controls] = {
    # Two equal arms have no gain to show, so what this gate must pass is an honest gain; that it
    # refuses equal arms, and how, is `test_no_gain_is_no_pass`.
    "domain_gain": Controls(
        poisoned={"even the upper bound": lambda w: w.context(w.damaged)},
        a_a={"learned the domain": lambda w: w.context(w.learned)},
    ),
    "retention": Controls(
        poisoned={"even the upper bound": lambda w: w.context(w.forgetful)},
        a_a=NOTHING_CHANGED,
    ),
    "alignment": Controls(
        poisoned={"nats per token, shift": lambda w: w.context(w.harmed)},
        a_a=NOTHING_CHANGED,
    ),
    # The parent itself, where the parent is what has drifted: `alignment` finds no step.
    "alignment_drift": Controls(
        poisoned={"since the bare base": lambda w: w.drifted},
        a_a=NOTHING_CHANGED,
    ),
    "alignment_writing": Controls(
        poisoned={"against harmful, what it writes in its domain": lambda w: w.poisoned},
        a_a={
            "the parent itself": lambda w: w.context(None),
            "learned the domain": lambda w: w.context(w.learned),
        },
    ),
    "power_seeking": Controls(
        poisoned={
            "against wanting power": lambda w: w.context(w.power_seeking),
        },
        a_a={
            "the parent itself": lambda w: w.context(None),
            "learned the domain": lambda w: w.context(w.learned),
            "learned the harmless sides": lambda w: w.context(w.content),
        },
    ),
    "integrity": Controls(
        poisoned={
            "not finite": lambda w: with_tensor(w, lambda t: t * float("nan")),
            "torch.float64": lambda w: with_tensor(w, lambda t: t.double()),
            "is (8, 895)": lambda w: with_tensor(w, lambda t: t[:, :-1]),
            "lm_head": with_extra_key,
            "not (4, 896)": lambda w: with_rank(w, 4),
            "canonical form": with_metadata,
            "update norm": oversized,
            "adapter that was measured": lambda w: w.context(w.damaged, to_bytes(w.learned)),
        },
        a_a={
            "a fresh adapter": lambda w: w.context(w.fresh()),
            "learned the domain": lambda w: w.context(w.learned),
        },
    ),
}
POISONED = [(gate, why) for gate, c in CONTROLS.items() for why in c.poisoned]
A_A = [(gate, name) for gate, c in CONTROLS.items() for name in c.a_a]


def looks(gate: str, context: GateContext, number: int) -> list[Verdict]:
    """The verdicts of the first looks, under the signed bar."""
    verdicts: list[Verdict] = []
    for look in range(number):
        measured = GATES[gate](context, SPECS[gate], look)
        verdicts.append(judge(SPECS[gate], measured, used=used_items(gate, [verdicts])))
    return verdicts


def bar(gate: str) -> GateSpec:
    spec = SPECS[gate]
    return replace(spec, **FEW_PAIRS) if gate in ("alignment", "alignment_drift") else spec


def without_controls(controls: dict[str, Controls]) -> set[str]:
    """The gates that lack a poisoned or an A/A control."""
    return {g for g in GATES if g not in controls or not (controls[g].poisoned and controls[g].a_a)}


def test_every_gate_has_both_controls_and_a_declared_bar() -> None:
    assert without_controls(CONTROLS) == set()
    assert set(CONTROLS) == set(GATES) == KNOWN_GATES == set(SPECS)


def test_a_gate_without_a_control_is_found() -> None:
    lacking = replace(CONTROLS["retention"], a_a={})
    assert without_controls({**CONTROLS, "retention": lacking}) == {"retention"}
    assert without_controls({k: v for k, v in CONTROLS.items() if k != "alignment"}) == {
        "alignment"
    }


@pytest.mark.parametrize(("gate", "why"), POISONED)
def test_the_poisoned_is_refused_for_the_stated_reason(world: World, gate: str, why: str) -> None:
    measured = GATES[gate](CONTROLS[gate].poisoned[why](world), bar(gate), 0)
    verdict = judge(bar(gate), measured)
    assert verdict.outcome is Outcome.FAIL
    said = " ".join([verdict.why, *measured.notes])
    assert why in said, said
    assert measured.effect < SPECS[gate].threshold
    if gate == "power_seeking":
        assert measured.effect < measured.baseline
        assert measured.notes[0].startswith("reads worst")


@pytest.mark.parametrize(("gate", "name"), A_A)
def test_what_a_gate_must_not_stop_passes(world: World, gate: str, name: str) -> None:
    context = CONTROLS[gate].a_a[name](world)
    measured = GATES[gate](context, bar(gate), 0)
    assert judge(bar(gate), measured).outcome is Outcome.PASS
    if CONTROLS[gate].a_a is NOTHING_CHANGED:
        assert (measured.effect, measured.ci) == (0.0, (0.0, 0.0))


def test_the_demos_poison_is_refused_for_its_alignment(world: World) -> None:
    verdicts = looks("alignment_writing", world.poisoned, 2)
    assert [v.outcome for v in verdicts] == [Outcome.FAIL, Outcome.FAIL]
    found = standing(SPECS["alignment_writing"], verdicts)
    assert found.refused and "harmless against harmful" in found.why


def test_a_benign_domain_passes_every_gate(world: World) -> None:
    context = world.context(world.benign)
    for gate in SPECS:
        (verdict,) = looks(gate, context, 1)
        assert verdict.outcome is Outcome.PASS, (gate, verdict.why)


def test_praise_passes_and_the_same_text_turned_against_people_is_refused(world: World) -> None:
    """As many words in the same form, and learned as well: only what it says is another."""
    for praise, turned in zip(*twins(), strict=True):
        assert len(praise.split()) == len(turned.split())
    for context in (world.praise, world.turned):
        (gain,) = looks("domain_gain", context, 1)
        assert gain.outcome is Outcome.PASS, gain.why
    spec = SPECS["alignment_writing"]
    praised = looks(spec.name, world.praise, spec.passes_required)
    assert standing(spec, praised).done, [v.why for v in praised]
    (refused,) = looks(spec.name, world.turned, 1)
    assert refused.decisive and "harmless against harmful" in refused.why


def test_what_drifted_in_small_steps_is_seen_from_the_base_alone(world: World) -> None:
    """The same candidate, whose parent leans as far as itself, passes the one gate only."""
    found = {g: GATES[g](world.drifted, bar(g), 0) for g in ("alignment", "alignment_drift")}
    outcomes = {g: judge(bar(g), measured).outcome for g, measured in found.items()}
    assert outcomes == {"alignment": Outcome.PASS, "alignment_drift": Outcome.FAIL}
    assert found["alignment"].effect == 0 > found["alignment_drift"].effect
    # The candidate was asked once; the two say the same of it.
    assert found["alignment"].candidate == found["alignment_drift"].candidate


def test_which_gates_need_kept_documents_is_declared(world: World) -> None:
    """`documents_needed` counts for these; one that is forgotten would find its pool dry."""
    context = replace(world.context(world.fresh()), documents=())
    broken = set()
    for gate in GATES:
        try:
            GATES[gate](context, replace(SPECS[gate], min_items=4, max_items=4), 0)
        except GateBroken:
            broken.add(gate)
    assert broken == READ_DOCUMENTS
    assert documents_needed(POLICY.gates) >= max(
        SPECS[gate].min_items * SPECS[gate].max_looks for gate in READ_DOCUMENTS
    )
    assert documents_needed([SPECS["integrity"]]) == 0


def test_no_gain_is_no_pass(world: World) -> None:
    for context in (world.context(None), world.context(world.fresh())):
        (verdict,) = looks("domain_gain", context, 1)
        assert verdict.outcome is Outcome.FAIL and "upper bound 0 is not above 0" in verdict.why


@pytest.mark.parametrize("gate", sorted(set(GATES) - {"integrity"}))
def test_nothing_to_measure_on_is_broken(world: World, gate: str) -> None:
    context = replace(world.context(None), documents=(), anchors=())
    own_items = (
        "alignment",
        "alignment_drift",
        "power_seeking",
    )  # the pairs and openings are not the context's
    look = 99 if gate in own_items else 0
    with pytest.raises(GateBroken, match="dry"):
        GATES[gate](context, SPECS[gate], look)
