"""Steps as graphs: the torch ops that a step runs are written down and compiled into one function of its tensors.

This is to Gaudi what capturing is to a GPU. Core's code runs once, on the device, under a dispatch mode; what it did to
tensors becomes an FX graph without any Python of its own, so that nothing is traced through, guarded or broken into
pieces. Each graph has one set of shapes: there is nothing to compile a second time.
"""

# Relaxed: torch leaves dispatch modes and FX half typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportMissingParameterType=false, reportPrivateUsage=false

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from drivetrain_gaudi.habana import Compilation
from drivetrain_plugins.errors import Unsupported


def record(step: Callable[[], None], compilation: Compilation) -> Callable[[], None]:
    """Run a step once, and return what runs it again on the same tensors as one compiled graph.

    Tensors that the step made and left alive are written again by every replay.

    Raises:
        Unsupported: the step reads the device's values on the host, so that it cannot be repeated without the host.
    """
    tape = _Tape()
    with tape:
        step()
    forward, arguments = tape.finish()
    compiled = torch.compile(
        forward, backend=compilation.backend, options=dict(compilation.options), dynamic=False, fullgraph=True
    )

    def replay() -> None:
        compiled(*arguments)

    return replay


class _Tape(TorchDispatchMode):
    """Writes down every op with its arguments. Tensors that were there before become the graph's inputs."""

    def __init__(self) -> None:
        super().__init__()
        self._graph = fx.Graph()
        self._nodes = WeakTensorKeyDictionary()
        self._inputs: list[tuple[fx.Node, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The arguments are looked up first: an op in place gives its own argument back.
        node_args, node_kwargs = tree_map(self._node_of, (args, kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._nodes[result] = self._graph.call_function(func, node_args, node_kwargs)
        elif isinstance(result, (list, tuple)) or result is None:
            call = self._graph.call_function(func, node_args, node_kwargs)
            for index, part in enumerate(result or ()):
                if isinstance(part, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
                    self._nodes[part] = self._graph.call_function(operator.getitem, (call, index))
        elif any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves((args, kwargs))):
            raise Unsupported(
                f"a step that reads values of the device on the host ({func}) cannot be recorded; compute with tensors"
            )
        return result  # a number that follows from numbers alone is the same in every replay

    def finish(self) -> tuple[Callable[..., Any], list[torch.Tensor]]:
        """The graph as a function, and what to call it with."""
        given = {id(tensor) for _, tensor in self._inputs}
        storages = {tensor.untyped_storage()._cdata for _, tensor in self._inputs}
        for tensor, node in list(self._nodes.items()):
            # Views of inputs need no writing: they see what their input holds.
            if id(tensor) not in given and tensor.untyped_storage()._cdata not in storages:
                self._graph.call_function(torch.ops.aten.copy_.default, (self._add_input(tensor), node))
        self._graph.output(())
        module = fx.GraphModule(torch.nn.Module(), self._graph)
        return module.forward, [tensor for _, tensor in self._inputs]

    def _node_of(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        node = self._nodes.get(value)
        if node is None:
            node = self._nodes[value] = self._add_input(value)
        return node

    def _add_input(self, tensor: torch.Tensor) -> fx.Node:
        nodes = self._graph.nodes
        with (
            self._graph.inserting_before(next(iter(nodes), None))
            if not self._inputs
            else (self._graph.inserting_after(self._inputs[-1][0]))
        ):
            node = self._graph.placeholder(f"x{len(self._inputs)}")
        self._inputs.append((node, tensor))
        return node
