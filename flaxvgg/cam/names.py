"""Methods and classes by the names that people write."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from flaxvgg.files.foreign import plain

_FEW = 20  # classes whose names are listed in a message


def find_name(text: str, choices: Sequence[str], aliases: Mapping[str, str] | None = None) -> str:
    """The choice that is meant, whatever its case, hyphens, underscores and spaces.

    "plus" and "+" are the same; `aliases` are other names of choices. Raises ValueError for a name
    of none or of several choices, with those that are close, or else all.

    >>> from flaxvgg.cam.names import find_name
    >>> find_name("GradCAM++", ["cam", "grad_cam", "grad_cam++"])
    'grad_cam++'
    """
    if text in choices:
        return text
    names = {name: name for name in choices} | dict(aliases or {})
    found = {choice for name, choice in names.items() if _bare(name) == _bare(text)}
    if len(found) == 1:
        return found.pop()
    close = sorted(found) or [names[name] for name in _close(text, names)]
    hint = f"did you mean {_listed(close)}?" if close else f"choose from {', '.join(choices)}"
    raise ValueError(f"no method {plain(text)!r}: {hint}")


def find_class(text: str, names: Sequence[str], count: int) -> int:
    """The number of the class of that name, out of `count`; names are compared as above.

    Raises ValueError for a name of none or of several classes, as ImageNet's crane, with numbers
    or names to pass instead.
    """
    for key in (str, _bare):
        found = [i for i, name in enumerate(names) if key(name) == key(text)]
        if len(found) == 1:
            return found[0]
        if found:
            numbers = ", ".join(map(str, found))
            raise ValueError(f"several classes are {plain(text)!r}: pass a number, {numbers}")
    close = _close(text, names)
    if close:
        hint = f"did you mean {_listed(close)}?"
    elif names:
        few = f": {_listed(names)}" if len(names) <= _FEW else ""
        hint = f"pass a name, or a number from 0 to {count - 1}{few}"
    else:
        hint = f"the weights have no class names: pass numbers from 0 to {count - 1}"
    raise ValueError(f"no class {plain(text)!r}: {hint}")


def _bare(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.casefold()).replace("plus", "+")


def _close(text: str, names: Iterable[str]) -> list[str]:
    by_bare = {_bare(name): name for name in reversed(list(names))}
    return [by_bare[bare] for bare in difflib.get_close_matches(_bare(text), list(by_bare), n=3)]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(plain, dict.fromkeys(names)))
