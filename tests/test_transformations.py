"""Every transformation of JAX, on a tiny network: the same numbers, or one clear line."""

import copy
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flaxvgg
from flaxvgg.cam.methods import METHODS
from flaxvgg.ops import native
from flaxvgg.ops.convolution import conv3x3, conv3x3_block
from flaxvgg.sparsity.counting import count_images
from helpers import TINY_GAP, quickly, random_images, tiny_vgg

IMAGES = random_images(2, 32, 32)
WITH_LAYERS = [method for method in METHODS if method != "fully_convolutional"]


@pytest.fixture(scope="module")
def model() -> flaxvgg.VGG:
    return tiny_vgg()


@pytest.fixture(scope="module")
def logits(model: flaxvgg.VGG) -> np.ndarray:
    return np.asarray(model(IMAGES))


# What methods take, or few of what they repeat.
OPTIONS = {
    "smooth_grad_cam++": {"key": jax.random.key(1), "samples": 2},
    "ss_cam": {"key": jax.random.key(1), "samples": 2},
    "is_cam": {"samples": 2},
}


def maps(model: flaxvgg.VGG, images, method: str = "grad_cam") -> jax.Array:
    classes = None if method == "deep_feature_factorisation" else [1, 3]
    return flaxvgg.explain(model, images, classes, method, **OPTIONS.get(method, {})).maps


def assert_close(found, expected) -> None:
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        bound = 2e-5 * max(1, np.abs(other).max())
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=bound)


ROWWISE = {
    "jit": lambda model, x: jax.jit(lambda model, x: model(x))(model, x),
    "nnx.jit": lambda model, x: nnx.jit(lambda model, x: model(x))(model, x),
    "vmap": lambda model, x: jax.vmap(lambda image: model(image[None])[0])(x),
    "nnx.vmap": lambda model, x: nnx.vmap(lambda m, i: m(i[None])[0], in_axes=(None, 0))(model, x),
    "scan": lambda model, x: lax.scan(lambda c, image: (c, model(image[None])[0]), 0, x)[1],
    "map": lambda model, x: lax.map(lambda image: model(image[None])[0], x, batch_size=2),
    "pmap": lambda model, x: jax.pmap(lambda image: model(image[None])[0])(x),
    "remat": lambda model, x: jax.checkpoint(lambda model, x: model(x))(model, x),
    "cond": lambda model, x: lax.cond(True, model, lambda x: model(-x), x),
    "donated": lambda model, x: jax.jit(lambda x: (model(x), x), donate_argnums=0)(x + 0)[0],
    "ahead of time": lambda model, x: jax.jit(model).lower(x).compile()(x),
    "deepcopy": lambda model, x: copy.deepcopy(model)(x),
    "pickle": lambda model, x: pickle.loads(pickle.dumps(model))(x),
    "tree": lambda model, x: jax.tree.unflatten(*jax.tree.flatten(model)[::-1])(x),
    "split": lambda model, x: nnx.merge(*nnx.split(model))(x),
    "leaves": lambda model, x: jax.tree.map(jnp.asarray, model)(x),
}


@pytest.mark.parametrize("name", ROWWISE)
def test_every_way_gives_the_same_logits(name: str, model: flaxvgg.VGG, logits: np.ndarray):
    assert_close(ROWWISE[name](model, jnp.asarray(IMAGES)), logits)


def test_modes_of_differentiation_agree(model: flaxvgg.VGG):
    def loss(x: jax.Array) -> jax.Array:
        return (model(x) ** 2).sum()

    @jax.jit
    def found(x: jax.Array) -> tuple[jax.Array, ...]:
        y, push = jax.linearize(model, x)
        transposed = jax.linear_transpose(push, x)(2 * y)[0]
        return jax.grad(jax.checkpoint(loss))(x), transposed, jax.jvp(loss, (x,), (x,))[1]

    x = jnp.asarray(IMAGES[:1])
    gradient = jax.jit(jax.grad(loss))(x)
    assert_close(found(x), (gradient, gradient, (gradient * x).sum()))


@pytest.mark.slow
def test_second_derivatives_agree(model: flaxvgg.VGG):
    def loss(x: jax.Array) -> jax.Array:
        return (model(x) ** 2).sum()

    x = jnp.asarray(IMAGES[:1])
    _, product = jax.jvp(jax.grad(loss), (x,), (x,))
    assert_close(jax.grad(lambda x: (jax.grad(loss)(x) * IMAGES[:1]).sum())(x), product)


def test_what_is_only_traced(model: flaxvgg.VGG):
    assert jax.eval_shape(model, IMAGES).shape == (2, 7)
    made = nnx.eval_shape(lambda: flaxvgg.VGG(model.config, rngs=nnx.Rngs(0)))
    assert jax.eval_shape(lambda model, x: model(x), made, IMAGES).shape == (2, 7)
    assert str(jax.make_jaxpr(model)(IMAGES)).count("conv3x3_block[") == 2


SETTINGS: dict[str, Callable] = {
    "strict dtypes": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "leaks": jax.checking_leaks,
    "no transfers": lambda: jax.transfer_guard("disallow"),
    "bfloat16 products": lambda: jax.default_matmul_precision("bfloat16"),
    "threefry": lambda: jax.threefry_partitionable(False),
    "no jit": jax.disable_jit,
    "no NaN": lambda: jax.debug_nans(True),
    "no infinities": lambda: jax.debug_infs(True),
    "64 bits": lambda: jax.enable_x64(True),
}


# The whole suite runs with strict dtypes and ranks.
@pytest.mark.parametrize("name", quickly(SETTINGS, "no jit", "no NaN", "no transfers"))
def test_maps_in_every_setting(name: str, model: flaxvgg.VGG, logits: np.ndarray):
    images, classes = jax.device_put((IMAGES[:1], np.array([[1, 3]])))
    expected = flaxvgg.explain(model, images, classes, "grad_cam").maps
    with SETTINGS[name]():
        assert_close(model(images), logits[:1])
        assert_close(flaxvgg.explain(model, images, classes, "grad_cam").maps, expected)


@pytest.mark.parametrize("name", quickly(SETTINGS, "64 bits"))
def test_zeros_in_every_setting(name: str, model: flaxvgg.VGG):
    images = jnp.asarray(IMAGES)
    expected = flaxvgg.measure_sparsity(model, images).totals.counts
    with SETTINGS[name]():
        found = flaxvgg.measure_sparsity(model, images).totals.counts
    assert found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_in_every_setting(name: str, model: flaxvgg.VGG):
    images = jnp.asarray(IMAGES[:1])

    def gradient(model: flaxvgg.VGG, images: jax.Array) -> flaxvgg.VGG:
        return jax.grad(lambda model: model(images).max())(model)

    expected = gradient(model, images)
    if name == "no transfers":  # the derivative of JAX's own ReLU has a constant in it
        gradient = jax.jit(gradient)
    with SETTINGS[name]():
        assert_close(gradient(model, images), expected)


def test_nan_that_marks_a_missing_score_is_no_mistake():
    with jax.debug_nans(True):
        found = flaxvgg.explain(tiny_vgg(()), IMAGES, method="eigen_cam")
    assert np.isnan(found.scores).all()
    assert (np.asarray(found.classes) == -1).all()


@pytest.mark.slow
def test_score_cam_without_jit(model: flaxvgg.VGG):
    expected = maps(model, IMAGES[:1], "score_cam")
    with jax.disable_jit():
        assert_close(maps(model, IMAGES[:1], "score_cam"), expected)


@pytest.mark.slow
def test_score_cam_has_a_derivative(model: flaxvgg.VGG):
    found = jax.grad(lambda x: maps(model, x, "score_cam").sum())(jnp.asarray(IMAGES))
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


def exported(function: Callable, images: jax.ShapeDtypeStruct, *platforms: str) -> Callable:
    """The function, once it has been through bytes."""
    made = export.export(jax.jit(function), platforms=platforms or None)(images)
    return export.deserialize(made.serialize()).call


FUNCTIONS = {
    "logits": lambda model, x: model(x),
    "gap": lambda model, x: model.gap(x),
    "gradient": lambda model, x: jax.grad(lambda x: (model(x) ** 2).sum())(x),
    "zeros": lambda model, x: flaxvgg.measure_sparsity(model, x).totals.counts,
    **{
        method: lambda model, x, method=method: maps(model, x, method) for method in WITH_LAYERS[1:]
    },
}


@pytest.mark.parametrize("name", quickly(FUNCTIONS, "logits", "gradient", "finer_cam"))
def test_export_with_any_number_of_images(name: str, model: flaxvgg.VGG):
    def function(x: jax.Array) -> jax.Array:
        return FUNCTIONS[name](model, x)

    (n,) = export.symbolic_shape("n")
    call = exported(function, jax.ShapeDtypeStruct((n, 32, 32, 3), jnp.float32))
    assert_close(call(IMAGES), function(jnp.asarray(IMAGES)))


def test_export_for_every_platform(model: flaxvgg.VGG, logits: np.ndarray):
    shape = jax.ShapeDtypeStruct(IMAGES.shape, jnp.float32)
    assert_close(exported(model, shape, "cpu", "cuda", "tpu")(IMAGES), logits)


@pytest.mark.parametrize("method", quickly(WITH_LAYERS, "cam", "grad_cam", "ss_cam"))
@pytest.mark.parametrize("context", [False, True])
def test_maps_on_a_mesh_with_explicit_axes(method: str, context: bool):
    if context and method not in ("grad_cam", "ss_cam"):
        pytest.skip("the same program")
    model = tiny_vgg(TINY_GAP) if method == "cam" else tiny_vgg()
    mesh = jax.make_mesh((2,), ("data",))
    assert mesh.axis_types == (AxisType.Explicit,)
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    placed = flaxvgg.place(model, mesh)
    expected = maps(model, IMAGES, method)
    if context:
        with jax.set_mesh(mesh):
            found = maps(placed, images, method)
    else:
        found = maps(placed, images, method)
    assert jax.typeof(found).sharding.spec[0] == "data"
    assert_close(found, expected)


RULES = {
    "replicated": flaxvgg.replicated,
    "fully sharded": lambda *a: flaxvgg.fully_sharded(*a, least=1),
}


@pytest.mark.parametrize("rule", quickly(RULES, "fully sharded"))
def test_a_model_on_a_mesh_with_explicit_axes(rule: str, model: flaxvgg.VGG, logits: np.ndarray):
    def loss(model: flaxvgg.VGG, images: jax.Array) -> jax.Array:
        return (model(images) ** 2).sum()

    mesh = jax.make_mesh((2,), ("data",))
    images = jax.device_put(IMAGES, NamedSharding(mesh, PartitionSpec("data")))
    expected = jax.grad(loss)(model, IMAGES)
    counts = flaxvgg.measure_sparsity(model, IMAGES).totals.counts
    placed = flaxvgg.place(model, mesh, RULES[rule])
    assert_close(placed(images), logits)
    with jax.set_mesh(mesh):
        assert_close(jax.jit(jax.grad(loss))(placed, images), expected)
        assert_close(flaxvgg.measure_sparsity(placed, images).totals.counts, counts)


SHARDED = {
    **{
        method: lambda model, x, method=method: maps(model, x, method)
        for method in WITH_LAYERS
        if method != "cam"
    },
    "best class": lambda model, x: flaxvgg.explain(model, x).maps,
    "logits": FUNCTIONS["logits"],
    "gradient": FUNCTIONS["gradient"],
    "zeros": lambda model, x: [counts.zeros for counts in count_images(model, x).values()],
}


@pytest.mark.parametrize(
    "name", quickly(SHARDED, "grad_cam", "smooth_grad_cam++", "gradient", "zeros")
)
def test_shard_map(name: str, model: flaxvgg.VGG):
    spec = PartitionSpec("data")
    mesh = flaxvgg.data_mesh()
    function = partial(SHARDED[name], model)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec)
    assert_close(jax.jit(mapped)(IMAGES), function(jnp.asarray(IMAGES)))


def test_flops_are_those_of_xlas_own_operations(model: flaxvgg.VGG):
    traced = jax.jit(lambda model, x: model(x)).trace(model, IMAGES)
    ours, xlas = (
        traced.lower(lowering_platforms=(platform,)).cost_analysis()["flops"]
        for platform in ("cpu", "tpu")
    )
    assert ours == pytest.approx(xlas, rel=1e-3)
    products = 2 * 2 * 9 * (32 * 32 * 3 * 8 + 16 * 16 * 8 * 12)  # of the convolutions, padded
    assert products * 0.9 < xlas < products * 1.5
    text = traced.lower().compile().as_text()
    assert "convolution(" not in text  # what is counted is not what runs
    assert "conditional(" not in text


def test_tabulate_shows_every_layer_and_breaks_nothing(model: flaxvgg.VGG, logits: np.ndarray):
    wide = {"width": 200}  # or names are cut off to a terminal's
    table = nnx.tabulate(model, IMAGES, compute_flops=True, console_kwargs=wide)
    for layer in ("conv1_1", "conv2_1", "fc6", "fc8"):
        assert layer in table
    assert_close(model(IMAGES), logits)
    assert_close(tiny_vgg()(IMAGES), logits)


def test_shapes_that_do_not_fit_are_told_when_tracing():
    x, kernel = jnp.ones((1, 8, 8, 16)), jnp.ones((3, 3, 16, 4))
    calls = [
        lambda: conv3x3(x, jnp.ones((3, 3, 15, 4))),
        lambda: conv3x3(x[0], kernel),
        lambda: conv3x3(x, kernel[:2]),
        lambda: conv3x3_block(x, kernel, jnp.ones(5), relu=True, pool=False),
        lambda: native.conv3x3_turned(x, kernel),
        lambda: native.conv3x3_by_kernel(x, jnp.ones((1, 8, 7, 4))),
        lambda: native.linear(jnp.ones((2, 5)), jnp.ones((6, 3))),
    ]
    for call in calls:
        with pytest.raises(Exception, match=r"shapes do not fit|jaxtyping|Type-check"):
            jax.eval_shape(call)
    with pytest.raises(ValueError, match=r"^shapes do not fit: \(1, 8, 8, 16\), \(3, 3, 16, 4\), "):
        native.conv3x3_shape(x, kernel, jnp.ones(5))


def test_no_input_channels_give_zeros_and_the_bias():
    x, kernel, bias = jnp.ones((2, 33, 31, 0)), jnp.ones((3, 3, 0, 40)), jnp.arange(40.0)
    jnp.full((2, 33, 31, 40), jnp.nan).block_until_ready()  # what memory may hold
    np.testing.assert_array_equal(conv3x3(x, kernel), np.zeros((2, 33, 31, 40)))
    found = conv3x3_block(x, kernel, bias, relu=True, pool=False)
    np.testing.assert_array_equal(found, np.broadcast_to(bias, found.shape))
    product = native.linear(jnp.ones((3, 0)), jnp.ones((0, 40)))
    np.testing.assert_array_equal(product, np.zeros((3, 40)))


_MANY_THREADS = """
import hashlib
import jax, jax.numpy as jnp
import numpy as np
from flaxvgg.ops import native

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

x, dy = (jnp.asarray(np.random.default_rng(i).standard_normal((8, 28, 28, 512)), jnp.float32)
         for i in range(2))
call = jax.jit(native.conv3x3_by_kernel).lower(x, dy).compile()
before = resident()
found = np.asarray(call(x, dy))
print(hashlib.sha256(found.tobytes()).hexdigest(), resident() - before - found.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_many_threads_need_no_more_room_and_give_the_same_bits():
    digests = {}
    for threads in ("2", "64"):
        environment = os.environ | {"PJRT_NPROC": threads, "XLA_FLAGS": ""}
        command = [sys.executable, "-c", _MANY_THREADS]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        digests[threads], room = done.stdout.split()
        assert int(room) < 230e6  # 128 MiB of sums, and 1.1 MB a thread
    assert digests["2"] == digests["64"]
