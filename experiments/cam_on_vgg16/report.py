"""What was found, as a page in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

Results = Mapping[str, Any]


def table(results: Results) -> str:
    """Every method's cost and how often its peak lies on the object."""
    questions = results["questions"]
    head = (
        "method",
        "forward passes",
        "arithmetic",
        "parameters",
        "to be trained",
        "peak on the object",
        "heat on the object",
    )
    lines = [_line(head), _line(["---", *["---:"] * 3, "---", *["---:"] * 2])]
    for row in results["methods"]:
        middle, least, most = row["passes"]
        located = row["heat_on_object"] > 0
        lines.append(
            _line(
                [
                    row["method"],
                    f"{middle:.2f} ({least:.2f} to {most:.2f})",
                    f"{row['arithmetic']:.2f}",
                    f"{row['parameters'] / 1e6:.1f} million",
                    row["to_train"],
                    f"{row['on_object']} of {questions}" if located else "no map",
                    f"{100 * row['heat_on_object']:.0f} %" if located else "no map",
                ]
            )
        )
    return "\n".join(lines)


def readme(results: Results) -> str:
    """The page of the experiment."""
    passes = {row["method"]: f"{row['passes'][0]:.1f}" for row in results["methods"]}
    fitted = results["classifier"] == "fitted here"
    values = {
        "table": table(results),
        "weights": results["weights"],
        "questions": results["questions"],
        "scenes": results["scenes"],
        "training": results["effort"]["training"],
        "steps": results["effort"]["steps"],
        "count": len(results["objects"]),
        "objects": ", ".join(results["objects"]),
        "chance": _percent(results["chance"]),
        "by_classifier": _percent(results["recognised"]["classifier"]),
        "by_gap": _percent(results["recognised"]["gap"]),
        "cam": passes["CAM (GAP + linear)"],
        "grad_cam": passes["Grad-CAM"],
        "score_map": passes["score map 448"],
    }
    return (_ANSWER + (_BOTH_FITTED if fitted else _GAP_FITTED) + _TEST).format(**values)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_ANSWER = """\
# How do I get a CAM from VGG16?

> The last convolution gives 512x14x14, and a row of the last FC weight is 4096 long: they do not
> fit.

```sh
python -m experiments.cam_on_vgg16                           # the figures on this page
python -m experiments.cam_on_vgg16 --weights IMAGENET1K_V1   # with torchvision's classifier
```

They need not fit. Zhou's CAM is for networks in which one linear layer reads the pooled channels;
VGG16 has 25,088 numbers and two hidden layers in between. There are three ways to a map:

- **Grad-CAM** takes each channel's worth from its gradient, through fc6, fc7 and fc8 as they are.
  Nothing is trained, for {grad_cam} forward passes: `flaxvgg.explain(model, images)`.
- **The classifier as convolutions** (7x7, 1x1, 1x1) scores every 224x224 window. At 224 px that is
  one number and no map; enlarged to 448 px it is 8x8 numbers, for {score_map} forward passes.
  Nothing is trained: `flaxvgg.score_maps(model, images)`.
- **GAP and one linear layer** in the classifier's place make the weight row 512 long, and the sum
  of weight times channel is the CAM, for {cam} forward passes. The linear layer must be trained:
  `flaxvgg.with_gap(model, num_classes, rngs=rngs)`.

{table}

![The maps of every method, for objects in scenes and photos](cam_on_vgg16.png)

Forward passes are those of the network with its classifier at 224 px: the median of the rounds, and
their range. Arithmetic is the same in products of convolutions and linear layers. Peak and heat on
the object are what was found for {questions} (image, class) pairs, "where is the cat?"; a peak
anywhere would be on the object in {chance} of them. Eigen-CAM knows no class: it gives one map for
both objects of a scene.

## What the heads were trained on

"""
_BOTH_FITTED = """\
ImageNet's classifier cannot be had everywhere. The figures above come from real convolutions
({weights}) with two heads that were fitted here in minutes:
a logistic regression on GAP, and fc6, fc7 and fc8 of torchvision's shape, from its
initialisation, by {steps} steps of Adam. """
_GAP_FITTED = """\
The classifier is the one of {weights}. Only the linear layer on GAP was
fitted here, by logistic regression. """
_TEST = """\
The data is small: each of {count} classes is **one thing in one photo**
({objects}), cut in two. The parts for training are laid on backgrounds, two, one or none in
each of {training} images. Heads are told which things an image shows, never where.

The test is {scenes} scenes of two of the other parts on other backgrounds; no pixel was in the
training. The two objects of a scene have the highest scores in
{by_classifier} of the cases with the classifier and in {by_gap} with GAP. As the things are still
those of the training, this shows whether a map tells known things apart and finds them, and nothing
about how well VGG16 does on new ones.
"""
