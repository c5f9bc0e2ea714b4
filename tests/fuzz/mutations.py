"""How a file gets damaged: blindly, and by somebody who knows its format."""

import contextlib
import io
import re
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

Random = np.random.Generator
_PNG = b"\x89PNG\r\n\x1a\n"
_INTEGERS = (0, 1, -1, 2**7, 2**8 - 1, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)
_NUMBERS = (
    *("0", "-1", "1", "255", "256", "65536", "2147483648", "-2147483648", "9999999999"),
    *("18446744073709551615", "18446744073709551617", "1e400", "nan", "inf", "0.5", "null", '""'),
)


def mutate(data: bytes, other: bytes, random: Random) -> bytes:
    """`data` after one to three mutations; `other` is a second file to take parts of.

    Half of the time a format's own checks are made to hold again, so that the damage reaches what
    lies behind them.
    """
    if data[:4] == b"PK\x03\x04" and random.random() < 0.5:
        # Not where another program refuses what was made to be refused.
        with contextlib.suppress(RuntimeError, NotImplementedError, zipfile.BadZipFile):
            return _in_a_member(data, other, random)
    damaged = data
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        damaged = _MUTATIONS[random.integers(len(_MUTATIONS))](damaged, other, random)
    if random.random() < 0.5:
        damaged = _with_lengths_and_checksums(damaged)
    return damaged


def _place(size: int, random: Random) -> int:
    """A position; often among the first or last bytes, where headers and directories are."""
    near = int(min(size, random.choice([64, 512, 4096])))
    match random.integers(3):
        case 0:
            return int(random.integers(near + 1))
        case 1:
            return int(size - random.integers(near + 1))
    return int(random.integers(size + 1))


def _run(size: int, random: Random) -> tuple[int, int]:
    start = _place(size, random)
    return start, min(size, start + int(2 ** random.uniform(0, 10)))


def _flip_bits(data: bytes, other: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice([1, 1, 2, 8]) if data else 0):
        changed[min(_place(len(data), random), len(data) - 1)] ^= 1 << int(random.integers(8))
    return bytes(changed)


def _set_bytes(data: bytes, other: bytes, random: Random) -> bytes:
    start, stop = _run(len(data), random)
    fill = [bytes(stop - start), b"\xff" * (stop - start), random.bytes(stop - start)]
    return data[:start] + fill[random.integers(3)] + data[stop:]


def _set_integer(data: bytes, other: bytes, random: Random) -> bytes:
    size = int(random.choice([1, 2, 4, 8]))
    value = _INTEGERS[random.integers(len(_INTEGERS))] % 2 ** (8 * size)
    start = _place(len(data), random)
    order = "little" if random.random() < 0.5 else "big"
    return data[:start] + value.to_bytes(size, order) + data[start + size :]


def _set_number(data: bytes, other: bytes, random: Random) -> bytes:
    """A number written in digits, as in JSON, XML, CSV, PNM and Python's names of dtypes."""
    found = list(re.finditer(rb"\d+", data[:20000]))
    if not found:
        return _set_integer(data, other, random)
    start, stop = found[random.integers(len(found))].span()
    return data[:start] + _NUMBERS[random.integers(len(_NUMBERS))].encode() + data[stop:]


def _truncate(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: _place(len(data), random)]


def _insert(data: bytes, other: bytes, random: Random) -> bytes:
    at = _place(len(data), random)
    start, stop = _run(len(data), random)
    new = [random.bytes(stop - start), bytes(stop - start), data[start:stop]]
    return data[:at] + new[random.integers(3)] + data[at:]


def _delete(data: bytes, other: bytes, random: Random) -> bytes:
    start, stop = _run(len(data), random)
    return data[:start] + data[stop:]


def _repeat(data: bytes, other: bytes, random: Random) -> bytes:
    start, stop = _run(len(data), random)
    return data[:stop] + data[start:stop] * int(random.choice([1, 2, 100])) + data[stop:]


def _splice(data: bytes, other: bytes, random: Random) -> bytes:
    if random.random() < 0.5:
        return data[: _place(len(data), random)] + other[_place(len(other), random) :]
    start, stop = _run(min(len(data), len(other)), random)
    return data[:start] + other[start:stop] + data[stop:]


_MUTATIONS: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    *(_flip_bits, _flip_bits, _set_bytes, _set_integer, _set_integer, _set_number, _truncate),
    *(_truncate, _insert, _delete, _repeat, _splice),
)


def _in_a_member(data: bytes, other: bytes, random: Random) -> bytes:
    """Another archive, in order, with one damaged member; sometimes one too many or too few."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(packed, "w") as target:
        members = source.infolist()
        chosen = members[random.integers(len(members))]
        for member in members:
            content = source.read(member)
            if member is chosen:
                if random.random() < 0.1:
                    continue
                one = _MUTATIONS[random.integers(len(_MUTATIONS))]
                content = one(content, other, random)
                if random.random() < 0.2:
                    member.compress_type = zipfile.ZIP_DEFLATED
                if random.random() < 0.1:
                    member.filename = f"../{member.filename}"
            target.writestr(member, content)
    return packed.getvalue()


def _with_lengths_and_checksums(data: bytes) -> bytes:
    if data.startswith(_PNG):
        return _PNG + b"".join(
            len(content).to_bytes(4, "big") + kind + content + crc(kind + content)
            for kind, content, _ in png_chunks(data)
        )
    if data[8:10] == b'{"' and (end := data.rfind(b"}}")) >= 0:  # safetensors
        text = data[8 : end + 2]
        return len(text).to_bytes(8, "little") + text + data[end + 2 :]
    return data


def png_chunks(data: bytes) -> list[tuple[bytes, bytes, bool]]:
    """Kind, content and whether the checksum is right, of each chunk of a PNG up to its IEND."""
    chunks, at = [], len(_PNG)
    while at + 8 <= len(data):
        stop = at + 8 + int.from_bytes(data[at : at + 4], "big")
        kind, content = data[at + 4 : at + 8], data[at + 8 : stop]
        chunks.append((kind, content, data[stop : stop + 4] == crc(kind + content)))
        at = stop + 4
        if kind == b"IEND":
            break
    return chunks


def crc(content: bytes) -> bytes:
    """The checksum behind a chunk of a PNG."""
    return zlib.crc32(content).to_bytes(4, "big")
