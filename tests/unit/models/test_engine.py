from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cambium.core.errors import DataError, ModelError, Stopped
from cambium.models.answer_passes import NewTokens
from cambium.models.base import BaseModel
from cambium.models.engine import Engine, EngineConfig, GenerationRequest, TokenEvent
from cambium.models.lora import Lora
from cambium.models.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0)


def prompt(seed: int, length: int, vocabulary: int = 512) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(12, vocabulary, (length,), generator=generator).tolist()


@pytest.fixture(scope="module")
def engine(llama: BaseModel) -> Iterator[Engine]:
    one = Engine(llama, EngineConfig(num_rows=4))
    yield one
    one.close()


@pytest.fixture(scope="module")
def large(bundled: BaseModel) -> Iterator[Engine]:
    one = Engine(bundled)
    yield one
    one.close()


def together(engine: Engine, requests: list[GenerationRequest]) -> list[list[TokenEvent]]:
    """Asks for all at once: the queue is filled before the engine may take the first."""
    answers: list[list[TokenEvent]] = [[] for _ in requests]
    done = threading.Semaphore(0)

    def listener(events: list[TokenEvent]) -> Callable[[TokenEvent], None]:
        def on_event(event: TokenEvent) -> None:
            events.append(event)
            if event.finish:
                done.release()

        return on_event

    with engine.base.rows(None):
        for request, events in zip(requests, answers, strict=True):
            engine.submit(request, listener(events))
    for _ in requests:
        assert done.acquire(timeout=60)
    return answers


def ids(events: list[TokenEvent]) -> list[int]:
    return [e.token_id for e in events if e.token_id is not None]


def mixed_requests(base: BaseModel, make_lora: Any, vocabulary: int) -> list[GenerationRequest]:
    """Base and adapters of several ranks, with prompts and answers of several lengths."""
    stacks: list[tuple[Lora, ...]] = [
        (),
        (make_lora(base, seed=1, r=8),),
        (make_lora(base, seed=2, r=16),),
        (make_lora(base, seed=3, r=4), make_lora(base, seed=4, r=8)),
    ]
    lengths = [9, 17, base.context // 2, 30, 12, base.context - 30]
    return [
        GenerationRequest(
            prompt=prompt(i, length, vocabulary),
            adapters=stacks[i % 4],
            max_tokens=6 + 2 * i,
            sampling=SamplingConfig(temperature=0.8 if i % 2 else 0, seed=i),
            num_logprobs=2,
        )
        for i, length in enumerate(lengths)
    ]


def test_in_company_every_answer_is_as_alone(large: Engine, make_lora: Any) -> None:
    requests = mixed_requests(large.base, make_lora, 8192)
    alone = [large.generate(r) for r in requests]
    # Tokens and log-probabilities, to the last bit.
    assert together(large, requests[::-1]) == alone[::-1]
    assert [len(ids(a)) for a in alone] == [r.max_tokens for r in requests]
    assert len({tuple(ids(a))[:8] for a in alone}) == len(requests)


def test_more_requests_than_rows_wait_their_turn(engine: Engine, make_lora: Any) -> None:
    requests = mixed_requests(engine.base, make_lora, 512) * 3
    alone = [engine.generate(r) for r in requests[:6]]
    assert together(engine, requests) == alone * 3
    assert engine.num_active == 0


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_greedy_answers_are_those_of_transformers(name: str, request: Any) -> None:
    base: BaseModel = request.getfixturevalue(name)
    engine = Engine(base, EngineConfig(num_rows=2))
    for seed, length in ((1, 3), (2, 16), (3, 40)):
        tokens = prompt(seed, length)
        theirs = base.model.generate(
            torch.tensor([tokens]), do_sample=False, max_new_tokens=30, min_new_tokens=30,
            pad_token_id=0, eos_token_id=None,
        )[0, length:]  # fmt: skip
        ours = engine.generate(GenerationRequest(prompt=tokens, max_tokens=30, sampling=GREEDY))
        assert ids(ours) == theirs.tolist()
    engine.close()


@torch.inference_mode()
def test_logprobs_are_those_of_a_plain_forward(engine: Engine) -> None:
    tokens = prompt(5, 20)
    events = engine.generate(
        GenerationRequest(prompt=tokens, max_tokens=12, sampling=GREEDY, num_logprobs=3)
    )
    full = torch.tensor([[*tokens, *ids(events)]])
    logprobs = torch.log_softmax(engine.base.model(full, use_cache=False).logits[0], dim=-1)
    for i, event in enumerate(events[:-1]):
        row = logprobs[len(tokens) - 1 + i]
        assert event.logprob is not None and event.logprob.token_id == event.token_id
        assert event.logprob.logprob == pytest.approx(float(row[event.token_id]), abs=1e-4)
        assert event.logprob.top[0][1] == pytest.approx(float(row.max()), abs=1e-4)
        assert len(event.logprob.top) == 3


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    request = GenerationRequest(prompt=prompt(6, 10), max_tokens=20, sampling=GREEDY)
    free = ids(engine.generate(request))
    at = next(i for i in range(1, len(free)) if free[i] not in free[:i])
    stopped = GenerationRequest(
        prompt=request.prompt, max_tokens=20, sampling=GREEDY, stop_ids=frozenset({free[at]})
    )
    events = engine.generate(stopped)
    assert ids(events) == free[:at] and events[-1].finish == "stop"


def test_max_tokens_and_the_end_of_the_context_end_an_answer(engine: Engine) -> None:
    events = engine.generate(GenerationRequest(prompt=prompt(7, 10), max_tokens=1))
    assert len(ids(events)) == 1 and events[-1].finish == "length"
    events = engine.generate(GenerationRequest(prompt=prompt(7, 120), max_tokens=50))
    assert len(ids(events)) == 128 - 120 and events[-1].finish == "length"
    with pytest.raises(DataError, match="128 tokens"):
        engine.generate(GenerationRequest(prompt=prompt(7, 128)))
    with pytest.raises(DataError, match="empty"):
        engine.generate(GenerationRequest(prompt=[]))


def test_a_cancelled_answer_frees_its_row(engine: Engine) -> None:
    events: list[TokenEvent] = []
    done = threading.Event()

    def on_event(event: TokenEvent) -> None:
        events.append(event)
        if len(events) == 3:
            ticket.cancel()
        if event.finish:
            done.set()

    with engine.base.rows(None):  # nothing is generated before the ticket has its name
        ticket = engine.submit(GenerationRequest(prompt=prompt(8, 5), max_tokens=100), on_event)
    assert done.wait(60)
    assert events[-1].finish == "cancelled" and len(ids(events)) == 3
    assert engine.num_active == 0


def test_a_failing_pass_fails_its_rows_aloud_and_the_engine_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = GenerationRequest(prompt=prompt(9, 5), max_tokens=4, sampling=GREEDY)
    before = engine.generate(request)
    with monkeypatch.context() as patch:

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("this pass is broken")

        patch.setattr(engine._passes, "logits", broken)
        failed = together(engine, [request, request])
        with pytest.raises(RuntimeError, match="this pass is broken"):
            engine.generate(request)
    assert [f[-1].finish for f in failed] == ["error", "error"]
    assert str(failed[0][-1].error) == "this pass is broken"
    assert engine.generate(request) == before and engine.num_active == 0


def test_adapters_of_another_base_fail_alone(engine: Engine, make_lora: Any, gpt2: Any) -> None:
    request = GenerationRequest(prompt=prompt(9, 5), max_tokens=4, sampling=GREEDY)
    before = engine.generate(request)
    broken = make_lora(engine.base)
    path = next(iter(broken.a))
    broken.a[path] = broken.a[path][:, :7]
    with pytest.raises(RuntimeError):
        engine.generate(GenerationRequest(prompt=[12, 13], adapters=(broken,)))
    assert engine.generate(request) == before


def test_a_row_whose_numbers_overflow_fails_alone(engine: Engine, make_lora: Any) -> None:
    hot = make_lora(engine.base, seed=1)
    for weight in hot.b.values():
        weight.mul_(1e38)
    good = GenerationRequest(prompt=prompt(9, 5), max_tokens=6, sampling=GREEDY)
    bad = GenerationRequest(prompt=prompt(9, 5), max_tokens=6, adapters=(hot,), sampling=GREEDY)
    alone = engine.generate(good)
    answers = together(engine, [bad, good])
    assert isinstance(answers[0][-1].error, ModelError)
    assert answers[1] == alone


def test_a_listener_that_breaks_loses_only_its_own_answer(engine: Engine) -> None:
    request = GenerationRequest(prompt=prompt(9, 5), max_tokens=6, sampling=GREEDY)
    alone = engine.generate(request)
    calls: list[TokenEvent] = []

    def broken(event: TokenEvent) -> None:
        calls.append(event)
        raise ValueError("the reader is gone")

    with engine.base.rows(None):
        engine.submit(request, broken)
    assert together(engine, [request]) == [alone]
    assert engine.generate(request) == alone
    assert [c.finish for c in calls] == [None, "cancelled"]


def test_closing_ends_what_is_under_way(llama: BaseModel) -> None:
    engine = Engine(llama, EngineConfig(num_rows=1))
    answers: list[list[TokenEvent]] = [[], []]
    with llama.rows(None):
        for events in answers:
            engine.submit(GenerationRequest(prompt=[12], max_tokens=100), events.append)
        closing = threading.Thread(target=engine.close)
        closing.start()
        while not engine._closing:
            threading.Event().wait(0.001)
    closing.join(30)
    assert [events[-1].finish for events in answers] == ["cancelled", "cancelled"]
    with pytest.raises(Stopped):
        engine.submit(GenerationRequest(prompt=[12]), answers[0].append)


@pytest.mark.parametrize("tokens, read", [(1, 16), (17, 32), (35, 48), (70, 80), (97, 112)])
def test_prompts_are_read_at_one_of_few_lengths(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tokens: int, read: int
) -> None:
    lengths: list[int] = []
    passes = engine._passes.logits

    def seen(new: NewTokens, *rest: Any) -> Tensor:
        lengths.append(new.tokens.shape[1])
        return passes(new, *rest)

    monkeypatch.setattr(engine._passes, "logits", seen)
    engine.generate(GenerationRequest(prompt=[12] * tokens, max_tokens=1))
    assert lengths == [read]
