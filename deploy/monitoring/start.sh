#!/usr/bin/env bash
# Starts Prometheus with the rules of ../alerts.yml on 127.0.0.1 and, where Docker is at hand, Grafana beside it with the dashboard
# (compose.yml). It finds every run that was started with `--set metrics.targets_dir=TARGETS`, now or later. Ctrl-C ends both.
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
if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
  echo "port $port of 127.0.0.1 is taken, so nothing was started: end what listens there, or give another PORT" >&2
  exit 1
fi
exec 9>"$data/lock"  # Prometheus inherits it, so it is held for as long as that runs
if ! flock --nonblock 9; then
  echo "another Prometheus keeps its data in $data, so nothing was started: end it, or give another DATA" >&2
  exit 1
fi

export PROMETHEUS_PORT=$port  # for compose.yml
compose=(docker compose --file "$here/compose.yml")
prometheus='' grafana=''
end() {
  trap '' HUP INT TERM
  trap - EXIT
  if [[ -n $prometheus ]]; then
    kill "$prometheus" 2>/dev/null || true
    wait "$prometheus" || true
  fi
  if [[ -n $grafana ]]; then
    kill "$grafana" 2>/dev/null || true  # it may still be fetching the image
    wait "$grafana" || true
    "${compose[@]}" down || true
  fi
}
trap end EXIT
trap 'end; exit 0' HUP INT TERM  # not by EXIT: Prometheus may have ended the wait by then, and an exit would cut its trap short

sed -e "s|@TARGETS@|$targets|" -e "s|@RULES@|$(dirname "$here")/alerts.yml|" "$here/prometheus.yml" >"$data/prometheus.yml"
echo "Prometheus: http://127.0.0.1:$port/alerts; start runs with --set metrics.targets_dir=$targets"
prometheus --config.file="$data/prometheus.yml" --storage.tsdb.path="$data/tsdb" \
  --storage.tsdb.retention.time=30d --web.listen-address="127.0.0.1:$port" --log.level=warn &
prometheus=$!
if docker compose version >/dev/null 2>&1; then
  "${compose[@]}" up --detach --quiet-pull &
  grafana=$!
  if wait "$grafana"; then
    echo "Grafana: http://127.0.0.1:3000"
  else
    echo "Grafana is left out: docker compose could not start it, as it says above" >&2
  fi
else
  echo "Grafana is left out: no \`docker compose\` here; install Docker with its compose plugin and start this again" >&2
fi
wait "$prometheus"
