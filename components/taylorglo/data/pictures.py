"""One picture of a file: read with 8 bits if the conversion is defined, and refused otherwise.

Pillow's own conversion to RGB never fails: it clips 16-bit gray levels at 255, takes floating-point
levels for black, and drops transparency and further channels.
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from taylorglo.data.splits import Split
from taylorglo.errors import InputError, one_line
from taylorglo.settings import DataSettings

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

TURNED = "turned upright by their EXIF orientation"
NARROWED = "scaled from 16 to 8 bits"
SCALED = "scaled from floating point, 0 to 1, to 8 bits"
LAID = "laid on white, because they have transparent pixels"
FIRST = "the first of the pictures in their file (MPO)"

# A file with one of these suffixes has to be a picture. Files with other suffixes are pictures if
# their content is.
SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
# No other format is looked for: one of Pillow's readers calls another program, and others are built
# on some machines only.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_EXPECTED = f"a whole file of {', '.join(_FORMATS)}, gray or RGB, of 8 or 16 bits"
_MODES = frozenset(("1", "L", "LA", "P", "PA", "RGB", "RGBA"))
_REFUSED = {"CMYK": "the inks of print (CMYK), which become RGB through a colour profile only"}
_ORIENTATION = 274  # the tag of EXIF
_PNG_DEPTH = 24  # the place in the file of the byte that says how many bits a channel has
# Tags of TIFF, with the values that are expected.
_BITS, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 258, 262, 277, 339
_BLACK_IS_ZERO, _RGB = 1, 2
_UNSIGNED = frozenset((1, 4))  # 4 is "undefined", which is read as unsigned
_FLOATS = frozenset((3,))
_OPAQUE = 255
_WIDE = 257  # levels of 16 bits in a level of 8 bits: 65535 is 255
_WHITE = 65535
_AS_THEY_ARE = DataSettings()


class Picture(NamedTuple):
    """A picture that was read.

    Attributes:
        pixels: uint8 of shape (3, H, W), or (1, H, W) if ``data.color`` is ``gray``.
        conversions: what was done to it that a person should know.
        largest: the largest level of a 16-bit picture; None for any other.
    """

    pixels: Tensor
    conversions: tuple[str, ...]
    largest: int | None


class Stack:
    """Pictures of one size, which become the images of a split.

    Attributes:
        largest: the largest level of its 16-bit pictures; None if it has none.
    """

    def __init__(self) -> None:
        self.largest: int | None = None
        self._images: list[Tensor] = []
        self._first: object = None

    def add(self, picture: Picture, place: object) -> None:
        """Take in a picture from a place.

        Raises:
            InputError: it has another size than the pictures before it.
        """
        if self._images and picture.pixels.shape != self._images[0].shape:
            raise InputError(
                f"{place}: is {_size(picture.pixels)}, but {self._first} is "
                f"{_size(self._images[0])}: all images should be of one size; set data.image_size "
                "to resize them"
            )
        self._first = self._first or place
        self._images.append(picture.pixels)
        if picture.largest is not None:
            self.largest = max(picture.largest, self.largest or 0)

    def images(self, place: object) -> Tensor:
        """Return all pictures, uint8 (N, C, H, W).

        Raises:
            InputError: levels of 8 bits were written into files of 16 bits as they were.
        """
        if self.largest and self.largest < 256:
            raise InputError(
                f"{place}: no level of its 16-bit images is above {self.largest}, though white is "
                "65535: should be saved with 8 bits, or scaled to 16"
            )
        return torch.stack(self._images)


def said_of(conversions: Mapping[str, int], largest: int | None) -> str:
    """Return what was done to pictures, with its numbers, as a remark."""
    done = [f"images {name}: {number}" for name, number in sorted(conversions.items())]
    if largest is not None:
        done.append(f"largest level of 16 bits: {largest} of 65535")
    return "; ".join(done)


def in_gray(splits: Mapping[str, Split]) -> dict[str, Split]:
    """Return RGB images with one channel if all of them are gray, and else as they are."""
    if not all(bool((split.images == split.images[:, :1]).all()) for split in splits.values()):
        return dict(splits)
    return {
        name: Split(split.images[:, :1].contiguous(), split.labels)
        for name, split in splits.items()
    }


def _size(image: Tensor) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"


def read_picture(path: Path, settings: DataSettings = _AS_THEY_ARE) -> Picture | None:
    """Read a picture, or return None if the file is none and its suffix does not say it is.

    Args:
        path: of the file.
        settings: size and colours to read it with.

    Raises:
        InputError: the picture is damaged, or there is no one right way to make it 8-bit RGB.
    """
    try:
        # Pillow is given an open file. From a path it would map plain TIFF files to memory, and
        # scramble those that their orientation turns by 90 degrees.
        with path.open("rb") as file:
            return _picture(file, path, settings)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def picture_in(content: bytes, place: str, settings: DataSettings = _AS_THEY_ARE) -> Picture:
    """Read the picture that bytes are.

    Args:
        content: of a file of a picture.
        place: where it is, for an error.
        settings: size and colours to read it with.

    Raises:
        InputError: the bytes are no picture, or as for :func:`read_picture`.
    """
    picture = _picture(BytesIO(content), Path(place), settings)
    if picture is None:
        raise InputError(f"{place}: should be {_EXPECTED}")
    return picture


def _picture(file: BinaryIO, path: Path, settings: DataSettings) -> Picture | None:
    try:
        image = _opened(file, path)
        return None if image is None else _read(image, file, path, settings)
    except (InputError, MemoryError):
        raise
    # Pillow's readers raise errors of many kinds if a file is damaged.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
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
        return f"should be {_EXPECTED}"
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


def _read(image: "ImageFile", file: BinaryIO, path: Path, settings: DataSettings) -> Picture:
    from PIL import ImageOps
    from torchvision.transforms.functional import pil_to_tensor

    _check_frames(image, path)
    if image.format == "TIFF":
        _check_tiff(image, path)
    turned = image.getexif().get(_ORIENTATION) in range(2, 9)
    wide = _wide_levels(image)
    cut = _has_wide_colours(image, file, path)
    flat: Image = image
    laid = False
    if wide is not None:
        # Such a picture names the level of its transparent pixels.
        hidden = wide == image.info.get("transparency", -1)
        laid = bool(hidden.any())
        wide[hidden] = _WHITE
        flat = _narrowed((wide + _WIDE // 2) // _WIDE, image)
    elif image.mode == "F":
        flat = _narrowed(_levels_of_floats(image, path), image)
    else:
        image.load()
    ImageOps.exif_transpose(flat, in_place=True)
    flat, has_alpha = _opaque(flat, path)
    size, resized = _resized(flat.convert("RGB"), settings)
    done = {
        NARROWED: wide is not None or cut,
        SCALED: image.mode == "F",
        TURNED: turned,
        FIRST: getattr(image, "n_frames", 1) > 1,
        LAID: laid or has_alpha,
        resized: bool(resized),
    }
    return Picture(
        pixels=pil_to_tensor(size.convert("L") if settings.color == "gray" else size),
        conversions=tuple(name for name, was_done in done.items() if was_done),
        largest=None if wide is None else int(wide.max()),
    )


def _resized(image: "Image", settings: DataSettings) -> tuple["Image", str]:
    """Return an image in the configured size, and what was done to it, if anything was."""
    from PIL import Image

    side = settings.image_size
    if not side or image.size == (side, side):
        return image, ""
    method = Image.Resampling[settings.interpolation.upper()]
    cut = "" if image.width == image.height else "cut to a square and "
    size = min(image.size)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    square = image.crop((left, top, left + size, top + size))
    said = f"{cut}resized to {side}x{side}, {settings.interpolation}"
    return square.resize((side, side), method), said


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
    is_gray = samples == 1 and tags.get(_PHOTOMETRIC) == _BLACK_IS_ZERO
    is_colour = tags.get(_PHOTOMETRIC) == _RGB
    defined = formats <= _UNSIGNED and (max(bits) <= 8 or (bits == {16} and (is_gray or is_colour)))
    if not defined and not (formats == _FLOATS and is_gray):
        raise InputError(
            f"{path}: its levels are {kind} of {max(bits)} bits: should be unsigned integers of 8 "
            "or 16 bits; or floating-point numbers from 0 to 1, if it is gray; and 0 should be "
            "black"
        )
    if samples != bands:
        raise InputError(
            f"{path}: has {samples} channels, of which only {bands} can be read: should be gray or "
            "RGB; for more channels use a .safetensors file"
        )


def _wide_levels(image: "ImageFile") -> NDArray[np.int64] | None:
    """Return the levels of a 16-bit gray picture, in 0..65535; None for any other."""
    if not image.mode.startswith("I;16") and not (image.mode == "I" and image.format != "TIFF"):
        return None
    return np.asarray(image).astype(np.int64)


def _has_wide_colours(image: Any, file: BinaryIO, path: Path) -> bool:
    """Return whether a picture has colours of 16 bits, of which Pillow reads the upper 8.

    These are the right levels: 65535 is 255, and each of the 256 levels stands for 256 of them.
    """
    if image.format == "TIFF":
        return bool(max(image.tag_v2.get(_BITS, (1,))) == 16 and image.mode in _MODES)
    if image.format != "PNG" or image.mode.startswith("I"):
        return False
    place = file.tell()
    file.seek(_PNG_DEPTH)
    is_wide = file.read(1) == b"\x10"
    file.seek(place)
    if is_wide and "transparency" in image.info:
        raise InputError(
            f"{path}: names a colour of 16 bits that is transparent: should have an alpha channel, "
            "or 8 bits"
        )
    return is_wide


def _levels_of_floats(image: "Image", path: Path) -> NDArray[np.int64]:
    """Return the levels of 8 bits of a picture of floats, of which 0 is black and 1 is white."""
    levels = np.asarray(image).astype(np.float64)
    least, most = levels.min(), levels.max()
    # Written so that NaN fails too.
    if not (least >= 0 and most <= 1):
        raise InputError(
            f"{path}: its levels are floating-point numbers from {least:g} to {most:g}: should be "
            "finite, with 0 for black and 1 for white; scale them, or use a .safetensors file"
        )
    return np.rint(levels * 255).astype(np.int64)


def _narrowed(levels: NDArray[np.int64], image: "Image") -> "Image":
    """Return levels of 8 bits as a picture, with the orientation of the original."""
    from PIL import Image

    narrow = Image.fromarray(levels.astype(np.uint8))
    narrow.getexif()[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    return narrow


def _opaque(image: "Image", path: Path) -> tuple["Image", bool]:
    """Return a picture without transparency, and whether it was laid on white for that.

    Raises:
        InputError: the colours have no one right value in RGB.
    """
    from PIL import Image

    if image.mode not in _MODES:
        kind = _REFUSED.get(image.mode, f"of the kind {image.mode}")
        raise InputError(
            f"{path}: its levels are {kind}: should be gray or RGB, of 8 or 16 bits; convert it"
        )
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    least, _ = image.getchannel("A").getextrema()
    if least == _OPAQUE:
        return image, False
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image), True
