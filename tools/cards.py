"""Write a card for every method, made from its docstring, to docs/methods/FAMILY.md.

python tools/cards.py            write the pages
python tools/cards.py --check    say which are out of date, and end with 1 if any is
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from modulewise import registry
from modulewise.method import Family, Method

__all__ = ["card", "page", "pages"]

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "methods"
SECTION = re.compile(r"^(Args|Raises|References):$")
ITEM = re.compile(r"^ {4}(?P<name>\w+): (?P<text>.*)$")


def file_name(family: Family) -> str:
    """The page of a family.

    >>> file_name(Family.PROXY)
    'proxy-objective.md'
    """
    return f"{family.value.replace(' ', '-')}.md"


def _paragraphs(text: str) -> Iterator[list[str]]:
    """Runs of lines between empty ones."""
    lines: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            yield lines
            lines = []


def _items(lines: Sequence[str]) -> list[str]:
    """The entries of an `Args:` section as a list; the continuation of an entry is indented further."""
    found: list[str] = []
    for line in lines:
        item = ITEM.match(line)
        if item is not None:
            found.append(f"* `{item['name']}`: {item['text']}")
        elif found:
            found[-1] += f" {line.strip()}"
    return found


def _block(lines: Sequence[str]) -> str:
    head = SECTION.match(lines[0])
    if head is not None and head[1] != "References":
        return f"**{head[1]}**\n\n" + "\n".join(_items(lines[1:]))
    if head is not None:
        return f"**References**\n\n{' '.join(line.strip() for line in lines[1:])}"
    if lines[0].startswith(">>>"):
        return "```pycon\n" + "\n".join(lines) + "\n```"
    if all(line.startswith("    ") for line in lines):
        return "```text\n" + textwrap.dedent("\n".join(lines)) + "\n```"
    return "\n".join(lines)


def card(entry: registry.Entry, method: type[Method]) -> str:
    """One method's card: what it is, then its docstring."""
    facts = f"`{entry.name}` · {entry.modularity} · locality {entry.locality} · {entry.year}"
    blocks = [_block(lines) for lines in _paragraphs(inspect.getdoc(method) or "")]
    return "\n\n".join([f"## {method.__name__}", facts, *blocks])


def page(family: Family) -> str:
    """The page of a family: its cards, in the order of the table of methods."""
    known = registry.known()
    cards = [card(entry, known[entry.name]) for entry in registry.table() if known[entry.name].family is family]
    made = "Made from the docstrings by `tools/cards.py`; the classes are in `modulewise.methods`."
    head = f"# Methods: {family.value}\n\n{made}"
    return "\n\n".join([head, *cards]) + "\n"


def pages() -> dict[Path, str]:
    """Every page and its text."""
    return {FOLDER / file_name(family): page(family) for family in Family}


def main(arguments: Sequence[str]) -> int:
    """Write, or check; the value is the exit code."""
    stale = [(path, text) for path, text in pages().items() if not path.is_file() or path.read_text() != text]
    for path, text in stale:
        if "--check" not in arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        print(f"{'out of date' if '--check' in arguments else 'wrote'}: docs/methods/{path.name}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
