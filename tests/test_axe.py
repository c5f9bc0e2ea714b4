"""axe-core finds no serious fault in any page: labels, contrast, order, what a screen reader says.

It comes from npm and is not part of this repository: `make axe`.
"""

import os
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from browser import Browser, find_browser
from pages import DESK, PHONE, opened
from PIL import Image
from test_pages import CLASSES, NAMES, SIZE, explanation, pictures

import flaxvgg
from flaxvgg.attribution.attribution import Attribution
from flaxvgg.cam.photos import plan_maps
from flaxvgg.commands.serving import serve
from flaxvgg.network.provenance import Provenance
from flaxvgg.perceptual.photos import Compared
from flaxvgg.plotting.compare_page import compare_page
from flaxvgg.plotting.store_view import StoreView
from flaxvgg.plotting.webpage import Looks, survey_page
from flaxvgg.sparsity.survey import survey_photos
from flaxvgg.streaming import Store, find_source, maps_job, sparsity_job, stream
from helpers import TINY_GAP, small_model, tiny_vgg

AXE = os.environ.get("FLAXVGG_AXE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not AXE, reason="make axe runs it, with axe-core from npm"),
]
RUN = """
axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) =>
  violations.map(({ id, impact, nodes }) => [impact, id, nodes.map((x) => x.html).slice(0, 3)]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(5):
        pixels = rng.integers(0, 40 * i + 16, (40, 60, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    assert program, "no Chromium on the path: apt-get install chromium"
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def served(folder, tmp_path_factory):
    """Addresses of a store of maps and of one of zeros."""
    model = tiny_vgg(TINY_GAP, provenance=Provenance("random", classes=("a", "b", "c", "d", "e")))
    plan = plan_maps(model, ("cam", "grad_cam"), "top2", None, "paper", (32, 48))
    stores, found = tmp_path_factory.mktemp("stores"), {}
    running = []
    for name, job in {"maps": maps_job(model, plan), "zeros": sparsity_job(model, None)}.items():
        stream(job, find_source(folder), stores / f"{name}.zarr", size=(32, 48))
        server = serve(StoreView(Store(stores / f"{name}.zarr"), folder), "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        running.append((server, thread))
        found[name] = f"http://127.0.0.1:{server.server_address[1]}/"
    yield found
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def made(folder, tmp_path_factory) -> dict[str, Path]:
    """The pages that are files."""
    out = tmp_path_factory.mktemp("pages")
    pages = {name: out / f"{name}.html" for name in ("cam", "attribution", "sparsity", "compare")}
    told = {"names": CLASSES, "photos": NAMES, "logits": np.float32([[4, 1, -1]] * 3)}
    explanation().to_html(pages["cam"], pictures(), beside=[explanation("layer_cam", 2)], **told)
    values = np.random.default_rng(0).normal(size=(3, 3, *SIZE, 3)).astype(np.float32)
    classes = jnp.asarray(explanation().classes)
    attribution = Attribution(jnp.asarray(values), classes, jnp.ones((3, 3)), {}, "deep_lift")
    attribution.to_html(pages["attribution"], pictures(), **told)

    looks, paths = Looks(), flaxvgg.find_images(folder)
    layers = ["relu1_1", "pool1", "relu3_2", "pool5"]
    survey = survey_photos(small_model(), paths, layers, (32, 64), each=looks.add)
    pages["sparsity"].write_text(survey_page(survey, looks))

    pixels = pictures()
    found = [
        Compared(Path("reference.png"), Path(name), {"lpips": 0.1, "psnr": 20.0}, one, where)
        for name, one, where in zip(NAMES, pixels, [np.eye(*SIZE)] * 3, strict=True)
    ]
    pages["compare"].write_text(compare_page(found, list(pixels[::-1]), "three photos"))
    return pages


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESK])
@pytest.mark.parametrize("name", ["cam", "attribution", "sparsity", "compare", "maps", "zeros"])
def test_no_page_has_a_serious_fault(browser, made, served, name, size, scheme):
    opened(browser, made.get(name) or served[name], size, scheme)
    browser.evaluate("document.querySelector('.keys').open = true")
    browser.evaluate(Path(AXE).read_text("utf-8") + "; 0")
    found = browser.evaluate(RUN)
    assert [row for row in found if row[0] in ("serious", "critical", "moderate")] == []


def test_axe_would_see_what_is_wrong(browser, tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<p style="color: #ccc">pale</p><input><img src="data:,">')
    browser.open(page, *DESK)
    browser.evaluate(Path(AXE).read_text("utf-8") + "; 0")
    found = {rule: impact for impact, rule, _ in browser.evaluate(RUN)}
    assert found["label"] == found["image-alt"] == "critical"
    assert found["color-contrast"] == "serious"
