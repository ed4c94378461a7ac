"""A causal language model with K prediction heads, and the loss of such a model on a batch.

`forward` returns the K final hidden states, never logits: `[B, T, K, V]` does not exist anywhere in WMTP.
Projecting a hidden state is a separate method, for those who need some logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wmtp.errors import ModelError
from wmtp.families import Origin, more_heads, take_layers
from wmtp.heads import Branch, TrunkOutput, final_norm, layer_list
from wmtp.loss import LossSum, RowWeight, Unembedding, plain_gradient_norms, plain_nll, reduce_loss, row_weights
from wmtp.loss_backends import BACKENDS, backend_loss
from wmtp.loss_fused import fused_loss
from wmtp.probing import check_causal, evaluating, probe, without_weights
from wmtp.targets import future_targets
from wmtp.value import ValueHead


class TokenBatch(Protocol):
    """What the loss reads of a batch."""

    @property
    def tokens_BT(self) -> Tensor: ...
    @property
    def trainable_BT(self) -> Tensor: ...
    @property
    def document_BT(self) -> Tensor | None: ...


DEPTHS = ("added", "matched")
TRAINED = ("all", "heads", "heads+norm")


class MTPModel(nn.Module):
    """Any Hugging Face decoder-only causal language model, with K heads.

    Args:
        base: a `transformers` `...ForCausalLM`. It is taken over: its last layer moves behind a `Branch`.
        num_heads: K >= 1. With K = 1 this *is* the base model.
        init: how heads 2..K start, see `families.more_heads`.
        family: `parallel`, `linear` or `chain`, docs/math.md (3).
        depth: `added` heads leave the base as it is. `matched`: K - 1 layers less in the trunk, so that depth and
            number of parameters stay; heads are made of these layers (`parallel` only).

    Use the model through this class: `base` by itself passes over its last layer, which runs behind the `Branch`.
    `save_model` writes the plain model that transformers' own `generate` and tools expect.

    Raises:
        ModelError: the architecture's layers, final norm or unembedding cannot be told apart, or the logits that come
            of them are not the model's own. Soft caps and scales that the config names (Gemma 2's; Cohere's and
            Granite's) are known.
    """

    def __init__(
        self, base: Any, num_heads: int, init: str = "copy", *, family: str = "parallel", depth: str = "added"
    ) -> None:
        super().__init__()
        if num_heads < 1:
            raise ModelError(f"num_heads must be at least 1, got {num_heads}")
        if base.get_output_embeddings() is None:
            raise ModelError(f"{type(base).__name__} has no unembedding; a causal language model is needed")
        check_causal(base)
        self.base = base
        self.num_heads = num_heads
        self.family = family
        self.value_head: ValueHead | None = None
        """Reads head 1's final hidden state, where the policy follows a critic (docs/math.md 4.2.3)."""
        layers_name, layers = layer_list(self.decoder, getattr(base.config, "num_hidden_layers", None))
        self._norm_name = final_norm(self.decoder, layers_name)
        taken = self._taken_layers(layers, depth)
        self.last_layer = f"{base.base_model_prefix}.{layers_name}.{len(layers) - 1}."
        """The name of the layer that became head 1, in the base model, with a dot."""
        self.extra_heads = more_heads(family, num_heads - 1, init, self._origin(layers[-1]))
        if init == "copy":
            for head, layer in zip(self.extra_heads, taken, strict=False):
                head.load_state_dict(layer.state_dict())
        expected_BTV = None
        if not without_weights(base):
            with evaluating(base):
                expected_BTV = base(input_ids=probe(base), use_cache=False).logits
        layers[-1] = Branch(layers[-1])
        self._layers_name = layers_name
        if expected_BTV is not None:
            self._check_logits(expected_BTV)

    def _origin(self, last: nn.Module) -> Origin:
        """What heads are made from."""
        base = self.base
        return Origin(last, self.final_norm, base.get_input_embeddings().weight, base._init_weights)

    def _taken_layers(self, layers: nn.ModuleList, depth: str) -> list[nn.Module]:
        """The layers that heads 2..K are made of, where they are not added."""
        if depth not in DEPTHS:
            raise ModelError(f"depth must be one of {', '.join(DEPTHS)}; got {depth!r}")
        if depth == "added":
            return []
        if self.family != "parallel":
            raise ModelError(f"depth 'matched' makes heads of layers: family must be 'parallel', got {self.family!r}")
        return take_layers(layers, [self.base.config, self.decoder.config], self.num_heads - 1)

    def _check_logits(self, expected_BTV: Tensor) -> None:
        """Raise `ModelError` unless head 1 gives the logits that the model itself gave."""
        with evaluating(self):
            got_BTV = self.project(next(self.each_head(self.trunk(probe(self.base)))))
        share = float((got_BTV - expected_BTV).abs().max() / expected_BTV.abs().max().clamp(min=1e-6))
        if share > (0.05 if expected_BTV.dtype.itemsize < 4 else 1e-4):
            raise ModelError(
                f"{type(self.base).__name__} does more to its logits than norm, unembedding and soft cap (they are "
                f"{share:.1%} away from that): this architecture is not supported; use another model"
            )

    @property
    def decoder(self) -> nn.Module:
        """The model without its unembedding."""
        decoder: nn.Module = self.base.base_model
        return decoder

    @property
    def branch(self) -> Branch:
        """Where the heads attach."""
        branch: Branch = getattr(self.decoder, self._layers_name)[-1]
        return branch

    @property
    def final_norm(self) -> nn.Module:
        """The norm in front of the unembedding; heads share it, but for a chain's, which have their own."""
        norm: nn.Module = getattr(self.decoder, self._norm_name)
        return norm

    @property
    def num_layers(self) -> int:
        """Layers of the base model."""
        return len(getattr(self.decoder, self._layers_name))

    @property
    def heads_apart(self) -> bool:
        """Whether no head needs another one's activations, so that they can be trained one after another."""
        return self.family != "chain"

    def heads(self) -> Iterator[nn.Module]:
        """The modules that run on what `trunk` gives, in order; `parallel` has head 1's among them."""
        if self.family == "parallel":
            yield self.branch.layer
        yield from self.extra_heads

    def own_embedding(self) -> nn.Module | None:
        """The input embedding, where it shares no weight with the unembedding."""
        embedding: nn.Module = self.base.get_input_embeddings()
        return None if embedding.weight is self.base.get_output_embeddings().weight else embedding

    def trunk_layers(self) -> list[nn.Module]:
        """The layers that `trunk` runs."""
        below = list(getattr(self.decoder, self._layers_name))[:-1]
        return below if self.family == "parallel" else [*below, self.branch.layer]

    def trunk(self, tokens_BT: Tensor, position_BT: Tensor | None = None) -> TrunkOutput:
        """Run what the heads share: every layer but the last; for `linear` and `chain` heads, the whole base model.

        Rows are padded on the right: causal attention needs no mask for that.
        """
        return self._trunk(tokens_BT, position_BT)

    def _trunk(self, tokens_BT: Tensor, position_BT: Tensor | None) -> TrunkOutput:
        """`trunk` within `forward`: under FSDP `trunk` by itself is a forward pass of its own."""
        self.decoder(input_ids=tokens_BT, position_ids=position_BT, use_cache=False)
        output = self.branch.take()
        if self.family == "parallel":
            return output
        output = self.beside_first(output, self.first(output))
        return output if self.family == "linear" else replace(output, token_BTD=self.embed(tokens_BT))

    def first(self, output: TrunkOutput) -> Tensor:
        """Head 1's final hidden state `[B, T, D]` from the last layer's arguments."""
        hidden: Tensor = self.final_norm(output.through(self.branch.layer))
        return hidden

    def beside_first(self, output: TrunkOutput, first_BTD: Tensor) -> TrunkOutput:
        """What heads 2..K read, from the last layer's arguments and head 1's final hidden state."""
        if self.family == "parallel":
            return output
        if self.family == "linear":
            return TrunkOutput(first_BTD, (), {})
        return replace(output, hidden_BTD=first_BTD)

    def embed(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings `[B, T, D]`, before whatever the architecture does to them (chain heads norm them anyway)."""
        embedded: Tensor = self.base.get_input_embeddings()(tokens_BT)
        return embedded

    def head(self, k: int, trunk: TrunkOutput, before_BTD: Tensor | None = None) -> Tensor:
        """Final hidden state `[B, T, D]` of head k, counted from 0.

        Args:
            before_BTD: that of head k - 1, which a `chain` head needs.
        """
        if k == 0:
            return self.first(trunk) if self.family == "parallel" else trunk.hidden_BTD
        if self.family != "chain":
            return self.beside(k, trunk)
        if before_BTD is None or trunk.token_BTD is None:
            raise ValueError("a chain head needs the head before it and the tokens: use `each_head`")
        return self.chained(k, trunk, before_BTD, F.pad(trunk.token_BTD, (0, 0, 0, k))[:, k:])

    def beside(self, k: int, trunk: TrunkOutput) -> Tensor:
        """Final hidden state of head k >= 1 of a family whose heads do not read one another."""
        head = self.extra_heads[k - 1]
        hidden: Tensor = head(trunk.hidden_BTD) if self.family == "linear" else self.final_norm(trunk.through(head))
        return hidden

    def chained(self, k: int, trunk: TrunkOutput, before_BTD: Tensor, token_BTD: Tensor) -> Tensor:
        """Final hidden state of `chain` head k >= 1.

        Args:
            before_BTD: final hidden state of head k - 1.
            token_BTD: embedding of the token k places further on, which head k - 1 predicts.
        """
        hidden: Tensor = self.extra_heads[k - 1](before_BTD, token_BTD, *trunk.arguments, **trunk.keywords)
        return hidden

    def each_head(self, trunk: TrunkOutput) -> Iterator[Tensor]:
        """Every head's final hidden state, made when it is asked for; only a chain holds on to one."""
        before_BTD = None
        for k in range(self.num_heads):
            if self.heads_apart:
                yield self.head(k, trunk)
            else:
                before_BTD = self.head(k, trunk, before_BTD)
                yield before_BTD

    def forward(self, tokens_BT: Tensor, position_BT: Tensor | None = None) -> list[Tensor]:
        """K final hidden states `[B, T, D]`, head 1 first."""
        return list(self.each_head(self._trunk(tokens_BT, position_BT)))

    def train_only(self, which: str) -> None:
        """Say what is trained: `all`; `heads`, which are heads 2..K, so that the base model stays what it is; or
        `heads+norm`, these and the base model's final norm.

        Raises:
            ModelError: something else, or there are no such heads.
        """
        if which not in TRAINED:
            raise ModelError(f"what is trained must be one of {', '.join(TRAINED)}; got {which!r}")
        if which != "all" and self.num_heads == 1:
            raise ModelError(f"with one head nothing is left to train: {which!r} needs at least 2")
        self.requires_grad_(which == "all")
        self.extra_heads.requires_grad_(True)
        if which == "heads+norm":
            self.final_norm.requires_grad_(True)
        if self.value_head is not None:
            self.value_head.requires_grad_(True)

    def passes(self) -> list[list[nn.Module]]:
        """The modules that run for each head between the trunk's forward and backward pass; a value head for head 1."""
        first = [self.branch.layer] if self.family == "parallel" else []
        if self.value_head is not None:
            first.append(self.value_head)
        return [first, *([head] for head in self.extra_heads)]

    def unembedding(self) -> Unembedding:
        """The shared map from final hidden states to logits, as tensors."""
        head = self.base.get_output_embeddings()
        config = self.base.config
        softcap = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0)
        return Unembedding(head.weight, getattr(head, "bias", None), softcap, scale)

    def project(self, hidden: Tensor) -> Tensor:
        """Logits `[..., V]` of final hidden states `[..., D]`."""
        return self.unembedding().logits(hidden)

    def compile_layers(self) -> None:
        """Compile every trunk layer and head by itself, for any batch shape and without graph breaks."""
        for layer in (*self.trunk_layers(), *self.heads()):
            layer.compile(fullgraph=True, dynamic=True)

    def keep_heads(self, count: int) -> None:
        """Drop all but the first `count` heads; with 1, what is left is the base model.

        Raises:
            ModelError: fewer than 1, or more than there are.
        """
        if not 1 <= count <= self.num_heads:
            raise ModelError(f"the model has {self.num_heads} heads, {count} cannot be kept; ask for 1 to that many")
        self.extra_heads = self.extra_heads[: count - 1]
        self.num_heads = count

    def add_heads(self, count: int, init: str = "copy", *, family: str | None = None) -> None:
        """Add heads after the last, so that those that are there stay what they are.

        Args:
            init: how the new ones start, see `families.more_heads`.
            family: None: the model's own. Another one only where there is nothing but head 1, which is the base model
                in every family.

        Raises:
            ModelError: another family than that of heads which are there, or see `families.more_heads`.
        """
        family = family or self.family
        if family != self.family and self.num_heads > 1:
            raise ModelError(
                f"the model has {self.family} heads, {family!r} were asked for; one model has one family: ask for that"
            )
        self.extra_heads.extend(more_heads(family, count, init, self._origin(self.branch.layer)))
        self.family = family
        self.num_heads += count

    def keep_only(self, number: int) -> None:
        """Leave the plain model whose last layer is that of one head, counted from 1.

        Raises:
            ModelError: no such head, or one that is no layer of the model (`linear`, `chain`).
        """
        if not 1 <= number <= self.num_heads:
            raise ModelError(f"the head must be from 1 to {self.num_heads}, those of the model; got {number}")
        if number > 1:
            if self.family != "parallel":
                raise ModelError(f"head {number} of a {self.family} family is no plain model; only head 1 is")
            self.branch.layer.load_state_dict(self.extra_heads[number - 2].state_dict())
        self.keep_heads(1)

    def hf_key(self, key: str) -> str:
        """The name that transformers gives to this model's tensor `base.<...>`."""
        moved = f"base.{self.last_layer}layer."
        if key.startswith(moved):
            return self.last_layer + key.removeprefix(moved)
        return key.removeprefix("base.")


def mtp_loss(
    model: MTPModel,
    batch: TokenBatch,
    weights_BTK: Tensor | None = None,
    *,
    coefficient_K: Tensor | None = None,
    denominator: str = "weights",
    kind: str = "fused",
    chunk: int | None = None,
) -> LossSum:
    """The sums of docs/math.md (2) for one micro-batch; `weighted_sum / weight_total` is the loss.

    Args:
        weights_BTK: w >= 0 per (position, head); None means 1.
        coefficient_K: c_k per head; None means 1.
        denominator: `weights` makes `weight_total` = sum c*w, `tokens` makes it sum c.
        kind: `fused`, `plain` for the specification, or a library of `loss_backends.BACKENDS`.
    """
    targets = batch_targets(batch, model.num_heads)
    return hidden_loss(
        model(batch.tokens_BT), model.unembedding(), targets, weights_BTK, coefficient_K, denominator, kind, chunk
    )


def batch_targets(batch: TokenBatch, num_heads: int) -> Tensor:
    """`target_BTK` of a batch."""
    return future_targets(batch.tokens_BT, batch.trainable_BT, batch.document_BT, num_heads)


def hidden_loss(
    hidden_K: Sequence[Tensor],
    unembedding: Unembedding,
    target_BTK: Tensor,
    weights_BTK: Tensor | None = None,
    coefficient_K: Tensor | None = None,
    denominator: str = "weights",
    kind: str = "fused",
    chunk: int | None = None,
    seen: LossSum | None = None,
    weight_of: RowWeight | None = None,
    gradient_norms: bool = False,
) -> LossSum:
    """`mtp_loss` from hidden states that are already there.

    Args:
        seen: an earlier, unweighted result on the same hidden states, whose work need not be repeated.
        weight_of: makes each row's weight from its own nll (and gradient norm), instead of `weights_BTK`.
        gradient_norms: also give `gradient_norm_BTK`.
    """
    given = (hidden_K, unembedding, target_BTK, weights_BTK, coefficient_K)
    if kind == "plain":
        sums = _plain_loss(*given, weight_of, gradient_norms)
    elif kind in ("fused", "compiled"):
        sums = fused_loss(
            *given, weight_of=weight_of, seen=seen, chunk=chunk, gradient_norms=gradient_norms,
            compiled=kind == "compiled",
        )  # fmt: skip
    elif kind in BACKENDS:
        sums = backend_loss(kind, *given, weight_of=weight_of, seen=seen, chunk=chunk, gradient_norms=gradient_norms)
    else:
        raise ValueError(f"loss kind must be one of fused, compiled, plain, {', '.join(BACKENDS)}; got {kind!r}")
    if denominator == "weights":
        return sums
    if denominator != "tokens":
        raise ValueError(f"denominator must be 'weights' or 'tokens', got {denominator!r}")
    return sums.per(coefficient_total(sums.count_K, coefficient_K))


def _plain_loss(
    hidden_K: Sequence[Tensor],
    unembedding: Unembedding,
    target_BTK: Tensor,
    weights_BTK: Tensor | None,
    coefficient_K: Tensor | None,
    weight_of: RowWeight | None,
    gradient_norms: bool,
) -> LossSum:
    """What the fused loss is proven against; it repeats work that was seen."""
    nll_BTK, correct_BTK = plain_nll(hidden_K, unembedding, target_BTK)
    norm_BTK = plain_gradient_norms(hidden_K, unembedding, target_BTK) if gradient_norms else None
    made_BTK = None if weight_of is None else row_weights(weight_of, nll_BTK, norm_BTK)
    weights = weights_BTK if made_BTK is None else made_BTK
    sums = reduce_loss(nll_BTK, correct_BTK, target_BTK, weights, coefficient_K)
    return replace(sums, weight_BTK=made_BTK, gradient_norm_BTK=norm_BTK)


def coefficient_total(count_K: Tensor, coefficient_K: Tensor | None) -> Tensor:
    """sum c_k * count_k (fp32): the denominator `tokens`, and the scale known before any forward."""
    coefficient = torch.ones_like(count_K, dtype=torch.float32) if coefficient_K is None else coefficient_K
    return (count_K * coefficient).sum()
