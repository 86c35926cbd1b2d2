"""Who may ask the API server: its certificate, a token a name, and a kubeconfig for each."""

from __future__ import annotations

import datetime
import ipaddress
import secrets
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ADMIN = "admin"
# Has the rights that docker/kubernetes.yaml gives to its service account, once a test has applied that.
SERVICE = "eksbatch"
# Somebody else's: may edit what is in the namespace `default`, and nothing else.
ORDINARY = "ordinary"
CONTROLLERS, SCHEDULER, KWOK = "controllers", "scheduler", "kwok"

SERVICE_ACCOUNTS = "system:serviceaccounts"
# A name, the user that Kubernetes sees, and its groups.
USERS = {
    ADMIN: ("admin", "system:masters"),
    SERVICE: (
        "system:serviceaccount:eksbatch:eksbatch",
        f"{SERVICE_ACCOUNTS},{SERVICE_ACCOUNTS}:eksbatch",
    ),
    ORDINARY: ("ordinary", "people"),
    CONTROLLERS: ("system:kube-controller-manager", ""),
    SCHEDULER: ("system:kube-scheduler", ""),
    KWOK: ("kwok", "system:masters"),
}
ORDINARY_RIGHTS = {
    "apiVersion": "rbac.authorization.k8s.io/v1",
    "kind": "RoleBinding",
    "metadata": {"name": "ordinary", "namespace": "default"},
    "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "edit"},
    "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ordinary"}],
}
AUTHORITY = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "eksbatch-test-rig")])
LIFE = datetime.timedelta(days=2)


class Identities:
    """Files in a directory: what the API server is started with, and what its clients are given."""

    def __init__(self, directory: Path, address: str, url: str) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._url = url
        self.certificate = directory / "api.crt"
        self.key = directory / "api.key"
        self.service_account_key = directory / "service-accounts.key"
        self.token_file = directory / "tokens.csv"
        self.tokens = {name: secrets.token_hex(16) for name in USERS}
        rows = (
            f'{self.tokens[name]},{user},{name},"{groups}"'
            for name, (user, groups) in USERS.items()
        )
        _write(self.token_file, "".join(f"{row}\n" for row in rows).encode())
        _write(self.service_account_key, _pem(ec.generate_private_key(ec.SECP256R1())))
        self._authority = ec.generate_private_key(ec.SECP256R1())
        _write(self.key, _pem(self._authority))
        alternatives = [
            x509.IPAddress(ipaddress.ip_address(address)),
            x509.DNSName("localhost"),
            x509.DNSName("kubernetes.default.svc"),
        ]
        # Signed by itself: it is also what clients trust, and what signs the nodes' certificates.
        own = _certificate(AUTHORITY, self._authority.public_key())
        own = own.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        own = own.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        # Python is strict about what an authority's certificate has to say.
        own = own.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(self._authority.public_key()), critical=False
        )
        _write(self.certificate, self._sign(own))

    def kubeconfig(self, name: str) -> Path:
        return self.kubeconfig_with(name, {"token": self.tokens[name]})

    def kubeconfig_of_node(
        self, node: str, *, server: str = "", authority: Path | None = None
    ) -> Path:
        """As kubelets have it: a certificate that names the node, for the Node authorizer."""
        key, certificate = self.certify(f"system:node:{node}", "system:nodes")
        user = {"client-key": str(key), "client-certificate": str(certificate)}
        return self.kubeconfig_with(node, user, server=server, authority=authority)

    def certify(self, user: str, group: str) -> tuple[Path, Path]:
        """A key and the certificate that says whose it is."""
        stem = self._directory / user.replace(":", "-")
        key, certificate = stem.with_suffix(".key"), stem.with_suffix(".crt")
        private = ec.generate_private_key(ec.SECP256R1())
        _write(key, _pem(private))
        _write(certificate, self._sign(_certificate(_name(user, group), private.public_key())))
        return key, certificate

    def _sign(self, certificate: x509.CertificateBuilder) -> bytes:
        public = self._authority.public_key()
        by = x509.AuthorityKeyIdentifier.from_issuer_public_key(public)
        return (
            certificate.add_extension(by, critical=False)
            .sign(self._authority, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    def kubeconfig_with(
        self,
        name: str,
        user: dict[str, str],
        *,
        server: str = "",
        authority: Path | None = None,
    ) -> Path:
        """Also for credentials that the API server gave out, such as a service account's token.

        Where the cluster is, and whom to believe, is so unless something else is said.
        """
        path = self._directory / f"{name}.kubeconfig"
        cluster = {
            "server": server or self._url,
            "certificate-authority": str(authority or self.certificate),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "rig", "cluster": cluster}],
            "users": [{"name": name, "user": user}],
            "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": name}}],
            "current-context": "rig",
        }
        _write(path, yaml.safe_dump(config).encode())
        return path


def _certificate(name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(AUTHORITY)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - LIFE)
        .not_valid_after(now + LIFE)
    )


def _name(user: str, group: str) -> x509.Name:
    """Kubernetes reads a user from the common name and its group from the organisation."""
    parts = [(NameOID.ORGANIZATION_NAME, group), (NameOID.COMMON_NAME, user)]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
