"""The speed table runs, compares before it times, and says what it cannot measure. It asserts nothing about speed.

    python -m pytest tests/test_bench.py
"""
import json
import sys

import numpy as np
import pytest

import bench
import distill


@pytest.fixture(autouse=True)
def generated_inputs(monkeypatch):
    monkeypatch.delenv("REAL_DATA", raising=False)


def rows(tmp_path, *names):
    """What the table holds of some rows at tiny sizes, one repeat: {row: its lines}."""
    bench.main(["--small", "--repeats", "1", "--device", "cpu", "--json", str(tmp_path / "b.json"), "--only", *names])
    told = json.loads((tmp_path / "b.json").read_text())
    return {name: [line for line in told["lines"] if line["row"] == name] for name in names}


def test_every_row_runs(transformers, tmp_path, capsys):
    found = rows(tmp_path, *bench.ROWS)
    assert capsys.readouterr().out.count("\n| ") == 2 + sum(map(len, found.values()))
    for name, lines in found.items():
        if name == "video" and "not run" in lines[0]:
            continue   # no ffmpeg here, and so it says
        for line in lines:
            assert line["reference_ms"] > 0 and line["ours_ms"] > 0
            over = line["ours_ms"] / line["reference_ms"]
            assert line["ratio"] == pytest.approx(over if name == "cost" else 1 / over)


def test_a_missing_oracle_is_said_and_the_rest_runs(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)   # its import fails, as where it is not installed
    monkeypatch.setattr(bench.shutil, "which", lambda name: None)
    found = rows(tmp_path, "mlm", "distill", "video", "ntxent")
    assert all("transformers is not installed" in found[name][0]["not run"] for name in ("mlm", "distill"))
    assert "ffmpeg" in found["video"][0]["not run"] and found["ntxent"][0]["ratio"] > 0


@pytest.mark.parametrize("row, broken", [("nst", "nst_loss"), ("ntxent", "ntxent_loss")])
def test_two_different_things_are_not_timed(row, broken, tmp_path, monkeypatch):
    right = getattr(distill, broken)
    monkeypatch.setattr(distill, broken, lambda *given, **named: 1.01 * right(*given, **named))
    with pytest.raises(ValueError, match="there is nothing to time"):
        rows(tmp_path, row)


def test_judgement():
    slow, fast = [4.0, 4.0, 5.0], [1.0, 2.0, 1.0]
    for cost, target, met in ((False, 3.9, True), (False, 4.1, False), (True, 0.24, False), (True, 0.26, True)):
        row = bench.Row("x", "y", None, {"": None}, target, cost=cost)
        (line,) = bench.judge(row, np.array([[slow, fast]] * 2))
        assert line["ratio"] == (0.25 if cost else 4.0) and line["met"] is met
