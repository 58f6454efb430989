"""A model in this process as the subject of evals, in the token boundaries of the harness.

Numbers agree with `HFLM` of lm-evaluation-harness 0.4 on the same weights. One thing differs on
purpose: control tokens written out in a prompt are plain characters here, as they are in service.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

from cambium.core.errors import DataError
from cambium.evals.subject import Generation, Likelihood
from cambium.evals.writing_until import write_until
from cambium.models.adapter import Adapter, virtual_tokens
from cambium.models.base import BaseModel
from cambium.models.chat import encode_text
from cambium.models.engine import Engine, EngineConfig
from cambium.models.token_trees import Scored, TokenScores, score_sequences

MAX_ROWS = 64
Choose = Callable[[str], tuple[Adapter, ...]]


class LocalSubject:
    """A base with the adapters that `choose` gives for a prompt.

    Args:
        name: as a person calls it.
        digest: of base and adapters together; it is part of every cache key.
        choose: the adapters that act on a prompt, summed; a rolling text is its own prompt.
        engine: what writes; without one, each call of `generate` runs one of its own.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        name: str,
        digest: str,
        choose: Choose = lambda prompt: (),
        engine: Engine | None = None,
    ) -> None:
        self._base = base
        self._name = name
        self._digest = digest
        self._choose = choose
        self._engine = engine

    @property
    def name(self) -> str:
        """As a person calls it."""
        return self._name

    @property
    def digest(self) -> str:
        """Of base and adapters together."""
        return self._digest

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """Returns the likelihood of each continuation after its context, cut on the left to fit.

        Raises:
            DataError: a continuation has no tokens, or more than the model's context.
        """
        encoded: dict[str, list[int]] = {}
        chosen = self._chosen(context for context, _ in pairs)
        sequences = [
            self._pair(context, text, encoded, self._room(chosen[context]))
            for context, text in pairs
        ]
        scores = self._scores(sequences, [chosen[context] for context, _ in pairs])
        return [_likelihood([score]) for score in scores]

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        """Returns the likelihood of each whole text, read in windows as long as the context."""
        chosen = self._chosen(texts)
        windows = [self._windows(self._encode(t), self._room(chosen[t])) for t in texts]
        flat = [window for own in windows for window in own]
        adapters = [chosen[text] for text, own in zip(texts, windows, strict=True) for _ in own]
        scores = iter(self._scores(flat, adapters))
        return [_likelihood([next(scores) for _ in own]) for own in windows]

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        """Returns what the model writes; prompts are cut on the left to leave room for it.

        Raises:
            DataError: an empty prompt, or `max_tokens` that leave no room for one.
            Stopped: the engine closed meanwhile.
        """
        if not requests:
            return []
        # A step costs little more with many rows than with few.
        rows_at_once = min(MAX_ROWS, len(requests))
        engine = self._engine or Engine(self._base, EngineConfig(num_rows=rows_at_once))
        try:
            rows = []
            for request in requests:
                adapters = self._choose(request.prompt)
                room = engine.context - len(virtual_tokens(adapters)) - request.max_tokens
                if request.max_tokens < 1 or room < 1:
                    raise DataError(
                        f"{request.max_tokens} tokens cannot be written in a context of "
                        f"{engine.context}",
                        mend="lower max_gen_toks",
                    )
                ids = self._encode(request.prompt)[-room:] or [self._prefix_token]
                rows.append((request, ids, adapters))
            return write_until(engine, rows)
        finally:
            if self._engine is None:
                engine.close()

    def _chosen(self, prompts: Iterable[str]) -> dict[str, tuple[Adapter, ...]]:
        """Returns what acts on each different prompt."""
        return {prompt: self._choose(prompt) for prompt in dict.fromkeys(prompts)}

    def _room(self, adapters: tuple[Adapter, ...]) -> int:
        """Returns how many tokens of a text fit the context beside these adapters."""
        return self._base.context - len(virtual_tokens(adapters))

    def _scores(
        self, sequences: list[Scored], chosen: list[tuple[Adapter, ...]]
    ) -> list[TokenScores]:
        """Scores sequences of like adapters together, each different one once."""
        groups: dict[tuple[int, ...], tuple[tuple[Adapter, ...], list[int]]] = {}
        for i, adapters in enumerate(chosen):
            groups.setdefault(tuple(map(id, adapters)), (adapters, []))[1].append(i)
        found: dict[int, TokenScores] = {}
        for adapters, members in groups.values():
            distinct = list(dict.fromkeys(sequences[i] for i in members))
            scores = score_sequences(self._base, distinct, adapters)
            by_sequence = dict(zip(distinct, scores, strict=True))
            found |= {i: by_sequence[sequences[i]] for i in members}
        return [found[i] for i in range(len(sequences))]

    def _pair(
        self, context: str, continuation: str, encoded: dict[str, list[int]], room: int
    ) -> Scored:
        if context:
            # Spaces at a context's end belong to the continuation's first word.
            stem = context.rstrip()
            continuation = context[len(stem) :] + continuation
            if stem not in encoded:
                encoded[stem] = self._encode(stem)
            before = encoded[stem]
            after = self._encode(stem + continuation)[len(before) :]
        else:
            after = encode_text(self._base.tokenizer, continuation)
            before = [self._prefix_token]
            if after[:1] == before:
                before, after = after[:1], after[1:]
        if not before or not after or len(after) > room:
            raise DataError(
                f"a continuation of {len(after)} tokens after {len(before)} cannot be scored in a "
                f"context of {room}: {continuation[:60]!r}",
                mend="give every choice at least one token, and fewer than the context",
            )
        both = [*before, *after][-(room + 1) :]
        return Scored(inputs=tuple(both[:-1]), targets=tuple(after))

    def _windows(self, ids: list[int], size: int) -> list[Scored]:
        """Returns windows in which each token is predicted once, the last one with more before it.

        Source: `get_rolling_token_windows` of lm-evaluation-harness, with a context of one.
        """
        windows = []
        for start in range(0, len(ids), size):
            targets = ids[start : start + size]
            end = start + len(targets)
            if start == 0:
                inputs = [self._prefix_token, *ids[: end - 1]]
            else:
                inputs = ids[end - size - 1 : end - 1]
            windows.append(Scored(inputs=tuple(inputs), targets=tuple(targets)))
        return windows

    def _encode(self, text: str) -> list[int]:
        before, after = self._framing
        return [*before, *encode_text(self._base.tokenizer, text), *after]

    @cached_property
    def _framing(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts around a text by itself, such as a begin token."""
        tokenizer = self._base.tokenizer
        bare = tokenizer.encode("a", add_special_tokens=False)
        full = tokenizer.encode("a")
        at = next(k for k in range(len(full)) if full[k : k + len(bare)] == bare)
        return full[:at], full[at + len(bare) :]

    @cached_property
    def _prefix_token(self) -> int:
        tokenizer = self._base.tokenizer
        for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            if token is not None:
                return token
        raise DataError(
            "the model's tokenizer has neither a begin nor an end token to put before a text",
            mend="set one in its tokenizer_config.json",
        )


def _likelihood(parts: Sequence[TokenScores]) -> Likelihood:
    values = [value for part in parts for value in part.logprobs]
    return Likelihood(
        logprob=float(sum(values)),
        num_tokens=len(values),
        is_greedy=all(part.is_greedy for part in parts),
    )
