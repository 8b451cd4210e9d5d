"""The module-level benchmark: parts of one size that differ in seed, method and source task, ranked at every cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ... import data
from ...data import Normalize, Split
from ...errors import DataError
from ...method import Method
from ...methods import DGL, Backprop, KernelProxy, PredSim
from ...models.builtin import Shape
from ...scores import SCORES, Score
from ...seeding import seed_of
from ..ranking.features import AveragePool
from ..ranking.tasks import Task, averaged, balanced, grouped_tasks, of_classes, parted, restricted
from .book import agreement_rows, matrix_rows, provenance
from .judging import Candidate, Field, head_epoch_seconds, judged
from .sources import BLOCKS, Training, part_of, source_model, train_source

__all__ = ["METHODS", "ModulesSetting", "method_of", "modules_experiment"]

METHODS = ("DGL", "PredSim", "KernelProxy", "Backprop", "untrained")
_SIDE = 32
_SCORES: tuple[Score, ...] = tuple(one for one in SCORES.values() if not one.reads_source)


@dataclass(frozen=True, kw_only=True)
class ModulesSetting:
    """What the experiment is made with.

    Args:
        data: folder of the data set; larger images are averaged to 32 x 32.
        groups: disjoint groups of classes; every group is a source task and a target task.
        size: classes a group.
        methods: of `METHODS`; parts trained by each stand beside one another.
        seeds: of initial weights and draws; one network each.
        cuts: of `BLOCKS`; parts are ranked among those that end at the same one.
        training: of source networks.
        a_class: training images of a class that heads are trained on, and that scores see a part of.
        source_a_class: further ones, that source networks learn from: no score sees them.
        samples: training images of a target that scores see.
        test_limit: test images in all; None for every one.
        seed: of groups and choices.
    """

    data: str
    groups: int = 2
    size: int = 5
    methods: tuple[str, ...] = METHODS
    seeds: tuple[int, ...] = (0, 1)
    cuts: tuple[str, ...] = ("block2", "features")
    training: Training = field(default_factory=Training)
    a_class: int = 1000
    source_a_class: int = 2000
    samples: int = 1000
    test_limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        wrong = [cut for cut in self.cuts if cut not in BLOCKS]
        if unknown or wrong or not self.methods or not self.cuts or not self.seeds:
            raise DataError(
                f"methods {unknown} and cuts {wrong} are unknown, expected some of {', '.join(METHODS)} and of "
                f"{', '.join(BLOCKS)}"
            )


def method_of(name: str, *, classes: int) -> Method | None:
    """The method of a name in `METHODS`; None for no training.

    >>> method_of("untrained", classes=2) is None
    True
    """
    made: dict[str, Method | None] = {
        "DGL": DGL(classes=classes),
        "PredSim": PredSim(classes=classes),
        "KernelProxy": KernelProxy(),
        "Backprop": Backprop(),
        "untrained": None,
    }
    return made[name]


def _networks(
    pool: Split,
    shape: Shape,
    tasks: Sequence[Task],
    setting: ModulesSetting,
    normalize: Normalize,
    told: Callable[[str], None],
) -> dict[str, list[Candidate]]:
    """Candidates for every cut, of one network for every task, method and seed; an untrained one once a seed."""
    found: dict[str, list[Candidate]] = {cut: [] for cut in setting.cuts}
    cuts = tuple(cut for cut in BLOCKS if cut in setting.cuts)
    for name in setting.methods:
        for task in tasks if name != "untrained" else [None]:
            for seed in setting.seeds:
                classes = setting.size
                model = source_model(
                    shape, classes, width=setting.training.width, seed=seed_of(setting.seed, "source", seed)
                )
                method = method_of(name, classes=classes)
                if method is not None and task is not None:
                    split, _ = parted(restricted(pool, task), setting.source_a_class)
                    where = None if name == "Backprop" else cuts
                    train_source(
                        model,
                        split,
                        method,
                        cuts=where or (),
                        training=setting.training,
                        normalize=normalize,
                        seed=seed_of(setting.seed, "run", seed),
                    )
                label = f"{name}, {task.name if task else 'no task'}, seed {seed}"
                for cut in cuts:
                    part = part_of(model, cut)
                    static = {"parameter count": float(sum(p.numel() for p in part.parameters()))}
                    pooling = None if cut == "features" else AveragePool(2)
                    found[cut].append(Candidate(label, part, task, None, static, pooling))
                told(f"trained {label}")
    return found


def modules_experiment(
    setting: ModulesSetting,
    *,
    scores: Sequence[Score] = _SCORES,
    quick: bool = False,
    told: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Rank parts of one size for every group of classes, cut by cut.

    All candidates of a ranking have the same layers: size cannot tell them apart. Source heads see other numbers of
    classes or lie behind other layers, so that scores that read source probabilities are left out.

    Args:
        setting: what it is made with.
        scores: which to compare.
        quick: said in the rows.
        told: called with a line of progress.

    Returns:
        Rows for `keep`: for every cut the setting, one a target, one a score without and one with parts trained for
        the target itself.

    Raises:
        DataError: the data cannot be read, or has too few classes.
    """
    started, made_with = time.perf_counter(), provenance(seed=setting.seed)
    dataset = averaged(data.load(setting.data), side=_SIDE)
    tasks = grouped_tasks(len(dataset.class_names), size=setting.size, count=setting.groups, seed=setting.seed)
    normalize = data.normalization(dataset.train)
    used = [c for task in tasks for c in task.classes]
    target_pool, source_pool = parted(of_classes(dataset.train, used), setting.a_class)
    found = _networks(source_pool, dataset.shape, tasks, setting, normalize, told)
    test = of_classes(dataset.test, used)
    test = test if setting.test_limit is None else balanced(test, setting.test_limit)
    field = Field(target_pool, test, normalize, setting.samples, setting.seed)
    name = dataset.name.rstrip("/").rpartition("/")[2]
    rows: list[dict[str, Any]] = []
    for cut, candidates in found.items():
        loader = field.loader(restricted(field.train, tasks[0]), batch_size=128)
        epoch = head_epoch_seconds(candidates[0], loader, classes=setting.size)
        pairs = list(judged(candidates, tasks, field, scores, told=told))
        facts = {
            "kind": "setting",
            "setting": asdict(setting) | {"data": name},
            "tasks": {task.name: [dataset.class_names[c] for c in task.classes] for task in tasks},
            "epoch_seconds": epoch,
            "seconds": time.perf_counter() - started,
        }
        own = [*agreement_rows(pairs, own=False), *agreement_rows(pairs, own=True)]
        rows += [{"group": cut, **row} for row in (facts, *matrix_rows(pairs), *own)]
    common = {"benchmark": "transfer", "experiment": f"modules: {name}", "quick": quick}
    return [{**common, **row, **made_with} for row in rows]
