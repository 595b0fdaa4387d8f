"""Points between the stages of any network, at which features are read or the network is cut in two.

A point is a submodule after which one tensor alone carries everything that the rest of the network needs. Points are
found by tracing the network's forward function with every submodule as a leaf (torch.fx).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import fx, nn

from taskgraft.errors import InputError, first_line
from taskgraft.models.eval_mode import eval_mode
from taskgraft.types import Params

PointOutputs = Params  # point -> its output
LAST = ""  # the point after everything: the features themselves


def find_points(net: nn.Module) -> tuple[str, ...]:
    """Return the names of a network's points that have parameters, in order of execution.

    Raises:
        InputError: The forward function cannot be traced.
    """
    return tuple(str(node.target) for node in _find_cuts(net, _trace(net)))


def expose_points(net: nn.Module, names: Sequence[str]) -> fx.GraphModule:
    """Return the network with a second output, (features, {point: tensor}); it shares the network's parameters.

    Points that are exposed already stay so.

    Raises:
        InputError: A point does not exist, or the forward function cannot be traced.
    """
    graph = _trace(net)
    calls = {str(node.target): node for node in graph.nodes if node.op == "call_module"}
    missing = [name for name in names if name not in calls]
    if missing:
        raise InputError(f"{type(net).__name__} has no stage {missing[0]!r}; it has {', '.join(find_points(net))}")
    for name in calls:  # what follows a point must not change in place what is read there
        if getattr(net.get_submodule(name), "inplace", False):
            setattr(net.get_submodule(name), "inplace", False)  # noqa: B010 - an attribute that not all modules have
    output = _output(graph)
    features, exposed = _features(output), _exposed(output)
    output.args = ((features, {**exposed, **{name: calls[name] for name in names}}),)
    return fx.GraphModule(net, graph)


def points_only(net: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Return a network with exposed points that outputs only {point: tensor} and computes nothing behind them."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(net.graph, copies)
    exposed = _exposed(_output(net.graph))
    graph.output({name: copies[exposed[name]] for name in names})
    reduced = fx.GraphModule(net, graph)
    reduced.graph.eliminate_dead_code()
    reduced.recompile()
    return reduced


def copy_tail(net: nn.Module, point: str) -> fx.GraphModule:
    """Return a copy of what follows a point: output of the point -> features. Parameters are copied, not shared."""
    graph = _trace(net)
    cut = next((node for node in _find_cuts(net, graph) if node.target == point), None)
    if cut is None:
        raise InputError(f"{type(net).__name__} cannot be cut at {point!r}; it can at {', '.join(find_points(net))}")
    rest = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {cut: rest.placeholder("x")}
    nodes = list(graph.nodes)
    first = nodes.index(cut) + 1
    for position, node in enumerate(nodes):
        if node.op == "get_attr" or (node.op != "output" and position >= first):
            copies[node] = rest.node_copy(node, lambda old: copies[old])
    rest.output(copies[_features(_output(graph))])
    tail = fx.GraphModule(copy.deepcopy(net), rest)
    rest.eliminate_dead_code()
    tail.delete_all_unused_submodules()
    tail.recompile()
    return tail


def _trace(net: nn.Module) -> fx.Graph:
    try:
        with eval_mode(net):  # dropout in the forward function stays out
            return _bind_defaults(_Tracer().trace(net))
    except Exception as error:  # tracing runs the network's own code, which may raise anything
        raise InputError(
            f"the stages of {type(net).__name__} cannot be traced ({first_line(error, 120)}); "
            "use a method that attaches nothing to the stages (see `taskgraft methods`)"
        ) from error


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """All submodules are leaves but a top-level nn.Sequential."""
        return not (isinstance(m, nn.Sequential) and "." not in module_qualified_name)


def _bind_defaults(graph: fx.Graph) -> fx.Graph:
    """Bind the arguments that follow the images to their defaults, else they would cross every stage."""
    for node in list(graph.nodes)[1:]:
        if node.op == "placeholder":
            default = node.args[0] if node.args else None
            for user in list(node.users):
                user.args, user.kwargs = fx.map_arg(  # pyright: ignore[reportAttributeAccessIssue]
                    (user.args, user.kwargs), lambda old, node=node, default=default: default if old is node else old
                )
            graph.erase_node(node)
    return graph


def _find_cuts(net: nn.Module, graph: fx.Graph) -> list[fx.Node]:
    """Return the calls of modules with parameters after which nothing else is needed, except the last."""
    features = _features(_output(graph))
    needed = _ancestors(features)
    nodes = [node for node in graph.nodes if node in needed and node.op != "get_attr"]
    last_use = {used: position for position, node in enumerate(nodes) for used in node.all_input_nodes}
    cuts, used_until = [], 0  # the last position at which an earlier node is used
    for position, node in enumerate(nodes):
        has_parameters = node.op == "call_module" and any(
            True for _ in net.get_submodule(str(node.target)).parameters()
        )
        if has_parameters and used_until <= position and node is not features:
            cuts.append(node)
        used_until = max(used_until, last_use.get(node, 0))
    return cuts


def _ancestors(node: fx.Node) -> set[fx.Node]:
    ancestors, stack = set(), [node]
    while stack:
        current = stack.pop()
        if current not in ancestors:
            ancestors.add(current)
            stack += current.all_input_nodes
    return ancestors


def _output(graph: fx.Graph) -> fx.Node:
    return next(node for node in reversed(graph.nodes) if node.op == "output")


def _features(output: fx.Node) -> fx.Node:
    value = output.args[0]
    value = value[0] if isinstance(value, tuple) else value
    if not isinstance(value, fx.Node):
        raise InputError("the network has more than one output; use a backbone with one, [B, D]")
    return value


def _exposed(output: fx.Node) -> dict[str, fx.Node]:
    value = output.args[0]
    return dict(value[1]) if isinstance(value, tuple) else {}  # pyright: ignore
