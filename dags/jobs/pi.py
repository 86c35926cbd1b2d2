"""The job of several_nodes: each node sums its part of a series for pi, and the main node adds the parts.

Standard library only, and short enough for `python3 -c`: no image has to carry it.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Client, Connection, Listener

TERMS = 1_000_000
NODES = int(os.environ["AWS_BATCH_JOB_NUM_NODES"])
NODE = int(os.environ["AWS_BATCH_JOB_NODE_INDEX"])
MAIN_NODE = int(os.environ["AWS_BATCH_JOB_MAIN_NODE_INDEX"])
JOB = os.environ["AWS_BATCH_JOB_ID"].partition("#")[0]
# The same on all nodes of a job, and another one for each job: the embedded service's nodes are one machine.
PORT = 20_000 + int(JOB[:4], 16) % 10_000


def main() -> None:
    part = sum((-1) ** k / (2 * k + 1) for k in range(NODE, TERMS, NODES))
    if NODE == MAIN_NODE:
        total = part + sum(parts_of_others())
        print(f"{NODES} nodes: pi is about {4 * total:.6f}")
    else:
        with main_node() as connection:
            connection.send_bytes(repr(part).encode())


def parts_of_others() -> list[float]:
    """One comes from each; should a node be lost, the job's timeout ends the wait."""
    found = []
    with Listener(("", PORT), backlog=NODES, authkey=JOB.encode()) as listener:
        for _ in range(NODES - 1):
            with listener.accept() as connection:
                found.append(float(connection.recv_bytes()))
    return found


def main_node() -> Connection:
    """It runs already, but may not listen yet."""
    address = os.environ["AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"]
    while True:
        try:
            return Client((address, PORT), authkey=JOB.encode())
        except ConnectionRefusedError:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
