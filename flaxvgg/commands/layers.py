"""flaxvgg layers: every layer of a network, with all its names."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flaxvgg.commands import options
from flaxvgg.commands.console import clear_errors, show
from flaxvgg.commands.options import parse_size
from flaxvgg.network.config import ARCHITECTURES, VGGConfig, check_arch

if TYPE_CHECKING:
    from flaxvgg.network.summary import LayerRow


def layers(
    network: Annotated[
        str,
        typer.Argument(
            help="vgg11 ... vgg19_bn, or the path of a checkpoint or of weights.",
            autocompletion=lambda: list(ARCHITECTURES),
        ),
    ] = "vgg16",
    size: options.Size = "224x224",
    as_json: options.Json = False,
) -> None:
    """List the layers of a network by all their names, with outputs and parameters.

    Each name is one that --layers and --layer take.
    """
    with clear_errors("nothing was changed"):
        from flaxvgg.network.summary import layer_rows

        config = _config_of(network)
        rows = layer_rows(config, parse_size(size))
        value = {
            "architecture": config.arch,
            "size": list(parse_size(size)),
            "layers": [row._asdict() for row in rows],
        }
        show(lambda: _table(config, rows), value, as_json=as_json)


def _config_of(network: str) -> VGGConfig:
    if network in ARCHITECTURES and not Path(network).exists():
        return VGGConfig.classifier(network)
    if network.startswith("vgg") and "." not in network and not Path(network).exists():
        check_arch(network)
    from flaxvgg.weights.checkpoint import is_checkpoint, load

    if is_checkpoint(Path(network)):
        return load(network).config
    from flaxvgg.conversion.reading import read_source
    from flaxvgg.weights.mapping import config_for

    source = read_source(network)
    return config_for(source.arch, source.state_dict)[0]


def _table(config: VGGConfig, rows: list["LayerRow"]):
    from flaxvgg.commands.tables import compact, fitted

    total = sum(row.parameters for row in rows)
    table = compact(config.arch, f"{total:,} parameters")
    for name in ("layer", "PyTorch", "Keras"):
        table.add_column(name, no_wrap=True)
    table.add_column("output", justify="right", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    for row in rows:
        shape = "x".join(map(str, row.shape))
        parameters = f"{row.parameters:,}" if row.parameters else ""
        table.add_row(row.name, row.torch, row.keras, shape, parameters)
    return fitted(table, "parameters")
