"""Every method's map written plainly in PyTorch: autograd, and the formula of the paper.

They take a torchvision network, images (N, 3, H, W) and classes (each for every image), and give
raw maps (N, K, h, w): what `flaxvgg.explain` gives with convention "paper". They run in whatever
type the network has, so that float64 gives the reference.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F

Tensor = torch.Tensor
_CHUNK = 32  # passes of Score-CAM and Ablation-CAM that run as one batch


def maps_of(
    network: torch.nn.Module, images: Tensor, classes: Sequence[int], method: str
) -> Tensor:
    """The maps of one of `METHODS`, at the last ReLU; for "cam" of what is pooled."""
    if method in _BY_GRADIENT:
        return _by_gradient(network, images, classes, _BY_GRADIENT[method])
    return _OTHERS[method](network, images, classes)


def _by_gradient(
    network, images: Tensor, classes: Sequence[int], formula: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    with torch.no_grad():
        activations = _before_pooling(network, images)
    activations.requires_grad_()
    scores = _behind(network, activations)
    maps = []
    for c in classes:
        (gradient,) = torch.autograd.grad(scores[:, c].sum(), activations, retain_graph=True)
        maps.append(formula(activations.detach(), gradient))
    return torch.stack(maps, dim=1)


def _by_score(
    network, images: Tensor, classes: Sequence[int], score: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """Grad-CAM of scores (N,) that are made of the logits, less half of Hessian times A."""
    with torch.no_grad():
        activations = _before_pooling(network, images)
    activations.requires_grad_()
    logits = _behind(network, activations)
    maps = []
    for c in classes:
        total = score(logits, c).sum()
        (gradient,) = torch.autograd.grad(total, activations, create_graph=True)
        along = (gradient * activations.detach()).sum()
        (hessian,) = torch.autograd.grad(along, activations, retain_graph=True)
        maps.append(_grad_cam(activations.detach(), (gradient - hessian / 2).detach()))
    return torch.stack(maps, dim=1)


def _finer_score(logits: Tensor, c: int) -> Tensor:
    distances = (logits - logits[:, [c]]).abs().detach()
    distances[:, c] = torch.inf
    closest = distances.topk(min(3, logits.shape[1] - 1), largest=False).indices
    return logits[:, c] - 0.6 * logits.gather(1, closest).mean(dim=1)


def _shapley_score(logits: Tensor, c: int) -> Tensor:
    return logits[:, c] + torch.log_softmax(logits, dim=1)[:, c]


def _finer_cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    return _by_score(network, images, classes, _finer_score)


def _shapley_cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    return _by_score(network, images, classes, _shapley_score)


def _before_pooling(network, images: Tensor) -> Tensor:
    """The output of the last ReLU, before pool5."""
    return network.features[:-1](images)


def _behind(network, activations: Tensor) -> Tensor:
    """The scores, from the output of the last ReLU."""
    pooled = network.avgpool(network.features[-1](activations))
    return network.classifier(torch.flatten(pooled, 1))


def _sum(x: Tensor) -> Tensor:
    """Over space, which stays as two axes of one."""
    return x.sum(dim=(2, 3), keepdim=True)


def _grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g.mean(dim=(2, 3), keepdim=True) * a).sum(dim=1)


def _grad_cam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    alpha = torch.where(g > 0, g**2 / (2 * g**2 + _sum(a) * g**3), 0)
    return (_sum(alpha * F.relu(g)) * a).sum(dim=1)


def _xgrad_cam(a: Tensor, g: Tensor) -> Tensor:
    total = _sum(a)
    weights = torch.where(total == 0, 0, _sum(g * a) / total)
    return (weights * a).sum(dim=1)


def _hires_cam(a: Tensor, g: Tensor) -> Tensor:
    return (g * a).sum(dim=1)


def _layer_cam(a: Tensor, g: Tensor) -> Tensor:
    return (F.relu(g) * a).sum(dim=1)


def _elementwise_grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return F.relu(g * a).sum(dim=1)


def _eigen_grad_cam(a: Tensor, g: Tensor) -> Tensor:
    return _principal_component(g * a)


_BY_GRADIENT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "grad_cam": _grad_cam,
    "grad_cam++": _grad_cam_plus_plus,
    "xgrad_cam": _xgrad_cam,
    "hires_cam": _hires_cam,
    "layer_cam": _layer_cam,
    "elementwise_grad_cam": _elementwise_grad_cam,
    "eigen_grad_cam": _eigen_grad_cam,
}


def _principal_component(x: Tensor) -> Tensor:
    """By singular values, of the centred places; it rises with the sum over the channels."""
    n, _, h, w = x.shape
    rows = x.flatten(2).mT
    centred = rows - rows.mean(dim=1, keepdim=True)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    coordinates = (centred @ axes[:, 0, :, None])[..., 0]
    total = rows.sum(dim=2)
    rising = (coordinates * (total - total.mean(dim=1, keepdim=True))).sum(dim=1, keepdim=True)
    return torch.where(rising < 0, -coordinates, coordinates).reshape(n, h, w)


@torch.no_grad()
def _eigen_cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    component = _principal_component(_before_pooling(network, images))
    return component[:, None].expand(-1, len(classes), -1, -1)


@torch.no_grad()
def _fem(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    a = _before_pooling(network, images)
    above = a - a.mean(dim=(2, 3), keepdim=True)
    rare = above > 2 * (above**2).mean(dim=(2, 3), keepdim=True).sqrt()
    weights = rare.to(a.dtype).mean(dim=(2, 3), keepdim=True)
    return (weights * a).sum(dim=1)[:, None].expand(-1, len(classes), -1, -1)


@torch.no_grad()
def _kpca_cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    """By eigenvectors of the centred sigmoid kernel; it rises with the sum over the channels."""
    x = _before_pooling(network, images)
    n, channels, h, w = x.shape
    rows = x.flatten(2).mT
    centred = rows - rows.mean(dim=1, keepdim=True)
    kernel = torch.tanh(centred @ centred.mT / channels + 1)
    kernel = kernel - kernel.mean(dim=1, keepdim=True)
    kernel = kernel - kernel.mean(dim=2, keepdim=True)
    values, vectors = torch.linalg.eigh((kernel + kernel.mT) / 2)
    coordinates = vectors[..., -1] * values[:, -1:].clamp(min=0).sqrt()
    rising = (coordinates * centred.sum(dim=2)).sum(dim=1, keepdim=True)
    maps = torch.where(rising < 0, -coordinates, coordinates).reshape(n, 1, h, w)
    return maps.expand(-1, len(classes), -1, -1)


@torch.no_grad()
def _cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    weights = network.classifier.weight[list(classes)]
    return torch.einsum("nchw,kc->nkhw", network.features(images), weights)


@torch.no_grad()
def _score_cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    activations = _before_pooling(network, images)
    maps = []
    for image, channels in zip(images, activations, strict=True):
        size = tuple(image.shape[-2:])
        masks = F.interpolate(channels[:, None], size, mode="bilinear", align_corners=False)
        masked = image * _unit(masks, dims=(2, 3))
        scores = torch.cat([network(part) for part in masked.split(_CHUNK)])
        weights = torch.softmax(scores[:, list(classes)], dim=0)
        maps.append(torch.einsum("chw,ck->khw", channels, weights))
    return torch.stack(maps)


@torch.no_grad()
def _ablation_cam(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    maps = []
    for activations in _before_pooling(network, images).split(1):
        wanted = list(classes)
        before = _behind(network, activations)[:, wanted]
        channels = torch.arange(activations.shape[1], device=images.device)
        without = torch.cat(
            [
                _behind(network, activations * (channels[None] != part[:, None])[..., None, None])
                for part in channels.split(_CHUNK)
            ]
        )
        weights = (before - without[:, wanted]) / before.abs()
        maps.append(torch.einsum("chw,ck->khw", activations[0], weights))
    return torch.stack(maps)


def _full_grad(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    images = images.detach().requires_grad_()
    outputs: list[tuple[Tensor, Tensor]] = [(images, images)]  # what adds to the score, and where
    x = images
    for module in network.features:
        x = module(x)
        if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
            outputs.append((_bias(module)[:, None, None], x))
    scores = network.classifier(torch.flatten(network.avgpool(x), 1))
    maps = []
    for c in classes:
        places = [place for _, place in outputs]
        gradients = torch.autograd.grad(scores[:, c].sum(), places, retain_graph=True)
        total = torch.zeros_like(images[:, :1])
        for (factor, _), gradient in zip(outputs, gradients, strict=True):
            term = _unit((factor * gradient).detach().abs(), dims=(1, 2, 3), eps=1e-6)
            summed = term.sum(dim=1, keepdim=True)
            size = tuple(images.shape[-2:])
            total = total + F.interpolate(summed, size, mode="bilinear", align_corners=True)
        maps.append(total[:, 0])
    return torch.stack(maps, dim=1).detach()


def _bias(module) -> Tensor:
    if isinstance(module, torch.nn.Conv2d):
        return module.bias
    deviation = (module.running_var + module.eps).sqrt()
    return module.bias - module.running_mean * module.weight / deviation


def _unit(x: Tensor, dims: tuple[int, ...], eps: float = 0.0) -> Tensor:
    """x scaled to [0, 1]; 0 where it is constant."""
    risen = x - x.amin(dim=dims, keepdim=True)
    top = risen.amax(dim=dims, keepdim=True) + eps
    return risen / torch.where(top == 0, 1, top)


@torch.no_grad()
def _fully_convolutional(network, images: Tensor, classes: Sequence[int]) -> Tensor:
    """The classifier on every 7x7 window of the image at twice its size."""
    x = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    x = network.features(x)
    first, *others = (m for m in network.classifier if isinstance(m, torch.nn.Linear))
    x = F.conv2d(x, first.weight.unflatten(1, (-1, 7, 7)), first.bias)
    for linear in others:
        x = F.conv2d(F.relu(x), linear.weight[..., None, None], linear.bias)
    return F.pad(x, (3, 3, 3, 3), mode="replicate")[:, list(classes)]


_OTHERS: dict[str, Callable[..., Tensor]] = {
    "cam": _cam,
    "finer_cam": _finer_cam,
    "shapley_cam": _shapley_cam,
    "eigen_cam": _eigen_cam,
    "fem": _fem,
    "kpca_cam": _kpca_cam,
    "score_cam": _score_cam,
    "ablation_cam": _ablation_cam,
    "full_grad": _full_grad,
    "fully_convolutional": _fully_convolutional,
}

# Without those that are random, and sums or products of others.
METHODS = (*_BY_GRADIENT, *_OTHERS)


def hooked_grad_cam(network: Any, images: Tensor, classes: Sequence[int]) -> Tensor:
    """Grad-CAM as packages with hooks do it: the image once for each class, and `backward`.

    The backward pass runs through the whole network, whose weights get gradients, too.
    """
    kept: dict[str, Tensor] = {}

    def keep(module, inputs, output: Tensor) -> None:
        kept["activations"] = output.detach().clone()  # pool5 follows, and ReLUs may work in place
        output.register_hook(lambda gradient: kept.update(gradient=gradient))

    handle = network.features[-2].register_forward_hook(keep)
    try:
        network.zero_grad()
        scores = network(images.repeat(len(classes), 1, 1, 1))
        places = torch.arange(len(classes), device=images.device)
        scores[places, torch.tensor(classes, device=images.device)].sum().backward()
    finally:
        handle.remove()
    return _grad_cam(kept["activations"], kept["gradient"])[None]
