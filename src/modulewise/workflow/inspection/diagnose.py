"""How every part of a network stands: what can be read from its output, and how it is like its neighbours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from ...errors import MethodError
from ...partition import AnyPartition, Boundary
from .boundaries import Reading, pooled, read
from .information import input_information, label_information
from .measures import dead_units, effective_rank, linear_cka, linear_probe, neighbour_accuracy, proxy_value
from .states import INPUT, Measures, PartState

__all__ = ["diagnose", "part_states"]


def diagnose(
    partition: AnyPartition,
    fitted: Iterable[Any],
    held: Iterable[Any],
    *,
    twin: AnyPartition | None = None,
    measures: Measures | None = None,
) -> tuple[PartState, ...]:
    """The state of the input and of every part, from one forward pass over each set of samples.

    Nothing in the model changes. Objectives, gradients and costs need a trainer: see `Diagnosis`.

    Args:
        partition: the parts.
        fitted: batches (x, y) that probes and decoders are fitted to.
        held: batches (x, y) of other samples that everything is measured on; best such that no part has learned from.
        twin: the same cuts of a network that was trained end to end.
        measures: what to measure with.

    Raises:
        DataError: there is no batch, an output is not finite, or the fitted samples are of one class.
        MethodError: the twin has another number of parts.

    >>> import torch, modulewise as mw
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    >>> partition = mw.Partition(model, cuts=["1"], example=torch.randn(2, 4))
    >>> batch = torch.randn(9, 4), torch.arange(9) % 3
    >>> [(state.name, state.width) for state in diagnose(partition, [batch], [batch])]
    [('input', 4), ('1', 8), ('output', 3)]
    """
    if twin is not None and len(twin) != len(partition):
        raise MethodError(f"a twin of {len(twin)} parts was given for {len(partition)}, expected the same cuts")
    held = list(held)
    return part_states(
        read(partition, fitted),
        read(partition, held),
        boundaries=[part.output for part in partition.parts],
        twin=None if twin is None else read(twin, held),
        measures=measures or Measures(),
    )


def part_states(
    fitted: Reading,
    held: Reading,
    *,
    boundaries: Sequence[Boundary | None],
    twin: Reading | None,
    measures: Measures,
) -> tuple[PartState, ...]:
    """`diagnose` of outputs at hand already.

    Args:
        fitted: what probes and decoders are fitted to.
        held: what is measured.
        boundaries: the layout of every part's output; None for the last part's.
        twin: the held-out samples in the twin.
        measures: what to measure with.
    """
    layouts = {INPUT: None, **dict(enumerate(boundaries))}
    return tuple(
        _state(fitted, held, part, boundary, twin=twin, measures=measures)
        for part, boundary in layouts.items()
        if _at(held, part) is not None
    )


def _state(
    fitted: Reading, held: Reading, part: int, boundary: Boundary | None, *, twin: Reading | None, measures: Measures
) -> PartState:
    h_fit, h = _at(fitted, part), _at(held, part)
    assert h_fit is not None, "inputs of both sets are tensors, or neither"
    assert h is not None, "inputs are looked at beforehand"
    below = _at(held, part - 1) if part > INPUT else None
    of_input = None
    if part > INPUT and measures.decoder_steps and fitted.input is not None and held.input is not None:
        of_input = input_information(
            (h_fit, fitted.input),
            (h, held.input),
            boundary=boundary,
            steps=measures.decoder_steps,
            width=measures.decoder_width,
            seed=measures.seed,
        )
    return PartState(
        part=part,
        name="input" if part == INPUT else boundary.name if boundary is not None else "output",
        cka_below=None if below is None else linear_cka(h, below),
        cka_twin=None if twin is None or part == INPUT else linear_cka(h, twin.outputs[part]),
        input_information=of_input,
        dead=dead_units(h, channel_axis=1 if boundary is None else boundary.channel_axis),
        effective_rank=effective_rank(h.flatten(1) - h.flatten(1).mean(0)),
        width=h[0].numel(),
        **_of_labels(fitted, held, part, boundary, measures),
    )


def _of_labels(
    fitted: Reading, held: Reading, part: int, boundary: Boundary | None, measures: Measures
) -> dict[str, float]:
    """What is measured with classes; nothing where labels are no classes."""
    h_fit, h, y_fit, y = _at(fitted, part), _at(held, part), fitted.labels, held.labels
    if y_fit is None or y is None or h_fit is None or h is None:
        return {}
    fit, to_score = (pooled(h_fit, boundary), y_fit), (pooled(h, boundary), y)
    probe = linear_probe(fit, to_score, penalty=measures.penalty)
    return {
        "probe": probe.accuracy,
        "label_information": label_information(y, probe.cross_entropy),
        "neighbours": neighbour_accuracy(fit, to_score, neighbours=measures.neighbours),
        "proxy": proxy_value(h, y, kernel=measures.kernel, maximise=measures.maximise),
    }


def _at(reading: Reading, part: int) -> Tensor | None:
    return reading.input if part == INPUT else reading.outputs[part]
