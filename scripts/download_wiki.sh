#!/usr/bin/env bash
# Fetches Wiki1M, the million English Wikipedia sentences that SimCSE, DiffCSE, CACSE and others train on, and counts its lines.
#
#   bash scripts/download_wiki.sh [--mirror URL] [FOLDER]
#
# FOLDER: where the file goes (default: data). --mirror URL (or SENTEVAL_MIRROR): a folder that serves the file under its own
# name. An interrupted download goes on where it stopped; what is complete is not fetched again.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh …`
set -euo pipefail

FILE=wiki1m_for_simcse.txt
URL=https://huggingface.co/datasets/princeton-nlp/datasets-for-simcse/resolve/main/$FILE
LINES=1000000

usage() { sed -n '2,7s/^# \{0,1\}//p' "$SCRIPT"; }

SCRIPT="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")"
# shellcheck source=../SentEval/data/fetch.sh
. "$(dirname "$SCRIPT")/../SentEval/data/fetch.sh"

parse_arguments "$@"
[ "${#WANTED[@]}" -le 1 ] || fail 2 "one folder at most, got ${WANTED[*]}"
mkdir -p "${WANTED[0]:-data}"
cd "${WANTED[0]:-data}"
fetch "$FILE" "$URL"
found="$(lines "$FILE")"
[ "$found" -eq "$LINES" ] || fail 1 "$PWD/$FILE has $found lines, published are $LINES; remove it and run this again"
echo "$PWD/$FILE: $found sentences"
