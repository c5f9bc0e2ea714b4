"""A survey in a folder: the numbers, three pictures, and a web page."""

import io
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flaxvgg.checkpoint import write_atomically
from flaxvgg.plotting.figures import new_figure
from flaxvgg.plotting.sparsity import layers_figure, maps_figure, where_figure
from flaxvgg.survey import Survey
from flaxvgg.webpage import survey_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def check_folder(out: Path) -> None:
    """Raise ValueError, before any work is done, where `out` can be no folder with pictures."""
    new_figure()
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: choose a folder")


def write_survey(survey: Survey, out: Path, *, html: bool) -> list[str]:
    """Write sparsity.json, sparsity.png, maps.png and where.png, and with `html` sparsity.html.

    Gives their names. Everything is made before the first file is written, so that an interruption
    leaves the folder as it was.
    """
    files = {
        "sparsity.json": json.dumps(survey.to_json()).encode(),
        "sparsity.png": _png(layers_figure(survey.report, survey.zeros, survey.title)),
        "maps.png": _png(maps_figure(survey.examples, survey.mapped, survey.title)),
        "where.png": _png(where_figure(survey.examples, survey.title)),
    }
    if html:
        # What is no text in a file's name, Python keeps as lone surrogates.
        files["sparsity.html"] = survey_page(survey).encode("utf-8", "replace")
    out.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        write_atomically((out / name).absolute(), partial(_write, data))
    return list(files)


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _write(data: bytes, target: Path) -> None:
    target.write_bytes(data)
