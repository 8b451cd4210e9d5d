"""Peak bytes of a training step, by what they are for, counted storage by storage.

Every operator that reaches torch's dispatcher is watched, in the forward, in autograd's backward and in the
optimiser. A storage counts `storage.nbytes()` once, from the operator that returned it until it dies; views
and in-place operators add nothing. What a kernel allocates and frees inside itself (a convolution's
workspace) is not a tensor of the step and is not seen; neither is work done in other Python threads. On
CUDA, `measure_step` adds the allocator's own figures, which include all that.

The same accounting runs under `torch._subclasses.FakeTensorMode`, so that the model need not fit to be
measured. It is as exact as torch's own shape functions, which e.g. give the statistics that bfloat16 batch
normalisation saves on the CPU 2 bytes a channel where the kernel takes 4. Modules compiled by `torch.compile`
run eagerly while they are metered.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import ModulewiseError
from .ledger import Category, Ledger, MemoryReport
from .watch import Watch, resizes_seen

__all__ = ["MemoryMeter", "measure_step"]


class MemoryMeter:
    """Counts the living bytes of everything that runs inside its `with` block.

    Memory is the sum over the living storages s of nbytes(s); the peak is its maximum over the operators
    run, and `at_peak` splits it by category. Gradients, and optimiser state, are ordinary temporaries when
    they are made and are recognised a moment later; the split at the peak is made with what is known in the
    end, so it is right even when the peak fell in between.

    What lives at the start and is named below counts from the start. A tensor that was not named but is
    used by the step counts as input from its first use.

    Categories: parameters (with buffers); gradients of parameters; optimiser state; heads (their parameters,
    gradients, optimiser state, and what their forward makes; temporaries of their backward are activations);
    inputs; activations are the rest, temporaries of the backward and the optimiser included.

    Args:
        model: the module trained, or its parameters and buffers.
        heads: auxiliary heads: modules, or tensors such as feedback weights. A tensor that is also the
            model's counts as the model's. What a head makes outside its forward needs a `region`.
        optimizers: their state is recognised after each of their steps, gradients set by hand before it.
        inputs: the batch: a tensor, or sequences and mappings of tensors.
        device: count only storages on this device; None counts all.

    Raises:
        ModulewiseError: on entering a meter that is running, or reading one that has not been entered.

    Example:
        >>> model, x = nn.Linear(4, 2, bias=False), torch.ones(3, 4)
        >>> with MemoryMeter(model=model, inputs=x) as meter:
        ...     model(x).sum().backward()
        >>> report = meter.report()
        >>> report.at_peak[Category.PARAMETERS], report.at_peak[Category.INPUTS]
        (32, 48)
        >>> report.end_bytes == 32 + 48 + 32  # weight, batch, gradient
        True
    """

    def __init__(
        self,
        *,
        model: nn.Module | Iterable[Tensor] = (),
        heads: Iterable[nn.Module | Tensor] = (),
        optimizers: Iterable[Optimizer] = (),
        inputs: object = (),
        device: torch.device | str | None = None,
    ) -> None:
        self._model = model if isinstance(model, nn.Module) else tuple(model)
        self._heads, self._optimizers, self._inputs = tuple(heads), tuple(optimizers), inputs
        self._device = None if device is None else torch.device(device)
        self._ledger: Ledger | None = None
        self._report: MemoryReport | None = None
        self._regions: list[Category] = []
        self._of_heads: set[int] = set()
        self._undo = ExitStack()

    def __enter__(self) -> MemoryMeter:
        if self._ledger is not None:
            raise ModulewiseError("got a meter that is already running; make a second MemoryMeter for a nested block")
        self._ledger, self._regions = Ledger(device=self._device), []
        self._of_heads = {id(tensor) for tensor in self._owned()[1][1]}
        with ExitStack() as stack:
            stack.callback(self._stop)
            self._claim(inputs=True)
            self._install(stack, self._ledger)
            self._undo = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def report(self) -> MemoryReport:
        """The figures so far, or those of the finished block."""
        if self._ledger is not None:
            self._claim()
            self._report = self._ledger.report()
        if self._report is None:
            raise ModulewiseError("got a meter that has not run; read its report in or after its `with` block")
        return self._report

    def lap(self) -> MemoryReport:
        """The figures since the block began or the last lap ended; the peak of the next lap is looked for anew.

        Raises:
            ModulewiseError: the meter is not running.

        >>> with MemoryMeter() as meter:
        ...     _ = torch.ones(8).sum()
        ...     first = meter.lap()
        ...     _ = torch.ones(2).sum()
        >>> first.peak_bytes > meter.report().peak_bytes
        True
        """
        if self._ledger is None:
            raise ModulewiseError("got a meter that is not running; take laps inside its `with` block")
        return self._ledger.lap()

    @contextmanager
    def region(self, category: Category) -> Iterator[None]:
        """Count what is made in this block under a category, until it is recognised as something else.

        Args:
            category: e.g. `Category.HEADS` around the loss of a head that is a plain function.
        """
        self._regions.append(category)
        try:
            yield
        finally:
            self._regions.pop()

    def _install(self, stack: ExitStack, ledger: Ledger) -> None:
        """Put hooks and the dispatch mode in, and their removal on the stack."""
        for head in self._heads:
            if isinstance(head, nn.Module):
                stack.callback(head.register_forward_pre_hook(self._enter_head, prepend=True).remove)
                stack.callback(head.register_forward_hook(self._leave_head, always_call=True).remove)
        for category, owned in self._owned():
            for tensor in owned:
                if tensor.requires_grad and tensor.is_leaf:
                    parameter: Any = tensor  # the method has no types
                    claim = partial(self._claim_gradient, category)
                    stack.callback(parameter.register_post_accumulate_grad_hook(claim).remove)
        for optimizer in self._optimizers:
            stack.callback(optimizer.register_step_pre_hook(lambda used, *_: self._claim_gradients_of(used)).remove)
            stack.callback(optimizer.register_step_post_hook(lambda used, *_: self._claim_states(used)).remove)
        stack.enter_context(resizes_seen(ledger))
        stack.enter_context(Watch(ledger, self._regions))

    def _stop(self) -> None:
        try:
            self.report()
        finally:
            self._ledger = None

    def _enter_head(self, *_: Any) -> None:
        self._regions.append(Category.HEADS)

    def _leave_head(self, *_: Any) -> None:
        self._regions.pop()

    def _owned(self) -> tuple[tuple[Category, list[Tensor]], tuple[Category, list[Tensor]]]:
        """Parameters and buffers as they are now, the model's first; each tensor once."""
        model = {id(tensor): tensor for tensor in _tensors_of(self._model)}
        heads = {id(tensor): tensor for head in self._heads for tensor in _tensors_of(head)}
        only_heads = [tensor for key, tensor in heads.items() if key not in model]
        return (Category.PARAMETERS, list(model.values())), (Category.HEADS, only_heads)

    def _claim(self, *, inputs: bool = False) -> None:
        """Recognise what is reachable now; the first to claim a storage keeps it."""
        assert self._ledger is not None
        for category, owned in self._owned():
            self._ledger.see_all(owned, category, claim=True)
        self._claim_gradients()
        self._claim_states(*self._optimizers)
        if inputs:
            self._ledger.see_all((self._inputs,), Category.INPUTS, claim=True)

    def _claim_gradients(self) -> None:
        for category, owned in self._owned():
            for tensor in owned:
                self._claim_gradient(category, tensor)

    def _claim_gradient(self, category: Category, parameter: Tensor) -> None:
        if self._ledger is not None and parameter.is_leaf and parameter.grad is not None:
            wanted = Category.HEADS if category is Category.HEADS else Category.GRADIENTS
            self._ledger.see(parameter.grad, wanted, claim=True)

    def _claim_gradients_of(self, optimizer: Optimizer) -> None:
        """Recognise gradients that were set by hand, in time for the step that reads them."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._claim_gradient(self._of(parameter, Category.PARAMETERS), parameter)

    def _claim_states(self, *optimizers: Optimizer) -> None:
        assert self._ledger is not None
        for optimizer in optimizers:
            for parameter, state in optimizer.state.items():
                self._ledger.see_all((state,), self._of(parameter, Category.OPTIMIZER), claim=True)

    def _of(self, parameter: Tensor, otherwise: Category) -> Category:
        return Category.HEADS if id(parameter) in self._of_heads else otherwise


def measure_step(
    step: Callable[[], object],
    *,
    model: nn.Module | Iterable[Tensor] = (),
    heads: Iterable[nn.Module | Tensor] = (),
    optimizers: Iterable[Optimizer] = (),
    inputs: object = (),
    device: torch.device | str | None = None,
) -> MemoryReport:
    """Run a step once and report its peak memory.

    The first step of a run also makes the optimiser's state; call `step` once before measuring a later one.

    Args:
        step: one training step, data transfer excluded or included as the caller likes.
        model: as for `MemoryMeter`.
        heads: as for `MemoryMeter`.
        optimizers: as for `MemoryMeter`.
        inputs: as for `MemoryMeter`.
        device: as for `MemoryMeter`; on a CUDA device the report also holds the allocator's own peaks.

    >>> measure_step(lambda: torch.ones(8) + torch.ones(8)).peak_bytes  # two operands and the result
    96
    """
    gc.collect()  # dead cycles of earlier work must not count as this step's
    cuda = device is not None and torch.device(device).type == "cuda" and torch.cuda.is_available()
    meter = MemoryMeter(model=model, heads=heads, optimizers=optimizers, inputs=inputs, device=device)
    if cuda:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    with meter:
        step()
    if not cuda:
        return meter.report()
    torch.cuda.synchronize(device)
    return replace(
        meter.report(),
        allocated_bytes=torch.cuda.max_memory_allocated(device),
        reserved_bytes=torch.cuda.max_memory_reserved(device),
    )


def _tensors_of(owner: nn.Module | Tensor | Iterable[Tensor]) -> Iterator[Tensor]:
    if isinstance(owner, nn.Module):
        yield from owner.parameters()
        yield from owner.buffers()
    elif isinstance(owner, Tensor):
        yield owner
    else:
        yield from owner
