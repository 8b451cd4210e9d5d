"""A card as Markdown."""

from __future__ import annotations

import json
from typing import Any

from .card import Card, Figure, Threshold

__all__ = ["bounds_text", "markdown"]


def bounds_text(threshold: Threshold) -> str:
    """A threshold's bounds in words.

    >>> from modulewise.workflow.store.card import Quantity
    >>> bounds_text(Threshold(quantity=Quantity.PROXY, at_least=0.9))
    'at least 0.9'
    """
    words = (("at least", threshold.at_least), ("at most", threshold.at_most))
    return ", ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)


def _words(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _figure(figure: Figure) -> str:
    parts = [f"{figure.value:.4g}", figure.how and f"({figure.how})", figure.on and f"on {figure.on}"]
    return " ".join(part for part in parts if part)


def markdown(card: Card) -> str:
    """The card as a page: what it is in a table, measured figures and thresholds below.

    Args:
        card: of a stored part.
    """
    cuts = ", ".join(f"`{cut}`" for cut in card.cuts) or "none"
    normalize = card.normalize and f"mean {list(card.normalize.mean)}, standard deviation {list(card.normalize.std)}"
    image = "x".join(map(str, card.model.shape))
    rows: list[tuple[str, Any]] = [
        ("model", f"`{card.model.name}`, images {image}, {card.model.classes} classes"),
        ("part", f"{card.part} of {len(card.cuts) + 1}, cut at {cuts}"),
        ("takes", str(card.input)),
        ("gives", str(card.output)),
        ("parameters", f"{card.parameters:,}"),
        ("normalisation", normalize),
        ("training data", card.data),
        ("method", card.method),
        ("schedule", card.schedule),
        ("seed", card.seed),
        ("versions", ", ".join(f"{name} {version}" for name, version in card.versions.items()) or None),
        ("licence", card.licence),
        ("weights", f"sha256 `{card.sha256}`, {card.bytes:,} bytes"),
    ]
    lines = [f"# {card.label}", "", *([card.notes, ""] if card.notes else []), "| fact | value |", "|---|---|"]
    lines += [f"| {name} | {'not given' if value is None else _words(value)} |" for name, value in rows]
    lines += ["", "| measured | value |", "|---|---|"] if card.figures else []
    lines += [f"| {figure.quantity.value} | {_words(_figure(figure))} |" for figure in card.figures]
    lines += ["", "| must be | bound |", "|---|---|"] if card.thresholds else []
    lines += [f"| {threshold.quantity.value} | {bounds_text(threshold)} |" for threshold in card.thresholds]
    return "\n".join(lines) + "\n"
