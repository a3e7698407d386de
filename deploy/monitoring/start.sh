#!/usr/bin/env bash
# Starts Prometheus with the rules of ../alerts.yml on 127.0.0.1. It finds every run that was started with
# `--set metrics.targets_dir=TARGETS`, now or later. Ctrl-C ends it.
#     deploy/monitoring/start.sh TARGETS [DATA] [PORT]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ $# -lt 1 ]]; then
  echo "usage: start.sh TARGETS [DATA] [PORT]: TARGETS is the folder that runs name as metrics.targets_dir" >&2
  exit 2
fi
mkdir -p "$1" "${2:-runs/prometheus}"
targets=$(cd "$1" && pwd) data=$(cd "${2:-runs/prometheus}" && pwd) port=${3:-9090}
if ! command -v prometheus >/dev/null; then
  echo "prometheus is not installed, so nothing was started; on Debian: apt-get install prometheus" >&2
  exit 1
fi
sed -e "s|@TARGETS@|$targets|" -e "s|@RULES@|$(dirname "$here")/alerts.yml|" "$here/prometheus.yml" >"$data/prometheus.yml"
echo "Prometheus: http://127.0.0.1:$port/alerts; start runs with --set metrics.targets_dir=$targets"
exec prometheus --config.file="$data/prometheus.yml" --storage.tsdb.path="$data/tsdb" \
  --storage.tsdb.retention.time=30d --web.listen-address="127.0.0.1:$port" --log.level=warn
