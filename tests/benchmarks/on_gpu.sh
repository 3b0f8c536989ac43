#!/usr/bin/env bash
# The engine's benchmark on a machine with one NVIDIA GPU: full-size DeciDiffusion 2.0 beside stock diffusers, then
# Stable Diffusion 1.5 on the same loop. Under nine minutes, from this source tree, without network.
#
#   tests/benchmarks/on_gpu.sh OUT [diffusers-0.42.1-py3-none-any.whl]
#
# Needs Python 3.11 or later with torch (CUDA), transformers, safetensors and numpy; the wheel, if diffusers is not
# installed: pip download --no-deps diffusers==0.42.1. Writes OUT/engine.json and OUT/engine.txt. To try it without a GPU:
# DEVICE=cpu PRESET=tiny COMPARE=tiny-sd OPTIONS="--runtime torch".
set -euo pipefail
out=${1:?the folder for the results}
wheel=${2:-}
mkdir -p "$out"
out=$(cd "$out" && pwd)
[ -z "$wheel" ] || wheel=$(realpath "$wheel")
cd "$(dirname "$0")/../.."
export PYTHONPATH=$PWD
if [ -n "$wheel" ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  python3 -m zipfile -e "$wheel" "$unpacked"
  PYTHONPATH=$PYTHONPATH:$unpacked
fi
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
timeout 530 python3 -m worker.bench --preset "${PRESET:-full}" --compare "${COMPARE:-sd15}" --device "${DEVICE:-cuda}" \
  --batch 16 --batch 1 --rounds 3 --budget 400 --json "$out/engine.json" ${OPTIONS:-} | tee "$out/engine.txt"
