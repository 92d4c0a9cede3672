"""Where the processor time of a training step goes, by the profiler's own time of each operator."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PARTS = ("encoder matmul", "top-k", "sparse decode", "gradients", "optimiser", "rest")
_FORWARD = {
    "encoder matmul": {"aten::addmm", "aten::mm", "aten::linear"},
    "top-k": {"aten::topk", "aten::amax", "aten::gather"},
    "sparse decode": {"aten::embedding_bag", "aten::_embedding_bag", "aten::_embedding_bag_forward_only"},
    # found in the forward pass and used in the backward one: the codes latent by latent
    "gradients": {"aten::sort", "aten::searchsorted", "aten::index", "aten::repeat_interleave"},
}


def shares(step: Callable[[], None], count: int) -> dict[str, float]:
    """Share of each of `PARTS` in `count` steps, the largest operators of the rest by their own names.

    An operator belongs to the optimiser, the gradients or our own choice of latents by the call it was made
    in, otherwise by its name. Projection of the gradient, norms, loss and counters are in the rest.
    """
    from torch.profiler import ProfilerActivity, profile

    with _marked(), profile(activities=[ProfilerActivity.CPU]) as record:
        for _ in range(count):
            step()
    spent, rest = dict.fromkeys(PARTS, 0.0), Counter()
    for event in record.events():
        part = _part(event)
        spent[part] += event.self_cpu_time_total
        if part == "rest":
            rest[event.name.removeprefix("aten::")] += event.self_cpu_time_total
    spent |= {f"of which {name}": time for name, time in rest.most_common(4)}
    total = sum(spent[part] for part in PARTS)
    return {part: time / total for part, time in spent.items()}


@contextmanager
def _marked() -> Iterator[None]:
    """Our own ways to choose latents stand in the record under the name of that part, where they are in use.

    By operators alone they would be told wrongly: they look up members of groups as the codes' order is looked up.
    """
    from torch.profiler import record_function

    sparse = sys.modules.get("sae_core.dictionaries.sparse")
    if sparse is None:  # the environment of another package
        yield
        return
    real = {name: getattr(sparse, name) for name in ("top", "batch_top")}
    for name, choose in real.items():
        setattr(sparse, name, record_function("top-k")(choose))
    try:
        yield
    finally:
        for name, choose in real.items():
            setattr(sparse, name, choose)


def _part(event) -> str:
    name, caller = event.name, event
    while caller is not None:
        if caller.name == "top-k":
            return "top-k"
        if caller.name.startswith("Optimizer.step"):
            return "optimiser"
        if caller.name.startswith("autograd::engine"):
            return "gradients"
        caller = caller.cpu_parent
    return next((part for part, names in _FORWARD.items() if name in names), "rest")
