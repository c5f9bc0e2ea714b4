"""Mistakes in gradient and perturbation methods, each of which a test by hand finds.

A mistake is a line of a method's source that says something else. The methods are compiled from the
changed source; what the tests themselves take from the right one is still the right one, unless it
is what they look at.
"""

import inspect
import types
from collections.abc import Callable
from functools import partial

import pytest
import test_attribution_by_hand as by_hand

from flaxvgg.attribution import deep_lift, gradients, integrated, occlusion, rise, smoothing
from flaxvgg.attribution.methods import _METHODS
from helpers import quickly

Mistake = tuple[types.ModuleType, str, str, Callable[..., None]]

by_path = partial(by_hand.test_integrated_gradients, "gauss_legendre", None)
by_trapezoids = partial(by_hand.test_integrated_gradients, "riemann_trapezoid", 3)
of_noise = partial(by_hand.test_smooth_grad_and_var_grad, 3)
of_masks = by_hand.test_masks_are_shifted_and_as_open_as_asked
MISTAKES: dict[str, Mistake] = {
    "saliency keeps its sign": (
        *(gradients, "else jnp.abs(values)", "else values"),
        by_hand.test_saliency,
    ),
    "the gradient without the input": (
        *(gradients, "values * as_float32(images)[:, None]", "values"),
        by_hand.test_input_x_gradient_adds_up_to_the_score_less_its_bias,
    ),
    "the image instead of the difference": (
        integrated,
        "away * gradients",
        "jnp.broadcast_to(ends, away.shape) * gradients",
        by_path,
    ),
    "the gradient at the image alone": (
        integrated,
        "start + _wide(place) * away",
        "start + away",
        by_path,
    ),
    "places from -1 to 1": (integrated, "return (1 + places) / 2,", "return places,", by_path),
    "weights that add up to 2": (integrated, "2, weights / 2", "2, weights", by_path),
    "whole trapezoids at the ends": (integrated, "weights[[0, -1]] /= 2", "pass", by_trapezoids),
    "a delta without the baseline": (integrated, "(scores - before)", "scores", by_path),
    "baselines added up": (
        *(integrated, "counts * weights[step] / count", "counts * weights[step]"),
        by_hand.test_baselines_for_each_image_and_several,
    ),
    "what fills a chunk counts": (
        integrated,
        "counts * weights[step]",
        "weights[step]",
        by_trapezoids,
    ),
    "noise of the whole batch's range": (
        *(
            smoothing,
            "clean.max(axis=axes) - clean.min(axis=axes)",
            "jnp.ones(len(clean)) * jnp.ptp(clean)",
        ),
        of_noise,
    ),
    "noise of the largest value": (
        *(smoothing, "clean.max(axis=axes) - clean.min(axis=axes)", "clean.max(axis=axes)"),
        of_noise,
    ),
    "chunks of equal weight": (smoothing, "away * (new / both)", "away * 0.5", of_noise),
    "variances of chunks added up": (
        *(smoothing, " + jnp.square(away) * (old * new / both)", ""),
        of_noise,
    ),
    "the unbiased variance": (
        *(smoothing, "squares / options.samples", "squares / (options.samples - 1)"),
        of_noise,
    ),
    "the quotient inverted": (
        *(deep_lift, "(y - y0) / away, slopes", "away / (y - y0), slopes"),
        by_hand.test_deep_lifts_rescale_rule,
    ),
    "the gradient for the rescale rule": (
        *(deep_lift, "jnp.where(different, (y - y0) / away, slopes)", "slopes"),
        by_hand.test_deep_lifts_rescale_rule,
    ),
    "the fall where the image is largest": (
        *(
            deep_lift,
            "first0 * _over_windows(y - larger, x)",
            "first * _over_windows(y - larger, x)",
        ),
        by_hand.test_deep_lifts_max_pooling_rule,
    ),
    "the rise where the baseline is largest": (
        *(deep_lift, "moved = first * _over", "moved = first0 * _over"),
        by_hand.test_deep_lifts_max_pooling_rule,
    ),
    "a rise instead of a fall": (
        *(
            occlusion,
            "scores[None] - scores_of_variants(network, variants, targets)",
            "scores_of_variants(network, variants, targets) - scores[None]",
        ),
        by_hand.test_occlusion,
    ),
    "what is seen instead of what is hidden": (
        *(occlusion, "hidden[None], images[None])", "images[None], hidden[None])"),
        by_hand.test_occlusion,
    ),
    "windows added up": (
        *(occlusion, "total / jnp.asarray(covering, total.dtype)[None, None]", "total"),
        by_hand.test_windows_overlap_and_are_cut_off_at_the_edge,
    ),
    "each colour has the whole": (
        occlusion,
        "in_all_colours(maps)",
        "in_all_colours(3 * maps)",
        by_hand.test_occlusion,
    ),
    "masks of unequal chances": (
        rise,
        "(options.samples * options.p)",
        "options.samples",
        by_hand.test_rise,
    ),
    "logits for probabilities": (
        rise,
        "network = _WithSoftmax(*network)",
        "pass",
        by_hand.test_rise,
    ),
    "what fills a chunk of masks counts": (rise, " * counts[:, None, None]", "", by_hand.test_rise),
    "masks that are not shifted": (
        rise,
        "shift = jax.random.randint(",
        "shift = 0 * jax.random.randint(",
        of_masks,
    ),
    "one mask for all numbers": (rise, "jax.random.fold_in(key, number)", "key", of_masks),
    "masks as open as closed": (rise, "is_open.astype", "(~is_open).astype", of_masks),
}


@pytest.mark.parametrize(
    "name", quickly(MISTAKES, "places from -1 to 1", "a rise instead of a fall")
)
def test_mistake_is_found(name: str, monkeypatch: pytest.MonkeyPatch):
    module, right, wrong, check = MISTAKES[name]
    source = inspect.getsource(module)
    assert source.count(right) == 1
    mistaken = types.ModuleType(module.__name__)
    exec(compile(source.replace(right, wrong), module.__name__, "exec"), mistaken.__dict__)
    for method, changed in mistaken.METHODS.items():
        monkeypatch.setitem(_METHODS, method, changed)
    if check is of_masks:
        monkeypatch.setattr(by_hand, "masks", mistaken.masks)
    takes = "monkeypatch" in inspect.signature(check).parameters
    arguments = [monkeypatch] if takes else []
    with pytest.raises(AssertionError):
        check(*arguments)
