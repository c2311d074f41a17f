"""Clients on their own machines: the server's and the client's end, over any transport (deploy/ has Flower)."""

from fedpara.deployment.clients import DeployedClients, Participants
from fedpara.deployment.folders import read_data, write_data
from fedpara.deployment.node import Node
from fedpara.deployment.parcel import Nodes, Parcel
from fedpara.deployment.server import run

__all__ = ["DeployedClients", "Node", "Nodes", "Parcel", "Participants", "read_data", "run", "write_data"]
