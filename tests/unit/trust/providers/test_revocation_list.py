from __future__ import annotations

import random

import pytest
from cryptography import x509
from tests.snp_machine import NONCE, NOW, Machine, reference, revocation_list

from cambium.core.errors import AttestationRefused
from cambium.trust.attestation import AttestationResult, appraise
from cambium.trust.providers.sev_snp import SnpVerifier

GOOD = Machine().evidence()
DAY_S = 24 * 3600


def result(crl: bytes | None, *, demanded: bool = True, now: int = NOW) -> AttestationResult:
    verifier = SnpVerifier(reference=reference(revocation=demanded), now=now, crl=crl)
    return appraise(GOOD, verifier=verifier, nonce=NONCE, accept=("sev-snp",), now=now)


def refused(crl: bytes | None, match: str, **more: object) -> None:
    with pytest.raises(AttestationRefused, match=match):
        result(crl, **more)  # type: ignore[arg-type]


def test_a_good_list_that_names_nobody_of_the_chain_is_fine() -> None:
    for demanded in (True, False):
        assert result(revocation_list(), demanded=demanded).label == "sev-snp"
        # The processor's certificate is the middle one's business, not the root's.
        assert result(revocation_list("VCEK"), demanded=demanded)


def test_a_listed_certificate_is_refused_whether_a_list_is_demanded_or_not() -> None:
    for demanded in (True, False):
        for names in (("ASK",), ("ARK",), ("VCEK", "ASK")):
            refused(revocation_list(*names), "revoked", demanded=demanded)


def test_a_missing_list_is_refused_only_where_one_is_demanded() -> None:
    refused(None, "missing")
    assert result(None, demanded=False)


@pytest.mark.parametrize(
    ("crl", "match"),
    [
        (b"", "cannot be read"),
        (b"no list", "cannot be read"),
        (revocation_list(days=(-30, -1)), "not in its time"),
        (revocation_list(days=(1, 30)), "not in its time"),
        (revocation_list(issuer="ASK"), "another issuer"),
        (revocation_list(signed_by="ask"), "did not sign"),
        (revocation_list(signed_by="other"), "did not sign"),
        (revocation_list(extension=x509.DeltaCRLIndicator(1)), "not known"),
        (revocation_list() + b"more", "cannot be read|strict"),
    ],
    ids=lambda value: value if isinstance(value, str) else "list",  # the bytes are random
)
def test_a_list_that_does_not_hold_is_refused(crl: bytes, match: str) -> None:
    for demanded in (True, False):
        refused(crl, match, demanded=demanded)


def test_every_bit_of_a_list_counts() -> None:
    """Those of its text: the encoding outside has spellings that readers refuse or take alike."""
    good, pick = revocation_list("VCEK"), random.Random(1)
    for at in range(len(good)):
        changed = bytearray(good)
        changed[at] ^= 1 << pick.randrange(8)
        refused(bytes(changed), "refused")
