"""How fast is the simulator? `python benchmarks/sim.py [--quick] [--only sweep]`

CPU seconds of one process, drawing the numbers and building the attempts table included; medians of three rounds, in
each of which the engines take turns (SimPy, the fast engine in Python, the fast engine by numba), so that a ratio
compares two of one round. `target` is what is promised, `met` whether it is kept here. Compiling is timed apart, in
processes of its own. `--quick` takes fewer users and one round.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent

# Python puts the folder of the script that it runs first on the path, where this file hides the package `sim`.
if __name__ == "sim":  # another script of this folder is run, and somebody wants the package
    path = sys.path.copy()
    sys.path[:] = [str(FOLDER.parent), *(entry for entry in path if Path(entry).resolve() != FOLDER)]
    del sys.modules["sim"]
    importlib.import_module("sim")
    sys.path[:] = path
elif __name__ == "__main__":
    if Path(sys.path[0]).resolve() == FOLDER:
        sys.path[0] = str(FOLDER.parent)
    sys.exit(importlib.import_module("benchmarks.sim_speed").main(__doc__))
