"""Options that commands share, and lists of words as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import torch
import typer

from ..compare import Balancing, Descent, RateSchedule
from ..errors import ModulewiseError

__all__ = [
    "Augment",
    "BatchSize",
    "CutPoints",
    "Cuts",
    "Data",
    "Decay",
    "Device",
    "Epochs",
    "FeedbackLearningRate",
    "Inspect",
    "InspectEvery",
    "LastLearningRate",
    "Launch",
    "LearningRate",
    "Milestones",
    "Model",
    "Momentum",
    "Normalize",
    "Optimizer",
    "Precision",
    "PrecisionOption",
    "Recompute",
    "Resume",
    "Schedule",
    "ScheduleLr",
    "TensorBoardFolder",
    "TestLimit",
    "Threads",
    "TrainLimit",
    "Twin",
    "WeightDecay",
    "cut_points",
    "default_device",
    "listed",
    "milestones",
    "numbers",
    "words",
]

T = TypeVar("T")


class Precision(StrEnum):
    """Type of the forward's matrix products."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"

    @property
    def dtype(self) -> torch.dtype:
        """The torch type of this name."""
        found: torch.dtype = getattr(torch, self.value)
        return found


Data = Annotated[str, typer.Option(help="digits, a folder (parquet or images), or hub:NAME")]
Model = Annotated[
    str, typer.Option(help="cnn, mlp, lenet5, vgg8b, vgg11b, torchvision:NAME, timm:NAME, package.module:function")
]
Cuts = Annotated[str | None, typer.Option(help="module names to cut at, comma-separated, instead of --parts")]
Epochs = Annotated[int, typer.Option(help="passes over the data per part")]
BatchSize = Annotated[int, typer.Option(help="samples a step")]
Optimizer = Annotated[Descent, typer.Option(help="for parts and heads")]
LearningRate = Annotated[float | None, typer.Option(help="learning rate; 0.05 for sgd, else 0.001, if left out")]
LastLearningRate = Annotated[float | None, typer.Option("--last-lr", help="of the last part; --lr if left out")]
FeedbackLearningRate = Annotated[
    float | None, typer.Option("--feedback-lr", help="of inverses and gradient predictors; --lr if left out")
]
Momentum = Annotated[float, typer.Option(help="of sgd")]
WeightDecay = Annotated[float, typer.Option(help="of parts and heads")]
ScheduleLr = Annotated[RateSchedule, typer.Option(help="of the learning rate, over the epochs of a part")]
Milestones = Annotated[str, typer.Option(help="for steps: epochs after which --decay applies, as in 10,15")]
Decay = Annotated[float, typer.Option(help="for steps: the factor on the learning rate")]
Augment = Annotated[str, typer.Option(help="crop, flip, jitter, cutout, comma-separated, each also as NAME:NUMBER")]
Normalize = Annotated[bool, typer.Option(help="by mean and standard deviation of the training data")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N; cuda where there is one if left out")]
PrecisionOption = Annotated[Precision, typer.Option(help="of the forward")]
TrainLimit = Annotated[int | None, typer.Option(help="use so many training samples")]
TestLimit = Annotated[int | None, typer.Option(help="score so many test samples")]
BalanceOption = Annotated[Balancing, typer.Option("--balance", help="what automatic cuts make even")]
Recompute = Annotated[bool, typer.Option("--recompute", help="save memory inside a part by computing it again")]
Schedule = Annotated[
    str | None, typer.Option("--schedule", help="simultaneous, sequential or pipelined; as METHOD@SCHEDULE")
]
Launch = Annotated[int | None, typer.Option("--launch", help="train on so many processes, a run of parts on each")]
Resume = Annotated[bool, typer.Option("--resume/--no-resume", help="go on from the checkpoint in --out, if any")]
Inspect = Annotated[bool, typer.Option("--inspect", help="hold samples out and record every part after every pass")]
InspectEvery = Annotated[int, typer.Option("--inspect-every", help="with --inspect: look after every so many passes")]
Twin = Annotated[bool, typer.Option("--twin", help="with --inspect: train the same network end to end first")]
Threads = Annotated[int | None, typer.Option(help="of torch on the CPU")]
TensorBoardFolder = Annotated[Path | None, typer.Option("--tensorboard", help="folder for live curves")]


def default_device(given: str | None) -> str:
    """The device asked for, or else the best there is."""
    return given if given is not None else "cuda" if torch.cuda.is_available() else "cpu"


def words(text: str | None) -> tuple[str, ...]:
    """A comma-separated list.

    >>> words("crop, flip"), words("")
    (('crop', 'flip'), ())
    """
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def listed(option: str, text: str, read: Callable[[str], T], expected: str) -> tuple[T, ...]:
    """A comma-separated list of values, at least one.

    Raises:
        ModulewiseError: a value cannot be read.
    """
    try:
        values = tuple(read(word) for word in text.split(","))
    except ValueError:
        raise ModulewiseError(f"{option} {text!r} is malformed, expected {expected}") from None
    return values


def numbers(option: str, text: str) -> tuple[int, ...]:
    """A comma-separated list of whole numbers.

    >>> numbers("--parts", "2,4")
    (2, 4)
    """
    return listed(option, text, int, "whole numbers separated by commas, such as 2 or 2,4")


def milestones(text: str) -> tuple[int, ...]:
    """What `--milestones` comes to; none where it is empty."""
    return numbers("--milestones", text) if text.strip() else ()


@dataclass(frozen=True)
class CutPoints:
    """Where to cut: numbers of parts, or names."""

    parts: tuple[int, ...]
    cuts: tuple[str, ...] | None


def cut_points(parts: str | None, cuts: str | None) -> CutPoints:
    """What `--parts` and `--cuts` come to; two parts where neither is given.

    Raises:
        ModulewiseError: both are given and do not agree.

    >>> cut_points(None, "conv1,conv2")
    CutPoints(parts=(3,), cuts=('conv1', 'conv2'))
    """
    if cuts is None:
        return CutPoints(numbers("--parts", parts) if parts is not None else (2,), None)
    names = words(cuts)
    if parts is not None and numbers("--parts", parts) != (len(names) + 1,):
        raise ModulewiseError(
            f"--parts {parts} and --cuts {cuts} were given, which makes {len(names) + 1}; drop --parts"
        )
    return CutPoints((len(names) + 1,), names)
