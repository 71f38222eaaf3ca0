#!/usr/bin/env bash
# Rehearses every experiment at a paper's size with a model of each architecture class, on this machine, in toy sizes.
# Finished rehearsals are skipped; arguments go to recipes.rehearse (scripts/rehearse.sh fidelity=paper).
set -euo pipefail
tag=rehearse
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

models=(qwen2_5_math_1_5b llama3_2_3b deepseek_math_7b) # Qwen2, Llama 3, DeepSeek's Llama

"$root/scripts/setup.sh"
cd "$root"
export PATH=$venv/bin:$PATH
mkdir -p runs/rehearsals
failed=()
for file in configs/experiment/*.yaml; do
    experiment=$(basename "$file" .yaml)
    [[ $experiment != embedded* ]] || continue
    for model in "${models[@]}"; do
        run=runs/rehearsals/${experiment}_$model
        [ ! -f "$run/rehearsal/rehearsal.json" ] || continue
        say "$experiment with $model, its log in $run.log"
        python -m recipes.rehearse run_dir="$run" experiment="$experiment" model="$model" "$@" >"$run.log" 2>&1 ||
            failed+=("$run.log")
    done
done
[ ${#failed[@]} -eq 0 ] || fail "${#failed[@]} rehearsal(s) failed" "read ${failed[*]}"
say "all passed; scripts/update_readme.py rehearsals runs/rehearsals writes the table"
