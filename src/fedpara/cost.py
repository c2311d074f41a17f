"""The cost of a federation over a network: seconds and joules, from logged bytes (FedPara, Fig. 3, Tables 7 and 8).

In the paper's model a round takes t = t_comp + 2 size / speed, with clients in parallel over links of one speed. The
energy is the user-to-data-centre figure of Yan et al. 2019, which is 9.3 MJ for 378.0 GiB in Fig. 3g: the only of
its pairs from which all twelve follow as printed. Sizes are bytes and speeds 10^6 bits per second; the paper's Tables 7
and 8 take MiB for MB, so their seconds are up to 5 % fewer.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fedpara.metric import Metric

TEST_ACCURACY = Metric("test/acc")
SPEEDS_MBPS = (2, 10, 50)
MEGAJOULES_PER_BYTE = 9.3 / (378.0 * 2**30)


def round_seconds(client_seconds: float, client_bytes: float, speed_mbps: float) -> float:
    """Seconds of one round.

    Args:
        client_seconds: t_comp, the local training of one client.
        client_bytes: bytes that one client receives and sends in the round.
        speed_mbps: speed of the client's link, in 10^6 bits per second.
    """
    return client_seconds + 8 * client_bytes / (speed_mbps * 1e6)


def megajoules(num_bytes: float) -> float:
    """Energy to move `num_bytes`, in MJ."""
    return num_bytes * MEGAJOULES_PER_BYTE


@dataclass(frozen=True)
class CostToTarget:
    """The cost until a metric first reached a target.

    Attributes:
        rounds: rounds until then.
        seconds: simulated wall time over the network.
        num_bytes: bytes of all clients, both ways.
        megajoules: energy to move them.
    """

    rounds: int
    seconds: float
    num_bytes: int
    megajoules: float


def cost_to_target(
    rows: Iterable[Mapping[str, float]], target: float, speed_mbps: float, metric: Metric = TEST_ACCURACY
) -> CostToTarget | None:
    """The cost until a metric first reached `target` (accuracy: 0 to 1), or None if it never did.

    Args:
        rows: all rounds from the first, with the columns of metrics.csv; untested rounds count too. Without the seconds
            of a round, as in old run folders, those to the target are NaN.
        metric: a column.

    Example:
        >>> round = {"cost/round_s_10mbps": 20.0, "comm/total_bytes": 1000}
        >>> rows = [round | {"round": 1, "test/acc": 0.3}, round | {"round": 2, "test/acc": 0.6}]
        >>> cost = cost_to_target(rows, target=0.5, speed_mbps=10)
        >>> cost.rounds, cost.seconds, cost.num_bytes
        (2, 40.0, 1000)
    """
    seconds = 0.0
    for row in rows:
        seconds += row.get(f"cost/round_s_{speed_mbps:g}mbps", math.nan)
        if metric.name in row and metric.reaches(row[metric.name], target):
            total = int(row["comm/total_bytes"])
            return CostToTarget(int(row["round"]), seconds, total, megajoules(total))
    return None
