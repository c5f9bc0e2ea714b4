"""A survey as one web page: the answer, charts and tables, and every photo to look at."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from flaxvgg.plotting.page.packing import channels_value
from flaxvgg.plotting.page.shell import escape, page, viewer
from flaxvgg.plotting.page.viewing import Look, Method, Sort, photo_value, viewer_value
from flaxvgg.sparsity.summary import answered_layer, explanation, headline, percent
from flaxvgg.sparsity.survey import Example, Survey
from flaxvgg.versions import versions

_LISTED = 12  # photos at either end of a long list
_PHOTOS = 300  # that can be looked at
_CHANNELS = 8 * 2**20  # bytes of channels, compressed; photos after that come without
_PLACES = 56  # along a side of a map of zeros; larger ones are averaged


class Looks:
    """Photos of a survey to be looked at, which are added one after the other and packed at once.

    The first 300; each with the share of zeros by place, and as long as there is room, the channels
    of the last layer.
    """

    def __init__(self) -> None:
        self.photos: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, example: Example) -> None:
        """Pack a photo; nothing else of it is kept."""
        if len(self.photos) >= _PHOTOS:
            return
        channels = None
        if self._bytes < _CHANNELS:
            channels = channels_value(example.maps) | {"name": list(example.where)[-1]}
            self._bytes += len(channels["data"])
        where = example.where
        value = photo_value(
            example.photo.name,
            [example.pixels],
            [[share[None] for share in where.values()]],
            [[-(-max(share.shape) // _PLACES) for share in where.values()]],
            keys={"zeros": [float(share.mean()) for share in where.values()]},
            facts=[[name, f"{percent(float(x.mean()))} zero"] for name, x in where.items()],
        )
        self.photos.append(value | {"channels": channels})

    def viewer(self) -> dict[str, Any]:
        """The viewer of these photos, as a JSON value."""
        layers = tuple(name for name, _ in self.photos[0]["facts"])
        return viewer_value(
            [Method("share of channels at zero", "lowest", layers)],
            self.photos,
            [Sort("zeros", "zeros in the layer", down=True, percent=True)],
            [Look("photo", 0, None), Look("zeros by place", 0, 0)],
            scales=["all", "map"] if len(self.photos) > 1 else ["map"],
            slider=True,
            layer=len(layers) - 1,
            threshold=0,
            channels=True,
        )


def survey_page(survey: Survey, looks: Looks) -> str:
    """The HTML of a survey: the answer, then a chart, tables, photos and how it was counted."""
    report = survey.report
    many = len(survey.photos) > 1
    lead = "\n".join(f'<p class="lead">{escape(text)}</p>' for text in explanation(report))
    legend = '<li><span class="key range"></span>lowest to highest photo</li>' * many
    bars = "\n".join(_layer_bars(survey))
    method = "\n".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        for name, value in _method(survey).items()
    )
    shown, without = len(looks.photos), sum(not photo["channels"] for photo in looks.photos)
    first = f" These are the first {shown:,} photos." if shown < len(survey.photos) else ""
    first += f" The last {without:,} of them come without their channels." if without else ""
    body = f"""{_warnings(survey)}
{lead}

<h2>Zeros by layer</h2>
<p class="note">The fraction of exact zeros in what each layer gives. Where the orange mark is at
the end of the bar, every zero is a value that was negative before the ReLU.</p>
<ul class="legend">
<li><span class="key relu"></span>after a ReLU</li>
<li><span class="key other"></span>after another layer</li>
<li><span class="key neg"></span>negative before the ReLU</li>
{legend}
</ul>
<ol class="bars">
{bars}
</ol>

<h2>The numbers</h2>
<p class="note">Values are those of all images together. A channel is silent in an image where its
whole map is zero, and dead where it is silent in every image counted. A heading sorts by its
column.</p>
<div class="scroll" role="region" aria-label="The numbers by layer" tabindex="0">
{_table(survey)}
</div>

{_photos(survey) if many else ""}

<h2>Where the zeros are</h2>
<p class="note">Each photo as the network gets it, under the share of channels that are zero at each
place of a layer: bright where most are. Below it every channel of {escape(survey.mapped)}: exact
zeros are black, a channel that is zero everywhere is blue, and the others are as bright as they are
beside their own largest value. A click, or its number, enlarges a channel over the
photo.{first}</p>
{viewer()}

{_problems(survey)}
<h2>How it was counted</h2>
<dl>
{method}
</dl>"""
    return page(survey.title, headline(report), body, {"viewer": looks.viewer()})


def _warnings(survey: Survey) -> str:
    lines = []
    if survey.partial:
        looked_at = len(survey.photos) + len(survey.problems)
        lines.append(
            f"<strong>Partial.</strong> The counting was stopped: {looked_at:,} of "
            f"{looked_at + survey.left:,} photos were looked at."
        )
    if survey.problems:
        lines.append(
            f"{len(survey.problems):,} of the photos could not be read: "
            '<a href="#problems">which, and why</a>.'
        )
    return "\n".join(f'<p class="warn">{line}</p>' for line in lines)


def _layer_bars(survey: Survey) -> Iterator[str]:
    for layer in survey.report:
        marks: dict[str, float] = {}
        if layer.negatives_before is not None:
            marks["negative"] = layer.negatives_before.sum() / layer.values.sum()
        if len(survey.photos) > 1:
            zeros = survey.zeros[layer.name]
            marks |= {"least": zeros.min(), "most": zeros.max()}
        yield _bar(layer.name, layer.zero_fraction, layer.kind == "relu", marks)


def _bar(name: str, zeros: float, relu: bool, marks: Mapping[str, float]) -> str:
    """One row of a chart: a name, a bar, and its value."""
    sizes = "; ".join(f"--{key}: {100 * value:.2f}" for key, value in marks.items())
    colour = "relu" if relu else "other"
    parts = [f'<i class="bar {colour}" style="--zeros: {100 * zeros:.2f}"></i>']
    parts += ['<i class="neg"></i>'] * ("negative" in marks)
    parts += ['<i class="range"></i>'] * ("most" in marks)
    return (
        f'<li><span>{escape(name)}</span><span class="track" style="{sizes}">{"".join(parts)}'
        f"</span><b>{percent(zeros)}</b></li>"
    )


def _table(survey: Survey) -> str:
    names = ["layer", "values", "zeros", "lowest photo", "highest photo", "negative before"]
    names += ["zero before", "channels", "silent in an image", "dead", "largest value"]
    rows = []
    for layer in survey.report:
        total, zeros = layer.values.sum(), survey.zeros[layer.name]
        before = ["", ""]
        if layer.negatives_before is not None and layer.zeros_before is not None:
            before = [percent(layer.negatives_before.sum() / total)]
            before.append(f"{layer.zeros_before.sum():,}")
        cells = [
            f"{total:,}",
            percent(layer.zero_fraction),
            percent(zeros.min()),
            percent(zeros.max()),
            *before,
            f"{layer.channels:,}",
            f"{layer.silent.sum() / layer.images:.1f}",
            f"{layer.dead.sum():,}",
            np.format_float_positional(layer.largest.max(), 4, fractional=False, trim="-"),
        ]
        data = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{escape(layer.name)}</th>{data}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    body = "".join(rows)
    return f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _photos(survey: Survey) -> str:
    """The photos by their zeros in one layer; of many only those at either end."""
    layer = answered_layer(survey.report)
    zeros = survey.zeros[layer.name]
    order = np.argsort(-zeros, kind="stable")
    rows = [_bar(survey.photos[i].name, zeros[i], layer.kind == "relu", {}) for i in order]
    hidden = len(rows) - 2 * _LISTED
    if hidden > 0:
        between = f'<li class="gap">{hidden:,} photos between these are in sparsity.json</li>'
        rows[_LISTED:-_LISTED] = [between]
    return (
        f'<h2>From photo to photo</h2>\n<p class="note">Zeros in {escape(layer.name)}: '
        f"{percent(zeros.min())} to {percent(zeros.max())}, with a standard deviation of "
        f"{100 * zeros.std():.1f} points over {len(zeros):,} photos.</p>\n"
        f'<ol class="bars names">\n{chr(10).join(rows)}\n</ol>'
    )


def _problems(survey: Survey) -> str:
    if not survey.problems:
        return ""
    items = "\n".join(f"<li>{escape(problem)}</li>" for problem in survey.problems)
    return f'<h2 id="problems">Photos that could not be read</h2>\n<ul>\n{items}\n</ul>\n'


def _method(survey: Survey) -> dict[str, str]:
    provenance, recipe = survey.provenance, survey.provenance.preprocessing
    height, width = survey.size
    fit = {"crop": "centre cut out", "stretch": "stretched"}[recipe.fit]
    return {
        "zeros": "values that are exactly 0, counted in integers over all photos",
        "network": f"{survey.report.arch}, computed in {survey.dtype}",
        "weights": provenance.source,
        "SHA-256": provenance.sha256 or "none: the weights are from no file",
        "photos": f"{len(survey.photos):,}, {fit} at {height}x{width} ({recipe.interpolation})",
        "preprocessing": f"{recipe.name}: {recipe.channels}, divided by {recipe.divisor:g}, minus "
        f"{recipe.mean}, divided by {recipe.std}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
    }
