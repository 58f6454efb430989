from __future__ import annotations

import pytest
import torch

from cambium.core.errors import DataError
from cambium.models.lora import Lora, LoraConfig
from cambium.models.lora_merge import merged


def adapter(seed: int, r: int = 4, alpha: int = 8, paths: tuple[str, ...] = ("x", "y")) -> Lora:
    chance = torch.Generator().manual_seed(seed)
    a = {p: torch.randn(r, 12, generator=chance) for p in paths}
    b = {p: torch.randn(20, r, generator=chance) for p in paths}
    return Lora(config=LoraConfig(r=r, lora_alpha=alpha, target_modules=paths), a=a, b=b)


def update(lora: Lora, path: str) -> torch.Tensor:
    return lora.config.scaling * lora.b[path].double() @ lora.a[path].double()


def test_nothing_is_lost_where_the_ranks_fit() -> None:
    parts = [adapter(1), adapter(2, r=3, alpha=9, paths=("x",))]
    found = merged(parts, rank=8, weights=[0.5, 2.0])
    expected = 0.5 * update(parts[0], "x") + 2 * update(parts[1], "x")
    assert torch.allclose(update(found.lora, "x"), expected, rtol=1e-5, atol=1e-5)
    assert torch.allclose(update(found.lora, "y"), 0.5 * update(parts[0], "y"), atol=1e-5)
    assert max(found.tail_energy.values()) < 1e-12 and found.relative_error < 1e-6


def test_it_is_the_best_of_its_rank_and_tells_what_is_lost() -> None:
    parts = [adapter(seed) for seed in range(3)]
    found = merged(parts, rank=4)
    whole = sum(update(p, "x") for p in parts)
    assert isinstance(whole, torch.Tensor)
    sizes = torch.linalg.svdvals(whole)
    share = float(sizes[4:].square().sum() / sizes.square().sum())
    error = float((update(found.lora, "x") - whole).norm() / whole.norm())
    assert found.tail_energy["x"] == pytest.approx(share, rel=1e-6)
    assert error == pytest.approx(share**0.5, rel=1e-4)
    # Three random adapters of rank 4 do not fit into rank 4: a gate has to see that.
    assert found.relative_error > 0.3
    # What adding the factors would do is far worse.
    summed = 2.0 * sum(p.b["x"] for p in parts) @ sum(p.a["x"] for p in parts)  # type: ignore[operator]
    assert float((summed.double() - whole).norm() / whole.norm()) > 1.2


def test_the_gauge_and_the_order_do_not_matter() -> None:
    one, two = adapter(5), adapter(6)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))[0] * 3
    other = Lora(
        config=one.config,
        a={p: turn @ a for p, a in one.a.items()},
        b={p: b @ torch.linalg.inv(turn) for p, b in one.b.items()},
    )
    found = [merged(parts, rank=6).lora for parts in ([one, two], [other, two], [two, one])]
    for lora in found[1:]:
        for path in lora.a:
            assert torch.allclose(lora.a[path], found[0].a[path], atol=1e-3)
            assert torch.allclose(lora.b[path], found[0].b[path], atol=1e-3)


def test_an_adapter_that_changes_nothing_merges_to_nothing() -> None:
    empty = adapter(1)
    silent = Lora(config=empty.config, a=empty.a, b={p: 0 * b for p, b in empty.b.items()})
    found = merged([silent], rank=2)
    assert found.relative_error == 0
    assert all(float(b.abs().max()) == 0 for b in found.lora.b.values())


@pytest.mark.parametrize(("number", "rank", "weights"), [(0, 4, []), (1, 0, []), (1, 65, []), (2, 4, [1.0])])  # fmt: skip  # noqa: E501
def test_what_cannot_be_merged_is_refused(number: int, rank: int, weights: list[float]) -> None:
    with pytest.raises(DataError, match="cannot become rank"):
        merged([adapter(i) for i in range(number)], rank=rank, weights=weights)
