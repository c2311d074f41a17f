"""`src/train.py` on a Ray cluster of two one-core nodes on this machine: `benchmarks/nodes.py executor=ray`."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))


@contextmanager
def two_nodes() -> Iterator[Any]:
    """The cluster; code inside this block that starts Ray joins it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        yield cluster
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    from fedpara.app.cli import main

    with two_nodes():
        main()
