"""Configuration files and overrides: what is read, what is refused and how mistakes are told."""

from __future__ import annotations

import enum
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from wmtp.config_files import dump, load
from wmtp.errors import ConfigError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Optim(_Strict):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)


class _Mtp(_Strict):
    kind: Literal["mtp"]
    num_heads: int = Field(4, ge=1)
    mtp: dict[str, int] = {}


class _Plain(_Strict):
    kind: Literal["plain"]


class _Source(_Strict):
    path: str
    weight: float = 1.0


class _Mode(enum.Enum):
    FAST = "fast"
    SLOW = "slow"


class _Train(_Strict):
    steps: int = Field(10, ge=1)
    warmup: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    mode: _Mode = _Mode.FAST
    resume: bool = False

    @model_validator(mode="after")
    def _warmup_fits(self) -> _Train:
        if self.warmup > self.steps:
            raise ValueError(f"warmup ({self.warmup}) is longer than\nsteps ({self.steps})")
        return self


class _Recipe(_Strict):
    optim: _Optim = _Optim()
    model: Annotated[_Mtp | _Plain, Field(discriminator="kind")] | None = None
    parts: list[Annotated[_Mtp | _Plain, Field(discriminator="kind")]] = []
    sources: list[_Source] = Field([], max_length=3)
    train: _Train = _Train()
    seed: int | Literal["random"] = 0
    max_tokens: int = 1
    tokenizer: str = "t"
    hf_token: str = "none"
    note: str = ""

    @field_validator("note")
    @classmethod
    def _note_is_lower(cls, value: str) -> str:
        if value != value.lower():
            raise ValueError("write it in lower case")
        return value

    @model_validator(mode="after")
    def _no_token_in_note(self) -> _Recipe:
        if self.note == "check":
            raise ValueError(f"the token {self.hf_token} is not for {self.tokenizer}")
        return self


class _Free(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: Any = None
    b: Any = None


class _Box(BaseModel):
    box: dict[str, Any]


Writer = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    monkeypatch.chdir(tmp_path)

    def _write(content: str | bytes, name: str = "recipe.yaml") -> Path:
        path = Path(name)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return _write


def _free(write: Writer, text: str | bytes, *overrides: str, **environ: str) -> Any:
    return load(_Free, [write(text)], overrides, environ)


def _message(
    write: Writer, text: str | bytes, *overrides: str, schema: type[BaseModel] = _Recipe, **environ: str
) -> str:
    with pytest.raises(ConfigError) as caught:
        load(schema, [write(text)], overrides, environ)
    return str(caught.value)


def _lines(message: str) -> list[str]:
    return [line.strip() for line in message.splitlines()[1:]]


# ---- reading scalars ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("010", 10),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("yes", "yes"),
        ("off", "off"),
        ("1:30", "1:30"),
        ("2024-01-02", "2024-01-02"),
        ("1_000", "1_000"),
        ("tRUE", "tRUE"),
        ("0b11", "0b11"),
        ("'1'", "1"),
        ('"null"', "null"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_follow_the_yaml_1_2_core_schema(write: Writer, text: str, value: object) -> None:
    got = _free(write, f"a: {text}").a
    assert got == value
    assert type(got) is type(value)


def test_nan_is_read_as_a_float(write: Writer) -> None:
    assert math.isnan(_free(write, "a: .nan").a)


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff", "{}"])
def test_a_file_without_content_is_an_empty_mapping(write: Writer, text: str) -> None:
    assert _free(write, text) == _Free()


def test_a_byte_order_mark_is_skipped(write: Writer) -> None:
    assert _free(write, b"\xef\xbb\xbfa: 1\n").a == 1


# ---- merging and overrides ---------------------------------------------------------------------------------


def test_later_files_merge_into_mappings_and_replace_lists_and_scalars(write: Writer) -> None:
    first = write("a: {x: 1, y: [1, 2], z: {p: 1}}\nb: 1", "first.yaml")
    second = write("a: {y: [3], z: {q: 2}}\nb: {c: 2}", "second.yaml")
    got = load(_Free, [first, second], environ={})
    assert got == _Free(a={"x": 1, "y": [3], "z": {"p": 1, "q": 2}}, b={"c": 2})


def test_overrides_are_typed_like_the_file_and_win_in_order(write: Writer) -> None:
    overrides = ["a.b=3e-4", "a.c.d=x.jsonl", "a.l=[1,0.5]", "a.n=null", "a.q='1'", "a.b=5", "b={k: [true]}"]
    got = _free(write, "a: {b: 1, n: 2, keep: 0}", *overrides)
    assert got == _Free(
        a={"b": 5, "n": None, "keep": 0, "c": {"d": "x.jsonl"}, "l": [1, 0.5], "q": "1"}, b={"k": [True]}
    )


def test_an_override_of_a_list_item_changes_that_item_only(write: Writer) -> None:
    got = _free(write, "a: {s: [{p: 1, w: 2}, {p: 3}]}", "a.s.0.p=x", "a.s.1=9")
    assert got.a == {"s": [{"p": "x", "w": 2}, 9]}


def test_an_override_may_open_a_mapping_where_the_file_says_null(write: Writer) -> None:
    assert _free(write, "a: null", "a.b=1").a == {"b": 1}


def test_an_override_value_may_hold_an_equals_sign(write: Writer) -> None:
    assert _free(write, "", "a=x=y").a == "x=y"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("train.steps", "no '='"),
        ("=1", "an empty key"),
        ("a..b=1", "an empty key"),
        ("note.x=1", "note is a string (set at recipe.yaml:1), so it has no key x"),
        ("sources.1.path=x", "sources has 1 items"),
        ("sources.first.path=x", "sources is a list; expected an index, got first"),
        ("parts.0.kind=x", "there is no list at parts"),
        ("note=a: b", "reads as a block mapping or list"),
        ("note=- 1", "reads as a block mapping or list"),
        ("note=#5", "a comment"),
        ("note=x # y", "a comment"),
        ("note=--- x", "a document marker"),
        ("note=[1", "not valid YAML"),
        ("note=*x", "aliases"),
        (".".join("a" * 60) + "=1", "more than 50 levels"),
    ],
)
def test_a_wrong_override_is_refused_by_name(write: Writer, override: str, told: str) -> None:
    message = _message(write, "note: n\nsources: [{path: p}]", override)
    assert message.startswith("1 problem in the configuration\n  override '" + override[:60])
    assert told in message


def test_every_wrong_override_is_reported(write: Writer) -> None:
    assert len(_lines(_message(write, "", "a", "=b"))) == 2


# ---- what YAML may not hold --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("b: 1\na: {x: 1, x: 2}", "recipe.yaml:2: column 11: the key x appears twice"),
        ("a: 1\nb: 2\na: 3", "recipe.yaml:3: column 1: the key a appears twice in one mapping (first on line 1)"),
        ("a: &x 1", "recipe.yaml:1: column 4: anchors"),
        ("a: *x", "recipe.yaml:1: column 4: aliases"),
        ("a: {<<: {}}", "merge keys"),
        ("a: !!python/object:os.system x", "tags"),
        ("a: !x [1]", "tags"),
        ("1: x", "expected a string as key, got an integer"),
        ("true: x", "expected a string as key, got a boolean"),
        ("? [a]\n: x", "expected a string as key"),
        ("a: 1\n---\nb: 1", "recipe.yaml:2: a second document"),
        ("[1]", "expected a mapping of keys to values at the top, got a list"),
        ("null", "at the top, got null"),
        ("a: [1\nb: 2", "recipe.yaml:2: column 2: not valid YAML"),
        ("a: 1\n\tb: 2", "recipe.yaml:2: column 1: not valid YAML"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("a: 1\nb: x\0", "recipe.yaml:2: column 5: the character U+0000 is not allowed"),
        (b"a: 1\nb: \xff", "recipe.yaml:2: not UTF-8: byte 8 is 0xff"),
        ("#" * 1_000_001, "larger than 1,000,000 bytes"),
        ("a: " + "[" * 51 + "]" * 51, "nested more than 50 levels"),
        ("a: " + "[" * 20_000, "nested more than 50 levels"),
        ("- " * 20_000, "nested more than 50 levels"),
    ],
)
def test_what_a_configuration_must_not_hold_is_refused_with_its_place(
    write: Writer, text: str | bytes, told: str
) -> None:
    message = _message(write, text, schema=_Free)
    assert message.startswith("1 problem in the configuration\n  recipe.yaml")
    assert told in message


def test_nesting_up_to_the_limit_is_read(write: Writer) -> None:
    assert _free(write, "a: " + "[" * 49 + "]" * 49).a is not None


def test_all_unreadable_files_are_reported_at_once(write: Writer) -> None:
    broken = write("a: [", "broken.yaml")
    Path("folder").mkdir()
    with pytest.raises(ConfigError) as caught:
        load(_Free, [Path("absent.yaml"), Path("folder"), broken, Path("nul\0")], environ={})
    lines = _lines(str(caught.value))
    assert lines[0].startswith("absent.yaml: no such file")
    assert lines[1] == "folder: this is a directory; expected a YAML file"
    assert lines[2].startswith("broken.yaml:1: column 5: not valid YAML")
    assert lines[3].startswith("nul\\x00: cannot be read")


# ---- environment references --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${N}", 5),
        ("'${N}'", "5"),
        ("${ABSENT:-100}", 100),
        ("${EMPTY:-1e-4}", 1e-4),
        ("${EMPTY}", None),
        ("'${ABSENT:-}'", ""),
        ("${N:-100}", 5),
        ("${N?needed}", 5),
        ("${N}0", "50"),
        ("a-${N}-${ABSENT:-b}", "a-5-b"),
        ("$${N}", "${N}"),
        ("'$${N} ${N}'", "${N} 5"),
        ("${NESTED}", "${N}"),
        ("$N", "$N"),
    ],
)
def test_references_in_files_and_overrides_are_replaced_once(write: Writer, text: str, value: object) -> None:
    environ = {"N": "5", "EMPTY": "", "NESTED": "${N}"}
    got = _free(write, f"a: {text}", f"b={text}", **environ)
    assert (got.a, got.b) == (value, value)
    assert type(got.a) is type(value)


def test_the_process_environment_is_the_default(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMTP_TEST_VALUE", "x")
    assert load(_Free, [write("a: ${WMTP_TEST_VALUE}")]).a == "x"


def test_references_without_a_value_are_all_reported(write: Writer) -> None:
    message = _message(write, "a: ${A}\nb: [1, '${B?set B to a folder}']", schema=_Free)
    assert _lines(message) == [
        "recipe.yaml:1: a: the environment variable A is not set; set it, or write ${A:-default}",
        "recipe.yaml:2: b.1: B: set B to a folder",
    ]


@pytest.mark.parametrize("text", ["${", "${}", "${1}", "${A", "${A:x}", "${A:-${B}}", "${A B}"])
def test_a_malformed_reference_is_refused(write: Writer, text: str) -> None:
    message = _message(write, f"a: '{text}'", schema=_Free, A="1", B="1")
    assert f"recipe.yaml:1: a: malformed reference in {text!r}" in message


def test_a_reference_in_a_replaced_value_is_not_needed(write: Writer) -> None:
    assert _free(write, "a: ${ABSENT}", "a=1").a == 1


# ---- validation --------------------------------------------------------------------------------------------


def test_an_override_that_meant_another_section_is_told_how_to_replace_the_one_there(write: Writer) -> None:
    text, other = "model: {kind: mtp, num_heads: 2}", "model={kind: plain}"
    told = f"num_heads = 2: unknown key (valid keys: kind); override {other!r} was merged into model: put model=null"
    assert told in _message(write, text, other)
    found = load(_Recipe, [write(text)], ["model=null", other]).model
    assert found is not None
    assert found.kind == "plain"


def test_all_problems_are_told_in_the_order_of_their_sources(write: Writer) -> None:
    text = "model:\n  kind: mtp\n  num_heads: four\noptim:\n  learning_rat: 0.1\nsources: [{weight: 2}]\n"
    assert _message(write, text, "train.steps=0") == "\n  ".join(
        [
            "4 problems in the configuration",
            "recipe.yaml:3: model.num_heads = 'four': expected an integer",
            "recipe.yaml:5: optim.learning_rat = 0.1: unknown key; did you mean 'lr'? (valid keys: betas, lr)",
            "override 'train.steps=0': train.steps = 0: expected a value greater than or equal to 1",
            "(missing) sources.0.path: this key is required",
        ]
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {stepz: 1}", "train.stepz = 1: unknown key; did you mean 'steps'? (valid keys: mode, precision, "),
        ("zzz: 1", "zzz = 1: unknown key (valid keys: hf_token, max_tokens, model, "),
        ("train: {steps: 1.5}", "train.steps = 1.5: expected an integer"),
        ("train: {steps: null}", "train.steps = None: expected an integer"),
        ("train: {resume: 7}", "train.resume = 7: expected true or false"),
        ("train: {precision: bf17}", "train.precision = 'bf17': expected 'bf16' or 'fp32'; did you mean 'bf16'?"),
        ("train: {mode: fsat}", "train.mode = 'fsat': expected 'fast' or 'slow'; did you mean 'fast'?"),
        ("train: [1]", "train = [1]: expected a mapping"),
        ("optim: {lr: 0}", "optim.lr = 0: expected a value greater than 0"),
        ("optim: {lr: x}", "optim.lr = 'x': expected a number"),
        ("optim: {betas: [1, x]}", "optim.betas.1 = 'x': expected a number"),
        ("optim: {betas: 1}", "optim.betas = 1: expected a list"),
        ("tokenizer: 5", "tokenizer = 5: expected a string"),
        ("max_tokens: many", "max_tokens = 'many': expected an integer"),
        ("seed: rand", "seed = 'rand': expected an integer or 'random'; did you mean 'random'?"),
        ("model: {kind: mpt}", "model.kind = 'mpt': expected one of 'mtp', 'plain'; did you mean 'mtp'?"),
        ("model: {kind: mtp, mtp: {x: y}}", "model.mtp.x = 'y': expected an integer"),
        (
            "model: {kind: mtp, heads: 2}",
            "model.heads = 2: unknown key; did you mean 'num_heads'? (valid keys: kind, mtp, ",
        ),
        ("model: 3", "model = 3: expected a mapping"),
        ("parts: [{kind: plain}, {kind: mtp, num_heads: 0}]", "parts.1.num_heads = 0: expected a value greater than"),
        ("sources: [{path: a}, {path: b, wieght: 1}]", "sources.1.wieght = 1: unknown key; did you mean 'weight'?"),
        ("note: ABC", "note = 'ABC': write it in lower case"),
        ("train: {steps: 5, warmup: 9}", "train: warmup (9) is longer than steps (5)"),
        ("'a.b\\n': 1", "'a.b\\\\n' = 1: unknown key"),
    ],
)
def test_each_kind_of_mistake_is_told_in_plain_words(write: Writer, text: str, line: str) -> None:
    lines = _lines(_message(write, text))
    assert len(lines) == 1
    assert lines[0].startswith(f"recipe.yaml:1: {line}")


@pytest.mark.parametrize("text", ["model: {num_heads: 2}", "parts: [{num_heads: 2}]"])
def test_a_missing_discriminator_lists_the_tags(write: Writer, text: str) -> None:
    (line,) = _lines(_message(write, text))
    assert line.startswith("(missing) ")
    assert line.endswith(".kind: this key is required; expected one of 'mtp', 'plain'")


def test_too_many_items_are_told_with_both_numbers(write: Writer) -> None:
    (line,) = _lines(_message(write, "sources: [{path: a}, {path: b}, {path: c}, {path: d}]"))
    assert line.endswith(": expected at most 3 items, got 4")


def test_a_tag_that_is_also_a_key_leads_to_the_key_the_user_wrote(write: Writer) -> None:
    (line,) = _lines(_message(write, "model:\n  kind: mtp\n  mtp: {num_heads: 2}\n  num_heads: x\n"))
    assert line == "recipe.yaml:4: model.num_heads = 'x': expected an integer"


def test_a_problem_is_traced_to_the_file_that_set_the_value_last(write: Writer) -> None:
    base = write("train:\n  steps: 5\n  warmup: 1\n", "base.yaml")
    user = write("note: x\ntrain:\n  steps: -1\n", "user.yaml")
    with pytest.raises(ConfigError, match=r"user\.yaml:3: train\.steps = -1: expected") as caught:
        load(_Recipe, [base, user], environ={})
    assert "base.yaml" not in str(caught.value)


def test_a_cross_field_error_at_the_top_names_the_configuration_and_the_file(write: Writer) -> None:
    (line,) = _lines(_message(write, "note: check\ntokenizer: abc"))
    assert line == "recipe.yaml: configuration: the token none is not for abc"


def test_an_invalid_default_names_its_key() -> None:
    class _Inner(BaseModel):
        model_config = ConfigDict(validate_default=True)
        size: int = Field(0, ge=1)

    class _Outer(BaseModel):
        inner: _Inner = Field(default_factory=dict, validate_default=True)

    with pytest.raises(ConfigError, match=r"\(default\) inner\.size = 0: expected a value greater than or equal to 1"):
        load(_Outer, [], ["inner={}"], {})


def test_long_values_are_cut(write: Writer) -> None:
    (line,) = _lines(_message(write, f"max_tokens: {'x' * 500}"))
    assert line == f"recipe.yaml:1: max_tokens = 'x{'x' * 75}...: expected an integer"


def test_a_message_holds_one_line_per_problem_whatever_the_keys_hold(write: Writer) -> None:
    message = _message(write, '"a\\nb\\e[31m": 1')
    assert len(message.splitlines()) == 2
    assert "\x1b" not in message


# ---- secrets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("hf_token: [hunter22]", []),
        ("", ["hf_token=[hunter22]"]),
        ("db_password: hunter22", []),
        ("note: {apiKey: hunter22}", []),
        ("", ["note={api_key: hunter22}"]),
        ("credentials: {user: hunter22}", []),
        ("note: check\nhf_token: hunter22", []),
        ("max_tokens: ${MY_SECRET}", []),
        ("max_tokens: 'x ${MY_SECRET}'", []),
        ("hf_token: '${hunter22'", []),
        ("", ["hf_token=${hunter22"]),
        ("", ["hf_token=[hunter22"]),
        ("", ["hf_token.x.0=hunter22"]),
        ("hf_token: *hunter22", []),
        ("hf_token: !hunter22 x", []),
        ("hf_token: {hunter22", []),
    ],
)
def test_secrets_never_reach_a_message(write: Writer, text: str, overrides: list[str]) -> None:
    path = write(text)
    with pytest.raises(ConfigError) as caught:
        load(_Recipe, [path], overrides, {"MY_SECRET": "hunter22"})
    assert "hunter22" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize("key", ["tokens", "max_tokens", "tokenizer", "pretokenized"])
def test_keys_about_tokens_are_not_secret(write: Writer, key: str) -> None:
    assert f"{key} = ['shown']" in _message(write, f"{key}: [shown]")


def test_a_secret_key_shows_stars(write: Writer) -> None:
    message = _message(write, "", "hf_token=5")
    assert "override 'hf_token=***': hf_token = ***: expected a string" in message


# ---- writing -----------------------------------------------------------------------------------------------

_AWKWARD = ["1e-4", "no", "${X}", "$${X}", "$", "null", "", " a", "\u2028", "a: b", "#x", "<<", "~", "0x1F", "1_0"]
_TEXTS = st.sampled_from([*_AWKWARD, "true", ".inf", "- a", "\ufeff", "\x00", "\n", "x" * 200, "---"]) | st.text()
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | _TEXTS
_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner) | st.dictionaries(_TEXTS, inner), max_leaves=8)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(box=st.dictionaries(_TEXTS, _VALUES, max_size=4))
@example(box={text: text for text in _AWKWARD})
@example(box={"k" * 300: {"": [[], {}, [[]]]}, "f": [1e22, 1e-7, -0.0, math.inf, -math.inf]})
def test_a_dumped_object_loads_back_equal(tmp_path_factory: pytest.TempPathFactory, box: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "dumped.yaml"
    path.write_bytes(dump(_Box(box=box)).encode())
    got = load(_Box, [path], environ={"X": "replaced"})
    assert got.box == box
    assert repr(got.box) == repr(box)


def test_a_dumped_schema_with_enums_tuples_and_unions_loads_back_equal(write: Writer) -> None:
    text = "optim: {lr: 1e-5, betas: [0, 1]}\nmodel: {kind: mtp}\nparts: [{kind: plain}]\ntrain: {mode: slow}"
    config = load(_Recipe, [write(text)], environ={})
    assert load(_Recipe, [write(dump(config), "resolved.yaml")], environ={}) == config


def test_a_dump_shows_paths_sets_and_simple_strings_without_quotes() -> None:
    class _Paths(BaseModel):
        path: Path
        names: frozenset[str]

    assert dump(_Paths(path=Path("a/b.jsonl"), names=frozenset({"y", "x"}))) == "path: a/b.jsonl\nnames:\n- x\n- y\n"


def test_importing_the_loader_imports_no_torch() -> None:
    program = "import sys, wmtp.config_files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
