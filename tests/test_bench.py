"""The speed table runs, compares before it times, and says what it cannot measure.

    python -m pytest tests/test_bench.py

It asserts nothing about speed.
"""
import argparse
import re
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bench
import distill
import model


def run_rows(*rows):
    """Some rows at tiny sizes, one repeat."""
    bench.main(["--small", "--repeats", "1", "--device", "cpu", "--only", *rows])


def test_every_row_runs(transformers, capsys):
    run_rows(*bench.ROWS)
    lines = capsys.readouterr().out.splitlines()[4:]
    # MLM and distillation are timed in fp32 and what "auto" chose, video by wall and CPU clock
    assert len(lines) == len(bench.ROWS) + 3 or "not run" in "".join(lines)


def test_every_row_of_a_gpu_runs(transformers, capsys):
    run_rows("gpu-base", "gpu-rank", "gpu-teacher", "gpu-video")
    printed = capsys.readouterr().out
    # milliseconds with their quartiles, share of the product rate, GB
    rows = re.findall(r"\| ([\d.]+) \[[\d.]+, [\d.]+\] +\| ([\d.]+) +\| 0\.0 ", printed)
    assert len(rows) == 4 + 3 + 1
    for milliseconds, share in rows:
        assert float(milliseconds) > 0 and float(share) > 0
    assert len(re.findall(r"(?:wait for data|dry-run says) +\| [\d.]+ ", printed)) == 2
    rates = re.findall(r"(?:alone|data.py video), 2 cores, (?:fp32|bf16) +\| (-?[\d,]+) ", printed)
    # the last is of a difference of two times, which on a busy machine has any sign
    assert len(rates) == 3 and "0" not in rates[:2]


def test_a_gpu_is_not_timed_without_one(capsys):
    bench.main(["--device", "cpu", "--only", *bench.GPU_ROWS])
    assert capsys.readouterr().out.count("not run: no GPU") == len(bench.GPU_ROWS) == 5


def test_aims():
    args = argparse.Namespace(small=False)
    assert bench.aimed(args, 0.75, "x", 0.75) == "0.75 x, at most 0.75: met"
    assert bench.aimed(args, 0.76, "x", 0.75) == "0.76 x, at most 0.75: NOT MET"
    assert bench.aimed(args, 0.79, "of it", 1.2, 0.8) == "0.79 of it, 0.8 to 1.2: NOT MET"
    assert bench.aimed(args, 1.2, "of it", 1.2, 0.8) == "1.20 of it, 0.8 to 1.2: met"
    assert bench.aimed(args, 149, "s", least=150) == "149.00 s, at least 150: NOT MET"
    assert bench.aimed(args, 150, "s", least=150) == "150.00 s, at least 150: met"


def test_a_missing_reference_is_said_and_the_rest_runs(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "transformers", None)   # its import fails
    monkeypatch.setenv("PATH", "")                           # no ffmpeg
    run_rows("mlm", "video", "nst")
    mlm, video, nst = capsys.readouterr().out.splitlines()[-3:]
    assert "not run" in mlm and "not run" in video and "ffmpeg" in video
    assert "NST, forward" in nst


def test_two_different_things_are_not_timed(monkeypatch):
    right = distill.nst_loss
    monkeypatch.setattr(distill, "nst_loss", lambda *args: 1.01 * right(*args))
    with pytest.raises(model.UserError, match="there is nothing to time"):
        run_rows("nst")


def test_the_authors_ntxent_is_ours_but_for_its_scale():
    student, teacher = F.normalize(torch.randn(2, 4, 6, 16), dim=-1)
    ours = distill.ntxent_loss(student, teacher, temperature=1.0)
    assert 8 * bench.authors_ntxent(student, teacher).item() == pytest.approx(ours.item())


@pytest.mark.parametrize("cost, target, verdict", [
    (False, 3.9, "met"), (False, 4.1, "NOT MET"), (True, 0.24, "NOT MET"), (True, 0.26, "met")])
def test_judgement(cost, target, verdict):
    row = bench.Row("x", "y", None, {"": None}, target, cost=cost)
    seconds = np.array([[[4.0, 4.0, 5.0], [1.0, 2.0, 1.0]]] * 2)
    (line,) = bench.judge(row, seconds)
    ratio = "0.25 [0.23, 0.38]" if cost else "4.00 [3.00, 4.50]"
    assert line == ("x", "y", "4,000.0", "1,000.0", ratio, f"{target}: {verdict}")
