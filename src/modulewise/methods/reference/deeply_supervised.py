"""End-to-end backpropagation of all the losses of another method: the control for what its heads add."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...errors import MethodError
from ...method import Family, Locality, PartwiseMethod, Reach, Reference
from ...objective import Context, Objective, Signal, Site
from ..objectives import Around
from .backprop import input_gradients, received_gradient

__all__ = ["DeeplySupervised"]


class _Supervised(Around):
    """A part's own loss, and the gradient of the losses of all later parts."""

    def __init__(self, site: Site, inner: Objective) -> None:
        super().__init__(inner)
        self._last = site.last
        self.waits = not site.last
        self.reads_input_gradient = site.part > 0

    def forward(self, context: Context) -> Signal:
        """The inner signal, with the received gradient added."""
        own = self.inner(context)
        assert isinstance(own, Signal)
        if self._last:
            return own
        gradient = received_gradient(context)
        if own.gradient is not None:
            gradient = gradient + own.gradient
        return Signal(loss=own.loss, gradient=gradient, report=own.report)

    def messages(self, context: Context) -> Mapping[int, Tensor]:
        """d(sum of losses)/d(boundary), to the part below every boundary read."""
        return input_gradients(context)


@dataclass(frozen=True)
class DeeplySupervised(PartwiseMethod):
    """End-to-end backpropagation of the sum of a method's losses, with that method's heads.

    Every part follows d(sum over j >= k of L_j)/d(theta_k): the objectives are the method's own and nothing
    is detached between parts. A method with the gradient cut and this one without differ in locality alone.

    Args:
        method: the method whose losses are summed; its objectives neither wait for messages nor hear them.

    Raises:
        MethodError: the method needs messages of its own (raised by `objective`).

    References:
        C.-Y. Lee, S. Xie, P. Gallagher, Z. Zhang, Z. Tu, Deeply-supervised nets, AISTATS 2015,
        https://arxiv.org/abs/1409.5185. All losses have weight one here, and they are kept to the end.

    >>> from modulewise.methods.proxy.dgl import DGL
    >>> str(DeeplySupervised(DGL(classes=3)).locality)
    'global'
    """

    method: PartwiseMethod

    family: ClassVar[Family] = Family.REFERENCE
    locality: ClassVar[Locality] = Locality(Reach.GLOBAL)
    references: ClassVar[tuple[Reference, ...]] = (
        Reference(
            "C.-Y. Lee, S. Xie, P. Gallagher, Z. Zhang, Z. Tu",
            "Deeply-supervised nets",
            "AISTATS",
            2015,
            "https://arxiv.org/abs/1409.5185",
        ),
    )

    def objective(self, site: Site) -> Objective:
        """The method's objective at this site, fed the gradient of the later losses as well."""
        inner = self.method.objective(site)
        if inner.talks or self.method.makes_views:
            raise MethodError(
                f"DeeplySupervised: part {site.part} of {type(self.method).__name__} learns from messages or views of "
                "its own; give a method whose parts learn from a loss alone"
            )
        return _Supervised(site, inner)
