"""What the commands share: a data set into a store, with a progress bar and what came of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flaxvgg.console import console
from flaxvgg.streaming.run import Job, Streamed, stream
from flaxvgg.streaming.source import Source
from flaxvgg.streaming.store import BROKEN, DONE, Store
from flaxvgg.tables import facts


@dataclasses.dataclass(frozen=True)
class Setting:
    """How a store is made: the images' size (None: their own), and images at once on a device."""

    out: Path
    size: tuple[int, int] | None
    batch: int | None


def stream_shown(job: Job, source: Source, setting: Setting, stop: Callable[[], bool]) -> Streamed:
    """`stream`, with a bar that says how many images a second are done, and how many are broken."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    rate = TextColumn("{task.fields[told]}")
    with Progress(
        *columns, rate, TimeRemainingColumn(), console=console, transient=True
    ) as progress:
        task = progress.add_task(job.name, total=len(source) // jax.process_count(), told="")
        counts: list[tuple[int, int]] = []

        def advance(done: int, broken: int) -> None:
            counts.append((done, broken))
            if len(counts) == 1 and done:  # by an earlier run
                console.print(f"going on: {done} of {len(source)} images are done", highlight=False)
                rest = (len(source) - done) // jax.process_count()
                progress.update(task, total=rest)
                return
            progress.advance(task, done)
            speed, all_broken = progress.tasks[task].speed, sum(x for _, x in counts)
            told = [f"{speed:.1f} images/s"] if speed else []
            told += [f"{all_broken} broken"] if all_broken else []
            progress.update(task, told="  ".join(told))

        streamed = stream(
            job,
            source,
            setting.out,
            size=setting.size,
            batch=setting.batch,
            stop=stop,
            advance=advance,
        )
    console.print(facts(store_facts(streamed.store) | {"now": _now(streamed)}), highlight=False)
    return streamed


def store_facts(store: Store) -> dict[str, str]:
    """What a store holds, for `flaxvgg.tables.facts`."""
    told, status = store.settings, store.status
    done, broken = int((status == DONE).sum()), int((status == BROKEN).sum())
    size = "x".join(map(str, told["size"])) if told["size"] else "their own sizes"
    arrays = [f"{name} {shape}" for name, shape in store.arrays().items()]
    return {
        "store": str(store.path),
        "images": f"{done} done, {broken} broken, {store.images - done - broken} left, at {size}",
        "job": f"{told['job']} of {told['config']['arch']}, {told['weights']['source']}",
        "arrays": "\n".join(arrays),
    }


def _now(streamed: Streamed) -> str:
    if not streamed.now:
        return ""
    speed = streamed.now / streamed.seconds
    return f"{streamed.now} images in {streamed.seconds:.1f} s: {speed:.1f} a second"
