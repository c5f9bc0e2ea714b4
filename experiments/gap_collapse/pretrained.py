"""On real convolutions that stay as they are: which heads learn, and what their maps point at."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import flaxvgg
from experiments.composed.fitting import features_of
from experiments.composed.scenes import Scenes, held_out_scenes, training_scenes
from experiments.gap_collapse.cures import (
    CURES,
    Batch,
    Cure,
    Report,
    as_trained,
    follow,
    initialised,
    sgd,
)
from experiments.gap_collapse.effort import Effort
from flaxvgg.evaluation.classification import mean_average_precision
from flaxvgg.evaluation.localisation import pointing_game
from flaxvgg.images.resizing import resize
from flaxvgg.network.model import VGG, run_layers

RATES = (0.01, 0.1, 1.0)
_DIAGNOSED = 4  # images


class Data(NamedTuple):
    """Scenes, and the outputs of the last ReLU of the convolutions for them."""

    scenes: Scenes
    features: Float[np.ndarray, "n h w c"]


def compare(model: VGG, effort: Effort, report: Report) -> dict[str, Any]:
    """A row for each head and learning rate, over several initialisations; and what to expect."""
    before = [layer.name for layer in model.config.conv_stack if layer.kind == "relu"][-1]

    def data(scenes: Scenes, start: float) -> Data:
        def tell(done: float) -> None:
            report("features", start + 0.05 * done)

        return Data(scenes, features_of(model, scenes.pixels, tell, before))

    learned = data(training_scenes(effort.training, 0, effort.size), 0)
    tested = data(held_out_scenes(effort.tests, 0, effort.size), 0.05)
    study = _Study(model, before, learned, tested, effort)
    rows = []
    for i, cure in enumerate(CURES):
        for j, rate in enumerate(RATES):
            done = (i + j / len(RATES)) / len(CURES)
            report(f"{cure.name}, learning rate {rate:g}", 0.1 + 0.9 * done)
            rows.append({"head": cure.name, "rate": rate} | study.row(cure, rate))
    boxes = np.array([box for of in tested.scenes.boxes for box in of.values()])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return {
        "rows": rows,
        "classes": learned.scenes.labels.shape[1],
        "positive": float(learned.scenes.labels.mean()),
        "questions": len(boxes),
        "chance": float(areas.mean() / effort.size**2),
    }


class _Study(NamedTuple):
    model: VGG
    before: str
    learned: Data
    tested: Data
    effort: Effort

    def row(self, cure: Cure, rate: float) -> dict[str, list[Any]]:
        """What became of each initialisation."""
        arch, labels = self.model.config.arch, self.learned.scenes.labels
        config = cure.config(arch, labels.shape[1], self.effort.head_channels)
        convolutions = flaxvgg.to_torch(self.model)
        trainer, found = None, []
        for seed in range(self.effort.seeds):
            weights = initialised(
                cure,
                arch,
                self.effort.head_channels,
                labels,
                seed=seed,
                convolutions=convolutions,
            )
            model = flaxvgg.from_torch(arch, weights, config=config, precision="default")
            trainer = trainer or flaxvgg.Trainer.of(
                model, sgd(rate, stack=False), after=self.before
            )
            state, losses = follow(trainer, model, self.batches(seed))
            found.append(self.outcome(as_trained(trainer, state), losses))
        return {name: [one[name] for one in found] for name in found[0]}

    def batches(self, seed: int) -> list[Batch]:
        """Batches of cached features, as many as there are steps."""
        random = np.random.default_rng(seed)
        features, labels = self.learned.features, self.learned.scenes.labels
        chosen = random.integers(len(features), size=(self.effort.steps, self.effort.batch))
        return [Batch(features[i], labels[i]) for i in chosen]

    def outcome(self, model: VGG, losses: list[float]) -> dict[str, Any]:
        """How the model ended, and how well it names and finds what is in other scenes."""
        pixels, labels = self.learned.scenes.pixels, self.learned.scenes.labels
        images = flaxvgg.normalise(pixels[:_DIAGNOSED], self.model.preprocessing)
        state = flaxvgg.diagnose(model, images, labels[:_DIAGNOSED]).state
        scores, maps = map(np.asarray, _outputs(model, self.tested.features, self.before))
        last = float(np.mean(losses[-len(losses) // 5 :]))  # of single batches, which differ
        found = {"losses": losses[::10], "last": last, "states": state}
        if state == "not finite" or not np.isfinite(scores).all():
            found["states"] = "not finite"
            return found | {"precision": None, "pointing": None, "channel": None}
        fc = getattr(model.head, "fc", None)
        weighted = maps if fc is None else np.einsum("nhwj,jk->nhwk", maps, fc.kernel[...])
        return found | {
            "precision": mean_average_precision(scores, self.tested.scenes.labels),
            "pointing": self.pointing(weighted),
            "channel": self.pointing(maps),
        }

    def pointing(self, maps: Float[np.ndarray, "n h w classes"]) -> float:
        """How often a class's map is highest on its object."""
        asked = [
            (maps[i, ..., item], box)
            for i, boxes in enumerate(self.tested.scenes.boxes)
            for item, box in boxes.items()
        ]
        size = self.effort.size
        heat = resize(jnp.asarray(np.stack([found for found, _ in asked])), (size, size))
        return pointing_game(np.asarray(heat), np.array([[box] for _, box in asked]))


@partial(jax.jit, static_argnames="before")
def _outputs(model: VGG, features: Float[Array, "n h w c"], before: str) -> tuple[Array, Array]:
    """Scores (N, K), and the map that they are the means of, (N, h, w, K)."""
    layers = model.config.layer_names
    pooled = layers[layers.index("gap") - 1]
    output = model.config.head_output.name
    stacks = model.conv_stack, model.head
    found = run_layers(stacks, features, {pooled, output}, after=before)
    return found[output], found[pooled]
