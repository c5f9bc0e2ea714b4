"""A Keras configuration as calls of layers on tensors, with the models inside it taken apart.

Keras 1 to 3 write the calls of a layer in three ways (`_read_call`); a Sequential writes none, and
its layers follow each other. Nothing is built and no code is run: the configuration is data.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from flaxvgg.conversion.source_weights import SourceError

Tensor = tuple[str, int]  # the layer that makes it, with the models around, and its which call

_MOST_CALLS = 2_000  # of a file: a model in a model, twice each, grows fast
_MODELS = ("Sequential", "Functional", "Model")


@dataclasses.dataclass(frozen=True)
class Argument:
    """A tensor among a call's arguments."""

    tensor: Tensor


@dataclasses.dataclass
class Call:
    """One call of a layer: what it is, what it gets, and what comes out.

    `arguments` are those by position, `options` those by name; a tensor in them, at any depth, is
    an `Argument`.
    """

    layer: str
    kind: str
    config: dict[str, Any]
    arguments: list[Any]
    options: dict[str, Any]
    output: Tensor

    @property
    def inputs(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return list(_tensors([self.arguments, self.options]))


@dataclasses.dataclass
class KerasGraph:
    """The calls of a model, in an order that they can be made in, and the shapes of its inputs."""

    calls: list[Call]
    inputs: dict[Tensor, list[Any]]


def read_graph(name: str, config: dict[str, Any]) -> KerasGraph:
    """The graph of a configuration. Raises SourceError, with the file's `name`, for none."""
    reader = _Reader(name)
    inputs, _ = reader.model(config, "", None)
    return KerasGraph(list(_ordered(name, reader.calls, set(inputs))), inputs)


class _Reader:
    """Takes models apart; `calls` grows."""

    def __init__(self, name: str):
        self.name = name
        self.calls: list[Call] = []
        self.models = 0

    def model(
        self, config: Any, scope: str, given: list[Any] | None
    ) -> tuple[dict[Tensor, list[Any]], list[Tensor]]:
        """Add the calls of a model on its arguments; returns its own inputs, and its outputs."""
        own = self._own(config)
        layers = own.get("layers")
        self.models += 1
        if self.models > _MOST_CALLS:
            raise self._too_many
        if not isinstance(layers, list) or not layers:
            raise self.error
        if config.get("class_name") == "Sequential" or "output_layers" not in own:
            return self._sequential(own, layers, scope, given)
        return self._functional(own, layers, scope, given)

    @property
    def error(self) -> SourceError:
        return SourceError(f"{self.name} has a configuration that is none of Keras's")

    @property
    def _too_many(self) -> SourceError:
        return SourceError(f"{self.name} has more than {_MOST_CALLS} layers: no VGG has")

    def _own(self, config: Any) -> dict[str, Any]:
        if not isinstance(config, dict) or not isinstance(config.get("class_name"), str):
            raise self.error
        own = config.get("config", {})
        own = {"layers": own} if isinstance(own, list) else own  # Sequential, in older files
        if not isinstance(own, dict):
            raise self.error
        return own

    def _sequential(self, own, layers, scope, given):
        inputs: dict[Tensor, list[Any]] = {}
        tensor: Any = given[0] if given else None
        for layer in layers:
            config = self._own(layer)
            if layer["class_name"] == "InputLayer" and tensor is not None:
                continue
            if tensor is None:
                shape = _shape(config) or _shape(own, "build_input_shape")
                tensor = Argument((f"{scope}input", 0))
                inputs[tensor.tensor] = shape
                if layer["class_name"] == "InputLayer":
                    continue
            tensor = Argument(self.call(layer, scope, [tensor], {}, 0)[0])
        return inputs, [tensor.tensor]

    def _functional(self, own, layers, scope, given):
        names = [self._layer_name(layer) for layer in layers]
        if len(set(names)) < len(names):
            raise SourceError(f"{self.name} has two layers of one name: no telling them apart")
        wanted = self._histories(own.get("input_layers"))
        aliases = _Aliases()
        inputs: dict[Tensor, list[Any]] = {}
        for i, history in enumerate(wanted):
            if given is not None:
                if i >= len(given):
                    raise self.error
                aliases[history] = given[i]
        for name, layer in zip(names, layers, strict=True):
            if layer["class_name"] == "InputLayer" and (name, 0, 0) not in aliases:
                tensor: Tensor = (f"{scope}{name}", 0)
                aliases[name, 0, 0] = Argument(tensor)
                inputs[tensor] = _shape(self._own(layer))
        # A model among the layers has to be taken apart after what its input comes from.
        left = []
        for layer, name in zip(layers, names, strict=True):
            nodes = layer.get("inbound_nodes") or []
            if not isinstance(nodes, list) or len(left) + len(nodes) > _MOST_CALLS:
                raise self.error
            left += [(layer, name, i, self._read_call(node)) for i, node in enumerate(nodes)]
        outputs = self._histories(own.get("output_layers"))
        used = [*outputs, *_histories_in([read for *_, read in left])]
        while left:
            waiting = []
            for layer, name, i, read in left:
                if all(history in aliases for history in _histories_in(read)):
                    arguments, options = _replaced(read, aliases)
                    made = self.call(layer, scope, arguments, options, i)
                    if _is_model(layer):
                        # Keras counts the calls of most models from 1: 0 is their own making.
                        calls = len(layer["inbound_nodes"])
                        i += any(key[:2] == (name, calls) for key in used)
                        aliases |= {(name, i, k): Argument(out) for k, out in enumerate(made)}
                    else:
                        aliases[name, i, _ANY] = Argument(made[0])
                else:
                    waiting.append((layer, name, i, read))
            if len(waiting) == len(left):
                raise self.error
            left = waiting
        if any(history not in aliases for history in outputs):
            raise self.error
        return inputs, [aliases[history].tensor for history in outputs]

    def call(self, layer, scope, arguments, options, i) -> list[Tensor]:
        """Add a layer's call, or those of the model that it is; returns the outputs."""
        config, name = self._own(layer), self._layer_name(layer)
        if _is_model(layer):
            where = f"{scope}{name}/" if not i else f"{scope}{name}#{i}/"
            given = list(_found(arguments))
            return self.model(layer, where, given)[1]
        output = (f"{scope}{name}", i)
        if len(self.calls) >= _MOST_CALLS:
            raise self._too_many
        self.calls.append(Call(name, layer["class_name"], config, arguments, options, output))
        return [output]

    def _layer_name(self, layer: Any) -> str:
        own = self._own(layer)
        return str(layer.get("name") or own.get("name") or layer["class_name"])

    def _histories(self, value: Any) -> list[tuple[str, int, int]]:
        """(layer, call, output) of a model's inputs or outputs: one, a list, or by name."""
        if isinstance(value, dict):
            value = list(value.values())
        if _is_history(value):
            value = [value]
        if not isinstance(value, list) or not all(_is_history(item) for item in value):
            raise self.error
        return [tuple(item[:3]) for item in value]

    def _read_call(self, node: Any) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of one call, with a `_History` for every tensor.

        Keras 3 writes {"args", "kwargs"}; older ones a list of [layer, call, output, kwargs] for
        each tensor, in some versions the only tensor without the list around.
        """
        if isinstance(node, dict):
            arguments, options = node.get("args", []), node.get("kwargs", {})
            if not isinstance(arguments, list) or not isinstance(options, dict):
                raise self.error
            return parsed(arguments), parsed(options)
        if isinstance(node, list) and (_is_history(node) or _is_constant(node)):
            node = [node]
        if not isinstance(node, list) or not node:
            raise self.error
        if not all(_is_history(item) or _is_constant(item) for item in node):
            raise self.error
        tensors = [item[2] if _is_constant(item) else _History(tuple(item[:3])) for item in node]
        options = [x[3] for x in node if len(x) > 3 and isinstance(x[3], dict)]
        return (
            [tensors if len(tensors) > 1 else tensors[0]],
            {name: parsed(value) for found in options for name, value in found.items()},
        )


_ANY = -1  # output of a layer with several: they go by one name here, as no layer of VGG's has


class _Aliases(dict):
    """The tensors by (layer, call, output)."""

    def __missing__(self, key: tuple[str, int, int]) -> Argument:
        return dict.__getitem__(self, (*key[:2], _ANY))

    def __contains__(self, key: object) -> bool:
        known = super().__contains__
        return known(key) or (isinstance(key, tuple) and known((*key[:2], _ANY)))


def _is_model(layer: Any) -> bool:
    return layer["class_name"] in _MODELS or "layers" in layer.get("config", {})


@dataclasses.dataclass(frozen=True)
class _History:
    """A tensor, by the layer that makes it, which call of it, and which output of that."""

    key: tuple[str, int, int]


def _is_history(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) >= 3
        and isinstance(value[0], str)
        and all(isinstance(x, int) for x in value[1:3])
    )


def _is_constant(value: Any) -> bool:
    """Whether Keras 2 has a constant in the place of a tensor."""
    return isinstance(value, list) and len(value) >= 3 and value[0] == "_CONSTANT_VALUE"


def parsed(value: Any) -> Any:
    """A serialised argument: tensors as `_History`, constants as lists, slices as slices."""
    if isinstance(value, list):
        return (
            _History(tuple(value[:3])) if _is_history(value) else [parsed(item) for item in value]
        )
    if not isinstance(value, dict):
        return value
    kind, config = value.get("class_name"), value.get("config", {})
    if isinstance(config, dict):
        match kind:
            case "__keras_tensor__" if _is_history(config.get("keras_history")):
                return _History(tuple(config["keras_history"][:3]))
            case "__tensor__" | "__numpy__":
                return config.get("value")
            case "__tuple__":  # as Keras 2 wrote them
                return parsed(value.get("items", []))
            case "__ellipsis__":
                return ...
            case "__slice__":
                return _slice(config)
    if value.keys() == {"start", "stop", "step"}:
        return _slice(value)
    return {name: parsed(item) for name, item in value.items()}


def _slice(parts: dict[str, Any]) -> Any:
    found = [parts.get(name) for name in ("start", "stop", "step")]
    if all(part is None or isinstance(part, int) for part in found) and found[2] != 0:
        return slice(*found)
    return None


def _histories_in(value: Any) -> Iterator[tuple[str, int, int]]:
    if isinstance(value, _History):
        yield value.key
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _histories_in(item)
    elif isinstance(value, dict):
        yield from _histories_in(list(value.values()))


def _replaced(value: Any, aliases: dict[tuple[str, int, int], Any]) -> Any:
    if isinstance(value, _History):
        return aliases[value.key]
    if isinstance(value, list | tuple):
        return type(value)(_replaced(item, aliases) for item in value)
    if isinstance(value, dict):
        return {name: _replaced(item, aliases) for name, item in value.items()}
    return value


def _found(value: Any) -> Iterator[Argument]:
    if isinstance(value, Argument):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _found(item)
    elif isinstance(value, dict):
        yield from _found(list(value.values()))


def _tensors(value: Any) -> Iterator[Tensor]:
    return (found.tensor for found in _found(value))


def _shape(config: dict[str, Any], *names: str) -> list[Any]:
    """The shape of an input, with the batch; empty where the configuration has none."""
    for name in names or ("batch_shape", "batch_input_shape"):
        if isinstance(config.get(name), list):
            return config[name]
    return []


def _ordered(name: str, calls: Iterable[Call], known: set[Tensor]) -> Iterator[Call]:
    """The calls as they were taken apart, which is an order that they can be made in."""
    for call in calls:
        if not known.issuperset(call.inputs):
            raise SourceError(f"{name} has a configuration that is none of Keras's")
        known.add(call.output)
        yield call
