"""An input, and the judgement of what a reader makes of it."""

import contextlib
import dataclasses
import re
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from flaxvgg.images.finding import PassedOver
from tests.fuzz.mutations import mutate

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Seed:
    """A file to begin with; a `hostile` one is to be refused as it is, another one read."""

    name: str
    data: bytes
    hostile: bool = False


@dataclasses.dataclass(frozen=True)
class Target:
    """One reader. `read` is ours, with its `errors`, `truth` another; both take the damaged file.

    `truth` gets the undamaged bytes as well. `place` puts the file where the reader looks for it,
    and returns the path to read.
    """

    kind: str
    share: int
    seeds: list[Seed]
    errors: tuple[type[Exception], ...]
    read: Callable[[Path], Arrays]
    truth: Callable[[bytes, Path, bytes], Arrays]
    place: Callable[[Path, str, bytes], Path]


@dataclasses.dataclass(frozen=True)
class Case:
    """One input: the bytes for a reader, and the undamaged ones they were made from."""

    target: Target
    name: str
    data: bytes
    whole: bytes
    expected: str = ""


def in_place(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


class Inputs:
    """All inputs of one seed, by number: the whole files, the hostile ones, then mutated ones.

    `hostile` has the kind of the target with each file.
    """

    def __init__(
        self, seed: int, targets: Sequence[Target], hostile: Sequence[tuple[str, Seed]] = ()
    ):
        self._seed = seed
        self._targets = targets
        kinds = {target.kind: target for target in targets}
        self._whole = [(target, seed) for target in targets for seed in target.seeds]
        self._hostile = [(kinds[kind], seed) for kind, seed in hostile]
        shares = np.array([target.share for target in targets], float)
        self._shares = shares / shares.sum()

    def case(self, number: int) -> Case:
        """Input `number`, the same whenever it is asked for."""
        if number < len(self._whole + self._hostile):
            target, seed = (self._whole + self._hostile)[number]
            expected = "refused" if seed.hostile else "read" if number < len(self._whole) else ""
            return Case(target, seed.name, seed.data, seed.data, expected)
        random = np.random.default_rng((self._seed, number))
        target = self._targets[random.choice(len(self._targets), p=self._shares)]
        # Hostile files are worth damaging too: the damage may take away what gave them away.
        seeds = target.seeds
        if random.random() < 0.25:
            seeds = [s for t, s in self._hostile if t is target and len(s.data) < 1e5] or seeds
        chosen, other = (seeds[random.integers(len(seeds))] for _ in range(2))
        name, data = chosen.name, mutate(chosen.data, other.data, random)
        if random.random() < 0.05:  # a file of another kind, under this one's name
            foreign = [t for t in self._targets if not t.kind.startswith("our")]
            theirs = foreign[random.integers(len(foreign))]
            data = theirs.seeds[random.integers(len(theirs.seeds))].data
            return Case(target, name, data, data)
        return Case(target, name, data, chosen.data)


def judge(case: Case, scratch: Path, show: bool = False) -> tuple[str, str]:
    """The outcome of an input, and what there is to say of it."""
    with tempfile.TemporaryDirectory(dir=scratch) as name, contextlib.chdir(name):
        folder = Path(name)
        path = case.target.place(folder, case.name, case.data)
        with warnings.catch_warnings(record=True) as warned, _forbidden() as done:
            warnings.simplefilter("always")
            try:
                found = case.target.read(path)
            except case.target.errors as error:
                found = error
            except Exception as error:
                if show:
                    traceback.print_exc()
                where = traceback.extract_tb(error.__traceback__)[-1]
                return "untyped error", f"{error!r} at {where.filename}:{where.lineno}"
        if show:
            print(repr(found)[:3000])
        if done or Path("executed").exists():
            return "executed", str(done)
        if isinstance(found, Exception):
            whole = case.expected == "read"
            return "refused, but whole" if whole else "refused", str(found)
        surprising = [str(w.message) for w in warned if not _is_harmless(w)]
        if surprising:
            return "warning", surprising[0]
        if case.expected == "refused":
            return "hostile, but read", str(list(found))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = case.target.truth(case.data, path, case.whole)
            except Exception as error:
                if show:
                    traceback.print_exc()
                return "read what is broken", repr(error)
        problem = _difference(found, expected)
        if problem:
            return "silently wrong", problem
        return ("read with a warning" if warned else "read"), ""


def _is_harmless(warned: warnings.WarningMessage) -> bool:
    """Pillow warns of images that are large, and of what stands beside the pixels.

    PyTorch warns of a pickle that it may not understand, before it says that it does not; and
    Orbax of what it left undone when an earlier checkpoint was damaged.
    """
    said = str(warned.message)
    return (
        Path(warned.filename).parent.name == "PIL"
        or issubclass(warned.category, PassedOver)  # files that look like photos
        or "pickle protocol" in said
        or "sparse tensor invariants" in said  # how long it may take
        or said.endswith("was never awaited")
    )


_DANGEROUS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen")
_DANGEROUS += ("socket.connect", "socket.getaddrinfo", "urllib.Request", "shutil.rmtree")
_OWN = re.compile(r"/\.flaxvgg-saving-[\w-]+$|/\.out\.zarr\.new-\d+$")  # where writers work
_heard: list[str] = []
_listening = False


def _hook(event: str, arguments: tuple) -> None:
    own = event == "shutil.rmtree" and _OWN.search(str(arguments[0]))
    if _listening and event in _DANGEROUS and not own:
        _heard.append(f"{event}{arguments!r}"[:500])


sys.addaudithook(_hook)


@contextlib.contextmanager
def _forbidden():
    """A list of what was done that no reader has to do."""
    global _listening
    _heard.clear()
    _listening = True
    try:
        yield _heard
    finally:
        _listening = False


def _difference(found: Arrays, expected: Arrays) -> str:
    if found.keys() != expected.keys():
        return f"{sorted(found)[:5]}, not {sorted(expected)[:5]}"
    for name, array in found.items():
        other = expected[name]
        if array.dtype != other.dtype or array.shape != other.shape:
            return f"{name}: {array.dtype}{array.shape}, not {other.dtype}{other.shape}"
        if array.tobytes() != other.tobytes():
            return f"{name}: other values"
    return ""
