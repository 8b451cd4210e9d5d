"""Synthetic and modified gradients: learned guesses, random projections, fixed feedback weights."""

from .direct_feedback_alignment import DirectFeedbackAlignment
from .feedback_alignment import FeedbackAlignment
from .synthetic_gradients import SyntheticGradients

__all__ = ["DirectFeedbackAlignment", "FeedbackAlignment", "SyntheticGradients"]
