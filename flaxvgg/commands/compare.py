"""flaxvgg compare: how far photos are from a reference, as people see it.

`perceptual.photos.compare_photos` compares; here is what is shown and written of it.
"""

import contextlib
import csv
import io
import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import Shown, clear_errors, finish, say_where, show
from flaxvgg.commands.options import is_store, load_model, parse_size
from flaxvgg.files.addresses import folder_of, named


def compare(
    reference: Annotated[
        Path,
        typer.Argument(
            help="The photo that others are compared with; or a table of pairs, a .csv file with "
            "the columns reference and image."
        ),
    ],
    photos: Annotated[
        list[Path] | None, typer.Argument(help="Photos, or folders of photos.")
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="lpips, dists, psnr and ssim, comma-separated; the table is sorted by the first."
        ),
    ] = "lpips",
    weights: options.Weights = "IMAGENET1K_V1_CONVOLUTIONS",
    size: Annotated[
        str,
        typer.Option(
            help="HxW that every photo is stretched to, e.g. 256x256; native leaves them as they "
            "are, and compares those that are as large as their reference."
        ),
    ] = "native",
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for compare.json and compare.png; a .csv file; or a .zarr store, "
            "also s3://BUCKET/NAME.zarr."
        ),
    ] = None,
    batch: options.Batch = None,
    distributed: options.Distributed = False,
    decoders: options.Decoders = None,
    html: Annotated[
        bool,
        typer.Option(
            "--html", help="With a folder: compare.html, with a swipe between two photos."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Say how far photos are from a reference: LPIPS, DISTS, PSNR, SSIM.

    With a folder as --out, compare.png shows where they differ. A .zarr store takes any number of
    pairs: rerun the command to resume. Exit code 1 says that some photos could not be compared.
    """
    with clear_errors(f"{named(out)} is as it was" if out else "nothing was written"):
        from flaxvgg.commands.tables import compare_table
        from flaxvgg.files.folders import check_apart, check_folder
        from flaxvgg.files.locking import alone_beside, alone_in
        from flaxvgg.images.loading import ImageError, find_images
        from flaxvgg.perceptual.photos import (
            compare_photos,
            nearest_first,
            parse_metrics,
            read_pairs,
        )
        from flaxvgg.plotting.figures import check_drawing

        metrics = parse_metrics(metric)
        hw = None if size == "native" else parse_size(size)
        is_table = reference.suffix.lower() == ".csv"
        if is_table and photos:
            raise ValueError("a table names the photos itself: leave the others out")
        if not is_table and not photos:
            raise ValueError("no photos to compare it with: name some, or folders, after it")
        pairs = (
            read_pairs(reference)
            if is_table
            else [(reference, photo) for photo in find_images(photos or [])]
        )
        if is_store(out, batch, distributed, decoders) and out is not None:
            from flaxvgg.commands.streaming import Setting, end, into_store, show_distances
            from flaxvgg.streaming.jobs import compare_job
            from flaxvgg.streaming.pairs import pairs_source

            root = folder_of(reference) if is_table else Path.cwd()
            streamed = into_store(
                lambda model, *_: compare_job(model, metrics),
                *(pairs, weights, "vgg16", size, Setting(out, batch, distributed, decoders)),
                find=lambda pairs: pairs_source(pairs, root),
            )
            end(streamed, as_json, show_distances(streamed.store))
            return
        in_folder = out is not None and out.suffix.lower() != ".csv"
        if html and not in_folder:
            raise ValueError("--html needs a folder for the page: add --out DIR")
        if out is not None and in_folder:
            check_drawing()
            check_folder(out)
        if out is not None:
            check_apart(out, [path for pair in pairs for path in pair])
        problems: list[str] = []
        with contextlib.ExitStack() as held:
            if out is not None:
                held.enter_context(alone_in(out) if in_folder else alone_beside(out))
            model = load_model(weights, "vgg16")
            where = in_folder and (html or not is_table)
            found = list(
                compare_photos(model, pairs, metrics, hw, problems, where=where, watch=Shown())
            )
            if not found:
                raise ImageError(*problems)
            found = nearest_first(found, metrics[0])
            source = model.provenance.source
            told = _told(found, metrics, hw, source, problems)
            show(lambda: compare_table(found, source), told, as_json=as_json)
            if out is not None:
                _write(out, found, metrics, hw, told, where and not is_table)
                if html:
                    _write_page(out, found, metrics, hw)
                best = "compare.html" if html else "compare.png" if where else ""
                say_where(out / best)
        finish(problems)


def _told(
    found: list[Any],
    metrics: tuple[str, ...],
    hw: tuple[int, int] | None,
    source: str,
    problems: list[str],
) -> dict[str, Any]:
    """What was found, as a JSON value: a record for each pair."""
    from flaxvgg.files.foreign import plain

    finite = [
        {k: v if isinstance(v, str) or math.isfinite(v) else None for k, v in row.items()}
        for row in _rows(found)
    ]
    return {
        "source": plain(source),
        "size": list(hw) if hw else None,
        "metrics": list(metrics),
        "problems": list(map(plain, problems)),
        "pairs": finite,
    }


def _rows(found: list[Any]) -> list[dict[str, Any]]:
    from flaxvgg.files.foreign import shown

    return [
        {"reference": shown(one.reference), "image": shown(one.photo)} | one.values for one in found
    ]


def _write(
    out: Path,
    found: list[Any],
    metrics: tuple[str, ...],
    hw: tuple[int, int] | None,
    told: dict[str, Any],
    where: bool,
) -> None:
    """compare.json, and with maps compare.png; or one .csv file."""
    from flaxvgg.files.folders import write_bytes
    from flaxvgg.images.loading import load_pixels
    from flaxvgg.perceptual.photos import STRETCHED
    from flaxvgg.plotting.compare import compare_figure
    from flaxvgg.plotting.figures import png

    if out.suffix.lower() == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, ["reference", "image", *metrics])
        writer.writeheader()
        writer.writerows(_rows(found))
        write_bytes(out, text.getvalue().encode())
        return
    files = {"compare.json": json.dumps(told, indent=1).encode()}
    if where:
        pixels = load_pixels(found[0].reference, hw, STRETCHED)
        files["compare.png"] = png(compare_figure(found, pixels, f"nearest first, by {metrics[0]}"))
    for name, data in files.items():
        write_bytes(out / name, data)


def _write_page(
    out: Path, found: list[Any], metrics: tuple[str, ...], hw: tuple[int, int] | None
) -> None:
    """compare.html, whose references are read again, each once if it is that of all."""
    from functools import lru_cache

    from flaxvgg.files.folders import write_bytes
    from flaxvgg.images.loading import load_pixels
    from flaxvgg.perceptual.photos import STRETCHED
    from flaxvgg.plotting.compare_page import compare_page

    @lru_cache(maxsize=1)
    def read(reference: Path) -> Any:
        return load_pixels(reference, hw, STRETCHED)

    references = [read(one.reference) for one in found]
    title = f"{len(found):,} pairs, nearest first by {metrics[0]}"
    write_bytes(out / "compare.html", compare_page(found, references, title).encode())
