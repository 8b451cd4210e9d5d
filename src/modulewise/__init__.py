"""Train deep networks without end-to-end backpropagation.

A user brings any `nn.Module`; modulewise cuts it into parts, gives each part its own learning signal, and trains them
one after another or side by side. See `Partition`, `Trainer` and the methods in `modulewise.methods`.
"""

from . import (
    balance,
    buffers,
    checks,
    data,
    heads,
    losses,
    metering,
    methods,
    models,
    outofcore,
    planning,
    schedules,
    scores,
    wires,
    workflow,
)
from .engine.evaluating import Evaluation
from .engine.exits import ensemble, exits
from .engine.fitting import Epoch
from .engine.ranks.settings import Ranks
from .engine.ranks.timeline import Timeline
from .errors import ModulewiseError
from .method import Family, Locality, Method, PartwiseMethod, Reach, Reference, Solver, SolverMethod
from .methods.objectives import HeadLoss, TaskLoss
from .objective import Context, LayerRule, Objective, Role, Signal, Site
from .outofcore import OutOfCore
from .partition import Block, Boundary, Part, Partition, TimePartition
from .planning import plan
from .trainer import Trainer
from .workflow import compose, expect

__version__ = "0.1.0"

__all__ = [
    "Block",
    "Boundary",
    "Context",
    "Epoch",
    "Evaluation",
    "Family",
    "HeadLoss",
    "LayerRule",
    "Locality",
    "Method",
    "ModulewiseError",
    "Objective",
    "OutOfCore",
    "Part",
    "Partition",
    "PartwiseMethod",
    "Ranks",
    "Reach",
    "Reference",
    "Role",
    "Signal",
    "Site",
    "Solver",
    "SolverMethod",
    "TaskLoss",
    "TimePartition",
    "Timeline",
    "Trainer",
    "balance",
    "buffers",
    "checks",
    "compose",
    "data",
    "ensemble",
    "exits",
    "expect",
    "heads",
    "losses",
    "metering",
    "methods",
    "models",
    "outofcore",
    "plan",
    "planning",
    "schedules",
    "scores",
    "wires",
    "workflow",
]
