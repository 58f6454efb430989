from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from cambium.core.errors import ModelError
from cambium.learn.examples import Window
from cambium.learn.passes import window_segment
from cambium.models.adapter_stack import AdapterStack
from cambium.models.base import BaseModel, shared_rows
from cambium.models.chunked_head import cross_entropy
from cambium.models.lora import Lora, LoraConfig
from cambium.models.packed_attention import ATTENTION
from cambium.models.packing import IGNORED, Segment, pack, targets_of
from cambium.models.prompt_stack import PromptStack
from cambium.models.soft_prompt import SoftPrompt
from cambium.models.training_model import TrainingModel


def texts(lengths: list[tuple[int, int]], parents: bool = False) -> list[Segment]:
    generator = torch.Generator().manual_seed(len(lengths))
    made = []
    for adapter, length in lengths:
        ids = torch.randint(12, 512, (length + 1,), generator=generator).tolist()
        made.append(Segment(adapter=adapter, tokens=ids[:-1], targets=ids[1:],
                            parent=adapter % 2 - 1 if parents else -1))  # fmt: skip
    return made


def leaves(lora: Lora) -> Lora:
    a, b = ({p: t.clone().requires_grad_() for p, t in h.items()} for h in (lora.a, lora.b))
    return Lora(config=lora.config, a=a, b=b)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "lengths",
    [[(0, 33), (0, 20), (1, 50), (2, 17)], [(0, 32), (1, 32), (2, 32)], [(1, 9)]],
)
@pytest.mark.parametrize("parents", [False, True])
def test_losses_and_gradients_are_those_of_one_adapter_at_a_time(
    name: str, lengths: list[tuple[int, int]], parents: bool, request: Any, make_lora: Any
) -> None:
    base: BaseModel = request.getfixturevalue(name)
    adapters = [make_lora(base, seed=i, r=r) for i, r in enumerate((4, 8, 5))]
    parent = make_lora(base, seed=9, r=6)
    stack = AdapterStack(adapters, base.sites, dtype=torch.float32)
    empty = Lora(config=LoraConfig(), a={}, b={})
    frozen = AdapterStack([parent, empty], base.sites, dtype=torch.float32) if parents else None
    segments = texts(lengths, parents)
    model = TrainingModel(base, torch.float32)
    stack.zero_grad()
    targets = targets_of(segments)[0]
    loss = cross_entropy(targets, torch.full((len(targets),), 0.5))
    found = model.train_pass(pack(segments), stack, loss, parents=frozen)
    seen = model.eval_pass(pack(segments), stack, loss, parents=frozen)
    assert torch.allclose(found, seen, atol=1e-5)
    expected = []
    for g, lora in enumerate(adapters):
        own = leaves(lora)
        for segment in (s for s in segments if s.adapter == g):
            above = (own, parent) if segment.parent == 0 and parents else (own,)
            with base.rows(shared_rows(above)) as plain:
                logits = plain(torch.tensor([list(segment.tokens)]), use_cache=False).logits[0]
            each = torch.nn.functional.cross_entropy(
                logits, torch.tensor(list(segment.targets)), reduction="none"
            )
            (0.5 * each.sum()).backward()
            expected.append(each.detach())
        parts = [
            part.grad if part.grad is not None else torch.zeros_like(part)
            for path in sorted(own.a)
            for part in (own.a[path], own.b[path])
        ]
        flat = torch.cat([part.flatten() for part in parts])
        got = stack.compact(stack.grad, g)
        assert got.shape == flat.shape
        assert float((got - flat).norm()) <= 1e-4 * float(flat.norm())
    assert torch.allclose(found, torch.cat(expected), atol=1e-3)


def test_two_continuations_share_one_prompt(llama: BaseModel, make_lora: Any) -> None:
    lora = make_lora(llama, seed=1)
    model = TrainingModel(llama, torch.float32)
    ignored = [IGNORED] * 9
    prompt = list(range(20, 29))
    shared = [
        Segment(adapter=0, tokens=prompt, targets=ignored),
        Segment(adapter=0, tokens=[40, 41], targets=[41, 42], after=0),
        Segment(adapter=0, tokens=[50, 51, 52], targets=[51, 52, 53], after=0),
    ]
    apart = [
        Segment(adapter=0, tokens=[*prompt, 40, 41], targets=[*ignored, 41, 42]),
        Segment(adapter=0, tokens=[*prompt, 50, 51, 52], targets=[*ignored, 51, 52, 53]),
    ]
    found = []
    for segments in (shared, apart):
        stack = AdapterStack([lora], llama.sites, dtype=torch.float32)
        targets = targets_of(segments)[0]
        loss = cross_entropy(targets, torch.ones(len(targets)))
        stack.zero_grad()
        losses = model.train_pass(pack(segments), stack, loss)
        found.append((losses, stack.grad))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-4)
    assert float((found[0][1] - found[1][1]).norm()) <= 1e-3 * float(found[1][1].norm())


def test_an_adapter_does_not_feel_its_company(bundled: BaseModel, make_lora: Any) -> None:
    """In a pass of one shape, an adapter's gradient is the same to the bit whoever shares it."""
    model = TrainingModel(bundled)
    own, neighbours = make_lora(bundled, seed=1), [make_lora(bundled, seed=i) for i in (2, 3)]
    mine = texts([(0, 40)])[0]
    found = []
    for other, seed in zip(neighbours, (5, 6), strict=True):
        theirs = torch.randint(12, 500, (41,), generator=torch.Generator().manual_seed(seed))
        ids = theirs.tolist()
        segments = [mine, Segment(adapter=1, tokens=ids[:-1], targets=ids[1:])]
        stack = AdapterStack([own, other], bundled.sites, dtype=model.dtype)
        targets = targets_of(segments)[0]
        stack.zero_grad()
        losses = model.train_pass(
            pack(segments), stack, cross_entropy(targets, torch.ones(len(targets)))
        )
        found.append((losses[:40], stack.grad[0]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


def test_the_base_stays_as_it_was(llama: BaseModel, make_lora: Any) -> None:
    before = {k: v.clone() for k, v in llama.model.state_dict().items()}
    tokens = torch.tensor([[20, 21, 22]])
    with torch.inference_mode(), llama.rows(None) as plain:
        answer = plain(tokens, use_cache=False).logits
    for dtype in (torch.float32, torch.bfloat16):
        model = TrainingModel(llama, dtype)
        stack = AdapterStack([make_lora(llama)], llama.sites, dtype=dtype)
        stack.zero_grad()
        segments = texts([(0, 12)])
        loss = cross_entropy(targets_of(segments)[0], torch.ones(12))
        model.train_pass(pack(segments), stack, loss)
        assert bool(stack.grad.any())
    assert all(torch.equal(v, before[k]) for k, v in llama.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in llama.model.parameters())
    with torch.inference_mode(), llama.rows(None) as plain:
        assert torch.equal(plain(tokens, use_cache=False).logits, answer)


def test_bf16_is_near_fp32(bundled: BaseModel, make_lora: Any) -> None:
    segments = texts([(0, 60), (1, 45)])
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        stack = AdapterStack(
            [make_lora(bundled, seed=i) for i in (1, 2)], bundled.sites, dtype=dtype
        )
        targets = targets_of(segments)[0]
        stack.zero_grad()
        losses = TrainingModel(bundled, dtype).train_pass(
            pack(segments), stack, cross_entropy(targets, torch.full((len(targets),), 0.01))
        )
        found.append((losses.mean(), stack.grad))
    (wide, exact), (short, rounded) = found
    assert float(short) == pytest.approx(float(wide), rel=5e-3)
    assert float((exact - rounded).norm() / exact.norm()) < 0.03


@pytest.mark.parametrize("change", ["head", "attention"])
def test_a_base_that_its_passes_do_not_reproduce_is_refused(
    change: str, request: Any, make_lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    base: BaseModel = request.getfixturevalue("llama" if change == "head" else "gpt2")
    if change == "head":  # as with capped or scaled logits
        monkeypatch.setattr(
            type(base.model.lm_head), "forward", lambda self, x: 0.5 * (x @ self.weight.T)
        )
    else:  # as when an architecture attends over all of a pass
        whole = partial(sdpa_attention_forward, is_causal=True)
        monkeypatch.setitem(AttentionInterface._global_mapping, ATTENTION, whole)
    model = TrainingModel(base)
    segments = texts([(0, 12)])
    stack = AdapterStack([make_lora(base)], base.sites, dtype=model.dtype)
    loss = cross_entropy(targets_of(segments)[0], torch.ones(12))
    for run in (model.eval_pass, model.train_pass):
        with pytest.raises(ModelError, match="cannot learn here"):
            run(pack(segments), stack, loss)
    assert not stack.grad.any()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_soft_prompts_gradient_is_that_of_plain_autograd(name: str, request: Any) -> None:
    base: BaseModel = request.getfixturevalue(name)
    prompt = SoftPrompt(prompt=torch.randn(5, 32, generator=torch.Generator().manual_seed(1)))
    stack = PromptStack(prompt)
    rows = [Window(tokens=tuple(range(20 + i, 60 + 2 * i))) for i in range(3)]
    segments = [window_segment(w, adapter=0, parent=-1, virtual=stack.virtual) for w in rows]
    targets = targets_of(segments)[0]
    loss = cross_entropy(targets, torch.full((len(targets),), 0.5))
    model = TrainingModel(base, torch.float32)
    stack.zero_grad()
    found = model.train_pass(pack(segments), stack, loss)
    assert torch.allclose(found, model.eval_pass(pack(segments), stack, loss), atol=1e-5)
    own = prompt.prompt.clone().requires_grad_()
    expected = []
    for row in rows:
        words = base.model.get_input_embeddings()(torch.tensor([row.tokens[:-1]]))
        logits = base.model(inputs_embeds=torch.cat([own[None], words], dim=1)).logits[0, 5:]
        each = torch.nn.functional.cross_entropy(
            logits, torch.tensor(row.tokens[1:]), reduction="none"
        )
        (0.5 * each.sum()).backward()
        expected.append(each.detach())
    assert torch.allclose(found, torch.cat(expected), atol=1e-3)
    assert own.grad is not None
    assert float((stack.grad.view(5, 32) - own.grad).norm()) <= 1e-4 * float(own.grad.norm())
