"""Optimisers by part and role: made on demand, clipped, scaled, and held back where a loss is not finite."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import MethodError, NonFiniteLossError
from ..objective import Objective, Role
from ..partition import AnyPartition
from ..partition.tree import is_fake

__all__ = ["OptimizerFactory", "SchedulerFactory", "Updater", "guarded_step", "in_full", "scale_gradients"]

OptimizerFactory = Callable[..., Optimizer]
"""optimizer(parameters) or optimizer(parameters, *, part, role)."""

SchedulerFactory = Callable[[Optimizer], Any]
"""scheduler(optimizer) -> a torch learning-rate scheduler, stepped once an epoch of its part."""


def _takes_roles(factory: OptimizerFactory) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False
    return "part" in parameters and "role" in parameters


def _has_gradients(optimizer: Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])


def guarded_step(optimizer: Optimizer, finite: Tensor) -> None:
    """Step, and take the weights back where `finite` is false, without waiting for the device to say which.

    Where it is false, the optimiser sees gradients of zero, so that its state stays finite as well.

    Args:
        optimizer: what to step.
        finite: boolean scalar on the parameters' device.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    before = [p.detach().clone() for p in parameters]
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(~finite, 0)
    optimizer.step()
    with torch.no_grad():
        for parameter, old in zip(parameters, before, strict=True):
            parameter.copy_(torch.where(finite, parameter, old))


def scale_gradients(parameters: Sequence[nn.Parameter], factor: float) -> None:
    """Multiply gradients in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and factor != 1.0:
        torch._foreach_mul_(gradients, factor)


def in_full(tensor: Tensor, *, host: bool = False) -> Tensor:
    """A tensor that may be in pieces on several ranks as a whole; every rank that has a piece must call this.

    Args:
        tensor: any; one that is whole is given back.
        host: bring what was in pieces to the CPU.
    """
    gather: Callable[[], Tensor] | None = getattr(tensor, "full_tensor", None)
    if gather is None:
        return tensor
    return gather().cpu() if host else gather()


def clip_norms(parameters: Sequence[nn.Parameter], norm: float, *, pieces: Collection[nn.Parameter]) -> Tensor:
    """Scale gradients so that the norm of all of them together is a number at most; gives the norm they had.

    Args:
        parameters: whose gradients.
        norm: the largest norm, > 0.
        pieces: those of the parameters of which this rank has a piece.
    """
    if not pieces:
        return torch.nn.utils.clip_grad_norm_(parameters, norm)
    kinds = [[p for p in parameters if (p in pieces) is cut] for cut in (False, True)]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds]
    total = torch.linalg.vector_norm(torch.stack([in_full(kind) for kind in norms]))
    for kind in kinds:
        torch.nn.utils.clip_grads_with_norm_(kind, norm, total)
    return total


class Updater:
    """The optimisers of a partition and its objectives.

    Args:
        partition: whose parameters.
        objectives: whose own parameters, one objective a part.
        optimizer: a factory of one argument, or of parameters and keywords `part` and `role`.
        scheduler: a factory of learning-rate schedulers, or None.
        clip_norm: largest gradient norm (> 0), per part or, with `together`, over all parts; None for no clipping.
        together: step all parts at the end of the step (global clipping needs every gradient first).
        scaled: one gradient scaler a part, for half precision.

    Attributes:
        pieces: by a parameter of the partition what this rank has of it, where it is spread over several ranks.
    """

    def __init__(
        self,
        partition: AnyPartition,
        objectives: Sequence[Objective],
        *,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        clip_norm: float | None,
        together: bool,
        scaled: bool,
    ) -> None:
        self.partition, self.objectives = partition, objectives
        self.factory, self.scheduler_factory = optimizer, scheduler
        self.clip_norm, self.together, self.scaled = clip_norm, together, scaled
        self.roles = _takes_roles(optimizer)
        self.optimizers: dict[tuple[int, Role], Optimizer] = {}
        self.schedulers: dict[tuple[int, Role], Any] = {}
        self.scalers: dict[int, torch.amp.GradScaler] = {}
        self.steps: dict[int, int] = {}
        self.pieces: dict[nn.Parameter, nn.Parameter] = {}
        self._flags: list[tuple[int, Tensor]] = []
        self._stepped: list[int] = []
        self._waiting: list[tuple[int, Role]] = []

    def parameters(self, part: int, role: Role) -> list[nn.Parameter]:
        """The trainable parameters of a part in one role."""
        if role is Role.PART:
            own = self.partition.part(part).parameters()
            return [self.pieces.get(p, p) for p in own if p.requires_grad]
        objectives: Sequence[Objective] = self.objectives[part : part + 1]
        if self.partition.shared:
            objectives = self.objectives if part == 0 else []
        heads = (p for o in objectives if role is o.role for p in o.parameters() if p.requires_grad)
        return list(dict.fromkeys(heads))

    def summed(self, part: int, role: Role) -> list[nn.Parameter]:
        """Those of the parameters whose gradients are this rank's alone: of pieces they are added up as they come."""
        pieces = set(self.pieces.values())
        return [p for p in self.parameters(part, role) if p not in pieces]

    def stand_in(
        self, pieces: dict[nn.Parameter, nn.Parameter], convert: Callable[[Tensor, nn.Parameter], Tensor]
    ) -> None:
        """Let this rank's pieces stand for parameters, or no longer.

        Args:
            pieces: by the parameter; empty for no longer.
            convert: what an optimiser keeps for a parameter, and the parameter that it will be kept for -> the same
                for that.
        """
        swapped: dict[Any, nn.Parameter] = pieces or {piece: parameter for parameter, piece in self.pieces.items()}
        self.pieces = pieces
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["params"] = [swapped.get(p, p) for p in group["params"]]
            for parameter in [p for p in optimizer.state if p in swapped]:
                state, new = optimizer.state.pop(parameter), swapped[parameter]
                optimizer.state[new] = {
                    name: convert(value, new) if isinstance(value, Tensor) else value for name, value in state.items()
                }

    def optimizer(self, part: int, role: Role) -> Optimizer | None:
        """The optimiser of a part in one role, made when first asked for; None where there is nothing to train."""
        key = (part, role)
        if key not in self.optimizers:
            parameters = self.parameters(part, role)
            if not parameters:
                return None
            made = self.factory(parameters, part=part, role=role) if self.roles else self.factory(parameters)
            if not isinstance(made, Optimizer):
                raise MethodError(f"optimizer= returned {type(made).__name__}, expected a torch.optim.Optimizer")
            self.optimizers[key] = made
            if self.scheduler_factory is not None:
                self.schedulers[key] = self.scheduler_factory(made)
        return self.optimizers[key]

    def release(self, part: int) -> None:
        """Forget a part's optimisers and their state, once the part is final."""
        for key in [key for key in self.optimizers if key[0] == part]:
            del self.optimizers[key]
            self.schedulers.pop(key, None)
        self.scalers.pop(part, None)

    def scaler(self, part: int, device: str) -> torch.amp.GradScaler | None:
        """The gradient scaler of a part, in half precision; one for all windows of time, whose gradients add up."""
        if not self.scaled:
            return None
        part = 0 if self.partition.shared else part
        if part not in self.scalers:
            self.scalers[part] = torch.amp.GradScaler(device)
        return self.scalers[part]

    def check(self, part: int, step: int, shown: Tensor) -> Tensor | None:
        """Stop before a part whose loss is not finite; on an accelerator return a flag instead of waiting for it."""
        if is_fake(shown):
            return None
        finite = torch.isfinite(shown).all()
        if shown.device.type != "cpu":
            self._flags.append((part, finite))
            # A part's slices share one update, so that one bad slice holds all of it back.
            return torch.stack([flag for noted, flag in self._flags if noted == part]).all()
        if not finite:
            raise NonFiniteLossError(part=part, step=step, stepped=tuple(self._stepped))
        return None

    def update(self, part: int, roles: Sequence[Role], finite: Tensor | None, *, now: bool = False) -> None:
        """Step a part's optimisers and let its gradients go; or note that they wait for the others, but for `now`."""
        keys = [(part, role) for role in roles if self.optimizer(part, role) is not None]
        if self.together and not now:
            self._waiting += [key for key in keys if key not in self._waiting]
            return
        self._step(keys, finite, fits=self._clip(keys))

    def _clip(self, keys: Sequence[tuple[int, Role]]) -> bool:
        """Clip the norm; False where scaled gradients have overflowed, so that clipping has spoilt all of them."""
        if self.clip_norm is None:
            return True
        scaled = False
        for part, role in keys:
            if part in self.scalers and _has_gradients(self.optimizers[part, role]):
                self.scalers[part].unscale_(self.optimizers[part, role])
                scaled = True
        parameters = [p for key in keys for p in self.parameters(*key)]
        norm = clip_norms(parameters, self.clip_norm, pieces=set(self.pieces.values()))
        return not scaled or bool(norm.isfinite())

    def _step(self, keys: Sequence[tuple[int, Role]], finite: Tensor | None, *, fits: bool) -> None:
        scaled = set()
        for part, role in keys:
            optimizer = self.optimizers[part, role]
            if part in self.scalers:
                if _has_gradients(optimizer):
                    if fits:
                        self.scalers[part].step(optimizer)
                    scaled.add(part)
            elif finite is not None:
                guarded_step(optimizer, finite)
            else:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if role is Role.PART:
                self._stepped.append(part)
                self.steps[part] = self.steps.get(part, 0) + 1
        for part in scaled:
            self.scalers[part].update()

    def finish(self, step: int) -> None:
        """End a step: one look at the flags of an accelerator; clip and step what waited for every gradient."""
        good = torch.stack([flag for _, flag in self._flags]).tolist() if self._flags else []
        bad = [part for (part, _), ok in zip(self._flags, good, strict=True) if not ok]
        if bad:
            stepped = tuple(part for part in self._stepped if part not in bad)
            raise NonFiniteLossError(part=bad[0], step=step, stepped=stepped)
        if self._waiting:
            self._step(self._waiting, None, fits=self._clip(sorted(self._waiting)))
        self.reset()

    def reset(self) -> None:
        """Forget what the present step noted."""
        self._flags, self._stepped, self._waiting = [], [], []

    def clear(self) -> None:
        """Drop every gradient, as after an error in mid-step."""
        for part in range(len(self.objectives)):
            for role in Role:
                for parameter in self.parameters(part, role):
                    parameter.grad = None
        self.reset()

    def epoch_end(self, part: int) -> None:
        """Step the learning-rate schedulers of a part."""
        for key, scheduler in self.schedulers.items():
            if key[0] == part:
                scheduler.step()
