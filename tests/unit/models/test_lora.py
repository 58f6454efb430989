from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from cambium.core.errors import CambiumError, DataError
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.base import BaseModel, stack_rows
from cambium.models.lora import Lora, LoraConfig, delta_norms, fresh_lora, from_bytes, to_bytes

# PEFT 0.21 asks transformers 5 by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = torch.randint(12, 512, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return request.getfixturevalue(request.param)


@torch.inference_mode()
def our_logits(base: BaseModel, lora: Lora) -> torch.Tensor:
    with base.rows(stack_rows([(lora,)] * len(TOKENS))) as model:
        return model(input_ids=TOKENS, use_cache=False).logits


def twin_of(base: BaseModel) -> Any:
    """Gives the same model without our hooks: PEFT puts its own layers in."""
    twin = type(base.model)(base.model.config)
    twin.load_state_dict(base.model.state_dict())
    return twin.eval()


def test_peft_reads_our_files_to_the_same_logits(base: Any, make_lora: Any, tmp_path: Path) -> None:
    lora = make_lora(base, r=6)
    data = to_bytes(lora, fan_in_fan_out=base.transposed)
    tmp_path.joinpath("adapter_config.json").write_bytes(data.config)
    tmp_path.joinpath("adapter_model.safetensors").write_bytes(data.weights)
    model = peft.PeftModel.from_pretrained(twin_of(base), str(tmp_path)).eval()
    with torch.inference_mode():
        theirs = model(input_ids=TOKENS).logits
    assert float((theirs - our_logits(base, lora)).abs().max()) < 1e-4
    plain = our_logits(base, make_lora(base, seed=99))
    assert float((theirs - plain).abs().max()) > 1e-2


def test_we_read_what_peft_trained_to_the_same_logits(base: Any, tmp_path: Path) -> None:
    names = sorted({p.rsplit(".", 1)[-1] for p in base.sites})
    config = peft.LoraConfig(
        r=5,
        lora_alpha=15,
        target_modules=names[:3],
        task_type="CAUSAL_LM",
        fan_in_fan_out=base.transposed,
    )
    model = peft.get_peft_model(twin_of(base), config)
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        adam.zero_grad()
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        adam.step()
    model.save_pretrained(str(tmp_path))
    data = AdapterBytes(
        config=(tmp_path / "adapter_config.json").read_bytes(),
        weights=(tmp_path / "adapter_model.safetensors").read_bytes(),
    )
    lora = from_bytes(data, base.sites)
    assert lora.config == LoraConfig(r=5, lora_alpha=15, target_modules=tuple(names[:3]))
    with torch.inference_mode():
        theirs = model.eval()(input_ids=TOKENS).logits
        bare = twin_of(base)(input_ids=TOKENS).logits
    assert float((theirs - our_logits(base, lora)).abs().max()) < 1e-4
    assert float((theirs - bare).abs().max()) > 1e-2


def test_a_digest_survives_saving_and_loading(base: Any, make_lora: Any) -> None:
    lora = make_lora(base)
    data = to_bytes(lora, fan_in_fan_out=base.transposed)
    again = from_bytes(data, base.sites)
    assert to_bytes(again, fan_in_fan_out=base.transposed) == data
    assert all(torch.equal(again.a[p], lora.a[p]) for p in lora.a)
    shuffled = Lora(
        config=lora.config,
        a=dict(reversed(list(lora.a.items()))),
        b=dict(reversed(list(lora.b.items()))),
    )
    assert to_bytes(shuffled, fan_in_fan_out=base.transposed).digest == data.digest
    first = next(iter(lora.b.values()))
    first[0, 0] += 1e-3
    assert to_bytes(lora, fan_in_fan_out=base.transposed).digest != data.digest


def test_a_fresh_adapter_changes_nothing(base: Any) -> None:
    config = LoraConfig(r=16, lora_alpha=32)
    lora = fresh_lora(config, base.sites, seed=5)
    with torch.inference_mode(), base.rows(None) as model:
        bare = model(input_ids=TOKENS, use_cache=False).logits
    assert torch.equal(our_logits(base, lora), bare)
    assert set(delta_norms(lora).values()) == {0.0}
    assert lora.num_parameters() == sum(16 * (s.d_in + s.d_out) for s in base.sites.values())
    again, other = (fresh_lora(config, base.sites, seed=s) for s in (5, 6))
    path = next(iter(lora.a))
    assert torch.equal(lora.a[path], again.a[path]) and not torch.equal(lora.a[path], other.a[path])
    assert float(lora.a[path].abs().max()) <= base.sites[path].d_in ** -0.5


def test_delta_norms_are_those_of_the_formed_update(base: Any, make_lora: Any) -> None:
    lora = make_lora(base, r=7)
    for path, norm in delta_norms(lora).items():
        formed = lora.config.scaling * lora.b[path] @ lora.a[path]
        assert norm == pytest.approx(float(formed.norm()), rel=1e-5)


def with_config(data: AdapterBytes, **changes: Any) -> AdapterBytes:
    return replace(data, config=json.dumps({**json.loads(data.config), **changes}).encode())


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 0}, {"r": 65}, {"r": True}, {"r": "8"}, {"r": 8}, {"r": None},
        {"lora_alpha": float("nan")}, {"lora_alpha": float("inf")}, {"lora_alpha": 7.5},
        {"lora_alpha": 0}, {"lora_alpha": -8}, {"lora_alpha": True}, {"lora_alpha": "8"},
        {"peft_type": "IA3"}, {"use_rslora": True}, {"use_dora": True}, {"bias": "all"},
        {"lora_bias": True}, {"modules_to_save": ["lm_head"]}, {"rank_pattern": {"q_proj": 2}},
        {"alpha_pattern": {"q_proj": 2}}, {"layer_replication": [[0, 2]]},
        {"layers_to_transform": [0]}, {"exclude_modules": ["v_proj"]},
        {"init_lora_weights": "pissa"}, {"init_lora_weights": ["gaussian"]},
        {"target_modules": [1, "q_proj"]}, {"target_modules": ".*q_proj"}, {"target_modules": []},
        {"target_modules": ["q_proj"]}, {"target_modules": None},
    ],
)  # fmt: skip
def test_a_config_that_means_another_function_is_refused(
    llama: BaseModel, make_lora: Any, changes: dict[str, Any]
) -> None:
    data = with_config(to_bytes(make_lora(llama, r=4)), **changes)
    with pytest.raises(DataError):
        from_bytes(data, llama.sites)


@pytest.mark.parametrize("config", [b"", b"null", b"[]", b'"r"', b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_none_is_refused(llama: Any, make_lora: Any, config: bytes) -> None:
    with pytest.raises(DataError):
        from_bytes(replace(to_bytes(make_lora(llama)), config=config), llama.sites)


def test_weights_of_another_kind_are_refused(llama: BaseModel, make_lora: Any) -> None:
    data = to_bytes(make_lora(llama))
    good = load(data.weights)
    some = next(k for k in good if k.endswith("lora_A.weight"))
    cases: list[dict[str, torch.Tensor]] = [
        {},
        {k: v for k, v in good.items() if k != some},
        good | {"base_model.model.lm_head.lora_A.weight": torch.zeros(4, 32)},
        good | {some.replace("lora_A", "lora_magnitude_vector"): torch.zeros(4)},
        good | {some: good[some].T.contiguous()},
        good | {some: good[some].double()},
        good | {some: good[some].int()},
        good | {some: torch.full_like(good[some], float("nan"))},
        good | {some: torch.full_like(good[some], float("-inf"))},
        {k.removeprefix("base_model."): v for k, v in good.items()},
    ]
    for tensors in cases:
        with pytest.raises(DataError):
            from_bytes(replace(data, weights=save(tensors)), llama.sites)
    with pytest.raises(DataError):
        from_bytes(data, {p: replace(s, d_in=s.d_in + 1) for p, s in llama.sites.items()})


def check_accepted(data: AdapterBytes, base: BaseModel) -> bool:
    """Reads hostile bytes: either our own error, or exactly the shapes of the base."""
    try:
        lora = from_bytes(data, base.sites)
    except CambiumError:
        return False
    for path, a in lora.a.items():
        site = base.sites[path]
        assert a.shape == (lora.config.r, site.d_in) and a.dtype == torch.float32
        assert lora.b[path].shape == (site.d_out, lora.config.r)
        assert bool(torch.isfinite(a).all()) and bool(torch.isfinite(lora.b[path]).all())
    assert lora.a.keys() == lora.b.keys()
    return True


def test_no_mutation_of_a_file_is_accepted_as_another_shape(llama: Any, make_lora: Any) -> None:
    data = to_bytes(make_lora(llama, r=2, targets=("q_proj", "k_proj")))
    header = 8 + struct.unpack("<Q", data.weights[:8])[0]
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    refused = 0
    for _ in range(3000):
        half, original = (("config", data.config), ("weights", data.weights))[draw(2)]
        mutated = bytearray(original)
        # Most damage goes where the structure is.
        span = len(mutated) if half == "config" or draw(4) == 0 else header
        at, kind = draw(span), draw(5)
        if kind == 0:
            mutated[at] ^= 1 << draw(8)
        elif kind == 1:
            mutated[at] = draw(256)
        elif kind == 2:
            del mutated[at : at + 1 + draw(16)]
        elif kind == 3:
            mutated[at:at] = bytes(draw(256) for _ in range(1 + draw(8)))
        else:
            mutated[at:at] = mutated[draw(span) :][: draw(64)]
        refused += not check_accepted(replace(data, **{half: bytes(mutated)}), llama)
    assert refused > 2000


@given(config=st.binary(max_size=200), weights=st.binary(max_size=200))
def test_noise_is_refused(llama: Any, make_lora: Any, config: bytes, weights: bytes) -> None:
    data = to_bytes(make_lora(llama, r=2, targets=("q_proj",)))
    for one in (replace(data, config=config), replace(data, weights=weights)):
        assert not check_accepted(one, llama)
