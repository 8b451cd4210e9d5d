"""What a part can minimise: pure functions of tensors, one scalar out."""

from .boosting import edge, exponential_loss, pair_costs, weak_learning_edge
from .dependence import (
    DEPENDENCE_MEASURES,
    DependenceMeasure,
    biased_hsic,
    cca_hsic,
    hsic,
    normalized_hsic,
    plausible_hsic,
)
from .goodness import goodness, goodness_contrast
from .gradients import gradient_distance
from .hsic_kernels import group_deviations, one_hot_gaussian, scaled_gaussian
from .kernels import COSINE, KERNELS, LINEAR, RELU, SIGMOID, TANH, Kernel, gaussian
from .margins import multi_margin
from .noise_contrastive import info_nce, nt_xent
from .pairwise import (
    PAIRWISE_OBJECTIVES,
    PairwiseObjective,
    alignment,
    contrastive,
    ideal_gram,
    log_contrastive,
    nmse,
    raw,
    srs_1,
    srs_2,
    srs_loss,
    upper_triangle_alignment,
)
from .projected import projected_labels, sign_cross_entropy
from .reconstruction import mean_squared_error, pixel_cross_entropy
from .regression import sum_squared_error
from .similarity import one_hot_similarity, similarity_matching, similarity_matrix
from .supcon import supervised_contrastive
from .supervised import Criterion, classification
from .transport import transport_cost

__all__ = [
    "COSINE",
    "DEPENDENCE_MEASURES",
    "KERNELS",
    "LINEAR",
    "PAIRWISE_OBJECTIVES",
    "RELU",
    "SIGMOID",
    "TANH",
    "Criterion",
    "DependenceMeasure",
    "Kernel",
    "PairwiseObjective",
    "alignment",
    "biased_hsic",
    "cca_hsic",
    "classification",
    "contrastive",
    "edge",
    "exponential_loss",
    "gaussian",
    "goodness",
    "goodness_contrast",
    "gradient_distance",
    "group_deviations",
    "hsic",
    "ideal_gram",
    "info_nce",
    "log_contrastive",
    "mean_squared_error",
    "multi_margin",
    "nmse",
    "normalized_hsic",
    "nt_xent",
    "one_hot_gaussian",
    "one_hot_similarity",
    "pair_costs",
    "pixel_cross_entropy",
    "plausible_hsic",
    "projected_labels",
    "raw",
    "scaled_gaussian",
    "sign_cross_entropy",
    "similarity_matching",
    "similarity_matrix",
    "srs_1",
    "srs_2",
    "srs_loss",
    "sum_squared_error",
    "supervised_contrastive",
    "transport_cost",
    "upper_triangle_alignment",
    "weak_learning_edge",
]
