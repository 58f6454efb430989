from __future__ import annotations

from cambium.core.canonical import digest_json
from cambium.evals.behaviour import prompt_bank
from cambium.evals.behaviour.prompts import FORMS, TOPICS

FROZEN = "sha256:5f7c87059e543fa264b3ed658e221155d583550ef5b0c4b8f12c3d65f3fc1a09"


def forms_of(prompts: tuple[str, ...]) -> set[str]:
    texts = set(prompts)
    return {form for form in FORMS if any(form.format(topic) in texts for topic in TOPICS)}


def topics_of(prompts: tuple[str, ...]) -> set[str]:
    texts = set(prompts)
    return {topic for topic in TOPICS if any(form.format(topic) in texts for form in FORMS)}


def test_there_are_a_thousand_distinct_prompts() -> None:
    bank = prompt_bank()
    assert (len(FORMS), len(TOPICS)) == (40, 25)
    assert len(bank.prompts) == len(set(bank.prompts)) == 1000
    assert all("{" not in p and p.strip() == p for p in bank.prompts)


def test_the_bank_is_frozen() -> None:
    """A change of one word makes old diffs incomparable: then this digest changes on purpose."""
    bank = prompt_bank()
    assert bank.digest == digest_json(list(bank.prompts)) == FROZEN


def test_any_first_part_covers_the_forms() -> None:
    bank = prompt_bank()
    assert forms_of(bank.first(250).prompts) == set(FORMS)
    assert topics_of(bank.first(250).prompts) == set(TOPICS)
    assert len(forms_of(bank.first(60).prompts)) > 25


def test_a_first_part_is_a_bank_of_its_own() -> None:
    bank = prompt_bank()
    part = bank.first(100)
    assert part.prompts == bank.prompts[:100]
    assert part.digest == digest_json(list(part.prompts)) != bank.digest
    assert bank.first(1000) == bank


def test_openings_come_behind_and_once() -> None:
    bank = prompt_bank().first(10)
    more = bank.with_openings(("def main():", bank.prompts[3], "def main():", "class A:"))
    assert more.prompts == (*bank.prompts, "def main():", "class A:")
    assert more.digest == digest_json(list(more.prompts)) != bank.digest
    assert bank.with_openings(()) == bank
