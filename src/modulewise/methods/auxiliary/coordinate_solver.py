"""What solvers with coordinates at the boundaries share: a step around them, and the optimisers of the weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from ...errors import CheckpointError, NonFiniteLossError
from ...method import Solver
from ...objective import Loss
from ...seeding import preserved_generators
from .part_runs import PartRuns, Task, check_boundaries

if TYPE_CHECKING:
    from ...partition import Partition

__all__ = ["CoordinateSolver", "WeightSteps", "weight_optimizer"]

MakeOptimizer = Callable[[Sequence[nn.Parameter]], Optimizer]


def weight_optimizer(rate: float, *, adam: bool) -> MakeOptimizer:
    """A factory of Adam or of plain gradient descent.

    >>> weight_optimizer(0.1, adam=False)([nn.Parameter(torch.zeros(1))]).defaults["lr"]
    0.1
    """
    return lambda parameters: Adam(list(parameters), lr=rate) if adam else SGD(list(parameters), lr=rate)


class WeightSteps:
    """One optimiser a part, and their state as tensors.

    Args:
        partition: whose trainable parameters.
        make: optimizer(parameters).
    """

    def __init__(self, partition: Partition, make: MakeOptimizer) -> None:
        self._parameters = [[p for p in part.parameters() if p.requires_grad] for part in partition.parts]
        self._optimizers = [make(parameters) if parameters else None for parameters in self._parameters]

    def leaves(self, part: int) -> list[nn.Parameter]:
        """The part's trainable parameters."""
        return self._parameters[part]

    def clear(self) -> None:
        """Drop every gradient."""
        for parameters in self._parameters:
            for parameter in parameters:
                parameter.grad = None

    def step(self, part: int) -> None:
        """One step of a part's optimiser along the gradients at hand, which are dropped."""
        optimizer = self._optimizers[part]
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def copies(self) -> list[Tensor]:
        """All weights as they are."""
        return [parameter.detach().clone() for parameters in self._parameters for parameter in parameters]

    @torch.no_grad()
    def restore(self, copies: Sequence[Tensor]) -> None:
        """Put all weights back to what `copies` gave."""
        own = [parameter for parameters in self._parameters for parameter in parameters]
        for parameter, copy in zip(own, copies, strict=True):
            parameter.copy_(copy)

    def state_dict(self) -> dict[str, Tensor]:
        """What the optimisers keep, as PART.PARAMETER.NAME."""
        return {
            f"{part}.{index}.{name}": value
            for part, optimizer in enumerate(self._optimizers)
            if optimizer is not None
            for index, entry in optimizer.state_dict()["state"].items()
            for name, value in entry.items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the optimisers' state back.

        Raises:
            CheckpointError: a tensor belongs to no parameter of this partition, or has another shape.
        """
        found: dict[int, dict[int, dict[str, Tensor]]] = {}
        for key, value in state.items():
            part, index, name = self._place(key, value)
            found.setdefault(part, {}).setdefault(index, {})[name] = value
        for part, optimizer in enumerate(self._optimizers):
            if optimizer is not None:
                entries = {index: dict(entry) for index, entry in found.get(part, {}).items()}
                optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})

    def _place(self, key: str, value: Tensor) -> tuple[int, int, str]:
        part, _, rest = key.partition(".")
        index, _, name = rest.partition(".")
        known = part.isdecimal() and index.isdecimal() and int(part) < len(self._parameters)
        if not known or int(index) >= len(self._parameters[int(part)]):
            raise CheckpointError(
                f"{key!r} was given as a tensor of the solver, expected PART.PARAMETER.NAME of its "
                f"{len(self._parameters)} parts; load the checkpoint of this partition"
            )
        parameter = self._parameters[int(part)][int(index)]
        if value.dim() and value.shape != parameter.shape:
            raise CheckpointError(
                f"{key!r} has shape {tuple(value.shape)}, expected {tuple(parameter.shape)}; load the checkpoint of "
                "this partition"
            )
        return int(part), int(index), name


class CoordinateSolver(Solver, ABC):
    """A solver whose coordinates at the boundaries live for one step; its optimisers of the weights live on.

    Args:
        partition: the parts; skips are allowed.
        loss: the task loss.
        seed: the run's seed.
        make: optimizer(parameters) of a part's weights.
        who: the method's name, for messages.

    Raises:
        MethodError: a boundary is in half precision.
    """

    def __init__(self, partition: Partition, *, loss: Loss, seed: int, make: MakeOptimizer, who: str) -> None:
        check_boundaries(partition, who)
        self._partition, self._loss, self._seed = partition, loss, seed
        self._now = 0
        self.weights = WeightSteps(partition, make)

    def step(self, x: Any, y: Any, *, step: int) -> dict[int, Tensor]:
        """Coordinates from a forward pass, then the method's own steps; every part's share, detached.

        Raises:
            NonFiniteLossError: a share is not finite (looked at on the CPU alone); all weights are as they were
                before the step.
        """
        self._now = step
        self.weights.clear()
        before = self.weights.copies()
        try:
            with preserved_generators(), torch.enable_grad():
                runs = PartRuns(self._partition, x, seed=self._seed, step=step)
                shares = self._learn(runs, runs.forward(), lambda output: self._loss(output, y))
        except NonFiniteLossError:
            self.weights.restore(before)
            raise
        finally:
            self.weights.clear()
        return dict(enumerate(shares))

    @abstractmethod
    def _learn(self, runs: PartRuns, start: list[Tensor], task: Task) -> list[Tensor]:
        """Train all parts from the boundaries of a forward pass; their detached shares."""

    def _differentiate(self, share: Tensor, leaves: Sequence[Tensor], *, part: int) -> Tensor:
        """Add a share's gradient to leaves, if it is finite; the share, detached."""
        value = share.detach()
        if value.device.type == "cpu" and not bool(torch.isfinite(value).all()):
            raise NonFiniteLossError(part=part, step=self._now, stepped=())
        if share.requires_grad and leaves:
            share.backward(inputs=list(leaves))
        return value

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the weights' optimisers."""
        return self.weights.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state of the weights' optimisers back."""
        self.weights.load_state_dict(state)
