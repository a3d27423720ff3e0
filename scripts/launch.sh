# Sourced by the run scripts: an environment that can import the package, then one process or several.
# shellcheck shell=bash

checkout="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# The first Python that has the package: the one on the PATH, else the checkout's own environment, made when missing.
find_python() {
    local candidate installed='import sys; from importlib.util import find_spec as find
sys.exit(not all(map(find, ["torch", "transformers", "senteval", "cacse_trainer"])))'
    for candidate in python "$checkout/.venv/bin/python"; do
        if "$candidate" -c "$installed" 2>/dev/null; then
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

# Sets `arguments`: without --config those of the quick start, whose own folder may be overwritten, with the caller's behind.
with_quickstart() {
    arguments=("$@")
    case " $* " in *" --config"[\ =]*) return ;; esac
    arguments=(--config "${QUICKSTART:-quickstart}" "$@")
    case " $* " in
        *" --output_dir"[\ =]* | *" --resume_from_checkpoint"[\ =]* | *" --overwrite_output_dir"*) ;;
        *) arguments+=(--overwrite_output_dir) ;;
    esac
}

# launch COMMAND [--nproc N] ARGUMENTS…: one process stays one process; N go through torchrun, which starts N with and
# without GPUs (accelerate launch starts one where it finds none); ACCELERATE_CONFIG=FILE goes through accelerate.
launch() {
    local command="$1" processes=1 passed_on=()
    shift
    while [ $# -gt 0 ]; do
        case "$1" in
            --nproc) processes="${2:?--nproc takes a number}"; shift 2 ;;
            --nproc=*) processes="${1#*=}"; shift ;;
            *) passed_on+=("$1"); shift ;;
        esac
    done
    if ! [[ "$processes" =~ ^[1-9][0-9]*$ ]]; then
        echo "error: --nproc takes a number from 1, got '$processes'" >&2
        exit 2
    fi
    find_python
    if [ -n "${ACCELERATE_CONFIG:-}" ] || [ "$processes" -gt 1 ]; then
        # A launcher turns wrong input (exit 2, one line) into exit 1 and a traceback: check in one process first.
        "$python" -m cacse_trainer.cli.main "$command" "${passed_on[@]}" --check >&2
    fi
    if [ -n "${ACCELERATE_CONFIG:-}" ]; then
        exec "$python" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" \
            -m "cacse_trainer.cli.$command" "${passed_on[@]}"
    elif [ "$processes" -gt 1 ]; then
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" \
            -m "cacse_trainer.cli.$command" "${passed_on[@]}"
    fi
    exec "$python" -m cacse_trainer.cli.main "$command" "${passed_on[@]}"
}
