"""What the commands share: a data set into a store, with a progress bar and what came of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.text import Text

from flaxvgg.commands.console import Told, console, errors, say_left_out, show, stoppable
from flaxvgg.commands.options import load_model, parse_size
from flaxvgg.commands.processes import join_processes
from flaxvgg.commands.tables import (
    distance_facts,
    distances_table,
    facts,
    localisation_table,
    sparsity_table,
)
from flaxvgg.network.model import VGG
from flaxvgg.sparsity.summary import explanation
from flaxvgg.streaming.jobs import (
    read_distances,
    read_localisation,
    read_sparsity,
    zeros_by_photo,
)
from flaxvgg.streaming.run import Job, Streamed, stream
from flaxvgg.streaming.source import Source, find_source
from flaxvgg.streaming.store import BROKEN, DONE, Store

JobOf = Callable[[VGG, Source, tuple[int, int] | None], Job]
_SHOWN = 10  # broken images that are named


@dataclasses.dataclass(frozen=True)
class Setting:
    """Where a store is, how many images a device takes at once, and which processes there are."""

    out: Path
    batch: int | None
    distributed: bool
    decoders: int | None


def stream_shown(
    job: Job,
    source: Source,
    size: tuple[int, int] | None,
    setting: Setting,
    stop: Callable[[], bool],
) -> Streamed:
    """`stream`, with a bar that says how many images a second are done, and how many are broken."""
    columns = Told("{task.description}"), BarColumn(), MofNCompleteColumn()
    rate = Told("{task.fields[told]}")
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
            size=size,
            batch=setting.batch,
            decoders=setting.decoders or 0,
            stop=stop,
            advance=advance,
            note=lambda line: errors.print(line, style="yellow"),
        )
    console.print(facts(store_facts(streamed.store) | {"now": _now(streamed)}), highlight=False)
    return streamed


def show_zeros(store: Store) -> dict[str, Any]:
    """What `flaxvgg sparsity` shows, of a store; gives it as a JSON value."""
    report = read_sparsity(store)
    caption = f"{report.arch}, {report.source}: {report.images} photos"
    console.print(sparsity_table(report, zeros_by_photo(store), caption))
    for sentence in explanation(report):
        console.print(sentence, highlight=False)
    return {"report": report.to_json()}


def show_localisation(store: Store) -> dict[str, Any]:
    """How well the maps find the objects; gives it as a JSON value."""
    found = read_localisation(store)
    console.print(localisation_table(found))
    return {"localisation": {method: dict(values) for method, values in found.items()}}


def show_distances(store: Store) -> dict[str, Any]:
    """How far apart the pairs are, all together; gives it as a JSON value."""
    found = read_distances(store)
    if not found:
        return {"pairs": 0, "distances": {}}
    console.print(distances_table(found))
    return {"pairs": len(next(iter(found.values()))), "distances": distance_facts(found)}


def end(streamed: Streamed, as_json: bool, found: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Say which images are broken, and end with the code that tells how it went.

    As JSON it is what the store holds, and what was `found` in it.
    """
    if as_json:
        value = store_facts(streamed.store) | {"problems": dict(streamed.problems), **found}
        show(Text, value, as_json=True)
    broken = [f"{name}: {problem}" for name, problem in streamed.problems.items()]
    say_left_out(broken[:_SHOWN])
    if len(broken) > _SHOWN:
        errors.print(f"and {len(broken) - _SHOWN} more: `problem` in the store has all")
    if broken:
        errors.print(
            "run it again to try those again that could not be read, or have been replaced by then"
        )
    if streamed.left:
        errors.print(f"stopped: {streamed.left} photos are left: rerun the command to resume")
        raise typer.Exit(130)
    if broken:
        raise typer.Exit(1)


def store_facts(store: Store) -> dict[str, str | list[str]]:
    """What a store holds, for `flaxvgg.commands.tables.facts`."""
    told, status = store.settings, store.status
    done, broken = int((status == DONE).sum()), int((status == BROKEN).sum())
    size = "x".join(map(str, told["size"])) if told["size"] else "their own sizes"
    left = store.left()
    saved = store.images - done - broken - left
    told_left = f"{left} left" + (f", {saved} saved until their unit is whole" if saved else "")
    arrays = [f"{name} {shape}" for name, shape in store.arrays().items()]
    return {
        "store": str(store.path),
        "images": f"{done} done, {broken} broken, {told_left}, at {size}",
        "job": f"{told['job']} of {told['config']['arch']}, {told['weights']['source']}",
        "arrays": arrays,
    }


def _now(streamed: Streamed) -> str:
    if not streamed.now:
        return ""
    speed = streamed.now / streamed.seconds
    return f"{streamed.now} images in {streamed.seconds:.1f} s: {speed:.1f} a second"


def into_store(
    job: JobOf,
    given: Sequence[Any],
    weights: str,
    arch: str,
    size: str,
    setting: Setting,
    find: Callable[[Any], Source] = find_source,
) -> Streamed:
    """Do a job for all photos, or whatever `find` makes of what is given, into a store."""
    if setting.distributed:
        join_processes()
    hw = None if size == "native" else parse_size(size)
    source = find(given)
    model = load_model(weights, arch)
    with stoppable() as stop:
        return stream_shown(job(model, source, hw), source, hw, setting, stop.is_set)
