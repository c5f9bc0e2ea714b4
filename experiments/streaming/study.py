"""Photos by the thousand, streamed, and the same batches from memory."""

import collections
import dataclasses
import os
import resource
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import flaxvgg
from experiments.streaming.sources import compare, light_job
from experiments.timing import cores
from flaxvgg.images.loading import find_images, load_pixels, normalise, open_image
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.outputs import outputs
from flaxvgg.streaming import features_job, find_source, maps_job, sparsity_job, stream

BATCH = 8
LAYERS = ("pool5", "gap")
_ROUNDS = 9  # of sources: a round takes seconds


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which network, how many images, how often, and how large the network sees them."""

    weights: str
    images: int
    rounds: int
    size: int

    @property
    def hw(self) -> tuple[int, int]:
        """Height and width."""
        return self.size, self.size


def photos(count: int, folder: Path) -> Path:
    """So many JPEG files of 224x224: random parts of the photos in scikit-image, by photo."""
    draw = np.random.default_rng(0)
    originals = [open_image(path) for path in sample_photos()]
    for i in range(count):
        number = i % len(originals)
        image = originals[number]
        side = int(draw.uniform(0.5, 1) * min(image.size))
        left, top = (int(draw.integers(0, x - side + 1)) for x in image.size)
        target = folder / f"photo{number}" / f"{i:06}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        box = left, top, left + side, top + side
        image.resize((224, 224), Image.Resampling.BILINEAR, box).save(target, quality=90)
    return folder


def speed(plan: Plan, folder: Path) -> dict[str, Any]:
    """Images a second from files into a store, and from memory, in turns; and decoding alone."""
    model = flaxvgg.load(plan.weights)
    paths = find_images(photos(plan.images, folder / "photos"))
    source = find_source(folder / "photos")
    job = features_job(model, LAYERS)
    start = time.perf_counter()
    pixels = np.stack([load_pixels(path, plan.hw, model.preprocessing) for path in paths])
    decoded = len(paths) / (time.perf_counter() - start)
    batches = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]

    @jax.jit
    def look(model: flaxvgg.VGG, pixels: jax.Array) -> dict[str, jax.Array]:
        return outputs(model, normalise(pixels, model.preprocessing), LAYERS)

    def in_memory(batches: list[np.ndarray]) -> None:
        running = collections.deque()
        for batch in batches:
            running.append(look(model, batch))
            if len(running) > 2:
                jax.tree.map(np.asarray, running.popleft())
        jax.block_until_ready(list(running))

    def streamed() -> None:
        out = folder / "speed.zarr"
        stream(job, source, out, size=plan.hw, batch=BATCH)
        shutil.rmtree(out)

    in_memory(batches[:2])
    taken: dict[str, list[float]] = {"memory": [], "streamed": []}
    calls = {"memory": lambda: in_memory(batches), "streamed": streamed}
    for turn in range(plan.rounds):
        order = list(calls) if turn % 2 == 0 else list(calls)[::-1]
        for name in order:
            start = time.perf_counter()
            calls[name]()
            taken[name].append(len(paths) / (time.perf_counter() - start))
    ratios = [b / a for a, b in zip(taken["memory"], taken["streamed"], strict=True)]
    return {
        **{name: [round(x, 2) for x in rates] for name, rates in taken.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(x, 3) for x in ratios],
        "decoded_by_one_thread": round(decoded, 1),
    }


def sources(plan: Plan, folder: Path) -> dict[str, Any]:
    """Kinds of sources, of a tenth of the photos."""
    load = [round(os.getloadavg()[0], 2)]
    count = max(1, plan.images // 10)
    made = folder / "packed"
    made.mkdir()
    job = light_job(flaxvgg.load(plan.weights))
    kinds = compare(job, photos(count, folder / "some"), made, plan.hw, _ROUNDS)
    load.append(round(os.getloadavg()[0], 2))
    return {"images": count, "rounds": _ROUNDS, "cores": cores(), "load": load, "kinds": kinds}


def disk(plan: Plan, folder: Path) -> dict[str, float]:
    """Bytes an image in stores of several kinds, of 256 photos."""
    from flaxvgg.cam.photos import plan_maps

    model = flaxvgg.load(plan.weights)
    source = find_source(photos(min(256, plan.images), folder / "few"))
    method = ("grad_cam",) if model.config.head else ("eigen_cam",)
    maps = plan_maps(model, method, "top1", None, "paper", plan.hw)
    jobs = {
        "gap": features_job(model, ["gap"]),
        "pool5": features_job(model, ["pool5"]),
        "relu5_3": features_job(model, ["relu5_3"]),
        "zeros by layer": sparsity_job(model, None),
        "one map": maps_job(model, maps),
    }
    found = {}
    for name, job in jobs.items():
        out = folder / f"{name}.zarr"
        stream(job, source, out, size=plan.hw, batch=BATCH)
        stored = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
        found[name] = round(stored / len(source))
    return found


def memory_of(plan: Plan, folder: Path) -> dict[str, float]:
    """The peak of this process's memory in MB, for all photos of a folder."""
    model = flaxvgg.load(plan.weights)
    out = folder.parent / f"{folder.name}.zarr"
    stream(features_job(model, LAYERS), find_source(folder), out, size=plan.hw, batch=BATCH)
    shutil.rmtree(out)
    return {"peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}
