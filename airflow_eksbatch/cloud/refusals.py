"""What EC2's error codes mean for us: wait and ask again, try another offering, or ask a person."""

from __future__ import annotations

import enum


class Meaning(enum.Enum):
    LATER = "the same request may be granted later"
    ELSEWHERE = "this pool has nothing for us now"
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
# Capacity and quotas: both change by themselves, or when somebody else's instances end.
ELSEWHERE = frozenset(
    {
        "DedicatedHostCapacityExceeded",
        "FleetMaxInstanceCountExceeded",
        "InstanceLimitExceeded",
        "InsufficientCapacity",
        "InsufficientCapacityOnHost",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientHostCapacity",
        "InsufficientInstanceCapacity",
        "InsufficientReservedInstanceCapacity",
        "MaxSpotInstanceCountExceeded",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "UnfulfillableCapacity",
        "Unsupported",
        "VcpuLimitExceeded",
        "VolumeLimitExceeded",
    }
)
NO_ADDRESSES = "InsufficientFreeAddressesInSubnet"
TOKEN_USED = "IdempotentParameterMismatch"
NO_INSTANCE = "InvalidInstanceID.NotFound"


def meaning_of(code: str) -> Meaning:
    """What is on neither list is a mistake in what was asked for, and stays one: a person is told the sentence."""
    if code in LATER:
        return Meaning.LATER
    return Meaning.ELSEWHERE if code in ELSEWHERE else Meaning.NEVER


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
