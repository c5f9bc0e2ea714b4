"""Every measure on paper, and against the packages that have it: scikit-learn, OpenCV, torchcam."""

import functools
import inspect
import math

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import torch
import torchcam.methods
import torchcam.metrics
from flax import nnx
from pytorch_grad_cam.metrics.cam_mult_image import IncreaseInConfidence
from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget
from sklearn.metrics import accuracy_score, average_precision_score
from sklearn.metrics import confusion_matrix as sklearn_confusion

import flaxvgg
from flaxvgg.evaluation import outlines
from flaxvgg.evaluation.faithfulness import blurred
from flaxvgg.evaluation.localisation import box_hits
from flaxvgg.network.config import Layer
from flaxvgg.network.model import VGG
from helpers import TINY_CLASSIFIER, TINY_GAP, TinyConfig, random_images, random_model, torch_twin
from networks import CLASS, HALF, LEFT, MeanConfig, mean_model


def block(left: int, top: int, right: int, bottom: int, size: int = 10) -> np.ndarray:
    """A map (size, size) that is 1 in a box and 0 around it."""
    found = np.zeros((size, size), np.float32)
    found[top:bottom, left:right] = 1
    return found


def boxes(*found: tuple[int, int, int, int]) -> list[np.ndarray]:
    """One box for each image."""
    return [np.array([box]) for box in found]


# Classification


def test_average_precision_by_hand():
    # The positives score 0.9, 0.8 and 0.1, and 0.8 has a negative beside it: of what scores as high
    # 1 of 1, 2 of 3 and 3 of 4 are positive. The second class has no positive.
    scores = np.array([[0.9, 1], [0.8, 2], [0.8, 3], [0.1, 4]])
    labels = np.array([[1, 0], [0, 0], [1, 0], [1, 0]])
    found = flaxvgg.average_precision(scores, labels)
    assert found[0] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert np.isnan(found[1])
    assert flaxvgg.mean_average_precision(scores, labels) == found[0]


def test_average_precision_equals_scikit_learns():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 20, (100, 5)) / 20  # with ties
    labels = rng.random((100, 5)) < [0.5, 0.1, 0.9, 0.02, 0.3]
    expected = average_precision_score(labels, scores, average=None)
    found = flaxvgg.average_precision(jnp.asarray(scores, jnp.float32), labels)
    assert found == pytest.approx(expected, abs=1e-12)
    mean = flaxvgg.mean_average_precision(scores, labels.astype(np.float32))
    assert mean == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


# Localisation


def test_pointing_game_by_hand():
    found = block(3, 3, 4, 4) + 0.1 * block(0, 0, 6, 6)  # its maximum is at (3, 3)
    ties = block(2, 2, 4, 3)  # (2, 2) and (3, 2)
    broken = np.where(block(9, 9, 10, 10) > 0, np.nan, found)
    maps = np.stack([found, -1 - found, ties, ties, 0 * found, 0 * found + 1, broken])
    around, everything = (3, 3, 5, 5), (0, 0, 10, 10)
    targets = [around, around, (2, 2, 3, 3), (3, 2, 4, 3), everything, everything, everything]
    # Hit; the maximum of the negative is at (6, 0); the first of equals is at (2, 2), a hit and a
    # miss; zero, constant and broken maps are misses wherever the object is.
    assert flaxvgg.pointing_game(maps, boxes(*targets)) == 2 / 7
    masks = np.stack([block(*target) > 0 for target in targets])
    assert flaxvgg.pointing_game(jnp.asarray(maps), masks) == 2 / 7


def test_pointing_game_with_tolerance():
    # The nearest pixel of the box to (3, 3) is (6, 7): 3 columns and 4 rows away.
    maps = block(3, 3, 4, 4)[None]
    assert flaxvgg.pointing_game(maps, boxes((6, 7, 9, 9)), tolerance=5) == 1
    assert flaxvgg.pointing_game(maps, boxes((6, 7, 9, 9)), tolerance=4.99) == 0


def test_max_box_acc_by_hand():
    # The published box of 4x4 pixels is 5x5: IoU with the 4x4 given is 16/25, above 0.3 and 0.5.
    maps = block(3, 2, 7, 6)[None]
    assert flaxvgg.max_box_acc(maps, boxes((3, 2, 7, 6))) == 1
    assert flaxvgg.max_box_acc_v2(maps, boxes((3, 2, 7, 6))) == pytest.approx(2 / 3)
    assert flaxvgg.max_box_acc_v2(maps, boxes((3, 2, 8, 7))) == 1
    # At the image's edge there is no more to take in. Any of the boxes given will do.
    corner = block(6, 6, 10, 10)[None]
    assert flaxvgg.max_box_acc_v2(corner, [np.array([[0, 0, 3, 3], [6, 6, 10, 10]])]) == 1


def test_max_box_acc_counts_an_iou_of_exactly_a_half():
    # The 4x4 pixels in the corner give 4x4; 4x8 are given.
    maps = block(6, 6, 10, 10)[None]
    assert flaxvgg.max_box_acc(maps, boxes((6, 2, 10, 10))) == 1
    assert flaxvgg.max_box_acc(maps, boxes((6, 1, 10, 10))) == 0


def test_the_best_threshold_is_that_of_the_data_set():
    # A hot corner in a warm half. The first image wants the half, the second the corner: no
    # threshold finds both. In the third both are hot.
    warm, hot = (0, 5, 10, 10), (7, 7, 10, 10)
    mixed = np.maximum(block(*hot), np.float32(0.4) * block(*warm))
    maps = np.stack([mixed, mixed, block(*warm)])
    assert flaxvgg.max_box_acc(maps, boxes(warm, hot, warm)) == pytest.approx(2 / 3)
    assert flaxvgg.max_box_acc(maps[[0, 2]], boxes(warm, warm)) == 1
    # A pixel is in if it is above the threshold: 0.4 is out at 0.4, and 0.4 of 255 is a whole
    # number. At 0.999 only the hot is left.
    assert flaxvgg.max_box_acc(maps[1:2], boxes(hot)) == 1


def test_the_second_component_and_holes_count_in_version_2_only():
    # Given is the smaller of two blocks: 2x2 found as 3x3, an IoU of 4/9.
    two = np.maximum(block(0, 0, 5, 5), block(7, 7, 9, 9))[None]
    assert flaxvgg.max_box_acc(two, boxes((7, 7, 9, 9))) == 0
    assert flaxvgg.max_box_acc_v2(two, boxes((7, 7, 9, 9))) == pytest.approx(1 / 3)
    # The outline of a hole of 2x2 is 4x4, and one more makes it 5x5.
    ring = (block(0, 0, 10, 10) - block(4, 4, 6, 6))[None]
    assert flaxvgg.max_box_acc(ring, boxes((3, 3, 8, 8))) == 0
    assert flaxvgg.max_box_acc_v2(ring, boxes((3, 3, 8, 8))) == 1


def test_a_zero_map_has_no_box():
    maps = np.zeros((1, 10, 10), np.float32)
    assert flaxvgg.max_box_acc(maps, boxes((0, 0, 1, 1))) == 0
    assert flaxvgg.max_box_acc_v2(maps, boxes((0, 0, 1, 1))) == 0


def found_outlines(image: np.ndarray, level: int) -> tuple[np.ndarray, np.ndarray]:
    """The boxes of the largest outline and of all, of an image that fits into 32x32."""
    framed = np.pad(image.astype(np.uint8), [(0, 32 - side) for side in image.shape])
    found = jax.tree.map(lambda x: np.asarray(x)[0], outlines.outlines(framed[None], 256))
    assert found.peaks <= 256
    every = found.all[..., level].T
    return found.largest[:, level], every[every[:, 2] > every[:, 0]]


def test_outlines_equal_opencvs():
    rng = np.random.default_rng(0)
    unique = 0
    for density in np.linspace(0.1, 0.9, 20):
        image = rng.choice([0, 7, 100, 254], (12, 15), p=[1 - density, *[density / 3] * 3])
        level = int(rng.choice([0, 6, 7, 99, 100, 253]))
        contours, _ = cv2.findContours(
            (image > level).astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE
        )
        expected = np.array([cv2.boundingRect(contour) for contour in contours])
        expected[:, 2:] += expected[:, :2]
        chosen, found = found_outlines(image, level)
        assert sorted(map(tuple, found)) == sorted(map(tuple, expected))
        areas = np.array([cv2.contourArea(contour) for contour in contours])
        largest = np.unique(expected[areas == areas.max()], axis=0)
        assert chosen.tolist() in largest.tolist()
        unique += len(largest) == 1
    assert unique > 10
    # Of equals, the lowest: a diagonal, which encloses nothing, and two pixels, the last one left.
    diagonal, two = np.eye(3, 9), np.array([[1, 0, 0], [0, 0, 0], [1, 0, 1]])
    assert found_outlines(diagonal, 0)[0].tolist() == [0, 0, 3, 3]
    assert found_outlines(two, 0)[0].tolist() == [2, 2, 3, 3]


def smooth_map(seed: int) -> np.ndarray:
    return scipy.ndimage.zoom(np.random.default_rng(seed).random((5, 6)), 5, order=1)


def test_hits_equal_those_of_opencvs_boxes():
    given = [np.array([[3, 4, 17, 16], [18, 2, 30, 10]]), np.array([[2, 2, 28, 24]])]
    maps = np.stack([smooth_map(3), smooth_map(5)])
    expected = np.zeros((2, 4, 1000), bool)
    for row, heatmap, boxes_given in zip(expected, maps, given, strict=True):
        image = (heatmap * 255).astype(np.uint8)
        for i, threshold in enumerate(np.arange(0, 1, 0.001)):
            cut = int(threshold * image.max())
            _, mask = cv2.threshold(image, cut, 255, cv2.THRESH_BINARY)
            contours, _ = cv2.findContours(mask, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
            largest = max(contours, key=cv2.contourArea)
            best = max(best_iou(cv2.boundingRect(x), boxes_given) for x in contours)
            own = best_iou(cv2.boundingRect(largest), boxes_given)
            row[:, i] = own >= 0.5, best >= 0.3, best >= 0.5, best >= 0.7
    assert len(np.unique(expected.sum(0), axis=1).T) >= 6
    np.testing.assert_array_equal(box_hits(maps, given), expected.sum(0))


def test_a_map_of_many_peaks_gets_the_room_that_it_needs(monkeypatch):
    rng = np.random.default_rng(0)
    maps = np.stack([rng.random((25, 30)), smooth_map(3), rng.random((25, 30))])
    given = [np.array([[3, 4, 17, 16], [18, 2, 30, 10]])] * 3
    expected = box_hits(maps, given)
    monkeypatch.setattr(outlines, "_PEAKS", 64)
    np.testing.assert_array_equal(box_hits(maps, given), expected)
    images = (maps * 255).astype(np.uint8)
    assert (outlines.outlines(images, 64).peaks > 64).tolist() == [True, False, True]


def best_iou(rectangle: tuple[int, int, int, int], given: np.ndarray) -> float:
    """The best IoU in a map of 25x30, by counting pixels; the rectangle is one larger."""
    x, y, w, h = rectangle
    own = np.zeros((25, 30), bool)
    own[y : y + h + 1, x : x + w + 1] = True
    found = []
    for left, top, right, bottom in given:
        other = np.zeros_like(own)
        other[top:bottom, left:right] = True
        found.append((own & other).sum() / (own | other).sum())
    return max(found)


def test_pxap_by_hand():
    # In falling order: object, other, object, other.
    maps = np.array([[[0.9, 0.8], [0.7, 0.1]]], np.float32)
    masks = np.array([[[True, False], [True, False]]])
    assert flaxvgg.pxap(maps, masks) == pytest.approx((1 + 2 / 3) / 2)
    ignored = np.array([[[False, True], [True, False]]])  # an object's pixel is not
    assert flaxvgg.pxap(maps, masks, ignored) == 1


def test_pxap_equals_scikit_learns():
    rng = np.random.default_rng(0)
    maps = rng.random((4, 20, 30))
    maps[0] = 0
    maps[1, :5] = 1
    masks = (maps + rng.random(maps.shape)) > 1.2
    ignore = rng.random(maps.shape) < 0.3
    counted = ~ignore | masks
    expected = average_precision_score(masks[counted], np.floor(maps[counted] * 1000))
    assert flaxvgg.pxap(maps, masks, ignore) == pytest.approx(expected, abs=1e-12)
    assert expected < flaxvgg.pxap(masks.astype(np.float32), masks) == 1


def test_centre_gaussian():
    # The centres of two pixels are half way from the middle to the edge.
    assert flaxvgg.centre_gaussian(1, 2) == pytest.approx(np.full((1, 2), math.exp(-1 / 8)))
    found = flaxvgg.centre_gaussian(5, 8)
    assert np.array_equal(found, found[::-1, ::-1])
    assert found[2, 0] == pytest.approx(math.exp(-((7 / 8) ** 2) / 2))
    assert flaxvgg.pointing_game(found[None], boxes((3, 2, 4, 3))) == 1


# Faithfulness


def test_deletion_and_insertion_by_hand():
    black = np.zeros_like(HALF)
    inserted = functools.partial(flaxvgg.insertion, baseline=black)
    for activation in ("softmax", "sigmoid"):  # against a logit of 0 these are the same
        arguments = {"steps": 2, "activation": activation}
        # From 3/4 to 1/2 in the first step, 1/2 from there on: 1/2 (5/8 + 1/2). The wrong order
        # stays at 3/4 in the first step; inserting is deleting backwards.
        for measure, heatmap, expected in [
            (flaxvgg.deletion, LEFT, 9 / 16),
            (flaxvgg.deletion, 1 - LEFT, 11 / 16),
            (inserted, LEFT, 11 / 16),
            (inserted, 1 - LEFT, 9 / 16),
        ]:
            found = measure(mean_model(), HALF, heatmap, CLASS, **arguments)
            assert found == pytest.approx([expected])
    # Of equals the first in reading order. After 341 and 682 of 1024 pixels, 10 rows and 21 pixels,
    # and 21 rows and 10 pixels, 336 and 166 of the 512 white ones are left.
    found = flaxvgg.deletion(mean_model(), HALF, 0 * LEFT, CLASS, steps=3)
    p = [1 / (1 + 3 ** (-left / 512)) for left in (512, 336, 166, 0)]
    area = (341 * (p[0] + p[1]) + 341 * (p[1] + p[2]) + 342 * (p[2] + p[3])) / 2048
    assert found == pytest.approx([area], rel=1e-6)


def test_the_usual_baselines():
    half = {"steps": 2}
    grey = np.full_like(HALF, 0.5)
    black = [
        flaxvgg.deletion(mean_model(), HALF, LEFT, CLASS, baseline=baseline, **half)
        for baseline in (None, 0 * grey, grey)
    ]
    assert black[0] == black[1] != black[2]
    kernel = scipy.ndimage.gaussian_filter(np.eye(11)[:, [5]] * np.eye(11)[5], 5)
    images = random_images(2, 33, 40)
    theirs = torch.nn.functional.conv2d(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(kernel.astype(np.float32)).expand(3, 1, 11, 11),
        padding=5,
        groups=3,
    )
    found = blurred(jnp.asarray(images))
    assert found == pytest.approx(theirs.permute(0, 2, 3, 1).numpy(), abs=1e-6)
    found = flaxvgg.insertion(mean_model(), HALF, LEFT, CLASS, **half)
    baseline = blurred(jnp.asarray(HALF))
    assert found == flaxvgg.insertion(mean_model(), HALF, LEFT, CLASS, baseline=baseline, **half)


def test_average_drop_and_increase_by_hand():
    # Class 0 keeps its 3/4 with the left half and falls to 1/2 with the right one, a third of 3/4;
    # for class 1 that is a rise from 1/4. Half the left half has the logit ln(3)/2.
    images, maps = HALF[[0, 0, 0, 0]], np.concatenate([LEFT, 1 - LEFT, 1 - LEFT, LEFT / 2])
    classes = np.array([0, 0, 1, 0])
    left = 1 - (1 / (1 + 3**-0.5)) / 0.75
    found = flaxvgg.average_drop(mean_model(), images, maps, classes)
    assert found == pytest.approx(100 * (0 + 1 / 3 + 0 + left) / 4)
    assert flaxvgg.average_increase(mean_model(), images, maps, classes) == 25
    # On its own, class 1 has 1/2 whatever is shown.
    sigmoid = {"activation": "sigmoid"}
    found = flaxvgg.average_drop(mean_model(), images, maps, classes, **sigmoid)
    assert found == pytest.approx(100 * (0 + 1 / 3 + 0 + left) / 4)
    assert flaxvgg.average_increase(mean_model(), images, maps, classes, **sigmoid) == 0


@pytest.fixture(scope="module")
def gap_model() -> VGG:
    return random_model(TinyConfig("vgg11", TINY_GAP))


@pytest.fixture(scope="module")
def network(gap_model: VGG) -> torch.nn.Module:
    """The same network in PyTorch."""
    return torch_twin(gap_model)


def test_faithfulness_equals_the_packages(gap_model: VGG, network: torch.nn.Module):
    images = random_images(6, 32, 40)
    classes = [0, 1, 2, 3, 4, 0]
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2)
    # The maps are theirs, so that nothing but the measures is compared.
    with torchcam.methods.GradCAM(network, "features.4") as cam:
        softmax = functools.partial(torch.softmax, dim=-1)
        maps = cam.fuse_cams(cam(classes, softmax(network(tensor))))
        simple = torchcam.metrics.ClassificationMetric(cam, softmax)
        curves = torchcam.metrics.DeletionInsertionMetric(cam, softmax, steps=20)
        simple.update(tensor, classes)
        curves.update(tensor, classes)
        theirs = simple.summary() | curves.summary()
    maps = torch.nn.functional.interpolate(maps[:, None], (32, 40), mode="bilinear")[:, 0].detach()
    arguments = gap_model, images, maps.numpy(), np.array(classes)
    drop = flaxvgg.average_drop(*arguments)
    increase = flaxvgg.average_increase(*arguments)
    assert drop == pytest.approx(100 * theirs["avg_drop"], rel=1e-5)
    assert increase == pytest.approx(100 * theirs["conf_increase"])
    assert drop > 1
    targets = [ClassifierOutputSoftmaxTarget(c) for c in classes]
    rises = IncreaseInConfidence()(tensor, maps.numpy(), targets, network)
    assert increase == pytest.approx(100 * rises.mean())
    assert 0 < increase < 100
    deleted = flaxvgg.deletion(*arguments, steps=20)
    inserted = flaxvgg.insertion(*arguments, steps=20, baseline=np.zeros_like(images))
    assert deleted.mean() == pytest.approx(theirs["deletion_auc"], rel=1e-5)
    assert inserted.mean() == pytest.approx(theirs["insertion_auc"], rel=1e-5)
    # Alone they are the same: no image gets another's map, class or place in a chunk.
    alone = [
        flaxvgg.deletion(gap_model, *(x[i : i + 1] for x in arguments[1:]), steps=20)
        for i in (0, 5)
    ]
    assert np.concatenate(alone) == pytest.approx(np.asarray(deleted)[[0, 5]], rel=1e-5)


# Bad input

MAPS = np.stack([block(3, 2, 7, 6)] * 2)
MASKS = MAPS > 0
BOXES = boxes((3, 2, 7, 6), (3, 2, 7, 6))
BAD = np.where(MASKS, np.nan, MAPS)


@pytest.mark.parametrize(
    ("measure", "arguments", "message"),
    [
        ("average_precision", (np.zeros((0, 3)), np.zeros((0, 3))), "N and K at least 1"),
        ("average_precision", (np.zeros((4, 3)), np.zeros((4, 2))), r"\(4, 3\) and labels \(4, 2"),
        ("average_precision", (np.full((4, 2), np.nan), np.ones((4, 2))), "class 0 are not finite"),
        ("average_precision", (np.ones((4, 2)), np.full((4, 2), 2)), "must be 0 or 1"),
        ("mean_average_precision", (np.ones((4, 2)), np.zeros((4, 2))), "no class has a positive"),
        ("pointing_game", (MAPS[0], MASKS[0]), r"shape \(N, H, W\)"),
        ("pointing_game", (MAPS, MASKS[:, 1:]), r"targets must be .* not bool \(2, 9, 10\)"),
        ("pointing_game", (MAPS, MASKS & False), "no target in image 0"),
        ("pointing_game", (MAPS, BOXES, -1), "tolerance"),
        ("max_box_acc", (MAPS[:0], []), "none of them 0"),
        ("max_box_acc", (MAPS, BOXES[:1]), "boxes of 1 images for 2 maps"),
        ("max_box_acc", (MAPS, [BOXES[0], np.zeros((0, 4), int)]), "at least one box"),
        ("max_box_acc", (MAPS, [BOXES[0], BOXES[0] / 2]), "boxes of image 1 .* float64"),
        ("max_box_acc", (MAPS, boxes((0, 0, 10, 10), (0, 0, 11, 10))), "not inside its 10 rows"),
        ("max_box_acc", (MAPS, boxes((0, 0, 10, 10), (-1, 0, 1, 10))), r"box \(-1, 0, 1, 10\)"),
        ("max_box_acc_v2", (MAPS, boxes((5, 0, 5, 10), (0, 0, 1, 1))), "image 0 is empty"),
        ("max_box_acc_v2", (BAD, BOXES), "heat map 0 has values outside"),
        ("max_box_acc", (2 * MAPS, BOXES), "outside"),
        ("pxap", (BAD, MASKS), "or NaN"),
        ("pxap", (MAPS, MASKS & False), "no object to find"),
        ("pxap", (MAPS, MASKS.astype(int)), "masks must be boolean"),
        ("pxap", (MAPS, MASKS, MASKS[:1]), "ignore must be boolean"),
        ("centre_gaussian", (0, 3), "0x3"),
    ],
)
def test_bad_input(measure: str, arguments: tuple, message: str):
    # As users have it, without the checks of shapes that these tests add.
    function = inspect.unwrap(getattr(flaxvgg, measure))
    with pytest.raises(ValueError, match=message):
        function(*arguments)


@pytest.mark.parametrize("measure", ["deletion", "insertion", "average_drop", "average_increase"])
def test_bad_input_for_the_network(measure: str):
    function = inspect.unwrap(getattr(flaxvgg, measure))

    def fails(message: str, model=None, images=HALF, heatmaps=LEFT, classes=CLASS, **kwargs):
        with pytest.raises(ValueError, match=message):
            function(model or mean_model(), images, heatmaps, classes, **kwargs)

    fails("N at least 1", images=HALF[:0], heatmaps=LEFT[:0], classes=CLASS[:0])
    fails(r"explanation.heatmaps\(\)", heatmaps=LEFT[:, ::2])
    fails("the heat map of image 0", heatmaps=np.where(LEFT > 0, np.nan, LEFT))
    fails("one whole number for each", classes=np.array([0, 1]))
    fails("no class 2: .* 0 to 1", classes=np.array([2]))
    fails("softmax, sigmoid", activation="relu")
    broken = nnx.clone(mean_model())
    broken.head.fc.bias[...] = jnp.full(2, jnp.nan)
    steps = {} if measure.startswith("average") else {"steps": 2}
    fails("the score of image 0 is not finite", model=broken, **steps)
    if measure.startswith("average"):
        fails(r"in \[0, 1\]", heatmaps=2 * LEFT)
    else:
        fails("steps", steps=0)
        fails("of the images' shape", baseline=HALF[:, 1:])
    fails("no logits", model=random_model(MeanConfig.features_only("vgg11", "none")))
    dropout = (*TINY_CLASSIFIER[:-1], Layer("drop", "dropout", rate=0.5), TINY_CLASSIFIER[-1])
    training = random_model(TinyConfig("vgg11", dropout))
    training.train()
    fails(r"model.eval\(\)", model=training)


def test_confusion_and_accuracy_are_scikit_learns():
    random = np.random.default_rng(0)
    scores = random.standard_normal((50, 4))
    classes = random.integers(0, 4, 50)
    labels = np.eye(4, dtype=int)[classes]
    found = flaxvgg.confusion_matrix(scores, labels)
    expected = sklearn_confusion(classes, scores.argmax(1), labels=range(4))
    np.testing.assert_array_equal(found, expected)
    assert flaxvgg.accuracy(scores, labels) == accuracy_score(classes, scores.argmax(1))
    labels[7] = [1, 1, 0, 0]
    with pytest.raises(ValueError, match="image 7 is of 2 classes"):
        flaxvgg.accuracy(scores, labels)
