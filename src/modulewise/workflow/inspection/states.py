"""The state of one part at one moment, as data, and the settings that it is measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ...errors import MethodError, ModulewiseError
from ...losses import RELU, Kernel, PairwiseObjective, alignment

__all__ = ["INPUT", "Measures", "PartState"]

INPUT = -1
"""The index under which the model's input stands beside the parts."""


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What to measure with.

    Args:
        kernel: of the proxy value, with a range.
        maximise: the pairwise objective that is the proxy value.
        neighbours: for the accuracy of nearest samples, >= 1.
        penalty: of the linear probe, > 0.
        decoder_steps: updates of a decoder, >= 0; 0 leaves reconstruction out.
        decoder_width: channels inside a decoder, >= 1.
        costs: measure the share of time and memory of every part.
        seed: of the decoders.

    Raises:
        MethodError: a number is out of range.
    """

    kernel: Kernel = RELU
    maximise: PairwiseObjective = alignment
    neighbours: int = 20
    penalty: float = 0.01
    decoder_steps: int = 100
    decoder_width: int = 12
    costs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.decoder_steps < 0 or self.decoder_width < 1 or not self.penalty > 0:
            raise MethodError(
                f"neighbours={self.neighbours}, decoder_steps={self.decoder_steps}, decoder_width="
                f"{self.decoder_width} and penalty={self.penalty}, expected >= 1, >= 0, >= 1 and > 0"
            )


@dataclass(frozen=True, kw_only=True)
class PartState:
    """One part at one moment; None for what was not measured or does not exist.

    Args:
        part: its index; -1 for the model's input, which stands beside the parts.
        name: where it ends: the cut, "output" for the last part, "input" for the input.
        objective: the loss that the part minimises, on one held-out batch in train mode.
        probe: held-out accuracy of a linear probe, 0 to 1.
        neighbours: held-out accuracy of nearest samples, 0 to 1.
        proxy: the proxy objective on held-out samples.
        cka_below: linear CKA with what entered the part, 0 to 1.
        cka_twin: linear CKA with the same place of a twin trained end to end, 0 to 1.
        input_information: `information.input_information`, nats for a value of the input.
        label_information: `information.label_information`, nats.
        gradient_norm: of the part's parameters, for one held-out batch.
        dead: share of units that never vary, 0 to 1.
        effective_rank: of the centred features.
        width: elements of one sample.
        time_share: of the seconds of all parts, 0 to 1.
        memory_share: of the sum of all parts' peaks, 0 to 1.
    """

    part: int
    name: str
    objective: float | None = None
    probe: float | None = None
    neighbours: float | None = None
    proxy: float | None = None
    cka_below: float | None = None
    cka_twin: float | None = None
    input_information: float | None = None
    label_information: float | None = None
    gradient_norm: float | None = None
    dead: float | None = None
    effective_rank: float | None = None
    width: int | None = None
    time_share: float | None = None
    memory_share: float | None = None

    def to_json(self) -> dict[str, Any]:
        """The state as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> PartState:
        """The state that `to_json` wrote down; fields of later versions are left out.

        Raises:
            ModulewiseError: it has no part or no name.
        """
        if not isinstance(facts.get("part"), int) or not isinstance(facts.get("name"), str):
            raise ModulewiseError("a state of a part lacks its index or its name; it was written by another version")
        return cls(**{field.name: facts[field.name] for field in fields(cls) if field.name in facts})
