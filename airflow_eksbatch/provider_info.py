"""What Airflow is told about this provider."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    return {
        "package-name": "airflow-eksbatch",
        "name": "EKS Batch",
        "description": "AWS Batch on Amazon EKS for Airflow: jobs without workers.",
        "integrations": [
            {
                "integration-name": "EKS Batch",
                "external-doc-url": "https://docs.aws.amazon.com/batch/latest/userguide/eks.html",
                "tags": ["service"],
            }
        ],
        "operators": [_modules("operators")],
        "sensors": [_modules("sensors")],
        "hooks": [_modules("hooks")],
        "triggers": [_modules("triggers")],
        "connection-types": [_connection_type()],
        "extra-links": ["airflow_eksbatch.links.EKSBatchJobLink"],
        # The plugin is found by its own entry point.
    }


def _modules(name: str) -> dict[str, Any]:
    return {"integration-name": "EKS Batch", "python-modules": [f"airflow_eksbatch.{name}"]}


def _connection_type() -> dict[str, Any]:
    return {
        "connection-type": "eksbatch",
        "hook-class-name": "airflow_eksbatch.hooks.EKSBatchHook",
        "hook-name": "EKS Batch",
        "ui-field-behaviour": {
            "relabeling": {
                "login": "Access key id",
                "password": "Secret access key",
                "schema": "http or https",
            },
            "placeholders": {
                "host": "empty: the embedded service; or a name, or a full URL",
                "port": "8642",
                "login": "empty if the service is open",
            },
        },
        "conn-fields": {
            "region": {
                "label": "Region",
                "description": "The region requests are signed for (default us-east-1)",
                "schema": {"type": ["string", "null"]},
            },
            "verify": {
                "label": "Verify TLS certificate",
                "schema": {"type": ["boolean", "null"], "default": True},
            },
            "deployment": {
                "label": "Deployment",
                "description": "Name of this Airflow, if another one with the same DAGs uses the same service",
                "schema": {"type": ["string", "null"]},
            },
            "dashboard_url": {
                "label": "Dashboard URL",
                "description": "Where people see the dashboard (default: in Airflow, menu entry EKS Batch)",
                "schema": {"type": ["string", "null"]},
            },
        },
    }
