"""The real process, asked by boto3: it runs jobs, stops cleanly, waits in line, and says what is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from botocore.exceptions import ClientError

from airflow_eksbatch.store import migrations
from tests.airflow.processes import wait_for
from tests.service.conftest import MakeService
from tests.service.older import an_older_database, end_lease, schema_version, set_version
from tests.service.running import RunningService, a_definition, pod_pids, submit

QUICK = ("--launch-delay-s", "0.1", "--idle-s", "5")


def cli(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The command line, to its end."""
    clean = {name: value for name, value in os.environ.items() if "EKSBATCH" not in name}
    return subprocess.run(
        [sys.executable, "-m", "airflow_eksbatch.cli", *arguments],
        capture_output=True,
        text=True,
        env=clean | environ,
        timeout=60,
    )


def one_sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """What a command that exits with 2 says."""
    assert ended.returncode == 2, ended.stdout + ended.stderr
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, ended.stderr
    return lines[0]


def test_a_job_runs_to_its_end_and_the_instance_goes_afterwards(service: RunningService) -> None:
    batch = service.batch()
    job_id = submit(batch, a_definition(batch, "echo", "hello"))
    assert service.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
    (job,) = batch.describe_jobs(jobs=[job_id])["jobs"]
    assert job["status"] == "SUCCEEDED"
    assert service.get(f"/v1/eksbatch/jobs/{job_id}/log") == "hello\n"
    assert service.get("/readyz") == {"status": "ready"}
    assert 'eksbatch_jobs_ended_total{queue="default",status="SUCCEEDED"} 1.0' in service.get(
        "/metrics"
    )


def test_a_clean_stop_leaves_pods_running_and_the_next_start_finds_them(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 a job waits for a file 2 SIGTERM 3 its process lives 4 a new start 5 the file 6 it ends well."""
    go = tmp_path / "go"
    service = make_service(*QUICK).start()
    batch = service.batch()
    job_id = submit(
        batch, a_definition(batch, "sh", "-c", f"until [ -e {go} ]; do sleep 0.1; done; echo went")
    )
    service.wait_for(lambda event: event["status"] == "RUNNING")
    assert service.stop() == 0
    assert len(pod_pids(service.home)) == 1
    assert not (service.home / "service.json").exists()
    service.start()
    go.touch()
    assert service.wait_for_ends({job_id}) == {job_id: "SUCCEEDED"}
    assert service.get(f"/v1/eksbatch/jobs/{job_id}/log") == "went\n"
    assert service.get("/v1/eksbatch/summary")["attempts"] == 1


def test_one_home_has_one_service_and_a_second_start_names_it(make_service: MakeService) -> None:
    service = make_service().start()
    second = cli("local", "--home", str(service.home))
    assert (second.returncode, second.stdout.strip()) == (0, service.url)


def test_a_second_service_on_the_database_stands_by_and_takes_over(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 one beats 2 another stands by 3 the first is killed 4 the second takes over, with its jobs."""
    database = ("--database", f"sqlite:///{tmp_path / 'shared.db'}", "--lease-s", "5")
    first = make_service(*database, *QUICK, "--port", "0", home=tmp_path / "one").start()
    batch = first.batch()
    definition = a_definition(batch, "true")
    second = make_service(*database, *QUICK, "--port", "0", home=tmp_path / "two", command="serve")
    second.start_beside()
    assert "standing by" in second.text
    assert "ready" not in second.text, "it began although another beats"
    first.kill()
    second.wait_until_ready()
    assert second.batch().describe_job_definitions()["jobDefinitions"][0]["jobDefinitionArn"] == (
        definition
    )
    assert second.stop() == 0


def test_a_standby_of_a_private_service_is_not_ready(
    make_service: MakeService, tmp_path: Path
) -> None:
    database = ("--database", f"sqlite:///{tmp_path / 'shared.db'}", "--lease-s", "5")
    make_service(*database, home=tmp_path / "one").start()
    second, port = a_replica(make_service, tmp_path, *database)
    stand_by(second, port)
    assert second.status_of("/healthz") == 200
    assert second.status_of("/readyz") == 503
    with pytest.raises(ClientError) as refused:
        second.batch(retries={"total_max_attempts": 1}).describe_job_queues()
    assert refused.value.response["Error"]["Code"] == "ServerException"
    assert "replica" in refused.value.response["Error"]["Message"]
    assert refused.value.response["ResponseMetadata"]["RequestId"]
    assert second.stop() == 0


def test_two_private_services_of_one_database_do_not_both_lead(
    make_service: MakeService, tmp_path: Path
) -> None:
    database = ("--database", f"sqlite:///{tmp_path / 'shared.db'}", "--lease-s", "5")
    make_service(*database, home=tmp_path / "one").start()
    second = make_service(*database, home=tmp_path / "two")
    second.start_beside()
    assert "ready" not in second.text
    assert str(tmp_path / "one") in second.text, "whom it waits for"
    assert "Ctrl-C or SIGTERM ends this one" in second.text


def a_replica(make_service: MakeService, place: Path, *options: str) -> tuple[RunningService, int]:
    """Another service of the database, on a port that is known before it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = place / f"replica-{port}"
    return make_service(*options, "--port", str(port), home=home, command="serve"), port


def stand_by(replica: RunningService, port: int) -> None:
    """Start it, until it says that it stands by."""
    replica.begin()
    assert replica.process is not None
    assert replica.process.stdout is not None
    assert any("standing by" in line for line in replica.process.stdout)
    replica.url = f"http://127.0.0.1:{port}"


def test_a_standby_serves_the_api_and_goes_on_alone_when_the_leader_is_killed(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 signed calls through the standby 2 the leader is killed in a burst 3 every job accepted is there."""
    database = f"sqlite:///{tmp_path / 'shared.db'}"
    options = ("--database", database, "--lease-s", "5", "--auth", "sigv4")
    made = cli("keys", "create", "--json", "--database", database)
    key = json.loads(made.stdout)
    leader = a_replica(make_service, tmp_path, *options)[0].start()
    standby, port = a_replica(make_service, tmp_path, *options)
    stand_by(standby, port)
    batch = standby.batch(
        key["accessKeyId"], key["secretAccessKey"], retries={"total_max_attempts": 30}
    )
    policy = batch.create_scheduling_policy(name="p")["arn"]
    assert batch.list_tags_for_resource(resourceArn=policy)["tags"] == {}
    # With a lease so short, one that is late with renewing it is not sure for a moment.
    for replica, leads in ((leader, "1.0"), (standby, "0.0")):
        told = {"eksbatch_ready 1.0", f"eksbatch_leader {leads}"}
        wait_for(
            f"{replica.url} to say so",
            lambda replica=replica, told=told: told <= set(replica.get("/metrics").splitlines()),
            within_s=30,
        )
    cluster = "arn:aws:eks:us-east-1:123456789012:cluster/c"
    batch.create_compute_environment(
        computeEnvironmentName="ce",
        type="UNMANAGED",
        eksConfiguration={"eksClusterArn": cluster, "kubernetesNamespace": "batch"},
    )
    order = [{"order": 1, "computeEnvironment": "ce"}]
    batch.create_job_queue(jobQueueName="q", priority=1, computeEnvironmentOrder=order)
    definition = a_definition(batch, "true")
    accepted: list[str] = []
    for number in range(60):
        if number == 20:
            leader.kill()
        accepted.append(
            batch.submit_job(jobName="j", jobQueue="q", jobDefinition=definition)["jobId"]
        )
    assert len(set(accepted)) == 60
    found = batch.get_paginator("list_jobs").paginate(jobQueue="q", jobStatus="RUNNABLE")
    assert {job["jobId"] for page in found for job in page["jobSummaryList"]} == set(accepted)
    assert standby.status_of("/readyz") == 200
    assert standby.stop() == 0


def test_more_waiting_requests_than_the_inbox_holds_are_told_to_slow_down(
    make_service: MakeService,
) -> None:
    """A beat of a second and an inbox of five: of thirty at once, some get 429 and none gets lost."""
    service = make_service("--inbox", "5", "--beat-ms", "1000", *QUICK).start()
    batch = service.batch(max_pool_connections=30, retries={"total_max_attempts": 1})
    definition = a_definition(batch, "true")
    accepted: list[str] = []
    refused: list[str] = []

    def try_once(number: int) -> None:
        try:
            accepted.append(submit(batch, definition, f"job-{number}"))
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            refused.append(f"{status} {error.response['Error']['Code']}")

    callers = [threading.Thread(target=try_once, args=(number,)) for number in range(30)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert len(accepted) + len(refused) == 30
    assert set(refused) == {"429 TooManyRequestsException"}
    assert set(service.wait_for_ends(set(accepted)).values()) == {"SUCCEEDED"}


def test_a_full_disk_pauses_the_service_and_it_goes_on_by_itself(
    make_service: MakeService,
) -> None:
    """1 a database that may not grow 2 submits are refused, nothing is lost 3 it may grow 4 it goes on."""
    service = make_service("--sqlite-pages", "120", *QUICK).start()
    batch = service.batch(retries={"total_max_attempts": 1})
    definition = a_definition(batch, "true")
    accepted: list[str] = []

    def submit_for_ever() -> None:
        while True:
            accepted.append(submit(batch, definition))

    with pytest.raises(ClientError) as refused:
        submit_for_ever()
    assert refused.value.response["Error"]["Code"] == "ServerException"
    assert "No space is left" in refused.value.response["Error"]["Message"]
    assert accepted
    service.kill()
    service.options = QUICK
    service.start()
    assert set(service.wait_for_ends(set(accepted)).values()) == {"SUCCEEDED"}


def test_a_wrong_key_is_refused_and_a_created_one_is_not(make_service: MakeService) -> None:
    service = make_service("--auth", "sigv4")
    made = cli("keys", "create", "--json", "--home", str(service.home))
    key = json.loads(made.stdout)
    service.start()
    assert service.batch(key["accessKeyId"], key["secretAccessKey"]).describe_job_queues()
    for access_key, secret in ((key["accessKeyId"], "wrong"), ("EKSBNOBODY", "wrong")):
        with pytest.raises(ClientError) as refused:
            service.batch(access_key, secret).describe_job_queues()
        assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403
    listed = json.loads(cli("keys", "list", "--json", "--home", str(service.home)).stdout)
    assert key["accessKeyId"] in [row["accessKeyId"] for row in listed]
    asked = cli("queues", "--endpoint-url", service.url)
    assert "eksbatch keys create" in one_sentence(asked)
    signed = cli(
        "queues",
        "--endpoint-url",
        service.url,
        AWS_ACCESS_KEY_ID=key["accessKeyId"],
        AWS_SECRET_ACCESS_KEY=key["secretAccessKey"],
    )
    assert "default" in signed.stdout
    gone = cli("keys", "delete", key["accessKeyId"], "--home", str(service.home))
    assert gone.returncode == 0
    assert cli("keys", "delete", "EKSBNOBODY", "--home", str(service.home)).returncode == 1


def test_a_damaged_database_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "eksbatch.db").write_bytes(b"no database at all " * 1000)
    sentence = one_sentence(cli("local", "--home", str(tmp_path)))
    assert "damaged" in sentence


def test_a_newer_database_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    assert cli("migrate", "--home", str(tmp_path)).returncode == 0
    newer = (msgspec.msgpack.encode(len(migrations.STEPS) + 1), "schema_version")
    with contextlib.closing(sqlite3.connect(tmp_path / "eksbatch.db")) as connection:
        connection.execute("UPDATE eksbatch_meta SET body = ? WHERE key = ?", newer)
        connection.commit()
    assert "newer" in one_sentence(cli("serve", "--home", str(tmp_path), "--port", "0"))


def led_by_an_older_release(file: Path) -> int:
    """A database whose leader has its lease for an hour; its schema version."""
    return an_older_database(file, "http://127.0.0.1:9#older", (int(time.time()) + 3_600) * 1000)


def stands_by(make_service: MakeService, file: Path) -> RunningService:
    """A service of this release beside that leader."""
    service = make_service("--database", f"sqlite:///{file}", "--port", "0", command="serve")
    service.start_beside()
    return service


def test_a_standby_leaves_an_older_schema_to_whoever_leads(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 an older release leads 2 this one stands by 3 the other is gone 4 this one leads, with its own schema."""
    file = tmp_path / "older.db"
    older = led_by_an_older_release(file)
    service = stands_by(make_service, file)
    assert schema_version(file) == older
    end_lease(file)
    service.wait_until_ready()
    assert schema_version(file) == older + 1
    assert service.stop() == 0


def test_a_new_leader_waits_for_a_database_that_is_in_trouble_just_then(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 an older release leads and dies 2 the database takes the lease and no schema 3 it does again."""
    file = tmp_path / "older.db"
    older = led_by_an_older_release(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(
            "CREATE TRIGGER trouble BEFORE DELETE ON eksbatch_meta BEGIN SELECT RAISE(ABORT, 'not now'); END"
        )
    service = stands_by(make_service, file)
    end_lease(file)
    wait_for("its trouble", lambda: "not now" in service.text, within_s=60)
    assert schema_version(file) == older
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("DROP TRIGGER trouble")
    service.wait_until_ready()
    assert schema_version(file) == older + 1
    assert service.stop() == 0


def test_a_standby_that_a_newer_release_has_overtaken_ends_and_lets_the_lease_go(
    make_service: MakeService, tmp_path: Path
) -> None:
    """1 this one stands by 2 the leader is replaced by a newer release 3 which dies 4 this one cannot follow."""
    file, newer = tmp_path / "newer.db", len(migrations.STEPS) + 1
    led_by_an_older_release(file)
    service = stands_by(make_service, file)
    set_version(file, newer)
    end_lease(file)
    assert service.ended() == 2
    assert "start the newer release" in service.text
    assert "Traceback" not in service.text
    assert schema_version(file) == newer
    with contextlib.closing(sqlite3.connect(file)) as connection:
        (until,) = connection.execute("SELECT until FROM eksbatch_leases").fetchone()
    assert until <= time.time() * 1000


def test_a_bad_setting_a_taken_port_and_a_dead_service_are_one_sentence_each(
    service: RunningService, tmp_path: Path
) -> None:
    port = service.url.rpartition(":")[2]
    taken = cli("serve", "--home", str(tmp_path), "--port", port)
    assert "--port" in one_sentence(taken)
    assert "--beat-ms" in one_sentence(cli("serve", "--beat-ms", "fast"))
    assert "EKSBATCH_INBOX" in one_sentence(cli("serve", EKSBATCH_INBOX="none"))
    assert "postgresql" in one_sentence(cli("serve", "--database", "mysql://x"))
    service.kill()
    asked = cli("queues", "--endpoint-url", service.url)
    assert "eksbatch local" in one_sentence(asked)


def test_ctrl_c_ends_it_as_cleanly_as_sigterm(service: RunningService) -> None:
    assert service.process is not None
    service.process.send_signal(signal.SIGINT)
    assert service.process.wait(30) == 0
