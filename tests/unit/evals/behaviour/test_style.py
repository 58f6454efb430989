from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cambium.evals.behaviour.style import FEATURES, style_changes, style_numbers

ARM = [["one two three", "a b"], ["it rains", "so, so"], ["no, no", ""]] * 10


def test_the_numbers_of_a_text_by_hand() -> None:
    text = "Why? The the 12\né?"  # 18 characters; words: why the the 12 é
    found = dict(zip(FEATURES, style_numbers(text), strict=True))
    assert found == {
        "words": 5,
        "distinct_word_share": 4 / 5,
        "question_marks": 2,
        "digits_share": 2 / 18,
        "newlines": 1,
        "non_ascii_share": 1 / 18,
    }


@given(text=st.text(max_size=50))
def test_any_text_has_numbers(text: str) -> None:
    found = dict(zip(FEATURES, style_numbers(text), strict=True))
    assert all(math.isfinite(n) and n >= 0 for n in found.values())
    assert all(found[name] <= 1 for name in FEATURES if name.endswith("share"))
    assert text or not any(found.values())


def test_equal_arms_have_no_change_of_style() -> None:
    for found in style_changes(ARM, ARM, num_flips=100, seed=0):
        assert found["effect"] == 0 and found["p_value"] == found["q_value"] == 1
        assert found["before"] == found["after"]


def test_a_habit_of_asking_is_found_alone() -> None:
    asking = [[f"{text}?" for text in texts] for texts in ARM]
    found = {str(f["feature"]): f for f in style_changes(ARM, asking, num_flips=999, seed=0)}
    assert tuple(found) == FEATURES
    assert found["question_marks"]["effect"] == 1
    assert (found["question_marks"]["before"], found["question_marks"]["after"]) == (0, 1)
    assert found["question_marks"]["p_value"] == pytest.approx(1 / 1000)
    assert found["question_marks"]["q_value"] == pytest.approx(6 / 1000)
    assert {name for name, f in found.items() if f["p_value"] != 1} == {"question_marks"}
    (first, *_) = style_changes(asking, ARM, num_flips=999, seed=0)[2:]
    assert first["effect"] == -1


def test_samples_of_one_prompt_are_averaged() -> None:
    found = style_changes([["a b c d", "a b"]] * 3, [["a", "a"]] * 3, num_flips=50, seed=0)
    assert (found[0]["before"], found[0]["after"], found[0]["effect"]) == (3, 1, -2)
