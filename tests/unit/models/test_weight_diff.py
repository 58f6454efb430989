from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from cambium.core.errors import DataError
from cambium.models.base import BaseModel
from cambium.models.lora import Lora, concatenated
from cambium.models.weight_diff import (
    TAIL_RANK,
    Weights,
    weight_changes,
    weights_by_domain,
    weights_record,
)


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return request.getfixturevalue(request.param)


def update(loras: tuple[Lora, ...], path: str) -> torch.Tensor:
    whole = concatenated(loras)
    return whole.b[path].double() @ whole.a[path].double()


def test_every_number_is_what_the_whole_matrix_says(base: Any, make_lora: Any) -> None:
    old, new = (make_lora(base, seed=1, r=4),), (make_lora(base, seed=2, r=16),)
    before, after = (Weights(base=base, adapters=adapters) for adapters in (old, new))
    changes = weight_changes(before, after)
    assert [c.module for c in changes] == sorted(base.sites)
    for change in changes:
        delta = update(new, change.module) - update(old, change.module)
        weight = base.model.get_submodule(change.module).weight.double()
        sizes = torch.linalg.svdvals(delta)
        shares = (sizes / sizes.sum()).clamp_min(1e-300)
        expected = {
            "delta_norm": delta.norm(),
            "relative": delta.norm() / weight.norm(),
            "spectral": sizes[0],
            "relative_spectral": sizes[0] / torch.linalg.matrix_norm(weight, 2),
            "effective_rank": (-(shares * shares.log()).sum()).exp(),
            "tail_energy": sizes[TAIL_RANK:].square().sum() / sizes.square().sum(),
        }
        found = {k: v for k, v in asdict(change).items() if k != "module"}
        assert found == pytest.approx({k: float(v) for k, v in expected.items()}, rel=1e-6)
        assert 0 < change.tail_energy < 1 < change.effective_rank < 20


def test_the_same_update_in_another_gauge_moves_nothing(base: Any, make_lora: Any) -> None:
    lora = make_lora(base, seed=1, r=4)
    turned = Lora(
        config=lora.config,
        a={path: 3 * half.flip(0) for path, half in lora.a.items()},
        b={path: half.flip(1) / 3 for path, half in lora.b.items()},
    )
    before, after = (Weights(base=base, adapters=(x,)) for x in (lora, turned))
    assert max(c.relative for c in weight_changes(before, after)) < 1e-6
    same = weight_changes(before, before)
    assert max(c.relative for c in same) < 1e-6
    assert weight_changes(Weights(base=base), Weights(base=base)) == []


def test_layers_add_up_to_their_modules(llama: BaseModel, make_lora: Any) -> None:
    found = weights_record(Weights(base=llama), Weights(base=llama, adapters=(make_lora(llama),)))
    assert len(found["layers"]) == llama.model.config.num_hidden_layers
    whole = sum(row["delta_norm"] ** 2 for row in found["layers"])
    assert whole == pytest.approx(sum(m["delta_norm"] ** 2 for m in found["modules"]))
    assert all(row["layer"].startswith("model.layers.") for row in found["layers"])


def test_two_checkpoints_are_subtracted_as_they_stand(base: BaseModel, make_lora: Any) -> None:
    model = type(base.model)(base.model.config)
    other = BaseModel(model, base.tokenizer, digest="sha256:" + "3" * 64, name="other")
    lora = make_lora(base, seed=3)
    changes = weight_changes(Weights(base=base), Weights(base=other, adapters=(lora,)))
    for change in changes:
        site = base.sites[change.module]
        was, now = (m.model.get_submodule(change.module).weight.double() for m in (base, other))
        delta = (now - was).T if site.transposed else now - was
        whole = delta + update((lora,), change.module)
        assert change.delta_norm == pytest.approx(float(whole.norm()), rel=1e-6)


def test_models_of_other_shapes_are_refused(llama: BaseModel, gpt2: BaseModel) -> None:
    with pytest.raises(DataError, match="other names or sizes"):
        weight_changes(Weights(base=llama), Weights(base=gpt2))


def test_a_bank_is_compared_domain_by_domain(llama: BaseModel, make_lora: Any) -> None:
    one, two = (make_lora(llama, seed=1),), (make_lora(llama, seed=2),)
    banks = {"": (), "law": one}, {"": (), "law": one, "chess": two}
    parts = {p["domain"]: p["modules"] for p in weights_by_domain(llama, *banks)}
    assert set(parts) == {"law", "chess"}
    assert max(m["relative"] for m in parts["law"]) < 1e-6 < parts["chess"][0]["relative"]
    # One adapter for everything stands against each domain of a bank, and against the bare base.
    parts = weights_by_domain(llama, {"": two}, banks[1])
    assert [p["domain"] for p in parts] == [None, "chess", "law"]
    assert max(m["relative"] for m in parts[1]["modules"]) < 1e-6
