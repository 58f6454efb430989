"""Policies for tests: the development profile's text with single lines changed."""

from __future__ import annotations

import re

from cambium.serve.bootstrap import render_policy
from cambium.trust.keys import SigningKey
from cambium.trust.policy import Policy, parse_policy
from cambium.trust.quorum import Approver


def policy_text(keys: list[SigningKey]) -> str:
    people = [Approver(name=f"person {i}", public=key.public_key) for i, key in enumerate(keys)]
    text = render_policy(approvers=people, state="0" * 32).decode()
    # The development bars are tuned from time to time; these tests count looks.
    text = re.sub(r"(?m)^passes_required = .+$", "passes_required = 2", text)
    return re.sub(r"(?m)^max_looks = .+$", "max_looks = 5", text)


def make_policy(keys: list[SigningKey], **changes: str) -> Policy:
    """Returns the development policy with each named field's first line changed."""
    text = policy_text(keys)
    for field_, value in changes.items():
        text, found = re.subn(rf"(?m)^{field_} = .+$", f"{field_} = {value}", text, count=1)
        assert found, field_
    return parse_policy(text.encode())
