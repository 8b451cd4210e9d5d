"""The house rules that no linter knows: floors, sizes, documentation, and an import that does nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pkgutil
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import modulewise

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "modulewise"
FILES = sorted(PACKAGE.rglob("*.py"))
OWN = sorted(path for folder in ("src", "tools", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))

FLOORS = {
    **dict.fromkeys(("metering", "data", "errors", "seeding"), 0),
    **dict.fromkeys(("partition", "models", "balance"), 1),
    **dict.fromkeys(("buffers", "wires"), 2),
    **dict.fromkeys(("scores",), 2),
    **dict.fromkeys(("method", "objective", "schedules", "heads", "losses", "layer_rules"), 2),
    **dict.fromkeys(("methods",), 3),
    **dict.fromkeys(("trainer", "engine", "checkpoint", "outofcore"), 4),
    **dict.fromkeys(("compare", "checks", "registry", "options", "planning", "recipes", "workflow"), 5),
    **dict.fromkeys(("cli", "report", "__main__"), 6),
}
"""The floor of every module and package directly in modulewise; a new one needs a floor here and in docs."""

EXTRAS = {"torchvision", "timm", "transformers", "datasets", "pyarrow", "PIL", "tensorboard", "ray"}


def name_of(path: Path) -> str:
    """The dotted name of a module, given its file."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def relative(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports_of(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    """Every import statement, those inside functions too, except what only a type checker sees."""
    found: list[ast.Import | ast.ImportFrom] = []
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        elif isinstance(node, ast.If) and is_type_checking(node):
            found += imports_of(ast.Module(node.orelse, []))
        else:
            found += imports_of(node)
    return found


def resolved(importer: str, node: ast.Import | ast.ImportFrom, known: set[str]) -> set[str]:
    """The modules of ours that an import statement names."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names if alias.name in known}
    base = node.module or ""
    if node.level:
        package = importer if MODULES[importer].name == "__init__.py" else importer.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}" if base else package
    named = {f"{base}.{alias.name}" for alias in node.names}
    inner = named & known
    return inner | ({base} & known if inner != named else set())


def runs(importer: str, target: str) -> set[str]:
    """What an import executes: the module, and the packages around it that the importer is not itself inside."""
    around = [target]
    while "." in target:
        target = target.rpartition(".")[0]
        around.append(target)
    return {name for name in around if name != "modulewise" and not f"{importer}.".startswith(f"{name}.")}


@cache
def graph() -> dict[str, frozenset[str]]:
    """For every module the modules of ours that importing it, or calling its functions, executes."""
    known = set(MODULES)
    edges = {}
    for importer, path in MODULES.items():
        direct: set[str] = set()
        for node in imports_of(ast.parse(path.read_text())):
            direct |= resolved(importer, node, known)
        edges[importer] = frozenset(name for target in direct for name in runs(importer, target))
    return edges


def floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.get(parts[1], 6) if len(parts) > 1 else max(FLOORS.values()) + 1


def test_every_module_has_a_floor() -> None:
    """A module without a floor would escape the next two tests."""
    tops = {name.split(".")[1] for name in MODULES if "." in name}
    assert tops <= set(FLOORS), f"give a floor to {sorted(tops - set(FLOORS))}"


def test_imports_go_to_the_same_floor_or_down() -> None:
    """No file imports from a floor above its own."""
    up = {
        f"{importer} (floor {floor(importer)}) imports {target} (floor {floor(target)})"
        for importer, targets in graph().items()
        for target in targets
        if floor(target) > floor(importer)
    }
    assert not up, sorted(up)


def test_imports_have_no_circle() -> None:
    """Every module can be imported first."""
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, "circle: " + " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(graph()[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_the_import_graph_sees_through_all_spellings() -> None:
    """The two tests above rest on these edges, one for each way of writing an import."""
    edges = graph()
    assert "modulewise.engine.local" in edges["modulewise.trainer"]  # from .engine.local import LocalEngine
    assert "modulewise.schedules" in edges["modulewise.trainer"]  # from . import schedules
    assert "modulewise.losses" in edges["modulewise.methods.proxy.dgl"]  # from ... import heads, losses
    assert "modulewise.partition" in edges["modulewise.objective"]  # runs with .partition.boundary
    assert "modulewise.trainer" not in edges["modulewise.checkpoint"]  # only under TYPE_CHECKING


@pytest.mark.parametrize("path", OWN, ids=relative(OWN))
def test_files_stay_short(path: Path) -> None:
    """Under 300 lines; the file of a method 150 at most."""
    lines = len(path.read_text().splitlines())
    assert lines < 300
    if name_of_method(path):
        assert lines <= 150


def name_of_method(path: Path) -> str | None:
    """The method that a file defines, if it does."""
    if "methods" not in path.parts:
        return None
    defined = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)}
    return next(iter(defined & set(modulewise.methods.__all__)), None)


def test_every_method_has_a_file_of_its_own() -> None:
    """One paper family, one file."""
    owners = [name for path in (PACKAGE / "methods").rglob("*.py") if (name := name_of_method(path))]
    assert sorted(owners) == sorted(modulewise.methods.__all__)


def importable() -> list[str]:
    found = [info.name for info in pkgutil.walk_packages(modulewise.__path__, "modulewise.")]
    return ["modulewise", *(name for name in found if not name.endswith("__main__"))]


@pytest.mark.parametrize("name", importable())
def test_public_names_exist_and_are_documented(name: str) -> None:
    """Every module says what is public; each public class and function has a docstring of its own."""
    module = importlib.import_module(name)
    assert module.__doc__
    if MODULES[name].name == "__init__.py" and not MODULES[name].read_text().count("import"):
        return
    assert hasattr(module, "__all__"), "no __all__"
    for public in module.__all__:
        thing = getattr(module, public)
        if inspect.isclass(thing) or inspect.isfunction(thing):
            text = vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__
            assert text, f"{public} has no docstring"
            assert not text.startswith(f"{public}("), f"the docstring of {public} is the one that dataclass writes"


@pytest.mark.parametrize("name", modulewise.methods.__all__)
def test_methods_say_where_they_come_from(name: str) -> None:
    """A docstring with the reference and its link, and a line in the changelog."""
    method = getattr(modulewise.methods, name)
    text = inspect.getdoc(method)
    assert text
    assert "References:" in text
    assert re.search(r"https://\S+", text.partition("References:")[2])
    for reference in method.references:
        assert reference.link in text
    assert re.search(rf"^- `{name}`: ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


BESIDES_IMPORT = """
import json, random, sys, warnings
import numpy, torch
def state():
    return {
        "torch": torch.get_rng_state().tolist(), "numpy": str(numpy.random.get_state()),
        "random": str(random.getstate()),
        "dtype": str(torch.get_default_dtype()), "device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "grad": torch.is_grad_enabled(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(), "benchmark": torch.backends.cudnn.benchmark,
        "warnings": [str(f) for f in warnings.filters], "path": list(sys.path), "hook": str(sys.excepthook),
    }
before, loaded = state(), set(sys.modules)
import modulewise
after = state()
print(json.dumps({
    "changed": [key for key in before if before[key] != after[key]],
    "extras": sorted({name.split(".")[0] for name in set(sys.modules) - loaded}),
}))
"""


def test_importing_does_nothing_else() -> None:
    """`import modulewise` loads no optional extra and leaves generators, types, threads and warnings alone."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", BESIDES_IMPORT], capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["changed"] == []
    assert EXTRAS.isdisjoint(seen["extras"])
    assert "modulewise" in seen["extras"]


def texts() -> list[Path]:
    """The text files of the repository."""
    folders = [ROOT / name for name in ("src", "tests", "tools", "examples", "benchmarks", "docs", "results", ".ci")]
    inside = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    top = [path for path in ROOT.iterdir() if path.is_file() and path.name != ".git"]
    kinds = {".py", ".md", ".toml", ".yaml", ".cff", ".jsonl", ".json", ".j2", ".html", ".txt", ".sh", ""}
    return [path for path in (*top, *inside) if path.suffix in kinds and "cache" not in str(path.relative_to(ROOT))]


# A tilde stands between the pieces, so that the rule does not find itself.
ADDRESSES = re.compile("|".join(word.replace("~", "") for word in (r"py~pi\.org", r"python~hosted\.org", "index~-url")))
MACHINES = re.compile(r"(?<![\w.:/*-])/(?:home|root|work|Users|mnt|workspace)/[\w.]")


def test_no_file_names_a_registry_or_a_machine() -> None:
    """No package registry's address, and no absolute path of somebody's machine."""
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if ADDRESSES.search(line) or MACHINES.search(line)
    ]
    assert not found, found


@pytest.mark.parametrize("line", ["see https://py~pi.org/project/x", "open('/~work/data')"])
def test_the_search_for_addresses_and_paths_finds_them(line: str) -> None:
    """The test above can fail."""
    line = line.replace("~", "")
    assert ADDRESSES.search(line) or MACHINES.search(line)
