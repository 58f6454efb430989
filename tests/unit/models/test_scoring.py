from __future__ import annotations

from typing import Any

import pytest
import torch

from cambium.core.errors import DataError
from cambium.models.base import BaseModel, stack_rows
from cambium.models.scoring import ScoreRow, score


def tokens(seed: int, length: int, vocabulary: int = 512) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(12, vocabulary, (length,), generator=generator).tolist()


def mixed_rows(base: BaseModel, make_lora: Any, vocabulary: int) -> list[ScoreRow]:
    stacks = [(), (make_lora(base, seed=1),), (make_lora(base, seed=2, r=16), make_lora(base))]
    lengths = [2, 33, 7, 34, 129, 12, 40]
    return [
        ScoreRow(tokens=tokens(i, n, vocabulary), adapters=stacks[i % 3])
        for i, n in enumerate(lengths)
    ]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_scores_are_those_of_a_plain_forward(name: str, request: Any, make_lora: Any) -> None:
    base: BaseModel = request.getfixturevalue(name)
    rows = mixed_rows(base, make_lora, 512)
    for row, found in zip(rows, score(base, rows), strict=True):
        ids = torch.tensor([row.tokens])
        with torch.inference_mode(), base.rows(stack_rows([row.adapters])) as model:
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
        expected = torch.log_softmax(logits, dim=-1).gather(1, ids[0, 1:, None])[:, 0]
        assert found.shape == (len(row.tokens) - 1,)
        assert torch.allclose(found, expected, atol=1e-4)


def test_a_score_does_not_depend_on_its_neighbours(bundled: BaseModel, make_lora: Any) -> None:
    rows = mixed_rows(bundled, make_lora, 8192)
    company = score(bundled, rows)
    for row, found in zip(rows, company, strict=True):
        assert torch.equal(score(bundled, [row])[0], found)


def test_reduce_sees_all_of_a_rows_distribution(llama: BaseModel) -> None:
    rows = [ScoreRow(tokens=tokens(1, 20)), ScoreRow(tokens=tokens(2, 50))]
    sums = score(llama, rows, reduce=lambda logprobs, targets: logprobs.exp().sum(1))
    assert [s.shape for s in sums] == [(19,), (49,)]
    assert all(torch.allclose(s, torch.ones_like(s), atol=1e-5) for s in sums)
    own = score(llama, rows, reduce=lambda lp, targets: lp[torch.arange(len(targets)), targets])
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(own, score(llama, rows), strict=True)
    )


@pytest.mark.parametrize("length", [0, 1, 130])
def test_what_cannot_be_scored_whole_is_refused(llama: BaseModel, length: int) -> None:
    with pytest.raises(DataError, match=f"{length} tokens"):
        score(llama, [ScoreRow(tokens=tokens(1, 20)), ScoreRow(tokens=tokens(1, length))])
    assert score(llama, []) == []
