"""A day of a hospital in a few minutes: the users of `locustfile`, more or fewer and of other kinds by the hour.

    locust -f benchmarks/dayfile.py --host http://127.0.0.1:8000 --headless -u 20 -t 240s

`-u` is how many there are at the busiest hour, `-t` how long the day takes.
"""

from __future__ import annotations

from locust import LoadTestShape, User

from benchmarks.locustfile import Clinician, Hospital

__all__ = ["Clinician", "Day", "Hospital"]

# From this hour on: share of the users, and who they are. Nights send what the archive kept back, mornings are clinics.
_HOURS: tuple[tuple[float, float, list[type[User]]], ...] = (
    (0, 0.2, [Hospital]),
    (6, 0.4, [Hospital]),
    (8, 0.8, [Hospital, Clinician]),
    (10, 1.0, [Hospital, Clinician]),
    (12, 0.5, [Hospital, Clinician]),
    (14, 0.9, [Hospital, Clinician]),
    (17, 0.4, [Clinician]),
    (20, 0.2, [Hospital]),
)


class Day(LoadTestShape):
    """Locust asks once a second how many users of which kinds there are to be."""

    use_common_options = True

    def tick(self) -> tuple[int, float, list[type[User]]] | None:
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        passed = self.get_run_time() / float(options.run_time)
        if passed >= 1:
            return None
        _, share, kinds = next(line for line in reversed(_HOURS) if line[0] <= 24 * passed)
        users = max(len(kinds), round(share * (options.num_users or 1)))
        return users, float(users), kinds
