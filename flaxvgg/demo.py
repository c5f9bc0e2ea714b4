"""The demonstration: a few photos through the network, and what can be seen of it."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.methods import explain
from flaxvgg.console import console, step
from flaxvgg.extraction import map_photos, save_npz
from flaxvgg.folders import check_folder, png, write_bytes
from flaxvgg.images import find_images, load_pixels
from flaxvgg.model import VGG
from flaxvgg.plotting.demo import demo_figure
from flaxvgg.samples import sample_photos
from flaxvgg.sparsity import count_images, total_counts
from flaxvgg.survey import zeros_by_photo
from flaxvgg.tables import sparsity_table


def run_demo(
    load: Callable[[], VGG], photos: Sequence[Path] | None, size: tuple[int, int], out: Path
) -> None:
    """Write features.npz, zeros.json and demo.png of the photos into the folder `out`.

    Raises ValueError where there are no photos, `out` is no folder, or matplotlib is missing.
    """
    paths = find_images(photos) if photos else sample_photos()
    if not paths:
        raise ValueError("no photos: name some, or install scikit-image, which carries eight")
    check_folder(out)
    model = load()
    out.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in paths]
    with step("looking at") as found:
        seen = map_photos(_look, model, paths, size, "photos")
        found.append(f"{len(paths)} photos at {size[0]}x{size[1]}")
    counts = {layer: seen["counts"][layer] for layer in _counted(model)}
    zeros = zeros_by_photo(counts)
    title = f"{model.config.arch}, {model.provenance.source}"
    console.print(sparsity_table(total_counts(model, counts), zeros, title))
    with step("writing") as found:
        kept = {name: seen[name] for name in ("pool5", "gap")}
        save_npz(out / "features.npz", kept | {"photos": np.array([str(path) for path in paths])})
        by_photo = {
            layer: dict(zip(names, map(float, z), strict=True)) for layer, z in zeros.items()
        }
        text = json.dumps({"zero_fraction": by_photo}, indent=1)
        write_bytes(out / "zeros.json", text.encode())
        pictures = [load_pixels(path, size, model.preprocessing) for path in paths]
        middle, last = _mapped(model)
        alike, cams = (middle, seen["middle"]), (last, seen["cams"])
        figure = demo_figure(names, pictures, alike, cams, zeros, title)
        write_bytes(out / "demo.png", png(figure))
        found += ["features.npz", "zeros.json", "demo.png"]
    console.print(f"look at {out / 'demo.png'}", style="bold", highlight=False, soft_wrap=True)


def _look(model: VGG, images: Float[Array, "n h w 3"]) -> dict[str, Any]:
    middle, last = _mapped(model)
    taps = model.activations(images, [middle, "pool5"])
    return {
        "counts": count_images(model, images, _counted(model)),  # the same pass: XLA runs it once
        "middle": taps[middle],
        "cams": explain(model, images, method="eigen_cam", layer=last).heatmaps()[:, 0],
        "pool5": taps["pool5"],
        "gap": taps["pool5"].mean(axis=(1, 2)),
    }


def _counted(model: VGG) -> list[str]:
    """The layers whose zeros are counted."""
    return [layer.name for layer in model.config.conv_stack if layer.kind in ("relu", "max_pool")]


def _mapped(model: VGG) -> tuple[str, str]:
    """The last activations of blocks 4 and 5: relu4_3 and relu5_3 in vgg16."""
    before_pool = {name: before for before, name in itertools.pairwise(_counted(model))}
    return before_pool["pool4"], before_pool["pool5"]
