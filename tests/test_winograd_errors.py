"""Winograd in NumPy: exact where it must be, our compiled one to the bit; the committed page."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import page
from experiments.winograd_errors import figure, network, report, study, sums
from experiments.winograd_errors.study import (
    FOUR,
    SMALL,
    THREE,
    TILES,
    WIDE_TILE,
    Arithmetic,
    convolve,
    transformed,
)
from experiments.winograd_errors.sums import COMPENSATED, PLAIN, WIDE, Way
from experiments.winograd_errors.transforms import (
    Points,
    Tile,
    both_axes,
    inputs_by_steps,
    results_by_steps,
)
from flaxvgg.network.config import VGGConfig
from flaxvgg.ops.convolution import conv3x3_block
from helpers import random_images, random_model

FOLDER = Path(study.__file__).parent
SYMMETRIC = (SMALL, THREE, FOUR, Tile(FOUR.down, THREE.across))


def direct(maps: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The 3x3 correlation of maps (h, w, channels) in float64, without padding."""
    height, width = (n - 2 for n in maps.shape[:2])
    parts = [
        maps[i : i + height, j : j + width].astype(np.float64) @ kernel[i, j]
        for i, j in np.ndindex(3, 3)
    ]
    return sum(parts)


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("tile", TILES, ids=lambda tile: f"{tile.algorithm} {tile.points}")
def test_every_set_of_points_gives_the_convolution(tile: Tile):
    down, across = tile
    d, g = drawn(down.size, across.size, 1)[..., 0], drawn(3, 3, 1)[..., 0]
    u, v = (
        both_axes(down.kernel, across.kernel, g),
        both_axes(down.inputs, across.inputs, d),
    )
    found = both_axes(down.results, across.results, u * v)
    np.testing.assert_allclose(found, direct(d[..., None], g[..., None, None])[..., 0], atol=1e-12)


def test_transforms_by_hand():
    points = SMALL.down
    assert points.inputs.tolist() == [[-1, 0, 1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]]
    assert points.kernel.tolist() == [[-1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]]
    assert points.results.tolist() == [[1, 1, 1, 0], [0, 1, -1, 1]]
    with pytest.raises(ValueError, match=r"F\(4\) needs 5 points"):
        Points("", (0, 1, -1), 4)
    with pytest.raises(ValueError, match="symmetric points: odd"):
        inputs_by_steps(Tile(*[Points("odd", (0, 1, -1, 0.5), 3)] * 2), drawn(5, 5))


@pytest.mark.parametrize("tile", SYMMETRIC, ids=lambda tile: tile.algorithm)
def test_steps_round_and_nothing_else(tile: Tile):
    d = drawn(tile.down.size, tile.across.size, 50)
    for steps, name in ((inputs_by_steps, "inputs"), (results_by_steps, "results")):
        exact = both_axes(getattr(tile.down, name), getattr(tile.across, name), d)
        found = steps(tile, d)
        assert found.dtype == np.float32
        assert 0 < abs(found - exact).max() < 1e-5


def test_sums_by_hand():
    big, small = 2.0**24, 1.0  # float32 has no odd numbers beyond 2^24
    left = np.array([[[big] + [0.0] * 7 + [small] * 16]], np.float32)
    ones = np.ones((1, 24, 1), np.float32)

    def found(way: Way) -> float:
        return float(sums.product(left, ones, way)[0, 0, 0])

    assert found(Way(1, "float32", chain=1)) == big
    assert found(Way(1, "float64", chain=1)) == big + 16
    assert found(Way(1, "compensated", chain=1)) == pytest.approx(big + 16, abs=2)
    assert found(Way(1, "compensated", chain=1, stored=False)) == big + 16


def test_compensated_sums_are_nearly_as_good_as_float64():
    left, right = drawn(4, 16, 512), drawn(4, 512, 16)
    exact = left.astype(np.float64) @ right
    errors = {
        way: np.linalg.norm(sums.product(left, right, way) - exact)
        for way in (PLAIN, WIDE, COMPENSATED)
    }
    assert errors[WIDE] <= errors[COMPENSATED] < 1.1 * errors[WIDE] < errors[PLAIN]


@pytest.mark.parametrize(("tile", "height"), [(SMALL, 12), (WIDE_TILE, 72)])
def test_it_is_the_compiled_convolution(tile: Tile, height: int):
    """To the bit: chains, groups, transforms, rounding. Of 70 channels not all chains are full."""
    maps, kernel, bias = drawn(2, height, 8, 70), drawn(3, 3, 70, 40), drawn(40)
    ours = conv3x3_block(*map(jnp.asarray, (maps, kernel, bias)), relu=False, pool=False)
    for image, expected in zip(maps, np.asarray(ours), strict=True):
        found = network.whole(image, kernel, bias, tile, Arithmetic(COMPENSATED))
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("tile", SYMMETRIC, ids=lambda tile: tile.algorithm)
def test_whole_maps_of_any_size(tile: Tile):
    maps, kernel, bias = drawn(7, 9, 5), drawn(3, 3, 5, 4), drawn(4)
    found = network.whole(maps, kernel, bias, tile, Arithmetic())
    expected = direct(np.pad(maps, ((1, 1), (1, 1), (0, 0))), kernel) + bias
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found.dtype == np.float32


@pytest.mark.slow
def test_samples_are_what_the_layer_computes():
    model = random_model(VGGConfig.features_only("vgg11", "no head here"))
    images = random_images(2, 32, 32)
    found = study.samples(model, images, ["conv2_1"], tiles=2, outputs=5)["conv2_1"]
    assert found.regions.shape == (4, 6, 6, 64)
    assert found.truth.shape == found.peer.shape == (4, 4, 4, 5)
    assert 0 < abs(found.peer - found.truth).max() < 1e-4
    for tile in TILES:
        ratio = study.ratio(found, tile, Arithmetic())
        assert 0.1 < ratio.before_relu < 20
    few = study.layer(found, THREE, Arithmetic())
    np.testing.assert_allclose(few, found.truth[:, :3, :3], atol=1e-4)
    four = convolve(found.regions, transformed(found.kernel, FOUR), found.bias, FOUR, Arithmetic())
    np.testing.assert_array_equal(study.layer(found, FOUR, Arithmetic()), four)


@pytest.mark.slow
def test_networks_and_their_products():
    model = random_model(VGGConfig.features_only("vgg11", "no head here"))
    images = random_images(1, 32, 32)
    rows = network.errors(model, images, network.PLANS[:2])
    assert all(0.1 < row["errors"][0] < 20 for row in rows)
    plan = network.PLANS[1]
    channels = [(16, 64, 128), (8, 128, 256), (8, 256, 256), (4, 256, 512), (4, 512, 512)]
    channels += [(2, 512, 512)] * 2
    assert network.products(model, (32, 32), plan) == sum(4 * n * n * i * o for n, i, o in channels)


def test_the_committed_report_is_that_of_the_committed_results(tmp_path: Path):
    results = json.loads((FOLDER / "results.json").read_text("utf-8"))
    assert (FOLDER / "README.md").read_text("utf-8") == page(report.readme, results)
    for name in ("errors", "scan"):
        getattr(figure, name)(results).savefig(tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
