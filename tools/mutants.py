"""Plant known defects, one line each, and see that the tests which should turn red do.

A suite that stays green when a detach is dropped or a sign is swapped proves nothing. Each defect is planted in a copy
of the tree, and only the narrow selection of tests named beside it is run there; the selections are run once without
any defect first, since a test that is red anyway kills everything.

    python tools/mutants.py            all of them
    python tools/mutants.py NAME ...   some of them
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
LIMIT_SECONDS = 240
FAILED = 1  # pytest's exit code for "tests were run and some failed"; an error in collection proves nothing


class Verdict(NamedTuple):
    """What became of one defect: `killed` is what every one should be."""

    mutant: Mutant
    outcome: str
    seconds: float


def copy_tree(folder: Path) -> Path:
    """A copy of what the tests need, without caches."""
    leave = shutil.ignore_patterns("__pycache__", ".*cache*", "*.egg-info")
    for name in ("src", "tests", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=leave)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder / path.name)
    return folder


def environment(tree: Path) -> dict[str, str]:
    """Let the copy be what is imported, with no bytecode that could outlive a defect."""
    return {
        **os.environ,
        "PYTHONPATH": str(tree / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def is_imported_from(tree: Path) -> bool:
    """Whether a process of ours imports the copy, not the tree that is installed."""
    code = "import modulewise; print(modulewise.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, env=environment(tree), capture_output=True, text=True)
    return done.returncode == 0 and Path(done.stdout.strip()).resolve().is_relative_to(tree.resolve())


def run_tests(tree: Path, tests: list[str], *options: str) -> tuple[int, str]:
    """Exit code and output of pytest for some tests in a copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", *options, *tests]
    try:
        done = subprocess.run(
            command,
            cwd=tree,
            env=environment(tree),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return -1, f"no end within {LIMIT_SECONDS} s"
    return done.returncode, done.stdout + done.stderr


def planted(source: str, mutant: Mutant) -> str | None:
    """The source with the defect; None unless its place is there exactly once."""
    return source.replace(mutant.old, mutant.new) if source.count(mutant.old) == 1 else None


def try_one(tree: Path, mutant: Mutant) -> Verdict:
    """Plant one defect in a copy, run its tests, take it out."""
    started = time.perf_counter()
    path = tree / "src" / "modulewise" / mutant.file
    source = path.read_text()
    defect = planted(source, mutant)
    if defect is None:
        return Verdict(mutant, f"found {source.count(mutant.old)} times", 0.0)
    path.write_text(defect)
    try:
        code, output = run_tests(tree, list(mutant.tests))
    finally:
        path.write_text(source)
    outcome = {FAILED: "killed", 0: "SURVIVED"}.get(code, f"no verdict (pytest {code})")
    if code not in (0, FAILED):
        print(output[-2000:], flush=True)
    return Verdict(mutant, outcome, time.perf_counter() - started)


def try_all(mutants: list[Mutant], trees: list[Path]) -> list[Verdict]:
    """All defects, as many at a time as there are copies."""
    free: Queue[Path] = Queue()
    for tree in trees:
        free.put(tree)

    def work(mutant: Mutant) -> Verdict:
        tree = free.get()
        try:
            verdict = try_one(tree, mutant)
        finally:
            free.put(tree)
        print(f"{verdict.mutant.name:<56} {verdict.outcome:<22} {verdict.seconds:6.1f} s", flush=True)
        return verdict

    with ThreadPoolExecutor(len(trees)) as pool:
        return list(pool.map(work, mutants))


def main(names: list[str]) -> int:
    """Run and print a table; 0 where every defect was killed."""
    known = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return 2
    mutants = [known[name] for name in names] or list(MUTANTS)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutants-") as scratch:
        trees = [copy_tree(Path(scratch) / str(worker)) for worker in range(WORKERS)]
        if not all(is_imported_from(tree) for tree in trees):
            print("the copy is not what Python imports; run this with the interpreter of .venv")
            return 1
        selection = sorted({test for mutant in mutants for test in mutant.tests})
        code, output = run_tests(trees[0], selection, "-n", str(WORKERS), "--dist", "worksteal")
        if code != 0:
            print(output[-4000:], "the selected tests must pass without any defect first", sep="\n")
            return 1
        print(f"{len(selection)} selections pass without a defect ({time.perf_counter() - started:.0f} s)", flush=True)
        verdicts = try_all(mutants, trees)
    alive = [verdict.mutant.name for verdict in verdicts if verdict.outcome != "killed"]
    print(
        f"{len(verdicts) - len(alive)} of {len(verdicts)} defects killed in {time.perf_counter() - started:.0f} s"
        + (f"; not killed: {', '.join(alive)}" if alive else "")
    )
    return 1 if alive else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
