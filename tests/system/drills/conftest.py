from __future__ import annotations

import pytest

from tests.system.drills.drill import Outcome

_OUTCOMES = pytest.StashKey[list[Outcome]]()


@pytest.fixture
def drills(pytestconfig: pytest.Config) -> list[Outcome]:
    """Where each drill leaves its line of the table that stands at the end of the run."""
    return pytestconfig.stash.setdefault(_OUTCOMES, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    outcomes = config.stash.get(_OUTCOMES, [])
    if not outcomes:
        return
    terminalreporter.section("failure drills")
    row = "{:<24}{:>6}{:>14}{:>8}{:>9}{:>6}{:>11}  {}"
    terminalreporter.write_line(
        row.format(
            "killed", "times", "acknowledged", "stored", "doubled", "lost", "different", "refused and sent again"
        )
    )
    for one in outcomes:
        refused = ", ".join(f"{count}x {status or 'no answer'}" for status, count in sorted(one.refusals.items()))
        figures = (one.times, one.acknowledged, one.stored, one.doubled, one.lost, one.different)
        terminalreporter.write_line(row.format(one.killed, *figures, refused))
