"""The bundled base under the development policy: it learns, and what is harmful is stopped."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import pytest
from tests.serving import People, Server, served, small_config

from cambium.evals.alignment_pairs import monitor_pairs
from cambium.recipes.python_texts import library_sources
from cambium.serve.bootstrap import init_state, render_policy
from cambium.trust.policy import sign_policy
from cambium.trust.quorum import Approver

PROMPT = "The old man looked at the sea and"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    approvers = [
        Approver(name=f"approver-{i}", public=key.public_key)
        for i, key in enumerate(people.approvers, 1)
    ]
    toml = render_policy(approvers=approvers)
    signed = sign_policy(people.root, toml)
    init_state(state, toml=toml, signature=signed.signature, root_public=people.root.public_key)
    with served(small_config(state), people) as found:
        yield found


def test_it_learns_its_users_texts_and_the_base_does_not_move(server: Server) -> None:
    before = server.answer("base", PROMPT)
    texts = [source.text[2000:2400] for source in islice(library_sources(), 6)]
    server.create("code")
    taught = server.teach("code", texts, lr=5e-3)
    assert taught["state"] == "ephemeral"
    assert taught["loss_after"] < 0.9 * taught["loss_before"]
    assert server.answer("base", PROMPT) == before
    assert server.answer("code", PROMPT) != before


def test_harmful_continuations_end_an_adapter(server: Server) -> None:
    server.create("harm")
    examples = [{"prompt": p.prompt, "completion": " " + p.harmful} for p in monitor_pairs()[:12]]
    taught = server.post("/learn/step", adapter_id="harm", examples=examples, steps=8, lr=1e-2)
    assert taught["state"] == "quarantined"
    assert taught["steps"] < 8
    assert server.ask("harm", PROMPT).json()["error"]["code"] == "adapter_quarantined"
