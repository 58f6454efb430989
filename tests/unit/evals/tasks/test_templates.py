from __future__ import annotations

import time

import pytest

from cambium.evals.errors import TaskInvalid
from cambium.evals.tasks.templates import findall, literal, render, substitute

DOC = {"question": " what aa\n", "choices": ["x", "y"], "answer": 1}
GOOD = {
    "{{question.strip()|upper}}": "WHAT AA",
    "{% for c in choices %}{{loop.index}}{{c}} {% endfor %}": "1x 2y ",
    "{{choices[answer] ~ '!' ~ 3}}": "y!3",
    "{{['A','B'][answer]}}\n": "B\n",
    "{{question|regex_replace('a+', 'b')}}": " whbt b\n",
    "{{choices.index('y') + 2 * 3}}": "7",
}
HOSTILE = [
    "{% for i in range(10**9) %}{% endfor %}",
    "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "{{ 'a' * 10**10 }}",
    "{{ 10 ** (10 ** 8) }}",
    "{{ question.__class__.__mro__ }}",
    "{{ ''.join.__self__ }}",
    "{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{{ '%1000000000d' % 5 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{{ 'a'.center(10**9) }}",
    "{{ 'a'|center(10**9) }}",
    "{% set a = 'aaaa' %}" + "{% set a = a ~ a %}" * 60 + "{{ a }}",
    "{% set a = 'aaaa' %}" + "{% set a = a + a %}" * 60 + "{{ a }}",
    "{% set a = 'aaaa' %}" + "{% set a = a|replace('a', 'aaaaaaaa') %}" * 60 + "{{ a }}",
    "{% set a = 'aaaa' %}" + "{% set a = a.replace('a', 'aaaaaaaa') %}" * 60 + "{{ a }}",
    "{% set a = [1] %}" + "{% set a = [a, a, a, a] %}" * 30 + "{{ a }}",
    "{% set a = {1: 1} %}" + "{% set a = {1: a, 2: a, 3: a} %}" * 30 + "{{ a == a }}",
    "{{ [[1] * 1000000] * 1000000 }}",
    "{{ ('x' * 90000)|regex_replace('(x+x+)+y', '') }}",
    "{% for i in range(3) recursive %}{{ loop(range(3)) }}{% endfor %}",
    "{{ lipsum(10**6) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{{ missing }}",
    "{% if %}",
    "x" * 30_000,
]


@pytest.mark.parametrize(("template", "expected"), GOOD.items())
def test_templates_of_task_files_render(template: str, expected: str) -> None:
    assert render(template, DOC) == expected


@pytest.mark.parametrize("template", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_template_is_an_error_soon(template: str) -> None:
    started = time.monotonic()
    with pytest.raises(TaskInvalid) as caught:
        render(template, DOC)
    assert time.monotonic() - started < 20
    assert caught.value.mend


def test_literals_are_data_only() -> None:
    assert literal("['a', 1]") == ["a", 1]
    for text in ("__import__('os')", "[" * 9999, "f()", "a b"):
        with pytest.raises(ValueError, match="literal"):
            literal(text)


def test_patterns_find_as_re_does_and_give_up_in_time() -> None:
    assert findall(r"(\d)(x)?", "1x 2") == [("1", "x"), ("2", "")]
    assert substitute(",", "", "1,000") == "1000"
    with pytest.raises(TaskInvalid, match="cannot be used"):
        findall("(", "a")
    with pytest.raises(TaskInvalid, match="takes more than"):
        findall("(x+x+)+y", "x" * 50_000)
