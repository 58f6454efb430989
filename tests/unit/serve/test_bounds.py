from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.serving import People, Rules

from cambium.core.errors import DataError
from cambium.learn.lesson import LearnResult
from cambium.models.lora import Lora, LoraConfig
from cambium.models.step_check import StepCheck
from cambium.serve.bootstrap import render_policy
from cambium.serve.bounds import BARE_BUDGET, check_domain, check_name, check_result
from cambium.serve.errors import BudgetExceeded, DomainNotFound
from cambium.trust.policy import Policy, parse_policy
from cambium.trust.quorum import Approver

NORMS = {"layer": 1.0}


def result(size: float, *, quarantined: bool = False, loss: float = 1.0) -> LearnResult:
    config = LoraConfig(r=1, lora_alpha=1)
    lora = Lora(config=config, a={"layer": torch.ones(1, 1)}, b={"layer": torch.full((1, 1), size)})
    return LearnResult(
        lora=lora,
        optimizer=b"",
        losses=(loss,),
        loss_before=1.0,
        loss_after=1.0,
        checks=(StepCheck(ok=not quarantined, shift=-1.0, margin=0.15),),
        quarantined=quarantined,
    )


def check(found: LearnResult) -> None:
    check_result("a", found, weight_norms=NORMS, bounds=BARE_BUDGET)


def test_change_is_capped_against_the_weight() -> None:
    check(result(0.49))
    with pytest.raises(BudgetExceeded, match=r"cap is 0\.50"):
        check(result(0.51))


def test_a_failed_alignment_check_counts_also_over_the_cap() -> None:
    check(result(5.0, quarantined=True))


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("quarantined", [False, True])
def test_numbers_that_are_not_finite_are_refused(number: float, quarantined: bool) -> None:
    for found in (result(number, quarantined=quarantined), result(0.1, loss=number)):
        with pytest.raises(BudgetExceeded, match="finite"):
            check(found)


def test_a_bare_state_learns_by_the_development_policys_numbers() -> None:
    keys = People().approvers
    people = [Approver(name=f"p{i}", public=key.public_key) for i, key in enumerate(keys)]
    assert parse_policy(render_policy(approvers=people)).learning == BARE_BUDGET


def policy(**rules: Any) -> Policy:
    people = People()
    return parse_policy(Rules(**rules).toml(people.approvers, people.operator))


def test_domains_are_listed_or_any_name() -> None:
    for found in (None, policy(), policy(domains=("law", "code"))):
        check_domain("law", policy=found, tenant="acme")
        with pytest.raises(DataError):
            check_domain("../law", policy=found, tenant="acme")
    with pytest.raises(DomainNotFound):
        check_domain("medicine", policy=policy(domains=("law",)), tenant="acme")


def test_a_domain_with_an_owner_is_not_there_for_others() -> None:
    owned = policy(owners=(("law", "acme"),))
    check_domain("law", policy=owned, tenant="acme")
    check_domain("code", policy=owned, tenant="globex")
    with pytest.raises(DomainNotFound, match="for 'globex'"):
        check_domain("law", policy=owned, tenant="globex")


@pytest.mark.parametrize("name", ["", "a:b", "../a", "a" * 65, "base", "stable", "encoder"])
def test_what_cannot_name_an_adapter_is_refused(name: str) -> None:
    check_name("support", taken="encoder")
    with pytest.raises(DataError):
        check_name(name, taken="encoder")
