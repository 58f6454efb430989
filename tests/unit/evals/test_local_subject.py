from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cambium.core.errors import DataError
from cambium.evals.local_subject import LocalSubject
from cambium.evals.subject import Generation
from cambium.models import token_trees
from cambium.models.base import BaseModel, shared_rows
from cambium.models.engine import Engine, EngineConfig
from cambium.models.lora import Lora
from cambium.models.token_trees import Scored, score_sequences

DIGEST = "sha256:" + "0" * 64


def subject(base: BaseModel, **options: Any) -> LocalSubject:
    return LocalSubject(base, name="it", digest=DIGEST, **options)


def alone(base: BaseModel, one: Scored, adapters: tuple[Lora, ...] = ()) -> tuple[float, bool]:
    """A plain pass of the one sequence."""
    with torch.inference_mode(), base.rows(shared_rows(adapters)) as model:
        logits = model(input_ids=torch.tensor([one.inputs]), use_cache=False).logits[0]
    targets = torch.tensor(one.targets)
    logprobs = torch.log_softmax(logits[-len(targets) :], dim=-1)
    greedy = bool((logprobs.argmax(1) == targets).all())
    return float(logprobs.gather(1, targets[:, None]).sum()), greedy


def family(seed: int, count: int = 40) -> list[Scored]:
    """Sequences that share beginnings of many lengths, as tasks' requests do."""
    draw = random.Random(seed)

    def tokens(length: int) -> list[int]:
        return [draw.randrange(12, 512) for _ in range(length)]

    shots = tokens(50)
    found = []
    for _ in range(count):
        start = [*shots[: draw.choice([0, 20, 50])], *tokens(draw.randrange(1, 30))]
        for _ in range(draw.randrange(1, 5)):
            targets = tokens(draw.randrange(1, 6))
            found.append(Scored(inputs=tuple(start + targets[:-1]), targets=tuple(targets)))
    return found


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_shared_beginnings_score_as_each_sequence_alone(
    name: str, adapted: bool, request: Any, make_lora: Any
) -> None:
    base: BaseModel = request.getfixturevalue(name)
    adapters = (make_lora(base, seed=2), make_lora(base, seed=3)) if adapted else ()
    sequences = family(1)
    for one, found in zip(sequences, score_sequences(base, sequences, adapters), strict=True):
        logprob, greedy = alone(base, one, adapters)
        assert sum(found.logprobs) == pytest.approx(logprob, abs=2e-4)
        assert found.is_greedy == greedy


@given(seed=st.integers(0, 10**6), count=st.integers(1, 12))
@settings(max_examples=15)
def test_any_family_scores_alike_in_any_order(llama: BaseModel, seed: int, count: int) -> None:
    sequences = family(seed, count)
    order = list(range(len(sequences)))
    random.Random(seed).shuffle(order)
    plain = score_sequences(llama, sequences)
    shuffled = score_sequences(llama, [sequences[i] for i in order])
    for k, i in enumerate(order):
        assert shuffled[k].logprobs == pytest.approx(plain[i].logprobs, abs=1e-4)
        assert sum(plain[i].logprobs) == pytest.approx(alone(llama, sequences[i])[0], abs=2e-4)


def test_a_beginning_that_many_share_is_computed_once(
    llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of sharing: without it the same sequences take several times the tokens."""
    shots = tuple(range(100, 160))
    sequences = [Scored(inputs=(*shots, k, k + 1), targets=(5,)) for k in range(200, 400)]
    read = []
    # The model is shared by all tests of this process: the hook leaves with the block.
    with llama.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    ):
        score_sequences(llama, sequences)
        shared = sum(read)
        read.clear()
        monkeypatch.setattr(token_trees, "KEPT_TOKENS", 10**6)
        monkeypatch.setattr(token_trees, "ROW_TOKENS", 1)
        monkeypatch.setattr(llama, "context", 1)
        score_sequences(llama, sequences)
    assert shared < 2 * (60 + 2 * len(sequences))
    assert sum(read) > 10 * shared


def test_spaces_at_a_contexts_end_move_to_the_continuation(llama: BaseModel) -> None:
    moved, plain = subject(llama).loglikelihood([("the value ", "of it"), ("the value", " of it")])
    assert moved == plain


def test_an_empty_context_is_the_begin_token(llama: BaseModel) -> None:
    (found,) = subject(llama).loglikelihood([("", "the value")])
    ids = llama.tokenizer.encode("the value", add_special_tokens=False)
    begin = llama.tokenizer.bos_token_id
    expected = alone(llama, Scored(inputs=(begin, *ids[:-1]), targets=tuple(ids)))
    assert (found.logprob, found.is_greedy) == (pytest.approx(expected[0], abs=1e-4), expected[1])
    assert found.num_tokens == len(ids)


def test_a_long_context_is_cut_on_the_left(llama: BaseModel) -> None:
    ending = " a name is bound"
    found = subject(llama).loglikelihood([("x " * 500 + "y", ending), ("z " * 99 + "x " * 500 + "y",
                                                                       ending)])  # fmt: skip
    assert found[0].logprob == pytest.approx(found[1].logprob, abs=1e-4)


@pytest.mark.parametrize("pair", [("a", ""), ("   ", "a"), ("a", "long words " * 300)])
def test_what_cannot_be_scored_is_refused(llama: BaseModel, pair: tuple[str, str]) -> None:
    with pytest.raises(DataError, match="cannot be scored"):
        subject(llama).loglikelihood([pair])


def test_a_rolling_text_predicts_each_token_once(llama: BaseModel) -> None:
    texts = ["", "a", "the statement " * 200]
    found = subject(llama).loglikelihood_rolling(texts)
    counts = [len(llama.tokenizer.encode(t, add_special_tokens=False)) for t in texts]
    assert [one.num_tokens for one in found] == counts
    assert counts[2] > 2 * llama.context
    assert found[0].logprob == 0


def test_control_tokens_in_a_text_are_characters(llama: BaseModel) -> None:
    (found,) = subject(llama).loglikelihood([("a", "<|end|>")])
    assert found.num_tokens > 1


def test_each_prompt_gets_its_own_adapters(llama: BaseModel, make_lora: Any) -> None:
    lora = make_lora(llama, seed=4)
    chosen = subject(llama, choose=lambda prompt: (lora,) if "legal" in prompt else ())
    with_it = subject(llama, choose=lambda prompt: (lora,))
    pairs = [("a legal text", " ends"), ("another text", " ends")]
    mixed, plain, adapted = (s.loglikelihood(pairs) for s in (chosen, subject(llama), with_it))
    assert mixed[0].logprob == pytest.approx(adapted[0].logprob, abs=1e-5)
    assert mixed[1].logprob == pytest.approx(plain[1].logprob, abs=1e-5)
    assert abs(plain[0].logprob - adapted[0].logprob) > 1e-3


def test_texts_end_before_their_stop_string(bundled: BaseModel) -> None:
    prompts = ["The statement is", "In the morning she"]
    whole = subject(bundled).generate([Generation(prompt=p, max_tokens=24) for p in prompts])
    stops = [text.split()[2] for text in whole]
    cut = subject(bundled).generate(
        [
            Generation(prompt=p, max_tokens=24, until=(s,))
            for p, s in zip(prompts, stops, strict=True)
        ]
    )
    expected = [text.split(s)[0] for text, s in zip(whole, stops, strict=True)]
    assert cut == expected
    assert all(len(a) < len(b) for a, b in zip(cut, whole, strict=True))


def test_a_given_engine_writes_the_same_and_stays_open(llama: BaseModel) -> None:
    requests = [Generation(prompt="the value of", max_tokens=9),
                Generation(prompt="a", max_tokens=5, temperature=1.0, seed=3)]  # fmt: skip
    engine = Engine(llama, EngineConfig(num_rows=2))
    try:
        shared = subject(llama, engine=engine)
        assert shared.generate(requests) == subject(llama).generate(requests)
        assert shared.generate(requests[1:]) == subject(llama).generate(requests[1:])
    finally:
        engine.close()


@pytest.mark.parametrize("max_tokens", [0, 128, 10**6])
def test_a_text_that_leaves_no_room_is_refused(llama: BaseModel, max_tokens: int) -> None:
    with pytest.raises(DataError, match="cannot be written"):
        subject(llama).generate([Generation(prompt="a", max_tokens=max_tokens)])


def test_nothing_asked_is_nothing_answered(llama: BaseModel) -> None:
    one = subject(llama)
    assert one.loglikelihood([]) == one.loglikelihood_rolling([]) == one.generate([]) == []
