"""Reads a policy's TOML tables strictly: nothing missing, nothing unknown, nothing converted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from cambium.core.errors import PolicyInvalid

MAX_NUMBER = 2**53


class StrictTable:
    """One table, read field by field; what is not of the wanted type is refused by name.

    Every method raises `PolicyInvalid`, which names the field.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def exactly(self, names: set[str]) -> None:
        for name in sorted(set(self.values) ^ names):
            raise self._bad(name, "is missing" if name in names else "is unknown")

    def table(self, name: str, names: set[str]) -> StrictTable:
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self._bad(name, "is not a table")
        inner = StrictTable(cast("dict[str, object]", value), name)
        inner.exactly(names)
        return inner

    def tables(self, name: str) -> list[StrictTable]:
        found: list[StrictTable] = []
        for index, item in enumerate(self._array(name)):
            if not isinstance(item, dict):
                raise self._bad(name, "is not a list of tables")
            found.append(StrictTable(cast("dict[str, object]", item), f"{name}[{index}]"))
        return found

    def text(self, name: str) -> str:
        value = self.values.get(name)
        if not isinstance(value, str) or not value.strip():
            raise self._bad(name, "is not a text, or empty")
        return value

    def texts(self, name: str, *, may_be_empty: bool = False) -> tuple[str, ...]:
        items = self._array(name)
        if not all(isinstance(item, str) and item for item in items):
            raise self._bad(name, "is not a list of texts")
        self.require(bool(items) or may_be_empty, name, "is empty")
        self.require(len(set(items)) == len(items), name, "holds a text twice")
        return tuple(str(item) for item in items)

    def whole(self, name: str, *, least: int = 1) -> int:
        value = self.values.get(name)
        if type(value) is not int or not least <= value <= MAX_NUMBER:
            raise self._bad(name, f"is not a whole number of at least {least}")
        return value

    def number(self, name: str) -> float:
        value = self.values.get(name)
        # The comparison refuses nan and infinity as well.
        if type(value) not in (int, float) or not abs(cast("float", value)) <= MAX_NUMBER:
            raise self._bad(name, "is not a finite number")
        return float(cast("float", value))

    def flag(self, name: str) -> bool:
        value = self.values.get(name)
        if not isinstance(value, bool):
            raise self._bad(name, "is not true or false")
        return value

    def require(self, holds: bool, name: str, why: str) -> None:
        if not holds:
            raise self._bad(name, why)

    def _array(self, name: str) -> list[object]:
        value = self.values.get(name)
        if not isinstance(value, list):
            raise self._bad(name, "is not a list")
        return cast("list[object]", value)

    def _bad(self, name: str, why: str) -> PolicyInvalid:
        return PolicyInvalid(f"{self.where}: {name} {why}", mend="correct the policy's text")
