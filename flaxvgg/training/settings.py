"""What a training run is told, as data, and as the TOML file that it is written in."""

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from flax import nnx

from flaxvgg.files.addresses import address
from flaxvgg.files.nesting import TOO_DEEP, shallow
from flaxvgg.heads.replacement import with_gap, with_score_map
from flaxvgg.network.config import SMALLEST_IMAGE, LastActivation
from flaxvgg.network.model import VGG
from flaxvgg.training.trainer import Optimisation


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, and how they are seen.

    `train` and `validation` are as `flaxvgg.images.labelled.read_labelled` takes them; without
    `validation` the part `held_out` of the training images is kept for it. Images are brought to
    `size` = (H, W). For training, `crop` is the least part of an image's area that is cut out and
    enlarged (1: the whole image), and `flip` mirrors every other one.
    """

    train: Path
    validation: Path | None = None
    held_out: float = 0.2
    size: tuple[int, int] = (224, 224)
    batch: int = 16
    crop: float = 1.0
    flip: bool = True

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if min(self.size) < SMALLEST_IMAGE:
            raise ValueError(f"size must be at least {SMALLEST_IMAGE}, {SMALLEST_IMAGE}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, not {self.held_out}")
        if not 0 < self.crop <= 1:
            raise ValueError(f"crop must be above 0 and at most 1, not {self.crop}")


@dataclasses.dataclass(frozen=True)
class Model:
    """Which convolutions, and which new head on them.

    `weights` and `arch` are those of the command line. `head` "gap" is `flaxvgg.with_gap`,
    "score_map" is `flaxvgg.with_score_map`, whose other options follow. With `dtype` "bfloat16" the
    arithmetic is in 16 bits and the parameters stay in 32.
    """

    weights: str = "IMAGENET1K_V1"
    arch: str = "vgg16"
    head: Literal["gap", "score_map"] = "gap"
    channels: int | None = None
    last: LastActivation = "none"
    batch_norm: bool = False
    fc: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["default", "highest"] = "default"

    def with_head(self, model: VGG, num_classes: int, seed: int) -> VGG:
        """The convolutions of `model` with the new head."""
        rngs = nnx.Rngs(seed)
        if self.head == "gap":
            return with_gap(model, num_classes, channels=self.channels, rngs=rngs)
        return with_score_map(
            model,
            num_classes,
            channels=self.channels or 1024,
            last=self.last,
            batch_norm=self.batch_norm,
            fc=self.fc,
            rngs=rngs,
        )


@dataclasses.dataclass(frozen=True)
class Run:
    """A whole run: `epochs` times over the images; the `keep` best checkpoints stay, and the last.

    `every` so many steps there is a checkpoint, besides the one after each epoch (0: only there).
    """

    data: Data
    model: Model = dataclasses.field(default_factory=Model)
    training: Optimisation = dataclasses.field(default_factory=Optimisation)
    epochs: int = 10
    keep: int = 2
    every: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.keep) < 1 or self.every < 0:
            raise ValueError("epochs and keep must be at least 1, and every at least 0")

    def to_json(self) -> dict[str, Any]:
        """A JSON value: equal for equal runs."""
        return {
            key: {k: str(v) if isinstance(v, Path) else v for k, v in value.items()}
            if isinstance(value, dict)
            else value
            for key, value in dataclasses.asdict(self).items()
        }


for _room in (Data, Model, Optimisation, Run):
    _room.__pydantic_config__ = {"extra": "forbid"}  # a misspelt option is an error


_ROOMS = {"data": Data, "model": Model, "training": Optimisation}
# What a value has to be, by what it is not.
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "a text, in quotes",
    "path": "a path, in quotes",
    "tuple": "two whole numbers, [height, width]",
    "dataclass": "a section, with a line for each option",
}


def _problem(error: dict[str, Any]) -> str:
    """One error of pydantic as a line: which option, what is wrong with it, what to write."""
    where, kind = [str(x) for x in error["loc"]], error["type"]
    place = ".".join(where)
    match kind:
        case "missing" if place == "data":
            return 'data is missing: write [data] and, below it, train = "FOLDER"'
        case "missing" if len(where) > 2:
            return f"{'.'.join(where[:2])} must be {_KINDS['tuple']}"
        case "missing":
            return f'{place} is missing: write {where[-1]} = "FOLDER" below [{where[0]}]'
        case "unexpected_keyword_argument":
            return f"{place} is no option: {_hint(where)}"
        case "literal_error":
            return f"{place} is {error['input']!r}: choose {error['ctx']['expected']}"
        case "value_error":
            return str(error["ctx"]["error"])
    wanted = next((text for name, text in _KINDS.items() if kind.startswith(name)), "")
    if kind == "too_long" or len(where) > 2 or kind.startswith("tuple"):
        return f"{'.'.join(where[:2])} must be {_KINDS['tuple']}"
    return f"{place} is {error['input']!r}: it must be {wanted or error['msg'].lower()}"


def _hint(where: list[str]) -> str:
    """Where an unknown option belongs, which one was meant, or which there are."""
    rooms = {"": Run} | _ROOMS
    options = {room: [x.name for x in dataclasses.fields(kind)] for room, kind in rooms.items()}
    *section, name = where
    here = section[0] if section else ""
    for room, names in options.items():
        if name in names and room != here:
            return f"it belongs {f'below [{room}]' if room else 'above the first [section]'}"
    if where == ["data", "test"]:
        return "write validation: by it the best model is chosen, which a test must not do"
    near = difflib.get_close_matches(name, options[here], n=1)
    return f"did you mean {near[0]}?" if near else f"choose from {', '.join(options[here])}"


def _from(here: Path, path: Path) -> Path:
    """A path as seen from a folder; an address is the same from everywhere."""
    return path if address(path) else here / path


def read_run(path: Path) -> Run:
    """The run that a TOML file describes; its paths are relative to it.

        epochs = 10
        [data]
        train = "photos"             # a folder for each class, a CSV file, or VOCdevkit/VOC2007
        [model]
        weights = "vgg16.safetensors"
        [training]
        learning_rate = 1e-3

    Raises ValueError with every option that is unknown, missing or out of range.
    """
    import pydantic

    if not path.is_file():
        raise ValueError(
            f"{path}: no such file: --config names a TOML file, of which "
            '[data] and train = "FOLDER" are enough'
        )
    try:
        values = shallow(tomllib.loads(path.read_text("utf-8")))
    except ValueError as error:  # of TOML, of UTF-8, of nesting
        raise ValueError(f"{path} is no TOML file: {error}") from None
    except RecursionError:
        raise ValueError(f"{path} is no TOML file: {TOO_DEEP}") from None
    try:
        run = pydantic.TypeAdapter(Run).validate_python(values)
    except pydantic.ValidationError as error:
        told = dict.fromkeys(_problem(dict(x)) for x in error.errors())  # each once
        raise ValueError(f"{path}: " + "; ".join(told)) from None
    here = path.absolute().parent
    chosen_by = run.data.validation
    validation = None if chosen_by is None else _from(here, chosen_by)
    data = dataclasses.replace(run.data, train=_from(here, run.data.train), validation=validation)
    weights = here / run.model.weights
    model = run.model
    if weights.exists():  # else it is the name of published weights, or an error
        model = dataclasses.replace(model, weights=str(weights))
    return dataclasses.replace(run, data=data, model=model)
