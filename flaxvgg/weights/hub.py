"""Models from and to repositories of the Hugging Face hub."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flaxvgg.files.nesting import parse_json
from flaxvgg.network.config import ARCHITECTURES
from flaxvgg.network.model import VGG
from flaxvgg.weights import constructors
from flaxvgg.weights.checkpoint import is_checkpoint, load, save
from flaxvgg.weights.mapping import rebuild
from flaxvgg.weights.other_formats import converted
from flaxvgg.weights.published import PUBLISHED, WeightsError, find_published

_FILE = "model.safetensors"


def from_pretrained(
    name: str | os.PathLike[str], *, revision: str | None = None, **options: Any
) -> VGG:
    """What `VGG.from_pretrained` does."""
    text = os.fspath(name)
    for record in PUBLISHED:
        if record.hub == text and revision is None and not Path(text).exists():
            return getattr(constructors, record.arch)(weights=record.name, **options)
    if Path(text).exists():
        return _read(Path(text), None, text, options)
    if (record := find_published(text)) is not None:
        return getattr(constructors, record.arch)(weights=record.name, **options)
    if text.count("/") != 1:
        raise WeightsError(
            f"{text} does not exist, and is no repository of the hub, such as timm/vgg16.tv_in1k"
        )
    with _hub_errors(f"cannot download {text}"):
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        path = Path(hf_hub_download(text, _FILE, revision=revision))
        try:
            config = Path(hf_hub_download(text, "config.json", revision=revision))
        except EntryNotFoundError:
            config = None
    return _read(path, config, text, options)


def push_to_hub(
    model: VGG, repository: str, *, private: bool, token: str | None, message: str
) -> str:
    """What `VGG.push_to_hub` does."""
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with (
        tempfile.TemporaryDirectory() as folder,
        _hub_errors(f"cannot write to {repository} on the hub"),
    ):
        save(model, Path(folder, _FILE))
        config = {
            "architecture": model.config.arch,
            "num_classes": model.config.num_classes,
            "library_name": "flaxvgg",
        }
        Path(folder, "config.json").write_text(json.dumps(config, indent=1), "utf-8")
        api.create_repo(repository, private=private, exist_ok=True)
        if not api.file_exists(repository, "README.md"):
            Path(folder, "README.md").write_text(_card(model, repository), "utf-8")
        told = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    return str(told.commit_url)


def _read(path: Path, config: Path | None, name: str, options: dict[str, Any]) -> VGG:
    """The model in a file, whose architecture the file or the `config` beside it tells."""
    arch = None
    if config is not None:
        with contextlib.suppress(ValueError, AttributeError):
            arch = parse_json(config.read_bytes()).get("architecture")
    if is_checkpoint(path):
        model = load(path, **{k: x for k, x in options.items() if k in ("dtype", "precision")})
        kept = {k: x for k, x in options.items() if k in ("dropout", "param_dtype")}
        return rebuild(model, **kept) if kept else model
    if arch not in ARCHITECTURES:
        arch = None
    return converted(path, arch, source=name, **options)


def _card(model: VGG, repository: str) -> str:
    """A README.md for the hub: what the model is, and how it is loaded."""
    return f"""---
library_name: flaxvgg
tags: [jax, flax, vgg]
---
# {repository}

{model.config.arch} of flaxvgg; source of the weights: {model.provenance.source}.
Images are prepared as {model.preprocessing.name}: {model.preprocessing.formula}.

```python
import flaxvgg

model = flaxvgg.VGG.from_pretrained("{repository}")
features = model.features(model.load_images(["photo.jpg"]))
```
"""


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn what the hub's client raises into a WeightsError of one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    # The hub's client speaks through httpx, under the name that its version brings along.
    clients = [sys.modules[name] for name in ("httpx", "httpx2") if name in sys.modules]
    # A RuntimeError is an upload that failed.
    failures = (
        OSError,
        RuntimeError,
        HfHubHTTPError,
        HFValidationError,
        *(x.HTTPError for x in clients),
    )
    try:
        yield
    except failures as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"{what} ({reason})") from None
