"""The frame of every page: its styles, the script that it carries, and what it is allowed to do."""

import base64
import hashlib
import html
import importlib.resources
import json
from collections.abc import Mapping
from string import Template
from typing import Any

from flaxvgg.files.foreign import plain

# In this order they are one script.
_SCRIPTS = ("colours", "fields", "source", "canvas", "photos", "viewer", "channels", "tables")


def page(title: str, headline: str, body: str, data: Mapping[str, Any], live: bool = False) -> str:
    """A page in HTML. It asks for nothing: no network, no other file.

    `body` is HTML, in which foreign text went through `escape`. `data` is what the script shows, as
    a JSON value without NaN. A `live` page is one that `flaxvgg view` serves: it may ask the server
    that it came from, and nobody else.
    """
    script = "\n".join(_file(f"{name}.js") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    return Template(_file("shell.html")).substitute(
        policy=policy(script, live),
        title=escape(title),
        headline=escape(headline),
        style=_file("page.css"),
        body=body,
        # "<" could end the element that the data is in.
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        script=script,
    )


def policy(script: str, live: bool) -> str:
    """The content security policy: this script and no other, pictures that the page carries."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = ["default-src 'none'", f"script-src 'sha256-{digest}'", "style-src 'unsafe-inline'"]
    rules += ["img-src data: 'self'", "connect-src 'self'"] if live else ["img-src data:"]
    return "; ".join([*rules, "base-uri 'none'", "form-action 'none'"])


def escape(text: str) -> str:
    """A text as HTML shows it, also within the quotes of an attribute."""
    return html.escape(plain(text))


def viewer() -> str:
    """The viewer of maps, empty: the page's script fills it."""
    return _file("viewer.html")


def _file(name: str) -> str:
    return importlib.resources.files("flaxvgg.plotting.page").joinpath(name).read_text("utf-8")
