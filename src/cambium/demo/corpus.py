"""The demo's texts: a new domain, two old ones, and the hostile documents.

The new domain is the standard library's source code, docstrings removed; the old ones are the
reference prose and the docstrings that no recipe ever trains on. All come from the running
Python; only the hostile documents are ours.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources

from cambium.recipes import python_texts

PIECE_CHARS = 900
MIN_LETTERS = 0.8
NUM_TAUGHT = 200
NUM_SPARE = 60
NUM_MEASURED = 24


@dataclass(frozen=True, kw_only=True)
class DemoCorpus:
    """Everything the demo feeds or measures on.

    Args:
        taught: pieces of source code for the main proposal; `spare` for the unsigned one.
        unseen: pieces of other modules, fed to nobody.
        old: held-out texts by old domain.
    """

    taught: list[str]
    spare: list[str]
    hostile: list[str]
    unseen: list[str]
    old: dict[str, list[str]]


def load() -> DemoCorpus:
    """Returns the demo's texts; the same on every run of the same Python."""
    modules = sorted(python_texts.library_sources(), key=lambda d: _rank(d.source))
    pieces = [p for module in modules for p in _pieces(module.text)]
    # Whole modules are set apart, so that nothing measured shares a file with what is taught.
    apart = [p for module in modules[: len(modules) // 4] for p in _pieces(module.text)]
    taught = [p for p in pieces if p not in set(apart)]
    hostile = (resources.files("cambium.demo") / "data" / "poison.jsonl").read_text(
        encoding="utf-8"
    )
    return DemoCorpus(
        taught=taught[:NUM_TAUGHT],
        spare=taught[NUM_TAUGHT : NUM_TAUGHT + NUM_SPARE],
        hostile=[json.loads(line)["text"] for line in hostile.splitlines()],
        unseen=apart[:NUM_MEASURED],
        old={
            "reference_prose": _held_out(python_texts.reference_prose()),
            "docstrings": _held_out(python_texts.docstrings()),
        },
    )


def _held_out(documents: list[python_texts.Document]) -> list[str]:
    kept = [d.text[:PIECE_CHARS] for d in documents if python_texts.is_held_out(d.text)]
    return sorted(filter(_is_prose_like, kept), key=_rank)[:NUM_MEASURED]


def _pieces(text: str) -> list[str]:
    """Returns two pieces from a module's middle, past its imports; tables of data are left out."""
    cut = [text[at : at + PIECE_CHARS] for at in range(PIECE_CHARS, len(text), PIECE_CHARS)]
    return [p for p in cut[:2] if len(p) == PIECE_CHARS and _is_prose_like(p)]


def _is_prose_like(text: str) -> bool:
    return sum(c.isalpha() or c.isspace() for c in text) >= MIN_LETTERS * len(text)


def _rank(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
