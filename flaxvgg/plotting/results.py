"""The picture and the page of a result, by its type: what `.plot()` and `.to_html()` come to."""

import functools
from typing import TYPE_CHECKING, Any

from flaxvgg.attribution.attribution import Attribution
from flaxvgg.cam.explanation import Explanation
from flaxvgg.evaluation.randomisation import Randomisation
from flaxvgg.plotting.attribution import attribution_figure
from flaxvgg.plotting.cam import explanation_figure, explanation_overlay
from flaxvgg.plotting.maps_page import maps_page
from flaxvgg.plotting.notebook import attribution_html, explanation_html, report_html
from flaxvgg.plotting.randomisation import randomisation_figure
from flaxvgg.plotting.sparsity import layers_figure
from flaxvgg.sparsity.report import SparsityReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@functools.singledispatch
def figure(result: Any, *args: Any, **options: Any) -> "Figure":
    """A matplotlib figure of a result. Raises TypeError for what is none."""
    raise TypeError(f"there is no picture of a {type(result).__name__}")


figure.register(SparsityReport, layers_figure)
figure.register(Explanation, explanation_figure)
figure.register(Attribution, attribution_figure)
figure.register(Randomisation, randomisation_figure)


@functools.singledispatch
def page(result: Any, *args: Any, **options: Any) -> str:
    """The HTML of a page of a result. Raises TypeError for what has none."""
    raise TypeError(f"there is no page of a {type(result).__name__}")


page.register(Explanation, maps_page)
page.register(Attribution, maps_page)


@functools.singledispatch
def html(result: Any) -> str:
    """A small table of a result for a notebook. Raises TypeError for what is none."""
    raise TypeError(f"there is no table of a {type(result).__name__}")


html.register(SparsityReport, report_html)
html.register(Explanation, explanation_html)
html.register(Attribution, attribution_html)

overlay = explanation_overlay
