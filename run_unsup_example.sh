#!/usr/bin/env bash
# Train CACSE. Without arguments: the quick start on the shipped sample, offline, in a few minutes on 2 CPU cores.
#
#   bash run_unsup_example.sh
#   bash run_unsup_example.sh --learning_rate 1e-5 --max_steps 20      # without --config: the quick start, changed
#   bash run_unsup_example.sh --config cacse/bert_base --train_file wiki1m_for_simcse.txt --output_dir runs/cacse
#   bash run_unsup_example.sh --nproc 4 --config cacse/bert_base --train_file …     # 4 processes, negatives shared
#
# Everything after the script's name goes to `cacse-trainer train` (--help tells the options). ACCELERATE_CONFIG=FILE launches
# through accelerate with that file.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh …`
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/scripts/launch.sh"
with_quickstart "$@"
launch train "${arguments[@]}"
