"""Hypothesis strategies for numbers of axes and for sizes: odd, even, unequal, down to one pixel."""

from hypothesis import settings
from hypothesis import strategies as st

settings.register_profile("suite", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("suite")

DIMS = st.sampled_from([1, 2, 3])


@st.composite
def dims_and_sizes(draw, smallest: int = 1, largest: int = 12):
    """(number of axes, size)."""
    dims = draw(DIMS)
    edge = st.integers(smallest, largest if dims < 3 else min(largest, smallest + 6))
    return dims, tuple(draw(edge) for _ in range(dims))
