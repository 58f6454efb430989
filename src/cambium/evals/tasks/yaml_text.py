"""YAML of strangers: plain data only, no tags, bounded before anything is built from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cambium.evals.errors import TaskInvalid

MAX_FILE_BYTES = 256 * 1024
MAX_WORD = 300
MAX_DEPTH = 30
MAX_NODES = 20_000
MAX_INCLUDES = 20


def read_settings(path: Path) -> dict[str, Any]:
    """Returns a task file's settings, merged over those that it includes.

    An included file must lie in the folder of the file first read, or below it.

    Raises:
        TaskInvalid: a file is missing, no YAML mapping, too large, or asks for code to be run.
    """
    return _merged(path.resolve(), path.resolve().parent, [])


def _merged(path: Path, root: Path, seen: list[Path]) -> dict[str, Any]:
    if path in seen or len(seen) >= MAX_INCLUDES:
        raise TaskInvalid(f"{path.name} includes itself, or files include too many others",
                          mend="include each file once")  # fmt: skip
    seen.append(path)
    settings = _parsed(path)
    included = settings.pop("include", [])
    merged: dict[str, Any] = {}
    for name in included if isinstance(included, list) else [included]:
        other = (path.parent / str(name)).resolve()
        if not other.is_relative_to(root):
            raise TaskInvalid(f"{path.name} includes {str(name)[:80]!r}, outside of its folder",
                              mend="move that file beside the task")  # fmt: skip
        inherited = _merged(other, root, seen)
        inherited.pop("task_list", None)
        merged |= inherited
    return merged | settings


def _parsed(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ValueError(f"it has more than {MAX_FILE_BYTES} bytes")
        return _data(data.decode("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError, TypeError, LookupError,
            AttributeError, OverflowError) as error:  # fmt: skip
        told = " ".join(str(error).split())[:200]
        raise TaskInvalid(
            f"the task file {path.name} cannot be read: {told}",
            mend="write a YAML mapping as lm-evaluation-harness reads",
        ) from error


def _data(text: str) -> dict[str, Any]:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"it nests deeper than {MAX_DEPTH}")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.ScalarEvent) and _is_endless(event):
            raise ValueError(f"it holds a word or number of more than {MAX_WORD} characters")
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!" and not tag.startswith("tag:yaml.org,2002:"):
            raise ValueError(f"it has the tag {tag[:40]!r}; tags such as !function run code")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise ValueError("it is no mapping")
        if _num_nodes(node, {}) > MAX_NODES:
            raise ValueError(f"it holds more than {MAX_NODES} values, aliases written out")
        return {_key(key): value for key, value in loader.construct_document(node).items()}
    finally:
        loader.dispose()


def _is_endless(event: yaml.ScalarEvent) -> bool:
    """Returns whether an unquoted value could be a number that Python takes long to write out."""
    return event.style is None and len(event.value) > MAX_WORD and " " not in event.value


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"the key {str(key)[:40]!r} is no text")
    return key


def _num_nodes(node: yaml.Node, known: dict[int, int]) -> int:
    """Returns how many values a node holds when what is named twice is written twice."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # a node inside itself has no end
        inner = 0
        if isinstance(node, yaml.SequenceNode):
            inner = sum(_num_nodes(item, known) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            inner = sum(_num_nodes(part, known) for pair in node.value for part in pair)
        known[id(node)] = 1 + inner
    return known[id(node)]
