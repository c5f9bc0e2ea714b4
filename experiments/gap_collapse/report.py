"""The study in words: an answer, and a table for each part."""

import math
from typing import Any

import numpy as np

from experiments.gap_collapse.cures import CURES
from experiments.gap_collapse.summary import Cell, grid

_HOW = """
```sh
make test        # or anything else that makes .venv
.venv/bin/python -m experiments.gap_collapse --out build/gap_collapse
```
"""


def readme(results: dict[str, Any]) -> str:
    """The page that goes with the results."""
    effort, real = results["effort"], results["pretrained"]
    part = real["positive"]
    return f"""# Why does my GAP network go to all zeros, and how is it trained without an FC layer?

{answer(results)}

![Six steps in both frameworks, and the cures by learning rate](gap_collapse.png)

## The report, step by step

{effort["arch"]} without pool5, ConvReLU 512-{effort["channels"]}, ConvReLU {effort["channels"]}-20,
the mean over space; PyTorch's default initialisation; one batch of 4 random
{effort["size"]}x{effort["size"]} images, two of the 20 labels of each are 1, no label is 1 twice;
multilabel soft margin loss, plain SGD. Both frameworks start from the same weights; what is told of
a step was true before it.

{_steps_table(results["six_steps"])}

{_agreement(results["six_steps"])} `flaxvgg.diagnose` says of the first line, afterwards:

> {results["six_steps"][0]["diagnosis"]}

## Why

After a ReLU every score is at least 0, its sigmoid at least 1/2, and a label that is 0 costs at
least ln 2 = {math.log(2):.5f}. Nine labels of ten are 0, so every step pushes the scores down; a
long step carries all pre-activations of the last convolution below 0, in every place of every
image, and there the derivative of the ReLU is exactly 0. A shorter step gets there later. Nor is
there much to be won before: with a tenth of the labels 1, scores that are right everywhere still
cost 0.9 ln 2 = {0.9 * math.log(2):.3f}. (A class that half of a batch's images have is not
pushed down, and may survive.)

## The cures, from random weights

{effort["small_arch"]} on 4 random {effort["small_size"]}x{effort["small_size"]} images, 20 classes,
otherwise as above; the loss after {effort["small_steps"]} steps, mean and range over
{effort["seeds"]} seeds, and what `flaxvgg.diagnose` calls the runs then. Scores that know how rare
a label is, and nothing of the images, cost {entropy(0.1):.3f}.

{_scratch_table(results["scratch"])}

## The cures, on real convolutions

The convolutions of {results["arch"]} in `{results["weights"]}`, frozen; a head of
{effort["head_channels"]} channels, then {real["classes"]}, is trained on {effort["training"]}
composed {effort["size"]}x{effort["size"]} images (`experiments/composed`: things cut out of photos,
laid on textures) in {effort["steps"]} batches of {effort["batch"]}. Then it names and finds the
other parts of the same things on other textures: mean average precision over classes, and how often
the map of a class is highest on its object ({real["questions"]} (image, class) pairs; by chance
{real["chance"]:.0%}). "Own channel" is the same for channel k of the last map taken as the map of
class k. {part:.1%} of the labels are 1: to know no more than that costs {entropy(part):.3f}, and
after a ReLU scores that are always right still cost {(1 - part) * math.log(2):.3f}.

{_real_table(real["rows"])}

These BatchNorms have momentum 0, as in the report: their running statistics never move, so that in
evaluation mode the network is another one than was trained. Here it is tested as it was trained,
with the statistics of the batch.

## Which to take

{_advice(results)}

{_HOW.strip()}

It took {results["seconds"] / 60:.0f} minutes on two cores, and less where they do nothing else.
`--weights` takes other weights, as `python -m convert` does. All numbers are in `results.json`.
"""


def entropy(part: float) -> float:
    """The multilabel loss of scores that only know which part of the labels is 1."""
    return float(-part * np.log(part) - (1 - part) * np.log(1 - part))


def answer(results: dict[str, Any]) -> str:
    """The answer in sentences."""
    cases = {(case["head"], case["rate"]): case["ours"] for case in results["six_steps"]}
    without = cases["no ReLU", 1.0]
    zero = next(i for i, step in enumerate(cases["ReLU", 1.0]) if not step["gradient_norm"])
    maps = _best(results["pretrained"]["rows"], "pointing")
    return (
        "Because of the ReLU before the mean. After it no score can be negative, which nine "
        f"labels of ten want it to be: at a learning rate of 1, after {zero} "
        f"step{'s' if zero > 1 else ''} every score is exactly 0, the loss rests at ln 2 and the "
        "gradient is exactly 0, in PyTorch and here alike. **Leave that ReLU out.** Each channel "
        f"is still a class, the loss falls to {without[-1]['loss']:.3f} in {len(without) - 1} "
        "steps, and on real convolutions a class's map is highest on its object for "
        f"{maps['no ReLU']:.0%} of the (image, class) pairs (with the ReLU {maps['ReLU']:.0%} "
        f"at best, by chance {results['pretrained']['chance']:.0%})."
    )


def _best(rows: list[dict[str, Any]], key: str) -> dict[str, float]:
    """By head, the quantity's mean over seeds at the learning rate that is best for it."""
    found: dict[str, float] = {}
    for (head, _), cell in grid(rows, lambda row: row[key]).items():
        found[head] = float(np.nanmax([found.get(head, np.nan), cell.mean]))
    return found


def _lost(rows: list[dict[str, Any]], head: str) -> str:
    """How many runs of that head learn nothing any more: "2 of 9"."""
    cells = [cell for (name, _), cell in grid(rows, lambda row: []).items() if name == head]
    runs = sum(cell.runs for cell in cells)
    return f"{runs - sum(cell.alive for cell in cells)} of {runs}"


def _steps_table(cases: list[dict[str, Any]]) -> str:
    steps = range(len(cases[0]["ours"]))
    lines = [
        "| head, learning rate | |" + "".join(f" {i} |" for i in steps),
        "|---|---|" + "---:|" * len(steps),
    ]
    for case in cases:
        name = f"{case['head']}, {case['rate']:g}"
        for framework, label in (("ours", "flaxvgg"), ("pytorch", "PyTorch")):
            losses = " | ".join(f"{step['loss']:.5f}" for step in case[framework])
            lines.append(f"| {name} | loss, {label} | {losses} |")
        for key, label in (("zeros", "zero scores"), ("gradient_norm", "gradient norm")):
            cells = []
            for a, b in zip(case["ours"], case["pytorch"], strict=True):
                ours, theirs = _shown(key, a[key]), _shown(key, b[key])
                cells.append(ours if ours == theirs else f"{ours} ({theirs})")
            lines.append(f"| | {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(key: str, value: float) -> str:
    if key == "zeros":
        return f"{value:.0%}"
    return f"{value:.3f}" if value else "0"


def _agreement(cases: list[dict[str, Any]]) -> str:
    pairs = [(a, b) for case in cases for a, b in zip(case["ours"], case["pytorch"], strict=True)]
    loss = max(abs(a["loss"] - b["loss"]) for a, b in pairs)
    norm = max(
        abs(a["gradient_norm"] / b["gradient_norm"] - 1) for a, b in pairs if b["gradient_norm"]
    )
    same = all(a["zeros"] == b["zeros"] for a, b in pairs)
    zeros = "the zero scores are the same" if same else "the zero scores are NOT the same"
    return (
        f"The losses of the two frameworks differ by at most {loss:.0e}, the gradient norms by "
        f"{norm:.0e} of themselves, and {zeros}; where one number stands for both, it is both's."
    )


def _scratch_table(rows: list[dict[str, Any]]) -> str:
    cells = grid(rows, lambda row: [losses[-1] for losses in row["losses"]])
    rates = list(dict.fromkeys(rate for _, rate in cells))
    lines = [
        "| head | one channel a class |" + "".join(f" learning rate {r:g} |" for r in rates),
        "|---|---|" + "---|" * len(rates),
    ]
    for cure in CURES:
        shown = [_loss_and_states(cells[cure.name, rate]) for rate in rates]
        lines.append(f"| {cure.name} | {_one_channel(cure.fc)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _one_channel(fc: bool) -> str:
    return "no: the FC layer mixes them" if fc else "yes"


def _loss_and_states(cell: Cell) -> str:
    states = ", ".join(f"{n} {state}" for state, n in cell.states.items())
    if np.isnan(cell.mean):
        return states
    return f"{cell.mean:.3f} ({cell.low:.3f} to {cell.high:.3f}); {states}"


def _real_table(rows: list[dict[str, Any]]) -> str:
    loss = grid(rows, lambda row: row["last"])
    others = [grid(rows, lambda row, k=k: row[k]) for k in ("precision", "pointing", "channel")]
    lines = [
        "| head | learning rate | loss of the last steps; runs | average precision | map on the "
        "object | own channel on the object |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for (head, rate), cell in loss.items():
        shown = [_percent(found[head, rate]) for found in others]
        lines.append(f"| {head} | {rate:g} | {_loss_and_states(cell)} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _percent(cell: Cell) -> str:
    if np.isnan(cell.mean):
        return ""
    return f"{cell.mean:.0%} ({cell.low:.0%} to {cell.high:.0%})"


def _advice(results: dict[str, Any]) -> str:
    scratch, real = results["scratch"], results["pretrained"]["rows"]
    maps, own = _best(real, "pointing"), _best(real, "channel")
    floor = (1 - results["pretrained"]["positive"]) * math.log(2)

    def lost(head: str) -> str:
        return f"{_lost(scratch, head)} from random weights, {_lost(real, head)} on real ones"

    lowest = min(min(row["last"]) for row in real if row["head"] == "BatchNorm, ReLU")
    return f"""Runs that end collapsed, dead or not finite, over all learning rates, and maps on the
object at the best one:

- **No ReLU** ({lost("no ReLU")}): {maps["no ReLU"]:.0%}. One channel a class, and nothing to add.
- **Biases at the prior** as well ({lost("no ReLU, bias at the prior")}):
  {maps["no ReLU, bias at the prior"]:.0%}. The loss starts where the others first have to get.
  After a ReLU there is no such thing ({lost("ReLU, bias at the prior")}): the score that the prior
  asks for is negative, and a bias that is negative enough stops every pre-activation at once.
- **BatchNorm before the ReLU** ({lost("BatchNorm, ReLU")}): {maps["BatchNorm, ReLU"]:.0%}. On
  real convolutions it centres every channel, so that some places stay above 0. From random weights
  the images hardly differ before it, its eps of 1e-3 outweighs their variance, and it saves
  nothing. And the scores still cannot be negative: the loss ends at {lowest:.3f} at the lowest,
  above the {floor:.3f} that a ReLU leaves possible, and no label's probability is below 1/2. It
  ranks, and must not be read as a probability.
- **An FC layer** ({lost("ReLU, FC")}): {maps["ReLU, FC"]:.0%} if the channels are mixed by its
  weights; channel k itself is the map of class k no more ({own["ReLU, FC"]:.0%}).
- **Leaky ReLU** ({lost("leaky ReLU")}): {maps["leaky ReLU"]:.0%}. It never quite stops, but a score
  of -2 needs pre-activations of -200, and gradients come back a hundredth as large.
- **Shifted ReLU**, max(x, -1) ({lost("shifted ReLU")}): {maps["shifted ReLU"]:.0%}. The same
  collapse one lower: all scores -1, and the gradient exactly 0.
- **Pretrained convolutions** are no cure for the ReLU ({lost("ReLU")}): {maps["ReLU"]:.0%}."""
