#!/usr/bin/env bash
# What tests need of Debian or Ubuntu, as root: real nodes, kubectl, a browser. The control plane needs Go 1.26 and nothing else.
set -euo pipefail
for program in busybox chromium containerd ip jq kubectl runc /usr/lib/cni/bridge; do
    command -v "$program" >/dev/null || missing=1
done
[ "${missing:-}" ] || exit 0
export DEBIAN_FRONTEND=noninteractive
packages=(busybox-static chromium containerd containernetworking-plugins iproute2 jq runc)
command -v kubectl >/dev/null || packages+=(kubernetes-client)
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}"
