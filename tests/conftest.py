"""Strict everywhere: shapes are checked, implicit promotion is an error, two devices are faked."""

import ctypes
import os
import sys

# Two workers on two cores: threads that wait must sleep, and not spin.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if sys.platform == "linux":
    # glibc hands every large array back to the system, and fresh pages are slow: here it keeps
    # them. M_TRIM_THRESHOLD and M_MMAP_MAX of mallopt(3).
    ctypes.CDLL(None).mallopt(-1, -1)
    ctypes.CDLL(None).mallopt(-4, 0)

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["KERAS_BACKEND"] = "jax"

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("flaxvgg", "beartype.beartype")
