"""Where a store keeps its files: a folder, or any address that fsspec knows."""

from __future__ import annotations

import errno
import importlib
import os
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from ...engine.state_files import flush
from ...errors import StoreError

__all__ = ["AddressFiles", "Files", "LocalFiles"]

DRAFT = ".draft-"

_WITHOUT_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


class Files(ABC):
    """Files by their path below an address, each whole or not there.

    Attributes:
        address: where they are, for messages.
    """

    address: str

    @abstractmethod
    def listed(self, folder: str = "") -> list[str]:
        """The paths of all files below a folder, sorted; none where there is no folder."""

    @abstractmethod
    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there yet; False, with nothing changed, where another writer was first."""

    @abstractmethod
    def replace(self, path: str, content: bytes) -> None:
        """Write a file, whether it is there or not."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove a file; nothing where there is none."""


class LocalFiles(Files):
    """A folder: written to a draft, flushed, and put in place by a hard link, which fails where a file is.

    Args:
        folder: made when something is written.

    Raises:
        StoreError: it is a file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self.address = str(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise StoreError(f"{self.folder} is a file, expected a store's folder or a new one")

    def listed(self, folder: str = "") -> list[str]:
        """Files below a folder, drafts left out."""
        found = (self.folder / folder).rglob("*")
        return sorted(
            path.relative_to(self.folder).as_posix()
            for path in found
            if not path.name.startswith(DRAFT) and path.is_file()
        )

    def read(self, path: str) -> bytes:
        """A file's content."""
        return (self.folder / path).read_bytes()

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file; of several processes one succeeds."""
        target = self.folder / path
        draft = self._drafted(target, content)
        try:
            os.link(draft, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _WITHOUT_LINKS:
                raise
            if not self._claimed(target):
                return False
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        flush(target.parent)
        return True

    def replace(self, path: str, content: bytes) -> None:
        """Put a file in place in one step."""
        target = self.folder / path
        self._drafted(target, content).replace(target)
        flush(target.parent)

    def remove(self, path: str) -> None:
        """Remove a file."""
        (self.folder / path).unlink(missing_ok=True)

    def _claimed(self, target: Path) -> bool:
        """Where there are no hard links: whether this writer is the first to open a file that stands for the target."""
        try:
            os.close(os.open(target.with_name(f"{DRAFT}{target.name}"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return not target.exists()

    def _drafted(self, target: Path, content: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f"{DRAFT}{uuid.uuid4().hex}")
        try:
            draft.write_bytes(content)
            flush(draft)
        except OSError:
            draft.unlink(missing_ok=True)
            raise
        return draft


class AddressFiles(Files):
    """An address that fsspec knows: `memory://`, `s3://`, `gs://` and the like.

    Whether two writers can take one path at once is up to the file system: memory, S3 and Google's storage refuse the
    second. Elsewhere a file is read back after it is written, which finds most of the rare other cases.

    Args:
        address: PROTOCOL://PATH.

    Raises:
        StoreError: fsspec does not know the protocol, or its package is not installed.
    """

    def __init__(self, address: str) -> None:
        fsspec: Any = importlib.import_module("fsspec")
        self.address = address.rstrip("/")
        protocol = address.partition("://")[0]
        try:
            self.system, root = fsspec.core.url_to_fs(address)
        except ImportError as error:
            package = _PACKAGES.get(protocol, str(error.name or protocol))
            raise StoreError(f"{address!r} needs {package}, which cannot be imported; pip install {package}") from error
        except (ValueError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise StoreError(
                f"{address!r} cannot be opened ({reason}); expected a folder or PROTOCOL://PATH"
            ) from error
        self.root = root.rstrip("/")

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def listed(self, folder: str = "") -> list[str]:
        """Files below a folder."""
        self.system.invalidate_cache()
        try:
            found = self.system.find(self._path(folder))
        except FileNotFoundError:
            return []
        prefix = self._path("").lstrip("/")
        return sorted(path.lstrip("/").removeprefix(prefix).lstrip("/") for path in found)

    def read(self, path: str) -> bytes:
        """A file's content."""
        content: bytes = self.system.cat_file(self._path(path))
        return content

    def create(self, path: str, content: bytes) -> bool:
        """Write a new file, refused by the file system where there is one."""
        where = self._path(path)
        self.system.makedirs(where.rpartition("/")[0], exist_ok=True)
        try:
            self.system.pipe_file(where, content, mode="create")
        except FileExistsError:
            return False
        except (TypeError, ValueError, NotImplementedError):  # older file systems cannot be asked to refuse
            if self.system.exists(where):
                return False
            self.system.pipe_file(where, content)
        return self.read(path) == content

    def replace(self, path: str, content: bytes) -> None:
        """Write a file."""
        where = self._path(path)
        self.system.makedirs(where.rpartition("/")[0], exist_ok=True)
        self.system.pipe_file(where, content)

    def remove(self, path: str) -> None:
        """Remove a file."""
        if self.system.exists(self._path(path)):
            self.system.rm_file(self._path(path))
