"""How much is run: the whole benchmark, or all of it once, small."""

import dataclasses
import itertools

from experiments.bench_cam.ours import METHODS
from experiments.gpu_report import subject

Shape = tuple[int, tuple[int, int]]  # images, and their height and width


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is timed, of which network (`network` names it, its width, its classes and a size).

    `starts` are started, and compared with the last of them. `stack` and `forward` are the shapes
    of the convolutions and of the whole network, the batches are of images of the network's size,
    and `repeats` is how often a call of less than a millisecond is made in one measurement.
    `rounds` and `seconds` are `compete`'s, of one case; `training` has images and rounds. `matrix`
    is the side of the matrices, and `vector` the length of the vectors, of the ceilings. Every tool
    has `threads` threads.
    """

    network: subject.Plan
    starts: tuple[str, ...]
    stack: tuple[Shape, ...]
    forward: tuple[Shape, ...]
    activation_batches: tuple[int, ...]
    sparsity_batches: tuple[int, ...]
    layer_batches: tuple[int, ...]
    memory_batch: int
    cam_methods: tuple[str, ...]
    cam_rounds: int
    training: tuple[int, int]  # images in a step, and rounds
    matrix: int
    vector: int
    repeats: int
    rounds: int
    seconds: float
    threads: int = 0  # plan_of says how many

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of most images."""
        return self.network.size, self.network.size


_PAGES = tuple((batch, (224, 224)) for batch in (1, 8, 32))
_SQUARES = tuple((1, (size, size)) for size in (64, 112, 224))
_LARGE = tuple(itertools.product([1], [(512, 512), (375, 1242)]))
FULL = Plan(
    network=subject.FULL,
    starts=("python", "flaxvgg", "flaxvgg --help", "torch + torchvision", "jax + flax"),
    stack=(*_SQUARES, *_LARGE, (8, (224, 224))),
    forward=(*_PAGES, *_LARGE),
    activation_batches=(1, 8),
    sparsity_batches=(1, 8),
    layer_batches=(1, 8),
    memory_batch=32,
    cam_methods=METHODS,
    cam_rounds=2,
    training=(8, 3),
    matrix=4096,
    vector=2**26,
    repeats=200,
    rounds=15,
    seconds=25,
)
TINY = Plan(
    network=dataclasses.replace(subject.TINY, arch="vgg16"),  # Keras has no smaller one
    starts=("python", "flaxvgg --help"),
    stack=((1, (32, 32)),),
    forward=((1, (32, 32)),),
    activation_batches=(1,),
    sparsity_batches=(1,),
    layer_batches=(1,),
    memory_batch=1,
    cam_methods=("grad_cam",),
    cam_rounds=1,
    training=(1, 1),
    matrix=64,
    vector=2**10,
    repeats=2,
    rounds=1,
    seconds=1,
)
