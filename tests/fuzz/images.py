"""Image files of every format that is read, and what Pillow alone makes of them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from flaxvgg.images.loading import ImageError, open_image
from tests.fuzz.cases import Arrays, Seed, Target, in_place
from tests.fuzz.mutations import png_chunks


def image_targets() -> list[Target]:
    """One for each format."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:37, :41]
    smooth = np.stack([5 * y, 6 * x, 3 * (x + y)], -1) + random.integers(0, 20, (37, 41, 3))
    rgb = Image.fromarray(smooth.astype(np.uint8))
    alpha = rgb.copy()
    alpha.putalpha(rgb.getchannel(1))
    grey, palette = rgb.convert("L"), rgb.quantize(50)
    deep = Image.fromarray((257 * np.asarray(grey).astype(np.uint16)) ^ 77)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    kinds: dict[str, list[tuple[str, Image.Image, dict[str, Any]]]] = {
        "PNG": [
            ("png", rgb, {}),
            ("png", alpha, {}),
            ("png", deep, {}),
            ("png", palette, {"transparency": 3}),
            ("png", grey.convert("1"), {}),
            ("png", rgb, {"exif": turned}),
            ("png", rgb, frames),
        ],
        "JPEG": [
            ("jpg", rgb, {}),
            ("jpg", rgb, {"progressive": True, "exif": turned}),
            ("jpg", grey, {"optimize": True}),
            ("jpg", rgb.convert("CMYK"), {"restart_marker_blocks": 2}),
            ("jpg", rgb, {"format": "MPO", **frames}),
        ],
        "TIFF": [
            ("tif", rgb, {}),
            ("tif", rgb, {"compression": "tiff_lzw", "exif": turned}),
            ("tif", alpha, {"compression": "tiff_adobe_deflate"}),
            ("tif", deep, {}),
            ("tif", grey, {"compression": "packbits"}),
            ("tif", rgb, {"compression": "jpeg"}),
            ("tif", grey.convert("1"), {"compression": "group4"}),
            ("tif", palette, {"big_tiff": True}),
        ],
        "GIF": [("gif", palette, {}), ("gif", palette, frames), ("gif", grey, {"interlace": 0})],
        "WebP": [
            ("webp", rgb, {"exif": turned}),
            ("webp", alpha, {"lossless": True}),
            ("webp", rgb, frames),
        ],
        "BMP": [
            ("bmp", rgb, {}),
            ("bmp", palette, {}),
            ("bmp", grey.convert("1"), {}),
            ("bmp", alpha, {}),
        ],
        "PNM": [
            ("ppm", rgb, {}),
            ("pgm", grey, {}),
            ("pbm", grey.convert("1"), {}),
            ("pgm", deep, {}),
        ],
        "JPEG2000": [
            ("jp2", rgb, {}),
            ("jp2", alpha, {"irreversible": True, "quality_layers": [20]}),
            ("jp2", deep, {}),
            ("jp2", grey, {"no_jp2": True, "tile_size": (16, 16)}),
        ],
        "AVIF": [("avif", rgb, {"speed": 10}), ("avif", alpha, {"speed": 10, "exif": turned})],
    }
    targets = []
    for kind, files in kinds.items():
        seeds = []
        for suffix, image, options in files:
            file = io.BytesIO()
            default = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix)
            default = "PPM" if kind == "PNM" else default or kind.upper()
            image.save(file, **{"format": default} | options)
            seeds.append(Seed(f"photo.{suffix}", file.getvalue()))
        if kind == "PNM":
            text = " ".join(map(str, np.asarray(grey).ravel())).encode()
            seeds.append(Seed("photo.pgm", b"P2 # in digits\n41 37\n255\n" + text))
        targets.append(Target(kind, 6, seeds, (ImageError,), _read_image, _true_image, in_place))
    return targets


def _read_image(path: Path) -> Arrays:
    return {"pixels": np.asarray(open_image(path))}


_TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _true_image(data: bytes, path: Path, whole: bytes) -> Arrays:
    """What Pillow decodes. A file that lost its end must not have lost pixels with it."""
    if data[:4] == b"\x89PNG":
        wrong = [kind for kind, _, right in png_chunks(data)[:-1] if not right]
        assert not wrong, f"checksums of {wrong}"
    pixels = _decoded(data)
    if len(data) < len(whole) and whole.startswith(data):
        pixels = _decoded(whole)
    return {"pixels": pixels}


def _decoded(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        orientation = image.getexif().get(ExifTags.Base.Orientation)
        bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]
    turned = image.transpose(_TURNED[orientation]) if orientation in _TURNED else image
    if turned.mode.startswith("I"):
        grey = (np.asarray(turned) // 2 ** (bits - 8)).astype(np.uint8)
        return np.stack([grey] * 3, -1)
    turned.info.pop("transparency", None)
    return np.asarray(turned.convert("RGB"))
