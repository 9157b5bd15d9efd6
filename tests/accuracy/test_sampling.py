"""Standard errors of small baseline sets cover the population of handwritten digits."""

from __future__ import annotations

from tests.accuracy.measuring import SPACES
from tests.accuracy.sampling import sampled


def test_standard_errors_of_few_images_cover_their_population() -> None:
    """Most pixels are lit by few of the images, many by none of the eight."""
    found = sampled("digits_max_pool", None, sizes=(8, 16), explained_rows=1)
    assert len(found) == 2 * len(SPACES)
    for of_space in found:
        assert of_space.whole > 500
        assert 0.9 <= of_space.covered / of_space.whole <= 0.99, of_space
