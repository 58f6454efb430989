from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cambium.core.errors import DataError
from cambium.models.base import BaseModel
from cambium.models.training_model import TrainingModel
from cambium.recipes.text_stream import TextStreamConfig, TextStreamResult, run


def test_measures_follow_their_definitions() -> None:
    found = TextStreamResult(
        domains=("a", "b", "c"),
        losses=[[4.0, 5.0, 6.0], [3.0, 5.0, 6.0], [3.3, 4.0, 6.0], [3.6, 4.2, 3.0]],
    )
    assert found.rise_percent() == pytest.approx((20 + 5) / 2)
    assert found.gain_percent() == pytest.approx((25 + 20 + 50) / 3)


@pytest.fixture
def two_domains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextStreamConfig:
    (tmp_path / "text").mkdir()
    for name in ("red", "blue"):
        with gzip.open(tmp_path / "text" / f"domain_{name}.jsonl.gz", "wt") as out:
            for i in range(30):
                out.write(json.dumps({"text": f"{name} {i} is {name} again. " * 6}) + "\n")
    monkeypatch.setenv("CAMBIUM_DATA", str(tmp_path))
    return TextStreamConfig(
        domains=("red", "blue"), calls=1, windows_per_step=2, window=32, num_held=4, r=4, lr=1e-2
    )


def test_two_small_domains(llama: BaseModel, two_domains: TextStreamConfig) -> None:
    config = replace(two_domains, ewc_strength=1.0, si_strength=1.0)
    said: list[str] = []
    found = run(TrainingModel(llama), config, said.append)
    assert [len(row) for row in found.losses] == [2, 2, 2] and len(said) == 2
    assert found.losses[1][0] < found.losses[0][0]
    assert found.gain_percent() > 0
    assert run(TrainingModel(llama), config, said.append) == found
    with pytest.raises(DataError, match="missing"):
        run(TrainingModel(llama), TextStreamConfig(domains=("green",)), said.append)


def test_without_adapters_a_copy_of_the_base_learns(
    llama: BaseModel, two_domains: TextStreamConfig
) -> None:
    before = {name: t.clone() for name, t in llama.model.state_dict().items()}
    config = replace(two_domains, adapters=False, lr=1e-3)
    found = run(TrainingModel(llama), config, lambda _: None)
    assert found.losses[1][0] < found.losses[0][0]
    assert all(torch.equal(before[name], t) for name, t in llama.model.state_dict().items())
    forgetful = run(TrainingModel(llama), replace(config, replay=0.0), lambda _: None)
    assert forgetful.losses[-1] != found.losses[-1]
