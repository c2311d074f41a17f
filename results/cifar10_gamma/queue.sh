#!/usr/bin/env bash
# Two lanes, one thread each, lowest priority; stopped by SIGINT to the training, started again it goes on where it was.
# nice alone does little here: Linux schedules each session (setsid) as one group, so the group gets 19 as well.
cd "$(dirname "$0")/../.." || exit 1
export OMP_NUM_THREADS=1 PYTHON="${PYTHON:-.venv/bin/python}"
run() {  # folder, overrides
  local folder=results/cifar10_gamma/$1; shift
  grep -q '"finished"' "$folder/summary.json" 2>/dev/null && return
  if [ -f "$folder/checkpoint.safetensors" ]; then set -- "resume=$folder"
  else set -- experiment=cifar10_two_cores federation.num_rounds=100 logger=csv "hydra.run.dir=$folder" "$@"; fi
  nice -n 19 "$PYTHON" src/train.py "$@" >>"$folder.log" 2>&1
  if [ $? = 130 ]; then exit 130; fi
}
lane() {  # 0 or 1
  echo 19 >/proc/self/autogroup 2>/dev/null
  local n=0
  for seed in 0 1 2; do
    for variant in "fedpara-0.1 fedpara 0.1" "dense dense 0.1" "fedpara-0.6 fedpara 0.6" "fedpara-0.3 fedpara 0.3" \
        "fedpara-1.0 fedpara 1.0" "low_rank low_rank 0.1"; do
      read -r name factorization gamma <<<"$variant"
      if [ $((n++ % 2)) = "$1" ]; then
        run "$name-$seed" "factorization=$factorization" "factors.gamma=$gamma" "seed=$seed"
      fi
    done
  done
}
export -f run lane
mkdir -p results/cifar10_gamma
for number in 0 1; do setsid nohup bash -c "lane $number" >/dev/null 2>&1 & done
