"""What differential privacy protects here: one unit, added or removed.

Every mechanism carries both, and the accountants refuse to add up mechanisms that differ in them:
an epsilon for records says nothing about a person who gave several.
"""

from enum import StrEnum


class Unit(StrEnum):
    """Whose presence is hidden. All examples of a unit are clipped together and drawn together."""

    RECORD = "record"  # one row of the data file
    PERSON = "person"  # all rows with the same value of the column that names the person


class Adjacency(StrEnum):
    """Which data sets are neighbours.

    There is one member on purpose: clipping to C bounds what a unit adds by C, while replacing a
    unit could change the sum by 2 C, which nothing in this product is calibrated for.
    """

    ADD_OR_REMOVE = "add_or_remove"
