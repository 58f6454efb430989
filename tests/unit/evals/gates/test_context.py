from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.core.canonical import digest_json
from cambium.core.evidence import GateSpec
from cambium.evals.errors import GateBroken
from cambium.evals.gates.context import GateContext, Look, fresh_items, report
from cambium.evals.statistics import PairedResult
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.base import BaseModel


def spec(**changes: int) -> GateSpec:
    return GateSpec(name="g", metric="m", threshold=0.0, **changes)


def deal(pool: list[str], spec: GateSpec, look: int, seed: int = 0) -> list[str]:
    return fresh_items(pool, spec, look, key=str, seed=seed)


@given(
    size=st.integers(0, 200),
    max_looks=st.integers(1, 5),
    passes=st.integers(1, 5),
    min_items=st.integers(1, 20),
    more=st.integers(0, 60),
)
def test_no_item_serves_two_looks_and_a_dry_pool_says_so(
    size: int, max_looks: int, passes: int, min_items: int, more: int
) -> None:
    bar = spec(
        max_looks=max_looks,
        passes_required=min(passes, max_looks),
        min_items=min_items,
        max_items=min_items + more,
    )
    pool = [f"item {i}" for i in range(size)]
    seen: list[str] = []
    dry = False
    for look in range(7):
        try:
            items = deal(pool, bar, look)
        except GateBroken as error:
            assert "dry" in error.message
            dry = True
            continue
        assert not dry, "a look after the pool was dry found items again"
        assert min_items <= len(items) <= min_items + more
        assert items == deal(pool[::-1], bar, look)
        seen += items
    assert len(seen) == len(set(seen)) and set(seen) <= set(pool)
    assert dry or size >= 7 * min_items
    assert seen or size < min_items * bar.passes_required


def test_a_document_fed_twice_is_one_item() -> None:
    pool = ["same"] * 50 + ["a", "b", "c"]
    bar = spec(max_looks=2, passes_required=1, min_items=2, max_items=2)
    first, second = deal(pool, bar, 0), deal(pool, bar, 1)
    assert sorted(first + second) == ["a", "b", "c", "same"]
    with pytest.raises(GateBroken, match="1 items were kept"):
        deal(["same"] * 50, bar, 0)


def test_the_seed_shuffles() -> None:
    pool = [str(i) for i in range(100)]
    bar = spec(min_items=5, max_items=5)
    assert deal(pool, bar, 0, seed=1) != deal(pool, bar, 0, seed=2)


def test_a_small_pool_gives_the_looks_it_must() -> None:
    bar = spec(max_looks=5, passes_required=2, min_items=4, max_items=10)
    pool = [str(i) for i in range(9)]
    assert len(deal(pool, bar, 0)) == len(deal(pool, bar, 1)) == 4
    with pytest.raises(GateBroken, match="9 items were kept for g, and 2 looks"):
        deal(pool, bar, 2)


def test_a_report_names_candidate_parent_items_and_evaluator(llama: BaseModel) -> None:
    data = AdapterBytes(config=b"{}", weights=b"")
    context = GateContext(
        base=llama,
        candidate=(),
        parent=(),
        candidate_bytes=data,
        parent_digest="sha256:parent",
        documents=(),
        anchors=(),
        max_relative_change=1.0,
        seed=7,
    )
    effect = PairedResult(mean=0.5, low=0.1, high=0.9, mde=0.6, num_items=2)
    look = Look(items=["b", "a"], before=[1.0, 3.0], after=[2.0, 3.0], effect=effect)
    found = report(context, spec(), look, evaluator="e/v1", notes=["n"])
    assert (found.gate, found.metric, found.num_items) == ("g", "m", 2)
    assert (found.baseline, found.candidate, found.effect) == (2.0, 2.5, 0.5)
    assert found.ci == (0.1, 0.9) and found.mde == 0.6 and found.notes == ("n",)
    assert found.items_digest == digest_json(["a", "b"])
    assert found.subject == {
        "candidate": data.digest,
        "parent": "sha256:parent",
        "base": llama.digest,
        "evaluator": "e/v1",
        "seed": 7,
    }
