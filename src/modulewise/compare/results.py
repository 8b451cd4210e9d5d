"""One finished run, as it is written down."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy
import torch

from ..errors import ModulewiseError

__all__ = ["Result", "field_values", "git_state", "versions"]


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run: a method under a schedule on a model in parts, with one seed.

    Args:
        fingerprint: what identifies the run.
        method: as typed, without the schedule.
        schedule: its name.
        locality: what the method declares on this partition.
        locality_audit: `ok`, and the `observed` reach (None for a method with its own update).
        modular: the survey's class: modular, weakly modular, end-to-end.
        parts: K.
        cuts: where the model is cut.
        seed: of everything random.
        model: the model's name.
        data: the data's name.
        test_accuracy: share of the test split that the final model gets right; None where training failed.
        test_loss: mean task loss on the test split.
        error: why training stopped early; None where it did not.
        peak_memory_bytes: of one training step.
        peak_breakdown: by category.
        step_seconds: of one training step, median.
        train_seconds: wall time of training, probes apart.
        part_updates: optimiser steps, summed over parts.
        params: trainable parameters of the model.
        head_params: trainable parameters of heads, inverses, gradient predictors.
        epochs: passes per part.
        batch_size: samples a step.
        device: where it ran.
        versions: of python, torch and this package, and the machine.
        git: commit and whether the tree was dirty; None outside a checkout.
        options: the whole recipe.
        history: before training and after every pass of a part: epoch (passes finished), part (None for all), losses
            by part, probe (accuracy of a linear probe on every part), seconds, steps, part_updates, alignment (angle
            in degrees, cosine and ratio of lengths to end-to-end backpropagation's gradient, of every part; None where
            it was not measured).
        flops: floating-point operations of one training step; None where they were not counted.
    """

    fingerprint: str
    method: str
    schedule: str
    locality: str
    locality_audit: Mapping[str, Any]
    modular: str
    parts: int
    cuts: Sequence[str]
    seed: int
    model: str
    data: str
    test_accuracy: float | None
    test_loss: float | None
    error: str | None
    peak_memory_bytes: int
    peak_breakdown: Mapping[str, int]
    step_seconds: float
    train_seconds: float
    part_updates: int
    params: int
    head_params: int
    epochs: int
    batch_size: int
    device: str
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    options: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    flops: int | None = None

    @property
    def label(self) -> str:
        """METHOD@SCHEDULE."""
        return f"{self.method}@{self.schedule}"

    @property
    def angles(self) -> Sequence[float | None] | None:
        """The angle of every part to end-to-end backpropagation as last measured; None where it never was."""
        measured = [entry["alignment"] for entry in self.history if entry.get("alignment") is not None]
        return measured[-1]["angle"] if measured else None

    def to_json(self) -> dict[str, Any]:
        """The result as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Result:
        """The result that `to_json` wrote down.

        Raises:
            ModulewiseError: a field is missing.
        """
        return cls(**field_values(cls, facts, what="result"))


def field_values(cls: Any, facts: Mapping[str, Any], *, what: str) -> dict[str, Any]:
    """The fields of a dataclass in plain data that was written down.

    Args:
        cls: the dataclass.
        facts: by name of field; others are left out, and a field with a default may be missing.
        what: the word for one, in the message.

    Raises:
        ModulewiseError: a field is missing.
    """
    missing = [field.name for field in fields(cls) if field.name not in facts and field.default is MISSING]
    if missing:
        raise ModulewiseError(f"a {what} lacks {', '.join(missing)}; it was written by another version")
    return {field.name: facts[field.name] for field in fields(cls) if field.name in facts}


def versions() -> dict[str, str]:
    """What the numbers were made with."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
    }
    try:
        found["modulewise"] = metadata.version("modulewise")
    except metadata.PackageNotFoundError:
        found["modulewise"] = "not installed"
    if torch.cuda.is_available():
        found["cuda"] = str(torch.version.cuda)
        found["gpu"] = torch.cuda.get_device_name()
    return found


def git_state() -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout that one stands in, or else of the one that holds this package."""
    for folder in (Path.cwd(), Path(__file__).parent):
        commit = _git(folder, "rev-parse", "HEAD")
        if commit:
            return {"commit": commit, "dirty": bool(_git(folder, "status", "--porcelain"))}
    return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
