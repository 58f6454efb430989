from __future__ import annotations

import pytest

from cambium.core.errors import Stopped
from cambium.models.base import BaseModel
from cambium.models.breaking_off import breakable, check_going_on
from cambium.models.encoder import SentenceEncoder
from cambium.models.engine import Engine, EngineConfig, GenerationRequest, Ticket
from cambium.models.scoring import score
from cambium.models.writing import write


class Asked:
    """Says yes so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Stopped("enough")


def test_scoring_ends_before_the_pass_that_is_refused(llama: BaseModel) -> None:
    texts = [list(range(12, 12 + length)) for length in range(20, 100)]
    with breakable(Asked(10**6)) as _:
        assert len(score(llama, texts)) == len(texts)
    asked = Asked(1)
    with pytest.raises(Stopped), breakable(asked):
        score(llama, texts)
    assert asked.left == -1  # and nothing tried once more
    assert len(score(llama, texts)) == len(texts)  # beyond the block nobody is asked


def test_what_was_to_be_written_for_it_is_written_no_more(
    llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, tickets = Engine(llama, EngineConfig(num_rows=2)), list[Ticket]()
    submit = engine.submit
    monkeypatch.setattr(
        engine, "submit", lambda *given: (tickets.append(t := submit(*given)), t)[1]
    )
    requests = [GenerationRequest(prompt=(12, 13), max_tokens=4 + i) for i in range(8)]
    try:
        with pytest.raises(Stopped), breakable(Asked(1)):
            write(engine, requests)
        assert len(tickets) == len(requests) and all(t.cancelled for t in tickets)
    finally:
        engine.close()


def test_embedding_ends_between_two_batches() -> None:
    with pytest.raises(Stopped), breakable(Asked(1)):
        SentenceEncoder().embed([f"text {i}" for i in range(40)])


def test_a_block_within_another_asks_its_own() -> None:
    with pytest.raises(Stopped), breakable(Asked(0)):
        with breakable(Asked(1)):
            check_going_on()
        check_going_on()
