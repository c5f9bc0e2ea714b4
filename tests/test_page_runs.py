"""What the pages show is run as it stands: Python and command lines, in the order of the page.

A reader is in a folder with files of their own, small ones here. What would be downloaded in 528 MB
is torchvision's convolutions with a random classifier.
"""

import csv
import dataclasses
import io
import json
import re
import shlex
import socketserver
import tarfile
from functools import cache
from pathlib import Path

import datasets
import grain
import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow
import pytest
import safetensors.numpy
import torch
from flax import nnx
from PIL import ImageFilter
from pyarrow import parquet
from site_pages import ROOT, blocks, command_lines, fenced, inline_commands, is_pattern, name_of

import flaxvgg
from flaxvgg.images.datasets import VOC_CLASSES
from flaxvgg.images.samples import sample_photos
from flaxvgg.network.config import VGGConfig
from helpers import run_flaxvgg, torch_features, tumour_weights_path
from networks import random_model

pytestmark = pytest.mark.slow

# What is for the machine, for several of them, or has a test of its own.
_NOT_HERE = re.compile(
    r"pip install |make |git clone |apt-get |(\.venv/bin/)?python -m experiments\.|JAX_COORDINATOR"
)


class Reader:
    """Somebody who types what a page shows."""

    def __init__(self, folder: Path, **names: object):
        self.folder, self.names = folder, names
        self.typed: list[str] = []  # command lines

    def read(self, page: Path) -> None:
        """All blocks in their order, then the command lines within the text."""
        # Readers have JAX's defaults, not the tests'.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            for kind, body in fenced(page):
                if kind == "python":
                    exec(compile(body, name_of(page), "exec"), self.names)
                for line in command_lines(body) if kind == "sh" else ():
                    self.type(line)
            for line in inline_commands(page):
                if " " in line.removeprefix("flaxvgg ") and not is_pattern(line[8:]):
                    self.type(line)

    def type(self, line: str) -> None:
        if line in self.typed or _NOT_HERE.match(line):
            return
        self.typed.append(line)
        program, *arguments = shlex.split(line)
        assert program == "flaxvgg", f"nobody runs {line}"
        done = run_flaxvgg(*arguments)
        assert done.exit_code == 0, f"{line}: {done.output}"


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """A folder that a reader is in, with photos. A server that is started is stopped at once."""
    monkeypatch.chdir(tmp_path)
    photos = sample_photos(3)
    names = ("cat.jpg", "dog.png", "my_photo.jpg", "my_cat.jpg", "photo.png")
    for i, name in enumerate(names):
        flaxvgg.open_image(photos[i % 3]).resize((200, 180)).save(name)
    Path("photos").mkdir()
    for photo in photos:
        flaxvgg.open_image(photo).resize((200, 180)).save(Path("photos", f"{photo.stem}.jpg"))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(socketserver.BaseServer, "serve_forever", interrupt)
    return tmp_path


@pytest.fixture
def downloads(tmp_path_factory, monkeypatch) -> None:
    """What stands in for the files of the Hugging Face hub and of torchvision."""
    folder = tmp_path_factory.mktemp("downloads")

    @cache
    def file_of(arch: str) -> Path:
        arrays = flaxvgg.to_torch(random_model(VGGConfig.classifier(arch)))
        if arch == "vgg16":
            arrays |= flaxvgg.to_torch(flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS"))
        path = folder / f"{arch}.safetensors"
        safetensors.numpy.save_file({k: np.ascontiguousarray(x) for k, x in arrays.items()}, path)
        return path

    for module, name in (
        ("flaxvgg.weights.constructors", "fetch_hub"),
        ("flaxvgg.conversion.readers.torch", "fetch_torchvision"),
    ):
        monkeypatch.setattr(f"{module}.{name}", lambda record: file_of(record.arch))


def test_the_readme(desk):
    Reader(desk).read(ROOT / "README.md")
    assert (desk / "cat_map.png").is_file()
    assert (desk / "demo" / "demo.png").is_file()


def test_under_jit_grad_vmap_and_export(desk):
    reader = Reader(desk)
    reader.read(ROOT / "docs" / "howto" / "jax.md")
    assert reader.names["gradient"].shape == (2, 224, 224, 3)


def test_install(desk, downloads):
    reader = Reader(desk)
    reader.read(ROOT / "docs" / "howto" / "install.md")
    assert flaxvgg.vgg16(weights="vgg16.safetensors").config.num_classes == 1000


def test_the_first_steps(desk):
    own = random_model(flaxvgg.VGGConfig.gap("vgg16", num_classes=5))
    _save_pth(own, desk / "my_vgg.pth")
    reader = Reader(desk)
    reader.read(ROOT / "docs" / "first_steps.md")
    for made in ("demo/demo.png", "cat_map.png", "cam/my_photo.png", "my_vgg.safetensors"):
        assert (desk / made).is_file(), made
    assert reader.names["features"]["gap"].shape == (3, 512)


def test_style_transfer_and_pytorchs_pipeline(desk):
    """The two experiments whose pages show code, with what a page before them would have made."""
    model = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    pixels = np.stack([flaxvgg.open_image(x).resize((96, 96)) for x in sample_photos(3)])
    image, photo, painting = pixels[:, None].astype(np.float32) / 255
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(pixels), torch.arange(3)), batch_size=2
    )
    given = {"flaxvgg": flaxvgg, "model": model, "jnp": jnp, "torch": torch, "loader": loader}
    reader = Reader(desk, image=image, photo=photo, painting=painting, **given)
    for experiment in ("from_pytorch", "style_transfer"):
        reader.read(ROOT / "experiments" / experiment / "README.md")
    assert reader.names["features"].shape == (1, 512)
    assert float(reader.names["style"][0]) > 0


def test_the_guide(desk, downloads):
    page = ROOT / "docs" / "guide.md"
    _lay_out_a_users_work(desk)
    _lay_out_data_sets(desk)
    (toml,) = blocks(page, "toml")
    (desk / "pets.toml").write_text(toml)
    reader = Reader(desk)
    reader.read(page)
    assert len(reader.typed) > 20
    for made in (
        *("cams/cat.png", "maps.html", "run/model", "compared/compare.png", "distances.csv"),
        *("voc.onnx", "maps.jaxexport", "zeros/sparsity.html", "gap.zarr", "oxford", "back.pth"),
    ):
        assert (desk / made).exists(), made
    assert reader.names["scores"].shape == (2, 10)
    back = torch.load(desk / "back.pth", weights_only=True)
    assert back["classifier.6.weight"].shape == (1000, 4096)


def test_beyond_one_machine(desk, downloads):
    """But for what is for several processes, which tests/test_streaming.py and the like start."""
    _lay_out_data_sets(desk)
    flaxvgg.save(flaxvgg.vgg16(weights="IMAGENET1K_V1"), "vgg16")
    reader = Reader(desk)
    for shell in blocks(ROOT / "SCALING.md", "sh"):
        for line in command_lines(shell):
            reader.type(line)
    made = {x.name for x in desk.iterdir()}
    assert {"features.zarr", "zeros.zarr", "maps.zarr", "boxes.zarr"} <= made


def test_streaming_in_python(desk):
    model = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    for path in list(Path("photos").iterdir()):  # a folder for each class
        path.with_suffix("").mkdir()
        path.rename(path.with_suffix("") / path.name)
    photos = sorted(Path("photos").glob("*/*"))
    labels = [0, 3, 1]
    elements = [{"image": x, "label": k} for x, k in zip(photos, labels, strict=True)]
    kinds = datasets.ClassLabel(names=["a", "b", "c", "d"])
    features = datasets.Features({"image": datasets.Image(), "label": kinds})
    columns = {"image": list(map(str, photos)), "label": labels}
    given = {
        "model": model,
        "dataset": grain.MapDataset.source(elements),
        "split": datasets.Dataset.from_dict(columns, features=features),
    }
    code = next(blocks(ROOT / "SCALING.md", "python"))
    assert "stream(" in code
    exec(compile(code, "SCALING.md", "exec"), given)
    assert given["features"].pool5.shape[0] == 3


def _save_pth(model: flaxvgg.VGG, path: Path) -> None:
    """A training checkpoint of DataParallel, as people have them."""
    state_dict = {f"module.{k}": torch.from_numpy(x) for k, x in flaxvgg.to_torch(model).items()}
    torch.save({"epoch": 3, "model": state_dict}, path)


def _lay_out_a_users_work(folder: Path) -> None:
    """Weights in other formats, photos to compare, pets to train on."""
    stack = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    _save_pth(flaxvgg.with_gap(stack, 5, rngs=nnx.Rngs(1)), folder / "my_vgg.pth")
    (folder / "exported.onnx").write_bytes(tumour_weights_path().read_bytes())
    _save_keras(folder / "vgg16_weights_tf_dim_ordering_tf_kernels.h5")
    photo = flaxvgg.open_image(folder / "photo.png")
    (folder / "others").mkdir()
    photo.filter(ImageFilter.GaussianBlur(2)).save(folder / "others" / "blurred.png")
    photo.rotate(3).save(folder / "others" / "turned.png")
    with (folder / "pairs.csv").open("w", newline="") as file:
        rows = [["reference", "image"], ["photo.png", "others/blurred.png"]]
        csv.writer(file).writerows([*rows, ["photo.png", "others/turned.png"]])
    _folders(folder / "pets", each=12)


def _save_keras(path: Path) -> None:
    """As the downloads of keras.applications are; convolutions, with other values."""
    with h5py.File(path, "w") as file:
        names = []
        tensors = torch_features("vgg16")
        blocks_of = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
        titles = [f"block{b}_conv{i + 1}" for b, count in blocks_of.items() for i in range(count)]
        weights = [x for name, x in tensors.items() if name.endswith("weight")]
        biases = [x for name, x in tensors.items() if name.endswith("bias")]
        for name, weight, bias in zip(titles, weights, biases, strict=True):
            names.append(name.encode())
            group = file.create_group(name)
            group.attrs["weight_names"] = [f"{name}_W_1:0".encode(), f"{name}_b_1:0".encode()]
            group[f"{name}_W_1:0"] = weight.permute(2, 3, 1, 0).numpy()
            group[f"{name}_b_1:0"] = bias.numpy()
        file.attrs["layer_names"] = names


def _lay_out_data_sets(folder: Path) -> None:
    """A few images in each form that a data set has, and a network with VOC's classes."""
    _folders(folder / "imagenet" / "val", each=2)
    _folders(folder / "imagenet" / "train", each=2)
    files = sorted((folder / "imagenet" / "val").glob("*/*"))
    for number in range(147):
        with tarfile.open(folder / f"train-{number:03}.tar", "w") as archive:
            _add(archive, "0.png", files[number % len(files)].read_bytes())
            _add(archive, "0.cls", str(number % 2).encode())
    names = [x.relative_to(folder).as_posix() for x in files]
    labels = [x.parent.name for x in files]
    parquet.write_table(pyarrow.table({"image": names, "labels": labels}), folder / "list.parquet")
    _as_the_hub_has_them(folder / "data", files)
    _voc(folder / "VOCdevkit" / "VOC2007", files[:2])
    stack = flaxvgg.vgg16(weights="IMAGENET1K_V1_CONVOLUTIONS")
    model = flaxvgg.with_gap(stack, 20, rngs=nnx.Rngs(0))
    model.provenance = dataclasses.replace(model.provenance, classes=VOC_CLASSES)
    (folder / "voc").mkdir()
    flaxvgg.save(model, folder / "voc" / "model")


def _folders(folder: Path, each: int) -> None:
    """Images of two classes, a folder for each."""
    for photo in sample_photos(2):
        (folder / photo.stem).mkdir(parents=True)
        image = flaxvgg.open_image(photo).resize((80, 72))
        for i in range(each):
            image.rotate(10 * i).save(folder / photo.stem / f"{i}.png")


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _as_the_hub_has_them(folder: Path, files: list[Path]) -> None:
    """Two shards with the note that `datasets` leaves in them."""
    folder.mkdir()
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    note = json.dumps({"info": {"features": features}})
    for i in range(2):
        cells = [{"bytes": x.read_bytes(), "path": x.name} for x in files[2 * i : 2 * i + 2]]
        table = pyarrow.table({"image": cells, "label": [0, 1]})
        table = table.replace_schema_metadata({"huggingface": note})
        parquet.write_table(table, folder / f"train-{i:05}-of-00002.parquet")


def _voc(folder: Path, files: list[Path]) -> None:
    """Two images with a box each."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    box = "<xmin>9</xmin><ymin>9</ymin><xmax>60</xmax><ymax>50</ymax>"
    for i, (file, kind) in enumerate(zip(files, ("dog", "cat"), strict=True)):
        flaxvgg.open_image(file).save(folder / "JPEGImages" / f"{i}.jpg")
        text = f"<object><name>{kind}</name><bndbox>{box}</bndbox></object>"
        (folder / "Annotations" / f"{i}.xml").write_text(f"<annotation>{text}</annotation>")
    (folder / "ImageSets" / "Main" / "trainval.txt").write_text("0\n1\n")
