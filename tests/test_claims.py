"""The plan of `make claims` and its judgement: cells made by hand, and a whole run of tiny stages by make.

    python -m pytest tests/test_claims.py
"""
import argparse
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

import data
import distill
import evaluate
import model
import why

ROOT = Path(__file__).resolve().parent.parent
NOUNS = "pear", "kite", "drum", "sofa"


def cell(arm, seed, grounded, ungrounded=1.0, unfilmed=0.5, tasks=("SST-2", "PIQA"), probe=0.9, r1=None, spread=0.0):
    """A value file's content; nouns differ by `spread` from their mean."""
    def part(accuracy):
        return {"accuracy": accuracy, "n": 100, "chance": 0.5}
    nouns = {noun: grounded + sign * spread for noun, sign in zip(NOUNS, (1, -1, 1, -1))}
    made = {task: {"dev": part(grounded), "grounded": part(grounded), "ungrounded": part(ungrounded),
                   "unfilmed": part(unfilmed), "grounded_by_noun": nouns} for task in tasks}
    if "MNLI" in tasks:
        made["MNLI"]["categories"] = {"Knowledge": part(0.99), "grounded": part(grounded)}
    groups = {group: probe for group in ("validation", "test", "unfilmed")}
    return {"arm": arm, "seed": seed, "flags": evaluate.recipe(arm), "commit": "abc", "hardware": "2 x CPU", "threads": 1,
            "mlm": 2.5, "seconds": {"pretraining": 60}, "tasks": made, "probe": {name: groups for name in data.PROPERTIES},
            "retrieval": {"R@1": r1, "chance R@1": 1 / 288} if r1 else {"how": "not defined"}}


def kept(runs, arm, seed, one):
    """A value file as `make claims` leaves it."""
    file = evaluate.value_file(runs, arm, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    data.write_json(file, one)


def keyed(*cells):
    return {(one["arm"], one["seed"]): one for one in cells}


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def test_a_part_is_the_paired_interval_of_its_differences():
    ours, theirs = (0.80, 0.90, 0.85), (0.50, 0.52, 0.45)
    cells = keyed(*[cell("nst+crd", seed, x) for seed, x in enumerate(ours)],
                  *[cell("text-only", seed, x) for seed, x in enumerate(theirs)])
    part = evaluate.judge(("grounded SST-2 PIQA", "nst+crd", "text-only", "better"), cells, [0, 1, 2])
    differences = [30, 38, 40]
    assert part["values"] == pytest.approx(differences) and part["n"] == 3 and part["verdict"] == "holds"
    half = 4.302653 * statistics.stdev(differences) / 3 ** 0.5
    assert (part["low"], part["high"]) == (pytest.approx(36 - half, abs=1e-4), pytest.approx(36 + half, abs=1e-4))
    t = 36 / (statistics.stdev(differences) / 3 ** 0.5)
    assert part["p"] == pytest.approx(2 * scipy.stats.t.sf(t, 2))
    # a seed that lacks one arm is left out, not counted as zero
    del cells["text-only", 1]
    assert evaluate.judge(("grounded SST-2 PIQA", "nst+crd", "text-only", "better"), cells, [0, 1, 2])["seeds"] == [0, 2]
    assert evaluate.judge(("grounded SST-2 PIQA", "nst", "text-only", "better"), cells, [0])["verdict"] == "not run"


@pytest.mark.parametrize("question, differences, verdict", [
    ("better", (10, 11, 12), "holds"), ("better", (-10, 10, 1), "not decided"), ("better", (-3, -3.1, -2.9), "fails"),
    ("not worse", (-0.5, 0.5, 0), "holds"), ("not worse", (-9, -9.2, -9.1), "fails"), ("not worse", (-9, 9, 0), "not decided"),
    ("no better", (0.1, -0.1, 0), "holds"), ("no better", (9, 9.1, 9.2), "fails"), ("no better", (-9, 9, 0), "not decided"),
    ("no effect", (1, -1, 0), "holds"), ("no effect", (9, 9.1, 9.2), "fails"), ("no effect", (-30, 35, 20), "not decided")])
def test_verdicts_of_questions(question, differences, verdict):
    cells = keyed(*[cell("nst", seed, 0.5 + d / 100) for seed, d in enumerate(differences)],
                  *[cell("text-only", seed, 0.5) for seed in range(3)])
    assert evaluate.judge(("grounded PIQA", "nst", "text-only", question), cells, [0, 1, 2])["verdict"] == verdict


def test_a_difference_the_other_way_is_no_evidence():
    """A claim's p is of its own side: what is surely the opposite has p 1, and no place before others in Holm's order."""
    cells = keyed(*[cell("nst", seed, 0.3 + 0.001 * seed) for seed in range(3)],
                  *[cell("text-only", seed, 0.5) for seed in range(3)])
    p = {question: evaluate.judge(("grounded PIQA", "nst", "text-only", question), cells, [0, 1, 2])["p"]
         for question in ("better", "not worse", "no better")}
    assert p["better"] == p["not worse"] == 1.0 and p["no better"] < 1e-4
    same = keyed(*[cell(arm, seed, 0.5) for seed in range(3) for arm in ("nst", "text-only")])   # no spread at all
    assert evaluate.judge(("grounded PIQA", "nst", "text-only", "better"), same, [0, 1, 2])["p"] == 1.0


def test_one_seed_has_no_verdict_but_a_noun_interval():
    cells = keyed(cell("nst+crd", 0, 0.8, spread=0.1), cell("text-only", 0, 0.5))
    part = evaluate.judge(("grounded PIQA", "nst+crd", "text-only", "better"), cells, [0])
    assert part["verdict"] == "one seed" and part["nouns"][0] < 30 < part["nouns"][1]


def test_noun_interval_against_every_draw():
    # two seeds of three nouns: all 27 x 27 draws can be listed, and the bootstrap's quantiles must be theirs
    values = [np.array([0.0, 30.0, 60.0]), np.array([10.0, 10.0, 40.0])]
    every = [statistics.fmean([statistics.fmean(a), statistics.fmean(b)]) for a in itertools.product(values[0], repeat=3)
             for b in itertools.product(values[1], repeat=3)]
    low, high = evaluate.noun_interval(values, draws=40000)
    assert low == pytest.approx(np.percentile(every, 2.5), abs=1.0) and high == pytest.approx(np.percentile(every, 97.5), abs=1.0)


def test_holm_by_hand():
    assert evaluate.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert evaluate.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0]) and evaluate.holm([]) == []


def test_a_claim_holds_if_each_part_does_after_correction():
    seeds = [0, 1, 2]
    wide = [cell("nst", s, 0.5 + d, spread=0) for s, d in zip(seeds, (0.10, 0.20, 0.30))]   # p 0.074 / 0.2: alone not
    cells = keyed(*wide, *[cell("crd", s, 0.9 + 0.001 * s) for s in seeds], *[cell("nst+crd", s, 0.95) for s in seeds],
                  *[cell("soft-label", s, 0.5) for s in seeds], *[cell("regression", s, 0.5) for s in seeds])
    judged = evaluate.judge_claims(cells, ["6"], seeds)["claims"][0]
    assert [part["verdict"] for part in judged["parts"]] == ["not decided", "not decided", "holds", "holds", "holds", "holds"]
    assert judged["verdict"] == "not decided" and judged["holm"] == pytest.approx(max(p["p"] for p in judged["parts"]))
    # one part that fails settles it, whatever was not run
    failed = keyed(*[cell("nst", s, 0.5 + 0.001 * s) for s in seeds], *[cell("soft-label", s, 0.6) for s in seeds])
    failed = evaluate.judge_claims(failed, ["6"], seeds)["claims"][0]
    assert failed["verdict"] == "fails" and failed["holm"] is None   # no p of a claim that was not run in whole
    # an interval that excludes 0 can lose its verdict to Holm's correction: p 0.03 among others that are larger
    values = 20 + 0.62 * np.array([-10, 0, 10.0])   # t = 20 / (6.2 / 3 ** .5) = 5.59, p = 0.031
    cells = keyed(*[cell("nst+crd", s, 0.5 + v / 100) for s, v in enumerate(values)], *[cell("no-head", s, 0.5) for s in seeds],
                  *[cell("voken", s, 0.5 + d) for s, d in zip(seeds, (0.0, 0.5, 0.2))])
    first, second = evaluate.judge_claims(cells, ["8", "4"], seeds)["claims"]
    assert first["parts"][0]["verdict"] == "holds" and first["parts"][0]["p"] == pytest.approx(0.0306, abs=5e-4)
    assert first["holm"] == pytest.approx(2 * first["parts"][0]["p"]) and first["verdict"] == "not decided"
    assert first["of"] == 2 and evaluate.said_of(first) == "not decided, its p after Holm's correction is 0.061"
    assert evaluate.judge_claims(cells, ["8"], seeds)["claims"][0]["verdict"] == "holds"


def test_a_control_that_does_not_hold_stands_beside_its_claim():
    cells = keyed(*[cell(arm, s, x + 0.001 * s) for s in range(3) for arm, x in (
        ("nst+crd", 0.8), ("of-text-teacher", 0.5), ("text-only", 0.501), ("of-shuffled-teacher", 0.6), ("teacher", 0.8))])
    claim, _, unfilmed = evaluate.judge_claims(cells, ["2", "pairs", "unfilmed"], [0, 1, 2])["claims"]
    assert unfilmed["verdict"] == "holds"
    assert evaluate.said_of(claim) == "holds; its control pairs: fails"
    assert evaluate.said_of(claim) in evaluate.markdown_claims({"claims": [claim]})


def test_the_curve_of_claim_3_is_of_worlds_that_have_both_lines():
    cells = keyed(*[cell("two-stage-500", s, 0.6) for s in (1, 2)], cell("distilled-500", 2, 0.7), cell("nst+crd", 1, 0.7))
    assert evaluate.judge_claims(cells, ["3"], [1, 2])["curve"] == {
        "steps": list(evaluate.LENGTHS), "two-stage": [[pytest.approx(60)], [], [], []],
        "distilled": [[pytest.approx(70)], [], [], []]}


def test_a_hinge_teacher_without_signal_is_said():
    seeds = [0, 1, 2]
    cells = keyed(*[cell(arm, s, x + 0.001 * s, tasks=("MNLI",)) for s in seeds for arm, x in
                    (("nst+crd-of-hinge", 0.8), ("text-only", 0.5), ("hinge-teacher", 0.55))])
    assert evaluate.judge_claims(cells, ["1h"], seeds)["claims"][0]["verdict"] == "teacher carries no signal"
    for s in seeds:
        cells["hinge-teacher", s] = cell("hinge-teacher", s, 0.7, tasks=("MNLI",))
    claim = evaluate.judge_claims(cells, ["1h"], seeds)["claims"][0]
    assert claim["verdict"] == "holds" and claim["holm"] is None   # not one of the paper's claims: no correction


def test_measures_are_of_the_right_things():
    one = cell("crd", 0, 0.8, ungrounded=0.9, unfilmed=0.4, tasks=evaluate.MINI_TASKS, r1=0.3)
    one["probe"] = {name: {"test": 1.0 if name in data.DYNAMIC else 0.25} for name in data.PROPERTIES}
    one["tasks"]["PIQA"]["grounded"]["accuracy"] = 0.6
    one["tasks"]["PIQA"]["grounded_by_noun"] = {**one["tasks"]["PIQA"]["grounded_by_noun"], "pear": 0.4}
    cells = keyed(one, cell("nst", 0, 0.5))
    for value, expected, chance in (
            ("grounded PIQA", 60, 50), ("grounded SST-2 PIQA", 70, 50), ("grounded all", (8 * 80 + 60) / 9, 50),
            ("ungrounded all", 90, 50), ("unfilmed SST-2 PIQA", 40, 50), ("Knowledge", 80, 50),
            ("probe dynamic", 100, 50), ("probe static", 25, (25 + 50 + 50) / 3), ("probe colour", 25, 25),
            ("R@1", 30, 100 / 288)):
        assert evaluate.measured(cells, "crd", 0, value)[:2] == (pytest.approx(expected), pytest.approx(chance)), value
    by_noun = evaluate.measured(cells, "crd", 0, "grounded SST-2 PIQA")[2]
    assert by_noun == pytest.approx({"pear": (80 + 40) / 2, "kite": 80, "drum": 80, "sofa": 80})
    for arm, seed, value in (("nst", 0, "R@1"), ("nst", 0, "grounded MNLI"), ("nst", 0, "Knowledge"), ("nst", 1, "R@1")):
        assert evaluate.measured(cells, arm, seed, value) is None
    with pytest.raises(KeyError):   # a value file that lacks a field is not a value that was not run
        evaluate.measured(cells, "nst", 0, "grunded PIQA")


def test_table_and_files_are_rebuilt_from_values(tmp_path, capsys):
    for seed in (1, 2, 3):
        for arm, x in (("nst+crd", 0.8), ("text-only", 0.5), ("of-text-teacher", 0.52), ("of-shuffled-teacher", 0.5),
                       ("teacher", 0.8)):
            kept(tmp_path, arm, seed, cell(arm, seed, x + 0.003 * (seed - 1) ** 2))
    for seed in (0, 100):   # worlds on which settings were chosen: judged only when they are named
        kept(tmp_path, "nst+crd", seed, cell("nst+crd", seed, 0.1))
    kept(tmp_path, "nst@3", 100, cell("nst@3", 100, 0.6))
    kept(tmp_path, "text-only", 4, {**cell("text-only", 4, 0.1), "flags": "distill.py --objective none --lr 1"})
    evaluate.main(["claims", "--runs", str(tmp_path), "--claims", "2", "--width", "200"])
    first = capsys.readouterr().out
    assert re.search(r"^   nst@3 +60\.0 \(60\.0\)", first, re.M)
    assert re.search(r"^2\. .*: HOLDS, p ", first, re.M) and re.search(r"^pairs\. .*: HOLDS$", first, re.M)
    assert "seed 1: 80.0, 52.0  seed 2: 80.3, 52.3  seed 3: 81.2, 53.2" in first and "n=3  +28.0 [+28.0, +28.0]" in first
    made = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["number"] for claim in made["claims"]] == ["2", "pairs", "unfilmed"]
    assert made["arms"]["nst+crd"]["grounded SST-2 PIQA"] == pytest.approx([80.0, 80.3, 81.2])
    evaluate.main(["claims", "--values", str(tmp_path / "values.jsonl"), "--claims", "2", "--width", "200", "--out",
                   str(tmp_path / "again.json")])
    assert capsys.readouterr().out == first
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "claims.json").read_bytes()
    assert "! left out, made with other flags: text-only seed 4\n" in first
    evaluate.main(["claims", "--runs", str(tmp_path / "other"), "--values", str(tmp_path / "values.jsonl"), "--seeds", "1"])
    assert "grounded SST-2 PIQA: nst+crd - text-only" in capsys.readouterr().out
    assert not (tmp_path / "other").exists()   # of values that came from elsewhere nothing is written
    with pytest.raises(SystemExit, match="make claims"):
        evaluate.main(["claims", "--values", str(tmp_path / "none.jsonl")])


def test_readme_says_what_the_kept_values_say(capsys):
    """The README's table of claims against the values it was made from, judged again here."""
    readme, kept_values = (ROOT / "README.md").read_text(encoding="utf-8"), ROOT / "tests" / "claims.jsonl"
    evaluate.main(["claims", "--values", str(kept_values), "--markdown"])
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) >= 2 + 10 + len(evaluate.CONTROLS) and [row for row in rows if row not in readme] == []
    assert all(cell["flags"] == evaluate.recipe(cell["arm"]) for cell in evaluate.read_values(kept_values).values())


def test_the_grid_names_the_best_ratio(tmp_path, capsys):
    for seed, shift in ((100, 0.0), (101, 0.02)):
        for ratio, x in ((3, 0.6), (10, 0.8), (30, 0.7)):
            kept(tmp_path, f"nst@{ratio}", seed, cell(f"nst@{ratio}", seed, x + shift))
    evaluate.main(["claims", "--runs", str(tmp_path), "--claims", "weights"])
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("   nst@"))
    assert re.search(r"nst@3 +61.0 \(60.0, 62.0\) +nst@10 +81.0 \(80.0, 82.0\) +nst@30 +71.0 .* best nst@10", row)
    assert ("not what ARMS has" in row) == (evaluate.flags_of("nst@10") != evaluate.ARMS["nst"])
    assert evaluate.flags_of("nst@10").endswith("--objective nst --gradient-ratio 10")


def test_more_arms_are_shown_and_leave_the_judgement_alone(tmp_path, capsys):
    one = cell("ntxent", 1, 0.7)
    one["tasks"]["SST-2"]["stuck"] = True
    kept(tmp_path, "ntxent", 1, one)
    (tmp_path / "claims.json").write_text("judged before")
    evaluate.main(["claims", "--runs", str(tmp_path), "--claims", "more", "--width", "200"])
    printed = capsys.readouterr().out
    assert re.search(r"^ntxent +70.0", printed, re.M) and "counts as it is: ntxent SST-2 seed 1\n" in printed
    assert (tmp_path / "claims.json").read_text() == "judged before"


def test_a_cell_holds_its_own_seed_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "probe", lambda *_: {})
    run = Path("runs/world-3/text-only")
    for seed, accuracy in ((0, 0.2), (3, 0.6)):   # someone fine-tuned by hand, too
        place = run / "finetune" / "QNLI" / f"seed-{seed}"
        place.mkdir(parents=True)
        parts = {split: {"grounded": {"accuracy": accuracy}} for split in ("dev", "test")}
        data.write_json(place / "metrics.json", {"task": "QNLI", "seed": seed, "seconds": 1, "parts": parts,
                                                 "majority": seed == 3})
    data.write_json(run / "args.json", {"arguments": {"objective": []}, "commit": "abc"})
    data.write_json(place / "args.json", {"commit": "abd", "uncommitted changes": True})
    Path("data/mini-3").mkdir(parents=True)
    data.write_json("data/mini-3/world.json", {})
    evaluate.make_cell(argparse.Namespace(runs="runs", arm="text-only", seed=3))
    made = json.loads(evaluate.value_file("runs", "text-only", 3).read_text())
    assert made["tasks"]["QNLI"] == {"dev": {"accuracy": 0.6}, "grounded": {"accuracy": 0.6}, "stuck": True}
    assert made["commit"] == "abc/abd with changes"   # of pretraining and of fine-tuning


def test_ties_and_what_is_no_number_count_against_a_text():
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.2, 0.1], [0.1, 0.2, float("nan")]])
    assert evaluate.search(scores, torch.eye(3))[0].tolist()[:2] == [2, 2]   # the product of nan with 0 is nan, too
    assert evaluate.search(torch.tensor([[0.1], [float("nan")]]), torch.tensor([[1.0], [1.0]]))[0].tolist() == [2, 2]


def test_search_in_pieces_is_the_whole_search():
    """1,500 texts are searched in two pieces: against all scores at once, sorted."""
    texts, videos = torch.randn(2, 1500, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    order = (texts @ videos.T).argsort(1, descending=True)
    ranks, best = evaluate.search(texts, videos)
    assert torch.equal(ranks, (order == torch.arange(1500)[:, None]).nonzero()[:, 1] + 1)
    assert torch.equal(best, order[:, :3])


def test_a_ridge_map_is_fitted_on_texts_of_known_nouns_alone():
    nouns, known = set(NOUNS), {"pear", "kite"}
    assert evaluate.names_only("okay so now we heat the pear and see me push a kite again", known, nouns)
    assert not evaluate.names_only("we heat the pear and now we push the drum", known, nouns)
    assert not evaluate.names_only("see what happens to it then", known, nouns)


# ---------------------------------------------------------------------------------------------------------------------
# Planning


def test_arms_differ_by_flags_alone():
    assert evaluate.flags_of("text-teacher") == "teacher.py --contrastive none"
    assert evaluate.flags_of("image-teacher") == "teacher.py --frames 1 --streams frame"
    named = {arm for claim in evaluate.CLAIMS.values() for part in claim[3] for arm in part[1:3] if arm}
    named |= {teacher for arm in named for teacher in evaluate.taught_by(arm)}
    assert named.union(*evaluate.CURVE.values()) == set(evaluate.ARMS)   # no arm without a claim, no claim without an arm
    with pytest.raises(ValueError, match="unknown arm"):
        evaluate.flags_of("nts")


def test_arms_that_are_compared_have_the_same_steps_and_rate():
    def budget(arm):
        return re.findall(r"--(?:steps|lr|batch|warmup) \S+", evaluate.flags_of(arm))
    for number, (_, _, _, parts) in evaluate.CLAIMS.items():
        for value, a, b, _ in parts:
            if b is None or value == "R@1":   # retrieval: a student beside its own teacher
                continue
            assert budget(a) == budget(b), (number, a, b)
            taught = [evaluate.taught_by(arm) for arm in (a, b)]
            if all(taught):
                assert budget(taught[0][0]) == budget(taught[1][0]), (number, a, b)


def test_cells_ask_for_what_a_claim_needs():
    cells = evaluate.cells_for(["1", "2", "9"], [0])
    assert cells["nst+crd", 0] == cells["text-only", 0] == list(evaluate.MINI_TASKS)
    assert not any("hinge" in arm for arm, _ in cells)
    cells_of_hinge = evaluate.cells_for(["1h"], [0])
    assert cells_of_hinge["hinge-teacher", 0] == ["SST-2", "MNLI", "PIQA"]
    assert cells_of_hinge["nst+crd-of-hinge", 0] == ["MNLI"]
    assert cells["of-text-teacher", 0] == ["SST-2", "PIQA"]
    assert cells["crd", 0] == cells["teacher", 0] == ["SST-2", "PIQA"]
    assert {"teacher", "text-teacher", "of-shuffled-teacher", "shuffled-teacher"} <= {arm for arm, _ in cells}
    assert evaluate.cells_for(["2"], [0])["nst+crd", 0] == ["SST-2", "PIQA"]
    assert evaluate.cells_for(["10"], [0])["nst+crd", 0] == list(evaluate.MINI_TASKS)
    assert evaluate.cells_for(["7"], [0])["2d-teacher", 0] == ["SST-2", "PIQA"]
    assert {*evaluate.CURVE["two-stage"], *evaluate.CURVE["distilled"], "teacher"} == {
        arm for arm, _ in evaluate.cells_for(["3"], [0])}
    assert "nst+crd" in evaluate.CURVE["distilled"]   # whose steps are the default
    assert distill.DEFAULTS["mini"]["steps"] == evaluate.LENGTHS[evaluate.CURVE["distilled"].index("nst+crd")]
    assert len(evaluate.cells_for(["weights"], [100, 101])) == 2 * 3 * len(evaluate.TUNED)
    with pytest.raises(ValueError, match="never reported"):
        evaluate.cells_for(["weights"], [1, 100])
    with pytest.raises(ValueError, match="unknown claim '11'"):
        evaluate.cells_for(["11"], [0])


def test_plan_leaves_out_what_is_there_and_refuses_other_flags(tmp_path):
    cells, runs = evaluate.cells_for(["2"], [0]), tmp_path / "runs"
    count = evaluate.plan(tmp_path / "plan.mk", runs, cells, "python")
    assert count == len(cells)
    text = (tmp_path / "plan.mk").read_text()
    assert "--contrastive none" in text and "--shuffle-pairs" in text
    kept(runs, "teacher", 0, cell("teacher", 0, 0.8))
    kept(runs, "text-only", 0, cell("text-only", 0, 0.5))
    assert evaluate.plan(tmp_path / "plan.mk", runs, cells, "python") == count - 2
    # the teacher's own rule stays: its students' rules need it
    assert "world-0/teacher/model/video_encoder.pt: |" in (tmp_path / "plan.mk").read_text()
    # more tasks are asked for: made again, and the old value stays until then
    assert evaluate.plan(tmp_path / "plan.mk", runs, {("text-only", 0): ["SST-2", "PIQA", "MNLI"]}, "python") == 1
    assert evaluate.value_file(runs, "text-only", 0).exists()
    changed = {**cell("teacher", 0, 0.8), "flags": "teacher.py --lr 1"}
    kept(runs, "teacher", 0, changed)
    with pytest.raises(ValueError, match="teacher.py --lr 1"):
        evaluate.plan(tmp_path / "plan.mk", runs, cells, "python")


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_a_stage_is_asked_whether_it_is_up_to_date(tmp_path, monkeypatch):
    """A teacher of other flags may lie there: its stage must refuse it, so it must be started."""
    monkeypatch.chdir(tmp_path)
    for path in (Path("data/mini-0/bank.json"), Path("runs/world-0/teacher/model/video_encoder.pt")):
        path.parent.mkdir(parents=True)
        path.touch()
    kept("runs", "crd", 0, cell("crd", 0, 0.5, tasks=("SST-2",)))   # a task is lacking
    evaluate.plan("plan.mk", "runs", {("crd", 0): ["SST-2", "PIQA"]}, "echo")
    subprocess.run(["make", "-f", "plan.mk", "all"], check=True, capture_output=True)
    assert "teacher.py" in Path("runs/world-0/teacher.log").read_text()
    assert "finetune.py" in Path("runs/world-0/crd.log").read_text()
    assert not Path("runs/world-0/world.log").exists()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_runs_the_plan_resumes_and_repeats(mini, tmp_path, monkeypatch):
    """Stages of a few steps through make: all, then what was lost, then all again in another folder; then a failure."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini-0").symlink_to(mini)
    data.make_bank(mini, "train", 40, 0, 32, mini / "bank.json")
    short = {"teacher.py": " --steps 4 --batch 16", "distill.py": " --steps 4 --batch 8 --crd-queue 64"}
    arms = {arm: re.sub(r" --steps \d+", "", flags) + short[flags.split()[0]] for arm, flags in evaluate.ARMS.items()}
    monkeypatch.setattr(evaluate, "ARMS", arms)
    monkeypatch.chdir(tmp_path)
    # the plan's interpreter: runs a stage with these arms, and fine-tunes for a moment
    (tmp_path / "short.py").write_text(
        f"import importlib, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport evaluate\nevaluate.ARMS = {arms!r}\n"
        "stage, arguments = sys.argv[1], sys.argv[2:]\n"
        "if stage == 'finetune.py':\n    arguments += ['--train-limit', '16', '--epochs', '1']\n"
        "importlib.import_module(stage[:-3]).main(arguments)\n")

    def make(runs, *words):
        cells = {(arm, 0): ["SST-2", "PIQA"] for arm in ("teacher", "crd", "nst")}
        todo = evaluate.plan(Path(runs) / "plan.mk", runs, cells, f"{sys.executable} short.py")
        return todo, subprocess.run(["make", "-j2", "-f", f"{runs}/plan.mk", "all", *words], text=True, capture_output=True,
                                    env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400)

    def values(runs):
        found = {arm: json.loads(evaluate.value_file(runs, arm, 0).read_text()) for arm in ("teacher", "crd", "nst")}
        return {arm: {key: one[key] for key in ("tasks", "probe", "retrieval", "flags")} for arm, one in found.items()}
    todo, done = make("runs/a")
    assert (todo, done.returncode) == (3, 0), done.stdout + done.stderr
    first = values("runs/a")
    assert "3 of 3 done" in done.stdout and set(first["crd"]["tasks"]) == {"SST-2", "PIQA"}
    assert first["crd"]["retrieval"]["how"].startswith("mean of e_s") and first["nst"]["retrieval"]["how"] == "not defined"
    assert make("runs/a")[0] == 0
    # two value files, half a fine-tuning and the end of a student are lost: only they are made, to the digit
    for arm in ("crd", "nst"):
        evaluate.value_file("runs/a", arm, 0).unlink()
    shutil.rmtree("runs/a/world-0/nst/finetune/PIQA")
    Path("runs/a/world-0/nst/model/distill_heads.pt").unlink()
    todo, done = make("runs/a")
    assert (todo, done.returncode) == (2, 0), done.stdout + done.stderr
    assert make("runs/b")[1].returncode == 0
    assert values("runs/a") == values("runs/b") == first
    # a stage that fails says why, and the others go on
    arms["crd"] += " --crd-tokens 99"
    todo, done = make("runs/c", "--keep-going")
    assert done.returncode != 0 and "lower --crd-tokens" in done.stdout
    assert evaluate.value_file("runs/c", "nst", 0).exists() and not evaluate.value_file("runs/c", "crd", 0).exists()


# ---------------------------------------------------------------------------------------------------------------------
# What lies behind the README's words on vokens: tests/why.py


def test_nearest_clips_are_compared_with_their_article(mini, tmp_path, monkeypatch):
    """A teacher whose every token is itself: at a noun the nearest clip shows that noun, at all else it is clip 0."""
    world = data.read_json(mini / "world.json", "")["nouns"]
    tokenizer = data.load_tokenizer(mini)
    filmed = [noun for noun in world if world[noun]["group"] != "unfilmed"]
    captions = data.read_json(mini / "caption.json", "")
    names = {noun: next(name for name, entry in captions.items() if all(noun in text.split() for text in entry["text"]))
             for noun in filmed}   # a video whose narration is of its own clips alone
    (tmp_path / "bank.json").write_text(json.dumps(
        [{"video": names[noun], "start": 0, "end": 1, "text": "its text is not what it shows"} for noun in filmed]))
    size = tokenizer.get_vocab_size()
    bank = torch.nn.functional.one_hot(torch.tensor([tokenizer.token_to_id(noun) for noun in filmed]), size).float()

    class Itself(torch.nn.Module):
        def forward(self, tokens):
            return torch.nn.functional.one_hot(tokens, size).float()
    monkeypatch.setattr(why.data, "load_tokenizer", lambda folder: tokenizer)
    monkeypatch.setattr(why.model, "load_hf", lambda folder: (
        model.BertConfig(vocab_size=size, block=32), Itself(), None))
    monkeypatch.setattr(why.distill, "bank_vectors", lambda *_: bank)
    monkeypatch.setattr(why.distill, "validate", lambda *_: {"valid_mlm": 1.5})
    at_nouns, elsewhere, mlm, lot = why.nearest_clips(mini, tmp_path, tmp_path / "bank.json", limit=640)

    blocks = data.TextBlocks(mini / "text", "train", tokenizer, 32).batch(range(640))[:, 1:-1]   # the same by hand
    hits = {"noun": [], "colour": [], "lift": []}
    beside = {"noun": [], "colour": [], "lift": []}
    for block in blocks.tolist():
        pieces = [tokenizer.id_to_token(token) for token in block]
        named = {piece for piece in pieces if piece in world}
        if len(named) != 1 or not named <= set(filmed):
            continue
        noun, = named
        for piece in pieces:
            clip = piece if piece in filmed else filmed[0]   # no clip is near to a token that is no noun
            kept = hits if piece == noun else beside
            kept["noun"].append(clip == noun)
            for name in ("colour", "lift"):
                kept[name].append(world[clip][name] == world[noun][name])
    for name in hits:
        assert at_nouns[name] == pytest.approx(np.mean(hits[name]))
        assert elsewhere[name] == pytest.approx(np.mean(beside[name]))
    assert mlm == 1.5 and lot == pytest.approx(np.log(size))
