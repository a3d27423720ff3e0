#!/usr/bin/env bash
# Distil a teacher into one encoder. Without arguments: the quick one on the shipped sample, offline, in minutes on 2 CPU cores.
#
#   bash run_distill.sh
#   bash run_distill.sh --config distill/cacse_bert --teacher runs/cacse_bert_base/export --train_file wiki1m_for_simcse.txt
#   bash run_distill.sh --nproc 4 --config distill/cacse_bert …     # 4 processes, negatives shared
#
# Everything after the script's name goes to `cacse-trainer distill` (--help tells the options). ACCELERATE_CONFIG=FILE
# launches through accelerate with that file.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh …`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
[ $# -gt 0 ] || set -- --config distill/quickstart --overwrite_output_dir
launch distill "$@"
