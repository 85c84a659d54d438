#!/usr/bin/env bash
# The golden tests on stand-ins for other processors: instruction sets of torch, MKL and oneDNN, with 1 and 2 threads.
# Prints one line per variant. The argument is the Python to use.
set -uo pipefail
cd "$(dirname "$0")/.."
python=$1
variants=(ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE MKL_CBWR=AVX2 ONEDNN_MAX_CPU_ISA=AVX2)
mapfile -t files < <(grep --recursive --files-with-matches --include='test_*.py' 'pytest\.mark\.golden' tests)
cores=$(getconf _NPROCESSORS_ONLN)
status=0
for threads in 1 2; do
    for variant in "${variants[@]}"; do
        # A file of tests per worker; $threads cores for each worker.
        log=$(env "$variant" OMP_NUM_THREADS=$threads "$python" -m pytest -m golden "${files[@]}" \
            --numprocesses $((cores / threads)) --dist loadfile 2>&1)
        code=$?
        printf '%-30s %d thread(s)   %s\n' "$variant" $threads "$(tail -n 1 <<<"$log")"
        if ((code)); then
            status=1
            grep -E '^(FAILED|ERROR|E  )' <<<"$log"
        fi
    done
done
exit $status
