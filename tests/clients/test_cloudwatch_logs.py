"""boto3's CloudWatch Logs client, unchanged: outputs of pods where clients of AWS Batch look for them."""

from __future__ import annotations

from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.airflow.processes import wait_for
from tests.service.running import RunningService, a_definition

GROUP = "/aws/batch/job"


@pytest.fixture(scope="module")
def logs(service: RunningService) -> Any:
    return boto3.client(
        "logs",
        endpoint_url=service.url,
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )


def stream_of(service: RunningService, batch: Any, queue: str, line: str, **fields: Any) -> str:
    """Run a shell line; where DescribeJobs says its output is."""
    made = batch.submit_job(
        jobName="x", jobQueue=queue, jobDefinition=a_definition(batch, "sh", "-c", line), **fields
    )
    service.wait_for_ends({made["jobId"]})
    child = f"{made['jobId']}:1" if "arrayProperties" in fields else made["jobId"]
    (job,) = batch.describe_jobs(jobs=[child])["jobs"]
    return str(job["container"]["logStreamName"])


def messages(page: dict[str, Any]) -> list[str]:
    return [event["message"] for event in page["events"]]


def test_output_is_read_line_by_line_from_its_head_and_the_end_is_a_token_that_stays(
    service: RunningService, batch: Any, queue: str, logs: Any
) -> None:
    stream = stream_of(service, batch, queue, "seq 1 5; printf 'no end'")
    asked: dict[str, Any] = {"logGroupName": GROUP, "logStreamName": stream}
    page = logs.get_log_events(startFromHead=True, limit=4, **asked)
    assert messages(page) == ["1", "2", "3", "4"]
    page = logs.get_log_events(nextToken=page["nextForwardToken"], **asked)
    assert messages(page) == ["5", "no end"]
    token = page["nextForwardToken"]
    page = logs.get_log_events(nextToken=token, **asked)
    assert (messages(page), page["nextForwardToken"]) == ([], token)


def test_the_last_lines_come_first_without_start_from_head(
    service: RunningService, batch: Any, queue: str, logs: Any
) -> None:
    stream = stream_of(service, batch, queue, "seq 1 9")
    asked: dict[str, Any] = {"logGroupName": GROUP, "logStreamName": stream}
    page = logs.get_log_events(limit=3, **asked)
    assert messages(page) == ["7", "8", "9"]
    before = logs.get_log_events(nextToken=page["nextBackwardToken"], limit=4, **asked)
    assert messages(before) == ["3", "4", "5", "6"]
    first = logs.get_log_events(nextToken=before["nextBackwardToken"], **asked)
    assert messages(first) == ["1", "2"]
    none = logs.get_log_events(nextToken=first["nextBackwardToken"], **asked)
    assert messages(none) == []


def test_children_of_an_array_have_streams_of_their_own(
    service: RunningService, batch: Any, queue: str, logs: Any
) -> None:
    line = "echo child $AWS_BATCH_JOB_ARRAY_INDEX"
    stream = stream_of(service, batch, queue, line, arrayProperties={"size": 2})
    assert messages(logs.get_log_events(logGroupName=GROUP, logStreamName=stream)) == ["child 1"]


def test_a_job_has_a_stream_for_each_attempt(
    service: RunningService, batch: Any, queue: str, logs: Any
) -> None:
    stream = stream_of(
        service, batch, queue, "echo $AWS_BATCH_JOB_ATTEMPT; exit 1", retryStrategy={"attempts": 2}
    )
    found = logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=stream[:36])
    names = [row["logStreamName"] for row in found["logStreams"]]
    assert stream == names[-1]
    outputs = [messages(logs.get_log_events(logGroupName=GROUP, logStreamName=n)) for n in names]
    assert outputs == [["1"], ["2"]]


def test_a_line_longer_than_an_answer_arrives_in_parts(
    service: RunningService, batch: Any, queue: str, logs: Any
) -> None:
    line = "head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end"
    stream = stream_of(service, batch, queue, line)
    asked: dict[str, Any] = {"logGroupName": GROUP, "logStreamName": stream}
    page = logs.get_log_events(startFromHead=True, **asked)
    read: list[str] = []
    while page["events"]:
        read += messages(page)
        page = logs.get_log_events(nextToken=page["nextForwardToken"], **asked)
    assert read[-1] == "end"
    assert "".join(read[:-1]) == "x" * 3_000_000


def test_every_line_that_is_kept_of_a_huge_output_is_read_once_in_both_directions(
    service: RunningService, batch: Any, queue: str, logs: Any
) -> None:
    """Of 20 MB the first four are dropped; whoever begins at the head begins with what is left."""
    stream = stream_of(service, batch, queue, "seq -f %01000g 1 20000")
    asked: dict[str, Any] = {"logGroupName": GROUP, "logStreamName": stream}

    def without_its_head() -> dict[str, Any] | None:
        """It is put away a moment after the job has ended."""
        page = logs.get_log_events(startFromHead=True, **asked)
        return None if int(messages(page)[0]) == 1 else page

    page = wait_for("the output to be put away", without_its_head, within_s=60)
    onwards: list[str] = []
    while page["events"] and len(onwards) < 30_000:
        onwards += messages(page)
        page = logs.get_log_events(nextToken=page["nextForwardToken"], **asked)
    numbers = [int(line) for line in onwards[1:]]
    assert 3_000 < numbers[0] < 6_000
    assert numbers == list(range(numbers[0], 20_001))

    page = logs.get_log_events(**asked)
    back: list[str] = []
    while page["events"] and len(back) < 30_000:
        back = messages(page) + back
        page = logs.get_log_events(nextToken=page["nextBackwardToken"], **asked)
    assert back[-len(numbers) :] == onwards[1:]
    assert len(back) <= len(onwards)


def test_a_prefix_that_no_database_can_be_asked_for_is_refused(logs: Any) -> None:
    with pytest.raises(ClientError) as refused:
        logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix="a\0" * 30)
    assert refused.value.response["Error"]["Code"] == "InvalidParameterException"


@pytest.mark.parametrize(
    ("group", "stream", "token", "code"),
    [
        ("/aws/lambda/x", "x", "f/0", "ResourceNotFoundException"),
        (GROUP, "nothing", "f/0", "ResourceNotFoundException"),
        (GROUP, "nothing-0-1", "f/0", "ResourceNotFoundException"),
        (GROUP, "ü-0-1", "f/0", "ResourceNotFoundException"),
        (GROUP, "", "f/0", "InvalidParameterException"),
        (GROUP, "existing", "start", "InvalidParameterException"),
        (GROUP, "existing", "f/-1", "InvalidParameterException"),
    ],
)
def test_what_there_is_not_is_told_in_the_codes_of_cloudwatch(
    service: RunningService,
    batch: Any,
    queue: str,
    logs: Any,
    group: str,
    stream: str,
    token: str,
    code: str,
) -> None:
    name = stream_of(service, batch, queue, "true") if stream == "existing" else stream
    if not name:
        with pytest.raises(ClientError) as refused:
            logs.describe_log_streams(logGroupName=group)
    else:
        with pytest.raises(ClientError) as refused:
            logs.get_log_events(logGroupName=group, logStreamName=name, nextToken=token)
    assert refused.value.response["Error"]["Code"] == code


def test_operations_that_are_not_served_are_named(logs: Any) -> None:
    with pytest.raises(ClientError) as refused:
        logs.describe_log_groups()
    assert "DescribeLogGroups" in str(refused.value)
