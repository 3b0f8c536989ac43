#!/usr/bin/env bash
# The engine on a machine with one NVIDIA GPU, from this source tree and without network: the contract suite, full-size
# DeciDiffusion 2.0 and Stable Diffusion 1.5 beside stock diffusers, several batch sizes, and where the time goes.
# Takes about six minutes. Each part's figures are in OUT as soon as they are there.
#
#   tests/benchmarks/on_gpu.sh OUT [WHEEL...]
#
# Needs Python 3.11 or later with torch (CUDA), transformers, safetensors, numpy and pytest. diffusers comes as a wheel
# (about 6 MB):
#   pip download --no-deps --only-binary :all: --python-version 3.12 -d wheels diffusers==0.42.1
# PARTS chooses among contract, tuning, sizes and sd15; READY is how many seconds a contender has to get warm.
# To try it without a GPU: DEVICE=cpu.
set -euo pipefail
out=${1:?the folder for the results}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
for wheel in "$@"; do
  python3 -m zipfile -e "$wheel" "$unpacked"
done
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD:$unpacked HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
timeout "${LIMIT:-560}" python3 tests/benchmarks/on_gpu.py "$out" 2>&1 | tee "$out/log.txt"
