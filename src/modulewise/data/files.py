"""Rows of encoded images and labels out of parquet files, image folders and the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import DataError
from .images import Row, Source, extra

__all__ = ["folder_sources", "hub_sources"]

_TEST = ("test", "valid", "validation", "val")
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_BATCH = 1024


def folder_sources(folder: Path) -> tuple[Source, Source]:
    """Training and test rows of a folder of parquet files, or of one folder a class.

    Raises:
        DataError: the folder is neither, has no test split, or a file cannot be read.
    """
    files = _parquet_files(folder, ("train",))
    if files:
        files_test = _parquet_files(folder, _TEST)
        if not files_test:
            raise DataError(f"{folder} has train but no test.parquet (or {', '.join(_TEST[1:])}); add one")
        return _parquet_source(files), _parquet_source(files_test)
    if not (folder / "train").is_dir():
        raise DataError(f"{folder} has neither train.parquet (or train-00000-of-00001.parquet) nor train/CLASS/*.png")
    test = next((folder / name for name in _TEST if (folder / name).is_dir()), None)
    if test is None:
        raise DataError(f"{folder} has train/ but no test/ (or {', '.join(_TEST[1:])}); add one")
    return _class_folders(folder / "train"), _class_folders(test)


def _class_folders(folder: Path) -> Source:
    rows = [
        Row(str(file), None, file, names.name)
        for names in sorted(folder.iterdir())
        if names.is_dir()
        for file in sorted(names.rglob("*"))
        if file.suffix.lower() in _SUFFIXES
    ]
    return Source(str(folder), len(rows), lambda: iter(rows), None)


def _parquet_files(folder: Path, names: Sequence[str]) -> list[Path]:
    for name in names:
        if (folder / f"{name}.parquet").is_file():
            return [folder / f"{name}.parquet"]
        shards = {
            (int(match[1]), int(match[2])): file
            for file in folder.glob(f"{name}-*.parquet")
            if (match := re.fullmatch(r".*-(\d+)-of-(\d+)", file.stem))
        }
        if shards:
            _, total = max(shards)
            missing = set(range(total)) - {i for i, of in shards if of == total}
            if missing or len(shards) != total:
                raise DataError(f"{folder} has {len(shards)} of {total} shards of {name}; bring all of one set")
            return [shards[key] for key in sorted(shards)]
    return []


@contextmanager
def _reading(place: object) -> Iterator[None]:
    arrow = extra("pyarrow")
    try:
        yield
    except (arrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{place} cannot be read as parquet ({reason}); write or download it again") from error


def _parquet_source(files: Sequence[Path]) -> Source:
    parquet = extra("pyarrow.parquet")
    count, columns, names = 0, [], []
    for file in files:
        with _reading(file), parquet.ParquetFile(file) as table:
            count += table.metadata.num_rows
            columns.append(_columns(table.schema_arrow, str(file)))
            names.append(_declared_names(table.schema_arrow, columns[-1][1]))
    if any(found != names[0] for found in names):
        raise DataError(f"shards of {files[0]} declare different class names; bring all of one set")

    def rows() -> Iterator[Row]:
        for file, (image, label) in zip(files, columns, strict=True):
            with _reading(file), parquet.ParquetFile(file) as table:
                batches = table.iter_batches(batch_size=_BATCH, columns=[image, label])
                yield from _rows(batches, image, label, file=str(file), folder=file.parent)

    return Source(str(files[0]), count, rows, names[0])


def _rows(batches: Iterator[Any], image: str, label: str, *, file: str, folder: Path) -> Iterator[Row]:
    """Rows of arrow batches or tables; an image stored as a path is looked up from `folder`."""
    number = 0
    for batch in batches:
        for data, given in zip(batch.column(image).to_pylist(), batch.column(label).to_pylist(), strict=True):
            yield Row(file, number, _image(data, folder), given)
            number += 1


def _image(data: Any, folder: Path) -> bytes | Path | None:
    if not isinstance(data, dict):
        return data
    path = data.get("path")
    return folder / path if data["bytes"] is None and path is not None else data["bytes"]


def _columns(schema: Any, place: str) -> tuple[str, str]:
    """Names of the image and the label column of an arrow schema."""
    types = extra("pyarrow").types

    def holds_bytes(kind: Any) -> bool:
        if types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return types.is_binary(kind) or types.is_large_binary(kind)

    def is_label(kind: Any) -> bool:
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)

    image = _column(schema, holds_bytes, ("image", "img"), what="image bytes", place=place)
    return image, _column(schema, is_label, ("label", "labels", "fine_label"), what="labels", place=place)


def _column(schema: Any, fits: Callable[[Any], bool], names: tuple[str, ...], *, what: str, place: str) -> str:
    fitting = [field.name for field in schema if fits(field.type)]
    named = [name for name in names if name in fitting]
    if named:
        return named[0]
    if len(fitting) != 1:
        raise DataError(
            f"{place} has {len(fitting)} columns that could hold {what} among {schema.names}; expected one, "
            f"or one named {' or '.join(names)}"
        )
    return fitting[0]


def _declared_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Class names from the description that `datasets` writes into a schema; None where there is none."""
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return None
    return tuple(map(str, names))


def hub_sources(name: str, *, cache: Path | None) -> tuple[Source, Source]:
    """Training and test rows of a data set of the Hugging Face hub, by way of `datasets`.

    Raises:
        DataError: it cannot be loaded, or has no train or no test split.
    """
    datasets = extra("datasets")
    try:
        found = datasets.load_dataset(name, cache_dir=None if cache is None else str(cache))
    # The hub's clients raise errors of several packages: not found, offline, gated, no such script.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"'hub:{name}' cannot be loaded ({reason}); check the name and the connection") from error
    test = next((part for part in _TEST if part in found), None)
    if "train" not in found or test is None:
        raise DataError(f"'hub:{name}' has splits {list(found)}; expected train and one of {', '.join(_TEST)}")
    return _hub_source(found["train"], f"hub:{name} train"), _hub_source(found[test], f"hub:{name} {test}")


def _hub_source(split: Any, place: str) -> Source:
    schema = split.features.arrow_schema
    image, label = _columns(schema, place)
    tables = split.select_columns([image, label]).with_format("arrow")

    def rows() -> Iterator[Row]:
        return _rows(tables.iter(batch_size=_BATCH), image, label, file=place, folder=Path())

    return Source(place, len(split), rows, _declared_names(schema, label))
