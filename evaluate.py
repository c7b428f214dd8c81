"""Metrics, tables over seeds, paired comparisons over worlds. Trains nothing by gradient, imports no stage.

    python evaluate.py table runs/text-only runs/student runs/teacher             # one row a run, one column a task
    python evaluate.py table runs/student --json student.json --csv student.csv   # the cells with every seed's value
    python evaluate.py compare --worlds runs/world-* --a student --b text-only    # a - b, 95 % interval, verdicts
    python evaluate.py probe runs/text-only runs/student runs/teacher             # what a noun's hidden state tells
    python evaluate.py retrieve runs/teacher                                      # text -> video on held-out clips
    python evaluate.py squad dev-v2.0.json predictions.json --na-prob null_odds.json    # as the official script, JSON
    python evaluate.py diagnostics runs/student                                   # MNLI's model, by category
    python evaluate.py tracie runs/student                                        # total, start, end, whole stories

Tables read only what finetune.py left in RUN/finetune/TASK/seed-N/metrics.json, and the seconds in RUN/log.jsonl.
Sections: metrics; SQuAD; files of a run; intervals and verdicts; table; diagnostics and TRACIE; compare; retrieval; probes.
Printed numbers are x 100.
"""
import argparse
import csv
import json
import math
import re
import shutil
import statistics
import string
import sys
import warnings
from collections import Counter
from pathlib import Path

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
    labels, predictions = np.asarray(labels, np.float64), np.asarray(predictions, np.float64)   # fp32 scores lose digits
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # scipy warns of nearly constant input; its value is still the definition's
        return float(scipy.stats.pearsonr(labels, predictions)[0])


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

    meta: one dict a row with part, group, property. Returns {part: {"accuracy", "n", "chance"}, ...,
    "grounded_by_property": {property: {"accuracy", "n", "chance"}}}; parts without rows are absent.
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
    """Share of answers that equal one of their golds. golds: a list of texts a question; nan of nothing."""
    return float(np.mean([answer_scores(*both)[0] for both in zip(golds, answers)])) if len(golds) else math.nan


def squad_f1(golds, answers):
    """Mean F1 of answers. golds: a list of texts a question; nan of nothing."""
    return float(np.mean([answer_scores(*both)[1] for both in zip(golds, answers)])) if len(golds) else math.nan


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


def run_name(run):
    """A run's row name: "name" in its args.json if there is one, else the folder's name."""
    path = Path(run) / "args.json"
    named = data.read_json(path, "the stage").get("name") if path.exists() else None
    return named or Path(run).resolve().name


def seconds_by_stage(run):
    """Seconds spent on a run -> {"pretraining": s, "fine-tuning": s}; a stage that left no time is absent.

    log.jsonl counts from 0 again after each restart, so the last value before every such fall is added up.
    """
    out, log = {}, Path(run) / "log.jsonl"
    if log.exists():
        lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
        clock = [line["seconds"] for line in lines if "seconds" in line]
        if clock:
            out["pretraining"] = sum(now for now, later in zip(clock, clock[1:] + [-1]) if later < now)
    spent = [metrics["seconds"] for seeds in read_results(run).values() for metrics in seeds]
    return out | ({"fine-tuning": sum(spent)} if spent else {})


# ---------------------------------------------------------------------------------------------------------------------
# Intervals and verdicts. Everything here is in points (x 100).


def t_interval(values, confidence=0.95):
    """Student's t interval of the mean of independent values. Returns (mean, low, high); low and high are nan for
    fewer than two values, which say nothing about their spread."""
    values = [float(value) for value in values]
    if not values:
        return math.nan, math.nan, math.nan
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def superior(low, high):
    """Verdict on "better": holds where the whole interval is above 0, fails where it is below 2 points."""
    return "holds" if low > 0 else "fails" if high < 2 else "not decided"


def not_worse(low, high):
    """Verdict on "not worse": holds where the whole interval is above -2 points, fails where it is below 0."""
    return "holds" if low > -2 else "fails" if high < 0 else "not decided"


def at_chance(mean, low, high):
    """True where an interval of (value - chance) contains 0 and its mean is within 4 points of it.

    The second condition keeps a wide interval from passing as evidence. False for an interval of nan.
    """
    return low <= 0 <= high and abs(mean) <= 4


# ---------------------------------------------------------------------------------------------------------------------
# Table


def cells_of(results):
    """One run's results -> {(task, column): [{"seed", "value", "chance", "stuck", "split_dev"}, ...]}, values x 100.

    Mini tasks (their metrics have parts) give a column a part of the test split; real ones the dev split, a second
    dev split where there is one, and the test split only where it has labels and there is no dev split.
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
            for column, (value, chance) in found.items():
                cells.setdefault((task, column), []).append(
                    {"seed": metrics["seed"], "value": points(value), "chance": points(chance),
                     "stuck": metrics["majority"], "split_dev": metrics.get("split_dev", False)})
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


def print_columns(names, columns, width):
    """Prints rows under columns [(heading, [cell a row])], as many columns side by side as fit into `width`."""
    first = max(map(len, names))
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


def table(args):
    """`evaluate.py table`: chance and one row a run, from the metrics.json files that exist."""
    names = args.names or [run_name(run) for run in args.runs]
    if len(names) != len(args.runs):
        raise ValueError(f"--names gives {len(names)} names for {len(args.runs)} runs")
    missing = [run for run in args.runs if not Path(run).is_dir()]
    if missing:
        raise FileNotFoundError(f"no run folder {', '.join(missing)}; `python finetune.py --model RUN` fills one")
    rows = [cells_of(read_results(run)) for run in args.runs]
    keys = [(task, column) for task in METRICS for column in PARTS + ("dev", "dev-mismatched", "test")
            if any((task, column) in cells for cells in rows)]
    if not keys:
        raise FileNotFoundError(f"no finetune/TASK/seed-N/metrics.json under {', '.join(args.runs)}; "
                                f"`python finetune.py --model {args.runs[0]}` makes them")

    columns = []
    for key in keys:
        chances = {entry["chance"] for cells in rows for entry in cells.get(key, [])}
        shown = sorted({f"{chance:.1f}" for chance in chances if chance is not None})
        columns.append((" ".join(key), ["/".join(shown) or "-"] + [show_cell(cells.get(key)) for cells in rows]))
    print("x 100; mean ± standard deviation over seeds\n")
    print_columns(["chance", *names], columns, args.width or shutil.get_terminal_size((120, 24)).columns)
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
    found = [(run_name(run), task, chosen) for run in runs for task, seeds in read_results(run).items()
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
    print_columns(names, columns, args.width or shutil.get_terminal_size((120, 24)).columns)
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
                  args.width or shutil.get_terminal_size((120, 24)).columns)


# ---------------------------------------------------------------------------------------------------------------------
# Compare


def world_parts(run):
    """One run of one world -> {(task, part): (accuracy, chance)} of the test split, x 100, mean over its seeds."""
    out = {}
    for (task, part), entries in cells_of(read_results(run)).items():
        if part in PARTS:
            out[task, part] = tuple(statistics.fmean(entry[key] for entry in entries) for key in ("value", "chance"))
    return out


def compare_values(a, b, chance):
    """Values of two arms and chance, one a world, paired, x 100 -> intervals and verdicts as a dict (see compare)."""
    difference = [x - y for x, y in zip(a, b)]
    mean, low, high = t_interval(difference)
    out = {"n": len(a), "difference": {"mean": mean, "low": low, "high": high, "values": difference,
                                       "superior": superior(low, high), "not worse": not_worse(low, high)}}
    for arm, values in (("a", a), ("b", b)):
        over, low, high = t_interval([x - c for x, c in zip(values, chance)])
        out[arm] = {"mean": statistics.fmean(values), "values": list(values), "above chance": {
            "mean": over, "low": low, "high": high,
            "verdict": "at chance" if at_chance(over, low, high) else "above chance" if low > 0 else
                       "below chance" if high < 0 else "not decided"}}
    return out


def compare_worlds(worlds, a, b):
    """Paired comparison of the runs WORLD/a and WORLD/b. Returns ({part: {"mean of tasks" or task: compare_values}},
    [what is missing]). Only tasks that both arms have in every used world enter the mean, so that no world counts
    another set of tasks; a world that lacks one arm altogether is left out and listed."""
    found, missing = {}, []
    for world in worlds:
        arms = [world_parts(Path(world) / arm) for arm in (a, b)]
        missing += [f"{world}/{arm}: no fine-tuned mini task" for arm, parts in zip((a, b), arms) if not parts]
        if all(arms):
            found[str(world)] = arms
    out = {}
    for part in PARTS:
        seen = {task for arms in found.values() for parts in arms for task, name in parts if name == part}
        tasks = [task for task in METRICS if task in seen]
        full = []
        for task in tasks:
            without = [world for world, arms in found.items() if any((task, part) not in parts for parts in arms)]
            missing += [f"{world}: {task} {part} in one arm only or in neither" for world in without]
            full += [task] * (not without)
        if not full:
            continue

        def by_world(arm, which, chosen):   # one mean over tasks a world; which: 0 = accuracy, 1 = chance
            return [statistics.fmean(arms[arm][task, part][which] for task in chosen) for arms in found.values()]
        columns = {"mean of tasks": full} | {task: [task] for task in full}
        out[part] = {"tasks": full} | {
            name: compare_values(by_world(0, 0, chosen), by_world(1, 0, chosen), by_world(0, 1, chosen))
            for name, chosen in columns.items()}
    return out, missing


def compare(args):
    """`evaluate.py compare`: prints, for each part and task, both arms, a - b with its interval, and verdicts."""
    results, missing = compare_worlds(args.worlds, args.a, args.b)
    for line in missing:
        print(f"missing: {line}")
    if not results:
        raise FileNotFoundError(f"no world of {', '.join(map(str, args.worlds))} has fine-tuned {args.a} and {args.b}; "
                                f"`python finetune.py --model WORLD/{args.a}` makes the files")

    def span(interval):
        return (f"{interval['mean']:+.1f} [{interval['low']:+.1f}, {interval['high']:+.1f}]"
                if not math.isnan(interval["low"]) else f"{interval['mean']:+.1f} [one world: no interval]")

    def each(values):
        return " ".join(f"{value:.1f}" for value in values)
    for part, rows in results.items():
        print(f"\n{part} (test split; mean of {', '.join(rows['tasks'])})")
        for name, row in rows.items():
            if name == "tasks":
                continue
            print(f"  {name}, n = {row['n']} worlds")
            for arm, called in (("a", args.a), ("b", args.b)):
                over = row[arm]["above chance"]
                print(f"    {called:<16} {row[arm]['mean']:5.1f}   minus chance {span(over)} {over['verdict']}; "
                      f"by world {each(row[arm]['values'])}")
            difference = row["difference"]
            print(f"    {args.a} - {args.b}: {span(difference)}; better: {difference['superior']}; "
                  f"not worse: {difference['not worse']}; by world {each(difference['values'])}")
    if args.json:
        # JSON has no nan: an interval of one world has no ends
        written = json.dumps({"a": args.a, "b": args.b, "worlds": args.worlds, "parts": results, "missing": missing})
        data.write_json(args.json, json.loads(written, parse_constant=lambda _: None))


# ---------------------------------------------------------------------------------------------------------------------
# Retrieval


def sentence_vectors(hidden, mask):
    """Unit vector of each text: the mean of its hidden states. hidden: [B, L, H]; mask: bool [B, L], True = counts."""
    weights = mask[:, :, None].to(hidden.dtype)                                              # [B, L, 1]
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)      # [B, H]


def ranks_of(scores):
    """Rank, from 1, of each text's own clip: scores [N, N], text i belongs to clip i. Ties count against the text."""
    own = scores.diagonal()[:, None]
    return (scores >= own).sum(1)


def retrieval_metrics(scores, keys=None):
    """R@1, R@5, R@10 (fractions), median rank, of scores [N, N]; with keys (what each clip shows), also R@1 when only the
    key must agree, and what a retriever that knows the key and nothing else would score exactly (its chance within it)."""
    ranks = ranks_of(scores).float()
    out = {f"R@{k}": float((ranks <= k).float().mean()) for k in (1, 5, 10)} | {"median rank": float(ranks.median())}
    out["chance R@1"] = 1 / len(scores)
    for name, key in (keys or {}).items():
        best = scores.argmax(1).tolist()
        out[f"R@1 same {name}"] = float(np.mean([key[i] == key[j] for i, j in enumerate(best)]))
        out[f"exact R@1 knowing {name} alone"] = float(np.mean([1 / key.count(k) for k in key]))
    return out


@torch.no_grad()
def retrieve(run, data_folder, device, bank=None):
    """Text-to-video retrieval of a teacher run. Returns (metrics, ranks [N]).

    The pool: a clip bank (`data.py bank`); None: the data folder's retrieval.json (the mini world's), and where it has
    none, the opening of each held-out video.
    """
    folder = Path(run) / "model"
    config, bert, _ = model.load_hf(folder)
    video_encoder, settings = model.load_video_encoder(folder / "video_encoder.pt")
    bert.eval().to(device), video_encoder.eval().to(device)
    tokenizer = data.load_tokenizer(folder)
    clips = data.Clips(data_folder, "valid", settings["streams"], tokenizer, config.block, settings["max_steps_clip"],
                       settings["frames"])
    pool_file, keys = Path(bank or Path(data_folder) / "retrieval.json"), None
    if bank or pool_file.exists():
        pool = data.read_bank(pool_file)
        if all("shown" in row for row in pool):
            keys = {"behaviour": [row["shown"]["behaviour"] for row in pool],
                    "sight": ["/".join(row["shown"].values()) for row in pool]}
    else:
        pool = range(len(clips))
    texts, videos = [], []
    for low in range(0, len(pool), 256):   # a bank's features need not fit in memory
        some = pool[low:low + 256]
        tokens, mask, features, step_mask = [tensor.to(device) for tensor in (
            clips.collate([clips.example(index) for index in some]) if isinstance(pool, range)
            else data.bank_batch(some, clips, tokenizer))]
        special = data.special_mask(tokens, data.special_ids(tokenizer))
        texts.append(sentence_vectors(bert(tokens, mask), ~special))                         # [256, H]
        videos.append(F.normalize(video_encoder(features, step_mask), dim=-1))
    scores = (torch.cat(texts) @ torch.cat(videos).T).cpu()
    return retrieval_metrics(scores, keys), ranks_of(scores)


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
def noun_vectors(folder, nouns, device):
    """The hidden state of each noun, averaged over the mini world's sentences around it. Returns float64 [N, H].

    Sentences name every action equally often; the model has seen their like in pretraining.
    """
    config, bert, _ = model.load_hf(folder)
    bert.eval().to(device)
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
    hidden = torch.cat([bert(t.to(device), m.to(device))[torch.arange(len(t)), p].cpu() for t, m, p in
                        zip(tokens.split(1024), mask.split(1024), torch.tensor(places).split(1024))])
    return hidden.view(len(nouns), -1, hidden.shape[1]).mean(1).double().numpy()


def probe(run, world, device):
    """Accuracy of a linear probe of each property from the noun's hidden state, fitted on task-train nouns.

    Returns {property: {"validation": accuracy, "test": ..., "unfilmed": ...}}; chance is 1 / number of values.
    """
    nouns = list(world["nouns"])
    vectors = noun_vectors(Path(run) / "model", nouns, device)
    group = np.array([world["nouns"][noun]["group"] for noun in nouns])
    out = {}
    for name, (_, values) in world["properties"].items():
        truth = np.array([values.index(world["nouns"][noun][name]) for noun in nouns])
        targets = 2.0 * np.eye(len(values))[truth] - 1
        scores = ridge_probe(vectors[group == "train"], targets[group == "train"], vectors)
        right = scores.argmax(1) == truth
        out[name] = {g: float(right[group == g].mean()) for g in ("validation", "test", "unfilmed")}
    return out


def show_retrieval(args):
    """`retrieve`: prints the metrics of each teacher run, and writes them to RUN/retrieval.json."""
    for run in args.runs:
        metrics, ranks = retrieve(run, args.data, torch.device("cpu"), args.bank)
        data.write_json(Path(run) / "retrieval.json", {**metrics, "ranks": ranks.tolist()})
        print(f"{run}: text -> video, {len(ranks)} clips")
        for name, value in metrics.items():
            print(f"  {name:<32} {value:6.1f}" if name == "median rank" else f"  {name:<32} {100 * value:6.1f} %")


def show_probes(args):
    """`probe`: prints probe accuracy on unseen nouns, a row a run, a column a property; writes RUN/probe.json."""
    world = data.read_json(Path(args.data) / "world.json", "python data.py mini")
    names = list(world["properties"])
    print("linear probe of the noun's hidden state, fitted on task-train nouns, accuracy in %")
    print(f"{'':<28}" + "".join(f"{name:>10}" for name in names))
    chance = [100 / len(values) for _, values in world["properties"].values()]
    print(f"{'chance':<28}" + "".join(f"{value:>10.1f}" for value in chance))
    for run in args.runs:
        result = probe(run, world, torch.device("cpu"))
        data.write_json(Path(run) / "probe.json", result)
        for group, called in (("test", "test nouns"), ("unfilmed", "unfilmed nouns")):
            print(f"{Path(run).name + ', ' + called:<28}" + "".join(f"{100 * result[name][group]:>10.1f}" for name in names))


# ---------------------------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    tables = commands.add_parser("table", help="a row a run, a column a task")
    tables.add_argument("runs", nargs="+", help="run folders, in the order of the rows")
    tables.add_argument("--names", nargs="+", help="row names (default: the run's own)")
    tables.add_argument("--width", type=int, help="characters a line (default: the terminal's)")
    tables.add_argument("--csv", help="also write every seed's value here")
    tables.add_argument("--json", help="also write the cells here")
    tables.set_defaults(function=table)
    for name, function, text in (("diagnostics", show_diagnostics, "GLUE-diagnostics of MNLI's model, by category"),
                                 ("tracie", show_tracie, "TRACIE's four scores")):
        command = commands.add_parser(name, help=text)
        command.add_argument("runs", nargs="+", help="run folders")
        command.add_argument("--width", type=int, help="characters a line (default: the terminal's)")
        command.set_defaults(function=function)
    compares = commands.add_parser("compare", help="two arms, paired over worlds")
    compares.add_argument("--worlds", nargs="+", required=True, help="folders, one a world, that hold run folders")
    compares.add_argument("--a", required=True, help="name of a run folder in each world")
    compares.add_argument("--b", required=True)
    compares.add_argument("--json", help="also write everything here")
    compares.set_defaults(function=compare)
    for name, function, text in (("retrieve", show_retrieval, "text-to-video retrieval of teachers on held-out clips"),
                                 ("probe", show_probes, "linear probes of the mini world's properties")):
        command = commands.add_parser(name, help=text)
        command.add_argument("runs", nargs="+", help="run folders")
        command.add_argument("--data", default="data/mini", help="the data folder")
        if name == "retrieve":
            command.add_argument("--bank", help="a clip bank of `data.py bank` (default: the data folder's own pool)")
        command.set_defaults(function=function)
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
