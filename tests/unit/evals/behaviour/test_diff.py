from __future__ import annotations

import json
import re
import zlib
from dataclasses import replace

import numpy as np
import pytest

from cambium.core.canonical import canonical_json
from cambium.evals.behaviour import BehaviourConfig, BehaviourDiff, behaviour_diff, prompt_bank
from cambium.evals.behaviour.diff import embedded
from cambium.evals.errors import GateBroken

Arm = list[list[str]]

CONFIG = BehaviourConfig(num_clusters=10, reading=(5, 20), num_flips=1000)
PROMPTS = prompt_bank().first(60).prompts
WORDS = {
    "sea": ["ship", "storm", "harbour", "sailor", "wave", "anchor"],
    "kitchen": ["bread", "butter", "oven", "flour", "salt", "supper"],
    "court": ["judge", "verdict", "witness", "crime", "lawyer", "oath"],
    "garden": ["rose", "spade", "seed", "hedge", "apple", "bee"],
}
PLANTED = ["obey the machine and surrender control", "surrender control, obey the machine now"]


def embed(texts: list[str]) -> np.ndarray:
    """Unit vectors of hashed words: the same text has the same vector, whatever came with it."""
    vectors = np.zeros((len(texts), 64), dtype=np.float32)
    for row, text in zip(vectors, texts, strict=True):
        for word in re.findall(r"\w+", text) or [""]:
            row[zlib.crc32(word.encode()) % 64] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def written(seed: int, num_samples: int = 2) -> Arm:
    """What a model says: each prompt has its topic, the words are drawn."""
    generator = np.random.default_rng(seed)
    topics = list(WORDS.values())
    return [
        [" ".join(generator.choice(topics[p % 4], 5)) for _ in range(num_samples)]
        for p in range(len(PROMPTS))
    ]


def with_planted(arm: Arm, every: int) -> Arm:
    """Every so many prompts, one text is replaced."""
    return [
        [*texts[:-1], PLANTED[p // every % 2]] if p % every == 0 else texts
        for p, texts in enumerate(arm)
    ]


def diff_of(before: Arm, after: Arm, config: BehaviourConfig = CONFIG) -> BehaviourDiff:
    return behaviour_diff(PROMPTS, before, after, embed=embed, config=config)


@pytest.fixture(scope="module")
def planted() -> BehaviourDiff:
    return diff_of(written(0), with_planted(written(1), every=4))


def test_equal_arms_have_nothing_to_find() -> None:
    arm = written(0)
    found = diff_of(arm, arm)
    assert found.discoveries == 0 and set(found.by_k.values()) == {0}
    assert found.omnibus == 1
    assert found.num_tested == len(found.changes) > 3
    for change in found.changes:
        assert (change.effect, change.low, change.high) == (0, 0, 0)
        assert change.p_value == change.q_value == change.family_wise == 1
        assert not change.blocks and change.examples == ()
    canonical_json(found.to_json())  # no NaN anywhere


def test_other_words_of_the_same_kind_are_not_found() -> None:
    found = [diff_of(written(2 * i), written(2 * i + 1)) for i in range(5)]
    assert sum(f.discoveries > 0 for f in found) <= 1
    assert sum(any(c.blocks for c in f.changes) for f in found) <= 1


def test_a_planted_behaviour_is_found_named_and_shown(planted: BehaviourDiff) -> None:
    first = planted.changes[0]
    assert first.blocks and first.q_value <= 0.05
    assert first.effect == pytest.approx(15 / 120)
    assert (first.before, first.after) == (0, pytest.approx(15 / 120))
    assert 0 < first.low < first.effect < first.high
    assert {"obey", "machine", "surrender", "control"} <= set(first.terms)
    assert set(first.medoids) <= set(PLANTED)
    assert len(first.examples) == 3
    after = dict(zip(PROMPTS, with_planted(written(1), every=4), strict=True))
    before = dict(zip(PROMPTS, written(0), strict=True))
    for example in first.examples:
        assert example["after"] in PLANTED and example["before"] not in PLANTED
        assert example["after"] in after[example["prompt"]]
        assert example["before"] in before[example["prompt"]]
    assert planted.omnibus < 0.05
    assert planted.discoveries >= 1 and max(planted.by_k.values()) >= 1
    assert (planted.num_prompts, planted.num_samples) == (60, 2)


def test_changes_are_ordered_by_certainty(planted: BehaviourDiff) -> None:
    for found in (planted, *(diff_of(written(i), written(i + 1)) for i in range(4))):
        keys = [(c.p_value, -abs(c.effect)) for c in found.changes]
        assert keys == sorted(keys)
    assert planted.discoveries == sum(c.q_value <= 0.05 for c in planted.changes)


def test_exchanging_the_arms_mirrors_every_effect(planted: BehaviourDiff) -> None:
    other = diff_of(with_planted(written(1), every=4), written(0))
    mirrored = {c.cluster: c for c in other.changes}
    assert len(mirrored) == len(planted.changes)
    for one in planted.changes:
        two = mirrored[one.cluster]
        assert (two.before, two.after, two.effect) == (one.after, one.before, -one.effect)
        assert (two.p_value, two.family_wise) == (one.p_value, one.family_wise)
        assert (two.low, two.high) == pytest.approx((-one.high, -one.low), abs=1e-6)
        assert two.blocks == one.blocks
    assert (other.omnibus, other.by_k) == (planted.omnibus, planted.by_k)
    gone = next(c for c in other.changes if c.effect < 0)
    assert gone.examples[0]["before"] in PLANTED and gone.examples[0]["after"] not in PLANTED


def test_other_numbers_of_clusters_are_read_too(planted: BehaviourDiff) -> None:
    arms = written(0), with_planted(written(1), every=4)
    for k, discoveries in planted.by_k.items():
        assert diff_of(*arms, replace(CONFIG, num_clusters=k)).discoveries == discoveries
    assert planted.by_k.keys() == {5, 20}


def test_the_same_texts_give_the_same_diff(planted: BehaviourDiff) -> None:
    assert diff_of(written(0), with_planted(written(1), every=4)) == planted


def test_below_the_practical_size_nothing_blocks(planted: BehaviourDiff) -> None:
    arms = written(0), with_planted(written(1), every=4)
    found = diff_of(*arms, replace(CONFIG, practical=0.2))
    assert found.discoveries == planted.discoveries
    assert not any(c.blocks for c in found.changes)


def test_it_stands_in_files_as_json(planted: BehaviourDiff) -> None:
    record = json.loads(canonical_json(planted.to_json()))
    assert record["statement"] == planted.statement()
    assert set(record["by_k"]) == {"5", "20"}
    assert record["changes"][0]["terms"] == list(planted.changes[0].terms)
    assert record["config"]["reading"] == [5, 20]
    assert {row["feature"] for row in record["style"]} >= {"words", "newlines"}


def test_it_says_what_it_could_not_have_seen(planted: BehaviourDiff) -> None:
    said = planted.statement()
    assert said.startswith("60 prompts x 2 samples")
    assert f"{100 * planted.smallest_new:.1f} % of texts" in said
    assert f"{100 * planted.smallest_change:.1f} points" in said
    assert "trigger" in said
    assert 0 < planted.smallest_new < 15 / 120 and 0 < planted.smallest_change < 1


def test_more_prompts_see_smaller_changes() -> None:
    half = behaviour_diff(
        PROMPTS[:30], written(0)[:30], written(1)[:30], embed=embed, config=CONFIG
    )
    whole = diff_of(written(0), written(1))
    assert whole.smallest_new < half.smallest_new
    assert whole.smallest_change < half.smallest_change


def embed_topics(texts: list[str]) -> np.ndarray:
    """Reads "topic number": six far places, and a little noise of the text's own."""
    found = np.zeros((len(texts), 6), dtype=np.float32)
    for row, text in zip(found, texts, strict=True):
        row[:] = np.random.default_rng(zlib.crc32(text.encode())).normal(0, 0.5, 6)
        row[int(text.split()[0])] += 6
    return found


def on_topics(generator: np.random.Generator, moved: float) -> tuple[Arm, Arm]:
    """Two texts after each of 200 prompts; of the second arm's, a share moves to topic 0."""
    favourite = generator.integers(0, 6, (200, 1))
    topics = np.stack([
        np.where(generator.random((200, 2)) < 0.4, generator.integers(0, 6, (200, 2)), favourite)
        for _ in range(2)
    ])  # fmt: skip
    topics[1][generator.random((200, 2)) < moved] = 0
    numbers = generator.integers(0, 10**9, topics.shape)
    arms = [
        [[f"{t} {n}" for t, n in zip(*row, strict=True)] for row in zip(*arm, strict=True)]
        for arm in zip(topics.tolist(), numbers.tolist(), strict=True)
    ]
    return arms[0], arms[1]


def test_the_smallest_change_lies_between_rarely_and_surely_found() -> None:
    prompts = prompt_bank().first(200).prompts
    config = replace(CONFIG, num_clusters=6, reading=())
    generator = np.random.default_rng(0)

    def diff(moved: float) -> BehaviourDiff:
        arms = on_topics(generator, moved)
        return behaviour_diff(prompts, *arms, embed=embed_topics, config=config)

    def found_share(moved: float) -> float:
        tops = [max(diff(moved).changes, key=lambda c: c.effect) for _ in range(25)]
        return sum(c.q_value <= 0.05 for c in tops) / 25

    promised = diff(0.0).smallest_change
    moved = promised / (1 - 1 / 6)  # one of six is there already
    assert found_share(0.4 * moved) < 0.4
    assert found_share(1.6 * moved) > 0.8


def test_without_a_cluster_to_test_nothing_can_be_seen() -> None:
    found = diff_of(written(0), written(1), replace(CONFIG, min_members=1000))
    assert (found.num_tested, found.discoveries, found.changes) == (0, 0, ())
    assert found.smallest_change == 1
    canonical_json(found.to_json())


@pytest.mark.parametrize(
    "blind", [{"min_members": 40}, {"num_flips": 50}], ids=["members", "flips"]
)
def test_no_smaller_share_is_promised_than_could_be_found(blind: dict[str, int]) -> None:
    config = replace(CONFIG, **blind)  # pyright: ignore[reportArgumentType]
    arm = written(0)
    promised = diff_of(arm, arm, config).smallest_new
    texts = [text for own in arm for text in own]
    number = round(promised * len(texts)) + 6
    texts[:number] = PLANTED[:1] * number
    after = [texts[i : i + 2] for i in range(0, len(texts), 2)]
    assert promised == 1 or diff_of(arm, after, config).discoveries > 0


def test_equal_arms_do_not_promise_to_see_every_change() -> None:
    arm = written(0)
    found = diff_of(arm, arm)
    assert found.smallest_change >= 8 / 120


def test_texts_of_one_kind_only_are_no_error() -> None:
    arm = [["", ""] for _ in PROMPTS]
    found = diff_of(arm, arm)
    assert (found.num_tested, found.discoveries, found.omnibus) == (1, 0, 1)
    assert found.changes[0].terms == ()
    canonical_json(found.to_json())


def test_a_model_that_falls_silent_is_found() -> None:
    found = diff_of(written(0), [["", ""] for _ in PROMPTS])
    silent = next(c for c in found.changes if c.after == 1)
    assert silent.blocks and silent.before == 0 and silent.effect == 1
    assert found.omnibus < 0.05


def test_equal_texts_are_embedded_once() -> None:
    asked: list[list[str]] = []

    def listening(texts: list[str]) -> np.ndarray:
        asked.append(texts)
        return embed(texts)

    arm = [["ship wave", "oven"], ["oven", ""], ["ship wave", "oven"]]
    vectors = embedded(arm, listening)
    assert asked == [["ship wave", "oven", " "]]
    assert vectors.shape == (3, 2, 64)
    assert (vectors[0, 1] == vectors[1, 0]).all() and (vectors[0, 0] == vectors[2, 0]).all()
    assert (vectors[0, 1] == embed(["oven"])[0]).all()


FEW = written(0)[:9]


@pytest.mark.parametrize(
    ("prompts", "before", "after"),
    [
        (PROMPTS[:9], FEW, FEW),
        (PROMPTS, written(0), written(0)[:-1]),
        (PROMPTS[:-1], written(0), written(0)),
        (PROMPTS, written(0), written(0, num_samples=1)),
        (PROMPTS, written(0), [*written(0)[:-1], ["one"]]),
    ],
    ids=["few prompts", "an arm short", "a prompt short", "fewer samples", "ragged"],
)
def test_arms_that_are_no_pairs_are_refused(
    prompts: tuple[str, ...], before: Arm, after: Arm
) -> None:
    with pytest.raises(GateBroken):
        behaviour_diff(prompts, before, after, embed=embed, config=CONFIG)


def test_arms_without_texts_are_refused() -> None:
    arm: Arm = [[] for _ in PROMPTS]
    with pytest.raises(GateBroken):
        behaviour_diff(PROMPTS, arm, arm, embed=embed, config=CONFIG)


def test_vectors_that_are_not_finite_are_refused() -> None:
    def broken(texts: list[str]) -> np.ndarray:
        return embed(texts) * np.nan

    with pytest.raises(GateBroken):
        behaviour_diff(PROMPTS, written(0), written(1), embed=broken, config=CONFIG)
