"""Hardware that is not on the desk: compile for it, and say what a step would cost.

`bpfree-train --compile_for=tpu:v5e:4x4` prints the report of a config's run; `report` is
the same for a step of your own. The extras `tpu` and `cuda` bring the compilers.
"""

from bpfree.hardware.report import Report, report
from bpfree.hardware.table import table
from bpfree.hardware.targets import HardwareError, Target, devices, find, mesh

__all__ = [
    "HardwareError",
    "Report",
    "Target",
    "devices",
    "find",
    "mesh",
    "report",
    "table",
]
