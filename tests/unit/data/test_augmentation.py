"""Augmentation: what may come out of an image, how often, with which targets, and from which
draws."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taylorglo.data.augmentation import Augmentation
from taylorglo.loss.functions import CrossEntropy, TaylorLoss
from taylorglo.settings import AugmentationSettings

FILL = (0.25, 0.5, 0.75)
EVERYTHING = {"crop_padding": 4, "flip": True, "cutout": 16, "cutmix": 0.5}
CASES = [
    {"crop_padding": 4},
    {"flip": True},
    {"cutout": 16},
    {"cutmix": 1.0},
    {"crop_padding": 4, "flip": True},
    EVERYTHING,
]


def augmentation(
    seed: int = 0, num_classes: int = 10, fill: tuple[float, ...] = FILL, **own: Any
) -> Augmentation:
    return Augmentation(AugmentationSettings(**own), fill, num_classes, seed)


def batch(
    count: int = 8, channels: int = 3, height: int = 32, width: int = 32
) -> tuple[Tensor, Tensor]:
    """Images of uint8 values above 0, as floats, and labels."""
    source = torch.Generator().manual_seed(count + 100 * height + 10_000 * width)
    images = (
        torch.randint(1, 256, (count, channels, height, width), generator=source).float().div_(255)
    )
    return images, torch.randint(10, (count,), generator=source)


def numbered(count: int, channels: int, height: int, width: int) -> Tensor:
    """Images in which every pixel has a number of its own, from 1."""
    return torch.arange(1.0, 1 + count * channels * height * width).view(
        count, channels, height, width
    )


# Crop and flip


def offset(image: Tensor, original: Tensor, padding: int) -> tuple[int, int]:
    """Which window of the padded original an image is, by trying them all."""
    height, width = original.shape[1:]
    padded = torch.zeros(original.shape[0], height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = original
    (found,) = [
        (row, column)
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
        if torch.equal(image, padded[:, row : row + height, column : column + width])
    ]
    return found


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    padding=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_a_crop_is_a_window_of_the_padded_image(
    count: int, channels: int, height: int, width: int, padding: int, seed: int
) -> None:
    images = numbered(count, channels, height, width)
    labels = torch.zeros(count, dtype=torch.int64)
    found, unchanged = augmentation(seed, fill=(0.5,) * channels, crop_padding=padding)(
        images, labels
    )
    assert unchanged is labels
    assert found.shape == images.shape
    for image, original in zip(found, images, strict=True):
        offset(image, original, padding)


def test_every_window_is_as_likely_as_any_other() -> None:
    padding, count = 2, 5000
    original = numbered(1, 1, 6, 7)
    found, _ = augmentation(3, fill=(0.5,), crop_padding=padding)(
        original.expand(count, -1, -1, -1), torch.zeros(count)
    )
    times = torch.zeros(5, 5)
    for image in found:
        times[offset(image, original[0], padding)] += 1
    # Pearson's statistic has 24 degrees of freedom: 60 is beyond one in ten thousand
    assert (times - count / 25).square().sum().item() / (count / 25) < 60


def test_half_of_the_images_are_mirrored() -> None:
    count = 4000
    images = numbered(count, 1, 2, 3)
    found, _ = augmentation(1, fill=(0.5,), flip=True)(images, torch.zeros(count))
    same = (found == images).all(dim=(1, 2, 3))
    mirrored = (found == images[:, :, :, [2, 1, 0]]).all(dim=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean().item() - 0.5) < 4 * 0.5 / count**0.5


# Cutout


def cut(count: int, height: int, width: int, side: int, seed: int = 0) -> Tensor:
    """Where an image was blanked, (count, height, width); all channels are alike, and the other
    pixels as they were."""
    images, labels = batch(count, 3, height, width)
    images += 1  # so that no pixel has the value of the fill
    found, unchanged = augmentation(seed, cutout=side)(images, labels)
    assert unchanged is labels
    blanked = (found == torch.tensor(FILL).view(3, 1, 1)).all(dim=1)
    assert torch.equal(
        found, torch.where(blanked[:, None], torch.tensor(FILL).view(3, 1, 1), images)
    )
    return blanked


@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 16), (12, 20, 5), (8, 8, 16), (7, 9, 1)]
)
def test_a_hole_is_a_square_as_far_as_the_image_goes(height: int, width: int, side: int) -> None:
    possible = (
        {
            (max(row - side // 2, 0), min(row - side // 2 + side, height)): 0
            for row in range(height)
        },
        {
            (max(column - side // 2, 0), min(column - side // 2 + side, width)): 0
            for column in range(width)
        },
    )
    for blanked in cut(600, height, width, side):
        rows, columns = (
            blanked.any(dim=1).nonzero().flatten(),
            blanked.any(dim=0).nonzero().flatten(),
        )
        box = (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)
        assert blanked.sum() == (box[0][1] - box[0][0]) * (box[1][1] - box[1][0])  # it has no gaps
        for times, interval in zip(possible, box, strict=True):
            times[interval] += 1  # a KeyError for one that no centre gives
    assert all(times for each in possible for times in each.values())


def test_the_centre_of_a_hole_is_uniform_over_the_pixels() -> None:
    areas = cut(4000, 32, 32, 16).sum(dim=(1, 2)).double()
    # Its rows: 8 to 15 for the first eight centres, 16 for those between, 15 to 9 for the last
    # seven; columns likewise
    lengths = [*range(8, 16), *[16] * 17, *range(15, 8, -1)]
    assert len(lengths) == 32
    mean = (sum(lengths) / 32) ** 2
    square = (sum(length**2 for length in lengths) / 32) ** 2
    assert areas.mean().item() == pytest.approx(
        mean, abs=4 * ((square - mean**2) / len(areas)) ** 0.5
    )
    assert areas.min() == 64
    assert areas.max() == 256


def test_a_hole_is_cut_into_what_was_cropped() -> None:
    images, labels = batch(64)
    found, _ = augmentation(crop_padding=4, flip=True, cutout=16)(images, labels)
    blanked = (found == torch.tensor(FILL).view(3, 1, 1)).all(dim=1)
    assert (blanked.sum(dim=(1, 2)) >= 64).all()  # never covered by the border of the crop
    assert (found == 0).any()


# CutMix


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    count=st.integers(1, 9),
    height=st.integers(1, 33),
    width=st.integers(1, 33),
    seed=st.integers(0, 2**31 - 1),
)
def test_the_weights_of_mixed_targets_are_the_shares_of_the_pixels(
    count: int, height: int, width: int, seed: int
) -> None:
    # Each image is of one value, its number, and of a class of its own.
    images = torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, height, width)
    labels = torch.arange(count).flip(0)
    mixed, targets = augmentation(seed, num_classes=count, cutmix=1.0)(images, labels)
    assert targets.dtype == torch.float32
    assert targets.shape == (count, count)
    assert torch.allclose(targets.sum(dim=1), torch.ones(count), rtol=0, atol=1e-6)
    for k in range(count):
        share = (mixed[:, 0] == k).sum(dim=(1, 2)) / (height * width)
        assert torch.allclose(targets[:, count - 1 - k], share, rtol=0, atol=1e-7)
    assert torch.equal(mixed, mixed[:, :1].expand_as(mixed))
    foreign = mixed[:, 0] != images[:, 0]
    pasted = foreign.any(
        dim=0
    )  # the box is the same for all that have another partner than themselves
    for image, own in zip(foreign, mixed, strict=True):
        assert torch.equal(image, pasted) or not image.any()
        assert own.unique().numel() <= 2
    rows, columns = pasted.any(dim=1), pasted.any(dim=0)
    assert torch.equal(pasted, rows[:, None] & columns)
    assert rows.diff().sum() <= 2  # an interval
    assert columns.diff().sum() <= 2
    if pasted.any():  # a permutation: every image is pasted once
        assert mixed[:, 0][:, pasted][:, 0].sort().values.tolist() == list(range(count))


def test_exact_shares_where_floating_point_allows_it() -> None:
    augment = augmentation(5, num_classes=2, cutmix=1.0)
    images, labels = (
        torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)]),
        torch.tensor([0, 1]),
    )
    for _ in range(50):
        mixed, targets = augment(images, labels)
        assert torch.equal(targets[:, 1], mixed[:, 0].mean(dim=(1, 2)))
        assert torch.equal(targets.sum(dim=1), torch.ones(2))


def test_the_box_has_a_share_from_beta_1_1_and_a_uniform_centre() -> None:
    side, batches = 8, 4000
    images, labels = (
        torch.stack([torch.zeros(1, side, side), torch.ones(1, side, side)]),
        torch.tensor([0, 1]),
    )
    augment = augmentation(7, num_classes=2, fill=(0.5,), cutmix=1.0)
    shares = [
        targets[0, 1].item() for _, targets in (augment(images, labels) for _ in range(batches))
    ]
    # The box's side is k = int(8 sqrt(U)), with probability ((k+1)^2 - k^2) / 64, and 2 (k // 2)
    # pixels long. In half of the batches an image's partner is itself, and nothing is mixed.
    mean = square = 0.0
    for k in range(side):
        half = k // 2
        lengths = [min(centre + half, side) - max(centre - half, 0) for centre in range(side)]
        probability = ((k + 1) ** 2 - k**2) / side**2
        mean += 0.5 * probability * (sum(lengths) / side / side) ** 2
        square += 0.5 * probability * (sum(n * n for n in lengths) / side / side**2) ** 2
    assert sum(shares) / batches == pytest.approx(
        mean, abs=4 * ((square - mean**2) / batches) ** 0.5
    )


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_a_batch_is_mixed_with_the_probability_given(probability: float) -> None:
    images, labels = batch(2, 1, 2, 2)
    augment = augmentation(11, fill=(0.5,), cutmix=probability)
    mixed = [augment(images, labels)[1].is_floating_point() for _ in range(1500)]
    deviation = math.sqrt(probability * (1 - probability) / len(mixed))
    assert abs(sum(mixed) / len(mixed) - probability) <= 4 * deviation


def test_a_batch_that_is_not_mixed_keeps_its_labels() -> None:
    images, labels = batch()
    augment = augmentation(cutmix=0.5, flip=True)
    unmixed = [
        found
        for _, found in (augment(images, labels) for _ in range(30))
        if not found.is_floating_point()
    ]
    assert len(unmixed) > 5
    assert all(found is labels for found in unmixed)


def test_mixed_targets_go_through_the_losses_as_their_formulas_say() -> None:
    images, labels = batch(6)
    _, targets = augmentation(4, cutmix=1.0)(images, labels)
    assert ((targets > 0).sum(dim=1) == 2).any()
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    h = logits.double().softmax(dim=1)
    # The two classes and their weights, read from the targets; t is 0 elsewhere.
    th = [0.1, 0.3, -2.0, 1.5, 0.7, -4.0, 2.5, 1.2]
    expected = torch.zeros(6, dtype=torch.float64)
    for sample in range(6):
        for k in range(10):
            t, u = targets[sample, k].item() - th[0], h[sample, k].item() - th[1]
            f = (
                th[2] * u
                + th[3] * u**2
                + th[4] * u**3
                + th[5] * t * u
                + th[6] * t * u**2
                + th[7] * t**2 * u
            )
            expected[sample] -= f
    torch.testing.assert_close(
        TaylorLoss(th).per_sample(logits, targets).double(), expected, rtol=1e-5, atol=1e-5
    )
    # Cross-entropy is linear in the target: the mean of the losses of the two labels, weighted.
    by_class = -h.log()
    torch.testing.assert_close(
        CrossEntropy().per_sample(logits, targets).double(),
        (targets * by_class).sum(dim=1),
        rtol=1e-5,
        atol=1e-5,
    )


# Draws, devices, formats


def test_what_is_not_configured_is_returned_untouched_and_draws_nothing() -> None:
    images, labels = batch()
    augment = augmentation()
    before = augment._draws.get_state()
    found, unchanged = augment(images, labels)
    assert found is images
    assert unchanged is labels
    assert torch.equal(augment._draws.get_state(), before)


@pytest.mark.parametrize("own", CASES, ids=str)
def test_the_seed_decides_and_nothing_else_does(own: dict[str, Any]) -> None:
    images, labels = batch()

    def several(seed: int) -> list[tuple[Tensor, Tensor]]:
        augment = augmentation(seed, **own)
        return [augment(images, labels) for _ in range(6)]

    torch.manual_seed(1)
    first = several(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = several(3), several(4)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
    for (images_1, labels_1), (images_2, labels_2) in zip(first, again, strict=True):
        assert torch.equal(images_1, images_2)
        assert torch.equal(labels_1, labels_2)
    assert any(not torch.equal(one[0], two[0]) for one, two in zip(first, other, strict=True))
    assert any(
        not torch.equal(one[0], two[0]) for one, two in zip(first[:1] * 5, first[1:], strict=True)
    )


@pytest.mark.parametrize("own", CASES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_memory_format_is_kept_and_changes_no_value(own: dict[str, Any], channels: int) -> None:
    images, labels = batch(6, channels, 12, 10)
    last = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    one, two = (augmentation(2, fill=FILL[:channels], **own) for _ in range(2))
    for _ in range(6):
        found, targets = one(images, labels)
        found_last, targets_last = two(last, labels)
        assert torch.equal(found, found_last)
        assert torch.equal(targets, targets_last)
        assert found.is_contiguous()
        assert found_last.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, before)  # what was given is left as it was
        assert torch.equal(last, before)


def test_nothing_is_read_back_from_the_device() -> None:
    # Tensors of the meta device have no values: whatever asks for one raises.
    images, labels = batch()
    augment = augmentation(**{**EVERYTHING, "cutmix": 1.0})
    found, targets = augment(images.to("meta"), labels.to("meta"))
    assert found.is_meta
    assert targets.is_meta
    assert found.shape == images.shape
    assert targets.shape == (8, 10)


@pytest.mark.parametrize("own", CASES, ids=str)
def test_pixels_are_those_of_the_images_or_black_or_the_fill(own: dict[str, Any]) -> None:
    images, labels = batch()
    allowed = torch.cat([images.flatten(), torch.tensor([0.0, *FILL])])
    augment = augmentation(6, **own)
    for _ in range(4):
        assert torch.isin(augment(images, labels)[0], allowed).all()
