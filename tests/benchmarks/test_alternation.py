import pytest

from benchmarks.alternation import alternate, steps


def test_order_turns_every_round_and_a_reference_stands_on_either_side():
    order = []
    measurements = {name: lambda name=name: order.append(name) or 1.0 for name in ("a", "b")}

    def reference():
        order.append("-")
        return 1.0

    told = []
    alternate(measurements, reference, float, rounds=3, announce=told.append)

    assert "".join(order) == "-a-b-b-a-a-b-"
    assert len(told) == steps(2, 3) == len(order)


def test_a_drifting_machine_cancels_out():
    speed = iter([100.0, 90.0, 80.0, 70.0, 60.0, 50.0, 40.0])

    def window():
        return next(speed)

    found = alternate({"served": lambda: window() * 0.9}, window, lambda one: one, rounds=3)

    served = found.series["served"]
    assert served.references == [90.0, 70.0, 50.0]
    assert served.ratios == pytest.approx([0.9, 0.9, 0.9])
    assert served.median == 63.0


def test_median_and_extremes_are_of_the_ratios_of_the_rounds():
    values = iter([5.0, 9.0, 7.0])
    found = alternate({"a": lambda: next(values)}, lambda: 10.0, lambda one: one, rounds=3)

    rows = found.as_rows()["series"]["a"]
    assert (rows["ratio"], rows["ratio_min"], rows["ratio_max"]) == (0.7, 0.5, 0.9)


def test_noise_is_what_the_same_code_differs_by():
    references = iter([10.0, 11.0, 9.9, 9.9])
    found = alternate({"a": lambda: 1.0}, lambda: next(references), lambda one: one, rounds=3)

    assert found.noise == pytest.approx((0.9, 1.1))
