#!/bin/sh
# Several studies at once on one GPU, whose runs need nothing of one another, and their tables, whatever had time to end.
#
#   WMTP_AT_ONCE=10 WMTP_SECONDS=500 scripts/studies_on_one_gpu.sh OUT STUDY.yaml...
#
# OUT/NAME is each study's folder, OUT/NAME.md its table, OUT/NAME.html its page, OUT/studies.tgz all figures without models.
set -eu
out=$1
shift
mkdir -p "$out"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false WMTP_CACHE="${WMTP_CACHE:-$out/rows}"
for file in "$@"; do
    python -m wmtp study --study "$file" --out "$out/$(basename "$file" .yaml)" --list 2>/dev/null
done | sed 's/^wmtp/python -m wmtp/' > "$out/runs.txt"
timeout "${WMTP_SECONDS:-86400}" xargs -P "${WMTP_AT_ONCE:-10}" -I{} sh -c '{}' < "$out/runs.txt" > "$out/runs.log" 2>&1 ||
    echo "some runs did not end; see $out/runs.log" >&2
for file in "$@"; do
    name=$(basename "$file" .yaml)
    python -m wmtp study --study "$file" --out "$out/$name" --table --json > "$out/$name/study.json" ||
        echo "not all runs of $name have a result" >&2
    python -m wmtp study --study "$file" --out "$out/$name" --table --markdown > "$out/$name.md" || true
    python -m wmtp report "$out/$name" --out "$out/$name.html" >/dev/null || echo "no page of $name" >&2
    cat "$out/$name.md"
done
tar -C "$out" --exclude=checkpoints --exclude=final --exclude=rows -czf "$out.tgz" .
mv "$out.tgz" "$out/studies.tgz"
