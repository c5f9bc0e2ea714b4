"""The demonstration: a few photos through the network, and what can be seen of it."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flaxvgg.cam.methods import explain
from flaxvgg.checkpoint import write_atomically
from flaxvgg.console import console, step
from flaxvgg.extraction import map_photos, save_npz
from flaxvgg.images import find_images, fit_image, open_image
from flaxvgg.model import VGG
from flaxvgg.plotting.demo import demo_figure
from flaxvgg.samples import sample_photos
from flaxvgg.tables import zeros_table


def run_demo(
    load: Callable[[], VGG], photos: Sequence[Path] | None, size: tuple[int, int], out: Path
) -> None:
    """Write features.npz, zeros.json and demo.png of the photos into the folder `out`.

    Raises ValueError where there are no photos, or `out` is no folder.
    """
    paths = find_images(photos) if photos else sample_photos()
    if not paths:
        raise ValueError("no photos: name some, or install scikit-image, which carries eight")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder")
    model = load()
    out.mkdir(parents=True, exist_ok=True)
    names = [path.stem for path in paths]
    with step("looking at") as found:
        arrays = map_photos(_look, model, paths, size, "photos")
        found.append(f"{len(paths)} photos at {size[0]}x{size[1]}")
    zeros = {layer: arrays[f"zeros {layer}"] for layer in _counted(model)}
    console.print(zeros_table(names, zeros))
    with step("writing") as found:
        kept = {name: arrays[name] for name in ("pool5", "gap")}
        save_npz(out / "features.npz", kept | {"photos": np.array([str(path) for path in paths])})
        percent = {
            layer: dict(zip(names, map(float, z), strict=True)) for layer, z in zeros.items()
        }
        text = json.dumps({"zero_fraction": percent}, indent=1)
        write_atomically(
            (out / "zeros.json").absolute(), lambda target: target.write_text(text, "utf-8")
        )
        pictures = [fit_image(open_image(path), size, model.preprocessing) for path in paths]
        title = f"{model.config.arch}, {model.provenance.source}"
        middle, last = _mapped(model)
        alike, cams = (middle, arrays[middle]), (last, arrays["eigen_cam"])
        figure = demo_figure(names, pictures, alike, cams, zeros, title)
        write_atomically(
            (out / "demo.png").absolute(), lambda target: figure.savefig(target, format="png")
        )
        found += ["features.npz", "zeros.json", "demo.png"]
    console.print(f"look at {out / 'demo.png'}", style="bold", highlight=False)


def _look(model: VGG, images: Float[Array, "n h w 3"]) -> dict[str, Array]:
    taps = model.activations(images, _counted(model))
    zeros = {f"zeros {name}": jnp.mean(tap == 0, axis=(1, 2, 3)) for name, tap in taps.items()}
    middle, last = _mapped(model)
    maps = {name: taps[name] for name in (middle, "pool5")}
    cams = explain(model, images, method="eigen_cam", layer=last).heatmaps()[:, 0]
    return zeros | maps | {"gap": taps["pool5"].mean(axis=(1, 2)), "eigen_cam": cams}


def _counted(model: VGG) -> list[str]:
    """The layers whose zeros are counted."""
    return [layer.name for layer in model.config.conv_stack if layer.kind in ("relu", "max_pool")]


def _mapped(model: VGG) -> tuple[str, str]:
    """The last activations of blocks 4 and 5: relu4_3 and relu5_3 in vgg16."""
    before_pool = {name: before for before, name in itertools.pairwise(_counted(model))}
    return before_pool["pool4"], before_pool["pool5"]
