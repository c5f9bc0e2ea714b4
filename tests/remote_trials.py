"""Kill runs into stores on an S3 server at any moment: `python -m tests.remote_trials --count 50`.

Each run is `flaxvgg features`, `sparsity` and `cam` in one process, of photos in the bucket, one
store after the other; every killed one is gone on with until it ends. What has ended is compared
with what nobody disturbed, object by object: their names, lengths and digests.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import flaxvgg.cam.photos
import flaxvgg.sparsity.counting
import flaxvgg.streaming  # noqa: F401
from tests.kill_trials import Trial, trials
from tests.object_store import BUCKET, Server, environment

_IMAGES = 100
_PHOTOS, _PLACE = f"s3://{BUCKET}/photos", Path(f"s3://{BUCKET}/trials")


def in_child(function: Callable[[], Any]) -> Any:
    """What a function gives in a process of its own: threads of obstore survive no fork."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if not pid:
        with os.fdopen(theirs, "w") as file:
            json.dump(function(), file)
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as file:
        told = file.read()
    os.waitpid(pid, 0)
    return json.loads(told)


def put_photos() -> None:
    """Photos of two classes, some of them broken."""
    import io

    from flaxvgg.files import remote

    for i in range(_IMAGES):
        file = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (32, 32 + 8 * (i % 2), 3), np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        data = file.getvalue() if i % 7 != 3 else b"broken"
        remote.write(f"{_PHOTOS}/{'ab'[i % 2]}/{i:03}.png", data)


def child(out: Path, started: int) -> None:
    """Stream into three stores, and say when it begins."""
    import jax

    jax.config.update("jax_disable_most_optimizations", True)
    from flaxvgg.cam.photos import plan_maps
    from flaxvgg.streaming import features_job, find_source, maps_job, sparsity_job, stream
    from flaxvgg.streaming.places import Bucket
    from tests.streaming_jobs import small_model

    Bucket.save_every = (0.0, 0.3)[os.getpid() % 2]
    source, model = find_source(_PHOTOS), small_model()
    plan = plan_maps(model, ("grad_cam",), "top2", None, "paper", (32, 32))
    begun = partial(os.write, started, b"x")
    for name, job in {
        "features": features_job(model, ["pool1", "logits"]),
        "sparsity": sparsity_job(model, None),
        "cam": maps_job(model, plan),
    }.items():
        at = f"{out}/{name}.zarr"
        stream(job, source, at, size=(32, 32), batch=1, advance=lambda *_: begun())


def done(out: Path) -> int:
    """The images that the stores have, and those saved of units that they have not."""

    def count() -> int:
        from flaxvgg.streaming import Store, StoreError

        found = 0
        for name in ("features", "sparsity", "cam"):
            try:
                store = Store(f"{out}/{name}.zarr")
            except StoreError:  # not begun
                continue
            found += store.images - store.left()
        return found

    return in_child(count)


def objects(out: Path) -> dict[str, list]:
    """All that lies below an address: lengths and digests by name."""
    from flaxvgg.files import remote
    from flaxvgg.files.addresses import named

    found = [(name, x.pinned().version) for name, x in remote.objects_below(named(out))]
    return {name: [version.size, version.tag] for name, version in found}


def differences(a: Path, b: Path) -> list[str]:
    """The objects that are not the same below both; locks that are left, too."""
    here, there = (in_child(partial(objects, out)) for out in (a, b))
    return [name for name in here | there if here.get(name) != there.get(name)]


def remove(out: Path) -> None:
    """Remove all that lies below an address."""

    def all_of_it() -> None:
        from flaxvgg.files import remote
        from flaxvgg.files.addresses import named

        for name in objects(out):
            remote.remove(f"{named(out)}/{name}")

    in_child(all_of_it)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, Server(Path(name)) as server:
        os.environ |= environment(server.port)
        in_child(put_photos)
        trial = Trial("rounds of three stores", child, done, differences, remove)
        kills, ends = trials(trial, options.count, options.seed, _PLACE)
    print(f"killed {kills} times; {ends} {trial.name} ended, each the same as one undisturbed")


if __name__ == "__main__":
    sys.exit(main())
