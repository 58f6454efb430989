"""The adapters of a batch whose rows come and go, as one stack of which only changes are written.

Shape letters as in `base`: B rows, I inputs, O outputs of a module.
"""

from __future__ import annotations

from collections.abc import Sequence

from cambium.models.adapter import Adapter
from cambium.models.base import RowWeights, stack_rows

Row = tuple[Adapter, ...]


class RowStack:
    """Weights for a batch of fixed size: what `stack_rows` gives, perhaps with more zeros.

    Stacking a whole batch anew takes as long as several tokens do, so whoever comes is copied
    into its row, and whoever leaves is overwritten with zeros. All rows are stacked anew only for
    modules, ranks or virtual tokens that nobody had before.
    """

    def __init__(self, num_rows: int) -> None:
        self.weights: RowWeights | None = None
        self._rows: list[Row] = [()] * num_rows

    def put(self, row: int, adapters: Row, stacked: RowWeights | None, at: int) -> None:
        """Gives a row its adapters.

        Args:
            stacked: what `stack_rows` gave for a batch in which row `at` has these adapters.
        """
        old, self._rows[row] = self._rows[row], adapters
        if not old and not adapters:
            return
        if not any(self._rows):
            self.weights = None
        elif self._fits(old) and self._fits(adapters):
            self._write(row, stacked if adapters else None, at)
        else:
            self.weights = stack_rows(self._rows)

    def clear(self, row: int) -> None:
        """Takes a row's adapters away; nothing of them stays behind."""
        self.put(row, (), None, 0)

    def forget(self) -> None:
        """Takes every row's adapters away."""
        self._rows = [()] * len(self._rows)
        self.weights = None

    def _fits(self, adapters: Sequence[Adapter]) -> bool:
        """Returns whether a row with these adapters can be written into the stack there is."""
        if not adapters:
            return True
        if self.weights is None or any(one.prompt is not None for one in adapters):
            return False
        paths = {path for one in adapters for path in one.a}
        rank = sum(one.rank for one in adapters)
        return paths <= self.weights.sites.keys() and rank <= self.weights.rank

    def _write(self, row: int, stacked: RowWeights | None, at: int) -> None:
        if self.weights is None:
            return
        for path, slices in self.weights.sites.items():
            own = stacked.sites.get(path, ()) if stacked else ()
            for i, (a, b) in enumerate(slices):
                if i < len(own):
                    a[row], b[row] = own[i][0][at], own[i][1][at]
                else:
                    a[row] = b[row] = 0
