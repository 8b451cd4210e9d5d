"""The method of auxiliary coordinates: activations are free variables, tied to the parts by a growing penalty."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .mac_solver import Alternation, AuxiliaryCoordinates
from .part_runs import counts, positive

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["MAC"]


@dataclass(frozen=True, kw_only=True)
class MAC(SolverMethod):
    """Alternate between the coordinates of samples and the weights of parts, on a quadratic penalty that grows.

    E = loss(f_K(z_{K-1}), y) + mu/2 sum_{k<K} 1/N sum_n ||z_kn - f_k(z_{k-1,n})||^2, z_0 = x. A step takes z from the
    forward pass of its batch and alternates Z-steps (gradient descent in all z, for every sample by itself) and
    W-steps (every part by itself on its own term of E, which is also its loss). As mu grows the coordinates approach
    the activations, and the W-step's gradient at the best z approaches E2EBP's, both as 1/mu.

    The coordinates live for one step, the weights' optimisers live on. In a step a part makes the same random draws
    (dropout) in every run, and buffers (BatchNorm) are updated once, by the forward pass; where samples share
    statistics, a Z-step moves them together. Parts may read earlier boundaries by skips. With one part and one
    W-step this is E2EBP.

    Args:
        mu: weight of the penalty at the first step, > 0, default 1.
        growth: what mu is multiplied by every so many steps, >= 1, default 1.5.
        every: steps between two of them, >= 1, default 200.
        mu_limit: the largest mu, >= mu, default 100.
        alternations: Z-step and W-step in turn so many times a step, >= 1, default 1.
        coordinate_steps: gradient steps of a Z-step, at least K-1, default 10.
        coordinate_rate: z <- z - rate N/mu dE/dz, > 0, default 0.1; stable below 2 / (1 + ||df||)^2 for large mu.
        weight_steps: gradient steps of a W-step, >= 1, default 1.
        weight_rate: learning rate of the weights, > 0, default 0.001.
        adam: Adam for the weights; plain gradient descent otherwise.

    Raises:
        MethodError: a number is out of range, a boundary is in half precision, or there are more than
            coordinate_steps + 1 parts.

    References:
        M. A. Carreira-Perpinan, W. Wang, Distributed optimization of deeply nested systems, AISTATS 2014,
        https://arxiv.org/abs/1212.5921

    Departs from the paper: mini-batches, whose coordinates are made anew in every step (the paper keeps those of the
    whole training set; give it as one batch with many alternations for that); gradient steps instead of Gauss-Newton;
    mu grows with the steps, not when a problem has been solved; no fit of the last layer in the end.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> trainer = mw.Trainer(partition, MAC(mu=10.0), loss=torch.nn.functional.cross_entropy)
    >>> sorted(trainer.step(torch.randn(6, 4), torch.arange(6) % 3))
    [0, 1]
    """

    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "M. A. Carreira-Perpinan, W. Wang",
            "Distributed optimization of deeply nested systems",
            "AISTATS",
            2014,
            "https://arxiv.org/abs/1212.5921",
        ),
    )

    mu: float = 1.0
    growth: float = 1.5
    every: int = 200
    mu_limit: float = 100.0
    alternations: int = 1
    coordinate_steps: int = 10
    coordinate_rate: float = 0.1
    weight_steps: int = 1
    weight_rate: float = 0.001
    adam: bool = True

    def __post_init__(self) -> None:
        positive(
            "MAC",
            mu=self.mu,
            growth=self.growth,
            mu_limit=self.mu_limit,
            coordinate_rate=self.coordinate_rate,
            weight_rate=self.weight_rate,
        )
        counts(
            "MAC",
            every=self.every,
            alternations=self.alternations,
            coordinate_steps=self.coordinate_steps,
            weight_steps=self.weight_steps,
        )
        if self.growth < 1 or self.mu_limit < self.mu:
            raise MethodError(
                f"growth={self.growth}, mu={self.mu}, mu_limit={self.mu_limit} was given to MAC; mu never falls: give "
                "growth >= 1 and mu_limit >= mu"
            )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Z-steps and W-steps over the partition's parts."""
        return AuxiliaryCoordinates(partition, loss=loss, seed=seed, settings=Alternation(**asdict(self)))
