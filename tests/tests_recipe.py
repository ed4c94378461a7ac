"""The small recipe and what distinguishes each arm from it."""

from pathlib import Path

from wmtp.storage import resolve

SMALL = Path(__file__).parent / "e2e" / "small_recipe.yaml"
RECIPE = SMALL.read_text()

ARMS = {
    "critic": ["objective={{kind: value, loss: pairwise}}"],
    "baseline": [],
    "verifiable": ["objective={{weighting: {{scheme: critic, critic: '{runs}/critic/final', whiten: ema}}}}"],
    "rho1": ["objective={{weighting: {{scheme: rho1, reference: '{runs}/baseline/final'}}}}"],
}


def with_few_rows(folder: Path, train: int = 160, validation: int = 60) -> Path:
    """The small recipe on the first rows of its data, for tests that build many runs."""
    text = RECIPE
    for role, count in (("train", train), ("validation", validation)):
        lines = resolve(f"embedded://problems_{role}.jsonl").read_text().splitlines(keepends=True)
        path = folder / f"{role}.jsonl"
        path.write_text("".join(lines[:count]))
        text = text.replace(f"embedded://problems_{role}.jsonl", str(path))
    recipe = folder / "recipe.yaml"
    recipe.write_text(text)
    return recipe
