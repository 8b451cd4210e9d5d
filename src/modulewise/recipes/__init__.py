"""Published settings as small files, run here, with the published figure beside the reached one."""

from .places import data_place
from .reading import load, names, read
from .recipe import Evaluation, Machine, Measure, Recipe, Row
from .records import Book, Record
from .running import Orders, run, run_all
from .summary import Reached, detail, listing, method_columns, reached

__all__ = [
    "Book",
    "Evaluation",
    "Machine",
    "Measure",
    "Orders",
    "Reached",
    "Recipe",
    "Record",
    "Row",
    "data_place",
    "detail",
    "listing",
    "load",
    "method_columns",
    "names",
    "reached",
    "read",
    "run",
    "run_all",
]
