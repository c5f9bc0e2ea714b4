"""What is printed: what a model is, what its photos gave, and what it runs on."""

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from flaxvgg import __version__
from flaxvgg.cam.explanation import Flag
from flaxvgg.cam.photos import FLAG_WORDS, PhotoMap, Plan, shown
from flaxvgg.commands.console import console
from flaxvgg.files.foreign import plain
from flaxvgg.network.config import ARCHITECTURES
from flaxvgg.network.model import VGG
from flaxvgg.network.prepared import prepared_bytes
from flaxvgg.network.provenance import PREPROCESSING, Provenance
from flaxvgg.perceptual.photos import Compared
from flaxvgg.plotting.demo import Sum
from flaxvgg.sparsity.report import SparsityReport
from flaxvgg.sparsity.summary import headline, percent
from flaxvgg.weights.mapping import model_arrays

_MOST_ROWS = 60  # of a table of maps


def compact(title: str = "", caption: str = "") -> Table:
    """An empty table that is no wider than its texts."""
    look = {"box": box.SIMPLE, "padding": (0, 1, 0, 0), "pad_edge": False, "show_edge": False}
    return Table(title=title or None, caption=caption or None, **look)


def fitted(table: Table, *spare: str) -> Table:
    """The table without the first of the `spare` columns, as many as the terminal has no room for.

    Its caption says which.
    """
    unbounded = console.options.update(max_width=1 << 16)

    def is_too_wide() -> bool:
        return Measurement.get(console, unbounded, table).maximum > console.width

    if is_too_wide():
        table.padding = 0
    left_out = []
    for name in spare:
        if not is_too_wide():
            break
        if len(rest := [column for column in table.columns if column.header != name]) < len(
            table.columns
        ):
            table.columns = rest
            left_out.append(name)
    if left_out:
        told = f"{', '.join(left_out)}: in a wider window, or --json"
        table.caption = f"{table.caption}; {told}" if table.caption else told
    return table


def facts(rows: Mapping[str, str | Sequence[str]]) -> Table:
    """A table of names and values, each a line or several; rows without a value are left out."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            lines = [value] if isinstance(value, str) else value
            table.add_row(name, "\n".join(map(plain, lines)))
    return table


def model_facts(model: VGG) -> dict[str, str]:
    """What a model is and where its weights come from, for `facts`."""
    config, provenance = model.config, model.provenance
    arrays = model_arrays(model).values()
    megabytes = sum(array.nbytes for array in arrays) / 1e6
    if not config.head:
        classes = f"no logits: {config.no_head_because}"
    elif model.classes:
        more = " ..." if len(model.classes) > 5 else ""
        classes = f"{len(model.classes)}: {', '.join(model.classes[:5])}{more}"
    else:
        classes = f"{config.num_classes}, without names"
    return {
        "architecture": config.arch,
        "parameters": f"{sum(array.size for array in arrays):,} ({megabytes:.0f} MB)",
        "prepared": f"{prepared_bytes(model) / 1e6:.0f} MB more, for images of 224x224",
        "stored as": str(np.dtype(model.conv_stack.conv1_1.param_dtype)),
        "source": provenance.source,
        "sha256": provenance.sha256 or "none: not read from a file",
        "preprocessing": _recipe(provenance),
        "note": list(provenance.notes),
        "classes": classes,
        "converted by": ", ".join(f"{name} {version}" for name, version in provenance.versions),
    }


def _recipe(provenance: Provenance) -> str:
    """The recipe's name, its formula where it has none, and whether it is a guess."""
    recipe = provenance.preprocessing
    known = PREPROCESSING.get(recipe.name) == recipe
    name = recipe.name if known else f"{recipe.name}: {recipe.formula}"
    if not provenance.guess:
        return name
    return f"{name} (a guess: {provenance.guess}; flaxvgg convert --preprocessing sets it)"


def environment_facts() -> dict[str, str]:
    """Versions, devices and architectures, for `facts`."""
    import jax

    names = ("jax", "flax", "numpy", "orbax-checkpoint", "pillow")
    devices = ", ".join(f"{device.device_kind} ({device.platform})" for device in jax.devices())
    return {
        "flaxvgg": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
        "devices": devices,
        "architectures": ", ".join(ARCHITECTURES),
    }


def cam_table(maps: Sequence[PhotoMap], plan: Plan) -> Table:
    """Where each map peaks, photo by photo and class by class, and what is wrong with it."""
    height, width = plan.size
    caption = f"peaks in pixels of the {height}x{width} that the network sees"
    if len(maps) > _MOST_ROWS:
        caption = f"the first {_MOST_ROWS} of {len(maps)} maps: all are in cam.json; {caption}"
    table = compact(f"maps, convention {plan.convention!r}", caption)
    for column in ("photo", "class", "score", "method", "peak x, y"):
        justify = "right" if column in ("score", "peak x, y") else "left"
        whole = column not in ("photo", "class")
        table.add_column(column, justify=justify, overflow="fold", no_wrap=whole)
    by_class: dict[tuple[Path, int | None], list[PhotoMap]] = {}
    for found in maps:
        by_class.setdefault((found.photo, found.label), []).append(found)
    photo = None
    for found in [x for group in by_class.values() for x in group][:_MOST_ROWS]:
        first = found is by_class[found.photo, found.label][0]
        peak = "{}, {}".format(*found.peak) if found.peak else ""
        flag = [(FLAG_WORDS[found.flag], "red")] if found.flag != Flag.FINE else []
        table.add_row(
            shown(found.photo) if found.photo != photo else "",
            plain(found.name) if first else "",
            f"{found.score:.3g}" if found.label is not None else "",
            found.method,
            Text.assemble(peak, " " if peak and flag else "", *flag),
        )
        photo = found.photo
    return table


def features_table(model: VGG, arrays: Mapping[str, np.ndarray]) -> Table:
    """One row a photo: the fraction of zeros of each layer that was extracted."""
    layers = [name for name in arrays if name not in ("photos", "gap")]
    source = plain(model.provenance.source)
    table = compact("zeros", f"{model.config.arch}, {source}")
    table.add_column("photo", overflow="fold")
    for layer in layers:
        shape = "x".join(map(str, arrays[layer].shape[1:]))
        table.add_column(f"{layer}\n{shape}", justify="right")
    for i, photo in enumerate(arrays["photos"]):
        table.add_row(
            shown(Path(photo)), *(f"{(arrays[name][i] == 0).mean():.1%}" for name in layers)
        )
    return table


def features_json(model: VGG, arrays: Mapping[str, np.ndarray], out: Path) -> dict[str, Any]:
    """What was extracted, as a JSON value: each array's shape, and its zeros photo by photo."""
    photos = arrays["photos"]
    return {
        "architecture": model.config.arch,
        "source": plain(model.provenance.source),
        "written": shown(out),
        "photos": [shown(Path(photo)) for photo in photos],
        "arrays": {
            name: {
                "shape": list(array.shape),
                "zeros": (array == 0).reshape(len(photos), -1).mean(axis=1).tolist(),
            }
            for name, array in arrays.items()
            if name != "photos"
        },
    }


def sparsity_table(report: SparsityReport, zeros: Mapping[str, np.ndarray], caption: str) -> Table:
    """Zeros by layer over all photos, their spread, and what was negative before.

    `zeros` is the fraction of zeros of each photo (N,) by layer.
    """
    table = compact(headline(report), plain(caption))
    table.add_column("layer", no_wrap=True)
    for name in ("values", "zeros", "by photo", "negative before", "silent", "dead", "of"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer in report:
        total, spread = layer.values.sum(), 100 * zeros[layer.name]
        negatives = layer.negatives_before
        table.add_row(
            layer.name,
            f"{total:,}",
            percent(layer.zero_fraction),
            f"{spread.min():.1f}-{spread.max():.1f}",
            "" if negatives is None else percent(negatives.sum() / total),
            f"{layer.silent.sum() / layer.images:.1f}",
            f"{layer.dead.sum()}",
            f"{layer.channels}",
        )
    return fitted(table, "values", "silent", "of", "by photo")


def sizes_table(sums: Sequence[Sum], title: str) -> Table:
    """How many features of one photo are zero at several sizes, and how many are not."""
    table = compact(plain(title))
    for name in ("size", "values", "zero", "not zero", "zeros"):
        table.add_column(name, justify="right")
    for one in sums:
        rest, share = one.values - one.zeros, percent(one.zeros / one.values)
        table.add_row(one.name, f"{one.values:,}", f"{one.zeros:,}", f"{rest:,}", share)
    return fitted(table, "not zero")


def compare_table(found: Sequence[Compared], source: str) -> Table:
    """One row a photo, in the order given: how far it is from its reference."""
    several = len({one.reference for one in found}) > 1
    caption = plain(source) if several else f"from {shown(found[0].reference)}; {plain(source)}"
    title = f"nearest first, by {next(iter(found[0].values))}"
    table = compact(title, caption)
    for column in (["reference"] if several else []) + ["photo"]:
        table.add_column(column, overflow="fold")
    for metric in found[0].values:
        table.add_column(metric, justify="right")
    for one in found[:_MOST_ROWS]:
        names = [shown(one.reference)] if several else []
        values = (f"{value:.5g}" for value in one.values.values())
        table.add_row(*names, shown(one.photo), *values)
    return table


_OF_DISTANCES = {"median": np.median, "least": np.min, "most": np.max}


def distances_table(found: Mapping[str, np.ndarray]) -> Table:
    """One row a metric: the median, the least and the most of all pairs."""
    table = Table(title=f"{len(next(iter(found.values())))} pairs", box=box.SIMPLE)
    for column in ("", *_OF_DISTANCES):
        table.add_column(column, justify="right" if column else "left")
    for name, values in found.items():
        table.add_row(name, *(f"{of(values):.5g}" for of in _OF_DISTANCES.values()))
    return table


def distance_facts(found: Mapping[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """The same as a JSON value, in which what is infinite, as PSNR of equal images, is null."""
    return {
        name: {
            what: value if math.isfinite(value := float(of(values))) else None
            for what, of in _OF_DISTANCES.items()
        }
        for name, values in found.items()
    }


def localisation_table(found: Mapping[str, Mapping[str, float]]) -> Table:
    """One row a method: how often its maps find the object."""
    table = compact("do the maps find the objects?")
    table.add_column("method")
    for name in next(iter(found.values())):
        table.add_column(name, justify="right")
    for method, values in found.items():
        cells = (percent(x) if isinstance(x, float) else f"{x:,}" for x in values.values())
        table.add_row(method, *cells)
    return table
