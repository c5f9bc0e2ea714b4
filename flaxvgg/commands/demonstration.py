"""The demonstration: a few photos through the network, and what can be seen of it."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from rich.console import Group

from flaxvgg.cam.methods import explain
from flaxvgg.commands.console import Shown, say_where, show, step
from flaxvgg.commands.tables import sizes_table, sparsity_table
from flaxvgg.files.arrays import save_npz
from flaxvgg.files.folders import Names, check_apart, check_folder, make_folder, write_bytes
from flaxvgg.files.locking import alone_in
from flaxvgg.heads.sample_head import with_sample_head
from flaxvgg.images.batches import map_readable
from flaxvgg.images.loading import find_images, load_pixels, normalise
from flaxvgg.images.samples import sample_photos, title_of
from flaxvgg.network.model import VGG
from flaxvgg.plotting.demo import Maps, Sum, demo_figure
from flaxvgg.plotting.figures import check_drawing, png
from flaxvgg.sparsity.counting import count_images, total_counts
from flaxvgg.sparsity.survey import zeros_by_photo

# (H, W): what torchvision's recipe gives, a larger square, and a wide photo from a car.
SIZES = ((224, 224), (512, 512), (375, 1242))

_EIGEN = "Eigen-CAM of {}: the first principal component of its activations, whatever the class"


def run_demo(
    load: Callable[[], VGG],
    photos: Sequence[Path] | None,
    size: tuple[int, int],
    out: Path,
    as_json: bool = False,
) -> list[str]:
    """Write features.npz, zeros.json and demo.png of the photos into the folder `out`.

    Gives a line for each photo that cannot be read and was left out. Raises ImageError where none
    can, LockedError while another run writes there, ValueError where there are no photos, `out` is
    no folder, or matplotlib is missing.
    """
    paths = find_images(photos) if photos else sample_photos()
    if not paths:
        raise ValueError("no photos: name some, or install scikit-image, which carries eight")
    check_drawing()
    check_folder(out)
    check_apart(out, paths)
    with alone_in(out):
        return _run(load, paths, size, out, as_json)


def _run(
    load: Callable[[], VGG],
    paths: list[Path],
    size: tuple[int, int],
    out: Path,
    as_json: bool,
) -> list[str]:
    """The files of `run_demo`, of photos that are there, in a folder that nobody else writes to."""
    model = load()
    headed = None if model.config.head else _with_sample_head(model)
    sampled = headed is not None
    model = headed or model
    with step("looking at") as found:
        look, problems = _look_for_classes if sampled else _look, []
        paths, seen = map_readable(look, model, paths, size, "photos", problems, Shown())
        sums = [_sum_of_zeros(model, paths[0], at) for at in SIZES]
        found.append(f"{len(paths)} photos at {size[0]}x{size[1]}")
    names = list(map(Names(), paths))
    counts = {layer: seen["counts"][layer] for layer in _counted(model)}
    zeros = zeros_by_photo(counts)
    title = f"{model.config.arch}, {model.provenance.source}"
    last_map = model.config.resolve("features")
    by_photo = {layer: dict(zip(names, map(float, z), strict=True)) for layer, z in zeros.items()}
    by_size = {x.name: {"zeros": x.zeros, "values": x.values} for x in sums}
    record = {"zero_fraction": by_photo, "sizes": {names[0]: by_size}}
    sized = f"{last_map} of {paths[0].name}, resized (width x height)"
    tables = sparsity_table(total_counts(model, counts), zeros, title), sizes_table(sums, sized)
    show(lambda: Group(*tables), record, as_json=as_json)
    with step("drawing"):  # everything before the first file is written
        text = json.dumps(record, indent=1)
        pictures = [load_pixels(path, size, model.preprocessing) for path in paths]
        middle, last = _mapped(model)
        maps = [Maps(_EIGEN.format(last), seen["eigen"])]
        if sampled:
            titles = _answers(seen["logits"], model.classes)
            maps.append(Maps(_head_caption(model, paths), seen["cams"], titles))
        shown = [title_of(path) for path in paths]
        title = f"{model.config.arch.upper()}: {model.provenance.source}"
        features = middle, seen["middle"]
        figure = png(demo_figure(shown, pictures, features, maps, zeros, sums, title))
    with step("writing") as found:
        make_folder(out)
        kept = {last_map: seen["features"], "gap": seen["gap"]}
        save_npz(out / "features.npz", kept | {"photos": np.array([str(path) for path in paths])})
        write_bytes(out / "zeros.json", text.encode())
        write_bytes(out / "demo.png", figure)
        found += ["features.npz", "zeros.json", "demo.png"]
    say_where(out / "demo.png")
    return problems


def _look(model: VGG, images: Float[Array, "n h w 3"]) -> dict[str, Any]:
    middle, last = _mapped(model)
    taps = model.activations(images, [middle, "features"])
    return {
        "counts": count_images(model, images, _counted(model)),  # the same pass: XLA runs it once
        "middle": taps[middle],
        "eigen": explain(model, images, method="eigen_cam", layer=last).heatmaps()[:, 0],
        "features": taps["features"],
        "gap": taps["features"].mean(axis=(1, 2)),
    }


def _look_for_classes(model: VGG, images: Float[Array, "n h w 3"]) -> dict[str, Any]:
    """With the sample head: where the evidence for the likeliest class is, too."""
    # grad-cam's convention shows nothing where there is evidence against the class.
    found = explain(model, images, method="cam", convention="grad-cam")
    return _look(model, images) | {"cams": found.heatmaps()[:, 0], "logits": model(images)}


def _with_sample_head(model: VGG) -> VGG | None:
    try:
        return with_sample_head(model)
    except ValueError:  # there is none for these convolutions
        return None


def _head_caption(model: VGG, paths: Sequence[Path]) -> str:
    """What the maps of the sample head show, and what it knows of these photos."""
    caption = (
        f"CAM of the sample head's likeliest class and its probability; it knows "
        f"{len(model.classes)} things"
    )
    if set(paths) & set(sample_photos()):
        return f"{caption}, each from one photo, and these are among them"
    return f"{caption}: {', '.join(model.classes)}"


def _sum_of_zeros(model: VGG, photo: Path, size: tuple[int, int]) -> Sum:
    """The zeros of the last feature map of a photo that is resized, and not cropped, to a size."""
    recipe = dataclasses.replace(model.preprocessing, fit="stretch")
    images = normalise(load_pixels(photo, size, recipe)[None], recipe)
    zeros, values = _count_zeros(model, images)
    return Sum(size, int(zeros), int(values))


@jax.jit
def _count_zeros(model: VGG, images: Float[Array, "1 h w 3"]) -> tuple[jax.Array, jax.Array]:
    features = model.features(images)
    return (features == 0).sum(), jnp.asarray(features.size)


def _answers(logits: Float[np.ndarray, "n classes"], names: Sequence[str]) -> list[str]:
    """The likeliest class of each photo and its probability, of which all may be low."""
    tops = [
        (1 / (1 + np.exp(-row.max())), names[row.argmax()]) for row in logits.astype(np.float64)
    ]
    return [f"{name} {p:.0%}" if p >= 0.5 else f"none ({name} {p:.0%})" for p, name in tops]


def _counted(model: VGG) -> list[str]:
    """The layers whose zeros are counted."""
    return [layer.name for layer in model.config.conv_stack if layer.kind in ("relu", "max_pool")]


def _mapped(model: VGG) -> tuple[str, str]:
    """The last activations of blocks 4 and 5: relu4_3 and relu5_3 in vgg16."""
    last = {name[len("relu")]: name for name in _counted(model) if name.startswith("relu")}
    return last["4"], last["5"]
