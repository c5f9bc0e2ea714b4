"""What to say of a word that is none of those there are."""

import difflib
from collections.abc import Iterable


def choose(value: object, choices: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest that there is, and all of them.

    >>> choose("vgg61", ["vgg11", "vgg16"])
    'did you mean vgg16? choose from vgg11, vgg16'
    """
    names = list(choices)
    word = str(value).lower()
    near = difflib.get_close_matches(word, [name.lower() for name in names], 1, 0.75)
    swapped = [name for name in names if sorted(name.lower()) == sorted(word)]
    meant = swapped or [name for name in names if name.lower() in near]
    hint = f"did you mean {meant[0]}? " if meant else ""
    return f"{hint}choose from {', '.join(names)}"
