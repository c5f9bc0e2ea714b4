"""The peak of memory behind a quarter of the images, and behind all of them.

python -m tests.memory_trial --count 10000
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path

from flaxvgg.streaming import Source, features_job, stream
from tests.streaming_jobs import Drawn, small_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    peaks, done = {}, 0

    def advance(more: int, _: int) -> None:
        nonlocal done
        done += more
        if "quarter" not in peaks and done >= count / 4:
            peaks["quarter"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    job = features_job(small_model(), ["pool1"])
    with tempfile.TemporaryDirectory() as folder:
        source = Source.of_grain(Drawn(count, 128))
        stream(job, source, Path(folder) / "a.zarr", size=(64, 64), batch=2, advance=advance)
    print(json.dumps(peaks | {"all": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main()
