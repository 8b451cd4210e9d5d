"""Where a store may lie, and several writers at once: whoever is first has the version, nobody is lost."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from stored_networks import MLP, partition

from modulewise.errors import StoreError
from modulewise.workflow import AddressFiles, Files, HubFiles, LocalFiles, Store


class Repository:
    """The few methods of `huggingface_hub.HfApi` that a store uses, on a dictionary in this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = importlib.import_module("huggingface_hub")
        self.commits: list[dict[str, bytes]] = []
        self.meanwhile: list[tuple[str, bytes]] = []

    def repo_info(self, repository: str) -> Any:
        if not self.commits:
            raise self._error("RepositoryNotFoundError", 404)
        return SimpleNamespace(sha=str(len(self.commits) - 1))

    def create_repo(self, repository: str, *, exist_ok: bool) -> None:
        assert exist_ok
        if not self.commits:
            self.commits.append({".gitattributes": b""})

    def list_repo_files(self, repository: str, *, revision: str) -> list[str]:
        return list(self.commits[int(revision)])

    def hf_hub_download(self, repository: str, path: str) -> str:
        if not self.commits or path not in self.commits[-1]:
            raise self._error("EntryNotFoundError", 404)
        local = self.folder / uuid.uuid4().hex
        local.write_bytes(self.commits[-1][path])
        return str(local)

    def create_commit(
        self, repository: str, operations: list[Any], *, commit_message: str, parent_commit: str | None = None
    ) -> None:
        if self.meanwhile:  # another writer, between the look and the commit
            path, content = self.meanwhile.pop()
            self.commits.append({**self.commits[-1], path: content})
        if parent_commit is not None and int(parent_commit) != len(self.commits) - 1:
            raise self._error("HfHubHTTPError", 412)
        files = dict(self.commits[-1])
        for operation in operations:
            if isinstance(operation, self.library.CommitOperationAdd):
                files[operation.path_in_repo] = operation.path_or_fileobj
            else:
                del files[operation.path_in_repo]
        self.commits.append(files)

    def _error(self, name: str, status: int) -> Exception:
        kind = getattr(importlib.import_module("huggingface_hub.errors"), name)
        error: Exception = kind.__new__(kind)
        error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
        return error


@pytest.fixture(params=["folder", "without hard links", "memory", "hub"])
def files(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    if request.param == "memory":
        return AddressFiles(f"memory://{uuid.uuid4().hex}/store")
    if request.param == "hub":
        pytest.importorskip("huggingface_hub")
        return HubFiles("someone/parts/below", api=Repository(tmp_path))
    if request.param == "without hard links":

        def refused(source: Any, target: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refused)
    return LocalFiles(tmp_path / "store")


def test_every_kind_of_files_keeps_the_same_contract(files: Files) -> None:
    """`create` is first come, first served; `replace` is not; what is removed is not there; folders are listed."""
    assert files.listed() == []
    with pytest.raises(FileNotFoundError):
        files.read("a/b")
    assert files.create("a/b", b"first")
    assert not files.create("a/b", b"second")
    assert files.read("a/b") == b"first"
    files.replace("a/b", b"third")
    assert files.create("a/c/d", b"")
    assert files.create("e", b"e")
    assert files.read("a/b") == b"third"
    assert [path for path in files.listed() if path != ".gitattributes"] == ["a/b", "a/c/d", "e"]
    assert files.listed("a") == ["a/b", "a/c/d"]
    files.remove("a/b")
    files.remove("a/b")
    assert files.listed("a") == ["a/c/d"]


def test_a_store_works_alike_everywhere(files: Files) -> None:
    """Two versions, one removed; the rest is bit for bit the part."""
    store, cut = Store(files), partition()
    store.save(partition(seed=1).part(0), "low", model=MLP)
    store.save(cut.part(0), "low", model=MLP)
    x = torch.randn(4, 1, 4, 4)
    assert torch.equal(Store(files).load("low")(x), cut.part(0)(x))
    store.remove("low@1")
    assert (store.names(), store.versions("low"), store.verify()) == (("low",), (2,), ())
    assert len(files.listed("blobs")) == 1


def test_something_else_at_an_address_is_left_alone(files: Files) -> None:
    """As with a folder."""
    files.create("notes.txt", b"mine")
    with pytest.raises(StoreError, match="holds something else"):
        Store(files)


def test_a_hub_commit_that_came_in_between_loses_nothing(tmp_path: Path) -> None:
    """The card is tried again on top of the new commit, and takes the next version if its own was taken."""
    pytest.importorskip("huggingface_hub")
    api = Repository(tmp_path)
    store = Store(HubFiles("someone/parts", api=api))
    store.save(partition().part(0), "low", model=MLP)
    theirs = api.commits[-1]["cards/low/1.json"]
    blobs = len(api.commits)
    api.create_commit("someone/parts", [], commit_message="nothing")
    assert len(api.commits) == blobs + 1

    original = HubFiles.create

    def raced(self: HubFiles, path: str, content: bytes) -> bool:
        if path == "cards/low/2.json":
            api.meanwhile = [(path, theirs)]
        return original(self, path, content)

    HubFiles.create = raced  # type: ignore[method-assign]
    try:
        card = store.save(partition(seed=1).part(0), "low", model=MLP)
    finally:
        HubFiles.create = original  # type: ignore[method-assign]
    assert card.version == 3
    assert api.commits[-1]["cards/low/2.json"] == theirs


def test_addresses_that_cannot_be_opened_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package by its name; an unknown protocol; a repository without owner."""
    real = importlib.import_module("fsspec")

    def without_s3fs(address: str) -> Any:
        if address.startswith("s3://"):
            raise ImportError("Install s3fs to access S3")
        return real.core.url_to_fs(address)

    stub = SimpleNamespace(core=SimpleNamespace(url_to_fs=without_s3fs))
    monkeypatch.setattr("modulewise.workflow.store.files.importlib.import_module", lambda name: stub)
    with pytest.raises(StoreError, match=r"'s3://bucket/parts' needs s3fs, .*pip install s3fs"):
        Store("s3://bucket/parts")
    with pytest.raises(StoreError, match="nosuch"):
        Store("nosuch://bucket")
    with pytest.raises(StoreError, match="expected hf://OWNER/NAME"):
        Store("hf://parts")


def test_the_hub_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where the address asks for it."""

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr("modulewise.workflow.store.hub.importlib.import_module", missing)
    with pytest.raises(StoreError, match=r"pip install 'modulewise\[hub\]'"):
        Store("hf://someone/parts")


def test_a_writer_that_fails_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights without a card are no part; no draft stays; the next save works."""
    store, cut = Store(tmp_path / "store"), partition()
    real = os.link

    def full(source: Any, target: Any) -> None:
        if str(target).endswith(".json") and "cards" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StoreError, match=r"cannot be written: .*No space left"):
        store.save(cut.part(0), "low", model=MLP)
    assert store.names() == ()
    assert not list(tmp_path.rglob(".draft-*"))
    monkeypatch.undo()
    assert store.save(cut.part(0), "low", model=MLP).version == 1
    assert store.verify() == ()


def test_what_the_file_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking, saving, removing and opening."""
    store, cut = Store(tmp_path), partition()
    store.save(cut.part(0), "low", model=MLP)

    def refused(*arguments: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    acts = {
        "save": lambda: store.save(cut.part(0), "low", model=MLP),
        "remove": lambda: store.remove("low"),
        "load": lambda: store.load("low"),
        "open": lambda: Store(tmp_path),
    }
    needed = {"create": "save remove", "read": "save load open", "listed": "save remove load"}
    for name, words in needed.items():
        with monkeypatch.context() as patched:
            patched.setattr(LocalFiles, name, refused)
            for word in words.split():
                with pytest.raises(StoreError, match="Permission denied") as error:
                    acts[word]()
                assert "\n" not in str(error.value)


def test_weights_that_were_damaged_are_put_right_by_saving_them_again(tmp_path: Path) -> None:
    """The name of the file is its hash, so that nothing else can belong there."""
    store, cut = Store(tmp_path), partition()
    card = store.save(cut.part(0), "low", model=MLP)
    (tmp_path / "blobs" / f"{card.sha256}.safetensors").write_bytes(b"damaged")
    store.save(cut.part(0), "low", model=MLP)
    assert store.verify() == ()


SAVING = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from stored_networks import MLP, partition
from modulewise.workflow import Store
folder, seed = Path(sys.argv[2]), int(sys.argv[3])
cut = partition(seed=seed)
(folder / f"ready-{seed}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for number in range(3):
    Store(folder / "store").save(cut.part(0), "low", model=MLP, seed=seed, notes=str(number))
"""


def test_two_processes_that_save_one_name_at_once_lose_nothing(tmp_path: Path) -> None:
    """This one and another: every save of both has a version of its own, with the right weights."""
    words = [sys.executable, "-c", SAVING, str(Path(__file__).parent), str(tmp_path), "0"]
    other = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    cut = partition(seed=1)
    while not (tmp_path / "ready-0").exists():
        assert other.poll() is None, other.communicate()[1]
        time.sleep(0.02)
    (tmp_path / "go").touch()
    for number in range(3):
        Store(tmp_path / "store").save(cut.part(0), "low", model=MLP, seed=1, notes=str(number))
    assert other.communicate(timeout=120)[1] == ""
    assert other.returncode == 0
    store = Store(tmp_path / "store")
    assert store.versions("low") == tuple(range(1, 7))
    assert store.verify() == ()
    cards = [store.card(f"low@{version}") for version in store.versions("low")]
    assert {(card.seed, card.notes) for card in cards} == {(seed, str(n)) for seed in (0, 1) for n in range(3)}
    assert {(card.seed, card.sha256) for card in cards} == {(s, cards[i].sha256) for i, s in _firsts(cards)}


def _firsts(cards: list[Any]) -> list[tuple[int, int]]:
    return [(next(i for i, card in enumerate(cards) if card.seed == seed), seed) for seed in (0, 1)]
