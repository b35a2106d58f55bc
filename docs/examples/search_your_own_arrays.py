"""Search a loss for your own images: from NumPy arrays to a champion.

python docs/examples/search_your_own_arrays.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import taylorglo
from taylorglo.settings import validated
from taylorglo_pipelines.config import Config
from taylorglo_pipelines.local import runner


def draw_bars(number: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw noisy images of 8x8 with a bright row (class 0) or a bright column (class 1)."""
    random = np.random.default_rng(seed=0)
    images = random.integers(0, 160, size=(number, 8, 8), dtype=np.uint8)
    labels = random.integers(0, 2, size=number)
    for image, label in zip(images, labels, strict=True):
        position = random.integers(0, 8)
        bar = image[position] if label == 0 else image[:, position]
        bar += 90
    return images, labels


def search(
    folder: Path, *, images: int = 800, generations: int = 2, popsize: int = 6, steps: int = 200
) -> taylorglo.TaylorLoss:
    """Search a loss for the bars; return the champion. Everything is kept in the folder."""
    pixels, labels = draw_bars(images)
    # Images are uint8, N x H x W or N x C x H x W; labels are the integers from 0 to n - 1.
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"images": pixels, "labels": labels}, folder / "bars.safetensors")
    # These are the sections and the keys of a sweep's YAML file.
    settings = {
        "name": "bars",
        "data": {"name": "safetensors", "root": str(folder / "bars.safetensors")},
        "training": {"steps": steps},
        "evaluation": {"steps": steps, "attempts": 1, "give_up_step": 0},
        "search": {"popsize": popsize},
        "baselines": {"learning_rates": [0.03, 0.1], "attempts": 1},
        "champion": {"finalists": 2, "seeds": 3},
        "attack": {"epsilons": [0.05], "images": 100, "pgd_steps": 5, "seeds": 1},
        "pipeline": {"generations": generations},
        "services": {"work_dir": str(folder / "runs")},
    }
    # After an interruption, the same call goes on with the search.
    places = runner.run(validated(Config, settings, "bars"), terminal=sys.stdout)
    return taylorglo.load_loss(f"{places.store}/bars/champion/loss.json")


if __name__ == "__main__":
    print(search(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bars")))
