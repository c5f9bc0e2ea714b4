"""Image files -> batches: equal to torchvision's and Keras's, exact on images made by hand."""

import importlib.util
import inspect
import os
import pickle
import struct
import warnings
from functools import partial
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from PIL import EpsImagePlugin, Image, ImageFile
from torchvision.models import VGG16_Weights
from torchvision.transforms import functional

from flaxvgg.files.foreign import shown
from flaxvgg.images.finding import PassedOver
from flaxvgg.images.loading import (
    ImageError,
    find_images,
    fit_image,
    load_images,
    normalise,
    open_image,
)
from flaxvgg.network.provenance import PREPROCESSING, Provenance
from helpers import tiny_vgg


def _package_folder(name: str) -> Path:
    (folder,) = importlib.util.find_spec(name).submodule_search_locations
    return Path(folder)


SKIMAGE = _package_folder("skimage") / "data"
PHOTOS = [
    *(SKIMAGE / n for n in ("astronaut.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")),
    _package_folder("sklearn") / "datasets" / "images" / "china.jpg",
]
RECIPES = {
    "torchvision": VGG16_Weights.IMAGENET1K_V1,
    "features": VGG16_Weights.IMAGENET1K_FEATURES,
}
# Red, green, blue, white: no two orientations of it are equal.
CORNERS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 255]]], np.uint8)


def _noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _saved(path: Path, pixels: np.ndarray | Image.Image, **options) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def _opened(path: Path) -> list:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def _error(function, *args, **kwargs) -> ImageError:
    # unwrap: beartype, where it is on, would stop an ill-typed argument before our own message.
    with pytest.raises(ImageError) as caught:
        inspect.unwrap(function)(*args, **kwargs)
    return caught.value


def _grey(*values: int) -> list:
    return [[[v, v, v] for v in values]]


# --- the recipes ---------------------------------------------------------------------------------


def _torchvision(image: Image.Image, recipe: str) -> np.ndarray:
    return RECIPES[recipe].transforms()(image).numpy().transpose(1, 2, 0)


@pytest.mark.parametrize("recipe", RECIPES)
def test_photos_equal_torchvisions_bit_for_bit(recipe):
    ours = load_images(PHOTOS, preprocessing=PREPROCESSING[recipe])
    assert ours.shape == (5, 224, 224, 3)
    assert ours.dtype == np.float32
    for path, batch_item in zip(PHOTOS, ours, strict=True):
        with Image.open(path) as image:
            theirs = _torchvision(image.convert("RGB"), recipe)
        np.testing.assert_array_equal(batch_item, theirs, err_msg=path.name)


@pytest.mark.parametrize(
    ("height", "width"),
    # 1x1 is enlarged; 257, 301 and 451 put the crop between two pixels, where rounding shows.
    [(1, 1), (1, 7), (33, 32), (256, 257), (257, 256), (301, 451), (451, 301), (99, 640)],
)
def test_odd_sizes_equal_torchvisions_bit_for_bit(height, width):
    image = Image.fromarray(_noise(height, width))
    ours = normalise(fit_image(image))
    np.testing.assert_array_equal(ours, _torchvision(image, "torchvision"))


@pytest.mark.parametrize("size", [(224, 224), (120, 333), (427, 640)])
def test_photos_equal_kerass_bit_for_bit(size):
    ours = load_images(PHOTOS, size, "keras")
    for path, batch_item in zip(PHOTOS, ours, strict=True):
        array = keras.utils.img_to_array(keras.utils.load_img(path, target_size=size))
        theirs = keras.applications.vgg16.preprocess_input(array)
        np.testing.assert_array_equal(batch_item, theirs, err_msg=path.name)


@pytest.mark.parametrize(
    ("size", "scaled", "corner"),
    # Of a 100x300 image (height x width): the size that covers (8H//7, 8W//7), and where the crop
    # starts, worked out by hand. Written as (height, width) and (top, left).
    [
        ((224, 224), (256, 768), (16, 272)),
        ((375, 1242), (473, 1419), (49, 88)),  # 8*1242//7 = 1419 decides
        ((35, 35), (40, 120), (2, 42)),  # tops 2.5 and 42.5 round to even
        ((32, 320), (121, 365), (44, 22)),  # 365/3 = 121.67 is truncated; 44.5 and 22.5
        ((320, 32), (365, 1095), (22, 532)),  # 22.5 and 531.5
    ],
)
def test_other_sizes_cover_and_crop_the_centre(size, scaled, corner):
    image = Image.fromarray(_noise(100, 300))
    expected = functional.crop(functional.resize(image, scaled), *corner, *size)
    np.testing.assert_array_equal(fit_image(image, size), np.asarray(expected))


def test_stretching_takes_the_nearest_pixel():
    pixels = np.repeat(np.repeat(CORNERS, 16, axis=0), 32, axis=1)  # 32x64
    fitted = fit_image(Image.fromarray(CORNERS), (32, 64), "keras")
    np.testing.assert_array_equal(fitted, pixels)


def test_normalised_values_are_those_on_paper():
    pixels = np.array([[[0, 127, 255]]], np.uint8)
    f = np.float32
    torchvision = [
        (f(0) - f(0.485)) / f(0.229),
        (f(127) / f(255) - f(0.456)) / f(0.224),
        (f(1) - f(0.406)) / f(0.225),
    ]
    assert np.asarray(normalise(pixels)).tolist() == [[torchvision]]
    keras_bgr = [f(255) - f(103.939), f(127) - f(116.779), f(0) - f(123.68)]
    assert np.asarray(normalise(pixels, "keras")).tolist() == [[keras_bgr]]
    features = normalise(pixels, "features")[0, 0]
    np.testing.assert_allclose(features, [-122.99925, 127 - 116.9991, 255 - 103.9992], rtol=1e-6)


@pytest.mark.parametrize("recipe", PREPROCESSING)
def test_normalise_is_exact_under_jit_and_vmap_and_for_every_pixel_value(recipe):
    pixels = np.stack([np.arange(256, dtype=np.uint8).reshape(16, 16)] * 3, axis=-1)
    batch = np.stack([pixels, pixels[::-1]])
    record = PREPROCESSING[recipe]
    ordered = batch[..., ::-1] if recipe == "keras" else batch
    expected = ordered.astype(np.float32) / np.float32(record.divisor)
    expected = (expected - np.float32(record.mean)) / np.float32(record.std)
    one = partial(normalise, preprocessing=recipe)
    for function in (one, jax.jit(one), jax.vmap(one), jax.jit(jax.vmap(one))):
        np.testing.assert_array_equal(function(batch), expected)
    np.testing.assert_array_equal(one(jax.numpy.asarray(pixels)), expected[0])


def test_normalise_keeps_the_sharding_of_a_mesh_with_explicit_axes():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    with jax.set_mesh(mesh):
        sharded = normalise(jax.device_put(CORNERS[None], sharding))
    assert sharded.sharding.spec[0] == "data"
    np.testing.assert_array_equal(sharded, normalise(CORNERS[None]))


# --- loading -------------------------------------------------------------------------------------


def test_a_batch_keeps_the_order_of_its_paths_and_takes_one_path_alone(tmp_path):
    a = _saved(tmp_path / "a.png", _noise(40, 50, seed=1))
    b = _saved(tmp_path / "b.png", _noise(60, 45, seed=2))
    batch = load_images(iter([b, str(a), b]), (32, 64))
    assert isinstance(batch, jax.Array)
    assert batch.shape == (3, 32, 64, 3)
    for item, path in zip(batch, (b, a, b), strict=True):
        np.testing.assert_array_equal(item, normalise(fit_image(open_image(path), (32, 64))))
    for one in (a, str(a), [a]):
        np.testing.assert_array_equal(load_images(one, (32, 64)), batch[1:2])


@pytest.mark.parametrize("recipe", PREPROCESSING)
def test_without_a_size_nothing_is_resized(tmp_path, recipe):
    pixels = np.stack([_noise(32, 41, seed=1), _noise(32, 41, seed=2)])
    paths = [_saved(tmp_path / f"{i}.png", p) for i, p in enumerate(pixels)]
    ours = load_images(paths, None, recipe)
    np.testing.assert_array_equal(ours, normalise(pixels, recipe))


def test_find_images_sorts_folders_and_keeps_files(tmp_path):
    names = ["b.JPG", "a.png", "c/d.TIFF", "c/notes.txt", "._a.png", ".b.jpg", "z.webp", "odd.dat"]
    (tmp_path / "c").mkdir()
    (tmp_path / "folder.png").mkdir()
    for name in names:
        (tmp_path / name).touch()
    inside = [tmp_path / name for name in ("a.png", "b.JPG", "c/d.TIFF", "z.webp")]
    assert find_images(tmp_path) == inside
    assert find_images(str(tmp_path)) == inside
    first = [tmp_path / "odd.dat", tmp_path / "z.webp"]
    assert find_images([*first, tmp_path, tmp_path / "c"]) == [*first, *inside[:3]]


def test_find_images_names_every_path_that_gives_none(tmp_path):
    (tmp_path / "empty").mkdir()
    error = _error(find_images, [tmp_path / "empty", tmp_path / "gone"])
    assert len(error.problems) == 2
    assert error.problems[0].startswith(f"{tmp_path / 'empty'}: no image in this folder (.avif .")
    assert error.problems[1] == f"{tmp_path / 'gone'}: no such file or folder: check the path"
    assert str(_error(find_images, [])) == "no paths were given: pass at least one image file"


# --- what comes in files -------------------------------------------------------------------------

R, G, B, W = CORNERS.reshape(4, 3).tolist()
# What a camera stored, [[R, G], [B, W]], turned upright as the EXIF standard has it: 2 mirrored,
# 3 upside down, 4 both, 5 transposed, 6 to be turned clockwise, 7 transversed, 8 anticlockwise.
UPRIGHT = {
    1: [[R, G], [B, W]],
    2: [[G, R], [W, B]],
    3: [[W, B], [G, R]],
    4: [[B, W], [R, G]],
    5: [[R, B], [G, W]],
    6: [[B, R], [W, G]],
    7: [[W, G], [B, R]],
    8: [[G, W], [R, B]],
}


@pytest.mark.parametrize("suffix", ["png", "tiff"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _saved(tmp_path / f"turned.{suffix}", CORNERS, exif=exif)
    assert _opened(path) == UPRIGHT[orientation]


def test_exif_orientation_of_a_jpeg_swaps_its_sides(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = _saved(tmp_path / "turned.jpg", np.zeros((40, 64, 3), np.uint8), exif=exif)
    assert open_image(path).size == (40, 64)
    assert load_images(path, None).shape == (1, 64, 40, 3)


RAMP = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFEFF, 0xFFFF]], np.uint16)
RAMP_8_BIT = _grey(0, 0, 1, 127, 128, 254, 255)


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path, suffix):
    assert _opened(_saved(tmp_path / f"ramp.{suffix}", RAMP)) == RAMP_8_BIT


def _tiff(path: Path, bits: int, data: bytes, byte_order: str, **extra: int) -> Path:
    # One row of grey pixels, uncompressed: what Pillow reads but does not write.
    width = len(data) * 8 // bits
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: 1, 279: len(data)}
    tags |= {int(tag.removeprefix("tag")): value for tag, value in extra.items()}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    mark = {"<": b"II", ">": b"MM"}[byte_order]
    file = mark + struct.pack(byte_order + "HIH", 42, 8, len(tags))
    for tag, value in sorted(tags.items()):
        file += struct.pack(byte_order + "HHI", tag, 4, 1) + struct.pack(byte_order + "I", value)
    path.write_bytes(file + bytes(4) + data)
    return path


def test_other_kinds_of_16_bit_tiff(tmp_path):
    big_endian = _tiff(tmp_path / "big.tif", 16, RAMP.astype(">u2").tobytes(), ">")
    assert _opened(big_endian) == RAMP_8_BIT
    mirrored = _tiff(tmp_path / "mirrored.tif", 16, RAMP.astype(">u2").tobytes(), ">", tag274=2)
    assert _opened(mirrored) == [RAMP_8_BIT[0][::-1]]
    # 12 bits: 0x000, 0xFFF, 0x800, 0x7F0.
    twelve = _tiff(tmp_path / "twelve.tif", 12, bytes.fromhex("000FFF8007F0"), "<")
    assert _opened(twelve) == _grey(0, 255, 128, 127)


def test_cmyk_of_pure_colours(tmp_path):
    inks = [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 0, 0), (0, 0, 255, 0), (0, 0, 0, 255)]
    image = Image.new("CMYK", (5, 1))
    image.putdata(inks)
    path = _saved(tmp_path / "cmyk.tiff", image)
    assert _opened(path) == [[[255] * 3, [0, 255, 255], [255, 0, 255], [255, 255, 0], [0] * 3]]
    blocks = image.resize((80, 16), Image.Resampling.NEAREST)
    jpeg = np.array(open_image(_saved(tmp_path / "cmyk.jpg", blocks, quality=100)), int)
    assert np.abs(jpeg[8, 8::16] - _opened(path)[0]).max() <= 2  # not inverted, as Adobe stores it


def test_grey_and_transparent_images_show_the_colours_underneath(tmp_path):
    grey = np.array([[0, 7, 255]], np.uint8)
    assert _opened(_saved(tmp_path / "l.png", grey)) == _grey(0, 7, 255)
    bilevel = Image.new("1", (2, 1))
    bilevel.putpixel((1, 0), 1)
    assert _opened(_saved(tmp_path / "1.png", bilevel)) == _grey(0, 255)
    la = np.array([[[9, 0], [200, 255]]], np.uint8)
    assert _opened(_saved(tmp_path / "la.png", la)) == _grey(9, 200)
    rgba = np.array([[[1, 2, 3, 0], [4, 5, 6, 128]]], np.uint8)
    assert _opened(_saved(tmp_path / "rgba.png", rgba)) == [[[1, 2, 3], [4, 5, 6]]]


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_palettes_with_and_without_transparency(tmp_path, transparency):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    path = _saved(tmp_path / "p.png", image, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _opened(path) == [[[10, 20, 30], [40, 50, 60]]]


@pytest.mark.parametrize("suffix", ["gif", "tiff", "png", "webp"])
def test_the_first_of_several_frames(tmp_path, suffix):
    frames = [Image.new("RGB", (3, 2), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    path = tmp_path / f"frames.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    with Image.open(path) as image:
        assert image.n_frames == 2
    assert _opened(path) == [[R] * 3] * 2


# --- what is refused -----------------------------------------------------------------------------


def _refused(path: Path) -> str:
    """The one line that both ways of opening a file refuse it with, less the path."""
    error = _error(open_image, path)
    assert isinstance(error, ValueError)
    assert str(error) == str(_error(load_images, path))
    assert error.problems == (str(error),)
    assert "\n" not in str(error)
    assert str(error).startswith(f"{path}: ")
    return str(error).removeprefix(f"{path}: ")


def test_files_that_are_no_images(tmp_path):
    assert _refused(tmp_path / "gone.png") == "no such file: check the path"
    assert _refused(tmp_path) == "a folder: pass find_images(folder)"
    (tmp_path / "empty.jpg").touch()
    assert _refused(tmp_path / "empty.jpg") == "an empty file: get it again"
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>\n<title>404</title>")
    assert _refused(tmp_path / "page.jpg") == (
        "no image that Pillow reads (it begins with b'<!DOCTYPE html>\\n'): save it as PNG or JPEG"
    )
    below = _saved(tmp_path / "a.png", CORNERS) / "b.png"
    assert _refused(below) == "cannot be read: Not a directory"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "webp"])
@pytest.mark.parametrize("kept", [0.5, 0.9])
def test_truncated_files(tmp_path, suffix, kept):
    path = _saved(tmp_path / f"cut.{suffix}", _noise(64, 64))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    reason = _refused(path)
    assert reason.startswith("damaged or truncated (")
    assert reason.endswith("): get it again")


def test_a_png_whose_checksums_are_wrong(tmp_path):
    path = _saved(tmp_path / "whole.png", _noise(64, 64))
    whole = path.read_bytes()
    place = whole.index(b"IDAT") - 4
    size = int.from_bytes(whole[place : place + 4], "big")
    # A checksum of the pixels, which Pillow never looks at; and the end, which it does without.
    end = place + 8 + size
    for spoiled in (whole[:end] + bytes(4) + whole[end + 4 :], whole[:-12]):
        path.write_bytes(spoiled)
        with Image.open(path) as image:
            image.load()
        assert _refused(path).startswith("damaged or truncated (")


@pytest.mark.parametrize("bare", [False, True], ids=["boxes", "bare"])
def test_a_jpeg_2000_without_its_end(tmp_path, bare):
    path = tmp_path / "photo.jp2"
    Image.fromarray(_noise(64, 64)).save(path, no_jp2=bare, irreversible=True, quality_layers=[20])
    whole = path.read_bytes()
    assert open_image(path).size == (64, 64)
    path.write_bytes(whole if bare else whole + b"\0\0\0\x08free")  # a box behind it
    assert open_image(path).size == (64, 64)
    path.write_bytes(whole[:-1])
    assert _refused(path).startswith("damaged or truncated (")
    path.write_bytes(whole[: whole.index(b"\xff\x90") + 2])  # in front of the first tile
    with Image.open(path) as image:
        assert image.getextrema() == ((0, 0),) * 3  # Pillow's
    assert _refused(path) == "damaged or truncated (its end is missing): get it again"


def test_formats_that_are_programs_are_no_images(tmp_path, monkeypatch):
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args: pytest.fail("it ran"))
    path = tmp_path / "photo.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n%%EOF\n")
    with Image.open(path) as image:
        assert image.format == "EPS"
    assert _refused(path).startswith("no image that Pillow reads (it begins with b'%!PS-Adobe")


def test_truncated_files_that_pillow_was_told_to_fill_up(tmp_path, monkeypatch):
    path = _saved(tmp_path / "whole.png", CORNERS)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert _refused(path) == (
        "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, which hides truncated files: set it to False"
    )


def test_decompression_bombs(tmp_path, monkeypatch):
    path = _saved(tmp_path / "bomb.png", np.zeros((40, 60), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1199)
    reason = _refused(path)
    assert reason.startswith("Image size (2400 pixels) exceeds limit of 2398 pixels")
    assert reason.endswith(": scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it")


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_32_bit_grey(tmp_path, dtype):
    path = _saved(tmp_path / "deep.tiff", np.ones((40, 40), dtype))
    assert _refused(path) == "32-bit grey values of unknown range: save it as 8-bit or 16-bit PNG"


def test_images_that_cannot_keep_or_take_a_size(tmp_path):
    small = _saved(tmp_path / "small.png", _noise(31, 500))
    assert str(_error(load_images, small, None)) == (
        f"{small}: 31x500 pixels (height x width), but the network needs 32x32: pass size=(H, W)"
    )
    thread = _saved(tmp_path / "thread.png", np.zeros((1, 6000), np.uint8))
    assert str(_error(load_images, thread)) == (
        f"{thread}: 1x6000 pixels (height x width), too large once scaled to cover "
        "(224, 224): crop it first"
    )
    assert load_images(thread, preprocessing="keras").shape == (1, 224, 224, 3)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_largest_image_made_by_scaling_is_the_largest_that_pillow_opens(monkeypatch):
    image = Image.fromarray(CORNERS)  # scaled to 256x256: 65536 pixels
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32768)
    assert fit_image(image).shape == (224, 224, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32767)
    assert "too large once scaled to cover (224, 224)" in str(_error(fit_image, image))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert fit_image(image).shape == (224, 224, 3)


@pytest.mark.parametrize("size", [(31, 224), (224, 0), (64,), (64, 64, 3), 224, "ab", (64.0, 64)])
@pytest.mark.parametrize("function", [load_images, fit_image])
def test_sizes(function, size):
    image = Image.fromarray(CORNERS) if function is fit_image else "never-opened.png"
    assert str(_error(function, image, size)) == (
        f"size must be (height, width) of at least (32, 32), or None, not {size!r}"
    )


def test_other_arguments():
    assert str(_error(load_images, [])) == "no paths were given: pass at least one image file"
    assert str(_error(load_images, "a.png", preprocessing="caffe")) == (
        "no preprocessing 'caffe': choose from torchvision, features, keras, unit, pixels"
    )
    assert str(_error(normalise, np.zeros((4, 4, 3), np.float32))) == (
        "pixels must be uint8 of shape (..., H, W, 3), not float32 of shape (4, 4, 3)"
    )
    assert str(_error(normalise, np.zeros((3, 4, 4), np.uint8))) == (
        "pixels must be uint8 of shape (..., H, W, 3), not uint8 of shape (3, 4, 4)"
    )
    assert str(_error(fit_image, Image.new("L", (64, 64)))) == (
        "an image of mode L: pass open_image(path)"
    )


def test_every_bad_file_is_named_and_nothing_is_returned(tmp_path):
    gone = tmp_path / "gone.png"
    good = _saved(tmp_path / "good.png", _noise(40, 50))
    (tmp_path / "text.png").write_text("no image")
    other = _saved(tmp_path / "other.png", _noise(50, 40))
    error = _error(load_images, [gone, good, tmp_path / "text.png", other, good], None)
    problems = (
        f"{gone}: no such file: check the path",
        f"{tmp_path / 'text.png'}: no image that Pillow reads (it begins with b'no image'): "
        "save it as PNG or JPEG",
        f"{other}: 50x40 pixels (height x width), but {good} has 40x50 pixels (height x width): "
        "one batch has one size, pass size=(H, W)",
    )
    assert error.problems == problems
    assert str(error) == "3 problems with images\n  " + "\n  ".join(problems)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # it crosses process pools


def test_a_header_that_asks_for_all_memory(tmp_path, monkeypatch):
    """As one of JPEG 2000 may, for a box of any length."""

    def ask(file, formats):
        raise MemoryError

    Image.new("RGB", (32, 32)).save(tmp_path / "a.jp2")
    monkeypatch.setattr(Image, "open", ask)
    with pytest.raises(ImageError, match="asks for more memory than there is"):
        open_image(tmp_path / "a.jp2")


# --- files in folders ----------------------------------------------------------------------------


def test_hidden_folders_hold_no_images(tmp_path):
    good = tmp_path / "cat" / "a.png"
    hidden = [".git", ".ipynb_checkpoints", ".thumbnails", "__MACOSX", "cat/.ipynb_checkpoints"]
    for folder in ("cat", *hidden):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "a.png").touch()
    assert find_images(tmp_path) == [good]
    # One that is named is meant.
    assert find_images(tmp_path / ".git") == [tmp_path / ".git" / "a.png"]


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.png").touch()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "deep" / "loop").symlink_to(tmp_path / "photos")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "photos" / "gone.png").symlink_to(tmp_path / "nowhere")
    names = [str(p.relative_to(tmp_path / "photos")) for p in find_images(tmp_path / "photos")]
    assert names == ["gone.png", "link/a.png"]


def test_what_looks_like_a_photo_is_counted_when_it_is_passed_over(tmp_path):
    for name in ("a.HEIC", "b.heic", "deep/c.svg", "notes.txt", "d.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    said = r"photos: 3 files passed over: 2 \.heic, 1 \.svg \(convert them to JPEG or PNG\)"
    with pytest.warns(PassedOver, match=said.replace("photos", tmp_path.name)):
        assert find_images(tmp_path) == [tmp_path / "d.PNG"]
    (tmp_path / "d.PNG").unlink()
    with pytest.warns(PassedOver):
        assert "no image in this folder" in str(_error(find_images, tmp_path))


def test_a_file_without_a_suffix_is_known_by_its_content(tmp_path):
    _saved(tmp_path / "photo", CORNERS, format="PNG")
    (tmp_path / "README").write_text("no image")
    os.mkfifo(tmp_path / "pipe")
    assert find_images(tmp_path) == [tmp_path / "photo"]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.png").touch()
    scandir = os.scandir

    def refuse(path):  # root may read what is closed
        if path == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert str(_error(find_images, tmp_path)) == (
        f"{closed}: cannot be read: Permission denied: change its rights, or its folder's"
    )


def test_a_table_is_sent_to_a_store(tmp_path):
    (tmp_path / "list.CSV").write_text("image\na.png\n")
    assert "a table of images: it goes, alone, into a store (--out NAME.zarr)" in str(
        _error(find_images, tmp_path / "list.CSV")
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (256 * "n" + ".png", "cannot be read: File name too long"),
        ("a\0b.png", "no path: a NUL character is in it"),
        ("a.png/b.png", "cannot be read: Not a directory"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
    ],
)
def test_names_that_lead_nowhere(tmp_path, name, said):
    (tmp_path / "a.png").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert _refused(tmp_path / name) == said
    assert _error(find_images, tmp_path / name).problems == (f"{tmp_path / name}: {said}",)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\0\0\0\x18ftypheic\0\0", "a HEIC photo"),
        (b"\xff\x0a\xfa", "a JPEG XL image"),
        (b"\xef\xbb\xbf<svg xmlns=", "an SVG drawing"),
        (b"%PDF-1.7", "a PDF"),
    ],
)
def test_other_formats_under_the_name_of_an_image(tmp_path, start, kind):
    (tmp_path / "a.jpg").write_bytes(start + bytes(100))
    said = f"no image that Pillow reads but {kind}: save it as PNG or JPEG"
    assert _refused(tmp_path / "a.jpg") == said


def test_numpys_integers_are_a_size(tmp_path):
    path = _saved(tmp_path / "a.png", CORNERS)
    assert load_images(path, tuple(np.array([32, 64]))).shape == (1, 32, 64, 3)


def test_a_model_loads_images_by_its_own_recipe(tmp_path):
    path = _saved(tmp_path / "a.png", _noise(40, 50))
    model = tiny_vgg()
    for name, recipe in PREPROCESSING.items():
        model.provenance = Provenance(preprocessing=recipe)
        np.testing.assert_array_equal(
            model.load_images(path, (32, 64)), load_images([path], (32, 64), name)
        )


def test_names_as_lines_of_text():
    assert shown(os.fsdecode(b"caf\xe9 \xc3\xa9.png")) == "caf\\xe9 é.png"
    assert shown("a\nb\x1b[1m\ud800") == "a\\nb\\x1b[1m\\ud800"
