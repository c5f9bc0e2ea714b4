"""A process that streams, for test_streaming: one of several, or with several devices.

python -m tests.streaming_worker OUT DEVICES [PROCESS PROCESSES PORT]
"""

import os
import sys
from pathlib import Path


def main(out: str, devices: str, process: str = "0", of: str = "1", port: str = "0"):
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    import jax

    jax.config.update("jax_disable_most_optimizations", True)  # each program runs a few times
    if int(of) > 1:
        jax.distributed.initialize(f"localhost:{port}", int(of), int(process))
    from flaxvgg.cam.photos import plan_maps
    from flaxvgg.streaming import Source, features_job, maps_job, sparsity_job, stream
    from tests.streaming_jobs import Drawn, small_model

    assert jax.local_device_count() == int(devices)
    model, source, at = small_model(), Source.of_grain(Drawn(70, 32)), Path(out)
    plan = plan_maps(model, ("grad_cam",), "top2", None, "paper", (32, 32))
    stream(features_job(model, ["pool1", "logits"]), source, at / "f.zarr", size=None, batch=1)
    stream(sparsity_job(model, None), source, at / "s.zarr", size=(32, 32), batch=1)
    stream(maps_job(model, plan), source, at / "m.zarr", size=(32, 32), batch=1)
    print("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
