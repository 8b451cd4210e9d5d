"""Methods side by side: one experiment, many runs, one table."""

from .experiment import Balancing, Configuration, Descent, Experiment, RateSchedule, Run, configurations, runs
from .folder import Folder
from .results import Result
from .running import run
from .summary import Row, summarise
from .watching import TensorBoard, Watcher

__all__ = [
    "Balancing",
    "Configuration",
    "Descent",
    "Experiment",
    "Folder",
    "RateSchedule",
    "Result",
    "Row",
    "Run",
    "TensorBoard",
    "Watcher",
    "configurations",
    "run",
    "runs",
    "summarise",
]
