"""Token buckets: a minute's requests at once after a quiet minute, then as fast as they refill."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

from cambium.serve.errors import RateLimited


class RateLimits:
    """One bucket for each key; safe for threads."""

    def __init__(self, *, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._buckets: dict[str, tuple[float, float]] = {}
        self._lock = threading.Lock()

    def take(self, key: str, *, per_minute: int) -> None:
        """Takes one request's worth.

        Raises:
            RateLimited: the bucket is empty; nothing was taken.
        """
        with self._lock:
            now = self._now_s()
            left, at = self._buckets.get(key, (float(per_minute), now))
            left = min(per_minute, left + max(0.0, now - at) * per_minute / 60)
            if left < 1:
                wait_s = math.ceil((1 - left) * 60 / per_minute)
                self._buckets[key] = (left, now)
                raise RateLimited(
                    f"over {per_minute} requests a minute",
                    mend=f"wait {wait_s} s",
                    detail={"retry_after_s": wait_s},
                )
            self._buckets[key] = (left - 1, now)
