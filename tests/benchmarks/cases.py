"""The cases of the engine's benchmark, and the generation of candidates that each case trains."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from taylorglo.loss.functions import TaylorLoss
from taylorglo.loss.polynomial import from_coefficients
from taylorglo.settings import SweepSettings
from taylorglo.training.loop import Recipe

RATE = 0.01


@dataclass(frozen=True)
class Case:
    """A network in training.

    Attributes:
        model: name of the network.
        batch_size: number of images in a step.
        candidates: number of candidates.
        steps: number of steps of each candidate.
        precision: of the engine.
    """

    model: str
    batch_size: int
    candidates: int
    steps: int
    precision: str = "auto"

    @property
    def title(self) -> str:
        """The case in words."""
        return (
            f"{self.model}: batches of {self.batch_size}, {self.candidates} candidates of "
            f"{self.steps} steps"
        )

    def settings(self, **training: Any) -> SweepSettings:
        """Return the settings of its sweep, with other settings of the section ``training``."""
        values = {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "learning_rate": RATE,
            "precision": self.precision,
        }
        return SweepSettings.model_validate(
            {
                "model": {"name": self.model},
                "training": {**values, **training},
                "evaluation": {"steps": self.steps, "give_up_step": 0},
            }
        )

    def recipes(self) -> Iterator[tuple[int, Recipe]]:
        """Yield the generation for the engine."""
        for number, theta in enumerate(thetas(self.candidates)):
            yield number, Recipe(TaylorLoss(theta), RATE, 0, self.steps, self.steps, validations=1)


# 20 candidates are the population of the published search on CIFAR-10. All-CNN-C has fewer for the
# sake of time: its steps cost the same however many candidates there are.
CASES = (
    Case("mlp", 64, 20, 200),
    Case("cnn", 64, 20, 60),
    Case("mnist-cnn", 100, 20, 24),
    Case("allcnn-c", 128, 8, 8, "bfloat16"),
)


def thetas(number: int) -> list[list[float]]:
    """Return a generation of candidates near cross-entropy, all of which learn."""
    return [from_coefficients(4.0 + 0.8 * part / number, -4.0, -1.0, 0.0) for part in range(number)]
