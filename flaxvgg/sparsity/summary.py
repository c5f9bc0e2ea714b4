"""What a sparsity report says, in words: how much is zero, and why."""

from collections.abc import Iterator

from flaxvgg.sparsity.report import LayerSummary, SparsityReport


def percent(fraction: float) -> str:
    """A fraction as it is written everywhere: 87.5 %."""
    return f"{100 * fraction:.1f} %"


def answered_layer(report: SparsityReport) -> LayerSummary:
    """The layer that the answer is about: the deepest feature map counted, or else the last."""
    config = report.config
    depths = {name: config.layer_names.index(config.resolve(name)) for name in report.layers}
    maps = [name for name in report.layers if depths[name] < len(config.conv_stack)]
    return report.layer(max(maps or report.layers, key=depths.__getitem__))


def headline(report: SparsityReport) -> str:
    """How much of the last feature map is zero, in a few words."""
    layer = answered_layer(report)
    return f"{percent(layer.zero_fraction)} of {layer.name} is zero"


def explanation(report: SparsityReport) -> Iterator[str]:
    """Why it is: the sentences that the counts bear out."""
    layer = answered_layer(report)
    relu = layer if layer.kind == "relu" else _layer_before(report, layer)
    if relu is not None and relu.negatives_before is not None and relu.zeros_before is not None:
        total, exact = relu.values.sum(), int(relu.zeros_before.sum())
        yield (
            f"{headline(report)} because {percent(relu.negatives_before.sum() / total)} of the "
            f"values before {relu.name} are negative: a ReLU makes each of them exactly zero. "
            f"Zero before it: {exact or 'none'} of {total:,}."
        )
    if layer.kind == "max_pool":
        fewer = f": fewer than the {percent(relu.zero_fraction)} before it" if relu else ""
        yield f"Max pooling gives a zero only where all four values of a window are zero{fewer}."
    silent, dead = layer.silent.sum() / report.images, int(layer.dead.sum())
    channels = f"{silent:,.0f} of its {layer.channels:,} channels are zero everywhere"
    if report.images == 1:
        yield f"{channels} in this image (silent)."
    else:
        in_all = f"{dead or 'none'} in all {report.images:,} (dead)"
        yield f"{channels} in an image, on average (silent); {in_all}."


def _layer_before(report: SparsityReport, layer: LayerSummary) -> LayerSummary | None:
    """The layer whose output this layer reads, if it was counted."""
    config = report.config
    order = config.layer_names
    i = order.index(config.resolve(layer.name)) - 1
    counted = {config.resolve(name): name for name in report.layers}
    return report.layer(counted[order[i]]) if i >= 0 and order[i] in counted else None
