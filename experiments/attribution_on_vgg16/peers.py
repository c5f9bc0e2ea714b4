"""The same as captum, zennit and grad-cam compute it, a class at a time, and Quantus's figures."""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
import zennit.composites
from captum import attr as captum
from jaxtyping import Bool, Float
from pytorch_grad_cam import GradCAM, LayerCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from zennit.attribution import Gradient

import flaxvgg
from flaxvgg.conversion.pytorch import torch_networks
from flaxvgg.network.model import VGG


class Peer(NamedTuple):
    """A package's function from an image (1, 3, H, W) and a class to a map (H, W)."""

    package: str
    map: Callable[[torch.Tensor, int], np.ndarray]


def torch_network(model: VGG) -> torch.nn.Module:
    """torchvision's network with the same weights; hooks need ReLUs that are not in place."""
    state = {name: np.array(array) for name, array in flaxvgg.to_torch(model).items()}
    return torch_networks(model.config, state)[1]


def peers_of(network: torch.nn.Module, box: tuple[np.ndarray, np.ndarray]) -> dict[str, Peer]:
    """By the names of `methods_of`; `box` has the lowest and the highest image (3,), normalised."""
    low, high = (torch.tensor(np.array(x, np.float32)).view(1, 3, 1, 1) for x in box)
    layer = list(network.features.children())[-2]  # the ReLU before pool5
    composites = {
        "LRP epsilon-plus": zennit.composites.EpsilonPlus(),
        "LRP epsilon-plus-flat": zennit.composites.EpsilonPlusFlat(),
        "LRP epsilon-gamma-box": zennit.composites.EpsilonGammaBox(low=low, high=high),
        "LRP alpha2-beta1-flat": zennit.composites.EpsilonAlpha2Beta1Flat(),
        "excitation backprop": zennit.composites.ExcitationBackprop(),
    }
    found = {
        "saliency": _captum(captum.Saliency(network)),
        "input x gradient": _captum(captum.InputXGradient(network)),
        "integrated gradients": _captum(captum.IntegratedGradients(network), n_steps=25),
        "deconvolution": _captum(captum.Deconvolution(network)),
        "guided backprop": _captum(captum.GuidedBackprop(network)),
    }
    found |= {name: _zennit(network, composite) for name, composite in composites.items()}
    found |= {
        name: _grad_cam(kind(model=network, target_layers=[layer]))
        for name, kind in {"Grad-CAM": GradCAM, "LayerCAM": LayerCAM}.items()
    }
    return found


def _captum(method: captum.Attribution, **options: int) -> Peer:
    def found(image: torch.Tensor, label: int) -> np.ndarray:
        with warnings.catch_warnings():  # that it sets hooks
            warnings.simplefilter("ignore")
            values = method.attribute(image.requires_grad_(), target=label, **options)
        return values[0].sum(dim=0).detach().numpy()

    return Peer("captum", found)


def _zennit(network: torch.nn.Module, composite: zennit.composites.Composite) -> Peer:
    def found(image: torch.Tensor, label: int) -> np.ndarray:
        def score(output: torch.Tensor) -> torch.Tensor:
            return output * torch.nn.functional.one_hot(torch.tensor([label]), output.shape[1])

        attributor: Any  # whose type says that it gives nothing
        with Gradient(network, composite) as attributor:
            _, relevance = attributor(image, score)
        return relevance[0].sum(dim=0).detach().numpy()

    return Peer("zennit", found)


def _grad_cam(method: GradCAM) -> Peer:
    def found(image: torch.Tensor, label: int) -> np.ndarray:
        return method(image, [ClassifierOutputTarget(label)])[0]

    return Peer("grad-cam", found)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, relative to the largest magnitude of theirs."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def as_tensor(image: np.ndarray) -> torch.Tensor:
    """An image (1, H, W, 3) as PyTorch takes it."""
    return torch.from_numpy(np.array(image)).permute(0, 3, 1, 2).contiguous()


def figures_of_quantus(
    network: torch.nn.Module, maps: Float[np.ndarray, "n h w"], objects: Bool[np.ndarray, "n h w"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """What Quantus says of the same maps: relevance mass and rank accuracy, sparseness.

    Its mass accuracy adds signed values: it is given the positive part, which the paper adds.
    """
    with warnings.catch_warnings():  # that its dependencies warn of themselves
        warnings.simplefilter("ignore")
        import quantus

        quiet: dict[str, Any] = {"disable_warnings": True, "display_progressbar": False}
        images = np.zeros((len(maps), 3, *maps.shape[1:]), np.float32)  # which none looks at
        batch = {"model": network, "x_batch": images, "y_batch": np.zeros(len(maps), int)}
        masks = {"s_batch": objects[:, None].astype(int), "channel_first": True}
        values = maps[:, None].astype(np.float64)
        positive, sizes = np.maximum(values, 0), np.abs(values)
        found = {
            "mass": quantus.RelevanceMassAccuracy(**quiet)(**batch, a_batch=positive, **masks),
            "rank": quantus.RelevanceRankAccuracy(**quiet)(**batch, a_batch=values, **masks),
            "sparseness": quantus.Sparseness(**quiet)(**batch, a_batch=sizes, channel_first=True),
        }
    return {name: np.array(x, np.float64) for name, x in found.items()}
