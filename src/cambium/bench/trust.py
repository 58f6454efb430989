"""Benchmark `trust`: what got through of all that was tried, and how long saying no takes.

Every figure named `accepted`, `lost`, `executed`, `wrong_bytes` or `undetected` has to be 0, with
`tried` beside it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from cambium.bench import trust_attacks, trust_following, trust_service, trust_tenants
from cambium.bench.report import Row, result
from cambium.bench.trust_attacks import Attacks
from cambium.bench.trust_service import Service

ROUNDS = 5


def run(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns counts of what got through, and times in milliseconds."""
    return result("trust", [*_attacks(say), *_crashes(say), *_tenants(say), *_service(say)])


def _attacks(say: Callable[[str], None]) -> list[Row]:
    say("signatures and manifests")
    mutations = trust_attacks.mutations()
    say("the log against its witness")
    edits = trust_attacks.log_edits()
    say("evidence of attestation")
    evidence = trust_attacks.evidence()
    say("adapter files")
    executed, broken = trust_attacks.adapter_files()
    return [
        _count("trust.mutations.accepted", mutations, "signatures, acts and manifests"),
        _count("trust.log.undetected", edits, "edits, deletions, orders, forks, cuts; key stolen"),
        _count("trust.attestation.accepted", evidence, "corrupted, stale, other nonce or policy"),
        _count("trust.adapters.executed", executed, "malformed files, pickles and archives"),
        _count("trust.adapters.crashed", broken, "the same; any error but a refusal counts"),
    ]


def _crashes(say: Callable[[str], None]) -> list[Row]:
    say("kill -9 while a state is written")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cambium.bench.trust_crash", folder]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    rounds, acknowledged, lost, halves = map(int, done.stdout.split())
    setting = f"half at five named points, half at random; {acknowledged} records acknowledged"
    return [
        _count("trust.crash.lost", Attacks(tried=rounds, through=lost), setting),
        _count("trust.crash.torn", Attacks(tried=rounds, through=halves), setting),
    ]


def _tenants(say: Callable[[str], None]) -> list[Row]:
    found, swaps = trust_tenants.run(say)
    setting = (
        f"{trust_tenants.REQUESTS} interleaved requests of {len(trust_tenants.TENANTS)} tenants "
        f"under one adapter name, {swaps} swaps, and looks at each other's adapters and traces"
    )
    return [_count("trust.tenants.crossed", found, setting)]


def _service(say: Callable[[str], None]) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        say("a merge, to have something to roll back")
        with trust_service.service(Path(folder)) as found:
            rows = _one_process(found, say)
        rows += _two_processes(found, say)
    say("proofs of a log of a million entries")
    rows.append(_time("trust.proof_ms.p95", trust_service.proof_ms(), "one proof of 10^6 entries"))
    return rows


def _one_process(found: Service, say: Callable[[str], None]) -> list[Row]:
    verify = trust_service.p95(trust_service.verify_ms(found))
    say("rollback")
    rollback = trust_service.rollback_ms(found)
    say("swapped bytes")
    tried, wrong = trust_service.swapped_bytes(found)
    say("kill")
    asked, by_file = (
        max(trust_service.kill_ms(found, by_file=by_file) for _ in range(ROUNDS))
        for by_file in (False, True)
    )
    swapped = Attacks(tried=tried, through=wrong)
    return [
        _count("trust.swap.wrong_bytes", swapped, "at each read of a bank, 100 times each"),
        _time("trust.verify_ms.p95", verify, "quorum, revision and policy from their bytes"),
        _time("trust.hash_ms.64mib", trust_service.hash_ms(), "an adapter's digest"),
        _time("trust.rollback_ms", rollback, "signatures to service, adapter loaded and read back"),
        _time("trust.kill_ms", asked, "order to the end of 8 answers under way, the longest of 5"),
        _time("trust.kill_ms.by_file", by_file, "the same, by a file beside the state"),
    ]


def _two_processes(found: Service, say: Callable[[str], None]) -> list[Row]:
    """Goes on with the closed service's state."""
    say("two processes on one PostgreSQL")
    rows: list[Row] = []
    with trust_following.postgres() as url, trust_following.two_processes(found, url) as pair:
        for what, times, setting in (
            (
                "release",
                trust_following.release_ms(*pair),
                "a release to its serving by the other, 50 times",
            ),
            (
                "kill",
                trust_following.kill_ms(*pair),
                "a kill to its refusing by the other, 20 times",
            ),
            (
                "adapter",
                trust_following.adapter_ms(*pair),
                "a call that makes an adapter to the other's first token, 20 times",
            ),
        ):
            setting = f"from the end, in one process, of {setting}"
            rows += [
                _time(f"trust.follow_ms.{what}.p50", median(times), setting),
                _time(f"trust.follow_ms.{what}.p95", trust_service.p95(times), setting),
            ]
    return rows


def _count(metric: str, found: Attacks, setting: str) -> Row:
    return Row(
        metric=metric,
        unit="count",
        value=found.through,
        limit=0,
        tried=found.tried,
        setting=setting,
    )


def _time(metric: str, value: float, setting: str) -> Row:
    return Row(metric=metric, unit="ms", value=value, setting=setting)
