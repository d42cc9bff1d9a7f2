"""Start two Ray nodes on this machine and print their address.

Kills the second one when told to; ends when the standard input is closed.
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

SIZE = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args=SIZE)
    second = cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
    print("address", cluster.address, second.node_id, flush=True)
    for line in sys.stdin:
        if line.strip() == "kill":
            cluster.remove_node(second, allow_graceful=False)
            print("killed", flush=True)
    cluster.shutdown()
