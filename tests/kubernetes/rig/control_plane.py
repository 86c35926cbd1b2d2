"""etcd, kube-apiserver and kube-controller-manager (and kube-scheduler on wish) of one test, on loopback.

with ControlPlane(directory) as plane:
    plane.api().get("/api/v1/nodes")
    plane.kubeconfig("eksbatch")  # rights: plane.apply(Path("docker/kubernetes.yaml"))
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.airflow.processes import Child, stop_children, wait_for
from tests.airflow.rig import free_port
from tests.kubernetes.rig.api import Api, SaidNo
from tests.kubernetes.rig.binaries import binary
from tests.kubernetes.rig.identities import (
    ADMIN,
    CONTROLLERS,
    ORDINARY,
    ORDINARY_RIGHTS,
    SCHEDULER,
    Identities,
)

LOOPBACK = "127.0.0.1"
READY_WITHIN_S = 120.0
SERVICES = "10.96.0.0/16"  # addresses that nobody is ever asked at: no kube-proxy runs here
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class ControlPlane:
    """A Kubernetes without nodes, RBAC on. Its parts can be killed, stopped and started in between."""

    def __init__(
        self,
        directory: Path,
        *,
        address: str = LOOPBACK,
        audited: bool = False,
        with_scheduler: bool = False,
        api_flags: tuple[str, ...] = (),
    ) -> None:
        """`address`: where real nodes in their network reach it (`Network.address`).
        `audited`: every request is noted in `audit.log`, see `requests()`.
        """
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = free_port()
        self.url = f"https://{address}:{self.port}"
        self.identities = Identities(directory / "identities", address, self.url)
        self.children: dict[str, Child] = {}
        self.audit_log = directory / "audit.log"
        self._address = address
        self._audited = audited
        self._with_scheduler = with_scheduler
        self._api_flags = api_flags
        self.etcd_url = f"http://{LOOPBACK}:{free_port()}"
        self._apis = ExitStack()
        self._admin: Api | None = None

    # -- from nothing to ready, and back --

    def __enter__(self) -> ControlPlane:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.start_etcd()
        self.start_api()
        self.apply(ORDINARY_RIGHTS)
        self.start_controllers()
        if self._with_scheduler:
            self.start_scheduler()
        # Pods are refused until their namespace has its service account, and what `edit` may do is
        # put together by a controller.
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self.wait_for("the controllers", lambda: self.admin.find(account))
        pods = "/api/v1/namespaces/default/pods"
        self.wait_for("the role `edit`", lambda: self.may_get(ORDINARY, pods))

    def may_get(self, identity: str, path: str) -> bool:
        """Whether the API server lets it: it knows of roles some moments after they are there."""
        try:
            self.api(identity).get(path)
        except SaidNo:
            return False
        return True

    def stop(self) -> None:
        """Clients before servers, each by its own id."""
        for name in reversed([*self.children]):
            self.stop_part(name)
        self._apis.close()

    # -- whom to ask, and how --

    @property
    def admin(self) -> Api:
        if self._admin is None:
            self._admin = self.api(ADMIN)
        return self._admin

    def api(self, identity: str = ADMIN) -> Api:
        """A client of an identity's; closed with the control plane."""
        identities = self.identities
        api = Api(self.url, identities.certificate, identities.tokens[identity])
        self._apis.callback(api.close)
        return api

    def kubeconfig(self, identity: str = ADMIN) -> Path:
        return self.identities.kubeconfig(identity)

    def apply(self, *manifests: Path | dict[str, Any]) -> None:
        self.admin.apply(*manifests)

    def create_namespace(self, name: str) -> None:
        """Pods can be created in it when this returns."""
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        account = f"/api/v1/namespaces/{name}/serviceaccounts/default"
        self.wait_for(f"the service account of {name}", lambda: self.admin.find(account))

    def requests(self) -> list[dict[str, Any]]:
        """What was asked of an audited API server so far: verb, user, objectRef, responseStatus."""
        whole, _, _ = self.audit_log.read_text().rpartition(
            "\n"
        )  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines()]

    def wait_for(self, what: str, look: Any, within_s: float = READY_WITHIN_S) -> Any:
        return wait_for(what, look, within_s=within_s, children=tuple(self.children.values()))

    # -- its parts --

    def start_part(self, name: str, *flags: str) -> Child:
        """A program of the control plane's, with its output in a file of its name."""
        child = Child(
            name,
            [str(binary(name)), *flags],
            env={"PATH": os.environ["PATH"], "HOME": str(self.directory)},
            log=self.directory / f"{name}.log",
            cwd=self.directory,
        )
        self.children[name] = child
        return child

    def stop_part(self, name: str) -> None:
        child = self.children.pop(name)
        child.process.resume()
        stop_children([child])

    def kill_part(self, name: str) -> None:
        """At once and without a word, as a machine dies."""
        child = self.children.pop(name)
        child.process.kill()
        child.wait()

    @contextmanager
    def paused(self, name: str, at_least_s: float = 0.0) -> Iterator[None]:
        """It does not answer, and its connections stay open; as long as the block takes, and at least so long."""
        process, until = self.children[name].process, time.monotonic() + at_least_s
        process.send_signal(signal.SIGSTOP)
        try:
            yield
            time.sleep(max(0.0, until - time.monotonic()))
        finally:
            process.send_signal(signal.SIGCONT)

    def start_etcd(self) -> None:
        url, peers = self.etcd_url, f"http://{LOOPBACK}:{free_port()}"
        self.start_part(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
            # A test's data need not outlive a power cut.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )

    def start_api(self) -> None:
        """Also after `kill_part("kube-apiserver")`: at the same address, with the same data."""
        one = self.identities
        kubelet_key, kubelet_certificate = one.certify("kube-apiserver", "system:masters")
        self.start_part(
            "kube-apiserver",
            f"--etcd-servers={self.etcd_url}",
            f"--bind-address={self._address}",
            f"--advertise-address={self._address}",
            # The Service `kubernetes` may not point to loopback, and nobody here asks for it.
            "--endpoint-reconciler-type=none",
            f"--secure-port={self.port}",
            f"--tls-cert-file={one.certificate}",
            f"--tls-private-key-file={one.key}",
            f"--client-ca-file={one.certificate}",
            f"--token-auth-file={one.token_file}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--kubelet-client-key={kubelet_key}",
            f"--kubelet-client-certificate={kubelet_certificate}",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={one.service_account_key}",
            f"--service-account-signing-key-file={one.service_account_key}",
            f"--service-cluster-ip-range={SERVICES}",
            "--allow-privileged",
            "--profiling=false",
            *(self._audit_flags() if self._audited else ()),
            *self._api_flags,
        )
        self.wait_for("the API server", self.admin.is_ready)

    def start_controllers(self) -> None:
        self.start_part(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig(CONTROLLERS)}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={self.identities.service_account_key}",
            f"--root-ca-file={self.identities.certificate}",
            "--leader-elect=false",
            "--secure-port=0",
        )

    def start_scheduler(self, *flags: str) -> None:
        self.start_part(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig(SCHEDULER)}",
            "--leader-elect=false",
            "--secure-port=0",
            *flags,
        )

    def _audit_flags(self) -> tuple[str, ...]:
        policy = self.directory / "audit-policy.json"
        policy.write_text(json.dumps(AUDIT_POLICY))
        return (f"--audit-policy-file={policy}", f"--audit-log-path={self.audit_log}")
