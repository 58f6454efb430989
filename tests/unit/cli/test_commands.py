"""Commands and options are few and frozen: a change here is a change of the contract."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import typer

from cambium.cli import build

FROZEN = {
    "init": ["--key", "--policy", "--profile", "--state"],
    "demo": ["--out", "--state"],
    "serve": ["--db", "--host", "--model", "--policy", "--port", "--state"],
    "export": ["--out", "--state", "ADAPTER"],
    "kill": ["--json", "--key", "--reason", "--state", "KEY"],
    "learn": [
        "--adapter", "--consent", "--domain", "--json", "--loss", "--lr", "--state", "--steps",
        "SOURCE",
    ],
    "adapters": ["--json", "--state"],
    "revisions": ["--json", "--state"],
    "proposals": ["--json", "--state"],
    "propose": ["--into", "--json", "--kind", "--state", "ADAPTER"],
    "show": ["--json", "--state", "PROPOSAL"],
    "diff": ["--by", "--json", "--prompts", "--samples", "--state", "A", "B"],
    "eval": [
        "--adapter", "--json", "--limit", "--log", "--revision", "--state", "TASK",
    ],
    "check": ["--json", "--state", "PROPOSAL"],
    "approve": ["--json", "--key", "--state", "PROPOSAL"],
    "vouch": ["--json", "--key", "--state", "PROPOSAL"],
    "waive": ["--json", "--key", "--reason", "--state", "GATE", "PROPOSAL"],
    "reject": ["--json", "--reason", "--state", "PROPOSAL"],
    "merge": ["--json", "--state", "PROPOSAL"],
    "rollback": ["--json", "--key", "--state", "KEY", "REVISION"],
    "quarantine": ["--json", "--key", "--reason", "--state", "KEY", "REVISION"],
    "drift": ["--json", "--picture", "--state"],
    "revive": ["--json", "--key", "--state", "KEY"],
    "log": ["--json", "--lane", "--since", "--state", "--verify"],
    "replay": ["--json", "--state", "ADAPTER"],
    "trace": ["--json", "--state", "--verify", "REQUEST_ID"],
    "witness": ["--json", "--lane", "--root", "--state"],
    "bench": ["--json", "NAME"],
    "pretrain": ["--out", "RECIPE"],
    "key new": ["--encrypt", "--json", "FILE"],
    "key list": ["--json", "--state"],
    "key drill": ["--json", "--out"],
    "key revoke": ["--json", "--key", "--reason", "--state", "KEY_ID"],
    "token list": ["--json", "--state"],
    "token new": ["--days", "--json", "--rate", "--role", "--state", "--tenant", "NAME"],
    "token revoke": ["--json", "--state", "TOKEN_ID"],
    "policy show": ["--json", "--state"],
    "key enroll": ["--json", "--name", "--state", "FILE"],
    "key ceremony": ["--encrypt", "--json", "--k", "--n", "--out"],
    "policy sign": ["--key", "--state-version", "FILE"],
    "policy diff": ["--json", "--state", "FILE"],
    "policy put": ["--from", "--json", "--key", "--root", "--state", "FILE"],
}  # fmt: skip


def test_the_commands_and_their_options_are_the_frozen_ones() -> None:
    assert dict(commands(typer.main.get_command(build()))) == FROZEN


def test_every_command_says_what_it_does() -> None:
    for name in FROZEN:
        command = typer.main.get_command(build())
        for part in name.split():
            command = command.commands[part]
        assert (command.help or "").strip(), name


def test_no_option_is_switched_off_by_a_second_spelling() -> None:
    command = typer.main.get_command(build()).commands["learn"]
    assert not any(p.secondary_opts for p in command.params if p.name != "consent")


def test_the_command_line_starts_without_its_heavy_parts() -> None:
    script = (
        "import sys\nfrom cambium.cli import main\nmain(['--help'])\n"
        "heavy = {'torch', 'transformers', 'sqlalchemy', 'fastapi', 'httpx', 'cryptography'}\n"
        "sys.exit(f'imported: {heavy & sys.modules.keys()}' if heavy & sys.modules.keys() else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_version(cambium) -> None:
    ended = cambium("--version")
    assert (ended.status, ended.out.count(".")) == (0, 2)


def commands(group, prefix: str = ""):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
            continue
        options = {o for p in command.params for o in spelled(p) if o != "--help"}
        yield prefix + name, sorted(options)


def spelled(parameter) -> list[str]:
    if parameter.param_type_name == "argument":
        return re.sub(r"[\[\].]", "", (parameter.metavar or parameter.name).upper()).split()
    return list(parameter.opts)


def test_the_reference_names_every_command_with_its_options() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text("utf-8")
    rows = {}
    for line in page.splitlines():
        if found := re.match(r"\| `([a-z ]+)` ?([A-Z_. \[\]]*) \| (.*?) \|", line):
            rows[found[1]] = sorted(
                [*re.findall(r"`(--[a-z-]+)`", found[3]), *re.sub(r"[\[\].]", "", found[2]).split()]
            )
    taking = ("rollback", "quarantine", "kill", "revive")
    keys_may_follow = {name: sorted([*rows[name], "KEY"]) for name in taking}
    assert rows | keys_may_follow == FROZEN
