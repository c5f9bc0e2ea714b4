"""Pages of maps in a real browser: every control does what it says, and nothing leaves the page."""

from html import escape
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from browser import Browser, find_browser
from pages import DESK, PHONE, choose, opened, settled, text

import flaxvgg
from flaxvgg.attribution.attribution import Attribution
from flaxvgg.cam.explanation import Explanation
from flaxvgg.drawn import Drawn
from flaxvgg.plotting.page.packing import (
    block_means,
    channels_value,
    factors,
    maps_value,
    packed,
)
from flaxvgg.plotting.page.shell import page as make_page
from flaxvgg.plotting.page.viewing import Method, finite, photo_value, viewer_value

# Names that would do harm in HTML, in a script, in the order of reading; and one that is long.
EVIL = "<img src=x onerror=alert(1)>&amp;</script>'\"`\x1b[31m\u202e"
NAMES = (EVIL, "a_very_" * 43, "third.png")
CLASSES = ("sure", "unsure", EVIL)
SIZE = (48, 64)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium on the path: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def explanation(method: str = "grad_cam", scale: float = 1.0) -> Explanation:
    """Three images, three classes: a square of one, of a tenth, and nothing above zero."""
    maps = np.zeros((3, 3, 6, 8), np.float32)
    maps[:, 0, 1:3, 1:4] = scale
    maps[:, 1, 3:5, 4:7] = scale / 10
    maps[:, 2] = -np.arange(48, dtype=np.float32).reshape(6, 8) - 1
    scores = np.tile(np.float32([4, 1, -1]), (3, 1))
    classes = np.tile(np.arange(3, dtype=np.int32), (3, 1))
    arrays = jnp.asarray(maps), jnp.asarray(classes), jnp.asarray(scores)
    return Explanation((arrays[0],), *arrays[1:], method, ("relu2_1",), "paper", SIZE)


def pictures() -> np.ndarray:
    colours = np.uint8([(200, 60, 60), (60, 200, 60), (60, 60, 200)])
    return np.broadcast_to(colours[:, None, None], (3, *SIZE, 3))


@pytest.fixture
def page(tmp_path) -> Path:
    path = tmp_path / "cam.html"
    told = {"names": CLASSES, "photos": NAMES, "logits": np.float32([[4, 1, -1]] * 3)}
    explanation().to_html(path, pictures(), beside=[explanation("layer_cam", 2)], **told)
    return path


def alpha(browser: Browser, selector: str) -> np.ndarray:
    """How opaque the pixels of a canvas are, (H, W)."""
    found = browser.evaluate(
        f"""(() => {{
        const canvas = document.querySelector({selector!r});
        const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
        return [canvas.height, canvas.width, [...data].filter((_, i) => i % 4 === 3)];
        }})()"""
    )
    return np.array(found[2]).reshape(found[:2])


UNDER, OVER = ".under canvas", ".over canvas"


@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        (PHONE, "dark"),
        pytest.param(PHONE, "light", marks=pytest.mark.slow),
        pytest.param(DESK, "dark", marks=pytest.mark.slow),
        (DESK, "light"),
    ],
)
def test_nothing_leaves_the_page_and_it_fits(browser, page, size, scheme):
    opened(browser, page, size, scheme)
    assert [url for url in browser.requests if not url.startswith("data:")] == [page.as_uri()]
    assert browser.complaints == []
    wide = browser.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide == [size[0]] * 2
    names = browser.evaluate("[...document.querySelectorAll('.photos span')].map(x => x.innerText)")
    assert names[1:] == list(NAMES[1:])
    assert r"\u202e" in names[0]
    assert "<img src=x onerror=alert(1)>" in names[0]
    assert browser.evaluate("document.querySelectorAll('[onerror], .photos script').length") == 0
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    colour = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 22, 26)"}[scheme]
    browser.evaluate("document.querySelector('.photos').scrollIntoView()")
    browser.evaluate(
        """(async () => {
        while (![...document.querySelectorAll(".photos img")].some((x) => x.naturalWidth))
          await new Promise(requestAnimationFrame);
        })()"""
    )
    unnamed = browser.evaluate(
        """[...document.querySelectorAll("select, input, button")].filter((x) =>
        !x.closest("label")?.innerText.trim() && !x.innerText.trim()).length"""
    )
    assert unnamed == 0


def test_classes_share_a_scale_unless_each_map_is_to_have_its_own(browser, page):
    opened(browser, page, DESK)
    choose(browser, "threshold", 0)
    sure = alpha(browser, UNDER)
    assert sure.max() == round(0.75 * 255)
    assert (sure[16:, :] == 0).mean() > 0.5
    choose(browser, "class", 1)
    assert 0 < alpha(browser, UNDER).max() <= round(0.08 * 255)
    assert "0 to 1, a scale shared by classes" in text(browser, ".told")
    choose(browser, "scale", "map")
    assert alpha(browser, UNDER).max() == round(0.75 * 255)
    assert "0 to 0.1, a scale own for each map" in text(browser, ".told")
    choose(browser, "scale", "all")
    assert alpha(browser, UNDER).max() <= round(0.08 * 255)
    choose(browser, "class", 2)  # a class with evidence against it looks like none at all
    assert alpha(browser, UNDER).max() == 0
    choose(browser, "scale", "map")
    assert alpha(browser, UNDER).max() == 0
    assert "nothing to show" in text(browser, ".told")


def test_sliders_colours_and_the_box(browser, page):
    opened(browser, page, DESK)
    # Half of the maximum is reached half way between two places, which are 8 pixels wide.
    assert "box 8, 8, 32, 24 of 64x48" in text(browser, ".told")
    box = browser.evaluate(
        "(({ left, top, width, height }) => [left, top, width, height])"
        "(document.querySelector('.under .box').style)"
    )
    shares = [float(x.removesuffix("%")) for x in box]
    assert shares == pytest.approx([12.5, 100 * 8 / 48, 37.5, 100 * 16 / 48], abs=2)
    choose(browser, "threshold", 90)
    assert "box 8, 8, 32, 24" not in text(browser, ".told")
    choose(browser, "threshold", 0)
    assert browser.evaluate("document.querySelector('.under .box').hidden")
    choose(browser, "opacity", 20)
    assert alpha(browser, UNDER).max() == round(0.2 * 255)
    choose(browser, "top", 50)
    assert "0 to 0.5" in text(browser, ".told")
    assert "ended at 50 % of the highest value" in text(browser, ".told")
    centre = (
        "(() => { const c = document.querySelector('.under canvas');"
        "return [...c.getContext('2d').getImageData(20, 16, 1, 1).data] })()"
    )
    choose(browser, "opacity", 100)
    inferno = browser.evaluate(centre)
    choose(browser, "colours", "viridis")
    viridis = browser.evaluate(centre)
    assert inferno == [252, 255, 164, 255]
    assert viridis == [253, 231, 37, 255]
    choose(browser, "swipe", 30)
    clip = browser.evaluate("getComputedStyle(document.querySelector('.over')).clipPath")
    assert clip == "inset(0px 0px 0px 30%)"
    choose(browser, "right", 0)
    assert alpha(browser, OVER).max() == 0
    assert text(browser, ".right-name") == "photo"
    assert not browser.evaluate("document.querySelector('.over img').classList.contains('grey')")


@pytest.mark.parametrize("size", [PHONE, DESK])
def test_the_photo_is_dragged_to_swipe(browser, page, size):
    opened(browser, page, size)
    browser.evaluate("document.querySelector('.stage').scrollIntoView()")
    left, top, width, height = browser.evaluate(
        "(({ left, top, width, height }) => [left, top, width, height])"
        "(document.querySelector('.stage').getBoundingClientRect())"
    )

    def mouse(kind: str, across: float, pressed: bool) -> None:
        browser.call(
            "Input.dispatchMouseEvent", type=kind, x=left + across * width, y=top + height / 2,
            button="left" if pressed or kind == "mouseReleased" else "none", buttons=int(pressed),
            clickCount=1,
        )  # fmt: skip
        browser.evaluate("new Promise(requestAnimationFrame)")

    def clip() -> str:
        return browser.evaluate("getComputedStyle(document.querySelector('.over')).clipPath")

    assert clip() == "inset(0px 0px 0px 50%)"
    mouse("mouseMoved", 0.9, pressed=False)
    assert clip() == "inset(0px 0px 0px 50%)"  # a pointer that passes by moves nothing
    mouse("mousePressed", 0.2, pressed=True)
    assert clip() == "inset(0px 0px 0px 20%)"
    mouse("mouseMoved", 0.75, pressed=True)
    assert clip() == "inset(0px 0px 0px 75%)"
    mouse("mouseMoved", -0.1, pressed=True)
    assert clip() == "inset(0px 0px 0px 0%)"
    mouse("mouseReleased", 0.5, pressed=False)
    mouse("mouseMoved", 0.6, pressed=False)
    assert browser.evaluate("document.querySelector('.swipe input').value") == "0"


def test_photos_and_classes_by_mouse_and_keyboard(browser, page):
    opened(browser, page, PHONE)
    tiles = browser.evaluate(
        "[...document.querySelectorAll('.classes button')].map(x => x.innerText)"
    )
    assert [tile.split("\n")[0] for tile in tiles][:2] == ["sure", "unsure"]
    assert "logit 4" in tiles[0]
    chance = np.exp([4, 1, -1]) / np.exp([4, 1, -1]).sum()
    for tile, share in zip(tiles, chance, strict=True):
        assert f"probability {100 * share:.1f} %" in tile
    assert "positive nowhere" in tiles[2]
    browser.evaluate("document.querySelectorAll('.classes button')[1].click()")
    settled(browser)
    assert browser.evaluate("document.querySelector('.class select').value") == "1"
    browser.evaluate("document.querySelector('.stage').focus()")

    def press(key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            browser.call("Input.dispatchKeyEvent", type=kind, key=key)
        settled(browser)

    press("ArrowDown")
    assert browser.evaluate("document.querySelector('.class select').value") == "2"
    press("ArrowRight")
    assert text(browser, ".name") == NAMES[1]
    press("m")
    assert text(browser, ".left-name") == "layer_cam"
    press("ArrowLeft")
    assert "<img src=x" in text(browser, ".name")
    browser.evaluate("document.querySelectorAll('.photos button')[2].click()")
    settled(browser)
    assert text(browser, ".name") == "third.png"
    assert browser.evaluate("document.querySelectorAll('.photos [aria-current]').length") == 1
    choose(browser, "search", "VERY")
    browser.evaluate("new Promise(requestAnimationFrame)")
    assert browser.evaluate("document.querySelectorAll('.photos li').length") == 1
    assert text(browser, ".count") == "1 photo"


def test_signs_have_two_colours(browser, tmp_path):
    values = np.zeros((1, 1, *SIZE, 3), np.float32)
    values[0, 0, :24], values[0, 0, 24:] = -1, 0.5
    found = Attribution(
        jnp.asarray(values), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1)), {}, "saliency"
    )
    path = tmp_path / "attribution.html"
    found.to_html(path, pictures()[:1], ["sure"])
    opened(browser, path, DESK)
    choose(browser, "threshold", 0)
    choose(browser, "top", 100)
    assert "colours from -3 to 3" in text(browser, ".told")
    colours = browser.evaluate(
        "[4, 44].map(y => [...document.querySelector('.under canvas').getContext('2d')"
        ".getImageData(9, y, 1, 1).data])"
    )
    (low, high) = colours
    assert low[2] > low[0] + 50
    assert high[0] > high[2] + 50
    assert low[3] > high[3]
    assert browser.evaluate("document.querySelector('.class').hidden")


def test_maps_travel_as_they_are(browser, tmp_path):
    """What the browser unpacks is what was packed: within half a step of each map's range."""
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 5, 7)).astype(np.float32)
    maps[1, 2, 2] = np.nan
    pixels = np.zeros((20, 28, 3), np.uint8)
    photo = photo_value(
        "a", [pixels], [[maps]], [[1]], labels=["x", "y", "z"], scores=[1, 2, np.inf]
    )
    assert photo["maps"][0][0]["ranges"][1] is None
    assert photo["scores"] == [1, 2, None]
    viewer = viewer_value([Method("m", "lowest", ("l",))], [photo])
    path = tmp_path / "page.html"
    body = (Path(flaxvgg.__file__).parent / "plotting/page/viewer.html").read_text()
    path.write_text(make_page("t", "h", body, {"viewer": viewer}))
    opened(browser, path, DESK)
    found = browser.evaluate(
        "document.documentElement.viewer.maps(0).then(({ maps }) => "
        "[0, 1, 2].map((k) => maps.values(k) && [...maps.values(k)]))"
    )
    assert found[1] is None
    for k in (0, 2):
        error = np.abs(np.array(found[k]).reshape(5, 7) - maps[k]).max()
        assert error <= 0.51 * (maps[k].max() - maps[k].min()) / 255


def test_pages_of_results_are_checked(tmp_path):
    path = tmp_path / "page.html"
    with pytest.raises(ValueError, match="the maps are of images 3x48x64x3"):
        explanation().to_html(path, np.zeros((3, 48, 48, 3), np.uint8))
    other = Explanation(
        explanation().layer_maps,
        1 + explanation().classes,
        explanation().scores,
        *("layer_cam", ("relu2_1",), "paper", SIZE),
    )
    with pytest.raises(ValueError, match="of other classes"):
        explanation().to_html(path, pictures(), beside=[other])
    assert not path.exists()
    with pytest.raises(TypeError, match="no page of a Drawn"):
        Drawn().to_html(path)


def test_foreign_text_is_text(tmp_path):
    found = make_page(EVIL, EVIL, "", {"name": EVIL})
    assert "<img src=x" not in found
    assert escape("<img src=x") in found
    assert found.count("</script>") == 2
    assert "http" not in found.replace("http-equiv", "")
    assert "\x1b" not in found


def test_what_is_too_large_is_averaged():
    maps = np.arange(2 * 5 * 4, dtype=np.float32).reshape(2, 5, 4)
    means = block_means(maps, 2)
    assert means.shape == (2, 3, 2)
    np.testing.assert_allclose(means[0, 0, 0], maps[0, :2, :2].mean())
    np.testing.assert_allclose(means[1, 2, 1], maps[1, 4:, 2:].mean())
    assert factors([(14, 14), (224, 224)], 3) == [1, 1]
    small, large = factors([(14, 14), (224, 224)], 450)
    assert (small, large > 1) == (1, True)
    assert 450 * (14 * 14 + (-(-224 // large)) ** 2) <= 4 * 2**20
    assert factors([(1, 1)], 100, budget=10) == [1]  # nothing is left out
    constant = maps_value(np.full((1, 2, 2), 3, np.float32))
    assert constant["ranges"] == [[3, 3]]
    assert finite({"a": np.float32(np.nan), "b": [np.int64(3)]}) == {"a": None, "b": [3]}


def test_exact_zeros_stay_zeros():
    maps = np.zeros((1, 3, 2), np.float32)
    maps[0, :, 0] = 0, 1e-30, 1
    told = channels_value(maps)
    assert told["largest"] == [1, 0]
    assert told["data"] == packed(np.uint8([[[0, 1, 255]], [[0, 0, 0]]]))
    maps[0, 0, 1] = np.inf
    assert channels_value(maps)["largest"] == [1, None]
