"""Parts whose weights, gradients and optimiser states are in pieces on the ranks that train them together.

torch's `fully_shard` changes the class, hooks and parameters of the modules that it is given. It is given copies here,
which are called in the place of the user's modules; meanwhile the user's parameters are empty, and they are filled
again, the same objects, when the pieces are joined.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...errors import MethodError, RankError
from ...partition import Partition
from ...partition.shadowing import is_compiled
from ..updating import in_full
from .reducing import Summed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from ...trainer import Trainer
    from ..local import LocalEngine

__all__ = ["Shards", "refuse_shards", "twin"]

UNIT = 2**16
"""Weights from which on a module of a chain is worth a message of its own."""


def twin(module: nn.Module, seen: dict[nn.Module, nn.Module] | None = None) -> nn.Module:
    """A module of the same class with the same parameters, and the very same buffers, as an object of its own.

    Args:
        module: any; hooks and plain attributes are taken along as they are now.
        seen: the twins that there are already, by module: a module that is in two places has one.

    >>> linear = nn.Linear(2, 2)
    >>> twin(linear) is linear, twin(linear).weight is linear.weight
    (False, True)
    """
    seen = {} if seen is None else seen
    if module not in seen:
        other = seen[module] = copy.copy(module)
        attributes = vars(other)
        for name, value in vars(module).items():
            # The mapping of buffers stays in common: what is put there for a while is put there for both.
            if isinstance(value, dict) and name != "_buffers":
                attributes[name] = value.copy()
        attributes["_buffers"] = module._buffers
        attributes["_modules"] = {name: child and twin(child, seen) for name, child in module._modules.items()}
    return seen[module]


class Shards:
    """Some parts of a trainer, in pieces over the ranks that hold the same ones.

    Args:
        trainer: whose engine and optimisers.
        partition: its parts.
        own: those of this rank.
        mesh: the ranks that hold the same parts, in one dimension.

    Attributes:
        summed: how gradients are added up.
    """

    def __init__(self, trainer: Trainer, partition: Partition, own: Sequence[int], mesh: DeviceMesh) -> None:
        self._engine: LocalEngine = trainer.engine
        self._checked = False
        self.partition, self.own, self.mesh, self.summed = partition, own, mesh, Summed()

    def spread(self) -> None:
        """Leave this rank its pieces, and empty the user's parameters; nothing where they are in pieces.

        Raises:
            RankError: an optimiser keeps what cannot be cut; nothing has been changed.
        """
        if self._engine.updater.pieces:
            return
        self.check()
        pieces: dict[nn.Parameter, nn.Parameter] = {}
        calls = [dict(calls) for calls in self._engine.calls]
        for part in self.own:
            for module in _trained(self.partition, part):
                other = twin(module)
                self._shard(other)
                own = dict(module.named_parameters())
                for name, piece in other.named_parameters():
                    pieces[own[name]] = piece
                    own[name].data = own[name].new_empty(0)
                calls[part][module] = _call(module, other)
        self._engine.calls = calls
        self._engine.updater.stand_in(pieces, self._piece)

    def join(self) -> None:
        """Fill the user's parameters, and take the pieces away; every rank that has pieces must call this."""
        pieces = self._engine.updater.pieces
        with torch.no_grad():
            for parameter, piece in pieces.items():
                parameter.data = in_full(piece).detach()
        self._engine.updater.stand_in({}, lambda state, _: in_full(state))
        self._engine.calls = [{} for _ in self.partition.parts]

    def check(self) -> None:
        """See, once optimisers keep something, that it can be cut as their parameters are.

        Raises:
            RankError: it cannot.
        """
        kept = [] if self._checked else list(self._engine.updater.optimizers.values())
        for optimizer in kept:
            for parameter, state in optimizer.state.items():
                self._checked = True
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.dim() and value.shape != parameter.shape:
                        raise RankError(
                            f"{type(optimizer).__name__} keeps {name} of shape {tuple(value.shape)} for a parameter of "
                            f"shape {tuple(parameter.shape)}, which cannot be cut as that is; leave shard=True out"
                        )

    def gathered(self, tensors: Mapping[str, dict[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """A trainer's state with every tensor as a whole, on the host; every rank that has pieces must call this."""
        names = {name: p for name, p in self.partition.model.named_parameters() if p in self._engine.updater.pieces}
        found = {group: dict(own) for group, own in tensors.items()}
        found["model"].update({name: self._engine.updater.pieces[p].detach() for name, p in names.items()})
        with torch.no_grad():
            for own in found.values():
                for name, tensor in own.items():
                    own[name] = in_full(tensor, host=True)
        return found

    def _shard(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import fully_shard  # half a second, so only where it is used

        for unit in (*_units(module), module):
            cut: Any = fully_shard(unit, mesh=self.mesh, reshard_after_forward=True)
            cut.set_custom_reduce_scatter(self.summed)
            cut.set_gradient_divide_factor(1.0)
            cut.set_force_sum_reduction_for_comms(True)

    def _piece(self, state: Tensor, piece: nn.Parameter) -> Tensor:
        """This rank's piece of what an optimiser keeps for a parameter; no message, every rank has the whole."""
        from torch.distributed.tensor import distribute_tensor

        placements: Any = getattr(piece, "placements", None)
        if state.dim() == 0 or placements is None:
            return state
        return distribute_tensor(state, self.mesh, placements, src_data_rank=None)


def _units(module: nn.Module) -> list[nn.Module]:
    """What of a chain is whole by itself, one after another; the rest is whole as long as the chain runs."""
    children = list(module.children()) if isinstance(module, nn.Sequential) else []
    chains = [unit for child in children if isinstance(child, nn.Sequential) for unit in _units(child)]
    others = [child for child in children if not isinstance(child, nn.Sequential)]
    return [*chains, *(child for child in others if sum(p.numel() for p in child.parameters()) >= UNIT)]


def _call(module: nn.Module, other: nn.Module) -> Callable[..., Any]:
    """The twin's call, in the modes that the user's modules are in."""
    pairs = list(zip(module.modules(), other.modules(), strict=True))

    def call(*args: Any, **kwargs: Any) -> Any:
        for one, two in pairs:
            two.training = one.training
        return other(*args, **kwargs)

    return call


def _trained(partition: Partition, part: int) -> Iterator[nn.Module]:
    """The outermost modules of a part that have parameters."""
    return (module for _, module in partition.part(part).modules() if next(module.parameters(), None) is not None)


def refuse_shards(trainer: Trainer, partition: Partition) -> None:
    """Refuse what cannot be in pieces.

    Raises:
        MethodError: in one line, what does not fit and where.
    """
    from torch.distributed.fsdp import FSDPModule

    if not hasattr(FSDPModule, "set_custom_reduce_scatter"):
        raise MethodError(f"shard=True was given on torch {torch.__version__}, expected 2.9 or newer; leave it out")
    engine = trainer.engine
    for word, given in {
        "compile=True": any(engine.calls),
        "recompute=True": engine.recompute,
        "precision=torch.float16": engine.precision is torch.float16,
    }.items():
        if given:
            raise MethodError(f"Ranks(shard=True) and {word} were both given, expected one of the two")
    for part, objective in enumerate(trainer.objectives):
        reasons: dict[str, Any] = {
            "reads modules inside the part": objective.taps,
            "differentiates the part more than once": objective.overlaps or objective.differentiates,
            "learns with a delay": objective.delay,
        }
        for what, has in reasons.items():
            if has:
                raise MethodError(
                    f"the objective of part {part} ({type(objective).__name__}) {what}, which a part in pieces cannot "
                    "have; leave shard=True out"
                )
    for part in range(len(partition)):
        _refuse_modules(partition, part)


def _refuse_modules(partition: Partition, part: int) -> None:
    seen: set[nn.Parameter] = set()
    for name, module in partition.part(part).modules():
        own = list(module.parameters())
        for reason, given in {
            "was compiled": any(map(is_compiled, module.modules())),
            "holds a recurrent layer, which keeps its weights in a list": any(
                isinstance(inner, nn.RNNBase) for inner in module.modules()
            ),
            "shares a parameter with another": not seen.isdisjoint(own),
            "has a parameter of no dimension": any(p.dim() == 0 for p in own),
            "mixes parameters of several types": len({p.dtype for p in own}) > 1,
        }.items():
            if given:
                raise MethodError(
                    f"module {name!r} of part {part} {reason}, and cannot be in pieces; leave shard=True out"
                )
        seen.update(own)
