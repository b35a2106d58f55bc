"""Seeds below a seed, so that no two draws of a sweep share their random numbers by accident.

The constants are first numbers of paths below the seed of a sweep. The trainings of a generation of
the search have the generation's number, from 1, which stays far below the large ones.
"""

import numpy as np

TUNING = 0  # the trainings of the finalists, and those with which the baselines are tuned
FINAL = 1_000_000  # the trainings of the comparison
IMBALANCE = 2_000_000  # which samples of a class are left out
NOISE = 3_000_000  # which labels are replaced, and by what
PARTITIONS = 4_000_000  # the folds


def derived_seed(seed: int, *path: int) -> int:
    """Return the seed, in [0, 2^31), of a path of whole numbers below a seed."""
    return int(np.random.SeedSequence([seed, *path]).generate_state(1)[0]) >> 1
