"""What is an error of ours and what is a defect."""

from __future__ import annotations

import pytest
import torch

from wmtp.errors import out_of_memory


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
