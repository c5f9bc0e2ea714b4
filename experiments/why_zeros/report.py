"""The study in words: a verdict and a table for each explanation."""

from typing import Any

from experiments.why_zeros.information import BINARY, FEATURES
from experiments.why_zeros.initialisation import HE, PYTORCH, TRAINED
from experiments.why_zeros.study import EXPLANATIONS
from experiments.why_zeros.text import markdown, percent

_HOW = """
```sh
make test        # or anything else that makes .venv
.venv/bin/python -m experiments.why_zeros --out build/why_zeros
```

It takes three to five minutes on two cores, and writes `results.json` with every number,
`why_zeros.png`, and this page. With `--weights` it studies other weights: a checkpoint, a file or a
name, as `python -m convert` takes them.
"""


def readme(results: dict[str, Any]) -> str:
    """The page that goes with the results."""
    parts = [
        "# Why are 87 % of my VGG16 features zero?",
        answer(results),
        "![Eight explanations, each tested](why_zeros.png)",
        f"Every explanation that people give, tested with {results['arch']} and the weights in "
        f"`{results['weights']}` ({results['preprocessing']} preprocessing) on "
        f"{len(results['photos'])} photos that scikit-image carries: "
        f"{', '.join(results['photos'])}. At 224x224 pixels, unless a table says otherwise; zeros "
        "are exact zeros, counted by `flaxvgg.sparsity.counting.count_images` in float32; ± is one "
        "standard deviation.",
        _HOW.strip(),
    ]
    for letter, explanation in EXPLANATIONS.items():
        parts += [
            f"## ({letter}) “{explanation.CLAIM}”",
            explanation.verdict(results[letter]),
            explanation.METHOD,
            markdown(explanation.table(results[letter])),
        ]
    return "\n\n".join(parts) + "\n"


def answer(results: dict[str, Any]) -> str:
    """The answer in two sentences."""
    last = results["a"]["layers"][-1]
    networks = {row["network"]: row["pool5"]["mean"] for row in results["b"]["networks"]}
    untrained = sorted((networks[HE], networks[PYTORCH]))
    trained = results["h"]["networks"][0]
    digits = {
        row["representation"]: row["mean"] for row in results["g"]["tasks"][0]["representations"]
    }
    return (
        f"The pre-activations of the last ReLU are mostly negative "
        f"({percent(last['negative_before'] / last['values'])} of {last['layer']} over "
        f"{len(results['photos'])} photos), ReLU makes each of them exactly 0, and max pooling, "
        f"which keeps a zero only where all four values are zero, leaves "
        f"{percent(networks[TRAINED])}. Training makes it so: with random weights it is "
        f"{100 * untrained[0]:.0f} to {100 * untrained[1]:.0f} %; the channels are not dead "
        f"({trained['curve'][0]:.0f} of {trained['channels']} are silent in one image, "
        f"{trained['curve'][-1]:.0f} in all of {results['h']['images']}), and which features are "
        f"zero says as much about the class as their values do ({percent(digits[BINARY])} of noisy "
        f"digits recognised from zero-or-not, {percent(digits[FEATURES])} from the values)."
    )
