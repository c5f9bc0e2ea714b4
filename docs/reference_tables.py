"""What the reference pages show of the code itself: options, commands, layers, recipes.

Each directive is a function from its argument to Markdown, which is made when the site is built.
"""

import ast
import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, get_args, get_origin

import typer
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import flaxvgg
from flaxvgg.attribution.methods import OPTIONS as ATTRIBUTION_OPTIONS
from flaxvgg.cam.options import OPTIONS as CAM_OPTIONS
from flaxvgg.commands.cli import app as command_line
from flaxvgg.network.config import VGGConfig
from flaxvgg.training import settings


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    lines = []
    for row in (header, ["---"] * len(header), *rows):
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def toml_options(name: str) -> str:
    """The options of a section of `flaxvgg train`'s TOML file; the dataclass is its definition."""
    kind = getattr(settings, name)
    hints = typing.get_type_hints(kind)
    rows = [
        (f"`{field.name}`", _values(hints[field.name]), _default(field))
        for field in dataclasses.fields(kind)
        if not dataclasses.is_dataclass(hints[field.name])
    ]
    text = inspect.cleandoc(kind.__doc__).split("\n\n>>>")[0]
    return table(("option", "value", "default"), rows) + f"\n\n{text}\n"


def method_options(of: str) -> str:
    """The options of every method of `explain` ("cam") or `attribute` ("attribution")."""
    options = {"cam": CAM_OPTIONS, "attribution": ATTRIBUTION_OPTIONS}[of]
    methods: dict[type, list[str]] = {}
    for method, kind in options.items():
        methods.setdefault(kind, []).append(method)
    parts = []
    for kind, names in methods.items():
        hints = typing.get_type_hints(kind)
        rows = [
            (f"`{field.name}`", _choices(hints[field.name]), _default(field))
            for field in dataclasses.fields(kind)
        ]
        if rows:
            heads = table(("option", "choices", "default"), rows)
            parts.append(f"### {', '.join(names)}\n\n{heads}\n\n{inspect.cleandoc(kind.__doc__)}")
    return "\n\n".join(parts)


def _choices(hint: Any) -> str:
    """The words that a hint, or one of a union, leaves to choose from."""
    kinds = (hint, *get_args(hint))
    words = [word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)]
    return ", ".join(f'`"{word}"`' for word in words)


def _values(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(f'`"{value}"`' for value in get_args(hint))
    kinds = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    plain = [x for x in get_args(hint) or (hint,) if x is not type(None)]
    if get_origin(hint) is tuple:
        return "`[height, width]`"
    return kinds.get(plain[0], "path, relative to the file")


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if value is dataclasses.MISSING:
        return "has to be given"
    if value is None or value == ():
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def commands(_: str) -> str:
    """Every command with its arguments and options, as `--help` has them."""
    group = typer.main.get_command(command_line)
    return "\n\n".join(_command(name, command) for name, command in group.commands.items())


def _command(name: str, command: Any) -> str:
    arguments = [x for x in command.params if x.param_type_name == "argument"]
    shown = " ".join([name, *(f"{x.name.upper()}{' ...' * (x.nargs < 0)}" for x in arguments)])
    rows = []
    for param in command.params:
        if param.name != "help":
            name_shown = " ".join(param.opts) if param not in arguments else param.name.upper()
            told = (getattr(param, "help", "") or "").replace("*", "\\*")
            rows.append((f"`{name_shown}`", f"{told}{_shown_default(param)}"))
    text = inspect.cleandoc(command.help or "")
    heads = table(("", ""), rows)
    return f"## flaxvgg {name}\n\n```sh\nflaxvgg {shown} [OPTIONS]\n```\n\n{text}\n\n{heads}"


def _shown_default(param: Any) -> str:
    if param.required:
        return " *Has to be given.*"
    if param.default is None or param.default is False or callable(param.default):
        return ""
    values = param.default if isinstance(param.default, list | tuple) else [param.default]
    return f" *Default:* {' '.join(f'`{x}`' for x in values)}"


def layer_names(arch: str) -> str:
    """Each layer of an architecture by its three names, and what it gives at 224x224."""
    config = VGGConfig.classifier(arch)
    others: dict[str, list[str]] = {}
    for alias, name in config.aliases.items():
        others.setdefault(name, []).append(alias)
    rows, size, channels = [], 224, 3
    for layer in config.layers:
        size //= 2 if layer.kind == "max_pool" else 1
        channels = layer.outputs or channels
        if layer.kind in ("avg_pool", "flatten", "linear"):
            size = 7 if layer.kind == "avg_pool" else 0
            channels = (size and channels) or layer.outputs or 25088
        shape = f"{size} x {size} x {channels}" if size else f"{channels}"
        keras = [x for x in others.get(layer.name, ()) if re.match("block|fc|pred", x)]
        torch = [x for x in others.get(layer.name, ()) if x not in keras and "." in x]
        rows.append((f"`{layer.name}`", _joined(torch), _joined(keras), shape))
    return table(("the paper's", "PyTorch's", "Keras's", "output at 224x224"), rows)


def _joined(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def recipes(_: str) -> str:
    """How each recipe makes the network's input of 8-bit pixels."""
    rows = [
        (f"`{name}`", f"`{recipe.formula}`", recipe.fit, recipe.interpolation)
        for name, recipe in flaxvgg.PREPROCESSING.items()
    ]
    return table(("recipe", "input", "fit", "interpolation"), rows)


def module_text(name: str) -> str:
    """A module's docstring, which describes a format; its indented parts are shown as they are."""
    text = inspect.cleandoc(inspect.importlib.import_module(name).__doc__ or "")
    return "\n\n".join(_fenced(text))


def _fenced(text: str) -> Iterator[str]:
    for part in re.split(r"\n\n(?=\S)", text):
        prose, _, shown = part.partition("\n\n    ")
        yield prose
        if shown:
            yield "```text\n" + inspect.cleandoc("\n    " + shown) + "\n```"


def literal_blocks(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Indented parts of docstrings are code, as their readers in an editor take them."""
    shown, before = [], ""
    for line in lines:
        indented = line.startswith("    ") and not before.startswith("    ")
        if indented and shown and not shown[-1].strip() and not before.endswith("::"):
            shown += ["::", ""]
        shown.append(line)
        before = line if line.strip() else before
    lines[:] = shown


def shorter_architectures(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Eight constructors have one docstring: it is shown once, of vgg16."""
    arch = name.removeprefix("flaxvgg.")
    if arch in flaxvgg.ARCHITECTURES and arch != "vgg16":
        lines[:] = [lines[0], "", "Everything else is as for `vgg16`.", ""]


def written_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    """A signature as its source has it, where what the names of types stand for is pages long.

    Names of choices give way to the choices. Those of dataclasses are made by Python, and stay.
    """
    arch = name.removeprefix("flaxvgg.")
    if arch in flaxvgg.ARCHITECTURES and arch != "vgg16":
        return "(...)", "VGG"
    function = obj.__init__ if what == "class" and not dataclasses.is_dataclass(obj) else obj
    if what not in ("class", "function", "method") or not inspect.isroutine(function):
        return None
    function = inspect.unwrap(function)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    except (OSError, TypeError):
        return None
    given = tree.args
    if given.args and given.args[0].arg in ("self", "cls"):
        del given.args[0]
    for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs):
        argument.annotation = _chosen(argument.annotation, function.__globals__)
    if what == "class" or tree.returns is None:
        return f"({ast.unparse(given)})", ""
    return f"({ast.unparse(given)})", ast.unparse(_chosen(tree.returns, function.__globals__))


def _chosen(annotation: ast.expr | None, names: dict[str, Any]) -> ast.expr | None:
    """An annotation without quotes around it, and with the choices that a name stands for."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body

    class Choices(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            value = names.get(node.id)
            if get_origin(value) is not Literal:
                return node
            return ast.parse(repr(value).removeprefix("typing."), mode="eval").body

    return annotation and Choices().visit(annotation)


def short_types(app: Sphinx, domain: str, kind: str, content: nodes.Element) -> None:
    """Types by their public names, where a signature was made of the types themselves."""
    for signature in content.parent.findall(addnodes.desc_signature):
        for text in list(signature.findall(nodes.Text)):
            if (short := re.sub(r"jaxlib\._jax\.|~(\w+\.)+", "", text)) != text:
                text.parent.replace(text, nodes.Text(short))


def constants(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A tuple or a dictionary of names has Python's docstring: its names say more."""
    if what == "data":
        lines[:] = [", ".join(f"``{value}``" for value in obj), ""]


def _directive(text_of: Callable[[str], str]) -> type[SphinxDirective]:
    class Shown(SphinxDirective):
        optional_arguments = 1

        def run(self) -> list[nodes.Node]:
            text = text_of(self.arguments[0] if self.arguments else "")
            return self.parse_text_to_nodes(text, allow_section_headings=True)

    return Shown


def setup(app: Sphinx) -> dict[str, Any]:
    for text_of in (toml_options, method_options, commands, layer_names, recipes, module_text):
        app.add_directive(text_of.__name__.replace("_", "-"), _directive(text_of))
    for handler in (literal_blocks, shorter_architectures, constants):
        app.connect("autodoc-process-docstring", handler)
    app.connect("autodoc-process-signature", written_signature)
    app.connect("object-description-transform", short_types)
    return {"version": flaxvgg.__version__, "parallel_read_safe": True}
