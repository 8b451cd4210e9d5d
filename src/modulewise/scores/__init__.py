"""How well a frozen part's features fit a new task, without training: pure functions, and scores by name."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ..errors import DataError, suggest
from .conditional import LEEP, NCE, NLEEP, leep, mixture_posterior, nce
from .gbc import GBC, Spread, bhattacharyya, gbc
from .hscore import HScore, h_score
from .logme import Evidence, LogME, log_evidence
from .ncti import NCTI, CollapseTerms, collapse_terms, ncti_among
from .probing import KNN, LinearProbe, linear_probe, nearest_neighbours
from .proxies import (
    NMSE,
    SRS1,
    Alignment,
    Contrastive,
    LogContrastive,
    Proxy,
    Raw,
    UpperTriangleAlignment,
    proxy_value,
)
from .score import Score
from .sfda import SFDA, self_challenged, sfda, sfda_shrinkage
from .similarity import CKA, PARC, cka, parc
from .transrate import TransRate, coding_rate, trans_rate

__all__ = [
    "CKA",
    "GBC",
    "KNN",
    "LEEP",
    "NCE",
    "NCTI",
    "NLEEP",
    "NMSE",
    "PARC",
    "SCORES",
    "SFDA",
    "SRS1",
    "Alignment",
    "CollapseTerms",
    "Contrastive",
    "Evidence",
    "HScore",
    "LinearProbe",
    "LogContrastive",
    "LogME",
    "Proxy",
    "Raw",
    "Score",
    "Spread",
    "TransRate",
    "UpperTriangleAlignment",
    "bhattacharyya",
    "cka",
    "coding_rate",
    "collapse_terms",
    "gbc",
    "h_score",
    "leep",
    "linear_probe",
    "log_evidence",
    "mixture_posterior",
    "named",
    "nce",
    "ncti_among",
    "nearest_neighbours",
    "parc",
    "proxy_value",
    "self_challenged",
    "sfda",
    "sfda_shrinkage",
    "trans_rate",
]

SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            *(Alignment(), UpperTriangleAlignment(), Contrastive(), LogContrastive(), NMSE(), SRS1(), Raw()),
            *(HScore(), NCE(), LEEP(), NLEEP(), LogME(), TransRate(), PARC(), SFDA(), GBC(), NCTI(), CKA()),
            *(LinearProbe(), KNN()),
        )
    }
)
"""Every score with its default settings, by name."""


def named(names: Iterable[str]) -> tuple[Score, ...]:
    """Scores by name, each with its default settings.

    Raises:
        DataError: no score of this name.

    >>> [score.name for score in named(["logme", "cka"])]
    ['logme', 'cka']
    """
    names = tuple(names)
    for name in names:
        if name not in SCORES:
            raise DataError(f"no score {name!r}, expected one of {', '.join(SCORES)}{suggest(name, SCORES)}")
    return tuple(SCORES[name] for name in names)
