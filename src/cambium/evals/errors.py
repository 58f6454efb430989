"""What only evals can meet; the root and all else stands in `cambium.core.errors`."""

from __future__ import annotations

from cambium.core.errors import CambiumError, DataError


class TaskInvalid(DataError, code="task_invalid"):
    """A task file, or the data it names, that cannot be read or asks for what is not offered."""


class GateBroken(CambiumError, code="gate_broken"):
    """A gate that could not be measured."""
