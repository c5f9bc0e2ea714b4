"""What was found, as a page in Markdown."""

import statistics
from collections.abc import Mapping
from typing import Any

from experiments.from_pytorch.study import DLPACK, GAP, LAST, MEMORY, PLAIN, TORCH

Results = Mapping[str, Any]
SHORT = {
    DLPACK: "uint8\nflaxvgg",
    LAST: "float, channels last\nflaxvgg",
    PLAIN: "float, contiguous\nflaxvgg",
    TORCH: "float, contiguous\nPyTorch",
    MEMORY: "uint8 in memory,\nno files: flaxvgg",
}


def rates(results: Results) -> dict[str, tuple[float, float, float]]:
    """Images a second of every way: median, least and most of the rounds."""
    timed = results["effort"]["timed"]
    found = {}
    for name, rounds in results["speed"].items():
        each = [timed / seconds for seconds in rounds]
        found[name] = statistics.median(each), min(each), max(each)
    return found


def ratios(results: Results, name: str, other: str) -> tuple[float, float, float]:
    """How many times as fast one way is as another: median, least and most of the rounds."""
    pairs = zip(results["speed"][name], results["speed"][other], strict=True)
    each = [theirs / own for own, theirs in pairs]
    return statistics.median(each), min(each), max(each)


_PAGE = """# Can flaxvgg take a network's place in PyTorch's pipeline, without copies?

```sh
python -m experiments.from_pytorch        # needs the environment that `make test` makes
```

Yes, in two lines, so that flaxvgg has no function for it:

```python
for pixels, labels in loader:                        # torch's DataLoader, uint8 (N, H, W, 3)
    images = flaxvgg.normalise(jnp.from_dlpack(pixels, copy=False), model.preprocessing)
    features = torch.from_dlpack(model.gap(images))  # a tensor, for PyTorch's next layer
```

Of {batches} batches that other processes made, {pixels} were at one address as a tensor and as a
JAX array, and the features of {features} at one address as a JAX array and as a tensor.
`copy=False` makes anything that would take a copy an error. Of {asked} answers that classifiers
gave on held-out images, {differ}.

![The path of a batch, scores of both classifiers, images a second](from_pytorch.png)

| classifier | features | accuracy | images right | mean average precision | answers that differ |
| --- | --- | ---: | ---: | ---: | ---: |
{rows}

Each cell is on flaxvgg's features / on PyTorch's. GAP vectors differ by {rounding} of their size,
which is rounding. The classifiers are logistic regressions for each of {classes} classes:
scikit-learn's, and a linear layer that PyTorch trains by autograd on the shared memory. They saw
{training} scenes and were asked, of {tests} others that share no pixel with them, which things are
in them. Accuracy is that of each yes and no, of which "no" to everything would have {all_no}; an
image is right where all are. The scenes are those of [gap_finetune](../gap_finetune/README.md),
which says how far such figures carry. The convolutions are those of {weights}.

## Which memory can be shared

| handed to `jnp.from_dlpack(..., copy=False)` | |
| --- | --- |
{layouts}

- **Let the loader decode to uint8, and normalise here.** `flaxvgg.normalise` rounds as
  torchvision's `ToTensor` and `Normalize` do: of a batch, {torchvisions} values differ in any bit,
  and {kerass} from Keras's recipe in PyTorch. A batch is a quarter of the size, too.
- **Tensors that torchvision has normalised** are (N, 3, H, W). Collated to channels last
  (`batches.channels_last`), their `.permute(0, 2, 3, 1)` is what flaxvgg takes. Collated as by
  default they are handed over without a copy, too, but in another order of axes: every program is
  compiled anew for it, and reorders them itself. That copy takes {reorder} ms for {batch} images,
  where handing over takes {hand_over} ms and the forward pass {forward} ms. The features are the
  same bits.
- A crop is no compact memory: call `.contiguous()`. Memory that begins off a 64-byte boundary, as
  part of a batch may, is refused, and copied without `copy=False`. A tensor that requires gradients
  has to be detached: autograd ends at the border, on both sides.
- **Start the workers with `multiprocessing_context="forkserver"`.** By default Linux forks them
  from a process in which JAX has threads, and such a fork may hang.

## What can go wrong

| | |
| --- | --- |
{hazards}

A JAX array is thought never to change, and JAX computes while Python goes on. So write into shared
memory on neither side: no `add_`, no `out=`, no ReLU in place on features that JAX still needs
(`.clone()` first), and no reuse of a batch's buffer before `jax.block_until_ready`. A DataLoader
makes new memory for every batch, which lives as long as anybody holds it. Donation is safe: memory
that is shared is not given away.

## Speed

| from JPEG files to features, {size} px, {workers} workers | images a second | times PyTorch |
| --- | ---: | ---: |
{speed}

Medians of {measured} rounds of {timed} images, in batches of {batch} and in turns, with the least
and the most; on {cores} cores ({processor}), which the loader's processes share with the network.
Against the same batches already in memory the loader keeps flaxvgg at {busy} % of its speed.

Only a CPU was tried. On a GPU a batch of the loader is in the host's memory, and `jax.device_put`
copies it to the card, as `.to("cuda")` does; tensors that are there already are handed over by the
same two lines. All numbers are in results.json.
"""


def readme(results: Results) -> str:
    """The page of the experiment."""
    answers, effort, copying = results["answers"], results["effort"], results["copying"]
    rows, made = answers["rows"], results["made"]
    return _PAGE.format(
        **answers["shared"],
        **effort,
        weights=results["weights"],
        classes=len(results["classes"]),
        all_no=f"{1 - 2 / len(results['classes']):.3f}",  # a held-out scene has two things
        asked=sum(row["answers"] for row in rows),
        differ=_count(sum(row["differ"] for row in rows)),
        rows=_rows(rows),
        rounding=f"{answers['features'][GAP]:.0e}",
        layouts=_cases(results["layouts"]),
        hazards=_cases(results["hazards"]),
        torchvisions=results["rounded_differently"]["torchvision"],
        kerass=results["rounded_differently"]["keras"],
        reorder=f"{copying['reorder']:.1f}",
        hand_over=f"{copying['hand_over']:.2f}",
        forward=f"{1e3 * effort['batch'] / rates(results)[MEMORY][0]:.0f}",
        speed=_speed(results),
        measured=len(results["speed"][DLPACK]),
        cores=made["cores"],
        processor=made["processor"],
        busy=f"{100 * ratios(results, DLPACK, MEMORY)[0]:.0f}",
    )


def _count(differ: int) -> str:
    """The end of a sentence."""
    which = "none differs" if not differ else "one differs" if differ == 1 else f"{differ} differ"
    return f"{which} between flaxvgg's features and PyTorch's"


def _rows(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        cells = [
            " / ".join(f"{row[side][name]:.3f}" for side in ("flaxvgg", "PyTorch"))
            for name in ("accuracy", "images_right", "mean_average_precision")
        ]
        cells = [row["tool"], row["features"], *cells, f"{row['differ']} of {row['answers']}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cases(cases: list[dict[str, str]]) -> str:
    return "\n".join(f"| {case['what']} | {case['found']} |" for case in cases)


def _speed(results: Results) -> str:
    lines = []
    for name, (middle, least, most) in rates(results).items():
        ratio, lowest, highest = ratios(results, name, TORCH)
        times = "1" if name == TORCH else f"{ratio:.2f} ({lowest:.2f} to {highest:.2f})"
        lines.append(f"| {name} | {middle:.1f} ({least:.1f} to {most:.1f}) | {times} |")
    return "\n".join(lines)
