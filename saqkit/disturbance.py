"""What other processes take of the host while we measure: the reason to mark a run as disturbed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable

import psutil

__all__ = ["OtherLoad", "other_load"]


class OtherLoad:
    """Watches, from its making on, what processes outside of ours take of the host.

    Ours are this process, its descendants and those of the processes `ours` (a database server, say). A descendant that
    ended counts as long as its parent is one of ours and has waited for it. On a virtual machine, time that the
    hypervisor gave to others ("steal") is other load too.
    """

    def __init__(self, ours: Iterable[int] = ()) -> None:
        self._ours = {os.getpid(), *ours}
        self._start = self._times()

    def share(self) -> float:
        """The share (0 to 1) of all cores of the host that others used since the making."""
        total, busy, own = (now - then for now, then in zip(self._times(), self._start, strict=True))
        return min(1.0, max(0.0, busy - own) / total) if total > 0 else 0.0

    def _times(self) -> tuple[float, float, float]:
        own = 0.0
        processes: set[psutil.Process] = set()
        for pid in self._ours:
            with contextlib.suppress(psutil.Error):
                processes |= {psutil.Process(pid), *psutil.Process(pid).children(recursive=True)}
        for process in processes:
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                own += times.user + times.system + times.children_user + times.children_system
        host = psutil.cpu_times()._asdict()
        for name in ("guest", "guest_nice"):  # Linux counts them in user and nice as well
            host.pop(name, None)
        total = sum(host.values())
        return total, total - host["idle"] - host.get("iowait", 0.0), own


def other_load(window_s: float = 0.5, ours: Iterable[int] = ()) -> float:
    """`OtherLoad.share` over the next `window_s` seconds, for which it blocks; the kernel counts in steps of 10 ms."""
    watch = OtherLoad(ours)
    time.sleep(window_s)
    return watch.share()
