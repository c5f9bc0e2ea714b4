"""(h) The channels are dead."""

import numpy as np
from scipy.special import gammaln

from experiments.why_zeros import pictures
from experiments.why_zeros.initialisation import HE, PYTORCH, TRAINED, he, pytorch_default
from experiments.why_zeros.subject import Counts, Subject, count, zeros
from experiments.why_zeros.text import Table, percent

CLAIM = "The channels are dead"
METHOD = (
    "Random crops, scaled and mirrored, of 16 pictures; a channel is silent in an image where it "
    "is zero everywhere. Expected numbers over all ways to choose n of the images."
)


def silent_in_all(silent: np.ndarray) -> np.ndarray:
    """Expected number of channels silent in all of n images drawn from N, for n = 1 ... N.

    `silent` (N, C) says which channel is silent in which image. The mean over all ways to draw n
    images is exact: a channel silent in s of them is silent in all n with the probability
    C(s, n) / C(N, n).
    """
    images = len(silent)
    s = silent.sum(axis=0)[None, :]
    n = np.arange(1, images + 1)[:, None]
    # s! (N - n)! / ((s - n)! N!)
    logarithm = (
        gammaln(s + 1) + gammaln(images - n + 1)
        - gammaln(np.maximum(s - n, 0) + 1) - gammaln(images + 1)
    )  # fmt: skip
    return np.where(s >= n, np.exp(logarithm), 0.0).sum(axis=1)


def measure(subject: Subject) -> dict:
    """Channels of pool5 silent in all of n images, and dead ones of every layer, by network."""
    pixels = pictures.random_crops(pictures.sources(), subject.effort.crops, subject.effort.size)
    networks = {
        TRAINED: subject.model,
        HE: he(subject.model, 0),
        PYTORCH: pytorch_default(subject.model, 0),
    }
    found = []
    for name, model in networks.items():
        counts = count(model, pixels)
        silent = np.asarray(counts["pool5"].silent)
        found.append(
            {
                "network": name,
                "channels": silent.shape[1],
                "curve": silent_in_all(silent).round(3).tolist(),
                "never_silent": int((~silent.any(axis=0)).sum()),
                "zeros": float(zeros(counts, "pool5").mean()),
                # Zeros in channels that are silent in their image, and in dead channels.
                "zeros_in_silent": float(silent.mean() / zeros(counts, "pool5").mean()),
                "dead": _dead(counts),
            }
        )
    return {"images": len(pixels), "sources": len(pictures.sources()), "networks": found}


def _dead(counts: Counts) -> dict[str, int]:
    return {
        layer: int(np.asarray(found.silent).all(axis=0).sum())
        for layer, found in counts.items()
        if layer.startswith("relu")
    }


def verdict(found: dict) -> str:
    """One sentence."""
    trained, *others = found["networks"]
    one, always = trained["curve"][0], trained["curve"][-1]
    dead = ", ".join(f"{n} in {layer}" for layer, n in trained["dead"].items() if n)
    return (
        f"{'False' if always < 0.05 * trained['channels'] else 'In part'}: {one:.0f} of "
        f"{trained['channels']} channels are silent in one image, and hold "
        f"{percent(trained['zeros_in_silent'])} of its zeros, but {always:.0f} in all of "
        f"{found['images']} images (dead channels in other layers: {dead or 'none'}); untrained, "
        + ", ".join(
            f"{row['network']} has {row['curve'][0]:.0f} and {row['curve'][-1]:.0f}"
            for row in others
        )
        + "."
    )


def table(found: dict) -> Table:
    """One row a network."""
    images = found["images"]
    steps = [n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n < images] + [images]
    header = ["silent channels of pool5 in all of ... images", *map(str, steps), "never silent",
              "zeros in pool5", "of these in silent channels"]  # fmt: skip
    return header, [
        [
            row["network"],
            *(f"{row['curve'][n - 1]:.1f}" for n in steps),
            str(row["never_silent"]),
            percent(row["zeros"]),
            percent(row["zeros_in_silent"]),
        ]
        for row in found["networks"]
    ]
