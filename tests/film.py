"""Real film, small: does sight change what a text-only student knows? A command, not a test:

    make film SEEDS="10 11 12"                 # data, then all of this
    python tests/film.py files --source data/downloads/msrvtt     # -> data/msrvtt
    python tests/film.py words                                    # -> data/msrvtt-words
    python tests/film.py make --seeds 10 11 12                    # teachers, students, values
    python tests/film.py judge --values tests/film.jsonl          # the kept values

The films are 1,000 of MSR-VTT, with features of others (VGG16, squeezed to 128 numbers a step) and
twenty sentences each; 100 are held out. The text is the sentences of the 9,000 other films.
Teachers differ in what stands beside a sentence, and in nothing else:

    film       the film's features
    shuffled   those of another film (teacher.py --shuffle-pairs)
    words      words of other sentences about the film: the same objective without sight
    none       nothing: MLM alone

Each has an NST+CRD student; a plain student does MLM alone. Fixed before any value was seen: arms,
films, the two comparisons of COMPARED, seeds 10 to 19. SETTINGS were chosen on seeds 0 to 3.
Axes: T steps of a stream, D width, V vocabulary.
"""
import argparse
import hashlib
import json
import shutil
import statistics
import sys
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import scipy.stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import data
import evaluate
import model

FILMS = [f"video{number}" for number in range(1000)]
HELD_OUT = 100
RATE = 2     # steps a second of the features
WIDTH = 128
ZIPS = {"train_val_annotation.zip": "train_val_videodatainfo.json",
        "test_videodatainfo.json.zip": "test_videodatainfo.json"}

# --------------------------------------------------------------------------------------------------
# Data


def read_sentences(source):
    """{film: its twenty sentences} of all 10,000 films, films and sentences by their number."""
    sentences = defaultdict(list)
    for archive, name in ZIPS.items():
        with zipfile.ZipFile(Path(source, archive)) as opened:
            rows = json.loads(opened.read(name))["sentences"]
        for row in sorted(rows, key=lambda row: row["sen_id"]):
            sentences[row["video_id"]].append(row["caption"].strip())
    return dict(sorted(sentences.items(), key=lambda item: int(item[0].removeprefix("video"))))


def write_files(source, out):
    """What `data.py captions` and `data.py text` read: features/film, caption.json, valid_ids.json
    and text/{train,valid}.txt, whose last 200 films are held out."""
    sentences = read_sentences(source)
    folder = out / "features" / "film"
    folder.mkdir(parents=True, exist_ok=True)
    data.write_json(folder / "stream.json", {"rate": RATE, "width": WIDTH, "frames_seen": 1})
    captions = {}
    for film in FILMS:
        path = Path(source, "features", f"{film}.npy")
        shutil.copyfile(path, folder / path.name)
        texts = sentences.pop(film)
        seconds = len(np.load(path, mmap_mode="r")) / RATE
        captions[film] = {"text": texts, "start": [0] * len(texts), "end": [seconds] * len(texts)}
    data.write_json(out / "caption.json", captions)
    ordered = sorted(FILMS, key=lambda film: hashlib.sha256(film.encode()).digest())
    data.write_json(out / "valid_ids.json", ordered[:HELD_OUT])
    lines = ["\n".join(texts) for texts in sentences.values()]
    (out / "text").mkdir(exist_ok=True)
    data.write_text(out / "text" / "train.txt", "\n".join(lines[:-200]) + "\n")
    data.write_text(out / "text" / "valid.txt", "\n".join(lines[-200:]) + "\n")


def word_steps(clips, index, weights):
    """One film's stream of words, float32 [T, D]: step k is the mean of the words' weights over the
    sentences that no example with sentence k can hold.

    A bag of all that others said is the fairest rival of sight: like the film it is nearly the same
    beside each of the film's sentences and tells the film from others; but it never holds the
    example's own sentence, nor one of the same words, which would make the task one of copying.
    clips: caption k lasts from second k to k + 1; weights: [V, D].
    """
    first, last = clips.spans[index].tolist()
    sentences = []   # of token ids
    for row in range(first, last):
        sentences.append(tuple(clips.tokens[clips.bounds[row]:clips.bounds[row + 1]].tolist()))
    together = [set() for _ in sentences]   # what can stand in one example with sentence k
    for k in range(len(sentences)):
        _, start, end = clips.stretch(index, first + k)
        example = range(int(start), int(end))
        for number in example:
            together[number].update(sentences[other] for other in example)
    steps = []
    for own in together:
        others = [sentence for sentence in sentences if sentence not in own]
        tokens = np.concatenate(others).astype(int)
        steps.append(weights[tokens].mean(0))
    return np.stack(steps)


def word_data(films, out):
    """A data folder of the same captions and split, whose only stream is of words."""
    tokenizer = data.load_tokenizer(films)
    shutil.copytree(films, out, dirs_exist_ok=True,
                    ignore=shutil.ignore_patterns("features", "text", "lock"))
    index = data.read_json(out / "captions" / "index.json", "make data/msrvtt")
    spans = np.fromfile(out / "captions" / "spans.bin", np.int64).reshape(-1, 2)
    times = np.zeros((spans.max(), 2), np.float32)
    for first, last in spans:
        times[first:last, 0] = np.arange(last - first)
    times[:, 1] = times[:, 0] + 1
    times.tofile(out / "captions" / "times.bin")
    index["sha256"]["times"] = data.file_hash(out / "captions" / "times.bin")
    data.write_json(out / "captions" / "index.json", index)

    folder = out / "features" / "words"
    folder.mkdir(parents=True, exist_ok=True)
    # a word is hashed to signs; rare ones weigh more, as "a man is" would drown the others
    size = tokenizer.get_vocab_size()
    tokens = np.fromfile(out / "captions" / "tokens.bin", index["dtype"])
    rarity = np.log(len(tokens) / np.bincount(tokens, minlength=size).clip(min=1))
    signs = data.numpy_generator(0, "words").choice([-1.0, 1.0], (size, WIDTH))
    weights = rarity[:, None] * signs                                       # [V, D]
    for split in ("train", "valid"):
        clips = data.Clips(out, split, [], tokenizer, model.SIZES["mini"].block, 1)
        for row, film in enumerate(clips.ids):
            np.save(folder / f"{film}.npy", word_steps(clips, row, weights).astype(np.float32))
    # last: where it is, all is
    data.write_json(folder / "stream.json", {"rate": 1, "width": WIDTH, "frames_seen": 1})


# --------------------------------------------------------------------------------------------------
# Arms

TEACHERS = {   # arm -> flags of teacher.py
    "film": "--data data/msrvtt",
    "shuffled": "--data data/msrvtt --shuffle-pairs",
    "words": "--data data/msrvtt-words --frames 1",   # or T would tell how many sentences there are
    "none": "--data data/msrvtt --contrastive none",
}
STUDENTS = {"plain": None}   # arm -> its teacher
for name in TEACHERS:
    STUDENTS[f"of {name}"] = name
ARMS = [*TEACHERS, *STUDENTS]
# of all teachers; the rest are teacher.py's and distill.py's mini defaults
SETTINGS = "--steps 100 --dropout 0.1 --warmup 30"
TEXT_STEPS = 500   # of all students, half a pass over the text: what the time allows
COMPARED = [("of film", "of shuffled"), ("of film", "of words")]
SEEDS = range(10, 20)   # those that are reported


def flags_of(arm):
    """The script that trains an arm, and its flags."""
    if arm in TEACHERS:
        return f"teacher.py {TEACHERS[arm]} {SETTINGS}"
    objective = "nst crd" if STUDENTS[arm] else "none"
    return f"distill.py --objective {objective} --steps {TEXT_STEPS}"


def recipe(arm):
    """Flags of an arm and of its teacher: what its values were made with."""
    teacher = STUDENTS.get(arm)
    return f"{flags_of(teacher)}; {flags_of(arm)}" if teacher else flags_of(arm)


def film_nouns(source, captions, tokenizer, name):
    """{noun: its colour or material} of ViComTe, for nouns of one token that the training films'
    sentences name five times."""
    held_out = set(data.read_json(captions.with_name("valid_ids.json"), "make data/msrvtt"))
    counts = defaultdict(int)
    for film, spoken in data.read_json(captions, "make data/msrvtt").items():
        if film not in held_out:
            for word in " ".join(spoken["text"]).lower().split():
                counts[word] += 1
    nouns = {}
    for split in ("train", "test"):
        lines = Path(source, "vicomte", f"{name}-{split}.jsonl").read_text().splitlines()
        for row in map(json.loads, lines):
            if counts[row["sub"]] >= 5 and tokenizer.token_to_id(row["sub"]) is not None:
                nouns[row["sub"]] = row["obj"]
    return nouns


NAMING = ("a {}", "this is a {}", "there is a {} in the video", "a man is looking at a {}",
          "a woman shows a {}")


def probe(folder, nouns):
    """(accuracy of a linear probe of the nouns' values, in five folds; the most common value's)."""
    texts = {noun: [text.format(noun) for text in NAMING] for noun in nouns}
    vectors = evaluate.noun_vectors(folder, texts)
    values, truth = np.unique(list(nouns.values()), return_inverse=True)
    targets = 2.0 * np.eye(len(values))[truth] - 1                          # [N, values]
    fold = data.numpy_generator(0, "folds").permutation(len(truth)) % 5
    right = []
    for number in range(5):
        tested = fold == number
        scores = evaluate.ridge_probe(vectors[~tested], targets[~tested], vectors[tested])
        right += (scores.argmax(1) == truth[tested]).tolist()
    return statistics.fmean(right), float(np.bincount(truth).max() / len(truth))


def make_cell(args, pairs, arm, seed, teacher):
    """Trains an arm once its teacher's cell, a future or None, is made, and measures it."""
    if teacher:
        teacher.result()
    folder = args.runs / f"seed-{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    run = folder / arm.replace(" ", "-")
    command = [*flags_of(arm).split(), "--size", "mini", "--seed", seed, "--out", run]
    if arm in STUDENTS:
        command += ["--text", "data/msrvtt/text"]
        if STUDENTS[arm]:
            command += ["--teacher", folder / STUDENTS[arm]]
    evaluate.run_script(f"{run}.log", *command)
    return measure_cell(args, pairs, arm, seed, run)


def measure_cell(args, pairs, arm, seed, run):
    """All that is known of one arm by one seed, as values.jsonl holds it."""
    retrieval = {}
    if evaluate.trained_encoder(run):   # by the objective's own map
        films = "data/msrvtt-words" if "words" in arm else "data/msrvtt"
        found = evaluate.retrieve(run, films)
        retrieval = {key: found[key] for key in ("R@1", "R@10", "median rank")}
    tokenizer = data.load_tokenizer(run / "model")
    probes = {}
    for name in ("color", "material"):
        nouns = film_nouns(args.source, Path("data/msrvtt/caption.json"), tokenizer, name)
        probes[name], probes[f"chance {name}"] = probe(run / "model", nouns)
    losses = [line["valid_mlm"] for line in evaluate.read_log(run) if "valid_mlm" in line]
    return {"arm": arm, "seed": seed, "flags": recipe(arm), "sts": evaluate.sts(run, pairs),
            "retrieval": retrieval, "probe": probes, "mlm": losses[-1],
            "seconds": evaluate.seconds_by_stage(run)["pretraining"], **evaluate.made_with(run)}


def read_values(file):
    """Cells made with the arms' flags, the last of each: {(arm, seed): cell}."""
    cells = {}
    for cell in data.log_lines(file):
        if cell["flags"] == recipe(cell["arm"]):
            cells[cell["arm"], cell["seed"]] = cell
    return cells


def make(args):
    """`make`: what RUNS/values.jsonl lacks of these seeds, a whole seed before the next."""
    args.runs.mkdir(parents=True, exist_ok=True)
    file = args.runs / "values.jsonl"
    known = read_values(file)
    captions = data.read_json("data/msrvtt/caption.json", "make data/msrvtt")
    left_out = []
    for spoken in captions.values():
        left_out += spoken["text"]
    pairs, missing = evaluate.sts_pairs(args.sts, left_out)
    print(f"STS-B: {len(left_out):,} sentences of films; pairs left out with one: {dict(missing)}")
    ordered = []
    for seed in args.seeds:
        ordered += [(arm, seed) for arm in args.arms if (arm, seed) not in known]
    failed = evaluate.run_cells(
        ordered, STUDENTS.get, lambda *cell: make_cell(args, pairs, *cell), file, args.jobs)
    if failed < len(args.seeds) * len(args.arms):   # else there is nothing to judge
        judge(argparse.Namespace(values=file, seeds=args.seeds, out=args.runs / "film.json"))
    if failed:
        raise model.UserError(f"{failed} cells were not made; the same command tries them again")


# --------------------------------------------------------------------------------------------------
# Judging

MEASURES = {   # heading -> of a cell, in points or as it is
    "captions - rest": lambda cell: 100 * evaluate.captions_less_rest(cell["sts"]),
    "MSRvid": lambda cell: 100 * cell["sts"]["MSRvid"],
    "images": lambda cell: 100 * cell["sts"]["images"],
    "news": lambda cell: 100 * cell["sts"]["news"],
    "forums": lambda cell: 100 * cell["sts"]["forums"],
    "R@1": lambda cell: 100 * cell["retrieval"]["R@1"],
    "R@10": lambda cell: 100 * cell["retrieval"]["R@10"],
    "median rank": lambda cell: cell["retrieval"]["median rank"],
    "colour": lambda cell: 100 * cell["probe"]["color"],
    "material": lambda cell: 100 * cell["probe"]["material"],
    "MLM": lambda cell: cell["mlm"],
    "seconds": lambda cell: cell["seconds"],
}


def values_of(cells, arm, measure):
    """{seed: value} of an arm in one measure; {} where it is not defined for it."""
    of_retrieval = measure in ("R@1", "R@10", "median rank")
    return {seed: MEASURES[measure](cell) for (other, seed), cell in cells.items()
            if other == arm and (cell["retrieval"] or not of_retrieval)}


def compare(cells, arm, against):
    """A part as evaluate.report_claims shows it: captions less rest, paired by seed."""
    ours = values_of(cells, arm, "captions - rest")
    theirs = values_of(cells, against, "captions - rest")
    differences = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    mean, low, high = evaluate.t_interval(differences)
    verdict = "one seed" if differences else "not run"
    p = None
    if len(differences) > 1:
        verdict = "includes 0"
        p = float(scipy.stats.ttest_1samp(differences, 0).pvalue)
    if low > 0:
        verdict = "above 0"
    elif high < 0:
        verdict = "below 0"
    return {"name": f"{arm} less {against}", "question": "STS, captions less rest", "p": p,
            "values": differences, "mean": mean, "low": low, "high": high, "verdict": verdict}


def judge(args):
    """`judge`: the two comparisons, every arm, teachers; with --out as evaluate.py report reads."""
    cells = read_values(args.values)
    cells = {key: cell for key, cell in cells.items() if key[1] in (args.seeds or SEEDS)}
    if not cells:
        raise model.UserError(f"no values of these seeds in {args.values}; `make film` makes them")
    primary = [compare(cells, *pair) for pair in COMPARED]
    known = {part["name"]: part["p"] for part in primary if part["p"] is not None}
    corrected = evaluate.holm(known)
    print("Spearman x 100: (MSRvid + images) / 2 less (news + forums) / 2, mean [95 % interval]\n")
    for part in primary:
        n = len(part["values"])
        p = f", p {corrected[part['name']]:.2g} after Holm" if n > 1 else ""
        print(f"{part['name']}: {evaluate.effect_of(part)}, n={n}{p}")
        if part["verdict"] == "includes 0" and n > 1:
            more = evaluate.seeds_needed(part["values"], lambda low, high: low > 0 or high < 0)
            print(f"  this mean and spread would exclude 0 with {more} seeds")
    teachers = [compare(cells, "film", "shuffled"), compare(cells, "film", "words")]
    for part in teachers:
        print(f"secondary, teachers: {part['name']}: {evaluate.effect_of(part)}")
    every = []
    for arm in ARMS:
        values = list(values_of(cells, arm, "captions - rest").values())
        mean, low, high = evaluate.t_interval(values)
        every.append({"name": arm, "question": "teacher" if arm in TEACHERS else "student",
                      "values": values, "mean": mean, "low": low, "high": high, "verdict": ""})
    facts = {"seeds": sorted({seed for _, seed in cells})}
    for key in ("commit", "hardware", "threads"):
        facts[key] = evaluate.once(str(cell[key]) for cell in cells.values())
    print_arms(cells, facts)
    if args.out:
        claims = [{"number": "film", "text": "Real film, students", "said": "primary",
                   "parts": primary},
                  {"number": "film", "text": "Real film, teachers", "said": "secondary",
                   "parts": teachers},
                  {"number": "film", "text": "STS, captions less rest", "said": "every arm",
                   "parts": every}]
        effects = [f"one of {against.removeprefix('of ')} by {evaluate.effect_of(part)}"
                   for (_, against), part in zip(COMPARED, primary)]
        sentence = ("A student of real films follows people on captions better than "
                    f"{', '.join(effects)} (Spearman x 100, less news and forums)")
        data.write_json(args.out, {**facts, "sentence": sentence, "claims": claims, "arms": {}})


def print_arms(cells, facts):
    """Every arm in every measure, chance, and what it was made with."""
    print("\nEvery arm: mean ± standard deviation over seeds\n")
    columns = []
    for measure in MEASURES:
        by_arm = [list(values_of(cells, arm, measure).values()) for arm in ARMS]
        digits = 2 if measure == "MLM" else 1
        columns.append((measure, [evaluate.show_points(values, digits) for values in by_arm]))
    evaluate.print_columns(ARMS, columns)
    hours = sum(cell["seconds"] for cell in cells.values()) / 3600
    chances = next(iter(cells.values()))["probe"]
    print(f"chance: R@1 {100 / HELD_OUT:.1f}, colour {100 * chances['chance color']:.1f}, material "
          f"{100 * chances['chance material']:.1f}; MLM in nats (teachers: captions)\n"
          f"seeds {' '.join(map(str, facts['seeds']))}; {len(cells)} runs, "
          f"{hours:.1f} hours of training, {facts['threads']} thread each; commit "
          f"{facts['commit']}; {facts['hardware']}")


# --------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    files = commands.add_parser("files", help="published files -> those that data.py reads")
    files.add_argument("--source", default="data/downloads/msrvtt", help="features/ and two zips")
    files.add_argument("--out", type=Path, default="data/msrvtt")
    files.set_defaults(function=lambda args: write_files(args.source, args.out))
    words = commands.add_parser("words", help="the data folder of words in place of films")
    words.add_argument("--data", type=Path, default="data/msrvtt")
    words.add_argument("--out", type=Path, default="data/msrvtt-words")
    words.set_defaults(function=lambda args: word_data(args.data, args.out))
    trained = commands.add_parser("make", help="trains and measures what is missing, then judges")
    trained.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    trained.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS, help="teachers first")
    trained.add_argument("--jobs", type=data.positive, default=2, help="runs at once")
    trained.add_argument("--runs", type=Path, default="runs/film")
    trained.add_argument("--source", default="data/downloads/msrvtt", help="holds vicomte/")
    trained.add_argument("--sts", default="data/tasks/STS-B", help="STS-B's folder")
    trained.set_defaults(function=make)
    judged = commands.add_parser("judge", help="judges values that are there")
    judged.add_argument("--values", type=Path, default="tests/film.jsonl")
    judged.add_argument("--seeds", type=int, nargs="+", help="(default: 10 to 19)")
    judged.add_argument("--out", type=Path, help="JSON, for evaluate.py report --claims")
    judged.set_defaults(function=judge)
    args = parser.parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    model.command(main)
