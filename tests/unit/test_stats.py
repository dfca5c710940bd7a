"""Statistics against textbook values and hand-computed cases."""

import math

import pytest

from semcast.errors import InputError
from semcast.studies.rows import Row
from semcast.studies.stats import bd_psnr, bd_rate, goodput_bps, mean_interval, outage, points


def test_t_interval_by_the_book() -> None:
    values = [30.1, 30.4, 29.8, 30.2, 30.5]  # mean 30.2, s = sqrt(0.3 / 4), t(4, 0.975) = 2.776445
    interval = mean_interval(values)
    half = 2.776445 * math.sqrt(0.3 / 4 / 5)
    assert interval.mean == pytest.approx(30.2)
    assert (interval.low, interval.high) == (pytest.approx(30.2 - half, abs=1e-5), pytest.approx(30.2 + half, abs=1e-5))
    assert mean_interval([7.0]) == (7.0, None, None, 1)
    with pytest.raises(InputError, match="at least one value"):
        mean_interval([])


CURVE = [(0.005, 28.0), (0.01, 31.0), (0.02, 34.0), (0.04, 37.0)]  # 3 dB per doubling: a straight line over log CBR


def test_bd_of_shifted_lines_by_hand() -> None:
    """A line shifted in rate by a factor or in quality by a constant has exactly that as its delta."""
    assert bd_rate(CURVE, [(2 * cbr, psnr) for cbr, psnr in CURVE]).value == pytest.approx(100.0, abs=1e-6)
    assert bd_rate(CURVE, [(0.8 * cbr, psnr) for cbr, psnr in CURVE]).value == pytest.approx(-20.0, abs=1e-6)
    assert bd_psnr(CURVE, [(cbr, psnr + 1.5) for cbr, psnr in CURVE]).value == pytest.approx(1.5, abs=1e-9)
    half = bd_psnr(CURVE, [(2 * cbr, psnr) for cbr, psnr in CURVE])
    assert half.value == pytest.approx(-3.0, abs=1e-9)
    assert half.overlap == pytest.approx(2 / 4)  # two of four doublings are shared


def test_bd_takes_points_in_any_order_and_number() -> None:
    longer = [(cbr, 28 + 3 * math.log2(cbr / 0.005) + 1) for cbr in (0.005, 0.007, 0.01, 0.02, 0.03, 0.04)]
    assert bd_psnr(CURVE[::-1], longer).value == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize(
    ("test", "reason"),
    [
        (CURVE[:3], "3 points; four are needed"),
        ([(cbr, psnr + 20) for cbr, psnr in CURVE], "share no quality"),
        ([(0.005, 28.0), (0.01, 31.0), (0.02, 30.0), (0.04, 37.0)], "does not rise"),
        ([(0.0, 28.0), *CURVE[1:]], "not positive"),
    ],
)
def test_bd_says_why_not(test: list[tuple[float, float]], reason: str) -> None:
    result = bd_rate(CURVE, test)
    assert result.value is None
    assert reason in result.reason


def test_bd_psnr_without_shared_cbr() -> None:
    result = bd_psnr(CURVE, [(10 * cbr, psnr) for cbr, psnr in CURVE])
    assert result.value is None
    assert "share no CBR" in result.reason


def test_outage_and_goodput() -> None:
    assert outage([20.0, 30.0, None, 24.9, 40.0], 25.0) == 0.5
    assert outage([], 25.0) is None
    assert goodput_bps(1000, 0.5) == 2000
    assert goodput_bps(1000, 0.0) is None


def make(system: str, snr_db: float, psnr: float | None, **values: object) -> Row:
    base: dict[str, object] = {
        "clip": "a",
        "frames": 2,
        "height": 64,
        "width": 96,
        "channel": "awgn",
        "cbr_target": 0.02,
        "cbr": 0.019,
    }
    return Row.model_validate(base | {"system": system, "snr_db": snr_db, "psnr_rgb_db": psnr} | values)


def test_points_average_clips_within_seeds() -> None:
    rows = [
        make("a", 5, psnr, seed=seed, clip=clip)
        for seed, clip, psnr in [(0, "x", 30.0), (0, "y", 20.0), (1, "x", 31.0), (1, "y", 21.0)]
    ]
    (point,) = points(rows)
    assert point.quality is not None
    assert point.quality.n == 2  # two seeds, not four rows: clips differ for another reason than noise
    assert point.quality.mean == pytest.approx(25.5)
    assert point.cbr == pytest.approx(0.019)


def test_points_tell_apart_what_differs() -> None:
    rows = [
        make("a", 5, 30.0, condition="strong"),
        make("a", 5, 25.0, condition="offline"),
        make("b", 5, None, condition="strong"),
    ]
    named = {point.series: point.quality for point in points(rows)}
    assert list(named) == ["a (strong)", "a (offline)", "b"]
    assert named["b"] is None
    with pytest.raises(InputError, match="no key"):
        points(rows, "psnr")
