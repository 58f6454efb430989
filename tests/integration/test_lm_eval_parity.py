"""The same five tasks by lm-evaluation-harness and by us, on the bundled base, in one process."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from cambium.bench.harness_parity import Agreement, agreement, write_tasks
from cambium.evals.local_subject import LocalSubject
from cambium.evals.tasks.harness_yaml import task_of
from cambium.evals.tasks.run import TaskResult, run_task
from cambium.models.base import load_base

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")
NAMES = ("letters", "sentences", "ends", "writing", "topics")
NUM_DOCS = 6


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[TaskResult, dict[str, object]]]:
    from cambium.bench.harness_parity import Harness

    folder: Path = tmp_path_factory.mktemp("parity")
    base = load_base()
    subject = LocalSubject(base, name="base", digest=base.digest)
    settings = write_tasks(folder, NUM_DOCS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        harness = Harness(base, settings, folder)
        return {
            name: (run_task(subject, task_of(own, folder)), harness.run(name))
            for name, own in settings.items()
        }


@pytest.mark.parametrize("name", NAMES)
def test_figures_and_answers_agree(
    name: str, runs: dict[str, tuple[TaskResult, dict[str, object]]]
) -> None:
    found: Agreement = agreement(*runs[name])
    assert found.num_docs == NUM_DOCS
    assert found.metric < 1e-4
    assert found.logprob < 1e-4
    assert found.num_texts == 0


def test_a_difference_would_be_seen(
    runs: dict[str, tuple[TaskResult, dict[str, object]]],
) -> None:
    """The control: another task's numbers, or another order of documents, are no agreement."""
    ours, theirs = runs["sentences"]
    changed = {**theirs, "results": {"sentences": {"acc,none": 0.5, "acc_norm,none": 2.0}}}
    assert agreement(ours, changed).metric > 0.1
    samples = theirs["samples"]["sentences"]  # type: ignore[index]
    swapped = [{**s, "doc_id": NUM_DOCS - 1 - s["doc_id"]} for s in samples]
    with pytest.raises(ValueError, match="asked differently"):
        agreement(ours, {**theirs, "samples": {"sentences": swapped}})
