#!/usr/bin/env bash
# Fetches the NLI triplets of supervised SimCSE (csv with sent0, sent1, hard_neg) and counts its lines.
#
#   bash scripts/download_nli.sh [--mirror URL] [FOLDER]
#
# FOLDER: where the file goes (default: data). --mirror URL (or SENTEVAL_MIRROR): a folder that serves the file under its own
# name. An interrupted download goes on where it stopped; what is complete is not fetched again.
# Own triplets from SNLI and MNLI: scripts/make_nli_triplets.py.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh …`
set -euo pipefail

FILE=nli_for_simcse.csv
URL=https://huggingface.co/datasets/princeton-nlp/datasets-for-simcse/resolve/main/$FILE
LINES=275602 # 275601 triplets and the header
HEADER=sent0,sent1,hard_neg

usage() { sed -n '2,8s/^# \{0,1\}//p' "$SCRIPT"; }

SCRIPT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")"
# shellcheck source=../SentEval/data/fetch.sh
. "$(dirname "$SCRIPT")/../SentEval/data/fetch.sh"

parse_arguments "$@"
[ "${#WANTED[@]}" -le 1 ] || fail 2 "one folder at most, got ${WANTED[*]}"
mkdir -p "${WANTED[0]:-data}"
cd "${WANTED[0]:-data}"
fetch "$FILE" "$URL"
header="$(head -n 1 "$FILE" | tr -d '\r')"
[ "$header" = "$HEADER" ] || fail 1 "$PWD/$FILE begins with '$header' instead of '$HEADER'; remove it and run this again"
found="$(lines "$FILE")"
[ "$found" -eq "$LINES" ] || fail 1 "$PWD/$FILE has $found lines, published are $LINES; remove it and run this again"
echo "$PWD/$FILE: $((found - 1)) triplets"
