"""Stitching loss: what it costs to put another part under a network, with the best linear layer between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...engine.features import evaluating
from ...errors import DataError
from ...seeding import preserved_generators, seed_of
from .features import AnyPart, parameters_of

__all__ = ["Stitched", "least_squares_stitch", "stitching_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Stitched:
    """What stitching came to.

    Args:
        stitch: the trained 1x1 convolution or linear layer.
        loss: of the upper network on the stitched part.
        reference: of the upper network on its own lower part.
    """

    stitch: nn.Module
    loss: float
    reference: float

    @property
    def gap(self) -> float:
        """How much is lost, loss - reference: 0 where the part does as well as the network's own, lower is better."""
        return self.loss - self.reference


def least_squares_stitch(features: Tensor, wanted: Tensor) -> nn.Conv2d | nn.Linear:
    """The affine map of channels that is nearest to `wanted`: a 1x1 convolution for images, else a linear layer.

    Args:
        features: (N, C, H, W) or (N, D).
        wanted: (N, C', H, W) or (N, D').

    Raises:
        DataError: they have other positions, or are of another kind.

    >>> stitch = least_squares_stitch(torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[5.0], [7.0], [9.0]]))
    >>> round(stitch.weight.item(), 4), round(stitch.bias.item(), 4)
    (2.0, 3.0)
    """
    if features.ndim != wanted.ndim or features.ndim not in (2, 4) or features.shape[2:] != wanted.shape[2:]:
        raise DataError(
            f"features {tuple(features.shape)} cannot be stitched to {tuple(wanted.shape)}: expected (N, D) both or "
            "images of one height and width; cut where they agree"
        )
    rows, goal = (_rows(h).double() for h in (features, wanted))
    with_one = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    solution = torch.linalg.lstsq(with_one.cpu(), goal.cpu(), driver="gelsd").solution.to(features)
    with preserved_generators():
        shape = (features.shape[1], wanted.shape[1])
        stitch: nn.Conv2d | nn.Linear = nn.Conv2d(*shape, 1) if features.ndim == 4 else nn.Linear(*shape)
    stitch = stitch.to(features)
    with torch.no_grad():
        stitch.weight.copy_(solution[:-1].T.reshape(stitch.weight.shape))
        assert stitch.bias is not None
        stitch.bias.copy_(solution[-1])
    return stitch


def _rows(h: Tensor) -> Tensor:
    """One row a position."""
    return h.movedim(1, -1).reshape(-1, h.shape[1])


def stitching_loss(
    part: AnyPart,
    own: AnyPart,
    upper: nn.Module,
    train: Iterable[Any],
    held: Iterable[Any],
    *,
    loss: Loss,
    epochs: int = 5,
    batch_size: int = 128,
    rate: float = 1e-3,
    seed: int = 0,
) -> Stitched:
    """min_S loss(g(S(f(x))), y) - loss(g(h(x)), y): f the part, h the network's own lower part, g what is above.

    S is affine over channels. It starts from least squares, S f = h, and is then trained with Adam; f, h and g stay
    as they are. This is the ground truth for whether parts are compatible, and costs training: a baseline beside the
    scores, not one of them.

    Args:
        part: f, frozen, (N, ...) to (N, C, H, W) or (N, D).
        own: h, frozen, to the same positions.
        upper: g, what h feeds; eval mode for the time, no gradients kept.
        train: batches (x, y) to train S on, gone through once.
        held: batches (x, y) that both losses are taken on.
        loss: loss(output, y) -> scalar, a mean over samples.
        epochs: passes over the features, >= 0; 0 for least squares alone.
        batch_size: samples a step.
        rate: Adam's learning rate.
        seed: of the order.

    Raises:
        DataError: f and h give other positions, there are no batches, or a setting is out of range.

    References:
        K. Lenc, A. Vedaldi, Understanding Image Representations by Measuring Their Equivariance and Equivalence, CVPR
        2015, https://arxiv.org/abs/1411.5908
        Y. Bansal, P. Nakkiran, B. Barak, Revisiting Model Stitching to Compare Neural Representations, NeurIPS 2021,
        https://arxiv.org/abs/2106.07682
        A. Csiszárik et al., Similarity and Matching of Neural Network Representations, NeurIPS 2021,
        https://arxiv.org/abs/2110.14633 (the start from least squares)

    >>> x, y = torch.randn(64, 4), torch.arange(64) % 3
    >>> g, mix = nn.Linear(4, 3), torch.linalg.qr(torch.randn(4, 4)).Q
    >>> batches = [(x, y)]
    >>> found = stitching_loss(
    ...     lambda x: x @ mix, nn.Identity(), g, batches, batches, loss=nn.functional.cross_entropy, epochs=0
    ... )
    >>> abs(found.gap) < 1e-5  # a rotated part is as good as the own one
    True
    """
    if epochs < 0 or batch_size < 1 or not rate > 0:
        raise DataError(f"epochs={epochs}, batch_size={batch_size}, rate={rate}; expected >= 0, >= 1 and > 0")
    modules = [piece for piece in (part, own) if isinstance(piece, nn.Module)]
    with evaluating(nn.ModuleList([*modules, upper])):
        f, h, y = _both(part, own, train)
        f_held, h_held, y_held = _both(part, own, held)
        stitch = least_squares_stitch(f, h)
        frozen = [(p, p.requires_grad) for p in parameters_of(upper)]
        try:
            for parameter, _ in frozen:
                parameter.requires_grad_(False)
            _train(stitch, upper, f, y, loss=loss, epochs=epochs, batch_size=batch_size, rate=rate, seed=seed)
        finally:
            for parameter, before in frozen:
                parameter.requires_grad_(before)
        with torch.no_grad():
            values = [float(loss(upper(given), y_held)) for given in (stitch(f_held), h_held)]
    return Stitched(stitch, values[0], values[1])


def _both(part: AnyPart, own: AnyPart, batches: Iterable[Any]) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        found = [(part(x), own(x), y) for x, y in batches]
    if not found:
        raise DataError("there is no batch to stitch on, expected at least one of (x, y)")
    f, h, y = (torch.cat(column) for column in zip(*found, strict=True))
    return f, h, y


def _train(
    stitch: nn.Module,
    upper: nn.Module,
    f: Tensor,
    y: Tensor,
    *,
    loss: Loss,
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
) -> None:
    optimizer = torch.optim.Adam(stitch.parameters(), lr=rate)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(seed_of(seed, "stitch", epoch))
        for rows in torch.randperm(len(y), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(upper(stitch(f[rows.to(f.device)])), y[rows.to(y.device)]).backward()
            optimizer.step()
