"""Explained photos in a folder: a picture of each, maps.npz, and cam.json."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flaxvgg.cam.photos import ExplainedPhoto, PhotoMap, Plan, explain_photos
from flaxvgg.commands.console import Shown
from flaxvgg.files.arrays import save_npz
from flaxvgg.files.folders import Names, write_bytes
from flaxvgg.files.foreign import plain, shown
from flaxvgg.images.loading import ImageError
from flaxvgg.network.model import VGG
from flaxvgg.plotting.cam import cam_figure
from flaxvgg.plotting.figures import png


@dataclasses.dataclass(frozen=True)
class Written:
    """What was done: the maps in words, photos that could not be read, and how many are left.

    `pictures` has the photo of each picture.
    """

    maps: list[PhotoMap]
    pictures: dict[Path, Path]
    problems: list[str]
    left: int
    record: dict[str, Any]  # cam.json


def write_cams(model: VGG, photos: Sequence[Path], plan: Plan, out: Path) -> Written:
    """Explain the photos, and write their pictures, maps.npz and cam.json into the folder `out`.

    A picture is written as soon as its photo is done. Ctrl-C ends the explaining; the photos that
    are done by then are kept. Raises ImageError where no photo can be read.
    """
    problems: list[str] = []
    done: dict[Path, ExplainedPhoto] = {}  # by picture
    names = Names(".png")
    title = f"{model.config.arch}, {model.provenance.source}, convention {plan.convention!r}"
    try:
        with contextlib.closing(
            explain_photos(model, photos, plan, problems, Shown())
        ) as explained:
            for found in explained:
                picture = out / names(found.photo)
                write_bytes(picture, png(cam_figure(found, title)))
                # What is large is in the picture.
                done[picture] = dataclasses.replace(found, pixels=found.pixels[:0], heatmaps={})
    except KeyboardInterrupt:
        if not done:
            raise
    if not done:
        raise ImageError(*problems)
    pictures = {picture: p.photo for picture, p in done.items()}
    maps = [found for p in done.values() for maps in p.maps.values() for found in maps]
    left = len(photos) - len(done) - len(problems)
    record = _json(model, plan, maps, pictures, problems, left)
    save_npz(out / "maps.npz", _arrays(list(done.values()), plan))
    write_bytes(out / "cam.json", json.dumps(record, indent=1).encode())
    return Written(maps, pictures, problems, left, record)


def _arrays(done: Sequence[ExplainedPhoto], plan: Plan) -> dict[str, np.ndarray]:
    """Raw maps (N, K, h, w) of N photos and K classes, by method, or by method and layer.

    Beside them "photos" (N,), "methods" (M,), "classes" (N, K), "scores" and "flags" (N, M, K).
    """
    found = [list(photo.maps.values()) for photo in done]
    labels = [[-1 if x.label is None else x.label for x in maps[0]] for maps in found]
    return {key: np.stack([photo.raw[key] for photo in done]) for key in done[0].raw} | {
        "photos": np.array([str(photo.photo) for photo in done]),
        "methods": np.array(plan.methods),
        "classes": np.array(labels),
        "scores": np.array(
            [[[x.score for x in row] for row in maps] for maps in found], np.float32
        ),
        "flags": np.array([[[x.flag for x in row] for row in maps] for maps in found]),
    }


def _json(
    model: VGG,
    plan: Plan,
    maps: Sequence[PhotoMap],
    pictures: Mapping[Path, Path],
    problems: Sequence[str],
    left: int,
) -> dict[str, Any]:
    of_photo = {photo: picture.name for picture, photo in pictures.items()}
    return {
        "architecture": model.config.arch,
        "source": plain(model.provenance.source),
        "sha256": model.provenance.sha256,
        "convention": plan.convention,
        "size": list(plan.size),
        "partial": left > 0,
        "photos_not_looked_at": left,
        "problems": list(map(plain, problems)),
        "maps": [
            {
                "photo": shown(found.photo),
                "picture": of_photo[found.photo],
                "method": found.method,
                "class": found.label,
                "name": plain(found.name),
                "score": found.score if math.isfinite(found.score) else None,
                "flag": found.flag.name.lower(),
                "peak": found.peak,
            }
            for found in maps
        ],
    }
