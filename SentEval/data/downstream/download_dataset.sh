#!/usr/bin/env bash
# Fetches the STS and transfer data of SentEval into this folder, in the layout its readers expect, and checks it.
#
#   bash SentEval/data/downstream/download_dataset.sh [--mirror URL] [TASK ...]
#
# TASK: only check these (default: all; SNLI where present). --mirror URL (or SENTEVAL_MIRROR): a folder that serves the
# archive under its own name. An interrupted download goes on where it stopped; what is complete is not fetched again.
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # started as `sh …`
set -euo pipefail

# file | source
ARCHIVES="
senteval.tar|https://huggingface.co/datasets/princeton-nlp/datasets-for-simcse/resolve/main/senteval.tar
"

# Published counts. task | file(s) below this folder, joined by + | lines in all of them (headers included) | what holds
# for each line (awk, columns between tabs). STS files: scored pairs, counted in the gold file.
FILES='
MR|MR/rt-polarity.pos+MR/rt-polarity.neg|10662|1
CR|CR/custrev.pos+CR/custrev.neg|3775|1
SUBJ|SUBJ/subj.objective|5000|1
SUBJ|SUBJ/subj.subjective|5000|1
MPQA|MPQA/mpqa.pos+MPQA/mpqa.neg|10606|1
SST2|SST/binary/sentiment-train|67349|$NF ~ /^[01] *$/
SST2|SST/binary/sentiment-dev|872|$NF ~ /^[01] *$/
SST2|SST/binary/sentiment-test|1821|$NF ~ /^[01] *$/
SST5|SST/fine/sentiment-train|8544|$0 ~ /^[0-4] /
SST5|SST/fine/sentiment-dev|1101|$0 ~ /^[0-4] /
SST5|SST/fine/sentiment-test|2210|$0 ~ /^[0-4] /
TREC|TREC/train_5500.label|5452|$0 ~ /^(ABBR|DESC|ENTY|HUM|LOC|NUM):[a-z]+ /
TREC|TREC/TREC_10.label|500|$0 ~ /^(ABBR|DESC|ENTY|HUM|LOC|NUM):[a-z]+ /
MRPC|MRPC/msr_paraphrase_train.txt|4077|NF >= 5 && (NR == 1 || $1 ~ /^[01]$/)
MRPC|MRPC/msr_paraphrase_test.txt|1726|NF >= 5 && (NR == 1 || $1 ~ /^[01]$/)
SICK|SICK/SICK_train.txt|4501|NF >= 5 && (NR == 1 || $4 ~ /^[0-9.]+$/)
SICK|SICK/SICK_trial.txt|501|NF >= 5 && (NR == 1 || $4 ~ /^[0-9.]+$/)
SICK|SICK/SICK_test_annotated.txt|4928|NF >= 5 && (NR == 1 || $4 ~ /^[0-9.]+$/)
STSBenchmark|STS/STSBenchmark/sts-train.csv|5749|NF >= 7 && $5 ~ /^[0-9.]+$/
STSBenchmark|STS/STSBenchmark/sts-dev.csv|1500|NF >= 7 && $5 ~ /^[0-9.]+$/
STSBenchmark|STS/STSBenchmark/sts-test.csv|1379|NF >= 7 && $5 ~ /^[0-9.]+$/
SNLI|SNLI/labels.train+SNLI/labels.dev+SNLI/labels.test|569033|$0 ~ /^(entailment|neutral|contradiction)$/
SNLI|SNLI/s1.train+SNLI/s1.dev+SNLI/s1.test|569033|1
SNLI|SNLI/s2.train+SNLI/s2.dev+SNLI/s2.test|569033|1
'

# STS year | subset=scored pairs ... (in all: 3108, 1500, 3750, 3000, 1186)
STS="
STS12|MSRpar=750 MSRvid=750 SMTeuroparl=459 surprise.OnWN=750 surprise.SMTnews=399
STS13|FNWN=189 headlines=750 OnWN=561
STS14|deft-forum=450 deft-news=300 headlines=750 images=750 OnWN=750 tweet-news=750
STS15|answers-forums=375 answers-students=750 belief=375 headlines=750 images=750
STS16|answer-answer=254 headlines=249 plagiarism=230 postediting=244 question-question=209
"

usage() { sed -n '2,7s/^# \{0,1\}//p' download_dataset.sh; }

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=../fetch.sh
. ../fetch.sh

tasks() { printf '%s%s' "$FILES" "$STS" | sed -n 's/|.*//p' | awk '!seen[$0]++'; }

wanted() { # wanted TASK: named on the command line, or any where none is named (SNLI only if the archive has it)
    if [ ${#WANTED[@]} -eq 0 ]; then
        [ "$1" != SNLI ] || [ -d SNLI ]
    else
        printf '%s\n' "${WANTED[@]}" | grep -Fxq "$1"
    fi
}

# check_files: prints one complaint a line
check_files() {
    local task files count holds file found bad
    printf '%s' "$FILES" | while IFS='|' read -r task files count holds; do
        [ -n "$task" ] && wanted "$task" || continue
        found=0
        for file in ${files//+/ }; do
            if [ ! -f "$file" ]; then
                echo "$task: $file is missing"
                continue 2
            fi
            bad="$(malformed "$file" "$holds")"
            [ -z "$bad" ] || echo "$task: $file, line $bad is not in the published format"
            found=$((found + $(lines "$file")))
        done
        [ "$found" -eq "$count" ] || echo "$task: ${files//+/ and } hold $found lines, $count are published"
    done
}

check_sts() {
    local year subsets entry subset count folder input gold found bad
    printf '%s' "$STS" | while IFS='|' read -r year subsets; do
        [ -n "$year" ] && wanted "$year" || continue
        folder="STS/$year-en-test"
        for entry in $subsets; do
            subset="${entry%=*}" count="${entry#*=}"
            input="$folder/STS.input.$subset.txt" gold="$folder/STS.gs.$subset.txt"
            if [ ! -f "$input" ] || [ ! -f "$gold" ]; then
                echo "$year: $input or $gold is missing"
                continue
            fi
            bad="$(malformed "$input" 'NF >= 2')"
            [ -z "$bad" ] || echo "$year: $input, line $bad is no pair of sentences between a tab"
            bad="$(malformed "$gold" '$0 ~ /^[0-9.]*[[:space:]]*$/')"
            [ -z "$bad" ] || echo "$year: $gold, line $bad is no score"
            [ "$(lines "$input")" -eq "$(lines "$gold")" ] || echo "$year: $input and $gold differ in their number of lines"
            found="$(awk 'NF' "$gold" | wc -l)"
            [ "$found" -eq "$count" ] || echo "$year: $gold holds $found scores, $count are published"
        done
    done
}

parse_arguments "$@"
for task in ${WANTED[@]+"${WANTED[@]}"}; do
    tasks | grep -Fxq "$task" || fail 2 "unknown task $task; choose from $(tasks | paste -sd' ' -)"
done

complaints="$(check_files; check_sts)"
if [ -n "$complaints" ]; then
    while IFS='|' read -r archive url; do
        [ -n "$archive" ] || continue
        fetch "$archive" "$url"
        unpack "$archive" .unpacked
        # The task folders lie at the top of the archive or below one or two folders.
        for folder in .unpacked .unpacked/* .unpacked/*/*; do
            [ -d "$folder/STS" ] || [ -d "$folder/MR" ] || continue
            for part in "$folder"/*/; do cp -R "$part" .; done
            break
        done
        rm -rf .unpacked
    done <<<"$ARCHIVES"
    complaints="$(check_files; check_sts)"
    if [ -n "$complaints" ]; then
        printf '%s\n' "$complaints" >&2
        fail 1 "the data is not what was published (see above); the archives are kept for a look, remove them to fetch them again"
    fi
    while IFS='|' read -r archive url; do rm -f "${archive:-.none}"; done <<<"$ARCHIVES"
fi
echo "complete and checked: $(tasks | while read -r task; do ! wanted "$task" || echo "$task"; done | paste -sd' ' -)"
