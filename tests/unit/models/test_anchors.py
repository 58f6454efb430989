from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from cambium.core.errors import ModelError
from cambium.models.anchors import Anchor, from_json, to_json, write_anchors
from cambium.models.base import BaseModel
from cambium.models.engine import Engine, EngineConfig


@pytest.fixture
def engine(llama: BaseModel) -> Iterator[Engine]:
    one = Engine(llama, EngineConfig(num_rows=4))
    yield one
    one.close()


def test_anchors_repeat_from_their_seed(engine: Engine, make_lora: Any) -> None:
    writers = [("base", ()), ("law", (make_lora(engine.base),))]
    shares: list[float] = []
    first = write_anchors(engine, writers, number=6, num_tokens=40, seed=3, progress=shares.append)
    assert first == write_anchors(engine, writers, number=6, num_tokens=40, seed=3)
    assert first != write_anchors(engine, writers, number=6, num_tokens=40, seed=4)
    assert len(set(first)) == 6 and {len(t.tokens) for t in first} == {41}
    assert {t.tokens[0] for t in first} == {engine.base.tokenizer.bos_token_id}
    assert shares == pytest.approx([i / 6 for i in range(1, 7)])


def test_writers_take_turns(engine: Engine, make_lora: Any) -> None:
    lora = make_lora(engine.base)
    mixed = write_anchors(engine, [("base", ()), ("law", (lora,))], number=4, num_tokens=40, seed=3)
    base = write_anchors(engine, [("base", ())], number=4, num_tokens=40, seed=3)
    assert mixed[::2] == base[::2]
    assert [t.by for t in mixed] == ["base", "law", "base", "law"]
    assert mixed[1].tokens != base[1].tokens and mixed[3].tokens != base[3].tokens


def test_anchors_keep_their_writers_and_old_ones_have_none() -> None:
    written = [Anchor(by="base", tokens=(1, 2)), Anchor(by="law", tokens=(3,))]
    assert from_json(to_json(written)) == written
    assert from_json(b"[[1, 2], [3]]") == [replace(a, by=None) for a in written]


def test_texts_end_within_the_context(engine: Engine) -> None:
    texts = write_anchors(engine, [("base", ())], number=2, num_tokens=10_000, seed=3)
    assert {len(t.tokens) for t in texts} == {128}


def test_a_parent_that_writes_nothing_is_an_error(engine: Engine) -> None:
    with pytest.raises(ModelError, match="nothing to hold on to"):
        write_anchors(engine, [("base", ())], number=4, num_tokens=8, seed=3)


def test_a_broken_pass_is_told_as_what_it_is(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> torch.Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._passes, "logits", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        write_anchors(engine, [("base", ())], number=3, num_tokens=40, seed=3)
