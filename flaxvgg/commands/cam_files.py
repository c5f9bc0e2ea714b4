"""Explained photos in a folder: a picture of each, maps.npz, cam.json, and a page."""

import contextlib
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np

from flaxvgg.cam.photos import ExplainedPhoto, PhotoMap, Plan, explain_photos, probabilities
from flaxvgg.commands.console import Shown
from flaxvgg.commands.options import one_of
from flaxvgg.files.arrays import save_npz
from flaxvgg.files.folders import Names, write_bytes
from flaxvgg.files.foreign import plain, shown
from flaxvgg.images.loading import ImageError
from flaxvgg.network.model import VGG
from flaxvgg.plotting.cam import Activation, Scale, cam_figure
from flaxvgg.plotting.figures import png
from flaxvgg.plotting.maps_page import MOST_PHOTOS, CamPage


class Drawing(NamedTuple):
    """How maps are scaled, what logits become, and whether there is a page."""

    scale: Scale = "photo"
    activation: Activation = "softmax"
    html: bool = False

    @classmethod
    def of(cls, scale: str, activation: str, html: bool) -> "Drawing":
        """What is meant. Raises ValueError for an unknown scale or activation."""
        return cls(
            one_of("--scale", scale, get_args(Scale)),
            one_of("--probability", activation, get_args(Activation)),
            html,
        )


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


def write_cams(
    model: VGG, photos: Sequence[Path], plan: Plan, out: Path, drawing: Drawing = Drawing()
) -> Written:
    """Explain the photos, and write their pictures, maps.npz and cam.json into the folder `out`.

    For a page also cam.html, of the first 500 photos.

    A picture is written as soon as its photo is done. Ctrl-C ends the explaining; the photos that
    are done by then are kept. Raises ImageError where no photo can be read.
    """
    problems: list[str] = []
    done: dict[Path, ExplainedPhoto] = {}  # by picture
    names = Names(".png")
    title = f"{model.config.arch}, {model.provenance.source}, convention {plan.convention!r}"
    page = CamPage(plan.convention, drawing.activation, min(len(photos), MOST_PHOTOS))
    try:
        with contextlib.closing(
            explain_photos(model, photos, plan, problems, Shown())
        ) as explained:
            for found in explained:
                picture = out / names(found.photo)
                figure = cam_figure(found, title, drawing.scale, drawing.activation)
                write_bytes(picture, png(figure))
                if drawing.html and len(done) < MOST_PHOTOS:
                    page.add(found)
                # What is large is in the picture.
                done[picture] = dataclasses.replace(
                    found, pixels=found.pixels[:0], heatmaps={}, shared={}
                )
    except KeyboardInterrupt:
        if not done:
            raise
    if not done:
        raise ImageError(*problems)
    pictures = {picture: p.photo for picture, p in done.items()}
    maps = [found for p in done.values() for maps in p.maps.values() for found in maps]
    left = len(photos) - len(done) - len(problems)
    record = _json(model, plan, done, problems, left, drawing.activation)
    save_npz(out / "maps.npz", _arrays(list(done.values()), plan))
    write_bytes(out / "cam.json", json.dumps(record, indent=1).encode())
    if drawing.html:
        shown_of = f"{min(len(done), MOST_PHOTOS)} of {len(photos)} photos"
        write_bytes(out / "cam.html", page.html(f"{title}: {shown_of}").encode())
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
    done: Mapping[Path, ExplainedPhoto],
    problems: Sequence[str],
    left: int,
    activation: Activation,
) -> dict[str, Any]:
    pictures = {photo.photo: picture.name for picture, photo in done.items()}
    chances = {
        photo.photo: probabilities(photo.logits, activation)
        for photo in done.values()
        if len(photo.logits)
    }

    def chance(found: PhotoMap) -> float | None:
        value = np.nan if found.label is None else float(chances[found.photo][found.label])
        return value if math.isfinite(value) else None

    return {
        "architecture": model.config.arch,
        "source": plain(model.provenance.source),
        "sha256": model.provenance.sha256,
        "convention": plan.convention,
        "probability": activation,
        "size": list(plan.size),
        "partial": left > 0,
        "photos_not_looked_at": left,
        "problems": list(map(plain, problems)),
        "maps": [
            {
                "photo": shown(found.photo),
                "picture": pictures[found.photo],
                "method": found.method,
                "class": found.label,
                "name": plain(found.name),
                "score": found.score if math.isfinite(found.score) else None,
                "probability": chance(found),
                "flag": found.flag.name.lower(),
                "peak": found.peak,
            }
            for photo in done.values()
            for maps in photo.maps.values()
            for found in maps
        ],
    }
