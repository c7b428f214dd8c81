"""The claims' cells, made and resumed by stages of a few steps, and their judgement.

    python -m pytest tests/test_claims.py
"""
import importlib
import json
import re
import shutil
import statistics
from concurrent.futures import Future
from pathlib import Path

import pytest
import scipy.stats

import data
import distill
import evaluate
import model
from evaluate import Part

KEPT = Path(__file__).parent / "claims.jsonl"
WORLDS = [0, 1, 2]


def cell(arm, seed, grounded, ungrounded=1.0, unfilmed=0.5, tasks=("SST-2", "PIQA"), r1=None):
    """A value file's content."""
    accuracies = {"dev": grounded, "grounded": grounded, "ungrounded": ungrounded,
                  "unfilmed": unfilmed}
    parts = {part: {"accuracy": value, "n": 100, "chance": 0.5}
             for part, value in accuracies.items()}
    scores = {task: {**parts, "stuck": False} for task in tasks}
    if "MNLI" in tasks:
        scores["MNLI"]["knowledge"] = parts["grounded"]
    retrieval = {"R@1": r1, "chance R@1": 1 / 288} if r1 else {}
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


def near(value):
    """Values of three worlds that hardly differ."""
    return value, value + 0.001, value + 0.002


def keep(runs, *cells):
    """Values as `make claims` leaves them."""
    runs.mkdir(parents=True, exist_ok=True)
    with open(runs / "values.jsonl", "a") as file:
        file.writelines(json.dumps(one) + "\n" for one in cells)


# --------------------------------------------------------------------------------------------------
# Judging


def test_a_part_is_the_paired_interval_of_its_differences():
    cells = cells_of(nst_crd=(0.80, 0.90, 0.85), text_only=(0.50, 0.52, 0.45))
    part = Part("nst+crd", "text-only")
    judged = evaluate.judge(part, cells, WORLDS)
    differences = [30, 38, 40]
    error = statistics.stdev(differences) / 3 ** 0.5
    assert judged["values"] == pytest.approx(differences)
    assert judged["verdict"] == "holds"
    assert judged["low"] == pytest.approx(36 - 4.302653 * error, abs=1e-4)
    assert judged["high"] == pytest.approx(36 + 4.302653 * error, abs=1e-4)
    assert judged["p"] == pytest.approx(2 * scipy.stats.t.sf(36 / error, 2))
    # a seed that lacks one arm is left out, not counted as zero
    del cells["text-only", 1]
    assert evaluate.judge(part, cells, WORLDS)["values"] == pytest.approx([30, 40])
    assert evaluate.judge(part, cells, [0])["verdict"] == "one seed"
    assert evaluate.judge(Part("nst", "text-only"), cells, [0])["verdict"] == "not run"


@pytest.mark.parametrize("low, high, better, not_worse, no_effect", [
    (0.1, 5, "holds", "holds", "fails"),
    (-1, 1.9, "fails", "holds", "holds"),
    (-1, 2.1, "not decided", "holds", "holds"),
    (-3, 4, "not decided", "not decided", "holds"),
    (-3, -0.1, "fails", "fails", "fails"),
    (-1.9, -0.1, "fails", "holds", "fails"),
    # no effect needs a mean within four points
    (-1, 9, "not decided", "holds", "holds"),
    (-1, 9.2, "not decided", "holds", "not decided"),
    (-9, 0.8, "fails", "not decided", "not decided"),
    (float("nan"), float("nan"), *["not decided"] * 3)])
def test_verdicts_of_intervals(low, high, better, not_worse, no_effect):
    assert evaluate.verdict_of("better", low, high) == better
    assert evaluate.verdict_of("not worse", low, high) == not_worse
    assert evaluate.verdict_of("no effect", low, high) == no_effect


def test_how_many_worlds_would_decide():
    """The first n whose interval, worked out anew, is decided; said beside an open verdict."""
    cells = cells_of(nst=(0.80, 0.70, 0.90), crd=(0.75, 0.72, 0.70))
    part = evaluate.judge(Part("nst", "crd"), cells, WORLDS)
    assert part["verdict"] == "not decided"
    needed = int(part["worlds"])
    for n, verdict in ((needed - 1, "not decided"), (needed, "holds")):
        error = statistics.stdev([5, -2, 20]) / n ** 0.5
        low, high = scipy.stats.t.interval(0.95, n - 1, statistics.fmean([5, -2, 20]), error)
        assert evaluate.verdict_of("better", low, high) == verdict
    assert evaluate.effect_of(part).endswith(f"not decided ({needed} worlds would)")
    assert evaluate.judge(Part("nst", "crd"), cells_of(nst=near(0.9), crd=near(0.5)),
                          WORLDS)["worlds"] is None
    assert evaluate.seeds_needed([1, -1, 0.001], lambda low, high: low > 0) == "over 10,000"


def test_models_that_fine_tuning_left_at_chance_are_counted(capsys):
    """Those whose probes read behaviours, below 65 in one of the two tasks."""
    cells = cells_of(nst=(0.9, 0.6), text_only=(0.5,))
    cells["crd", 0] = cell("crd", 0, 0.9)
    cells["crd", 0]["tasks"]["PIQA"]["grounded"]["accuracy"] = 0.64
    cells["text-only", 0]["probe"] = dict.fromkeys(data.PROPERTIES, 0.5)
    cells["crd-of-hinge", 0] = cell("crd-of-hinge", 0, 0.5, tasks=("MNLI",))
    evaluate.print_halted(cells)
    printed = " ".join(capsys.readouterr().out.split())   # lines are wrapped
    assert printed.startswith("2 of 3 models")
    assert printed.endswith("in SST-2 or PIQA: nst seed 1, crd seed 0")


def test_a_difference_the_other_way_is_no_evidence():
    """A p is of its claim's side: what is surely the opposite has 1, and no place before others."""
    assert evaluate.p_of("better", [-20, -19.9, -19.8]) == 1.0
    assert evaluate.p_of("not worse", [-20, -19.9, -19.8]) == 1.0
    assert evaluate.p_of("not worse", [20, 19.9, 19.8]) < 1e-4
    assert evaluate.p_of("better", [0.0, 0.0, 0.0]) == 1.0   # no spread at all
    assert evaluate.p_of("no effect", [1, 2, 3]) is None


def test_holm_by_hand():
    corrected = evaluate.holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert evaluate.holm({"a": 0.6, "b": 0.7}) == pytest.approx({"a": 1.0, "b": 1.0})


def test_a_joined_claim_holds_if_each_part_does():
    cells = cells_of(nst=(0.60, 0.70, 0.80), crd=near(0.9), nst_crd=(0.95,) * 3,
                     soft_label=(0.5,) * 3, regression=(0.5,) * 3)   # nst's p is 0.074
    judged = evaluate.judge_claims(cells, ["6"], WORLDS)[0]
    verdicts = [part["verdict"] for part in judged["parts"]]
    assert verdicts == ["not decided"] * 2 + ["holds"] * 4
    assert judged["verdict"] == "not decided"
    # 20 +- 10, four: t = 20 / (10 / 2) = 4, p = 0.028
    said = "not decided (4 worlds would, corrected), p 0.074 corrected over 1 claims"
    assert judged["said"] == said   # its parts' largest
    # one part that fails settles it, whatever was not run; then there is no p of the whole
    cells = cells_of(nst=near(0.5), soft_label=(0.6,) * 3)
    judged = evaluate.judge_claims(cells, ["6"], WORLDS)[0]
    assert judged["said"] == "fails"


def test_open_claims_say_how_many_worlds_would_pass_the_correction(monkeypatch):
    """By Holm's level of the claim's rank, though p is cut at 1; nothing where it nears failing."""
    for name in ("8", "4"):
        monkeypatch.setitem(evaluate.CLAIMS, name, evaluate.CLAIMS[name]._replace(controls=()))
    cells = cells_of(nst_crd=(0.6, 0.5, 0.9), voken=(0.5, 0.5, 0.5), no_head=(0.6, 0.45, 0.93))
    eight, four = evaluate.judge_claims(cells, ["8", "4"], WORLDS)
    values = four["parts"][0]["values"]
    wanted = evaluate.seeds_needed(values, lambda low, high: low > 0, 0.025)   # the first of two
    assert f"not decided ({wanted} worlds would, corrected), p " in four["said"]
    assert eight["parts"][0]["mean"] < 1
    assert eight["said"].startswith("not decided, p ")   # no number of worlds


def test_holms_correction_takes_a_verdict_away(monkeypatch):
    for name in ("8", "4"):
        monkeypatch.setitem(evaluate.CLAIMS, name, evaluate.CLAIMS[name]._replace(controls=()))
    # 20 +- 6.2: t = 20 / (6.2 / 3 ** .5) = 5.59, p = 0.031; twice that beside another claim
    cells = cells_of(nst_crd=(0.638, 0.7, 0.762), no_head=(0.5,) * 3, voken=(0.5, 1.0, 0.7))
    first, _ = evaluate.judge_claims(cells, ["8", "4"], WORLDS)
    assert first["parts"][0]["verdict"] == "holds"
    assert first["parts"][0]["p"] == pytest.approx(0.0306, abs=5e-4)
    # four: t = 20 / (6.2 / 2) = 6.45, p = 0.0076, twice that is below 0.05
    said = "not decided (4 worlds would, corrected), p 0.061 corrected over 2 claims"
    assert first["said"] == said
    alone = evaluate.judge_claims(cells, ["8"], WORLDS)[0]
    assert alone["verdict"] == "holds"


def test_holms_family_is_all_claims_whatever_is_asked_for(capsys):
    said = {}
    for asked in ([], ["--claims", "4"]):
        evaluate.main(["claims", "--values", str(KEPT), *asked])
        said[len(asked)] = re.search(r"^4\. .*\n.*", capsys.readouterr().out, re.M)[0]
    assert said[0] == said[2] and "over 10 claims" in said[0]


def test_what_is_only_shown_decides_nothing():
    cells = cells_of(voken_mixed=near(0.5), voken_random=near(0.5), text_only=(0.51, 0.49, 0.5))
    control = evaluate.judge_claims(cells, ["vokens"], WORLDS)[0]
    assert [part["verdict"] for part in control["parts"]] == ["holds", "holds", "not run"]
    assert control["said"] == "holds"
    cells = cells_of(nst_crd=near(0.8), of_half_teacher=near(0.7))
    assert evaluate.judge_claims(cells, ["noise"], WORLDS)[0]["said"] == "-"


def test_a_control_that_does_not_hold_stands_beside_its_claim():
    cells = cells_of(nst_crd=near(0.8), of_text_teacher=near(0.5), text_only=near(0.501),
                     of_shuffled_teacher=near(0.6), teacher=near(0.8))
    names = evaluate.with_controls(["2"])
    assert names == ["2", "pairs", "unfilmed"]
    claim, _, unfilmed = evaluate.judge_claims(cells, names, WORLDS)
    assert unfilmed["verdict"] == "holds"
    assert claim["said"].startswith("holds, p ")
    assert claim["said"].endswith("over 1 claims; its control pairs: fails")


def test_a_hinge_teacher_without_signal_is_said():
    cells = cells_of(nst_crd_of_hinge=near(0.8), text_only=near(0.5), hinge_teacher=near(0.55))
    claim = evaluate.judge_claims(cells, ["1h"], WORLDS)[0]
    assert claim["verdict"] == "teacher carries no signal"
    cells.update(cells_of(hinge_teacher=near(0.7)))
    claim = evaluate.judge_claims(cells, ["1h"], WORLDS)[0]
    assert claim["said"] == "holds"   # not one of the paper's claims: no correction


def test_measures_are_of_the_right_things():
    one = cell("crd", 0, 0.8, 0.9, 0.4, evaluate.MINI_TASKS, r1=0.3)
    one["tasks"]["PIQA"]["grounded"] = {"accuracy": 0.6, "chance": 0.5}
    for name in data.PROPERTIES:
        one["probe"][name] = 1.0 if name in data.DYNAMIC else 0.25
    for measure, tasks, value, chance in (
            ("grounded", "PIQA", 60, 50), ("grounded", "SST-2 PIQA", 70, 50),
            ("grounded", "all", (8 * 80 + 60) / 9, 50), ("ungrounded", "all", 90, 50),
            ("unfilmed", "SST-2 PIQA", 40, 50), ("knowledge", "MNLI", 80, 50),
            ("probe", "dynamic", 100, 50), ("probe", "static", 25, (25 + 50 + 50) / 3),
            ("probe", "colour", 25, 25), ("R@1", "", 30, 100 / 288)):
        result = evaluate.measured(one, measure, tasks)
        assert result == (pytest.approx(value), pytest.approx(chance)), (measure, tasks)
    assert evaluate.measured(one, "MLM", "")[0] == 2.5
    for measure, tasks in (("R@1", ""), ("grounded", "MNLI"), ("knowledge", "MNLI")):
        assert evaluate.measured(cell("nst", 0, 0.5), measure, tasks) is None


# --------------------------------------------------------------------------------------------------
# Values


def test_claims_are_judged_from_values(tmp_path, capsys):
    arms = {"nst+crd": 0.8, "text-only": 0.5, "of-text-teacher": 0.52, "of-shuffled-teacher": 0.5,
            "teacher": 0.8}
    for arm, value in arms.items():
        keep(tmp_path, *[cell(arm, 1 + step, value + 0.003 * step ** 2) for step in (0, 1, 2)])
    stuck = cell("nst", 1, 0.7)
    stuck["tasks"]["SST-2"]["stuck"] = True
    # worlds on which settings were chosen are judged only when they are named
    keep(tmp_path, stuck, cell("nst+crd", 0, 0.1), cell("nst+crd", 100, 0.1))
    keep(tmp_path, {**cell("text-only", 4, 0.1), "flags": "distill.py --objective none --lr 1"})
    evaluate.main(["claims", "--claims", "2", "--runs", str(tmp_path)])
    first = capsys.readouterr().out
    assert re.search(r"^2\. .*: holds, p ", first, re.M)
    assert re.search(r"^pairs\. .*: holds$", first, re.M)
    assert "n=3 worlds where no n stands" in first
    assert "+28.0 [+28.0, +28.0] holds p " in first
    assert "! left out, made with other flags: text-only seed 4\n" in first
    assert "counts as it is: nst SST-2 seed 1\n" in first
    assert "damaged" not in first
    judged = json.loads((tmp_path / "claims.json").read_text())
    assert [claim["number"] for claim in judged["claims"]] == ["2", "pairs", "unfilmed"]
    assert judged["arms"]["nst+crd"]["grounded"] == pytest.approx([80.0, 80.3, 81.2])
    # the same from a file elsewhere
    lines = tmp_path / "elsewhere.jsonl"
    shutil.copy(tmp_path / "values.jsonl", lines)
    again = tmp_path / "again.json"
    evaluate.main(["claims", "--claims", "2", "--values", str(lines), "--out", str(again)])
    assert capsys.readouterr().out == first
    assert again.read_bytes() == (tmp_path / "claims.json").read_bytes()
    # a process was killed while it wrote
    with open(lines, "a") as file:
        file.write('{"arm": "nst", "seed": 2, "fla')
    evaluate.main(["claims", "--claims", "2", "--values", str(lines), "--out", str(again)])
    count = len(lines.read_text().splitlines())
    assert capsys.readouterr().out == first + (
        f"! left out, damaged: 1 of the {count} lines of {lines}\n")
    # of values that came from elsewhere nothing is written
    elsewhere = ["claims", "--values", str(lines), "--runs", str(tmp_path / "other"), "--seeds"]
    evaluate.main([*elsewhere, "1"])
    assert not (tmp_path / "other").exists()
    assert "tells no behaviour (mechanism): not run" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(model.UserError, match=r"no values of worlds \[7\]"):
        evaluate.main([*elsewhere, "7"])
    with pytest.raises(model.UserError, match="make claims"):
        evaluate.main(["claims", "--values", str(tmp_path / "none.jsonl")])
    with pytest.raises(model.UserError, match="no values of the grid in .* CLAIMS=weights"):
        evaluate.main(["claims", "--claims", "weights", "--values", str(lines)])


def test_what_the_kept_values_say_is_kept_beside_them(capsys, monkeypatch):
    """tests/claims.txt, which the README links."""
    monkeypatch.setenv("COLUMNS", "119")
    for one in evaluate.read_values(KEPT).values():
        assert one["flags"] == evaluate.recipe(one["arm"])
    evaluate.main(["claims", "--values", str(KEPT)])
    printed = capsys.readouterr().out
    assert printed == KEPT.with_suffix(".txt").read_text()
    assert max(map(len, printed.splitlines())) < 120


def test_the_least_ratio_near_the_best_is_taken():
    def grid(**accuracies):
        return {(f"crd@{name[1:]}", 100 + world): cell(f"crd@{name[1:]}", 100 + world, accuracy)
                for name, worlds in accuracies.items() for world, accuracy in enumerate(worlds)}
    near = grid(r3=[0.6, 0.6], r10=[0.9, 0.87], r30=[0.91, 0.89], r100=[0.9, 0.9])
    assert evaluate.chosen_ratio(near, "crd") == 10
    assert evaluate.chosen_ratio({**near, **grid(r1=[0.99])}, "crd") == 10   # of one world
    assert evaluate.chosen_ratio(grid(r1=[0.5, 0.5], r3=[0.54, 0.54]), "crd") == 3
    assert evaluate.chosen_ratio(near, "nst") is None
    kept = evaluate.read_values(KEPT)
    assert {arm: evaluate.chosen_ratio(kept, arm) for arm in evaluate.TUNED} == {
        "nst": 30, "crd": 100, "nst+crd": 30, "soft-label": 3, "regression": 10, "voken": 10,
        "no-head": 10}


def test_a_cell_holds_its_own_seed_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(evaluate, "probe", lambda *_: {"lift": {"test": 0.125, "unfilmed": 0}})
    run = Path("runs/world-3/text-only")
    for seed, accuracy in ((0, 0.2), (3, 0.6)):   # someone fine-tuned by hand, too
        place = run / "finetune" / "QNLI" / f"seed-{seed}"
        place.mkdir(parents=True)
        parts = {split: {"grounded": {"accuracy": accuracy}} for split in ("dev", "test")}
        metrics = {"task": "QNLI", "seed": seed, "seconds": 1, "parts": parts, "majority": True}
        data.write_json(place / "metrics.json", metrics)
    data.write_json(run / "args.json", {"arguments": {"objective": []}, "commit": "abc",
                                      "uncommitted changes": True})
    lines = ['{"valid_mlm": 3.0, "seconds": 5}\n', '{"valid_mlm": 2.5, "seconds": 9}\n']
    (run / "log.jsonl").write_text("".join(lines))
    Path("data/mini-3").mkdir(parents=True)
    data.write_json("data/mini-3/world.json", {"nouns": {}})
    written = evaluate.measure_cell("text-only", 3, run)
    score = {"accuracy": 0.6}
    assert written["tasks"] == {"QNLI": {"dev": score, "grounded": score, "stuck": True}}
    assert written["commit"] == "abc with changes"
    assert written["probe"] == {"lift": 0.125}
    assert written["retrieval"] == {} and written["mlm"] == 2.5
    assert written["seconds"]["pretraining"] == 9


# --------------------------------------------------------------------------------------------------
# Making cells


def test_every_arm_has_a_claim_and_every_claim_its_arms():
    named = set()
    for claim in evaluate.CLAIMS.values():
        named.update(claim.arms)
        for part in claim.parts:
            named |= {part.arm, part.against} - {"chance"}
    named |= {evaluate.teacher_of(arm) for arm in named} - {None}
    assert named == {*evaluate.TEACHERS, *evaluate.TRAINED}


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
    curve = {arm for arm, _ in evaluate.cells_for(["3"], [0])}
    assert curve == {*evaluate.CURVE["two-stage"], *evaluate.CURVE["distilled"], "teacher"}
    grid = {arm for arm, _ in evaluate.cells_for(["weights"], [100])}
    assert grid == {*evaluate.GRID, "teacher"}
    assert evaluate.flags_of("nst@3") == "distill.py --objective nst --gradient-ratio 3"
    with pytest.raises(model.UserError, match="never reported"):
        evaluate.cells_for(["weights"], [1, 100])


class InOrder:
    """Stands for the pool of threads: stages in this process want the main one."""

    def __init__(self, jobs):
        pass

    def submit(self, function, *given):
        future = Future()
        try:
            future.set_result(function(*given))
        except model.UserError as error:
            future.set_exception(error)
        return future

    def shutdown(self, cancel_futures):
        pass


def test_what_is_there_is_not_made_again(tmp_path, monkeypatch):
    """Two at once; scripts are stood in for by a list of what would have run."""
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(evaluate, "run_script", lambda log, *command: ran.append(
        (command[0], Path(log).stem)))
    monkeypatch.setattr(evaluate, "measure_cell", lambda arm, seed, run: cell(arm, seed, 0.5))
    cells = evaluate.cells_for(["2"], [0, 1])
    keep(Path("runs"), cell("text-only", 0, 0.5), cell("text-only", 1, 0.5),
         {**cell("of-text-teacher", 0, 0.5), "flags": "distill.py --lr 1"})
    assert evaluate.make_cells(cells, "runs", 2) == 0
    teachers = ["shuffled-teacher", "teacher", "text-teacher"]
    assert sorted(ran) == sorted(
        2 * [("teacher.py", name) for name in teachers]
        + 2 * [("distill.py", name) for name in ("nst+crd", "of-shuffled-teacher",
                                                 "of-text-teacher")]
        + 2 * [("finetune.py", arm) for arm, seed in cells if seed == 0 and arm != "text-only"])
    assert evaluate.read_values("runs/values.jsonl").keys() == cells.keys()
    assert evaluate.read_values("runs/values.jsonl")["of-text-teacher", 0]["flags"] \
        == evaluate.recipe("of-text-teacher")
    ran.clear()
    assert evaluate.make_cells(cells, "runs", 2) == 0 and ran == []
    # more tasks are asked for; the teacher's values are here, its run is on another machine
    more = {("nst+crd", 0): ["SST-2", "PIQA", "MNLI"]}
    student = [("distill.py", "nst+crd"), ("finetune.py", "nst+crd")]
    assert evaluate.make_cells(more, "runs", 1) == 0
    assert ran == [("teacher.py", "teacher"), ("finetune.py", "teacher"), *student]
    # with its run only the student is made
    ran.clear()
    Path("runs/world-0/teacher/model").mkdir(parents=True)
    assert evaluate.make_cells({("nst+crd", 0): ["SST-2", "QQP"]}, "runs", 1) == 0
    assert ran == student
    # a line that was cut swallows no cell
    with open("runs/values.jsonl", "a") as file:
        file.write('{"arm": "nst", "seed": 0, "fla')
    assert evaluate.make_cells({("crd", 0): ["SST-2"]}, "runs", 1) == 0
    assert ("crd", 0) in evaluate.read_values("runs/values.jsonl")
    assert '"fla\n' in Path("runs/values.jsonl").read_text()


def test_a_world_is_made_before_the_next(tmp_path, monkeypatch):
    """So that a session that is cut leaves whole worlds; teachers come before their students."""
    monkeypatch.setattr(evaluate, "run_cells", lambda ordered, *_: ordered)
    ordered = evaluate.make_cells(evaluate.cells_for(["2"], [4, 5]), tmp_path, 2)
    assert [seed for _, seed in ordered] == sorted(seed for _, seed in ordered)
    for seed in (4, 5):
        arms = [arm for arm, world in ordered if world == seed]
        assert [arm in evaluate.TRAINED for arm in arms] == 3 * [False] + 4 * [True]


def test_a_teacher_that_its_stage_refuses_has_no_students(tmp_path, monkeypatch, capsys):
    """The other cells are made; the log holds what the script said."""
    for name in ("teacher.py", "distill.py", "finetune.py"):
        (tmp_path / name).write_text(f"print('this is {name}')\n")
    with open(tmp_path / "teacher.py", "a") as file:
        file.write("raise SystemExit('other flags')\n")
    monkeypatch.setattr(evaluate, "__file__", str(tmp_path / "evaluate.py"))
    monkeypatch.setattr(evaluate, "measure_cell", lambda arm, seed, run: cell(arm, seed, 0.5))
    runs = tmp_path / "runs of mine"
    (runs / "world-0" / "teacher").mkdir(parents=True)   # of an earlier time
    cells = {("crd", 0): ["SST-2"], ("text-only", 0): ["SST-2"], ("teacher", 0): ["SST-2"]}
    assert evaluate.make_cells(cells, runs, 2) == 2
    assert list(evaluate.read_values(runs / "values.jsonl")) == [("text-only", 0)]
    log = runs / "world-0" / "teacher.log"
    assert log.read_text() == "this is teacher.py\nother flags\n"
    assert f"teacher.py failed, see {log}" in capsys.readouterr().out
    assert not (runs / "world-0" / "crd.log").exists()
    asked = ["claims", "--make", "2", "--claims", "8"]
    for place in (runs, tmp_path / "nothing yet"):   # one with values, one without
        with pytest.raises(model.UserError, match="3 cells were not made"):
            evaluate.main([*asked, "--seeds", "0", "--runs", str(place)])
    with pytest.raises(model.UserError, match="--make needs --seeds"):
        evaluate.main(asked)


def test_claims_run_and_resume(mini, tmp_path, monkeypatch):
    """The stages with a few steps: all of them, nothing, then what was lost."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mini").symlink_to(mini)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "SPOKEN", data.SPOKEN[:2])   # sentences of a probe: ten take seconds
    short = {"teacher.py": ["--steps", "2", "--batch", "16"],
             "distill.py": ["--steps", "2", "--batch", "8", "--crd-queue", "64", "--warmup", "1"],
             "finetune.py": ["--train-limit", "16", "--epochs", "1"]}
    ran = []

    def run_script(log, script, *flags):
        ran.append(script)
        stage = importlib.import_module(script.removesuffix(".py"))
        stage.main([*map(str, flags), *short[script]])
    monkeypatch.setattr(evaluate, "run_script", run_script)
    monkeypatch.setattr(evaluate, "ThreadPoolExecutor", InOrder)
    values = Path("runs/values.jsonl")
    cells = {("crd", 0): ["PIQA"], ("teacher", 0): ["PIQA"]}

    def make():
        assert evaluate.make_cells(cells, "runs", 1) == 0
        one = evaluate.read_values(values)["crd", 0]
        return [one[key] for key in ("tasks", "probe", "retrieval", "flags")]
    first = make()
    assert set(first[0]) == {"PIQA"}
    assert first[2]["chance R@1"] < 0.1 and "how" not in first[2]
    assert ran == ["teacher.py", "finetune.py", "distill.py", "finetune.py"]
    assert make() == first and len(ran) == 4
    # values, a fine-tuning, a student's end are lost: these are made, to the digit
    values.unlink()
    shutil.rmtree("runs/world-0/crd/finetune/PIQA")
    Path("runs/world-0/crd/model/distill_heads.pt").unlink()
    assert make() == first and len(ran) == 8
