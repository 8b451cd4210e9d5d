"""Transport-regularised greedy learning: a part may not move its features further than its loss is worth."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ... import heads, losses
from ...errors import MethodError
from ...heads.layers import at_least_one
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import Around, classified

__all__ = ["TRGL", "Transported", "candidates", "is_composite", "outermost"]


def is_composite(module: nn.Module) -> bool:
    """Whether a module is made of others and is no mere container: a residual block, among the usual ones.

    >>> [is_composite(m) for m in (nn.Sequential(nn.ReLU()), nn.Linear(1, 1), nn.TransformerEncoderLayer(2, 1))]
    [False, False, True]
    """
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    return not isinstance(module, containers) and next(module.children(), None) is not None


def candidates(modules: Sequence[tuple[str, nn.Module]], wanted: Callable[[nn.Module], bool]) -> Iterator[str]:
    """Names of the wanted modules at or below some modules, an outer one before those inside it."""
    for name, module in modules:
        if wanted(module):
            yield name
        yield from candidates([(f"{name}.{child}", inner) for child, inner in module.named_children()], wanted)


def outermost(names: Iterable[str]) -> list[str]:
    """Those names that lie inside no other one.

    >>> outermost(["layer1.0", "layer1.0.attention", "layer1.1"])
    ['layer1.0', 'layer1.1']
    """
    names = list(names)
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


class Transported(Around):
    """A loss plus the transport of the part's blocks over 2 tau.

    Args:
        inner: the loss of the part.
        tau: step of the minimising movement, > 0.
        blocks: names of the blocks to read; the outermost that keep the shape of their input count.
    """

    def __init__(self, inner: Objective, *, tau: float, blocks: tuple[str, ...]) -> None:
        super().__init__(inner)
        self.tau, self.taps = tau, blocks

    def forward(self, context: Context) -> Signal:
        """L_k + transport / (2 tau); L_k alone is shown."""
        own = self.inner(context).loss
        moved = {name: pair for name, pair in context.taps.items() if _moved(*pair)}
        if not moved:
            return Signal(loss=own)
        cost = losses.transport_cost(moved[name] for name in outermost(moved))
        return Signal(loss=own + cost / (2 * self.tau), report=own)


def _moved(before: Any, after: Any) -> bool:
    return isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape


@dataclass(frozen=True)
class TRGL(PartwiseMethod):
    """Each part minimises its loss plus how far its residual blocks move the features; the last the task loss plus it.

        L_k + 1 / (2 tau) sum_b mean (f_b(h) - h)^2,

    over the blocks b of part k whose output has the shape of their input, L_k = CE(head(h_k), y). Training parts with
    this cost is a minimising movement: features change little by little over depth, as end-to-end training has
    them do, instead of being spent by the first parts. Parts without such a block keep their loss alone.

    Args:
        classes: number of classes, >= 1.
        tau: > 0, default 1; the larger, the freer. The authors' runs use 1 (ResNet-110, 4 to 16 parts), 100 (2 parts).
        block: which modules are blocks, block(module) -> bool; of nested ones the outermost that keeps the shape of its
            input counts. By default modules made of others that are not containers.
        head: makes the head of a boundary, default `heads.conv`.
        criterion: criterion(logits, y) -> scalar.
        dense: one label per position (tokens, pixels) instead of one per sample.

    Raises:
        MethodError: classes is below 1 or tau not positive; (with compile or recompute) blocks cannot be read.

    References:
        S. Karkar, I. Ayed, E. de Bezenac, P. Gallinari, Module-wise Training of Neural Networks via the Minimizing
        Movement Scheme, NeurIPS 2023, https://arxiv.org/abs/2309.17357

    Departs from the paper: a block's residual is read as f_b(h) - h, which contains an activation after the sum where
    there is one; blocks that change the shape are left out. As in the authors' code, squares are means over elements.

    >>> body = nn.Sequential(nn.Linear(4, 4), nn.TransformerEncoderLayer(4, 1))
    >>> list(candidates([("body", body)], is_composite))
    ['body.1', 'body.1.self_attn']
    """

    family: ClassVar[Family] = Family.PROXY
    locality: ClassVar[Locality] = Locality(Reach.STRICT)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "S. Karkar, I. Ayed, E. de Bezenac, P. Gallinari",
            "Module-wise Training of Neural Networks via the Minimizing Movement Scheme",
            "NeurIPS",
            2023,
            "https://arxiv.org/abs/2309.17357",
        ),
    )

    classes: int
    _: KW_ONLY
    tau: float = 1.0
    block: Callable[[nn.Module], bool] = is_composite
    head: heads.HeadFactory = heads.conv
    criterion: losses.Criterion = losses.classification
    dense: bool = False

    def __post_init__(self) -> None:
        at_least_one(classes=self.classes)
        if not self.tau > 0:
            raise MethodError(f"tau={self.tau} was given, expected a positive one; the paper's is 1")

    def objective(self, site: Site) -> Objective:
        """The loss of the part with its transport."""
        own = classified(site, self.head, classes=self.classes, criterion=self.criterion, dense=self.dense)
        return Transported(own, tau=self.tau, blocks=tuple(candidates(site.modules(), self.block)))
