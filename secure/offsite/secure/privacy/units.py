"""What differential privacy protects here: what one unit contributed.

Neighbouring data sets have the same units; in one of them one unit's content is replaced by nothing,
so that it adds 0 to every sum. This is zero-out adjacency: Kairouz et al. 2021 (arXiv 2103.00039),
Ponomareva et al. 2023 (arXiv 2303.00654), section 2.

Notable decisions:

* *How many* units there are, n, is the same in both and not protected: an edge derives the sampling rate
  q = batch / n and the noise from it. With a unit added or removed, q would be another one, and what is
  accounted would not be what is promised. So n is not shown to anybody, and no epsilon speaks of it.
* The formulas are those of add-or-remove with q fixed: whether a unit is drawn does not depend on the
  others, and with it the sum moves by at most C, without it by nothing. Under truncated sampling, which no
  edge uses, the unit that adds nothing keeps its place: with it the sum moves by up to 2 C, without it by
  up to C, which the pair of `accounting.dominating` covers.

Every mechanism carries unit and adjacency, and the accountants refuse to add up mechanisms that differ in
them: an epsilon for records says nothing about a person who gave several.
"""

from enum import StrEnum


class Unit(StrEnum):
    """Whose contribution is hidden. All examples of a unit are clipped together and drawn together."""

    RECORD = "record"  # one row of the data file
    PERSON = "person"  # all rows with the same value of the column that names the person


class Adjacency(StrEnum):
    """Which data sets are neighbours.

    There is one member on purpose: clipping to C bounds what a unit adds by C, while replacing a
    unit by another could change the sum by 2 C, which nothing in this product is calibrated for.
    """

    ZERO_OUT = "zero_out"
