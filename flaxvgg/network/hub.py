"""A model's way from and to the Hugging Face hub: the methods; what they do is in `weights.hub`.

Weights are read above this package, and are looked up when a method is called.
"""

import importlib
import os
from typing import Any


class OnTheHub:
    """What VGG has of the hub."""

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike[str], *, revision: str | None = None, **options: Any
    ) -> Any:  # a VGG, which is not known here
        """The model of a repository of the Hugging Face hub, or of a path.

        `name` is a repository with a model.safetensors that `push_to_hub` wrote, or of a VGG in
        timm's or torchvision's names ("timm/vgg16.tv_in1k"); or whatever `weights=` takes.
        `revision` is a branch, tag or commit. `options` are `dtype`, `precision`, `dropout` and
        `param_dtype` of `flaxvgg.vgg16`. Raises WeightsError where it cannot be had or read.

            model = flaxvgg.VGG.from_pretrained("timm/vgg16.tv_in1k")
        """
        return _hub().from_pretrained(name, revision=revision, **options)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool = False,
        token: str | None = None,
        message: str = "Upload a model of flaxvgg",
    ) -> str:
        """Write the model to a repository of the Hugging Face hub, and give the commit's address.

        The repository is made where there is none, `private` or not. It gets model.safetensors,
        which PyTorch reads too, config.json, and a README.md where it has none. `token` is by
        default that of `hf auth login`. Raises WeightsError where the hub refuses.

            model.push_to_hub("me/my-vgg16")
        """
        return _hub().push_to_hub(self, repository, private=private, token=token, message=message)


def _hub() -> Any:
    return importlib.import_module("flaxvgg.weights.hub")
