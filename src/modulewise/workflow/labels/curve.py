"""Accuracy against the number of labelled examples: hidden parts from pairs, beside end-to-end backpropagation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import torch

from ...compare.results import git_state, versions
from .arms import Arm, Network, Outputs, outputs, scratch, trained, with_new_output, with_probe
from .rows import LabelFolder, LabelRow
from .settings import FewLabels, Ingredients

__all__ = ["label_curve", "verdict"]

_NETWORKS = {Arm.PAIRS: Network.PAIRS, Arm.PROBE: Network.PAIRS, Arm.RETRAINED: Network.BACKPROP}


class _Curve:
    """The rows of one experiment, made one after another; networks are trained when first asked for.

    Args:
        made: what the experiment is made of.
        folder: where finished rows and networks are kept.
    """

    def __init__(self, made: Ingredients, folder: LabelFolder) -> None:
        self.made, self.folder = made, folder
        self._networks: dict[Network, tuple[Outputs, float]] = {}
        self._versions, self._git, self._device = versions(), git_state(), _device_words(made.device)

    def network(self, network: Network) -> tuple[Outputs, float]:
        """What a network gives its output layer, and the seconds of its training."""
        if network not in self._networks:
            made = self.made
            model = made.model(made.settings.seed)
            partition = made.partition(model)
            seconds = self.folder.kept(network.value, model)
            if seconds is None:
                started = perf_counter()
                model, partition = trained(network, made)
                seconds = perf_counter() - started
                self.folder.keep(network.value, model, seconds=seconds)
            self._networks[network] = outputs(model, partition, made), seconds
        return self._networks[network]

    def row(self, arm: Arm, per_class: int | None) -> LabelRow:
        """One arm with one number of labels, over all draws."""
        made, settings = self.made, self.made.settings
        network = _NETWORKS.get(arm, Network.BACKPROP if per_class is None else None)
        network_seconds = None if network is None else self.network(network)[1]
        started = perf_counter()
        draws = settings.draws_of(arm is Arm.SCRATCH) if per_class is not None else 1
        accuracies = tuple(self.accuracy(arm, per_class, draw) for draw in range(draws))
        return LabelRow(
            arm=arm.value,
            seen=arm.seen(pairs=None if made.pairs is None else len(made.pairs)),
            per_class=per_class,
            labels=len(made.draw(per_class, 0)),
            accuracies=accuracies,
            seconds=perf_counter() - started,
            network_seconds=network_seconds,
            seed=settings.seed,
            device=self._device,
            versions=self._versions,
            git=self._git,
            settings=settings.to_json(),
        )

    def accuracy(self, arm: Arm, per_class: int | None, draw: int) -> float:
        """Of one draw, on the test split."""
        made = self.made
        chosen = made.draw(per_class, draw)
        if arm is Arm.SCRATCH:
            if per_class is None:
                return self.network(Network.BACKPROP)[0].accuracy
            return scratch(made, chosen, draw=draw)
        found, _ = self.network(_NETWORKS[arm])
        if arm is Arm.PROBE:
            return with_probe(found, made, chosen)
        settings = made.settings
        return with_new_output(found, made, chosen, loss=settings.output.criterion, penalty=settings.penalty)


def _device_words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.get_num_threads()} threads)"


def label_curve(
    settings: FewLabels, *, out: str | Path, finished: Callable[[LabelRow], None] = lambda row: None
) -> list[LabelRow]:
    """Run an experiment, or what is left of it, and write every row down as soon as it is there.

    Stage 1 trains the hidden parts on pairs, stage 2 the output layer on n labelled examples of every class, drawn
    `draws` times; all arms see the same draws. Beside them: a probe on the same features, E2EBP on all labels with its
    output layer trained anew on the n, and E2EBP on the n alone; with all labels, the latter is E2EBP as usual.

    Args:
        settings: the experiment.
        out: a new or empty folder, or that of this experiment.
        finished: called with every row, those of earlier runs too.

    Returns:
        A row for every number of labels and arm.

    Raises:
        ModulewiseError: something does not fit, said before anything is trained or written; or the folder is in use.

    References:
        S. Duan, S. Yu, J. C. Príncipe, Modularizing Deep Learning via Pairwise Learning With Kernels, IEEE TNNLS
        2021, https://arxiv.org/abs/2005.05541
    """
    folder = LabelFolder(out)
    folder.check(settings)
    curve = _Curve(Ingredients(settings), folder)
    with folder.opened(settings):
        done = {(row.arm, row.per_class): row for row in folder.rows()}
        rows = []
        for arm in Arm:
            for per_class in (*settings.per_class, None):
                row = done.get((arm.value, per_class))
                if row is None:
                    row = curve.row(arm, per_class)
                    folder.append(row)
                rows.append(row)
                finished(row)
    return rows


def verdict(rows: list[LabelRow]) -> str:
    """What fewest labels cost the arm of pairs: one line, in points of accuracy.

    Args:
        rows: of one experiment; among them the arm of pairs with some and with all labels.
    """
    own = [row for row in rows if row.arm == Arm.PAIRS.value]
    everything = next(row for row in own if row.per_class is None)
    usual = next(row for row in rows if row.arm == Arm.SCRATCH.value and row.per_class is None)
    few = own[0]
    return (
        f"{few.labels} labels after pairs: {100 * few.mean:.2f} %, {100 * (everything.mean - few.mean):.2f} points "
        f"below all {everything.labels} labels ({100 * everything.mean:.2f} %); "
        f"E2EBP on all labels: {100 * usual.mean:.2f} %"
    )
