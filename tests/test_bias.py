"""The worlds with a bias, and what is measured in them.

    python -m pytest tests/test_bias.py
"""
import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import bias
import data
import model

KEPT = Path(__file__).with_name("bias.jsonl")
LEFT, RIGHT = data.PROPERTIES["spin"][1]


def test_rare_changes_one_behaviour_of_few_nouns():
    usual = data.make_world(3)
    rare = bias.rare_world(data.make_world, 3)
    assert list(rare) == list(usual)
    for noun, properties in usual.items():
        assert {**properties, "spin": 0} == {**rare[noun], "spin": 0}
    for group, count in data.GROUPS.items():
        turns = Counter(noun["spin"] for noun in rare.values() if noun["group"] == group)
        assert turns[RIGHT] in (count // 11, count // 11 + 1) and turns.total() == count
    assert rare == bias.rare_world(data.make_world, 3)


def test_half_never_taps_every_other_noun(tmp_path, monkeypatch):
    world = data.make_world(3)
    left_out = bias.never_tapped(world)
    for group, count in data.GROUPS.items():
        for value in (LEFT, RIGHT):
            members = [noun for noun in world
                       if (world[noun]["group"], world[noun]["spin"]) == (group, value)]
            assert len(left_out & set(members)) == pytest.approx(len(members) / 2, abs=0.5)
    shot = []
    monkeypatch.setattr(data, "write_video", lambda path, frames: shot.append(len(frames)))
    every = list(data.ACTIONS)
    for noun in list(world)[:40]:
        film = bias.untapped_video(left_out, 3, "v", noun, world[noun], tmp_path)
        shown = [action for action in every if action != "tap" or noun not in left_out]
        assert sorted(film["actions"]) == sorted(shown)
        assert shot.pop() == data.CLIP_FRAMES * len(shown) and len(film["words"]) == len(shown)
    bias.untapped_video(left_out, 3, "v08_000", min(left_out), world[min(left_out)], tmp_path)
    assert shot.pop() == data.CLIP_FRAMES * 4   # a held-out film
    assert data.ACTIONS == every


def test_worlds_are_made_by_the_usual_generator(tmp_path, monkeypatch):
    made = []

    def make_mini(seed, out, workers):
        pickle.dumps(data.make_video)   # for the processes that film
        made.append((data.make_world(seed), data.make_video, data.make_tasks(0, 0, 0)))
    monkeypatch.setattr(data, "make_mini", make_mini)
    makers = data.make_world, data.make_video, data.make_tasks
    for kind in bias.KINDS:
        bias.make_world(kind, 3, tmp_path)
        assert (data.make_world, data.make_video, data.make_tasks) == makers
    equal, rare, half = made
    assert equal == (data.make_world(3), data.make_video, []) and half[0] == equal[0]
    assert rare[0] == bias.rare_world(data.make_world, 3) and rare[1] == data.make_video
    assert half[1] != data.make_video


def test_measures_are_those_of_scikit_learn():
    oracle = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    world = {f"noun{row}": {"spin": generator.choice([LEFT, RIGHT])} for row in range(120)}
    truth = np.array([noun["spin"] == RIGHT for noun in world.values()])
    vectors = generator.normal(size=(120, 6)) + truth[:, None]
    fitted = np.arange(120) < 70
    out = bias.measures(vectors, world, fitted, ~fitted)
    targets = np.stack([1 - 2.0 * truth, 2.0 * truth - 1], 1)
    scores = bias.evaluate.ridge_probe(vectors[fitted], targets[fitted], vectors)[~fitted]
    margins = scores[:, 1] - scores[:, 0]
    assert out["auc"] == pytest.approx(oracle.roc_auc_score(truth[~fitted], margins))
    assert out["right"] == pytest.approx(oracle.recall_score(truth[~fitted], margins > 0))
    assert out["left"] == pytest.approx(oracle.recall_score(~truth[~fitted], margins < 0))
    assert out["nouns"] == [(~truth[~fitted]).sum(), truth[~fitted].sum()]
    assert 0.5 < out["auc"] < 1
    chosen = np.array([True, False, True, True])
    assert bias.first_of(chosen, 2).tolist() == [True, False, True, False]


def test_values_are_judged_by_seed(tmp_path, capsys):
    def cell(kind, seed, value):
        scores = {"auc": value, "left": value, "right": value, "nouns": [1, 1]}
        places = {"equal": ("few", "shown", "hidden"), "rare": ("few",),
                  "half": ("shown", "hidden")}[kind]
        return {"kind": kind, "seed": seed, "commit": "abc", "hardware": None,
                "flags": bias.evaluate.recipe("nst+crd"),
                **dict.fromkeys(bias.MODELS, dict.fromkeys(places, scores))}
    values = [cell("equal", 1, 0.9), cell("rare", 1, 0.8), cell("equal", 2, 0.95),
              cell("rare", 2, 0.75), cell("half", 1, 0.5),
              {**cell("rare", 1, 0.1), "flags": "teacher.py --lr 1; distill.py"}]
    file = tmp_path / "bias.jsonl"
    file.write_text("".join(f"{json.dumps(each)}\n" for each in values))
    out = tmp_path / "bias.json"
    bias.judge(bias.argparse.Namespace(values=file, out=out))
    printed = capsys.readouterr().out
    # -10 and -20: -15 +- 12.706 x 7.0711 / sqrt(2)
    assert "student, AUC" in printed and "-15.0 [-78.5, 48.5]" in printed
    assert "student, AUC, nouns that half taps" in printed and "seeds 1 2; commit abc" in printed
    asked, = bias.data.read_json(out, "")["claims"]
    part, = [part for part in asked["parts"] if part["name"] == "student, AUC: rare - equal"]
    assert part["values"] == pytest.approx([-10, -20]) and asked["said"] == "-"
    page = bias.evaluate.report_claims(bias.data.read_json(out, ""), questions=True)
    assert "student, AUC: rare - equal" in page and "-15.0 [-78.5, +48.5]" in page
    bias.judge(bias.argparse.Namespace(values=KEPT, out=None))
    assert "46.7 [33.1, 60.3]" in capsys.readouterr().out   # as README says
    with pytest.raises(model.UserError, match="tests/bias.py make"):
        bias.judge(bias.argparse.Namespace(values=tmp_path / "none", out=None))
