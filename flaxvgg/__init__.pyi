from .attribution.attribution import Attribution
from .attribution.methods import ATTRIBUTIONS, attribute
from .cam.conventions import CONVENTIONS
from .cam.explanation import Explanation, Flag
from .cam.methods import METHODS, explain
from .conversion.jax_export import to_jax_export
from .conversion.onnx_export import to_onnx
from .evaluation.classification import (
    accuracy,
    average_precision,
    confusion_matrix,
    mean_average_precision,
)
from .evaluation.complexity import complexity, sparseness
from .evaluation.faithfulness import average_drop, average_increase, deletion, insertion
from .evaluation.infidelity import GaussianNoise, SquareRemoval, infidelity, sensitivity_n
from .evaluation.localisation import (
    centre_gaussian,
    max_box_acc,
    max_box_acc_v2,
    pointing_game,
    pxap,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
)
from .evaluation.randomisation import Randomisation, parameter_randomisation
from .evaluation.road import Road, road
from .evaluation.robustness import max_sensitivity
from .heads.replacement import fully_convolutional, score_maps, with_gap, with_score_map
from .heads.sample_head import with_sample_head
from .images.datasets import DatasetError, LabelledImages
from .images.finding import PassedOver, find_images
from .images.loading import ImageError, fit_image, load_images, normalise, open_image
from .network.config import ARCHITECTURES, VGGConfig
from .network.model import VGG, flatten_chw
from .network.prepared import prepare
from .network.provenance import PREPROCESSING, Preprocessing, Provenance
from .network.sharding import data_mesh, fully_sharded, place, replicated, shard_batch
from .perceptual.contextual import contextual_loss
from .perceptual.dists import dists
from .perceptual.losses import gram_matrix, perceptual_loss, style_loss, total_variation
from .perceptual.lpips import lpips
from .perceptual.pooling import with_pooling
from .sparsity.counting import measure_sparsity
from .sparsity.report import SparsityReport
from .training.collapse import Diagnosis, diagnose
from .training.trainer import Optimisation, Trainer, TrainState
from .weights.checkpoint import CheckpointError, load, save
from .weights.constructors import vgg11, vgg11_bn, vgg13, vgg13_bn, vgg16, vgg16_bn, vgg19, vgg19_bn
from .weights.mapping import MappingError, from_torch, to_torch
from .weights.published import WeightsError

__version__: str

__all__ = [
    "ARCHITECTURES",
    "ATTRIBUTIONS",
    "CONVENTIONS",
    "METHODS",
    "PREPROCESSING",
    "VGG",
    "Attribution",
    "CheckpointError",
    "DatasetError",
    "Diagnosis",
    "Explanation",
    "Flag",
    "GaussianNoise",
    "ImageError",
    "LabelledImages",
    "MappingError",
    "Optimisation",
    "PassedOver",
    "Preprocessing",
    "Provenance",
    "Randomisation",
    "Road",
    "SparsityReport",
    "SquareRemoval",
    "TrainState",
    "Trainer",
    "VGGConfig",
    "WeightsError",
    "accuracy",
    "attribute",
    "average_drop",
    "average_increase",
    "average_precision",
    "centre_gaussian",
    "complexity",
    "confusion_matrix",
    "contextual_loss",
    "data_mesh",
    "deletion",
    "diagnose",
    "dists",
    "explain",
    "find_images",
    "fit_image",
    "flatten_chw",
    "from_torch",
    "fully_convolutional",
    "fully_sharded",
    "gram_matrix",
    "infidelity",
    "insertion",
    "load",
    "load_images",
    "lpips",
    "max_box_acc",
    "max_box_acc_v2",
    "max_sensitivity",
    "mean_average_precision",
    "measure_sparsity",
    "normalise",
    "open_image",
    "parameter_randomisation",
    "perceptual_loss",
    "place",
    "pointing_game",
    "prepare",
    "pxap",
    "relevance_mass_accuracy",
    "relevance_rank_accuracy",
    "replicated",
    "road",
    "save",
    "score_maps",
    "sensitivity_n",
    "shard_batch",
    "sparseness",
    "style_loss",
    "to_jax_export",
    "to_onnx",
    "to_torch",
    "total_variation",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "with_gap",
    "with_pooling",
    "with_sample_head",
    "with_score_map",
]
