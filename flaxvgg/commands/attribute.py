"""flaxvgg attribute: which pixels of photos speak for a class, and which against it.

`attribution.photos.plan_attributions` reads the options and `attribute_photos` goes by
`attribution.methods.attribute`; here is what is shown and written.
"""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import Shown, clear_errors, finish, say_where, show
from flaxvgg.commands.options import load_model, one_of, parse_size

if TYPE_CHECKING:
    from flaxvgg.attribution.photos import AttributedPhoto, Plan
    from flaxvgg.network.model import VGG
    from flaxvgg.plotting.cam import Activation


def attribute(
    photos: Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.")],
    weights: options.Weights = "IMAGENET1K_V1",
    arch: options.Arch = "vgg16",
    method: Annotated[
        str,
        typer.Option(help="Methods, comma-separated (lrp, integrated_gradients, ...), or all."),
    ] = "lrp",
    composite: Annotated[
        str | None,
        typer.Option(help="For lrp: composites of rules, comma-separated; a row for each."),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Class numbers or names, comma-separated; or each photo's top3.")
    ] = "top3",
    samples: Annotated[
        int | None, typer.Option(help="For methods that draw: how many samples.", min=1)
    ] = None,
    seed: Annotated[int, typer.Option(help="For methods that draw.")] = 0,
    size: options.Size = "224x224",
    out: Annotated[
        Path, typer.Option(help="The folder for pictures, attributions.npz, attribute.json.")
    ] = Path("attribution"),
    probability: options.Probability = "softmax",
    html: Annotated[
        bool,
        typer.Option("--html", help="Also attribute.html, one page to look through all maps."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show which pixels of photos speak for a class: LRP, gradients, occlusion, RISE.

    Ctrl-C stops; photos that are done by then are kept. Exit code 1 says that some photos could not
    be read.
    """
    with clear_errors("nothing was written"):
        from flaxvgg.attribution.photos import (
            parse_composites,
            parse_methods,
            plan_attributions,
        )
        from flaxvgg.files.folders import check_apart, check_folder
        from flaxvgg.files.locking import alone_in
        from flaxvgg.images.loading import find_images
        from flaxvgg.plotting.cam import Activation
        from flaxvgg.plotting.figures import check_drawing

        hw, methods = parse_size(size), parse_methods(method)
        activation = one_of("--probability", probability, get_args(Activation))
        composites = parse_composites(composite)
        check_drawing()
        check_folder(out)
        paths = find_images(photos)
        check_apart(out, paths)
        with alone_in(out):
            model = load_model(weights, arch)
            plan = plan_attributions(
                model, methods, classes, hw, composites=composites, samples=samples, seed=seed
            )
            written = _write(model, paths, plan, out, activation, html)
        show(lambda: _table(written.done, plan), written.record, as_json=as_json)
        best = next(iter(written.done)) if len(written.done) == 1 else out
        say_where(out / "attribute.html" if html else best)
        left = f"{written.left} of {len(paths)} photos were not looked at" if written.left else ""
        finish(written.problems, left)


@dataclasses.dataclass(frozen=True)
class _Written:
    """Photos by their pictures, those that could not be read, and how many are left."""

    done: dict[Path, "AttributedPhoto"]
    problems: list[str]
    left: int
    record: dict[str, Any]  # attribute.json


def _write(
    model: "VGG",
    photos: Sequence[Path],
    plan: "Plan",
    out: Path,
    activation: "Activation",
    html: bool,
) -> _Written:
    """A picture of each photo as soon as it is done, then attributions.npz and attribute.json.

    For a page also attribute.html, of the first 500 photos.
    """
    import numpy as np

    from flaxvgg.attribution.photos import attribute_photos
    from flaxvgg.files.arrays import save_npz
    from flaxvgg.files.folders import Names, write_bytes
    from flaxvgg.images.loading import ImageError
    from flaxvgg.plotting.attribution import photo_figure
    from flaxvgg.plotting.figures import png
    from flaxvgg.plotting.maps_page import MOST_PHOTOS, AttributionPage

    problems: list[str] = []
    done: dict[Path, AttributedPhoto] = {}
    names = Names(".png")
    title = f"{model.config.arch}, {model.provenance.source}"
    page = AttributionPage(activation, min(len(photos), MOST_PHOTOS))
    try:
        with contextlib.closing(
            attribute_photos(model, photos, plan, problems, Shown())
        ) as attributed:
            for found in attributed:
                picture = out / names(found.photo)
                write_bytes(picture, png(photo_figure(found, title, activation)))
                if html and len(done) < MOST_PHOTOS:
                    page.add(found)
                done[picture] = found
    except KeyboardInterrupt:
        if not done:
            raise
    if not done:
        raise ImageError(*problems)
    left = len(photos) - len(done) - len(problems)
    every = list(done.values())
    maps = {row: np.stack([x.maps[row] for x in every]) for row in plan.methods}
    about = {
        "photos": np.array([str(x.photo) for x in every]),
        "classes": np.array([x.labels for x in every]),
        "scores": np.array([x.scores for x in every], np.float32),
    }
    save_npz(out / "attributions.npz", maps | about)
    record = _json(model, plan, done, problems, left, activation)
    write_bytes(out / "attribute.json", json.dumps(record, indent=1).encode())
    if html:
        shown_of = f"{min(len(done), MOST_PHOTOS)} of {len(photos)} photos"
        write_bytes(out / "attribute.html", page.html(f"{title}: {shown_of}").encode())
    return _Written(done, problems, left, record)


def _json(
    model: "VGG",
    plan: "Plan",
    done: Mapping[Path, "AttributedPhoto"],
    problems: Sequence[str],
    left: int,
    activation: "Activation",
) -> dict[str, Any]:
    import numpy as np

    from flaxvgg.files.foreign import plain, shown
    from flaxvgg.plotting.cam import chances_of
    from flaxvgg.plotting.page.viewing import finite

    return {
        "architecture": model.config.arch,
        "source": plain(model.provenance.source),
        "sha256": model.provenance.sha256,
        "size": list(plan.size),
        "methods": list(plan.methods),
        "probability": activation,
        "photos_not_looked_at": left,
        "problems": list(map(plain, problems)),
        "photos": [
            {
                "photo": shown(found.photo),
                "picture": picture.name,
                "classes": [
                    {
                        "class": label,
                        "name": plain(name),
                        "score": finite(score),
                        "probability": finite(float(chance)),
                    }
                    for label, name, score, chance in zip(
                        found.labels,
                        found.names,
                        found.scores,
                        chances_of(found.logits, np.array(found.labels), activation),
                        strict=True,
                    )
                ],
            }
            for picture, found in done.items()
        ],
    }


def _table(done: dict[Path, "AttributedPhoto"], plan: "Plan"):
    """For each photo and class, its score and what each method's attributions add up to."""
    from flaxvgg.cam.photos import shown
    from flaxvgg.commands.tables import compact
    from flaxvgg.files.foreign import plain

    table = compact("sums of attributions", "all maps are in attributions.npz")
    table.add_column("photo", overflow="fold")
    table.add_column("class", overflow="fold")
    for column in ("score", *plan.methods):
        table.add_column(column, justify="right", overflow="fold")
    for found in list(done.values())[:20]:
        for k, name in enumerate(found.names):
            sums = [f"{maps[k].sum():.3g}" for maps in found.maps.values()]
            photo = "" if k else shown(found.photo)
            table.add_row(photo, plain(name), f"{found.scores[k]:.3g}", *sums)
    return table
