"""Models that others run: as programs of JAX without flaxvgg, and as files of ONNX."""

import inspect
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from flax import nnx

import flaxvgg
from flaxvgg.conversion.reading import read_source
from flaxvgg.conversion.target import convert
from helpers import check_refused, quickly, run_flaxvgg
from networks import TINY_CLASSIFIER, TINY_GAP, random_images, random_model, tiny_vgg

_STACK = flaxvgg.VGGConfig.features_only("vgg11", "an example")
# Runs a file with jax alone, and would fail where any part of flaxvgg is needed.
_ALONE = """
import sys
sys.modules["flaxvgg"] = None
import jax, numpy
program = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
assert set(program.platforms) == {"cpu", "cuda", "tpu"}, program.platforms
numpy.save(sys.argv[2], numpy.asarray(program.call(numpy.load(sys.argv[3]))))
"""


def _close(found, expected) -> None:
    expected = np.asarray(expected)
    assert np.abs(np.asarray(found) - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("what", "options"),
    [
        ("features", {}),
        ("logits", {}),
        ("gap", {}),
        ("explain", {"classes": [0, 3]}),
        ("explain", {"method": "layer_cam"}),
    ],
)
def test_a_program_for_every_platform_and_number_of_images(what, options):
    model = tiny_vgg(TINY_GAP)
    made = flaxvgg.to_jax_export(model, what, size=(32, 40), **options)
    called = set(re.findall(r"custom_call @(\w+)", made.mlir_module()))
    assert called <= {"shape_assertion"}, called  # which is of JAX's own
    program = jax.export.deserialize(made.serialize())
    assert program.platforms == ("cpu", "cuda", "tpu")
    for count in (1, 3):
        images = jnp.asarray(random_images(count, 32, 40))
        found = program.call(images)
        if what == "explain":
            expected = flaxvgg.explain(model, images, **options)
            np.testing.assert_array_equal(found["classes"], expected.classes)
            _close(found["maps"], expected.maps)
            _close(found["scores"], expected.scores)
        else:
            _close(found, model(images) if what == "logits" else getattr(model, what)(images))


@pytest.mark.slow
def test_lpips_as_a_program():
    model = random_model(flaxvgg.VGGConfig.features_only("vgg16", "an example"))
    a, b = (jnp.asarray(np.tanh(random_images(2, 64, 64, seed=i))) for i in range(2))
    with pytest.warns(UserWarning, match="weights"):
        made = flaxvgg.to_jax_export(model, "lpips", size=(64, 64), value_range=(-1, 1))
    with pytest.warns(UserWarning, match="weights"):
        expected = flaxvgg.lpips(model, a, b, value_range=(-1, 1))
    _close(jax.export.deserialize(made.serialize()).call(a, b), expected)


def test_what_cannot_be_exported():
    model = tiny_vgg(TINY_GAP)
    with pytest.raises(ValueError, match=r"did you mean features\?"):
        inspect.unwrap(flaxvgg.to_jax_export)(model, "feature")
    with pytest.raises(ValueError, match="takes no options"):
        flaxvgg.to_jax_export(model, "logits", method="cam")


def test_the_command_writes_a_program_that_runs_without_flaxvgg(tmp_path):
    model = flaxvgg.with_gap(random_model(_STACK), 3, rngs=nnx.Rngs(0))
    flaxvgg.save(model, tmp_path / "m.safetensors")
    out, images = tmp_path / "m.jaxexport", random_images(3, 32, 32)
    weights = ["--weights", tmp_path / "m.safetensors", "--arch", "vgg11", "--size", "32x32"]
    done = run_flaxvgg("export", *weights, "--out", out)
    assert done.exit_code == 0, done.output
    np.save(tmp_path / "images.npy", images)
    command = [sys.executable, "-c", _ALONE, out, tmp_path / "found.npy", tmp_path / "images.npy"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True)
    _close(np.load(tmp_path / "found.npy"), model(images))


def test_wrong_words_for_the_command(tmp_path):
    check_refused(run_flaxvgg("export", "--out", tmp_path / "m.pb"), "FILE.jaxexport or FILE.onnx")
    out = ["--out", tmp_path / "m.jaxexport"]
    check_refused(run_flaxvgg("export", *out, "--method", "cam"), "--method is for --what explain")
    check_refused(run_flaxvgg("export", *out, "--what", "lpips"), "needs --value-range")
    check_refused(run_flaxvgg("export", *out, "--what", "logit"), "did you mean logits?")
    onnx_out = ["--out", tmp_path / "m.onnx"]
    check_refused(run_flaxvgg("export", *onnx_out, "--what", "gap"), "--what gap is for .jaxexport")
    wrong = run_flaxvgg("export", *out, "--what", "explain", "--classes", "cat")
    check_refused(wrong, "--classes is numbers")


HEADS = {
    "classifier": lambda: flaxvgg.VGGConfig.classifier("vgg11", num_classes=5),
    "gap": lambda: flaxvgg.VGGConfig.gap("vgg11_bn", num_classes=5),
    "gap with conv6": lambda: flaxvgg.VGGConfig.gap("vgg11", num_classes=5, channels=16),
    "score map": lambda: flaxvgg.VGGConfig.score_map(
        "vgg11", num_classes=5, channels=16, last="shifted_relu", batch_norm=True, fc=True
    ),
    "leaky": lambda: flaxvgg.VGGConfig.score_map(
        "vgg11", num_classes=5, channels=16, last="leaky_relu"
    ),
    "l2": lambda: flaxvgg.VGGConfig("vgg11", (), "an example", pooling="l2"),
    "replicate": lambda: flaxvgg.VGGConfig("vgg11", (), "an example", padding="replicate"),
}


def _run(file: bytes, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": np.ascontiguousarray(images.transpose(0, 3, 1, 2))})
    return found.transpose(0, 2, 3, 1) if found.ndim == 4 else found


@pytest.mark.parametrize("name", quickly(HEADS, "gap", "gap with conv6", "l2"))
def test_an_onnx_file_of_every_head(name):
    model = random_model(HEADS[name]())
    size = (224, 224) if name == "classifier" else (64, 96)
    images = random_images(2, *size)
    file = flaxvgg.to_onnx(model, size=size)
    onnx.checker.check_model(onnx.load_from_string(file), full_check=True)
    expected = model(images) if model.config.head else model.features(images)
    _close(_run(file, images), expected)
    if model.config.head:
        _close(_run(flaxvgg.to_onnx(model, "features", size), images), model.features(images))


def test_a_classifier_of_larger_images():
    model = tiny_vgg(TINY_CLASSIFIER)
    images = random_images(1, 56, 84)
    _close(_run(flaxvgg.to_onnx(model, size=(56, 84)), images), model(images))
    with pytest.raises(ValueError, match="here it is 16x21"):
        flaxvgg.to_onnx(model, size=(64, 84))
    windows = nnx.eval_shape(
        lambda: flaxvgg.VGG(
            flaxvgg.VGGConfig.classifier("vgg11").fully_convolutional(), rngs=nnx.Rngs(0)
        )
    )
    with pytest.raises(ValueError, match="is not written as ONNX"):
        flaxvgg.to_onnx(windows)
    with pytest.raises(ValueError, match=r"no output 'logit': did you mean logits\?"):
        inspect.unwrap(flaxvgg.to_onnx)(model, "logit")


@pytest.mark.parametrize("name", quickly(("gap", "gap with conv6", "classifier"), "gap"))
def test_our_own_reader_reads_it_back_to_the_bit(name, tmp_path):
    model = random_model(HEADS[name]())
    flaxvgg.save(model, tmp_path / "m.safetensors")
    weights = ["--weights", tmp_path / "m.safetensors", "--arch", model.config.arch]
    done = run_flaxvgg("export", *weights, "--out", tmp_path / "m.onnx")
    assert done.exit_code == 0, done.output
    again = convert(read_source(str(tmp_path / "m.onnx")))
    before, after = flaxvgg.to_torch(model), flaxvgg.to_torch(again)
    assert before.keys() == after.keys()
    for key, array in before.items():
        np.testing.assert_array_equal(after[key], array, key)
    assert again.preprocessing == model.preprocessing
