#!/usr/bin/env bash
# Prints deploy/alerts.yml as a PrometheusRule, for the Prometheus Operator:
#     deploy/kubernetes/prometheusrule.sh | kubectl apply --filename -
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: drawbridge\nspec:\n'
sed 's/^/  /' "$here/../alerts.yml"
