"""Ten thousand learn steps: memory does not grow, the base does not drift, a restart is exact."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cambium.core.canonical import digest_bytes
from cambium.learn.examples import Window
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn_together
from cambium.models.base import BaseModel
from cambium.models.lora import Lora, LoraConfig, fresh_lora, from_bytes, to_bytes
from cambium.models.training_model import TrainingModel

CALLS, ADAPTERS, STEPS = 313, 4, 8  # 10,016 steps of four adapters together
MIB = 1024 * 1024


def tiny() -> BaseModel:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    return BaseModel(LlamaForCausalLM(config), None, digest="sha256:" + "1" * 64, name="tiny")


def learners(base: BaseModel) -> list[Learner]:
    config = LoraConfig(r=4)
    return [Learner(lora=fresh_lora(config, base.sites, seed=i)) for i in range(ADAPTERS)]


def life(model: TrainingModel, pupils: list[Learner], calls: range) -> Iterator[list[Learner]]:
    """Teaches all pupils call after call; importances travel with them."""
    for call in calls:
        chance = torch.Generator().manual_seed(call)
        lessons = []
        for i, pupil in enumerate(pupils):
            length = 8 + (call + i) % 9
            tokens = torch.randint(2, 64, (length,), generator=chance).tolist()
            config = LearnConfig(steps=STEPS, lr=1e-3, si_strength=0.1)
            lessons.append(
                Lesson(learner=pupil, windows=[Window(tokens=tuple(tokens))], config=config)
            )
        done = learn_together(model, lessons)
        pupils = [Learner(lora=r.lora, optimizer=r.optimizer) for r in done]
        yield pupils


def digests(pupils: list[Learner]) -> list[str]:
    states = [to_bytes(p.lora).digest for p in pupils]
    return states + [digest_bytes(p.optimizer or b"") for p in pupils]


@dataclass(frozen=True, kw_only=True)
class Lived:
    """What came of all steps in one process: KiB that it grew by, and where the learners were."""

    grown: int
    saved: list[tuple[bytes, bytes, bytes]]
    digests: list[str]


def lived() -> Lived:
    """Takes all steps; in a process of its own, whose peak is of nothing else."""
    base = tiny()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    pupils, resident = learners(base), 0
    saved: list[tuple[bytes, bytes, bytes]] = []
    for call, after in enumerate(life(TrainingModel(base), pupils, range(CALLS))):
        pupils = after
        if call == CALLS // 5:
            gc.collect()
            resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if call == CALLS - 51:
            for p in pupils:
                data = to_bytes(p.lora)
                saved.append((data.config, data.weights, p.optimizer or b""))
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    assert all(bool(torch.isfinite(b).all()) for p in pupils for b in p.lora.b.values())
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident
    return Lived(grown=grown, saved=saved, digests=digests(pupils))


@pytest.mark.timeout(600)
def test_ten_thousand_steps_and_a_restart_in_the_middle() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        found = own.submit(lived).result()
    steps = CALLS * STEPS * ADAPTERS * 4 // 5
    assert found.grown * 1024 < 48 * MIB, f"grew by {found.grown} KiB over {steps} steps"
    # From what is stored, in a process that knows nothing else, the last 50 calls again.
    again = _restored(tiny(), found.saved)
    for after in life(TrainingModel(tiny()), again, range(CALLS - 50, CALLS)):
        again = after
    assert digests(again) == found.digests


def _restored(base: BaseModel, saved: list[tuple[bytes, bytes, bytes]]) -> list[Learner]:
    from cambium.models.adapter_bytes import AdapterBytes

    found: list[Learner] = []
    for config, weights, optimizer in saved:
        lora: Lora = from_bytes(AdapterBytes(config=config, weights=weights), base.sites)
        found.append(Learner(lora=lora, optimizer=optimizer))
    return found
