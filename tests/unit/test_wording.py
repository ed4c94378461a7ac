"""Words that depend on a figure."""

from __future__ import annotations

import pytest

from wmtp.wording import counted


@pytest.mark.parametrize(("count", "told"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1234567, "1,234,567 rows")])
def test_one_thing_is_singular_and_any_other_number_plural(count: int, told: str) -> None:
    assert counted(count, "row") == told
