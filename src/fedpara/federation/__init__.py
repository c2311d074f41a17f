"""The federation: the round (round.py), a client's half of it (client.py), and the server's partner (clients.py)."""

from fedpara.federation.callback import FederationCallback, Outcome
from fedpara.federation.client import Broadcast, ClientSide, Kept, Layouts, Reply, Report
from fedpara.federation.clients import Clients, MakeClients, SimulatedClients, in_turn, score, simulated
from fedpara.federation.round import Federation
from fedpara.federation.store import ClientStore
from fedpara.federation.tiers import Tier, Tiers

__all__ = [
    "Broadcast", "Clients", "ClientSide", "ClientStore", "Federation", "FederationCallback", "Kept", "Layouts",
    "MakeClients", "Outcome", "Reply", "Report", "SimulatedClients", "Tier", "Tiers", "in_turn", "score", "simulated",
]  # fmt: skip
