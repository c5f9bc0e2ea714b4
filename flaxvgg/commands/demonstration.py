"""The demonstration: a few photos through the network, and what can be seen of it."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.methods import explain
from flaxvgg.commands.console import console, say_where, step
from flaxvgg.commands.folders import Names, check_folder, make_folder, png, write_bytes
from flaxvgg.commands.tables import sparsity_table
from flaxvgg.heads.sample_head import packaged_head, with_sample_head
from flaxvgg.images.batches import map_readable, save_npz
from flaxvgg.images.loading import find_images, load_pixels
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from flaxvgg.plotting.demo import Maps, demo_figure
from flaxvgg.sparsity.counting import count_images, total_counts
from flaxvgg.sparsity.survey import zeros_by_photo


def run_demo(
    load: Callable[[], VGG], photos: Sequence[Path] | None, size: tuple[int, int], out: Path
) -> list[str]:
    """Write features.npz, zeros.json and demo.png of the photos into the folder `out`.

    Gives a line for each photo that cannot be read and was left out. Raises ImageError where none
    can, ValueError where there are no photos, `out` is no folder, or matplotlib is missing.
    """
    paths = find_images(photos) if photos else sample_photos()
    if not paths:
        raise ValueError("no photos: name some, or install scikit-image, which carries eight")
    check_folder(out)
    model = load()
    sampled = not model.config.head and not packaged_head().misfit(model)
    if sampled:
        model = with_sample_head(model)
    with step("looking at") as found:
        look, problems = _look_for_classes if sampled else _look, []
        paths, seen = map_readable(look, model, paths, size, "photos", problems)
        found.append(f"{len(paths)} photos at {size[0]}x{size[1]}")
    names = list(map(Names(), paths))
    counts = {layer: seen["counts"][layer] for layer in _counted(model)}
    zeros = zeros_by_photo(counts)
    title = f"{model.config.arch}, {model.provenance.source}"
    console.print(sparsity_table(total_counts(model, counts), zeros, title))
    with step("drawing"):  # everything before the first file is written
        by_photo = {
            layer: dict(zip(names, map(float, z), strict=True)) for layer, z in zeros.items()
        }
        text = json.dumps({"zero_fraction": by_photo}, indent=1)
        pictures = [load_pixels(path, size, model.preprocessing) for path in paths]
        middle, last = _mapped(model)
        maps = [Maps(f"Eigen-CAM\n({last})", seen["eigen"])]
        if sampled:
            titles = _answers(seen["logits"], model.classes)
            maps.append(Maps("CAM\n(sample head)", seen["cams"], titles))
        figure = png(demo_figure(names, pictures, (middle, seen["middle"]), maps, zeros, title))
    with step("writing") as found:
        make_folder(out)
        kept = {model.config.resolve("features"): seen["features"], "gap": seen["gap"]}
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


def _answers(logits: Float[np.ndarray, "n classes"], names: Sequence[str]) -> list[str]:
    """The likeliest class of each photo and its probability, of which all may be low."""
    tops = [(row.max(), names[row.argmax()]) for row in logits.astype(np.float64)]
    return [f"{name} {1 / (1 + np.exp(-top)):.2f}" for top, name in tops]


def _counted(model: VGG) -> list[str]:
    """The layers whose zeros are counted."""
    return [layer.name for layer in model.config.conv_stack if layer.kind in ("relu", "max_pool")]


def _mapped(model: VGG) -> tuple[str, str]:
    """The last activations of blocks 4 and 5: relu4_3 and relu5_3 in vgg16."""
    last = {name[len("relu")]: name for name in _counted(model) if name.startswith("relu")}
    return last["4"], last["5"]
