"""Prompts of completions: text or token ids, as they are echoed and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cambium.models.adapter import Adapter
from cambium.models.base import BaseModel
from cambium.models.chat import encode_document
from cambium.models.scoring import score
from cambium.serve.api.openai.choices import ShownToken
from cambium.serve.api.openai.errors import refusal
from cambium.serve.api.openai.token_texts import TextStream, TokenTexts

PromptValue = str | list[str] | list[int] | list[list[int]]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt as the model reads it and as it is echoed.

    Args:
        ids: what the model reads.
        num_hidden: begin tokens added in front, which are not echoed.
        offsets: where each echoed token begins in `text`, in characters.
    """

    ids: tuple[int, ...]
    text: str
    offsets: tuple[int, ...]
    num_hidden: int = 0

    def shown(self) -> tuple[ShownToken, ...]:
        """Returns the echoed tokens without log-probabilities."""
        ids = self.ids[self.num_hidden :]
        pairs = zip(ids, self.offsets, strict=True)
        return tuple(ShownToken(token_id=i, offset=at, logprob=None) for i, at in pairs)


def read_prompts(
    value: PromptValue, tokenizer: Any, texts: TokenTexts, *, num_words: int
) -> list[Prompt]:
    """Returns the prompts that `value` holds; token ids are taken exactly as given.

    Raises:
        DataError: no prompt, an empty one, or a token id that the model does not have.
    """
    if isinstance(value, str):
        return [_from_text(value, tokenizer, texts)]
    if not value:
        raise refusal("prompt is an empty list", param="prompt", mend="send a prompt")
    rows: list[Any] = [value] if isinstance(value[0], int) else list(value)
    return [
        _from_text(row, tokenizer, texts)
        if isinstance(row, str)
        else _from_ids(row, texts, num_words=num_words)
        for row in rows
    ]


def score_prompts(
    base: BaseModel, prompts: Sequence[Prompt], *, adapters: tuple[Adapter, ...], num_top: int
) -> list[tuple[ShownToken, ...]]:
    """Returns the echoed tokens of each prompt with their log-probabilities.

    The first is None, also where a hidden begin token could have predicted it, as OpenAI has it.
    """

    def with_rivals(logprobs: Tensor, targets: Tensor) -> Tensor:
        own = logprobs.gather(1, targets[:, None])
        values, ids = logprobs.topk(num_top)
        return torch.cat([own.double(), values.double(), ids.double()], dim=1)

    long_enough = [i for i, prompt in enumerate(prompts) if len(prompt.ids) > 1]
    ids = [prompts[i].ids for i in long_enough]
    scores = score(base, ids, adapters=adapters, reduce=with_rivals)
    scored = dict(zip(long_enough, scores, strict=True))
    return [
        _with_scores(prompt, scored[i].tolist() if i in scored else [], num_top)
        for i, prompt in enumerate(prompts)
    ]


def _with_scores(prompt: Prompt, scores: list[list[float]], num_top: int) -> tuple[ShownToken, ...]:
    shown = list(prompt.shown())
    for at in range(1, len(shown)):
        own, *rest = scores[at + prompt.num_hidden - 1]
        top = tuple((int(i), v) for v, i in zip(rest[:num_top], rest[num_top:], strict=True))
        token = shown[at]
        shown[at] = ShownToken(token_id=token.token_id, offset=token.offset, logprob=own, top=top)
    return tuple(shown)


def _from_text(text: str, tokenizer: Any, texts: TokenTexts) -> Prompt:
    ids = encode_document(tokenizer, text)
    num_hidden = 0 if tokenizer.bos_token_id is None else 1
    decoded, offsets = _offsets(ids[num_hidden:], texts)
    # Some tokenizers put a space before every text, which is none of the caller's characters.
    lead = 1 if decoded.startswith(" ") and not text.startswith(" ") else 0
    inside = tuple(min(max(at - lead, 0), len(text)) for at in offsets)
    return Prompt(ids=tuple(ids), text=text, offsets=inside, num_hidden=num_hidden)


def _from_ids(ids: list[int], texts: TokenTexts, *, num_words: int) -> Prompt:
    for token_id in ids:
        if not 0 <= token_id < num_words:
            raise refusal(f"prompt holds token id {str(token_id)[:40]}", param="prompt",
                          mend=f"token ids are 0 to {num_words - 1}")  # fmt: skip
    text, offsets = _offsets(ids, texts)
    return Prompt(ids=tuple(ids), text=text, offsets=tuple(offsets))


def _offsets(ids: Sequence[int], texts: TokenTexts) -> tuple[str, list[int]]:
    stream = TextStream(texts)
    pieces, offsets = [], []
    for token_id in ids:
        offsets.append(stream.num_chars)
        pieces.append(stream.feed(token_id))
    return "".join([*pieces, stream.finish()]), offsets
