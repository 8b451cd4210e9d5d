"""What the states of all parts come to: the part that loses information first, parts that are dead or add nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from ...errors import ModulewiseError
from .states import INPUT, PartState

__all__ = ["Advice", "Finding", "Kind", "Thresholds", "find"]


class Kind(StrEnum):
    """What is the matter with a part."""

    LOSES_INFORMATION = "loses information"
    DEAD_UNITS = "has dead units"
    COLLAPSED = "uses few directions"
    ADDS_NOTHING = "adds nothing"
    NO_GRADIENT = "gets no gradient"


class Advice(StrEnum):
    """What usually helps."""

    FINER_HEAD = "a finer head: more positions pooled, one more layer"
    WIDER_PART = "a wider part: more channels or units where it ends"
    INFOPRO = "an objective that keeps what is not needed yet, such as InfoPro"
    ANOTHER_CUT = "another cut: not behind a narrow layer, and fewer parts"
    CALMER_TRAINING = "a lower learning rate, a normalisation before the nonlinearity, or another initialisation"
    FEWER_PARTS = "fewer parts, or an end of the network before this one"
    SOMETHING_TO_LEARN = "parameters that require gradients, and an objective that reads this part"


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """From where on something is a finding.

    Args:
        drop: of the better of two probes from one boundary to the next, a share in (0, 1); and at least two standard
            errors of the difference.
        gain: the least that a part should add to the better probe, >= 0, unless what entered it is within `drop` of 1.
        dead: share of dead units in (0, 1].
        rank: effective rank over that of the part's input, in (0, 1).

    Raises:
        ModulewiseError: a number is out of range.
    """

    drop: float = 0.05
    gain: float = 0.005
    dead: float = 0.5
    rank: float = 0.25

    def __post_init__(self) -> None:
        if not (0 < self.drop < 1 and self.gain >= 0 and 0 < self.dead <= 1 and 0 < self.rank < 1):
            raise ModulewiseError(f"{self} is out of range, expected shares between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is the matter with one part.

    Args:
        part: its index.
        name: where it ends.
        kind: what is the matter.
        evidence: the numbers that say so.
        advice: what usually helps, the likeliest first; a guess from symptoms, to be tried.
    """

    part: int
    name: str
    kind: Kind
    evidence: str
    advice: tuple[Advice, ...]

    def __str__(self) -> str:
        return f"part {self.part} ({self.name}) {self.kind.value}: {self.evidence}; try {', or '.join(self.advice)}"


def find(states: Sequence[PartState], *, samples: int, thresholds: Thresholds | None = None) -> tuple[Finding, ...]:
    """What is the matter, most important first: the lowest part that loses information, then the rest by part.

    A part loses information where the better of linear probe and nearest neighbours on its output is worse than on
    what entered it, by more than the threshold and by more than two standard errors of the difference. Both probes are
    asked because a part may undo what one of them reads. It is information that simple readers can use: a part can
    hide it from them and not destroy it.

    Args:
        states: of the input, if there is one, and of every part, in order.
        samples: how many samples the probes were scored on, >= 1.
        thresholds: from where on something is a finding.

    Returns:
        None, one or several findings; at most one of a kind for a part.

    >>> weak = [PartState(part=0, name="a", probe=0.9), PartState(part=1, name="b", probe=0.4, dead=1.0)]
    >>> [(finding.part, finding.kind.name) for finding in find(weak, samples=500)]
    [(1, 'LOSES_INFORMATION'), (1, 'DEAD_UNITS')]
    """
    limits = thresholds or Thresholds()
    pairs = list(zip([None, *states[:-1]], states, strict=True))
    losing = [found for below, state in pairs if (found := _loss(below, state, samples, limits)) is not None]
    others = [found for below, state in pairs for found in _others(below, state, samples, limits)]
    return (*losing[:1], *sorted((*losing[1:], *others), key=lambda finding: finding.part))


def best_probe(state: PartState) -> float | None:
    """The better of a part's two probes."""
    known = [value for value in (state.probe, state.neighbours) if value is not None]
    return max(known, default=None)


def _loss(below: PartState | None, state: PartState, samples: int, limits: Thresholds) -> Finding | None:
    before, after = None if below is None else best_probe(below), best_probe(state)
    if below is None or before is None or after is None or state.part == INPUT:
        return None
    if before - after <= max(limits.drop, 2 * _error(before, after, samples)):
        return None
    where = f"from {100 * before:.1f} % of held-out labels readable in {below.name} to {100 * after:.1f} %"
    return Finding(
        part=state.part,
        name=state.name,
        kind=Kind.LOSES_INFORMATION,
        evidence=where,
        advice=_advice(below, state, limits),
    )


def _error(before: float, after: float, samples: int) -> float:
    """The standard error of the difference of two shares, as if the samples of the two were independent."""
    return math.sqrt((before * (1 - before) + after * (1 - after)) / samples)


def _advice(below: PartState, state: PartState, limits: Thresholds) -> tuple[Advice, ...]:
    # Of a handful of units some may be dead as well, which is not what keeps the information out.
    width, directions = state.width, below.effective_rank
    narrow = width is not None and directions is not None and width < limits.rank * directions
    if state.dead is not None and state.dead >= limits.dead and not narrow:
        return (Advice.CALMER_TRAINING, Advice.WIDER_PART)
    if _collapsed(below, state, limits):
        return (Advice.WIDER_PART, Advice.ANOTHER_CUT, Advice.FINER_HEAD)
    return (Advice.FINER_HEAD, Advice.INFOPRO, Advice.ANOTHER_CUT)


def _collapsed(below: PartState, state: PartState, limits: Thresholds) -> bool:
    here, there = state.effective_rank, below.effective_rank
    return here is not None and there is not None and here < limits.rank * there


def _others(below: PartState | None, state: PartState, samples: int, limits: Thresholds) -> list[Finding]:
    if state.part == INPUT:
        return []
    found = []

    def note(kind: Kind, evidence: str, *advice: Advice) -> None:
        found.append(Finding(part=state.part, name=state.name, kind=kind, evidence=evidence, advice=advice))

    if state.dead is not None and state.dead >= limits.dead:
        note(Kind.DEAD_UNITS, f"{100 * state.dead:.0f} % of its units never vary", Advice.CALMER_TRAINING)
    if state.gradient_norm == 0:
        note(Kind.NO_GRADIENT, "the gradient of its parameters is 0", Advice.SOMETHING_TO_LEARN)
    if below is None or state.name == "output":
        return found  # the output has as many directions as classes, and nothing to add but the readout
    if _collapsed(below, state, limits) and _loss(below, state, samples, limits) is not None:
        ranks = f"an effective rank of {state.effective_rank:.1f} after {below.effective_rank:.1f}"
        note(Kind.COLLAPSED, ranks, Advice.WIDER_PART, Advice.ANOTHER_CUT)
    before, after = best_probe(below), best_probe(state)
    lost = _loss(below, state, samples, limits) is not None
    if before is None or after is None or below.part == INPUT or before > 1 - limits.drop:
        return found
    if after - before < limits.gain and not lost:
        noise = 2 * _error(before, after, samples)
        gained = f"{100 * (after - before):+.1f} points of held-out labels readable, the noise being {100 * noise:.1f}"
        note(Kind.ADDS_NOTHING, gained, Advice.FEWER_PARTS, Advice.INFOPRO, Advice.FINER_HEAD)
    return found
