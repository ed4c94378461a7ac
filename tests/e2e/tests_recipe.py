"""The small recipe and what distinguishes each arm from it."""

RECIPE = """
device: cpu
num_threads: 1
model:
  architecture:
    model_type: llama
    hidden_size: 16
    intermediate_size: 32
    num_hidden_layers: 2
    num_attention_heads: 2
    max_position_embeddings: 256
    bos_token_id: 0
    eos_token_id: 1
    pad_token_id: 2
  tokenizer: embedded://tiny-llama
  heads: {num_heads: 3}
data:
  train: {path: "embedded://problems_train.jsonl"}
  validation: {path: "embedded://problems_validation.jsonl"}
  max_length: 128
objective: {kind: mtp}
optim: {lr: 1e-2, warmup_steps: 2}
train: {steps: 10, batch_size: 8, micro_batch_size: 4, log_every: 1, eval_every: 5, eval_batches: 2, seed: 7}
checkpoint: {every: 4, keep_last: 2}
"""

ARMS = {
    "critic": ["objective={{kind: value, loss: pairwise}}"],
    "baseline": [],
    "verifiable": ["objective={{weighting: {{scheme: critic, critic: '{runs}/critic/final', whiten: ema}}}}"],
    "rho1": ["objective={{weighting: {{scheme: rho1, reference: '{runs}/baseline/final'}}}}"],
}
