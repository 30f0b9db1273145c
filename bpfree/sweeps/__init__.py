"""Many runs: `bpfree-sweep --config=configs/digits.py --workdir=runs/sweep`.

The points are what `get_sweep()`, next to `get_config()`, returns. One idea a file:
`points` (what is to be run, and which points share a program), `together` (one compiled
program for many points), `worker` (a process that runs points), `schedule` (workers on
devices and cores), `ledger` (what is finished), `report`, `search` and `cluster`.
"""

from bpfree.sweeps.points import Point, make_points
from bpfree.sweeps.schedule import sweep

__all__ = ["Point", "make_points", "sweep"]
