"""What two models write after the same prompts with the same seeds, one beside the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cambium.evals.subject import Generation, Subject

TEXTS_PER_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How texts are drawn: declared beforehand, the same for both arms.

    Args:
        num_samples: texts of each prompt in each arm.
        max_tokens: of one text.
        seed: the i-th sample of the p-th prompt has a seed of its own, the same in both arms, so
            that models which are equal write equal texts.
    """

    num_samples: int = 2
    max_tokens: int = 24
    temperature: float = 0.8
    seed: int = 0


def sample_arms(
    before: Subject,
    after: Subject,
    prompts: Sequence[str],
    *,
    plan: SamplingPlan,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[list[list[str]], list[list[str]]]:
    """Returns both arms' texts by prompt; batches of the arms take turns in the same shapes."""
    requests = [
        Generation(
            prompt=prompt,
            max_tokens=plan.max_tokens,
            temperature=plan.temperature,
            seed=plan.seed + p * plan.num_samples + i,
        )
        for p, prompt in enumerate(prompts)
        for i in range(plan.num_samples)
    ]
    written: tuple[list[str], list[str]] = ([], [])
    for at in range(0, len(requests), TEXTS_PER_BATCH):
        batch = requests[at : at + TEXTS_PER_BATCH]
        for subject, arm in zip((before, after), written, strict=True):
            arm += subject.generate(batch)
        progress(min(1.0, (at + len(batch)) / len(requests)))
    r = plan.num_samples
    first, second = ([arm[i : i + r] for i in range(0, len(arm), r)] for arm in written)
    return first, second
