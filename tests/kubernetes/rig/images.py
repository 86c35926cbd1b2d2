"""Container images without a registry: busybox, from this machine's own static binary."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

BUSYBOX = "eksbatch.test/busybox:1"
PAUSE = "eksbatch.test/pause:1"
NO_SUCH_USER = "eksbatch.test/no-such-user:1"
TOUCHED = 0  # no file says when it was made: equal content gives equal images


def write_images(path: Path) -> None:
    """A tar as `docker save` writes it, with all images in one layer."""
    layer = _tar(_busybox_files())
    configs = {
        BUSYBOX: _config(layer, ["/bin/sh"]),
        PAUSE: _config(layer, ["/bin/sleep", "1000d"]),
        NO_SUCH_USER: _config(layer, ["/bin/sh"], user="nosuchuser"),
    }
    manifest = [
        {"Config": f"{_digest(config)}.json", "RepoTags": [name], "Layers": ["layer.tar"]}
        for name, config in configs.items()
    ]
    files = [(f"{_digest(config)}.json", config) for config in configs.values()]
    files += [("layer.tar", layer), ("manifest.json", json.dumps(manifest).encode())]
    path.write_bytes(_tar([_file(name, content) for name, content in files]))


Entry = tuple[tarfile.TarInfo, bytes]


def _busybox_files() -> Iterable[Entry]:
    found = shutil.which("busybox")
    if found is None:
        raise FileNotFoundError("busybox: tests/install.sh installs what real nodes need")
    listed = subprocess.run([found, "--list"], capture_output=True, text=True, check=True)
    for name in ("bin", "dev", "etc", "proc", "sys", "tmp", "var"):
        yield _directory(name)
    yield _file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
    yield _file("bin/busybox", Path(found).read_bytes(), mode=0o755)
    for applet in listed.stdout.split():
        if applet != "busybox":
            yield _link(f"bin/{applet}", "busybox")


def _config(layer: bytes, command: list[str], user: str = "") -> bytes:
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": command, "Env": ["PATH=/bin"], "User": user, "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
    }
    return json.dumps(config).encode()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _tar(entries: Iterable[Entry]) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for entry, content in entries:
            tar.addfile(entry, io.BytesIO(content))
    return written.getvalue()


def _entry(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.mtime = kind, mode, TOUCHED
    return entry


def _directory(name: str) -> Entry:
    return _entry(name, tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755), b""


def _file(name: str, content: bytes, mode: int = 0o644) -> Entry:
    entry = _entry(name, tarfile.REGTYPE, mode)
    entry.size = len(content)
    return entry, content


def _link(name: str, target: str) -> Entry:
    entry = _entry(name, tarfile.SYMTYPE, 0o777)
    entry.linkname = target
    return entry, b""
