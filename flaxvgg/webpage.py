"""A survey as one web page that needs nothing else: no network, no script, no other file."""

import base64
import html
import importlib.resources
import io
from collections.abc import Iterator, Mapping
from string import Template

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flaxvgg.answer import answered_layer, explanation, headline, percent
from flaxvgg.foreign import plain
from flaxvgg.plotting.sparsity import map_sheet, places_picture, share_range
from flaxvgg.survey import Survey, versions

_LISTED = 12  # photos at either end of a long list


def survey_page(survey: Survey) -> str:
    """The HTML of a survey: the answer, then a chart, tables, photos and how it was counted."""
    report = survey.report
    many = len(survey.photos) > 1
    template = importlib.resources.files("flaxvgg").joinpath("webpage.html").read_text("utf-8")
    return Template(template).substitute(
        headline=escape(headline(report)),
        title=escape(survey.title),
        warnings=_warnings(survey),
        answer="\n".join(f'<p class="lead">{escape(text)}</p>' for text in explanation(report)),
        range_legend='<li><span class="key range"></span>lowest to highest photo</li>' * many,
        bars="\n".join(_layer_bars(survey)),
        table=_table(survey),
        photos=_photos(survey) if many else "",
        mapped=escape(survey.mapped),
        examples="\n".join(_examples(survey)),
        problems=_problems(survey),
        method="\n".join(
            f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
            for name, value in _method(survey).items()
        ),
    )


def escape(text: str) -> str:
    """A text as HTML shows it, also within the quotes of an attribute."""
    return html.escape(plain(text))


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
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


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


def _examples(survey: Survey) -> Iterator[str]:
    examples = survey.examples
    for example in examples:
        name = escape(example.photo.name)
        figures = [_figure(example.pixels, "JPEG", f"the photo {name}", "photo")]
        for layer, share in example.where.items():
            picture = places_picture(share, *share_range(examples, layer))
            caption = f"{escape(layer)}<br>{100 * share.min():.0f} to {100 * share.max():.0f} %"
            alt = f"where {escape(layer)} is zero in {name}"
            figures.append(_figure(picture, "PNG", alt, caption))
        maps = example.maps
        silent = int((maps == 0).all(axis=(0, 1)).sum())
        caption = (
            f"{silent:,} of the {maps.shape[-1]:,} maps of {escape(survey.mapped)} are zero "
            f"everywhere; {percent(float(np.mean(maps == 0)))} of all values are zero."
        )
        sheet = _figure(map_sheet(maps), "PNG", f"the maps for {name}", caption)
        yield f'<h3>{name}</h3>\n<div class="places">{"".join(figures)}</div>\n{sheet}'


def _figure(pixels: UInt8[np.ndarray, "h w 3"], kind: str, alt: str, caption: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    style = ' class="maps"' if kind == "PNG" else ""
    return (
        f'<figure><img{style} src="data:image/{kind.lower()};base64,{data}" alt="{alt}" '
        f'width="{pixels.shape[1]}" height="{pixels.shape[0]}">'
        f"<figcaption>{caption}</figcaption></figure>"
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
