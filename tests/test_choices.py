"""Names that are chosen from: a type checker, a message and the code have the same ones."""

import inspect
import typing
from typing import Any, Literal, get_args, get_origin

import pytest

import flaxvgg
from flaxvgg.attribution import composites, methods
from flaxvgg.cam import conventions, formulas
from flaxvgg.cam.options import OPTIONS
from flaxvgg.evaluation import inputs
from flaxvgg.images import resizing
from flaxvgg.network import config
from flaxvgg.perceptual import losses
from flaxvgg.training import losses as training_losses


def _choices(function: Any, argument: str) -> set[str]:
    """The words of an argument's `Literal`, alone or within a union."""
    hint = typing.get_type_hints(inspect.unwrap(function))[argument]
    kinds = (hint, *get_args(hint))
    return {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}


CHOICES = {
    "attributions": (_choices(flaxvgg.attribute, "method"), methods._METHODS),
    "conventions": (_choices(flaxvgg.explain, "convention"), conventions.CONVENTIONS),
    "perceptual losses": (_choices(flaxvgg.perceptual_loss, "preset"), losses.PERCEPTUAL),
    "style losses": (_choices(flaxvgg.style_loss, "preset"), losses.STYLE),
    "poolings": (_choices(flaxvgg.with_pooling, "pooling"), config.POOLINGS),
    "losses": (_choices(flaxvgg.diagnose, "loss"), training_losses.LOSSES),
    "interpolations": (_choices(flaxvgg.Explanation.heatmaps, "interpolation"), resizing._TAPS),
    "activations": (_choices(flaxvgg.road, "activation"), inputs._ACTIVATIONS),
    "composites": (set(get_args(composites.Composite)), composites.COMPOSITES),
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_names_in_a_signature_are_those_that_there_are(name):
    written, known = CHOICES[name]
    assert written == set(known)


def test_every_formula_has_its_name_among_the_methods():
    """The rest of `METHODS` are branches of `cam.maps`, which other tests run one by one."""
    written = _choices(flaxvgg.explain, "method")
    assert written == set(flaxvgg.METHODS)
    assert {*formulas.GRADIENT_METHODS, *formulas.FEATURE_METHODS, *OPTIONS} <= written


# Names of networks are spelt as they please by those who derive them; paths are those of a pytree.
_FREE = {("from_torch", "arch"), ("replicated", "path"), ("fully_sharded", "path")}


def test_what_is_chosen_from_says_so_in_its_signature():
    """No argument of a public function with a word as default is annotated as any text."""
    found = set()
    for name in flaxvgg.__all__:
        public = getattr(flaxvgg, name)
        if inspect.isfunction(inspect.unwrap(public)):
            for argument in inspect.signature(inspect.unwrap(public)).parameters.values():
                if argument.annotation is str:
                    found.add((name, argument.name))
    assert found == _FREE
