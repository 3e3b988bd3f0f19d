"""Who may do what: roles of people, scopes of keys, and the one table that joins them to what can be done.

Whose results a caller may see is decided in `predictions._visible_to`; this module says which kinds of things.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final
from uuid import UUID

from dermserve.errors import Forbidden


class Role(StrEnum):
    """What an account is for."""

    CLINICIAN = "clinician"
    """Uploads images and looks at their own results."""
    HOSPITAL = "hospital"
    """A hospital's systems: sends by key; a service account has it, too."""
    ENGINEER = "engineer"
    """Operates the server: sees its state and the audit, and no results but their own."""
    ADMIN = "admin"
    """Manages organisations, members and their roles; sees the audit, and no results but their own."""


class Scope(StrEnum):
    """What an API key is good for."""

    PREDICT = "predict"
    """Send images and read the answers to them."""
    READ = "read"
    """List and read stored results and lesions."""
    DELETE = "delete"
    """Change and delete stored results and lesions."""


ALL_SCOPES: Final = frozenset(Scope)


class Permission(StrEnum):
    """What not everybody may do with a page of their own."""

    SEE_AUDIT = "see_audit"
    MANAGE_MEMBERS = "manage_members"


_PERMISSIONS: Final[Mapping[Role, frozenset[Permission]]] = {
    Role.CLINICIAN: frozenset(),
    Role.HOSPITAL: frozenset(),
    Role.ENGINEER: frozenset({Permission.SEE_AUDIT}),
    Role.ADMIN: frozenset({Permission.SEE_AUDIT, Permission.MANAGE_MEMBERS}),
}


@dataclass(frozen=True)
class Caller:
    """Who a request comes from: a machine by its API key (`key_id`) or as a DICOM node (`sender_id`), else a person."""

    user_id: UUID
    email: str
    role: Role = Role.CLINICIAN
    organisation_id: UUID | None = None
    key_id: UUID | None = None
    scopes: frozenset[Scope] = field(default=ALL_SCOPES)
    sender_id: UUID | None = None

    @property
    def machine(self) -> bool:
        """Whether it came with an API key or by DICOM."""
        return self.key_id is not None or self.sender_id is not None

    def may(self, permission: Permission) -> bool:
        """Whether this person has a permission; a machine never has one, whoever owns its key."""
        return not self.machine and permission in _PERMISSIONS[self.role]

    def require(self, needed: Permission | Scope) -> None:
        """Return if the caller may do what is asked for.

        Raises:
            Forbidden: not in this role, or not with this key.
        """
        if isinstance(needed, Scope):
            if needed not in self.scopes:
                raise Forbidden(f"This API key is not good for that: it lacks the scope '{needed}'.")
        elif not self.may(needed):
            raise Forbidden
