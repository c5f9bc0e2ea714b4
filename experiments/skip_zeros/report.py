"""The tables and sentences of the study, as README.md."""

from typing import Any

import numpy as np

_NAMES = {
    "skip": "flaxvgg, skipping",
    "dense": "XLA's dense product",
    "torch": "PyTorch's Linear",
}


def readme(results: dict[str, Any]) -> str:
    """Everything there is to say, in Markdown."""
    photos = results["photos"]
    nonzero = [photo["nonzero"] for photo in photos.values()]
    whole, rows, conv = results["whole"], results["rows_of_a_batch"], results["convolutions"]
    saved = 1 - whole["skipping"]["ms"] / whole["dense"]["ms"]
    return f"""# What can be saved by skipping zeros

Of the 25088 pool5 values of each of the eight photos, {min(nonzero):.0%} to {max(nonzero):.0%} are
not zero. Each meets one row of fc6's kernel. At batch 1 fc6 does little but read these 411 MB, so
on a CPU flaxvgg reads only the rows that meet a non-zero (`flaxvgg/ops/native/linear.c`).
Leaving out products with zero is exact for every finite kernel: results differ by the order of
rounding.

![fc6 by the fraction of values that are not zero, and the forward pass](skip_zeros.png)

| fc6 of one photo | ms | times skipping (quartiles) | error |
|---|---:|---:|---:|
{_fc6_rows(photos)}

Each was timed {results["repeats"]} times a photo, in turns, on {results["cores"]} cores; these are
the medians over the photos. The error is relative to float64. fc6 is one layer of sixteen:

| one photo to its logits | ms |
|---|---:|
{_whole_rows(whole)}

- **Of the whole forward pass** that saves {_saved(saved)}; convolutions take the rest.
- **Up to four images.** {_rows(rows)} And a row that is read once serves
  the whole batch, so that with more images reading no longer bounds the dense product.
- **Not in the convolutions.** {conv["meet_a_zero"]:.0%} of their products meet a zero, but zeros
  lie scattered, and convolutions are fast by long regular loops. Channels that are zero everywhere
  in an image could be left out in one piece: {conv["meet_a_silent_channel"]:.1%} of the products.
- **Not on a GPU**, where a loop over rows would lose.

On this machine skipping is faster than the dense product up to
{_break_even(results["sweep"]):.0%} non-zeros. The convolutions are those of
{results["weights"]}; fc6 is random, as torchvision initialises it, which changes no time.
Made by `python -m experiments.skip_zeros`; all numbers are in results.json.
"""


def _fc6_rows(photos: dict[str, Any]) -> str:
    lines = []
    for name, label in _NAMES.items():
        times = [photo["time"][name] for photo in photos.values()]
        ratios = np.median([time["ratio"] for time in times], axis=0)
        ratio = "1" if name == "skip" else f"{ratios[1]:.1f} ({ratios[0]:.1f} to {ratios[2]:.1f})"
        milliseconds = np.median([time["ms"] for time in times])
        error = np.median([photo["error"][name] for photo in photos.values()])
        lines.append(f"| {label} | {milliseconds:.1f} | {ratio} | {error:.1e} |")
    return "\n".join(lines)


def _whole_rows(whole: dict[str, Any]) -> str:
    return "\n".join(f"| {name} | {found['ms']:.0f} |" for name, found in whole.items())


def _saved(fraction: float) -> str:
    return f"{fraction:.0%}" if fraction > 0 else "nothing measurable"


def _rows(rows: dict[str, float]) -> str:
    listed = ", ".join(f"{size}: {fraction:.0%}" for size, fraction in rows.items())
    return f"Rows that meet a non-zero in some image, by batch size: {listed}."


def _break_even(sweep: list[dict[str, Any]]) -> float:
    """The fraction of non-zeros at which skipping takes as long as the dense product."""
    ratio = [point["time"]["dense"]["ratio"][1] for point in sweep]
    return float(np.interp(-1, -np.array(ratio), [point["nonzero"] for point in sweep]))
