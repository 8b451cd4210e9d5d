"""What README.md and docs/ show runs: Python blocks as they stand, commands against the command line's own help.

The Python blocks of a page run in order, in one process, so that a later one may use what an earlier one made. A block
under `<!-- no-run: reason -->` is left out.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]

BLOCK = re.compile(
    r"(?P<skip><!-- no-run: .+? -->\s*)?^(?P<indent> *)```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^ *```\s*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its code, the line of the page that the code begins at."""

    language: str
    code: str
    line: int
    run: bool


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page that name a language."""
    return [
        Block(
            found["language"],
            re.sub(f"^{found['indent']}", "", found["code"], flags=re.MULTILINE),
            text.count("\n", 0, found.start("code")) + 1,
            found["skip"] is None,
        )
        for found in BLOCK.finditer(text)
    ]


def program(text: str) -> str:
    """The Python blocks of a page as one program, every line where it is on the page."""
    lines = [""] * (text.count("\n") + 1)
    for block in blocks(text):
        if block.language in ("python", "py") and block.run:
            code = block.code.splitlines()
            lines[block.line - 1 : block.line - 1 + len(code)] = code
    return "\n".join(lines).rstrip()


def commands(text: str) -> list[list[str]]:
    """The commands of a page's shell blocks, in words; environment settings in front are left out."""
    found = []
    for block in blocks(text):
        if block.language in ("bash", "sh", "shell", "console") and block.run:
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line.strip().removeprefix("$ "), comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words = words[1:]
                if words:
                    found.append([Path(words[0]).name, *words[1:]])
    return found


@cache
def help_of(*words: str) -> str:
    """What the command line says about itself."""
    done = subprocess.run(
        [sys.executable, "-c", "from modulewise.cli import main; main()", *words, "--help"],
        env={**os.environ, "COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def complaint(words: list[str]) -> str:
    """What is wrong with a command that the page shows; "" where nothing is."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        unknown = [word for word in words[1:] if "=" not in word and word not in targets]
        return f"make has no recipe {unknown}" if unknown else ""
    if words[0] != "modulewise":
        return ""
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    subcommand = words[1:2] if words[1:] and not words[1].startswith("-") else []
    if subcommand and not re.search(rf"^[\W_]*{re.escape(subcommand[0])}\b", help_of(), re.MULTILINE):
        return f"modulewise has no command {subcommand[0]!r}"
    if subcommand in (["bench"], ["recipe"], ["store"]):  # commands that have commands of their own
        subcommand = words[1:3]
        if not re.search(rf"^[\W_]*{re.escape(words[2])}\b", help_of(words[1]), re.MULTILINE):
            return f"modulewise {words[1]} has no command {words[2]!r}"
    known = help_of(*subcommand)
    unknown = [option for option in options if not re.search(rf"(?<![\w-]){option}(?![\w-])", known)]
    return f"{' '.join(words[:2])} has no option {unknown}" if unknown else ""


@pytest.mark.skipif(not PAGES, reason="there is no README.md and no page in docs/")
@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_python_blocks_run(path: Path, tmp_path: Path) -> None:
    """Without an error or a warning, in a folder of its own."""
    source = program(path.read_text())
    if not source:
        pytest.skip("the page has no Python block to run")
    script = tmp_path / f"page_{path.stem}.py"  # a page on types must not stand in for a module of that name
    script.write_text(source)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "agg"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"lines are those of {path.name}\n{done.stderr}"


@pytest.mark.skipif(not PAGES, reason="there is no README.md and no page in docs/")
@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_commands_exist(path: Path) -> None:
    """Every `modulewise` and `make` command shown is one, with options that exist."""
    shown = [words for words in commands(path.read_text()) if words[0] in ("modulewise", "make")]
    if not shown:
        pytest.skip("the page shows no command")
    assert [text for words in shown if (text := complaint(words))] == []


PAGE = """# Page

```python
a = 1
```
text
<!-- no-run: needs two machines -->
```python
raise SystemExit(1)
```

```diff
-x
+y
```

1. In a list:

   ```python
   assert a == 1
   ```

```bash
$ OMP_NUM_THREADS=2 .venv/bin/modulewise compare --data digits \\
    --nonsense 3  # a comment
make demo fly
ls
```
"""


def test_blocks_are_found_where_they_are() -> None:
    """Skipped and foreign blocks are left out, lines stay, indented blocks count."""
    lines = program(PAGE).splitlines()
    assert [(number, line) for number, line in enumerate(lines, 1) if line] == [(4, "a = 1"), (20, "assert a == 1")]
    assert commands(PAGE) == [
        ["modulewise", "compare", "--data", "digits", "--nonsense", "3"],
        ["make", "demo", "fly"],
        ["ls"],
    ]


def test_a_command_that_does_not_exist_is_found() -> None:
    """Wrong recipes, commands and options are told apart from right ones."""
    assert complaint(["make", "demo", "fly"]) == "make has no recipe ['fly']"
    assert complaint(["make", "demo"]) == complaint(["ls", "--all"]) == ""
    assert complaint(["modulewise", "methods"]) == ""
    assert complaint(["modulewise", "fly"]) == "modulewise has no command 'fly'"
    assert complaint(["modulewise", "compare", "--data", "digits", "--nonsense=3"]) == (
        "modulewise compare has no option ['--nonsense']"
    )
