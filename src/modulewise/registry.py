"""Methods by name, for the command line: which there are, how to make one from a few words, what each needs.

Names and the table of methods are made from the classes in `modulewise.methods`; nothing is listed twice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import torch

from . import losses, methods, schedules
from .data import Normalize
from .errors import MethodError, suggest
from .method import Family, Locality, Method, PartwiseMethod, Reach, SolverMethod
from .objective import Role, Site
from .options import FROM_DATA, settable, value_of
from .partition import Boundary
from .schedules import Schedule
from .seeding import preserved_generators

__all__ = [
    "Entry",
    "MethodName",
    "build",
    "has_heads",
    "known",
    "markdown",
    "modularity",
    "parse",
    "schedule",
    "split",
    "table",
]

_PATTERN = re.compile(r"(?P<name>[\w-]+)(?:\((?P<inner>.+)\))?(?::(?P<options>.+))?", re.DOTALL)


@dataclass(frozen=True)
class MethodName:
    """A method as typed: its name, options in words, and the method it wraps.

    >>> str(parse("PredSim:beta=0")), str(parse("deeply-supervised(dgl)"))
    ('predsim:beta=0', 'deeply-supervised(dgl)')
    """

    name: str
    options: tuple[tuple[str, str], ...] = ()
    inner: MethodName | None = None

    @property
    def type(self) -> type[Method]:
        """The class of this name."""
        return known()[self.name]

    @property
    def wraps(self) -> bool:
        """Whether the method is made of another one."""
        return "method" in (field.name for field in fields(self.type))  # type: ignore[arg-type]

    def __str__(self) -> str:
        inner = f"({self.inner})" if self.inner else ""
        options = ",".join(f"{key}={value}" for key, value in self.options)
        return f"{self.name}{inner}" + (f":{options}" if options else "")


def _name(cls: type[Method]) -> str:
    return cls.name or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", cls.__name__).lower()


def known() -> dict[str, type[Method]]:
    """Every method by its name, sorted by family, then by year.

    >>> list(known())[:3]
    ['backprop', 'deeply-supervised', 'checkpointed']
    """
    order = list(Family)
    classes: list[type[Method]] = [getattr(methods, name) for name in methods.__all__]
    classes.sort(key=lambda cls: (order.index(cls.family), cls.references[0].year if cls.references else 0, _name(cls)))
    return {_name(cls): cls for cls in classes}


def parse(text: str) -> MethodName:
    """Read `METHOD`, `METHOD:key=value,key=value` or `METHOD(OTHER)`; hyphens and capitals do not matter in names.

    Raises:
        MethodError: the method or an option is unknown, or the text is malformed.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise MethodError(f"method {text!r} is malformed, expected METHOD, METHOD:key=value,... or METHOD(OTHER)")
    found = {_plain(name): name for name in known()}.get(_plain(match["name"]))
    if found is None:
        raise MethodError(
            f"unknown method {match['name']!r}{suggest(match['name'].lower(), known())}; "
            "`modulewise methods` lists them"
        )
    options = tuple(_option(found, piece) for piece in match["options"].split(",")) if match["options"] else ()
    name = MethodName(found, options, parse(match["inner"]) if match["inner"] else None)
    if name.inner is not None and not name.wraps:
        raise MethodError(f"{found} takes no other method in parentheses, {name.inner} was given")
    return name


def _plain(word: str) -> str:
    return re.sub(r"[-_]", "", word).lower()


def _option(method: str, piece: str) -> tuple[str, str]:
    key, equals, value = (part.strip() for part in piece.partition("="))
    options = settable(known()[method])
    key = key.replace("-", "_")
    if not equals or not value:
        raise MethodError(f"option {piece!r} of {method} is malformed, expected key=value")
    if key not in options:
        expected = f"expected one of {', '.join(options)}" if options else "it has none to set by words"
        raise MethodError(f"{method} has no option {key!r}{suggest(key, options)}; {expected}")
    value_of(method, key, value, options[key])
    return key, value


def build(name: MethodName, *, classes: int, normalize: Normalize | None = None) -> Method:
    """Make a method.

    Args:
        name: what `parse` returned.
        classes: number of classes of the data, >= 1.
        normalize: how images are normalised before they are fed, for a method that undoes it; None for not at all.

    Raises:
        MethodError: a value is out of range, or the method needs another one in parentheses.

    >>> build(parse("predsim:beta=0"), classes=10)  # doctest: +ELLIPSIS
    PredSim(classes=10, beta=0.0, ...)
    """
    hints = get_type_hints(name.type)
    values: dict[str, Any] = {key: value_of(name.name, key, text, hints[key]) for key, text in name.options}
    of_data = {"classes": classes, "outputs": classes, "normalize": normalize}
    values |= {key: of_data[key] for key in FROM_DATA if key in hints}
    if name.wraps:
        if name.inner is None:
            raise MethodError(f"{name.name} needs another method, expected e.g. {name.name}(dgl)")
        values["method"] = build(name.inner, classes=classes, normalize=normalize)
    return name.type(**values)


def split(text: str) -> list[str]:
    """Split a comma-separated list of methods; `key=value` after a comma belongs to the method before it.

    >>> split("backprop, dgl:head=conv@sequential,predsim:beta=0,decoder_features=64,bcd")
    ['backprop', 'dgl:head=conv@sequential', 'predsim:beta=0,decoder_features=64', 'bcd']
    """
    pieces: list[str] = []
    for piece in re.split(r",(?![^(]*\))", text):
        if pieces and re.match(r"\s*[\w-]+\s*=", piece):
            pieces[-1] += f",{piece.strip()}"
        else:
            pieces.append(piece.strip())
    return [piece for piece in pieces if piece]


def schedule(word: str) -> Schedule:
    """The schedule of a name.

    Raises:
        MethodError: unknown.
    """
    words: dict[str, Schedule] = {
        "simultaneous": schedules.simultaneous,
        "sequential": schedules.sequential,
        "pipelined": schedules.pipelined,
        "asynchronous": schedules.asynchronous,
    }
    if word not in words:
        raise MethodError(f"unknown schedule {word!r}{suggest(word, words)}; expected one of {', '.join(words)}")
    return words[word]


def has_heads(method: Method) -> bool:
    """Whether a method gives a part a loss of its own on a trained head, and nothing else."""
    if not isinstance(method, PartwiseMethod):
        return False
    boundary, x = Boundary("cut", (2, 8, 4, 4)), torch.empty(2, 3, 8, 8)
    site = Site(1, 3, boundary, boundary, losses.classification, x=x)
    try:
        with preserved_generators():
            objective = method.objective(site)
    except MethodError:
        return False  # it asks for more of a part than a boundary: layers to invert, windows of time
    alone = not (objective.talks or method.makes_views)
    return alone and objective.role is Role.HEAD and next(objective.parameters(), None) is not None


def modularity(locality: Locality, order: Schedule, *, parts: int = 2) -> str:
    """The survey's class of a pair (method, schedule).

    Modular: neither an end-to-end forward nor an end-to-end backward. Weakly modular: an end-to-end forward alone.

    >>> modularity(Locality(Reach.STRICT), schedules.sequential)
    'modular'
    """
    if locality.reach is Reach.GLOBAL or parts == 1:
        return "end-to-end"
    return "weakly modular" if order.allows_feedback else "modular"


@dataclass(frozen=True)
class Entry:
    """One line of the table of methods."""

    name: str
    family: str
    modularity: str
    locality: str
    year: str
    paper: str
    link: str


def table() -> list[Entry]:
    """Every method with family, class, locality and paper."""
    return [_entry(name, cls) for name, cls in known().items()]


def _entry(name: str, cls: type[Method]) -> Entry:
    orders = ["simultaneous"]
    if not cls.locality.sends_feedback and not issubclass(cls, SolverMethod):
        orders.append("sequential")
    found = {word: modularity(cls.locality, schedule(word)) for word in orders}
    words = [f"{kind} ({word})" for word, kind in found.items()] if len(found) > 1 else list(found.values())
    paper = cls.references[0]
    authors = paper.authors.split(", ")
    by = authors[0] if len(authors) == 1 else f"{authors[0]} et al." if len(authors) > 2 else " and ".join(authors)
    return Entry(
        name,
        cls.family.value,
        ", ".join(words),
        str(cls.locality),
        str(paper.year),
        f"{by}, {paper.title}, {paper.venue}",
        paper.link,
    )


def markdown(more: Mapping[str, Mapping[str, str]] | None = None) -> str:
    """The table of methods for a README.

    Args:
        more: columns to add before the last, by heading: a cell for every method's name.
    """
    columns = more or {}
    headings = ("method", "family", "class", "locality", "year", *columns, "paper")
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for entry in table():
        cells = (f"`{entry.name}`", entry.family, entry.modularity, entry.locality, entry.year)
        added = (column[entry.name] for column in columns.values())
        lines.append(f"| {' | '.join((*cells, *added))} | [{entry.paper}]({entry.link}) |")
    return "\n".join(lines)
