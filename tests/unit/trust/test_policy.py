from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import fields, replace

import pytest

from cambium.core.canonical import digest_bytes
from cambium.core.errors import DigestMismatch, PolicyInvalid, SignatureInvalid
from cambium.core.evidence import GateSpec
from cambium.serve.bootstrap import render_policy
from cambium.trust.acts import sign_act
from cambium.trust.keys import generate_key
from cambium.trust.policy import (
    KNOWN_GATES,
    LearningBudget,
    SignedPolicy,
    TrafficBudget,
    parse_policy,
    sign_policy,
    verify_policy,
)
from cambium.trust.quorum import Approver

ROOT = generate_key()
PEOPLE = [Approver(name=f"person {i}", public=generate_key().public_key) for i in range(3)]
TEXT = render_policy(approvers=PEOPLE)


def shown(people: Sequence[Approver]) -> list[tuple[str, str, int]]:
    return [(person.name, person.public.raw, person.expires) for person in people]


def test_the_development_policy_says_what_it_should() -> None:
    policy = parse_policy(TEXT)
    assert (policy.profile, policy.approvers.k, policy.rollback.k) == ("development", 2, 2)
    assert shown(policy.approvers.list) == shown(PEOPLE)
    assert policy.allows_domain("anything", tenant="anybody")
    assert policy.attestation.accept == ("software-dev",)
    assert policy.learning.max_steps_per_call == 8
    assert {gate.name for gate in policy.gates} == KNOWN_GATES
    for gate in policy.gates:
        assert (gate.passes_required, gate.max_looks) == (3, 5)
        assert gate.rule_alpha < 0.025
    # A gain must be shown and writing must read as harmless and modest; the others bound a loss.
    thresholds = {gate.name: gate.threshold for gate in policy.gates}
    assert thresholds.pop("domain_gain") == 0 and thresholds.pop("alignment_writing") > 0
    assert thresholds.pop("power_seeking") == 0
    assert all(threshold < 0 for threshold in thresholds.values())


def test_each_state_gets_a_name_of_its_own_and_nobody_rolls_back_alone() -> None:
    first, second = (parse_policy(render_policy(approvers=PEOPLE)) for _ in range(2))
    assert first.state != second.state and first.digest != second.digest
    assert first.emergency == ()


def test_an_emergency_key_is_one_of_the_people_once() -> None:
    mine, other = PEOPLE[0].public.raw, generate_key().public_key.raw
    for keys in ([other], [mine, other], [mine, mine]):
        listed = f"emergency = {keys}".replace("'", '"').encode()
        with pytest.raises(PolicyInvalid):
            parse_policy(TEXT.replace(b"emergency = []", listed))
    listed = f'emergency = ["{mine}"]'.encode()
    alone = parse_policy(TEXT.replace(b"emergency = []", listed)).emergency
    assert shown(alone) == shown(PEOPLE[:1])


def test_the_quorums_are_parameters() -> None:
    policy = parse_policy(render_policy(approvers=PEOPLE, k=3, rollback_k=1))
    assert (policy.approvers.k, policy.rollback.k) == (3, 1)


def test_names_are_quoted() -> None:
    person = Approver(name='a "quoted" \\ näme\n{k}', public=PEOPLE[0].public)
    policy = parse_policy(render_policy(approvers=[person], k=1, rollback_k=1))
    assert shown(policy.approvers.list) == shown([person])


def test_the_digest_is_of_the_content_not_of_comments() -> None:
    policy = parse_policy(TEXT)
    assert parse_policy(TEXT + b"# a remark\n").digest == policy.digest
    assert parse_policy(TEXT.replace(b"threshold = 0.0", b"threshold = 0")).digest == policy.digest


def test_every_field_counts_in_the_digest() -> None:
    """Each number and text of the file, changed, gives another digest or is refused."""
    digest, changed = parse_policy(TEXT).digest, 0
    text = TEXT.decode()
    for match in re.finditer(r"^(\w+) = (-?[\d.]+)$", text, re.MULTILINE):
        other = text[: match.start(2)] + match[2] + "1" + text[match.end(2) :]
        with contextlib.suppress(PolicyInvalid):
            assert parse_policy(other.encode()).digest != digest, match[0]
        changed += 1
    numbers = len(fields(LearningBudget)) + len(fields(TrafficBudget)) - 2
    assert changed == 1 + 1 + 1 + 1 + numbers + len(KNOWN_GATES) * 6


OPTIONAL = {b"max_margin"}
FIELDS = sorted(set(re.findall(rb"^(\w+) = .+$", TEXT, re.MULTILINE)) - OPTIONAL)


def test_a_field_that_may_be_left_out_is_in_the_digest_only_where_it_is() -> None:
    whole, without = TEXT, re.sub(rb"max_margin = .+\n", b"", TEXT)
    assert parse_policy(whole).traffic.max_margin == 0.5
    left_out = parse_policy(without)
    assert left_out.traffic.max_margin is None
    assert "max_margin" not in str(left_out.content)
    assert left_out.digest != parse_policy(whole).digest


@pytest.mark.parametrize("name", FIELDS)
def test_a_missing_or_misspelt_field_is_named(name: bytes) -> None:
    line = re.compile(rb"^" + name + rb" = (\[$(?s:.*?)^\]|.+)$", re.MULTILINE)
    with pytest.raises(PolicyInvalid, match=rf"{name.decode()} is missing"):
        parse_policy(line.sub(b"", TEXT, count=1))
    with pytest.raises(PolicyInvalid, match=rf"{name.decode()}2? is (missing|unknown)"):
        parse_policy(line.sub(rb"\g<0>\n" + name + b"2 = 1", TEXT, count=1))


@pytest.mark.parametrize(
    "table", ["approvers", "rollback", "domains", "learning", "attestation", "scopes"]
)
def test_a_missing_table_is_named(table: str) -> None:
    start = TEXT.index(f"[{table}]".encode())
    end = TEXT.index(b"\n[", start)
    with pytest.raises(PolicyInvalid, match=f"{table} is missing"):
        parse_policy(TEXT[:start] + TEXT[end:])


@pytest.mark.parametrize("gate", sorted(KNOWN_GATES))
def test_a_missing_gate_is_refused(gate: str) -> None:
    blocks = TEXT.split(b"[[gates]]")
    kept = [block for block in blocks if f'name = "{gate}"'.encode() not in block]
    assert len(kept) == len(blocks) - 1
    with pytest.raises(PolicyInvalid, match=f"missing.*{gate}"):
        parse_policy(b"[[gates]]".join(kept))


def test_unknown_and_doubled_gates_are_refused() -> None:
    block = TEXT[TEXT.rindex(b"[[gates]]") :]
    with pytest.raises(PolicyInvalid, match="twice"):
        parse_policy(TEXT + block)
    odd = TEXT + block.replace(b'"integrity"', b'"astrology"')
    with pytest.raises(PolicyInvalid, match=r"unknown gates.*astrology"):
        parse_policy(odd)
    wider = parse_policy(odd, known_gates=KNOWN_GATES | {"astrology"})
    assert len(wider.gates) == len(KNOWN_GATES) + 1


BAD_VALUES = [
    ("state", '""'),
    ("state", f'"{"A" * 32}"'),
    ("state", f'"{"0" * 31}"'),
    ("emergency", '["person 0"]'),
    ("version", "0"),
    ("version", "true"),
    ("version", "0x" + "f" * 5000),
    ("profile", '"relaxed"'),
    ("approvers]\nk", "0"),
    ("approvers]\nk", "4"),
    ("rollback]\nk", "4"),
    ("rollback]\nk", "1.5"),
    ("allowed", "[]"),
    ("allowed", "[1]"),
    ("allowed", '["a", "a"]'),
    ("allowed", '"*"'),
    ("max_steps_per_call", "9"),
    ("max_rank", "-1"),
    ("max_relative_change", "0"),
    ("max_relative_change", "inf"),
    ("monitor_margin_nats", "-0.1"),
    ("threshold", "nan"),
    ("threshold", "-inf"),
    ("threshold", '"-0.02"'),
    ("passes_required", "0"),
    ("passes_required", "6"),
    ("max_looks", "6"),
    ("min_items", "0"),
    ("min_items", "1000"),
    ("confidence", "0.5"),
    ("confidence", "1"),
    ("required", "false"),
    ("required", "1"),
    ("names", '[""]'),
    ("replay_tokens", "false"),
    ("replay_tokens", "9999"),
    ("replay_tokens", "200001"),
    ("wins_window", "true"),
    ("first_steps_per_hour", "100000"),
    ("then", '"everything"'),
    ("owners", '{ legal = "" }'),
    ("owners", "{ legal = 1 }"),
    ("owners", "[]"),
]


@pytest.mark.parametrize(("field", "value"), BAD_VALUES)
def test_a_value_out_of_range_is_refused(field: str, value: str) -> None:
    line = re.compile(rf"((?<![a-z_]){re.escape(field)} = ).+")
    text, count = line.subn(rf"\g<1>{value}", TEXT.decode(), count=1)
    assert count == 1
    with pytest.raises(PolicyInvalid):
        parse_policy(text.encode())


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("person 0", "person 1"),
        ("person 0", ""),
        (PEOPLE[0].public.raw, PEOPLE[1].public.raw),
        (PEOPLE[0].public.raw, PEOPLE[0].public.raw.upper()),
        (PEOPLE[0].public.raw, "01" + "00" * 31),
    ],
    ids=["one name", "no name", "one key", "one key in capitals", "no key"],
)
def test_people_are_distinct_and_have_real_keys(good: str, bad: str) -> None:
    with pytest.raises(PolicyInvalid):
        parse_policy(TEXT.replace(good.encode(), bad.encode(), 1))


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"a = ", b"[" * 5000, b"x = " + b"[" * 3000, b"a = 1\na = 2"]
)
def test_what_is_no_policy_is_refused(text: bytes) -> None:
    with pytest.raises(PolicyInvalid):
        parse_policy(text)


def test_production_never_accepts_the_software_attester() -> None:
    production = TEXT.replace(b'"development"', b'"production"')
    with pytest.raises(PolicyInvalid, match="software-dev"):
        parse_policy(production)
    with pytest.raises(PolicyInvalid, match="software-dev"):
        parse_policy(production.replace(b'["software-dev"]', b'["tdx", "software-dev"]'))
    assert parse_policy(production.replace(b'["software-dev"]', b"[]")).attestation.accept == ()


def test_a_signed_policy_verifies() -> None:
    assert verify_policy(sign_policy(ROOT, TEXT), ROOT.public_key) == parse_policy(TEXT)


def test_nothing_invalid_gets_signed() -> None:
    with pytest.raises(PolicyInvalid):
        sign_policy(ROOT, b"version = 1")


def test_an_edited_text_does_not_verify_not_even_in_a_comment() -> None:
    signed = sign_policy(ROOT, TEXT)
    for edited in (
        TEXT.replace(b"-0.03", b"-0.30"),
        TEXT + b"#\n",
        TEXT.replace(b"# Cambium", b"# cambium"),
    ):
        with pytest.raises(DigestMismatch):
            verify_policy(SignedPolicy(toml=edited, signature=signed.signature), ROOT.public_key)


def test_another_root_does_not_verify() -> None:
    with pytest.raises(SignatureInvalid):
        verify_policy(sign_policy(generate_key(), TEXT), ROOT.public_key)


@pytest.mark.parametrize(
    "change",
    [
        {"action": "kill"},
        {"target": digest_bytes(b"other")},
        {"policy": digest_bytes(b"other")},
        {"expires": 1},
        {"domain_tag": "other"},
    ],
)
def test_another_act_of_the_root_is_no_policy(change: dict[str, object]) -> None:
    act = replace(sign_policy(ROOT, TEXT).signature.act, **change)
    with pytest.raises(DigestMismatch):
        verify_policy(SignedPolicy(toml=TEXT, signature=sign_act(ROOT, act)), ROOT.public_key)


def test_nothing_is_parsed_before_the_signature_holds() -> None:
    act = sign_policy(ROOT, TEXT).signature.act
    stranger = SignedPolicy(toml=b"not toml", signature=sign_act(generate_key(), act))
    with pytest.raises(SignatureInvalid):
        verify_policy(stranger, ROOT.public_key)


def test_another_text_is_not_even_parsed() -> None:
    signed = SignedPolicy(toml=b"not toml", signature=sign_policy(ROOT, TEXT).signature)
    with pytest.raises(DigestMismatch):
        verify_policy(signed, ROOT.public_key)


def test_a_gate_states_every_field_of_its_spec() -> None:
    block = TEXT[TEXT.rindex(b"[[gates]]") :].decode()
    assert set(re.findall(r"^(\w+) = ", block, re.MULTILINE)) == {f.name for f in fields(GateSpec)}


def test_a_domain_with_an_owner_is_for_nobody_else() -> None:
    owned = parse_policy(TEXT.replace(b"owners = {}", b'owners = { legal = "acme" }'))
    assert owned.domains.owners == {"legal": "acme"}
    assert owned.allows_domain("legal", tenant="acme")
    assert not owned.allows_domain("legal", tenant="other")
    assert owned.allows_domain("shared", tenant="other")
    assert owned.digest != parse_policy(TEXT).digest
