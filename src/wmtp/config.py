"""The one config door: every option of a run, its type, its default and what may not be combined.

`config.yaml` says where (device, folders), `recipe.yaml` says what (model, data, objective, optimisation). Both are
parts of one `Config`; the split is a habit, not a rule. Nothing here imports torch, so a typing error is answered
at once. Past `train.py` no config travels: parts take plain arguments.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from wmtp import config_files
from wmtp.redaction import without_credentials
from wmtp.storage import Place


def _absolute(location: str) -> str:
    """A local path made absolute, so that a saved config repeats its run from any folder."""
    return location if "://" in location else str(Path(location).expanduser().absolute())


def _absolute_or_hub(location: str) -> str:
    """The same for a model, unless it has the form of a hub id and no such folder is here."""
    looks_like_id = location.count("/") == 1 and not location.startswith((".", "/", "~"))
    return location if looks_like_id and not Path(location).exists() else _absolute(location)


Location = Annotated[str, Field(min_length=1), AfterValidator(_absolute)]
"""A local path, `file://...`, `embedded://...` or `s3://...`."""

ModelLocation = Annotated[str, Field(min_length=1), AfterValidator(_absolute_or_hub)]
"""A `Location` of a model folder, or a hub id (`organisation/name`)."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=(), allow_inf_nan=False)


def _builder(name: str) -> str:
    if re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        return name
    module, dot, attribute = name.rpartition(".")
    near = f"; did you mean {module}:{attribute}?" if dot and ":" not in name else ""
    raise ValueError(f"expected MODULE:NAME, such as my_schemes:Hard{near}")


Builder = Annotated[str, AfterValidator(_builder)]
"""`package.module:attribute`, which is imported and run."""

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


def _ordered(clip: tuple[float, float]) -> tuple[float, float]:
    if clip[0] > clip[1]:
        raise ValueError(f"the lowest weight {clip[0]} is above the highest {clip[1]}; write [LOWEST, HIGHEST]")
    return clip


Clip = Annotated[
    tuple[Annotated[float, Field(ge=0.0)], Annotated[float, Field(gt=0.0)]],
    Field(strict=False),
    AfterValidator(_ordered),
]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]
AboveZero = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Within = Annotated[float, Field(gt=0.0, lt=1.0)]
UpToOne = Annotated[float, Field(gt=0.0, le=1.0)]

Number = TypeVar("Number", bound=float)


class ScheduleConfig(_Part, Generic[Number]):
    """A number that changes over the steps, wherever one may be scheduled."""

    start: Number
    """At step 1."""
    end: Number
    """At step `steps`, and from then on."""
    shape: Literal["linear", "cosine"] = "linear"
    """`linear`, or half a cosine wave."""
    steps: Positive | None = None
    """The step at which `end` is reached; default: the run's last."""


class HeadsConfig(_Part):
    """Prediction heads. `init` is that of heads that a model does not have yet; `depth` is for a model without any."""

    family: Literal["parallel", "linear", "chain"] = "parallel"
    """What heads 2..K are made of (docs/models.md)."""
    num_heads: Annotated[int, Field(ge=1, le=64)] = 4
    """K, head 1 included. 1 is ordinary next-token training."""
    init: Literal["copy", "fresh", "zero"] = "copy"
    """Of heads 2..K: copies of the last layer, fresh weights, or the identity at first (docs/math.md 3.1)."""
    depth: Literal["added", "matched"] = "added"
    """`matched`: heads 2..K are made of the trunk's last layers, so the model keeps its size."""
    trained: Literal["all", "heads", "heads+norm"] = "all"
    """`heads`: heads 2..K alone, so that the base model stays what it is; `heads+norm`: and the shared final norm."""

    @model_validator(mode="after")
    def _possible(self) -> HeadsConfig:
        if self.depth == "matched" and self.family != "parallel":
            raise ValueError(f"model.heads.depth = 'matched' needs family 'parallel', got {self.family!r}")
        if self.trained != "all" and self.num_heads == 1:
            raise ValueError(f"model.heads.trained = {self.trained!r} needs num_heads of at least 2, got 1")
        return self


class LoraConfig(_Part):
    """Adapters on layers that are frozen otherwise: of `objective.backbone = lora`, and `model.lora`."""

    rank: Positive = 8
    alpha: AboveZero = 16.0
    """Their product is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Ends of module names; default: every linear layer but the unembedding."""


class ModelLoraConfig(LoraConfig):
    """Adapters of a model with heads."""

    on: Literal["trunk", "heads", "both"] = "trunk"
    """`trunk`: the base model, while heads 2..K are trained whole; `heads`: these, while the base model stays what it
    is; `both`."""


class ModelConfig(_Part):
    """The model to train: weights from `path`, or random ones of an `architecture`."""

    path: ModelLocation | None = None
    """Folder or hub id of a model with weights: Hugging Face, Meta or ours."""
    architecture: dict[str, Any] | ModelLocation | None = None
    """A transformers config (with `model_type`), or the folder of one; a mapping needs `tokenizer` or `data.task`."""
    tokenizer: ModelLocation | None = None
    """Default: the folder of `path` or `architecture`."""
    heads: HeadsConfig = HeadsConfig()
    lora: ModelLoraConfig | None = None
    """Train adapters; default: all parameters that `heads.trained` names."""

    @model_validator(mode="after")
    def _lora_is_possible(self) -> ModelConfig:
        if self.lora is None:
            return self
        if self.heads.trained != "all":
            raise ValueError("model.lora says what is trained: leave model.heads.trained out")
        if self.lora.on != "trunk" and self.heads.num_heads == 1:
            raise ValueError(f"model.lora.on = {self.lora.on!r} needs model.heads.num_heads of at least 2, got 1")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> ModelConfig:
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of model.path (trained weights) and model.architecture (random weights)")
        return self

    @property
    def tokenizer_source(self) -> str:
        """Where the tokenizer comes from, if it is not a task's."""
        source = self.tokenizer or self.path or self.architecture
        if not isinstance(source, str):
            raise TypeError("validated configs have a tokenizer source")
        return source


RecordField = Literal[
    "problem_id",
    "prompt",
    "response",
    "is_correct",
    "difficulty",
    "tests",
    "cases",
    "time_limit_s",
    "messages",
    "source",
]


class SourceConfig(_Part):
    """One data file."""

    path: Location
    """Its container and kind are told from its content (docs/data.md)."""
    split: str | None = None
    """Another official split than this role's own, where the data set has official splits (MBPP)."""
    fields: dict[RecordField, str] | None = None
    """Our field name -> the file's."""


class TaskConfig(_Part):
    """Rows that are made, with their own tokenizer and questions, in place of files (docs/tasks.md)."""

    builder: Builder
    """What makes the task, such as `wmtp.tasks:Polynomial`."""
    options: dict[str, Any] = {}
    """Its arguments."""
    train: Positive
    """Rows to train on."""
    validation: Positive
    """Rows held out."""


Level = Annotated[int, Field(ge=0)]


class DifficultyBinConfig(_Part):
    """Problems of some difficulties, and their share of every batch."""

    levels: Annotated[tuple[Level, Level], Field(strict=False)]
    """The lowest and the highest difficulty. 0 means unknown, and has a bin of its own."""
    weight: NotNegative | ScheduleConfig[NotNegative] = 1.0
    """Beside the other bins' weights; a schedule makes a curriculum."""

    @model_validator(mode="after")
    def _is_a_range(self) -> DifficultyBinConfig:
        lowest, highest = self.levels
        if lowest > highest:
            raise ValueError(f"the lowest difficulty {lowest} is above the highest {highest}; write [LOWEST, HIGHEST]")
        if lowest == 0 < highest:
            raise ValueError("difficulty 0 means unknown, not easy: give it a bin of its own, levels [0, 0]")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """The weight at the run's start and end."""
        weight = self.weight
        return (weight.start, weight.end) if isinstance(weight, ScheduleConfig) else (weight, weight)


class SamplingConfig(_Part):
    """Which training rows an epoch has, and when. Validation has all of its rows."""

    pairs: Literal["cycled", "unique", "length"] = "cycled"
    """Of a pairwise critic. `cycled`: every labelled row at least once; `unique`: at most once, matched anew in each
    epoch; `length`: the same among responses whose lengths differ by less than a quarter."""
    max_per_problem: Positive | None = None
    """At most so many rows, or pairs, of a problem in an epoch, drawn anew in each; default: all."""
    difficulty: Annotated[list[DifficultyBinConfig], Field(min_length=1)] | None = None
    """Bins; rows in none of them are not trained on. Default: difficulty plays no part."""

    @model_validator(mode="after")
    def _bins_are_apart(self) -> SamplingConfig:
        bins = sorted(self.difficulty or [], key=lambda b: b.levels)
        for one, other in itertools.pairwise(bins):
            if other.levels[0] <= one.levels[1]:
                raise ValueError(
                    f"difficulty bins {list(one.levels)} and {list(other.levels)} overlap; a difficulty must be in one"
                )
        for weights in zip(*(b.ends for b in bins), strict=True):
            if not any(weights):
                raise ValueError(
                    "all difficulty bins have weight 0 at one end of the run: nothing could be drawn; raise one of them"
                )
        return self


class DataConfig(_Part):
    """Rows in."""

    train: SourceConfig | None = None
    task: TaskConfig | None = None
    """In place of `train` and `validation`; the model's tokenizer is then the task's."""
    validation: SourceConfig | None = None
    """Held-out rows: a file of their own."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Hold this share of the training *problems* out instead of reading a validation file."""
    solutions: Literal["correct", "all"] | None = None
    """Rows with is_correct = false take part (`all`) or not. Default: `correct` for mtp, `all` for value."""
    template: str = "{prompt}\n"
    """Text before the response; `{prompt}` is the row's prompt."""
    max_length: Annotated[int, Field(ge=2)] = 1024
    """In tokens, EOS included."""
    on_bad_row: Literal["error", "skip"] = "error"
    """`error` stops at the first, `skip` counts them."""
    allow_evaluation_data: bool = False
    """Without it, training on an official test split, and so on all of HumanEval, is refused."""
    on_long_row: Literal["truncate", "drop", "error"] = "truncate"
    """Longer than `max_length`."""
    sampling: SamplingConfig | None = None
    """Default: every row, or every labelled row in a pair, once an epoch."""
    index: Location | None = None
    """Of `data.train.path`, as `wmtp data index` writes it: then only the rows that the run trains on are read."""
    cache: Location | None = None
    """Folder of tokenised rows, written once and memory-mapped by every rank (from a store each fetches them); default:
    each rank has all in memory."""
    workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that tokenise rows for `data.cache`, and threads that prepare coming batches; 0: neither."""

    @model_validator(mode="after")
    def _fits_the_index(self) -> DataConfig:
        if self.index is None:
            return self
        if self.train is None:
            raise ValueError("data.index is of data.train.path; a task has no file: leave data.index out")
        if self.train.split is not None or self.train.fields is not None:
            raise ValueError(
                "data.index is of records in our own schema: data.train.split and fields do nothing; leave them out"
            )
        return self

    @model_validator(mode="after")
    def _one_validation(self) -> DataConfig:
        if self.validation is not None and self.validation_fraction is not None:
            raise ValueError("give at most one of data.validation and data.validation_fraction")
        return self

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        if (self.train is None) == (self.task is None):
            raise ValueError("give exactly one of data.train (a file) and data.task (rows that are made)")
        if self.task is not None and self.has_validation_file:
            raise ValueError("data.task holds out rows itself (data.task.validation): leave data.validation out")
        return self

    @property
    def has_validation_file(self) -> bool:
        """Whether rows of a file are held out."""
        return self.validation is not None or self.validation_fraction is not None

    @property
    def has_validation(self) -> bool:
        """Whether any rows are held out."""
        return self.task is not None or self.has_validation_file


class UniformConfig(_Part):
    """Every pair weighs 1."""

    scheme: Literal["uniform"] = "uniform"


class CriticConfig(_Part):
    """Weights from a critic's advantages (docs/math.md 4.2)."""

    scheme: Literal["critic"]
    critic: ModelLocation
    """The `final/` folder of a run with objective.kind = value."""
    scores: Location | None = None
    """Folder that `wmtp score` wrote: the critic is then not loaded."""
    gamma: Share = 1.0
    """Discount of the advantages."""
    lam: Share = 0.95
    """lambda of generalised advantage estimation."""
    terminal: Literal["value", "reward"] = "value"
    """What follows the last token: the critic's value of the whole, or the reward itself."""
    beta: AboveZero | ScheduleConfig[AboveZero] = 1.0
    """Temperature of exp(advantage / beta); lower spreads weights more."""
    clip: Clip = (0.1, 3.0)
    """Lowest and highest weight."""
    whiten: Literal["step", "ema"] = "step"
    """By mean and deviation of the step, or of a running average."""
    ema_decay: Share = 0.99
    """Of whiten = ema."""


class Rho1Config(_Part):
    """Weights from the excess loss over a reference (docs/math.md 4.3)."""

    scheme: Literal["rho1"]
    reference: ModelLocation
    """A frozen model with the same tokenizer."""
    alignment: Literal["next", "matched"] = "next"
    """The reference's next-token loss for every head, or that of its own head k for head k."""
    scores: Location | None = None
    """Folder that `wmtp score` wrote: the reference is then not loaded."""
    mode: Literal["select", "skip", "soft"] = "select"
    """`select` keeps the tokens with the largest excess, `skip` drops those with the smallest, `soft` weighs all."""
    ratio: Within | ScheduleConfig[Within] | None = None
    """Share kept by `select` (default 0.6) or dropped by `skip` (default 0.3)."""
    temperature: AboveZero | ScheduleConfig[AboveZero] = 1.0
    """Of soft; lower spreads weights more."""
    clip: Clip = (0.1, 3.0)
    """Lowest and highest weight, of soft."""
    scope: Literal["micro", "global", "running"] = "global"
    """What the quantile is over: a micro-batch, the step on all ranks, or a running average."""
    ema_decay: Share = 0.99
    """Of scope = running."""

    @model_validator(mode="after")
    def _ratio_is_used(self) -> Rho1Config:
        if self.mode == "soft" and self.ratio is not None:
            raise ValueError("ratio does nothing in mode 'soft'; leave it out")
        return self


class GradientConfig(_Part):
    """Weights from the norm of a pair's gradient (docs/math.md 4.4)."""

    scheme: Literal["gradient"]
    alpha: AboveZero | ScheduleConfig[AboveZero] = 1.0
    """Power of the norm over its mean."""
    clip: Clip = (0.1, 3.0)
    """Lowest and highest weight."""
    ema_decay: Share = 0.99
    """Of the running mean of norms."""


class GRPOConfig(_Part):
    """Weights from how a response did beside the others to its problem (docs/math.md 4.5)."""

    scheme: Literal["grpo"]
    mode: Literal["exp", "positive"] = "exp"
    """exp(advantage / beta), or the advantage itself where it is above 0."""
    beta: AboveZero | ScheduleConfig[AboveZero] = 1.0
    """Temperature of exp; lower spreads weights more."""
    clip: Clip = (0.1, 3.0)
    neutral: Share = 1.0
    """Weight of responses whose group has equal rewards: 1 trains them as the baseline does, 0 leaves them out."""

    @model_validator(mode="after")
    def _beta_is_used(self) -> GRPOConfig:
        if self.mode == "positive" and (self.beta, self.clip) != (1.0, (0.1, 3.0)):
            raise ValueError("beta and clip do nothing in mode 'positive'; leave them out")
        return self


class OwnConfig(_Part):
    """A scheme of the user's own (docs/schemes/own.md)."""

    scheme: Literal["own"]
    builder: Builder
    """What makes the scheme."""
    options: dict[str, Any] = {}
    """Its arguments."""
    critic: ModelLocation | None = None
    """Where the scheme needs `values_BT`."""
    reference: ModelLocation | None = None
    """Where the scheme needs `reference_nll_BTK`."""
    alignment: Literal["next", "matched"] = "next"
    """Of the reference, as in rho1."""
    scores: Location | None = None
    """Folder that `wmtp score` wrote: critic and reference are then not loaded."""

    @model_validator(mode="after")
    def _scores_are_used(self) -> OwnConfig:
        if self.scores is not None and self.critic is None and self.reference is None:
            raise ValueError("scores are those of a critic or a reference: name it too, or leave scores out")
        return self


SimpleConfig = UniformConfig | CriticConfig | Rho1Config | GradientConfig | GRPOConfig | OwnConfig
"""Schemes that are made of no others."""


class HybridConfig(_Part):
    """Several schemes at once (docs/math.md 4.6)."""

    scheme: Literal["hybrid"]
    parts: Annotated[list[Annotated[SimpleConfig, Field(discriminator="scheme")]], Field(min_length=2)]
    """Schemes whose weights are put together."""
    combine: Literal["product", "mixture"] = "product"
    """Weights multiplied, or averaged by shares."""
    shares: list[NotNegative] | None = None
    """Of a mixture; default: equal."""

    @model_validator(mode="after")
    def _fits_together(self) -> HybridConfig:
        if self.shares is not None and self.combine == "product":
            raise ValueError("shares do nothing in a product; leave them out")
        if self.shares is not None and (len(self.shares) != len(self.parts) or abs(sum(self.shares) - 1) > 1e-6):
            raise ValueError(f"shares must be {len(self.parts)} numbers that add up to 1, got {self.shares}")
        for name, what in (("critic", ("critic", "scores")), ("reference", ("reference", "alignment", "scores"))):
            scored = {tuple(getattr(part, field) for field in what) for part in self.parts if getattr(part, name, None)}
            if len(scored) > 1:
                raise ValueError(
                    f"the parts of a hybrid share one {name}, got {len(scored)}: give each the same {', '.join(what)}"
                )
        return self


class ControlConfig(_Part):
    """Another scheme's weights, dealt out anew (docs/math.md 4.7)."""

    scheme: Literal["shuffled", "random_matched", "inverted"]
    of: Annotated[SimpleConfig | HybridConfig, Field(discriminator="scheme")]
    """The scheme whose weights are dealt out."""


WeightingConfig = Annotated[SimpleConfig | HybridConfig | ControlConfig, Field(discriminator="scheme")]


def simple_schemes(weighting: WeightingConfig) -> list[SimpleConfig]:
    """The schemes that the weights are made of in the end."""
    if isinstance(weighting, ControlConfig):
        return simple_schemes(weighting.of)
    return list(weighting.parts) if isinstance(weighting, HybridConfig) else [weighting]


def _without_scores(weighting: WeightingConfig) -> WeightingConfig:
    if isinstance(weighting, ControlConfig):
        return weighting.model_copy(update={"of": _without_scores(weighting.of)})
    if isinstance(weighting, HybridConfig):
        return weighting.model_copy(update={"parts": [_without_scores(part) for part in weighting.parts]})
    return weighting.model_copy(update={"scores": None}) if hasattr(weighting, "scores") else weighting


class MTPObjectiveConfig(_Part):
    """Weighted multi-token prediction."""

    kind: Literal["mtp"] = "mtp"
    weighting: WeightingConfig = UniformConfig()
    head_coefficients: list[NotNegative | ScheduleConfig[NotNegative]] | None = None
    """c_k, one per head; default 1 each."""
    head_decay: UpToOne | ScheduleConfig[UpToOne] | None = None
    """Or c_k = head_decay^(k-1)."""
    denominator: Literal["weights", "tokens"] = "weights"
    """What the weighted sum is divided by: the sum of weights, or that of 1 for every target (docs/math.md 2)."""
    loss: Literal["fused", "compiled", "plain", "torch", "liger", "cce"] = "fused"
    """`fused` is ours, `plain` the specification. `compiled` is `fused` with its passes over bf16 logits compiled by
    torch (needs Triton on CUDA, a C++ compiler on a CPU). The others are libraries: no `acc/*` figures, and each is
    refused where it would be wrong (docs/performance.md)."""
    logits_chunk: Positive | None = None
    """Rows of logits held at once by the fused loss, or given to a library; default from the vocabulary's size."""
    aux_value_loss: AboveZero | None = None
    """Coefficient of the loss of the policy's own value head, which follows the critic (docs/math.md 4.2.3)."""

    @model_validator(mode="after")
    def _one_coefficient(self) -> MTPObjectiveConfig:
        if self.head_coefficients is not None and self.head_decay is not None:
            raise ValueError("give at most one of objective.head_coefficients and objective.head_decay")
        if self.head_coefficients is not None:
            ends = [(c.start, c.end) if isinstance(c, ScheduleConfig) else (c, c) for c in self.head_coefficients]
            if not all(any(values) for values in zip(*ends, strict=True)):
                raise ValueError("objective.head_coefficients are all 0: nothing would be trained; give one above 0")
        if self.aux_value_loss is not None and self.critic is None:
            raise ValueError("objective.aux_value_loss follows a critic's values: it needs a weighting with a critic")
        if self.loss == "plain" and self.logits_chunk is not None:
            raise ValueError("objective.logits_chunk does nothing with loss 'plain'; leave it out")
        return self

    @property
    def critic(self) -> str | None:
        """The critic of the schemes, which share one."""
        return next((c for c in (getattr(s, "critic", None) for s in simple_schemes(self.weighting)) if c), None)


class ValueRatesConfig(_Part):
    """Peak learning rates of the parts of a critic; default: optim.lr."""

    head: AboveZero | None = None
    """Of the value head."""
    adapters: AboveZero | None = None
    """Of LoRA's matrices."""
    backbone: AboveZero | None = None
    """Of everything else."""


class RewardConfig(_Part):
    """A reward model whose score a critic learns to foresee, in the place of is_correct (docs/math.md 4.2.2)."""

    model: ModelLocation
    """A Hugging Face sequence classifier with one output."""
    template: str | None = None
    """Of a model whose tokenizer has no chat template: with `{prompt}` and `{response}`, as it was trained."""
    scores: Location | None = None
    """Folder that `wmtp score` wrote: the reward model is then not loaded."""


class ValueObjectiveConfig(_Part):
    """Training of a critic (docs/math.md 4.2)."""

    kind: Literal["value"]
    loss: Literal["pairwise", "lambda_return", "monte_carlo", "combined"] = "pairwise"
    reward: RewardConfig | None = None
    """What the values should foresee; default: is_correct."""
    head: Literal["linear", "mlp", "sigmoid"] = "mlp"
    """What reads the value off a hidden state."""
    backbone: Literal["full", "frozen", "lora"] = "full"
    """What of the base model is trained: all, nothing, or adapters."""
    lora: LoraConfig | None = None
    """Of backbone = lora."""
    rates: ValueRatesConfig = ValueRatesConfig()
    gamma: Share = 1.0
    """Discount of the returns."""
    lam: Share | ScheduleConfig[Share] = 0.95
    """Of lambda_return and combined; monte_carlo is lam = 1."""
    huber_delta: Annotated[float, Field(gt=0.0)] | None = 0.5
    """Of all losses but pairwise; null for the squared error."""
    returns_share: Within = 0.5
    """Of combined: (1 - share) * pairwise + share * lambda_return."""

    @model_validator(mode="before")
    @classmethod
    def _monte_carlo_is_lam_1(cls, given: Any) -> Any:
        """Written into the config that a run keeps, so that it can be read again."""
        is_so = isinstance(given, dict) and given.get("loss") == "monte_carlo"
        return {"lam": 1.0} | given if is_so else given

    @model_validator(mode="after")
    def _is_used(self) -> ValueObjectiveConfig:
        if self.loss == "monte_carlo" and self.lam != 1.0:
            raise ValueError("loss 'monte_carlo' is lam = 1; leave lam out, or use lambda_return")
        if self.loss != "combined" and self.returns_share != 0.5:
            raise ValueError("returns_share does nothing but in loss 'combined'; leave it out")
        if self.reward is not None and self.pairs:
            raise ValueError(
                f"reward does nothing in loss {self.loss!r}, whose pairs are told apart by is_correct: set loss to "
                "lambda_return or monte_carlo, or leave reward out"
            )
        if self.reward is not None and self.head == "sigmoid":
            raise ValueError("head 'sigmoid' cannot give a reward model's rewards, whose mean is 0; use mlp or linear")
        if self.lora is not None and self.backbone != "lora":
            raise ValueError("lora does nothing with this backbone; leave it out, or set backbone to lora")
        trained = {"adapters": self.backbone == "lora", "backbone": self.backbone == "full"}
        for name, is_trained in trained.items():
            if getattr(self.rates, name) is not None and not is_trained:
                raise ValueError(f"rates.{name} does nothing with backbone {self.backbone!r}; leave it out")
        return self

    @property
    def pairs(self) -> bool:
        """Whether rows must come as pairs."""
        return self.loss in ("pairwise", "combined")


ObjectiveConfig = Annotated[MTPObjectiveConfig | ValueObjectiveConfig, Field(discriminator="kind")]


class OnlineConfig(_Part):
    """Training on the policy's own samples, judged by the problems' tests (docs/schemes/grpo.md)."""

    samples: Annotated[int, Field(ge=2)] = 8
    """Of each problem. train.batch_size counts samples: a step asks batch_size / samples problems."""
    max_new_tokens: Positive = 256
    """Of a sample; a prompt may have the rest of data.max_length."""
    temperature: AboveZero = 1.0
    """1: samples are the policy's own distribution, which the KL and the theory ask for."""
    require: Literal["strong", "best", "none"] = "strong"
    """Isolation of the sandbox; less than that refuses to start."""
    kl: NotNegative = 0.0
    """Coefficient of the divergence from a frozen reference (docs/math.md 4.9)."""
    reference: ModelLocation | None = None
    """Of kl; default: model.path, what the run starts from."""

    @model_validator(mode="after")
    def _reference_is_used(self) -> OnlineConfig:
        if self.reference is not None and not self.kl:
            raise ValueError("online.reference does nothing without online.kl; leave it out")
        return self


class OptimConfig(_Part):
    """AdamW and its schedule."""

    lr: Annotated[float, Field(gt=0.0)] = 3e-4
    """Peak learning rate."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    """Of AdamW: decay of the two moments."""
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    """Of AdamW."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.1
    """Of matrices; vectors (norms, biases) have none."""
    clip_norm: Annotated[float, Field(gt=0.0)] | None = 1.0
    """Largest norm of the gradient over all parameters; null: not clipped."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """From the peak to the floor, after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps in which the rate rises from 0 to its peak."""
    floor: Share = 0.1
    """Share of the peak rate that the last step has."""


class EarlyStoppingConfig(_Part):
    """Stop when a validation metric no longer falls, or training has become unsteady."""

    metric: str | None = None
    """One that falls. Default: `loss/nll`, which no weighting moves; for a critic `loss/weighted`, what it trains."""
    patience: Positive = 3
    """Evaluations in a row without improvement."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """A smaller improvement counts as none."""
    gradient_spread: AboveZero | None = None
    """Largest standard deviation of the gradient norm between evaluations, over its mean; default: not watched."""
    value_std: Clip | None = None
    """Of a critic: lowest and highest standard deviation of its values; default: not watched."""
    mode: Literal["any", "all"] = "any"
    """One of the watched criteria is enough, or it takes all."""


class TrainConfig(_Part):
    """The loop."""

    steps: Positive | None = None
    """Optimiser steps. Either this or `epochs`."""
    epochs: Annotated[float, Field(gt=0.0)] | None = None
    """Passes over the training rows; may be a fraction."""
    batch_size: Positive = 16
    """Rows per optimiser step."""
    micro_batch_size: Positive | None = None
    """At most so many rows per forward pass; default: all of the batch."""
    micro_batch_tokens: Positive | None = None
    """And at most so many positions (rows x longest row), a single row excepted; default: no such bound."""
    activation_checkpointing: bool = False
    """Recompute the trunk's activations in the backward pass instead of keeping them."""
    compile: bool = False
    """Compile trunk layers and heads one by one (regional compilation); needs a C++ compiler on CPU."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of weights, order and draws."""
    log_every: Positive = 10
    """Steps between lines of metrics.jsonl."""
    eval_every: Positive | None = None
    """Steps between evaluations; default: at the end only."""
    eval_batches: Positive | None = None
    """At most so many validation batches; default: all."""
    max_nonfinite: Positive = 5
    """So many steps in a row with a non-finite gradient norm stop the run."""
    early_stopping: EarlyStoppingConfig | None = None
    watchdog_s: Annotated[float, Field(gt=0.0)] | None = None
    """End the process, with all stacks, after so many seconds without a step, evaluation or save; default: never."""
    watchdog_grace_s: Annotated[float, Field(gt=0.0)] = 600.0
    """Added to that for the first of each kind of work, which loads and compiles."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of train.steps and train.epochs")
        if self.micro_batch_size is not None and self.micro_batch_size > self.batch_size:
            raise ValueError(
                f"train.micro_batch_size = {self.micro_batch_size} is larger than train.batch_size = {self.batch_size}"
            )
        return self


class DistributedConfig(_Part):
    """Several ranks (`torchrun`); read by nothing in a single process."""

    strategy: Literal["FULL_SHARD", "SHARD_GRAD_OP", "HYBRID_SHARD", "NO_SHARD"] = "FULL_SHARD"
    """What is sharded over ranks (docs/operations.md)."""
    cpu_offload: bool = False
    """Keep parameters, gradients and optimiser in the host's memory; for GPUs that cannot hold their share."""
    timeout_s: Annotated[float, Field(gt=0.0)] = 600.0
    """How long a rank waits for the others before the run fails. For others' samples (`online`) it waits as long as
    they live and no `train.watchdog_s` ends them."""


class CheckpointConfig(_Part):
    """Saving for resuming."""

    every: Positive | None = None
    """Steps between checkpoints. There is one at the end and on a signal in any case."""
    keep_last: Positive = 2
    """Older ones are removed."""
    save_final: bool = True
    """Write `final/`, the trained model."""
    select: Literal["last", "best"] = "last"
    """What `final/` is: the last step's model; or, of a critic, that of the evaluation with the best pair accuracy."""


DATABASES = ("sqlite", "postgresql", "mysql", "mssql")


def _store_of_runs(uri: str) -> str:
    """A database or server that MLflow can keep runs in; no credentials, as the config is stored in the run folder."""
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme not in ("http", "https", *DATABASES) or parts.fragment or (scheme == "sqlite" and parts.query):
        raise ValueError(
            "MLflow keeps runs in a database (sqlite:///FILE) or behind a server (http://HOST:PORT), not in a folder; "
            "give one of these"
        )
    if without_credentials(uri) != uri and (
        parts.password is not None or not parts.username or scheme not in DATABASES
    ):
        raise ValueError(
            "credentials in it would be written into the run folder: give a server's in MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD; a database's whole address in MLFLOW_TRACKING_URI, and leave tracking.uri out"
        )
    if scheme != "sqlite":
        return uri
    if not parts.path[1:]:
        raise ValueError("it names no file: write sqlite:///FILE")
    return f"sqlite:///{_absolute(parts.path[1:])}"


class TrackingConfig(_Part):
    """A copy of the run in MLflow (docs/tracking.md). `metrics.jsonl` stays the truth, and no step waits for it."""

    uri: Annotated[str, AfterValidator(_store_of_runs)] | None = None
    """`sqlite:///FILE`, another database, or `http(s)://` of a server. Default: MLFLOW_TRACKING_URI of the environment,
    else `mlflow.db` in `runs`."""
    experiment: Annotated[str, Field(min_length=1, max_length=250)] = "wmtp"
    required: bool = False
    """The run fails if the store does not answer before step 1, or has not everything at the end."""
    flush_s: AboveZero = 10.0
    """Seconds between two deliveries."""
    timeout_s: Positive = 5
    """Seconds that one request may take; it is tried twice."""
    upload_timeout_s: Positive = 600
    """The same, for a file of the final model."""
    end_s: AboveZero = 30.0
    """Seconds that a run, also one that is stopped, waits at its end for its last log points to be stored."""


class WhereConfig(_Part):
    """Where runs are and who follows them: what a config says without a recipe."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """auto: CUDA, then MPS, then the CPU."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: forward passes under autocast; weights, losses and the optimiser stay fp32."""
    num_threads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """CPU threads; default: torch's own choice. Recorded with checkpoints: sums depend on it in the last bit."""
    distributed: DistributedConfig = DistributedConfig()
    runs: Location = Field(default="runs", validate_default=True)
    """Folder that run folders are made in."""
    run_name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")
    """Default: arm and seed."""
    tags: list[str] = []
    tracking: TrackingConfig | None = None
    """Default: nothing but `metrics.jsonl`."""


class Config(WhereConfig):
    """One run."""

    model: ModelConfig
    remote_code: list[ModelLocation] = []
    """Folders or hub ids of models whose own Python files may run; no others do (docs/models.md)."""
    data: DataConfig
    objective: ObjectiveConfig = MTPObjectiveConfig()
    online: OnlineConfig | None = None
    """Default: the responses of data.train are trained on."""
    optim: OptimConfig = OptimConfig()
    train: TrainConfig
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _fits_together(self) -> Config:
        objective, data, train = self.objective, self.data, self.train
        has_validation = data.has_validation
        if not has_validation and (train.eval_every or train.early_stopping):
            raise ValueError(
                "train.eval_every and train.early_stopping need data.validation or data.validation_fraction"
            )
        self._fits_tokenizer()
        if train.early_stopping:
            self._fits_early_stopping(train.early_stopping)
        if self.checkpoint.select == "best":
            self._fits_selection(has_validation)
        if isinstance(objective, ValueObjectiveConfig):
            if self.model.lora is not None:
                raise ValueError(
                    "model.lora is for objective.kind = mtp; set objective.lora for a critic, with backbone lora"
                )
            if data.solutions == "correct":
                raise ValueError(
                    "objective.kind = value learns from incorrect solutions too; data.solutions must be all, got "
                    f"{data.solutions}"
                )
            sizes = (train.batch_size, train.micro_batch_size or 2)
            if objective.pairs and any(size % 2 for size in sizes):
                raise ValueError(
                    f"objective.loss = {objective.loss}: train.batch_size and micro_batch_size must be even, got "
                    f"{train.batch_size} and {train.micro_batch_size}"
                )
        else:
            self._fits_heads(objective)
        if self.online is not None:
            self._fits_online(self.online)
        in_pairs = isinstance(objective, ValueObjectiveConfig) and objective.loss == "pairwise"
        if data.sampling is not None and data.sampling.pairs != "cycled" and not in_pairs:
            raise ValueError(
                f"data.sampling.pairs = {data.sampling.pairs!r} is for objective.loss = pairwise; leave it out"
            )
        return self

    def _fits_tokenizer(self) -> None:
        model, is_task = self.model, self.data.task is not None
        if is_task and (model.tokenizer is not None or not isinstance(model.architecture, dict)):
            raise ValueError(
                "data.task has its own tokenizer: it needs model.architecture as a mapping, without model.tokenizer"
            )
        if not is_task and model.tokenizer is None and isinstance(model.architecture, dict):
            raise ValueError("model.architecture as a mapping needs model.tokenizer: name a folder or a hub id")

    def _fits_early_stopping(self, options: EarlyStoppingConfig) -> None:
        if not self.train.eval_every:
            raise ValueError("train.early_stopping needs train.eval_every")
        known = ["loss/weighted"]
        if isinstance(self.objective, MTPObjectiveConfig):
            known += ["loss/nll", *(f"loss/nll_head_{k}" for k in range(1, self.model.heads.num_heads + 1))]
        if options.metric is not None and options.metric not in known:
            raise ValueError(f"train.early_stopping.metric = {options.metric!r} must be one of {', '.join(known)}")
        if options.value_std is not None and self.arm != "critic":
            raise ValueError("train.early_stopping.value_std is for objective.kind = value; leave it out")
        if options.mode == "all" and options.gradient_spread is None and options.value_std is None:
            raise ValueError("train.early_stopping.mode = all needs gradient_spread or value_std beside the metric")

    def _fits_selection(self, has_validation: bool) -> None:
        if self.arm != "critic" or not has_validation:
            raise ValueError(
                "checkpoint.select = best goes by the pair accuracy of held-out problems: it needs objective.kind = "
                "value, and data.validation or data.validation_fraction"
            )
        if not self.checkpoint.save_final:
            raise ValueError("checkpoint.select does nothing without checkpoint.save_final; leave it out")

    def _fits_online(self, online: OnlineConfig) -> None:
        objective, data, train = self.objective, self.data, self.train
        if isinstance(objective, ValueObjectiveConfig):
            raise ValueError("online is for objective.kind = mtp: a critic does not sample; leave it out")
        if not any(isinstance(scheme, GRPOConfig | OwnConfig) for scheme in self.schemes):
            raise ValueError(
                "online needs a weighting that reads rewards, objective.weighting.scheme = grpo: with others samples "
                "would be trained on whether they pass or not"
            )
        unused = {
            "index": data.index,
            "cache": data.cache,
            "workers": data.workers or None,
            "solutions": data.solutions,
            "task": data.task,
        }
        for name, value in unused.items():
            if value is not None:
                raise ValueError(f"data.{name} does nothing for samples that are drawn in training; leave it out")
        if any(getattr(scheme, "scores", None) is not None for scheme in self.schemes):
            raise ValueError("samples that are drawn in training have no stored scores; leave scores out")
        if train.batch_size % online.samples:
            raise ValueError(
                f"train.batch_size = {train.batch_size} must be a multiple of online.samples = {online.samples}"
            )
        if online.max_new_tokens >= data.max_length:
            raise ValueError(
                f"online.max_new_tokens = {online.max_new_tokens} leaves no room for a prompt in data.max_length = "
                f"{data.max_length}; it must be less"
            )
        if online.kl:
            self._fits_kl(objective, online)

    def _fits_kl(self, objective: MTPObjectiveConfig, online: OnlineConfig) -> None:
        frozen = self.model.lora.on == "heads" if self.model.lora is not None else self.model.heads.trained == "heads"
        if frozen:
            raise ValueError("online.kl does nothing where head 1 is not trained; leave it out")
        if objective.denominator != "tokens":
            raise ValueError(
                "online.kl needs objective.denominator = tokens: then the loss is a mean over tokens, as in GRPO, and "
                "the divergence is not rescaled with the weights"
            )
        reference = self.kl_reference
        if reference is None:
            raise ValueError(
                "online.kl needs online.reference where the run starts from random weights: name one, or leave kl out"
            )
        for scheme in self.schemes:
            own = getattr(scheme, "reference", None)
            if own is not None and (own, getattr(scheme, "alignment", "next")) != (reference, "next"):
                raise ValueError(
                    f"the weighting reads the reference {own}, online.kl reads {reference} with alignment 'next': one "
                    "reference serves both: name the same"
                )

    @property
    def kl_reference(self) -> str | None:
        """The frozen model that the policy is kept near, where it is."""
        if self.online is None or not self.online.kl:
            return None
        return self.online.reference or self.model.path

    def _fits_heads(self, objective: MTPObjectiveConfig) -> None:
        num_heads = self.model.heads.num_heads
        given = objective.head_coefficients
        if given is not None and len(given) != num_heads:
            raise ValueError(
                f"objective.head_coefficients has {len(given)} entries, model.heads.num_heads is {num_heads}: give one "
                "for each head"
            )
        if num_heads >= self.data.max_length:
            length = self.data.max_length
            raise ValueError(
                f"model.heads.num_heads = {num_heads} does not fit into rows of data.max_length = {length}: it must be "
                "less"
            )

    @property
    def arm(self) -> str:
        """`critic`, or what the weighting amounts to: `baseline`, `verifiable`, the scheme's name, or a control's name
        and its scheme's (`shuffled_rho1`); `online_` before it where the policy's own samples are trained on."""
        if isinstance(self.objective, ValueObjectiveConfig):
            return "critic"
        return ("" if self.online is None else "online_") + _arm(self.objective.weighting)

    @property
    def schemes(self) -> list[SimpleConfig]:
        """The schemes that the weights are made of; none for a critic."""
        return [] if isinstance(self.objective, ValueObjectiveConfig) else simple_schemes(self.objective.weighting)

    def asking_models(self) -> Config:
        """The same run, but frozen models are asked even where it names their stored scores."""
        objective = self.objective
        asked: ObjectiveConfig
        if isinstance(objective, MTPObjectiveConfig):
            asked = objective.model_copy(update={"weighting": _without_scores(objective.weighting)})
        else:
            reward = objective.reward and objective.reward.model_copy(update={"scores": None})
            asked = objective.model_copy(update={"reward": reward})
        return self.model_copy(update={"objective": asked})

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run_name or f"{self.arm}-seed{self.train.seed}"

    @property
    def watched(self) -> str:
        """The metric that early stopping watches."""
        given = self.train.early_stopping.metric if self.train.early_stopping else None
        return given or ("loss/weighted" if self.arm == "critic" else "loss/nll")

    @property
    def solutions(self) -> str:
        """Which rows take part."""
        return self.data.solutions or ("all" if self.arm == "critic" else "correct")


def _arm(weighting: WeightingConfig) -> str:
    if isinstance(weighting, ControlConfig):
        return f"{weighting.scheme}_{_arm(weighting.of)}"
    return {"uniform": "baseline", "critic": "verifiable"}.get(weighting.scheme, weighting.scheme)


def load(files: Sequence[Place], overrides: Sequence[str] = ()) -> Config:
    """The config of a run: files in order, then dotted overrides.

    Raises:
        ConfigError: everything that is wrong, each with file, key, what was got and what was expected.
    """
    return config_files.load(Config, files, overrides)


def load_where(file: Place, overrides: Sequence[str] = ()) -> WhereConfig | None:
    """A config without a recipe; None if the file or an override says more than where.

    Raises:
        ConfigError: as `load`.
    """
    said = {*config_files.as_written(file), *(re.split("[.=]", override)[0] for override in overrides)}
    return config_files.load(WhereConfig, [file], overrides) if said <= WhereConfig.model_fields.keys() else None


def dump(config: Config) -> str:
    """YAML that `load` reads back to an equal config."""
    return config_files.dump(config)
