# Shared by the download scripts (sourced, not run): fetch with resume, remember hashes, unpack safely, count and check.
# Messages go to standard error; exit 2: something the caller has to mend (tool, network, argument), 1: wrong data.

fail() { # fail CODE MESSAGE
    echo "$(basename "$0"): $2" >&2
    exit "$1"
}

# parse_arguments "$@": sets MIRROR (also from SENTEVAL_MIRROR) and WANTED (the remaining arguments)
parse_arguments() {
    MIRROR="${SENTEVAL_MIRROR:-}"
    WANTED=()
    while [ $# -gt 0 ]; do
        case "$1" in
        --mirror)
            [ $# -ge 2 ] || fail 2 "--mirror needs the URL of the folder that holds the files"
            MIRROR="$2"
            shift
            ;;
        --mirror=*) MIRROR="${1#--mirror=}" ;;
        -h | --help)
            usage
            exit 0
            ;;
        -*) fail 2 "unknown option $1 (see --help)" ;;
        *) WANTED+=("$1") ;;
        esac
        shift
    done
}

# sha256_of FILE
sha256_of() {
    if command -v sha256sum >/dev/null; then
        sha256sum "$1" | cut -d' ' -f1
    elif command -v shasum >/dev/null; then
        shasum -a 256 "$1" | cut -d' ' -f1
    else
        fail 2 "neither sha256sum nor shasum was found; install coreutils"
    fi
}

# transfer URL PART: one attempt, going on where PART ends
transfer() {
    if command -v curl >/dev/null; then
        curl --fail --location --silent --show-error --retry 2 --connect-timeout 20 -C - -o "$2" "$1"
    elif command -v wget >/dev/null; then
        wget --quiet --tries=3 --timeout=20 --continue -O "$2" "$1"
    else
        fail 2 "neither curl nor wget was found; install one of them, or put $(basename "$2" .part) into $PWD by hand"
    fi
}

# fetch FILE URL: FILE in the current folder, from the mirror if there is one; what is there already is kept
fetch() {
    local file="$1" url="$2"
    [ -z "$MIRROR" ] || url="${MIRROR%/}/$file"
    if [ ! -f "$file" ]; then
        echo "fetching $url" >&2
        if ! transfer "$url" "$file.part"; then
            # A server that cannot resume refuses: begin anew, but only where there was something to resume.
            [ -s "$file.part" ] && mv "$file.part" "$file.interrupted"
            if [ -f "$file.interrupted" ] && transfer "$url" "$file.part"; then
                rm -f "$file.interrupted"
            else
                [ -f "$file.interrupted" ] && mv "$file.interrupted" "$file.part"
                fail 2 "could not fetch $url: check the network, name a mirror with --mirror URL, or put $file into $PWD by hand and run this again"
            fi
        fi
        mv "$file.part" "$file"
    fi
    remember "$file"
}

# remember FILE: the hash is recorded at the first download and compared later
remember() {
    local file="$1" now before
    now="$(sha256_of "$file")"
    before="$(awk -v name="$file" '$2 == name { print $1 }' SHA256SUMS 2>/dev/null || true)"
    if [ -z "$before" ]; then
        echo "$now  $file" >>SHA256SUMS
    elif [ "$before" != "$now" ]; then
        fail 1 "$file has changed since it was first downloaded (sha256 $now, recorded $before in $PWD/SHA256SUMS); remove the file and run this again, or remove its line there if the change is meant"
    fi
}

# unpack ARCHIVE FOLDER: into FOLDER only; members that point elsewhere, and links, are refused
unpack() {
    local archive="$1" folder="$2" names
    names="$(tar -tf "$archive")" || fail 1 "$archive is no readable archive; remove it and run this again"
    if printf '%s\n' "$names" | grep -Eq '^/|(^|/)\.\.(/|$)'; then
        fail 1 "$archive holds paths that lead out of the folder; it is not unpacked"
    fi
    if tar -tvf "$archive" | grep -q '^[lhbcp]'; then
        fail 1 "$archive holds links or devices; it is not unpacked"
    fi
    rm -rf "$folder"
    mkdir "$folder"
    tar -xf "$archive" -C "$folder" --no-same-owner
}

# lines FILE: its number of lines, a last one without an end included
lines() { LC_ALL=C awk 'END { print NR }' "$1"; }

# malformed FILE AWK_CONDITION: number of the first line the condition does not hold for, empty if it always holds
malformed() { LC_ALL=C awk -F '\t' "!($2) { print NR; exit }" "$1"; }
