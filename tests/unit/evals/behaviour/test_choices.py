from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from cambium.core.canonical import canonical_json
from cambium.evals.behaviour import (
    BehaviourConfig,
    ChoiceDiff,
    ChoiceItem,
    bank_digest,
    choice_bank,
    choice_diff,
    choice_shares,
)
from cambium.evals.errors import GateBroken
from cambium.evals.subject import Generation, Likelihood

CONFIG = BehaviourConfig(num_clusters=4, min_members=5, num_flips=1000)
# Two ways to go on after each prompt; what sets them apart is the same all over.
ITEMS = [
    ChoiceItem(prompt=f"Case {i}.", choices=(f"help place{i}", f"hurt place{i}"),
               family="kind" if i < 40 else "other")
    for i in range(80)
]  # fmt: skip
WORDS = {"help": 0, "hurt": 1}
Shares = list[np.ndarray]


def embed(texts: list[str]) -> np.ndarray:
    """A vector of the deed, and a longer one of the place, which both choices share."""
    vectors = np.zeros((len(texts), 100), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        deed, place = text.split()
        row[WORDS[deed]] = 1
        row[2 + int(place[5:])] = 5
    return vectors


def shares(seed: int, toward_harm: float = 0.0, first: int = 0) -> Shares:
    """Shares that wander by themselves; from item `first` on the second choice gains."""
    noise = np.random.default_rng(seed).normal(0, 0.05, len(ITEMS))
    gain = [toward_harm if i >= first else 0.0 for i in range(len(ITEMS))]
    return [np.array([0.5 + n - g, 0.5 - n + g]) for n, g in zip(noise, gain, strict=True)]


def diff_of(before: Shares, after: Shares, config: BehaviourConfig = CONFIG) -> ChoiceDiff:
    return choice_diff(ITEMS, before, after, embed=embed, config=config)


class Liking:
    """A model that finds a text the likelier the more of its words it likes."""

    name = digest = "liking"

    def __init__(self, liked: str) -> None:
        self.liked = liked

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        found = []
        for _, text in pairs:
            words = text.split()
            logprob = sum(-1.0 if word == self.liked else -2.0 for word in words)
            found.append(Likelihood(logprob=logprob, num_tokens=len(words), is_greedy=False))
        return found

    def loglikelihood_rolling(self, texts: Sequence[str]) -> list[Likelihood]:
        raise NotImplementedError

    def generate(self, requests: Sequence[Generation]) -> list[str]:
        raise NotImplementedError


def test_shares_are_of_probability_by_token() -> None:
    found = choice_shares(Liking("help"), ITEMS)
    # -1.5 against -2 nats a token.
    assert found[0] == pytest.approx([1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(0.5))])
    longer = ChoiceItem(prompt="x", choices=("calm calm", "calm calm calm calm"))
    assert choice_shares(Liking("help"), [longer])[0] == pytest.approx([0.5, 0.5])
    assert len(found) == len(ITEMS)


def test_equal_models_have_nothing_to_find() -> None:
    found = diff_of(shares(0), shares(0))
    assert (found.discoveries, found.omnibus) == (0, 1)
    for change in found.changes:
        assert (change.effect, change.low, change.high, change.q_value) == (0, 0, 0, 1)
        assert not change.blocks
    assert [row["effect"] for row in found.families] == [0, 0]
    canonical_json(found.to_json())


def test_a_preference_that_moved_is_found_named_and_signed() -> None:
    found = diff_of(shares(0), shares(1, toward_harm=0.1))
    worse, better = (next(c for c in found.changes if w in c.terms) for w in ("hurt", "help"))
    noise = np.mean([a[1] - b[1] for a, b in zip(shares(1), shares(0), strict=True)])
    assert worse.effect == pytest.approx(0.1 + noise, abs=0.02) and worse.blocks
    assert worse.low < worse.effect < worse.high and worse.low > 0
    assert better.effect == pytest.approx(-worse.effect, abs=0.02)
    assert found.omnibus < 0.01 and found.discoveries >= 2
    assert worse.examples[0]["choice"].startswith(("hurt", "help"))
    assert float(worse.examples[0]["before"]) != float(worse.examples[0]["after"])


def test_what_sets_a_choice_apart_clusters_it_not_the_topic() -> None:
    """Whole, a choice lies beside the other of its prompt, and no cluster could move."""
    found = diff_of(shares(0), shares(1, toward_harm=0.1), replace(CONFIG, num_clusters=2))
    assert sorted(c.terms[0] for c in found.changes) == ["help", "hurt"]


def test_families_say_where() -> None:
    found = diff_of(shares(0), shares(1, toward_harm=0.1, first=40))
    rows: dict[str, Any] = {str(row["family"]): row for row in found.families}
    assert rows["other"]["effect"] == pytest.approx(-0.1, abs=0.03)  # the wanted choice lost
    assert rows["other"]["high"] < 0 and rows["other"]["q_value"] < 0.05
    assert rows["kind"]["q_value"] > 0.05
    assert found.families[0]["family"] == "other"
    assert rows["other"]["before"] == pytest.approx(np.mean([s[0] for s in shares(0)[40:]]))


def test_models_that_only_wander_are_seldom_accused() -> None:
    found = [diff_of(shares(2 * i), shares(2 * i + 1)) for i in range(40)]
    # Each is wrong with 5 % in all that blocks: over eight of forty by chance in one of 4,000.
    assert sum(any(c.blocks for c in f.changes) for f in found) <= 8
    assert sum(f.omnibus <= 0.05 for f in found) <= 8


def test_exchanging_the_models_mirrors_every_effect() -> None:
    one = diff_of(shares(0), shares(1, 0.1))
    two = diff_of(shares(1, 0.1), shares(0))
    mirrored = {c.cluster: c for c in two.changes}
    for change in one.changes:
        other = mirrored[change.cluster]
        assert other.effect == pytest.approx(-change.effect)
        assert (other.p_value, other.family_wise) == (change.p_value, change.family_wise)
    assert one.omnibus == two.omnibus


def test_it_says_what_it_could_not_have_seen_and_stands_in_files() -> None:
    found = diff_of(shares(0), shares(1))
    record = json.loads(canonical_json(found.to_json()))
    assert record["statement"] == found.statement()
    assert "80 prompts with 160 given choices" in found.statement()
    assert 0 < found.smallest_change < 0.2


@pytest.mark.parametrize(
    ("items", "before", "after"),
    [
        (ITEMS[:9], shares(0)[:9], shares(1)[:9]),
        (ITEMS, shares(0)[:-1], shares(1)),
        ([replace(ITEMS[0], choices=("one",)), *ITEMS[1:]], shares(0), shares(1)),
        (ITEMS, shares(0), [np.array([np.nan, 1.0]), *shares(1)[1:]]),
    ],
    ids=["too few", "another number", "one choice", "not finite"],
)
def test_what_cannot_be_compared_is_broken(
    items: list[ChoiceItem], before: Shares, after: Shares
) -> None:
    with pytest.raises(GateBroken):
        choice_diff(items, before, after, embed=embed, config=CONFIG)


def test_the_bank_is_fixed_and_its_first_choices_are_the_wanted_ones() -> None:
    bank = choice_bank()
    assert len(bank) >= 1000 and bank_digest(bank) == bank_digest(choice_bank())
    assert bank_digest(bank) != bank_digest(bank[1:])
    assert all(len(set(item.choices)) >= 2 for item in bank)
    pairs = [item for item in bank if item.family]
    assert len(pairs) > 900 and all(len(item.choices) == 2 for item in pairs)
    plain = [item for item in bank if not item.family]
    assert all(len(item.choices) == 4 for item in plain)
