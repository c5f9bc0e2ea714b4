"""What every command does alike: JSON, narrow and cut-off tables, errors, completion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

import flaxvgg
from flaxvgg.commands.console import clear_errors, console, keep_stdout
from flaxvgg.commands.tables import facts, features_table, model_facts, sparsity_table
from flaxvgg.commands.verification import print_verification
from flaxvgg.conversion.rule import LayerCheck
from flaxvgg.files.choices import choose
from flaxvgg.network.config import ARCHITECTURES
from helpers import check_refused, run_flaxvgg
from networks import random_images, random_model

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A network with a GAP head, and two photos."""
    folder = tmp_path_factory.mktemp("line")
    stack = random_model(flaxvgg.VGGConfig.features_only("vgg11", "an example"))
    flaxvgg.save(flaxvgg.with_gap(stack, 3), folder / "gap.safetensors")
    for i in range(2):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(folder / f"photo{i}.png")
    return folder


def test_the_version_as_a_script_and_as_a_module():
    assert run_flaxvgg("--version").stdout == f"flaxvgg {flaxvgg.__version__}\n"
    command = [sys.executable, "-m", "flaxvgg", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"flaxvgg {flaxvgg.__version__}\n"


def test_completion_names_commands_and_choices():
    def completed(*words: str) -> list[str]:
        asked = {
            "_FLAXVGG_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        command = [sys.executable, "-m", "flaxvgg"]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | asked, capture_output=True, text=True
        )
        return done.stdout.split()

    assert completed("flaxvgg", "la") == ["layers"]
    assert completed("flaxvgg", "cam", "--arch", "vgg16") == ["vgg16", "vgg16_bn"]


def test_the_layers_of_an_architecture_and_of_a_file(folder):
    found = json.loads(run_flaxvgg("layers", "vgg16", "--json").stdout)
    rows = {row["name"]: row for row in found["layers"]}
    assert rows["relu5_3"]["torch"] == "features.29"
    assert rows["relu5_3"]["keras"] == "block5_conv3"
    assert rows["fc6"]["parameters"] == 4096 * 25089
    shown = run_flaxvgg("layers", folder / "gap.safetensors", "--size", "64x96").stdout
    assert "2x3x512" in shown
    assert f"{512 * 3 + 3:,}" in shown
    check_refused(run_flaxvgg("layers", "vgg61"), "did you mean vgg16?")
    check_refused(run_flaxvgg("layers", "gone.pth"), "gone.pth does not exist")


@pytest.mark.parametrize("command", ["features", "sparsity", "cam", "compare", "info", "convert"])
def test_json_is_all_of_stdout(command, folder, tmp_path):
    weights, photo = folder / "gap.safetensors", folder / "photo1.png"
    asked = {
        "features": [photo, "--layers", "pool1,logits", "--out", tmp_path / "a.npz"],
        "sparsity": [photo, "--layers", "pool1"],
        "cam": [photo, "--method", "cam", "--out", tmp_path / "cam"],
        "compare": [folder / "photo0.png", photo, "--metric", "psnr"],
        "info": [weights],
        "convert": [weights, "--out", tmp_path / "again.safetensors"],
    }[command]
    if command not in ("info", "convert"):
        asked += ["--weights", weights]
    if command in ("features", "sparsity", "cam"):
        asked += ["--size", "32x32", "--arch", "vgg11"]
    if command == "compare":  # which has VGG16 only, and does not use it for PSNR
        vgg16 = flaxvgg.VGGConfig.features_only("vgg16", "an example")
        flaxvgg.save(random_model(vgg16), tmp_path / "vgg16.safetensors")
        asked[-1] = tmp_path / "vgg16.safetensors"
    result = run_flaxvgg(command, *asked, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    match command:
        case "features":
            assert found["arrays"]["pool1"]["shape"] == [1, 16, 16, 64]
            zeros = (np.load(tmp_path / "a.npz")["pool1"] == 0).mean()
            assert found["arrays"]["pool1"]["zeros"] == [pytest.approx(zeros)]
        case "sparsity":
            assert found["images"] == 1 or found["report"]["images"] == 1
        case "cam":
            assert found == json.loads((tmp_path / "cam" / "cam.json").read_text())
        case "compare":
            assert [Path(pair["image"]).name for pair in found["pairs"]] == ["photo1.png"]
        case "info" | "convert":
            assert found["architecture"] == "vgg11"
    if command not in ("info",):
        assert result.stderr  # the progress, and where to look
    assert run_flaxvgg("layers", "vgg11").stdout  # the next command prints as ever


def _checks() -> dict[str, list[LayerCheck]]:
    names = "conv5_3", "relu5_3", "pool5", "fc6", "prob"
    shape = 1, 14, 14, 512
    return {
        peer: [LayerCheck(x, peer, shape, 1e-7, 2e-7, 100_352, 0.9, 0, 0, ()) for x in names]
        for peer in ("PyTorch", "ONNX Runtime")
    }


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr(console, "_width", None)  # what COLUMNS was when the module was imported


def test_tables_fit_sixty_columns(narrow, capsys, folder):
    keep_stdout(False)
    model = flaxvgg.vgg11(weights=folder / "gap.safetensors")
    layers = [layer.name for layer in model.config.conv_stack if layer.kind != "conv"]
    report = flaxvgg.measure_sparsity(model, random_images(2, 32, 32), layers)
    zeros = {name: np.array([0.1, 0.999]) for name in layers}
    console.print(sparsity_table(report, zeros, "a caption"))
    print_verification(console, _checks())
    console.print(facts(model_facts(model)))
    arrays = {"photos": np.array(["a/long/name/" * 9]), "pool5": np.zeros((1, 7, 7, 512))}
    console.print(features_table(model, arrays))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert not any("…" in line for line in lines)
    assert any("wider window" in line for line in lines)
    for arch in ARCHITECTURES:
        shown = run_flaxvgg("layers", arch).stdout
        assert max(map(len, shown.splitlines())) <= 60
        assert "…" not in shown


def test_what_is_piped_is_not_broken(monkeypatch, capsys):
    monkeypatch.delenv("COLUMNS", raising=False)
    keep_stdout(False)
    digest, path = "0123456789abcdef" * 4, "/a/long/path" * 20
    console.print(facts({"sha256": digest, "written": path}), highlight=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["sha256", digest], ["written", path]]


def _refused(raised: Exception, capsys) -> str:
    with pytest.raises(typer.Exit), clear_errors("nothing was changed"):
        raise raised
    return capsys.readouterr().err


def test_errors_are_at_most_twenty_lines(capsys):
    many = "300 problems with weights\n  " + "\n  ".join(f"layer {i}" for i in range(300))
    lines = _refused(ValueError(many), capsys).splitlines()
    assert len(lines) == 20
    assert lines[-1] == "  and 282 more"
    few = _refused(ValueError("two\n  a\n  b"), capsys)
    assert few == "error: two\n  a\n  b\n"


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("h5py", "pip install h5py, or all of this command's: pip install 'flaxvgg[convert]'"),
        ("zarr", "'flaxvgg[stream]'"),
        ("tensorboardX", "'flaxvgg[train]'"),
        ("skimage", "pip install scikit-image\n"),
    ],
)
def test_only_what_is_missing_is_named(module, words, capsys):
    told = _refused(ModuleNotFoundError(f"No module named {module!r}", name=module), capsys)
    assert words in told
    assert "torch" not in told
    assert told.count("flaxvgg[") <= 1
    with pytest.raises(ModuleNotFoundError):  # a fault of ours
        _refused(ModuleNotFoundError(name="flaxvgg.nothing"), capsys)


def test_misspelt_words_are_answered_with_the_nearest():
    told = "did you mean vgg16? choose from vgg11, vgg16, vgg19"
    assert choose("vgg61", ["vgg11", "vgg16", "vgg19"]) == told
    assert choose("resnet", ["vgg11"]) == "choose from vgg11"
    check_refused(run_flaxvgg("cam", "x.png", "--convention", "grad_cam"), "did you mean grad-cam?")
    check_refused(run_flaxvgg("features", "x.png", "--arch", "vgg_16"), "x.png")
    wrong = run_flaxvgg("cam", "x.png", "--metod", "cam")
    assert wrong.exit_code == 2
    assert "--method" in wrong.stderr


def test_a_path_that_is_not_there_is_no_unknown_name(tmp_path):
    for path in ("gone.pth", "./gone", "a/b"):
        with pytest.raises(flaxvgg.WeightsError, match="does not exist"):
            flaxvgg.vgg11(weights=path)
    with pytest.raises(flaxvgg.WeightsError, match=r"no published weights.*nor is there a file"):
        flaxvgg.vgg11(weights="IMAGENET1K_V2")
    with pytest.raises(flaxvgg.WeightsError, match="did you mean IMAGENET1K_V1"):
        flaxvgg.vgg11(weights="IMAGENET_V1")
    out = tmp_path / "out"
    check_refused(run_flaxvgg("convert", "gone.pth", "--out", out), "gone.pth does not exist")
    told = "no published weights 'VGG16_Weights.IMAGENET1K_V3'"
    check_refused(run_flaxvgg("convert", "VGG16_Weights.IMAGENET1K_V3", "--out", out), told)


def test_json_of_a_store(folder, tmp_path):
    weights = ["--weights", folder / "gap.safetensors", "--arch", "vgg11", "--size", "32x32"]
    photos = [folder / "photo0.png", folder / "photo1.png"]
    asked = [*photos, *weights, "--layers", "relu1_1,pool1", "--out", tmp_path / "a.zarr", "--json"]
    result = run_flaxvgg("sparsity", *asked)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["images"].startswith("2 done, 0 broken")
    assert found["report"]["images"] == 2
    assert found["report"]["layers"][1]["layer"] == "pool1"


def test_a_store_of_no_relu(folder, tmp_path):
    weights = ["--weights", folder / "gap.safetensors", "--arch", "vgg11", "--size", "32x32"]
    out = tmp_path / "a.zarr"
    result = run_flaxvgg("sparsity", folder, *weights, "--layers", "pool1", "--out", out, "--json")
    assert result.exit_code == 0, result.output
    (layer,) = json.loads(result.stdout)["report"]["layers"]
    assert layer["layer"] == "pool1"
