# Sourced by the run scripts: an environment that can import the package, then one process or several.
# shellcheck shell=bash

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The first Python that can run the package: the one on the PATH, else the checkout's own environment, made when missing.
find_python() {
    local candidate
    for candidate in python "$checkout/.venv/bin/python"; do
        if "$candidate" -c 'import cacse_trainer, senteval' 2>/dev/null; then
            python="$candidate"
            return
        fi
    done
    echo "setting up $checkout/.venv (once; a few minutes)" >&2
    python3 -m venv "$checkout/.venv"
    "$checkout/.venv/bin/python" -m pip install --quiet -c "$checkout/constraints.txt" torch
    "$checkout/.venv/bin/python" -m pip install --quiet -c "$checkout/constraints.txt" -e "$checkout[${EXTRAS:-quickstart}]"
    python="$checkout/.venv/bin/python"
}

# launch COMMAND [--nproc N] ARGUMENTS…: one process stays one process; several go through accelerate.
launch() {
    local command="$1" processes=1 arguments=()
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            --nproc) processes="${2:?--nproc takes a number}"; shift 2 ;;
            --nproc=*) processes="${1#*=}"; shift ;;
            *) arguments+=("$1"); shift ;;
        esac
    done
    find_python
    if [ -n "${ACCELERATE_CONFIG:-}" ]; then
        exec "$python" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" \
            -m "cacse_trainer.cli.$command" "${arguments[@]}"
    elif [ "$processes" -gt 1 ]; then
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" \
            -m "cacse_trainer.cli.$command" "${arguments[@]}"
    fi
    exec "$python" -m "cacse_trainer.cli.$command" "${arguments[@]}"
}
