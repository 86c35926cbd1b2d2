"""containerProperties on a pod: what becomes of each member, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_eksbatch.api.wire.container_properties import pod_from_container
from airflow_eksbatch.cluster.containers import expand
from airflow_eksbatch.core.model.errors import Rejected
from tests.api.asking import refusal
from tests.service.running import RunningService

NEEDS = [{"type": "VCPU", "value": "1"}, {"type": "MEMORY", "value": "1024"}]


def pod_of(**fields: Any) -> dict[str, Any]:
    return pod_from_container({"image": "busybox", "resourceRequirements": NEEDS, **fields})


def container_of(**fields: Any) -> dict[str, Any]:
    (container,) = pod_of(**fields)["containers"]
    return dict(container)


def test_a_container_becomes_the_only_one_of_a_pod_and_keeps_its_entrypoint() -> None:
    pod = pod_of(command=["true"], environment=[{"name": "A", "value": "b"}, {"value": "nameless"}])
    assert pod == {
        "containers": [
            {
                "image": "busybox",
                "args": ["true"],
                "env": [{"name": "A", "value": "b"}],
                "resources": {
                    "requests": {"cpu": "1", "memory": "1024Mi"},
                    "limits": {"memory": "1024Mi"},
                },
            }
        ]
    }


def test_vcpus_and_memory_of_old_stand_where_no_requirements_do() -> None:
    gpu = [{"type": "GPU", "value": "2"}, {"type": "MEMORY", "value": "64"}]
    found = pod_from_container(
        {"image": "x", "vcpus": 2, "memory": 512, "resourceRequirements": gpu}
    )["containers"][0]["resources"]
    assert found == {
        "requests": {"cpu": "2", "memory": "64Mi", "nvidia.com/gpu": "2"},
        "limits": {"memory": "64Mi", "nvidia.com/gpu": "2"},
    }


def test_volumes_of_the_host_and_of_the_job_alone_are_mounted_under_names_of_ours() -> None:
    pod = pod_of(
        volumes=[
            {"name": "_mnt_data", "host": {"sourcePath": "/mnt/data"}},
            {"name": "scratch", "host": {}},
            {"name": "unused"},
        ],
        mountPoints=[
            {"sourceVolume": "_mnt_data", "containerPath": "/data", "readOnly": True},
            {"sourceVolume": "scratch", "containerPath": "/scratch"},
            {"sourceVolume": "scratch", "containerPath": "/again", "readOnly": False},
        ],
    )
    assert pod["volumes"] == [
        {"name": "volume-1", "hostPath": {"path": "/mnt/data"}},
        {"name": "volume-2", "emptyDir": {}},
        {"name": "volume-3", "emptyDir": {}},
    ]
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": "volume-1", "mountPath": "/data", "readOnly": True},
        {"name": "volume-2", "mountPath": "/scratch"},
        {"name": "volume-2", "mountPath": "/again"},
    ]


def test_linux_parameters_that_pods_know_are_taken() -> None:
    pod = pod_of(
        linuxParameters={
            "sharedMemorySize": 256,
            "tmpfs": [{"containerPath": "/ram", "size": 64, "mountOptions": ["defaults"]}],
            "initProcessEnabled": True,
            "maxSwap": 0,
            "swappiness": 60,
            "devices": [],
        },
        volumes=[{"name": "a"}],
        mountPoints=[{"sourceVolume": "a", "containerPath": "/a"}],
    )
    assert pod["shareProcessNamespace"] is True
    assert pod["volumes"] == [
        {"name": "volume-1", "emptyDir": {}},
        {"name": "memory-1", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
        {"name": "memory-2", "emptyDir": {"medium": "Memory", "sizeLimit": "64Mi"}},
    ]
    assert [m["mountPath"] for m in pod["containers"][0]["volumeMounts"]] == [
        "/a", "/dev/shm", "/ram"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ({"privileged": True}, {"privileged": True}),
        ({"privileged": False, "readonlyRootFilesystem": False, "user": ""}, None),
        ({"readonlyRootFilesystem": True}, {"readOnlyRootFilesystem": True}),
        ({"user": "1000"}, {"runAsUser": 1000}),
        ({"user": "1000:0"}, {"runAsUser": 1000, "runAsGroup": 0}),
    ],
)
def test_who_runs_it_is_said_in_the_security_context(
    fields: dict[str, Any], context: dict[str, Any] | None
) -> None:
    assert container_of(**fields).get("securityContext") == context


@pytest.mark.parametrize(
    "word", ["$$", "echo $$ $(AWS_BATCH_JOB_ID) $(date) $1", "$", "$$$", "a$$(A)", "plain"]
)
def test_words_reach_the_container_as_they_are(word: str) -> None:
    """Kubernetes would fill in variables and halve dollars; ECS hands them on to the shell."""
    container = container_of(command=[word], environment=[{"name": "A", "value": word}])
    values = {"AWS_BATCH_JOB_ID": "j", "A": "a"}
    assert expand(container["args"][0], values) == word
    assert expand(container["env"][0]["value"], values) == word


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"secrets": [{"name": "A", "valueFrom": "arn:x"}]}, "containerProperties.secrets is not"),
        ({"ulimits": [{"name": "nofile", "softLimit": 1, "hardLimit": 1}]}, "ulimits"),
        ({"networkConfiguration": {"assignPublicIp": "ENABLED"}}, "only Fargate"),
        ({"fargatePlatformConfiguration": {"platformVersion": "1"}}, "only Fargate"),
        ({"ephemeralStorage": {"sizeInGiB": 30}}, "only Fargate"),
        ({"runtimePlatform": {"cpuArchitecture": "ARM64"}}, "tag kubernetes.io/arch"),
        ({"instanceType": "m5.large"}, "node.kubernetes.io/instance-type"),
        ({"repositoryCredentials": {"credentialsParameter": "x"}}, "imagePullSecrets"),
        ({"user": "nobody"}, "must be a number, such as 1000"),
        ({"linuxParameters": {"devices": [{"hostPath": "/dev/neuron0"}]}}, "devices"),
        ({"linuxParameters": {"maxSwap": 1024}}, "nodes have no swap"),
        (
            {"linuxParameters": {"tmpfs": [
                {"containerPath": "/t", "size": 1, "mountOptions": ["noexec"]}
            ]}},
            "takes defaults and rw",
        ),
        (
            {"volumes": [{"name": "e", "efsVolumeConfiguration": {"fileSystemId": "fs-1"}}]},
            "persistent volume claims",
        ),
        ({"mountPoints": [{"sourceVolume": "gone", "containerPath": "/x"}]}, "does not have"),
        ({"mountPoints": [{"containerPath": "/x"}]}, "volume ''"),
    ],
)  # fmt: skip
def test_what_a_pod_cannot_do_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(Rejected) as refused:
        pod_of(**fields)
    assert words in refused.value.message


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": "x"}, "a request or a limit for cpu"),
        ({"image": "x", "vcpus": 1}, "a request or a limit for memory"),
        ({"vcpus": 1, "memory": 64}, "needs an image"),
        ({"image": "x", "vcpus": 1, "memory": 2}, "from 4Mi on"),
        (
            {"image": "x", "vcpus": 1, "memory": 64, "environment": [{"name": "AWS_BATCH_X"}]},
            "reserved",
        ),
    ],
)
def test_the_rules_of_pods_hold_for_it(batch: Any, fields: dict[str, Any], words: str) -> None:
    given = {"jobDefinitionName": "refused", "type": "container", "containerProperties": fields}
    assert words in refusal(batch.register_job_definition, **given)


def test_a_definition_is_told_back_in_the_words_in_which_it_was_registered(
    service: RunningService, batch: Any, queue: str
) -> None:
    """Parameters and overrides are literal, too, and the job's container tells what ran."""
    given = {
        "image": "busybox",
        "command": ["sh", "-c", "echo Ref::say $$ $(echo $A) '$(AWS_BATCH_JOB_ID)'"],
        "environment": [{"name": "A", "value": "$(HOME)"}],
        "resourceRequirements": [
            {"type": "VCPU", "value": "0.25"}, {"type": "MEMORY", "value": "64"}
        ],
        "jobRoleArn": "arn:aws:iam::000000000000:role/job",
        "linuxParameters": {},
    }  # fmt: skip
    batch.register_job_definition(
        jobDefinitionName="of-ecs",
        type="container",
        containerProperties=given,
        parameters={"say": "'$(A)'"},
        propagateTags=True,
        platformCapabilities=["EC2"],
    )
    (found,) = batch.describe_job_definitions(jobDefinitionName="of-ecs")["jobDefinitions"]
    assert found["containerProperties"] == given
    assert "eksProperties" not in found
    submit = {"jobName": "x", "jobQueue": queue, "jobDefinition": "of-ecs"}
    script = 'echo "Ref::say $A $B"; test $$ -gt 1'
    override = {
        "command": ["sh", "-c", script],
        "environment": [{"name": "B", "value": "$(A)$$"}],
    }
    plain = batch.submit_job(**submit)["jobId"]
    changed = batch.submit_job(
        **submit, containerOverrides=override, parameters={"say": "$A"}, propagateTags=True
    )["jobId"]
    assert service.wait_for_ends({plain, changed})[changed] == "SUCCEEDED"
    assert service.get(f"/v1/eksbatch/jobs/{changed}/log") == "$(HOME) $(HOME) $(A)$$\n"
    words = service.get(f"/v1/eksbatch/jobs/{plain}/log").split()
    assert words[0] == "$(A)"
    assert words[1].isdigit(), "$$ is the number of the shell"
    assert words[2:] == ["$(HOME)", "$(AWS_BATCH_JOB_ID)"]
    (job,) = batch.describe_jobs(jobs=[changed])["jobs"]
    assert job["container"]["command"] == ["sh", "-c", script.replace("Ref::say", "$A")]
    assert job["container"]["exitCode"] == 0


def test_command_and_arguments_are_what_a_container_is_told_to_run(
    batch: Any, idle_queue: str
) -> None:
    container = {
        "image": "busybox",
        "command": ["sh"],
        "args": ["-c", "true"],
        "resources": {"requests": {"cpu": "0.25", "memory": "64Mi"}},
    }
    batch.register_job_definition(
        jobDefinitionName="both",
        type="container",
        eksProperties={"podProperties": {"containers": [container]}},
    )
    job_id = batch.submit_job(jobName="x", jobQueue=idle_queue, jobDefinition="both")["jobId"]
    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    assert job["container"]["command"] == ["sh", "-c", "true"]
