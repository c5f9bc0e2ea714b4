"""A survey in a folder: the numbers, three pictures, and a web page."""

import json
from pathlib import Path

from flaxvgg.files.folders import write_bytes
from flaxvgg.plotting.figures import png
from flaxvgg.plotting.sparsity import layers_figure, maps_figure, where_figure
from flaxvgg.plotting.webpage import Looks, survey_page
from flaxvgg.sparsity.survey import Survey


def write_survey(survey: Survey, out: Path, looks: Looks | None = None) -> list[str]:
    """Write sparsity.json, sparsity.png, maps.png and where.png, and of `looks` sparsity.html.

    Gives their names. Everything is made before the first file is written, so that an interruption
    leaves the folder as it was.
    """
    files = {
        "sparsity.json": json.dumps(survey.to_json()).encode(),
        "sparsity.png": png(layers_figure(survey.report, survey.zeros, survey.title)),
        "maps.png": png(maps_figure(survey.examples, survey.mapped, survey.title)),
        "where.png": png(where_figure(survey.examples, survey.title)),
    }
    if looks is not None:
        files["sparsity.html"] = survey_page(survey, looks).encode()
    for name, data in files.items():
        write_bytes(out / name, data)
    return list(files)
