#!/bin/sh
# The networks of advice_study: about five minutes of one processor. Usage: advice_runs.sh RUNS
set -eu
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
for data in mnist digits; do python -m tests.studies.integer.parts $data "$1/$data-parts"; done
train() { # DATA NAME OPTIONS
    data=$1 name=$2
    shift 2
    repvgg-ref train --recipe digits --data "$runs/$data-parts" --out "$runs/$data-$name" \
        --evaluate-every 5 --threads 1 --seed 0 "$@"
}
runs=$1
mnist="--size 28 --shift 2 --epochs 20"
train mnist repvgg $mnist --block repvgg
train mnist qarepvgg $mnist --block qarepvgg
train mnist custom-l2 $mnist --block repvgg --custom-l2
train digits repvgg --epochs 30 --block repvgg
train digits qarepvgg --epochs 30 --block qarepvgg
