#!/usr/bin/env bash
# Set up and run the embedded experiment, from sampling to the table. Arguments go to recipes.compare:
#   scripts/reproduce.sh                 the default table, within 15 minutes on two CPU cores
#   scripts/reproduce.sh scale=smoke     the same stages in the smallest sizes
#   scripts/reproduce.sh scale=full      the README's table: avg@16, three seeds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
exec "${VENV:-.venv}/bin/python" -m recipes.compare experiment=embedded "$@"
