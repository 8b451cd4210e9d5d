"""Recurrent networks that read a sequence window by window: what a partition over time cuts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ModulewiseError
from .builtin import Shape

__all__ = ["Recurrent", "RecurrentNetwork", "lstm_rows", "pixels", "rnn_pixels", "rnn_rows", "rows"]


class Recurrent(nn.Module, ABC):
    """A network over time that can stop at any moment and go on from its state. Abstract.

    forward(x) is one window over all T moments of sequence(x), from no state on.
    """

    @abstractmethod
    def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Some moments of a sequence.

        Args:
            moments: (N, t, ...), t >= 1.
            state: (N, ...) after the moments before, all that is remembered of them; None before the first.

        Returns:
            The output of every moment (N, t, ...), or one for the last moment (N, ...), and the state (N, ...).
        """

    def sequence(self, x: Tensor) -> Tensor:
        """The moments (N, T, ...) of an input; x itself unless the network says otherwise."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        """The output of the whole sequence, of every moment or of the last."""
        return self.window(self.sequence(x), None)[0]


def rows(x: Tensor) -> Tensor:
    """An image (N, C, H, W) as a sequence of its rows, (N, H, C W).

    >>> rows(torch.zeros(2, 3, 5, 4)).shape
    torch.Size([2, 5, 12])
    """
    return x.transpose(1, 2).flatten(2)


def pixels(x: Tensor) -> Tensor:
    """An image (N, C, H, W) as a sequence of its pixels, (N, H W, C).

    >>> pixels(torch.zeros(2, 3, 5, 4)).shape
    torch.Size([2, 20, 3])
    """
    return x.flatten(2).transpose(1, 2)


class RecurrentNetwork(Recurrent):
    """A recurrent layer and a linear output; moments are vectors, or integers with an embedding.

    Args:
        recurrent: nn.RNN, nn.GRU or nn.LSTM with batch_first=True, one direction and without dropout; the state is that
            of all its layers, (N, layers H), or (N, 2 layers H) for an LSTM.
        outputs: number of outputs of a moment.
        every: an output for every moment (N, T, outputs), or for the last alone (N, outputs).
        embedding: maps integer moments (N, T) to the layer's inputs; None where moments are vectors already.
        sequence: moments of an input (`rows`, `pixels`); None where x is a sequence.

    Raises:
        ModulewiseError: the layer is another one.

    >>> network = RecurrentNetwork(nn.LSTM(3, 5, batch_first=True), outputs=2, every=True)
    >>> outputs, state = network.window(torch.zeros(4, 6, 3), None)
    >>> outputs.shape, state.shape
    (torch.Size([4, 6, 2]), torch.Size([4, 10]))
    """

    def __init__(
        self,
        recurrent: nn.RNN | nn.GRU | nn.LSTM,
        *,
        outputs: int,
        every: bool,
        embedding: nn.Module | None = None,
        sequence: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not recurrent.batch_first or recurrent.bidirectional or recurrent.dropout or recurrent.proj_size:
            raise ModulewiseError(
                f"{recurrent} was given, expected batch_first=True, one direction, no dropout and no projection"
            )
        self.embedding, self.recurrent = embedding, recurrent
        self.head = nn.Linear(recurrent.hidden_size, outputs)
        self._every, self._sequence = every, sequence

    def sequence(self, x: Tensor) -> Tensor:
        """The moments of an input (N, T, ...)."""
        return x if self._sequence is None else self._sequence(x)

    def window(self, moments: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The layer over some moments, its outputs through the linear map."""
        inputs = moments if self.embedding is None else self.embedding(moments)
        hidden, final = self.recurrent(inputs, None if state is None else self._unpacked(state))
        packed = torch.cat(final) if isinstance(final, tuple) else final
        outputs = self.head(hidden if self._every else hidden[:, -1])
        return outputs, packed.transpose(0, 1).flatten(1)

    def _unpacked(self, state: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The state (N, layers H) as the layer's own, (layers, N, H), or two of them."""
        own = state.unflatten(1, (-1, self.recurrent.hidden_size)).transpose(0, 1).contiguous()
        if isinstance(self.recurrent, nn.LSTM):
            first, second = own.chunk(2)
            return first, second
        return own


def rnn_rows(shape: Shape, classes: int, *, width: int = 128) -> RecurrentNetwork:
    """A tanh recurrent network that reads an image row by row and classifies after the last.

    Args:
        shape: (C, H, W) of one image.
        classes: number of classes.
        width: units of the recurrent layer, >= 1.

    >>> rnn_rows((1, 4, 5), 10)(torch.zeros(2, 1, 4, 5)).shape
    torch.Size([2, 10])
    """
    layer = nn.RNN(shape[0] * shape[2], width, batch_first=True)
    return RecurrentNetwork(layer, outputs=classes, every=False, sequence=rows)


def lstm_rows(shape: Shape, classes: int, *, width: int = 128) -> RecurrentNetwork:
    """`rnn_rows` with a long short-term memory.

    >>> lstm_rows((1, 4, 5), 10)(torch.zeros(2, 1, 4, 5)).shape
    torch.Size([2, 10])
    """
    layer = nn.LSTM(shape[0] * shape[2], width, batch_first=True)
    return RecurrentNetwork(layer, outputs=classes, every=False, sequence=rows)


def rnn_pixels(shape: Shape, classes: int, *, width: int = 128) -> RecurrentNetwork:
    """`rnn_rows` pixel by pixel: H W moments of C numbers.

    >>> rnn_pixels((1, 4, 5), 10)(torch.zeros(2, 1, 4, 5)).shape
    torch.Size([2, 10])
    """
    return RecurrentNetwork(nn.RNN(shape[0], width, batch_first=True), outputs=classes, every=False, sequence=pixels)
