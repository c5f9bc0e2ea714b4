"""The model parameter randomisation test: does an explanation depend on what the model learned?"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from flaxvgg.drawn import Drawn
from flaxvgg.evaluation.inputs import check_finite, check_key
from flaxvgg.evaluation.similarity import SSIM_WINDOW, spearman, ssim
from flaxvgg.network.config import Layer
from flaxvgg.network.model import VGG, AnyArray, LayerStack

Order = Literal["cascading", "independent"]
ORDERS = get_args(Order)
Explainer = Callable[[VGG], Float[AnyArray, "n h w"] | Float[AnyArray, "n h w 3"]]

_RANDOMISED = ("conv", "linear", "batch_norm")
_BY_METHOD = dict[str, Float[np.ndarray, "layers n"]]


@dataclasses.dataclass(frozen=True)
class Randomisation(Drawn):
    """How alike the maps of N images are before and after L layers are randomised, by method.

    `layers` from the top, the logits' first; in `order` "cascading" each is randomised with all
    above it. `original` has each method's maps (N, H, W), `maps` those after each step
    (L, N, H, W). The similarities (L, N) are `spearman`, `absolute_spearman` and `ssim`: see
    `flaxvgg.parameter_randomisation`. `.plot(images)` draws the maps, method by method and layer by
    layer: `plotting.randomisation.randomisation_figure`.

    >>> def saliency(model):
    ...     return flaxvgg.attribute(model, images, 0, "saliency").values[:, 0]
    >>> found = flaxvgg.parameter_randomisation(
    ...     model, {"saliency": saliency}, key=jax.random.key(0), layers=["fc", "conv5_2"]
    ... )
    >>> found.layers, found.maps["saliency"].shape
    (('fc', 'conv5_2'), (2, 2, 64, 64))
    """

    order: Order
    layers: tuple[str, ...]
    original: dict[str, Float[np.ndarray, "n h w"]]
    maps: dict[str, Float[np.ndarray, "layers n h w"]]
    spearman: _BY_METHOD
    absolute_spearman: _BY_METHOD
    ssim: _BY_METHOD


def parameter_randomisation(
    model: VGG,
    explainers: Mapping[str, Explainer],
    *,
    key: Key[Array, ""],
    order: Order = "cascading",
    layers: list[str] | tuple[str, ...] | None = None,
) -> Randomisation:
    """How alike maps of a model with random layers are to its own; alike is bad.

    `explainers` are functions of a model, by name, that give maps (N, H, W), or attributions
    (N, H, W, 3), which are summed over colours, of the same images and classes every time. Layers
    with parameters are drawn anew as torchvision initialises them, from the top: "cascading" leaves
    those above random, "independent" randomises one at a time. BatchNorms are layers of their own,
    and forget their statistics. `layers` are those to be randomised, by any of their names; None is
    all. The model itself stays as it is. A layer has the same new parameters in either order:
    those of `fold_in(key, i)` for the i-th layer with parameters, from the top.

    Returns a `Randomisation` with, for each method, layer and image, three similarities of
    Adebayo et al. 2018 (arXiv:1810.03292): `spearman`, the rank correlation of the maps, and
    `absolute_spearman` of their magnitudes (NaN where a map is constant); `ssim`, of the magnitudes
    over the largest one of each map, in windows of 7x7.

    Raises ValueError for no explainers, maps of other shapes, under 7x7 or, for the model itself,
    not finite, an unknown order or layer, layers without parameters, a prepared model, and what is
    no key.

    >>> def saliency(model):
    ...     return flaxvgg.attribute(model, images, 0, "saliency").values[:, 0]
    >>> found = flaxvgg.parameter_randomisation(
    ...     model, {"saliency": saliency}, key=jax.random.key(0), layers=["fc"]
    ... )
    >>> found.spearman["saliency"].shape
    (1, 2)
    """
    check_key(key)
    if order not in ORDERS:
        raise ValueError(f"no order {order!r}: choose from {', '.join(ORDERS)}")
    if not explainers:
        raise ValueError("no explainers: pass functions from a model to maps, by name")
    if model.prepared_for:
        raise ValueError("a prepared model keeps its kernels: pass the one it was prepared from")
    names = _layers(model, layers)
    original = {name: _maps(name, explain(model)) for name, explain in explainers.items()}
    for name, maps in original.items():
        check_finite(jnp.asarray(maps), f"the {name} map")
    steps: dict[str, list[np.ndarray]] = {name: [] for name in explainers}
    for randomised in randomised_models(model, names, order, key):
        for name, explain in explainers.items():
            maps = _maps(name, explain(randomised))
            if maps.shape != original[name].shape:
                raise ValueError(f"{name!r} gave maps of another shape for a randomised model")
            steps[name].append(maps)
    found = {name: np.stack(maps) for name, maps in steps.items()}

    def each(similarity: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> _BY_METHOD:
        return {
            name: similarity(np.broadcast_to(original[name], maps.shape), maps)
            for name, maps in found.items()
        }

    return Randomisation(
        order,
        names,
        original,
        found,
        each(lambda a, b: spearman(_flat(a), _flat(b))),
        each(lambda a, b: spearman(_flat(np.abs(a)), _flat(np.abs(b)))),
        each(lambda a, b: ssim(_magnitudes(a), _magnitudes(b))),
    )


def randomised_models(
    model: VGG, names: tuple[str, ...], order: Order, key: Key[Array, ""]
) -> Iterator[VGG]:
    """The model with each of these layers random, with or without those before it in `names`."""
    places = {layer.name: i for i, layer in enumerate(_with_parameters(model))}
    randomised = nnx.clone(model)
    for name in names:
        if order == "independent":
            randomised = nnx.clone(model)
        stack = next(s for s in (randomised.conv_stack, randomised.head) if hasattr(s, name))
        layer = next(layer for layer in stack.layers if layer.name == name)
        _draw_anew(getattr(stack, name), layer, jax.random.fold_in(key, places[name]))
        yield randomised


def _draw_anew(module: nnx.Module, layer: Layer, key: Key[Array, ""]) -> None:
    """Give a layer's module the parameters and statistics of a new one."""
    dtype = jax.tree.leaves(nnx.state(module))[0].dtype
    kwargs = {"dtype": dtype, "param_dtype": dtype, "precision": None, "rngs": nnx.Rngs(key)}
    fresh = getattr(LayerStack((layer,), **kwargs), layer.name)
    nnx.update(module, nnx.state(fresh))


def _with_parameters(model: VGG) -> list[Layer]:
    """From the top."""
    return [layer for layer in reversed(model.config.layers) if layer.kind in _RANDOMISED]


def _layers(model: VGG, layers: list[str] | tuple[str, ...] | None) -> tuple[str, ...]:
    names = [layer.name for layer in _with_parameters(model)]
    if layers is None:
        return tuple(names)
    wanted = {model.config.resolve(name) for name in layers}
    without = sorted(wanted - set(names))
    if without or not wanted:
        what = f"{without[0]!r} has no parameters" if without else "no layers were given"
        raise ValueError(f"{what}: choose from {', '.join(names)}")
    return tuple(name for name in names if name in wanted)


def _maps(name: str, found: AnyArray) -> Float[np.ndarray, "n h w"]:
    maps = np.asarray(found)
    if maps.ndim == 4 and maps.shape[-1] == 3:
        maps = maps.sum(axis=-1)
    if maps.ndim != 3 or not len(maps) or min(maps.shape[1:]) < SSIM_WINDOW:
        raise ValueError(
            f"{name!r} gave {maps.shape}: an explainer must give maps (N, H, W), or (N, H, W, 3), "
            f"N at least 1 and both sides at least {SSIM_WINDOW}"
        )
    return maps


def _flat(maps: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n k"]:
    return maps.reshape(*maps.shape[:-2], -1)


def _magnitudes(maps: Float[np.ndarray, "*n h w"]) -> Float[np.ndarray, "*n h w"]:
    """In [0, 1]; zeros stay zeros."""
    maps = np.abs(maps.astype(np.float64))
    largest = maps.max(axis=(-2, -1), keepdims=True)
    return maps / np.where(largest == 0, 1, largest)
