"""Measures of maps into a store: those of `flaxvgg.evaluation`, image by image."""

import jax
import numpy as np
import pytest
from PIL import Image

import flaxvgg
from flaxvgg.cam.photos import plan_maps
from flaxvgg.images.loading import load_images
from flaxvgg.streaming import (
    StoreError,
    faithfulness_job,
    features_job,
    find_source,
    read_faithfulness,
    stream,
)
from helpers import TINY_GAP, TinyConfig, random_model

SIZE = (32, 32)


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (36, 40, 3), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_every_row_is_what_the_measures_give(photos, tmp_path):
    model = random_model(TinyConfig("vgg11", TINY_GAP))
    plan = plan_maps(model, ("cam",), "2,0", None, "paper", SIZE)
    source = find_source([photos])
    job = faithfulness_job(model, plan, steps=4, seed=5)
    store = stream(job, source, tmp_path / "f.zarr", size=SIZE, batch=2).store
    images = load_images([photos / name for name in source.names], SIZE, model.preprocessing)
    heat = flaxvgg.explain(model, images, [2, 0], "cam").heatmaps()
    assert not any(name.endswith("_heat") for name in store.arrays())
    for k, label in enumerate((2, 0)):
        maps, classes = heat[:, k], np.full(5, label)
        assert (store.read("class")[:, k] == label).all()
        expected = {
            "deletion": flaxvgg.deletion(model, images, maps, classes, steps=4),
            "insertion": flaxvgg.insertion(model, images, maps, classes, steps=4),
            "sparseness": flaxvgg.sparseness(maps),
            "complexity": flaxvgg.complexity(maps),
            "road": [
                flaxvgg.road(
                    model,
                    images[i : i + 1],
                    maps[i : i + 1],
                    classes[:1],
                    key=jax.random.fold_in(jax.random.key(5), i),
                ).combined[0]
                for i in range(5)
            ],
        }
        for name, values in expected.items():
            found = store.read(f"cam_{name}")[:, k]
            assert found == pytest.approx(np.asarray(values), abs=2e-5, nan_ok=True), name
    means = read_faithfulness(store)["cam"]
    assert means["maps"] == 10
    assert means["deletion"] == pytest.approx(store.read("cam_deletion").mean(), rel=1e-5)


def test_what_cannot_be_judged(photos, tmp_path):
    model = random_model(TinyConfig("vgg11", TINY_GAP))
    plan = plan_maps(model, ("cam",), "2", None, "paper", SIZE)
    with pytest.raises(ValueError, match="steps"):
        faithfulness_job(model, plan, steps=0)
    stack = random_model(TinyConfig.features_only("vgg11", "none"))
    with pytest.raises(ValueError, match="no logits"):
        faithfulness_job(stack, plan)
    source = find_source([photos])
    other = stream(features_job(model, ["gap"]), source, tmp_path / "g.zarr", size=SIZE).store
    with pytest.raises(StoreError, match="has features, and no faithfulness"):
        read_faithfulness(other)
    broken = random_model(TinyConfig("vgg11", TINY_GAP))
    broken.head.fc.kernel[...] = broken.head.fc.kernel[...] * np.nan
    job = faithfulness_job(broken, plan, steps=2)
    store = stream(job, source, tmp_path / "b.zarr", size=SIZE).store
    assert np.isnan(store.read("cam_road")).all()
    with pytest.raises(StoreError, match="no map of cam has been judged"):
        read_faithfulness(store)
