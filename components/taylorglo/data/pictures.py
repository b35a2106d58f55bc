"""One picture of a folder: read as 8-bit RGB if the conversion is defined, and refused otherwise.

Pillow's own conversion to RGB never fails: it clips 16-bit gray levels at 255, takes floating-point
levels for black, and drops transparency and further channels.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from taylorglo.errors import InputError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

TURNED = "turned upright by their EXIF orientation"
NARROWED = "scaled from 16 to 8 bits"
FIRST = "the first of the pictures in their file (MPO)"

# A file with one of these suffixes has to be a picture. Files with other suffixes are pictures if
# their content is.
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
# No other format is looked for: one of Pillow's readers calls another program, and others are built
# on some machines only.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA"))
_REFUSED = {
    "F": "floating-point numbers, for which no white is defined",
    "CMYK": "the inks of print (CMYK), which become RGB through a colour profile only",
}
_ORIENTATION = 274  # the tag of EXIF
_PNG_DEPTH = 24  # the place in the file of the byte that says how many bits a channel has
# Tags of TIFF, with the values that are expected.
_BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 339
_BLACK_IS_ZERO = 1
_UNSIGNED = frozenset((1, 4))  # 4 is "undefined", which is read as unsigned
_OPAQUE = 255
_WIDE = 257  # levels of 16 bits in a level of 8 bits: 65535 is 255


class Picture(NamedTuple):
    """A picture that was read.

    Attributes:
        pixels: uint8 of shape (3, H, W).
        conversions: what was done to it that a person should know.
        largest: the largest level of a 16-bit picture; None for any other.
    """

    pixels: Tensor
    conversions: tuple[str, ...]
    largest: int | None


def read_picture(path: Path) -> Picture | None:
    """Read a picture, or return None if the file is none and its suffix does not say it is.

    Raises:
        InputError: the picture is damaged, or there is no one right way to make it 8-bit RGB.
    """
    try:
        # Pillow is given an open file. From a path it would map plain TIFF files to memory, and
        # scramble those that their orientation turns by 90 degrees.
        with path.open("rb") as file:
            image = _opened(file, path)
            return None if image is None else _read(image, file, path)
    except (InputError, MemoryError):
        raise
    # Pillow's readers raise errors of many kinds if a file is damaged.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        raise InputError(f"{path}: damaged or not an image: {_reason(error)}") from error


def is_picture(path: Path) -> bool:
    """Return whether a file is a picture, by its suffix or by its content."""
    if not path.is_file():
        return False
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            return _opened(file, path) is not None
    except OSError:
        return False


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return f"should be a whole file of {', '.join(_FORMATS)}, gray or RGB, of 8 or 16 bits"
    return one_line(error)


def _opened(file: BinaryIO, path: Path) -> "ImageFile | None":
    """Return the picture in a file; None if there is none and the suffix does not say so."""
    from PIL import Image

    try:
        return Image.open(file, formats=_FORMATS)
    except Exception:
        # The first bytes of any file may be those of a picture by chance.
        if path.suffix.lower() in SUFFIXES:
            raise
        return None


def _read(image: "ImageFile", file: BinaryIO, path: Path) -> Picture:
    from PIL import ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    _check_frames(image, path)
    if image.format == "TIFF":
        _check_tiff(image, path)
    if image.format == "PNG":
        _check_png(file, image, path)
    turned = image.getexif().get(_ORIENTATION) in range(2, 9)
    image.load()
    levels = _wide_levels(image, path)
    flat: Image = image if levels is None else _narrowed(levels, image)
    ImageOps.exif_transpose(flat, in_place=True)
    flat = _opaque(flat, path)
    done = {
        NARROWED: levels is not None,
        TURNED: turned,
        FIRST: getattr(image, "n_frames", 1) > 1,
    }
    return Picture(
        pixels=pil_to_tensor(flat.convert("RGB")),
        conversions=tuple(name for name, was_done in done.items() if was_done),
        largest=None if levels is None else int(levels.max()),
    )


def _check_frames(image: "ImageFile", path: Path) -> None:
    """Refuse a file of several pictures, except for a camera's, whose first one is the picture."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise InputError(
            f"{path}: has {frames} pictures (pages, or frames of an animation): should have one; "
            "save each as a file of its own"
        )


def _check_tiff(image: Any, path: Path) -> None:
    """Refuse levels that Pillow reads as others than they are, and channels that it drops."""
    tags = image.tag_v2
    bits, formats = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    samples, bands = tags.get(_SAMPLES, 1), len(image.getbands())
    kind = "integers" if formats <= _UNSIGNED else "signed or floating-point numbers"
    is_wide_gray = bits == {16} and samples == 1 and tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO
    if not formats <= _UNSIGNED or (max(bits) > 8 and not is_wide_gray):
        raise InputError(
            f"{path}: its levels are {kind} of {max(bits)} bits: should be unsigned integers of 8 "
            "bits; or of 16 bits, if it is gray and 0 is black"
        )
    if samples != bands:
        raise InputError(
            f"{path}: has {samples} channels, of which only {bands} can be read: should be gray or "
            "RGB; for more channels use a .safetensors file"
        )


def _check_png(file: BinaryIO, image: "Image", path: Path) -> None:
    """Refuse colours of 16 bits, which Pillow cuts to 8."""
    file.seek(_PNG_DEPTH)
    if file.read(1) == b"\x10" and not image.mode.startswith("I"):
        raise InputError(
            f"{path}: its colours have 16 bits, which cannot be read: should have 8 bits; or 16, "
            "if it is gray without transparency"
        )


def _wide_levels(image: "ImageFile", path: Path) -> NDArray[np.int64] | None:
    """Return the levels of a 16-bit gray picture, in 0..65535; None for any other."""
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format != "TIFF"):
        return None
    if "transparency" in image.info:
        raise _transparent(path)
    return np.asarray(image).astype(np.int64)


def _narrowed(levels: NDArray[np.int64], image: "ImageFile") -> "Image":
    """Return 16-bit levels as a picture of 8 bits, with the orientation of the original."""
    from PIL import Image

    narrow = Image.fromarray(((levels + _WIDE // 2) // _WIDE).astype(np.uint8))
    narrow.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return narrow


def _opaque(image: "Image", path: Path) -> "Image":
    """Return a picture without its transparency, of which it makes no use.

    Raises:
        InputError: a pixel is transparent, or the colours have no one right value in RGB.
    """
    if image.mode not in _MODES:
        kind = _REFUSED.get(image.mode, f"of the kind {image.mode}")
        raise InputError(
            f"{path}: its levels are {kind}: should be gray or RGB, of 8 or 16 bits; convert it"
        )
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    least, _ = image.getchannel("A").getextrema()
    if least != _OPAQUE:
        raise _transparent(path)
    return image


def _transparent(path: Path) -> InputError:
    return InputError(
        f"{path}: has transparent pixels, whose colour depends on a background: should be opaque; "
        "put it on a background that its shapes differ from"
    )
