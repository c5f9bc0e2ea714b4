"""The head that comes with the package, and the card that says what it is."""

import dataclasses
from typing import Any

import jax
import numpy as np

import flaxvgg
from experiments.composed.fitting import Report, features_of, fit_gap
from experiments.composed.objects import OBJECTS, TEST_BACKGROUNDS, TRAINING_BACKGROUNDS, open_photo
from experiments.composed.scenes import training_scenes
from experiments.gap_finetune.study import FITTED, Effort, Run
from flaxvgg.heads.sample_head import SampleHead, convolutions_digest
from flaxvgg.images.loading import fit_image, normalise
from flaxvgg.network.model import VGG


def embed(model: VGG, found: Run, effort: Effort, report: Report) -> SampleHead:
    """A head fitted as that of a run, but to both parts of the things, and what its card says.

    The figures are the run's: of a head that was fitted to one part, and tested on the other.
    """
    both = training_scenes(effort.training, effort.seeds[0], effort.size, ("training", "test"))
    features = features_of(model, both.pixels, report)
    gap = fit_gap(model, features, both.labels)
    names = tuple(item.name for item in OBJECTS)
    facts: dict[str, Any] = {
        "seed": effort.seeds[0],
        "size": effort.size,
        "training": effort.training,
        "tests": effort.tests,
        "figures": {name: round(value, 4) for name, value in found.figures[FITTED].items()},
        "photos": _photos(gap, effort.size),
    }
    return SampleHead(
        gap.config.arch,
        convolutions_digest(gap),
        dataclasses.replace(gap.provenance, classes=names),
        np.asarray(gap.head.fc.kernel[...]).T.copy(),
        np.asarray(gap.head.fc.bias[...]),
        facts,
    )


def _photos(gap: VGG, size: int) -> dict[str, dict[str, Any]]:
    """What the head says to the whole photos: of each the first class, and its probability."""
    recipe, found = gap.preprocessing, {}
    for photo in sorted({item.training.photo for item in OBJECTS}):
        pixels = fit_image(open_photo(photo), (size, size), recipe)
        logits = np.asarray(_logits(gap, normalise(pixels[None], recipe)), np.float64)[0]
        top = int(logits.argmax())
        probability = 1 / (1 + np.exp(-logits[top]))
        found[photo] = {"class": OBJECTS[top].name, "probability": round(float(probability), 3)}
    return found


@jax.jit
def _logits(gap: VGG, images: jax.Array) -> jax.Array:
    return gap(images)


def card(head: SampleHead, file: str = "sample_head.safetensors") -> str:
    """What a user of the head in that file should know, in Markdown."""
    figures, facts = head.facts["figures"], head.facts
    photos = "\n".join(
        f"| {photo} | {said['class']} | {said['probability']:.3f} |"
        for photo, said in facts["photos"].items()
    )
    return _CARD.format(
        file=file,
        arch=head.arch,
        source=head.provenance.source,
        sha256=head.provenance.sha256,
        convolutions=head.convolutions,
        recipe=head.provenance.preprocessing.name,
        count=len(head.bias),
        classes=", ".join(head.provenance.classes),
        channels=head.weight.shape[1],
        photos=photos,
        backgrounds=_listed(TRAINING_BACKGROUNDS),
        other_backgrounds=_listed(TEST_BACKGROUNDS),
        version=flaxvgg.__version__,
        **{name: facts[name] for name in ("seed", "size", "training", "tests")},
        **{name: f"{value:.3f}" for name, value in figures.items()},
    )


def _listed(crops) -> str:
    return ", ".join(crop.photo for crop in crops)


_CARD = """\
# The sample head

A linear layer on global average pooling, for {count} classes: {classes}.
It shows class activation maps of real features without a network connection:
`flaxvgg.with_sample_head(model)`, and the CAM in `flaxvgg demo`.

- **File**: {file}; `classifier.weight` ({count}, {channels}) and
  `classifier.bias` ({count}) in float32, as PyTorch names and lays them out. The record beside them
  holds every figure of this page.
- **It belongs to** one set of convolutions: the {arch} of {source}
  (SHA-256 of the file {sha256}), fed as the recipe
  "{recipe}" says. `with_sample_head` compares the parameters themselves, rounded to bfloat16
  (SHA-256 {convolutions}), and refuses others.
- **Scores** are logits, a class each: their sigmoid is a probability, and all may be low. Never
  their softmax.

## How it was made

`python -m experiments.gap_finetune`, seed {seed}, with flaxvgg {version}: logistic regression on
the pooled pool5 of {training} images of {size} px. Each is composed of no, one or two things, cut
out of photos that scikit-image and scikit-learn carry, on backgrounds
({backgrounds}). The convolutions stayed as they were.
Only the classes in an image were known, never the places.

## How good it is

Of every photo two parts were cut, which share no pixel. A head that was fitted to one part of each,
and tested on {tests} images composed of the others, on other backgrounds
({other_backgrounds}):

| mean average precision | pointing game | MaxBoxAccV2 |
|---:|---:|---:|
| {mean_average_precision} | {pointing_game} | {max_box_acc_v2} |

The head in the file was fitted to both parts. To the whole photos it says:

| photo | first class | probability |
|---|---|---:|
{photos}

## What it is not for

Each class is one thing in one photo: "cat" is this cat, and "tissue" this stain. Other photos get
answers that mean nothing. It is a sample for trying the maps, and no classifier.

## Licence

MIT, as flaxvgg. It holds {count} times {channels} numbers and no part of an image. The photos, as
the packages that carry them say: astronaut and galaxies (NASA), rocket (SpaceX) and text are in the
public domain; cat (Stefan van der Walt), cup (Rachel Michetti), retina (Mikael Häggström),
cameraman (Lav Varshney), brick and grass are CC0; coins (Brooklyn Museum) and tissue have no known
restrictions; motorcycle is from the Middlebury 2014 stereo benchmark; pagoda and flower are CC BY
2.0 (danielbuechele and vultilion on flickr.com).
"""
