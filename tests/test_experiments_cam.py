"""The CAM benchmark and experiment: smoke runs, their data, and the pages that are committed."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import experiments.bench_cam.__main__ as bench
import flaxvgg
from experiments.bench_cam import ours
from experiments.bench_cam import report as bench_report
from experiments.cam_on_vgg16 import costs, figure, methods, report, study
from experiments.composed.objects import OBJECTS
from experiments.composed.picture import to_png
from experiments.running import page
from experiments.timing import Case, Measured, measure
from flaxvgg.network.config import VGGConfig

EXPERIMENTS = Path(__file__).parent.parent / "experiments"


def committed(name: str) -> tuple[dict, str]:
    """The results and the page of an experiment."""
    folder = EXPERIMENTS / name
    text = (folder / "README.md").read_text("utf-8")
    return json.loads((folder / "results.json").read_text("utf-8")), text


def nothing() -> None:
    pass


def test_part_of_the_channels_stands_for_all():
    # 2 passes for the image, and 32 channels that take 10 more: 512 take 160.
    case = Case("score_cam", 1, "", nothing, nothing, timed=32, of=512, fixed=2)
    measured = Measured(case, 0.0)
    measured.calls = [(24.0, 0.0), (36.0, 0.0), (12.0, 0.0)]
    measured.forwards = [(2.0, 1.0), (2.0, 1.0), (2.0, 1.0)]
    assert measured.passes() == [162.0, 66.0, 258.0]
    assert Case("grad_cam", 1, "", nothing, nothing).whole(1.5) == 1.5


def test_every_call_is_timed_behind_its_own_forward_pass():
    calls = []
    cases = [
        Case(
            name,
            1,
            "",
            lambda name=name: calls.append(name),
            lambda name=name: calls.append("f" + name),
        )
        for name in "ab"
    ]
    done = []
    measure(cases, 2, done.append)
    assert calls == ["fa", "a", "fb", "b"] * 3  # once to warm up
    assert done[-1] == pytest.approx(1)


@pytest.mark.slow
def test_benchmark_runs_beside_the_packages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "TOOLS", {"flaxvgg default": "default"})
    results = bench.run("vgg11", 32, rounds=1, methods=["grad_cam"], classes=10)
    rows = {(row["method"], row["classes"], row["tool"]) for row in results["results"]}
    assert rows == {
        *(("grad_cam", k, "flaxvgg default") for k in (1, 8, 10)),
        *(("grad_cam", k, tool) for k in (1, 8) for tool in ("grad-cam", "torchcam")),
    }
    for counts in results["compilations"].values():
        assert counts["first"] > 0
        assert not any(count for call, count in counts.items() if call != "first")
    assert all(row["passes"][0] > 0 for row in results["results"])
    assert results["memory"]["grad_cam"]["peak"] >= results["memory"]["grad_cam"]["before"]
    assert "| Grad-CAM | 10 |" in bench_report.readme(results)
    bench_report.costs_figure(results).savefig(Path("/dev/null"), format="png")


def test_benchmark_page_is_that_of_its_results():
    results, text = committed("bench_cam")
    assert text == page(bench_report.readme, results)
    measured = {(row["method"], row["tool"]) for row in results["results"]}
    assert measured >= {(method, tool) for method in ours.METHODS for tool in bench.TOOLS}
    assert set(ours.METHODS) == set(results["compilations"]) <= set(flaxvgg.METHODS)
    assert "compiled nothing" in text


@pytest.mark.slow
def test_few_channels_leave_score_cam_few_masks():
    model = flaxvgg.vgg11(num_classes=2, rngs=nnx.Rngs(0))
    few = ours.with_few_channels(model.config, flaxvgg.to_torch(model), 3, "default")
    relu = few.activations(ours.random_images(64), ["relu5_2"])["relu5_2"]
    assert np.asarray(jnp.any(relu != 0, axis=(0, 1, 2))).nonzero()[0].max() == 2
    assert ours.width(few) == 512


def test_peak_of_a_map_is_found_at_the_size_of_the_image():
    maps = np.full((1, 1, 4, 4), -1, np.float32)
    maps[0, 0, 1, 2] = 2
    heat = methods.heat_at(jnp.asarray(maps), (64, 64))[0, 0]
    x, y = methods.peak(heat)
    assert 32 <= x < 48
    assert 16 <= y < 32
    assert heat.min() == 0
    boxes = {5: (26, 8, 54, 40), 6: (0, 0, 26, 64)}
    seen = study.Seen(np.zeros((64, 64, 3), np.uint8), 5, boxes, {"m": heat}, {"m": (x, y)}, 1.0)
    assert seen.hit("m")
    assert seen.share("m") > 0.9
    elsewhere = study.Seen(seen.pixels, 6, boxes, seen.heats, seen.peaks, 1.0)
    assert not elsewhere.hit("m")
    assert elsewhere.share("m") < 0.1


def test_one_place_is_no_map():
    heat = methods.heat_at(jnp.full((1, 1, 7, 7), 3.0), (14, 14))[0, 0]
    assert methods.peak(heat) is None


def test_arithmetic_of_vgg16():
    # 15,346,630,656 products in the convolutions at 224 px, 123,633,664 in fc6, fc7 and fc8.
    found = costs.arithmetic(VGGConfig.classifier("vgg16"), 224)
    whole = 15_346_630_656 + 123_633_664
    assert found == {
        "Grad-CAM": round((whole + 123_633_664) / whole, 3),
        "score map 224": 1.0,
        "score map 448": round((4 * 15_346_630_656 + 64 * 123_633_664) / whole, 3),
        "score map 672": round((9 * 15_346_630_656 + 225 * 123_633_664) / whole, 3),
        "CAM (GAP + linear)": round((15_346_630_656 + 512_000) / whole, 3),
        "Eigen-CAM": round(15_346_630_656 / whole, 3),
    }


def test_objects_have_names_that_imagenet_knows():
    names = (
        (Path(flaxvgg.__file__).parent / "weights" / "imagenet_classes.txt")
        .read_text()
        .splitlines()
    )
    numbers = study.known_classes(tuple(names))
    for item, number in zip(OBJECTS, numbers, strict=True):
        assert (names[number] if number >= 0 else "") == item.imagenet
    with pytest.raises(ValueError, match="does not know Egyptian cat"):
        study.known_classes(tuple(f"class {i}" for i in range(8)))


@pytest.mark.slow
def test_experiment_runs_from_weights_to_the_picture(monkeypatch: pytest.MonkeyPatch):
    # Score maps need 224 px: they are tested with the heads.
    few = tuple(method for method in methods.METHODS if "score map" not in method.name)
    for module in (costs, figure, study):
        monkeypatch.setattr(module, "METHODS", few)
    weights = flaxvgg.to_torch(flaxvgg.vgg11(num_classes=1, rngs=nnx.Rngs(0)))
    convolutions = {name: x for name, x in weights.items() if name.startswith("features.")}
    model = flaxvgg.from_torch("vgg11", convolutions, precision="default")
    effort = study.Effort(size=64, training=16, steps=1, tests=2, rounds=1)
    done = {}
    with jax.numpy_dtype_promotion("standard"):  # which optax builds upon
        results, shown = study.run(model, effort, lambda what, share: done.update({what: share}))
    assert done == {name: pytest.approx(1) for name in ("features", "classifier", "maps", "costs")}
    assert [row["method"] for row in results["methods"]] == [method.name for method in few]
    assert results["questions"] == 4
    assert [len(one.boxes) for one in shown] == [2, 2, 1, 1]  # a scene, and two photos
    png = to_png(figure.draw(shown))
    assert png.startswith(b"\x89PNG")
    assert "| Grad-CAM |" in report.table(results)


def test_experiment_page_is_that_of_its_results():
    results, text = committed("cam_on_vgg16")
    assert text == page(report.readme, results)
    assert [row["method"] for row in results["methods"]] == [x.name for x in methods.METHODS]
    assert results["objects"] == [item.name for item in OBJECTS]
    picture = (EXPERIMENTS / "cam_on_vgg16" / "cam_on_vgg16.png").stat().st_size
    assert picture < 500_000
