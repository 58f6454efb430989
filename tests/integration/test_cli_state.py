"""The commands against the real server inside the process, on a tiny base."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cambium.cli import main
from cambium.models.tokenizer import TokenizerConfig, train_tokenizer
from cambium.serve.store.state import State

TEXTS = [f"fact {i}: the tree grows a thin layer of cambium in year {i}\n" for i in range(40)]


@dataclass(frozen=True)
class Ended:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tokenizer = train_tokenizer(TEXTS, TokenizerConfig(vocab_size=300))
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def cambium(
    base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    monkeypatch.setattr("cambium.models.base.BUNDLED", base)

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        status = main([str(a) for a in arguments])
        return Ended(status, *capsys.readouterr())

    return run


def test_a_state_is_worked_on_without_a_server(cambium, tmp_path: Path) -> None:
    state, notes = tmp_path / "state", tmp_path / "notes.jsonl"
    notes.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS[:20]))
    assert cambium("init", "--state", state).status == 0

    taught = cambium("learn", notes, "--adapter", "facts", "--steps", 2, "--state", state, "--json")
    assert (taught.status, len(taught.json["calls"])) == (0, 1), taught.err
    digest = taught.json["calls"][0]["digest_after"]
    (adapter,) = cambium("adapters", "--state", state, "--json").json["adapters"]
    assert (adapter["adapter_id"], adapter["digest"], adapter["steps"]) == ("facts", digest, 2)
    assert "facts" in cambium("adapters", "--state", state).out

    refused = cambium("propose", "facts", "--into", "facts", "--state", state)
    assert (refused.status, "consent" in refused.err) == (1, True)
    assert cambium("proposals", "--state", state, "--json").json["proposals"] == []
    for command in ("show", "diff", "merge"):
        assert cambium(command, "p-none", "--state", state).status == 2

    roles = [k["role"] for k in cambium("key", "list", "--state", state, "--json").json["keys"]]
    people = ["approver"] * 3 + ["attester", "evaluator", "operator", "root", "server"]
    assert sorted(roles) == people
    assert cambium("policy", "show", "--state", state).status == 0
    (genesis,) = cambium("revisions", "--state", state, "--json").json["revisions"]
    keys = ["--key", *(state / "keys" / f"approver-{i}.key" for i in (1, 2))]
    again = cambium("rollback", genesis["number"], *keys, "--state", state)
    assert (again.status, again.err.count("\n")) == (1, 1)
    verified = cambium("log", "--verify", "--state", state, "--json")
    assert verified.json["verified"] == len(verified.json["entries"]) >= 5


def test_a_changed_log_is_found(cambium, tmp_path: Path) -> None:
    cambium("init", "--state", tmp_path)
    assert cambium("log", "--verify", "--state", tmp_path).status == 0
    import sqlite3

    with sqlite3.connect(tmp_path / "cambium.db") as database:
        database.execute("UPDATE audit SET at = at + 1 WHERE seq = 1")
    database.close()
    ended = cambium("log", "--verify", "--state", tmp_path)
    assert (ended.status, "entry 1" in ended.err) == (1, True)


def test_a_held_state_points_to_the_server(cambium, tmp_path: Path) -> None:
    with State.open(tmp_path):
        ended = cambium("adapters", "--state", tmp_path)
    assert (ended.status, ended.out, ended.err.count("\n")) == (2, "", 1)
    assert "CAMBIUM_URL" in ended.err


def test_without_init_learning_works_and_proposing_says_what_is_missing(
    cambium, tmp_path: Path
) -> None:
    (tmp_path / "note.md").write_text(TEXTS[0])
    state = ("--state", tmp_path / "state")
    note = tmp_path / "note.md"
    assert cambium("learn", note, "--adapter", "a", "--steps", "1", "--consent", *state).status == 0
    ended = cambium("propose", "a", "--into", "facts", *state)
    assert (ended.status, "cambium init" in ended.err) == (1, True)


def test_who_owns_the_state_makes_the_first_token(cambium, tmp_path: Path) -> None:
    made = cambium("token", "new", "desk", "--role", "operator", "--state", tmp_path, "--json")
    assert made.status == 0, made.err
    # The folder's owner goes on without one; a socket would ask for it.
    assert cambium("adapters", "--state", tmp_path).status == 0
    listed = cambium("token", "list", "--state", tmp_path, "--json").json["tokens"]
    assert [t["token_id"] for t in listed] == [made.json["token_id"]]
    revoked = cambium("token", "revoke", made.json["token_id"], "--state", tmp_path)
    assert revoked.status == 0
