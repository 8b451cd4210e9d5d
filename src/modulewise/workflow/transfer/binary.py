"""The survey authors' experiment: 15 binary tasks of CIFAR-10's classes, every part for every task."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ... import data
from ...data import Normalize, Split
from ...errors import DataError
from ...methods import KernelProxy
from ...models.builtin import Shape
from ...scores import SCORES, Score
from ...seeding import seed_of
from ..ranking.features import collect
from ..ranking.tasks import Task, balanced, binary_tasks, parted, restricted
from .book import agreement_rows, matrix_rows, provenance
from .judging import Candidate, Field, head_accuracy, head_epoch_seconds, judged
from .sources import Training, part_of, source_model, train_source

__all__ = ["BinarySetting", "binary_experiment", "trained_candidate"]

CUT = "features"


@dataclass(frozen=True, kw_only=True)
class BinarySetting:
    """What the experiment is made with.

    Args:
        data: folder of CIFAR-10, or any data set with enough classes.
        tasks: how many pairs of classes, >= 2.
        training: of source networks.
        a_class: training images of a class that heads are trained on, and that scores see a part of.
        held: further ones, for a source's accuracy on its own task.
        source_a_class: further ones, that source networks learn from: no score sees them.
        samples: training images of a target that scores see.
        test_limit: test images in all; None for every one.
        seed: of tasks, weights and choices.
    """

    data: str
    tasks: int = 15
    training: Training = field(default_factory=Training)
    a_class: int = 2000
    held: int = 500
    source_a_class: int = 2500
    samples: int = 1000
    test_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.tasks < 2 or min(self.source_a_class, self.a_class, self.held) < 1 or self.samples < 4:
            raise DataError(f"{self}: expected two tasks or more, images of every class, and at least 4 samples")


def trained_candidate(
    pool: Split, task: Task, setting: BinarySetting, *, shape: Shape, normalize: Normalize, index: int
) -> Candidate:
    """A network trained by `KernelProxy` on a binary task, cut below its head.

    Its accuracy on training images of its own task that it did not see is kept as a static baseline; the number of its
    parameters is another.
    """
    held, others = parted(restricted(pool, task), setting.held)
    fit, _ = parted(others, setting.source_a_class)
    model = source_model(
        shape, len(task.classes), width=setting.training.width, seed=seed_of(setting.seed, "source", index)
    )
    train_source(
        model,
        fit,
        KernelProxy(),
        cuts=(CUT,),
        training=setting.training,
        normalize=normalize,
        seed=seed_of(setting.seed, "run", index),
    )
    part = part_of(model, CUT)
    loaders = [data.Loader(split, batch_size=500, shuffle=False, normalize=normalize) for split in (fit, held)]
    accuracy = head_accuracy(collect(part, loaders[0]), collect(part, loaders[1]))
    static = {
        "parameter count": float(sum(parameter.numel() for parameter in part.parameters())),
        "source accuracy": accuracy,
    }
    return Candidate(f"{task.name}", part, task, model.get_submodule("head"), static)


def binary_experiment(
    setting: BinarySetting,
    *,
    scores: Sequence[Score] = tuple(SCORES.values()),
    quick: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Train a part for every task, judge every part on every task, and compare rankings by score with accuracies.

    Args:
        setting: what it is made with.
        scores: which to compare.
        quick: said in the rows.
        told: called with a line of progress.

    Returns:
        Rows for `keep`: the setting, one a target, one a score without and one with a task's own part among the
        candidates.

    Raises:
        DataError: the data cannot be read, or has too few classes.
    """
    started, made_with = time.perf_counter(), provenance(seed=setting.seed)
    dataset = data.load(setting.data)
    tasks = binary_tasks(dataset.class_names, count=setting.tasks, seed=setting.seed)
    normalize = data.normalization(dataset.train)
    target_pool, source_pool = parted(dataset.train, setting.a_class)
    candidates = []
    for index, task in enumerate(tasks):
        candidates.append(
            trained_candidate(source_pool, task, setting, shape=dataset.shape, normalize=normalize, index=index)
        )
        told(f"trained {task.name}: {candidates[-1].static['source accuracy']:.3f} on its own task")
    test = dataset.test if setting.test_limit is None else balanced(dataset.test, setting.test_limit)
    field = Field(target_pool, test, normalize, setting.samples, setting.seed)
    epochs = [
        head_epoch_seconds(
            candidate, field.loader(restricted(field.train, task), batch_size=128), classes=len(task.classes)
        )
        for candidate, task in zip(candidates, tasks, strict=True)
    ]
    pairs = list(judged(candidates, tasks, field, scores, told=told))
    common = {"benchmark": "transfer", "experiment": "binary", "group": CUT, "quick": quick}
    facts = {
        "kind": "setting",
        "setting": asdict(setting) | {"data": dataset.name.rstrip("/").rpartition("/")[2]},
        "tasks": [task.name for task in tasks],
        "epoch_seconds": sum(epochs) / len(epochs),
        "seconds": time.perf_counter() - started,
    }
    rows = [facts, *matrix_rows(pairs), *agreement_rows(pairs, own=False), *agreement_rows(pairs, own=True)]
    return [{**common, **row, **made_with} for row in rows]
