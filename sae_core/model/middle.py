"""The residual between attention and MLP of a block, read and edited.

    mid = x + a        x the residual before the block, a what attention adds to it
    mid -> mid'        is written as a' = a + (mid' - mid): the MLP reads mid', and the residual goes on from it

The library's own hook point there stands before the MLP's norm, so that an edit of it changes what the MLP reads, and
not the residual.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

Function = Callable[..., Tensor | None]


def writer_of(bridge: Any, layer: int) -> nn.Module | None:
    """The module whose output is what attention adds to the residual; None where that is no module's output."""
    name = bridge.hook_dict[f"blocks.{layer}.hook_attn_out"].name
    *path, _ = name.split(".")[2:]
    module = bridge.blocks[layer]
    for part in path:
        module = getattr(module, part)
    return module if path else None


def attach_middle(bridge: Any, layer: int, function: Function) -> Callable[[], None]:
    """Call `function(mid, hook=...)` in every pass, and write what it returns; returns what undoes it.

    It is called after all hooks at what attention adds, whenever those were attached.
    """
    before: list[Tensor] = []
    point, writer = bridge.hook_dict[f"blocks.{layer}.hook_in"], writer_of(bridge, layer)
    assert writer is not None, "the probe offers no other"

    def keep(x: Tensor, hook: Any) -> None:
        before[:] = [x]

    def change(module: nn.Module, inputs: Any, output: Any) -> Any:
        a = output[0] if isinstance(output, tuple) else output
        mid = before.pop() + a
        edited = function(mid, hook=None)
        if edited is None:
            return None
        a = a + (edited - mid)
        return (a, *output[1:]) if isinstance(output, tuple) else a

    undo = ExitStack()
    entered = point.add_hook(keep)
    undo.callback(point.fwd_hooks.remove, entered)
    undo.callback(entered.hook.remove)
    undo.callback(writer.register_forward_hook(change).remove)
    return undo.close
