"""Online alternating minimisation: codes are set from the top down, then every part's weights fit their code."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

from ...errors import MethodError
from ...method import Family, Locality, Reach, Reference, Solver, SolverMethod
from ...objective import Loss
from .altmin_solver import CodeSettings, OnlineCodes
from .part_runs import counts, positive

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["OnlineAlternatingMinimisation"]


@dataclass(frozen=True, kw_only=True)
class OnlineAlternatingMinimisation(SolverMethod):
    """On every mini-batch: codes from the top down towards a lower loss, then each part's weights towards its code.

    With c_k the value at boundary k, h_k that of the forward pass and c_0 = x, means over N samples:
    c_{K-1} goes down ||c - h||^2 + 1/mu loss(f_K(c), y), then c_k goes down ||c - h||^2 + ||f_{k+1}(c) - c_{k+1}||^2
    for k = K-2, ..., 1, each from h; then part k < K goes down ||f_k(c_{k-1}) - c_k||^2 and the last part the task
    loss; these are also the losses shown. Cut after the linear layers, so that a part begins with the
    non-linearity: the codes are then those of the paper. Non-differentiable activations train if their module has a
    surrogate gradient; no part's weights pass a gradient through the non-linearity that it begins with.

    The codes live for one step, the weights' optimisers live on. In a step a part makes the same random draws
    (dropout) in every run, and buffers (BatchNorm) are updated once, by the forward pass. Parts may read earlier
    boundaries by skips: a code then has a term for each reader. With one part and one weight step this is E2EBP.

    Args:
        mu: weight of squared distances against the task loss, > 0, default 0.2.
        sparsity: adds sparsity/mu |c|_1 to the objective of codes, >= 0, default 0.
        code_steps: gradient steps of each code, >= 1, default 5.
        code_rate: c <- c - rate N dE/dc, > 0, default 0.05; too large once the parts' slopes have grown, it diverges.
        code_momentum: Nesterov's, 0 <= momentum < 1, default 0.9.
        weight_steps: gradient steps of each part, >= 1, default 1.
        weight_rate: learning rate of the weights, > 0, default 0.001.
        adam: Adam for the weights (AM-Adam); plain gradient descent otherwise.

    Raises:
        MethodError: a number is out of range, or a boundary is in half precision.

    References:
        A. Choromanska, B. Cowen, S. Kumaravel, R. Luss, M. Rigotti, I. Rish, B. Kingsbury, P. DiAchille, V. Gurev,
        R. Tejwani, D. Bouneffouf, Beyond Backprop: Online Alternating Minimization with Auxiliary Variables,
        ICML 2019, https://arxiv.org/abs/1806.09077

    Departs from the public code (github.com/IBM/online-alt-min), which averages squared distances over features and
    differentiates the batch mean, so that codes move less in large batches and wide layers: here distances are sums
    over the features of a sample and the step of a code does not depend on N. mu is constant, as it is there by
    default. The variant that keeps second moments (AM-mem) and weight sparsity are left out.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["0"], example=torch.randn(2, 4))
    >>> trainer = mw.Trainer(partition, OnlineAlternatingMinimisation(), loss=torch.nn.functional.cross_entropy)
    >>> sorted(trainer.step(torch.randn(6, 4), torch.arange(6) % 3))
    [0, 1]
    """

    name: ClassVar[str] = "altmin"
    family: ClassVar[Family] = Family.AUXILIARY
    locality: ClassVar[Locality] = Locality(Reach.TARGETS)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "A. Choromanska, B. Cowen, S. Kumaravel, R. Luss, M. Rigotti, I. Rish, B. Kingsbury, P. DiAchille, "
            "V. Gurev, R. Tejwani, D. Bouneffouf",
            "Beyond Backprop: Online Alternating Minimization with Auxiliary Variables",
            "ICML",
            2019,
            "https://arxiv.org/abs/1806.09077",
        ),
    )

    mu: float = 0.2
    sparsity: float = 0.0
    code_steps: int = 5
    code_rate: float = 0.05
    code_momentum: float = 0.9
    weight_steps: int = 1
    weight_rate: float = 0.001
    adam: bool = True

    def __post_init__(self) -> None:
        who = "OnlineAlternatingMinimisation"
        positive(who, mu=self.mu, code_rate=self.code_rate, weight_rate=self.weight_rate)
        counts(who, code_steps=self.code_steps, weight_steps=self.weight_steps)
        if not (0 <= self.sparsity < float("inf") and 0 <= self.code_momentum < 1):
            raise MethodError(
                f"sparsity={self.sparsity}, code_momentum={self.code_momentum} was given to {who}; "
                "give sparsity >= 0 and 0 <= code_momentum < 1"
            )

    def solver(self, partition: Partition, *, loss: Loss, seed: int) -> Solver:
        """Codes at the partition's boundaries, and steps of its parts."""
        return OnlineCodes(partition, loss=loss, seed=seed, settings=CodeSettings(**asdict(self)))
