"""A store to look at, whatever its size: lists, photos and maps, read as they are asked for."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flaxvgg.cam.conventions import Convention
from flaxvgg.cam.explanation import Flag
from flaxvgg.cam.photos import FLAG_WORDS
from flaxvgg.images.loading import ImageError, load_pixels
from flaxvgg.network.provenance import Preprocessing
from flaxvgg.plotting.page.packing import factors, maps_value
from flaxvgg.plotting.page.shell import escape, page, viewer
from flaxvgg.plotting.page.viewing import Method, Sort, finite, viewer_value
from flaxvgg.sparsity.summary import percent
from flaxvgg.streaming.store import DONE, Store, StoreError

_MOST = 500  # rows of a list that are given at once
_THUMBNAIL = 160  # pixels
_MAPS = 2**20  # bytes of the maps of one photo


class StoreView:
    """The images of a store that are done, sorted by what is known of each; nothing is written.

    `root` is the folder that the images' names are of. A photo that is not in it is not shown.
    """

    def __init__(self, store: Store, root: Path):
        self.store, self._root = store, root.resolve()
        told = store.settings
        recipe = {
            k: tuple(v) if isinstance(v, list) else v for k, v in told["preprocessing"].items()
        }
        self._recipe = Preprocessing(**recipe)
        self._rows = np.flatnonzero(store.status == DONE)
        self._names = [str(name) for name in store.read("name")]
        self._keys = self._read_keys() if len(self._rows) else {}
        self._sorted: tuple[Any, np.ndarray] = (None, self._rows)
        self._methods = self._read_methods() if told["job"] == "maps" else []

    def __len__(self) -> int:
        return len(self._rows)

    def page(self) -> str:
        """The HTML of the page, which asks for all else."""
        told = self.store.settings
        title = f"{Path(self.store.path).name}: {told['job']} of {told['config']['arch']}, "
        title += f"{told['weights']['source']}"
        extra = {"layers": told["layers"], "slider": True} if "zeros" in self._keys else {}
        value = viewer_value(self._methods, None, self._sorts(), scales=["photo", "map"], **extra)
        note = (
            f'<p class="note">{len(self):,} of {self.store.images:,} images are done. Photos are '
            f"looked for in {escape(str(self._root))}.</p>"
        )
        return page(title, f"{len(self):,} images", viewer() + note, {"viewer": value}, live=True)

    def listing(self, wanted: Mapping[str, str]) -> dict[str, Any]:
        """Rows `start` to `start` + `count` of all in an order: `sort`, `down`, `layer`, `text`.

        Raises ValueError for a request that is none.
        """
        layer, start, count = (int(wanted.get(x) or 0) for x in ("layer", "start", "count"))
        order = wanted.get("sort", ""), bool(wanted.get("down")), layer, wanted.get("text", "")
        if self._sorted[0] != order:
            self._sorted = order, self._order(*order)
        rows = self._sorted[1]
        shown = rows[max(start, 0) :][: max(min(count, _MOST), 0)]
        return {"total": len(rows), "rows": [self._listed(int(row)) for row in shown]}

    def item(self, row: int) -> dict[str, Any]:
        """One image: its maps, classes and scores. Raises StoreError for one that is not done."""
        self._check(row)
        told = self.store.settings
        height, width = told["size"] or self.store.row("size", row).tolist()
        value: dict[str, Any] = {
            "name": self._names[row],
            "size": [int(height), int(width)],
            "pictures": [f"picture/{row}"],
            "facts": self._facts(row),
        }
        if self._methods:
            keys = [
                f"{method.name}_{layer}" if len(method.layers) > 1 else method.name
                for method in self._methods
                for layer in method.layers
            ]
            maps = [np.asarray(self.store.row(key, row), np.float32) for key in keys]
            by = factors([x.shape[1:] for x in maps], maps[0].shape[0], _MAPS)
            packed = iter([maps_value(x, factor) for x, factor in zip(maps, by, strict=True)])
            classes = self.store.row("class", row).tolist()
            value |= {
                "labels": list(map(self._class_name, classes)),
                "scores": self.store.row("score", row),
                "flags": [
                    [FLAG_WORDS.get(Flag(x), "") for x in self.store.row(f"{m.name}_flag", row)]
                    for m in self._methods
                ],
                "maps": [[next(packed) for _ in method.layers] for method in self._methods],
            }
        return finite(value)

    def picture(self, row: int, small: bool) -> bytes:
        """The photo as a JPEG: as the network got it, or a small one.

        Raises StoreError where it is not in the folder, or cannot be read.
        """
        self._check(row)
        path = (self._root / self._names[row]).resolve()
        # A name of a store that somebody else made may lead elsewhere.
        if not path.is_relative_to(self._root):
            raise StoreError("not in the folder of photos")
        size = self.store.settings["size"]
        try:
            pixels = load_pixels(path, tuple(size) if size else None, self._recipe)
        except (ImageError, ValueError) as error:
            raise StoreError(str(error)) from None
        image = Image.fromarray(pixels)
        if small:
            image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=80 if small else 90)
        return file.getvalue()

    def _class_name(self, label: int) -> str:
        if label < 0:
            return "no class"
        names = self.store.class_names  # which a store of others may have too few of
        return names[label] if label < len(names) else f"class {label}"

    def _check(self, row: int) -> None:
        at = int(np.searchsorted(self._rows, row))
        if at >= len(self._rows) or self._rows[at] != row:
            raise StoreError(f"no image {row} is done")

    def _listed(self, row: int) -> dict[str, Any]:
        keys: dict[str, Any] = {name: values[row] for name, values in self._keys.items()}
        if "class" in keys:
            keys["class"] = self._class_name(int(keys["class"]))
        return {
            "i": row,
            "name": self._names[row],
            "thumb": f"thumbnail/{row}",
            "keys": finite(
                {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in keys.items()}
            ),
        }

    def _order(self, sort: str, down: bool, layer: int, text: str) -> np.ndarray:
        rows = self._rows
        if text:
            wanted = text.lower()
            rows = rows[[wanted in self._names[row].lower() for row in rows]]
        if sort == "name":
            names = np.array([self._names[row] for row in rows], object)
            order = np.argsort(names, kind="stable")
            return rows[order[::-1] if down else order]
        if sort not in self._keys:
            return rows[::-1] if down else rows
        values = self._keys[sort][rows]
        values = values[:, min(layer, values.shape[1] - 1)] if values.ndim > 1 else values
        values = np.asarray(values, np.float64)
        # NaN is last, whichever way.
        return rows[np.argsort(-values if down else values, kind="stable")]

    def _read_keys(self) -> dict[str, np.ndarray]:
        job = self.store.settings["job"]
        if job == "maps":
            return {
                "class": self.store.read("class")[:, 0],
                "score": self.store.read("score")[:, 0],
            }
        if job == "sparsity":
            with np.errstate(invalid="ignore", divide="ignore"):
                return {"zeros": self.store.read("zeros") / self.store.read("values")}
        if job == "localisation":
            hits = {x: self.store.read(f"{x}_hit") for x in self.store.settings["methods"]}
            return {
                f"{name} hits": np.where(
                    (x >= 0).any(axis=1),
                    (x > 0).sum(axis=1) / np.maximum((x >= 0).sum(axis=1), 1),
                    np.nan,
                )
                for name, x in hits.items()
            }
        return {}

    def _sorts(self) -> list[Sort]:
        names = {"class": "class of the first map", "score": "logit of the first class"}
        names["zeros"] = "zeros in the layer"
        found = [
            Sort(key, names.get(key, key), key != "class", key not in ("class", "score"))
            for key in self._keys
        ]
        return [Sort("", "their order"), *found]

    def _read_methods(self) -> list[Method]:
        told = self.store.settings
        convention = Convention.named(told["convention"])
        layers = tuple(told["layers"] or ("",))
        return [
            Method(name, "zero" if convention.clamps(name) else "lowest", layers)
            for name in told["methods"]
        ]

    def _facts(self, row: int) -> list[list[str]]:
        job, told = self.store.settings["job"], self.store.settings
        if job == "sparsity":
            shares = zip(told["layers"], self._keys["zeros"][row], strict=True)
            return [[name, f"{percent(float(share))} zero"] for name, share in shares]
        if job == "features":
            found = []
            for name in told["layers"]:
                x = self.store.row(name, row)
                shape = "x".join(map(str, x.shape))
                found.append([name, f"{shape}, {percent(float((x == 0).mean()))} zero"])
            return found
        return [
            [key, self._class_name(int(values[row])) if key == "class" else f"{values[row]:.4g}"]
            for key, values in self._keys.items()
        ]
