"""Client-level differential privacy: clipped uploads, Gaussian noise, and the epsilon that a run has spent."""

from fedpara.privacy.accounting import Spent, calibrated, epsilon
from fedpara.privacy.mechanism import ClientLevelPrivacy, PrivacyState, PrivateMean, clipped

__all__ = ["ClientLevelPrivacy", "PrivacyState", "PrivateMean", "Spent", "calibrated", "clipped", "epsilon"]
