"""What the policy samples becomes rows: its own tokens, its own verdicts, its own groups, on any number of ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pytest
import torch

from wmtp.data.batches import Batch, Batches
from wmtp.data.orders import Repeated, Sequential
from wmtp.data.records import Record
from wmtp.distributed import World
from wmtp.errors import DataError, ModelError, WmtpError
from wmtp.questions import Question, fingerprint, read_questions
from wmtp.record_tests import program_in
from wmtp.rehearsal import on_meta
from wmtp.rollouts import Ask, Drawn, Rollouts, check_samples
from wmtp.sandbox import Job, Sandbox, Verdict
from wmtp.testing import EOS, Ranks, tiny_model, tiny_tokenizer

SAMPLES, NEW, PROBLEMS, PER_STEP = 4, 5, 7, 3
TOKENIZER = tiny_tokenizer()
RECORDS = [Record(f"p{n}", "x" * (1 + n), "pass", cases=(("", ""),)) for n in range(PROBLEMS)]
MODEL = tiny_model("llama", 2, noise=0.1, vocab_size=len(TOKENIZER))


class FakeSandbox:
    """A verdict by the program's length: even ones pass, and one in eleven cannot be judged."""

    def __init__(self, judge: Callable[[str], Any] | None = None) -> None:
        self.ran: list[Any] = []
        self.judge = judge or by_length

    def map(self, jobs: Iterable[Job], *, ordered: bool = True) -> Iterator[tuple[Job, Verdict]]:
        asked = list(jobs)
        for job in reversed(asked):
            self.ran.append((job.id, job.source))
            yield job, Verdict(self.judge(job.source), "because")


def by_length(program: str) -> str:
    if sum(program.encode()) % 11 == 0:
        return "sandbox_error"
    return "passed" if len(program) % 2 == 0 else "wrong"


@dataclass(frozen=True)
class Threads(World):
    """A world whose ranks are threads."""

    of: Any = None

    def __call__(self, total: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.of(total))

    def largest(self, value: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.of.largest(value))

    def together(self, do: Callable[[], Any], *, unhurried: bool = False) -> Any:
        return do()


def questions(records: list[Record] = RECORDS, **options: Any) -> list[Question]:
    return read_questions(records, TOKENIZER, "{prompt}\n", **{"longest": 20, "drop_long": False, **options})[0]


def rollouts(sandbox: FakeSandbox, world: World | None = None, **options: Any) -> Rollouts:
    asked = questions()
    rows = [question.row(n, NEW, EOS) for n, question in enumerate(asked)]
    order = Repeated(Sequential(np.arange(PROBLEMS)[:, None], PER_STEP), SAMPLES)
    ask = Ask(
        **{
            "samples": SAMPLES,
            "max_new_tokens": NEW,
            "temperature": 1.0,
            "seed": 3,
            "rows": 4,
            "tokens": None,
            **options,
        }
    )
    named = {question.name: question for question in asked}
    batches = Batches.ordered(rows, order, pad_id=0)
    return Rollouts(batches, named, TOKENIZER, cast(Sandbox, sandbox), world or World(), ask)


def draw(sandbox: FakeSandbox | None = None, step: int = 1, world: World | None = None, **options: Any) -> Drawn:
    """With a model of its own: threads cannot share one."""
    return rollouts(sandbox or FakeSandbox(), world, **options).draw(copy.deepcopy(MODEL), step, nullcontext)


def rows_of(batches: list[Batch]) -> dict[int, tuple[list[int], list[bool], float, tuple[float, ...]]]:
    """Ids, which of them are trained, reward and group of every row, by its number; padding left out."""
    found = {}
    for batch in batches:
        assert batch.group_B2 is not None
        for b, row in enumerate(batch.row_B):
            last = int(batch.trainable_BT[b].nonzero().max()) + 1
            ids, trained = batch.tokens_BT[b, :last].tolist(), batch.trainable_BT[b, :last].tolist()
            found[row] = ids, trained, float(batch.reward_B[b]), tuple(batch.group_B2[b].tolist())
    return found


def test_rows_are_prompts_with_what_was_sampled_and_eos_is_trained_only_where_it_was() -> None:
    drawn = draw(max_new_tokens=12)
    asked, ended = questions(), 0
    for number, (ids, trained, _, _) in rows_of(drawn.batches).items():
        prompt = asked[number // SAMPLES].prompt
        assert tuple(ids[: len(prompt)]) == prompt
        assert trained == [False] * len(prompt) + [True] * (len(ids) - len(prompt))
        answer = ids[len(prompt) :]
        assert answer[-1] == EOS or len(answer) == 12
        assert EOS not in answer[:-1]
        ended += answer[-1] == EOS
    assert drawn.metrics["online/ended"] >= ended / (PER_STEP * SAMPLES)


def test_rewards_and_groups_are_those_of_the_verdicts_and_the_undecided_are_left_out() -> None:
    """Over several steps, so that every kind of group is met."""
    sandbox, undecided, neutral = FakeSandbox(), 0, 0
    for step in range(1, 6):
        drawn = draw(sandbox, step)
        rows = rows_of(drawn.batches)
        for place in {number // SAMPLES for number in rows}:
            group = [row for number, row in rows.items() if number // SAMPLES == place]
            rewards = [reward for _, _, reward, _ in group]
            for ids, trained, reward, told in group:
                answer = [token for token, own in zip(ids, trained, strict=True) if own]
                program = program_in(TOKENIZER.decode(answer, skip_special_tokens=True))
                assert by_length(program) == ("passed" if reward else "wrong")
                assert told == pytest.approx((np.mean(rewards), np.std(rewards)), abs=1e-6)
            neutral += len(set(rewards)) == 1
        asked = len(rollouts(sandbox).asked.rows_of(step - 1))
        undecided += asked - len(rows)
        assert drawn.metrics["online/undecided"] == pytest.approx((asked - len(rows)) / asked)
        assert drawn.metrics["online/reward"] == pytest.approx(np.mean([reward for _, _, reward, _ in rows.values()]))
    assert undecided > 0
    assert neutral > 0


def test_equal_programs_of_a_question_are_run_once() -> None:
    sandbox = FakeSandbox(lambda program: "passed")
    draw(sandbox, max_new_tokens=1, samples=SAMPLES, temperature=0.2)
    assert len(set(sandbox.ran)) == len(sandbox.ran) < PER_STEP * SAMPLES


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_draw_together_what_one_draws_alone(ranks: int) -> None:
    """Four ranks have three questions: one of them only fills."""
    alone = draw(FakeSandbox(), 2)

    def of_rank(rank: int, reduce: Any) -> Drawn:
        return draw(FakeSandbox(), 2, Threads(rank, ranks, of=reduce))

    shares = Ranks(ranks).run(of_rank)
    together = [rows_of([b for b in share.batches if b.row_B]) for share in shares]
    assert {number: row for rows in together for number, row in rows.items()} == rows_of(alone.batches)
    assert sum(map(len, together)) == len(rows_of(alone.batches))
    assert len({len(share.batches) for share in shares}) == 1
    clocks = ("time/generation_s", "time/judging_s")
    for share in shares:
        assert {n: v for n, v in share.metrics.items() if n not in clocks} == {
            n: v for n, v in alone.metrics.items() if n not in clocks
        }


def test_a_step_is_the_same_when_it_is_drawn_again_and_another_step_is_not() -> None:
    first, again, other = (rows_of(draw(FakeSandbox(), step).batches) for step in (1, 1, 4))
    assert first == again
    assert first != other


def test_a_step_without_contrast_says_so() -> None:
    drawn = draw(FakeSandbox(lambda program: "wrong"))
    assert drawn.all_neutral
    assert drawn.metrics["online/neutral"] == 1.0
    assert not draw(FakeSandbox()).all_neutral


def test_a_step_that_nobody_can_judge_is_an_error() -> None:
    with pytest.raises(WmtpError, match="step 1: nobody could judge any answer, the first: because"):
        draw(FakeSandbox(lambda program: "sandbox_error"))


class Forgetful(torch.nn.Module):
    """An attention that leaves the cache alone."""

    def __init__(self, attention: torch.nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *arguments: Any, past_key_values: Any = None, **keywords: Any) -> Any:
        return self.attention(*arguments, past_key_values=None, **keywords)


def test_a_policy_that_cannot_be_decoded_is_refused_before_a_step() -> None:
    model = copy.deepcopy(MODEL)
    rollouts(FakeSandbox()).check(model)
    layer: Any = model.trunk_layers()[0]
    layer.self_attn = Forgetful(layer.self_attn)
    with pytest.raises(ModelError, match=r"online: .*does not run with a cache.*Leave `online` out"):
        rollouts(FakeSandbox()).check(copy.deepcopy(model))


def test_a_policy_without_weights_is_refused_where_its_config_says_enough() -> None:
    model = on_meta(MODEL)
    check_samples(model)
    model.base.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(ModelError, match="llama has linear_attention layers"):
        check_samples(model)


def test_code_in_a_fence_is_the_program() -> None:
    assert program_in("Sure:\n```python\nprint(1)\n```\nDone.") == "print(1)"
    assert program_in("print(1)\n") == "print(1)\n"


def test_questions_are_one_for_each_problem_and_other_tests_are_other_data() -> None:
    asked = questions([*RECORDS, Record("p0", "again", "pass", cases=(("", ""),))])
    assert [question.name for question in asked] == [record.problem_id for record in RECORDS]
    assert TOKENIZER.decode(asked[1].prompt) == "xx\n"
    other = questions([Record("p0", "x", "pass", cases=(("", "1"),)), *RECORDS[1:]])
    assert fingerprint(asked) == fingerprint(questions()) != fingerprint(other)


def test_a_problem_without_tests_and_a_prompt_without_room_are_refused_by_name() -> None:
    with pytest.raises(DataError, match="problem 'bare' has no tests"):
        questions([Record("bare", "x", "pass")])
    with pytest.raises(DataError, match=r"the prompt of problem 'p3' has 5 tokens; .* at most 4"):
        questions(longest=4)
    assert [question.name for question in questions(longest=4, drop_long=True)] == ["p0", "p1", "p2"]
    with pytest.raises(DataError, match="no question is left"):
        questions(longest=1, drop_long=True)
