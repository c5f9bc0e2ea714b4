"""Strict everywhere: shapes are checked, implicit promotion is an error, two devices are faked."""

import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator

# Two workers on two cores: threads that wait must sleep, and not spin.
os.environ["OMP_WAIT_POLICY"] = "passive"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
if sys.platform == "linux":
    # glibc hands every large array back to the system, and fresh pages are slow: here it keeps
    # them until a module ends. M_TRIM_THRESHOLD and M_MMAP_MAX of mallopt(3).
    ctypes.CDLL(None).mallopt(-1, -1)
    ctypes.CDLL(None).mallopt(-4, 0)

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
)
os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # the command line's: tests compile anew

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

install_import_hook("flaxvgg", "beartype.beartype")


def pytest_collection_finish() -> None:
    """What was imported stays: the garbage collector need not walk through it again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Modules clean up after themselves as ever."""
    gc.unfreeze()


def pytest_configure() -> None:
    """Tests press Ctrl-C, which a shell lets its background jobs ignore."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


# What measures errors beside other frameworks' is compiled as it is for users.
_OPTIMISED = {
    f"test_{name}"
    for name in (
        "convolution",
        "exact",
        "linear",
        "model",
        "mutations",
        "native",
        "parity",
        "parity_random",
        "perceptual_peers",
        "precision_modes",
        "processors",
        "score_map",
        "sparsity_parity",
        "verify",
    )
}


@pytest.fixture(scope="module", autouse=True)
def quick_compiler(request: pytest.FixtureRequest) -> None:
    """XLA need not make fast what runs once or twice."""
    quick = request.module.__name__.rpartition(".")[2] not in _OPTIMISED
    if jax.config.read("jax_disable_most_optimizations") != quick:
        jax.clear_caches()  # what was compiled the other way
        jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="module", autouse=True)
def freed_memory_goes_back() -> Iterator[None]:
    """Networks of half a gigabyte each would otherwise add up from module to module."""
    yield
    if sys.platform == "linux":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """The programs that XLA compiles, as they come."""
    found: list[str] = []

    def listen(event: str, duration: float, **kwargs) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(kwargs.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)


# What takes ten seconds or more of a busy core, beside others that look at the same in less.
_LONG = (
    "test_attribution_experiment.py",
    "test_perceptual.py::test_bad_images_are_refused_in_a_line",
    "test_perceptual.py::test_other_poolings_keep_the_rule[average replicate]",
    "test_perceptual_transformations.py::test_modes_of_differentiation_agree",
    "test_perceptual_transformations.py::test_shard_map",
    "test_perceptual_transformations.py::test_on_a_mesh_with_explicit_axes",
    "test_perceptual_transformations.py::test_batches_that_are_spread_over_devices",
    "test_streaming.py::test_killed_at_any_moment",
    "test_cam_targets.py::test_a_function_is_explained_by_its_derivative[probability]",
    "test_cam_targets.py::test_a_function_by_what_is_summed_for_all_classes[grad_cam]",
    "test_cli.py::test_demo_names_what_is_in_photos_that_the_sample_head_knows",
    "test_prepare.py::test_derivatives_by_images",
    "test_prepare.py::test_every_transformation",
    "test_lrp.py::test_vmap_export_and_no_jit[lrp]",
    "test_lrp_by_hand.py::test_the_model_given_is_left_alone",
    "test_lrp_peers.py::test_rules_of_ones_own[flat in the middle]",
    "test_convert.py::test_a_failed_verification_writes_nothing",
    "test_convert.py::test_converts_verifies_and_goes_back_bit_for_bit[weights.safetensors]",
    "test_sharding.py::test_results_do_not_depend_on_where_they_are_computed[8 devices]",
    "test_sharding.py::test_a_run_goes_on_on_more_devices_and_on_fewer",
    "test_bridges.py::test_linen",
    "test_convolution.py::test_every_mode_of_differentiation",
    "test_attribution_peers.py::test_deep_lift_from_another_baseline",
    "test_cam.py::test_in_bfloat16",
    "test_cam.py::test_full_grads_terms_add_up_to_the_logit[True]",
    "test_cam.py::test_under_jit_vmap_and_a_sharded_batch[smooth_grad_cam++]",
    "test_model.py::test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters",
    "test_convert_keras.py::test_the_same_network_built_in_other_ways[batch_norm_first]",
    "test_convert_keras.py::test_the_same_network_built_in_other_ways[zero_padding]",
    "test_convert_keras.py::test_the_same_network_built_in_other_ways[channels_first]",
    "test_export.py::test_an_onnx_file_of_every_head[l2]",
    "test_sparsity_parity.py::test_two_photos_give_everybodys_counts_and_eight_the_readings",
)


@pytest.hookimpl(tryfirst=True)  # before -m "not slow" is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long as slow: it runs in `make test-all`."""
    for item in items:
        if item.nodeid.removeprefix("tests/").startswith(_LONG):
            item.add_marker(pytest.mark.slow)
