"""Metrics against scikit-learn and scipy, intervals and verdicts against hand-computed values, tables from files.

    python -m pytest tests/test_evaluate.py
"""
import csv
import json
import math

import numpy as np
import pytest
import scipy.stats

import evaluate

# ---------------------------------------------------------------------------------------------------------------------
# Metrics


def cases(classes):
    """Random labels and predictions, and the degenerate ones."""
    generator = np.random.default_rng(classes)
    for size in (2, 7, 300):
        yield generator.integers(classes, size=size), generator.integers(classes, size=size)
    varied = np.arange(12) % classes
    yield varied, varied
    yield varied, np.zeros(12, int)      # one class predicted
    yield varied, np.ones(12, int)
    yield np.zeros(12, int), varied      # one class labelled
    yield np.zeros(5, int), np.zeros(5, int)
    yield np.ones(5, int), np.ones(5, int)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_metrics_match_scikit_learn(classes):
    oracle = pytest.importorskip("sklearn.metrics")
    for labels, predictions in cases(classes):
        assert evaluate.accuracy(labels, predictions) == pytest.approx(oracle.accuracy_score(labels, predictions))
        assert evaluate.matthews(labels, predictions) == pytest.approx(oracle.matthews_corrcoef(labels, predictions))
        if classes == 2:
            assert evaluate.f1(labels, predictions) == pytest.approx(
                oracle.f1_score(labels, predictions, zero_division=0))


def test_correlations_match_scipy():
    generator = np.random.default_rng(0)
    for size in (3, 50):
        x = generator.normal(size=size)
        y = x + generator.normal(size=size)
        tied = np.round(generator.normal(size=size) * 2) + np.arange(size) % 2   # ties, never constant
        for other in (y, tied):
            assert evaluate.pearson(x, other) == pytest.approx(scipy.stats.pearsonr(x, other)[0])
            assert evaluate.spearman(x, other) == pytest.approx(scipy.stats.spearmanr(x, other)[0])
    for function in (evaluate.pearson, evaluate.spearman):
        assert math.isnan(function([1.0, 2.0, 3.0], [4.0, 4.0, 4.0]))
        assert math.isnan(function([1.0], [2.0]))


def draws(count=400):
    """(labels, predictions) of classes: random ones, and every way to be degenerate: a single row, one class on either
    side or on both, predictions of classes that no row has, all right, all wrong."""
    generator = np.random.default_rng(7)
    for draw in range(count):
        size, classes = int(generator.integers(1, 40)), int(generator.integers(1, 6))
        labels, predictions = generator.integers(classes, size=(2, size))
        kind = ("random", "one label", "one answer", "both", "strangers", "right", "wrong")[draw % 7]
        labels = np.full(size, labels[0]) if kind in ("one label", "both") else labels
        predictions = {"one answer": np.full(size, predictions[0]), "both": np.full(size, predictions[0]),
                       "strangers": predictions + classes, "right": labels, "wrong": (labels + 1) % max(classes, 2)
                       }.get(kind, predictions)
        yield labels, predictions


@pytest.mark.filterwarnings("ignore")
def test_metrics_match_scikit_learn_on_many_draws():
    oracle = pytest.importorskip("sklearn.metrics")
    for labels, predictions in draws():
        assert evaluate.accuracy(labels, predictions) == pytest.approx(oracle.accuracy_score(labels, predictions))
        assert evaluate.matthews(labels, predictions) == pytest.approx(
            oracle.matthews_corrcoef(labels, predictions), abs=1e-12)
        assert evaluate.f1(labels, predictions) == pytest.approx(
            oracle.f1_score(labels == 1, predictions == 1, zero_division=0))


@pytest.mark.filterwarnings("ignore")
def test_correlations_match_scipy_on_many_draws():
    """Pearson against numpy's, Spearman against scipy's own; nan where one side is constant or there is one row."""
    generator = np.random.default_rng(8)
    for draw in range(400):
        size = int(generator.integers(1, 40))
        x, y = generator.normal(size=(2, size)) * 10.0 ** generator.integers(-3, 4, size=(2, 1))
        x, y = {1: (np.round(x), y), 2: (np.full(size, x[0]), y), 3: (x, np.full(size, y[0])), 4: (x, x + 1e-3 * y),
                5: (np.round(x), np.round(y)), 6: (x.astype(np.float32), (-x).astype(np.float32))}.get(draw % 7, (x, y))
        constant = size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
        for function, wanted in ((evaluate.pearson, lambda: np.corrcoef(x, y)[0, 1]),
                                 (evaluate.spearman, lambda: scipy.stats.spearmanr(x, y)[0])):
            value = function(x, y)
            assert math.isnan(value) if constant else value == pytest.approx(wanted(), abs=1e-9), (draw, size)


def test_score_gives_every_metric_and_chance():
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    # accuracy 3/4, F1 2 x 1 / (1 + 2) = 2/3; always 0: accuracy 3/4, F1 0, mean 3/8
    out = evaluate.score("QQP", labels, predictions)
    assert out == {"accuracy": 0.75, "f1": pytest.approx(2 / 3), "n": 4, "chance": 0.375}
    assert evaluate.single_number("QQP", out) == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert evaluate.score("CoLA", labels, predictions)["chance"] == 0
    stuck = evaluate.score("STS-B", np.array([1.0, 2.0, 3.0]), np.full(3, 2.5))
    assert stuck["pearson"] is None and stuck["chance"] is None and evaluate.single_number("STS-B", stuck) is None
    with pytest.raises(ValueError, match="4 labels for 3"):
        evaluate.score("QQP", labels, predictions[:3])


def test_parts_are_scored_apart():
    meta = [{"part": "grounded", "group": "test", "property": "lift", "noun": "pear"},
            {"part": "grounded", "group": "test", "property": "pace", "noun": "kite"},
            {"part": "grounded", "group": "unfilmed", "property": "lift", "noun": "drum"},
            {"part": "grounded", "group": "unfilmed", "property": "lift", "noun": "drum"},
            {"part": "ungrounded", "group": None, "property": "order", "noun": None}]
    out = evaluate.score_parts([1, 0, 1, 0, 1], [1, 1, 0, 0, 1], meta)
    assert out["grounded"] == {"accuracy": 0.5, "n": 2, "chance": 0.5}
    assert out["unfilmed"] == {"accuracy": 0.5, "n": 2, "chance": 0.5}
    assert out["ungrounded"] == {"accuracy": 1.0, "n": 1, "chance": 1.0}
    assert {name: cell["accuracy"] for name, cell in out["grounded_by_property"].items()} == {"lift": 1.0, "pace": 0.0}
    assert out["grounded_by_property"]["lift"]["n"] == 1   # unfilmed rows are not in it
    assert out["grounded_by_noun"] == {"pear": 1.0, "kite": 0.0}


# ---------------------------------------------------------------------------------------------------------------------
# Intervals and verdicts


def test_t_interval_by_hand():
    # 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653, half-width 4.302653 / sqrt(3) = 2.484138
    mean, low, high = evaluate.t_interval([1, 2, 3])
    assert (mean, low, high) == (2, pytest.approx(2 - 2.484138, abs=1e-5), pytest.approx(2 + 2.484138, abs=1e-5))
    mean, low, high = evaluate.t_interval([5])
    assert mean == 5 and math.isnan(low) and math.isnan(high)
    assert all(math.isnan(value) for value in evaluate.t_interval([]))


@pytest.mark.parametrize("low, high, superior, not_worse", [
    (0.1, 5, "holds", "holds"), (-1, 1.9, "fails", "holds"), (-1, 2.1, "not decided", "holds"),
    (-3, 4, "not decided", "not decided"), (-3, -0.1, "fails", "fails"), (-1.9, -0.1, "fails", "holds"),
    (math.nan, math.nan, "not decided", "not decided")])
def test_verdicts(low, high, superior, not_worse):
    assert evaluate.superior(low, high) == superior
    assert evaluate.not_worse(low, high) == not_worse


@pytest.mark.parametrize("mean, low, high, expected", [
    (1, -1, 3, True), (4, -1, 9, True), (4.1, -1, 9, False), (1, 0.1, 2, False), (-4.1, -9, 1, False),
    (0, math.nan, math.nan, False)])
def test_at_chance(mean, low, high, expected):
    assert evaluate.at_chance(mean, low, high) is expected


# ---------------------------------------------------------------------------------------------------------------------
# Tables and comparisons


def write(run, task, seed, grounded=None, majority=False, **splits):
    """A metrics.json as finetune.py writes it; grounded: {part: accuracy} of a mini test split."""
    folder = run / "finetune" / task / f"seed-{seed}"
    folder.mkdir(parents=True)
    cells = {part: {"accuracy": value, "n": 10, "chance": 0.5} for part, value in (grounded or {}).items()}
    parts = {"test": cells} if cells else {}
    (folder / "metrics.json").write_text(json.dumps({"task": task, "seed": seed, "seconds": 4.0, "majority": majority,
                                                     "split_dev": False, "parts": parts, **splits}))


def test_table_shows_mean_deviation_and_stuck_seeds(tmp_path, capsys):
    for seed, value in enumerate((0.6, 0.7, 0.8)):
        write(tmp_path / "student", "QNLI", seed, {"grounded": value, "ungrounded": 1.0, "unfilmed": 0.5},
              majority=seed == 2)
    write(tmp_path / "student", "QQP", 0, dev={"accuracy": 0.8, "f1": 0.6, "n": 9, "chance": 0.3})
    (tmp_path / "student" / "log.jsonl").write_text("".join(   # started again after 20 s
        json.dumps({"step": step, "seconds": seconds}) + "\n" for step, seconds in ((1, 10.0), (2, 20.0), (3, 5.0))))
    (tmp_path / "other").mkdir()
    evaluate.main(["table", str(tmp_path / "student"), str(tmp_path / "other"), "--width", "200",
                   "--json", str(tmp_path / "cells.json"), "--csv", str(tmp_path / "cells.csv")])
    out = capsys.readouterr().out
    assert "70.0 ± 10.0 (n=3, median 70.0)!" in out      # std of 60, 70, 80 with n - 1
    assert "70.0 (n=1)" in out                           # QQP: mean of 80 and 60
    assert "! a seed that gives every row one answer: student QNLI seed 2" in out
    assert [line.count("not run") for line in out.splitlines() if line.startswith("other")] == [4]
    assert "student: pretraining 25 s, fine-tuning 16 s" in out
    heading = out.splitlines()[2]
    assert heading.index("QQP dev") < heading.index("QNLI grounded") < heading.index("QNLI unfilmed")
    chance = next(line for line in out.splitlines() if line.startswith("chance"))
    assert chance.split()[1:] == ["30.0", "50.0", "50.0", "50.0"]
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert [entry["value"] for entry in cells["student"]["QNLI grounded"]["seeds"]] == pytest.approx([60, 70, 80])
    assert cells["other"] == {}
    rows = list(csv.DictReader(open(tmp_path / "cells.csv")))
    assert len(rows) == 10 and rows[0]["column"] == "dev" and float(rows[0]["value"]) == pytest.approx(70)


def test_runs_of_one_name_stay_apart(tmp_path, capsys):
    for world, value in (("world-1", 0.6), ("world-2", 0.8)):
        write(tmp_path / world / "nst+crd", "QNLI", 0, {"grounded": value})
    runs = [str(tmp_path / world / "nst+crd") for world in ("world-1", "world-2")]
    evaluate.main(["table", *runs, "--json", str(tmp_path / "cells.json")])
    cells = json.loads((tmp_path / "cells.json").read_text())
    assert {name: cell["QNLI grounded"]["mean"] for name, cell in cells.items()} == pytest.approx(dict(zip(runs, (60, 80))))
    out = capsys.readouterr().out
    assert all(run in out for run in runs)


def test_analysis_sets_are_columns_of_the_table(tmp_path, capsys):
    """MNLI's model with GLUE-diagnostics' categories, and TRACIE's scores, of mini and of real files."""
    categories = {"overall": {"matthews": 0.3}, "Knowledge": {"matthews": 0.25}, "Logic: Negation": {"matthews": 0.9}}
    write(tmp_path / "real", "MNLI", 0, dev={"accuracy": 0.8, "n": 9, "chance": 0.3}, categories=categories)
    told = {"accuracy": 0.7, "n": 8, "chance": 0.5, "start": 0.625, "end": None, "story": 0.125}
    write(tmp_path / "real", "TRACIE-iid", 0, test=told)
    write(tmp_path / "mini", "TRACIE", 0, {"grounded": 0.875}, test=told)
    evaluate.main(["table", str(tmp_path / "real"), str(tmp_path / "mini"), "--width", "250"])
    heading, chance, real, mini = capsys.readouterr().out.splitlines()[2:6]
    assert heading.split() == (
        "MNLI dev diagnostics Knowledge TRACIE grounded TRACIE start TRACIE end TRACIE story TRACIE-iid test TRACIE-iid "
        "start TRACIE-iid end TRACIE-iid story").split()
    assert real.split()[1:] == ("80.0 (n=1) 25.0 (n=1) not run not run not run not run 70.0 (n=1) 62.5 (n=1) not defined "
                                "12.5 (n=1)").split()
    assert mini.split()[1:] == ("not run not run 87.5 (n=1) 62.5 (n=1) not defined 12.5 (n=1) not run not run not run "
                                "not run").split()
    assert chance.split()[1:] == "30.0 0.0 50.0 - - - 50.0 - - -".split()


def test_table_says_what_is_missing(tmp_path):
    with pytest.raises(SystemExit, match="no run folder"):
        evaluate.main(["table", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match="finetune.py"):
        evaluate.main(["table", str(tmp_path)])
