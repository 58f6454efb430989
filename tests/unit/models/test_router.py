from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save

from cambium.core.errors import DataError
from cambium.models.router import RouterConfig, RouterIndex, pieces, route

CONFIG = RouterConfig()


def around(direction: int, number: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = generator.normal(0, 0.05, (number, 16))
    rows[:, direction] += 1
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


INDEXES = {
    "law": RouterIndex(inside=around(0, 20, 1), outside=around(5, 20, 2)),
    "code": RouterIndex(inside=around(1, 3, 3), outside=around(5, 20, 4)),
}


def test_a_request_goes_to_the_nearest_domain() -> None:
    found = route(around(0, 1, 9)[0], INDEXES, CONFIG)
    assert found.domain == "law" and found.leads["law"] > 0.5 > found.leads["code"]
    assert route(around(1, 1, 9)[0], INDEXES, CONFIG).domain == "code"


def test_what_is_nearer_to_the_parents_text_goes_to_the_base() -> None:
    assert route(around(5, 1, 9)[0], INDEXES, CONFIG).domain is None
    assert route(around(0, 1, 9)[0], {}, CONFIG).domain is None


def test_a_small_lead_is_none() -> None:
    same = RouterIndex(inside=around(0, 20, 1), outside=around(0, 20, 1))
    assert route(around(0, 1, 9)[0], {"law": same}, CONFIG).domain is None
    assert route(around(0, 1, 9)[0], {"law": same}, RouterConfig(lead=0.0)).domain == "law"


def test_an_index_survives_its_bytes() -> None:
    index = INDEXES["law"]
    again = RouterIndex.from_bytes(index.to_bytes())
    assert np.array_equal(again.inside, index.inside) and again.to_bytes() == index.to_bytes()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not safetensors",
        save({"inside": around(0, 2, 1)}),
        save({"inside": around(0, 2, 1), "outside": around(0, 2, 1)[:, :8].copy()}),
        save({"inside": around(0, 2, 1), "outside": np.zeros((0, 16), dtype=np.float32)}),
        save({"inside": around(0, 2, 1), "outside": np.zeros(16, dtype=np.float32)}),
        save({"inside": around(0, 2, 1), "outside": np.full((2, 16), np.nan, np.float32)}),
        save({"inside": around(0, 2, 1), "outside": np.zeros((2, 16), dtype=np.float64)}),
    ],
)
def test_what_is_no_index_is_refused(data: bytes) -> None:
    with pytest.raises(DataError, match="router index"):
        RouterIndex.from_bytes(data)


def test_pieces_are_all_of_a_text_but_a_short_end() -> None:
    text = "x" * 1000
    assert [len(p) for p in pieces(text, CONFIG)] == [400, 400, 200]
    assert [len(p) for p in pieces("x" * 420, CONFIG)] == [400]
    assert pieces("short", CONFIG) == ["short"]
    assert pieces("", CONFIG) == []
