"""Tiny models, a tiny tokenizer and random batches.

Everything is small (width 32, three layers, vocabulary 64) and drawn from a given seed; no call disturbs torch's
global random state. Ids 0, 1 and 2 are padding, BOS and EOS everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from wmtp.data.batches import Batch
from wmtp.model import MTPModel

PAD, BOS, EOS = 0, 1, 2
VOCABULARY = 64

Family = Callable[[], Any]
"""Makes a fresh transformers config."""

_LIKE_LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
_LIKE_GEMMA: dict[str, Any] = _LIKE_LLAMA | {
    "query_pre_attn_scalar": 8,
    "sliding_window": 4,
    "layer_types": ["full_attention", "sliding_attention", "full_attention"],
}


def _family(model_type: str, **options: Any) -> Family:
    def make() -> Any:
        from transformers import AutoConfig

        ids = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
        # A wide initialisation, so that no layer is almost the identity and no softmax almost flat.
        return AutoConfig.for_model(model_type, vocab_size=VOCABULARY, initializer_range=0.1, **ids, **options)

    return make


FAMILIES: dict[str, Family] = {
    "llama": _family("llama", **_LIKE_LLAMA),
    "qwen2": _family("qwen2", **{k: v for k, v in _LIKE_LLAMA.items() if k != "head_dim"}),
    "qwen3": _family("qwen3", **_LIKE_LLAMA),
    "mistral": _family("mistral", **_LIKE_LLAMA, sliding_window=4),
    "gemma2": _family("gemma2", **_LIKE_GEMMA, final_logit_softcapping=5.0),
    "gemma3": _family("gemma3_text", **_LIKE_GEMMA),
    "gpt2": _family(
        "gpt2", n_embd=32, n_layer=3, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    ),
    "gpt_neox": _family(
        "gpt_neox",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    ),
}
"""Configs of the architectures that the tests run on, by name. None has dropout."""


def tiny_base(family: str = "llama", seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A randomly initialised `transformers` causal language model.

    Args:
        options: config attributes to change, such as `vocab_size` or `tie_word_embeddings`.
    """
    from transformers import AutoModelForCausalLM

    config = FAMILIES[family]()
    for name, value in options.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(dtype)


def tiny_model(
    family: str = "llama",
    num_heads: int = 4,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    init: str = "copy",
    heads: str = "parallel",
    noise: float = 0.0,
    **options: Any,
) -> MTPModel:
    """`tiny_base` with K heads.

    Args:
        init: see `MTPModel`.
        heads: head family.
        noise: standard deviation of what is added to the parameters of heads 2..K, so that heads differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        model = MTPModel(tiny_base(family, seed, dtype, **options), num_heads, init, family=heads)
        with torch.no_grad():
            for parameter in model.extra_heads.parameters():
                parameter.add_(noise * torch.randn_like(parameter))
    return model


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 269 ids: any text goes in and comes out unchanged. It adds no BOS or EOS itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    merges = [("Ġ", "Ġ"), ("ĠĠ", "ĠĠ"), ("d", "e"), ("de", "f"), ("r", "e"), ("re", "t"), ("u", "r"), ("ur", "n")]
    merges += [("ret", "urn"), ("i", "n")]
    specials = ["<pad>", "<bos>", "<eos>"]
    tokens = specials + sorted(pre_tokenizers.ByteLevel.alphabet()) + [left + right for left, right in merges]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


def random_batch(
    rows: int = 4, length: int = 12, seed: int = 0, *, vocabulary: int = VOCABULARY, pad_id: int = PAD
) -> Batch:
    """Rows of random length, prompt, reward and group, padded to the first row's length, which is `length` tokens.

    A row is a prompt of at least one token, a response of at least one, and the EOS that ends it (trainable).

    Args:
        length: at least 3.
        pad_id: may be `EOS`: padding is told by position, not by id.
    """
    random = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        """A whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=random))

    tokens_BT = torch.full((rows, length), pad_id)
    trainable_BT = torch.zeros(rows, length, dtype=torch.bool)
    num_tokens = 0
    for b in range(rows):
        size = length if b == 0 else draw(3, length)
        tokens_BT[b, :size] = torch.randint(EOS + 1, vocabulary, (size,), generator=random)
        tokens_BT[b, size - 1] = EOS
        trainable_BT[b, draw(1, size - 2) : size] = True
        num_tokens += size
    reward_B = torch.randint(0, 2, (rows,), generator=random).float()
    share_B = torch.randint(1, 4, (rows,), generator=random) / 4
    group_B2 = torch.stack([share_B, (share_B * (1 - share_B)).sqrt()], 1)
    return Batch(tokens_BT, trainable_BT, reward_B, tuple(range(rows)), num_tokens, group_B2=group_B2)
