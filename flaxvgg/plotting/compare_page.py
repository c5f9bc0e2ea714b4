"""Photos beside their references as a page: a swipe between the two, and where they differ."""

from collections.abc import Sequence

from flaxvgg.files.foreign import plain
from flaxvgg.perceptual.photos import SIMILARITIES, Compared, Pixels
from flaxvgg.plotting.page.packing import factors
from flaxvgg.plotting.page.shell import page, viewer
from flaxvgg.plotting.page.viewing import Look, Method, Sort, photo_value, viewer_value

_PHOTOS = 300
_LOOKS = (
    Look("reference", 0, None),
    Look("image", 1, None),
    Look("distance over the image", 1, 0),
)


def compare_page(found: Sequence[Compared], references: Sequence[Pixels], title: str) -> str:
    """The HTML of pairs, in their order, the first 300; each with the pixels of its reference.

    `found` have maps, which are all on one scale.
    """
    pairs = list(zip(found, references, strict=True))[:_PHOTOS]
    sizes = {one.where.shape for one, _ in pairs if one.where is not None}
    largest = max(sizes, default=(1, 1))
    (factor,) = factors([largest], len(pairs))
    metrics = list(found[0].values)
    photos = [
        photo_value(
            one.photo.name,
            [reference, one.pixels],
            [[one.where[None]]] if one.where is not None else [[]],
            [[factor]] if one.where is not None else [[]],
            keys=one.values,
            facts=[
                *([metric, f"{value:.4g}"] for metric, value in one.values.items()),
                ["reference", plain(one.reference.name)],
            ],
        )
        for one, reference in pairs
    ]
    sorts = [Sort(name, name.upper(), down=name in SIMILARITIES) for name in metrics]
    value = viewer_value(
        [Method("LPIPS", "zero", ("",))],
        photos,
        sorts,
        _LOOKS,
        start=(0, 2),
        scales=["all", "map"] if len(photos) > 1 else ["map"],
        threshold=0,
    )
    first = f" These are the first {_PHOTOS:,}." if len(found) > _PHOTOS else ""
    body = (
        f'{viewer()}<p class="note">The spatial LPIPS distance, in 256 steps from 0 to the highest '
        "value of all photos. LPIPS and DISTS are the smaller, PSNR and SSIM the larger, the more "
        f"alike two images are.{first}</p>"
    )
    return page(title, "How far from the reference", body, {"viewer": value})
