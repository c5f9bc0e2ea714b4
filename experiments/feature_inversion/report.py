"""README.md of the study, from its results."""

from typing import Any


def readme(results: dict[str, Any]) -> str:
    """The page."""
    size, steps, layers = results["size"], results["steps"], results["layers"]
    first, *_, last = layers
    sections = [
        "# What each layer keeps of a photo",
        f"Mahendran & Vedaldi 2015 (arXiv:1412.0035): from noise, an image is sought that a layer "
        f"of VGG16 cannot tell from a photo ({results['photo']}, {size}x{size} pixels). What it "
        "shows that the photo shows too is in the layer's output; what it lacks, the layer has "
        "forgotten.",
        "![The photo, and what is found from each layer's output](feature_inversion.png)",
        f"{steps} steps of Adam, all of them one compiled program, on the squared relative error "
        f"of the features and {results['smoothness']:g} times the mean absolute difference of "
        "neighbouring values (total variation); values stay in (0, 1).",
        "The error is the distance of the features from the photo's, in units of their norm: at "
        f"the end, at the start (noise), and the median of {results['others']} other photos. LPIPS "
        "and PSNR compare the image with the photo.",
        _table(layers),
        f"{first} keeps the photo ({layers[first]['psnr']:.0f} dB); an image that {last} cannot "
        f"tell from it by more than {layers[last]['error']:.0%} is "
        f"{layers[last]['lpips']:.2f} away by LPIPS. What is found depends on the start and on the "
        "smoothness that is asked for: many images have the features of the deep layers.",
        "Rerun it: `python -m experiments.feature_inversion --out experiments/feature_inversion`.",
    ]
    return "\n\n".join(sections) + "\n"


def _table(layers: dict[str, Any]) -> str:
    lines = [
        "| layer | error | of noise | of other photos | LPIPS | PSNR |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in layers.items():
        errors = " | ".join(f"{row[key]:.1%}" for key in ("error", "start", "others"))
        lines.append(f"| {name} | {errors} | {row['lpips']:.3f} | {row['psnr']:.1f} dB |")
    return "\n".join(lines)
