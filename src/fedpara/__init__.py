"""FedPara and pFedPara (Hyeon-Woo, Ye-Bin, Oh, ICLR 2022): communication-efficient federated learning."""

__version__ = "0.1.0"
