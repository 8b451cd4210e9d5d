"""A head on two copies of the next part's first block: one trained, one an average of the block's own weights (MAN)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from ..partition.boundary import Block, Boundary
from .classifying import HeadFactory
from .copying import fitted, fresh, usable
from .fitting import adapter
from .layers import finished

__all__ = ["MomentumHead", "averaged_copy", "momentum_head"]


def averaged_copy(module: nn.Module) -> nn.Module:
    """A deep copy in training mode whose parameters require no gradient.

    No optimiser is given them, a checkpoint has them, and gradients pass through to what the copy is fed. They stay
    parameters, because recurrent layers keep references to theirs.

    >>> [(name, p.requires_grad) for name, p in averaged_copy(nn.Linear(2, 2)).named_parameters()]
    [('weight', False), ('bias', False)]
    """
    return copy.deepcopy(module).requires_grad_(False).train()


class MomentumHead(nn.Module):
    """classifier(s * LB(h) + (2 - s) * EMA(h)).

    Args:
        fit: h -> what the block takes.
        live: the user's block; it is looked at, and does not become a submodule.
        learned: LB, a trained copy.
        classifier: what follows the sum.
        momentum: m of EMA <- m EMA + (1 - m) live, in [0, 1].
        learned_scale: whether s is learned; it is 1 otherwise.
    """

    def __init__(
        self,
        *,
        fit: nn.Module,
        live: nn.Module,
        learned: nn.Module,
        classifier: nn.Module,
        momentum: float,
        learned_scale: bool,
    ) -> None:
        super().__init__()
        self._live = (live,)  # a tuple hides it from parameters(), buffers(), state_dict() and to()
        self.fit, self.learned, self.average, self.classifier = fit, learned, averaged_copy(live), classifier
        self.momentum = momentum
        self.scale = nn.Parameter(torch.ones(())) if learned_scale else None

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average towards the block's present weights; buffers are left alone."""
        live = dict(self._live[0].named_parameters(remove_duplicate=False))
        average: list[Tensor] = [self.average.get_parameter(name) for name in live]
        weights = [parameter.detach().to(old) for parameter, old in zip(live.values(), average, strict=True)]
        torch._foreach_lerp_(average, weights, 1 - self.momentum)

    def forward(self, h: Tensor) -> Tensor:
        """The logits of h (N, ...)."""
        fed = self.fit(h)
        learned, average = self.learned(fed), self.average(fed)
        mixed = learned + average if self.scale is None else self.scale * learned + (2 - self.scale) * average
        logits: Tensor = self.classifier(mixed)
        return logits


def momentum_head(
    boundary: Boundary,
    outputs: int,
    *,
    blocks: tuple[Block, ...],
    classifier: HeadFactory,
    momentum: float = 0.995,
    learned_scale: bool = True,
    dense: bool = False,
) -> nn.Module:
    """The head of MAN on the first later block that can be copied; the classifier alone where there is none.

    A block can be copied if it has parameters and a floating-point input, and is not the network's own classifier (the
    last block, where it ends in `outputs` channels). The trained copy starts afresh, as in `heads.downstream`; the
    average starts at the block's present weights. Both are in training mode for good: batch normalisation uses the
    batch's statistics, and each copy's running ones are its own and of no use.

    Args:
        boundary: where the head sits.
        outputs: logits per sample or position, >= 1.
        blocks: the later blocks of the network, in order of call, with the live weights.
        classifier: makes what follows the two copies.
        momentum: in [0, 1], default 0.995.
        learned_scale: learn s; 1 otherwise.
        dense: logits per position.

    Raises:
        MethodError: the block cannot be copied or run by itself, or a size is below 1.

    References:
        Su et al., Momentum Auxiliary Network for Supervised Local Learning, ECCV 2024,
        https://arxiv.org/abs/2407.05623

    >>> from .classifying import linear
    >>> block = Block("body", nn.Linear(8, 8), Boundary("stem", (2, 8)), Boundary("body", (2, 8)))
    >>> head = momentum_head(Boundary("stem", (2, 8)), 10, blocks=(block,), classifier=linear)
    >>> head(torch.zeros(5, 8)).shape, torch.equal(head.average.weight, block.module.weight)
    (torch.Size([5, 10]), True)
    """
    candidates = usable(blocks, outputs)
    if not candidates:
        return classifier(boundary, outputs, dense=dense)
    block = candidates[0]
    learned = fresh(block)
    needed, after = fitted(learned, block, boundary, 1)
    return MomentumHead(
        fit=finished(needed, adapter(boundary, needed)),
        live=block.module,
        learned=learned,
        classifier=classifier(after, outputs, dense=dense),
        momentum=momentum,
        learned_scale=learned_scale,
    )
