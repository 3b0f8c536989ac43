#!/usr/bin/env bash
# The engine's benchmark on a machine with one NVIDIA GPU: full-size DeciDiffusion 2.0 beside stock diffusers, then
# Stable Diffusion 1.5 on the same loop, from this source tree and without network. Begins nothing new after 400 s and
# ends at 530 s. It writes what it has measured by then to OUT/engine.json and OUT/engine.txt.
#
#   tests/benchmarks/on_gpu.sh OUT [WHEEL...]
#
# Needs Python 3.11 or later with torch (CUDA), transformers, safetensors and numpy. diffusers and its other requirements
# come as wheels (about 15 MB), for the GPU machine's Python:
#   pip download --no-deps --only-binary :all: --python-version 3.12 -d wheels diffusers==0.42.1 \
#     pillow requests certifi charset-normalizer idna urllib3 importlib_metadata zipp
# To try it without a GPU: DEVICE=cpu PRESET=tiny COMPARE=tiny-sd OPTIONS="--runtime torch".
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
# shellcheck disable=SC2086  OPTIONS are words
timeout 530 python3 -m worker.bench --preset "${PRESET:-full}" --compare "${COMPARE:-sd15}" \
  --device "${DEVICE:-cuda}" --batch 16 --batch 1 --rounds 3 --budget 400 --json "$out/engine.json" \
  ${OPTIONS:-} | tee "$out/engine.txt"
