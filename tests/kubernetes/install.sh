#!/usr/bin/env bash
# What real nodes need of Debian or Ubuntu, as root. The control plane needs Go 1.26 and nothing else.
set -euo pipefail
for program in busybox containerd ip jq runc /usr/lib/cni/bridge; do
    command -v "$program" >/dev/null || missing=1
done
[ "${missing:-}" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends \
    busybox-static containerd containernetworking-plugins iproute2 jq runc
