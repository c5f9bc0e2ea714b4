"""The eight architectures as data: against torchvision's modules, and the lists Keras publishes."""

import dataclasses
import json

import pytest
import torch
import torchvision

from flaxvgg.network.config import ARCHITECTURES, VGGConfig, check_arch

KINDS = {
    "conv": torch.nn.Conv2d,
    "batch_norm": torch.nn.BatchNorm2d,
    "relu": torch.nn.ReLU,
    "max_pool": torch.nn.MaxPool2d,
    "avg_pool": torch.nn.AdaptiveAvgPool2d,
    "linear": torch.nn.Linear,
    "dropout": torch.nn.Dropout,
}

# As keras.io and `model.summary()` list them, and what the paper calls the same outputs: a
# convolution of Keras includes its ReLU.
KERAS = {
    "vgg16": """
        block1_conv1 block1_conv2 block1_pool
        block2_conv1 block2_conv2 block2_pool
        block3_conv1 block3_conv2 block3_conv3 block3_pool
        block4_conv1 block4_conv2 block4_conv3 block4_pool
        block5_conv1 block5_conv2 block5_conv3 block5_pool
        fc1 fc2 predictions
    """,
    "vgg19": """
        block1_conv1 block1_conv2 block1_pool
        block2_conv1 block2_conv2 block2_pool
        block3_conv1 block3_conv2 block3_conv3 block3_conv4 block3_pool
        block4_conv1 block4_conv2 block4_conv3 block4_conv4 block4_pool
        block5_conv1 block5_conv2 block5_conv3 block5_conv4 block5_pool
        fc1 fc2 predictions
    """,
}
PAPER = {
    "vgg16": """
        relu1_1 relu1_2 pool1
        relu2_1 relu2_2 pool2
        relu3_1 relu3_2 relu3_3 pool3
        relu4_1 relu4_2 relu4_3 pool4
        relu5_1 relu5_2 relu5_3 pool5
        relu6 relu7 prob
    """,
    "vgg19": """
        relu1_1 relu1_2 pool1
        relu2_1 relu2_2 pool2
        relu3_1 relu3_2 relu3_3 relu3_4 pool3
        relu4_1 relu4_2 relu4_3 relu4_4 pool4
        relu5_1 relu5_2 relu5_3 relu5_4 pool5
        relu6 relu7 prob
    """,
}
VGG11_BN = """
    conv1_1 bn1_1 relu1_1 pool1
    conv2_1 bn2_1 relu2_1 pool2
    conv3_1 bn3_1 relu3_1 conv3_2 bn3_2 relu3_2 pool3
    conv4_1 bn4_1 relu4_1 conv4_2 bn4_2 relu4_2 pool4
    conv5_1 bn5_1 relu5_1 conv5_2 bn5_2 relu5_2 pool5
    avgpool flatten fc6 relu6 drop6 fc7 relu7 drop7 fc8 prob
"""


def _torch_modules(arch: str) -> dict[str, torch.nn.Module]:
    with torch.device("meta"):
        network = getattr(torchvision.models, arch)(num_classes=17)
    return {name: module for name, module in network.named_modules() if not list(module.children())}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_layer_is_the_torchvision_module_of_its_name(arch):
    config = VGGConfig.classifier(arch, num_classes=17, dropout=0.5)
    modules = _torch_modules(arch)
    assert [layer.torch for layer in config.layers if layer.torch] == list(modules)
    for layer in config.layers:
        if not layer.torch:
            assert layer.kind in ("flatten", "softmax")
            continue
        module = modules[layer.torch]
        assert type(module) is KINDS[layer.kind], layer.name
        assert config.resolve(layer.torch) == layer.name
        match layer.kind:
            case "conv":
                assert (module.in_channels, module.out_channels) == (layer.inputs, layer.outputs)
                assert module.kernel_size == (layer.kernel, layer.kernel) == (3, 3)
                assert module.padding == (1, 1)
                assert module.stride == (1, 1)
            case "linear":
                assert module.in_features == layer.inputs * layer.kernel**2
                assert module.out_features == layer.outputs
            case "batch_norm":
                assert module.num_features == layer.outputs
                assert (module.eps, module.momentum) == (1e-5, 0.1)
            case "max_pool":
                assert (module.kernel_size, module.stride, module.padding) == (2, 2, 0)
                assert not module.ceil_mode
            case "avg_pool":
                assert module.output_size == (7, 7)
            case "dropout":
                assert module.p == layer.rate


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_names_are_unique_and_all_resolve(arch):
    config = VGGConfig.classifier(arch)
    assert len(set(config.all_names)) == len(config.all_names)
    assert {config.resolve(name) for name in config.all_names} == set(config.layer_names)
    # 8, 10, 13 and 16 convolutions and three linear layers give the networks their numbers.
    weighted = [layer for layer in config.layers if layer.kind in ("conv", "linear")]
    assert len(weighted) == int(arch.removeprefix("vgg").removesuffix("_bn"))


def test_the_layers_of_vgg11_bn_by_hand():
    assert VGGConfig.classifier("vgg11_bn").layer_names == tuple(VGG11_BN.split())


@pytest.mark.parametrize("arch", KERAS)
def test_keras_names(arch):
    config, keras = VGGConfig.classifier(arch), KERAS[arch].split()
    assert [config.resolve(name) for name in keras] == PAPER[arch].split()
    # And no name that Keras does not have.
    blocks = [name for name in config.aliases if name.startswith("block")]
    assert blocks == [name for name in keras if name.startswith("block")]


def test_names_that_stand_for_several_modules_mean_the_last():
    config = VGGConfig.classifier("vgg16")
    assert config.resolve("features") == "pool5"
    assert config.resolve("classifier") == "fc8"
    assert config.resolve("features.28") == "conv5_3"
    assert config.resolve("features.29") == "relu5_3"
    assert config.resolve("classifier.1") == "relu6"


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("conv5_4", "conv5_3"),
        ("relu53", "relu5_3"),
        ("block5_conv4", "block5_conv3"),
        ("features.31", "features.30"),
        ("Pool5", "pool5"),
    ],
)
def test_an_unknown_layer_names_its_neighbours(wrong, suggestion):
    message = rf"^vgg16 has no layer '{wrong}'; did you mean .*{suggestion}.*\?$"
    with pytest.raises(ValueError, match=message):
        VGGConfig.classifier("vgg16").resolve(wrong)


def test_an_unknown_layer_without_neighbours_says_where_the_names_are():
    with pytest.raises(ValueError, match=r"'@@@@'; see model\.config\.layer_names$"):
        VGGConfig.classifier("vgg16").resolve("@@@@")


@pytest.mark.parametrize("layer", ["fc6", "relu7", "classifier.6", "fc1", "predictions", "avgpool"])
def test_features_only_says_why_a_head_layer_is_missing(layer):
    config = VGGConfig.features_only("vgg16", "the reason")
    with pytest.raises(ValueError, match=f"^this model has no layer '{layer}': the reason$"):
        config.resolve(layer)


def test_features_only():
    config = VGGConfig.features_only("vgg16", "the reason")
    assert config.layer_names[-1] == "pool5"
    assert config.num_classes == 0
    assert "fc1" not in config.all_names
    assert "classifier" not in config.all_names
    with pytest.raises(ValueError, match=r"no logits: the reason\. Use model\.features\(images\)"):
        _ = config.head_output
    with pytest.raises(ValueError, match="vgg16 has no layer 'conv9_9'"):
        config.resolve("conv9_9")


def test_num_classes_is_that_of_the_last_linear_layer():
    config = VGGConfig.classifier("vgg13", num_classes=20)
    assert config.num_classes == 20
    assert config.head_output.name == "fc8"


def test_with_dropout_changes_both_dropouts_and_nothing_else():
    config = VGGConfig.classifier("vgg16", num_classes=20, dropout=0.5)
    other = config.with_dropout(0.2)
    assert [layer.rate for layer in other.head if layer.kind == "dropout"] == [0.2, 0.2]
    assert other.with_dropout(0.5) == config
    assert other == VGGConfig.classifier("vgg16", num_classes=20, dropout=0.2)


@pytest.mark.parametrize(
    "config",
    [
        *(VGGConfig.classifier(arch, num_classes=3, dropout=0.25) for arch in ARCHITECTURES),
        VGGConfig.features_only("vgg16_bn", "the reason"),
    ],
    ids=lambda config: f"{config.arch}-{config.num_classes}",
)
def test_json_there_and_back(config):
    text = json.dumps(config.to_json())
    back = VGGConfig.from_json(json.loads(text))
    assert back == config
    assert hash(back) == hash(config)
    assert back.layers == config.layers


def test_json_by_hand():
    value = VGGConfig.classifier("vgg11", num_classes=3, dropout=0.0).to_json()
    assert value["arch"] == "vgg11"
    assert value["no_head_because"] == ""
    assert value["head"][0] == {"name": "avgpool", "kind": "avg_pool", "torch": "avgpool"}
    assert value["head"][2] == {
        "name": "fc6",
        "kind": "linear",
        "torch": "classifier.0",
        "inputs": 512,
        "outputs": 4096,
        "kernel": 7,
    }
    assert value["head"][-1] == {"name": "prob", "kind": "softmax"}


def test_a_config_cannot_be_changed():
    config = VGGConfig.classifier("vgg16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.arch = "vgg19"


@pytest.mark.parametrize("arch", ["vgg", "VGG16", "vgg16bn", "resnet18", ""])
def test_unknown_architectures(arch):
    message = (
        f"^unknown architecture '{arch}': (did you mean .*)?choose from vgg11, vgg13, .*, vgg19_bn$"
    )
    for make in (check_arch, VGGConfig.classifier):
        with pytest.raises(ValueError, match=message):
            make(arch)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 50.0, float("nan")])
def test_a_dropout_rate_must_be_a_probability_below_one(dropout):
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\)"):
        VGGConfig.classifier("vgg16", dropout=dropout)


def test_at_least_one_class():
    with pytest.raises(ValueError, match="num_classes must be at least 1, not 0"):
        VGGConfig.classifier("vgg16", num_classes=0)
