"""The benchmark of pages: a small run of it, and the page of its results."""

import json
from pathlib import Path

import pytest
from browser import find_browser

import experiments.bench_page.__main__ as bench
from experiments.running import page

FOLDER = Path(bench.__file__).parent


@pytest.mark.slow
def test_a_small_run():
    if find_browser() is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    results = bench.run(photos=2, rounds=1, steps=3)
    assert set(results["windows"]) == set(bench.WINDOWS)
    for window in results["windows"].values():
        (opened,) = window["opened_ms"]
        assert opened > 0
        assert set(window["sliders"]) == set(bench.SLIDERS)
        for rows in window["sliders"].values():
            assert len(rows) == 3 * len(bench.METHODS)
            assert all(drawn > 0 for drawn, _ in rows)
    assert 25 * results["bytes"] < 20e6
    assert "of 2 photos" in bench.readme(results)


def test_what_is_too_slow_is_told():
    quick = {"opened_ms": [100], "sliders": {"top": [[9.0, 4.0]] * 20}}
    slow = {"opened_ms": [2500], "sliders": {"top": [[90.0, 40.0]] * 20}}
    results = {"photos": 50, "bytes": 1e6, "windows": {"phone": quick}}
    assert bench.missed(results) == []
    found = bench.missed(results | {"bytes": 3e7, "windows": {"phone": quick, "desk": slow}})
    assert [line.partition(":")[0] for line in found] == [
        "a page of 50 photos is below 20 MB", "desk", "desk",
    ]  # fmt: skip


def test_the_page_is_that_of_the_results():
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(bench.readme, results)
    assert bench.missed(results) == []
    assert results["photos"] == 50
