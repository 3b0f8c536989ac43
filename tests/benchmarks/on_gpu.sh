#!/usr/bin/env bash
# The engine on a machine with one NVIDIA GPU, from this source tree and without network: full-size DeciDiffusion 2.0 and
# Stable Diffusion 1.5 beside stock diffusers. In parts, in order of value, each of at most LIMIT (480) seconds:
#
#   contract     the contract suite and the kernels' tests on the GPU
#   correctness  pictures in FP16 beside stock diffusers in float32
#   sweep        batches of 1 to 32
#   tuning       kernels, attention and sums that are tried, and CUDA graphs on and off
#   kernels      where a batch's time goes, by kind of kernel
#   sd15         Stable Diffusion 1.5
#   cold         a first and a second start
#   worker       whole workers with Postgres, Redis and an S3 server: one cold, one that is killed, one with a safety
#                checker; only if PARTS names it, since it needs the package with its extra `local`
#
#   tests/benchmarks/on_gpu.sh OUT [WHEEL...]
#
# Each part's figures are in OUT/PART.json as soon as they are there; a part that has its file is not run again, so the
# same command goes on where it was cut off. PARTS="sweep kernels" chooses. Models and compiled kernels stay in SCRATCH
# (/tmp/presswork-gpu). Needs Python 3.11 or later with torch (CUDA), transformers, safetensors, numpy and pytest;
# diffusers comes as a wheel (about 6 MB):
#   pip download --no-deps --only-binary :all: --python-version 3.12 -d wheels diffusers==0.42.1
# READY is how many seconds a contender has to get warm. To try it without a GPU: DEVICE=cpu.
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
export SCRATCH=${SCRATCH:-/tmp/presswork-gpu}
for part in ${PARTS:-contract correctness sweep tuning kernels sd15 cold}; do
  if [ -e "$out/$part.json" ]; then
    echo "$part: done before"
    continue
  fi
  timeout "${LIMIT:-480}" "${PYTHON:-python3}" tests/benchmarks/on_gpu.py "$part" "$out" 2>&1 | tee "$out/$part.log" ||
    echo "$part: not finished"
done
