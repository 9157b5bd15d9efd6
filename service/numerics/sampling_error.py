"""How far the mean over a baseline set may be from the mean over the population that the set is a sample of.

Of K rows with the deviation s, s / sqrt(K) is the error of their mean; but 1.96 of these hold the truth in 95 of 100
only if K is large and the rows are normal. Attributions are neither: a pixel that one row in twenty lights, a category
that few rows have. So what is stated is the half-width of a 95% interval that is made for such samples, over 1.96:

- Student's t with K - 1 degrees of freedom in the place of 1.96.
- The skewness g of the rows moves the interval to one side by (1 + 2 t^2) g s / 6K (Hall, "The Bootstrap and Edgeworth
  Expansion", Springer 1992, section 3.3). What is stated is one figure for both sides: that of the longer.
- A unit whose deviation is the doing of one row may be lit by others like it that were not drawn, and one in which no
  row differs by any. Of what none of K rows has, up to 3 / K of the population may have (the rule of three: Hanley and
  Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 1983), and how much that would be, other units
  tell: the mean variance of all, in the place of its own where it is larger, with the weight of (3 / 1.96)^2 rows among
  K, by the share of one row in what is known of the unit, sum d^4 / (sum d^2)^2. That share is 1 where one row differs,
  and 3 / K of normal ones, of which little changes.

All three vanish as K grows. `service/numerics/README.md` has what was measured.
"""

from __future__ import annotations

import numpy as np

from service.domain import Floats

NORMAL_QUANTILE = 1.959963984540054
"""Of 97.5 of 100: so many of what is stated are to hold the truth in 95 of 100."""
UNSEEN_ROWS = (3 / NORMAL_QUANTILE) ** 2
"""So that 1.96 of what follows from a unit that no row tells of are 3 / K of the units' root mean square deviation."""


def sampling_error(rows: Floats) -> Floats:
    """Of the mean over `rows` [K, units], a random sample of two or more: [units], in the rows' units."""
    count = len(rows)
    deviations = rows - rows.mean(axis=0)
    largest = np.abs(deviations).max(axis=0)
    relative = deviations / np.where(largest > 0, largest, 1.0)  # so that no power of small ones underflows
    squares = np.where(largest > 0, (relative**2).sum(axis=0), 1.0)
    own = largest**2 * squares / (count - 1)
    share_of_one = np.where(largest > 0, (relative**4).sum(axis=0) / squares**2, 1.0)
    variance = own + UNSEEN_ROWS * share_of_one * np.maximum(own.mean() - own, 0) / count
    quantile = student_quantile(count - 1)
    shift = (1 + 2 * quantile**2) / (6 * count) * largest * np.abs((relative**3).sum(axis=0)) / squares
    error: Floats = (quantile * np.sqrt(variance / count) + shift) / NORMAL_QUANTILE
    return error


def student_quantile(freedom: int) -> float:
    """Of 97.5 of 100 of Student's t with so many degrees of freedom.

    Abramowitz and Stegun, "Handbook of Mathematical Functions" 1964, 26.7.5: 11% too small of one, 0.8% of two, 0.1% of
    three and less of more.
    """
    z = NORMAL_QUANTILE
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / float(freedom) ** power for power, term in enumerate(terms, start=1))
