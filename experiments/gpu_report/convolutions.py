"""python -m experiments.gpu_report.convolutions: real weights in a file small enough to carry.

The 13 convolutions of VGG16 in float16, 29 MB, under torchvision's names. What is lost by rounding
is lost on both sides: PyTorch's network gets the same numbers.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from experiments.real_weights import REAL_WEIGHTS


def main(arguments: Sequence[str] | None = None) -> None:
    """Read weights as `python -m convert` does, and write their convolutions."""
    from flaxvgg.conversion.reading import read_source

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", default=REAL_WEIGHTS, help="as `python -m convert` takes them")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file")
    options = parser.parse_args(arguments)
    source = read_source(options.weights)
    write(source.state_dict, source.provenance.preprocessing.name, options.out)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


def write(state_dict: Mapping[str, np.ndarray], preprocessing: str, path: Path) -> None:
    """The convolutions as float16, with the name of what images they expect."""
    halves = {
        name: np.ascontiguousarray(value, np.float16)
        for name, value in state_dict.items()
        if name.startswith("features.")
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(halves, path, {"preprocessing": preprocessing})


if __name__ == "__main__":
    main()
