"""The tools that run the same network, and which of them cannot run here, and why."""

import copy
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch

import flaxvgg
from experiments.bench import engines
from experiments.bench.engines import Runner
from experiments.bench.plan import Plan, Shape
from experiments.gpu_report import subject, torch_side
from experiments.gpu_report.subject import HIGHEST, TF32
from experiments.torch_device import DEVICE, wait
from flaxvgg.network.config import VGGConfig
from flaxvgg.network.model import VGG
from flaxvgg.weights.mapping import build, model_arrays
from flaxvgg.weights.packaged import CONVOLUTIONS, find_packaged, read_convolutions

OURS = "flaxvgg"
PREPARED = "flaxvgg prepared"
FAST = "flaxvgg default"
EAGER = "torch eager"
LAST = "torch channels last"
COMPILED = "torch.compile"
ORT = "ONNX Runtime"
KERAS = "Keras on JAX"
OPENVINO = "OpenVINO"
NCNN = "ncnn"
MNN = "MNN"
PICTURES = "pictures"
FORWARD = (OURS, PREPARED, FAST, EAGER, LAST, COMPILED, ORT, KERAS)
ENGINES = (OPENVINO, NCNN, MNN)  # they run the convolution stack
STACK = (*FORWARD, *ENGINES)
_PACKAGES = {
    ORT: ("onnx", "onnxruntime"),
    KERAS: ("keras",),
    OPENVINO: ("onnx", "openvino"),
    NCNN: ("ncnn", "pnnx"),
    MNN: ("onnx", "MNN"),
    "grad-cam": ("pytorch_grad_cam",),
    "torchcam": ("torchcam",),
    PICTURES: ("matplotlib",),
}
_KERAS = {"vgg16": "VGG16", "vgg19": "VGG19"}
_KERAS_SIZE = (224, 224)
WIDTH = 4096  # of fc6 and fc7 as they are published

Kind = Literal["stack", "forward"]


def left_out(plan: Plan) -> dict[str, str]:
    """The peers that cannot run here at all, and why; every other place asks this one."""
    found = {}
    for tool, packages in _PACKAGES.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            found[tool] = f"not installed: {', '.join(missing)}"
    if ORT not in found and DEVICE.type == "cuda":
        providers = importlib.import_module("onnxruntime").get_available_providers()
        if "CUDAExecutionProvider" not in providers:
            found[ORT] = "it has no CUDA provider here"
    for tool in ENGINES:
        if tool not in found and DEVICE.type == "cuda":
            found[tool] = "it is for CPUs here"
    if KERAS not in found and plan.network.arch not in _KERAS:
        found[KERAS] = f"it has no {plan.network.arch}"
    problem = _compiler_problem(plan.network.backend)
    return found | ({COMPILED: problem} if problem else {})


def _compiler_problem(backend: str) -> str:
    # Its C++ compiler may be missing, or Triton; it says so when the first function is compiled.
    try:
        torch.compile(lambda x: x.sin() + 1, backend=backend)(torch.ones(8, device=DEVICE))
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return ""


def weights_of(config: VGGConfig) -> tuple[dict[str, np.ndarray], str]:
    """Weights under torchvision's names, and what they are.

    torchvision's own convolutions where they are this network's and installed, all else random.
    """
    weights = subject.random_weights(config)
    path = find_packaged(CONVOLUTIONS) if config.arch == CONVOLUTIONS.arch else None
    if path is None:
        return weights, "random"
    source = CONVOLUTIONS.provenance("").source
    convolutions = {name: np.array(value) for name, value in read_convolutions(path).items()}
    return weights | convolutions, f"{source}; a random classifier"


class Tools:
    """One network in every tool, each made when it is asked for; `folder` is for their files."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan = plan
        self.folder = folder
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")  # an empty one
        self.left_out = left_out(plan)
        self.config = subject.config_of(plan.network, plan.network.arch)
        torch.set_num_threads(plan.threads)
        self.weights, self.described = weights_of(self.config)
        self.networks = torch_side.networks_of(self.config, self.weights)
        self._session: tuple[object, Any] = (None, None)
        self._keras: dict[Kind, Any] = {}

    @cached_property
    def models(self) -> dict[str, VGG]:
        """Ours by the name of the tool: both precisions, one set of arrays."""
        exact = subject.model_of(self.config, self.weights, HIGHEST)
        fast = build(self.config, model_arrays(exact), precision=TF32.precision)
        return {OURS: exact, FAST: fast}

    @cached_property
    def eager(self) -> Any:
        """torchvision's network as it is published, with its ReLUs in place."""
        return _in_place(_sharing(self.networks.single))

    @cached_property
    def last(self) -> Any:
        """The same with channels last."""
        return copy.deepcopy(self.eager).to(memory_format=torch.channels_last)

    def images(self, shape: Shape) -> np.ndarray:
        """Photos of this shape, some of them repeatedly; noise where there are none."""
        return subject.photos(*shape, "torchvision")

    def reason(self, tool: str, kind: Kind, shape: Shape) -> str:
        """Why a tool cannot run images of this shape; empty where it can."""
        batch, size = shape
        if tool == NCNN and tool not in self.left_out and batch > 1:
            return "it takes one image at a time"
        fits = size == _KERAS_SIZE and self.plan.network.width == WIDTH
        if tool == KERAS and tool not in self.left_out and kind == "forward" and not fits:
            return "its classifier takes 224x224 alone: no adaptive pooling"
        return self.left_out.get(tool, "")

    def runner(self, tool: str, kind: Kind, shape: Shape) -> Runner:
        """A tool that can run, with images of this shape."""
        images = self.images(shape)
        if tool in ENGINES:
            return self._engine(tool, images)
        if tool == PREPARED:
            model = flaxvgg.prepare(self.models[OURS], shape[1])
            run = partial(_outputs, model, subject.on_device(images, HIGHEST), kind)
            return Runner(lambda: jax.block_until_ready(run()), lambda: np.asarray(run()))
        if tool in self.models:
            x, model = subject.on_device(images, HIGHEST), self.models[tool]
            run = partial(_outputs, model, x, kind)
            return Runner(lambda: jax.block_until_ready(run()), lambda: np.asarray(run()))
        if tool == ORT:
            return self._onnxruntime(kind, images)
        if tool == KERAS:
            return self._with_keras(kind, images)
        x = torch_side.tensor(images)
        network = self.last if tool == LAST else self.eager
        module = network.features if kind == "stack" else network
        if tool == LAST:
            x = x.to(memory_format=torch.channels_last)
        if tool == COMPILED:
            torch._dynamo.reset()  # a shape is not to be compiled for all shapes
            module = torch.compile(module, backend=self.plan.network.backend, dynamic=False)
        run = inferring(lambda: module(x))
        return Runner(run, lambda: _ours(run()))

    def truth(self, kind: Kind, shape: Shape) -> np.ndarray:
        """The result of PyTorch in float64."""
        x = torch_side.tensor(self.images(shape), torch.float64)
        network = self.networks.double
        return _ours(inferring(lambda: (network.features if kind == "stack" else network)(x))())

    def session(self, kind: Kind, size: tuple[int, int]) -> Any:
        """ONNX Runtime's session; the convolutions' takes every size. Only the last one is kept."""
        key = kind, size if kind == "forward" else None
        if self._session[0] != key:
            self.forget_session()
            path = self.folder / "network.onnx"
            self._export(kind, size, path)
            self._session = key, new_session(path, self.plan.threads)
        return self._session[1]

    @cached_property
    def stack_onnx(self) -> Path:
        """The convolution stack as ONNX, for images of all sizes."""
        path = self.folder / "stack.onnx"
        self._export("stack", self.plan.size, path)
        return path

    def _engine(self, tool: str, images: np.ndarray) -> Runner:
        x, threads = np.ascontiguousarray(np.moveaxis(images, -1, 1)), self.plan.threads
        if tool == NCNN:
            stack = _sharing(self.networks.single).features
            return engines.ncnn(stack, self.folder, x, threads)
        run = engines.openvino if tool == OPENVINO else engines.mnn
        return run(self.stack_onnx, x, threads)

    def forget_session(self) -> None:
        """Let the session go that is kept, and its memory."""
        self._session = None, None

    def _export(self, kind: Kind, size: tuple[int, int], path: Path) -> None:
        network = _sharing(self.networks.single)
        axes = {0: "n", 2: "h", 3: "w"} if kind == "stack" else {0: "n"}
        height, width = (n // 32 for n in size)
        if (height, width) != (7, 7):
            network.avgpool = _AdaptivePool(height, width).to(DEVICE)
        module = network.features if kind == "stack" else network
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter that needs no further package is old
            torch.onnx.export(
                *(module, (torch.zeros(1, 3, *size, device=DEVICE),), path),
                input_names=["images"],
                output_names=["result"],
                dynamic_axes={"images": axes, "result": {0: "n"}},
                dynamo=False,
            )

    def _onnxruntime(self, kind: Kind, images: np.ndarray) -> Runner:
        session = self.session(kind, images.shape[1:3])
        x = np.ascontiguousarray(np.moveaxis(images, -1, 1))
        onnxruntime = importlib.import_module("onnxruntime")
        bound = session.io_binding()  # the images are where they are needed, as everywhere
        value = onnxruntime.OrtValue.ortvalue_from_numpy(x, DEVICE.type, 0)
        bound.bind_ortvalue_input("images", value)
        bound.bind_output("result", DEVICE.type)

        def call() -> None:
            session.run_with_iobinding(bound)
            bound.synchronize_outputs()

        def result() -> np.ndarray:
            call()
            return channels_last(bound.copy_outputs_to_cpu()[0])

        return Runner(call, result)

    def _with_keras(self, kind: Kind, images: np.ndarray) -> Runner:
        keras = importlib.import_module("keras")
        if kind not in self._keras:
            make = getattr(keras.applications, _KERAS[self.plan.network.arch])
            whole = {"classes": self.config.num_classes, "classifier_activation": None}
            options = whole if kind == "forward" else {"input_shape": (None, None, 3)}
            model = make(weights=None, include_top=kind == "forward", **options)
            arrays = list(model_arrays(self.models[OURS]).items())
            order = [layer.name for layer in self.config.layers]
            arrays.sort(key=lambda item: (order.index(item[0][1]), item[0][2] == "bias"))
            # Keras has our layouts, and our order of what fc6 takes.
            model.set_weights([np.asarray(array) for _, array in arrays][: len(model.weights)])
            self._keras[kind] = model
        model, x = self._keras[kind], subject.on_device(images, HIGHEST)
        run = partial(model.predict_on_batch, x)
        return Runner(run, run)


def new_session(path: Path, threads: int = 0) -> Any:
    """A session of ONNX Runtime for a file, on the GPU where PyTorch is, in float32.

    On a CPU it has that many threads, or for 0 as many as it takes by itself.
    """
    onnxruntime = importlib.import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = threads
    cuda = ("CUDAExecutionProvider", {"use_tf32": "0"})
    providers = [cuda] if DEVICE.type == "cuda" else ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(path, options, providers=providers)


class _AdaptivePool(torch.nn.Module):
    """Adaptive average pooling to 7x7, which ONNX does not have, as two small matrix products."""

    def __init__(self, height: int, width: int):
        super().__init__()
        for name, size in (("rows", height), ("columns", width)):
            means = torch.nn.functional.adaptive_avg_pool1d(torch.eye(size)[None], 7)[0]
            self.register_buffer(name, means)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.matmul(torch.matmul(self.rows.T, x), self.columns)


@partial(jax.jit, static_argnums=2)
def _outputs(model: VGG, images: jax.Array, kind: Kind) -> jax.Array:
    return model.features(images) if kind == "stack" else model(images)


def inferring(function: Callable[[], Any]) -> Callable[[], Any]:
    """PyTorch's call without gradients, and the wait for the GPU."""

    def call() -> Any:
        with torch.inference_mode():
            found = function()
        wait()
        return found

    return call


def channels_last(array: np.ndarray) -> np.ndarray:
    """(N, C, h, w) as (N, h, w, C); vectors stay."""
    return np.moveaxis(array, 1, -1)


def _ours(result: torch.Tensor) -> np.ndarray:
    return channels_last(result.cpu().numpy())


def _sharing(network: torch.nn.Module) -> Any:
    """A copy with the same parameters in memory."""
    shared: Mapping[int, Any] = {id(parameter): parameter for parameter in network.parameters()}
    return copy.deepcopy(network, dict(shared))


def _in_place(network: torch.nn.Module) -> torch.nn.Module:
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
    return network
