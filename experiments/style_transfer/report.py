"""README.md of the study, from its results."""

from typing import Any

from experiments.style_transfer.study import OURS, THEIRS


def readme(results: dict[str, Any]) -> str:
    """The page."""
    size, steps, adam = results["size"], results["steps"], results["adam"]
    lbfgs, speed, last = results["lbfgs"], results["speed"], results["last"]
    apart = results["adam_apart"]
    sections = [
        "# Style transfer, beside PyTorch",
        f"Gatys et al. 2016 (arXiv:1508.06576) on torchvision's VGG16 convolutions with average "
        f"pooling: an image that starts as one photo ({results['content']}) keeps its features at "
        f"relu4_2, and takes over the Gram matrices of another ({results['style']}) at relu1_1 to "
        f"relu5_1. {size}x{size} pixels; the style counts {results['weight']:g} times. The same "
        "loss is written down for PyTorch, on the same weights.",
        "![The photos, the image every hundred steps, PyTorch's, and the losses]"
        "(style_transfer.png)",
        '```python\nmodel = flaxvgg.with_pooling(model, "average")\n'
        "content = flaxvgg.perceptual_loss(model, image, photo, value_range=(0, 1),\n"
        '                                  layers={"relu4_2": 1}, distance="l2")\n'
        "style = flaxvgg.style_loss(model, image, painting, value_range=(0, 1))\n```",
        "The study computes the two from one forward pass, with the features of the photos worked "
        "out before.",
        "## The same loss and the same gradient",
        "Relative errors against PyTorch in float64, of the gradient that of its norm, at two "
        "images. At the photo the content is met, and only the style has a gradient.",
        _errors(results["errors"]),
        "## The same course",
        f"{len(adam[OURS])} steps of Adam, which optax and PyTorch compute by one formula: the "
        f"two losses differ by at most {apart:.2g} of their value, after going from "
        f"{adam[OURS][0]:.4g} to {adam[OURS][-1]:.4g}. For pixels with hardly a gradient Adam's "
        "first steps go by its sign, so that rounding grows from step to step.",
        f"{steps} steps of L-BFGS, of which ten are remembered, here with optax's zoom line "
        "search, each hundred steps one compiled program, in PyTorch with its strong Wolfe search: "
        f"two algorithms, from one start. The last loss is {last[OURS]:.4g} here, by "
        f"{lbfgs[OURS]['evaluations'][-1]} evaluations, and {last[THEIRS]:.4g} in PyTorch, by "
        f"{lbfgs[THEIRS]['evaluations'][-1]}.",
        f"The loss with its gradient takes {speed[OURS]['seconds']:.3f} s here and "
        f"{speed[THEIRS]['seconds']:.3f} s in PyTorch, {_ratio(speed[OURS]['speedup'])} times its "
        "speed, in turns.",
        "Rerun it: `python -m experiments.style_transfer --out experiments/style_transfer`; "
        "`--size` and `--steps` make it larger.",
    ]
    return "\n\n".join(sections) + "\n"


def _errors(found: dict[str, Any]) -> str:
    lines = ["| at | loss | | error of the loss | of the gradient |", "|---|---|---|---|---|"]
    for name, one in found.items():
        for tool, error in one["errors"].items():
            cells = [name, f"{one['loss']:.6g}", tool, error["loss"], error["gradient"]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _ratio(speedup: list[float]) -> str:
    middle, least, most = speedup
    return f"{middle} ({least} to {most})"
