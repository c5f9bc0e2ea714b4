"""What must not depend on the number of devices or processes, as arrays by name.

`python tests/sharded.py OUT PHOTOS CASES PART PARTS PORT` computes it on the devices of all
processes.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

import flaxvgg
from flaxvgg import Optimisation, Trainer, fully_sharded, place, replicated, shard_batch
from flaxvgg.images.datasets import image_folder
from flaxvgg.network.config import Layer
from flaxvgg.network.model import VGG
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.training.data import batches, reading
from flaxvgg.training.settings import Data
from networks import TINY_CLASSIFIER, TINY_GAP, TinyConfig, random_images, random_model

BATCH, STEPS = 16, 3
_DROPOUT = (*TINY_CLASSIFIER[:-1], Layer("drop6", "dropout", rate=0.5), TINY_CLASSIFIER[-1])
_SCORE_MAP = (
    Layer("bn6", "batch_norm", "features.6", inputs=12, outputs=12, eps=1e-5, momentum=0.1),
    Layer("conv7", "conv", "features.7", inputs=12, outputs=5, kernel=3),
    Layer("gap", "global_avg_pool", "avgpool"),
    Layer("means", "flatten", outputs=5),
)
_sharded = partial(fully_sharded, least=64)  # the tiny network's kernels


def _moments_sharded(path: str, array: Any, mesh: Mesh) -> PartitionSpec:
    return _sharded(path, array, mesh) if path.startswith("optimiser") else PartitionSpec()


class Case(NamedTuple):
    """A training: what is trained, how, and where it lies."""

    head: tuple[Layer, ...]
    rule: Callable
    options: Optimisation


CASES = {
    "classifier": Case(_DROPOUT, _sharded, Optimisation(stack_rate=0.1, accumulate=2)),
    "score map": Case(
        _SCORE_MAP,
        _moments_sharded,
        Optimisation("softmax", "sgd", momentum=0.9, stack_rate=1.0, clip=1.0, average=0.5),
    ),
    "frozen": Case(TINY_GAP, replicated, Optimisation(optimiser="adamw", weight_decay=0.1)),
}


def results(
    mesh: Mesh, photos: Path, cases: Iterable[str] = CASES, part: int = 0, parts: int = 1
) -> dict[str, np.ndarray]:
    """What comes out on this mesh, where this process reads only its part."""
    found = _seen(mesh, part, parts)
    for name in cases:
        trained = _trained(CASES[name], mesh, photos, part, parts)
        found |= {f"{name} {key}": x for key, x in trained}
    return found


def _seen(mesh: Mesh, part: int, parts: int) -> dict[str, np.ndarray]:
    """What a model makes of images."""
    own = slice(BATCH // parts * part, BATCH // parts * (part + 1))
    images = shard_batch(random_images(BATCH, 40, 48)[own], mesh)
    model = place(_tiny(TINY_CLASSIFIER), mesh, _sharded)
    report = flaxvgg.measure_sparsity(model, images)
    features = jax.jit(lambda model, x: (model.features(x), model.gap(x), model(x)))(model, images)
    # Each device has its images' part of what is made of them.
    assert all(len(x.addressable_data(0)) * mesh.size == len(x) == BATCH for x in features)
    explanation = flaxvgg.explain(model, images, [1, 2], "layer_cam")
    return {
        "counts": np.asarray((report + report).totals.counts),
        "sums": np.stack(
            [report.layer("relu2_1").sum_before, report.layer("relu2_1").square_before]
        ),
        **dict(zip(("features", "gap", "logits"), _whole(features, mesh), strict=True)),
        "explanation": _whole(explanation.maps, mesh)[0],
    }


def _trained(case: Case, mesh: Mesh, photos: Path, part: int, parts: int):
    """The state and the metrics after a few steps, by name."""
    model = _tiny(case.head)
    trainer = Trainer.of(model, case.options)
    state = place(trainer.start(model), mesh, case.rule)
    placed = [x.sharding for x in jax.tree.leaves(state)]
    yield "bytes", np.array(sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(state)))
    images, data = image_folder(photos), Data(photos, size=(32, 32), batch=BATCH, crop=0.5)
    recipe = PREPROCESSING["torchvision"]
    batch = batches(images, data, recipe, epochs=STEPS, seed=0, part=part, parts=parts)
    metrics = {}
    for _, own in zip(range(STEPS), reading(batch), strict=False):
        pixels, labels = shard_batch((own["pixels"], own["labels"]), mesh)
        wide = jnp.pad(labels, [(0, 0), (0, model.config.num_classes - labels.shape[1])])
        before = state
        state, metrics = trainer.step(state, flaxvgg.normalise(pixels), wide)
        assert all(x.is_deleted() for x in jax.tree.leaves(before))  # its memory was taken
        # What lies on a device stays there, whatever the compiler would prefer.
        for x, sharding in zip(jax.tree.leaves(state), placed, strict=True):
            assert x.sharding.is_equivalent_to(sharding, x.ndim), (x.sharding, sharding)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    yield from zip((*paths, *metrics), _whole((state, metrics), mesh), strict=True)


def _tiny(head: tuple[Layer, ...]) -> VGG:
    return random_model(TinyConfig("vgg11", head), precision="default")


def _whole(tree, mesh: Mesh) -> list[np.ndarray]:
    """The arrays of the tree on the host, whole in every process."""
    return list(map(np.asarray, jax.tree.leaves(place(tree, mesh))))


if __name__ == "__main__":
    out, photos, cases, part, parts, port = sys.argv[1:]
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_disable_most_optimizations", True)
    if int(parts) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(parts), int(part))
    assert jax.process_count() == int(parts)
    mesh, cases = flaxvgg.data_mesh(), cases.split(",")
    arrays = results(mesh, Path(photos), cases, int(part), int(parts))
    if part == "0":
        np.savez(out, **arrays)
