"""The benchmark of scores: rankings without training, beside the accuracies that training on every part reached."""

from .agreement import regret, weighted_tau
from .binary import BinarySetting, binary_experiment
from .book import agreement_rows, keep, read
from .judging import Candidate, Field, Pair, head_accuracy, judged
from .modules import ModulesSetting, modules_experiment
from .sources import Training, part_of, source_model, train_source

__all__ = [
    "BinarySetting",
    "Candidate",
    "Field",
    "ModulesSetting",
    "Pair",
    "Training",
    "agreement_rows",
    "binary_experiment",
    "head_accuracy",
    "judged",
    "keep",
    "modules_experiment",
    "part_of",
    "read",
    "regret",
    "source_model",
    "train_source",
    "weighted_tau",
]
