"""Augmentation: possible images and their frequencies, targets, and random draws."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taylorglo.data.augmentation import Augmentation
from taylorglo.loss.classic import CrossEntropy
from taylorglo.loss.functions import TaylorLoss
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
    seed: int = 0, num_classes: int = 10, fill: tuple[float, ...] = FILL, **changes: Any
) -> Augmentation:
    return Augmentation(AugmentationSettings(**changes), fill, num_classes, seed)


def batch(
    count: int = 8, channels: int = 3, height: int = 32, width: int = 32
) -> tuple[Tensor, Tensor]:
    """Return images of uint8 values above 0, as floats, and labels."""
    source = torch.Generator().manual_seed(count + 100 * height + 10_000 * width)
    pixels = torch.randint(1, 256, (count, channels, height, width), generator=source)
    return pixels.float().div_(255), torch.randint(10, (count,), generator=source)


def numbered(count: int, channels: int, height: int, width: int) -> Tensor:
    """Return images in which every pixel has another number, from 1."""
    numbers = torch.arange(1.0, 1 + count * channels * height * width)
    return numbers.view(count, channels, height, width)


def offset(image: Tensor, original: Tensor, padding: int) -> tuple[int, int]:
    """Return the position of an image in the padded original, by trying all positions."""
    height, width = original.shape[1:]
    padded = torch.zeros(original.shape[0], height + 2 * padding, width + 2 * padding)
    padded[:, padding : padding + height, padding : padding + width] = original
    (position,) = [
        (row, column)
        for row in range(2 * padding + 1)
        for column in range(2 * padding + 1)
        if torch.equal(image, padded[:, row : row + height, column : column + width])
    ]
    return position


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
    augment = augmentation(seed, fill=(0.5,) * channels, crop_padding=padding)
    cropped, targets = augment(images, labels)
    assert targets is labels
    assert cropped.shape == images.shape
    for image, original in zip(cropped, images, strict=True):
        offset(image, original, padding)


def test_every_window_is_as_likely_as_any_other() -> None:
    padding = 2
    count = 5000
    original = numbered(1, 1, 6, 7)
    augment = augmentation(3, fill=(0.5,), crop_padding=padding)
    cropped, _ = augment(original.expand(count, -1, -1, -1), torch.zeros(count))
    times = torch.zeros(5, 5)
    for image in cropped:
        times[offset(image, original[0], padding)] += 1
    # Pearson's statistic has 24 degrees of freedom: it is above 60 less than once in ten thousand
    # times.
    assert (times - count / 25).square().sum().item() / (count / 25) < 60


def test_half_of_the_images_are_mirrored() -> None:
    count = 4000
    images = numbered(count, 1, 2, 3)
    flipped, _ = augmentation(1, fill=(0.5,), flip=True)(images, torch.zeros(count))
    same = (flipped == images).all(dim=(1, 2, 3))
    mirrored = (flipped == images[:, :, :, [2, 1, 0]]).all(dim=(1, 2, 3))
    assert (same ^ mirrored).all()
    assert abs(mirrored.float().mean().item() - 0.5) < 4 * 0.5 / count**0.5


def holes(count: int, height: int, width: int, side: int) -> Tensor:
    """Return whether each pixel was blanked by Cutout, (count, height, width).

    Check that a pixel is blanked in all channels, and that other pixels are unchanged.
    """
    images, labels = batch(count, 3, height, width)
    # No pixel has the value of the fill now.
    images += 1
    cut, targets = augmentation(cutout=side)(images, labels)
    assert targets is labels
    fill = torch.tensor(FILL).view(3, 1, 1)
    blanked = (cut == fill).all(dim=1)
    assert torch.equal(cut, torch.where(blanked[:, None], fill, images))
    return blanked


def interval(flags: Tensor) -> tuple[int, int]:
    """Return the first set position and the one after the last set position."""
    positions = flags.nonzero().flatten()
    return int(positions[0]), int(positions[-1]) + 1


@pytest.mark.parametrize(
    ("height", "width", "side"), [(32, 32, 16), (12, 20, 5), (8, 8, 16), (7, 9, 1)]
)
def test_a_hole_is_a_square_as_far_as_the_image_goes(height: int, width: int, side: int) -> None:
    def possible(size: int) -> set[tuple[int, int]]:
        begins = [centre - side // 2 for centre in range(size)]
        return {(max(begin, 0), min(begin + side, size)) for begin in begins}

    rows = set()
    columns = set()
    for blanked in holes(600, height, width, side):
        row = interval(blanked.any(dim=1))
        column = interval(blanked.any(dim=0))
        # The hole has no gaps.
        assert blanked.sum() == (row[1] - row[0]) * (column[1] - column[0])
        rows.add(row)
        columns.add(column)
    assert rows == possible(height)
    assert columns == possible(width)


def test_the_centre_of_a_hole_is_uniform_over_the_pixels() -> None:
    areas = holes(4000, 32, 32, 16).sum(dim=(1, 2)).double()
    # A hole has 8 to 15 rows for the first eight centres, 15 to 9 for the last seven, and 16 for
    # those between; its columns follow the same rule.
    lengths = [*range(8, 16), *[16] * 17, *range(15, 8, -1)]
    assert len(lengths) == 32
    mean = (sum(lengths) / 32) ** 2
    square = (sum(length**2 for length in lengths) / 32) ** 2
    bound = 4 * ((square - mean**2) / len(areas)) ** 0.5
    assert areas.mean().item() == pytest.approx(mean, abs=bound)
    assert areas.min() == 64
    assert areas.max() == 256


def test_a_hole_is_cut_into_the_cropped_image() -> None:
    images, labels = batch(64)
    cut, _ = augmentation(crop_padding=4, flip=True, cutout=16)(images, labels)
    blanked = (cut == torch.tensor(FILL).view(3, 1, 1)).all(dim=1)
    # The border of the crop never covers the hole.
    assert (blanked.sum(dim=(1, 2)) >= 64).all()
    assert (cut == 0).any()


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
    # All pixels of an image have its number, and its class differs from that of the others.
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
    # The box is the same for all images whose partner is another image.
    box = foreign.any(dim=0)
    for pasted, image in zip(foreign, mixed, strict=True):
        assert torch.equal(pasted, box) or not pasted.any()
        assert image.unique().numel() <= 2
    rows = box.any(dim=1)
    columns = box.any(dim=0)
    assert torch.equal(box, rows[:, None] & columns)
    # Rows and columns of the box are intervals.
    assert rows.diff().sum() <= 2
    assert columns.diff().sum() <= 2
    if box.any():
        # The partners are a permutation: every image is pasted once.
        assert mixed[:, 0][:, box][:, 0].sort().values.tolist() == list(range(count))


def test_exact_shares_where_floating_point_allows_it() -> None:
    augment = augmentation(5, num_classes=2, cutmix=1.0)
    images = torch.stack([torch.zeros(3, 32, 32), torch.ones(3, 32, 32)])
    labels = torch.tensor([0, 1])
    for _ in range(50):
        mixed, targets = augment(images, labels)
        assert torch.equal(targets[:, 1], mixed[:, 0].mean(dim=(1, 2)))
        assert torch.equal(targets.sum(dim=1), torch.ones(2))


def test_the_box_has_a_share_from_beta_1_1_and_a_uniform_centre() -> None:
    side = 8
    batches = 4000
    images = torch.stack([torch.zeros(1, side, side), torch.ones(1, side, side)])
    labels = torch.tensor([0, 1])
    augment = augmentation(7, num_classes=2, fill=(0.5,), cutmix=1.0)
    shares = [augment(images, labels)[1][0, 1].item() for _ in range(batches)]
    # The side of the box is k = int(8 sqrt(U)) with probability ((k+1)^2 - k^2) / 64, and it is
    # 2 (k // 2) pixels long. In half of the batches the partner of an image is the image itself,
    # and nothing is mixed.
    mean = 0.0
    square = 0.0
    for k in range(side):
        half = k // 2
        lengths = [min(centre + half, side) - max(centre - half, 0) for centre in range(side)]
        probability = ((k + 1) ** 2 - k**2) / side**2
        mean += 0.5 * probability * (sum(lengths) / side / side) ** 2
        square += 0.5 * probability * (sum(n * n for n in lengths) / side / side**2) ** 2
    bound = 4 * ((square - mean**2) / batches) ** 0.5
    assert sum(shares) / batches == pytest.approx(mean, abs=bound)


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
    targets = [augment(images, labels)[1] for _ in range(30)]
    unmixed = [target for target in targets if not target.is_floating_point()]
    assert len(unmixed) > 5
    assert all(target is labels for target in unmixed)


def test_mixed_targets_go_through_the_losses_as_their_formulas_say() -> None:
    images, labels = batch(6)
    _, targets = augmentation(4, cutmix=1.0)(images, labels)
    assert ((targets > 0).sum(dim=1) == 2).any()
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(2))
    h = logits.double().softmax(dim=1)
    # The targets have the weights of two classes, and are 0 elsewhere.
    th = [0.1, 0.3, -2.0, 1.5, 0.7, -4.0, 2.5, 1.2]
    expected = torch.zeros(6, dtype=torch.float64)
    for sample in range(6):
        for k in range(10):
            v = targets[sample, k].item() - th[0]
            u = h[sample, k].item() - th[1]
            without_v = th[2] * u + th[3] * u**2 + th[4] * u**3
            with_v = th[5] * v * u + th[6] * v * u**2 + th[7] * v**2 * u
            expected[sample] -= without_v + with_v
    taylor = TaylorLoss(th).per_sample(logits, targets).double()
    torch.testing.assert_close(taylor, expected, rtol=1e-5, atol=1e-5)
    # Cross-entropy is linear in the target: the weighted mean of the losses of the two labels.
    weighted = (targets * -h.log()).sum(dim=1)
    cross_entropy = CrossEntropy().per_sample(logits, targets).double()
    torch.testing.assert_close(cross_entropy, weighted, rtol=1e-5, atol=1e-5)


def test_without_changes_the_batch_is_returned_and_nothing_is_drawn() -> None:
    images, labels = batch()
    augment = augmentation()
    state = augment._draws.get_state()
    unchanged, targets = augment(images, labels)
    assert unchanged is images
    assert targets is labels
    assert torch.equal(augment._draws.get_state(), state)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_the_seed_decides_and_nothing_else_does(changes: dict[str, Any]) -> None:
    images, labels = batch()

    def several(seed: int) -> list[tuple[Tensor, Tensor]]:
        augment = augmentation(seed, **changes)
        return [augment(images, labels) for _ in range(6)]

    torch.manual_seed(1)
    first = several(3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = several(3)
    other = several(4)
    # The global generator is left alone.
    assert torch.equal(torch.get_rng_state(), state)
    for (images_1, labels_1), (images_2, labels_2) in zip(first, again, strict=True):
        assert torch.equal(images_1, images_2)
        assert torch.equal(labels_1, labels_2)
    assert any(not torch.equal(one[0], two[0]) for one, two in zip(first, other, strict=True))
    assert any(not torch.equal(first[0][0], later[0]) for later in first[1:])


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_memory_format_is_kept_and_changes_no_value(
    changes: dict[str, Any], channels: int
) -> None:
    images, labels = batch(6, channels, 12, 10)
    last = images.contiguous(memory_format=torch.channels_last)
    before = images.clone()
    augment = augmentation(2, fill=FILL[:channels], **changes)
    augment_last = augmentation(2, fill=FILL[:channels], **changes)
    for _ in range(6):
        augmented, targets = augment(images, labels)
        augmented_last, targets_last = augment_last(last, labels)
        assert torch.equal(augmented, augmented_last)
        assert torch.equal(targets, targets_last)
        assert augmented.is_contiguous()
        assert augmented_last.is_contiguous(memory_format=torch.channels_last)
        # The images themselves are not changed.
        assert torch.equal(images, before)
        assert torch.equal(last, before)


def test_nothing_is_read_back_from_the_device() -> None:
    # Tensors of the meta device have no values, so that reading one raises an error.
    images, labels = batch()
    augment = augmentation(**{**EVERYTHING, "cutmix": 1.0})
    augmented, targets = augment(images.to("meta"), labels.to("meta"))
    assert augmented.is_meta
    assert targets.is_meta
    assert augmented.shape == images.shape
    assert targets.shape == (8, 10)


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_pixels_are_those_of_the_images_or_black_or_the_fill(changes: dict[str, Any]) -> None:
    images, labels = batch()
    allowed = torch.cat([images.flatten(), torch.tensor([0.0, *FILL])])
    augment = augmentation(6, **changes)
    for _ in range(4):
        assert torch.isin(augment(images, labels)[0], allowed).all()
