"""The product that skips zeros equals the dense one, and takes it when there are too many."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.skip_zeros import figure, report, study
from experiments.skip_zeros.product import skip_dot_general, skip_product

ROWS, COLUMNS = 100, 6
FOLDER = Path(study.__file__).parent
product = jax.jit(skip_product, static_argnames="capacity")
KERNEL = np.random.default_rng(1).standard_normal((ROWS, COLUMNS)).astype(np.float32)


def _vector(count: int) -> np.ndarray:
    """A vector with so many non-zeros."""
    rng = np.random.default_rng(count)
    x = np.zeros(ROWS, np.float32)
    x[rng.permutation(ROWS)[:count]] = rng.standard_normal(count)
    return x


def _unread(x: np.ndarray) -> jax.Array:
    """The kernel with NaN in every row that meets a zero: a product that reads them is NaN."""
    return jnp.where((jnp.asarray(x) == 0)[:, None], jnp.nan, KERNEL)


@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 48])
def test_only_rows_that_meet_a_non_zero_are_read(count):
    x = _vector(count)
    truth = x.astype(np.float64) @ KERNEL.astype(np.float64)
    found = product(jnp.asarray(x), _unread(x), capacity=48)
    np.testing.assert_allclose(found, truth, rtol=1e-5, atol=1e-6)


def test_too_many_fall_back_to_the_dense_product():
    x = _vector(49)
    found = product(jnp.asarray(x), jnp.asarray(KERNEL), capacity=48)
    np.testing.assert_allclose(found, x @ KERNEL, rtol=1e-5, atol=1e-6)
    assert np.isnan(product(jnp.asarray(x), _unread(x), capacity=48)).all()


def test_every_row_may_be_needed():
    x = _vector(ROWS)
    found = product(jnp.asarray(x), jnp.asarray(KERNEL), capacity=ROWS)
    np.testing.assert_allclose(found, x @ KERNEL, rtol=1e-5, atol=1e-6)


def test_nan_is_no_zero():
    x = _vector(10)
    x[x.nonzero()[0][3]] = np.nan
    assert np.isnan(product(jnp.asarray(x), jnp.asarray(KERNEL), capacity=48)).all()


def test_as_a_layers_product_it_skips_for_one_image_only():
    dims = (((1,), (0,)), ((), ()))
    dot = jax.jit(partial(skip_dot_general, dimension_numbers=dims, precision="highest"))
    x = np.stack([_vector(10), _vector(20)])
    for batch in (x, x[:1]):
        found = dot(jnp.asarray(batch), jnp.asarray(KERNEL))
        np.testing.assert_allclose(found, batch @ KERNEL, rtol=1e-5, atol=1e-6)
    unread = _unread(x[0])
    assert np.isfinite(dot(jnp.asarray(x[:1]), unread)).all()
    assert np.isnan(dot(jnp.asarray(x), unread)).all()


def test_rows_of_a_batch_by_hand():
    nonzero = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 0]], bool)
    expected = {"1": (1 + 1 + 3) / 12, "2": (2 + 3 + 3) / 12}
    assert study.rows_of_a_batch(nonzero) == pytest.approx(expected)


def test_summary_by_hand():
    found = study.summary({"a": [1.0, 2.0, 4.0], "b": [2.0, 2.0, 2.0]})
    assert found["a"] == {"ms": 2000.0, "ratio": [1.0, 1.0, 1.0]}
    assert found["b"] == {"ms": 2000.0, "ratio": [0.75, 1.0, 1.5]}


def test_the_committed_report_is_that_of_the_committed_results(tmp_path):
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == report.readme(results)
    figure.draw(results).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
