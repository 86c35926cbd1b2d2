"""What EC2's words mean for us: errors (wait and ask again, try another offering, or ask a person) and ends."""

from __future__ import annotations

import enum
import re
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_eksbatch.core.engine.effects import LaunchNode
from airflow_eksbatch.core.engine.facts import InstanceGone, LaunchRefused
from airflow_eksbatch.core.model.node import AT_ONCE, NodeId
from airflow_eksbatch.core.model.retry import INSTANCE_TERMINATED, INSTANCE_UNKNOWN
from airflow_eksbatch.floor.clock import now_ms


class Meaning(enum.Enum):
    LATER = "the same request may be granted later"
    ELSEWHERE = "this pool has nothing for us now"
    TYPE = "this instance type cannot be made as we ask for it, or none can"
    QUOTA = "the account may have no more of this class of types on this market"
    NEVER = "only a person can mend it"


THROTTLED = frozenset(
    {
        "EC2ThrottledException",
        "PriorRequestNotComplete",
        "RequestLimitExceeded",
        "RequestThrottled",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
# Said of the moment, not of what we asked for: nothing has been decided.
LATER = THROTTLED | {
    "AuthFailure",
    "ConcurrentTagAccess",
    "ExpiredToken",
    "ExpiredTokenException",
    "InternalError",
    "InternalFailure",
    "InternalServerError",
    "InvalidClientTokenId",
    "RequestExpired",
    "RequestTimeout",
    "ServerInternal",
    "ServiceUnavailable",
    "ServiceUnavailableException",
    "SignatureDoesNotMatch",
    "Unavailable",
    "UnrecognizedClientException",
}
# Capacity of a zone or of a type there: it changes by itself. EC2 answers some of them with 500, as if it had failed.
ELSEWHERE = frozenset(
    {
        "BandwidthLimitExceeded",
        "DedicatedHostCapacityExceeded",
        "InsufficientAddressCapacity",
        "InsufficientCapacity",
        "InsufficientCapacityOnHost",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "InsufficientReservedInstancesCapacity",
        "InsufficientVolumeCapacity",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",
        "VolumeTypeNotAvailableInZone",
    }
)
# Said of a type that does not go with the rest of the request (image, placement group, CPU options of a template), and
# in the same words of a request that no type could fulfil: Doubts tells them apart.
TYPE = frozenset(
    {
        "AttachmentLimitExceeded",
        "InvalidParameter",
        "InvalidParameterCombination",
        "InvalidParameterDependency",
        "InvalidParameterValue",
        "PrivateIpAddressLimitExceeded",
        "UnsupportedOperation",
    }
)
# The account's own bounds: room comes when its instances end, or a person asks AWS for more. Those on volumes and network
# interfaces hold for all types: each class of types, from its larger to its smaller ones, is then refused and rests.
QUOTA = frozenset(
    {
        "FleetMaxInstanceCountExceeded",
        "InstanceLimitExceeded",
        "MaxIOPSLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "NetworkInterfaceLimitExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
NO_ADDRESSES = "InsufficientFreeAddressesInSubnet"
TOKEN_USED = "IdempotentParameterMismatch"
TOKEN_ENDED = "IdempotentInstanceTerminated"
NO_INSTANCE = "InvalidInstanceID.NotFound"
# So many different ones that say the same are taken for all.
TYPES_ENOUGH = 3


def meaning_of(code: str, message: str = "") -> Meaning:
    """What is on no list is a mistake in what was asked for, and stays one: a person is told the sentence."""
    if code == "AuthFailure" and "images" in message:
        return Meaning.NEVER  # Not our credentials: the image is not shared with this account
    known = (
        (LATER, Meaning.LATER),
        (ELSEWHERE, Meaning.ELSEWHERE),
        (TYPE, Meaning.TYPE),
        (QUOTA, Meaning.QUOTA),
    )
    return next((meaning for codes, meaning in known if code in codes), Meaning.NEVER)


class Doubts:
    """Whether a no is about one instance type or about all that a compute environment asks for.

    One type that does not go with a template must not take an environment of thirty out of service; and an environment of
    which nothing can be made must not ask for each of them again every half hour, with nobody told.
    """

    def __init__(self) -> None:
        self._types: dict[str, set[str]] = {}

    def judge(self, effect: LaunchNode, code: str, message: str, types: Collection[str]) -> Meaning:
        """`types` are all that the environment may buy: as soon as enough of them were refused, and none made, it is NEVER."""
        meaning = meaning_of(code, message)
        if meaning is not Meaning.TYPE:
            return meaning
        refused = self._types.setdefault(effect.compute_environment, set())
        refused.add(effect.offering.instance_type)
        enough = len(refused) >= min(TYPES_ENOUGH, len(set(types))) and len(
            _families(refused)
        ) >= min(TYPES_ENOUGH, len(_families(types)))
        return Meaning.NEVER if enough else Meaning.TYPE

    def forget(self, environment: str) -> None:
        """One of its types was made, or a person may have mended it."""
        self._types.pop(environment, None)


def _families(types: Collection[str]) -> set[str]:
    return {name.partition(".")[0] for name in types}


class JustRefused:
    """What EC2 has just said no to, so that launches which are still in line are not asked for in vain.

    The core leaves refused pools alone by itself, but it learns of a no a beat later, when a hundred may be on their way.
    """

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._said: dict[str, tuple[str, str, float, int]] = {}

    def note(self, effect: LaunchNode, meaning: Meaning, code: str, message: str) -> None:
        pool, quota, environment = scopes_of(effect, at_once=effect.all_or_none)
        scope = {Meaning.QUOTA: quota, Meaning.NEVER: environment}.get(meaning, pool)
        # What is left of a quota may still be enough for a smaller machine.
        least = effect.offering.vcpus if scope == quota else 0
        self._said[scope] = (code, message, time.monotonic() + self._kept_s, least)

    def about(self, effect: LaunchNode) -> tuple[str, str] | None:
        """Code and sentence of a no that holds for this launch as well."""
        for at_once in {False, effect.all_or_none}:
            for scope in scopes_of(effect, at_once=at_once):
                code, message, until, least = self._said.get(scope, ("", "", 0.0, 0))
                if time.monotonic() < until and effect.offering.vcpus >= least:
                    return code, message
        return None

    def forget(self, environment: str) -> None:
        """A person may have mended it."""
        self._said.pop(f"environment {environment}", None)


def scopes_of(effect: LaunchNode, *, at_once: bool) -> tuple[str, str, str]:
    """Where a no may hold: its pool, its quota, its compute environment. A no to several at once says nothing of one."""
    offering, how = effect.offering, AT_ONCE if at_once else ""
    return (
        f"{offering.pool}{how}",
        f"quota {offering.quota}{how}",
        f"environment {effect.compute_environment}",
    )


# What to do about the ones that a person must mend, where EC2's own sentence does not say it.
_HINTS = {
    "AuthFailure": "Share the image with this account, or update imageIdOverride.",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": "Spot needs its role once in an account: "
    "aws iam create-service-linked-role --aws-service-name spot.amazonaws.com",
    "OperationNotPermitted": "Nodes must be free to be given back: "
    "aws ec2 modify-instance-attribute --instance-id ID --no-disable-api-termination",
    "UnauthorizedOperation": "The service's role lacks a right; docker/iam/service.json has those it needs.",
    "InvalidSubnetID.NotFound": "Update the compute environment's subnets.",
    "InvalidAMIID.NotFound": "Update imageIdOverride, or leave it out for the image that EKS recommends.",
    "InvalidAMIID.Unavailable": "Update imageIdOverride, or leave it out for the image that EKS recommends.",
    "InvalidGroup.NotFound": "Update the compute environment's securityGroupIds.",
    "InvalidKeyPair.NotFound": "Update the compute environment's ec2KeyPair.",
    "OptInRequired": "Subscribe to the image in the AWS Marketplace, or use another.",
    "PendingVerification": "AWS is still verifying the account for this region.",
}


def sentence_of(code: str, message: str) -> str:
    """EC2's sentence and what to do; what it encodes for itself behind it is left out."""
    said = message.partition(" Encoded authorization failure message")[0].strip().rstrip(".")
    hint = _HINTS.get(code)
    return f"{said}. {hint}" if hint else f"{said}."


def launch_refused(effect: LaunchNode, meaning: Meaning, code: str, message: str) -> LaunchRefused:
    return LaunchRefused(
        node_id=effect.node_id,
        code=code,
        message=sentence_of(code, message),
        at=now_ms(),
        quota=meaning is Meaning.QUOTA,
        for_good=meaning is Meaning.NEVER,
    )


# ---- ends

RECLAIMED = ("Server.SpotInstanceTermination", "Server.SpotInstanceShutdown")
# Such as "User initiated (2026-11-25 22:31:44 GMT)".
TRANSITION = re.compile(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)")


def end_from(node_id: NodeId, told: Mapping[str, Any], now: int) -> InstanceGone:
    """How an instance ended, as DescribeInstances tells it; EC2 bills to the moment at which it began to shut down."""
    state = told.get("StateReason") or {}
    reclaimed = state.get("Code") in RECLAIMED
    since = TRANSITION.search(told.get("StateTransitionReason") or "")
    at = now
    if since is not None:
        began = datetime.strptime(since[1], "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC)
        at = min(now, int(began.timestamp() * 1000))
    reason = "Spot instance was reclaimed" if reclaimed else state.get("Message")
    return InstanceGone(
        node_id=node_id, at=at, reason=reason or INSTANCE_TERMINATED, reclaimed=reclaimed
    )


def never_was(node_id: NodeId, reason: str = INSTANCE_UNKNOWN) -> InstanceGone:
    return InstanceGone(node_id=node_id, at=now_ms(), reason=reason)
