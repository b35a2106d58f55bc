"""Presets: the published training of each published network, as sections of a configuration.

Steps are for the 45 000 training images of CIFAR-10 that remain if 5 000 of its 50 000 are held
out: an epoch is 351 whole batches of 128. Milestones are fractions of the training, to six
decimals.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

Name = Literal[
    "mnist-cnn", "allcnn-c", "alexnet", "preresnet-20", "wrn-16-8", "wrn-28-5", "pyramidnet-110-48"
]

_EPOCH = 45_000 // 128
# Images are padded by 4 pixels, cropped and mirrored: He et al. 2015 (arXiv 1512.03385, section
# 4.2), and the papers that follow them.
_CROP_AND_FLIP = {"crop_padding": 4, "flip": True}


def _drops(moments: Sequence[int], total: int, decay: float) -> dict[str, Any]:
    """Return a schedule that multiplies the learning rate by ``decay`` at each moment of a total.

    Args:
        moments: in epochs or steps.
        total: length of the training in the same unit.
        decay: factor of each drop.
    """
    milestones = [round(moment / total, 6) for moment in moments]
    return {"schedule": "step", "milestones": milestones, "decay": decay}


# Zagoruyko & Komodakis 2016 (arXiv 1605.07146), section 3: SGD with Nesterov's momentum 0.9,
# batches of 128, learning rate 0.1, weight decay 0.0005, 200 epochs; the rate is multiplied by 0.2
# after 60, 120 and 160 epochs. Crop and flip are the paper's, but the border of a crop is black
# here and reflected in the paper.
_WIDE_RESNET = {
    "training": {
        "steps": 200 * _EPOCH,
        "batch_size": 128,
        "learning_rate": 0.1,
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
        **_drops([60, 120, 160], 200, 0.2),
    },
    "augmentation": _CROP_AND_FLIP,
}

PRESETS: Mapping[Name, Mapping[str, Mapping[str, Any]]] = {
    # The TaylorGLO paper (arXiv 2002.00059, section V): 20 000 steps of SGD with batches of 100,
    # learning rate 0.01. Assumed, because the paper does not mention them: no momentum and no
    # weight decay.
    "mnist-cnn": {
        "training": {
            "steps": 20_000,
            "batch_size": 100,
            "learning_rate": 0.01,
            "momentum": 0.0,
            "nesterov": False,
            "weight_decay": 0.0,
            "schedule": "constant",
            "milestones": [],
        },
    },
    # Springenberg et al. 2015 (arXiv 1412.6806), section 3.1, and the regularization paper (arXiv
    # 2010.00788): momentum 0.9, learning rate 0.01 (the grid of the first paper has it), weight
    # decay 0.001, 350 epochs; the rate is multiplied by 0.1 after 200, 250 and 300 epochs. There is
    # no augmentation, as in the first of that paper's two tables. Assumed: batches of 128.
    "allcnn-c": {
        "training": {
            "steps": 350 * _EPOCH,
            "batch_size": 128,
            "learning_rate": 0.01,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-3,
            **_drops([200, 250, 300], 350, 0.1),
        },
    },
    # bearpaw/pytorch-classification, TRAINING.md and the defaults of cifar.py: momentum 0.9,
    # batches of 128, learning rate 0.1, weight decay 0.0005, 164 epochs, crop and flip; the rate is
    # multiplied by 0.1 after 81 and 122 epochs.
    "alexnet": {
        "training": {
            "steps": 164 * _EPOCH,
            "batch_size": 128,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 5e-4,
            **_drops([81, 122], 164, 0.1),
        },
        "augmentation": _CROP_AND_FLIP,
    },
    # He et al. 2015 (arXiv 1512.03385), section 4.2, and He et al. 2016 (arXiv 1603.05027) with the
    # same settings: momentum 0.9, batches of 128, learning rate 0.1, weight decay 0.0001, 64 000
    # steps on 45 000 images, crop and flip; the rate is multiplied by 0.1 after 32 000 and 48 000
    # steps. Left out: 400 steps of warming up, which the second paper calls unnecessary.
    "preresnet-20": {
        "training": {
            "steps": 64_000,
            "batch_size": 128,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-4,
            **_drops([32_000, 48_000], 64_000, 0.1),
        },
        "augmentation": _CROP_AND_FLIP,
    },
    "wrn-16-8": _WIDE_RESNET,
    "wrn-28-5": _WIDE_RESNET,
    # Han et al. 2017 (arXiv 1610.02915), section 4: SGD with Nesterov's momentum 0.9, batches of
    # 128, learning rate 0.1 on CIFAR-10, weight decay 0.0001, 300 epochs, crop and flip; the rate
    # is multiplied by 0.1 after 150 and 225 epochs.
    "pyramidnet-110-48": {
        "training": {
            "steps": 300 * _EPOCH,
            "batch_size": 128,
            "learning_rate": 0.1,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            **_drops([150, 225], 300, 0.1),
        },
        "augmentation": _CROP_AND_FLIP,
    },
}


def with_preset(name: Name, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration in which a preset fills in the missing values.

    The values of the configuration are kept, key by key. If the configuration names another
    schedule than the preset, it does not get the milestones and the decay of the preset's schedule.
    If it names another optimizer than SGD, it does not get the preset's learning rate and momentum,
    which are SGD's.

    Args:
        name: the preset, whose network has the same name.
        content: nested mappings: sections, and their values by key.
    """
    filled: dict[str, Any] = {**content}
    for section, values in {"model": {"name": name}, **PRESETS[name]}.items():
        given = content.get(section, {})
        # Anything else is a whole section already, or an error that the validation reports.
        if isinstance(given, Mapping):
            filled[section] = {**_fitting(section, values, given), **given}
    return filled


def _fitting(
    section: str, values: Mapping[str, Any], given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return the values of a preset that fit the given ones."""
    unfit: list[str] = []
    if section == "training":
        if given.get("schedule", values["schedule"]) != values["schedule"]:
            unfit += ["milestones", "decay"]
        if given.get("optimizer", "sgd") != "sgd":
            unfit += ["learning_rate", "momentum", "nesterov"]
    return {key: value for key, value in values.items() if key not in unfit}
