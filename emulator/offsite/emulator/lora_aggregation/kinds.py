"""The ways in which clients' LoRA factors become one; light, since settings name them."""

from enum import Enum


class LoraAggregation(Enum):
    """How, see `aggregate.py`."""

    AVERAGE = "average"
    """Means of A and of B apart; biased unless one of them is the same everywhere."""
    RESIDUAL = "residual"
    """The same, and what it misses as a change of the frozen weight (FedEx-LoRA)."""
    STACK = "stack"
    """All factors side by side, exact at the sum of the ranks (FLoRA)."""
    PADDED = "padded"
    """Means of factors of several ranks, the smaller ones filled up with zeros."""
    SLICES = "slices"
    """Means of factors of several ranks, each slice over those who have it."""
