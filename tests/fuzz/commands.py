"""Commands on folders of any kind: the right files and exit code, or one line that says why not.

The first line of an input is the command; those behind describe the folder (`tests.fuzz.folders`).
With `each`, everything in the folder is named on the command line, and not the folder itself.
`compare` compares photos with one beside the folder: into a table, or as `pairs` into a store.
"""

import csv
import json
import os
import tempfile
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from flax import nnx
from PIL import Image
from typer.testing import CliRunner

import flaxvgg
from flaxvgg.commands.cli import app
from flaxvgg.files.foreign import shown
from flaxvgg.weights.mapping import arrays_from_torch, build
from tests.fuzz.cases import Arrays, Seed, Target
from tests.fuzz.files import VGG11, random_weights
from tests.fuzz.folders import TREES, as_text, is_whole, place_tree, true_images

_COMMANDS = (
    *(b"features", b"store", b"sparsity", b"cam", b"demo", b"features each", b"cam each"),
    *(b"compare", b"compare each", b"pairs", b"attribute"),
)
# What the command is called, and where its results go.
_CALLED = {"store": "features", "pairs": "compare"}
# What takes a configuration, weights or a store: their readers are fuzzed by themselves.
_ELSEWHERE = {"train", "convert", "info", "layers", "export", "view"}
_OUT = {"features": "out.npz", "store": "out.zarr", "compare": "out.csv", "pairs": "out.zarr"}
_TABLES = (".csv", ".parquet", ".tsv")


class _Refused(Exception):
    """A command that ended in one line, with nothing written."""


def command_targets() -> list[Target]:
    """All commands that take photos."""
    called = {name.decode().partition(" ")[0] for name in _COMMANDS}
    fuzzed = {_CALLED.get(name, name) for name in called}
    assert fuzzed | _ELSEWHERE == {x.callback.__name__ for x in app.registered_commands}
    trees = [TREES[i] for i in (0, 1, 2, 3, 4, 0, 2, 3, 4, 1, 0)]
    pairs = zip(_COMMANDS, trees, strict=True)
    seeds = [Seed("tree", name + b"\n" + tree) for name, tree in pairs]
    return [Target("command", 1, seeds, (_Refused,), _read, _true, _place)]


def _place(folder: Path, name: str, data: bytes) -> Path:
    first, _, tree = data.partition(b"\n")
    root = place_tree(folder, name, tree)
    chosen = first if first in _COMMANDS else _COMMANDS[len(data) % len(_COMMANDS)]
    (folder / "command").write_bytes(chosen)
    Image.new("RGB", (40, 36), (200, 100, 0)).save(folder / "reference.png")
    return root


@cache
def _weights() -> tuple[tempfile.TemporaryDirectory, str]:
    """A checkpoint of the narrow network, with a head."""
    folder = tempfile.TemporaryDirectory()
    model = build(VGG11, arrays_from_torch(VGG11, random_weights()))
    model = flaxvgg.with_gap(model, 3, rngs=nnx.Rngs(0))
    flaxvgg.save(model, f"{folder.name}/narrow.safetensors")
    return folder, f"{folder.name}/narrow.safetensors"


def _asked(root: Path) -> tuple[str, list[Path]]:
    """The command, and what it is given."""
    name, _, each = (root.parent / "command").read_text().partition(" ")
    return name, [root / x for x in sorted(os.listdir(root))] if each else [root]


def _photos(given: list[Path]) -> list[Path]:
    """The photos that a command looks at. Raises OSError or LookupError where it refuses them."""
    found: dict[Path, None] = {}
    for path in given:
        os.stat(path)
        inside = true_images(path) if path.is_dir() else [path]
        if not inside or (not path.is_dir() and path.suffix.lower() in _TABLES):
            raise LookupError(f"{path}: no images")
        found |= dict.fromkeys(inside)
    if not found:
        raise LookupError("no photos")
    return list(found)


def _read(root: Path) -> Arrays:
    name, given = _asked(root)
    out = root.parent / _OUT.get(name, "out")
    options = ["--weights", _weights()[1], "--size", "32x32", "--out", str(out)]
    command = _CALLED.get(name, name)
    if command == "attribute":  # by what is compiled soon
        options += ["--method", "saliency", "--classes", "0"]
    if command == "compare":  # by what needs no network of LPIPS's size
        options += ["--metric", "psnr,ssim"]
        given = [root.parent / "reference.png", *given]
    result = CliRunner().invoke(app, [command, *map(str, given), *options])
    if command == "compare":
        given = given[1:]
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = result.output
    bad = {x for x in said if unicodedata.category(x) in ("Cc", "Cf", "Cs") and x != "\n"}
    assert not bad, (bad, said)
    if not given:
        assert result.exit_code == 2, said
        assert "Missing argument" in said or "no photos to compare it with" in said, said
        raise _Refused(said)
    if result.exit_code == 2:
        assert said.count("error: ") == 1, said
        assert all(x.startswith("  ") for x in result.stderr.split("error: ")[-1].splitlines()[1:])
        assert not out.exists(), said
        _check_reason(given, said)
        raise _Refused(said)
    whole = [is_whole(path) for path in _photos(given)]
    assert result.exit_code == (0 if all(whole) else 1), said
    return {"photos": as_text(*_written(name, out))}


def _check_reason(given: list[Path], said: str) -> None:
    """A command refuses what has no photo that can be read, and nothing else."""
    try:
        whole = [path for path in _photos(given) if is_whole(path)]
    except (OSError, LookupError):
        return
    assert not whole, f"refused, and {whole} are whole: {said}"


def _written(name: str, out: Path) -> list[str]:
    """The photos that the results are of."""
    match name:
        case "store" | "pairs":
            group: Any = zarr.open_group(out, mode="r")
            done = group["status"][:] == 1
            return [str(x) for x in group["name" if name == "store" else "photo"][:][done]]
        case "compare":
            with out.open(encoding="utf-8", newline="") as file:
                return sorted(row["image"] for row in csv.DictReader(file))
        case "features" | "demo":
            with np.load(out / "features.npz" if name == "demo" else out) as arrays:
                assert len(arrays["gap"]) == len(arrays["photos"])
                return [shown(str(x)) for x in arrays["photos"]]
        case "sparsity":
            text = (out / "sparsity.json").read_text("utf-8")
            return json.loads(text.encode("utf-8"))["photos"]
        case _:
            rows = "photos" if name == "attribute" else "maps"
            found = json.loads((out / f"{name}.json").read_text("utf-8"))[rows]
            assert all((out / row["picture"]).is_file() for row in found)
            return list(dict.fromkeys(row["photo"] for row in found))  # one for each class


def _true(data: bytes, root: Path, whole: bytes) -> Arrays:
    name, given = _asked(root)
    photos = [path for path in _photos(given) if is_whole(path)]
    if name == "store":
        return {"photos": as_text(*(shown(path.relative_to(root)) for path in photos))}
    if name == "pairs":
        return {"photos": as_text(*(shown(path.relative_to(root.parent)) for path in photos))}
    names = map(shown, photos)
    return {"photos": as_text(*(sorted(names) if name == "compare" else names))}
