"""A partition over time: a recurrent network cut into windows, which share its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError, PartitionError
from ..models.recurrent import Recurrent
from .boundary import Block, Boundary
from .plans import PartPlan
from .running import Enter
from .shadowing import scratch_buffers

__all__ = ["TimePartition", "Window", "window_lengths"]


def window_lengths(moments: int, windows: int) -> list[int]:
    """The lengths of `windows` windows of a sequence, as even as can be, longer ones first.

    >>> window_lengths(10, 4)
    [3, 3, 2, 2]
    """
    return [moments // windows + (index < moments % windows) for index in range(windows)]


class _Call(nn.Module):
    """A window as a module, so that what goes in and comes out can be tapped; it holds no parameters itself."""

    def __init__(self, window: Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self._window = window

    def forward(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """(outputs, state)."""
        return self._window(moments, state)


class Window:
    """One part of a partition over time.

    Attributes:
        index: 0 <= index < K.
        parameter_names: all names for the first window, which stands for all; none for the others.
        input: the state before it; None for window 0.
        output: the state after it; None for the last window.
    """

    def __init__(self, partition: TimePartition, index: int, state: Boundary) -> None:
        self._partition, self.index = partition, index
        self.input = state if index else None
        self.output = state if index < len(partition.lengths) - 1 else None
        names = [name for name, _ in partition.model.named_parameters()] if index == 0 else []
        self.parameter_names = tuple(names)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The shared parameters, as the first window's."""
        return iter(self._partition.model.named_parameters() if self.index == 0 else ())

    def parameters(self) -> Iterator[nn.Parameter]:
        """The shared parameters, as the first window's."""
        return (parameter for _, parameter in self.named_parameters())

    def modules(self) -> list[tuple[str, nn.Module]]:
        """The network's own modules."""
        return list(self._partition.model.named_children())


class TimePartition:
    """A recurrent network unrolled in time and cut into K windows; the boundary between two is the state.

    Parts share their parameters here, and only here: there is one parameter set and one optimiser, gradients of all
    windows are summed, and it steps once, when the last window has learned. Auxiliary heads of the windows are one
    head as well. With an output for every moment each window adds its own task loss, a mean over its moments, weighted
    by its share of the sequence, so that the sum over windows is the mean over all. Labels that a loss leaves out
    (-100) count as moments in these shares, and a window without any other has to have a loss that is finite. A method
    then decides what crosses a cut backwards: with `Backprop` it is backpropagation through time, exactly.

    Args:
        model: a `models.Recurrent`: `window(moments, state) -> (outputs, state)`.
        windows: K >= 1, at most the number of moments.
        example: an input of the model (N, T, ...), or whatever its `sequence` takes; all inputs have its T.

    Raises:
        PartitionError: the model is no recurrent one, there are more windows than moments, or the windows one after
            the other do not give the whole model's output.

    >>> from modulewise import models
    >>> partition = TimePartition(models.rnn_rows((1, 8, 8), 10), windows=3, example=torch.zeros(2, 1, 8, 8))
    >>> len(partition), partition.lengths
    (3, [3, 3, 2])

    Attributes:
        lengths: moments of every window.
        shape: of the moments of the longest window (N, t, ...).
        every: whether there is an output for every moment.
    """

    shared = True
    cuts: tuple[str, ...]
    ports: Mapping[int, tuple[int, ...]] = {}

    def __init__(self, model: nn.Module, *, windows: int, example: Tensor) -> None:
        if not isinstance(model, Recurrent):
            raise PartitionError(
                f"a {type(model).__name__} was given, a partition over time needs a modulewise.models.Recurrent: give "
                "the network a method window(moments, state) -> (outputs, state)"
            )
        self.model, self.example = model, example
        moments = model.sequence(example).shape[1]
        if not 1 <= windows <= moments:
            raise PartitionError(f"windows={windows} was given for {moments} moments; give 1 to {moments}")
        self.lengths = window_lengths(moments, windows)
        self.cuts = tuple(f"moment {sum(self.lengths[: k + 1])}" for k in range(windows - 1))
        self.shape = tuple(self.moments(0, example).shape)
        self._call = _Call(model.window)
        state = self._verified()
        self.parts = tuple(Window(self, index, state) for index in range(windows))
        self._plans = [PartPlan(reads=(index - 1,) if index else (), reads_batch=True) for index in range(windows)]

    def __len__(self) -> int:
        """K, the number of windows."""
        return len(self.parts)

    def part(self, index: int) -> Window:
        """Window `index`, 0 <= index < K."""
        if not 0 <= index < len(self.parts):
            raise PartitionError(f"window {index} was asked for, expected 0 to {len(self.parts) - 1}")
        return self.parts[index]

    def plans(self, x: Any) -> list[PartPlan]:
        """What every window reads.

        Raises:
            DataError: x has another number of moments than the example.
        """
        moments, expected = self.model.sequence(x).shape[1], sum(self.lengths)
        if moments != expected:
            raise DataError(f"a sequence of {moments} moments was given, the partition was made for {expected}")
        return self._plans

    def run(
        self,
        index: int,
        x: Any,
        fed: Mapping[int, Tensor],
        *,
        enter: Enter | None = None,
        recomputing: bool = False,
        calls: Mapping[nn.Module, Callable[..., Any]] | None = None,
        plan: PartPlan | None = None,
        piecewise: bool = False,
    ) -> Any:
        """Run window `index` from the state before it: the state after it; for the last window the outputs.

        Args:
            index: the window.
            x: the model's input, all of it.
            fed: the state before the window, by the index of the window before.
            enter: called with the window's index, to set generators.
            recomputing: let buffers be written to copies, so that a second run updates no statistics.
            calls: not used; modules of a recurrent network are called as they are.
            plan: not used.
            piecewise: not used.
        """
        if enter is not None:
            enter(index)
        with scratch_buffers(self.model) if recomputing else nullcontext():
            outputs, state = self._call(self.moments(index, x), fed.get(index - 1))
        return outputs if index == len(self.lengths) - 1 else state

    def moments(self, index: int, x: Any) -> Tensor:
        """The moments of a window (N, t, ...)."""
        start = sum(self.lengths[:index])
        return self.model.sequence(x)[:, start : start + self.lengths[index]]

    def labels(self, part: int, y: Any) -> Any:
        """The labels of a window's moments, where every moment has one (N, T, ...); else y itself."""
        if not self.every or not isinstance(y, Tensor) or y.ndim < 2 or y.shape[1] != sum(self.lengths):
            return y
        start = sum(self.lengths[:part])
        return y[:, start : start + self.lengths[part]]

    def module(self, name: str) -> nn.Module:
        """A module of the model by its name; "" is the window itself, (moments, state) -> (outputs, state)."""
        return self.model.get_submodule(name) if name else self._call

    def blocks(self, index: int) -> tuple[Block, ...]:
        """No later blocks: later windows are the same network."""
        return ()

    def __str__(self) -> str:
        return f"{type(self.model).__name__} in {len(self)} windows of {self.lengths} moments, one parameter set"

    @torch.no_grad()
    def _verified(self) -> Boundary:
        """The state's shape; the windows in a row give the whole model's output."""
        model, x = self.model, self.example
        modes = [(module, module.training) for module in model.modules()]
        try:
            with scratch_buffers(model):
                model.eval()
                whole, state = model(x), None
                pieces = []
                for index, length in enumerate(self.lengths):
                    piece, state = model.window(self.moments(index, x), state)
                    pieces.append(piece)
                    self.every = (
                        piece.ndim > 1 and piece.shape[1] == length and whole.shape[1:2] == (sum(self.lengths),)
                    )
        finally:
            for module, mode in modes:
                module.training = mode
        assert state is not None
        if state.ndim < 2 or len(state) != len(x):
            raise PartitionError(
                f"the state is {tuple(state.shape)} for {len(x)} samples, expected (N, ...): samples along axis 0"
            )
        composed = torch.cat(pieces, 1) if self.every else pieces[-1]
        if composed.shape != whole.shape or not torch.allclose(composed, whole, rtol=1e-4, atol=1e-5):
            raise PartitionError(
                "the windows one after the other do not give the model's own output; all that is remembered must be in "
                "the state"
            )
        return Boundary("state", tuple(state.shape), state.dtype, 1 if state.ndim < 3 else -1)
