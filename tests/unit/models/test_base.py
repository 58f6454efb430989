from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cambium.core.errors import ModelError
from cambium.models.base import RANK_SLICE, BaseModel, load_base, stack_rows
from cambium.models.lora import Lora, LoraConfig

TOKENS = torch.randint(12, 512, (4, 24), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return request.getfixturevalue(request.param)


@torch.inference_mode()
def logits(base: BaseModel, rows: list[tuple[Lora, ...]], tokens: Tensor = TOKENS) -> Tensor:
    with base.rows(stack_rows(rows)) as model:
        return model(input_ids=tokens, use_cache=False).logits


def test_rows_have_their_own_adapters_and_do_not_see_each_other(base: Any, make_lora: Any) -> None:
    one, two = make_lora(base, seed=1), make_lora(base, seed=2, r=8)
    mixed = logits(base, [(one,), (), (two,), (one, two)])
    assert torch.equal(mixed[1], logits(base, [(), (), (), ()])[1])
    assert torch.equal(mixed[0], logits(base, [(one,), (), (), ()])[0])
    assert torch.equal(mixed[2], logits(base, [(), (), (two,), ()])[2])
    assert not torch.allclose(mixed[0], logits(base, [()] * 4)[0], atol=1e-2)


def test_a_neighbour_of_higher_rank_changes_no_bit(bundled: BaseModel, make_lora: Any) -> None:
    small, large = make_lora(bundled, seed=1, r=4), make_lora(bundled, seed=2, r=64)
    tokens = torch.randint(12, 8192, (4, 32), generator=torch.Generator().manual_seed(3))
    alone = logits(bundled, [(small,), (), (), ()], tokens)
    beside = logits(bundled, [(small,), (), (large,), (large, small)], tokens)
    assert torch.equal(alone[:2], beside[:2])


def test_adapters_of_one_row_add_up(base: Any, make_lora: Any) -> None:
    one, two = make_lora(base, seed=1, r=3), make_lora(base, seed=2, r=5)
    path = next(iter(one.a))
    weights = stack_rows([(one, two)])
    assert weights is not None
    update = sum((a[0] @ b[0] for a, b in weights.sites[path]), torch.zeros(()))
    parts = [x.config.scaling * (x.b[path] @ x.a[path]).T for x in (one, two)]
    assert torch.allclose(update, parts[0] + parts[1], atol=1e-6)
    assert len(weights.sites[path]) == -(-8 // RANK_SLICE)


def test_summed_adapters_equal_their_concatenation(base: Any, make_lora: Any) -> None:
    one, two = make_lora(base, seed=1), make_lora(base, seed=2)
    joined = Lora(
        config=LoraConfig(r=8, lora_alpha=16),
        a={p: torch.cat([one.a[p], two.a[p]]) for p in one.a},
        b={p: torch.cat([one.b[p], two.b[p]], dim=1) for p in one.b},
    )
    summed = logits(base, [(one, two)] * 4)
    assert torch.allclose(summed, logits(base, [(joined,)] * 4), atol=1e-5)


def test_adapters_on_different_modules_share_a_batch(llama: BaseModel, make_lora: Any) -> None:
    queries = make_lora(llama, seed=1, targets=("q_proj",))
    downs = make_lora(llama, seed=2, targets=("down_proj",))
    mixed = logits(llama, [(queries,), (downs,), (), (queries, downs)])
    assert torch.equal(mixed[0], logits(llama, [(queries,)] * 4)[0])
    assert torch.equal(mixed[1], logits(llama, [(downs,)] * 4)[1])
    assert torch.equal(mixed[2], logits(llama, [()] * 4)[2])


def test_no_pass_writes_the_base(base: Any, make_lora: Any) -> None:
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    logits(base, [(make_lora(base),), (), (), ()])
    with pytest.raises(RuntimeError, match="inside"), base.rows(None):
        raise RuntimeError("inside")
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())
    assert not any(p.requires_grad for p in base.model.parameters())
    assert torch.equal(logits(base, [()] * 4), logits(base, [()] * 4))


def test_without_adapters_nothing_is_stacked() -> None:
    assert stack_rows([]) is None
    assert stack_rows([(), ()]) is None


def test_targets_name_modules(llama: BaseModel, gpt2: BaseModel) -> None:
    assert len(llama.targets(LoraConfig())) == 2 * 7
    assert len(gpt2.targets(LoraConfig())) == 2 * 4
    assert gpt2.transposed and not llama.transposed
    assert not any("lm_head" in p for p in [*llama.sites, *gpt2.sites])
    chosen = llama.targets(LoraConfig(target_modules=("q_proj", "layers.1.mlp.up_proj")))
    assert len(chosen) == 3
    for wrong in ("lm_head", "proj", "", "q_proj.weight"):
        with pytest.raises(ModelError, match="not in the base"):
            llama.targets(LoraConfig(target_modules=(wrong,)))


def test_a_loaded_folder_is_the_model_that_was_saved(llama: BaseModel, tmp_path: Path) -> None:
    llama.model.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    loaded = load_base(tmp_path)
    assert (loaded.name, loaded.context) == (tmp_path.name, 128)
    assert torch.equal(logits(loaded, [()] * 4), logits(llama, [()] * 4))
    assert load_base(tmp_path).digest == loaded.digest
    weight = llama.model.get_parameter("model.norm.weight")
    with torch.no_grad():
        weight += 1
    try:
        llama.model.save_pretrained(tmp_path)
    finally:
        with torch.no_grad():
            weight -= 1
    assert load_base(tmp_path).digest != loaded.digest


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(tmp_path / "nowhere")
    tmp_path.joinpath("config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(tmp_path)
    tmp_path.joinpath("config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(tmp_path)


def test_pickled_weights_are_refused(llama: BaseModel, tmp_path: Path) -> None:
    llama.model.config.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    torch.save(llama.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(tmp_path)
