"""Run by vLLM's own interpreter: serve a folder, and print the tokens and how many drafts were accepted at each place.

Arguments: the folder, the prompt's ids and the speculative configuration as JSON.
"""

import json
import sys

from vllm import LLM, SamplingParams

folder, prompt, speculative = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
engine = LLM(
    folder,
    speculative_config=speculative,
    skip_tokenizer_init=True,
    dtype="float32",
    max_model_len=48,
    max_num_seqs=1,
    enforce_eager=True,
    disable_log_stats=False,
)
options = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, detokenize=False)
(answer,) = engine.generate([{"prompt_token_ids": prompt}], options, use_tqdm=False)
metrics = {metric.name: metric for metric in engine.get_metrics()}
said = {
    "tokens": list(answer.outputs[0].token_ids),
    "drafts": metrics["vllm:spec_decode_num_drafts"].value,
    "accepted": metrics["vllm:spec_decode_num_accepted_tokens_per_pos"].values,
}
sys.stdout.write(json.dumps(said) + "\n")
