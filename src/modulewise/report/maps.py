"""Pictures of parts: heat maps of part x pass, features in two dimensions, the map of parts and tasks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..errors import ModulewiseError
from ..workflow.inspection.pictured import Features
from ..workflow.inspection.recording import Record
from .drawing import colour_of, figure

__all__ = ["MEASURES", "Shown", "part_maps", "principal_components", "projections", "t_sne", "task_map"]

_NUMBERED = 90
_PANELS = 3
_MOST_PARTS = 8


@dataclass(frozen=True)
class Shown:
    """How a measure of `PartState` is shown.

    Args:
        field: its name.
        title: what it is called.
        text: a value in words.
    """

    field: str
    title: str
    text: Callable[[float], str]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(value: float) -> str:
    return f"{value:.3g}"


MEASURES = (
    Shown("objective", "objective", _number),
    Shown("probe", "linear probe", _share),
    Shown("neighbours", "nearest neighbours", _share),
    Shown("proxy", "proxy value", _number),
    Shown("label_information", "I(h; y), nats", _number),
    Shown("input_information", "I(h; x), nats a value", _number),
    Shown("cka_below", "CKA with the part below", _number),
    Shown("cka_twin", "CKA with the twin", _number),
    Shown("effective_rank", "effective rank", _number),
    Shown("dead", "dead units", _share),
    Shown("gradient_norm", "gradient norm", _number),
    Shown("time_share", "share of time", _share),
    Shown("memory_share", "share of memory", _share),
)
"""All measures, in the order of tables and pictures."""


def _grid(axis: Any, values: Sequence[Sequence[float]], rows: Sequence[str], columns: Sequence[str], text: Any) -> Any:
    """One heat map: a cell for every value, nan empty; the first row is drawn at the bottom."""
    height, width = len(rows), len(columns)
    filled = torch.tensor(values, dtype=torch.double).reshape(height, width)
    known = filled[torch.isfinite(filled)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
    high = high if high > low else low + 1.0
    mesh = axis.pcolormesh(filled.numpy(), cmap="viridis", vmin=low, vmax=high, edgecolors="white", linewidth=0.4)
    axis.set_facecolor("#eef1f4")
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    axis.set_yticks([row + 0.5 for row in range(height)], rows)
    step = max(1, math.ceil(width / 12))
    axis.set_xticks([column + 0.5 for column in range(0, width, step)], columns[::step])
    if height * width <= _NUMBERED and width <= _PANELS * 4:
        for row in range(height):
            for column in range(width):
                value = float(filled[row, column])
                if math.isfinite(value):
                    colour = "white" if value <= (low + high) / 2 else "#1f2933"
                    axis.text(column + 0.5, row + 0.5, text(value), ha="center", va="center", fontsize=7, color=colour)
    return mesh


def part_maps(records: Sequence[Record]) -> Figure:
    """A heat map part x pass for every measure that was taken, each with colours of its own; the input at the bottom.

    Args:
        records: of one run, oldest first, at least one.

    Raises:
        ModulewiseError: there is none.
    """
    if not records:
        raise ModulewiseError("there is no record to draw, expected at least one; look at the run first")
    names = {state.part: state.name for record in records for state in record.states}
    parts, passes = sorted(names), [str(record.passes) for record in records]
    labels = [names[part] if part < 0 else f"{part}  {names[part]}" for part in parts]
    taken = [
        shown
        for shown in MEASURES
        if any(_value(record, part, shown) is not None for record in records for part in parts)
    ]
    columns = min(_PANELS, len(taken))
    lines = math.ceil(len(taken) / columns)
    made, axes = figure(3.6 * columns, lines * (0.9 + 0.26 * len(parts)), rows=lines, columns=columns)
    for axis, shown in zip(axes.flat, taken, strict=False):
        found = [[_value(record, part, shown) for record in records] for part in parts]
        values = [[math.nan if value is None else value for value in row] for row in found]
        mesh = _grid(axis, values, labels, passes, lambda v: f"{v:.0f}" if abs(v) >= 100 else f"{v:.2g}")
        made.colorbar(mesh, ax=axis, fraction=0.05, pad=0.02).outline.set_visible(False)
        axis.set_title(shown.title, fontsize=8.5)
    for axis in axes.flat[len(taken) :]:
        axis.set_visible(False)
    for index in range(max(0, len(taken) - columns), len(taken)):
        axes.flat[index].set_xlabel("passes")
    return made


def _value(record: Record, part: int, shown: Shown) -> float | None:
    for state in record.states:
        if state.part == part:
            value: float | None = getattr(state, shown.field)
            return value
    return None


def principal_components(features: Tensor) -> Tensor:
    """The first two principal components (N, 2); the largest entry of either direction is positive.

    Z = H V_2, with H the centred features and V_2 the right singular vectors of its two largest singular values.

    Args:
        features: (N, D), N >= 2; with one feature the second component is 0.

    >>> principal_components(torch.tensor([[0.0, 0.0], [0.0, 4.0]])).tolist()
    [[-2.0, 0.0], [2.0, 0.0]]
    """
    h = features.double() - features.double().mean(0)
    directions = torch.linalg.svd(h, full_matrices=False).Vh[:2]
    largest = directions.abs().argmax(1, keepdim=True)
    found = h @ (directions * directions.gather(1, largest).sign()).T
    found = torch.cat([found, found.new_zeros(len(found), 2 - found.shape[1])], 1)
    return torch.where(found.abs() > 1e-12 * found.abs().max().clamp_min(1e-300), found, 0.0).float()


def t_sne(features: Tensor, *, seed: int = 0) -> Tensor:
    """t-SNE of scikit-learn on at most 50 principal components (N, 2); zeros where all samples are the same.

    Distances between groups mean nothing in it: which samples are near one another does.

    Args:
        features: (N, D), N >= 4.
        seed: of its draws.

    References:
        L. van der Maaten, G. Hinton, Visualizing Data using t-SNE, JMLR 2008,
        https://www.jmlr.org/papers/v9/vandermaaten08a.html
    """
    from sklearn.manifold import TSNE

    h = features.double() - features.double().mean(0)
    if not bool((h.abs() > 1e-9).any()):
        return torch.zeros(len(h), 2)
    u, s, _ = torch.linalg.svd(h, full_matrices=False)
    reduced = (u * s)[:, :50]
    start = torch.zeros(len(h), 2, dtype=torch.double)
    start[:, : reduced.shape[1]] = reduced[:, :2] / s[0] * 1e-2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its solvers, which say nothing about the picture
        model = TSNE(2, perplexity=min(30.0, (len(h) - 1) / 3), init=start.numpy(), random_state=seed)
        return torch.from_numpy(model.fit_transform(reduced.numpy())).float()


def projections(kept: Features) -> Figure:
    """Features of the same samples at every part, side by side: principal components above, t-SNE below.

    Args:
        kept: of at least four samples; of more than eight parts the first, the last and evenly spread ones are drawn.
    """
    count = min(_MOST_PARTS, len(kept.features))
    drawn = sorted({round(index * (len(kept.features) - 1) / max(1, count - 1)) for index in range(count)})
    made, axes = figure(max(4.8, 2.2 * len(drawn)), 4.9, rows=2, columns=len(drawn))
    labels = torch.zeros(len(kept.features[0])).long() if kept.labels is None else kept.labels
    for column, part in enumerate(drawn):
        h = kept.features[part].float()
        for row, points in enumerate((principal_components(h), t_sne(h))):
            axis = axes[row][column]
            for index, label in enumerate(labels.unique().tolist()):
                own = points[labels == label]
                axis.scatter(own[:, 0], own[:, 1], s=5, color=colour_of(index), linewidths=0, alpha=0.8)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.grid(False)
        axes[0][column].set_title(f"{part}  {kept.names[part]}", fontsize=8.5)
    axes[0][0].set_ylabel("PCA")
    axes[1][0].set_ylabel("t-SNE")
    return made


def task_map(scores: Tensor, *, parts: Sequence[str], tasks: Sequence[str], title: str = "proxy value") -> Figure:
    """The map of a store: how well every stored part is suited to every task, as scores say without training.

    Parts are ordered by their best task, so that parts for one task stand together; the best part of every task is
    framed.

    Args:
        scores: (parts, tasks), higher is better; nan where there is none.
        parts: names of the rows.
        tasks: names of the columns.
        title: what the scores are.

    Raises:
        ModulewiseError: names and scores do not fit, or there is none.
    """
    if scores.dim() != 2 or tuple(scores.shape) != (len(parts), len(tasks)) or not scores.numel():
        raise ModulewiseError(
            f"scores of shape {tuple(scores.shape)} were given for {len(parts)} parts and {len(tasks)} tasks, expected "
            "one score for each pair"
        )
    least = scores.double().nan_to_num(nan=-math.inf)
    order = sorted(range(len(parts)), key=lambda row: (int(least[row].argmax()), -float(least[row].max())))[::-1]
    made, axes = figure(2.6 + 0.75 * len(tasks), 1.2 + 0.3 * len(parts))
    axis = axes[0][0]
    mesh = _grid(axis, scores[order].tolist(), [parts[row] for row in order], list(tasks), lambda v: f"{v:.2f}")
    axis.set_xticks([column + 0.5 for column in range(len(tasks))], tasks, rotation=30, ha="right")
    for column in range(len(tasks)):
        best = order.index(int(least[:, column].argmax()))
        frame = matplotlib.patches.Rectangle((column, best), 1, 1, fill=False, edgecolor="#e07b39", linewidth=1.8)
        axis.add_patch(frame)
    made.colorbar(mesh, ax=axis, fraction=0.05, pad=0.02).outline.set_visible(False)
    axis.set_title(title, fontsize=9.5)
    return made
