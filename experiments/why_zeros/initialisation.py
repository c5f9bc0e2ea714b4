"""(b) That is how ReLU networks are, trained or not."""

from collections.abc import Callable

import numpy as np
from flax import nnx

import flaxvgg
from experiments.why_zeros.subject import Subject, count, spread, with_arrays, zeros
from experiments.why_zeros.text import Table, percent, spread_of
from flaxvgg.network.model import VGG

CLAIM = "A ReLU network is like that, trained or not"
METHOD = (
    "The same photos through networks with other weights; ranges are over seeds. Shuffling leaves "
    "each filter its bias and the values of its weights, and puts them in random places."
)

TRAINED = "trained"
NO_BIASES = "trained, biases set to 0"
SHUFFLED = "trained, each filter's weights shuffled"
HE = "He (torchvision, biases 0)"
PYTORCH = "PyTorch's default (with biases)"
PYTORCH_NO_BIASES = "PyTorch's default, biases set to 0"

StateDict = dict[str, np.ndarray]


def he(model: VGG, seed: int) -> VGG:
    """torchvision's initialisation of VGG, which is flaxvgg's."""
    fresh = VGG(model.config, precision="default", provenance=model.provenance, rngs=nnx.Rngs(seed))
    return with_arrays(model, flaxvgg.to_torch(fresh))


def pytorch_default(model: VGG, seed: int) -> VGG:
    """What `torch.nn.Conv2d` starts with: weights and biases uniform within 1/sqrt(fan_in)."""
    rng = np.random.default_rng(seed)
    arrays = flaxvgg.to_torch(model)
    for name in _weights(arrays):
        bias = name.removesuffix("weight") + "bias"
        bound = 1 / np.sqrt(arrays[name][0].size)
        for array in (name, bias):
            arrays[array] = rng.uniform(-bound, bound, arrays[array].shape).astype(np.float32)
    return with_arrays(model, arrays)


def shuffled(model: VGG, seed: int) -> VGG:
    """Each filter keeps its bias and the values of its weights; where they are is random."""
    rng = np.random.default_rng(seed)
    arrays = flaxvgg.to_torch(model)
    for name in _weights(arrays):
        flat = arrays[name].reshape(len(arrays[name]), -1)
        arrays[name] = rng.permuted(flat, axis=1).reshape(arrays[name].shape)
    return with_arrays(model, arrays)


def without_biases(model: VGG) -> VGG:
    """The same weights, and no biases."""
    arrays = flaxvgg.to_torch(model)
    return with_arrays(
        model, {k: np.zeros_like(v) if k.endswith("bias") else v for k, v in arrays.items()}
    )


def _weights(arrays: StateDict) -> list[str]:
    """The names of the convolutions' weights."""
    return [name for name, array in arrays.items() if array.ndim == 4]


# Each network's weights: from the trained network and a seed; seedless ones are made once.
NETWORKS: dict[str, tuple[Callable[[VGG, int], VGG], bool]] = {
    TRAINED: (lambda model, _: model, False),
    NO_BIASES: (lambda model, _: without_biases(model), False),
    SHUFFLED: (shuffled, True),
    HE: (he, True),
    PYTORCH: (pytorch_default, True),
    PYTORCH_NO_BIASES: (lambda model, seed: without_biases(pytorch_default(model, seed)), True),
}


def measure(subject: Subject) -> dict:
    """Zeros of the same photos by layer in each network; spreads are over seeds."""
    networks = []
    for name, (make, random) in NETWORKS.items():
        by_seed = []
        for seed in range(subject.effort.seeds if random else 1):
            model = make(subject.model, seed)
            counts = subject.counts if model is subject.model else count(model, subject.pixels)
            silent = np.asarray(counts["pool5"].silent)
            by_seed.append(
                {
                    "zeros": [float(zeros(counts, layer).mean()) for layer in counts],
                    "pool5": float(zeros(counts, "pool5").mean()),
                    "silent": float(silent.mean()),
                    # Channels for which it makes no difference which photo is shown.
                    "silent_in_all": float(silent.all(axis=0).mean()),
                    "silent_in_some": float((silent.any(axis=0) & ~silent.all(axis=0)).mean()),
                }
            )
        networks.append(
            {
                "network": name,
                "seeds": len(by_seed),
                "zeros": np.mean([run["zeros"] for run in by_seed], axis=0).tolist(),
                **{
                    key: spread(np.array([run[key] for run in by_seed]))
                    for key in ("pool5", "silent", "silent_in_all", "silent_in_some")
                },
            }
        )
    return {"layers": list(subject.counts), "networks": networks}


def verdict(found: dict) -> str:
    """One sentence."""
    networks = {row["network"]: row for row in found["networks"]}
    relu = len(found["layers"]) - 2  # before pool5
    trained, he_, pytorch = (networks[name] for name in (TRAINED, HE, PYTORCH))
    untrained = max(he_["pool5"]["max"], pytorch["pool5"]["max"])
    learned = trained["pool5"]["mean"] > untrained
    change = abs(networks[NO_BIASES]["pool5"]["mean"] - trained["pool5"]["mean"])
    return (
        f"{'False' if learned else 'True'}: with random weights {percent(he_['zeros'][relu])} of "
        f"{found['layers'][relu]} are zero (He) or {percent(pytorch['zeros'][relu])} (PyTorch's "
        f"default), after training {percent(trained['zeros'][relu])}; setting the trained biases "
        f"to 0 moves pool5 by {100 * change:.1f} points, and "
        "where a random network is zero hardly depends on the photo: channels silent in some "
        f"photos but not in all are {percent(he_['silent_in_some']['mean'])} and "
        f"{percent(pytorch['silent_in_some']['mean'])} of them, against "
        f"{percent(trained['silent_in_some']['mean'])}."
    )


def table(found: dict) -> Table:
    """One row a network."""
    relu = len(found["layers"]) - 2
    header = [
        "network", "seeds", f"zeros in {found['layers'][relu]}", "zeros in pool5",
        "channels silent in a photo", "in all photos", "in some, not in all",
    ]  # fmt: skip
    return header, [
        [
            row["network"],
            str(row["seeds"]),
            percent(row["zeros"][relu]),
            spread_of(row["pool5"]) if row["seeds"] > 1 else percent(row["pool5"]["mean"]),
            *(percent(row[key]["mean"]) for key in ("silent", "silent_in_all", "silent_in_some")),
        ]
        for row in found["networks"]
    ]
