"""A reward model, and the scale that its rewards are brought to before a critic learns them. docs/math.md (4.2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from wmtp.errors import ModelError
from wmtp.heads import layer_list
from wmtp.ranks import Reduce
from wmtp.weighting.base import masked_moments


class RewardModel(nn.Module):
    """A `transformers` sequence classifier with one output: the reward of the whole text that it reads.

    Args:
        base: a `...ForSequenceClassification`, causal or not.

    Raises:
        ModelError: more than one output, or no padding token.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        if base.config.num_labels != 1:
            raise ModelError(
                f"{type(base).__name__} has {base.config.num_labels} outputs (num_labels); a reward model must have 1"
            )
        pad_id = base.config.get_text_config().pad_token_id
        if pad_id is None:
            raise ModelError(
                f"the config of {type(base).__name__} has no pad_token_id, so texts cannot share a batch: set it to a "
                "token that texts do not end with"
            )
        base.config.use_cache = False
        self.base, self.pad_id = base, int(pad_id)

    def layers(self) -> list[nn.Module]:
        """Its layers, each of which is sharded by itself; none where they cannot be told apart (encoders nest them)."""
        try:
            return list(layer_list(self.base.base_model, self.base.config.num_hidden_layers)[1])
        except ModelError:
            return []

    def forward(self, tokens_BJ: Tensor, mask_BJ: Tensor | None = None) -> Tensor:
        """`reward_B`, fp32: that of each row as if it were alone.

        Args:
            mask_BJ: bool, False in the padding on the right; None: there is none.
        """
        if mask_BJ is not None:
            tokens_BJ = tokens_BJ.masked_fill(~mask_BJ, self.pad_id)
        reward_B1: Tensor = self.base(input_ids=tokens_BJ, attention_mask=mask_BJ).logits
        return reward_B1.squeeze(1).float()


class RunningScale:
    """Rewards as standard deviations from their mean, both over all rows trained on so far, on all ranks.

    So neither the offset nor the unit of a reward model matters, which its training on preferences leaves open. The
    rows of the step at hand count already; an evaluation reads the scale and leaves it as it is. Where all rewards are
    the same, they are 0.
    """

    def __init__(self) -> None:
        self.count = self.mean = self.squares = 0.0
        """Rows, their mean reward, and the sum of squared deviations from it."""

    @property
    def deviation(self) -> float:
        """Population standard deviation; 0 where it is no more than rounding."""
        spread = sqrt(self.squares / self.count) if self.count else 0.0
        return spread if spread > 1e-6 * abs(self.mean) else 0.0

    def scaled(self, rewards: Sequence[Tensor], reduce: Reduce, training: bool) -> list[Tensor]:
        """The rewards of a step's rows, one tensor a micro-batch, on this scale; every rank must ask."""
        scale = self
        if training or not self.count:
            scale = self._with(rewards, reduce)
        if training:
            self.load_state_dict(scale.state_dict())
        unit = 1 / scale.deviation if scale.deviation else 0.0
        return [(reward_B.float() - scale.mean) * unit for reward_B in rewards]

    def _with(self, rewards: Sequence[Tensor], reduce: Reduce) -> RunningScale:
        """The scale with these rows too (Chan et al. 1979, the sum of squares of two samples)."""
        mean, variance = masked_moments(rewards, [torch.ones_like(r, dtype=torch.bool) for r in rewards], reduce)
        rows = float(reduce(mean.new_tensor(sum(len(reward_B) for reward_B in rewards))))
        made = RunningScale()
        made.count = self.count + rows
        share = rows / made.count if made.count else 0.0
        step = float(mean) - self.mean
        made.mean = self.mean + step * share
        made.squares = self.squares + float(variance) * rows + step * step * self.count * share
        return made

    def state_dict(self) -> dict[str, float]:
        """Count, mean and sum of squares."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore what `state_dict` returned."""
        self.count, self.mean, self.squares = state["count"], state["mean"], state["squares"]
