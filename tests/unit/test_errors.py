"""What is an error of ours and what is a defect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import torch
from pydantic import BaseModel, model_validator

from wmtp.errors import first_line, out_of_memory


def test_an_allocation_that_torch_cannot_make_is_out_of_memory() -> None:
    """The real error of the CPU's allocator; of an accelerator's there is the class."""
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    said = out_of_memory(refused.value)
    assert said is not None
    assert str(said).startswith("out of memory: ")
    assert "1152921504606846976" in str(said)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")) is not None


@pytest.mark.parametrize("problem", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("memory")])
def test_any_other_error_is_not(problem: Exception) -> None:
    assert out_of_memory(problem) is None


class Card(BaseModel):
    """What another library refuses, for a real error of it."""

    heads: int
    kind: Literal["value"]

    @model_validator(mode="after")
    def _fits(self) -> Card:
        if self.heads < 1:
            raise ValueError("there must be a head")
        return self


def refused(work: Callable[[], object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 whatever it raises is what is looked at
        work()
    return caught.value


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (refused(lambda: Card.model_validate({"heads": "x", "kind": "a"})), "heads: Input should be a valid integer, "),
        (refused(lambda: Card.model_validate({"heads": 0, "kind": "value"})), "there must be a head"),
        (refused(lambda: Path("/nowhere/at/all").read_text()), "No such file or directory: /nowhere/at/all"),
        (OSError("no number"), "no number"),
        (RuntimeError("Error(s) in loading:\n\tMissing key: a\n\tand more"), "Error(s) in loading: Missing key: a"),
        (ValueError(""), "ValueError"),
    ],
)
def test_an_error_of_another_library_is_told_on_one_line(problem: Exception, line: str) -> None:
    said = first_line(problem)
    assert said.startswith(line)
    assert "\n" not in said
    assert "input_type" not in said
