"""Metrics, tables over seeds, the paper's claims over worlds. Trains nothing by gradient, imports no stage.

    python evaluate.py table runs/text-only runs/student runs/teacher             # one row a run, one column a task
    python evaluate.py table runs/student --json student.json --csv student.csv   # the cells with every seed's value
    python evaluate.py probe runs/text-only runs/student runs/teacher             # what a noun's hidden state tells
    python evaluate.py retrieve runs/teacher runs/student                         # text -> video on held-out clips
    python evaluate.py squad dev-v2.0.json predictions.json --na-prob null_odds.json    # as the official script, JSON
    python evaluate.py diagnostics runs/student                                   # MNLI's model, by category
    python evaluate.py tracie runs/student                                        # total, start, end, whole stories
    python evaluate.py claims --values tests/claims.jsonl                         # the paper's claims over seeds
    python evaluate.py report runs/*                                              # all of it in one HTML page

Tables read only what finetune.py left in RUN/finetune/TASK/seed-N/metrics.json, and the seconds in RUN/log.jsonl.
Sections: metrics; SQuAD; files of a run; intervals and verdicts; table; diagnostics and TRACIE; retrieval; probes;
claims; report.
Printed numbers are x 100.
"""
import argparse
import base64
import csv
import functools
import html
import io
import json
import math
import re
import shutil
import statistics
import string
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import av
import numpy as np
import scipy.stats
import torch
import torch.nn.functional as F

import data
import model

# ---------------------------------------------------------------------------------------------------------------------
# Metrics. All take (labels, predictions): integer classes, or real numbers for the correlations.


def accuracy(labels, predictions):
    """Share of equal entries; nan of nothing."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    return float((labels == predictions).mean()) if len(labels) else math.nan


def f1(labels, predictions):
    """F1 of class 1. Where nothing is labelled and nothing predicted 1 it is 0, as in scikit-learn."""
    labels, predictions = np.asarray(labels) == 1, np.asarray(predictions) == 1
    wrong_or_right = labels.sum() + predictions.sum()
    return float(2 * (labels & predictions).sum() / wrong_or_right) if wrong_or_right else 0.0


def matthews(labels, predictions):
    """Matthews correlation of any number of classes (R_K); 0 where labels or predictions are constant."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    classes = np.union1d(labels, predictions)
    true = (labels[:, None] == classes).sum(0, dtype=np.float64)            # [classes]
    said = (predictions[:, None] == classes).sum(0, dtype=np.float64)       # [classes]
    n, right = float(len(labels)), float((labels == predictions).sum())
    spread = (n * n - said @ said) * (n * n - true @ true)
    return float((right * n - true @ said) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(labels, predictions):
    """Pearson correlation; nan where one side is constant or has fewer than two entries: it is then not defined."""
    if len(labels) < 2:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # scipy warns of constant input; of nearly constant one its value still holds
        return float(scipy.stats.pearsonr(np.asarray(labels, np.float64), np.asarray(predictions, np.float64))[0])


def spearman(labels, predictions):
    """Spearman rank correlation, ties sharing their mean rank; nan where one side is constant."""
    if len(labels) < 2:
        return math.nan
    return pearson(scipy.stats.rankdata(labels), scipy.stats.rankdata(predictions))


ACCURACY = [("accuracy", accuracy)]
METRICS = {   # task -> [(name, function)], the main one first; as GLUE publishes them
    "CoLA": [("matthews", matthews)], "SST-2": ACCURACY, "MRPC": [("accuracy", accuracy), ("f1", f1)],
    "STS-B": [("pearson", pearson), ("spearman", spearman)], "QQP": [("accuracy", accuracy), ("f1", f1)],
    "MNLI": ACCURACY, "AX": ACCURACY, "diagnostics": [("matthews", matthews)], "QNLI": ACCURACY, "RTE": ACCURACY,
    "WNLI": ACCURACY, "PIQA": ACCURACY, "SWAG": ACCURACY,
    "TRACIE": ACCURACY, "TRACIE-iid": ACCURACY, "TRACIE-uniform-prior": ACCURACY,
}   # SQuAD's are added in the next section
PARTS = ("grounded", "ungrounded", "unfilmed")   # of a mini task's rows; see part_of
COARSE = ("Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge")   # GLUE-diagnostics' categories


def single_number(task, values):
    """A task's one number in a table: the mean of its metrics (only MRPC, STS-B and QQP have two), SQuAD's F1, or None.

    values: {metric name: value or None}. None where any of them is not defined.
    """
    wanted = [values[name] for name, _ in METRICS[task][:1 if METRICS[task] is SQUAD else None]]
    return None if any(value is None for value in wanted) else statistics.fmean(wanted)


def most_common(labels):
    """The most common entry; of several equally common ones the smallest."""
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    return values[counts.argmax()]


def score(task, labels, predictions):
    """Every metric of a task -> {metric: value, "n": rows, "chance": c}; a metric that is not defined is None.

    chance: the task's single number for always answering the most common label of these very rows (SQuAD: for never
    answering); None for a regression, where a constant has no correlation. Raises ValueError where the lengths differ.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{task}: {len(labels)} labels for {len(predictions)} predictions")
    constant = np.full(len(labels), "" if METRICS[task] is SQUAD else most_common(labels))
    values, chance = {}, {}
    for name, function in METRICS[task]:
        for out, guesses in ((values, predictions), (chance, constant)):
            value = function(labels, guesses)
            out[name] = None if math.isnan(value) else value
    return {**values, "n": len(labels), "chance": single_number(task, chance)}


def part_of(row):
    """The part a meta row of a mini task belongs to: "ungrounded" (language alone decides), "grounded" (a property of
    a filmed noun decides) or "unfilmed" (a property of a noun that no video shows: the control, at chance for all)."""
    return "unfilmed" if row["part"] == "grounded" and row["group"] == "unfilmed" else row["part"]


def score_parts(labels, predictions, meta):
    """Accuracy by part of a mini task, and of the grounded part by property. Accuracy whatever the task's own metric:
    chance is then one number, 1 / classes, on balanced rows.

    meta: one dict a row with part, group, property, noun. Returns {part: {"accuracy", "n", "chance"}, ...,
    "grounded_by_property": {property: {"accuracy", "n", "chance"}}, "grounded_by_noun": {noun: accuracy}}; parts
    without rows are absent.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    parts = np.array([part_of(row) for row in meta])

    def of(chosen):
        return {"accuracy": accuracy(labels[chosen], predictions[chosen]), "n": int(chosen.sum()),
                "chance": accuracy(labels[chosen], np.full(chosen.sum(), most_common(labels[chosen])))}
    out = {part: of(parts == part) for part in PARTS if (parts == part).any()}
    names = np.array([str(row["property"]) for row in meta])
    grounded = parts == "grounded"
    out["grounded_by_property"] = {str(name): of(grounded & (names == name)) for name in np.unique(names[grounded])}
    nouns = np.array([str(row["noun"]) for row in meta])
    of_noun = {str(noun): grounded & (nouns == noun) for noun in np.unique(nouns[grounded])}
    out["grounded_by_noun"] = {noun: accuracy(labels[rows], predictions[rows]) for noun, rows in of_noun.items()}
    return out


def score_categories(labels, predictions, tags, meta=None):
    """GLUE-diagnostics by category -> {name: {"accuracy", "matthews", "n", "chance"}}; a row counts in each of its own.

    tags: a row's (coarse, fine) pairs; meta: rows of the mini world, whose parts are then categories, too. Names in
    order: "overall", "Logic", ..., "Logic: Negation", ..., "grounded", ...; those without rows are absent. matthews is
    R_3, jiant's score, 0 where a category has one label only; chance is the accuracy of the most common label.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    rows = {name: [] for name in ("overall", *COARSE)}
    for coarse, fine in sorted({tag for row in tags for tag in row}, key=lambda tag: (COARSE.index(tag[0]), tag[1])):
        rows[f"{coarse}: {fine}"] = []
    rows |= {part: [] for part in PARTS}
    for index, row in enumerate(tags):
        own = {"overall", *[coarse for coarse, _ in row], *[f"{coarse}: {fine}" for coarse, fine in row]}
        for name in own | ({part_of(meta[index])} if meta else set()):
            rows[name].append(index)
    return {name: {"accuracy": accuracy(labels[chosen], predictions[chosen]),
                   "matthews": matthews(labels[chosen], predictions[chosen]), "n": len(chosen),
                   "chance": accuracy(labels[chosen], np.full(len(chosen), most_common(labels[chosen])))}
            for name, chosen in rows.items() if chosen}


def score_tracie(labels, predictions, texts):
    """TRACIE's scores beside the total accuracy: on questions of starts ("starts before", "starts after") and of ends
    (all others), and the share of stories all of whose questions are right. texts: (query, story) a row.

    Returns {"start", "end", "story", "starts": n, "ends": n, "stories": n}; None for a kind that is not asked.
    """
    right = np.asarray(labels) == np.asarray(predictions)
    starts = np.array(["starts before" in query or "starts after" in query for query, _ in texts])
    stories = {}
    for (_, story), good in zip(texts, right):
        stories[story] = stories.get(story, True) and bool(good)
    return {"start": float(right[starts].mean()) if starts.any() else None,
            "end": float(right[~starts].mean()) if not starts.all() else None,
            "story": statistics.fmean(stories.values()),
            "starts": int(starts.sum()), "ends": int((~starts).sum()), "stories": len(stories)}


# ---------------------------------------------------------------------------------------------------------------------
# SQuAD, as the official evaluate-v2.0.py counts. golds: the annotators' answers to one question, texts.


def normal_words(text):
    """Words of an answer that count: lower case, no ASCII punctuation, no articles, split at white space."""
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def answer_scores(golds, text):
    """(exact, F1) of one answer: the better of each over the golds that have a word left, or over "" if none has. F1 is
    that of the two bags of words; where either is empty, 1 if both are."""
    said, exact, best = normal_words(text), 0, 0
    for gold in [words for words in map(normal_words, golds) if words] or [[]]:
        common = sum((Counter(gold) & Counter(said)).values())
        precision, recall = common / max(len(said), 1), common / max(len(gold), 1)
        exact = max(exact, int(gold == said))
        best = max(best, 2 * precision * recall / (precision + recall) if common else int(gold == said == []))
    return exact, best


def squad_exact(golds, answers):
    """Share of answers that equal one of their golds, a list of texts a question."""
    return statistics.fmean(answer_scores(*both)[0] for both in zip(golds, answers))


def squad_f1(golds, answers):
    """Mean F1 of answers; golds: a list of texts a question."""
    return statistics.fmean(answer_scores(*both)[1] for both in zip(golds, answers))


SQUAD = [("f1", squad_f1), ("exact", squad_exact)]
METRICS |= {"SQuAD1": SQUAD, "SQuAD2": SQUAD}


def best_threshold(scores, answerable, predictions, odds):
    """(best total, threshold): the most that `scores` add up to if questions with odds above one threshold count as
    unanswered. Goes up through the odds, of equal ones in their order; it starts at the number of questions without
    an answer (all unanswered), gains an answerable question's score and loses 1 for a text where there is no answer."""
    total = best = sum(not has for has in answerable.values())
    threshold = 0.0
    for name in sorted((name for name in odds if name in scores), key=odds.get):
        total += scores[name] if answerable[name] else -bool(predictions[name])
        if total > best:
            best, threshold = total, odds[name]
    return best, threshold


def squad_scores(dataset, predictions, na_probabilities=None):
    """What the official evaluate-v2.0.py prints, x 100 but for counts and thresholds, under its keys.

    dataset: a parsed SQuAD file or its "data"; predictions: {id: text}; na_probabilities: {id: probability or odds of
    no answer}: an answer above 1 counts as none, and best_exact, best_f1 and their thresholds are searched for.
    HasAns_ and NoAns_ keys are there where such questions are.

    A question without a prediction is named on stderr and left out of all sums and totals. So does the official script
    for exact, f1 and total; it then stops with a KeyError, where this goes on. The threshold search starts, as there,
    from all unanswerable questions. Raises ValueError where nothing is predicted, or a predicted id has no probability.
    """
    exact, f1, answerable = {}, {}, {}
    for article in dataset["data"] if isinstance(dataset, dict) else dataset:
        for question in (question for paragraph in article["paragraphs"] for question in paragraph["qas"]):
            name, golds = question["id"], [answer["text"] for answer in question["answers"]]
            answerable[name] = bool(golds)
            if name in predictions:
                exact[name], f1[name] = answer_scores(golds, predictions[name])
            else:
                print(f"Missing prediction for {name}", file=sys.stderr)
    if not exact:
        raise ValueError("no question of the data set has a prediction: are these predictions of another file?")
    lacking = [name for name in exact if na_probabilities is not None and name not in na_probabilities]
    if lacking:
        raise ValueError(f"{len(lacking)} predictions have no probability of no answer, the first is {lacking[0]}")

    counted = {name: (exact[name], f1[name]) if na_probabilities is None or na_probabilities[name] <= 1 else
               (float(not answerable[name]),) * 2 for name in exact}
    out = {}
    for prefix, names in (("", list(counted)), ("HasAns_", [name for name in counted if answerable[name]]),
                          ("NoAns_", [name for name in counted if not answerable[name]])):
        if names:
            for key, place in (("exact", 0), ("f1", 1)):
                out[prefix + key] = 100.0 * sum(counted[name][place] for name in names) / len(names)
            out[prefix + "total"] = len(names)
    for key, scores in (("exact", exact), ("f1", f1)) if na_probabilities is not None else ():
        best, threshold = best_threshold(scores, answerable, predictions, na_probabilities)
        out |= {f"best_{key}": 100.0 * best / len(scores), f"best_{key}_thresh": threshold}
    return out


def show_squad(args):
    """`squad`: prints squad_scores of a predictions file as JSON."""
    read = [path and data.read_json(path, "python finetune.py --task SQuAD1 SQuAD2")
            for path in (args.dataset, args.predictions, args.na_prob)]
    if not isinstance(read[0], dict) or "data" not in read[0]:
        raise ValueError(f"{args.dataset} is not a SQuAD file: it has no data")
    for path, value, kinds in ((args.predictions, read[1], str), (args.na_prob, read[2], (int, float))):
        if path and not (isinstance(value, dict) and all(isinstance(entry, kinds) for entry in value.values())):
            raise ValueError(f"{path} does not hold one {'text' if kinds is str else 'number'} a question id")
    try:
        print(json.dumps(squad_scores(*read), indent=2))
    except (KeyError, TypeError) as error:
        raise ValueError(f"{args.dataset} is not a SQuAD file: {type(error).__name__} {error}") from None


# ---------------------------------------------------------------------------------------------------------------------
# Files of a run


def read_results(run):
    """What finetune.py wrote under a run folder -> {task: [metrics of a seed, ...]}, seeds in order; {} for none.

    Raises ValueError naming a file that is not metrics of a task known here.
    """
    results = {}
    for path in Path(run).glob("finetune/*/seed-*/metrics.json"):
        metrics = data.read_json(path, "python finetune.py")
        if not isinstance(metrics, dict) or metrics.get("task") not in METRICS or "seed" not in metrics:
            raise ValueError(f"{path} is not a metrics.json of finetune.py: it names no known task and seed")
        results.setdefault(metrics["task"], []).append(metrics)
    return {task: sorted(results[task], key=lambda metrics: metrics["seed"]) for task in METRICS if task in results}


def run_facts(run):
    """A run's args.json as a dict; {} where there is none."""
    path = Path(run) / "args.json"
    return data.read_json(path, "the stage") if path.exists() else {}


def names_of(runs, given=None):
    """Row names of runs: the given ones, else their folders' names; the path where two have the same."""
    if given and len(given) != len(runs):
        raise ValueError(f"--names gives {len(given)} names for {len(runs)} runs")
    names = given or [Path(run).resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs)]


def read_log(run):
    """The lines of a folder's log.jsonl as dicts; [] for none. A line that was cut in writing is passed over."""
    log = Path(run) / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def seconds_by_stage(run):
    """Seconds spent on a run -> {"pretraining": s, "fine-tuning": s}; a stage that left no time is absent.

    log.jsonl counts from 0 again after each restart, so the last value before every such fall is added up (one that
    first logs later than it had got before cannot be told from going on).
    """
    out, clock = {}, [line["seconds"] for line in read_log(run) if "seconds" in line]
    if clock:
        out["pretraining"] = sum(now for now, later in zip(clock, clock[1:] + [-1]) if later < now)
    spent = [metrics["seconds"] for seeds in read_results(run).values() for metrics in seeds]
    return out | ({"fine-tuning": sum(spent)} if spent else {})


# ---------------------------------------------------------------------------------------------------------------------
# Intervals and verdicts. Everything here is in points (x 100).


def t_interval(values):
    """Student's 95 % interval of the mean of independent values. Returns (mean, low, high); low and high are nan for
    fewer than two values, which say nothing about their spread."""
    if len(values) < 2:
        return (values[0] if values else math.nan), math.nan, math.nan
    mean = statistics.fmean(values)
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def superior(low, high):
    """Verdict on "better": holds where the whole interval is above 0, fails where it is below 2 points."""
    return "holds" if low > 0 else "fails" if high < 2 else "not decided"


def not_worse(low, high):
    """Verdict on "not worse": holds where the whole interval is above -2 points, fails where it is below 0."""
    return "holds" if low > -2 else "fails" if high < 0 else "not decided"


def at_chance(mean, low, high):
    """True where an interval of (value - chance) contains 0 and its mean is within 4 points of it; False for nan.

    The second condition keeps a wide interval around a large mean from passing; a wide one around 0 passes.
    """
    return low <= 0 <= high and abs(mean) <= 4


# ---------------------------------------------------------------------------------------------------------------------
# Table


def cells_of(results):
    """One run's results -> {(task, column): [{"seed", "value", "chance", "stuck", "split_dev"}, ...]}, values x 100.

    Mini tasks (their metrics have parts) give a column a part of the test split; real ones the dev split, a second
    dev split where there is one, and the test split only where it has labels and there is no dev split. MNLI's model
    also has GLUE-diagnostics' coarse categories (Matthews correlation), TRACIE's the scores of score_tracie.
    """
    def points(value):
        return None if value is None else 100 * value
    cells = {}
    for task, seeds in results.items():
        for metrics in seeds:
            parts = metrics.get("parts", {}).get("test")
            if parts:
                found = {part: (parts[part]["accuracy"], parts[part]["chance"]) for part in PARTS if part in parts}
            else:
                splits = [split for split in metrics if split.startswith("dev")] or ["test"]
                found = {split: (single_number(task, metrics[split]), metrics[split]["chance"])
                         for split in splits if split in metrics}
            found = {(task, column): pair for column, pair in found.items()}
            found |= {("diagnostics", name): (metrics["categories"][name]["matthews"], 0.0)
                      for name in COARSE if name in metrics.get("categories", {})}
            if task.startswith("TRACIE"):
                found |= {(task, name): (metrics["test"][name], None) for name in ("start", "end", "story")
                          if name in metrics.get("test", {})}
            for key, (value, chance) in found.items():
                cells.setdefault(key, []).append(
                    {"seed": metrics["seed"], "value": points(value), "chance": points(chance), "stuck":
                     metrics["majority"], "split_dev": metrics.get("split_dev", False) and not parts})
    return cells


def summarise(entries):
    """Entries of one cell -> {"mean", "std", "median", "n"} over its seeds with a defined value (std: n - 1)."""
    values = [entry["value"] for entry in entries if entry["value"] is not None]
    return {"mean": statistics.fmean(values) if values else None, "n": len(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
            "median": statistics.median(values) if values else None}


def show_cell(entries):
    """A cell as text: "71.3 ± 1.2 (n=3, median 71.0)", "71.3 (n=1)", "not run", "not defined"; ! = a stuck seed."""
    if not entries:
        return "not run"
    cell = summarise(entries)
    if cell["mean"] is None:
        return "not defined"
    marks = "!" * any(entry["stuck"] for entry in entries) + "*" * any(entry["split_dev"] for entry in entries)
    spread = f" ± {cell['std']:.1f} (n={cell['n']}, median {cell['median']:.1f})" if cell["n"] > 1 else " (n=1)"
    return f"{cell['mean']:.1f}{spread}{marks}"


def print_columns(names, columns, width=None):
    """Prints rows under columns [(heading, [cell a row])], as many columns side by side as fit into `width` characters
    (None: the terminal's)."""
    first, width = max(map(len, names)), width or shutil.get_terminal_size((120, 24)).columns
    while columns:
        taken, used = [], first
        while columns and (not taken or used + 2 + max(map(len, [columns[0][0], *columns[0][1]])) <= width):
            taken.append(columns.pop(0))
            used += 2 + max(map(len, [taken[-1][0], *taken[-1][1]]))
        sizes = [max(map(len, [heading, *cells])) for heading, cells in taken]
        print("  ".join([" " * first] + [heading.rjust(size) for (heading, _), size in zip(taken, sizes)]).rstrip())
        for row, name in enumerate(names):
            print("  ".join([name.ljust(first)] + [cells[row].rjust(size) for (_, cells), size in zip(taken, sizes)]))
        print()


def table_keys(rows):
    """The (task, column) of a table with these rows, each a run's cells, in the order they stand in."""
    columns = PARTS + ("dev", "dev-mismatched", "test", "start", "end", "story") + COARSE
    return [(task, column) for task in METRICS for column in columns
            if any((task, column) in cells for cells in rows)]


def key_chance(rows, key):
    """Chance of one column as text; several values where runs were scored on different rows."""
    chances = {entry["chance"] for cells in rows for entry in cells.get(key, [])}
    return "/".join(sorted({f"{chance:.1f}" for chance in chances if chance is not None})) or "-"


def table(args):
    """`evaluate.py table`: chance and one row a run, from the metrics.json files that exist."""
    names = names_of(args.runs, args.names)
    missing = [run for run in args.runs if not Path(run).is_dir()]
    if missing:
        raise FileNotFoundError(f"no run folder {', '.join(missing)}; `python finetune.py --model RUN` fills one")
    rows = [cells_of(read_results(run)) for run in args.runs]
    keys = table_keys(rows)
    if not keys:
        raise FileNotFoundError(f"no finetune/TASK/seed-N/metrics.json under {', '.join(args.runs)}; "
                                f"`python finetune.py --model {args.runs[0]}` makes them")

    columns = [(" ".join(key), [key_chance(rows, key)] + [show_cell(cells.get(key)) for cells in rows]) for key in keys]
    print("x 100; mean ± standard deviation over seeds\n")
    print_columns(["chance", *names], columns, args.width)
    entries = [(name, key, entry) for name, cells in zip(names, rows) for key in keys for entry in cells.get(key, [])]
    stuck = sorted({f"{name} {key[0]} seed {entry['seed']}" for name, key, entry in entries if entry["stuck"]})
    if stuck:
        print(f"! a seed that gives every row one answer: {', '.join(stuck)}")
    if any(entry["split_dev"] for _, _, entry in entries):
        print("* trained on the first half of the dev file, scored on the second (--split-dev): a smoke run")
    print("chance: always answering the most common label of the same rows")
    for name, run in zip(names, args.runs):
        spent = seconds_by_stage(run)
        if spent:
            print(f"{name}: " + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in spent.items()))

    if args.json:
        data.write_json(args.json, {name: {" ".join(key): {**summarise(cells[key]), "seeds": cells[key]}
                                           for key in keys if key in cells} for name, cells in zip(names, rows)})
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["run", "task", "column", "seed", "value", "chance", "stuck"])
            writer.writerows([name, *key, entry["seed"], entry["value"], entry["chance"], entry["stuck"]]
                             for name, key, entry in entries)


# ---------------------------------------------------------------------------------------------------------------------
# Diagnostics and TRACIE


def show_values(values):
    """"71.3 ± 1.2" of one value a seed, x 100; the deviation (n - 1) where there are two or more, "-" for none."""
    values = [100 * value for value in values if value is not None]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}" if values else "-"


def results_with(runs, wanted, made_by):
    """[(row name, task, metrics of its seeds)] of runs that have what `wanted(metrics)` looks for, else an error."""
    found = [(name, task, chosen) for name, run in zip(names_of(runs), runs) for task, seeds in read_results(run).items()
             if (chosen := [metrics for metrics in seeds if wanted(metrics)])]
    if not found:
        raise FileNotFoundError(f"nothing of it under {', '.join(runs)}; {made_by}")
    return found


def show_diagnostics(args):
    """`diagnostics`: accuracy and Matthews correlation of MNLI's model by category, overall and coarse ones first."""
    found = results_with(args.runs, lambda metrics: "categories" in metrics,
                         f"`python finetune.py --model {args.runs[0]} --task MNLI` makes it, where its --data folder "
                         f"holds diagnostics/diagnostic-full.tsv")
    cells = [metrics["categories"] for _, _, seeds in found for metrics in seeds]
    names = list(dict.fromkeys(name for cell in cells for name in cell))
    names.sort(key=lambda name: 0 if name == "overall" else 1 if name in COARSE else 3 if ":" in name else 2)

    def once(key, form):   # the same of every run and seed, unless the files were not
        return ["/".join(sorted({form(cell[name][key]) for cell in cells if name in cell})) for name in names]
    columns = [("n", once("n", str)), ("chance", once("chance", lambda value: f"{100 * value:.1f}"))]
    for run, _, seeds in found:
        for key in ("accuracy", "matthews"):
            columns.append((f"{run} {key}", [show_values([metrics["categories"][name][key] for metrics in seeds
                                                          if name in metrics["categories"]]) for name in names]))
    print("GLUE-diagnostics by a model fine-tuned on MNLI; x 100; mean ± standard deviation over seeds\n")
    print_columns(names, columns, args.width)
    print("chance: accuracy of always answering the category's most common label (its Matthews correlation is 0)")
    print("seeds: " + ", ".join(f"{run} {len(seeds)}" for run, _, seeds in found))


def show_tracie(args):
    """`tracie`: accuracy in all, on starts and on ends, and whole stories, of the test split; a row a run and task."""
    found = results_with(args.runs, lambda metrics: metrics["task"].startswith("TRACIE") and "test" in metrics,
                         f"`python finetune.py --model {args.runs[0]} --task TRACIE` makes it")
    scores = ("total", "accuracy"), ("start", "start"), ("end", "end"), ("story exact", "story")
    columns = [(heading, [show_values([metrics["test"][key] for metrics in seeds]) for _, _, seeds in found])
               for heading, key in scores]
    columns += [(key, [str(seeds[0]["test"][key]) for _, _, seeds in found])
                for key in ("n", "starts", "ends", "stories")]
    columns.append(("seeds", [str(len(seeds)) for _, _, seeds in found]))
    print("TRACIE, test split; x 100; mean ± standard deviation over seeds; chance 50, for whole stories next to 0\n")
    print_columns([f"{run} {task}" for run, task, _ in found], columns,
                  args.width)


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval


def sentence_vectors(hidden, mask):
    """Unit vector of each text: the mean of its hidden states. hidden: [B, L, H]; mask: bool [B, L], True = counts."""
    weights = mask[:, :, None].to(hidden.dtype)                                              # [B, L, 1]
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)      # [B, H]


def search(texts, videos):
    """Each text's own clip and its best ones: texts, videos [N, D], text i belongs to clip i -> (rank of the own clip,
    from 1, [N]; the best three clips [N, 3]). Ties count against the text, and so does what is not a number."""
    ranks, best = [], []
    for low in range(0, len(texts), 1024):   # the scores of a bank of 30,000 would take 3.6 GB at once
        scores = texts[low:low + 1024] @ videos.T                                            # [1024, N]
        own = scores.diagonal(low)[:, None]
        ranks.append((~(scores < own)).sum(1))
        best.append(scores.topk(min(3, len(videos))).indices)
    return torch.cat(ranks).cpu(), torch.cat(best).cpu()


def retrieval_metrics(ranks, best, keys=None):
    """R@1, R@5, R@10 (fractions), median rank, of what search returns; with keys (what each clip shows), also R@1 when
    only the key must agree, and what a retriever that knows the key and nothing else would score exactly (its chance
    within it)."""
    out = {f"R@{k}": float((ranks <= k).float().mean()) for k in (1, 5, 10)}
    out |= {"median rank": float(ranks.float().median()), "chance R@1": 1 / len(ranks)}
    for name, key in (keys or {}).items():
        out[f"R@1 same {name}"] = float(np.mean([key[i] == key[j] for i, j in enumerate(best[:, 0].tolist())]))
        out[f"exact R@1 knowing {name} alone"] = float(np.mean([1 / key.count(k) for k in key]))
    return out


def retrieval_examples(ranks, best, pool, count=12):
    """Texts with their best three clips, for the report: [{"index", "rank", "own": row, "top": [row, row, row]}, ...].

    Which texts depends on the size of the pool alone: hits and misses alike, and the same ones for every run.
    """
    chosen = sorted(data.numpy_generator(0, "report").permutation(len(pool))[:count].tolist())
    return [{"index": index, "rank": int(ranks[index]), "own": pool[index],
             "top": [pool[other] for other in best[index].tolist()]} for index in chosen]


def unit(vectors):
    return F.normalize(vectors.float(), dim=-1)


def names_only(text, known, nouns):
    """True where a text names some of `nouns` (a set of words), and only ones of `known`. A text of two captions may
    name two: the narration of one clip in twelve belongs to another video."""
    named = nouns.intersection(text.split())
    return bool(named) and named <= known


def text_to_video(run):
    """How a run puts texts beside videos. Returns (its teacher's run folder, how, text map, video map).

    A teacher:  mean of h_l          against v                      (section 3.2)
    CRD:        mean of e_s(token l) against e_t(v)                 (section 3.3; both embeddings were trained on words
                                                                    alone, and here e_t is given a video)
    regression: mean of head(h_l)    against v
    Text maps take hidden states [B, L, H], video maps unit vectors v [B, H]. Both are None, and `how` says "not
    defined", for a student whose objectives share no coordinates with the video space.
    """
    kept = model.load_checkpoint(Path(run) / "model" / "distill_heads.pt")
    if kept is None:
        return run, "mean of h against v", lambda hidden: hidden, lambda video: video
    teacher, config = run_facts(run)["arguments"]["teacher"], model.BertConfig.from_dict(kept["student"])

    def part(name, module):
        state = {key[len(name) + 1:]: value for key, value in kept["weights"].items() if key.startswith(name + ".")}
        module.load_state_dict(state)   # a bare run (--head none) has none, nor has the identity
        return module.eval()

    def head(name, width):
        return part(name, torch.nn.Identity() if kept["head"] == "none" else model.DistillHead(config, width))
    if "crd" in kept["objective"]:
        before = head("crd_head", config.hidden_size)
        width = len(kept["weights"]["crd.student_embed.bias"])
        e_s = part("crd.student_embed", torch.nn.Linear(config.hidden_size, width))
        e_t = part("crd.teacher_embed", torch.nn.Linear(kept["teacher_width"], width))
        return teacher, "mean of e_s(token) against e_t(v)", lambda h: unit(e_s(before(h))), lambda v: unit(e_t(v))
    if "regression" in kept["objective"]:
        mapped = head("regression_head", kept["teacher_width"])
        return teacher, "mean of head(h) against v", lambda h: unit(mapped(h)), lambda v: v
    return teacher, "not defined", None, None


@torch.no_grad()
def retrieve(run, data_folder, bank=None):
    """Text-to-video retrieval of a run: its texts, its teacher's video encoder. Returns (metrics, ranks [N], how texts
    and videos meet (see text_to_video)), and writes them with some examples to RUN/retrieval.json.

    The pool: a clip bank (`data.py bank`); None: the data folder's retrieval.json (the mini world's), and where it has
    none, the opening of each held-out video. In the mini world a ridge map from mean hidden state to video vector,
    fitted on training clips of task-train nouns, stands beside: it asks what could be read off, not what was aligned;
    it and the "new nouns" rows count only texts of other nouns. A run that is "not defined" has no ranks, only the map.
    """
    teacher, how, text_map, video_map = text_to_video(run)
    config, bert, _ = model.load_hf(Path(run) / "model")
    video_encoder, settings = model.load_video_encoder(Path(teacher) / "model" / "video_encoder.pt")
    if not settings["trained"]:
        raise ValueError(f"{teacher} is a text-only teacher: there is no video encoder to search with")
    bert.eval(), video_encoder.eval()
    tokenizer = data.load_tokenizer(Path(run) / "model")
    held_out, training = [data.Clips(data_folder, split, settings["streams"], tokenizer, config.block,
                                     settings["max_steps_clip"], settings["frames"]) for split in ("valid", "train")]

    def openings(clips):
        return [data.bank_row(clips, index, int(clips.spans[index, 0]), tokenizer) for index in range(len(clips))]
    pool_file, keys = Path(bank or Path(data_folder) / "retrieval.json"), None
    if bank or pool_file.exists():
        pool = data.read_bank(pool_file)
        if all("shown" in row for row in pool):
            keys = {"behaviour": [row["shown"]["behaviour"] for row in pool],
                    "sight": ["/".join(row["shown"].values()) for row in pool]}
    else:
        pool = openings(held_out)

    def vectors(rows, clips):
        """Mean hidden states [N, H], text vectors in the space of search [N, D], unit video vectors [N, H]."""
        means, texts, videos = [], [], []   # texts stays empty where there is no text map
        for low in range(0, len(rows), 256):   # a bank's features need not fit in memory
            tokens, mask, features, step_mask = data.bank_batch(rows[low:low + 256], clips, tokenizer)
            hidden, counts = bert(tokens, mask), ~data.special_mask(tokens, data.special_ids(tokenizer))
            means.append(sentence_vectors(hidden, counts))                                   # [256, H]
            texts += [sentence_vectors(text_map(hidden), counts)] if text_map else []
            videos.append(F.normalize(video_encoder(features, step_mask), dim=-1))
        return torch.cat(means), torch.cat(texts) if texts else None, torch.cat(videos)
    means, texts, videos = vectors(pool, held_out)
    metrics, ranks, examples = {"chance R@1": 1 / len(pool)}, [], []
    if text_map:
        ranks, best = search(texts, video_map(videos))
        metrics, examples = retrieval_metrics(ranks, best, keys), retrieval_examples(ranks, best, pool)
    if keys and {"train"} < {row.get("group", "train") for row in pool}:
        known = {row["noun"] for row in pool if row["group"] == "train"}
        nouns = {row["noun"] for row in pool}
        rows = [row for row in openings(training) if names_only(row["text"], known, nouns)]
        seen, _, shown = vectors(rows, training)
        guessed = torch.from_numpy(ridge_probe(seen.double().numpy(), shown.double().numpy(), means.double().numpy()))
        new = np.array([row["group"] != "train" for row in pool])
        found = ([("", ranks)] if text_map else []) + [("ridge map, ", search(unit(guessed), videos)[0])]
        metrics |= {f"{name}R@1, new nouns": float((some[new] == 1).float().mean()) for name, some in found}
    ranks = list(map(int, ranks))
    data.write_json(Path(run) / "retrieval.json", {**metrics, "how": how, "ranks": ranks, "data": str(data_folder),
                                                   "examples": examples})
    return metrics, ranks, how


# ---------------------------------------------------------------------------------------------------------------------
# Linear probes, in closed form


def ridge_probe(train_x, train_y, test_x):
    """Scores of a ridge regression to +-1 targets, its strength chosen by the closed-form leave-one-out error.

    train_x: [N, H]; train_y: [N, C] of +-1; test_x: [M, H]. Returns [M, C]. Inputs are standardised on train_x.
    """
    mean, std = train_x.mean(0), train_x.std(0) + 1e-6
    a, b = (train_x - mean) / std, (test_x - mean) / std
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    offset = train_y.mean(0)
    best = None
    for strength in 10.0 ** np.arange(-1, 5):
        shrink = s ** 2 / (s ** 2 + strength)
        fitted = (u * shrink) @ (u.T @ (train_y - offset))                                   # [N, C]
        leverage = ((u ** 2) * shrink).sum(1, keepdims=True) + 1 / len(a)                    # hat matrix's diagonal
        error = (((train_y - offset - fitted) / (1 - leverage)) ** 2).mean()
        if best is None or error < best[0]:
            best = (error, strength)
    weights = vt.T @ ((s / (s ** 2 + best[1]))[:, None] * (u.T @ (train_y - offset)))        # [H, C]
    return b @ weights + offset


@torch.no_grad()
def noun_vectors(folder, nouns):
    """The hidden state of each noun, averaged over the mini world's sentences around it. Returns float64 [N, H].

    Sentences name every action equally often; the model has seen their like in pretraining.
    """
    config, bert, _ = model.load_hf(folder)
    bert.eval()
    tokenizer = data.load_tokenizer(folder)
    texts, places = [], []
    for noun in nouns:
        for template in data.SPOKEN:
            for action in data.ACTIONS:
                texts.append(tokenizer.encode(template.format(a=action, n=noun)).ids)
                places.append(texts[-1].index(tokenizer.token_to_id(noun)))
    length = max(map(len, texts))
    tokens = torch.tensor([ids + [config.pad_token_id] * (length - len(ids)) for ids in texts])
    mask = tokens != config.pad_token_id
    hidden = torch.cat([bert(t, m)[torch.arange(len(t)), p] for t, m, p in
                        zip(tokens.split(1024), mask.split(1024), torch.tensor(places).split(1024))])
    return hidden.view(len(nouns), -1, hidden.shape[1]).mean(1).double().numpy()


def probe(run, world):
    """Accuracy of a linear probe of each property from the noun's hidden state, fitted on task-train nouns.

    Returns {property: {"validation": accuracy, "test": ..., "unfilmed": ...}}, and writes it to RUN/probe.json. Chance
    is 1 / number of values.
    """
    nouns = list(world["nouns"])
    vectors = noun_vectors(Path(run) / "model", nouns)
    group = np.array([world["nouns"][noun]["group"] for noun in nouns])
    out = {}
    for name, (_, values) in world["properties"].items():
        truth = np.array([values.index(world["nouns"][noun][name]) for noun in nouns])
        targets = 2.0 * np.eye(len(values))[truth] - 1
        scores = ridge_probe(vectors[group == "train"], targets[group == "train"], vectors)
        right = scores.argmax(1) == truth
        out[name] = {g: float(right[group == g].mean()) for g in ("validation", "test", "unfilmed")}
    data.write_json(Path(run) / "probe.json", out)
    return out


def show_retrieval(args):
    """`retrieve`: prints the metrics of each run, which then lie in RUN/retrieval.json, too."""
    for run in args.runs:
        metrics, ranks, how = retrieve(run, args.data, args.bank)
        print(f"{run}: text -> video, {how}" + (f", {len(ranks)} clips" if ranks else ": its objectives share no "
              "coordinates with the video space"))
        for name, value in metrics.items():
            print(f"  {name:<32} {value:6.1f}" if name == "median rank" else f"  {name:<32} {100 * value:6.1f} %")


def show_probes(args):
    """`probe`: accuracy on unseen nouns, a row a run, a column a property; probe writes it to RUN/probe.json."""
    world = data.read_json(Path(args.data) / "world.json", "python data.py mini")
    rows = {"chance": {name: 1 / len(values) for name, (_, values) in world["properties"].items()}}
    for name, run in zip(names_of(args.runs), args.runs):
        probed = probe(run, world)
        for group in ("test", "unfilmed"):
            rows[f"{name}, {group} nouns"] = {key: found[group] for key, found in probed.items()}
    print("linear probe of the noun's hidden state, fitted on task-train nouns, accuracy in %")
    print_columns(list(rows), [(key, [f"{100 * row[key]:.1f}" for row in rows.values()]) for key in rows["chance"]])


# ---------------------------------------------------------------------------------------------------------------------
# Claims: each comparison of the paper as an experiment on mini worlds. This file plans and judges; what it plans is a
# makefile, whose rules run the stages. One world a seed, everything redrawn; a value file for each (arm, seed).


def of(teacher, flags):
    """Flags of a student of a teacher's run."""
    return f"distill.py --teacher {{run}}/{teacher} --objective {flags}"


BANK = "--data {data} --bank {data}/bank.json"
ARMS = {   # arm -> stage and flags; size, seed, data, text and --out are the same for all. Gradient ratios: see GRID
    "teacher": "teacher.py",
    "text-teacher": "teacher.py --contrastive none",
    "image-teacher": "teacher.py --frames 1 --streams frame",
    "2d-teacher": "teacher.py --streams frame",
    "3d-teacher": "teacher.py --streams motion",
    "shuffled-teacher": "teacher.py --shuffle-pairs",
    # At nce's rate and steps it learns nothing. It stops at what tells most rivals apart, colour, shape and size
    # (probes 90 to 100, also after 3,000 steps), so it is judged by MNLI, which asks for these.
    "hinge-teacher": "teacher.py --contrastive hinge --lr 5e-4 --steps 1500",
    "hinge-text-teacher": "teacher.py --contrastive none --lr 5e-4 --steps 1500",

    "text-only": "distill.py --objective none",
    "nst+crd": of("teacher", "nst crd --gradient-ratio 10"),
    "of-text-teacher": of("text-teacher", "nst crd --gradient-ratio 10"),
    "of-shuffled-teacher": of("shuffled-teacher", "nst crd --gradient-ratio 10"),
    "nst": of("teacher", "nst --gradient-ratio 30"),
    "crd": of("teacher", "crd --gradient-ratio 30"),
    "soft-label": of("teacher", "soft-label --gradient-ratio 10"),
    "regression": of("teacher", "regression --gradient-ratio 3"),
    "no-head": of("teacher", "nst crd --gradient-ratio 10 --head none"),
    "voken": of("teacher", f"voken --gradient-ratio 10 {BANK}"),
    "voken-shuffled": of("teacher", f"voken --gradient-ratio 10 {BANK} --voken-labels shuffled"),
    "voken-random": of("teacher", f"voken --gradient-ratio 10 {BANK} --voken-labels random"),
}
for arm in ("nst+crd", "nst", "crd", "soft-label", "regression"):   # the ratios are those of an nce teacher's students
    ARMS[f"{arm}-of-hinge"] = ARMS[arm].replace("/teacher", "/hinge-teacher")
ARMS["of-hinge-text-teacher"] = ARMS["nst+crd"].replace("/teacher", "/hinge-text-teacher")
LENGTHS = 500, 1000, 2000, 4000   # steps of claim 3's text stage, fixed before any of them was run
CURVE = {"two-stage": [f"two-stage-{steps}" for steps in LENGTHS],
         "distilled": ["nst+crd" if steps == 1000 else f"distilled-{steps}" for steps in LENGTHS]}   # 1000: the default
for two_stage, distilled, steps in zip(*CURVE.values(), LENGTHS):
    ARMS[two_stage] = f"distill.py --objective none --init {{run}}/teacher/model --steps {steps}"
    ARMS.setdefault(distilled, ARMS["nst+crd"] + f" --steps {steps}")
# Ratios tried for each of TUNED by `make claims CLAIMS=weights SEEDS="100 101"`, worlds that are never reported; the
# best on validation nouns stands in ARMS. Smaller ones, 0.3 and 1, had left NST and CRD at or near chance in world 100:
# at the end of warm-up MLM pulls a third as hard as it soon will; the authors' equal weights are a ratio of 12 for CRD.
TUNED = "nst", "crd", "nst+crd", "soft-label", "regression", "voken", "of-text-teacher", "no-head"
GRID = {f"{arm}@{ratio}": re.sub(r"ratio \S+", f"ratio {ratio}", ARMS[arm]) for arm in TUNED for ratio in (3, 10, 30)}
SIDE = {   # arms beyond the paper's claims: `make claims CLAIMS=more`
    "ntxent": of("teacher", "ntxent --gradient-ratio 10"),
    "voken-reversed": of("teacher", f"voken --gradient-ratio 10 {BANK} --voken-labels reversed"),
    "voken-token": of("teacher", f"voken --gradient-ratio 10 {BANK} --voken-labels token"),
    "hinge-all-teacher": "teacher.py --contrastive hinge-all",
}

# Tasks on which every arm is fine-tuned: two ways to ask of behaviours, a sentence and a pair of choices. QNLI, the
# first choice, takes twice SST-2's time; each halts at its saddle for two of thirty models whose probes read 90 and more.
TWO = "SST-2 PIQA"
BOTH, SEEN = f"grounded {TWO}", "grounded MNLI"
ORDER = (("nst", "soft-label"), ("nst", "regression"), ("crd", "soft-label"), ("crd", "regression"),
         ("nst+crd", "nst"), ("nst+crd", "crd"))   # of objectives, claim 6
CLAIMS = {   # number -> (claim, kind, controls, parts)
    # a part: (value (see measure), arm, what is taken off (an arm, or None for chance), question (see QUESTIONS))
    "1": ("A student distilled from video beats a text-only student of the same size, tokens and steps", "mechanism",
          ["pairs", "unfilmed"],
          [(BOTH, "nst+crd", "text-only", "better"), ("grounded all", "nst+crd", "text-only", "better")]),
    "2": ("It beats a student distilled from a text-only teacher: same captions, no video", "mechanism",
          ["pairs", "unfilmed"],
          [(BOTH, "nst+crd", "of-text-teacher", "better")]),
    "3": (f"It beats two-stage pretraining, judged at the longest text stage ({LENGTHS[-1]:,} steps)", "mechanism", [],
          [(BOTH, CURVE["distilled"][-1], CURVE["two-stage"][-1], "better")]),
    "4": ("It beats a voken student: same teacher, a bank of clips", "mechanism", ["vokens"],
          [(BOTH, "nst+crd", "voken", "better")]),
    "5": ("A video teacher beats an image teacher on dynamic properties, not on static ones", "mechanism", [],
          [(BOTH, "teacher", "image-teacher", "better"), ("probe dynamic", "teacher", "image-teacher", "better"),
           ("probe static", "teacher", "image-teacher", "no better")]),
    "6": ("NST and CRD each beat soft labels and regression; NST + CRD beats each", "magnitude", [],
          [(BOTH, better, worse, "better") for better, worse in ORDER]),
    "7": ("2D and 3D features together beat either", "magnitude", [],
          [(value, "teacher", other, "better") for value in (BOTH, "probe all")
           for other in ("2d-teacher", "3d-teacher")]),
    "8": ("A distillation head beats none", "magnitude", [], [(BOTH, "nst+crd", "no-head", "better")]),
    "9": ("The student, which never saw a frame, finds videos from text: above chance, below its teacher", "mechanism",
          [], [("R@1", "crd", None, "better"), ("R@1", "regression", None, "better"),
               ("R@1", "teacher", "crd", "better"), ("R@1", "teacher", "regression", "better"),
               ("ridge R@1", "nst", None, "shown")]),
    "10": ("It gains on what is grounded: diagnostics' knowledge, PIQA, TRACIE; on the rest its mean is not worse",
           "mechanism", ["unfilmed"],
           [("Knowledge", "nst+crd", "text-only", "better"), ("grounded PIQA", "nst+crd", "text-only", "better"),
            ("grounded TRACIE", "nst+crd", "text-only", "better"),
            ("ungrounded all", "nst+crd", "text-only", "not worse")]),
    "1h": ("Claim 1 with a hinge teacher", "hinge", [], [(SEEN, "nst+crd-of-hinge", "text-only", "better")]),
    "2h": ("Claim 2 with a hinge teacher", "hinge", [],
           [(SEEN, "nst+crd-of-hinge", "of-hinge-text-teacher", "better")]),
    "6h": ("Claim 6 with a hinge teacher", "hinge", [],
           [(SEEN, f"{better}-of-hinge", f"{worse}-of-hinge", "better") for better, worse in ORDER]),
    "pairs": ("Control: a student of a teacher of shuffled video-caption pairs is as the text-only one", "control", [],
              [(BOTH, "of-shuffled-teacher", "text-only", "no effect")]),
    "vokens": ("Control: students of shuffled and of random vokens are as the text-only one", "control", [],
               [(BOTH, arm, "text-only", "no effect") for arm in ("voken-shuffled", "voken-random")]),
    "unfilmed": ("Control: nobody knows the nouns that no clip shows", "control", [],
                 [(f"unfilmed {TWO}", arm, None, "no effect") for arm in ("teacher", "nst+crd", "text-only")]),
}
CONTROLS = "pairs", "vokens", "unfilmed"
NOTES = {   # what a mini world decides by the way it is made
    "5": "partly by construction: in a mini world one frame tells no behaviour",
    "7": "partly by construction: in a mini world a behaviour is a movement, and SST-2 and PIQA ask behaviours alone",
}
MINI_TASKS = "SST-2", "QNLI", "QQP", "MNLI", "PIQA", "SWAG", "SQuAD1", "SQuAD2", "TRACIE"


def flags_of(arm):
    """An arm's stage and flags. Raises ValueError on an unknown name."""
    every = {**ARMS, **GRID, **SIDE}
    if arm not in every:
        raise ValueError(f"unknown arm {arm!r}; known: {', '.join(every)}")
    return every[arm]


def taught_by(arm):
    """The arms whose run an arm starts from: its teacher, or none."""
    return re.findall(r"{run}/([^ /]+)", flags_of(arm))


def recipe(arm):
    """Stages and flags of an arm and of the teacher that it starts from: what its value file must agree with."""
    return "; ".join(map(flags_of, (*taught_by(arm), arm)))


def cells_for(claims, seeds):
    """What claims need: {(arm, seed): tasks}, in the order in which they are run."""
    tasks = {}
    for name in claims:
        if name == "weights" and min(seeds) < 100:
            raise ValueError('weights are chosen on worlds that are never reported: SEEDS="100 101", not '
                             f'{" ".join(map(str, seeds))}')
        if name in ("weights", "more"):
            tasks |= {arm: {*TWO.split()} for arm in (GRID if name == "weights" else SIDE)}
            continue
        if name not in CLAIMS:
            raise ValueError(f"unknown claim {name!r}; known: {', '.join(CLAIMS)}, weights (which gradient ratios "
                             f"suit), more (arms beyond the paper's)")
        for value, *arms, _ in [part for each in (name, *CLAIMS[name][2]) for part in CLAIMS[each][3]]:
            named = (MINI_TASKS if value in ("grounded all", "ungrounded all") else
                     ["MNLI"] if value == "Knowledge" else value.split())   # words that are no task name none
            if name == "3":
                arms = sum(CURVE.values(), [])
            for arm in filter(None, arms):   # students of a hinge teacher have a task of their own, and need no other
                tasks[arm] = {*(named if "of-hinge" in arm else [*TWO.split(), *named]), *tasks.get(arm, ())}
                for teacher in taught_by(arm):   # what it knows itself stands beside; "no signal" is said on that task
                    tasks[teacher] = {*TWO.split(), *(named if value == SEEN else ()), *tasks.get(teacher, ())}
    return {(arm, seed): [task for task in MINI_TASKS if task in tasks[arm]] for seed in seeds for arm in tasks}


def value_file(runs, arm, seed):
    return Path(runs) / "values" / f"seed-{seed}" / f"{arm}.json"


def plan(path, runs, cells, python):
    """Writes a makefile that makes the value files of `cells`; returns how many are still to make.

    A finished one that lacks a task is made again; its finished stages say so and return. All but the world's rules are
    phony and prerequisites order-only: what decides whether a stage is up to date, or was made with other flags, is the
    stage, neither the clock nor a file that lies there. Raises ValueError where a value file was made with other flags
    than the arm has now.
    """
    rules, todo, planned, always = [], [], set(), ["all"]

    def rule(target, needs, log, *commands):
        """A rule whose commands write to a log file, of which a failure shows the end."""
        planned.add(target)
        lines = [f"\t@{command} >> {log} 2>&1 || {{ echo '{target}:'; tail -n 5 {log}; exit 1; }}"
                 for command in commands]
        rules.append("\n".join([f"{target}: | {' '.join(map(str, needs))}", f"\t@mkdir -p {Path(log).parent}", *lines]))

    def world_of(seed):
        """The last file of a world's data, its rule planned."""
        folder, target = f"data/mini-{seed}", f"data/mini-{seed}/bank.json"
        if target not in planned:
            rule(target, [], Path(runs) / f"world-{seed}" / "world.log",
                 f"{python} data.py mini --seed {seed} --out {folder}",
                 f"{python} data.py video --videos {folder}/videos --captions {folder}/caption.json --vocab "
                 f"{folder}/vocab.txt --streams frame motion --out {folder}",
                 f"{python} data.py text --train {folder}/text/train.txt --valid {folder}/text/valid.txt --vocab "
                 f"{folder}/vocab.txt --out {folder}/text",
                 f"{python} data.py bank --data {folder} --clips 1152 --block 32 --seed {seed}")   # four a filmed noun
        return target

    def training(arm, seed):
        """(the last file of an arm's run, what it needs first, the command)."""
        run, folder = Path(runs) / f"world-{seed}", f"data/mini-{seed}"
        stage, _, flags = flags_of(arm).format(run=run, data=folder).partition(" ")
        source = f"--data {folder}" if stage == "teacher.py" else f"--text {folder}/text"
        return (run / arm / "model" / ("video_encoder.pt" if stage == "teacher.py" else "distill_heads.pt"),
                [world_of(seed), *[teacher_of(teacher, seed) for teacher in taught_by(arm)]],
                f"{python} {stage} {source} --size mini --seed {seed} --out {run / arm} {flags}")

    def teacher_of(arm, seed):
        """The last file of a run that others wait for, its rule planned."""
        target, needs, command = training(arm, seed)
        if target not in planned:
            rule(target, needs, Path(runs) / f"world-{seed}" / f"{arm}.log", command)
            always.append(target)
        return target
    teachers = {teacher for arm, _ in cells for teacher in taught_by(arm)}
    for (arm, seed), tasks in cells.items():
        file = value_file(runs, arm, seed)
        made = data.read_json(file, "make claims") if file.exists() else None
        if made and made["flags"] != recipe(arm):
            raise ValueError(f"{file} was made with `{made['flags']}`, now {arm} is `{recipe(arm)}`; move the file "
                             f"away, and from {Path(runs) / f'world-{seed}'} the run of what changed and its students'")
        if made and set(tasks) <= made["tasks"].keys():
            continue
        todo.append(file)
        run = Path(runs) / f"world-{seed}"
        tuning = (f"{python} finetune.py --model {run / arm} --data data/mini-{seed}/tasks --seed {seed} --task "
                  f"{' '.join(tasks)}")
        if arm in teachers:
            rule(file, [teacher_of(arm, seed)], run / f"{arm}.log", tuning)
        else:   # one rule for both: make would otherwise train every arm before it fine-tunes the first
            _, needs, command = training(arm, seed)
            rule(file, needs, run / f"{arm}.log", command, tuning)
        rules[-1] += f"\n\t@{python} evaluate.py cell {arm} --seed {seed} --runs {runs}"
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data.write_text(path, "\n\n".join(["# Written by `evaluate.py claims --plan`; run by `make claims`.",
                                       f".PHONY: {' '.join(map(str, always + todo))}",
                                       f"all: {' '.join(map(str, todo))}", *rules]) + "\n")
    return len(todo)


def make_cell(args):
    """`cell`: gathers what is known of one arm in one world into its value file, and says how far `make claims` is."""
    run, folder = Path(args.runs) / f"world-{args.seed}" / args.arm, f"data/mini-{args.seed}"
    facts, tasks = run_facts(run), {}
    for task, seeds in read_results(run).items():
        for metrics in [metrics for metrics in seeds if metrics["seed"] == args.seed]:   # others are someone's own
            tasks[task] = {"dev": metrics["parts"]["dev"]["grounded"], **metrics["parts"]["test"],
                           "stuck": metrics["majority"]}
            if "categories" in metrics:
                tasks[task]["categories"] = {name: metrics["categories"][name] for name in (*COARSE, "grounded")
                                             if name in metrics["categories"]}
    given = facts["arguments"]
    teacher = run if "contrastive" in given else given["objective"] and given["teacher"]   # false: a student of none
    video = teacher and run_facts(teacher)["arguments"]["contrastive"] != "none"   # True: there is a video encoder
    searched, _, how = retrieve(run, folder) if video else ({}, [], "not defined")
    probed = probe(run, data.read_json(Path(folder) / "world.json", "python data.py mini"))
    file = value_file(args.runs, args.arm, args.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    written = [facts, *[run_facts(path.parent) for path in run.glob(f"finetune/*/seed-{args.seed}/metrics.json")]]
    commits = dict.fromkeys(f"{made.get('commit')}{' with changes' * bool(made.get('uncommitted changes'))}"
                            for made in written)
    found = {"arm": args.arm, "seed": args.seed, "flags": recipe(args.arm), "commit": "/".join(commits),
             "hardware": facts.get("hardware"), "threads": facts.get("threads"), "seconds": seconds_by_stage(run),
             "tasks": tasks, "probe": probed, "retrieval": {"how": how, **searched},
             **{"mlm": line["valid_mlm"] for line in read_log(run) if "valid_mlm" in line}}   # the last
    # numbers of five digits, so that a file stays small
    data.write_json(file, json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 5)))
    shown = ", ".join(f"{task} {100 * tasks[task]['grounded']['accuracy']:.1f}" for task in tasks)
    listed, progress = Path(args.runs) / "plan.mk", ""
    if listed.exists():
        files = re.search(r"^all: (.*)", listed.read_text(), re.M)[1].split()
        begun = listed.stat().st_mtime
        done = sum(Path(name).exists() and Path(name).stat().st_mtime >= begun for name in files)
        left = (time.time() - begun) / max(1, done) * (len(files) - done)
        progress = f"; {done} of {len(files)} done, about {left / 3600:.1f} h left"
    print(f"seed {args.seed}, {args.arm}: grounded {shown}{progress}", flush=True)


SEARCHED = {"R@1": "R@1", "R@1 new nouns": "R@1, new nouns", "ridge R@1": "ridge map, R@1, new nouns"}
ARMS_ARE = ("mean ± standard deviation over seeds; accuracy in %, probes' of test nouns; R@1 of text to video; MLM in "
            "nats on held-out text (teachers: captions)")
SHOWN = [f"{part} {TWO}" for part in PARTS] + [f"probe {name}" for name in data.PROPERTIES] + [*SEARCHED, "MLM"]


def measured(cells, arm, seed, value):
    """One number of a cell -> (value, its chance, {noun: value} or {}), x 100; None where cell or value was not made.

    Values: "grounded", "ungrounded", "unfilmed" and the tasks whose mean it is, or all; "Knowledge", of diagnostics;
    "probe" and a property, dynamic, static or all, on test nouns; those of SEARCHED; "MLM", held-out nats, not x 100.
    """
    cell, (kind, _, names) = cells.get((arm, seed)), value.partition(" ")
    if cell is None:
        return None
    if value == "MLM":
        return cell["mlm"], math.nan, {}
    if value in SEARCHED:
        found = cell["retrieval"].get(SEARCHED[value])
        return None if found is None else (100 * found, 100 * cell["retrieval"]["chance R@1"], {})
    if kind == "probe":
        chosen = [name for name in cell["probe"]
                  if names in ("all", name, "dynamic" if name in data.DYNAMIC else "static")]
        return (100 * statistics.fmean(cell["probe"][name]["test"] for name in chosen),
                100 * statistics.fmean(1 / len(data.PROPERTIES[name][1]) for name in chosen), {})
    tasks = ("MNLI",) if kind == "Knowledge" else MINI_TASKS if names == "all" else names.split()
    if not cell["tasks"].keys() >= set(tasks):
        return None
    parts = [cell["tasks"][task][kind] for task in tasks] if kind != "Knowledge" else [
        cell["tasks"]["MNLI"]["categories"]["grounded"]]   # less the nouns that no clip shows
    by_noun = {}
    for task in tasks if kind == "grounded" else ():
        for noun, right in cell["tasks"][task]["grounded_by_noun"].items():
            by_noun.setdefault(noun, []).append(100 * right)
    return (100 * statistics.fmean(part["accuracy"] for part in parts),
            100 * statistics.fmean(part["chance"] for part in parts),
            {noun: statistics.fmean(right) for noun, right in by_noun.items()})


def arm_rows(cells, seeds):
    """What each arm reached -> {arm: {value of SHOWN: [one number a seed]}}; what was not made is absent."""
    out = {}
    for arm in ARMS | SIDE:
        for value in SHOWN:
            found = [got[0] for seed in seeds if (got := measured(cells, arm, seed, value))]
            if found:
                out.setdefault(arm, {})[value] = found
    return out


def noun_interval(differences, draws=2000):
    """95 % bootstrap interval of the mean over seeds of the mean over nouns: nouns are drawn anew within each seed,
    seeds stay. differences: an array of nouns a seed. It asks whether other nouns of these worlds would say the same.
    """
    generator = data.numpy_generator(0, "nouns")
    means = [values[generator.integers(len(values), size=(draws, len(values)))].mean(1) for values in differences]
    return [float(end) for end in np.percentile(np.mean(means, 0), (2.5, 97.5))]


def holm(values):
    """Holm's correction of p-values (None: no test): the k-th smallest of m times m - k + 1, never falling, at most 1.
    """
    order = sorted((p, index) for index, p in enumerate(values) if p is not None)
    out, highest = [None] * len(values), 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        out[index] = highest
    return out


QUESTIONS = {   # question -> (what the mean is tested against, verdict of the interval)
    "better": (0, superior), "not worse": (-2, not_worse),
    "no better": (2, lambda low, high: "holds" if high < 2 else "fails" if low > 0 else "not decided"),
}


def judge(part, cells, seeds):
    """One part of a claim, paired over the seeds that have both arms -> dict for claims.json; see CLAIMS, QUESTIONS."""
    value, a, b, question = part
    pairs, nouns = {}, []   # seed -> the two arms' numbers; an array of noun differences a seed
    for seed in seeds:
        ours, theirs = measured(cells, a, seed, value), measured(cells, b, seed, value) if b else None
        if ours is None or (b and theirs is None):
            continue
        x, chance, x_nouns = ours
        y, _, y_nouns = theirs if b else (chance, None, {})
        pairs[seed] = x, y
        if x_nouns and y_nouns:
            nouns.append(np.array([x_nouns[noun] - y_nouns[noun] for noun in sorted(x_nouns)]))
    differences = [x - y for x, y in pairs.values()]
    mean, low, high = t_interval(differences) if pairs else (None,) * 3
    out = {"name": f"{value}: {a} - {b or 'chance'}", "kind": question, "n": len(pairs), "seeds": list(pairs),
           "a": [x for x, _ in pairs.values()], "b": [y for _, y in pairs.values()], "values": differences,
           "mean": mean, "low": low, "high": high, "nouns": noun_interval(nouns) if nouns else None,
           "p": None, "verdict": "not run"}
    if question == "shown":
        out["verdict"] = "-"
    elif len(pairs) == 1:
        out["verdict"] = "one seed"
    elif pairs and question == "no effect":
        out["verdict"] = "holds" if at_chance(mean, low, high) else "not decided" if low <= 0 <= high else "fails"
    elif pairs:
        against, verdict = QUESTIONS[question]
        error = statistics.stdev(differences) / math.sqrt(len(pairs)) or 1e-9   # no spread: p is 0 or 1
        toward = against - mean if question == "no better" else mean - against   # what points the other way has p 1
        out["p"] = min(1.0, float(2 * scipy.stats.t.sf(toward / error, len(pairs) - 1)))   # 2: as the interval says
        out["verdict"] = verdict(low, high)
    if "hinge" in a and pairs:
        above = [got for seed in seeds if (got := measured(cells, "hinge-teacher", seed, value))]
        if above and statistics.fmean(reached - chance for reached, chance, _ in above) < 10:
            out["verdict"] = "teacher carries no signal"   # under 10 points above chance when fine-tuned itself
    return out


def judge_claims(cells, names, seeds):
    """The claims of these names with their parts and verdicts, and claim 3's curve: what claims.json holds of them."""
    out = [{"number": name, "text": CLAIMS[name][0], "kind": CLAIMS[name][1], "note": NOTES.get(name, ""),
            "parts": [judge(part, cells, seeds) for part in CLAIMS[name][3]]} for name in names]
    # A joined claim holds if each part does, so all must be significant, and its p is the largest of theirs (Berger's
    # intersection-union test). Holm corrects over those of the paper's claims that were run in whole; over parts it
    # would charge a claim for its own strictness, and controls and hinge teachers are no claims of their own.
    joined = []
    for claim in out:
        tests = [part["p"] for part in claim["parts"] if part["kind"] != "shown"]
        joined.append(max(tests) if claim["kind"] in ("mechanism", "magnitude") and None not in tests else None)
    for claim, p in zip(out, holm(joined)):
        said = [part["verdict"] for part in claim["parts"]]
        worst = [word for word in ("teacher carries no signal", "fails", "not run", "one seed", "not decided")
                 if word in said]   # one part may fail all
        lost = not worst and p is not None and p >= 0.05
        claim |= {"holm": p, "of": len(joined) - joined.count(None),
                  "verdict": worst[0] if worst else "not decided" if lost else "holds"}
    verdicts = {claim["number"]: claim["verdict"] for claim in out}
    for claim in out:
        claim["controls"] = {name: verdicts[name] for name in CLAIMS[claim["number"]][2]
                             if verdicts.get(name, "holds") != "holds"}
    curve = {"steps": list(LENGTHS)} | {kind: [] for kind in CURVE}
    for pair in zip(*CURVE.values()):   # of the seeds that have both
        found = [got for seed in seeds if None not in (got := [measured(cells, arm, seed, BOTH) for arm in pair])]
        for place, kind in enumerate(CURVE):
            curve[kind].append([got[place][0] for got in found])
    return {"claims": out, "curve": curve if any(curve["two-stage"]) else {}}


def read_values(source):
    """The cells of a folder of value files, or of a JSON-lines file of them -> {(arm, seed): cell}."""
    source = Path(source)
    if source.is_dir():
        found = [data.read_json(path, "make claims") for path in sorted(source.glob("seed-*/*.json"))]
    elif source.exists():
        found = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    else:
        raise FileNotFoundError(f"no value files in {source}; `make claims` makes them")
    return {(cell["arm"], cell["seed"]): cell for cell in found}


def show_grid(cells):
    """Validation accuracy of each objective at each gradient ratio, and the best: where ARMS' ratios come from."""
    seeds = sorted({seed for arm, seed in cells if arm in GRID})
    if not seeds:
        return
    print(f"\ngrounded {TWO} on validation nouns, x 100, by gradient ratio; worlds {', '.join(map(str, seeds))}")
    for name in TUNED:
        found = {}
        for arm in [arm for arm in GRID if arm.startswith(f"{name}@")]:
            made = [cells[arm, seed]["tasks"] for seed in seeds if (arm, seed) in cells]
            found[arm] = [100 * statistics.fmean(tasks[task]["dev"]["accuracy"] for task in TWO.split())
                          for tasks in made if tasks.keys() >= set(TWO.split())]
        full = [arm for arm, some in found.items() if len(some) == len(seeds)]
        best = max(full, key=lambda arm: statistics.fmean(found[arm])) if full else None
        told = {arm: f"{statistics.fmean(some):5.1f} ({', '.join(f'{x:.1f}' for x in some)})" if some else "not run"
                for arm, some in found.items()}
        print("   " + "   ".join(f"{arm:<18}{said}" for arm, said in told.items())
              + (f"   best {best}" + ", not what ARMS has" * (GRID[best] != ARMS[name]) if best else ""))


def span(ends):
    """" [-1.0, +2.0]" of an interval; "" of none."""
    return "" if ends is None or ends[0] is None or math.isnan(ends[0]) else f" [{ends[0]:+.1f}, {ends[1]:+.1f}]"


def said_of(claim):
    """A claim's verdict in words: what took it away; if nothing did, the controls that do not hold."""
    lost = claim["verdict"] == "not decided" and {part["verdict"] for part in claim["parts"]} <= {"holds", "-"}
    return (claim["verdict"] + (f", its p after Holm's correction is {claim['holm']:.2g}" if lost else "")
            + "".join(f"; its control {name}: {verdict}" for name, verdict in claim["controls"].items()
                      if claim["verdict"] == "holds"))


def markdown_claims(judged):
    """The claims as a Markdown table: what stands in the README."""
    rows = ["| | claim | difference in points: mean [95 % over seeds], seeds | verdict |", "|---|---|---|---|"]
    for claim in judged["claims"]:
        parts = [f"{part['name']}: " + (f"{part['mean']:+.1f}{span((part['low'], part['high']))}, n={part['n']}, "
                                        f"{part['verdict']}" if part["n"] else "not run") for part in claim["parts"]]
        kind = "; ".join(filter(None, (claim["kind"], claim["note"])))
        rows.append(f"| {claim['number']} | {claim['text']} ({kind}) | {'<br>'.join(parts)} | **{said_of(claim)}** |")
    return "\n".join(rows)


def print_claims(judged):
    """The verdict on each claim, its parts with their intervals, both arms by seed; then the curve of claim 3."""
    for claim in judged["claims"]:
        print(f"\n{claim['number']}. {claim['text']} ({claim['kind']}): {said_of(claim).upper()}"
              + (f", p {claim['holm']:.2g} corrected over {claim['of']} claims" if claim["holm"] is not None else ""))
        if claim["note"]:
            print(f"   {claim['note']}")
        for part in claim["parts"]:
            print(f"   {part['name']}; {part['kind']}" + "?" * (part["kind"] != "shown"))
            if not part["n"]:
                print("      not run")
                continue
            nouns = f"  over nouns{span(part['nouns'])}" if part["nouns"] else ""
            test = f"  p {part['p']:.2g}" if part["p"] is not None else ""
            print(f"      n={part['n']}  {part['mean']:+.1f}{span((part['low'], part['high']))}{nouns}{test}  "
                  f"{part['verdict']}")
            print("      " + "  ".join(f"seed {seed}: {a:.1f}, {b:.1f}"
                                       for seed, a, b in zip(part["seeds"], part["a"], part["b"])))
    for kind in CURVE if judged["curve"] else ():
        means = [f"{statistics.fmean(some):.1f}" if some else "-" for some in judged["curve"][kind]]
        print(f"\n{BOTH} by steps of the text stage, {kind:<10}"
              + "".join(f"{steps:>8}: {mean:>5}" for steps, mean in zip(judged["curve"]["steps"], means)), end="")
    print()


def claims(args):
    """`claims`: with --plan writes the makefile of what is still to run; else judges the value files that are there."""
    names = args.claims or [name for name in CLAIMS if name not in CONTROLS]
    if args.plan:
        if not args.seeds:
            raise ValueError("--plan needs --seeds, one world each")
        cells = cells_for(names, args.seeds)
        todo = plan(args.plan, args.runs, cells, args.python)
        print(f"{len(cells)} cells of (arm, seed), {todo} to run: {args.plan}")
        return
    cells = read_values(args.values or Path(args.runs) / "values")
    other = sorted(key for key, cell in cells.items() if key[0] in ARMS | SIDE | GRID and cell["flags"] != recipe(key[0]))
    if not args.markdown:
        show_grid({key: cell for key, cell in cells.items() if key not in other})
    seeds = args.seeds or sorted({seed for _, seed in cells if 0 < seed < 100})   # on others settings were chosen
    used = {key: cell for key, cell in cells.items() if key[0] in ARMS | SIDE and key[1] in seeds and key not in other}
    if args.claims == ["weights"]:
        return
    if not used:
        raise FileNotFoundError(f"no values of worlds {', '.join(map(str, args.seeds or ['1 to 99']))} made with the "
                                f"arms' flags; `make claims` makes them, --seeds names worlds")

    def begun(name):
        return any(judge(part, used, seeds)["n"] for part in CLAIMS[name][3])
    names = [name for name in names if name in CLAIMS and (args.claims or begun(name))]
    names += [name for name in CONTROLS if name not in names and any(name in CLAIMS[claim][2] for claim in names)]
    judged, rows = judge_claims(used, names, seeds), arm_rows(used, seeds)
    if args.markdown:
        print(markdown_claims(judged))
        return
    print_claims(judged)
    print(f"\nEvery arm: {ARMS_ARE}\n")
    print_columns(list(rows), [(value, [show_values([x / 100 for x in rows[arm].get(value, [])]) for arm in rows])
                               for value in SHOWN], args.width)
    used = list(used.values())
    stuck = [f"{cell['arm']} {task} seed {cell['seed']}" for cell in used for task, got in cell["tasks"].items()
             if got.get("stuck")]
    if stuck:
        print(f"! gives every row one answer, and counts as it is: {', '.join(stuck)}")
    if other:
        print(f"! left out, made with other flags: {', '.join(f'{arm} seed {seed}' for arm, seed in other)}")
    if len({cell["commit"] for cell in used}) > 1:
        print("! values of several commits: where a setting changed between them, delete the values folder, and `make "
              "claims` looks at every finished stage again")
    commit, hardware = ["/".join(sorted({str(cell[key]) for cell in used})) for key in ("commit", "hardware")]
    hours = sum(sum(cell["seconds"].values()) for cell in used) / 3600
    print(f"\n{len(used)} cells, {hours:.1f} hours of training, {used[0]['threads']} thread each; commit {commit}; "
          f"{hardware}")
    if not names or (args.values and not args.out):   # no claim, or values of others: what was judged before stays
        return
    if not args.values:
        kept = [cell for (arm, seed), cell in cells.items() if seed in seeds and arm not in GRID]
        kept += [{**cell, "tasks": {task: {"dev": got["dev"]} for task, got in cell["tasks"].items()}, "probe": {},
                  "retrieval": {}} for (arm, _), cell in cells.items() if arm in GRID]   # what chose the ratios
        data.write_text(Path(args.runs) / "values.jsonl", "".join(json.dumps(cell) + "\n" for cell in kept))
    out = Path(args.out or Path(args.runs) / "claims.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    # JSON has no nan: an interval of one seed has no ends
    written = json.dumps({"commit": commit, "hardware": hardware, "seeds": seeds, "arms": rows, **judged})
    data.write_json(out, json.loads(written, parse_constant=lambda _: None))


# --------------------------------------------------------------------------------------------------
# Report
#
# One HTML file that needs nothing else. `tag` escapes all text that is not Raw.

REPORT_BYTES = 8_000_000
CLIP_BYTES = 6_000_000   # of all clips in base64
CLIP_SECONDS = 4
COLOURS = "#1f82c8", "#d2601a", "#16916a", "#c0569a", "#7c6fd6", "#967a14"   # on light and dark
DASHES = "none", "7 3", "2 3", "9 3 2 3"   # lines differ without colours, too
EXPLAIN = {   # section -> what to look for
    "mini": "A mini world holds knowledge that only video carries: it shows whether the mechanism "
    "transfers it, not whether HowTo100M improves GLUE. ",
    "head": "Hollow dots: fine-tuning seeds. Full: their mean. Bar: its 95 % interval, of one "
    "pretrained model; another world may differ. Dashed: chance. Every number comes from the files "
    "of these runs; sections are the paper's (arXiv 2107.02681). ",
    "clips": "A text should bring clips that show what it speaks of, the true one (green frame) "
    "first. Teachers align text and video (section 3.2); a student never saw a frame: what it "
    "finds came through distillation (section 3.3).",
    "results": "Mean ± standard deviation over seeds, x 100. The student should lead where only "
    "film holds the answer (grounded), lose nothing where language decides (ungrounded) and stand "
    "at chance on nouns that no clip shows (unfilmed). !: a seed that gives every row one answer; "
    "*: a smoke run on half a dev file.",
    "probes": "What a word's vector tells of the thing, by a linear map that never saw these "
    "nouns. Teacher and student should be far above chance on test nouns, the text-only student at "
    "chance; on unfilmed nouns all (there are 32: most within 18 points).",
    "curves": "Circles are held-out values (r1, median rank: of the own clip in a batch). Losses "
    "should fall and flatten; circles that rise away from their line: a run learns its data by "
    "heart. Teachers read captions, students plain text.",
    "claims": "Differences of two arms in points, a hollow dot a world. Better holds where the bar "
    "is right of 0, fails where it ends below 2; not worse: right of -2, below 0; no better: ends "
    "below 2, starts above 0; no effect: contains 0 with a mean within 4, does not contain 0. A "
    "claim holds if its parts do, also after Holm's correction; controls and hinge rows are not "
    "corrected. A mini world shows mechanisms; magnitudes need the paper's scale.",
    "arms": "Mean ± standard deviation over worlds; accuracy in %, probes on test nouns, R@1 of "
    "text to video, MLM in nats on held-out text (teachers: captions).",
    "forgetting": "Two-stage pretraining learns from video, then reads text: the longer it reads, "
    "the more it should forget. The student has its teacher at every step. A circle a world.",
    "runs": "Two runs compare fairly where only what is under test differs: shaded.",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>VidLanKD: what these runs learnt</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark;
  --paper: light-dark(#fff, #161616); --ink: light-dark(#1c1c1c, #ececec);
  --soft: light-dark(#595959, #adadad); --line: light-dark(#dcdcdc, #3c3c3c);
  --box: light-dark(#f1f1ee, #262626); --link: light-dark(#0b57a4, #8ec5ff) }
* { box-sizing: border-box }
body { margin: 0; padding: 0 clamp(16px, 3vw, 64px) 32px; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
h1 { font-size: clamp(1.4rem, 2.4vw, 2.4rem); line-height: 1.25; margin: 24px 0 16px }
h2 { margin: 40px 0 8px; padding-top: 16px; border-top: 1px solid var(--line) }
h3 { margin: 0; font-size: 1rem }
p { max-width: 90ch; margin: 8px 0 16px }
a { color: var(--link) }
ul { padding: 0; margin: 4px 0; list-style: none }
:focus-visible { outline: 3px solid var(--link) }
.skip:not(:focus) { position: absolute; left: -999px }
nav a { display: inline-block; padding: 4px 0 }
nav li, .key li { display: inline-block; margin-right: 20px }
button { font: inherit; padding: 8px 16px; position: sticky; top: 8px; z-index: 1 }
.wide { overflow-x: auto; margin: 16px 0 }
table { border-collapse: collapse; width: 100%; font-size: .92rem }
td, th { padding: 5px 16px 5px 0; text-align: left; vertical-align: top; overflow-wrap: break-word;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums }
tbody th { position: sticky; left: 0; background: var(--paper); max-width: 40vw }
tr.differs > * { background: var(--box) }
.plots, .rowed, .texts, .clips { display: grid; gap: 32px; margin: 16px 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)) }
.rowed { grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)) }
.texts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 520px), 1fr)) }
.clips { grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 12px }
figure { margin: 0; min-width: 0; container-type: inline-size }
figcaption { font-size: .88rem; line-height: 1.35; padding: 4px 0; color: var(--soft) }
b { display: block; color: var(--ink) }
svg { width: 100% }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
.key { font-size: .85rem }
.key svg { width: 28px; height: 10px; margin-right: 6px }
.rows li { display: grid; grid-template-columns: 1fr 2fr 1fr; column-gap: 16px; font-size: .92rem;
  align-items: center; line-height: 1.35; font-variant-numeric: tabular-nums }
.rows .head { display: block; padding: 8px 0 2px; font-weight: 600 }
.rows svg { height: 24px; overflow: visible }
@container (max-width: 660px) {
  .rows li { grid-template-columns: 1fr fit-content(45%); padding-top: 4px }
  .rows svg { grid-row: 2; grid-column: 1 / 3; overflow: hidden }
  .rows span { text-align: right }
  .rows span:first-child { text-align: left } }
video { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--box);
  border-radius: 4px }
.true video { outline: 3px solid #16916a }
@media (min-width: 1000px) {
  header { display: grid; grid-template-columns: 1fr 1fr; column-gap: 56px }
  header .rowed { margin: 24px 0; grid-column: 2; grid-row: 1 / 3 } }
</style>
</head>
<body>BODY<script>
const button = document.getElementById("play");
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
const seen = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries)
    if (isIntersecting && playing) target.play().catch(() => {});
    else target.pause();
});
function watch() {
  seen.disconnect();
  for (const clip of document.querySelectorAll("video")) seen.observe(clip);
  button.textContent = playing ? "Pause all clips" : "Play clips in view";
}
if (button) {
  button.onclick = () => { playing = !playing; watch(); };
  watch();
}
</script></body></html>
"""


class Raw(str):
    """HTML that is escaped already."""


def tag(name, *content, **attributes):
    """<name attribute="...">content</name>; class_ is class, aria_label is aria-label."""
    given = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        given += f' {key}="{html.escape(str(value))}"'
    inside = ""
    for piece in content:
        inside += piece if isinstance(piece, Raw) else html.escape(str(piece))
    return Raw(f"<{name}{given}>{inside}</{name}>")


def html_table(label, header, rows, shade=False):
    """A table in a box that scrolls by itself; "" of no rows. A row's first cell names it; shade:
    rows whose other cells differ."""
    if not rows:
        return ""
    body = []
    for first, *others in rows:
        differs = shade and any(cell != others[0] for cell in others)
        cells = [tag("td", str(cell).replace(" ± ", "\u00a0±\u00a0")) for cell in others]
        name = tag("th", first, scope="row")
        body.append(tag("tr", name, *cells, class_="differs" if differs else ""))
    head = tag("tr", *[tag("th", cell, scope="col") for cell in header])
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="wide", tabindex=0, role="group", aria_label=label)


def axis(values):
    """Ends of an axis for these values, with some room, and about five round numbers on it."""
    room = 0.05 * (max(values) - min(values)) or 1.0
    low = min(values) - room
    high = max(values) + room
    steps = 10.0 ** math.floor(math.log10(high - low)) * np.array([0.2, 0.5, 1, 2])
    step = steps[(high - low) / steps <= 6].min()
    ticks = step * np.arange(math.ceil(low / step), math.floor(high / step) + 1)
    return (low, high), ticks.round(9)


def line_plot(title, series, unit="step"):
    """A figure of lines. series: [(name, colour, [(x, y)], hollow)]; hollow: circles only."""
    every = np.concatenate([points for _, _, points, _ in series])   # [N, 2]
    x_ends, x_ticks = axis(every[:, 0])
    y_ends, y_ticks = axis(every[:, 1])
    shapes = []
    key = {}
    words = []
    for x, place in zip(x_ticks, np.interp(x_ticks, x_ends, (44, 354)).round(1)):
        shapes.append(tag("text", f"{x:g}", x=place, y=197, text_anchor="middle"))
    for y, place in zip(y_ticks, np.interp(y_ticks, y_ends, (180, 6)).round(1)):
        shapes.append(tag("line", x1=44, x2=354, y1=place, y2=place, stroke="var(--line)"))
        shapes.append(tag("text", f"{y:g}", x=38, y=place + 4, text_anchor="end"))
    shapes.append(tag("text", unit, x=199, y=213, text_anchor="middle"))
    for name, colour, points, hollow in series:
        paint = {"stroke": COLOURS[colour % 6], "stroke_width": 2, "fill": "none"}
        dashed = {**paint, "stroke_dasharray": DASHES[colour % 4]}
        points = np.array(sorted(points))
        words.append(f"{name}: {points[0, 1]:.4g} at {points[0, 0]:g}, "
                     f"{points[-1, 1]:.4g} at {points[-1, 0]:g}")
        points = points[::-(len(points) // 200 + 1)]   # a long log is thinned, from its end
        xs = np.interp(points[:, 0], x_ends, (44, 354)).round(1)
        ys = np.interp(points[:, 1], y_ends, (180, 6)).round(1)
        if hollow:
            shapes += [tag("circle", cx=x, cy=y, r=3, **paint) for x, y in zip(xs, ys)]
        else:
            path = " ".join(f"{x},{y}" for x, y in zip(xs, ys))
            shapes.append(tag("polyline", points=path, **dashed))
        swatch = tag("svg", tag("line", x1=0, x2=28, y1=5, y2=5, **dashed))
        key.setdefault(name, tag("li", swatch, name))
    picture = tag("svg", tag("title", "; ".join(words)), *shapes, role="img",
                  viewBox="0 0 360 218")
    key = tag("ul", *key.values(), class_="key")
    return tag("figure", tag("figcaption", tag("b", title)), picture, key)


def interval_plots(figures, unit):
    """Figures of values on one axis. figures: [(title, rows)]; a row: (name, text, values, colour,
    reference or nan), or (heading,). Hollow: the values; full: their mean with its 95 % interval;
    dashed: the reference."""
    numbers = []
    for _, rows in figures:
        for row in rows:
            if len(row) > 1:
                numbers += [*row[2], *t_interval(row[2]), row[4]]
    ends, ticks = axis([number for number in numbers if not math.isnan(number)])

    def at(x):
        return f"{np.interp(x, ends, (2, 98)):.1f}%"

    def upright(x, **paint):
        return tag("line", x1=at(x), x2=at(x), y1=-5, y2=29, **paint)

    def picture(values, colour, reference):
        mean, low, high = t_interval(values)
        words = f"mean {mean:.1f}"
        shapes = [upright(x, stroke="var(--line)") for x in ticks]
        if not math.isnan(reference):
            shapes.append(upright(reference, stroke="var(--soft)", stroke_dasharray="3 3"))
        if len(values) > 1:
            paint = {"stroke": COLOURS[colour % 6], "stroke_width": 2, "fill": "var(--paper)"}
            words += f", interval {low:.1f} to {high:.1f}"
            shapes.append(tag("line", x1=at(low), x2=at(high), y1=12, y2=12, **paint))
            shapes += [tag("circle", cx=at(value), cy=12, r=3, **paint) for value in values]
        if values:
            shapes.append(tag("circle", cx=at(mean), cy=12, r=5, fill=COLOURS[colour % 6]))
        return tag("svg", tag("title", words), *shapes, role="img")

    labels = [tag("text", f"{x:g}", x=at(x), y=14, text_anchor="middle") for x in ticks]
    scale = tag("li", tag("span"), tag("svg", *labels, aria_hidden="true"), tag("span", unit))
    drawn = []
    for title, rows in figures:
        items = []
        for name, *row in rows:
            if row:
                text, values, colour, reference = row
                shown = picture(values, colour, reference)
                items.append(tag("li", tag("span", name), shown, tag("span", text)))
            else:
                items.append(tag("li", name, class_="head"))
        caption = tag("figcaption", tag("b", title))
        drawn.append(tag("figure", caption, tag("ul", *items, scale, class_="rows")))
    return tag("div", *drawn, class_="rowed")


def union(rows):
    """All keys of these dicts or lists, in the order in which they first appear."""
    keys = {}
    for row in rows:
        keys.update(dict.fromkeys(row))
    return list(keys)


def defined(entries, field="value"):
    """The numbers of a cell's entries that are defined."""
    return [entry[field] for entry in entries if entry[field] is not None]


def main_keys(cells):
    """The cells that the result counts: grounded of mini tasks, else each task's own score."""
    keys = [key for key in table_keys([cells])
            if defined(cells[key]) and not key[0].startswith("diagnostics")]
    grounded = [key for key in keys if key[1] == "grounded"]
    return grounded or [key for key in keys if key[1] in ("dev", "test")]


def mean_over(cells, keys, field="value"):
    """Mean over tasks of the mean over seeds."""
    means = [statistics.fmean(defined(cells[key], field)) for key in keys]
    return statistics.fmean(means)


def role_of(facts):
    """"student" (distilled), "text-only" or "other", by a run's args.json."""
    given = facts.get("arguments", {})
    if given.get("objective"):
        return "student"
    return "text-only" if given.get("objective") == [] and not given.get("init") else "other"


def result_sentence(names, facts, cells):
    """The result of these runs in one sentence. names, facts (args.json) and cells: one a run.

    Of mini tasks: what share of the grounded questions the first student and the first text-only
    one got right. Of real tasks: their mean difference. Without both: the score of one run."""
    first = {}   # role -> (name, cells)
    for name, about, row in zip(names, facts, cells):
        if main_keys(row):
            first.setdefault(role_of(about), (name, row))
    if not first:
        return "Nothing is fine-tuned yet: `python finetune.py --model RUN` does it."
    name, row = first.get("student") or next(iter(first.values()))
    _, plain = first.get("text-only", ("", {}))
    shared = [key for key in main_keys(row) if key in main_keys(plain) and "student" in first]
    keys = shared or main_keys(row)
    score = mean_over(row, keys)
    if keys[0][1] == "grounded":
        who = "the student that never saw a frame" if "student" in first else name
        sentence = f"Of the questions that only film answers, {who} got {score:.1f} % right"
        if shared:
            sentence += f", the text-only student {mean_over(plain, shared):.1f} %"
        return f"{sentence}; chance is {mean_over(row, keys, 'chance'):.3g}."
    if shared:
        lead = score - mean_over(plain, shared)
        side = "above" if lead > 0 else "below"
        return (f"Over {len(keys)} tasks the distilled student scores {abs(lead):.1f} points "
                f"{side} the text-only one on average.")
    return f"Over {len(keys)} tasks {name} scores {score:.1f} on average."


def opening_plot(names, cells):
    """The picture beside the result sentence: the scores that it counts, of every run."""
    rows = []
    keys = union([main_keys(row) for row in cells])
    for key in keys:
        rows.append((f"{key[0]}, chance {key_chance(cells, key)}",))
        for colour, (name, row) in enumerate(zip(names, cells)):
            entries = row.get(key, [])
            chance = statistics.fmean(defined(entries, "chance") or [math.nan])
            rows.append((name, show_cell(entries), defined(entries), colour, chance))
    grounded = any(key[1] == "grounded" for key in keys)
    title = "Questions that only film answers" if grounded else "Scores"
    return interval_plots([(title, rows)], "x 100") if rows else ""


def report_results(names, cells):
    """The cells of `table`: runs as columns, tasks and parts as rows."""
    rows = []
    for key in table_keys(cells):
        shown = [show_cell(row.get(key)) for row in cells]
        rows.append([" ".join(key), key_chance(cells, key), *shown])
    return html_table("Scores", ["task", "chance", *names], rows)


def report_probes(names, probed):
    """probe.json of the runs: a figure for nouns seen in clips, one for those never filmed."""
    figures = []
    for nouns in ("test", "unfilmed"):
        rows = []
        for name in union(probed.values()):
            chance = 100 / len(data.PROPERTIES[name][1])
            rows.append((f"{name}, chance {chance:g}",))
            for run, row in probed.items():
                value = 100 * row[name][nouns]
                rows.append((run, f"{value:.1f}", [value], names.index(run), chance))
        figures.append((f"{nouns} nouns", rows))
    return interval_plots(figures, "% right") if probed else ""


def report_curves(runs, names):
    """A plot a logged quantity of pretraining, then of each task's fine-tuning."""
    plots = {}   # title -> series
    for colour, (run, name) in enumerate(zip(runs, names)):
        for folder in [run, *sorted(run.glob("finetune/*/seed-*"))]:
            task = "" if folder == run else f"{folder.parent.name} "
            curves = {}
            for line in read_log(folder):
                for key, value in line.items():
                    if type(value) in (int, float) and math.isfinite(value):   # no bool
                        curves.setdefault(key, {})[line.get("step", 0)] = value
            for key in curves.keys() - {"step", "seconds", "lr", "valid_pool"}:
                title = task + key.removeprefix("valid_").replace("_", " ")
                points = list(curves[key].items())
                plots.setdefault(title, []).append((name, colour, points, "valid_" in key))
    titles = sorted(plots, key=str.swapcase)   # tasks, in capitals, go last
    figures = [line_plot(title, plots[title]) for title in titles]
    return tag("div", *figures, class_="plots") if figures else ""


def report_claims(claims):
    """A figure a claim: its parts' differences over worlds, and the verdicts."""
    figures = []
    for claim in claims.get("claims", []):
        verdict = said_of(claim)
        if claim["holm"] is not None and "Holm" not in verdict:
            verdict += f" (p {claim['holm']:.2g} after Holm's correction)"
        rows = [(verdict,)]
        for part in claim["parts"]:
            text = "not run"
            if part["values"]:
                text = f"{part['mean']:+.1f}{span((part['low'], part['high']))} {part['verdict']}"
            colour = {"holds": 2, "fails": 1}.get(part["verdict"], 0)
            rows.append((f"{part['name']} ({part['kind']})", text, part["values"], colour, 0))
        kind = "; ".join(filter(None, (claim["kind"], claim["note"])))
        figures.append((f"{claim['number']}. {claim['text']} ({kind})", rows))
    if not figures:
        return ""
    worlds = ", ".join(map(str, claims["seeds"]))
    source = f"Worlds {worlds}; commit {claims['commit']}; {claims['hardware']}."
    return tag("div", interval_plots(figures, "points"), tag("p", source))


def report_arms(arms):
    """Every arm of claims.json: tasks, probes, retrieval, over worlds."""
    columns = union(arms.values())
    rows = []
    for arm, row in arms.items():
        shown = [show_values([value / 100 for value in row.get(column, [])]) for column in columns]
        rows.append([arm, max(map(len, row.values())), *shown])
    return html_table("Every arm", ["arm", "worlds", *columns], rows)


def report_forgetting(curve):
    """Two-stage pretraining against distillation over the length of the text stage."""
    series = []
    for colour, name in enumerate(sorted(curve.keys() - {"steps"})):
        means = []
        every = []
        for steps, worlds in zip(curve["steps"], curve[name]):
            every += [(steps, value) for value in worlds]
            if worlds:
                means.append((steps, np.mean(worlds)))
        series += [(name, colour, means, False), (name, colour, every, True)]
    if not series:
        return ""
    plot = line_plot("Grounded questions, x 100", series, "steps of the text stage")
    return tag("div", plot, class_="plots")


def film_folder(folder, given=None):
    """Where a data folder's films lie: as given, else as its splits.json says, else in videos/."""
    splits = Path(folder) / "splits.json"
    if not given and splits.exists():
        given = data.read_json(splits, "python data.py captions").get("videos")
    return Path(given or Path(folder) / "videos")


@functools.cache
def clip_uri(path, start, end):
    """Seconds start..end of a film, at most CLIP_SECONDS, as a data: URI of a small MP4: H.264, 10
    frames a second, the short side 112 pixels. Raises data.VideoError."""
    pictures = data.clip_pictures(path, start, min(end, start + CLIP_SECONDS), 10, 112)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "30"})
        stream.pix_fmt = "yuv420p"
        stream.height = pictures[0].shape[0] // 2 * 2   # yuv420p halves the colours' sides
        stream.width = pictures[0].shape[1] // 2 * 2
        for picture in pictures:
            picture = np.ascontiguousarray(picture[:stream.height, :stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode()


def show_clip(row, labels, folder):
    """A figure of one clip; where there is no film, the reason stands in its place."""
    place = f"{row['video']}, {row['start']:g} to {row['end']:g} s"
    words = f"{row['noun']}: {', '.join(row['shown'].values())}" if "shown" in row else place
    try:
        film = data.film_files(folder).get(row["video"])
        if film is None:
            raise data.VideoError(f"no film {row['video']} in {folder} (--videos names a folder)")
        clip = tag("video", src=clip_uri(film, row["start"], row["end"]), muted="", loop="",
                   playsinline="", controls="", preload="metadata",
                   aria_label=f"{', '.join(labels)}: {place}")
    except (data.VideoError, model.UserError) as error:
        clip = tag("p", error)
    caption = tag("figcaption", *[tag("b", label) for label in labels], words)
    return tag("figure", clip, caption, class_="true" if "true clip" in labels else "")


def show_text(text, answers, folder):
    """One text with its true clip and each run's best three. answers: {run: its example}."""
    clips = {}   # (video, start, end) -> (row, its labels): a clip is shown once
    ranks = []
    for name, example in answers.items():
        ranks.append(f"{name} ranks the true clip {example['rank']}")
        places = [("true clip", example["own"])]
        places += zip((f"{name}: 1st", f"{name}: 2nd", f"{name}: 3rd"), example["top"])
        for label, row in places:
            key = (row["video"], row["start"], row["end"])
            _, labels = clips.setdefault(key, (row, []))
            if label not in labels:
                labels.append(label)
    figures = [show_clip(row, labels, folder) for row, labels in clips.values()]
    return tag("article", tag("h3", "“", text, "”"), tag("p", "; ".join(ranks), "."),
               tag("div", *figures, class_="clips"))


def report_clips(searched, count, videos=None):
    """`count` texts with their clips, then retrieval's numbers. searched: {run: retrieval.json}."""
    texts = {}   # runs that searched the same pool share a text
    for name, search in searched.items():
        for example in search.get("examples", []):
            key = (search["data"], example["index"], example["own"]["text"])
            texts.setdefault(key, {})[name] = example
    articles = []
    for (folder, _, text), answers in list(texts.items())[:count]:
        articles.append(show_text(text, answers, film_folder(folder, videos)))
        if sum(map(len, articles)) > CLIP_BYTES:
            articles.pop()
            break
    rows = []
    for key in union(searched.values()):
        row = [key]
        for search in searched.values():
            value = search.get(key, "-")
            share = isinstance(value, float) and key != "median rank"
            row.append(f"{100 * value:.1f} %" if share else value)
        if key not in ("examples", "ranks", "data", "pool"):
            rows.append(row)
    if not rows:
        return ""
    drawn = f"{len(articles)} of {len(texts)} texts, drawn before any score was seen:"
    button = tag("button", "Pause all clips", id="play", type="button")
    return tag("div", tag("p", drawn), button, tag("div", *articles, class_="texts"),
               html_table("Text to film", ["text to film", *searched], rows))


def report_runs(runs, names, facts):
    """What was run: steps, seconds, versions and flags, a column a run."""
    columns = []
    for run, about in zip(runs, facts):
        column = {"steps done": max([line.get("step", 0) for line in read_log(run)], default=0)}
        for stage, seconds in seconds_by_stage(run).items():
            column[f"{stage}, seconds"] = round(seconds)
        column |= {**about.get("arguments", {}), **about}   # precision as it was settled
        columns.append(column)
    rows = []
    for key in union(columns):
        if key not in ("arguments", "inputs"):
            values = [column.get(key) for column in columns]
            rows.append([key, *["-" if value in (None, []) else value for value in values]])
    return html_table("Runs", ["", *names], rows, shade=True)


def read_each(file, names, runs):
    """{name: what the run's file holds} of the runs that have it."""
    return {name: data.read_json(run / file, "python evaluate.py")
            for name, run in zip(names, runs) if (run / file).exists()}


def report(args):
    """`report`: writes one HTML file from what the run folders hold; no model is loaded. Names what
    is missing with the command that makes it; the last line is the result."""
    given = [Path(run) for run in args.runs or sorted(Path("runs").glob("*"))]
    runs = [run for run in given if (run / "args.json").exists() or (run / "finetune").exists()]
    absent = [str(run) for run in given if not run.exists()]
    if absent or not runs:
        raise model.UserError(f"no run in {', '.join(absent) or 'runs/'}; `make` makes some")
    beside = runs[0].resolve().parent
    names = names_of(runs, args.names)
    facts = [run_facts(run) for run in runs]
    cells = [cells_of(read_results(run)) for run in runs]
    searched = read_each("retrieval.json", names, runs)
    probed = read_each("probe.json", names, runs)
    judged = [beside / "claims.json", *sorted(beside.glob("*/claims.json"))]
    judged = [args.claims] if args.claims else [path for path in judged if path.exists()]
    claims = data.read_json(judged[0], "make claims") if judged else {}

    pools = union([[search.get("pool", "held-out clips")] for search in searched.values()])
    every = " ".join(map(str, runs))
    sections = [   # name, heading, the command that makes it, content
        ("clips", "Clips found by text, among " + " and ".join(pools),
         f"python evaluate.py retrieve {every}", report_clips(searched, args.texts, args.videos)),
        ("results", "Results", f"python finetune.py --model {every}", report_results(names, cells)),
        ("probes", "Probes", f"python evaluate.py probe {every}", report_probes(names, probed)),
        ("curves", "Curves", "make", report_curves(runs, names)),
        ("claims", "Claims", "make claims", report_claims(claims)),
        ("arms", "Arms of the claims", "make claims", report_arms(claims.get("arms", {}))),
        ("forgetting", "Forgetting", "make claims", report_forgetting(claims.get("curve", {}))),
        ("runs", "What was run", "", report_runs(runs, names, facts)),
    ]
    links = []
    shown = []
    missing = []
    for name, heading, command, content in sections:
        if content:
            links.append(tag("li", tag("a", heading.partition(",")[0], href=f"#{name}")))
            content = [tag("h2", heading), tag("p", EXPLAIN[name]), content]
            shown.append(tag("section", *content, id=name))
        else:
            missing.append(f"No {name}: `{command}` makes them. ")
    sentence = result_sentence(names, facts, cells)
    mini = any(run.get("arguments", {}).get("size") == "mini" for run in facts)
    head = tag("div", tag("p", EXPLAIN["mini"] if mini else "", EXPLAIN["head"], *missing),
               tag("nav", tag("ul", *links), aria_label="Sections"))
    title = tag("h1", sentence.replace(" %", "\u00a0%"))
    page = tag("a", "Skip to the clips", href="#main", class_="skip")
    page += tag("header", title, opening_plot(names, cells), head)
    page = PAGE.replace("BODY", page + tag("main", *shown, id="main"))
    size = len(page.encode()) / 1e6
    if size >= REPORT_BYTES / 1e6:
        raise model.UserError(f"the report would have {size:.1f} MB: give it fewer runs, or "
                              f"--texts below {args.texts}")
    out = Path(args.out or beside / "report.html")
    data.write_text(out, page)
    print(f"{out}: {size:.2f} MB, {page.count('<video')} clips", *missing, sentence, sep="\n")


# ---------------------------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function, text in (("table", table, "a row a run, a column a task"),
                                 ("diagnostics", show_diagnostics, "GLUE-diagnostics of MNLI's model, by category"),
                                 ("tracie", show_tracie, "TRACIE's four scores")):
        command = commands.add_parser(name, help=text)
        command.add_argument("runs", nargs="+", help="run folders, in the order of the rows")
        command.add_argument("--width", type=int, help="characters a line (default: the terminal's)")
        if name == "table":
            command.add_argument("--names", nargs="+", help="row names (default: the folders')")
            command.add_argument("--csv", help="also write every seed's value here")
            command.add_argument("--json", help="also write the cells here")
        command.set_defaults(function=function)
    for name, function, text in (("retrieve", show_retrieval, "text-to-video retrieval on held-out clips"),
                                 ("probe", show_probes, "linear probes of the mini world's properties")):
        command = commands.add_parser(name, help=text)
        command.add_argument("runs", nargs="+", help="run folders")
        command.add_argument("--data", default="data/mini", help="the data folder")
        if name == "retrieve":
            command.add_argument("--bank", help="a clip bank of `data.py bank` (default: the data folder's own pool)")
        command.set_defaults(function=function)
    reports = commands.add_parser("report", help="one HTML file with everything the run folders hold, clips included")
    reports.add_argument("runs", nargs="*", help="run folders (default: those in runs/)")
    reports.add_argument("--names", nargs="+", help="their names (default: the folders')")
    reports.add_argument("--out", help="the file (default: report.html beside the first run)")
    reports.add_argument("--texts", type=int, default=12, help="texts whose clips are shown (at most 12)")
    reports.add_argument("--videos", help="the folder of videos (default: videos in the data folder retrieve used)")
    reports.add_argument("--claims", help="what `claims` wrote (default: claims.json beside the runs)")
    reports.set_defaults(function=report)
    judges = commands.add_parser("claims", help="the paper's comparisons over seeds, from value files; or a plan")
    judges.add_argument("--runs", default="runs/claims", help="folder of world-SEED/ARM runs and values/")
    judges.add_argument("--seeds", nargs="+", type=int, help="worlds (default: of those there, 1 to 99)")
    judges.add_argument("--claims", nargs="+", help=f"of: {', '.join(CLAIMS)}, weights, more (default: all claims)")
    judges.add_argument("--values", help="judge this folder or JSON-lines file instead; writes nothing but --out")
    judges.add_argument("--out", help="the JSON file (default: RUNS/claims.json)")
    judges.add_argument("--markdown", action="store_true", help="print the claims as the README has them, and stop")
    judges.add_argument("--width", type=int, help="characters a line (default: the terminal's)")
    judges.add_argument("--plan", help="write the makefile of what is still to run here, and stop")
    judges.add_argument("--python", default=sys.executable, help="the interpreter of a plan's commands")
    judges.set_defaults(function=claims)
    gathers = commands.add_parser("cell", help="gather the value file of one arm in one world; part of `make claims`")
    gathers.add_argument("arm")
    gathers.add_argument("--seed", type=int, required=True)
    gathers.add_argument("--runs", default="runs/claims")
    gathers.set_defaults(function=make_cell)
    squads = commands.add_parser("squad", help="exact and F1 of answers, as SQuAD's official script counts")
    squads.add_argument("dataset", help="the data set's JSON")
    squads.add_argument("predictions", help="JSON, id -> text")
    squads.add_argument("--na-prob", help="JSON, id -> probability or odds of no answer: adds best_exact, best_f1")
    squads.set_defaults(function=show_squad)
    args = parser.parse_args(argv)
    try:
        args.function(args)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"evaluate.py {args.command}: {error}")


if __name__ == "__main__":
    main()
