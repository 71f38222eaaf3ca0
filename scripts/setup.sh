#!/usr/bin/env bash
# Builds the virtual environment this project runs in, from the pins in docker/, and installs the project into it.
# Run it as often as you like: it ends at once when nothing changed, and completes an interrupted build.
set -euo pipefail
tag=setup
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: scripts/setup.sh [--gpu] [--test]

  --gpu    the CUDA stack of docker/requirements-gpu.txt in place of the CPU stack of docker/requirements-cpu.txt;
           an environment that has it keeps it without being told again
  --test   also what scripts/test.sh needs (docker/requirements-test.txt)

environment:
  VENV             where the environment goes (default: .venv at the repository root)
  PYTHON           the interpreter to build it with (default: the first suitable of python3.11, python3.12, python3)
  TORCH_INDEX_URL  one more package index, asked for torch alone, e.g. https://download.pytorch.org/whl/cpu
TEXT
}

mark=$venv/.setup-mark
stack=cpu
[[ $(cat "$mark" 2>/dev/null) != "gpu "* ]] || stack=gpu
with_tests=
for argument in "$@"; do
    case $argument in
        --gpu) stack=gpu ;;
        --test) with_tests=yes ;;
        -h | --help) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
done
requirements=$root/docker/requirements-$stack.txt
test_requirements=$root/docker/requirements-test.txt

# MB on disk, at the end and while pip downloads: measured and rounded up for the CPU stack, estimated for the other.
if [ "$stack" = cpu ]; then
    pythons=(3.11) installed_mb=2500 download_mb=1000
else
    pythons=(3.11 3.12) installed_mb=15000 download_mb=8000
fi
torch_index=()
[ -z "${TORCH_INDEX_URL:-}" ] || torch_index=(--extra-index-url "$TORCH_INDEX_URL")

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true; }

pinned() { sed -n "s/^$1==//p" "$requirements"; }

# ---- checks, before minutes are spent ----

find_python() { # sets python and python_version
    local candidates=("${PYTHON:-python3.11}") found=
    [ -n "${PYTHON:-}" ] || candidates+=(python3.12 python3)
    for python in "${candidates[@]}"; do
        python_version=$(version_of "$python")
        [[ -z $python_version || " ${pythons[*]} " != *" $python_version "* ]] || return 0
        found+=" $python is ${python_version:-not there};"
    done
    fail "the $stack stack's wheels are pinned for Python $(sed 's/ / and /' <<<"${pythons[*]}") only:${found%;}" \
        "install Python ${pythons[0]} (pyenv, your distribution) and run PYTHON=/path/to/python${pythons[0]} $0"
}

check_machine() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] ||
        fail "the wheels are pinned for Linux x86_64, this machine is $(uname -s) $(uname -m)" \
            "use a container: docker build --platform linux/amd64 -f docker/Dockerfile.cpu ."
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no modules ensurepip and venv" "Debian and Ubuntu: apt-get install python$python_version-venv"
    "$python" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null ||
        fail "the system library libnuma.so.1 is missing, vLLM links it" "Debian and Ubuntu: apt-get install libnuma1"
}

check_space() { # directory, MB needed, what for, variable that moves it
    local place=$1 free
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    free=$(df -Pk "$place" | awk 'END { print int($4 / 1024) }')
    [ "$free" -ge "$2" ] ||
        fail "$place has $free MB of free disk space, $3 needs $2 MB" \
            "free some, or set $4 to a directory on another disk"
}

check_disk() {
    local present=0 missing
    [ ! -d "$venv" ] || present=$(du -sm "$venv" | cut -f1)
    missing=$((installed_mb > present ? installed_mb - present : 0))
    check_space "$venv" $((missing + 200)) "the virtual environment" VENV
    [ "$missing" -eq 0 ] || check_space "${TMPDIR:-/tmp}" "$download_mb" "the download" TMPDIR
}

offered() { # package, pip options...: the versions the index has, or pip's complaint
    "$pip_python" -m pip index versions "$@" --disable-pip-version-check --retries 0 --timeout 15 2>&1 |
        sed -n '/^Available versions:\|^ERROR/{s/$/,/p;q}' || true
}

check_index() {
    local answer
    answer=$(offered verl)
    [[ $answer = Available*" $(pinned verl),"* ]] ||
        fail "the package index is unreachable or has no verl $(pinned verl); pip: ${answer%,}" \
            "check the network and 'pip config list' (PIP_INDEX_URL names another index), then run $0 again"
    [ "$stack" = cpu ] || return 0
    answer=$(offered torch ${torch_index[@]+"${torch_index[@]}"})
    [[ $answer = *" $(pinned torch),"* ]] ||
        fail "the package index has no torch $(pinned torch), only CUDA builds, which are never taken in its place" \
            "TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu $0"
}

# ---- the build ----

pip_install() {
    "$venv_python" -m pip install --disable-pip-version-check --no-input --progress-bar off "$@"
}

make_venv() { # the mark tells that this script made the directory, where and for what; no other is ever removed
    local has_python=
    [ "$(version_of "$venv_python")" != "$python_version" ] || has_python=yes
    if [ -e "$mark" ] && { [ -z "$has_python" ] || [ "$(<"$mark")" != "$stack $venv" ]; }; then
        say "$venv is incomplete, was moved or has another Python: starting afresh"
        rm -rf "$venv"
    elif [ -z "$has_python" ] && [ -n "$(ls -A "$venv" 2>/dev/null)" ]; then
        fail "$venv exists, was not made by this script and has no Python $python_version" \
            "move it away, or set VENV to another directory"
    fi
    mkdir -p "$venv"
    echo "$stack $venv" >"$mark"
    "$venv_python" -m pip --version >/dev/null 2>&1 ||
        phase "virtual environment, Python $python_version" "$python" -m venv "$venv"
}

forget_half_installed() { # pip writes RECORD last, but takes a package for installed without it
    local info
    for info in "$venv"/lib/python*/site-packages/*.dist-info; do
        [ ! -d "$info" ] || [ -s "$info/RECORD" ] || rm -rf "$info"
    done
}

trim() { # torch's C++ tests and Ray's Java half: 155 MB that no Python code opens
    local site
    site=$(echo "$venv"/lib/python*/site-packages)
    rm -rf "$site"/torch/test "$site"/torch/bin/test_* "$site"/torch/bin/*Test "$site"/ray/jars
}

install_cpu() { # --no-compile: byte code of every module would add 480 MB; verify_stack leaves that of the used ones
    phase "torch $(pinned torch)" \
        pip_install --no-deps --no-compile "torch==$(pinned torch)" ${torch_index[@]+"${torch_index[@]}"}
    phase "the other $(($(grep -c '^[^#].*==' "$requirements") - 1)) packages" \
        pip_install --no-deps --no-compile -r "$requirements"
    trim
}

install_gpu() {
    command -v nvidia-smi >/dev/null || say "note: no nvidia-smi here: the GPU stack installs, but will not run"
    grep -v '^flash-attn' "$requirements" >"$venv/requirements-without-flash-attn.txt"
    phase "the CUDA stack" \
        pip_install -r "$venv/requirements-without-flash-attn.txt" ${torch_index[@]+"${torch_index[@]}"}
    phase "flash-attn" pip_install --no-build-isolation "$(grep '^flash-attn' "$requirements")"
}

verify_stack() { # every pin is installed, nothing harmful is, and the heavy imports work (which writes byte code)
    env -u PYTHONDONTWRITEBYTECODE -u VERL_USE_EXTERNAL_MODULES VERL_USE_EXTERNAL_PLUGINS=none HF_HUB_OFFLINE=1 \
        "$venv_python" - "$stack" "$requirements" <<'PYTHON'
import importlib
import re
import sys
from importlib import metadata

stack, path = sys.argv[1:]
installed = {re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower(): d.version for d in metadata.distributions()}
for line in open(path):
    if pin := re.match(r"([\w.-]+)(?:\[.*\])?==(\S+)", line):
        name = re.sub(r"[-_.]+", "-", pin[1]).lower()
        if installed.get(name) != pin[2]:
            sys.exit(f"{name} is {installed.get(name, 'missing')}, pinned {pin[2]}")
harmful = {"torchvision", "torchaudio", "torchcodec"} & set(installed)
if stack == "cpu" and harmful:
    sys.exit(f"remove {', '.join(sorted(harmful))} (pip uninstall): their CUDA builds break transformers on this stack")
if "verl_ext" not in {point.name for point in metadata.entry_points(group="verl.plugins")}:
    sys.exit("this project's entry point verl_ext is not registered in the group verl.plugins")
for module in (
    "torch._dynamo torch.distributed.fsdp scipy.stats matplotlib.pyplot datasets peft math_verify ray.data.llm "
    "transformers.models.qwen2.modeling_qwen2 transfer_queue verl.trainer.main_ppo verl.trainer.ppo.v1 "
    "verl.workers.engine_workers verl.workers.engine.fsdp.transformer_impl verl.experimental.agent_loop "
    "vllm.entrypoints.openai.api_server vllm.v1.engine.core vllm.model_executor.models.qwen2"
    + (" vllm.v1.worker.cpu_worker ray.dashboard.agent ray.dashboard.dashboard" if stack == "cpu" else "")
).split():
    importlib.import_module(module)
PYTHON
}

# ---- stamps: what the environment was built from ----

digest() { cat "$@" | sha256sum | cut -d' ' -f1; }

stamped() { [ "$(cat "$venv/.setup-$1" 2>/dev/null)" = "$2" ]; }

find_python
base_stamp="$stack $python_version $venv $root $(digest "$requirements" "$root/pyproject.toml")"
test_stamp="$base_stamp $(digest "$test_requirements")"
[ "$(version_of "$venv_python")" = "$python_version" ] && stamped base "$base_stamp" && base_ready=yes || base_ready=
stamped test "$test_stamp" && tests_ready=yes || tests_ready=
if [ "$base_ready" ] && { [ -z "$with_tests" ] || [ "$tests_ready" ]; }; then
    say "ready: $venv ($stack stack, Python $python_version), nothing changed"
    exit 0
fi
built=$(cut -d' ' -f1 "$mark" 2>/dev/null || echo "$stack")
[ "$built" = "$stack" ] ||
    fail "$venv holds the $built stack" "set VENV to another directory for the $stack stack, or remove that one"

if [ -z "$base_ready" ]; then
    check_machine
    check_disk
    pip_python=$python
    "$python" -m pip --version >/dev/null 2>&1 || { make_venv && pip_python=$venv_python; }
    check_index
    make_venv
    rm -f "$venv/.setup-base" "$venv/.setup-test"
    forget_half_installed
    "install_$stack"
    phase "this project, editable" pip_install --no-deps --no-build-isolation -e "$root"
    phase "import of the whole stack" verify_stack
    echo "$base_stamp" >"$venv/.setup-base"
fi
if [ "$with_tests" ]; then
    phase "test tools" pip_install --no-deps -r "$test_requirements"
    echo "$test_stamp" >"$venv/.setup-test"
fi
say "ready: $venv ($stack stack, Python $python_version, $(du -sm "$venv" | cut -f1) MB) after $SECONDS s"
