"""The small recipe and what distinguishes each arm from it."""

from pathlib import Path

RECIPE = (Path(__file__).parent / "small_recipe.yaml").read_text()

ARMS = {
    "critic": ["objective={{kind: value, loss: pairwise}}"],
    "baseline": [],
    "verifiable": ["objective={{weighting: {{scheme: critic, critic: '{runs}/critic/final', whiten: ema}}}}"],
    "rho1": ["objective={{weighting: {{scheme: rho1, reference: '{runs}/baseline/final'}}}}"],
}
