"""How large a tensor the loss ever makes. Counted in elements by a dispatch mode, so the answer is exact."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from wmtp.data.batches import Batch
from wmtp.loss import Unembedding
from wmtp.loss_fused import fused_loss, linear_nll
from wmtp.model import hidden_loss, mtp_loss
from wmtp.objective import MTPObjective
from wmtp.step import train_step
from wmtp.testing import random_batch, tiny_model
from wmtp.weighting import Rho1, Uniform

# Sizes that cannot be mistaken for one another: a tensor's shape tells what it is.
B, T, K, V, D, CHUNK = 3, 21, 4, 1009, 8, 5


class Shapes(TorchDispatchMode):
    """Remembers the shape of every tensor that any operation allocated, forward or backward; views are not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known = {storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.seen.update(tuple(leaf.shape) for leaf in made if storage(leaf) not in known)
        return out

    def largest(self) -> int:
        """Elements of the largest tensor."""
        return max(torch.Size(shape).numel() for shape in self.seen)

    def logit_rows(self, width: int = D) -> int:
        """Most rows of logits in one tensor: what has a side V is logits, unless it is [V, width]."""
        return max(torch.Size(s).numel() // V for s in self.seen if V in s and set(s) != {V, width})


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def inputs(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Unembedding, Tensor]:
    torch.manual_seed(0)
    hidden_K = [torch.randn(B, T, D, dtype=dtype, requires_grad=True) for _ in range(K)]
    unembedding = Unembedding(
        torch.randn(V, D, dtype=dtype, requires_grad=True), torch.randn(V, dtype=dtype, requires_grad=True)
    )
    return hidden_K, unembedding, torch.randint(0, V, (B, T, K))


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.float32, False), (torch.bfloat16, False), (torch.float32, True)]
)
def test_forward_and_backward_hold_at_most_one_chunk_of_logits(
    dtype: torch.dtype, autocast: bool, softcap: float | None, weighted: bool
) -> None:
    hidden_K, unembedding, target = inputs(dtype)
    weight = torch.rand(B, T, K) * (torch.rand(B, T, K) < 0.7) if weighted else None
    with Shapes() as shapes:
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            loss = fused_loss(hidden_K, unembedding._replace(softcap=softcap), target, weight, chunk=CHUNK)
        loss.weighted_sum.backward()
    assert 0 < shapes.logit_rows() <= CHUNK
    assert shapes.largest() <= max(CHUNK * V, V * D, B * T * max(K, D))


def test_rows_that_weigh_nothing_are_left_out_of_gradients_without_a_copy_of_logits() -> None:
    hidden_K, unembedding, target = inputs()
    weight = torch.rand(B, T, K) * (torch.rand(B, T, K) < 0.5)
    with Shapes() as shapes:
        fused_loss(hidden_K, unembedding._replace(bias_V=None), target, weight, chunk=CHUNK).weighted_sum.backward()
    assert {shape for shape in shapes.seen if V in shape} == {(CHUNK, V), (V, D)}


def test_the_plain_loss_would_be_caught() -> None:
    hidden_K, unembedding, target = inputs()
    with Shapes() as shapes:
        hidden_loss(hidden_K, unembedding, target, kind="plain").weighted_sum.backward()
    assert shapes.logit_rows() == B * T


def test_rows_without_gradient_hold_no_gradient_of_the_projection() -> None:
    hidden_K, unembedding, target = inputs()
    with torch.no_grad(), Shapes() as shapes:
        fused_loss(hidden_K, unembedding, target, chunk=1)
    assert (V, D) not in shapes.seen
    assert shapes.largest() <= max(V, B * T * D)


def test_linear_nll_holds_at_most_one_chunk_of_logits() -> None:
    hidden_K, unembedding, target = inputs()
    rows = hidden_K[0].detach().flatten(0, 1).requires_grad_()
    with Shapes() as shapes:
        linear_nll(rows, unembedding.projection_VD, target[:, :, 0].flatten(), chunk=CHUNK).weighted_sum.backward()
    assert 0 < shapes.logit_rows() <= CHUNK


def batch_and_model(family: str) -> tuple[Batch, Any]:
    model = tiny_model(family, K, vocab_size=V)
    return random_batch(B, T, vocabulary=V), model


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_whole_model_makes_no_logits_beside_the_chunk(family: str) -> None:
    batch, model = batch_and_model(family)
    with Shapes() as shapes:
        mtp_loss(model, batch, chunk=CHUNK).weighted_sum.backward()
    assert 0 < shapes.logit_rows(model.base.config.hidden_size) <= CHUNK


@pytest.mark.parametrize(
    "scheme", [Uniform(), Rho1("soft"), Rho1("select", scope="global")], ids=["1", "soft", "select"]
)
def test_a_whole_training_step_makes_no_logits_beside_the_chunk(scheme: Any) -> None:
    batch, model = batch_and_model("llama")
    objective = MTPObjective(scheme, score=lambda b: {"reference_nll_BTK": torch.rand(B, T, K)}, chunk=CHUNK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Shapes() as shapes:
        train_step(model, optimizer, objective, [batch, batch])
    assert 0 < shapes.logit_rows(model.base.config.hidden_size) <= CHUNK
