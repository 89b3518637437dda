#!/usr/bin/env bash
# The study on Fashion-MNIST, one process, resumable: stop it at any time and run it again.
# usage: reports/study.sh FOLDER [DATA]     DATA: idx:FOLDER with the four files of Fashion-MNIST
set -euo pipefail
study=$1
data=${2:-idx:/work/shared/data/fashion-mnist}
lcnn="${PYTHON:-python} -m lcnn_analyze"
export OMP_NUM_THREADS=1

# 1. The dense reference, 12 epochs.
if ! grep -qs '"TrainingFinished"' "$study/dense/log.jsonl"; then
  if [ -f "$study/dense/state.pt" ]; then
    $lcnn train --resume "$study/dense" --log-every 100
  else
    $lcnn train --model small-resnet --data "$data" --epochs 12 --schedule one-cycle --lr 0.15 --batch-size 64 \
      --weight-decay 5e-4 --shift 1 --log-every 100 -o "$study/dense"
  fi
fi

# 2. Part by part, each adding to one journal; what is done is not done again.
spectrum="$lcnn spectrum $study/dense/best.pt --data $data --epochs 4 --batch-size 64 -o $study/spectrum"
$spectrum --methods from-dense,pruning,published --speedups 10 --seeds 0
$spectrum --methods converted,lookup-only,narrow --speedups 10 --seeds 0
$spectrum --methods from-dense,pruning,published --speedups 3,30 --seeds 0
$spectrum --methods from-dense,pruning,published --speedups 3,10,30 --seeds 0,1,2
$spectrum --methods converted,lookup-only,narrow --speedups 3,30 --seeds 0
