"""torch's backward pass walked in Python, one node of the graph after another.

torch's own engine asks the driver for a GPU's streams as soon as a tensor says that it lives on one, so on a machine
without a GPU it runs no graph of fake tensors of one.
"""

from __future__ import annotations

import torch
from torch import Tensor


def backward(root: Tensor, gradient: Tensor | None = None) -> None:
    """What `root.backward(gradient)` does."""
    found = {root.grad_fn: {root.output_nr: torch.ones_like(root) if gradient is None else gradient}}
    with torch.no_grad():
        for node in reversed(_children_first(root.grad_fn)):
            incoming = found.pop(node, None)
            if incoming is None:
                continue
            if hasattr(node, "variable"):  # a leaf
                leaf = node.variable
                leaf.grad = incoming[0] if leaf.grad is None else leaf.grad + incoming[0]
                continue
            for (child, place), result in _results(node, incoming):
                if child is not None and result is not None:
                    about, held = child._input_metadata[place], found.setdefault(child, {})
                    result = result.sum_to_size(about.shape).to(about.dtype)
                    held[place] = held[place] + result if place in held else result


def _results(node, incoming: dict[int, Tensor]) -> list[tuple]:
    """The nodes behind the inputs of `node`, each with its place there and its gradient."""
    given = [
        incoming[place] if place in incoming else torch.zeros(about.shape, dtype=about.dtype, device=about.device)
        for place, about in enumerate(node._input_metadata)
    ]
    children, written_in_python = node.next_functions, isinstance(node, torch.autograd.function.BackwardCFunction)
    results = node.apply(*given) if written_in_python else node(*given)
    results = results if isinstance(results, tuple) else (results,)
    if written_in_python:  # a result for each argument, a child for each that is a tensor
        children = [child for child in children if child[0] is not None]
        results = [result for result, needed in zip(results, node.needs_input_grad, strict=True) if needed]
    return list(zip(children, results, strict=True))


def _children_first(start) -> list:
    order, seen, stack = [], set(), [(start, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((child, False) for child, _ in node.next_functions if child is not None)
    return order
