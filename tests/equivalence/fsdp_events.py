"""What FSDP2 says it does, in the order in which it begins it: the names that it gives to the profiler."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

from torch import nn
from torch.profiler import ProfilerActivity, profile

from wmtp.model import MTPModel


@contextmanager
def recorded() -> Iterator[list[str]]:
    """Names such as `all_gather (base.model.layers.0)`, there when the context has ended."""
    names: list[str] = []
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        yield names
    events = sorted(profiler.events(), key=lambda event: event.time_range.start)
    names += [event.name.removeprefix("FSDP::") for event in events if event.name.startswith("FSDP::")]


def units_of(model: MTPModel) -> list[str]:
    """Names of the trunk's last layer and of all heads, in the order of the forward pass."""
    names: dict[nn.Module, str] = {module: name for name, module in model.named_modules()}
    return [names[unit] for unit in (model.trunk_layers()[-1], *model.heads())]


def micro_batches(names: Sequence[str]) -> list[list[str]]:
    """The events of each: it begins with the whole model's unit, which has no name."""
    begins = [place for place, name in enumerate(names) if name == "pre_forward"]
    return [list(names[a:b]) for a, b in pairwise([*begins, len(names)])]


def check_fetched_ahead(names: Sequence[str], units: Sequence[str]) -> None:
    """Every head was gathered once, asked for before the unit in front of it began to compute."""
    for before, head in pairwise(units):
        assert names.count(f"all_gather ({head})") == 1, head
        asked = names.index(f"all_gather ({head})")
        assert names.index(f"pre_forward ({before})") < asked < names.index(f"post_forward ({before})"), head


def check_reduced_behind(names: Sequence[str], heads: Sequence[str]) -> None:
    """No head's gradients are waited for from when they set out until the next head has been through both passes."""
    for head, following in pairwise(heads):
        sent = names.index(f"post_backward_reduce ({head})")
        begins = names.index(f"pre_forward ({following})")
        done = names.index(f"post_backward_accumulate ({following})", begins)
        assert sent < begins, head
        assert not [name for name in names[sent:done] if "rs_wait" in name], head
        assert f"post_backward_rs_wait ({following})" in names[done:], "what was looked for has this name"
