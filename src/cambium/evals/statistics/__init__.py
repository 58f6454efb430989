"""The statistics of evidence: paired differences, repeated looks, many tests, and their limits."""

from __future__ import annotations

from cambium.evals.statistics.multiplicity import benjamini_hochberg, e_bh
from cambium.evals.statistics.paired import PairedResult, clustered_interval, paired_interval
from cambium.evals.statistics.permutation import SignFlips, sign_flip_test
from cambium.evals.statistics.proportions import McNemar, mcnemar, rate_bound
from cambium.evals.statistics.sequential import betting_e_value, sign_e_value

__all__ = [
    "McNemar",
    "PairedResult",
    "SignFlips",
    "benjamini_hochberg",
    "betting_e_value",
    "clustered_interval",
    "e_bh",
    "mcnemar",
    "paired_interval",
    "rate_bound",
    "sign_e_value",
    "sign_flip_test",
]
