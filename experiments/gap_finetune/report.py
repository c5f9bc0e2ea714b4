"""What was found, as a page in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.composed.objects import TEST_BACKGROUNDS, TRAINING_BACKGROUNDS
from experiments.gap_finetune.study import (
    AIMS,
    EIGEN,
    FITTED,
    GAUSSIAN,
    MARGIN,
    METRICS,
    RANDOM,
    TUNED,
    unmet,
)

Results = Mapping[str, Any]


def table(results: Results) -> str:
    """Every method's figures: mean and standard deviation over the seeds."""
    lines = [
        _line(["", "mean average precision", "pointing game", "MaxBoxAccV2"]),
        _line(["---", *["---:"] * 3]),
    ]
    for method, figures in results["methods"].items():
        lines.append(_line([method, *(_cell(figures.get(metric)) for metric in METRICS)]))
    return "\n".join(lines)


def readme(results: Results) -> str:
    """The page of the experiment."""
    effort, methods = results["effort"], results["methods"]
    missed = unmet(results)
    fitted = methods[FITTED]
    boxes = _least_margin(results, FITTED)
    held = (
        "In every seed the mean average precision is at least "
        f"{AIMS['mean_average_precision']:.2f} ({_least(fitted, 'mean_average_precision')}), the "
        f"pointing game at least {AIMS['pointing_game']:.2f} ({_least(fitted, 'pointing_game')}), "
        f"and MaxBoxAccV2 at least {100 * MARGIN:.0f} points over the centre Gaussian's "
        f"({100 * boxes:.1f})."
    )
    return _PAGE.format(
        weights=results["weights"],
        arch=results["arch"],
        table=table(results),
        answer="Not as well as it should." if missed else "Yes.",
        verdict="Missed: " + "; ".join(missed) + "." if missed else held,
        tuning=_tuning(results),
        classes=", ".join(results["classes"]),
        count=len(results["classes"]),
        questions=results["questions"],
        seeds=len(effort["seeds"]),
        first=_percent(methods[FITTED]["pointing_game"]["mean"]),
        eigen=_percent(methods[EIGEN]["pointing_game"]["mean"]),
        random=_percent(methods[RANDOM]["pointing_game"]["mean"]),
        gaussian=_percent(methods[GAUSSIAN]["pointing_game"]["mean"]),
        grounds=len(TRAINING_BACKGROUNDS),
        other_grounds=len(TEST_BACKGROUNDS),
        **{name: effort[name] for name in ("training", "tests", "size", "steps", "batch")},
    )


def _tuning(results: Results) -> str:
    """What training the last block changes, in a sentence."""
    before, after = results["methods"][FITTED], results["methods"][TUNED]
    changes = [
        f"{name} from {before[metric]['mean']:.3f} to {after[metric]['mean']:.3f}"
        for metric, name in zip(
            METRICS, ("the mean average precision", "the pointing game", "MaxBoxAccV2"), strict=True
        )
    ]
    losses = [(seed[0], seed[-1]) for seed in results["losses"]]
    first, last = (sum(values) / len(losses) for values in zip(*losses, strict=True))
    return (
        f"It takes {changes[0]}, {changes[1]}, and {changes[2]}; the loss, which is small for the "
        f"fitted head already, goes from {first:.1e} in the first step to {last:.1e} in the last."
    )


def _least(figures: Mapping[str, Any], metric: str) -> str:
    return f"{min(figures[metric]['seeds']):.3f} in the worst"


def _least_margin(results: Results, method: str) -> float:
    found = results["methods"]
    values, baseline = (found[x]["max_box_acc_v2"]["seeds"] for x in (method, GAUSSIAN))
    return min(value - other for value, other in zip(values, baseline, strict=True))


def _cell(found: Mapping[str, Any] | None) -> str:
    return f"{found['mean']:.3f} ± {found['sd']:.3f}" if found else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_PAGE = """\
# Does VGG16 with GAP and one linear layer learn, and do its maps find things?

```sh
python -m experiments.gap_finetune        # needs the environment that `make test` makes
```

{answer} One linear layer on frozen convolutions was fitted, in seconds, to images whose classes are
known and places are not. The peak of its map lies on the object asked for in {first} of
{questions} (image, class) pairs such as "where is the cat?", against {eigen} for Eigen-CAM, which
gives one map for both objects of a scene, {random} for a head that was not fitted, and {gaussian}
for the middle of the image.

{table}

Mean ± standard deviation over {seeds} seeds, each with its own training and test images. What is
not fitted, such as the decay and the learning rate, was chosen on another seed.

{verdict}

![Test scenes with boxes, the CAM of each object, and Eigen-CAM](gap_finetune.png)

## End to end

Then the last block of convolutions and the head are trained together for {steps} steps of Adam,
{batch} images each; the first four blocks stay as they are. {tuning}

## The data

{count} classes ({classes}), each
**one thing in one photo** that scikit-image or scikit-learn carries, on the {arch} convolutions of
{weights}. Every thing is cut in two. One part is laid on {grounds} backgrounds for
{training} training images of {size} px, with no, one or two things; the other part on
{other_grounds} others for {tests} test images of two things. Train and test share no pixel, of
things or of backgrounds, but a test thing is the other part of a training thing. So this shows that
a map tells known things apart and finds them, and nothing about how well it does on new ones.

- Mean average precision asks whether the scores name what is in an image.
- The pointing game (Zhang et al. 2016) asks whether a map's peak is in the box of its object, with
  no tolerance.
- MaxBoxAccV2 (Choe et al. 2020) asks whether a box around what is hot has an IoU of at least 0.3,
  0.5 and 0.7 with the object's, and takes the mean, each at its best threshold. The maps have 7x7
  places of 32 px.

The head of the first seed comes with flaxvgg: see
[its card](../../flaxvgg/heads/sample_head_v1.md). This command writes both; they go into the
package by hand.
"""
