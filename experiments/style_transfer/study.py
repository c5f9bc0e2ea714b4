"""One style transfer here and in PyTorch: the same loss, the same gradient, the same course."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

import flaxvgg
from experiments.style_transfer import ours, theirs
from experiments.timing import compete
from flaxvgg.images.loading import load_pixels
from flaxvgg.images.samples import title_of
from flaxvgg.network.model import VGG

OURS, THEIRS = "flaxvgg", "PyTorch"
Pictures = dict[str, np.ndarray]  # 8-bit RGB by name


def study(
    model: VGG,
    content: Path,
    style: Path,
    *,
    size: int,
    steps: int,
    every: int,
    adam_steps: int,
    weight: float,
    rounds: int,
    say: Callable[[str], None],
) -> tuple[dict[str, Any], Pictures]:
    """All results, and the pictures."""
    model = flaxvgg.with_pooling(model, "average")
    photo, painted = (
        load_pixels(path, (size, size))[None] / np.float32(255) for path in (content, style)
    )
    arrays = flaxvgg.to_torch(model)
    model = flaxvgg.prepare(model, (size, size))
    wanted = ours.targets(model, jnp.asarray(photo), jnp.asarray(painted), weight)
    exact, loss = (
        theirs.Loss(arrays, photo, painted, weight, dtype)
        for dtype in (torch.float64, torch.float32)
    )
    say("the loss and its gradient")
    noise = np.random.default_rng(0).random(photo.shape, np.float32)
    starts = {"the photo": photo, "noise": noise}
    errors = {name: _errors(model, wanted, exact, loss, image) for name, image in starts.items()}
    say("Adam")
    start = jnp.asarray(photo)
    adam = {
        OURS: ours.by_adam(model, wanted, start, adam_steps),
        THEIRS: theirs.by_adam(loss, photo, adam_steps),
    }
    say("L-BFGS")
    found = {OURS: ours.by_lbfgs(model, wanted, start, steps, every)}
    found[THEIRS] = theirs.by_lbfgs(loss, photo, steps, list(found[OURS].images))
    ends = {
        name: theirs.value_and_gradient(exact, course.images[steps][None])[0]
        for name, course in found.items()
    }
    say("time")
    speed = _speed(model, wanted, loss, photo, rounds)
    pictures = {"content": photo[0], "style": painted[0]}
    pictures |= {f"{OURS}, {step} steps": x for step, x in found[OURS].images.items()}
    pictures |= {f"{THEIRS}, {steps} steps": found[THEIRS].images[steps]}
    results = {
        "content": title_of(content),
        "style": title_of(style),
        "size": size,
        "steps": steps,
        "weight": weight,
        "errors": errors,
        "adam": {name: _short(losses) for name, losses in adam.items()},
        "adam_apart": _apart(adam),
        "lbfgs": {
            name: {"losses": _short(course.losses), "evaluations": course.evaluations}
            for name, course in found.items()
        },
        "last": {name: float(f"{value:.6g}") for name, value in ends.items()},
        "speed": speed,
    }
    return results, {name: _pixels(x) for name, x in pictures.items()}


def _errors(
    model: VGG, wanted: ours.Targets, exact: theirs.Loss, loss: theirs.Loss, image: np.ndarray
) -> dict[str, Any]:
    """The loss, and by tool the relative errors against PyTorch in float64."""
    value, slope = theirs.value_and_gradient(exact, image)
    found = {
        OURS: ours.value_and_gradient(jnp.asarray(image), model, wanted),
        THEIRS: theirs.value_and_gradient(loss, image),
    }
    errors = {
        name: {
            "loss": float(f"{abs(float(one) - value) / value:.3g}"),
            "gradient": float(f"{np.linalg.norm(by - slope) / np.linalg.norm(slope):.3g}"),
        }
        for name, (one, by) in found.items()
    }
    return {"loss": float(f"{value:.8g}"), "errors": errors}


def _apart(curves: dict[str, list[float]]) -> float:
    """The largest relative difference of the two curves."""
    a, b = (np.array(curves[name]) for name in (OURS, THEIRS))
    return float(f"{(abs(a - b) / b).max():.3g}")


def _speed(
    model: VGG, wanted: ours.Targets, loss: theirs.Loss, photo: np.ndarray, rounds: int
) -> dict[str, Any]:
    """Seconds of the loss with its gradient, and how many times PyTorch's speed that is."""
    start = jnp.asarray(photo)
    calls = {
        OURS: lambda: jax.block_until_ready(ours.value_and_gradient(start, model, wanted)),
        THEIRS: lambda: theirs.value_and_gradient(loss, photo),
    }
    timed = compete(calls, rounds, 60, lambda done: None)
    base = np.array(timed[THEIRS].rounds)
    return {
        name: {
            "seconds": round(float(np.median(x.rounds)), 4),
            "speedup": [round(float(f(base / x.rounds)), 2) for f in (np.median, np.min, np.max)],
        }
        for name, x in timed.items()
    }


def _short(losses: list[float]) -> list[float]:
    return [float(f"{loss:.6g}") for loss in losses]


def _pixels(image: np.ndarray) -> np.ndarray:
    return np.round(255 * np.clip(image, 0, 1)).astype(np.uint8)
