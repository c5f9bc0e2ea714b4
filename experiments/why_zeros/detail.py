"""(c) The image has too little in it."""

import numpy as np

from experiments.why_zeros import pictures
from experiments.why_zeros.subject import Subject, count, spread, zeros
from experiments.why_zeros.text import Table, percent, spread_of

CLAIM = "The image has too little detail"
METHOD = "Noise is drawn three times; detail is the mean difference between neighbouring pixels."

BLURS = (2, 4, 8, 16, 32)
_GREYS = [(level, level, level) for level in (0, 64, 128, 192, 255)]
_COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def images(subject: Subject) -> dict[str, tuple[str, np.ndarray]]:
    """The images (N, H, W, 3) of each kind by its name, with the group it belongs to."""
    size, photos = subject.effort.size, subject.pixels
    return {
        "one grey": ("uniform", pictures.uniform(_GREYS, size)),
        "one colour": ("uniform", pictures.uniform(_COLOURS, size)),
        "ramp": ("uniform", pictures.ramps(size)),
        **{
            f"photos blurred, sigma {sigma} px": ("blurred", pictures.blur(photos, sigma))
            for sigma in reversed(BLURS)
        },
        "photos": ("photos", photos),
        "brick, grass, gravel": (
            "textures",
            pictures.load(pictures.textures(), size, subject.recipe),
        ),
        "chequers of 2, 8 and 32 px": (
            "textures",
            np.concatenate([pictures.chequers(side, size) for side in (2, 8, 32)]),
        ),
        "noise, uniform": ("noise", pictures.uniform_noise(3, size)),
        "noise, uniform in 8 px blocks": ("noise", pictures.uniform_noise(3, size, block=8)),
        "noise, normal, sd 8": ("noise", pictures.gaussian_noise(3, size, 8)),
        "noise, normal, sd 64": ("noise", pictures.gaussian_noise(3, size, 64)),
        "noise, 1/f like photos": ("noise", pictures.pink_noise(3, size)),
    }


def measure(subject: Subject) -> dict:
    """Zeros in pool5, and detail, of each image of each kind."""
    shown = images(subject)
    pixels = np.concatenate([pixels for _, pixels in shown.values()])
    ends = np.cumsum([len(pixels) for _, pixels in shown.values()])[:-1]
    found = np.split(zeros(count(subject.model, pixels, layers=["pool5"]), "pool5"), ends)
    steps = np.split(pictures.detail(pixels).round(2), ends)
    kinds = [
        {
            "kind": kind,
            "group": group,
            "detail": step.tolist(),
            "zeros": fractions.tolist(),
            "pool5": spread(fractions),
        }
        for (kind, (group, _)), fractions, step in zip(shown.items(), found, steps, strict=True)
    ]
    return {"kinds": kinds}


def verdict(found: dict) -> str:
    """One sentence."""
    pool5 = {row["kind"]: row["pool5"] for row in found["kinds"]}
    step = {row["kind"]: np.mean(row["detail"]) for row in found["kinds"]}
    photos, grey, noise = pool5["photos"], pool5["one grey"], pool5["noise, uniform"]
    texture = "brick, grass, gravel"
    blurred = pool5[f"photos blurred, sigma {BLURS[-1]} px"]
    textured, noisy = (step[kind] / step["photos"] for kind in (texture, "noise, uniform"))
    least = min(found["kinds"], key=lambda row: row["pool5"]["min"])
    empty = min(grey["mean"], blurred["mean"]) > photos["mean"]
    finer = pool5[texture]["mean"] > photos["mean"] and step[texture] > step["photos"]
    return (
        f"{'In part' if empty else 'False'}: uniform greys have {percent(grey['mean'])} zeros, "
        f"photos blurred beyond recognition {percent(blurred['mean'])}, photos "
        f"{percent(photos['mean'])} (from {100 * photos['min']:.1f} to {percent(photos['max'])}); "
        f"{'but detail alone is not it, ' if finer else ''}{texture} have {textured:.1f} times the "
        f"detail of the photos and {percent(pool5[texture]['mean'])}, pure noise {noisy:.1f} times "
        f"and {percent(noise['mean'])}; and none of these images has fewer "
        f"than {percent(least['pool5']['min'])} ({least['kind']})."
    )


def table(found: dict) -> Table:
    """One row a kind of image."""
    header = ["images", "number", "detail, of 255 levels", "zeros in pool5 (range)"]
    return header, [
        [
            row["kind"],
            str(len(row["zeros"])),
            f"{np.mean(row['detail']):.1f}",
            spread_of(row["pool5"]),
        ]
        for row in found["kinds"]
    ]
