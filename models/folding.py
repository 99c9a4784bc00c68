"""Compute once what a traced graph computes from weights alone, such as a schedule or the features of t."""

import torch
from torch import Tensor, fx


@torch.no_grad()
def fold_constants(module: fx.GraphModule) -> fx.GraphModule:
    """Return the module of a torch.export program, changed: what depends on no input is a constant in it."""
    graph, values, names = module.graph, {}, {}  # the value of each node that depends on no input; the constants
    for node in graph.nodes:
        if node.op == "get_attr":
            values[node] = _attribute(module, node.target)
        elif node.op == "call_function" and all(each in values for each in node.all_input_nodes):
            values[node] = node.target(*fx.map_arg(node.args, values.get), **fx.map_arg(node.kwargs, values.get))
    for node in reversed(values):
        if node.users and isinstance(values[node], Tensor) and node.op != "get_attr":
            name = names.setdefault(_place(values[node]), f"folded_{node.name}")
            module.register_buffer(name, values[node])
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.get_attr(name))
        if not node.users:
            graph.erase_node(node)
    module.recompile()
    return module


def _attribute(module: fx.GraphModule, path: str) -> Tensor:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _place(value: Tensor) -> tuple:
    """Return what views of the same numbers have in common, such as the part of a weight that every step reads."""
    return value.data_ptr(), value.dtype, value.shape, value.stride()
