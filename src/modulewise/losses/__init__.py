"""What a part can minimise: pure functions of tensors, one scalar out."""

from .kernels import (
    RELU,
    SIGMOID,
    TANH,
    Kernel,
    PairwiseObjective,
    alignment,
    contrastive,
    gaussian,
    ideal_gram,
    nmse,
    raw,
    upper_triangle_alignment,
)
from .regression import sum_squared_error
from .similarity import one_hot_similarity, similarity_matching, similarity_matrix
from .supervised import Criterion, classification

__all__ = [
    "RELU",
    "SIGMOID",
    "TANH",
    "Criterion",
    "Kernel",
    "PairwiseObjective",
    "alignment",
    "classification",
    "contrastive",
    "gaussian",
    "ideal_gram",
    "nmse",
    "one_hot_similarity",
    "raw",
    "similarity_matching",
    "similarity_matrix",
    "sum_squared_error",
    "upper_triangle_alignment",
]
