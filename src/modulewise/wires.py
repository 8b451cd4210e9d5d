"""How a boundary is written for the way from one part to the next: exact, in fewer bits, or quantised.

Only the copy that travels is rounded: the part that made it learns from its own. A packet can be read by itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import MethodError
from .seeding import seed_of

__all__ = ["BFloat16", "Exact", "Float8", "Int8", "Packet", "ProductQuantization", "Wire"]


@dataclass(frozen=True, eq=False)
class Packet:
    """A boundary as it travels.

    Args:
        tensors: what travels, by name.
        shape: of the boundary, (N, ...).
        dtype: of the boundary.
    """

    tensors: Mapping[str, Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of all tensors; the few of shape and type apart."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())


Memory = Mapping[str, Tensor]
"""What the writer of one boundary keeps from batch to batch; empty at the start."""


class Wire(ABC):
    """A format for boundaries on their way."""

    @abstractmethod
    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Memory | None = None) -> tuple[Packet, Memory]:
        """A boundary as a packet.

        Args:
            h: the boundary (N, ...), without a graph; anything but a floating type travels as it is.
            channel_axis: where its channels are.
            memory: what the last call gave back, or None.

        Returns:
            The packet, and what to keep for the next call.
        """

    @abstractmethod
    def decode(self, packet: Packet) -> Tensor:
        """The boundary of a packet, in its shape and type."""


@dataclass(frozen=True)
class Exact(Wire):
    """As it is.

    >>> h = torch.randn(2, 3)
    >>> packet, _ = Exact().encode(h)
    >>> packet.bytes, torch.equal(Exact().decode(packet), h)
    (24, True)
    """

    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Memory | None = None) -> tuple[Packet, Memory]:
        """The boundary itself."""
        return Packet({"h": h}, tuple(h.shape), h.dtype), {}

    def decode(self, packet: Packet) -> Tensor:
        """The boundary itself."""
        return packet.tensors["h"]


@dataclass(frozen=True)
class BFloat16(Wire):
    """Rounded to bfloat16: 2 bytes a number, relative error at most 2^-8.

    >>> packet, _ = BFloat16().encode(torch.tensor([[1.0, 1.001]]))
    >>> packet.bytes, BFloat16().decode(packet)
    (4, tensor([[1., 1.]]))
    """

    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Memory | None = None) -> tuple[Packet, Memory]:
        """The rounded boundary."""
        return _packet(h, {"h": h.to(torch.bfloat16) if h.is_floating_point() else h}), {}

    def decode(self, packet: Packet) -> Tensor:
        """In the boundary's type."""
        return packet.tensors["h"].to(packet.dtype)


@dataclass(frozen=True)
class Float8(Wire):
    """Rounded to 8 bits (4 of exponent, 3 of mantissa) after division by max |h| / 448, so that nothing overflows.

    1 byte a number and 4 a batch; the error is at most 2^-4 of the number, or 2^-10 of the scale where that is more.

    >>> packet, _ = Float8().encode(torch.tensor([[448.0, 17.0]]))
    >>> packet.bytes, Float8().decode(packet)
    (6, tensor([[448.,  16.]]))
    """

    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Memory | None = None) -> tuple[Packet, Memory]:
        """The scaled and rounded boundary, and the scale."""
        if not h.is_floating_point() or h.numel() == 0:
            return _packet(h, {"h": h}), {}
        most = h.abs().amax().float() / 448
        scale = torch.where(most > 0, most, torch.ones_like(most))
        scaled = (h.float() / scale).clamp(-448, 448)
        return _packet(h, {"h": scaled.to(torch.float8_e4m3fn), "scale": scale}), {}

    def decode(self, packet: Packet) -> Tensor:
        """Times the scale, in the boundary's type."""
        h = packet.tensors["h"]
        return (h.float() * packet.tensors["scale"]).to(packet.dtype) if "scale" in packet.tensors else h


@dataclass(frozen=True)
class Int8(Wire):
    """256 even steps between the least and the largest number of every channel.

    1 byte a number and 8 a channel; the error is at most half a step, (max - min) / 510, of the channel.

    >>> packet, _ = Int8().encode(torch.tensor([[0.0, 5.0], [255.0, 5.0], [100.2, 5.0]]))
    >>> packet.bytes, Int8().decode(packet).tolist()
    (22, [[0.0, 5.0], [255.0, 5.0], [100.0, 5.0]])
    """

    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Memory | None = None) -> tuple[Packet, Memory]:
        """Steps as bytes, and for every channel its least number and its step."""
        if not h.is_floating_point() or h.numel() == 0:
            return _packet(h, {"h": h}), {}
        axis = channel_axis % h.ndim
        others = [dim for dim in range(h.ndim) if dim != axis]
        wide = h.float()
        least, most = wide.amin(others, keepdim=True), wide.amax(others, keepdim=True)
        step = (most - least) / 255
        step = torch.where(step > 0, step, torch.ones_like(step))
        codes = ((wide - least) / step).round().clamp(0, 255).to(torch.uint8)
        return _packet(h, {"h": codes, "least": least, "step": step}), {}

    def decode(self, packet: Packet) -> Tensor:
        """Steps times their size, in the boundary's type."""
        h = packet.tensors["h"]
        if "step" not in packet.tensors:
            return h
        return (packet.tensors["least"] + h.float() * packet.tensors["step"]).to(packet.dtype)


@dataclass(frozen=True)
class ProductQuantization(Wire):
    """Every position's channels in groups, each group written as the number of the nearest of its codewords.

    The codewords follow the batches: with n_i vectors nearest to codeword i in a batch, and s_i their sum,
    N_i <- d N_i + (1 - d) n_i, S_i <- d S_i + (1 - d) s_i, e_i = S_i / N_i. They travel with every batch, so that a
    packet can be read whenever it is used: positions * groups bytes, 4 * codewords * C, and 1.

    Args:
        groups: groups of channels, >= 1; where they do not divide C, as many as do (the greatest common divisor).
        codewords: of every group, 2 to 256.
        decay: d, 0 <= d < 1.
        seed: of the first codewords, which are vectors of the first batch.

    Raises:
        MethodError: a number is out of range.

    References:
        Belilovsky, Leconte, Caccia, Eickenberg, Oyallon, Decoupled Greedy Learning of CNNs for Synchronous and
        Asynchronous Distributed Learning, 2021, https://arxiv.org/abs/2106.06401

    Departs from the paper: a codeword that is nearest to no vector of a batch and has almost no weight left is put on
    a vector of that batch, so that none is idle.

    >>> h = torch.tensor([[0.0, 1.0], [4.0, 9.0]])
    >>> packet, _ = ProductQuantization(groups=1, codewords=2).encode(h)
    >>> packet.bytes, torch.equal(ProductQuantization(groups=1, codewords=2).decode(packet), h)
    (19, True)
    """

    groups: int = 4
    codewords: int = 256
    decay: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups < 1 or not 2 <= self.codewords <= 256 or not 0 <= self.decay < 1:
            raise MethodError(
                f"groups={self.groups}, codewords={self.codewords} and decay={self.decay}, expected at least 1, 2 to "
                "256 and 0 <= decay < 1"
            )

    def encode(self, h: Tensor, *, channel_axis: int = 1, memory: Memory | None = None) -> tuple[Packet, Memory]:
        """The numbers of the nearest codewords, and the codewords."""
        if not h.is_floating_point() or h.numel() == 0:
            return _packet(h, {"h": h}), {}
        vectors = _grouped(h, channel_axis, self.groups)
        if not memory:
            memory = self._first(vectors)
        words = memory["sums"] / memory["counts"].unsqueeze(-1)
        codes = _nearest(vectors, words)
        kept = self._moved(memory, vectors, codes)
        axis = torch.tensor(channel_axis % h.ndim, dtype=torch.uint8)
        return _packet(h, {"codes": codes.to(torch.uint8), "words": words, "axis": axis}), kept

    def decode(self, packet: Packet) -> Tensor:
        """Every code's codeword, in the boundary's shape and type."""
        if "codes" not in packet.tensors:
            return packet.tensors["h"]
        codes, words = packet.tensors["codes"].long(), packet.tensors["words"]
        groups, _, size = words.shape
        rows = torch.gather(words, 1, codes.unsqueeze(-1).expand(-1, -1, size))
        axis = int(packet.tensors["axis"])
        shape = list(packet.shape)
        last = [*shape[:axis], *shape[axis + 1 :], groups * size]
        return rows.movedim(0, 1).reshape(last).movedim(-1, axis).to(packet.dtype).contiguous()

    def _first(self, vectors: Tensor) -> Memory:
        """Codewords at vectors of the first batch, then at the means of those nearest to them, three times."""
        groups, positions, _ = vectors.shape
        generator = torch.Generator().manual_seed(seed_of(self.seed, "codewords"))
        order = torch.randperm(positions, generator=generator).to(vectors.device)
        words = vectors[:, order[torch.arange(self.codewords, device=order.device) % positions]]
        counts = torch.ones(groups, self.codewords, device=vectors.device)
        memory: Memory = {"counts": counts, "sums": words}
        for _ in range(3):
            present = memory["sums"] / memory["counts"].unsqueeze(-1)
            counts, sums = _gathered(vectors, _nearest(vectors, present), self.codewords)
            alone = (counts == 0).unsqueeze(-1)
            memory = {"counts": counts.clamp(min=1), "sums": torch.where(alone, present, sums)}
        return memory

    def _moved(self, memory: Memory, vectors: Tensor, codes: Tensor) -> Memory:
        counts, sums = _gathered(vectors, codes, self.codewords)
        counts = self.decay * memory["counts"] + (1 - self.decay) * counts
        sums = self.decay * memory["sums"] + (1 - self.decay) * sums
        idle = counts < _IDLE
        spare = vectors[:, torch.arange(self.codewords, device=vectors.device) % vectors.shape[1]]
        return {"counts": torch.where(idle, 1.0, counts), "sums": torch.where(idle.unsqueeze(-1), spare, sums)}


_IDLE = 1e-2


def _packet(h: Tensor, tensors: Mapping[str, Tensor]) -> Packet:
    return Packet(tensors, tuple(h.shape), h.dtype)


def _grouped(h: Tensor, channel_axis: int, groups: int) -> Tensor:
    """(G, positions, C / G) in float32."""
    rows = h.movedim(channel_axis, -1).reshape(-1, h.shape[channel_axis]).float()
    count = math.gcd(groups, rows.shape[1])
    return rows.view(rows.shape[0], count, -1).movedim(1, 0)


def _nearest(vectors: Tensor, words: Tensor) -> Tensor:
    """For every vector the index (G, positions) of its nearest codeword: least |e|^2 - 2 v e."""
    squares = words.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(squares, vectors, words.transpose(1, 2), alpha=-2).argmin(-1)


def _gathered(vectors: Tensor, codes: Tensor, codewords: int) -> tuple[Tensor, Tensor]:
    """How many vectors each codeword is nearest to, (G, k), and their sums (G, k, C / G)."""
    groups, _, size = vectors.shape
    counts = torch.zeros(groups, codewords, device=vectors.device)
    counts.scatter_add_(1, codes, torch.ones_like(codes, dtype=counts.dtype))
    sums = torch.zeros(groups, codewords, size, device=vectors.device)
    return counts, sums.scatter_add_(1, codes.unsqueeze(-1).expand(-1, -1, size), vectors)
