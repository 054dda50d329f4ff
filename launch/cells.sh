#!/usr/bin/env bash
# One cell of the paper's table 2: RAMP and then questions, each by SFT or by RL, then the evaluation
# and the report of all cells that are done. The same command again goes on where it was stopped.
set -euo pipefail

usage='usage: cells.sh CELL MODEL --tokenizer=FOLDER [--init=FOLDER] [--data=FOLDER]
  CELL    sft-sft, rl-sft, sft-rl, rl-rl (how RAMP and questions are trained), a baseline without
          RAMP, none-sft or none-rl, or start: MODEL as it is
  MODEL   a name of configs/common.py; with ,runlocal after it a smoke run
  --tokenizer  folder with tokenizer.json (needed)
  --init       HF folder that training starts from; default: random weights
  --data       what build_ramp wrote, with its cache/; default: runs/ramp
Runs with the python on PATH; writes runs/cells.'

fail() {
  echo "error: $1" >&2
  exit 2
}

[ $# -ge 2 ] || fail "CELL and MODEL are needed
$usage"
cell=$1 model=$2
shift 2
tokenizer='' init='' data=runs/ramp
while [ $# -gt 0 ]; do
  case $1 in
    --tokenizer=*) tokenizer=${1#*=} ;;
    --init=*) init=${1#*=} ;;
    --data=*) data=${1#*=} ;;
    *) fail "$1 is not an option
$usage" ;;
  esac
  shift
done
[ -n "$tokenizer" ] || fail "--tokenizer is needed
$usage"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH=$root

# The trainings of the cell in order, one a line; none of `start`.
known='import sys; from configs.common import CELLS; cell = sys.argv[1]
if cell != "start" and cell not in CELLS:
    sys.exit(f"error: {cell} is not a cell; choices: {chr(44).join(CELLS)},start")
print(*CELLS.get(cell, ()), sep="\n")'
trainings=$(python -c "$known" "$cell") || exit 2

# A main of this checkout; relative paths are relative to where the command was given.
run() {
  local main=$1 config=$2
  shift 2
  echo "cells: $cell: $config" >&2
  python -m "masksearch_jax.$main" "--config=$root/configs/$config" "$@"
}

from=${init:+"--config.init=$init"}
for stage in $trainings; do
  run "train_${stage#*_}" "$stage.py:$model,$cell" "--config.tokenizer=$tokenizer" \
    "--config.data=$data/cache" ${from:+"$from"}
  from=''
done
if [ "$cell" = start ]; then
  run evaluate "evaluate.py:$model" "--config.tokenizer=$tokenizer" "--config.data=$data" \
    --config.search.top_k=3 --config.search.max_passages=3 --config.search.max_queries=3 \
    --config.workdir=runs/cells/eval/start "--config.init=$init"
else
  run evaluate "evaluate.py:$model,$cell" "--config.tokenizer=$tokenizer" "--config.data=$data"
fi
run report report.py:runs/cells
