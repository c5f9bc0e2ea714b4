"""The same distances as others compute them, all on one set of convolutions.

None of the packages can fetch its trunk without its own server: each gets torchvision's
convolutions from here instead, and keeps its own linear weights.
"""

from collections.abc import Mapping
from typing import Any
from unittest import mock

import numpy as np
import torch
import torchvision

Arrays = Mapping[str, np.ndarray]  # convolutions under torchvision's names, in its layouts


def tensor(images: np.ndarray, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Images (N, H, W, 3) as PyTorch takes them, channels first in memory too."""
    return torch.tensor(np.asarray(images), dtype=dtype).permute(0, 3, 1, 2).contiguous()


def array(images: torch.Tensor) -> np.ndarray:
    """The way back."""
    return images.detach().permute(0, 2, 3, 1).numpy()


def lpips(convolutions: Arrays, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The package lpips, on vgg16."""
    import lpips as package

    options = {"net": "vgg", "pnet_rand": True, "verbose": False} | options
    return _with_trunk(_quietly(lambda: package.LPIPS(**options)), convolutions, dtype)


def torchmetrics_lpips(
    convolutions: Arrays, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """torchmetrics's LPIPS, on vgg16."""
    from torchmetrics.functional.image.lpips import _LPIPS

    network = _LPIPS(net="vgg", pnet_rand=True, **options)
    return _with_trunk(network, convolutions, dtype)


def torchmetrics_dists(convolutions: Arrays, dtype: torch.dtype = torch.float32) -> Any:
    """torchmetrics's DISTS, as a function of two tensors that can be differentiated."""
    from torchmetrics.functional.image import dists

    with mock.patch.object(dists, "vgg16", return_value=vgg("vgg16", convolutions)):
        network = dists.DISTSNetwork().to(dtype)

    def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return network(a, b, require_grad=True)

    return distance


def vgg(arch: str, convolutions: Arrays, dtype: torch.dtype = torch.float32) -> Any:
    """torchvision's network with these convolutions, and no classifier."""
    with torch.device("meta"):
        network = getattr(torchvision.models, arch)()
    network.classifier = torch.nn.Sequential()
    state = {name: torch.tensor(value) for name, value in convolutions.items()}
    network.load_state_dict(state, strict=True, assign=True)
    for module in network.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = False
    return network.eval().requires_grad_(False).to(dtype)


def _with_trunk(network: Any, convolutions: Arrays, dtype: torch.dtype) -> Any:
    """The convolutions, by torchvision's numbers, in place of those in the five slices."""
    for part in network.net.children():
        for slice_ in part if isinstance(part, torch.nn.ModuleList) else [part]:
            for number, module in slice_.named_children():
                if isinstance(module, torch.nn.Conv2d):
                    for name, parameter in module.named_parameters():
                        value = torch.tensor(convolutions[f"features.{number}.{name}"])
                        parameter.data = value
    return network.eval().requires_grad_(False).to(dtype)


def _quietly(make: Any) -> Any:
    """Without torchvision's warning that the package asks for no weights in an old way."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()
