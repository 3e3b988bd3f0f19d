import pytest
from PIL import Image

from benchmarks import plots, report
from benchmarks.alternation import alternate
from benchmarks.capacity import Overload
from benchmarks.closed_loop import Window
from benchmarks.open_loop import Outcome, Run
from benchmarks.serve import Load
from benchmarks.stack import MemorySample

GOOD = Window(answered=100, failed=0, seconds=4.0, ms=tuple(float(ms) for ms in range(50, 150)))
DEAD = Window(answered=0, failed=3, seconds=4.0, ms=(), faults={"503": 3})
ANSWERED = Run(30.0, 2.0, tuple(Outcome(number / 30, 100.0, "right") for number in range(60)))
REFUSED = Run(90.0, 2.0, tuple(Outcome(number / 90, 5.0, "refused", "503 overloaded") for number in range(180)))
LIMIT = {"median": 30.0, "min": 29.0, "max": 31.0}
LOADS = [Load(way, senders, lambda: print, iter(())) for way in ("Triton gRPC", "HTTP API") for senders in (1, 16)]


def served(window):
    return alternate({load.name: lambda: window for load in LOADS}, lambda: 30.0, lambda one: one.per_second, rounds=2)


@pytest.mark.parametrize("window", [GOOD, DEAD])
@pytest.mark.parametrize(
    "draw",
    [
        lambda path, window, on: plots.over_concurrency(path, LOADS, served(window), {LOADS[1].name: 0.92}, on),
        lambda path, window, on: plots.shares(path, served(window), {LOADS[1].name: 0.92}, on),
        lambda path, window, on: plots.lane(path, GOOD, window, on),
        lambda path, window, on: plots.overload(
            path, Overload(REFUSED, window, window), 1000.0, [MemorySample(0.0, 2**30, 2**29)], on
        ),
        lambda path, window, on: plots.capacity(path, [REFUSED], [ANSWERED] if window is GOOD else [], 1000.0, on),
        lambda path, window, on: plots.limit(path, dict.fromkeys("ab", LIMIT), on),
    ],
    ids=["serve", "transport", "lane", "overload", "load", "limit"],
)
def test_a_plot_is_drawn_also_of_what_failed(tmp_path, draw, window):
    draw(tmp_path / "new" / "plot.png", window, report.machine())

    with Image.open(tmp_path / "new" / "plot.png") as image:
        assert min(image.size) > 300
