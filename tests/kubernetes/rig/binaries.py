"""Builds the control plane's programs once and keeps them; what is there in the right version is not built.

`python -m tests.kubernetes.rig.binaries` builds all of them, or those named.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent / "controlplane"
KUBERNETES = "v1.37.2"
# Without a version the server reports none, and clients believe it is of the year zero.
FLAGS = f"-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}"
# A program's module and package, and what `--version` says of one that can be used instead.
PROGRAMS = {
    "etcd": ("etcd", "go.etcd.io/etcd/server/v3", "etcd Version: 3.7"),
    "kube-apiserver": ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver", "Kubernetes v1.37"),
    "kwok": ("kwok", "sigs.k8s.io/kwok/cmd/kwok", "v0.8"),
    "kube-controller-manager": (
        "kubernetes",
        "k8s.io/kubernetes/cmd/kube-controller-manager",
        "Kubernetes v1.37",
    ),
    "kubelet": ("kubernetes", "k8s.io/kubernetes/cmd/kubelet", "Kubernetes v1.37"),
    "kube-scheduler": ("kubernetes", "k8s.io/kubernetes/cmd/kube-scheduler", "Kubernetes v1.37"),
}


def cache() -> Path:
    """Outside of the checkout, so that a fresh clone finds them; named by what they are made from."""
    digest = hashlib.sha256(FLAGS.encode())
    for path in sorted(SOURCES.glob("*/go.*")):
        digest.update(path.read_bytes())
    home = os.environ.get("EKSBATCH_CACHE") or Path.home() / ".cache" / "airflow-eksbatch"
    return Path(home) / f"controlplane-{digest.hexdigest()[:12]}"


def binary(name: str) -> Path:
    """The program, built if it must be. Ten minutes for the first of Kubernetes' on two cores."""
    path = cache() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists():
                _put_there(name, path)
    return path


def _put_there(name: str, path: Path) -> None:
    module, package, wanted = PROGRAMS[name]
    found = _find_installed(name, wanted)
    if found:
        path.symlink_to(found)
        return
    if shutil.which("go") is None:
        raise FileNotFoundError(
            f"{name} needs Go 1.26 to be built, or KUBEBUILDER_ASSETS with {wanted}"
        )
    print(f"Building {name}: minutes when nothing is cached.", file=sys.stderr, flush=True)
    began = time.monotonic()
    new = path.with_suffix(".new")
    # Others are at work on this machine.
    command = ["nice", "-n", "19", "go", "build", "-ldflags", FLAGS, "-o", str(new), package]
    environ = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run(command, cwd=SOURCES / module, env=environ, check=True)
    new.replace(path)
    size, seconds = path.stat().st_size / 2**20, time.monotonic() - began
    print(f"Built {name}, {size:.0f} MiB, in {seconds:.0f} s.", file=sys.stderr, flush=True)


def _find_installed(name: str, wanted: str) -> Path | None:
    """From setup-envtest or PATH, if it is of the version that we build: others behave differently."""
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    for path in (assets and shutil.which(name, path=assets), shutil.which(name)):
        if path:
            said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
            if wanted in said.stdout + said.stderr:
                return Path(path).resolve()
    return None


if __name__ == "__main__":
    for each in sys.argv[1:] or PROGRAMS:
        print(binary(each))
