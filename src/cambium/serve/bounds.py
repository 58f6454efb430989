"""What may be learned: calls and adapters held to the policy's bounds before anything is done."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cambium.core.canonical import canonical_json
from cambium.core.errors import DataError
from cambium.learn.examples import Example
from cambium.learn.lesson import LearnResult
from cambium.learn.objectives import OBJECTIVES
from cambium.models.lora import LoraConfig
from cambium.serve.errors import BudgetExceeded, DomainNotFound, LossUnavailable, TooLarge
from cambium.serve.names import ADAPTER_NAME, RESERVED_NAMES
from cambium.trust.policy import LearningBudget, Policy

MAX_LR = 0.05
MAX_ALPHA = 256
MAX_NOTE_CHARS = 400
# What a state without a signed policy may learn: the development policy's numbers.
BARE_BUDGET = LearningBudget(
    max_steps_per_call=8,
    max_examples_per_call=64,
    max_example_bytes=200_000,
    max_ttl_s=604_800,
    max_rank=16,
    max_live_adapters=64,
    max_total_steps_per_adapter=512,
    max_relative_change=0.5,
    monitor_margin_nats=0.15,
    replay_tokens=50_000,
)


# One step is never interrupted: some seconds on two cores.
MAX_STEP_TOKENS = 32_768


@dataclass(frozen=True, kw_only=True)
class LearnCall:
    """One call to learn, already parsed; `consent` and `source` are the caller's words.

    Args:
        replay_keys: digests of examples kept with consent, to be gone through again beside the new.
    """

    examples: Sequence[Example]
    loss: str = "task"
    steps: int = 8
    lr: float | None = None
    consent: str | None = None
    source: str | None = None
    replay_keys: Sequence[str] = ()


def check_call(call: LearnCall, bounds: LearningBudget) -> None:
    """Refuses a call outside the bounds.

    Raises:
        DataError, TooLarge, LossUnavailable: says which bound.
    """
    if call.loss not in OBJECTIVES:
        raise LossUnavailable(
            f"loss {call.loss[:40]!r} is not offered", mend=f"use one of {', '.join(OBJECTIVES)}"
        )
    if not 1 <= call.steps <= bounds.max_steps_per_call:
        raise DataError(f"steps {_short(call.steps)} is outside 1..{bounds.max_steps_per_call}",
                        mend="send 1 to 8 steps")  # fmt: skip
    if call.lr is not None and not 0 < call.lr <= MAX_LR:
        raise DataError(f"lr {call.lr} is outside (0, {MAX_LR}]", mend="leave lr out")
    for name, note in (("consent", call.consent), ("source", call.source)):
        if note is not None and len(note) > MAX_NOTE_CHARS:
            raise DataError(f"{name} is over {MAX_NOTE_CHARS} characters", mend="shorten it")
    _check_examples(call.examples, bounds)
    if len(call.replay_keys) > bounds.max_examples_per_call:
        raise TooLarge(
            f"{len(call.replay_keys)} replay_keys in one call, the policy allows "
            f"{bounds.max_examples_per_call}",
            mend="send fewer",
        )


def check_tokens(tokens: int, steps: int) -> None:
    """Refuses a call whose steps would be so long that all others wait for them.

    Raises:
        TooLarge: says how many steps it needs.
    """
    if tokens > steps * MAX_STEP_TOKENS:
        raise TooLarge(f"{tokens} tokens in {steps} steps, at most {MAX_STEP_TOKENS} fit into one",
                       mend="send fewer examples, or more steps")  # fmt: skip


def _check_examples(examples: Sequence[Example], bounds: LearningBudget) -> None:
    if not examples:
        raise DataError("examples is empty", mend="send at least one")
    if len(examples) > bounds.max_examples_per_call:
        raise TooLarge(f"{len(examples)} examples in one call, the policy allows "
                       f"{bounds.max_examples_per_call}", mend="send several calls")  # fmt: skip
    for example in examples:
        size = len(canonical_json(dict(example.content)))
        if size > bounds.max_example_bytes:
            raise TooLarge(f"an example has {size} bytes, the policy allows "
                           f"{bounds.max_example_bytes}", mend="cut it into documents")  # fmt: skip


def check_name(name: str, *, taken: str) -> None:
    """Refuses what cannot name an adapter.

    Args:
        taken: the encoder's name, which is a model's name too.

    Raises:
        DataError: other characters, or the name of something else.
    """
    if not ADAPTER_NAME.fullmatch(name) or name in {*RESERVED_NAMES, taken}:
        raise DataError(f"{name[:80]!r} cannot name an adapter",
                        mend="use other letters, digits, '.', '_', '-', at most 64")  # fmt: skip


def check_adapter(config: LoraConfig, *, ttl_s: int, bounds: LearningBudget) -> None:
    """Refuses a shape or a time to live that no ephemeral adapter may have.

    Raises:
        DataError: says which.
    """
    numbers = (
        ("rank", config.r, bounds.max_rank, "use r 4 to 16"),
        ("lora_alpha", config.lora_alpha, MAX_ALPHA, "use twice the rank"),
        ("ttl_s", ttl_s, bounds.max_ttl_s, "ask for less"),
    )
    for what, value, highest, mend in numbers:
        if not 1 <= value <= highest:
            raise DataError(f"{what} {_short(value)} is outside 1..{highest}", mend=mend)
    if not config.target_modules:
        raise DataError("target_modules is empty", mend="leave it out for all linear modules")


def check_room(num_live: int, *, bounds: LearningBudget) -> None:
    """Refuses another ephemeral adapter of a tenant that has as many as it may.

    Raises:
        BudgetExceeded: it has.
    """
    if num_live >= bounds.max_live_adapters:
        raise BudgetExceeded(
            f"{num_live} ephemeral adapters are alive, as many as the policy allows",
            mend="delete one or wait for one to expire",
        )


def check_result(
    name: str, result: LearnResult, *, weight_norms: Mapping[str, float], bounds: LearningBudget
) -> None:
    """Refuses an update that is not finite, or over the cap unless it is to be quarantined.

    A failed alignment check counts even where the cap is passed: otherwise a large harmful
    update would leave its adapter at work.

    Raises:
        BudgetExceeded: says where.
    """
    norms = result.lora.norms()
    shifts = [check.shift for check in result.checks]
    numbers = [*norms.values(), *result.losses, *shifts, result.loss_before, result.loss_after]
    if not all(math.isfinite(number) for number in numbers):
        raise BudgetExceeded(f"the update of {name!r} left the finite numbers",
                             mend="use a smaller lr or fewer steps")  # fmt: skip
    for path, norm in norms.items():
        limit = bounds.max_relative_change * weight_norms[path]
        if norm > limit and not result.quarantined:
            raise BudgetExceeded(
                f"the update of {path} in {name!r} would reach {norm:.2f}, "
                f"the policy's cap is {limit:.2f}",
                mend="use a smaller lr or fewer steps",
            )


def check_domain(domain: str, *, policy: Policy | None, tenant: str) -> None:
    """Refuses a domain that the policy does not list, or gives to another tenant.

    Raises:
        DomainNotFound: not listed, and the list has no `*`; or not this tenant's.
        DataError: not a name.
    """
    if not ADAPTER_NAME.fullmatch(domain):
        raise DataError(
            f"{domain[:80]!r} cannot name a domain", mend="use letters, digits, '.', '_', '-'"
        )
    if policy is not None and not policy.allows_domain(domain, tenant=tenant):
        mine = [name for name in policy.domains.allowed if policy.may_use(name, tenant)]
        raise DomainNotFound(
            f"the policy does not list domain {domain!r} for {tenant!r}", mend=f"use one of {mine}"
        )


def _short(number: int) -> str:
    # JSON's whole numbers can have thousands of digits; a message should not.
    return str(number) if abs(number) < 10**12 else "far beyond"
