"""How much a representation says about the label and about the input: estimates from decoders of a fixed budget."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from ... import heads
from ...errors import MethodError
from ...partition import Boundary
from ...seeding import preserved_generators, seed_of, set_generators

__all__ = ["entropy", "gaussian_information", "input_information", "label_information", "reconstruction_error"]


def entropy(labels: Tensor) -> float:
    """H(y) = -sum_c p_c log p_c of the shares of the classes, in nats.

    Args:
        labels: classes (N,).

    >>> round(entropy(torch.tensor([0, 1, 0, 1])), 5)  # log 2
    0.69315
    """
    share = torch.unique(labels, return_counts=True)[1].double() / len(labels)
    return float(-(share * share.log()).sum())


def label_information(labels: Tensor, cross_entropy: float) -> float:
    """I(h; y) >= H(y) - CE: what a probe's cross-entropy proves that h says about y, in nats, at least 0.

    CE >= H(y | h) for every probe, so that in expectation the difference is a lower bound. It is the information that
    *this* probe can use: a part that only makes classes easier to separate raises it, though no part can add
    information. H(y) is that of the held-out labels; the estimate has the noise of their number.

    Args:
        labels: the held-out classes (M,).
        cross_entropy: of a probe on the same samples, in nats.

    Returns:
        From 0 (says nothing, or the probe is worse than the shares of the classes) to H(y).

    >>> label_information(torch.tensor([0, 1]), 5.0)
    0.0
    """
    return max(0.0, entropy(labels) - cross_entropy)


def gaussian_information(variance: Tensor, error: Tensor) -> float:
    """mean_d max(0, 1/2 log(variance_d / error_d)), in nats for one value of the input.

    The rate that a Gaussian source with independent values needs at this error. For such an input it is a lower bound
    of I(h; x) / D: a better decoder could only lower the error. It is no bound for other inputs (pixels depend on one
    another, so that what they share is counted more than once), and says nothing of what is no use for
    reconstruction. Compare it between parts of one network, on one data set and budget. A value that is decoded worse
    than by its mean counts as 0, which adds some hundredths of a nat where there is nothing to be had. Values of the
    input that never vary are left out.

    Args:
        variance: of every value of the input (D,), >= 0.
        error: mean squared error of its reconstruction (D,), >= 0, on the same samples.

    >>> round(gaussian_information(torch.tensor([4.0, 0.0]), torch.tensor([1.0, 0.0])), 5)  # log 2
    0.69315
    """
    varies = variance > 0
    if not bool(varies.any()):
        return 0.0
    ratio = variance[varies].double() / error[varies].double().clamp_min(1e-12)
    return float((0.5 * ratio.log()).clamp_min(0.0).mean())


def input_information(
    fit: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    *,
    boundary: Boundary | None,
    steps: int = 100,
    width: int = 12,
    seed: int = 0,
) -> float:
    """`gaussian_information` of a small decoder from h to x, trained for a fixed number of steps on other samples.

    Every decoder of a network has the same budget, whether it has converged or not: the figure says how easily x can be
    had from h. Deterministic on one machine; the default generators are put back.

    Args:
        fit: representations (N, ...) and inputs (N, ...) to fit to.
        held: the same of other samples, for the error.
        boundary: the layout of the representation; None for a vector.
        steps: updates of the decoder with batches of 64, >= 1.
        width: channels inside a decoder for grids, >= 1.
        seed: of its initial weights and of the order of the samples.

    Returns:
        Nats for one value of the input, >= 0.
    """
    error = reconstruction_error(fit, held, boundary=boundary, steps=steps, width=width, seed=seed)
    return gaussian_information(held[1].flatten(1).var(0, correction=0), error)


def reconstruction_error(
    fit: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    *,
    boundary: Boundary | None,
    steps: int,
    width: int,
    seed: int,
) -> Tensor:
    """Mean squared error (D,) of every value of x on the held-out samples; see `input_information`."""
    if steps < 1:
        raise MethodError(f"steps={steps} was given, a decoder needs at least 1")
    (h, x), (h_held, x_held) = fit, held
    (centre, scale), (middle, spread) = _spread(x), _spread(h)
    target = _standardised(x, centre, scale)
    h, h_held = (_standardised(part, middle, spread) for part in (h, h_held))
    with preserved_generators():
        set_generators(seed_of(seed, "decoder"))
        decoder = _decoder(boundary, tuple(h.shape), tuple(x.shape[1:]), width=width)
        optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
        with torch.enable_grad():
            for _ in range(steps):
                rows = torch.randint(len(h), (min(64, len(h)),))
                loss = functional.mse_loss(decoder(h[rows]), target[rows])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        decoder.eval()
        with torch.no_grad():
            guess = torch.cat([decoder(rows) for rows in h_held.split(256)]).flatten(1) * scale + centre
    return (guess - x_held.flatten(1)).square().mean(0)


def _decoder(boundary: Boundary | None, shape: tuple[int, ...], target: tuple[int, ...], *, width: int) -> nn.Module:
    if boundary is None:
        boundary = Boundary("output", shape)
    if len(target) < 2:  # a vector: nothing to resize
        size = torch.Size(shape[1:]).numel()
        return nn.Sequential(nn.Flatten(), nn.Linear(size, torch.Size(target).numel()), nn.Unflatten(1, target))
    return heads.decoder(replace(boundary, shape=shape), target, width=width)


def _spread(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every value of flattened samples; 0 where it is nothing beside the largest."""
    flat = x.flatten(1)
    deviation = flat.std(0, correction=0)
    return flat.mean(0), torch.where(deviation > 1e-6 * deviation.max(), deviation, torch.zeros_like(deviation))


def _standardised(x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """(x - mean) / deviation, and 0 where the deviation is."""
    scale = torch.where(deviation > 0, deviation, torch.inf)
    return ((x.flatten(1) - mean) / scale).reshape(x.shape)
