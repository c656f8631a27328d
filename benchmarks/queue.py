"""How fast is the queue, beside stock SAQ on the same server? `python benchmarks/queue.py [--quick] [--only drain]`

Every part measures stock SAQ and ours in turn, round by round (stock, ours, stock, ours, …), and a ratio compares the
two of one round: the host's speed drifts, so read the ratios, not the rates. All of it takes about a quarter of an
hour, with `--quick` two minutes; leave the machine alone meanwhile. The server is a private one without persistence.

Columns: `value` and `stock`, medians over the rounds; `ratio`, the median of value / stock of each round, with the
least and the greatest; `target`, what is promised, of the value (with a unit) or of the ratio (with ×); `met`, whether
the median keeps it. Who is measured: `plain saq`, our queue under SAQ's own worker, as `saq saqkit.settings` runs it;
`saqkit worker`, our queue under our worker (`, uvloop`: on that loop, beside stock on asyncio's); each in a process of
its own, with no-op jobs unless said otherwise, and every default on.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

# Python puts the folder of the script that it runs first on the path, where this file hides the library's own `queue`.
if __name__ == "queue":  # another script of this folder is run, and somebody wants the library's module
    path = sys.path.copy()
    sys.path[:] = [entry for entry in path if Path(entry).resolve() != FOLDER]
    del sys.modules["queue"]
    importlib.import_module("queue")
    sys.path[:] = path
elif __name__ == "__main__":
    if sys.path[0] == str(FOLDER):
        sys.path[0] = str(FOLDER.parent)
    sys.exit(importlib.import_module("benchmarks.queue_command").main(__doc__))
