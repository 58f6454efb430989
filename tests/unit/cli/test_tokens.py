from __future__ import annotations

TOKEN = {
    "token_id": "0a1b",
    "name": "web",
    "tenant": "acme",
    "roles": ["client", "learner"],
    "requests_per_minute": 6000,
    "created_at": 1,
    "expires_at": None,
    "revoked_at": None,
}


def test_a_token_is_ordered_and_shown(cambium, stage) -> None:
    stage.answers["POST /tokens"] = (201, {**TOKEN, "token": "cambium_0a1b_secret"})
    roles = ("--role", "client", "--role", "learner")
    ended = cambium("token", "new", "web", "--tenant", "acme", *roles, "--rate", 60, "--days", 9)
    assert (ended.status, "cambium_0a1b_secret" in ended.out) == (0, True)
    (sent,) = stage.sent("POST /tokens")
    assert sent == {
        "name": "web",
        "tenant": "acme",
        "roles": ["client", "learner"],
        "requests_per_minute": 60,
        "days": 9,
    }


def test_what_is_left_out_is_left_to_the_server(cambium, stage) -> None:
    stage.answers["POST /tokens"] = (201, {**TOKEN, "token": "cambium_0a1b_secret"})
    shown = cambium("token", "new", "root", "--role", "operator", "--json").json
    assert shown["token"] == "cambium_0a1b_secret"
    assert stage.sent("POST /tokens") == [
        {"name": "root", "tenant": "default", "roles": ["operator"]}
    ]


def test_a_token_without_a_role_is_a_wrong_call(cambium, stage) -> None:
    assert cambium("token", "new", "web").status == 2
    assert stage.calls == []


def test_tokens_are_listed(cambium, stage) -> None:
    stage.answers["GET /tokens"] = (200, {"tokens": [TOKEN]})
    out = cambium("token", "list").out
    assert "acme" in out and "client, learner" in out
    assert cambium("token", "list", "--json").json == {"tokens": [TOKEN]}


def test_a_token_is_revoked(cambium, stage) -> None:
    stage.answers["DELETE /tokens/0a1b"] = (200, {"token_id": "0a1b", "revoked": True})
    assert cambium("token", "revoke", "0a1b").status == 0
    assert cambium("token", "revoke", "0c").status == 2


def test_a_refused_token_ends_as_a_wrong_call(cambium, stage) -> None:
    problem = {"code": "unauthenticated", "detail": "no token", "mend": "set CAMBIUM_TOKEN"}
    stage.answers["GET /adapters"] = (401, problem)
    ended = cambium("adapters")
    assert (ended.status, "CAMBIUM_TOKEN" in ended.err) == (2, True)
