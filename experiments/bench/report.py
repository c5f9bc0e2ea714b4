"""What was measured, as one page."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.bench import ratios
from experiments.bench.layers import PRODUCT, TRIAD
from experiments.bench.ratios import Results, Row, Spread
from experiments.bench.tools import EAGER, ORT, PREPARED, STACK
from experiments.bench_cam.report import costs_table
from experiments.bench_training.__main__ import table as training_table

_TITLES = {
    "stack": "The convolution stack",
    "forward": "The whole network",
    "activations": "The outputs of all layers",
    "sparsity": "Counts of zeros",
    "checkpoint": "Checkpoints",
    "start": "Start-up",
    "overhead": "Overhead of a call",
}


def readme(results: Results, pictures: Sequence[str]) -> str:
    """The page: the aims, a table of all tools, the sections, what was left out, the columns."""
    devices, load = results["devices"], results["load"]
    parts = [
        _HEAD.format(
            command=results["command"],
            weights=results["weights"],
            rounds=results["plan"]["rounds"],
            seconds=results["plan"]["seconds"],
        ),
        _aims(results),
        _speeds(results),
        _picture("tradeoff.png", "Error against speed, one point a tool", pictures),
        _picture("speed.png", "Speed of every tool in PyTorch's", pictures),
    ]
    for section, title in _TITLES.items():
        rows = ratios.rows_of(results, section)
        if rows:
            parts += [f"## {title}", _NOTES.get(section, ""), details(rows)]
    parts += [
        *_section(results, "memory", "Memory", _memory),
        *_section(results, "cam", "Class activation maps", _cam),
        *_section(results, "training", "A step of training", _training),
        *_section(results, "layers", "Every convolution by itself", _layers),
        _picture("layers.png", "Every convolution beside what the machine can do", pictures),
        "## Left out",
        _left_out(results),
        _COLUMNS,
        f"Load of the machine before and after: {load[0]:.1f} and {load[-1]:.1f}. Sections took "
        + ", ".join(f"{name} {x['seconds']:.0f} s" for name, x in results["sections"].items())
        + f". {', '.join(f'{name} {value}' for name, value in devices.items())}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def details(rows: Iterable[Row]) -> str:
    """Each tool of each case: seconds, speeds by round, the first call, and the error."""
    rows = list(rows)
    references = dict.fromkeys(row["reference"] for row in rows)
    with_error = any("error" in row for row in rows)
    with_ort = any(row["tool"] == ORT for row in rows)
    with_first = any(row["first_call_s"] is not None for row in rows)
    lines = []
    for case, tools in ratios.by_case(rows).items():
        for tool, row in tools.items():
            peer = tools[row["reference"]]
            cells = [case, tool, _time(ratios.seconds(row).median)]
            cells.append("1" if row is peer else _spread(ratios.speed(row, peer)))
            if with_ort:
                has = ORT in tools and tool != ORT
                cells.append(_spread(ratios.speed(row, tools[ORT])) if has else "")
            if with_first:
                cells.append(_time(row["first_call_s"]))
            if with_error:
                cells.append(f"{row['error']:.1e}" if "error" in row else "")
            lines.append(cells)
    head = ["case", "tool", "time", f"speed in that of {' or '.join(references)}"]
    head += [f"in that of {ORT}"] * with_ort + ["first call"] * with_first
    return _table([*head, *["error"] * with_error], lines, left=2)


def _aims(results: Results) -> str:
    rows = [[x.what, x.bound, x.measured, "yes" if x.holds else "**no**"] for x in _all(results)]
    return _table(["aim", "bound", "measured", "holds"], rows) if rows else ""


def _all(results: Results) -> list[ratios.Aim]:
    return list(ratios.aims(results))


def _speeds(results: Results) -> str:
    rows = [*ratios.rows_of(results, "stack"), *ratios.rows_of(results, "forward")]
    tools = [tool for tool in STACK if any(row["tool"] == tool for row in rows)]
    lines = []
    for case, found in ratios.by_case(rows).items():
        speeds = {tool: ratios.speed(row, found[EAGER]).median for tool, row in found.items()}
        best = max(speeds.values())
        cells = [_best(speeds[tool], best) if tool in speeds else "" for tool in tools]
        lines.append([case, *cells])
    if not lines:
        return ""
    text = f"Times as fast as {EAGER}, median of the rounds; the fastest in bold."
    return f"{text}\n\n{_table(['', *tools], lines)}"


def _best(value: float, best: float) -> str:
    return f"**{value:.2f}**" if value == best else f"{value:.2f}"


def _section(results: Results, name: str, title: str, text: Any) -> list[str]:
    rows = ratios.rows_of(results, name)
    return [f"## {title}", text(rows)] if rows else []


def _memory(rows: Sequence[Row]) -> str:
    lines = [[r["case"], r["tool"], f"{r['beyond_gb']:.2f}", r["how"]] for r in rows]
    return _table(["case", "tool", "GB at most, beyond what was held", "how"], lines, left=2)


def _cam(rows: Sequence[Row]) -> str:
    seconds: dict[str, list[float]] = {}
    for row in rows:
        seconds.setdefault(row["tool"], []).append(row["forward_seconds"])
    units = ", ".join(f"{tool} {_time(min(found))}" for tool, found in seconds.items())
    return (
        "Forward passes of the same network in the same tool: median, and least to most. One pass "
        f"takes: {units}.\n\n{costs_table({'results': rows})}\n\n"
        "\\* Some of the channels were run, the rest reckoned: see `experiments/bench_cam`."
    )


def _training(rows: Sequence[Row]) -> str:
    return (
        'A GAP head, plain SGD, precision "default": see `experiments/bench_training`.\n\n'
        + training_table({"batch": rows[0]["batch"], "results": list(rows)})
    )


def _layers(rows: Sequence[Row]) -> str:
    cases = ratios.by_case(rows)
    lines = []
    for case, tools in cases.items():
        if case in (PRODUCT, TRIAD):
            continue
        some = next(iter(tools.values()))
        cells = [case, f"{some['flops'] / 1e9:.2f}", f"{some['flops'] / some['bytes']:.0f}"]
        for row in tools.values():
            cells.append(f"{row['flops'] / ratios.seconds(row).median / 1e9:.0f}")
        lines.append(cells)
    names = list(dict.fromkeys(row["tool"] for row in rows if "layer" in row))
    product, bandwidth = ceilings(rows)
    return (
        f"GFLOP/s, counted as a direct convolution's. The most, measured here: {product:.0f} "
        f"GFLOP/s in a matrix product, and {bandwidth:.0f} GB/s in `a = b + s c` on vectors. "
        "Winograd's algorithm takes 3 or 4 products where a direct sum has 9: points may lie "
        "above the roof.\n\n" + _table(["", "GFLOP", "FLOP a byte", *names], lines) + _left(rows)
    )


def _left(rows: Sequence[Row]) -> str:
    """Of the prepared convolutions, what their products and their maps alone would take."""
    product, bandwidth = ceilings(rows)
    found = [row for row in rows if row["tool"] == PREPARED and "products" in row]
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in found):
        totals = [0.0, 0.0, 0.0]
        for row in (row for row in found if row["batch"] == batch):
            times = (
                1e3 * ratios.seconds(row).median,
                row["flops"] * row["products"] / 9 / product / 1e6,
                row["bytes"] / bandwidth / 1e6,
            )
            lines.append([row["case"], f"{row['products']:.0f}", *_shares(*times)])
            totals = [sum + row["layers"] * x for sum, x in zip(totals, times, strict=True)]
        lines.append([f"**all 13, batch {batch}**", "", *_shares(*totals)])
    head = ["", "products of 9", "ms", "products alone", "maps alone", "share of both"]
    return (
        "\n\nWhat the roofline leaves: milliseconds of the prepared convolutions, those that their "
        "products would take at the rate of the matrix product, and those in which their maps are "
        "read and written at the rate of the vectors. What is missing from the share is the "
        "transforms, and what the caches do not hold.\n\n" + _table(head, lines)
        if lines
        else ""
    )


def _shares(time: float, products: float, maps: float) -> list[str]:
    share = (products + maps) / time
    return [f"{time:.2f}", f"{products:.2f}", f"{maps:.2f}", f"{100 * share:.0f} %"]


def ceilings(rows: Iterable[Row]) -> tuple[float, float]:
    """GFLOP/s of the fastest matrix product, and GB/s of the fastest triad."""
    cases = ratios.by_case(rows)
    products = [x["flops"] / ratios.seconds(x).least / 1e9 for x in cases[PRODUCT].values()]
    triad = cases[TRIAD][EAGER]
    return max(products), triad["bytes"] / ratios.seconds(triad).least / 1e9


def _left_out(results: Results) -> str:
    rows = [[entry["tool"], entry["case"], entry["reason"]] for entry in results["left_out"]]
    return _table(["what", "where", "why"], rows, left=3) if rows else "Nothing."


def _picture(name: str, what: str, pictures: Sequence[str]) -> str:
    return f"![{what}]({name})" if name in pictures else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    rule = [*["---"] * left, *["---:"] * (len(head) - left)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _spread(found: Spread) -> str:
    return " to ".join([f"{found.median:.2f} ({found.least:.2f}", f"{found.most:.2f})"])


def _time(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} s" if value >= 0.9995 else f"{1e3 * value:.3g} ms"


_HEAD = """\
# Speed, beside every tool that does the same

```sh
{command}          # on a machine with nothing else to do
```

One process. A round runs every tool of a case, one after the other, and the next round begins with
another tool; speeds are ratios within a round, given as the median and the least to the most of the
rounds. There are up to {rounds} of them, and fewer, but 3, of a case that takes longer than
{seconds:.0f} s. First calls, with compilation, are kept apart, and so is memory. All tools have the
same weights ({weights}) and images (photos, where errors are given), in memory and in the layout
that they want, and as many threads as there are cores. The convolution stack is run once more in a
process that may use one core.

To see only how the convolutions compare (about ten minutes on two cores), or only on one core:

```sh
python -m experiments.bench --sections stack
python -m experiments.bench --sections stack --threads 1
```"""
_NOTES: Mapping[str, str] = {
    "stack": "To pool5. On one thread the process may use one core, and every tool is told so.",
    "forward": "To the logits. ONNX has no adaptive pooling: where pool5 is not 7x7, ONNX Runtime "
    "gets two small matrix products instead, which are the same.",
    "activations": "All layers of the network in one call; PyTorch keeps them by a hook on every "
    "module, with ReLUs that are not in place.",
    "sparsity": "`measure_sparsity`: zeros, negatives, sums, squares and largest values of every "
    "ReLU and max pooling by channel. PyTorch counts the same between its modules.",
    "checkpoint": "The whole network; the disk's pages are in memory, and nothing is waited for "
    "until it is on the disk. PyTorch loads with `torch.load` and `load_state_dict`. `convert` is "
    "`python -m convert` without verification and without writing.",
    "start": "Fresh interpreters that import this, from their start to their end.",
    "overhead": "A jitted function that is handed the model and an image of 32x32 (every parameter "
    "is an argument that is kept), and gives back one number of the image: all that a call costs "
    "in Python and in JAX's dispatch, until its result is there, and nothing to compute. Beside it "
    "the same parameters as a list, and no parameters. At the end the network itself at that size.",
}
_COLUMNS = """\
## What the columns are

- **flaxvgg** is the model as it comes, precision "highest"; **flaxvgg "default"** has the same
  convolutions on a CPU, and is TF32 on a GPU. Both under `jax.jit`, with the model as an argument.
- **torch eager** is torchvision's network in inference mode, in float32 (no TF32); **channels
  last** the same with weights and images in that layout; **torch.compile** is inductor's program
  for this one shape, of the eager network.
- **ONNX Runtime** runs what `torch.onnx.export` makes of it, with images bound in memory; **Keras
  on JAX** is `keras.applications` with the same weights, by `predict_on_batch`.
- **flaxvgg prepared** is `flaxvgg.prepare` of the model for this size: its kernels are transformed
  once, outside what is timed.
- **OpenVINO**, **ncnn** and **MNN** are asked for float32 (precision hint f32; fp16 and bf16 off;
  precision "high"), and read the same network from ONNX, or ncnn from PyTorch's trace by pnnx.
- **time** is the median of the rounds, of one call that returns when its result is there.
- **speed** is how many times as fast as the tool named, in the same round: median (least to most).
- **first call** has compilation in it, where there is any; compilers' caches on disk are off.
- **error** is the size of the difference to PyTorch in float64, relative to the size of the result
  (root mean squares).
- **FLOP a byte** is arithmetic over the least traffic: maps and weights read once, results written
  once. Faster algorithms need fewer operations than are counted here."""
