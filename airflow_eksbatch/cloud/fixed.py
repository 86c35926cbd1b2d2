"""A cloud that only has the machines you list: each is taken once, free of charge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from airflow_eksbatch.cloud.embedded import EmbeddedCloud, Hosts
from airflow_eksbatch.cloud.instances import CloudSettings
from airflow_eksbatch.cloud.offerings import BUNDLES
from airflow_eksbatch.core.model.compute_environment import ComputeEnvironment, Market
from airflow_eksbatch.core.model.node import Offering
from airflow_eksbatch.core.model.resources import Resources

ZONE = "fixed"
# The kubelet's own default.
PODS_DEFAULT = 110


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """One machine; all of what is said may be used by pods."""

    name: str
    vcpus: int
    memory_mib: int
    gpu: int = 0
    pods: int = PODS_DEFAULT
    architecture: str = "x86_64"

    @property
    def offering(self) -> Offering:
        return Offering(
            instance_type=self.name,
            zone=ZONE,
            market=Market.ON_DEMAND,
            vcpus=self.vcpus,
            memory_mib=self.memory_mib,
            gpu=self.gpu,
            architecture=self.architecture,
            allocatable=Resources(
                cpu_m=self.vcpus * 1000,
                memory_mib=self.memory_mib,
                gpu=self.gpu,
                pods=self.pods,
            ),
            price_usd_hour=0.0,
        )


class FixedCatalogue(msgspec.Struct, frozen=True, kw_only=True):
    """Machines by name; `optimal` means all of them."""

    machines: tuple[Machine, ...]

    def offerings(self, environment: ComputeEnvironment) -> tuple[Offering, ...]:
        if environment.market is Market.SPOT:
            raise ValueError("Fixed machines are never Spot capacity; use type EC2.")
        wanted = environment.instance_types
        if any(name in BUNDLES for name in wanted):
            return tuple(machine.offering for machine in self.machines)
        by_name = {machine.name: machine for machine in self.machines}
        unknown = [name for name in wanted if name not in by_name]
        if unknown or not wanted:
            raise ValueError(
                f"instanceTypes: there is no machine {', '.join(unknown) or 'named'}; listed are "
                f"{', '.join(by_name) or 'none'}."
            )
        return tuple(by_name[name].offering for name in wanted)


def fixed_cloud(directory: Path, hosts: Hosts, machines: Sequence[Machine]) -> EmbeddedCloud:
    """The embedded cloud with these machines for sale, once each and at once."""
    names = [machine.name for machine in machines]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Machines must differ by name; listed twice: {', '.join(twice)}.")
    return EmbeddedCloud(
        directory,
        hosts,
        catalogue=FixedCatalogue(machines=tuple(machines)),
        settings=CloudSettings(
            launch_delay_s=0.0, capacity={machine.offering.pool: 1 for machine in machines}
        ),
    )
