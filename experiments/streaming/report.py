"""What was measured, as a table and as the experiment's page."""

from typing import Any


def table(found: dict[str, Any]) -> str:
    """Speed, memory, and bytes on the disk."""
    speed, (few, many) = found["speed"], found["memory"]
    size = f"{found['size']}x{found['size']}"
    memory, streamed = (max(speed[name]) for name in ("memory", "streamed"))
    lines = [
        f"| {found['images']:,} JPEG files, vgg16 at {size}, pool5 and GAP into a store | |",
        "| --- | ---: |",
        f"| images a second, streamed | {streamed:.2f} |",
        f"| images a second, the same batches from memory | {memory:.2f} |",
        f"| streamed / from memory, by round | {_several(speed['ratios'])} |",
        f"| decoded and fitted by one thread, images a second | {speed['decoded_by_one_thread']} |",
        f"| peak memory, {few['images']:,} images | {few['peak_mb']:,.0f} MB |",
        f"| peak memory, {many['images']:,} images | {many['peak_mb']:,.0f} MB |",
        f"| the second / the first | {many['peak_mb'] / few['peak_mb']:.3f} |",
    ]
    lines += [
        f"| bytes an image in the store: {name} | {count:,} |"
        for name, count in found["disk"].items()
    ]
    return "\n".join(lines)


def sources_table(found: dict[str, Any]) -> str:
    """How fast each kind of source is, beside the same photos in a folder."""
    lines = [
        "| the same photos in | images a second | beside the folder | in processor time |",
        "| --- | ---: | ---: | ---: |",
    ]
    for kind, of in found["sources"]["kinds"].items():
        ratios = (_span(of[name]) for name in ("ratio", "processor_ratio"))
        lines.append(f"| {kind} | {of['images_a_second']} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def _span(values: list[float]) -> str:
    median, least, most = values
    return f"{median:.2f} ({least:.2f} to {most:.2f})"


def _several(values: list[float]) -> str:
    return ", ".join(f"{x:.3f}" for x in values)


def readme(found: dict[str, Any]) -> str:
    """The page."""
    return f"""# Does streaming keep the model busy?

```sh
make demo                           # for the real convolutions, build/vgg16-real
python -m experiments.streaming     # twenty minutes, on a machine with nothing else to do
```

Random parts of the eight photos in scikit-image, as JPEG files, through `flaxvgg.streaming.stream`:
decoded by threads while the model computes, written by another. Beside it, in turns, the same
batches of 8 that are in memory already, through the same function under `jax.jit`. Peak memory is
that of a process of its own.

{table(found)}

The bytes are those after compression (Blosc with Zstandard): most of pool5 is zeros. Load of the
machine before and after: {found["load"][0]} and {found["load"][1]}.

## Archives and Parquet beside files

{found["sources"]["images"]} of the photos as files, as four tar shards with .cls files, as four
Parquet shards as the Hugging Face hub has them (at most 100 rows in a group), as one Parquet file
with all rows in one group, and as a zip file. The job is the mean of each channel, so that hardly
anything but reading is measured. The kinds take turns, in {found["sources"]["rounds"]} rounds;
medians, with the least and the most. Processor time counts the work of all threads, and not what
else the machine did. This part could use {found["sources"]["cores"]} of the cores; the load was
{found["sources"]["load"][0]} before and {found["sources"]["load"][1]} after.

{sources_table(found)}
"""
