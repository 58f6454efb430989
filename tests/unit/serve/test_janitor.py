from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from tests.serving import Bounded, tiny_base

from cambium.learn.lesson import LearnResult
from cambium.models.base import BaseModel, load_base
from cambium.models.lora import LoraConfig
from cambium.models.training_model import TrainingModel
from cambium.serve.bank import Bank
from cambium.serve.ephemeral import EphemeralAdapters
from cambium.serve.identity import server_identity
from cambium.serve.janitor import GRACE_S, Janitor
from cambium.serve.learning_queue import LearningQueue
from cambium.serve.publish import open_bank
from cambium.serve.rehearsing import Rehearsing
from cambium.serve.store.state import State


def nothing(texts: list[str]) -> np.ndarray:
    return np.zeros((len(texts), 1))


class Clock:
    ms = 1_000


@dataclass
class Around:
    bank: Bank

    def now_ms(self) -> int:
        return Clock.ms

    def check_alive(self) -> None:
        pass

    def count_lesson(self, result: LearnResult) -> None:
        pass


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as found:
        yield found


def adapters_of(base: BaseModel, state: State, folder: Path) -> EphemeralAdapters:
    identity = server_identity(folder, state)
    published = open_bank(state, base, identity=identity, policy=None, now_ms=1)
    model = TrainingModel(base)
    queue = LearningQueue(model)
    queue.close()  # nothing is learned here
    return EphemeralAdapters(
        model,
        state,
        queue=queue,
        rehearsing=Rehearsing(state, base, embed=nothing, rules=Bounded(replay_tokens=0)),
        rules=Bounded(replay_tokens=0),
        around=Around(published.bank),
    )


def test_what_is_over_goes_and_what_is_not_stays(
    base: BaseModel, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapters = adapters_of(base, state, tmp_path)
    janitor = Janitor(adapters, state)
    short, long = (
        adapters.create(name, LoraConfig(r=4), scope="text", ttl_s=ttl_s, domain=None)
        for name, ttl_s in (("short", 10), ("long", 100))
    )
    orphan = state.blobs.put(b"nobody names this")
    assert janitor.tidy() == 0  # too young to tell
    monkeypatch.setattr(Clock, "ms", 1_000 + 10_000)
    assert janitor.tidy(grace_s=0) == 2
    assert not state.blobs.has(orphan)
    assert not state.blobs.has(str(short.weights_blob))
    assert state.blobs.has(str(long.weights_blob))
    assert adapters.get("short").state == "expired"
    assert adapters.expire() == 0
    janitor.close()


def test_the_start_sweeps_what_a_crash_left(base: BaseModel, state: State, tmp_path: Path) -> None:
    adapters = adapters_of(base, state, tmp_path)
    kept = adapters.create("kept", LoraConfig(r=4), scope="text", ttl_s=10**5, domain=None)
    orphan = state.blobs.put(b"put, and then the process died")
    long_ago = time.time() - 2 * GRACE_S  # what is younger may be another process's
    for path in (tmp_path / "blobs").rglob("*"):
        os.utime(path, (long_ago, long_ago))
    state.close()
    with State.open(tmp_path) as again:
        Janitor(adapters_of(base, again, tmp_path), again).close()
        assert not again.blobs.has(orphan)
        assert again.blobs.has(str(kept.weights_blob))
