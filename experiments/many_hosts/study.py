"""The input of a training on many hosts: which image each reads, and whether it keeps up.

Which images: the pipeline itself, of every host in turn, on pictures of one colour that tells which
they are. Whether it keeps up: a simulation of its threads, with times of decoding as measured.
"""

import dataclasses
import heapq
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flaxvgg.images.datasets import LabelledImages
from flaxvgg.images.inside import Inside
from flaxvgg.images.loading import open_image
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.provenance import PREPROCESSING
from flaxvgg.training.data import batches, check_photo
from flaxvgg.training.settings import Data

_RECIPE = PREPROCESSING["torchvision"]
_AHEAD = 4  # batches, as in flaxvgg.training.data


@dataclasses.dataclass(frozen=True)
class Hosts:
    """So many hosts, of which each trains on `own` images of a batch in `step` seconds.

    `cores` is how many decode on each; the first `slow` hosts are half as fast.
    """

    count: int
    own: int
    step: float
    cores: int
    slow: int = 0


class _Colours:
    """Pictures of one colour: image i has i in its red, green and blue."""

    def __getitem__(self, row: int) -> dict[str, Any]:
        file = io.BytesIO()
        Image.new("RGB", (32, 32), tuple(int(row).to_bytes(3, "big"))).save(file, "BMP")
        return {"image": file.getvalue()}


def order(hosts: int, own: int, epochs: int = 2) -> dict[str, Any]:
    """Which images the hosts read, beside one host that reads all; of an epoch of two batches."""
    count = 2 * hosts * own + 1  # one is left over in each epoch
    photos = tuple(Inside(_Colours(), i, str(i)) for i in range(count))
    labels = np.eye(2, dtype=np.float32)[np.arange(count) % 2]
    images = LabelledImages(photos, labels, ("even", "odd"))
    data = Data(Path("colours"), size=(32, 32), batch=hosts * own, crop=0.5)

    def numbers(part: int, parts: int) -> np.ndarray:
        of_host = batches(images, data, _RECIPE, epochs=epochs, seed=0, part=part, parts=parts)
        seen: list[Any] = [of_host[i] for i in range(len(of_host))]
        bytes_of = np.stack([x["pixels"][:, 0, 0] for x in seen]).astype(np.int64)
        found = bytes_of @ np.array([2**16, 2**8, 1])
        for batch, row in zip(seen, found, strict=True):
            assert (batch["labels"].argmax(1) == row % 2).all()
        return found

    alone = numbers(0, 1)
    together = np.concatenate([numbers(part, hosts) for part in range(hosts)], axis=1)
    per_epoch = together.reshape(epochs, -1)
    return {
        "hosts": hosts,
        "images": int(together.size),
        "same_as_one_host": bool((alone == together).all()),
        "twice_in_an_epoch": int(sum(len(x) - len(np.unique(x)) for x in per_epoch)),
    }


def decoding(count: int) -> list[float]:
    """Seconds of one core for each of so many photos of 500x375, as they are trained on."""
    data = Data(Path("photos"), crop=0.08)
    files = []
    for path in sample_photos():
        file = io.BytesIO()
        open_image(path).resize((500, 375)).save(file, "JPEG", quality=90)
        files.append({"image": file.getvalue()})
    taken = []
    for i in range(count + len(files)):  # the first ones warm up
        photo = Inside(files, i % len(files), "photo")
        start = time.thread_time()
        check_photo(photo, data, _RECIPE)
        taken.append(time.thread_time() - start)
    return taken[len(files) :]


def speed(hosts: Hosts, seconds: list[float], steps: int, seed: int = 0) -> float:
    """Of the steps that the devices could do, the part that they do.

    A thread decodes a whole batch of its host, the next one that nobody has; as many batches are
    ahead as there are threads, and at least 4. A step begins when the last host has its images.
    """
    draw = np.random.default_rng(seed)
    cost = np.array(seconds)
    ahead = max(_AHEAD, hosts.cores)
    # Seconds for each batch of each host: sums of images drawn from those that were measured.
    drawn = draw.choice(cost, (hosts.count, steps, hosts.own)).sum(axis=2)
    drawn[: hosts.slow] *= 2
    free = [[0.0] * hosts.cores for _ in range(hosts.count)]
    begun: list[float] = []
    end = 0.0
    for step in range(steps):
        # The place for this batch is there when the one so many before it was taken.
        room = begun[step - ahead] if step >= ahead else 0.0
        ready = 0.0
        for threads, taken in zip(free, drawn[:, step], strict=True):
            done = max(heapq.heappop(threads), room) + taken
            heapq.heappush(threads, done)
            ready = max(ready, done)
        begun.append(max(end, ready))
        end = begun[-1] + hosts.step
    half = steps // 2  # the pipeline is filled by then
    return hosts.step * (steps - 1 - half) / (begun[-1] - begun[half])
