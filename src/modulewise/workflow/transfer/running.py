"""The whole benchmark as it is run: one experiment after the other, each written down when it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

from ...errors import DataError, suggest
from .binary import BinarySetting, binary_experiment
from .book import keep
from .modules import ModulesSetting, modules_experiment
from .sources import Training

__all__ = ["Which", "binary_setting", "modules_setting", "run"]


class Which(StrEnum):
    """The experiments, by a word."""

    BINARY = "binary"
    MNIST = "mnist"
    CIFAR10 = "cifar10"
    TINY_IMAGENET = "tiny-imagenet"


def binary_setting(data: Path, *, quick: bool, seed: int) -> BinarySetting:
    """The 15-task experiment, or a small one of 5 tasks that only shows that everything runs.

    >>> binary_setting(Path("data"), quick=False, seed=0).tasks
    15
    """
    folder = str(data / "cifar10")
    if not quick:
        return BinarySetting(data=folder, seed=seed)
    return BinarySetting(
        data=folder,
        tasks=5,
        training=Training(epochs=2, width=8),
        a_class=300,
        held=100,
        source_a_class=500,
        samples=200,
        test_limit=1000,
        seed=seed,
    )


def modules_setting(data: Path, which: Which, *, quick: bool, seed: int) -> ModulesSetting:
    """The module-level experiment on one data set, or a small one with one seed and three methods.

    >>> modules_setting(Path("data"), Which.TINY_IMAGENET, quick=False, seed=0).size
    10
    """
    tiny = which is Which.TINY_IMAGENET
    size, groups = (10, 3) if tiny else (5, 2)
    folder = str(data / which.value)
    if not quick:
        images = (200, 300) if tiny else (1000, 1000)
        return ModulesSetting(
            data=folder,
            size=size,
            groups=groups,
            training=Training(epochs=5, width=8),
            a_class=images[0],
            source_a_class=images[1],
            seed=seed,
        )
    return ModulesSetting(
        data=folder,
        size=size,
        groups=groups,
        methods=("KernelProxy", "Backprop", "untrained"),
        seeds=(0,),
        training=Training(epochs=1, width=8),
        a_class=100,
        source_a_class=200,
        samples=200,
        test_limit=100 * size * groups,
        seed=seed,
    )


def run(
    which: Sequence[Which],
    *,
    data: Path,
    out: Path,
    quick: bool,
    seed: int = 0,
    told: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Run experiments and write the rows of each when it is done, in place of earlier rows of the same one.

    Args:
        which: the experiments.
        data: folder that holds cifar10/, mnist/ and tiny-imagenet/.
        out: file of JSON lines.
        quick: small settings, marked as such and kept apart from full ones.
        seed: of tasks, weights and choices.
        told: called with a line of progress.

    Returns:
        The rows made.

    Raises:
        DataError: a folder is missing, looked at before anything runs.
    """
    for one in which:
        name = "cifar10" if one is Which.BINARY else one.value
        if not (data / name).is_dir():
            near = [path.name for path in data.iterdir()] if data.is_dir() else []
            raise DataError(f"no folder {data / name}, expected the data set there; give --data{suggest(name, near)}")
    rows = []
    for one in which:
        told(f"{one.value} ...")
        if one is Which.BINARY:
            made = binary_experiment(binary_setting(data, quick=quick, seed=seed), quick=quick, told=told)
        else:
            setting = modules_setting(data, one, quick=quick, seed=seed)
            made = modules_experiment(setting, quick=quick, told=told)
        keep(out, made)
        rows += made
    return rows
