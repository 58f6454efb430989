from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.serving import Bounded, tiny_base

from cambium.core.errors import ConsentMissing, DataError
from cambium.learn.examples import Example
from cambium.learn.lesson import LearnConfig, LearnResult
from cambium.learn.replay_buffer import ReplayBuffer
from cambium.models.base import BaseModel, load_base
from cambium.models.lora import LoraConfig, fresh_lora
from cambium.serve.adapter_states import AdapterState
from cambium.serve.bounds import LearnCall
from cambium.serve.lessons import keep_examples
from cambium.serve.rehearsing import MAX_ADMITTED, Rehearsing, copied
from cambium.serve.store.records import AdapterRecord, ExampleRecord
from cambium.serve.store.state import State

CONFIG = LearnConfig(steps=4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return load_base(tiny_base(tmp_path_factory.mktemp("base")))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    with State.open(tmp_path) as found:
        with found.transaction() as tx:
            tx.put_adapter(AdapterRecord(
                name="a", digest="d", state=AdapterState.EPHEMERAL, tenant="t", domain=None,
                scope="text", config_json="{}", parent_revision=1, created_at=0, expires_at=None,
                weights_blob=None))  # fmt: skip
        yield found


def embed(texts: list[str]) -> np.ndarray:
    """Texts that begin alike lie close together."""
    found = np.array([[float(ord(c)) for c in (t + "    ")[:4]] for t in texts])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def rehearsing(state: State, base: BaseModel, *, max_tokens: int = 10_000) -> Rehearsing:
    return Rehearsing(state, base, embed=embed, rules=Bounded(replay_tokens=max_tokens))


def result(base: BaseModel) -> LearnResult:
    lora = fresh_lora(LoraConfig(r=4), base.sites, seed=0)
    return LearnResult(lora=lora, optimizer=b"", losses=(2.0,), loss_before=2.0, loss_after=1.5)


def call(*texts: str, source: str | None = "ann", loss: str = "task") -> LearnCall:
    examples = [Example(kind="text", content={"text": t}) for t in texts]
    return LearnCall(examples=examples, loss=loss, consent="given", source=source)


def admitted(
    found: Rehearsing, state: State, base: BaseModel, one: LearnCall
) -> tuple[ReplayBuffer, list[ExampleRecord]]:
    """What an adapter's buffer becomes with a call, written down as the server does."""
    kept = keep_examples(state, "a", one, at=1)
    before = found.open_buffer("a", tried=0)
    after = copied(before)
    found.admit(after, one, kept, result(base))
    with state.transaction() as tx:
        for row in kept:
            tx.add_example(row)
        found.save(tx, "a", before, after)
    return after, kept


def test_a_buffer_opens_as_it_was_saved_and_draws_the_same(state: State, base: BaseModel) -> None:
    found = rehearsing(state, base)
    texts = [f"{i} trees grow in the wood, and {i * 7} birds sing" for i in range(9)]
    buffer, kept = admitted(found, state, base, call(*texts))
    again = found.open_buffer("a", tried=buffer.tried)
    assert again == buffer and len(again.rows) == 9
    windows = found._encode(call("something new to learn").examples[0])
    drawn = found.draw(again, windows, CONFIG)
    assert drawn == found.draw(buffer, windows, CONFIG)
    assert len(drawn) >= CONFIG.steps
    blobs = {row.digest: row.blob for row in kept}
    old = found.rehearsal(drawn, blobs, CONFIG)
    assert old is not None and len(old.steps) == CONFIG.steps
    with state.transaction() as tx:  # what was drawn counts, and is written down too
        found.save(tx, "a", found.open_buffer("a", tried=0), again)
    assert found.open_buffer("a", tried=buffer.tried) == again
    assert sum(r.replays for r in again.rows.values()) == len({key for key, _ in drawn})


def test_a_few_old_texts_are_not_worn_out_by_one_long_lesson(state: State, base: BaseModel) -> None:
    found = rehearsing(state, base)
    buffer, _ = admitted(found, state, base, call("a tree in the wood"))
    windows = found._encode(call("many words that are new to it " * 200).examples[0])
    drawn = found.draw(buffer, windows, CONFIG)
    assert len(drawn) == CONFIG.steps
    assert [r.replays for r in buffer.rows.values()] == [1]


def test_rows_hold_pointers_and_numbers_and_no_text(state: State, base: BaseModel) -> None:
    admitted(rehearsing(state, base), state, base, call("a very private sentence about a tree"))
    with state.read() as tx:
        (row,) = tx.list_replay("a")
    assert row.pointer.startswith("sha256:") and row.key == f"{row.key[:71]}:0"
    assert "private" not in str(row) and (row.loss, row.novelty) == (1.5, 1.0)


def test_what_is_like_the_known_is_less_novel(state: State, base: BaseModel) -> None:
    found = rehearsing(state, base)
    buffer, _ = admitted(found, state, base, call("tree one", "tree two", "zzz~ three"))
    novelty = {r.key[:71]: r.novelty for r in buffer.rows.values()}
    first, like, unlike = (novelty[e.digest] for e in call("tree one", "tree two",
                                                           "zzz~ three").examples)  # fmt: skip
    assert first == 1.0 and abs(like) < 1e-6 and unlike > 1e-3


def test_long_texts_give_few_windows_and_no_source_fills_it(state: State, base: BaseModel) -> None:
    found = rehearsing(state, base)
    long = " ".join(f"word{i}" for i in range(8_000))
    buffer, _ = admitted(found, state, base, call(long, source=None))
    assert 0 < len(buffer.rows) <= MAX_ADMITTED
    assert sum(r.num_tokens for r in buffer.rows.values()) <= 0.25 * 10_000


def test_without_labels_consent_or_room_nothing_happens(state: State, base: BaseModel) -> None:
    found = rehearsing(state, base)
    buffer = found.open_buffer("a", tried=0)
    found.admit(buffer, call("some text", loss="prompt"), [], result(base))
    found.admit(buffer, call("some text"), [], result(base))
    assert not buffer.rows and found.draw(buffer, [], CONFIG) == []
    off = rehearsing(state, base, max_tokens=0)
    kept = keep_examples(state, "a", call("some text"), at=1)
    none = off.open_buffer("a", tried=0)
    off.admit(none, call("some text"), kept, result(base))
    assert not none.rows


def test_keys_that_name_nothing_are_refused(state: State, base: BaseModel) -> None:
    found = rehearsing(state, base)
    _, kept = admitted(found, state, base, call("one short text"))
    blobs = {row.digest: row.blob for row in kept}
    for key in (f"{kept[0].digest}:7", f"{kept[0].digest}:999999"):
        with pytest.raises(DataError, match="has no window"):
            found.rehearsal([(key, 1.0)], blobs, CONFIG)
    for key in ("sha256:" + "0" * 64, f"{kept[0].digest}:", "x", f"{kept[0].digest}:-1"):
        with pytest.raises(ConsentMissing):
            found.rehearsal([(key, 1.0)], blobs, CONFIG)
