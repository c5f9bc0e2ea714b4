"""Inference engines for CPUs, with the convolution stack as each of them reads it.

They read files: OpenVINO and MNN the ONNX file that ONNX Runtime gets, ncnn what pnnx makes of
PyTorch's trace. All in float32 (no fp16, no bf16), on as many threads as this process may use.
"""

import importlib
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from experiments.timing import Call

# The converter itself. The package's command `mnnconvert` installs further packages by pip into
# whatever Python is first on PATH, to report what was converted to its makers.
_MNN_CONVERTER = "import sys, MNN, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
_TRACED = 64  # pixels of the image that the trace is made with; what ncnn reads takes all sizes

Images = Float[np.ndarray, "n 3 h w"]


class Runner(NamedTuple):
    """A tool with its images: a call that returns when it is done, and its result as ours is.

    That is maps (N, h, w, channels) or logits (N, classes).
    """

    call: Call
    result: Callable[[], np.ndarray]


def openvino(onnx: Path, images: Images, threads: int) -> Runner:
    """Intel's engine, compiled for this shape."""
    # Without this package it reports no imports to its makers, for which it would fork the process.
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore
    module = importlib.import_module("openvino")
    core = module.Core()
    network = core.read_model(onnx)
    network.reshape(list(images.shape))
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    request = core.compile_model(network, "CPU", options).create_infer_request()
    x = module.Tensor(images, shared_memory=True)

    def call() -> Any:
        return request.infer({0: x}, share_inputs=True, share_outputs=True)[0]

    return Runner(call, lambda: np.moveaxis(np.array(call()), 1, -1))


def mnn(onnx: Path, images: Images, threads: int) -> Runner:
    """Alibaba's engine, with its precision "high": float32."""
    engine, values = (importlib.import_module(name) for name in ("MNN", "MNN.expr"))
    path = onnx.with_suffix(".mnn")
    if not path.exists():
        files = "--modelFile", onnx, "--MNNModel", path, "--bizCode", "MNN"
        _run(sys.executable, "-c", _MNN_CONVERTER, "-f", "ONNX", *files)
    runtime = engine.nn.create_runtime_manager(
        ({"precision": "high", "backend": "CPU", "numThread": threads},)
    )
    names = ["images"], ["result"]
    module = engine.nn.load_module_from_file(str(path), *names, runtime_manager=runtime)
    x = values.placeholder(list(images.shape), values.NCHW)
    x.write(images)

    def call() -> Any:
        found = module.forward(x)
        found.read()
        return found

    def result() -> np.ndarray:
        return np.moveaxis(np.array(values.convert(call(), values.NCHW).read()), 1, -1)

    return Runner(call, result)


def ncnn(stack: torch.nn.Module, folder: Path, images: Images, threads: int) -> Runner:
    """Tencent's engine, with its Winograd convolutions; it takes one image at a time."""
    module = importlib.import_module("ncnn")
    path = folder / "stack.pt"
    if not path.exists():
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing is deprecated, and what pnnx takes
            torch.jit.trace(stack, torch.zeros(1, 3, _TRACED, _TRACED)).save(path)
        _run("pnnx", path, f"inputshape=[1,3,{_TRACED},{_TRACED}]", "fp16=0")
    network = module.Net()
    options = network.opt
    options.num_threads = threads
    options.use_winograd_convolution = True
    for name in dir(options):  # as it is built, not all of them are there
        if name.startswith(("use_fp16", "use_bf16", "use_int8", "use_vulkan")):
            setattr(options, name, False)
    network.load_param(str(path.with_suffix(".ncnn.param")))
    network.load_model(str(path.with_suffix(".ncnn.bin")))
    x = module.Mat(images[0]).clone()

    def call() -> Any:
        extractor = network.create_extractor()
        extractor.input("in0", x)
        return extractor.extract("out0")[1]

    return Runner(call, lambda: np.moveaxis(np.array(call())[None], 1, -1))


def _run(program: str, *arguments: str | Path) -> None:
    """A program of a package of this environment; RuntimeError with what it said if it fails."""
    here = Path(sys.executable).parent
    path = shutil.which(program, path=str(here)) or program
    command: Sequence[str] = [path, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"{program}: {(done.stderr or done.stdout).strip()[-300:]}")
