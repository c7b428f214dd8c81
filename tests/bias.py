"""Does a student learn what a thing does, or what most things do? A command, not a test:

    python tests/bias.py make --seeds 21 22 23 24      # worlds, teachers, students; resumes
    python tests/bias.py judge --values runs/bias/values.jsonl
    python evaluate.py report RUN --claims runs/claims/claims.json runs/bias/bias.json

Each seed gives three worlds that differ in one behaviour alone, which way a tapped thing turns:

    equal   half of the nouns turn left, as everywhere else
    rare    of each group's nouns one in eleven turns right, the others left
    half    as equal, but every other noun is never tapped: its films show three actions, not four

The probe is evaluate.probe's, of spin, on the filmed nouns of validation and test. It is fitted
alike in the worlds that are compared: with equal, on as few nouns that turn right as there are in
rare, or on the nouns alone that half shows. So what differs is what the models saw. AUC is how
often a noun that turns right gets a higher score than one that does not, which no threshold biases.
"""
import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import evaluate
import model

KINDS = "equal", "rare", "half"
MODELS = "teacher", "student"
SPIN = "spin"
ACTION = data.DYNAMIC[SPIN]
HELD_OUT = f"v{data.VIDEOS_A_NOUN:02d}_"
MAKE_VIDEO = data.make_video   # as it is: worker processes are handed what replaces it

# --------------------------------------------------------------------------------------------------
# Worlds


def rare_world(make_world, seed):
    """A world, {noun: properties}, of which one noun in eleven turns right."""
    world = make_world(seed)
    left, right = data.PROPERTIES[SPIN][1]
    generator = data.numpy_generator(seed, "rare")
    for group, count in data.GROUPS.items():
        members = [noun for noun in world if world[noun]["group"] == group]
        values = data.balanced([left] * 10 + [right], count, generator)
        for noun, value in zip(members, values):
            world[noun][SPIN] = value
    return world


def never_tapped(world):
    """The nouns that half never taps: every other one of those that turn left, and right."""
    out = set()
    for group in data.GROUPS:
        for value in data.PROPERTIES[SPIN][1]:
            members = [noun for noun in world
                       if (world[noun]["group"], world[noun][SPIN]) == (group, value)]
            out.update(members[::2])
    return out


def untapped_video(left_out, seed, video, noun, properties, folder):
    """data.make_video, without the action for nouns that are left out; held-out films have it, for
    retrieval asks of each."""
    every = data.ACTIONS
    if noun in left_out and not video.startswith(HELD_OUT):
        data.ACTIONS = [action for action in every if action != ACTION]
    try:
        return MAKE_VIDEO(seed, video, noun, properties, folder)
    finally:
        data.ACTIONS = every


def make_world(kind, seed, out, workers=1):
    """`data.py mini` of one kind, without tasks, whose rows need values that are equally often."""
    makers = data.make_world, data.make_video, data.make_tasks
    data.make_tasks = lambda *_: []
    if kind == "rare":
        data.make_world = partial(rare_world, makers[0])
    if kind == "half":
        left_out = never_tapped(makers[0](seed))
        data.make_video = partial(untapped_video, left_out)
    try:
        data.make_mini(seed, out, workers=workers)
    finally:
        data.make_world, data.make_video, data.make_tasks = makers


# --------------------------------------------------------------------------------------------------
# Values


def folder_of(kind, seed):
    return Path("data", f"bias-{kind}-{seed}")


def train(kind, seed, run):
    """A world's teacher and student, as far as they are not there."""
    folder = folder_of(kind, seed)
    run.mkdir(parents=True, exist_ok=True)
    script = partial(evaluate.run_script, run / "log")
    text = folder / "text"
    vocab = folder / "tokenizer.json"
    if not (folder / "splits.json").exists():
        script("data.py", "video", "--videos", folder / "videos", "--captions",
               folder / "caption.json", "--vocab", vocab, "--out", folder)
    if not (text / "valid.json").exists():
        script("data.py", "text", "--train", text / "train.txt", "--valid", text / "valid.txt",
               "--vocab", vocab, "--out", text)
    common = ["--data", folder, "--size", "mini", "--seed", seed]
    script("teacher.py", *common, "--out", run / "teacher")
    script(*evaluate.flags_of("nst+crd").split(), *common, "--teacher", run / "teacher",
           "--text", text, "--out", run / "student")


def measures(vectors, world, fitted, tested):
    """Of the probe of spin, fitted and tested on these nouns (bool [N]): AUC, and the share of
    nouns that it tells, of those that turn left and of those that turn right."""
    values = data.PROPERTIES[SPIN][1]
    truth = np.array([values.index(noun[SPIN]) for noun in world.values()])      # [N]
    targets = 2.0 * truth[:, None] - 1                                           # [N, 1]
    margins = evaluate.ridge_probe(vectors[fitted], targets[fitted], vectors)[:, 0]
    left = margins[tested & (truth == 0)]
    right = margins[tested & (truth == 1)]
    above = (right[:, None] > left).mean() + (right[:, None] == left).mean() / 2
    return {"auc": float(above), "left": float((left < 0).mean()),
            "right": float((right > 0).mean()), "nouns": [len(left), len(right)]}


def first_of(chosen, count):
    """The first `count` of the nouns that are chosen: bool [N]."""
    return chosen & (chosen.cumsum() <= count)


def cell_of(kind, seed, run):
    """What the models of one world tell, as values.jsonl holds it."""
    file = folder_of(kind, seed) / "world.json"
    world = data.read_json(file, "python tests/bias.py make")["nouns"]
    group = np.array([noun["group"] for noun in world.values()])
    right = np.array([noun[SPIN] == data.PROPERTIES[SPIN][1][1] for noun in world.values()])
    hidden = np.isin(list(world), list(never_tapped(world)))
    held_out = np.isin(group, ("validation", "test"))
    train_nouns = group == "train"
    measured = {}
    for name in MODELS:
        vectors = evaluate.noun_vectors(run / name / "model", evaluate.naming_texts(world))
        measured[name] = {}
        if kind != "half":
            few = first_of(train_nouns & ~right, 80) | first_of(train_nouns & right, 14)
            measured[name]["few"] = measures(vectors, world, few, held_out)
        if kind != "rare":
            shown = train_nouns & ~hidden
            measured[name]["shown"] = measures(vectors, world, shown, held_out & ~hidden)
            measured[name]["hidden"] = measures(vectors, world, shown, held_out & hidden)
    return {"kind": kind, "seed": seed, "flags": evaluate.recipe("nst+crd"), **measured,
            **evaluate.made_with(run / "student")}


def read_values(file):
    """Cells of today's flags from a file of one a line, the last of each: {(kind, seed): cell}."""
    return {(cell["kind"], cell["seed"]): cell for cell in data.log_lines(file)
            if cell.get("flags") == evaluate.recipe("nst+crd")}


def make(args):
    """`make`: what RUNS/values.jsonl lacks, so many worlds at once, then judges."""
    file = args.runs / "values.jsonl"
    args.runs.mkdir(parents=True, exist_ok=True)
    known = read_values(file)
    wanted = [(kind, seed) for seed in args.seeds for kind in KINDS if (kind, seed) not in known]
    for kind, seed in wanted:
        make_world(kind, seed, folder_of(kind, seed), args.jobs)

    def make_cell(kind, seed, _):
        run = args.runs / f"{kind}-{seed}"
        train(kind, seed, run)
        return cell_of(kind, seed, run)
    failed = evaluate.run_cells(wanted, lambda kind: None, make_cell, file, args.jobs)
    if failed < len(args.seeds) * len(KINDS):   # else there is nothing to judge
        judge(argparse.Namespace(values=file, out=args.runs / "bias.json"))
    if failed:
        raise model.UserError(f"{failed} worlds were not made; the same command tries them again")


# --------------------------------------------------------------------------------------------------
# Judging


QUANTITIES = [   # what is said, worlds, place in a cell
    ("AUC", ("equal", "rare"), "few", "auc"),
    ("of those that turn left", ("equal", "rare"), "few", "left"),
    ("of those that turn right", ("equal", "rare"), "few", "right"),
    ("AUC, nouns that half taps", ("equal", "half"), "shown", "auc"),
    ("AUC, nouns that it never taps", ("equal", "half"), "hidden", "auc"),
]


def judge(args):
    """`judge`: mean and interval over seeds of each quantity, and of its loss against equal; with
    --out as evaluate.py report reads."""
    values = read_values(args.values)
    if not values:
        raise model.UserError(f"no values in {args.values}; `python tests/bias.py make` makes them")
    seeds = sorted({seed for _, seed in values})
    print(f"{f'probe of {SPIN}, x 100':38}{'equal':>22}{'rare or half':>22}{'difference':>22}")
    parts = []
    for name in MODELS:
        for said, (equal, changed), place, key in QUANTITIES:
            pairs = []
            for seed in seeds:
                both = [values.get((kind, seed)) for kind in (equal, changed)]
                if None not in both:
                    pairs.append([100 * cell[name][place][key] for cell in both])
            differences = [after - before for before, after in pairs]
            texts = []
            for column in ([before for before, _ in pairs], [after for _, after in pairs],
                           differences):
                mean, low, high = evaluate.t_interval(column)
                texts.append(f"{mean:.1f} [{low:.1f}, {high:.1f}]")
            print(f"{f'{name}, {said}':38}" + "".join(f"{text:>22}" for text in texts))
            parts.append({"name": f"{name}, {said}: {changed} - {equal}", "question": "shown",
                          "values": differences, "mean": mean, "low": low, "high": high,
                          "verdict": "-"})
    facts = {"seeds": seeds}
    for key in ("commit", "hardware"):
        facts[key] = evaluate.once(str(cell[key]) for cell in values.values())
    print(f"seeds {' '.join(map(str, seeds))}; commit {facts['commit']}; {facts['hardware']}")
    if args.out:
        asked = {"number": "bias", "said": "-", "parts": parts, "text": "Does the student learn "
                 "what a thing does, or what most things do? (Probe of spin, x 100)"}
        data.write_json(args.out, {**facts, "claims": [asked], "arms": {}})


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make", help="trains and measures what is missing, then judges")
    made.add_argument("--seeds", type=int, nargs="+", default=[21, 22, 23, 24])
    made.add_argument("--jobs", type=data.positive, default=2, help="runs at once")
    made.add_argument("--runs", type=Path, default=Path("runs/bias"))
    made.set_defaults(function=make)
    judged = commands.add_parser("judge", help="judges values that are there")
    judged.add_argument("--values", type=Path, default=Path("runs/bias/values.jsonl"))
    judged.add_argument("--out", type=Path, help="JSON, for evaluate.py report --claims")
    judged.set_defaults(function=judge)
    args = parser.parse_args()
    args.function(args)


if __name__ == "__main__":
    model.command(main)
