#!/usr/bin/env bash
# Fetches the data of the ten probing tasks into this folder and checks it.
#
#   bash SentEval/data/probing/download_probing.sh [--mirror URL] [FILE ...]
#
# FILE: only these, for instance bigram_shift.txt (default: all ten). --mirror URL (or SENTEVAL_MIRROR): a folder that
# serves the files under their own names. An interrupted download goes on where it stopped.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh …`
set -euo pipefail

SOURCE="https://raw.githubusercontent.com/facebookresearch/SentEval/main/data/probing"

# file | number of classes
FILES="
sentence_length.txt|6
word_content.txt|1000
tree_depth.txt|8
top_constituents.txt|20
bigram_shift.txt|2
past_present.txt|2
subj_number.txt|2
obj_number.txt|2
odd_man_out.txt|2
coordination_inversion.txt|2
"

# Published: 100 000 training, 10 000 validation and 10 000 test rows, a few less or more where classes were balanced.
LEAST="tr=99000 va=9900 te=9900"
MOST="tr=101000 va=10100 te=10100"

usage() { sed -n '2,7s/^# \{0,1\}//p' download_probing.sh; }

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=../fetch.sh
. ../fetch.sh

# check FILE CLASSES: prints one complaint a line
check() {
    local file="$1" classes="$2" bad
    bad="$(malformed "$file" 'NF >= 3 && $1 ~ /^(tr|va|te)$/')"
    [ -z "$bad" ] || echo "$file: line $bad is not: tr, va or te, label, sentence between tabs"
    LC_ALL=C awk -F '\t' -v file="$file" -v classes="$classes" -v least="$LEAST" -v most="$MOST" '
        { rows[$1]++; if (!($2 in seen)) { seen[$2] = 1; labels++ } }
        END {
            if (labels != classes) printf "%s: %d classes, %d are published\n", file, labels, classes
            split(least, low, /[ =]/); split(most, high, /[ =]/)
            for (i = 1; i <= 5; i += 2)
                if (rows[low[i]] < low[i + 1] || rows[low[i]] > high[i + 1])
                    printf "%s: %d rows of part %s, %d to %d are published\n", file, rows[low[i]], low[i], low[i + 1], high[i + 1]
        }' "$file"
}

parse_arguments "$@"
names="$(printf '%s' "$FILES" | sed -n 's/|.*//p')"
for file in ${WANTED[@]+"${WANTED[@]}"}; do
    printf '%s\n' "$names" | grep -Fxq "$file" || fail 2 "unknown file $file; choose from $(printf '%s\n' "$names" | paste -sd' ' -)"
done

complaints=""
while IFS='|' read -r file classes; do
    [ -n "$file" ] || continue
    [ ${#WANTED[@]} -eq 0 ] || printf '%s\n' "${WANTED[@]}" | grep -Fxq "$file" || continue
    fetch "$file" "$SOURCE/$file"
    complaints+="$(check "$file" "$classes")"
    echo "checked $file" >&2
done <<<"$FILES"
if [ -n "$complaints" ]; then
    printf '%s\n' "$complaints" >&2
    fail 1 "the data is not what was published (see above); remove the file and run this again"
fi
echo "complete and checked: $([ ${#WANTED[@]} -eq 0 ] && printf '%s\n' "$names" | paste -sd' ' - || echo "${WANTED[*]}")"
