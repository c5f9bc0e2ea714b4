"""Every layer as PyTorch computes it, in float64 and in float32: torchvision's own networks."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from flaxvgg.conversion.rule import Reference
from flaxvgg.network.config import Layer, VGGConfig
from flaxvgg.weights.mapping import as_numpy


def torch_networks(config: VGGConfig, state_dict: Mapping[str, Any]) -> tuple[Any, Any]:
    """torchvision's own network with these weights, in float64 and in float32.

    The float32 one shares its memory with `state_dict` where that is float32. What `config` has no
    head for stops at pool5.
    """
    import torch

    def network(dtype: type[np.floating]):
        with torch.device("meta"):
            empty = _torchvision_network(config)
        tensors = {}
        for name, tensor in empty.state_dict().items():
            if not tensor.is_floating_point():
                # A batch count, which nothing reads and not every source has.
                tensors[name] = torch.zeros((), dtype=torch.int64)
                continue
            array = as_numpy(state_dict[name]).reshape(tensor.shape)
            # PyTorch takes no read-only memory, which a weights file may be mapped as.
            tensors[name] = torch.from_numpy(np.require(array, dtype, "W"))
        empty.load_state_dict(tensors, strict=True, assign=True)
        for module in empty.modules():
            if isinstance(module, torch.nn.ReLU):
                module.inplace = False  # or it would overwrite pre-activations already given away
        return empty.eval()

    return network(np.float64), network(np.float32)


def _torchvision_network(config: VGGConfig):
    """torchvision's network, with the head that `config` has."""
    import torch
    import torchvision

    network = getattr(torchvision.models, config.arch)(num_classes=max(config.num_classes, 1))
    kinds = {layer.kind: layer for layer in config.head}
    if not config.head:
        network.classifier = torch.nn.Sequential()
    if "conv" in kinds:
        conv = torch.nn.Conv2d(kinds["conv"].inputs, kinds["conv"].outputs, 3, padding=1)
        network.features = torch.nn.Sequential(*network.features[:-1], conv, torch.nn.ReLU())
    if "global_avg_pool" in kinds:
        network.avgpool = torch.nn.AdaptiveAvgPool2d(1)
        network.classifier = torch.nn.Linear(kinds["linear"].inputs, config.num_classes)
    elif "linear" in kinds:
        for layer in config.head:  # a classifier may be narrower than the published one
            if layer.kind == "linear":
                linear = torch.nn.Linear(layer.inputs * layer.kernel**2, layer.outputs)
                network.set_submodule(layer.torch, linear)
    for layer in config.conv_stack:
        if layer.kind == "average_pool":
            network.set_submodule(layer.torch, torch.nn.AvgPool2d(2))
        elif layer.kind == "l2_pool":
            network.set_submodule(layer.torch, _l2_pooling())
        elif layer.kind == "conv":
            network.get_submodule(layer.torch).padding_mode = layer.padding
    return network


def _l2_pooling():
    """DISTS's pooling, which PyTorch has no module for."""
    import torch

    class L2Pool2d(torch.nn.Module):
        def forward(self, x):
            blur = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype)
            kernel = torch.outer(blur, blur).expand(x.shape[1], 1, 3, 3)
            blurred = torch.nn.functional.conv2d(
                x.square(), kernel, stride=2, padding=1, groups=x.shape[1]
            )
            return torch.sqrt(blurred + 1e-12)

    return L2Pool2d()


class TorchLayer(NamedTuple):
    """One layer as a PyTorch network computes it: its input and output, channels first."""

    layer: Layer
    inputs: Any
    output: Any

    @property
    def in_our_layout(self):
        """The output, channels last; flattened, too: the same numbers in another order."""
        if self.layer.kind == "flatten":
            return _channels_last(self.inputs).flatten(1)
        return _channels_last(self.output)


def torch_layers(config: VGGConfig, network: Any, images: Any) -> Iterator[TorchLayer]:
    """Every layer of a PyTorch network, one at a time, on images (N, 3, H, W) where these are."""
    import torch

    kinds = {"flatten": torch.nn.Flatten(), "softmax": torch.nn.Softmax(dim=1)}
    outputs = images
    for layer in config.layers:
        module = network.get_submodule(layer.torch) if layer.torch else kinds[layer.kind]
        inputs = outputs
        with torch.inference_mode():
            if layer.kind == "conv" and inputs.dtype == torch.float64:
                # In float64 PyTorch unrolls its input ninefold, the whole batch at once.
                outputs = torch.cat([module(image) for image in inputs.split(1)])
            else:
                outputs = module(inputs)
        yield TorchLayer(layer, inputs, outputs)


def torch_references(
    config: VGGConfig, networks: tuple[Any, Any], images: np.ndarray
) -> Iterator[Reference]:
    """Every layer of `torch_networks`, one at a time, on images (N, H, W, 3)."""
    import torch

    tensor = torch.from_numpy(np.array(images, np.float32)).permute(0, 3, 1, 2)
    # The float32 peer gets its images channels-first in memory too: its kernels for channels-last
    # are others, and round up to five times as much. For the truth our layout saves a copy.
    inputs = tensor.double(), tensor.contiguous()
    walks = (torch_layers(config, *pair) for pair in zip(networks, inputs, strict=True))
    for layers in zip(*walks, strict=True):
        yield Reference(layers[0].layer.name, *(x.in_our_layout.numpy() for x in layers))


def _channels_last(x):
    return x.permute(0, 2, 3, 1).contiguous() if x.ndim == 4 else x
