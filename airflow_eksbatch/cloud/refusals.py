"""What EC2's error codes mean for us: wait and ask again, try another offering, or ask a person."""

from __future__ import annotations

import enum
import time

from airflow_eksbatch.core.engine.effects import LaunchNode


class Meaning(enum.Enum):
    LATER = "the same request may be granted later"
    ELSEWHERE = "this pool has nothing for us now"
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
# Capacity: it changes by itself.
ELSEWHERE = frozenset(
    {
        "DedicatedHostCapacityExceeded",
        "InsufficientCapacity",
        "InsufficientCapacityOnHost",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",
    }
)
# The account's own bounds: room comes when its instances end, or a person asks AWS for more.
QUOTA = frozenset(
    {
        "FleetMaxInstanceCountExceeded",
        "InstanceLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
NO_ADDRESSES = "InsufficientFreeAddressesInSubnet"
TOKEN_USED = "IdempotentParameterMismatch"
NO_INSTANCE = "InvalidInstanceID.NotFound"


def meaning_of(code: str) -> Meaning:
    """What is on neither list is a mistake in what was asked for, and stays one: a person is told the sentence."""
    known = ((LATER, Meaning.LATER), (ELSEWHERE, Meaning.ELSEWHERE), (QUOTA, Meaning.QUOTA))
    return next((meaning for codes, meaning in known if code in codes), Meaning.NEVER)


class JustRefused:
    """What EC2 has just said no to, so that launches which are still in line are not asked for in vain.

    The core leaves refused pools alone by itself, but it learns of a no a beat later, when a hundred may be on their way.
    """

    def __init__(self, kept_s: float) -> None:
        self._kept_s = kept_s
        self._said: dict[str, tuple[str, str, float]] = {}

    def note(self, effect: LaunchNode, code: str, message: str) -> None:
        meanings = (Meaning.ELSEWHERE, Meaning.QUOTA, Meaning.NEVER)
        scope = scopes_of(effect)[meanings.index(meaning_of(code))]
        self._said[scope] = (code, message, time.monotonic() + self._kept_s)

    def about(self, effect: LaunchNode) -> tuple[str, str] | None:
        """Code and sentence of a no that holds for this launch as well."""
        for scope in scopes_of(effect):
            code, message, until = self._said.get(scope, ("", "", 0.0))
            if time.monotonic() < until:
                return code, message
        return None

    def forget(self, environment: str) -> None:
        """A person may have mended it."""
        self._said.pop(f"environment {environment}", None)


def scopes_of(effect: LaunchNode) -> tuple[str, str, str]:
    """Where a no may hold: its pool, its quota, its compute environment."""
    offering = effect.offering
    return offering.pool, f"quota {offering.quota}", f"environment {effect.compute_environment}"


# What to do about the ones that a person must mend, where EC2's own sentence does not say it.
_HINTS = {
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
