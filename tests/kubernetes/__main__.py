"""By hand, until Ctrl-C: EC2 (moto), its machines, a cluster and the service: `python -m tests.kubernetes --airflow`."""

from __future__ import annotations

import argparse
import signal
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.kubernetes.bed import a_plane
from tests.kubernetes.dag_runs import an_airflow, register_until_told
from tests.kubernetes.on_ec2 import a_service, an_account, create_environment, create_queue
from tests.kubernetes.rig.fake_nodes import FakeNodes
from tests.kubernetes.rig.joiner import Joiner
from tests.kubernetes.rig.machines import KwokMachines, RealMachines
from tests.kubernetes.rig.network import Network

HOW = """\
service and dashboard   {service}
AWS                     {aws}
cluster                 KUBECONFIG={kubeconfig}
Airflow                 {airflow}
a job                   AWS_ENDPOINT_URL_BATCH={service} aws batch submit-job --job-name a --job-queue queue --job-definition until-told
which lasts until       touch {told}/go
Ctrl-C ends all of it; logs are in {directory}"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.kubernetes", description=__doc__)
    parser.add_argument("--fake", action="store_true", help="machines that KWOK plays")
    parser.add_argument(
        "--airflow", action="store_true", help="with an Airflow and its DAG `bought`"
    )
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="eksbatch-")))
        network = stack.enter_context(Network())
        plane = stack.enter_context(
            a_plane(directory / "plane", address=network.address, with_scheduler=True)
        )
        FakeNodes(plane)
        account = stack.enter_context(an_account(plane))
        fake, real = KwokMachines(plane, account.ec2), RealMachines(plane, network)
        machines = fake if chosen.fake else real
        stack.enter_context(Joiner(account.door.url, plane, machines))
        service = stack.enter_context(a_service(plane, account, directory / "home"))
        create_environment(service, account)
        create_queue(service, "ce")
        register_until_told(service, directory)
        airflow = "--airflow starts one"
        if chosen.airflow:
            running = stack.enter_context(an_airflow())
            running.connect("ec2", service.url)
            airflow = f"{running.url}  (trigger the DAG `bought`)"
        told = {"kubeconfig": plane.kubeconfig(), "airflow": airflow, "told": directory}
        how = HOW.format(service=service.url, aws=account.door.url, directory=directory, **told)
        print(how, flush=True)
        try:
            signal.sigwait({signal.SIGINT, signal.SIGTERM})
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
