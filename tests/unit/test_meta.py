"""Meta's native checkpoints: in and out to the last bit, each head a plain Llama, nothing wrong with them unsaid."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from wmtp.errors import ModelError
from wmtp.export import export
from wmtp.formats.meta import Params, ffn_width, holds, load_meta, read_params, to_halves, to_pairs, write_meta
from wmtp.formats.native import load_model, read_card, save_model
from wmtp.testing import tiny_model, tiny_tokenizer

SHAPE: dict[str, Any] = {"dim": 32, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 50, "multiple_of": 16}
SHAPE |= {"norm_eps": 1e-5, "rope_theta": 5000.0, "n_future_tokens": 4}
TOKENS = torch.randint(3, 50, (2, 11), generator=torch.Generator().manual_seed(0))


def expected_shapes(shape: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, written down from the format's description."""
    dim, heads = shape["dim"], shape["n_heads"]
    kv = dim // heads * shape.get("n_kv_heads", heads)
    hidden = int(2 / 3 * 4 * dim)
    if "ffn_dim_multiplier" in shape:
        hidden = int(shape["ffn_dim_multiplier"] * hidden)
    ffn = shape["multiple_of"] * math.ceil(hidden / shape["multiple_of"])
    layer = {"attention.wq": (dim, dim), "attention.wk": (kv, dim), "attention.wv": (kv, dim)}
    layer |= {"attention.wo": (dim, dim), "feed_forward.w1": (ffn, dim), "feed_forward.w2": (dim, ffn)}
    layer |= {"feed_forward.w3": (ffn, dim), "attention_norm": (dim,), "ffn_norm": (dim,)}
    blocks = [f"layers.{i}" for i in range(shape["n_layers"] - shape["n_future_tokens"] + 1)]
    blocks += [f"extra_heads.{j}" for j in range(shape["n_future_tokens"] - 1)]
    found: dict[str, tuple[int, ...]] = {f"{b}.{name}.weight": size for b in blocks for name, size in layer.items()}
    vocabulary = (shape["vocab_size"], dim)
    return found | {"tok_embeddings.weight": vocabulary, "output.weight": vocabulary, "norm.weight": (dim,)}


def random_tensors(shape: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)

    def draw(size: tuple[int, ...]) -> Tensor:
        drawn = torch.randn(size, generator=random)
        return (1 + 0.1 * drawn if len(size) == 1 else drawn / size[1] ** 0.5).to(dtype)

    return {name: draw(size) for name, size in expected_shapes(shape).items()}


def write(folder: Path, shape: dict[str, Any], tensors: dict[str, Tensor], *, safe: bool = False) -> Path:
    folder.mkdir()
    (folder / "params.json").write_text(json.dumps(shape))
    if safe:
        save_file(tensors, folder / "consolidated.safetensors")
    else:
        torch.save(tensors, folder / "consolidated.pth")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "meta", SHAPE, random_tensors(SHAPE))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    assert caught.value.exit_code == 2
    return str(caught.value)


# What it computes.


def llama(shape: dict[str, Any], tensors: dict[str, Tensor], head: int) -> Tensor:
    """Logits of one head by the equations of Llama, with Meta's names and its pairs of rotated numbers."""
    dim, heads, kv = shape["dim"], shape["n_heads"], shape.get("n_kv_heads", shape["n_heads"])
    size, length = dim // heads, TOKENS.shape[1]
    trunk = shape["n_layers"] - shape["n_future_tokens"]
    frequency = shape["rope_theta"] ** (-torch.arange(0, size, 2) / size)
    turn = torch.polar(torch.ones(length, size // 2), torch.outer(torch.arange(length), frequency))

    def norm(x: Tensor, name: str) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + shape["norm_eps"]) * tensors[name + ".weight"]

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * turn[:, None]).flatten(3)

    def block(x: Tensor, name: str) -> Tensor:
        h = norm(x, f"{name}.attention_norm")
        q, k, v = (
            (h @ tensors[f"{name}.attention.{w}.weight"].T).view(*h.shape[:2], n, size)
            for w, n in (("wq", heads), ("wk", kv), ("wv", kv))
        )
        q, k = rotated(q), rotated(k)
        k, v = (z.repeat_interleave(heads // kv, 2) for z in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / size**0.5
        scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(-1)
        mixed = torch.einsum("bhts,bshd->bthd", scores, v).flatten(2)
        x = x + mixed @ tensors[f"{name}.attention.wo.weight"].T
        h = norm(x, f"{name}.ffn_norm")
        w1, w2, w3 = (tensors[f"{name}.feed_forward.{w}.weight"] for w in ("w1", "w2", "w3"))
        return x + (F.silu(h @ w1.T) * (h @ w3.T)) @ w2.T

    x = tensors["tok_embeddings.weight"][TOKENS]
    for i in range(trunk):
        x = block(x, f"layers.{i}")
    x = block(x, f"layers.{trunk}" if head == 1 else f"extra_heads.{head - 2}")
    return norm(x, "norm") @ tensors["output.weight"].T


@pytest.mark.parametrize("safe", [False, True], ids=["pth", "safetensors"])
@pytest.mark.parametrize("change", [{}, {"n_kv_heads": 4}, {"ffn_dim_multiplier": 1.3}, {"n_future_tokens": 1}])
@torch.no_grad()
def test_each_head_is_the_llama_that_the_format_describes(safe: bool, change: dict[str, Any], tmp_path: Path) -> None:
    shape = SHAPE | change
    tensors = random_tensors(shape)
    model = load_model(str(write(tmp_path / "m", shape, tensors, safe=safe))).eval()
    assert model.num_heads == shape["n_future_tokens"]
    logits = [model.project(hidden) for hidden in model(TOKENS)]
    for head, got in enumerate(logits, 1):
        torch.testing.assert_close(got, llama(shape, tensors, head), rtol=1e-5, atol=1e-5)
    if len(logits) > 1:
        assert (logits[0] - logits[1]).abs().max() > 0.1


def test_the_shape_of_the_published_7b_model_is_known() -> None:
    params = Params(dim=4096, n_layers=32, n_heads=32, vocab_size=32000, n_future_tokens=4)
    assert (params.layers, params.ffn) == (29, 11008)
    shape = {"dim": 4096, "n_layers": 32, "n_heads": 32, "vocab_size": 32000, "multiple_of": 256, "n_future_tokens": 4}
    shapes = expected_shapes(shape)
    assert len(shapes) == 291
    assert sum(math.prod(size) for size in shapes.values()) == 6_738_415_616


def test_rows_change_places_and_back() -> None:
    weight = torch.arange(8.0)[:, None].expand(8, 3).contiguous()
    assert to_halves(weight, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert torch.equal(to_pairs(to_halves(weight, 2), 2), weight)


# In and out.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("safe", [False, True], ids=["pth", "safetensors"])
def test_what_comes_in_and_goes_out_is_the_same_to_the_last_bit(safe: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = random_tensors(SHAPE, dtype)
    model = load_meta(str(write(tmp_path / "m", SHAPE, tensors, safe=safe)), dtype=None)
    (tmp_path / "out").mkdir()
    write_meta(model, tmp_path / "out")
    again = torch.load(tmp_path / "out" / "consolidated.pth", weights_only=True)
    assert again.keys() == tensors.keys()
    assert all(again[name].dtype == dtype and torch.equal(again[name], tensors[name]) for name in tensors)
    before, after = read_params(str(tmp_path / "m")), read_params(str(tmp_path / "out"))
    fields = (
        "dim",
        "n_layers",
        "n_heads",
        "kv_heads",
        "vocab_size",
        "norm_eps",
        "rope_theta",
        "n_future_tokens",
        "ffn",
    )
    assert all(getattr(before, name) == getattr(after, name) for name in fields)


@pytest.mark.parametrize("width", [48, 85, 86, 256, 1000, 11008])
def test_any_width_of_the_feed_forward_network_can_be_said(width: int, tmp_path: Path) -> None:
    write_meta(tiny_model("llama", 2, intermediate_size=width), tmp_path)
    params = read_params(str(tmp_path))
    assert params.ffn == ffn_width(32, params.multiple_of, params.ffn_dim_multiplier) == width


def test_our_own_llama_goes_out_and_comes_back_to_the_last_bit(tmp_path: Path) -> None:
    ours = tiny_model("llama", 3, noise=0.05, tie_word_embeddings=False)
    write_meta(ours, tmp_path, tiny_tokenizer())
    again = load_model(str(tmp_path))
    state = again.state_dict()
    assert list(state) == list(ours.state_dict())
    assert all(torch.equal(state[name], value) for name, value in ours.state_dict().items())
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(again(TOKENS), ours(TOKENS), strict=True))


def test_a_folder_of_metas_is_told_by_its_files_and_is_as_good_as_any_other(folder: Path, tmp_path: Path) -> None:
    assert holds(str(folder))
    card = read_card(str(folder))
    assert card is not None
    assert card.model_dump(exclude_none=True) == {"format": 1, "kind": "mtp", "heads": "parallel", "num_heads": 4}
    assert load_model(str(folder), num_heads=2).num_heads == 2
    assert "has parallel heads, 'chain' were asked for" in refused(lambda: load_model(str(folder), heads="chain"))
    ours = load_model(str(folder))
    save_model(ours, tmp_path / "ours")
    assert not holds(str(tmp_path / "ours"))
    again = load_model(str(tmp_path / "ours"))
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))


@pytest.mark.parametrize(
    ("base", "options", "says"),
    [
        ("qwen3", {}, "model_type is 'qwen3'"),
        ("llama", {"attention_bias": True}, "its attention has biases"),
        ("llama", {"mlp_bias": True}, "its feed-forward network has biases"),
        ("llama", {"hidden_act": "gelu"}, "activation is 'gelu'"),
        ("llama", {"head_dim": 16}, "head_dim is 16"),
        ("llama", {"heads": "linear"}, "its heads are linear"),
    ],
)
def test_a_model_that_metas_code_would_not_compute_is_not_written(
    base: str, options: dict[str, Any], says: str, tmp_path: Path
) -> None:
    assert says in refused(lambda: write_meta(tiny_model(base, 2, **options), tmp_path))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["meta", "hf", "head:3", "wmtp"])
def test_it_is_exported_to_every_other_format(folder: Path, target: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    tiny_tokenizer().save_pretrained(folder)
    source = load_model(str(folder)).eval()
    export(str(folder), str(tmp_path / "out"), target)
    head = {"head:3": 3}.get(target, 1)
    with torch.no_grad():
        expected = source.project(source(TOKENS)[head - 1])
        if target == "meta":
            again = load_model(str(tmp_path / "out"))
            assert torch.equal(again.project(again(TOKENS)[0]), expected)
        else:
            plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
            torch.testing.assert_close(plain(TOKENS).logits, expected, rtol=1e-5, atol=1e-5)


def test_the_tokenizer_file_goes_with_the_model(folder: Path, tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(b"pieces")
    export(str(folder), str(tmp_path / "out"), "meta")
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"


# What is wrong with it.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n_future_tokens": 2}, "params.json says 5 layers and 1 extra heads"),
        ({"n_future_tokens": 7}, "n_layers = 6 leaves none"),
        ({"n_layers": 7}, "missing in its weights: layers.3."),
        ({"dim": 64}, "params.json says"),
        ({"vocab_size": 51}, "(50, 32), params.json says (51, 32)"),
        ({"n_heads": 3}, "no even whole number"),
        ({"n_kv_heads": 3}, "no multiple"),
        ({"n_experts": 8}, "n_experts: Extra inputs are not permitted"),
        ({"dim": "wide"}, "dim: Input should be a valid integer"),
        ({"dim": -1}, "dim: Input should be greater"),
        ({"n_layers": 10**9}, "n_layers: Input should be less"),
        ({"norm_eps": math.nan}, "norm_eps"),
    ],
)
def test_params_that_do_not_describe_the_weights_are_refused(folder: Path, change: dict[str, Any], says: str) -> None:
    (folder / "params.json").write_text(json.dumps(SHAPE | change))
    told = refused(lambda: load_model(str(folder)))
    assert says in told
    assert str(folder) in told


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff", b"[1]", b"5", b"null", b"[" * 10**5, b"{}"])
def test_garbage_in_place_of_params_is_refused(folder: Path, content: bytes) -> None:
    (folder / "params.json").write_bytes(content)
    for load in (load_model, read_card):
        assert str(folder / "params.json") in refused(lambda load=load: load(str(folder)))


@pytest.mark.parametrize("safe", [False, True], ids=["pth", "safetensors"])
@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("extra_heads.1.attention.wk.weight", None, "missing in its weights: extra_heads.1.attention.wk.weight"),
        ("rope.freqs", torch.ones(4), "unexpected in its weights: rope.freqs"),
        ("output.weight", torch.ones(50, 31), "output.weight is (50, 31)"),
        ("norm.weight", torch.full((32,), torch.nan), "norm.weight holds numbers that are not finite"),
        ("layers.0.ffn_norm.weight", torch.ones(32, dtype=torch.int64), "no plain tensor of floating-point"),
    ],
)
def test_a_tensor_that_is_wrong_is_named(folder: Path, safe: bool, name: str, change: Any, says: str) -> None:
    tensors = {key: value for key, value in random_tensors(SHAPE).items() if key != name}
    tensors |= {} if change is None else {name: change}
    if safe:
        (folder / "consolidated.pth").unlink()
        save_file(tensors, folder / "a.safetensors")
    else:
        torch.save(tensors, folder / "consolidated.pth")
    told = refused(lambda: load_model(str(folder)))
    assert says in told
    assert str(folder) in told


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "consolidated.pth").unlink()
    assert "neither consolidated.pth nor *.safetensors" in refused(lambda: load_model(str(folder)))


def test_safetensors_in_several_files_are_one_model(folder: Path) -> None:
    tensors = random_tensors(SHAPE)
    (folder / "consolidated.pth").unlink()
    for i in range(3):
        save_file({n: t for j, (n, t) in enumerate(tensors.items()) if j % 3 == i}, folder / f"{i}.safetensors")
    model = load_model(str(folder))
    assert torch.equal(model.base.lm_head.weight, tensors["output.weight"])
    (folder / "1.safetensors").unlink()
    assert "missing in its weights" in refused(lambda: load_model(str(folder)))


def test_weights_are_copied_and_not_left_in_the_file(folder: Path) -> None:
    model = load_model(str(folder))
    before = (folder / "consolidated.pth").read_bytes()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert (folder / "consolidated.pth").read_bytes() == before
