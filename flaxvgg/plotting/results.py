"""The picture of a result, by its type: what `.plot()` of every result, and a notebook, show."""

import functools
from typing import TYPE_CHECKING, Any

from flaxvgg.attribution.attribution import Attribution
from flaxvgg.cam.explanation import Explanation
from flaxvgg.plotting.attribution import attribution_figure
from flaxvgg.plotting.cam import explanation_figure, explanation_overlay
from flaxvgg.plotting.notebook import attribution_html, explanation_html, report_html
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


@functools.singledispatch
def html(result: Any) -> str:
    """A small table of a result for a notebook. Raises TypeError for what is none."""
    raise TypeError(f"there is no table of a {type(result).__name__}")


html.register(SparsityReport, report_html)
html.register(Explanation, explanation_html)
html.register(Attribution, attribution_html)

overlay = explanation_overlay
