"""The speed table runs, compares before it times, and says what it cannot measure.

    python -m pytest tests/test_bench.py

It asserts nothing about speed.
"""
import sys

import numpy as np
import pytest

import bench
import distill
import model


def lines_of(*rows):
    """The table's lines of some rows at tiny sizes, one repeat: {row: lines}."""
    return bench.main(["--small", "--repeats", "1", "--device", "cpu", "--only", *rows])


def test_every_row_runs(transformers, capsys):
    found = lines_of(*bench.ROWS)
    shown = capsys.readouterr().out
    for name, lines in found.items():
        if name == "video" and not lines:
            assert "not run" in shown   # no ffmpeg here
            continue
        assert lines
        for line in lines:
            ratio = line["reference_ms"] / line["ours_ms"]
            if name == "cost":
                ratio = 1 / ratio
            assert line["ratio"] == pytest.approx(ratio)
            assert line["what"] in shown


def test_a_missing_reference_is_said_and_the_rest_runs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)   # its import fails
    monkeypatch.setenv("PATH", "")                           # no ffmpeg
    found = lines_of("mlm", "distill", "video", "ntxent")
    assert [len(lines) for lines in found.values()] == [0, 0, 0, 1]
    shown = capsys.readouterr().out
    assert shown.count("not run") == 3
    assert "ffmpeg" in shown


@pytest.mark.parametrize("row, broken", [("nst", "nst_loss"), ("ntxent", "ntxent_loss")])
def test_two_different_things_are_not_timed(row, broken, monkeypatch):
    right = getattr(distill, broken)
    monkeypatch.setattr(distill, broken, lambda *args, **named: 1.01 * right(*args, **named))
    with pytest.raises(model.UserError, match="there is nothing to time"):
        lines_of(row)


@pytest.mark.parametrize("cost, target, verdict", [
    (False, 3.9, ">= 3.9, met"), (False, 4.1, ">= 4.1, NOT MET"),
    (True, 0.24, "<= 0.24, NOT MET"), (True, 0.26, "<= 0.26, met")])
def test_judgement(cost, target, verdict):
    row = bench.Row("x", "y", None, {"": None}, target, cost=cost)
    seconds = np.array([[[4.0, 4.0, 5.0], [1.0, 2.0, 1.0]]] * 2)
    (line,) = bench.judge(row, seconds)
    assert line["ratio"] == (0.25 if cost else 4.0)
    assert line["target"] == verdict
