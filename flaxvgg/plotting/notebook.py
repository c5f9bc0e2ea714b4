"""Results as a notebook shows them by itself: small tables of HTML, with pictures in the text."""

import base64
import html
import importlib.util
import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from flaxvgg.attribution.attribution import Attribution
from flaxvgg.cam.explanation import Explanation, Flag
from flaxvgg.cam.photos import FLAG_WORDS
from flaxvgg.files.foreign import plain
from flaxvgg.network.model import AnyArray
from flaxvgg.plotting.attribution import COLOURS, scale_of
from flaxvgg.sparsity.report import SparsityReport

_MOST_IMAGES, _MOST_CLASSES = 6, 6
_SIDE = 96  # pixels of the longer side of a picture
_CELL = 'style="text-align:right"'


def explanation_html(explanation: Explanation) -> str:
    """A row for each image and a cell for each class: its heat map, score, and what is wrong."""
    heat = np.asarray(explanation.heatmaps(_fitted(explanation.image_size)), np.float32)
    flags, scores = np.asarray(explanation.flags), np.asarray(explanation.scores)
    words = [[FLAG_WORDS[Flag(flag)] if flag != Flag.FINE else "" for flag in row] for row in flags]
    pictures = [[_picture(one, "inferno") for one in row[:_MOST_CLASSES]] for row in _first(heat)]
    return _maps_html(repr(explanation), explanation.classes, scores, pictures, words)


def attribution_html(attribution: Attribution) -> str:
    """A row for each image and a cell for each class: its signed map, red for and blue against."""
    maps = np.asarray(attribution.values.sum(axis=-1), np.float32)
    height, width = _fitted(maps.shape[-2:])
    pictures = []
    for row in _first(maps):
        signed = row[:_MOST_CLASSES] / scale_of(row)
        small = [_resized(np.nan_to_num(one), (height, width)) for one in signed]
        pictures.append([_picture(0.5 + 0.5 * one, COLOURS) for one in small])
    finite = np.asarray(np.isfinite(maps).all(axis=(-2, -1)))
    words = [["" if fine else "not finite" for fine in row] for row in finite.tolist()]
    scores = np.asarray(attribution.scores)
    return _maps_html(repr(attribution), attribution.classes, scores, pictures, words)


def report_html(report: SparsityReport) -> str:
    """A row for each layer, with the part that is zero as a bar."""
    head = "<th>layer</th><th></th><th>zeros</th><th>of</th><th>dead channels</th>"
    rows = []
    for layer in report:
        share = layer.zero_fraction
        full = f"width:{120 * share:.0f}px;height:0.8em;background:currentColor;opacity:0.6"
        bar = f'<div style="width:120px;outline:1px solid #8888"><div style="{full}"></div></div>'
        cells = f"{share:.1%}", f"{layer.values.sum():,}", f"{layer.dead.sum()} of {layer.channels}"
        rows.append(f"<td>{_text(layer.name)}</td><td>{bar}</td>" + _cells(cells))
    about = f"{report.arch}, {report.source}: {report.images:,} images"
    return _table(about, head, rows)


def _maps_html(
    about: str,
    classes: Int[AnyArray, "n k"],
    scores: Float[np.ndarray, "n k"],
    pictures: Sequence[Sequence[str]],
    words: Sequence[Sequence[str]],
) -> str:
    labels = np.asarray(classes)
    count, columns = labels.shape
    rows = []
    for i, row in enumerate(pictures):
        cells = []
        for k, picture in enumerate(row):
            label = f"class {labels[i, k]}" if labels[i, k] >= 0 else ""
            score = f"{scores[i, k]:.3g}" if np.isfinite(scores[i, k]) else ""
            told = ", ".join(filter(None, (label, score, words[i][k])))
            cells.append(f"<td>{picture}<br>{told}</td>")
        rows.append(f"<td>image {i}</td>" + "".join(cells))
    left = []
    if count > len(rows):
        left.append(f"{count - len(rows)} more images")
    if columns > _MOST_CLASSES:
        left.append(f"{columns - _MOST_CLASSES} more classes")
    return _table(about, "", rows, f"and {', '.join(left)}" if left else "")


def _table(about: str, head: str, rows: Sequence[str], below: str = "") -> str:
    header = f"<thead><tr>{head}</tr></thead>" if head else ""
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    rest = f"<div>{below}</div>" if below else ""
    return f"<div>{_text(about)}</div><table>{header}<tbody>{body}</tbody></table>{rest}"


def _cells(values: Sequence[str]) -> str:
    return "".join(f"<td {_CELL}>{value}</td>" for value in values)


def _text(text: str) -> str:
    return html.escape(plain(text))


def _first(maps: np.ndarray) -> np.ndarray:
    return maps[:_MOST_IMAGES]


def _fitted(size: Sequence[int]) -> tuple[int, int]:
    """The size (H, W) of a picture of something of this size."""
    most = max(size)
    return max(1, size[0] * _SIDE // most), max(1, size[1] * _SIDE // most)


def _resized(values: Float[np.ndarray, "h w"], size: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.asarray(values, np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BOX))


def _picture(values: Float[np.ndarray, "h w"], colours: str) -> str:
    """Values in [0, 1] as a picture in the text; in greys where matplotlib is not installed."""
    values = np.clip(np.nan_to_num(values), 0, 1)
    if importlib.util.find_spec("matplotlib") is None:
        pixels = (255 * values).round().astype(np.uint8)
    else:
        from matplotlib import colormaps

        pixels = colormaps[colours](values, bytes=True)[..., :3]
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(64).save(file, format="PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="" src="data:image/png;base64,{data}">'
