"""Our own checkpoints: what was saved, or an error."""

import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.fuzz.cases import Arrays, Seed, Target, in_place
from tests.fuzz.files import VGG11, random_weights

# isort: split
import flaxvgg
from flaxvgg.weights.checkpoint import CheckpointError
from flaxvgg.weights.mapping import arrays_from_torch, build


def checkpoint_targets() -> list[Target]:
    """Single files, and files of a directory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dtype in ("float32", "bfloat16"):
            flaxvgg.save(_model(dtype), folder / f"{dtype}.safetensors")
        flaxvgg.save(_model("float32"), folder / "float32")
        singles = [Seed(p.name, p.read_bytes()) for p in sorted(folder.glob("*.safetensors"))]
        files = sorted(p for p in (folder / "float32").rglob("*") if p.is_file())
        tree = {str(p.relative_to(folder / "float32")): p.read_bytes() for p in files}
    parts = [Seed(file, data) for file, data in tree.items()]

    def directory(scratch: Path, name: str, data: bytes) -> Path:
        path = scratch / "float32"
        for file, whole in tree.items():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            (path / file).write_bytes(data if file == name else whole)
        return path

    errors = (CheckpointError,)
    return [
        Target("our .safetensors", 8, singles, errors, _read_model, _true_model, in_place),
        Target("our Orbax", 5, parts, errors, _read_model, _true_model, directory),
    ]


def _model(dtype: str) -> flaxvgg.VGG:
    provenance = flaxvgg.network.provenance.Provenance("a file", "00", classes=("cat", "dog"))
    kind = jnp.dtype(dtype)
    arrays = arrays_from_torch(VGG11, random_weights(kind))
    return build(VGG11, arrays, dtype=kind, param_dtype=kind, provenance=provenance)


def _contents(model: flaxvgg.VGG) -> Arrays:
    conv = model.conv_stack.conv1_1
    told = [
        model.config.to_json(),
        model.provenance.to_json(),
        str(conv.dtype),
        str(conv.param_dtype),
    ]
    text = np.frombuffer(json.dumps(told).encode(), np.uint8)
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves} | {"header": text}


def _read_model(path: Path) -> Arrays:
    return _contents(flaxvgg.load(path))


def _true_model(data: bytes, path: Path, whole: bytes) -> Arrays:
    """The model that was saved: no damage to a checkpoint may change it."""
    return _saved("bfloat16" if b"BF16" in whole else "float32")


@functools.cache
def _saved(dtype: str) -> Arrays:
    return _contents(_model(dtype))
