"""The same photos as files, in archives and in Parquet: how fast each of them streams."""

import io
import json
import shutil
import statistics
import tarfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow
from pyarrow import parquet

import flaxvgg
from flaxvgg.images.loading import find_images
from flaxvgg.streaming import Job, Looked, find_source, stream

SHARDS = 4
_HUB_ROWS = 100  # in a group, as `datasets` writes images


def packed(photos: Path, folder: Path) -> dict[str, Any]:
    """What `find_source` takes, by kind: the folder first, then the same files in other forms."""
    paths = find_images(photos)
    parts = [
        paths[i * len(paths) // SHARDS : (i + 1) * len(paths) // SHARDS] for i in range(SHARDS)
    ]
    labels = sorted({path.parent.name for path in paths})
    given: dict[str, Any] = {"folder": photos, "tar": [], "Parquet": []}
    for number, part in enumerate(parts):
        tar, hub = (folder / f"{number}{suffix}" for suffix in (".tar", ".parquet"))
        with tarfile.open(tar, "w") as archive:
            for path in part:
                name = f"{number}-{path.stem}"
                label = str(labels.index(path.parent.name)).encode()
                for suffix, data in (".jpg", path.read_bytes()), (".cls", label):
                    info = tarfile.TarInfo(name + suffix)
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        _write_hub(part, labels, hub, _HUB_ROWS)
        given["tar"].append(tar)
        given["Parquet"].append(hub)
    given["Parquet, one group"] = folder / "one.parquet"
    _write_hub(paths, labels, given["Parquet, one group"], len(paths))
    given["zip"] = folder / "all.zip"
    with zipfile.ZipFile(given["zip"], "w") as archive:
        for path in paths:
            archive.write(path, path.relative_to(photos))
    return given


def _write_hub(paths: Sequence[Path], labels: Sequence[str], out: Path, rows: int) -> None:
    """A shard as the hub has it."""
    features = {"image": {"_type": "Image"}, "label": {"names": labels, "_type": "ClassLabel"}}
    cells = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    numbers = [labels.index(path.parent.name) for path in paths]
    table = pyarrow.table({"image": cells, "label": numbers})
    note = json.dumps({"info": {"features": features}})
    table = table.replace_schema_metadata({"huggingface": note})
    parquet.write_table(table, out, row_group_size=rows)


def light_job(model: flaxvgg.VGG) -> Job:
    """A job that hardly computes, so that its images a second are those of reading."""

    def look(model: flaxvgg.VGG, images: jax.Array, valid: jax.Array, asked: jax.Array) -> Looked:
        return Looked({"mean": images.mean(axis=(1, 2))}, {})

    return Job("means", model, {}, look)


def compare(
    job: Job, photos: Path, folder: Path, size: tuple[int, int], rounds: int
) -> dict[str, dict[str, Any]]:
    """Images a second of each kind, and the ratio to the folder's: median, least and most.

    The kinds take turns, in each round from another one on. Processor time is kept beside, which
    other work on the machine disturbs less.
    """
    given = packed(photos, folder)
    out = folder / "sources.zarr"
    wall: dict[str, list[float]] = {kind: [] for kind in given}
    processor: dict[str, list[float]] = {kind: [] for kind in given}
    count = 0
    for turn in range(rounds + 1):  # the first one compiles
        kinds = list(given)
        for kind in kinds[turn % len(kinds) :] + kinds[: turn % len(kinds)]:
            start = time.perf_counter(), time.process_time()
            source = find_source(given[kind])
            done = stream(job, source, out, size=size)
            taken = time.perf_counter() - start[0], time.process_time() - start[1]
            count = len(source)
            if (done.now, done.problems) != (count, {}):
                raise ValueError(f"{kind}: {done.now} of {count} images, {done.problems}")
            shutil.rmtree(out)
            if turn:
                wall[kind].append(taken[0])
                processor[kind].append(taken[1])
    return {
        kind: {
            "images_a_second": round(count / statistics.median(wall[kind]), 1),
            "ratio": _ratios(wall["folder"], wall[kind]),
            "processor_ratio": _ratios(processor["folder"], processor[kind]),
        }
        for kind in given
    }


def _ratios(of: Sequence[float], seconds: Sequence[float]) -> list[float]:
    """How much faster than `of`: the median of the rounds, the least and the most."""
    found = np.array(of) / np.array(seconds)
    return [round(float(x), 3) for x in (np.median(found), found.min(), found.max())]
