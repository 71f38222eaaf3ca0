#!/usr/bin/env bash
# Set up here, and run an experiment on a cluster. Arguments go to recipes.compare; run_dir has to be an absolute path
# that all nodes see. For GPUs, `scripts/setup.sh --gpu` comes first, and cluster.device=cuda goes with each command.
#   scripts/submit.sh cluster=ray launch.dashboard=http://head:8265 experiment=<name> run_dir=/shared/run
#   scripts/submit.sh cluster=slurm cluster.num_nodes=2 cluster.ranks_per_node=8 experiment=<name> run_dir=/shared/run
#   scripts/submit.sh cluster=kuberay launch.kuberay.image=<image> launch.kuberay.volume_claim=<claim> ...
# The same command again continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
PATH=$(realpath "${VENV:-.venv}")/bin:$PATH # sbatch hands it on to the nodes, which run `python` and `ray`
export PATH
exec "${VENV:-.venv}/bin/python" -m recipes.compare launch.submit=true "$@"
