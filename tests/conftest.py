"""What every test starts from: fixed threads, fixed seeds, deterministic property tests, data."""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).parents[1]
# Beside each other, workers of pytest-xdist take a core each.
NUM_THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else 2
SEED = 0
# Begun in this order when files are dealt to workers, so that the last ones to end are short.
LONGEST_FIRST = ("docs", "integration", "security", "browser", "contract")

# Read by torch when it is first imported, and by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", str(NUM_THREADS))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

# The same examples in every run: a failure that CI sees can be seen again.
settings.register_profile("cambium", derandomize=True, deadline=None, database=None)
settings.load_profile("cambium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts folders of long tests before the others; within a folder nothing moves."""
    ranks = {folder: rank for rank, folder in enumerate(LONGEST_FIRST)}
    tests = Path(__file__).parent
    items.sort(key=lambda i: ranks.get(i.path.relative_to(tests).parts[0], len(ranks)))


@pytest.fixture(autouse=True)
def fixed_numbers() -> None:
    """Seeds every generator in use; torch is touched only where a test has loaded it already."""
    random.seed(SEED)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(SEED)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(SEED)
        if torch.get_num_threads() != NUM_THREADS:
            torch.set_num_threads(NUM_THREADS)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Gives the folder of real data; skips without it, or fails under CAMBIUM_REQUIRE_DATA=1."""
    default = ROOT.parent / "shared" / "data"
    folder = Path(os.environ.get("CAMBIUM_DATA") or default)
    if not folder.is_dir():
        reason = f"needs real data: {folder} is not a folder; set CAMBIUM_DATA"
        if os.environ.get("CAMBIUM_REQUIRE_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
