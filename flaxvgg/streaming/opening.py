"""The store that a run writes into: made, or gone on with where it holds the same images.

A store notes the content of every image that it has rows of. Before a run goes on, these images
are looked at again: rows of others would stay beside those that are still to come.
"""

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from flaxvgg.files.addresses import named
from flaxvgg.files.foreign import AnyPath, shown
from flaxvgg.files.locking import LockedError
from flaxvgg.files.records import difference
from flaxvgg.files.remote import RemoteError
from flaxvgg.files.threads import in_threads
from flaxvgg.images.fingerprint import UNKNOWN, Known, what_differs
from flaxvgg.network.processes import total
from flaxvgg.streaming.places import place_of
from flaxvgg.streaming.source import Source
from flaxvgg.streaming.store import BROKEN, DONE, Store, StoreError

_NAMED = 3
_SAME_NAMES = "the same names, with other labels or in another order"
_MANY = 100_000  # images after which comparing takes long enough to be said

Note = Callable[[str], None]


def image_settings(source: Source, *, with_boxes: bool) -> dict[str, Any]:
    """What stands for all images of a source in a store's settings: names, labels and boxes."""
    names, boxes = hashlib.sha256(), hashlib.sha256()
    for name in source.names:
        names.update(name.encode("utf-8", "surrogateescape") + b"\0")
    for array in () if source.labels is None else (source.labels,):
        names.update(np.ascontiguousarray(array).view(np.uint8).data)
    given = source.boxes if with_boxes else None
    for found in given or ():
        boxes.update(repr([(k, list(map(tuple, found[k]))) for k in sorted(found)]).encode())
    return {
        "count": len(source),
        "sha256": names.hexdigest(),
        "boxes": None if given is None else boxes.hexdigest(),
    }


def open_store(
    path: AnyPath,
    source: Source,
    settings: Mapping[str, Any],
    unit: int,
    note: Note,
    held: contextlib.ExitStack,
    class_names: Sequence[str] = (),
) -> Store:
    """The store, made by the first process where there is none; locked until `held` is closed.

    Raises StoreError and LockedError, in all processes alike.
    """
    place = place_of(path)
    refused: StoreError | LockedError | RemoteError | None = None
    if jax.process_index() == 0:
        try:
            if place.problem():
                raise StoreError(place.problem())
            is_locked = held.enter_context(place.lock())
            if place.exists():
                Store(path).sweep(held=is_locked)
            else:
                Store.create(path, source, settings, unit, class_names=class_names, held=is_locked)
        except (StoreError, LockedError, RemoteError) as error:
            refused = error
    if total(refused is not None):
        other = f"{named(path)}: another process could not open it, and says why"
        raise refused or StoreError(other)
    store = Store(path)
    _check_settings(store, source, settings, note)
    return store


def _check_settings(store: Store, source: Source, settings: Mapping[str, Any], note: Note) -> None:
    stored = store.settings
    of_old = "boxes" not in stored["images"]
    images = {name: settings["images"][name] for name in stored["images"] if name != "boxes"}
    boxes = stored["images"].get("boxes", settings["images"]["boxes"])
    told = []
    if images != {name: stored["images"][name] for name in images}:
        told.append(what_differs(*_known(store, source)) or _SAME_NAMES)
    elif boxes != settings["images"]["boxes"]:
        told.append("their boxes")
    if stored["classes"] != settings["classes"]:
        names = [", ".join(x) or "none" for x in (stored["classes"], settings["classes"])]
        told.append(f"the classes were {names[0]}, and are {names[1]}")
    cure = "choose another store, or delete this one"
    if told:
        raise StoreError(f"{store.path} is of other images: {'; '.join(told)}; {cure}")
    others = {name: value for name, value in settings.items() if name != "images"}
    if {name: value for name, value in stored.items() if name != "images"} != others:
        raise StoreError(f"{store.path} is of another run: {difference(stored, others)}; {cure}")
    if of_old and boxes is not None:
        note(
            f"{store.path} was made by an earlier flaxvgg, which did not note boxes: whether they "
            "are still the same cannot be checked"
        )


def _known(store: Store, source: Source) -> tuple[dict[str, Known], dict[str, Known]]:
    """By name, the images in the store and those to be streamed; for `what_differs`.

    Where folders name the classes, files are looked into: that tells which class became which.
    """
    before, now = [str(x) for x in store.read("name")], list(map(shown, source.names))
    contents = [[UNKNOWN] * len(x) for x in (before, now)]
    classes = [set(x or ()) for x in (store.settings["classes"], source.classes)]
    if all(classes) and classes[0] != classes[1] and source.root is not None:
        found = in_threads(source.content, range(len(source)), source.threads)
        contents = [store.contents().tolist(), list(found)]

    def table(names: Sequence[str], contents: Sequence[int], classes: set[str]) -> dict[str, Known]:
        folders = [name.partition("/")[0] for name in names]
        labels = [(x,) if x in classes else () for x in folders]
        return dict(zip(names, map(Known, contents, labels), strict=True))

    return table(before, contents[0], classes[0]), table(now, contents[1], classes[1])


class _Compared(NamedTuple):
    """Rows that have changed, how many contents were not noted, or are gone; units to do again."""

    changed: list[int]
    not_noted: int
    gone: int
    again: list[int]


def compare(store: Store, source: Source, units: Sequence[int], note: Note) -> None:
    """See that the images that are done in these units are still the same.

    Broken ones that can be read by now, or have been replaced, are done again, with their unit.
    Raises StoreError where others have changed, in all processes alike.
    """
    found = _compared(store, source, units, note)
    changed = total(len(found.changed))
    if changed:
        names = [str(source.names[row]) for row in found.changed[:_NAMED]]
        more = ", ..." if len(found.changed) > _NAMED else ""
        named = f" ({', '.join(names)}{more})" if names else ""
        labels = "" if source.root is not None or source.is_remote else ", or their labels,"
        raise StoreError(
            f"{store.path} is of other images: {changed} of those that are done{labels} have "
            f"changed since{named}; restore them, choose another store, or delete this one"
        )
    if found.not_noted:
        note(
            f"{found.not_noted} images in {store.path} were done by an earlier flaxvgg, which did "
            "not note what is in them: whether they are still the same cannot be checked"
        )
    if found.gone:
        note(f"{found.gone} images that are done cannot be read any more, and were not compared")
    store.reopen(found.again)


def _compared(store: Store, source: Source, units: Sequence[int], note: Note) -> _Compared:
    status, contents = store.status, store.contents()
    rows = [row for unit in units for row in store.rows(unit) if status[row] in (DONE, BROKEN)]
    known = [row for row in rows if contents[row] != UNKNOWN or status[row] == BROKEN]
    if len(known) > _MANY:
        note(f"comparing {len(known)} images with what they were")
    changed, gone, again = [], [], set()
    now = in_threads(source.content, known, source.threads)
    for row, content in zip(known, now, strict=True):
        if status[row] == BROKEN:
            if content not in (UNKNOWN, contents[row]):
                again.add(row // store.unit)
        elif content == UNKNOWN:
            gone.append(row)
        elif content != contents[row]:
            changed.append(row)
    # What is done and could not be done again stays.
    again -= {row // store.unit for row in gone}
    return _Compared(changed, len(rows) - len(known), len(gone), sorted(again))
