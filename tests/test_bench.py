"""The benchmark: all tools run the same network, what is counted is right, and the page."""

import dataclasses
import importlib.util
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.bench import engines, figures, ratios, report, run, tools
from experiments.bench.layers import PRODUCT, TRIAD
from experiments.bench.plan import FULL
from experiments.bench.start import NOTHING
from experiments.bench.steps import ALONE
from experiments.bench.tools import (
    COMPILED,
    EAGER,
    FORWARD,
    KERAS,
    MNN,
    NCNN,
    ORT,
    OURS,
    PREPARED,
    STACK,
)
from experiments.running import page
from experiments.timing import compete

QUICK = ("start", "stack", "forward", "overhead", "memory", "layers")


def measured(arch: str, sections: tuple[str, ...], out: Path) -> dict:
    plan = run.plan_of(arch, None, tiny=True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # of the peers
        assert run.run(plan, sections, out, "the command")["plan"]["rounds"] == 1
    results = json.loads((out / "results.json").read_text("utf-8"))
    assert list(results["sections"]) == list(sections)
    assert all(section["rows"] for section in results["sections"].values())
    text = (out / "README.md").read_text("utf-8")
    assert text == page(partial(report.readme, pictures=["speed.png", "layers.png"]), results)
    for name in ("speed.png", "layers.png"):
        assert f"({name})" in text
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    return results


def assert_all_run_the_same_network(results: dict, left_out: set[str]):
    for kind, every, without in (
        ("stack", STACK, left_out),
        ("forward", FORWARD, left_out | {KERAS}),
    ):
        rows = ratios.rows_of(results, kind)
        assert {row["tool"] for row in rows} == set(every) - without
        assert all(row["error"] < (5e-4 if row["tool"] == MNN else 2e-5) for row in rows)
    one = [row["tool"] for row in ratios.rows_of(results, "stack") if row["case"].endswith(ALONE)]
    assert set(one) >= {OURS, EAGER, ORT}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return measured("vgg11", QUICK, tmp_path_factory.mktemp("bench"))


@pytest.mark.slow
def test_all_tools_run_the_same_network(results: dict):
    assert_all_run_the_same_network(results, {KERAS})


@pytest.mark.slow
def test_what_cannot_run_is_listed(results: dict):
    assert results["left_out"] == [{"tool": KERAS, "case": "all", "reason": "it has no vgg11"}]


@pytest.mark.slow
def test_operations_of_the_layers(results: dict):
    rows = {row["layer"]: row for row in ratios.rows_of(results, "layers") if "layer" in row}
    assert " ".join(rows) == "conv1_1 conv2_1 conv3_1 conv3_2 conv4_1 conv4_2 conv5_1 to conv5_2"
    # 8x8 places of 256 x 256 channels through 9 weights; maps in and out, and the kernel.
    assert rows["conv3_2"]["flops"] == 2 * 64 * 9 * 256 * 256
    assert rows["conv5_1 to conv5_2"]["layers"] == 2
    assert [rows[name]["products"] for name in ("conv1_1", "conv3_2", "conv5_1 to conv5_2")] == [
        9,
        4,
        9,
    ]
    assert rows["conv3_2"]["bytes"] == 4 * (64 * 512 + 9 * 256 * 256)


@pytest.mark.slow
def test_every_section_from_end_to_end(tmp_path: Path):
    found = measured("vgg16", tuple(run.SECTIONS), tmp_path)
    assert_all_run_the_same_network(found, set())
    reason = "its classifier takes 224x224 alone: no adaptive pooling"
    case = {"tool": KERAS, "case": "forward, 1 x 32x32", "reason": reason}
    assert found["left_out"] == [case]


def test_rounds_begin_with_another_tool():
    calls, done = [], []
    tools = {name: lambda name=name: calls.append(name) for name in "abc"}
    timed = compete(tools, 4, 60, done.append)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"  # first calls, then rounds
    assert [len(found.rounds) for found in timed.values()] == [4, 4, 4]
    assert done[-1] == 1.0
    assert sorted(done) == done


def test_long_cases_have_three_rounds():
    timed = compete({"a": lambda: None}, 9, 0.001, lambda done: None)  # it pauses for longer
    assert len(timed["a"].rounds) == 3


def row(case: str, tool: str, *seconds: float, **more: float) -> dict:
    return {"case": case, "tool": tool, "reference": EAGER, "rounds_s": list(seconds), **more}


def test_speed_is_by_round():
    ours, theirs = row("", OURS, 1.0, 2.0, 1.0), row("", EAGER, 2.0, 2.0, 5.0)
    assert ratios.speed(ours, theirs) == (2.0, 1.0, 5.0)
    assert ratios.seconds(theirs) == (2.0, 2.0, 5.0)


def test_aims_are_those_of_the_issue():
    def case(name: str, *seconds: float, **errors: float) -> list[dict]:
        tools = zip((OURS, EAGER, ORT), seconds, strict=True)
        return [
            row(name, tool, x, **({"error": errors[tool]} if tool in errors else {}))
            for tool, x in tools
        ]

    alone, small = f"stack, 1 x 224x224{ALONE}", f"stack, 1 x 64x64{ALONE}"
    stack = case(alone, 1.0, 1.5, 1.0, **{OURS: 2e-7, EAGER: 1e-7})
    stack += [row(alone, PREPARED, 0.5, error=1e-7), row(alone, NCNN, 0.7)]
    stack += case("stack, 1 x 64x64", 1.0, 1.5, 1.0)  # on all cores
    stack += [*case(small, 0.1, 1.5, 1.0), row(small, PREPARED, 0.8), row(small, NCNN, 1.2)]
    memory = [{"case": "m", "tool": tool, "beyond_gb": gb} for tool, gb in ((OURS, 2), (EAGER, 3))]
    sections = {
        "stack": stack,
        "forward": case("forward, 8 x 512x512", 1.0, 0.9, 1.1),
        "overhead": [row("overhead", NOTHING, 0.4e-3)],
        "memory": memory,
    }
    results = {
        "devices": {"backend": "cpu"},
        "sections": {name: {"rows": rows} for name, rows in sections.items()},
    }
    assert [(aim.what, aim.bound, aim.measured, aim.holds) for aim in ratios.aims(results)] == [
        (f"{alone}: {PREPARED}, times as fast as {NCNN}", ">= 1.5", "1.40", False),
        (f"{alone}: {PREPARED}, times as fast as {ORT}", ">= 2", "2.00", True),
        (f"{alone}: {PREPARED}, times as fast as {EAGER}", ">= 2.6", "3.00", True),
        (f"{small}: {PREPARED}, times as fast as the fastest peer", ">= 1.2", "1.25", True),
        (f"forward, 8 x 512x512: {OURS}, times as fast as {ORT}", ">= 1", "1.10", True),
        (f"forward, 8 x 512x512: {OURS}, times as fast as {EAGER}", ">= 1", "0.90", False),
        (f"{alone}: error of {OURS}, in {EAGER}'s", "<= 1", "2.00", False),
        (f"{alone}: error of {PREPARED}, in {EAGER}'s", "<= 1", "1.00", True),
        ("overhead, ms", "< 0.5", "0.40", True),
        ("m: GB at most beyond what was held", f"<= 3.00 ({EAGER})", "2.00", True),
    ]
    gpu = results | {"devices": {"backend": "gpu"}}
    assert not [aim for aim in ratios.aims(gpu) if "as fast as" in aim.what]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch):
    there = importlib.util.find_spec
    missing = ("keras", "onnx", "torchcam", "matplotlib", "pnnx")
    monkeypatch.setattr(
        tools.importlib.util, "find_spec", lambda name: None if name in missing else there(name)
    )
    plan = dataclasses.replace(FULL, network=dataclasses.replace(FULL.network, backend="eager"))
    assert tools.left_out(plan) == {
        KERAS: "not installed: keras",
        ORT: "not installed: onnx",
        "OpenVINO": "not installed: onnx",
        NCNN: "not installed: pnnx",
        MNN: "not installed: onnx",
        "torchcam": "not installed: torchcam",
        "pictures": "not installed: matplotlib",
    }


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch):
    def fails(function: object, backend: str) -> object:
        raise RuntimeError("no C++ compiler\nand more")

    monkeypatch.setattr(tools.torch, "compile", fails)
    assert tools.left_out(FULL) == {COMPILED: "RuntimeError: no C++ compiler"}


def test_what_a_program_says_is_told():
    with pytest.raises(RuntimeError, match="it went wrong"):
        engines._run("sh", "-c", "echo it went wrong >&2; exit 3")


def test_without_torchvisions_weights_all_are_random(monkeypatch: pytest.MonkeyPatch):
    config = tools.subject.config_of(run.TINY.network, "vgg16")
    found, named = tools.weights_of(config)
    assert "IMAGENET1K_V1" in named
    monkeypatch.setattr(tools, "find_packaged", lambda record: None)
    other, named = tools.weights_of(config)
    assert named == "random"
    assert found.keys() == other.keys()
    assert not np.array_equal(found["features.0.weight"], other["features.0.weight"])
    np.testing.assert_array_equal(found["classifier.0.weight"], other["classifier.0.weight"])


def test_the_tradeoff_is_of_one_thread_where_that_was_run(tmp_path: Path):
    every = [row("stack, 1 x 224x224", tool, 1.0, error=1e-7) for tool in (OURS, EAGER)]
    alone = [row(f"{x['case']}{ALONE}", x["tool"], 2.0, error=1e-7) for x in every]
    for rows, title in ((every, "stack, 1 x 224x224"), (every + alone, alone[0]["case"])):
        figure = figures.tradeoff({"sections": {"stack": {"rows": rows}}})
        assert [axes.get_title() for axes in figure.axes] == [title]
        texts = [text.get_text() for text in figure.axes[0].texts]
        assert {OURS, EAGER} < set(texts)


def test_unknown_sections_are_named(tmp_path: Path):
    with pytest.raises(ValueError, match="no section stak: choose from start, memory, stack"):
        run.run(FULL, ["stak"], tmp_path, "")
    assert not list(tmp_path.iterdir())


def test_ceilings_are_the_better_product_and_the_triad():
    rows = [
        row(PRODUCT, OURS, 1.0, 2.0, 4.0) | {"flops": 2e9},
        row(PRODUCT, EAGER, 4.0, 4.0, 4.0) | {"flops": 2e9},
        row(TRIAD, EAGER, 0.5, 0.8, 0.8) | {"bytes": 4e9},
    ]
    assert report.ceilings(rows) == (2.0, 8.0)


def test_the_committed_page_is_that_of_the_committed_results():
    folder = Path(report.__file__).parent
    results = json.loads((folder / "results.json").read_text("utf-8"))
    names = [x for x in ("tradeoff.png", "speed.png", "layers.png") if (folder / x).exists()]
    text = page(partial(report.readme, pictures=names), results)
    assert (folder / "README.md").read_text("utf-8") == text
    assert "tradeoff.png" in names
    assert all(aim.holds for aim in ratios.aims(results) if "error of" in aim.what)
