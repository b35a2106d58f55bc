"""Seeds below a seed, so that no two draws of a sweep share their random numbers by accident."""

import numpy as np


def derived_seed(seed: int, *path: int) -> int:
    """Return the seed, in [0, 2^31), of a path of whole numbers below a seed."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0]) >> 1
