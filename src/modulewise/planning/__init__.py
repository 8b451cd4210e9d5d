"""Know before you run: which parts fit a memory, what each takes, what several devices give; nothing is allocated."""

from .finding import find, plan, predict
from .placing import Devices, Placement, Throughput, place
from .plan import Control, Plan, PlannedPart, part_rows
from .sizes import read_size, size_text
from .task import Residence, Task, task_of

__all__ = [
    "Control",
    "Devices",
    "Placement",
    "Plan",
    "PlannedPart",
    "Residence",
    "Task",
    "Throughput",
    "find",
    "part_rows",
    "place",
    "plan",
    "predict",
    "read_size",
    "size_text",
    "task_of",
]
