#!/usr/bin/env bash
# The study on Fashion-MNIST, one process, resumable: stop it at any time and run it again.
# usage: reports/study.sh FOLDER [DATA]     DATA: idx:FOLDER with the four files of Fashion-MNIST
# `timeout 9000 reports/study.sh FOLDER` is a part of 150 minutes; what it was at goes on from its last epoch.
# PART=3 runs one part alone; EPOCHS says how long each trial is trained (6). The dense references, 48 epochs each, lie in
# reports/study/NETWORK/dense/best.pt; DENSE_EPOCHS=48 trains them again, bit by bit the same on a machine of the same kind.
# At the end reports/study/ holds each network's figures and the page made of them. What is done there already is not done
# again, unless EPOCHS or DENSE_EPOCHS is given.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
study=$1
data=${2:-idx:/work/shared/data/fashion-mnist}
python=${PYTHON:-python}
lcnn="$python -m lcnn_analyze"
epochs=${EPOCHS:-6}
export OMP_NUM_THREADS=1

dense() { # NETWORK: its dense reference: the one kept here, or trained, gone on with where it was stopped
  local folder=$study/$1/dense kept=$here/study/$1/dense/best.pt
  if [ -z "${DENSE_EPOCHS:-}" ] && [ -f "$kept" ] && [ ! -e "$folder" ]; then
    mkdir -p "$folder"
    cp "$kept" "$folder/best.pt"
  fi
  if [ -f "$folder/best.pt" ] && [ ! -f "$folder/state.pt" ]; then return; fi  # a copy, which is not trained on
  if grep -qs '"TrainingFinished"' "$folder/log.jsonl"; then return; fi
  if [ -f "$folder/state.pt" ]; then
    $lcnn train --resume "$folder" --log-every 100
  else
    $lcnn train --model "$1" --data "$data" --epochs "${DENSE_EPOCHS:-48}" --schedule one-cycle --lr 0.15 \
      --batch-size 64 --weight-decay 5e-4 --shift 1 --log-every 100 -o "$folder"
  fi
}

sweep() { # NETWORK OPTION...: adds to the network's journal; what is done is not done again
  local network=$1 known=()
  shift
  # What is done there is of these networks, trained as long as that.
  if [ -z "${EPOCHS:-}${DENSE_EPOCHS:-}" ] && [ -f "$here/study/$network.json" ]; then known=(--from-report "$here/study/$network.json"); fi
  $lcnn spectrum "$study/$network/dense/best.pt" --data "$data" --epochs "$epochs" --batch-size 64 --keep all \
    -o "$study/$network/spectrum" ${known[@]+"${known[@]}"} "$@"
}

# What starts from scratch is trained twice as long as what starts from the dense reference.
main=from-dense,pruning,pruning:ranking=fisher,published:epochs=12
others=lookup-only,converted,low-rank,narrow:epochs=12
ingredients=ranking=magnitude,distillation=0,forms=mixed:start=scratch,thresholds=soft,regrowth=0.2,layer_budgets=uniform,layer_budgets=measured
ingredients=$ingredients,forms=mixed,schedule=cosine,schedule=constant

control() { # NETWORK: what the epochs that a trial adds do for the dense reference itself, all but whole
  $lcnn train --from "$study/$1/dense/best.pt" --method pruning --speedup 1.01 --distillation 0 --data "$data" \
    --epochs "$epochs" --batch-size 64 --seed 0 --overwrite -o "$study/$1/control"
}

part() {
  case $1 in
    1) dense small-resnet ;;
    2) dense small-alexnet ;;
    3) sweep small-resnet --methods $main --speedups 10 --seeds 0 ;;
    4) sweep small-alexnet --methods $main --speedups 10 --seeds 0 ;;
    5) sweep small-resnet --methods $others --speedups 10 --seeds 0 ;;
    6) sweep small-resnet --methods $main --speedups 3,30 --seeds 0 ;;
    7) sweep small-resnet --methods $main --speedups 10,30,3 --seeds 1,2 ;;
    8) sweep small-resnet --methods from-dense --ablate $ingredients --speedups 10 --seeds 0 ;;
    9) sweep small-alexnet --methods $others --speedups 10 --seeds 0 ;;
    10) sweep small-resnet --methods $others --speedups 3,30 --seeds 0 ;;
    11) sweep small-alexnet --methods $main,$others --speedups 3,30 --seeds 0 ;;
    12) sweep small-resnet --methods from-dense,pruning --speedups 5,20,40 --seeds 0 ;;
    13) sweep small-resnet --methods narrow:epochs=12,lookup-only --speedups 10,30 --seeds 1,2 ;;
    14) sweep small-resnet --methods post-training --speedups 2,4,10 --seeds 0 ;;
    15) sweep small-resnet --methods from-dense:epochs=12,pruning:epochs=12 --speedups 30 --seeds 0,1,2 ;;
    16) for network in small-resnet small-alexnet; do sweep $network --methods from-dense:forms=mixed --speedups 10,30,3 --seeds 0,1,2; done ;;
    17) sweep small-resnet --methods converted --speedups 10 --seeds 1,2
        sweep small-resnet --methods converted:lr=0.05:shift=1 --speedups 10 --seeds 0  # as from-dense and pruning train
        sweep small-resnet --methods from-dense:lr=0.02,from-dense:lr=0.02:shift=0,pruning:lr=0.02:shift=0 --speedups 10 --seeds 0
        sweep small-resnet --methods from-dense:lr=0.02:shift=0 --speedups 30 --seeds 0 ;;
    18) sweep small-alexnet --methods from-dense,pruning --speedups 10,30 --seeds 1,2
        sweep small-alexnet --methods from-dense --speedups 3 --seeds 1,2 ;;
    19) for network in small-resnet small-alexnet; do control $network; done ;;
  esac
}

if [ -n "${PART:-}" ]; then
  part "$PART"
else
  for number in $(seq 19); do part "$number"; done
fi

# The page, from whatever is there; of the networks only those on the front are kept when all is done.
mkdir -p "$here/study"
for network in small-resnet small-alexnet; do
  if [ -f "$study/$network/spectrum/spectrum.json" ]; then
    if [ -z "${PART:-}" ]; then sweep "$network" --report-only --keep front; fi
    cp "$study/$network/spectrum/spectrum.json" "$here/study/$network.json"
  fi
done
$python -m lcnn_analyze.documents study -o "$here"
