#!/usr/bin/env bash
# Several hosts without a scheduler: run this on each, with the same HEAD and NODES, and NODE_RANK from 0 on.
#   HEAD=10.0.0.1 NODES=2 NODE_RANK=0 GPUS=8 WMTP_RUNS=/shared/runs deploy/torchrun.sh optim.lr=1e-5
# One host needs none of this: wmtp train --ranks 8 --restarts 3 ...
set -euo pipefail
: "${HEAD:?name or address of the first host}" "${NODES:?number of hosts}" "${NODE_RANK:?number of this host, from 0}"
: "${GPUS:?ranks on each host}" "${WMTP_RUNS:?a folder that all hosts share}"

# Seconds that ranks have to save after a signal; less than whoever stops this script waits before it kills.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${STOP_TIMEOUT:-150}"

exec torchrun --nnodes "$NODES" --node-rank "$NODE_RANK" --nproc-per-node "$GPUS" --max-restarts 0 \
  --master-addr "$HEAD" --master-port "${PORT:-29500}" \
  -m wmtp train --config configs/multinode.yaml --recipe recipes/baseline_6.7b_4xa100.yaml \
  --out "$WMTP_RUNS/baseline" --resume auto "$@"
