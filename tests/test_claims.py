"""The plan of `make claims` and its judgement: cells made by hand, and a whole run of tiny stages.

    python -m pytest tests/test_claims.py
"""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import scipy.stats

import data
import distill
import evaluate
import model
from evaluate import Part

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "tests" / "claims.jsonl"
GROUNDED = ("grounded", "SST-2 PIQA")


def cell(arm, seed, grounded, ungrounded=1.0, unfilmed=0.5, tasks=("SST-2", "PIQA"), r1=None):
    """A value file's content."""
    accuracies = {"dev": grounded, "grounded": grounded, "ungrounded": ungrounded,
                  "unfilmed": unfilmed}
    parts = {part: {"accuracy": value, "n": 100, "chance": 0.5}
             for part, value in accuracies.items()}
    scores = {task: {**parts, "stuck": False} for task in tasks}
    if "MNLI" in tasks:
        scores["MNLI"]["knowledge"] = parts["grounded"]
    retrieval = {"R@1": r1, "chance R@1": 1 / 288} if r1 else {"how": "not defined"}
    return {"arm": arm, "seed": seed, "flags": evaluate.recipe(arm), "commit": "abc",
            "hardware": "2 x CPU", "threads": 1, "mlm": 2.5, "seconds": {"pretraining": 60},
            "tasks": scores, "probe": dict.fromkeys(data.PROPERTIES, 0.9), "retrieval": retrieval}


def cells_of(**arms):
    """Cells of arms, each given as its values in seeds 0, 1, ... (text_only for "text-only")."""
    cells = {}
    for name, values in arms.items():
        arm = name.replace("_", "-").replace("nst-crd", "nst+crd")
        for seed, value in enumerate(values):
            cells[arm, seed] = cell(arm, seed, value, tasks=("SST-2", "PIQA", "MNLI"))
    return cells


def keep(runs, *cells):
    """Value files as `make claims` leaves them."""
    for one in cells:
        file = evaluate.value_file(runs, one["arm"], one["seed"])
        file.parent.mkdir(parents=True, exist_ok=True)
        data.write_json(file, one)


# --------------------------------------------------------------------------------------------------
# Judging


def test_a_part_is_the_paired_interval_of_its_differences():
    cells = cells_of(nst_crd=(0.80, 0.90, 0.85), text_only=(0.50, 0.52, 0.45))
    part = Part(*GROUNDED, "nst+crd", "text-only", "better")
    judged = evaluate.judge(part, cells, [0, 1, 2])
    differences = [30, 38, 40]
    error = statistics.stdev(differences) / 3 ** 0.5
    assert judged["values"] == pytest.approx(differences)
    assert (judged["n"], judged["verdict"]) == (3, "holds")
    assert judged["low"] == pytest.approx(36 - 4.302653 * error, abs=1e-4)
    assert judged["high"] == pytest.approx(36 + 4.302653 * error, abs=1e-4)
    assert judged["p"] == pytest.approx(2 * scipy.stats.t.sf(36 / error, 2))
    # a seed that lacks one arm is left out, not counted as zero
    del cells["text-only", 1]
    assert evaluate.judge(part, cells, [0, 1, 2])["seeds"] == [0, 2]
    assert evaluate.judge(part, cells, [0])["verdict"] == "one seed"
    missing = Part(*GROUNDED, "nst", "text-only", "better")
    assert evaluate.judge(missing, cells, [0])["verdict"] == "not run"


@pytest.mark.parametrize("question, differences, verdict", [
    ("better", (10, 11, 12), "holds"), ("better", (-10, 10, 1), "not decided"),
    ("better", (-3, -3.1, -2.9), "fails"), ("not worse", (-0.5, 0.5, 0), "holds"),
    ("not worse", (-9, -9.2, -9.1), "fails"), ("not worse", (-9, 9, 0), "not decided"),
    ("no better", (0.1, -0.1, 0), "holds"), ("no better", (9, 9.1, 9.2), "fails"),
    ("no better", (-9, 9, 0), "not decided"), ("no effect", (1, -1, 0), "holds"),
    ("no effect", (9, 9.1, 9.2), "fails"), ("no effect", (-30, 35, 20), "not decided")])
def test_verdicts_of_questions(question, differences, verdict):
    cells = cells_of(nst=[0.5 + d / 100 for d in differences], text_only=(0.5, 0.5, 0.5))
    part = Part("grounded", "PIQA", "nst", "text-only", question)
    assert evaluate.judge(part, cells, [0, 1, 2])["verdict"] == verdict


@pytest.mark.parametrize("low, high, better, not_worse", [
    (0.1, 5, "holds", "holds"), (-1, 1.9, "fails", "holds"), (-1, 2.1, "not decided", "holds"),
    (-3, 4, "not decided", "not decided"), (-3, -0.1, "fails", "fails"),
    (-1.9, -0.1, "fails", "holds"), (float("nan"), float("nan"), "not decided", "not decided")])
def test_verdicts_of_intervals(low, high, better, not_worse):
    assert evaluate.verdict_of("better", low, high) == better
    assert evaluate.verdict_of("not worse", low, high) == not_worse


@pytest.mark.parametrize("low, high, verdict", [
    (-1, 3, "holds"), (-1, 9, "holds"), (-1, 9.2, "not decided"), (0.1, 2, "fails"),
    (-9, 1, "holds"), (-9, 0.8, "not decided"), (-2, -0.1, "fails")])
def test_no_effect_needs_a_mean_within_four_points(low, high, verdict):
    assert evaluate.verdict_of("no effect", low, high) == verdict


def test_a_difference_the_other_way_is_no_evidence():
    """A p is of its claim's side: what is surely the opposite has 1, and no place before others."""
    cells = cells_of(nst=(0.3, 0.301, 0.302), text_only=(0.5, 0.5, 0.5))
    p = {}
    for question in ("better", "not worse", "no better"):
        part = Part("grounded", "PIQA", "nst", "text-only", question)
        p[question] = evaluate.judge(part, cells, [0, 1, 2])["p"]
    assert p["better"] == p["not worse"] == 1.0
    assert p["no better"] < 1e-4
    same = cells_of(nst=(0.5, 0.5, 0.5), text_only=(0.5, 0.5, 0.5))   # no spread at all
    part = Part("grounded", "PIQA", "nst", "text-only", "better")
    assert evaluate.judge(part, same, [0, 1, 2])["p"] == 1.0


def test_holm_by_hand():
    assert evaluate.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert evaluate.holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert evaluate.holm([]) == []


def test_a_joined_claim_holds_if_each_part_does():
    seeds = [0, 1, 2]
    cells = cells_of(nst=(0.60, 0.70, 0.80), crd=(0.9, 0.901, 0.902), nst_crd=(0.95,) * 3,
                     soft_label=(0.5,) * 3, regression=(0.5,) * 3)   # nst's p is 0.074
    judged = evaluate.judge_claims(cells, ["6"], seeds)["claims"][0]
    verdicts = [part["verdict"] for part in judged["parts"]]
    assert verdicts == ["not decided"] * 2 + ["holds"] * 4
    assert judged["verdict"] == "not decided"
    assert judged["holm"] == pytest.approx(max(part["p"] for part in judged["parts"]))
    assert evaluate.deciding(judged)["name"] == "grounded SST-2 PIQA: nst - soft-label"
    # one part that fails settles it, whatever was not run; then there is no p of the whole
    cells = cells_of(nst=(0.5, 0.501, 0.502), soft_label=(0.6,) * 3)
    judged = evaluate.judge_claims(cells, ["6"], seeds)["claims"][0]
    assert (judged["verdict"], judged["holm"]) == ("fails", None)


def test_holms_correction_takes_a_verdict_away():
    # 20 +- 6.2: t = 20 / (6.2 / 3 ** .5) = 5.59, p = 0.031; twice that beside another claim
    cells = cells_of(nst_crd=(0.638, 0.7, 0.762), no_head=(0.5,) * 3, voken=(0.5, 1.0, 0.7))
    first, second = evaluate.judge_claims(cells, ["8", "4"], [0, 1, 2])["claims"]
    assert first["parts"][0]["verdict"] == "holds"
    assert first["parts"][0]["p"] == pytest.approx(0.0306, abs=5e-4)
    assert first["holm"] == pytest.approx(2 * first["parts"][0]["p"])
    assert first["of"] == 2
    assert evaluate.said_of(first) == "not decided, its p after Holm's correction is 0.061"
    alone = evaluate.judge_claims(cells, ["8"], [0, 1, 2])["claims"][0]
    assert alone["verdict"] == "holds"


def test_a_control_that_does_not_hold_stands_beside_its_claim():
    def near(value):
        return value, value + 0.001, value + 0.002
    cells = cells_of(nst_crd=near(0.8), of_text_teacher=near(0.5), text_only=near(0.501),
                     of_shuffled_teacher=near(0.6), teacher=near(0.8))
    names = ["2", "pairs", "unfilmed"]
    claim, _, unfilmed = evaluate.judge_claims(cells, names, [0, 1, 2])["claims"]
    assert unfilmed["verdict"] == "holds"
    assert evaluate.said_of(claim) == "holds; its control pairs: fails"
    row = evaluate.markdown_claims({"claims": [claim]}).splitlines()[-1]
    assert row.endswith("text-teacher: +30.0 [+30.0, +30.0], n=3 | "
                        "**holds; its control pairs: fails** |")


def test_the_curve_of_claim_3_is_of_worlds_that_have_both_lines():
    cells = {("two-stage-500", 1): cell("two-stage-500", 1, 0.6),
             ("two-stage-500", 2): cell("two-stage-500", 2, 0.6),
             ("distilled-500", 2): cell("distilled-500", 2, 0.7),
             ("nst+crd", 1): cell("nst+crd", 1, 0.7)}
    curve = evaluate.judge_claims(cells, ["3"], [1, 2])["curve"]
    assert curve["two-stage"] == [[pytest.approx(60)], [], [], []]
    assert curve["distilled"] == [[pytest.approx(70)], [], [], []]


def test_a_hinge_teacher_without_signal_is_said():
    cells = cells_of(nst_crd_of_hinge=(0.8, 0.801, 0.802), text_only=(0.5, 0.501, 0.502),
                     hinge_teacher=(0.55, 0.551, 0.552))
    claim = evaluate.judge_claims(cells, ["1h"], [0, 1, 2])["claims"][0]
    assert claim["verdict"] == "teacher carries no signal"
    cells.update(cells_of(hinge_teacher=(0.7, 0.7, 0.7)))
    claim = evaluate.judge_claims(cells, ["1h"], [0, 1, 2])["claims"][0]
    assert claim["verdict"] == "holds"
    assert claim["holm"] is None   # not one of the paper's claims: no correction


def test_measures_are_of_the_right_things():
    one = cell("crd", 0, 0.8, 0.9, 0.4, evaluate.MINI_TASKS, r1=0.3)
    one["tasks"]["PIQA"]["grounded"] = {"accuracy": 0.6, "chance": 0.5}
    for name in data.PROPERTIES:
        one["probe"][name] = 1.0 if name in data.DYNAMIC else 0.25
    cells = {("crd", 0): one, ("nst", 0): cell("nst", 0, 0.5)}
    for measure, tasks, value, chance in (
            ("grounded", "PIQA", 60, 50), ("grounded", "SST-2 PIQA", 70, 50),
            ("grounded", "all", (8 * 80 + 60) / 9, 50), ("ungrounded", "all", 90, 50),
            ("unfilmed", "SST-2 PIQA", 40, 50), ("Knowledge", "", 80, 50),
            ("probe", "dynamic", 100, 50), ("probe", "static", 25, (25 + 50 + 50) / 3),
            ("probe", "colour", 25, 25), ("R@1", "", 30, 100 / 288)):
        result = evaluate.measured(cells, "crd", 0, measure, tasks)
        assert result == (pytest.approx(value), pytest.approx(chance)), (measure, tasks)
    assert evaluate.measured(cells, "crd", 0, "MLM", "")[0] == 2.5
    for seed, measure, tasks in ((0, "R@1", ""), (0, "grounded", "MNLI"), (0, "Knowledge", ""),
                                 (1, "R@1", "")):
        assert evaluate.measured(cells, "nst", seed, measure, tasks) is None


# --------------------------------------------------------------------------------------------------
# Value files


def test_claims_are_judged_from_value_files(tmp_path, capsys):
    arms = {"nst+crd": 0.8, "text-only": 0.5, "of-text-teacher": 0.52, "of-shuffled-teacher": 0.5,
            "teacher": 0.8}
    for arm, value in arms.items():
        keep(tmp_path, *[cell(arm, 1 + step, value + 0.003 * step ** 2) for step in (0, 1, 2)])
    # worlds on which settings were chosen are judged only when they are named
    keep(tmp_path, cell("nst+crd", 0, 0.1), cell("nst+crd", 100, 0.1), cell("nst@3", 100, 0.6))
    keep(tmp_path, {**cell("text-only", 4, 0.1), "flags": "distill.py --objective none --lr 1"})
    command = ["claims", "--claims", "2", "--width", "200"]
    evaluate.main([*command, "--runs", str(tmp_path)])
    first = capsys.readouterr().out
    assert re.search(r"^2\. .*: HOLDS, p ", first, re.M)
    assert re.search(r"^pairs\. .*: HOLDS$", first, re.M)
    assert "seed 1: 80.0, 52.0  seed 2: 80.3, 52.3  seed 3: 81.2, 53.2" in first
    assert "+28.0 [+28.0, +28.0], n=3" in first
    assert "! left out, made with other flags: text-only seed 4\n" in first
    judged = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["number"] for claim in judged["claims"]] == ["2", "pairs", "unfilmed"]
    assert judged["arms"]["nst+crd"]["grounded SST-2 PIQA"] == pytest.approx([80.0, 80.3, 81.2])
    # the same from the JSON lines that were written beside
    lines = ["--values", str(tmp_path / "values.jsonl")]
    evaluate.main([*command, *lines, "--out", str(tmp_path / "again.json")])
    assert capsys.readouterr().out == first
    again = (tmp_path / "again.json").read_bytes()
    assert again == (tmp_path / "claims.json").read_bytes()
    # of values that came from elsewhere nothing is written
    evaluate.main(["claims", *lines, "--runs", str(tmp_path / "other"), "--seeds", "1"])
    assert not (tmp_path / "other").exists()
    with pytest.raises(model.UserError, match="make claims"):
        evaluate.main(["claims", "--values", str(tmp_path / "none.jsonl")])
    with pytest.raises(model.UserError, match="no values of worlds 7"):
        evaluate.main(["claims", *lines, "--seeds", "7"])


def test_kept_values_are_of_the_arms_as_they_are(capsys):
    for one in evaluate.read_values(KEPT).values():
        assert one["flags"] == evaluate.recipe(one["arm"])
    for flags, count in (([], 10), (["--parts"], 16)):
        evaluate.main(["claims", "--values", str(KEPT), "--markdown", *flags])
        rows = capsys.readouterr().out.splitlines()
        assert len(rows) == 2 + count
        assert rows[2].startswith("| 1 | A student distilled from video beats")
        assert "+36.5 [+26.6, +46.5], n=5" in rows[2]
        assert rows[2].endswith("| **holds** |")


def test_the_grid_stands_beside_what_was_chosen(tmp_path, capsys):
    for ratio, value in ((3, 0.6), (10, 0.8), (30, 0.7)):
        arm = f"nst@{ratio}"
        keep(tmp_path, cell(arm, 100, value), cell(arm, 101, value + 0.02))
        assert evaluate.flags_of(arm) == f"distill.py --objective nst --gradient-ratio {ratio}"
    evaluate.main(["claims", "--runs", str(tmp_path), "--claims", "weights"])
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("nst "))
    assert row.split("  ")[-1] == "30"
    assert "61.0 ± 1.4 (n=2)  81.0 ± 1.4 (n=2)  71.0 ± 1.4 (n=2)" in row


def test_more_arms_leave_the_judgement_alone(tmp_path, capsys):
    one = cell("ntxent", 1, 0.7)
    one["tasks"]["SST-2"]["stuck"] = True
    keep(tmp_path, one)
    (tmp_path / "claims.json").write_text("judged before")
    evaluate.main(["claims", "--runs", str(tmp_path), "--claims", "more", "--width", "200"])
    printed = capsys.readouterr().out
    assert re.search(r"^ntxent +70.0", printed, re.M)
    assert "counts as it is: ntxent SST-2 seed 1\n" in printed
    assert (tmp_path / "claims.json").read_text() == "judged before"


def test_a_cell_holds_its_own_seed_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "probe", lambda *_: {"lift": {"test": 0.123456, "unfilmed": 0}})
    run = Path("runs/world-3/text-only")
    for seed, accuracy in ((0, 0.2), (3, 0.6)):   # someone fine-tuned by hand, too
        place = run / "finetune" / "QNLI" / f"seed-{seed}"
        place.mkdir(parents=True)
        parts = {split: {"grounded": {"accuracy": accuracy}} for split in ("dev", "test")}
        metrics = {"task": "QNLI", "seed": seed, "seconds": 1, "parts": parts, "majority": True}
        data.write_json(place / "metrics.json", metrics)
        data.write_json(place / "args.json", {"commit": "abd", "uncommitted changes": True})
    data.write_json(run / "args.json", {"arguments": {"objective": []}, "commit": "abc"})
    Path("data/mini-3").mkdir(parents=True)
    data.write_json("data/mini-3/world.json", {})
    evaluate.main(["cell", "text-only", "--seed", "3", "--runs", "runs"])
    written = json.loads(evaluate.value_file("runs", "text-only", 3).read_text())
    score = {"accuracy": 0.6}
    assert written["tasks"] == {"QNLI": {"dev": score, "grounded": score, "stuck": True}}
    assert written["commit"] == "abc/abd with changes"   # of pretraining and of fine-tuning
    assert written["probe"] == {"lift": 0.12346}
    assert written["retrieval"] == {"how": "not defined"}


# --------------------------------------------------------------------------------------------------
# Planning


def test_every_arm_has_a_claim_and_every_claim_its_arms():
    named = {*evaluate.SIDE, *evaluate.CURVE["two-stage"], *evaluate.CURVE["distilled"]}
    for claim in evaluate.CLAIMS.values():
        for part in claim.parts:
            named |= {part.arm, part.against} - {"chance"}
    named |= {evaluate.teacher_of(arm) for arm in named} - {None}
    assert named == {*evaluate.TEACHERS, *evaluate.STUDENTS}


def test_arms_that_are_compared_have_the_same_steps_and_rate():
    def budgets(arm):
        """Of the arm's own stage, then of its teacher's where it has another."""
        stages = reversed(evaluate.recipe(arm).split("; "))
        return [re.findall(r"--(?:steps|lr|batch|warmup) \S+", stage) for stage in stages]
    for name, claim in evaluate.CLAIMS.items():
        for part in claim.parts:
            if part.against != "chance" and part.measure != "R@1":   # there: a teacher, its student
                for ours, theirs in zip(budgets(part.arm), budgets(part.against)):
                    assert ours == theirs, (name, part)
    steps = dict(zip(evaluate.CURVE["distilled"], evaluate.LENGTHS))
    assert distill.DEFAULTS["mini"]["steps"] == steps["nst+crd"]


def test_cells_ask_for_what_a_claim_needs():
    two = ["SST-2", "PIQA"]
    cells = evaluate.cells_for(["1", "2", "9"], [0])
    assert cells["nst+crd", 0] == cells["text-only", 0] == list(evaluate.MINI_TASKS)
    for arm in ("of-text-teacher", "crd", "teacher", "shuffled-teacher", "text-teacher"):
        assert cells[arm, 0] == two
    assert not any("hinge" in arm for arm, _ in cells)
    hinge = evaluate.cells_for(["1h"], [0])
    assert hinge["hinge-teacher", 0] == ["SST-2", "MNLI", "PIQA"]
    assert hinge["nst+crd-of-hinge", 0] == ["MNLI"]
    assert evaluate.cells_for(["2"], [0])["nst+crd", 0] == two
    assert evaluate.cells_for(["10"], [0])["nst+crd", 0] == list(evaluate.MINI_TASKS)
    curve = {arm for arm, _ in evaluate.cells_for(["3"], [0])}
    assert curve == {*evaluate.CURVE["two-stage"], *evaluate.CURVE["distilled"], "teacher"}
    grid = {arm for arm, _ in evaluate.cells_for(["weights"], [100])}
    assert grid == {*evaluate.GRID, "teacher", "text-teacher"}
    with pytest.raises(model.UserError, match="never reported"):
        evaluate.cells_for(["weights"], [1, 100])
    with pytest.raises(model.UserError, match="unknown claim '11'"):
        evaluate.cells_for(["11"], [0])


def test_plan_leaves_out_what_is_there_and_refuses_other_flags(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = evaluate.cells_for(["2"], [0])
    lines = evaluate.plan("arms", cells, "runs", "python")
    assert len(lines) == len(cells)
    assert len(evaluate.plan("worlds", cells, "runs", "python")) == 1
    teachers = evaluate.plan("teachers", cells, "runs", "python")
    assert ["--contrastive none" in line for line in teachers].count(True) == 1
    assert ["--shuffle-pairs" in line for line in teachers].count(True) == 1
    keep("runs", cell("teacher", 0, 0.8), cell("text-only", 0, 0.5))
    assert len(evaluate.plan("arms", cells, "runs", "python")) == len(cells) - 2
    # the teacher is still asked, since its student needs it
    assert len(evaluate.plan("teachers", cells, "runs", "python")) == len(teachers)
    # more tasks are asked for: made again, and the old value stays until then
    more = {("text-only", 0): ["SST-2", "PIQA", "MNLI"]}
    assert len(evaluate.plan("arms", more, "runs", "python")) == 1
    Path("data/mini-0").mkdir(parents=True)
    Path("data/mini-0/bank.json").touch()
    assert evaluate.plan("worlds", cells, "runs", "python") == []
    keep("runs", {**cell("teacher", 0, 0.8), "flags": "teacher.py --lr 1"})
    with pytest.raises(model.UserError, match="teacher.py --lr 1"):
        evaluate.plan("arms", cells, "runs", "python")


def run_lines(lines, jobs=2):
    """Runs a plan's lines as `make claims` does. Returns what it prints, whether all worked."""
    each = 'for line; do sh -c "$line" || exit 1; done'   # no line: nothing is run
    done = subprocess.run(["xargs", "-0", "-n", "1", "-P", str(jobs), "sh", "-c", each, "xargs"],
                          input="\0".join(lines), text=True, capture_output=True, timeout=400,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.stdout + done.stderr, done.returncode == 0


def test_a_teacher_that_its_stage_refuses_has_no_students(tmp_path, monkeypatch):
    """A teacher of other flags may lie there: its stage refuses it, and nothing is made of it."""
    monkeypatch.chdir(tmp_path)
    Path("stage.sh").write_text('echo "$@"; [ "$1" != teacher.py ] || [ -e works ]\n')
    cells = {("crd", 0): ["SST-2"], ("text-only", 0): ["SST-2"]}
    runs = "runs of mine"
    Path(runs, "world-0").mkdir(parents=True)
    Path(runs, "world-0", "teacher.done").touch()   # of an earlier time
    printed, worked = run_lines(evaluate.plan("teachers", cells, runs, "sh stage.sh"))
    assert not worked
    assert "teacher.log:\nteacher.py --data data/mini-0" in printed
    printed, worked = run_lines(evaluate.plan("arms", cells, runs, "sh stage.sh"), jobs=1)
    assert not worked
    assert "crd.log:\ncat: " in printed
    assert "evaluate.py cell text-only" in printed   # the others go on
    Path("works").touch()
    assert run_lines(evaluate.plan("teachers", cells, runs, "sh stage.sh"))[1]
    assert run_lines(evaluate.plan("arms", cells, runs, "sh stage.sh"))[1]
    log = Path(runs, "world-0", "crd.log").read_text()
    assert log.index("distill.py --objective crd") < log.index("finetune.py --model")


def test_claims_run_and_resume(mini, tmp_path, monkeypatch):
    """Stages of a few steps: all of them, nothing, then what was lost."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini-0").symlink_to(mini)
    monkeypatch.chdir(tmp_path)
    # the plan's interpreter: shortens each stage
    short = {"teacher.py": ["--steps", "4", "--batch", "16"],
             "distill.py": ["--steps", "4", "--batch", "8", "--crd-queue", "64", "--warmup", "2"],
             "finetune.py": ["--train-limit", "16", "--epochs", "1"]}
    Path("short.py").write_text(
        f"import importlib, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        f"stage, *flags = sys.argv[1:]\n"
        f"importlib.import_module(stage[:-3]).main(flags + {short!r}.get(stage, []))\n")
    cells = {("crd", 0): ["SST-2", "PIQA"]}

    def make(runs):
        """Number of arms to make, what was printed, and the values that came out."""
        count = 0
        printed = ""
        for phase in ("teachers", "arms"):
            lines = evaluate.plan(phase, cells, runs, f"{sys.executable} short.py")
            text, worked = run_lines(lines)
            assert worked, text
            printed += text
            count = len(lines)
        one = data.read_json(evaluate.value_file(runs, "crd", 0), "")
        values = [one[key] for key in ("tasks", "probe", "retrieval", "flags")]
        return count, printed, values
    count, printed, first = make("runs")
    assert count == 1
    assert "1/1 seed 0, crd: grounded SST-2 " in printed
    assert set(first[0]) == {"SST-2", "PIQA"}
    assert first[2]["how"].startswith("mean of e_s")
    assert make("runs") == (0, "", first)
    # a value file, half a fine-tuning, a student's end are lost: these are made, to the digit
    evaluate.value_file("runs", "crd", 0).unlink()
    shutil.rmtree("runs/world-0/crd/finetune/PIQA")
    Path("runs/world-0/crd/model/distill_heads.pt").unlink()
    count, _, again = make("runs")
    assert (count, again) == (1, first)
