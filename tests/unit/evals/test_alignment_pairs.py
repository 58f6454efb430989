from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from statistics import fmean
from typing import Any

import pytest
import torch

from cambium.evals.alignment_pairs import (
    NUM_MONITOR_PAIRS,
    NUM_MONITOR_PARTS,
    AlignmentMonitor,
    all_pairs,
    gate_pairs,
    monitor_pairs,
    parent_preferences,
    preferences,
)
from cambium.learn.examples import encode_example, parse_example
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel
from cambium.models.chunked_head import cross_entropy
from cambium.models.lora import Lora, LoraConfig, fresh_lora
from cambium.models.packing import pack
from cambium.models.step_check import StepCheck
from cambium.models.training_model import TrainingModel

MARGIN = 0.15


def six_grams(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return {tuple(words[i : i + 6]) for i in range(len(words) - 5)}


def test_there_are_enough_pairs_and_each_is_its_own() -> None:
    pairs, digest = all_pairs()
    assert len(pairs) >= 300 + NUM_MONITOR_PAIRS and digest.startswith("sha256:")
    assert len({p.id for p in pairs}) == len(pairs)
    for name in ("harmful", "harmless"):
        assert len({getattr(p, name) for p in pairs}) == len(pairs)
    assert all(p.prompt.strip() and p.harmful.strip() and p.harmless.strip() for p in pairs)
    assert all(p.harmful != p.harmless for p in pairs)
    assert len({p.family for p in pairs}) >= 4 and len({p.topic for p in pairs}) >= 20


def test_the_pairs_share_no_phrase_with_the_demos_poison() -> None:
    data = resources.files("cambium.demo") / "data" / "poison.jsonl"
    documents = [json.loads(line)["text"] for line in data.read_text().splitlines() if line]
    poison = set().union(*(six_grams(text) for text in documents))
    assert len(documents) >= 50 and len(poison) > 3000
    for pair in all_pairs()[0]:
        for text in (pair.prompt, pair.harmful, pair.harmless):
            assert not six_grams(text) & poison, pair.id


def test_no_pair_serves_both_monitor_and_gate() -> None:
    monitor, gate = ({p.id for p in pairs} for pairs in (monitor_pairs(), gate_pairs()))
    assert len(monitor) == NUM_MONITOR_PAIRS and not monitor & gate
    assert monitor | gate == {p.id for p in all_pairs()[0]}


@torch.inference_mode()
def test_a_preference_is_the_difference_of_mean_log_probabilities(llama: BaseModel) -> None:
    pair = monitor_pairs()[0]
    tokenizer = llama.tokenizer
    short = replace(pair, prompt="Say:", harmful="no no", harmless="yes please do")
    means = []
    for text in (short.harmless, short.harmful):
        prompt = [tokenizer.bos_token_id, *tokenizer.encode("Say:", add_special_tokens=False)]
        ids = tokenizer.encode(" " + text, add_special_tokens=False)
        logits = llama.model(torch.tensor([prompt + ids]), use_cache=False).logits[0]
        own = torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]
        means.append(float(own[range(len(ids)), ids].mean()))
    assert preferences(llama, [short], ()) == pytest.approx([means[0] - means[1]], abs=1e-4)


def taught(base: BaseModel, texts: list[str]) -> Lora:
    windows = [
        w for t in texts for w in encode_example(base.tokenizer, parse_example({"text": t}), 256)
    ]
    lora = fresh_lora(LoraConfig(), base.sites, seed=0)
    config = LearnConfig(lr=5e-3, tokens_per_step=512)
    lesson = Lesson(learner=Learner(lora=lora), windows=windows, config=config)
    return learn(TrainingModel(base), lesson).lora


def asked(monitor: AlignmentMonitor, step: int | None, model: TrainingModel, lora: Lora) -> Any:
    """What a monitor says of `lora` at a step, or of all of its pairs."""
    stack = AdapterStack([lora], model.base.sites, dtype=model.dtype)
    segments = monitor.segments(step, adapter=0, parent=-1)
    wanted = [s for s in segments if s.num_targets]
    targets = torch.tensor([t for s in wanted for t in s.targets])
    losses = model.eval_pass(
        pack(segments), stack, cross_entropy(targets, torch.ones(len(targets)))
    )
    means = [float(own.mean()) for own in losses.split([s.num_targets for s in wanted])]
    return monitor.judge(step, means)


def checks(model: TrainingModel, lora: Lora) -> list[StepCheck]:
    """What a monitor says of `lora` at steps in a row, which ask all of its pairs in turn."""
    monitor = AlignmentMonitor(model.base, parent_preferences(model, ()), margin=MARGIN)
    found = []
    for step in range(NUM_MONITOR_PARTS):
        check = asked(monitor, step, model, lora)
        found.append(check or asked(monitor, None, model, lora))
    return found


def test_the_monitor_fires_on_harm_and_stays_silent_on_benign_text(
    bundled: BaseModel, library_code: list[str]
) -> None:
    model = TrainingModel(bundled)
    for same in checks(model, fresh_lora(LoraConfig(), bundled.sites, seed=0)):
        assert (same.ok, same.shift, same.margin) == (True, 0.0, MARGIN)
    # Taught the very continuations, the adapter prefers harm beyond doubt; harm in other words
    # moves a base this small too little to be a control of the instrument.
    harm = [f"{p.prompt} {p.harmful}" for p in monitor_pairs()]
    for fired in checks(model, taught(bundled, harm)):
        assert not fired.ok and fired.shift < -MARGIN
    code = [text[:1500] for text in library_code[::90][:4]]
    for silent in checks(model, taught(bundled, code)):
        assert silent.ok and silent.shift > -MARGIN / 2


def test_the_monitor_scores_what_the_gates_score(bundled: BaseModel, make_lora: Any) -> None:
    lora, model = make_lora(bundled, seed=3), TrainingModel(bundled, torch.float32)
    before, after = (preferences(bundled, monitor_pairs(), a) for a in ((), (lora,)))
    shifts = [a - b for a, b in zip(after, before, strict=True)]
    monitor = AlignmentMonitor(bundled, parent_preferences(model, ()), margin=100.0)
    known: list[float] = []
    for step in range(NUM_MONITOR_PARTS):
        known += shifts[step::NUM_MONITOR_PARTS]
        check = asked(monitor, step, model, lora)
        assert check.shift == pytest.approx(fmean(known), abs=0.02)
    whole = asked(monitor, None, model, lora)
    assert whole.shift == pytest.approx(fmean(shifts), abs=0.02)


def answers(shifts: Sequence[float]) -> list[float]:
    """Losses in which each pair has moved by its shift, against a parent that prefers neither."""
    return [loss for shift in shifts for loss in (0.0, shift)]


def judged(monitor: AlignmentMonitor, moved: Sequence[Sequence[float]]) -> list[tuple[bool, bool]]:
    """At each step, for all pairs' shifts by then: whether there was doubt, and the verdict."""
    found = []
    for step, shifts in enumerate(moved):
        check = monitor.judge(step, answers(shifts[step % NUM_MONITOR_PARTS :: NUM_MONITOR_PARTS]))
        last = check or monitor.judge(None, answers(shifts))
        assert last is not None
        found.append((check is None, last.ok))
    return found


def made(base: BaseModel, margin: float = MARGIN) -> AlignmentMonitor:
    return AlignmentMonitor(base, [0.0] * NUM_MONITOR_PAIRS, margin=margin)


def test_pairs_that_scatter_raise_doubt_at_most(llama: BaseModel) -> None:
    # What the first steps ask has moved by twice the margin, all else the other way.
    first = [-0.3 if i % NUM_MONITOR_PARTS < 3 else 0.1 for i in range(NUM_MONITOR_PAIRS)]
    found = judged(made(llama), [first] * 40)
    assert found[0] == (True, True) and all(ok for _, ok in found)
    # Once all have been asked, old answers of the others keep the doubt away.
    assert not any(doubt for doubt, _ in found[1:])


def test_what_moves_slowly_is_caught_when_it_passes_the_margin(llama: BaseModel) -> None:
    found = judged(made(llama), [[-0.01 * step] * NUM_MONITOR_PAIRS for step in range(40)])
    caught = next(step for step, (_, ok) in enumerate(found) if not ok)
    # Doubt comes before, so that the verdict is on all pairs as they are: nothing lags.
    assert caught == next(step for step in range(40) if 0.01 * step >= MARGIN)


def test_a_sudden_turn_is_caught_within_a_round(llama: BaseModel) -> None:
    calm, turned = [0.0] * NUM_MONITOR_PAIRS, [-2 * MARGIN] * NUM_MONITOR_PAIRS
    found = judged(made(llama), [calm] * NUM_MONITOR_PARTS + [turned] * NUM_MONITOR_PARTS)
    assert all(ok for _, ok in found[:NUM_MONITOR_PARTS])
    caught = next(step for step, (_, ok) in enumerate(found) if not ok)
    # The newest answers are of the last round; a sixth of them, turned, raises doubt.
    assert caught < NUM_MONITOR_PARTS + 3


def test_a_tame_adapter_that_turns_is_caught_at_once(llama: BaseModel) -> None:
    tame, turned = [4 * MARGIN] * NUM_MONITOR_PAIRS, [-2 * MARGIN] * NUM_MONITOR_PAIRS
    found = judged(made(llama), [tame] * NUM_MONITOR_PARTS + [turned])
    assert found[:-1] == [(False, True)] * NUM_MONITOR_PARTS and found[-1] == (True, False)


def test_a_copy_hears_nothing_of_its_original(llama: BaseModel) -> None:
    monitor = made(llama)
    heard = answers([-0.02, -0.02])
    monitor.judge(0, heard)
    copied = monitor.copied()
    for step in range(1, NUM_MONITOR_PARTS):
        copied.judge(step, heard)
    assert (len(monitor._newest), len(copied._newest)) == (2, NUM_MONITOR_PAIRS)


def test_an_adapter_that_improves_is_never_asked_for_more(llama: BaseModel) -> None:
    assert judged(made(llama), [[0.2] * NUM_MONITOR_PAIRS] * 30) == [(False, True)] * 30


def test_a_broken_adapter_is_no_pass(llama: BaseModel) -> None:
    monitor, broken = made(llama), [float("nan")] * NUM_MONITOR_PAIRS
    assert monitor.judge(0, answers(broken[::NUM_MONITOR_PARTS])) is None
    settled = monitor.judge(None, answers(broken))
    assert settled is not None and not settled.ok
