"""The dynamo backend `hpu_backend`. It knows the options of the bridge's config module and no others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.registry import register_backend

from habana_frameworks.torch import hpu_state

OPTIONS = frozenset(
    {
        "use_compiled_recipes",
        "keep_input_mutations",
        "use_eager_fallback",
        "use_graph_freezing",
        "use_inplace_allreduce",
        "use_inplace_index_copy",
        "inference",
        "force_static_compile",
        "reinplace_add",
        "use_boxed_input",
    }
)
compiled: list[torch.fx.GraphModule] = []
"""Every graph that was compiled."""


@register_backend
def hpu_backend(graph_module: torch.fx.GraphModule, example_inputs: list[Any], **kwargs: Any) -> Callable[..., Any]:
    options: dict[str, Any] = kwargs.pop("options", None) or {}
    unknown = set(options) - OPTIONS
    if unknown or kwargs:
        raise AttributeError(f"hpu_backend has no option {sorted(unknown | set(kwargs))}")
    if options.get("force_static_compile") is not True:
        raise AssertionError("shapes are static: force_static_compile is expected")
    for node in graph_module.graph.nodes:
        value = node.meta.get("example_value")
        sizes = value.shape if isinstance(value, torch.Tensor) else ()
        if any(isinstance(size, torch.SymInt) for size in sizes):
            raise AssertionError(f"{node} has a symbolic size")
    compiled.append(graph_module)

    if not hpu_state.decomposes:
        return graph_module.forward

    def run(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return graph.forward

    return aot_autograd(fw_compiler=run, keep_inference_input_mutations=True)(graph_module, example_inputs)
