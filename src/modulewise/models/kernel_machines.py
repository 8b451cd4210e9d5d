"""Kernel machines as layers, networks made of them, and the samples they are centred on."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModulewiseError
from .builtin import Shape, lenet5

__all__ = ["KernelMachine", "gaussian_kernel", "klenet5", "kmlp", "merged", "place_centres", "thinned"]


def gaussian_kernel(h: Tensor, centres: Tensor, *, width: float) -> Tensor:
    """k(h_n, c_m) = exp(-||h_n - c_m||^2 / (2 width^2)), in (0, 1]; in float32 or wider, also under autocast.

    Args:
        h: representations (N, D).
        centres: c (M, D).
        width: of the Gaussian, in units of the representation, > 0.

    Returns:
        (N, M).

    >>> gaussian_kernel(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [3.0, 4.0]]), width=5.0)
    tensor([[1.0000, 0.6065]])
    """
    kind = h.device.type
    exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
    dtype = torch.promote_types(torch.promote_types(h.dtype, centres.dtype), torch.float32)
    with exact:
        middle = centres.to(dtype).mean(dim=0)  # distances stay, and less is lost where they are small beside norms
        u, v = h.to(dtype) - middle, centres.to(dtype) - middle
        distance = u.square().sum(1)[:, None] + v.square().sum(1)[None, :] - 2 * (u @ v.T)
        return torch.exp(-distance.clamp_min(0.0) / (2 * width**2))


class KernelMachine(nn.Module):
    """A layer of kernel machines, f_i(h) = sum_m alpha_im k(c_m, h) + b_i with the Gaussian kernel.

    Centres are the representations of stored training samples, copied in by `place_centres`; until then they
    are drawn from a standard normal. They are a buffer: saved with the model, and never trained.

    Args:
        features: D, elements of one input, >= 1; what follows the batch axis is flattened.
        units: number of machines, >= 1.
        centres: M, >= 1; with all training samples the layer reaches what any number of centres could.
        width: of the Gaussian, in units of the representation, > 0; sqrt(D) where left out, which suits
            inputs of unit variance.

    Raises:
        ModulewiseError: a number is out of range, or (when called) an input does not have D elements.

    References:
        S. Duan, S. Yu, Y. Chen, J. C. Príncipe, On Kernel Method-Based Connectionist Models and Supervised Deep
        Learning Without Backpropagation, Neural Computation 2020, https://arxiv.org/abs/1802.03774

    >>> KernelMachine(4, 3, centres=10, width=2.0)(torch.zeros(5, 4)).shape
    torch.Size([5, 3])
    """

    centres: Tensor

    def __init__(self, features: int, units: int, *, centres: int, width: float | None = None) -> None:
        super().__init__()
        if min(features, units, centres) < 1 or (width is not None and not width > 0):
            raise ModulewiseError(
                f"features={features}, units={units}, centres={centres}, width={width} were given, a kernel machine "
                "needs counts of at least 1 and a positive width"
            )
        self.width = sqrt(features) if width is None else width
        self.register_buffer("centres", torch.randn(centres, features))
        bound = 1 / sqrt(centres)  # as a linear layer on M kernel values
        self.alpha = nn.Parameter(torch.empty(units, centres).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(units))

    def forward(self, h: Tensor) -> Tensor:
        """(N, ...) -> (N, units)."""
        h = h.flatten(1)
        if h.shape[1] != self.centres.shape[1]:
            raise ModulewiseError(
                f"an input of {h.shape[1]} elements was given to kernel machines on {self.centres.shape[1]}; "
                "expected equal numbers"
            )
        return nn.functional.linear(gaussian_kernel(h, self.centres, width=self.width), self.alpha, self.bias)

    def extra_repr(self) -> str:
        """Sizes and width, for printing."""
        count, features = self.centres.shape
        return f"{features}, {len(self.bias)}, centres={count}, width={self.width:g}"


def _each(given: Any, count: int, name: str) -> list[Any]:
    """One value a layer, from one for all or one for each."""
    values = list(given) if isinstance(given, Sequence) else [given] * count
    if len(values) != count:
        raise ModulewiseError(f"{name}={given} was given, expected one number or one for each of {count} kernel layers")
    return values


def kmlp(
    shape: Shape,
    classes: int,
    *,
    units: Sequence[int] = (100, 100),
    centres: int | Sequence[int] = 500,
    widths: float | Sequence[float] | None = None,
) -> nn.Sequential:
    """A kernel multilayer perceptron: kernel machines kernel1, kernel2, ... and, as head, one for each class.

    To be trained with `KernelProxy(kernel=losses.gaussian(width))`, width the one of the layer above the cut,
    after `place_centres`: on centres drawn at random it hardly learns. The authors' script for
    MNIST (pixels in [0, 1]) has units=(100, 100) and widths=(3.5, 11, 11), with all samples as centres of the first
    two layers and 10 000 for the last.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        units: kernel machines of the hidden layers, each >= 1.
        centres: for all kernel layers or one by one, head included, >= 1.
        widths: of the Gaussians, for all kernel layers or one by one, > 0; sqrt(D) where left out.

    Raises:
        ModulewiseError: a number is out of range, or not one for each layer.

    References:
        S. Duan, S. Yu, Y. Chen, J. C. Príncipe, On Kernel Method-Based Connectionist Models and Supervised Deep
        Learning Without Backpropagation, Neural Computation 2020, https://arxiv.org/abs/1802.03774

    >>> [name for name, _ in kmlp((1, 8, 8), 10).named_children()]
    ['flatten', 'kernel1', 'kernel2', 'head']
    """
    counts = _each(centres, len(units) + 1, "centres")
    sigmas = _each(widths, len(units) + 1, "widths")
    chain = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    features = shape[0] * shape[1] * shape[2]
    for i, (out, count, width) in enumerate(zip((*units, classes), counts, sigmas, strict=True), start=1):
        name = f"kernel{i}" if i <= len(units) else "head"
        chain[name] = KernelMachine(features, out, centres=count, width=width)
        features = out
    return nn.Sequential(chain)


def klenet5(shape: Shape, classes: int, *, centres: int = 500, width: float | None = None) -> nn.Sequential:
    """LeNet-5 with kernel machines as its output layer; fc2 has no ReLU, whose place the kernel takes.

    Args:
        shape: (C, H, W) of one image, any size.
        classes: number of classes.
        centres: of the output layer, >= 1; 10 000 in the authors' script.
        width: of the Gaussian, > 0; sqrt(84) = 9.2 where left out, 9 in the authors' script.

    Raises:
        ModulewiseError: a number is out of range.

    References:
        S. Duan, S. Yu, Y. Chen, J. C. Príncipe, On Kernel Method-Based Connectionist Models and Supervised Deep
        Learning Without Backpropagation, Neural Computation 2020, https://arxiv.org/abs/1802.03774

    >>> klenet5((1, 28, 28), 10).head
    KernelMachine(84, 10, centres=500, width=9.16515)
    """
    chain = OrderedDict[str, nn.Module](lenet5(shape, classes).named_children())
    chain["fc2"] = nn.Linear(120, 84)
    chain["head"] = KernelMachine(84, classes, centres=centres, width=width)
    return nn.Sequential(chain)


@torch.no_grad()
def place_centres(model: nn.Module, x: Tensor) -> None:
    """Centre every kernel layer on what it is given for the first M of these samples; lowest layers first.

    Call it before training and, where parts learn one after another, again when one has learned, with the same
    samples: the centres of layers on finished parts come out as they were.
    `trainer.fit(..., callbacks=[lambda epoch: place_centres(model, x)])`.

    Args:
        model: runs once, in eval mode and without gradients; nothing but the centres is changed.
        x: training samples (N, ...), N at least the most centres of a layer; see `thinned`.

    Raises:
        ModulewiseError: there is no kernel layer, or there are more centres than samples.

    >>> model = kmlp((1, 1, 2), 3, units=(4,), centres=5)
    >>> place_centres(model, torch.ones(5, 1, 1, 2))
    >>> model.kernel1.centres.unique().tolist()
    [1.0]
    """
    layers = [module for module in model.modules() if isinstance(module, KernelMachine)]
    most = max((len(layer.centres) for layer in layers), default=0)
    if not layers or most > len(x):
        raise ModulewiseError(
            f"{len(x)} samples were given for {len(layers)} kernel layers of up to {most} centres; expected a model "
            "with kernel layers and at least as many samples as centres"
        )
    modes = [(module, module.training) for module in model.modules()]
    # A layer's hook runs when all layers below it have their new centres, so that one pass is enough.
    hooks = [layer.register_forward_pre_hook(_place) for layer in layers]
    try:
        for module, _ in modes:
            module.training = False
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode


def _place(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    assert isinstance(layer, KernelMachine)
    layer.centres.copy_(inputs[0][: len(layer.centres)].flatten(1))


def thinned(x: Tensor, y: Tensor, *, per_class: int) -> Tensor:
    """The first samples of every class, class by class in turn, so that the first M are balanced for any M.

    Args:
        x: samples (N, ...).
        y: their classes (N,).
        per_class: how many to keep of each, >= 1; of a class that has fewer, all.

    Returns:
        Samples (M, ...), M <= per_class * classes.

    Raises:
        ModulewiseError: per_class is below 1, or y is not one integer class per sample.

    >>> thinned(torch.arange(6), torch.tensor([0, 0, 0, 1, 1, 1]), per_class=2).tolist()
    [0, 3, 1, 4]
    """
    if per_class < 1 or y.shape != x.shape[:1] or y.is_floating_point():
        raise ModulewiseError(
            f"per_class={per_class}, x of shape {tuple(x.shape)} and y of shape {tuple(y.shape)} and type {y.dtype} "
            "were given, expected at least 1 and one integer class per sample"
        )
    order = torch.argsort(y, stable=True)
    _, counts = torch.unique_consecutive(y[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(y), device=y.device) - torch.repeat_interleave(starts, counts)
    kept = rank < per_class
    turn = torch.argsort(rank[kept], stable=True)
    return x[order[kept][turn]]


def merged(layer: KernelMachine, *, distance: float = 0.0) -> KernelMachine:
    """The same layer on fewer centres: each joins the first one within a distance, and their alphas add up.

    Where part i has brought the samples of a class to one point, all but one of the centres a class has in
    layer i + 1 are redundant, and the merged layer is the same function. Otherwise |f_i(h) - g_i(h)| is at most
    sum_m |alpha_im| * distance / (width * sqrt(e)), since the Gaussian has that slope at most.

    Args:
        layer: kernel machines; left as they are.
        distance: largest distance between centres that are merged, >= 0.

    Returns:
        A new layer, M' <= M centres.

    Raises:
        ModulewiseError: the distance is negative.

    >>> layer = KernelMachine(2, 1, centres=4)
    >>> place_centres(layer, torch.tensor([[0.0, 1.0], [5.0, 0.0], [0.0, 1.0], [5.0, 0.0]]))
    >>> merged(layer)
    KernelMachine(2, 1, centres=2, width=1.41421)
    """
    if not distance >= 0:
        raise ModulewiseError(f"distance={distance} was given, expected at least 0; 0 merges equal centres alone")
    centres, alpha = layer.centres, layer.alpha.detach()
    left = torch.ones(len(centres), dtype=torch.bool, device=centres.device)
    first: list[int] = []
    columns: list[Tensor] = []
    while bool(left.any()):
        leader = int(left.nonzero()[0])
        near = left & (torch.linalg.vector_norm(centres - centres[leader], dim=1) <= distance)
        first.append(leader)
        columns.append(alpha[:, near].sum(1))
        left &= ~near
    fewer = deepcopy(layer)
    fewer.centres = centres[first].clone()
    fewer.alpha = nn.Parameter(torch.stack(columns, dim=1), requires_grad=layer.alpha.requires_grad)
    return fewer
