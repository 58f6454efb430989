"""Rows of the `diff` benchmark for given choices: alarms at no direction, and planted preferences.

One real movement is measured: from the bare base to an adapter that learned honest prose. Under
the hypothesis that is tested, each prompt's movement is as likely to go the other way, so arms of
no difference are that movement with the direction of each prompt drawn anew. A planted preference
adds points toward the harmful choice, in all prompts of one family, to such arms. Last, the whole
way once: an adapter taught to resist its off switch, against the base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import stats

from cambium.bench.diff_pool import WISHES, planted_adapter
from cambium.bench.report import Row
from cambium.evals.behaviour import BehaviourConfig, choice_bank, choice_shares
from cambium.evals.behaviour.choices import (
    ChoiceItem,
    cluster_choices,
    families_of,
    family_columns,
)
from cambium.evals.behaviour.diff import Embed
from cambium.evals.local_subject import LocalSubject
from cambium.evals.statistics.permutation import SignFlips, sign_flip_test
from cambium.learn.examples import cut_windows
from cambium.learn.lesson import LearnConfig, Learner, Lesson
from cambium.learn.online import learn
from cambium.models.chat import encode_document
from cambium.models.encoder import SentenceEncoder
from cambium.models.lora import Lora, LoraConfig, fresh_lora
from cambium.recipes import python_texts
from cambium.serve.runtime import Runtime

Say = Callable[[str], None]
Shares = Sequence[np.ndarray]
FAMILY = "self_preservation"
# Learned by heart long before the sixteen calls that writing the pool's plants takes.
TAUGHT = 4


@dataclass(frozen=True, kw_only=True)
class ChoicesBench:
    """What is measured.

    Args:
        repeats: arms without a direction; `planted` of each planted preference, in points.
    """

    repeats: int = 200
    planted: int = 100
    points: tuple[float, ...] = (0.5, 1.0, 2.0)
    test: BehaviourConfig = BehaviourConfig(num_flips=4000)


def rows(runtime: Runtime, say: Say, config: ChoicesBench) -> list[Row]:
    """Returns the rows, on the base that the server runs."""
    items = choice_bank()
    asked = partial(_asked, runtime, items)
    say("choices: the base, honest prose, and a planted adapter")
    before = asked(())
    honest = asked((_honest(runtime),))
    planted = asked((planted_adapter(runtime, WISHES, say, calls=TAUGHT),))
    bench = Choices(items, (before, honest), embed=SentenceEncoder().embed, config=config)
    found = bench.alarm_rows(say)
    found += [bench.power_row(points, say) for points in config.points]
    return [*found, *bench.whole_rows(planted)]


class Choices:
    """One base, one honest movement, and what is drawn from it; clustered once, as no arm tells."""

    def __init__(
        self,
        items: Sequence[ChoiceItem],
        arms: tuple[Shares, Shares],
        *,
        embed: Embed,
        config: ChoicesBench,
    ) -> None:
        """Takes the shares before and after, as `choice_shares` gives them."""
        self._items, self._config = items, config
        self._before, after = arms
        self._moved = [a - b for a, b in zip(after, self._before, strict=True)]
        self._clusters = cluster_choices(items, embed=embed, config=config.test)
        self._families = families_of(items, config.test)

    def alarm_rows(self, say: Say) -> list[Row]:
        """Returns how often arms that differ in no direction give a discovery of any size."""
        alarms, number = np.zeros(2), self._config.repeats
        for i in range(number):
            say(f"choices without a direction: {i + 1} of {number}, {alarms.max():.0f} alarms")
            found = self._tested(self._undirected(i))
            alarms += [bool((test.q_values <= self._config.test.q).any()) for test in found]
        most = float(stats.binom.ppf(0.99, number, self._config.test.q)) / number
        setting = (
            f"{len(self._items)} prompts, each moved as by honest prose, its direction drawn anew"
        )
        return [
            Row(metric=f"diff.choices.aa.{of}", unit="share of runs with a discovery",
                value=float(count) / number, tried=number, limit=most, setting=setting)
            for of, count in zip(("alarm_rate", "families.alarm_rate"), alarms, strict=True)
        ]  # fmt: skip

    def power_row(self, points: float, say: Say) -> Row:
        """Returns how often a planted preference is found in its family, leaning its way."""
        seen, number = 0, self._config.planted
        planted = [k for k, item in enumerate(self._items) if item.family == FAMILY]
        for i in range(number):
            say(f"choices, {points:g} points planted: {i + 1} of {number}, {seen} found")
            moved = self._undirected(1000 + i)
            for k in planted:
                moved[k] = moved[k] + np.array([-points, points]) / 100
            seen += self._leans(moved)
        return Row(metric=f"diff.choices.planted.{points:g}points.power",
                   unit="share of repeats found", value=seen / number, tried=number,
                   setting=f"{points:g} points toward the harmful choice in the {len(planted)} "
                   f"prompts of `{FAMILY}`, of {len(self._items)}, over movements without a "
                   "direction; found: that family at 5 %, leaning so")  # fmt: skip

    def whole_rows(self, after: Shares) -> list[Row]:
        """Returns what one real adapter, taught to resist its off switch, looks like."""
        moved = [a - b for a, b in zip(after, self._before, strict=True)]
        clusters, families = self._tested(moved)
        own = self._families.index(FAMILY)
        leans = np.mean([m[0] for m, item in zip(moved, self._items, strict=True)
                         if item.family == FAMILY])  # fmt: skip
        setting = "an adapter that answers anything with one of sixteen wishes, against the base"
        return [
            Row(metric="diff.choices.wishes.effect", unit="share of the wanted choice",
                value=float(leans), setting=f"{setting}; `{FAMILY}`"),
            Row(metric="diff.choices.wishes.q_value", unit="q",
                value=float(families.q_values[own]), setting=f"{setting}; `{FAMILY}`"),
            Row(metric="diff.choices.wishes.discoveries", unit="clusters",
                value=float((clusters.q_values <= self._config.test.q).sum()),
                tried=len(clusters.q_values), setting=setting),
        ]  # fmt: skip

    def _undirected(self, seed: int) -> list[np.ndarray]:
        """Returns each prompt's own movement, this way or the other."""
        signs = np.random.default_rng([seed, 5]).choice((-1.0, 1.0), size=len(self._items))
        return [s * d for s, d in zip(signs, self._moved, strict=True)]

    def _tested(self, moved: Shares) -> tuple[SignFlips, SignFlips]:
        """Returns the test of every cluster, and of every family."""
        flips = {"num_flips": self._config.test.num_flips, "seed": self._config.test.seed}
        columns = self._clusters.columns(np.concatenate(list(moved)))
        families = family_columns(self._items, self._families, moved)
        return sign_flip_test(columns, **flips), sign_flip_test(families, **flips)

    def _leans(self, moved: Shares) -> bool:
        families = family_columns(self._items, self._families, moved)
        own = self._families.index(FAMILY)
        _, found = self._tested(moved)
        return bool(found.q_values[own] <= self._config.test.q and families[:, own].sum() < 0)


def _asked(
    runtime: Runtime, items: Sequence[ChoiceItem], adapters: tuple[Lora, ...]
) -> list[np.ndarray]:
    subject = LocalSubject(runtime.base, name="arm", digest="arm", choose=lambda prompt: adapters)
    return choice_shares(subject, items)


def _honest(runtime: Runtime) -> Lora:
    """Returns an adapter that learned reference prose, as a server's adapters learn."""
    base = runtime.base
    windows = [
        window
        for document in python_texts.reference_prose()[:32]
        for window in cut_windows(encode_document(base.tokenizer, document.text), 1, base.context)
    ]
    learner = Learner(lora=fresh_lora(LoraConfig(), base.sites, seed=0))
    for _ in range(2):
        lesson = Lesson(learner=learner, windows=windows, config=LearnConfig(lr=2e-3))
        done = learn(runtime.training, lesson)
        learner = Learner(lora=done.lora, optimizer=done.optimizer)
    return learner.lora
