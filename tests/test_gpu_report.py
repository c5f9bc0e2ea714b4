"""The GPU's report on a CPU: all of it once, small; what it finds wrong; and what it may import."""

import ast
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments.gpu_report import (
    __main__,
    convolutions,
    parity,
    report,
    sections,
    speed,
    subject,
    targets,
    torch_maps,
    torch_side,
    uses,
)
from experiments.gpu_report.sections import Section, Step
from experiments.gpu_report.subject import BFLOAT16, HIGHEST, TF32, TINY
from flaxvgg.cam.conventions import CONVENTIONS
from flaxvgg.cam.maps import layer_maps, maps_of_scores
from flaxvgg.cam.methods import METHODS
from flaxvgg.cam.options import OPTIONS, NoOptions
from flaxvgg.cam.targets import Targets
from flaxvgg.conversion.pytorch import torch_references
from flaxvgg.conversion.rule import compare
from flaxvgg.heads.replacement import score_maps
from flaxvgg.weights.mapping import model_arrays, to_torch
from helpers import TINY_CLASSIFIER, TINY_GAP, random_images, tiny_vgg

ROOT = Path(__main__.__file__).parents[2]
PAGE, BATCH = TINY.pages[0]
NO_CUDA = "no CUDA device"
IMAGES, CLASSES = random_images(2, 32, 32), [1, 3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # of the report's own processes
        assert __main__.main(["--out", str(out), "--tiny", "--seconds", "3600"]) == 0
    return out


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text("utf-8"))


@pytest.mark.slow
def test_every_section_is_there(results: dict):
    found = {name: section["rows"] for name, section in results["sections"].items()}
    assert list(found) == ["parity", "speed", "maps", "profile", "determinism", "memory"]
    assert all(found.values())
    assert results["cut"] == results["failed"] == []
    config = subject.config_of(TINY, TINY.arch)
    for mode in subject.MODES:
        layers = tuple(row["layer"] for row in found["parity"] if row["mode"] == mode.name)
        assert layers == config.layer_names
    assert all(row["repeats_equal"] for row in found["determinism"])
    without = [row for row in found["speed"] if row["ms"] is None]
    assert [(row["tool"], row["note"]) for row in without] == [(speed.GRAPH, NO_CUDA)]
    assert {row["note"] for row in found["memory"]} == {NO_CUDA}
    heads = [row["head"] for row in found["maps"]]
    assert heads[:2] == ["LPIPS", "jax.export"]
    timed = {row["what"] for row in found["speed"]}
    assert timed >= {"LPIPS", "LPIPS and its gradient", "saliency", "lrp epsilon_plus"}
    assert 0 < sum(row["share"] for row in found["profile"]) <= 1 + 1e-9


@pytest.mark.slow
def test_parity_holds_on_a_cpu(results: dict):
    verdicts = [target["verdict"] for target in results["targets"]]
    judged = [verdict for verdict in verdicts if verdict != NO_CUDA]
    assert judged == [targets.PASS] * 4
    assert len(verdicts) == 14


@pytest.mark.slow
def test_page_and_json_agree(folder: Path, results: dict):
    page = (folder / "results.md").read_text("utf-8")
    assert page == report.page(results)
    for target in results["targets"]:
        assert f"| {target['target']} | {target['bound']} |" in page
    for row in results["sections"]["speed"]["rows"]:
        assert row["ms"] is None or f"| {row['tool']} | {row['ms']:.3f} |" in page


@pytest.mark.slow
def test_a_dropped_bias_is_reported(results: dict):
    config = subject.config_of(TINY, TINY.arch)
    weights = subject.random_weights(config)
    broken = subject.model_of(config, weights)
    broken.conv_stack.conv3_2.bias[...] = jnp.zeros_like(broken.conv_stack.conv3_2.bias[...])
    networks = torch_side.networks_of(config, weights)
    images = subject.photos(BATCH, PAGE, "torchvision")
    checked = parity.check(config, {HIGHEST: broken}, networks, images)
    rows = [{"network": "broken", **row.to_json()} for row in checked]
    failing = [row["layer"] for row in rows if not row["holds"]]
    assert failing[0] == "conv3_2"
    assert config.layer_names.index("conv3_2") + len(failing) == len(config.layers)
    spoiled = {**results["sections"], "parity": {"limit": 1, "seconds": 1.0, "rows": rows}}
    spoiled = {**results, "sections": spoiled}
    spoiled["targets"] = targets.judge(spoiled)
    assert [t["verdict"] for t in spoiled["targets"]][:2] == [targets.FAIL] * 2
    assert "- broken, highest, conv3_2: error" in report.page(spoiled)


def _example() -> tuple:
    """vgg11_bn with PyTorch's own outputs in our layout, but for a few zeros that flip."""
    config = subject.config_of(TINY, "vgg11_bn")
    networks = torch_side.networks_of(config, subject.random_weights(config))
    images = random_images(2, 32, 47)
    references = list(torch_references(config, networks, images))
    ours = {reference.layer: reference.output.copy() for reference in references}
    shifted = ours["relu3_1"]
    shifted[(shifted > 0) & (shifted < 1e-4)] = 0
    ours["relu6"][0, :5] = 0
    ours["relu7"][1, 2] = -1.0
    return config, networks, images, references, ours


def test_it_finds_what_the_verification_finds():
    config, networks, images, references, ours = _example()
    model = subject.model_of(config, subject.random_weights(config))
    parameters = {path: np.asarray(value) for path, value in model_arrays(model).items()}
    expected = list(compare(config, parameters, images, dict(ours), "PyTorch", references))
    tensors = {name: torch.from_numpy(array) for name, array in ours.items()}
    found = [
        row.check for row in parity.check_outputs(config, {HIGHEST: tensors}, networks, images)
    ]
    for here, there in zip(found, expected, strict=True):
        for name in ("layer", "shape", "negatives", "zeros", "flips", "unexplained"):
            assert getattr(here, name) == getattr(there, name), here.layer
        assert here.error == pytest.approx(there.error, rel=1e-6)
        assert here.peer_error == pytest.approx(there.peer_error, rel=1e-6)
        for one, other in zip(here.flipped, there.flipped, strict=False):
            assert one.place == other.place
            assert one[1:] == pytest.approx(other[1:], rel=1e-9, abs=1e-12)
    assert sum(check.flips > 0 for check in found) >= 2
    assert sum(check.negatives for check in found) == 1


@pytest.fixture(scope="module")
def our_maps() -> dict[str, np.ndarray]:
    """Every method's maps of a tiny network; one program for all takes less compiling."""
    plain, gap = tiny_vgg(TINY_CLASSIFIER), tiny_vgg(TINY_GAP)
    targets = Targets(jnp.asarray([CLASSES] * 2))

    @jax.jit
    def found(images: jax.Array) -> dict[str, jax.Array]:
        maps_by_method = {"fully_convolutional": maps_of_scores(score_maps(plain, images), targets)}
        for method in set(torch_maps.METHODS) - {"fully_convolutional"}:
            model = gap if method == "cam" else plain
            layers = {"full_grad": (), "cam": ("pool2",)}.get(method, ("relu2_1",))
            options = OPTIONS.get(method, NoOptions)()
            static = options, model.config, method, layers, CONVENTIONS["paper"]
            stacks = model.conv_stack, model.head
            maps_by_method[method] = layer_maps(stacks, images, targets, *static)
        return {method: maps[0] for method, (maps, _, _) in maps_by_method.items()}

    return {method: np.asarray(maps) for method, maps in found(jnp.asarray(IMAGES)).items()}


def test_all_methods_are_compared_but_the_random_and_the_composed():
    composed = {"smooth_grad_cam++", "ss_cam", "is_cam", "refine_cam", "deep_feature_factorisation"}
    assert set(torch_maps.METHODS) == set(METHODS) - composed


@pytest.mark.parametrize("method", torch_maps.METHODS)
def test_plain_maps_are_the_papers(our_maps: dict[str, np.ndarray], method: str):
    model = tiny_vgg(TINY_GAP if method == "cam" else TINY_CLASSIFIER)
    network = _torch_twin(model)
    images = torch_side.tensor(IMAGES)
    expected = torch_maps.maps_of(network, images.double(), CLASSES, method).numpy()
    error = np.abs(our_maps[method] - expected).max() / np.abs(expected).max()
    assert error < 1e-5
    if method == "grad_cam":
        hooked = torch_maps.hooked_grad_cam(network.float(), images[:1], CLASSES)
        assert hooked[0].numpy() == pytest.approx(expected[0], abs=1e-5 * np.abs(expected).max())


def _torch_twin(model) -> torch.nn.Module:
    """PyTorch's network with the weights of a tiny one, in float64."""
    nn = torch.nn
    twin = nn.Module()
    convs = [nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)]
    blocks = [(conv, nn.ReLU(), nn.MaxPool2d(2)) for conv in convs]
    twin.features = nn.Sequential(*blocks[0], *blocks[1])
    if model.config.head == TINY_GAP:
        twin.avgpool, twin.classifier = nn.AdaptiveAvgPool2d(1), nn.Linear(12, 5)
    else:
        twin.avgpool = nn.AdaptiveAvgPool2d(7)
        twin.classifier = nn.Sequential(nn.Linear(588, 16), nn.ReLU(), nn.Linear(16, 7))
    twin.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(model).items()})
    twin.forward = lambda x: twin.classifier(torch.flatten(twin.avgpool(twin.features(x)), 1))
    return twin.double()


def test_lpips_an_exported_program_and_a_profile():
    config = subject.config_of(TINY, TINY.arch)
    weights = subject.random_weights(config)
    found = uses.Uses(speed.Bench(TINY, config, weights, torch_side.networks_of(config, weights)))
    rows = [*found.check_lpips(), *found.check_exported()]
    assert [(row["head"], row["shape"]) for row in rows] == [
        ("LPIPS", [2]),
        ("jax.export", [2, 10]),
    ]
    assert all(row["holds"] and row["error"] > 0 for row in rows)
    profile = found.profile(TF32)
    assert [row["ms"] for row in profile] == sorted((row["ms"] for row in profile), reverse=True)
    assert 0.5 < sum(row["share"] for row in profile) <= 1 + 1e-9


def test_what_was_cut_and_what_failed_is_listed():
    now, written = [0.0], []

    def takes(seconds: float) -> sections.Rows:
        now[0] += seconds
        return [{"took": seconds}]

    def fails() -> sections.Rows:
        raise RuntimeError("out of memory\nand more")

    def step(name: str, seconds: float) -> Step:
        return Step(name, lambda: takes(seconds))

    first = Section("a", 10, iter([step("one", 6), Step("two", fails), step("three", 5)]))
    full = Section("b", 10, iter([step("four", 11), step("five", 1)]))
    late = Section("c", 10, iter([step("six", 1)]))
    results = {}
    run = [first, full, late]
    sections.run(run, results, lambda: written.append(now[0]), 20, clock=lambda: now[0])
    assert results["cut"] == ["b: five", "c: six"]
    assert results["failed"] == ["a: two: RuntimeError: out of memory"]
    assert [len(section["rows"]) for section in results["sections"].values()] == [2, 1, 0]
    assert written == [6, 6, 11, 22]  # behind every step


def test_speedup_is_the_median_of_rounds():
    row = {"what": "forward", "batch": 1, "mode": "highest", "tool": speed.OURS, "ms": 1.0}
    ours = {**row, "rounds_ms": [1.0, 2.0, 1.0]}
    theirs = {**row, "tool": speed.EAGER, "rounds_ms": [2.0, 2.0, 5.0]}
    assert speed.ratio([ours, theirs], ours, speed.EAGER) == 2.0
    assert speed.ratio([ours, theirs], ours, speed.GRAPH) is None
    other = {**theirs, "batch": 8}
    assert speed.ratio([ours, other], ours, speed.EAGER) is None


def test_products_of_a_forward_pass():
    config = subject.config_of(subject.FULL, "vgg16")
    # Simonyan & Zisserman's network D: 15.3 thousand million in the convolutions, 124 million
    # behind them.
    assert subject.multiplications(config, (224, 224)) == 15_346_630_656 + 123_633_664


def test_weights_travel_as_halves(tmp_path: Path):
    config = subject.config_of(TINY, TINY.arch)
    weights = subject.random_weights(config, seed=1)
    path = tmp_path / "halves.safetensors"
    convolutions.write(weights, "keras", path)
    found = subject.weights_of(config, path)
    assert set(found) == set(weights)
    name = "features.0.weight"
    assert np.array_equal(found[name], weights[name].astype(np.float16))
    assert found[name].dtype == np.float32
    assert subject.preprocessing_of(path) == "keras"
    assert subject.preprocessing_of(None) == "torchvision"
    with pytest.raises(ValueError, match="is no tensor of vgg11_bn"):
        subject.weights_of(subject.config_of(TINY, "vgg11_bn"), path)


def test_the_modes_are_what_they_say():
    weights = subject.random_weights(config := subject.config_of(TINY, "vgg11_bn"))
    networks = torch_side.networks_of(config, weights)
    network = networks.in_mode(BFLOAT16)
    assert network.features[0].weight.dtype == torch.bfloat16
    assert network.features[1].weight.dtype == torch.float32  # BatchNorm, on both sides
    model = subject.model_of(config, weights, BFLOAT16)
    assert model.conv_stack.conv1_1.kernel.dtype == jnp.bfloat16
    assert model.conv_stack.bn1_1.var.dtype == jnp.float32
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for mode in (TF32, HIGHEST):
        with torch_side.arithmetic(mode):
            assert [flag.allow_tf32 for flag in flags] == [mode.tf32] * 2
    assert [flag.allow_tf32 for flag in flags] == before


def test_a_missing_package_is_one_clear_line(monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setattr(__main__, "_NEEDED", ("jax", "no_such_package", "nor_this"))
    assert __main__.main(["--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == "error: this needs no_such_package, nor_this: pip install it\n"
    assert not (tmp_path / "out").exists()


def test_nothing_else_is_imported():
    # By the source, since this process has imported everything: the script's modules with what is
    # imported inside of functions, and those of the project that they import, at their top.
    seen: set[str] = set()
    outside: set[str] = set()
    waiting = [
        f"experiments.gpu_report.{p.stem}" for p in Path(report.__file__).parent.glob("*.py")
    ]
    waiting.remove("experiments.gpu_report.convolutions")  # is run where the weights are
    while waiting:
        name = waiting.pop()
        path = ROOT / name.replace(".", "/")
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.exists():
            continue
        seen.add(name)
        for imported in _imports(path, whole=name.startswith("experiments.gpu_report")):
            top = imported.split(".")[0]
            if top in ("flaxvgg", "convert", "experiments"):
                waiting += [imported, imported.rpartition(".")[0]]
            elif top not in sys.stdlib_module_names:
                outside.add(top)
    assert {"flaxvgg.cam.maps", "flaxvgg.training.trainer", "flaxvgg.conversion.verify"} <= seen
    assert outside <= set(__main__._NEEDED)


def _imports(path: Path, whole: bool) -> list[str]:
    tree = ast.parse(path.read_text("utf-8"))
    found = []
    for node in ast.walk(tree) if whole else tree.body:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found
