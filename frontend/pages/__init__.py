"""The pages: server-rendered, one router for each group, with small ES modules where a page needs to act."""

from __future__ import annotations

from frontend.pages import account, admin, keys, lesions, profile, public, results

ROUTERS = (public.router, account.router, profile.router, keys.router, results.router, lesions.router, admin.router)
