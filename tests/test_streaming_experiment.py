"""The experiment on streaming: every kind of source is the same photos, and the page is its own."""

import json
from pathlib import Path

import numpy as np

from experiments.running import page
from experiments.streaming import report
from experiments.streaming.sources import compare, light_job, packed
from experiments.streaming.study import photos
from flaxvgg.streaming import find_source
from networks import tiny_vgg

FOLDER = Path(__file__).parent.parent / "experiments" / "streaming"


def test_every_kind_has_the_same_photos_and_labels(tmp_path):
    model = tiny_vgg()
    (tmp_path / "packed").mkdir()
    given = packed(photos(9, tmp_path / "photos"), tmp_path / "packed")
    sources = {kind: find_source(paths) for kind, paths in given.items()}
    found = {}
    for kind, source in sources.items():
        items = [source.read(row, None, model.preprocessing) for row in range(len(source))]
        pixels = [item.pixels.astype(np.int64).sum() for item in items]
        found[kind] = sorted(zip(pixels, source.labels.tolist(), strict=True))
    assert len(found["folder"]) == 9
    assert all(rows == found["folder"] for rows in found.values())


def test_kinds_take_turns(tmp_path):
    (tmp_path / "packed").mkdir()
    made = photos(5, tmp_path / "photos")
    found = compare(light_job(tiny_vgg()), made, tmp_path / "packed", (32, 32), 2)
    assert found["folder"]["ratio"] == [1, 1, 1]
    for of in found.values():
        median, least, most = of["processor_ratio"]
        assert 0 < least <= median <= most
        assert of["images_a_second"] > 0


def test_the_committed_page_is_that_of_the_committed_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    kinds = results["sources"]["kinds"]
    assert list(kinds) == ["folder", "tar", "Parquet", "Parquet, one group", "zip"]
    for kind in ("tar", "Parquet"):
        assert kinds[kind]["processor_ratio"][0] >= 0.9
