"""Run docs/modules-tutorial.md, write what every block printed under it, and the same as a notebook.

    python tools/tutorial.py            run and write
    python tools/tutorial.py --check    say whether the notebook has the page's blocks, and end with 1 if not

Blocks of one page share their names and run in order. Printed figures can differ in the last places between machines.
"""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

__all__ = ["cells", "notebook", "printed", "with_outputs"]

PAGE = Path(__file__).resolve().parents[1] / "docs" / "modules-tutorial.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def printed(text: str) -> list[str]:
    """What every Python block of a page prints; they run in this process."""
    names: dict[str, Any] = {"__name__": "__tutorial__"}
    found = []
    for block in BLOCK.finditer(text):
        with redirect_stdout(io.StringIO()) as output:
            exec(compile(block["code"], PAGE.name, "exec"), names)
        found.append(output.getvalue())
    return found


def with_outputs(text: str, outputs: Sequence[str]) -> str:
    """The page with each block's output under it; none under a block that prints nothing."""
    left = iter(outputs)

    def anew(block: re.Match[str]) -> str:
        output = next(left)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{output}```\n" if output else "")

    return BLOCK.sub(anew, text)


def cells(text: str) -> list[dict[str, Any]]:
    """The page as cells of a notebook: prose, and code with its output."""
    found, position = [], 0
    for block in BLOCK.finditer(text):
        found += _prose(text[position : block.start()])
        found.append(_code(block["code"], block["output"] or ""))
        position = block.end()
    return [{**cell, "id": f"cell-{index}"} for index, cell in enumerate([*found, *_prose(text[position:])])]


def _prose(text: str) -> list[dict[str, Any]]:
    lines = text.strip().splitlines(keepends=True)
    return [{"cell_type": "markdown", "metadata": {}, "source": lines}] if lines else []


def _code(code: str, output: str) -> dict[str, Any]:
    stream = {"output_type": "stream", "name": "stdout", "text": output.splitlines(keepends=True)}
    source = code.strip("\n").splitlines(keepends=True)
    outputs = [stream] if output else []
    return {"cell_type": "code", "metadata": {}, "execution_count": None, "source": source, "outputs": outputs}


def notebook(text: str) -> str:
    """The page as a notebook."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    facts = {"cells": cells(text), "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(facts, indent=1) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Run and write, or check; the value is the exit code."""
    text = PAGE.read_text()
    if "--check" in arguments:
        stale = not NOTEBOOK.is_file() or NOTEBOOK.read_text() != notebook(text)
        print(f"{NOTEBOOK.name} is {'out of date; run python tools/tutorial.py' if stale else 'that of the page'}")
        return int(stale)
    outputs = printed(text)
    print("\n".join(output for output in outputs if output), end="")
    text = with_outputs(text, outputs)
    PAGE.write_text(text)
    NOTEBOOK.write_text(notebook(text))
    print(f"wrote {PAGE.name} and {NOTEBOOK.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
