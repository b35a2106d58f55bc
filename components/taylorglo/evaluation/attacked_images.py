"""What attacks found image by image: as a table in a file, and as pictures of a few examples."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from taylorglo.attacks import Withstood
from taylorglo.attacks.contract import evaluating, named
from taylorglo.extras import missing
from taylorglo.files import replacing
from taylorglo.results import AttackedImage, Example

if TYPE_CHECKING:
    from pyarrow import Table

_MOST_EXAMPLES = 4
_LARGEST_PICTURE = 48  # pixels a side, so that a report stays small
_MAGNIFIED = 10


def found_for(
    result: Withstood, places: Tensor, labels: Tensor, epsilons: Sequence[float]
) -> list[AttackedImage]:
    """Return what attacks found for each image.

    Args:
        result: of the attacks.
        places: of the images in the test split, (N,).
        labels: of the images, (N,).
        epsilons: the radii of the attacks.
    """
    # A size of 32 bits may be above its own epsilon of 64, and would seem to be out of the ball.
    exact = {torch.tensor(epsilon, dtype=torch.float32).item(): epsilon for epsilon in epsilons}
    columns = (places, labels, result.predicted, result.distances)
    rows = zip(*(column.tolist() for column in columns), result.by, strict=True)
    return [
        AttackedImage(place, label, predicted, exact.get(size, size) if by else None, by)
        for place, label, predicted, size, by in rows
    ]


class NetworkImages(NamedTuple):
    """The images that a network was attacked on.

    Attributes:
        loss: that the network was trained with.
        seed: of its training; None if it is not known.
        images: what was found for each image.
    """

    loss: str
    seed: int | None
    images: Sequence[AttackedImage]


def table_of(
    networks: Iterable[NetworkImages], *, sweep: str, epsilon: float, norm: str, unit: str
) -> "Table":
    """Return the results by image as a table with a row for each network and image.

    Args:
        networks: what was found for the images of each network.
        sweep: its name; empty without one.
        epsilon: the largest radius of the attacks.
        norm: of the perturbations, "linf" or "l2".
        unit: of the perturbations, in words.

    Returns:
        The columns are ``sweep``, ``loss``, ``seed``, ``image`` (the place in the test split, from
        0), ``label``, ``predicted`` (without an attack), ``perturbation`` (the smallest one found;
        null if none was), ``norm``, ``unit``, ``attack`` (that found it; null if none did) and
        ``withstood``: whether the image counts as right under the worst of all attacks at the
        largest epsilon.
    """
    try:
        import pyarrow as pa
    except ModuleNotFoundError as error:
        raise missing("a table of attacked images", error) from error
    schema = pa.schema(
        [
            ("sweep", pa.string()),
            ("loss", pa.string()),
            ("seed", pa.int64()),
            ("image", pa.int64()),
            ("label", pa.int64()),
            ("predicted", pa.int64()),
            ("perturbation", pa.float64()),
            ("norm", pa.string()),
            ("unit", pa.string()),
            ("attack", pa.string()),
            ("withstood", pa.bool_()),
        ]
    )
    rows = [
        {
            "sweep": sweep,
            "loss": network.loss,
            "seed": network.seed,
            **image._asdict(),
            "norm": norm,
            "unit": unit,
            "attack": image.attack or None,
            "withstood": image.withstands(epsilon),
        }
        for network in networks
        for image in network.images
    ]
    return pa.Table.from_pylist(rows, schema=schema)


def write_parquet(table: "Table", path: Path) -> None:
    """Write a table as a Parquet file.

    Raises:
        OSError: the file cannot be written.
    """
    from pyarrow import parquet

    with replacing(path) as file:
        parquet.write_table(table, file)


def examples_of(
    network: nn.Module, images: Tensor, result: Withstood, found: Sequence[AttackedImage]
) -> list[Example]:
    """Return pictures of a few images before and after the attacks: the first of some classes.

    Args:
        network: that was attacked.
        images: that were attacked, (N, C, H, W), in [0, 1].
        result: of the attacks.
        found: the same, image by image.
    """
    first: dict[int, int] = {}
    for number, image in enumerate(found):
        first.setdefault(image.label, number)
    chosen = sorted(first.values())[:_MOST_EXAMPLES]
    clean, attacked = images[chosen], result.nearest[chosen]
    with torch.no_grad(), evaluating(network):
        taken = named(network(attacked)).tolist()
    change = (0.5 + _MAGNIFIED * (attacked - clean)).clamp(0, 1)
    pictures = zip(*map(_pictures, (clean, change, attacked)), strict=True)
    return [
        Example(found=found[number], taken_for=name, clean=a, change=b, attacked=c)
        for number, name, (a, b, c) in zip(chosen, taken, pictures, strict=True)
    ]


def _pictures(images: Tensor) -> list[str]:
    """Return images (N, C, H, W) as small PNGs in Base64."""
    from PIL import Image

    side = max(images.shape[2:])
    if side > _LARGEST_PICTURE:
        height, width = (max(1, _LARGEST_PICTURE * n // side) for n in images.shape[2:])
        images = functional.adaptive_avg_pool2d(images, (height, width))
    # Other numbers of channels than one and three have no colours.
    if images.shape[1] != 3:
        images = images.mean(dim=1, keepdim=True)
    texts = []
    for pixels in (255 * images).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        buffer = io.BytesIO()
        picture = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
        picture.save(buffer, "PNG", optimize=True)
        texts.append(base64.b64encode(buffer.getvalue()).decode())
    return texts
