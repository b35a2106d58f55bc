"""The learning rates of the schedules, in closed form."""

import math

from taylorglo.settings import TrainingSettings


def rate_at(step: int, settings: TrainingSettings, horizon: int) -> float:
    """Return the learning rate of a step, counted from 1, in closed form."""
    top, done = settings.learning_rate, step - 1
    if settings.schedule == "step":
        milestones = [round(fraction * horizon) for fraction in settings.milestones]
        return top * settings.decay ** sum(done >= milestone for milestone in milestones)
    if settings.schedule == "cosine":
        return top * (1 + math.cos(math.pi * done / horizon)) / 2
    if settings.schedule == "one-cycle":
        return one_cycle(top, done, horizon)
    return top


def one_cycle(top: float, done: int, horizon: int) -> float:
    """Return the rate after ``done`` steps (Smith & Topin 2018), with PyTorch's constants.

    It goes up for 30 % of the steps, and then down.
    """
    peak = 0.3 * (horizon + 1) - 1
    if done <= peak:
        low, high, share = top / 25, top, done / peak
    else:
        low, high, share = top / 25e4, top, (horizon - done) / (horizon - peak)
    return low + (high - low) * (1 - math.cos(math.pi * share)) / 2
