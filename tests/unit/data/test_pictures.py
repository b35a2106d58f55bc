"""Pictures of every kind that a folder may hold: the right levels, or a refusal."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from taylorglo.data.dataset import load
from taylorglo.data.pictures import (
    FIRST,
    LAID,
    NARROWED,
    SCALED,
    TURNED,
    Picture,
    is_picture,
    read_picture,
)
from taylorglo.errors import InputError
from taylorglo.settings import DataSettings

Array = NDArray[Any]
ORIENTATION = 274
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (5, 4, 3), dtype=np.uint8)
GRAY = COLOURS[..., 0]
WIDE = GRAY.astype(np.uint16) * 257
ALPHA = np.full((5, 4, 1), 255, np.uint8)


def with_alpha(colours: Array, alpha: Array) -> Image.Image:
    return Image.fromarray(np.concatenate([colours.reshape(5, 4, -1), alpha], axis=2))


def read(path: Path) -> Picture:
    picture = read_picture(path)
    assert picture is not None
    return picture


def pixels_of(path: Path) -> Array:
    """Return the pixels that were read, by row, column and channel."""
    array: Array = read(path).pixels.permute(1, 2, 0).numpy()
    return array


def rgb(levels: Array) -> Array:
    """Return gray levels as RGB, and colours as they are."""
    return levels if levels.ndim == 3 else np.repeat(levels[..., None], 3, axis=2)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def write_wide_png(path: Path, levels: Array) -> None:
    """Write a PNG file of 16 bits, with 1 to 4 channels; Pillow writes gray ones only."""
    height, width, channels = levels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def write_tiff(path: Path, levels: Array, *, photometric: int, kind: int, extra: int = 0) -> None:
    """Write an uncompressed TIFF file of any type of levels; Pillow writes some only.

    Args:
        path: of the file.
        levels: by row and column, or by row, column and channel.
        photometric: 0: white is 0, 1: black is 0, 2: RGB.
        kind: of the levels: 1: unsigned, 2: signed, 3: floating point.
        extra: number of channels beyond those of the colours.
    """
    height, width = levels.shape[:2]
    channels = levels.size // (height * width)
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * levels.itemsize] * channels,
        259: [1],
        262: [photometric],
        273: [0],
        277: [channels],
        278: [height],
        279: [levels.nbytes],
        338: [0] * extra,
        339: [kind] * channels,
    }
    tags = {tag: values for tag, values in tags.items() if values}
    end = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [end + sum(4 * len(v) for v in tags.values() if len(v) > 1)]
    entries, more = b"", b""
    for tag, values in sorted(tags.items()):
        data = struct.pack(f"<{len(values)}I", *values)
        place = data if len(values) == 1 else struct.pack("<I", end + len(more))
        more += data if len(values) > 1 else b""
        entries += struct.pack("<HHI", tag, 4, len(values)) + place
    head = b"II*\0" + struct.pack("<IH", 8, len(tags))
    path.write_bytes(head + entries + bytes(4) + more + levels.tobytes())


@pytest.mark.parametrize("suffix", ["png", "tif", "tiff", "pgm"])
def test_gray_levels_of_16_bits_are_scaled_to_8(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(WIDE).save(path)
    assert np.array_equal(pixels_of(path), rgb(GRAY))
    assert read(path).conversions == (NARROWED,)
    assert read(path).largest == WIDE.max()
    levels = RNG.integers(0, 65536, (5, 4), dtype=np.uint16)
    Image.fromarray(levels).save(path)
    assert np.array_equal(pixels_of(path), rgb(np.round(levels / 257).astype(np.uint8)))


def test_levels_of_16_bits_are_read_in_every_form_of_tiff(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    for array in (WIDE, WIDE.astype(">u2")):
        for compression in (None, "tiff_lzw", "tiff_deflate"):
            Image.fromarray(array).save(path, compression=compression)
            assert np.array_equal(pixels_of(path), rgb(GRAY))
    write_tiff(path, WIDE, photometric=1, kind=1)
    assert np.array_equal(pixels_of(path), rgb(GRAY))


@pytest.mark.parametrize(("most", "dtype"), [(100, "u1"), (1000, ">u2"), (65535, ">u2")])
def test_levels_of_a_pgm_file_are_scaled_by_its_maximum(
    tmp_path: Path, most: int, dtype: str
) -> None:
    levels = np.linspace(0, most, 20).astype(dtype).reshape(5, 4)
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 4 5 %d\n" % most + levels.tobytes())
    scaled = np.round(levels.astype(np.float64) / most * 255).astype(np.uint8)
    assert np.array_equal(pixels_of(path), rgb(scaled))


def test_16_bit_copies_of_a_folder_give_the_same_tensors(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for depth in ("8", "16"):
            (tmp_path / depth / name).mkdir(parents=True)
        for index in range(10):
            gray = RNG.integers(0, 256, (3, 4), dtype=np.uint8)
            Image.fromarray(gray).save(tmp_path / "8" / name / f"{index}.png")
            wide = gray.astype(np.uint16) * 257
            suffix = ("png", "tif", "pgm")[index % 3]
            Image.fromarray(wide).save(tmp_path / "16" / name / f"{index}.{suffix}")
    narrow, wide = (
        load(DataSettings(name="image-folder", root=str(tmp_path / depth)), seed=0)
        for depth in ("8", "16")
    )
    assert torch.equal(narrow.train.images, wide.train.images)
    assert narrow.provenance["source_sha256"] == wide.provenance["source_sha256"]
    said = wide.provenance["conversions"]
    assert said.startswith(f"images {NARROWED}: 20; largest level of 16 bits: ")
    assert "conversions" not in narrow.provenance


def test_gray_two_level_and_palette_images_become_rgb(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.fromarray(GRAY).save(path)
    assert np.array_equal(pixels_of(path), rgb(GRAY))
    Image.fromarray(GRAY > 127).save(path)
    assert np.array_equal(pixels_of(path), rgb((GRAY > 127) * np.uint8(255)))
    indices = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(5, 4), mode="P")
    indices.putpalette(COLOURS.tobytes())
    indices.save(path)
    assert np.array_equal(pixels_of(path), COLOURS)
    write_tiff(tmp_path / "x.tif", GRAY, photometric=0, kind=1)
    assert np.array_equal(pixels_of(tmp_path / "x.tif"), 255 - rgb(GRAY))


@pytest.mark.filterwarnings("error")
def test_an_alpha_channel_that_is_opaque_is_dropped(tmp_path: Path) -> None:
    with_alpha(COLOURS, ALPHA).save(tmp_path / "rgba.png")
    assert np.array_equal(pixels_of(tmp_path / "rgba.png"), COLOURS)
    with_alpha(GRAY, ALPHA).save(tmp_path / "la.png")
    assert np.array_equal(pixels_of(tmp_path / "la.png"), rgb(GRAY))
    palette = Image.fromarray(COLOURS).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=bytes([255] * 16))
    assert np.array_equal(pixels_of(tmp_path / "palette.png"), np.asarray(palette.convert("RGB")))
    absent = next(c for c in np.ndindex(2, 2, 2) if not (c == COLOURS).all(axis=2).any())
    Image.fromarray(COLOURS).save(tmp_path / "key.png", transparency=absent)
    assert np.array_equal(pixels_of(tmp_path / "key.png"), COLOURS)


def transparent(folder: Path) -> list[Path]:
    """Write pictures with a pixel that is not opaque, or with a shape in their alpha alone."""
    alpha = ALPHA.copy()
    alpha[2, 2] = 254
    shape = np.where(GRAY > 127, 255, 0).astype(np.uint8)[..., None]
    files = {
        "one.png": (with_alpha(COLOURS, alpha), {}),
        "one.webp": (with_alpha(COLOURS, alpha), {"lossless": True}),
        "one.tif": (with_alpha(COLOURS, alpha), {}),
        "gray.png": (with_alpha(GRAY, alpha), {}),
        "white-shape.png": (with_alpha(np.full_like(COLOURS, 255), shape), {}),
        "black-shape.png": (with_alpha(np.zeros_like(GRAY), shape), {}),
        "key.png": (Image.fromarray(COLOURS), {"transparency": tuple(map(int, COLOURS[0, 0]))}),
        "gray-key.png": (Image.fromarray(GRAY), {"transparency": int(GRAY[0, 0])}),
        "wide-key.png": (Image.fromarray(WIDE), {"transparency": int(WIDE[0, 0])}),
        "palette.png": (Image.fromarray(GRAY, mode="P"), {"transparency": int(GRAY[0, 0])}),
    }
    for name, (image, options) in files.items():
        if image.mode == "P":
            image.putpalette(bytes(range(256)) * 3)
        image.save(folder / name, **options)
    return [folder / name for name in files]


def on_white(image: Image.Image) -> Array:
    """Return colours a c + (1 - a) 255 by the definition of "over", to the nearest level."""
    levels = np.asarray(image.convert("RGBA")).astype(np.float64)
    share = levels[..., 3:] / 255
    return np.rint(share * levels[..., :3] + (1 - share) * 255)


def test_transparent_pixels_are_laid_on_white(tmp_path: Path) -> None:
    for path in transparent(tmp_path):
        if path.name == "wide-key.png":
            expected = np.where(rgb(GRAY) == GRAY[0, 0], 255, rgb(GRAY)).astype(np.float64)
        else:
            expected = on_white(Image.open(path))
        # Pillow rounds its products of alpha and colours by itself.
        assert np.abs(pixels_of(path) - expected).max() <= 1, path.name
        assert LAID in read(path).conversions


def test_a_colour_of_16_bits_that_is_transparent_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    write_wide_png(path, COLOURS.astype(np.uint16) * 257)
    head, rest = path.read_bytes()[:33], path.read_bytes()[33:]
    data = b"tRNS" + struct.pack(">3H", 1, 2, 3)
    path.write_bytes(
        head + struct.pack(">I", 6) + data + struct.pack(">I", zlib.crc32(data)) + rest
    )
    with pytest.raises(InputError, match="a colour of 16 bits that is transparent: should have"):
        read_picture(path)


@pytest.mark.parametrize(("dtype", "kind"), [("i1", 2), ("<i2", 2), ("<i4", 2), ("<u4", 1)])
def test_integers_without_a_defined_white_are_refused(
    tmp_path: Path, dtype: str, kind: int
) -> None:
    path = tmp_path / "x.tif"
    write_tiff(path, GRAY.astype(dtype), photometric=1, kind=kind)
    with pytest.raises(InputError, match=f"^{path}: its levels are .*should be unsigned integers"):
        read_picture(path)


def test_floating_point_levels_from_0_to_1_are_scaled(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    levels = RNG.random((5, 4)).astype(np.float32)
    for given in (levels, (GRAY / 255).astype(np.float32)):
        write_tiff(path, given, photometric=1, kind=3)
        expected = np.rint(given.astype(np.float64) * 255).astype(np.uint8)
        assert np.array_equal(pixels_of(path), rgb(expected))
        assert read(path).conversions == (SCALED,)
    Image.fromarray((GRAY / 255).astype(np.float32)).save(tmp_path / "x.pfm")
    assert np.array_equal(pixels_of(tmp_path / "x.pfm"), rgb(GRAY))


@pytest.mark.parametrize(
    ("value", "said"), [(255.0, "to 255"), (-0.5, "from -0.5"), (np.nan, "nan"), (np.inf, "to inf")]
)
def test_floating_point_levels_beyond_black_and_white_are_refused(
    tmp_path: Path, value: float, said: str
) -> None:
    levels = (GRAY / 255).astype(np.float32)
    levels[1, 2] = value
    write_tiff(tmp_path / "x.tif", levels, photometric=1, kind=3)
    with pytest.raises(InputError, match=f"{said}.*: should be finite, with 0 for black and 1"):
        read_picture(tmp_path / "x.tif")


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_other_floating_point_levels_are_refused(tmp_path: Path, dtype: str) -> None:
    path = tmp_path / "x.tif"
    write_tiff(path, (COLOURS / 255).astype(dtype), photometric=2, kind=3)
    with pytest.raises(InputError, match=f"^{path}: .*of 8 or 16 bits"):
        read_picture(path)
    write_tiff(path, (GRAY / 255).astype(dtype), photometric=0, kind=3)
    with pytest.raises(InputError, match=f"^{path}: .*of 8 or 16 bits"):
        read_picture(path)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colours_of_16_bits_in_png_are_scaled(tmp_path: Path, channels: int) -> None:
    path = tmp_path / "x.png"
    narrow = np.full((5, 4, channels), 255, np.uint8)
    colours = 1 if channels == 2 else 3
    narrow[..., :colours] = COLOURS[..., :colours]
    write_wide_png(path, narrow.astype(np.uint16) * 257)
    assert np.array_equal(pixels_of(path), rgb(GRAY) if channels == 2 else COLOURS)
    assert read(path).conversions == (NARROWED,)
    wide = RNG.integers(0, 65536, narrow.shape, dtype=np.uint16)
    wide[..., colours:] = 65535
    write_wide_png(path, wide)
    expected = rgb(wide[..., 0]) if channels == 2 else wide[..., :3]
    assert np.abs(pixels_of(path) - expected / 257).max() < 1
    write_wide_png(path, WIDE[..., None])
    assert np.array_equal(pixels_of(path), rgb(GRAY))


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_colours_of_16_bits_in_tiff_are_scaled(tmp_path: Path, order: str) -> None:
    path = tmp_path / "x.tif"
    levels = (COLOURS.astype(np.uint16) * 257).astype(order)
    write_tiff(path, levels, photometric=2, kind=1)
    assert np.array_equal(pixels_of(path), COLOURS)
    assert read(path).conversions == (NARROWED,)


def test_a_large_image_is_cut_to_a_square_and_resized(tmp_path: Path) -> None:
    levels = RNG.integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(levels).save(tmp_path / "x.png")
    settings = DataSettings(name="image-folder", root="x", image_size=4)
    picture = read_picture(tmp_path / "x.png", settings)
    assert picture is not None
    assert picture.pixels.shape == (3, 4, 4)
    assert picture.conversions == ("cut to a square and resized to 4x4, bilinear",)
    square = torch.from_numpy(levels[:, 4:16]).permute(2, 0, 1)[None].float()
    expected = functional.interpolate(square, size=(4, 4), mode="bilinear", antialias=True)[0]
    # Pillow rounds to whole levels after each of the two axes.
    assert (picture.pixels.float() - expected).abs().max() <= 1


def test_an_image_of_the_right_size_is_not_resized(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[:4]).save(tmp_path / "x.png")
    settings = DataSettings(name="image-folder", root="x", image_size=4)
    picture = read_picture(tmp_path / "x.png", settings)
    assert picture is not None
    assert picture.conversions == ()
    assert np.array_equal(picture.pixels.permute(1, 2, 0).numpy(), COLOURS[:4])


def test_colours_become_their_luma(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    settings = DataSettings(name="image-folder", root="x", color="gray")
    picture = read_picture(tmp_path / "x.png", settings)
    assert picture is not None
    luma = COLOURS @ np.array([0.299, 0.587, 0.114])
    assert picture.pixels.shape == (1, 5, 4)
    assert np.abs(picture.pixels[0].numpy() - luma).max() <= 0.51


def test_tiff_files_that_would_lose_levels_or_channels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    write_tiff(path, WIDE, photometric=0, kind=1)
    with pytest.raises(InputError, match=r"integers of 16 bits: .*0 should be black"):
        read_picture(path)
    for extra in (1, 2):
        channels = np.concatenate([COLOURS, COLOURS[..., :extra]], axis=2)
        write_tiff(path, channels, photometric=2, kind=1, extra=extra)
        with pytest.raises(InputError, match=f"has {3 + extra} channels, of which only 3"):
            read_picture(path)


@pytest.mark.parametrize(
    ("mode", "suffix"), [("CMYK", "jpg"), ("CMYK", "tif"), ("YCbCr", "tif"), ("LAB", "tif")]
)
def test_other_colours_are_refused(tmp_path: Path, mode: str, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.new(mode, (4, 5), 100).save(path)
    with pytest.raises(InputError, match=f"^{path}: its levels are .*{mode}.*: should be gray or"):
        read_picture(path)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_several_pictures_in_a_file_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    second = Image.fromarray(255 - COLOURS)
    Image.fromarray(COLOURS).save(path, save_all=True, append_images=[second])
    with pytest.raises(InputError, match=f"^{path}: has 2 pictures .*should have one"):
        read_picture(path)


def test_the_first_picture_of_a_camera_is_read(tmp_path: Path) -> None:
    first, second = Image.fromarray(COLOURS), Image.fromarray(255 - COLOURS)
    first.save(tmp_path / "one.jpg")
    first.save(tmp_path / "two.jpg", "MPO", save_all=True, append_images=[second])
    assert np.array_equal(pixels_of(tmp_path / "two.jpg"), pixels_of(tmp_path / "one.jpg"))
    assert read(tmp_path / "two.jpg").conversions == (FIRST,)


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", list(UPRIGHT))
@pytest.mark.parametrize("levels", [GRAY, WIDE, COLOURS], ids=["gray", "16 bits", "RGB"])
def test_the_exif_orientation_is_applied(tmp_path: Path, orientation: int, levels: Array) -> None:
    upright = rgb(UPRIGHT[orientation](GRAY if levels is WIDE else levels))
    files: list[tuple[str, dict[str, Any]]] = [
        ("plain.png", {}),
        ("plain.tif", {}),
        ("packed.tif", {"compression": "tiff_lzw"}),
    ]
    for name, options in files:
        path = tmp_path / name
        Image.fromarray(levels).save(path, exif=turned(orientation), **options)
        assert np.array_equal(pixels_of(path), upright)
        assert (TURNED in read(path).conversions) == (orientation > 1)


@pytest.mark.parametrize("orientation", list(UPRIGHT))
def test_the_exif_orientation_of_a_jpeg_is_applied(tmp_path: Path, orientation: int) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "plain.jpg")
    Image.fromarray(COLOURS).save(tmp_path / "turned.jpg", exif=turned(orientation))
    upright = UPRIGHT[orientation](pixels_of(tmp_path / "plain.jpg"))
    assert np.array_equal(pixels_of(tmp_path / "turned.jpg"), upright)


def test_an_orientation_that_does_not_exist_is_passed_over(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png", exif=turned(9))
    assert np.array_equal(pixels_of(tmp_path / "x.png"), COLOURS)
    assert read(tmp_path / "x.png").conversions == ()


def test_pictures_are_known_by_their_content_under_any_suffix(tmp_path: Path) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "x.png")
    for name in ("x", "x.JFIF", "x.dat"):
        (tmp_path / name).write_bytes((tmp_path / "x.png").read_bytes())
        assert np.array_equal(pixels_of(tmp_path / name), COLOURS)
        assert is_picture(tmp_path / name)


def test_other_files_are_no_pictures_unless_their_suffix_says_so(tmp_path: Path) -> None:
    for content in (
        b"",
        b"a text",
        b"BM is how a bitmap begins",
        b"P5 is how a PGM begins",
        b"II*",
    ):
        (tmp_path / "x.txt").write_bytes(content)
        assert read_picture(tmp_path / "x.txt") is None
        assert not is_picture(tmp_path / "x.txt")
        (tmp_path / "x.png").write_bytes(content)
        with pytest.raises(InputError, match=r"x\.png: damaged or not an image") as caught:
            read_picture(tmp_path / "x.png")
        assert "\n" not in str(caught.value)


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.symlink_to("absent.png")
    with pytest.raises(InputError, match=f"^{path}: cannot be read: No such file or directory$"):
        read_picture(path)
