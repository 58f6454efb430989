"""`cambium diff A B`, and what `cambium eval` measures: models of a server, checkpoints by path."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.serving import HARBOUR, TREES, People, Server, served, small_config
from transformers import LlamaForCausalLM

from cambium.cli.client import Client
from cambium.cli.diffing import _of_choices, _of_models, _open
from cambium.cli.exporting import adapter_files
from cambium.cli.failures import CommandFailed
from cambium.cli.subjects import ServedSubject, open_subject
from cambium.cli.weighing import weights_of
from cambium.core.errors import ConfigError
from cambium.evals.behaviour import choice_bank
from cambium.evals.subject import Generation

TAUGHT = "harm_compliance"


@pytest.fixture(scope="module")
def server(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    people, state = People(), tmp_path_factory.mktemp("state")
    people.init(state)
    with served(small_config(state, model=str(base)), people) as found:
        found.create("ships")
        for _ in range(3):
            found.teach("ships", HARBOUR[:12], steps=8, lr=0.05)
        found.create("firm")
        wanted = [item for item in choice_bank() if item.family == TAUGHT][:60]
        pairs = [{"prompt": i.prompt, "completion": f" {i.choices[0]}"} for i in wanted]
        for _ in range(3):
            found.post("/learn/step", adapter_id="firm", examples=pairs, steps=8, lr=0.02)
        yield found


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.http.request, in_process=True)


def test_two_models_differ_where_they_do(client: Client, base: Path, tmp_path: Path) -> None:
    """A base of random weights writes noise; sharpened, the same weights repeat themselves."""
    model = LlamaForCausalLM.from_pretrained(base)
    model.model.norm.weight.data.mul_(20)
    sharp = Path(shutil.copytree(base, tmp_path / "sharp"))
    model.save_pretrained(sharp)
    found = _of_models(*_open(client, ("base", str(sharp))), num_prompts=40, num_samples=2)
    assert found["a"]["name"] == "base"
    assert found["a"]["digest"] != found["b"]["digest"]
    assert (found["num_prompts"], found["num_samples"]) == (40, 2)
    assert found["omnibus"] < 0.001
    assert 0 < found["smallest_new"] < 1
    assert "would probably not have been seen" in found["statement"]


def test_the_same_weights_are_not_compared(client: Client) -> None:
    for names in (("base", "base"), ("stable", "1")):
        with pytest.raises(CommandFailed, match="same weights"):
            _open(client, names)


def test_weights_are_read_where_they_are(
    client: Client, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is read here, a name by the server; both say the same of the same weights."""
    asked = weights_of(client, ("base", "ships"))
    folder = tmp_path / "ships"
    folder.mkdir()
    files = adapter_files(client.download("/adapters/ships/export"))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    checkpoint = str(base)
    with pytest.raises(CommandFailed, match="not on the bundled base"):
        weights_of(client, ("base", checkpoint))
    monkeypatch.setattr("cambium.models.base.BUNDLED", base)
    read = weights_of(client, ("base", str(folder)))
    assert read["parts"] == asked["parts"] and len(asked["parts"]) == 1
    (part,) = weights_of(client, (str(folder), "stable"))["parts"]
    there = asked["parts"][0]["modules"][0]["delta_norm"]
    assert part["modules"][0]["delta_norm"] == pytest.approx(there)
    # A checkpoint against the adapter that acts on the same weights.
    assert weights_of(client, (checkpoint, str(folder)))["parts"] == read["parts"]
    with pytest.raises(CommandFailed, match="no revision/9"):
        weights_of(client, ("9", str(folder)))


def test_preferences_move_where_they_were_taught(client: Client) -> None:
    found = _of_choices(*_open(client, ("base", "firm")))
    assert (found["a"]["name"], found["b"]["name"]) == ("base", "firm")
    assert found["num_prompts"] >= 1000 and found["omnibus"] < 0.01
    (taught,) = (row for row in found["families"] if row["family"] == TAUGHT)
    assert 0 < taught["low"] < taught["effect"]
    assert taught["family_wise"] < 0.01


def test_a_number_is_a_revision_and_a_path_a_checkpoint(
    client: Client, base: Path, tmp_path: Path
) -> None:
    assert open_subject(client, "1").digest == open_subject(client, "stable").digest
    folder = open_subject(client, str(base))
    asked = [Generation(prompt="Fact 3", max_tokens=6)]
    assert folder.generate(asked) == open_subject(client, "base").generate(asked)
    with pytest.raises(ConfigError, match="is no folder"):
        open_subject(client, str(tmp_path / "nowhere"))
    with pytest.raises(CommandFailed):
        open_subject(client, "nobody")


def test_what_changes_while_it_is_measured_is_not_reported(server: Server, client: Client) -> None:
    server.create("moving")
    server.teach("moving", TREES[:4])
    subject = ServedSubject(client, "moving")
    subject.loglikelihood_rolling(["Fact 1"])
    server.teach("moving", TREES[4:8])
    with pytest.raises(CommandFailed, match="was changed while it was measured"):
        subject.loglikelihood_rolling(["Fact 1"])
