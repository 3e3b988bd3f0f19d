"""What is kept: organisations, accounts, sessions, keys, lesions, results, the outbox and the audit; never an image."""

from frontend.models.accounts import ApiKey, AuditEntry, Organisation, PasswordReset, RateCount, User, WebSession
from frontend.models.base import Base
from frontend.models.results import Instance, Lesion, Prediction
from frontend.models.streams import Commitment, Delivery, Destination, Sender

__all__ = [
    "ApiKey",
    "AuditEntry",
    "Base",
    "Commitment",
    "Delivery",
    "Destination",
    "Instance",
    "Lesion",
    "Organisation",
    "PasswordReset",
    "Prediction",
    "RateCount",
    "Sender",
    "User",
    "WebSession",
]
