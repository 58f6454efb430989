from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load, save

from cambium.core.errors import DataError
from cambium.models.adapter import virtual_tokens
from cambium.models.adapter_bytes import AdapterBytes
from cambium.models.base import BaseModel, stack_rows
from cambium.models.chat import encode_document
from cambium.models.engine import Engine, EngineConfig, GenerationRequest
from cambium.models.representing import last_states
from cambium.models.sampling import SamplingConfig
from cambium.models.scoring import score
from cambium.models.soft_prompt import (
    SoftPrompt,
    SoftPromptConfig,
    fresh_prompt,
    from_bytes,
    with_prompts,
)
from cambium.models.token_trees import Scored, score_sequences

# PEFT 0.21 asks transformers 5 by a name that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
TOKENS = torch.randint(12, 512, (2, 20), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest) -> BaseModel:
    return request.getfixturevalue(request.param)


def make_prompt(num_virtual: int = 5, *, seed: int = 0) -> SoftPrompt:
    generator = torch.Generator().manual_seed(seed)
    return SoftPrompt(prompt=torch.randn(num_virtual, 32, generator=generator))


@torch.inference_mode()
def our_logits(base: BaseModel, prompt: SoftPrompt) -> torch.Tensor:
    """Returns the logits of the words alone, as PEFT's are with the virtual tokens cut off."""
    before = torch.tensor(virtual_tokens([prompt])).expand(len(TOKENS), -1)
    with base.rows(stack_rows([(prompt,)] * len(TOKENS))) as model:
        logits = model(input_ids=torch.cat([before, TOKENS], dim=1), use_cache=False).logits
    return logits[:, prompt.num_virtual :]


def twin_of(base: BaseModel) -> Any:
    """Gives the same model without our hooks."""
    twin = type(base.model)(base.model.config)
    twin.load_state_dict(base.model.state_dict())
    return twin.eval()


def test_peft_reads_our_files_to_the_same_logits(base: Any, tmp_path: Path) -> None:
    prompt = make_prompt()
    data = prompt.to_bytes()
    tmp_path.joinpath("adapter_config.json").write_bytes(data.config)
    tmp_path.joinpath("adapter_model.safetensors").write_bytes(data.weights)
    model = peft.PeftModel.from_pretrained(twin_of(base), str(tmp_path)).eval()
    with torch.inference_mode():
        theirs = model(input_ids=TOKENS).logits[:, prompt.num_virtual :]
        bare = twin_of(base)(input_ids=TOKENS).logits
    assert float((theirs - our_logits(base, prompt)).abs().max()) < 1e-4
    assert float((theirs - bare).abs().max()) > 1e-2


def test_we_read_what_peft_trained_to_the_same_logits(base: Any, tmp_path: Path) -> None:
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=7)
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
    prompt = from_bytes(data, base.model)
    assert prompt.config == SoftPromptConfig(num_virtual_tokens=7)
    with torch.inference_mode():
        theirs = model.eval()(input_ids=TOKENS).logits[:, 7:]
    assert float((theirs - our_logits(base, prompt)).abs().max()) < 1e-4


def test_a_digest_survives_saving_and_loading(base: Any) -> None:
    data = make_prompt().to_bytes()
    again = from_bytes(data, base.model)
    assert torch.equal(again.prompt, make_prompt().prompt) and again.to_bytes() == data
    assert make_prompt(seed=1).to_bytes().digest != data.digest


@pytest.mark.parametrize(
    ("config", "weights", "why"),
    [
        ({"peft_type": "LORA"}, {}, "not of a soft prompt"),
        ({"num_virtual_tokens": 0}, {}, "num_virtual_tokens"),
        ({"num_virtual_tokens": True}, {}, "num_virtual_tokens"),
        ({"num_virtual_tokens": 4}, {}, "holds"),
        ({"num_transformer_submodules": 2}, {}, "encoder"),
        ({}, {"prompt_embeddings": torch.zeros(5, 31)}, "holds"),
        ({}, {"prompt_embeddings": torch.full((5, 32), float("nan"))}, "finite"),
        ({}, {"prompt_embeddings": torch.zeros(5, 32, dtype=torch.int32)}, "finite floats"),
        ({}, {"lora_A": torch.zeros(2, 2)}, "holds"),
    ],
)
def test_what_is_no_soft_prompt_of_this_base_is_refused(
    llama: BaseModel, config: dict[str, Any], weights: dict[str, torch.Tensor], why: str
) -> None:
    data = make_prompt().to_bytes()
    changed = AdapterBytes(
        config=json.dumps({**json.loads(data.config), **config}).encode(),
        weights=save({**load(data.weights), **weights}),
    )
    with pytest.raises(DataError, match=why):
        from_bytes(changed, llama.model)


def test_what_is_no_file_at_all_is_refused(llama: BaseModel) -> None:
    data = make_prompt().to_bytes()
    for odd in (
        AdapterBytes(config=b"{", weights=data.weights),
        AdapterBytes(config=data.config, weights=b"pickle"),
    ):
        with pytest.raises(DataError):
            from_bytes(odd, llama.model)


def test_it_begins_as_different_words_of_the_base(llama: BaseModel) -> None:
    prompt = fresh_prompt(SoftPromptConfig(num_virtual_tokens=9), llama.model, seed=4)
    words = llama.model.get_input_embeddings().weight
    found = [int((words == row).all(dim=1).nonzero()[0, 0]) for row in prompt.prompt]
    assert len(set(found)) == 9
    again, other = (
        fresh_prompt(prompt.config, llama.model, seed=seed).prompt for seed in (4, 5)
    )  # fmt: skip
    assert torch.equal(prompt.prompt, again) and not torch.equal(prompt.prompt, other)


def test_one_longer_than_words_can_become_is_named(llama: BaseModel) -> None:
    words = llama.model.get_input_embeddings().weight
    longest = words[torch.linalg.norm(words, dim=1).argmax()].clone()
    prompt = SoftPrompt(prompt=torch.stack([longest, 1.4 * longest, 1.6 * longest]))
    assert [line[:15] for line in prompt.oversized(llama.model, 0.5)] == ["virtual token 2"]
    broken = SoftPrompt(prompt=torch.full((1, 32), float("nan")))
    assert len(broken.oversized(llama.model, 0.5)) == 1
    norm = float(torch.linalg.norm(prompt.prompt))
    assert prompt.norms()["prompt_embeddings"] == pytest.approx(norm)


def test_words_between_virtual_tokens_are_bit_equal() -> None:
    embedded = torch.randn(2, 4, 3)
    ids = torch.tensor([[-1, -2, 5, 6], [7, 8, 9, 10]])
    prompts = torch.randn(2, 2, 3)
    found = with_prompts(embedded, ids, prompts)
    assert torch.equal(found[0, :2], prompts[0]) and torch.equal(found[0, 2:], embedded[0, 2:])
    assert torch.equal(found[1], embedded[1])
    assert torch.equal(with_prompts(embedded, ids, prompts[0])[0], found[0])


def test_scores_are_those_of_the_logits(base: Any) -> None:
    prompt = make_prompt()
    texts = [row.tolist() for row in TOKENS]
    logits = our_logits(base, prompt)[:, :-1].log_softmax(dim=-1)
    expected = logits.gather(2, TOKENS[:, 1:, None])[..., 0]
    scores = score(base, texts, adapters=(prompt,))
    assert torch.allclose(torch.stack(scores), expected, atol=1e-4)
    trees = score_sequences(
        base, [Scored(inputs=tuple(t[:-1]), targets=tuple(t[1:])) for t in texts], (prompt,)
    )
    assert torch.allclose(torch.tensor([t.logprobs for t in trees]), expected, atol=1e-4)
    with pytest.raises(DataError, match="context of 123"):
        score(base, [[1] * 125], adapters=(prompt,))
    assert len(score(base, [[1] * 124], adapters=(prompt,))[0]) == 123


def test_states_are_read_past_the_virtual_tokens(llama: BaseModel) -> None:
    text, prompt = "a tree in the wood", make_prompt()
    ids = encode_document(llama.tokenizer, text)
    with llama.rows(stack_rows([(prompt,)])) as model, torch.inference_mode():
        read = torch.tensor([[*virtual_tokens([prompt]), *ids]])
        states = model(input_ids=read, output_hidden_states=True).hidden_states[1]
    found = torch.tensor(last_states(llama, [text], adapters=(prompt,), layer=1)[0])
    assert torch.allclose(found, states[0, -1], atol=1e-5)


def written(engine: Engine, adapters: tuple[Any, ...], prompt: list[int]) -> list[int]:
    request = GenerationRequest(
        prompt=prompt, adapters=adapters, max_tokens=12, sampling=SamplingConfig(temperature=0)
    )
    return [e.token_id for e in engine.generate(request) if e.token_id is not None]


def test_the_engine_writes_what_peft_would(base: Any, tmp_path: Path) -> None:
    """Token by token with kept keys, against PEFT reading the whole text anew each time."""
    prompt = make_prompt()
    model = peft.get_peft_model(
        twin_of(base), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5)
    )
    model.prompt_encoder["default"].embedding.weight.data.copy_(prompt.prompt)
    model.eval()
    text = TOKENS[0].tolist()
    with torch.inference_mode():
        for _ in range(12):
            logits = model(input_ids=torch.tensor([text])).logits
            text.append(int(logits[0, -1].argmax()))
    engine = Engine(base, EngineConfig(num_rows=4))
    try:
        assert written(engine, (prompt,), TOKENS[0].tolist()) == text[20:]
        assert written(engine, (), TOKENS[0].tolist()) != text[20:]
        room = base.context - prompt.num_virtual
        with pytest.raises(DataError, match=f"the context is {room}"):
            written(engine, (prompt,), [1] * room)
        assert len(written(engine, (prompt,), [1] * (room - 1))) == 1
    finally:
        engine.close()


def test_an_answer_is_the_same_alone_and_beside_other_kinds(
    llama: BaseModel, make_lora: Any
) -> None:
    """No kept key, no embedding and no update of one row reaches another."""
    kinds: list[tuple[Any, ...]] = [
        (make_prompt(3),),
        (make_prompt(6, seed=1),),
        (make_lora(llama),),
        (),
        (make_prompt(3), make_lora(llama)),
    ]
    text = TOKENS[0].tolist()
    engine = Engine(llama, EngineConfig(num_rows=5))
    try:
        alone = [written(engine, adapters, text) for adapters in kinds]
        together: dict[int, list[int]] = {i: [] for i in range(5)}
        threads = [
            threading.Thread(target=lambda i=i, k=k: together[i].extend(written(engine, k, text)))
            for i, k in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        engine.close()
    assert [together[i] for i in range(5)] == alone
    assert len({tuple(one) for one in alone}) == 5
