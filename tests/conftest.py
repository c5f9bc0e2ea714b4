"""Strict everywhere: shapes are checked, implicit promotion is an error, two devices are faked."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["KERAS_BACKEND"] = "jax"

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("flaxvgg", "beartype.beartype")
