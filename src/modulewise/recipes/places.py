"""Where the data sets of recipes lie."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError

__all__ = ["EMBEDDED", "ENVIRONMENT", "FOLDERS", "data_place"]

ENVIRONMENT = "MODULEWISE_DATA"
EMBEDDED = ("digits",)
FOLDERS = ("mnist", "cifar10", "tiny-imagenet")


def data_place(name: str, *, folder: str | Path | None = None) -> str:
    """What `data.load` takes for a set: its name where it is embedded, else its folder.

    Looked for below `folder`; without one below $MODULEWISE_DATA; without either below ./data, then ../shared/data.

    Args:
        name: of the set; it is the name of its folder too.
        folder: what holds the sets, or None.

    Raises:
        DataError: it is in none of these.

    >>> data_place("digits")
    'digits'
    """
    if name in EMBEDDED:
        return name
    given = folder if folder is not None else os.environ.get(ENVIRONMENT)
    places = [Path(given).expanduser()] if given else [Path("data"), Path("..") / "shared" / "data"]
    for place in places:
        if (place / name).is_dir():
            return str(place / name)
    raise DataError(
        f"the data set {name!r} is not below {' or '.join(map(str, places))}; expected a folder {name} with "
        f"train.parquet and test.parquet in the image schema of Hugging Face; give --data DIR or set {ENVIRONMENT} to "
        "the folder that holds it (the default is ./data, then ../shared/data)"
    )
