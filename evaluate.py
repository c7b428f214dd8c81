"""Tables over seeds, SQuAD's scores, retrieval, probes, the paper's claims, one report page.

    python evaluate.py table runs/text-only runs/student runs/teacher      # a column a run
    python evaluate.py probe runs/text-only runs/student runs/teacher      # what a noun tells
    python evaluate.py retrieve runs/teacher runs/student                  # text -> held-out clips
    python evaluate.py sts runs/student FOLDER                             # alike sentences
    python evaluate.py squad dev-v2.0.json predictions.json --na-prob null_odds.json
    python evaluate.py claims --values tests/claims.jsonl                  # the paper's claims
    python evaluate.py report runs/*                                       # all of it in one page

Reads RUN/finetune/TASK/seed-N/metrics.json, RUN/log.jsonl and RUN/model; writes RUN/probe.json and
RUN/retrieval.json, for the report. Printed numbers are x 100.
"""
import argparse
import base64
import functools
import html
import io
import json
import math
import shutil
import statistics
import subprocess
import sys
import textwrap
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import scipy
import torch
import torch.nn.functional as F
from tqdm import tqdm

import data
import distill
import finetune
import model

# --------------------------------------------------------------------------------------------------
# Files of a run


def read_results(run):
    """The metrics.json files that finetune.py wrote under a run folder, by seed."""
    if not Path(run).is_dir():
        raise model.UserError(f"no run folder {run}; `python finetune.py --model RUN` fills one")
    paths = sorted(Path(run).glob("finetune/*/seed-*/metrics.json"))
    return sorted([data.read_json(path, "") for path in paths], key=lambda metrics: metrics["seed"])


def run_facts(run):
    """A run's args.json as a dict; {} where there is none."""
    path = Path(run) / "args.json"
    return data.read_json(path, "") if path.exists() else {}


def made_with(run):
    """{"commit", "hardware", "threads"} of a run; a commit "with changes" where there were some."""
    facts = run_facts(run)
    changed = " with changes" if facts.get("uncommitted changes") else ""
    return {"commit": f"{facts.get('commit')}{changed}", "hardware": facts.get("hardware"),
            "threads": facts.get("threads")}


def names_of(runs, given=None):
    """Names of runs: given ones, else their folders'; the whole path where two agree."""
    if given and len(given) != len(runs):
        raise model.UserError(f"--names gives {len(given)} names for {len(runs)} runs")
    names = given or [Path(run).resolve().name for run in runs]
    return [name if names.count(name) == 1 else str(run) for name, run in zip(names, runs)]


def read_log(run):
    """The lines of a pretraining or fine-tuning run's log, as dicts."""
    return data.log_lines(Path(run) / "log.jsonl")


def seconds_by_stage(run):
    """{"pretraining": seconds, "fine-tuning": seconds} of a run; absent where none are known."""
    out = {}
    lines = read_log(run)
    if lines:
        out["pretraining"] = lines[-1]["seconds"]
    spent = [metrics["seconds"] for metrics in read_results(run)]
    if spent:
        out["fine-tuning"] = sum(spent)
    return out


# --------------------------------------------------------------------------------------------------
# Intervals, in points (x 100)


def t_interval(values):
    """Student's 95 % interval of the mean of independent values: (mean, low, high).

    What too few values cannot tell is nan: the ends of one value, all three of none.
    """
    mean = statistics.fmean(values) if values else math.nan
    if len(values) < 2:
        return mean, math.nan, math.nan
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return mean, mean - half, mean + half


# --------------------------------------------------------------------------------------------------
# Table

ACCURACY = "diagnostics accuracy"      # GLUE-diagnostics' categories, by MNLI's model
MATTHEWS = "diagnostics Matthews"
ROWS = ("overall", *finetune.PARTS, "dev", "dev-mismatched", "test", "start", "end", "story",
        *finetune.COARSE)              # a task's rows in a table, in this order


def scored_rows(metrics):
    """Table rows of one metrics.json -> {(task, row): (value, chance, rows scored)}, fractions.

    Parts of a mini task's test split; of a real task the dev splits, else the test split.
    """
    task = metrics["task"]
    out = {}
    parts = metrics["parts"].get("test", {})
    for part, scores in parts.items():
        if part in finetune.PARTS:   # not "grounded_by_property"
            out[task, part] = (scores["accuracy"], scores["chance"], scores["n"])
    if not parts:
        splits = ("dev", "dev-mismatched") if "dev" in metrics else ("test",)
        for split in splits:
            if split in metrics:
                scores = metrics[split]
                value = finetune.single_number(task, scores)
                out[task, split] = (value, scores["chance"], scores["n"])
    if task.startswith("TRACIE") and "test" in metrics:
        for row, count in (("start", "starts"), ("end", "ends"), ("story", "stories")):
            out[task, row] = (metrics["test"][row], None, metrics["test"][count])
    for name, scores in metrics.get("categories", {}).items():
        if name in ROWS:   # not the finer ones, "Logic: Negation"
            out[ACCURACY, name] = (scores["accuracy"], scores["chance"], scores["n"])
            out[MATTHEWS, name] = (scores["matthews"], 0.0, scores["n"])
    return out


def cells_of(results):
    """One run's results -> {(task, row): [entry of a seed, ...]}, values and chances x 100.

    An entry is {"seed", "value" (None: not defined), "chance", "rows" (how many), "stuck" (True:
    all got one answer), "split_dev"}.
    """
    cells = {}
    for metrics in results:
        for key, (value, chance, count) in scored_rows(metrics).items():
            cells.setdefault(key, []).append({
                "seed": metrics["seed"],
                "value": None if value is None else 100 * value,
                "chance": None if chance is None else 100 * chance,
                "rows": count,
                "stuck": metrics["majority"],
                "split_dev": metrics.get("split_dev", False)})
    return cells


def show_cell(entries):
    """A cell as text: "71.3 ± 1.2 (n=3, median 71.0)", "71.3 (n=1)", "not run", "not defined".

    ! marks a stuck seed, * a run on half a dev file.
    """
    if not entries:
        return "not run"
    values = [entry["value"] for entry in entries if entry["value"] is not None]
    text = "not defined"
    if len(values) == 1:
        text = f"{values[0]:.1f} (n=1)"
    elif values:
        text = f"{show_points(values)} (n={len(values)}, median {statistics.median(values):.1f})"
    if any(entry["stuck"] for entry in entries):
        text += "!"
    if any(entry["split_dev"] for entry in entries):
        text += "*"
    return text


def show_points(values, digits=1):
    """"71.3 ± 1.2" of one value a seed, in points; "71.3" of one seed, "-" of none."""
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def print_columns(labels, columns):
    """Prints a table, in blocks as wide as the terminal. columns: [(heading, [cell of a row])]."""
    width = shutil.get_terminal_size((100, 24)).columns
    longest = max(len(label) for label in labels)
    start = [label.ljust(longest) for label in ["", *labels]]
    blocks = [start]
    for heading, cells in columns:
        column = [heading, *cells]
        size = max(len(cell) for cell in column)
        if blocks[-1] != start and len(blocks[-1][0]) + 2 + size > width:
            blocks.append(start)
        blocks[-1] = [f"{line}  {cell:>{size}}" for line, cell in zip(blocks[-1], column)]
    for block in blocks:
        print(*[line.rstrip() for line in block], sep="\n", end="\n\n")


def table_keys(runs):
    """The (task, row) of a table of these runs, each given as its cells, in their order."""
    tasks = [*finetune.TASKS, ACCURACY, MATTHEWS]
    keys = set().union(*runs)
    return sorted(keys, key=lambda key: (tasks.index(key[0]), ROWS.index(key[1])))


def once(values):
    """Texts that should agree, as one: "50.0", or "33.3/50.0" where they do not; "-" of none."""
    return "/".join(sorted(set(values))) or "-"


def agreed(runs, key, what, form):
    """"chance" or "rows" of one row of a table, as one text; runs: the cells of each."""
    values = []
    for cells in runs:
        values += [entry[what] for entry in cells.get(key, [])]
    return once(f"{value:{form}}" for value in values if value is not None)


def table(args):
    """`table`: chance, then a column a run, from the metrics.json files that exist."""
    names = names_of(args.runs, args.names)
    runs = [cells_of(read_results(run)) for run in args.runs]
    keys = table_keys(runs)
    if not keys:
        raise model.UserError(f"no finetune/TASK/seed-N/metrics.json under {', '.join(args.runs)}; "
                              f"`python finetune.py --model {args.runs[0]}` makes them")
    columns = [("chance", [agreed(runs, key, "chance", ".1f") for key in keys]),
               ("rows", [agreed(runs, key, "rows", "d") for key in keys])]
    stuck = set()
    halved = False
    for name, cells in zip(names, runs):
        columns.append((name, [show_cell(cells.get(key)) for key in keys]))
        for (task, _), entries in cells.items():
            stuck |= {f"{name} {task} seed {entry['seed']}" for entry in entries if entry["stuck"]}
            halved |= any(entry["split_dev"] for entry in entries)

    print("x 100; mean ± standard deviation over n seeds\n")
    print_columns([" ".join(key) for key in keys], columns)
    if stuck:
        print(f"! a seed that gives every row one answer: {', '.join(sorted(stuck))}")
    if halved:
        print("* trained on half of the dev file (--split-dev): a smoke run")
    print("chance: always answering the most common label of the same rows")


# --------------------------------------------------------------------------------------------------
# SQuAD, as the official evaluate-v2.0.py counts


def best_threshold(scores, answerable, predictions, odds):
    """(best total, threshold): the most that scores add up to if odds above it mean ""."""
    order = [question for question in sorted(odds, key=odds.get) if question in scores]
    # answered one by one: an answerable question gains its score, any text for another loses 1
    gains = [scores[name] if answerable[name] else -bool(predictions[name]) for name in order]
    unanswerable = list(answerable.values()).count(False)
    totals = np.cumsum([unanswerable, *gains])
    best = int(totals.argmax())   # the first of equal ones
    return float(totals[best]), odds[order[best - 1]] if best else 0.0


def squad_scores(dataset, predictions, na_probabilities=None):
    """What the official evaluate-v2.0.py prints, under its keys; x 100 but counts and thresholds.

    dataset: a parsed SQuAD file; predictions: {id: text}; na_probabilities: {id:
    probability or odds of no answer}: an answer above 1 counts as none, and best_exact, best_f1 and
    their thresholds are searched for. Raises UserError where a question has no prediction or
    probability.
    """
    odds = na_probabilities
    answerable = {}
    raw = {"exact": {}, "f1": {}}
    for article in dataset["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                name = question["id"]
                if name not in predictions or (odds is not None and name not in odds):
                    raise model.UserError(f"question {name} has no prediction or no probability: "
                                          "are these of another file?")
                golds = [answer["text"] for answer in question["answers"]]
                exact, f1 = finetune.answer_scores(golds, predictions[name])
                answerable[name] = bool(golds)
                raw["exact"][name] = exact
                raw["f1"][name] = f1

    def mean(metric, names):
        scores = []
        for name in names:
            unanswered = odds is not None and odds[name] > 1
            scores.append(float(not answerable[name]) if unanswered else raw[metric][name])
        return 100.0 * sum(scores) / len(scores)   # sum, as there: to the last digit
    groups = {"": list(answerable),
              "HasAns_": [name for name in answerable if answerable[name]],
              "NoAns_": [name for name in answerable if not answerable[name]]}
    out = {}
    for prefix, names in groups.items():
        if names:
            out[f"{prefix}exact"] = mean("exact", names)
            out[f"{prefix}f1"] = mean("f1", names)
            out[f"{prefix}total"] = len(names)
    if odds is not None:
        for metric, scores in raw.items():
            best, threshold = best_threshold(scores, answerable, predictions, odds)
            out[f"best_{metric}"] = 100.0 * best / len(scores)
            out[f"best_{metric}_thresh"] = threshold
    return out


def show_squad(args):
    """`squad`: prints squad_scores of a predictions file as JSON."""
    made_by = "python finetune.py --task SQuAD1 SQuAD2"
    dataset = data.read_json(args.dataset, "make data/tasks/SQuAD2", "data")
    predictions = data.read_json(args.predictions, made_by)
    odds = data.read_json(args.na_prob, made_by) if args.na_prob else None
    print(json.dumps(squad_scores(dataset, predictions, odds), indent=2))


# --------------------------------------------------------------------------------------------------
# Retrieval


def search(texts, videos):
    """Text i belongs to clip i; texts, videos: [N, D] -> (rank of the own clip, from 1, [N]; the
    best three clips [N, 3]), on the CPU. Ties and nan count against the text.
    """
    if videos.device.type != "mps":   # which has no float64
        videos = videos.double()
    ranks = []
    best = []
    for low in range(0, len(texts), 256):   # all scores of 30,000 clips would take 3.6 GB
        part = texts[low:low + 256].to(videos.dtype)
        # summed in float64, then rounded: a tie stays one wherever its clips stand
        scores = (part @ videos.T).float()                             # [256, N]
        own = scores.diagonal(low)[:, None]                            # [256, 1]
        ranks.append((~(scores < own)).sum(1))
        best.append(scores.topk(min(3, len(videos))).indices)
    return torch.cat(ranks).cpu(), torch.cat(best).cpu()


def retrieval_metrics(ranks, best, pool):
    """R@1, R@5, R@10 (fractions) and the median rank of what search returns.

    In a mini world also R@1 when only what the clips show must agree, and the R@1 of a retriever
    that knows that alone: its chance among the clips that show the same.
    """
    out = {f"R@{k}": float((ranks <= k).float().mean()) for k in (1, 5, 10)}
    out["median rank"] = float(ranks.float().quantile(0.5))
    keys = {}
    if "shown" in pool[0]:
        keys["behaviour"] = [row["shown"]["behaviour"] for row in pool]
        keys["sight"] = ["/".join(row["shown"].values()) for row in pool]
    for name, key in keys.items():
        same = [key[own] == key[top] for own, top in enumerate(best[:, 0].tolist())]
        out[f"R@1 same {name}"] = statistics.fmean(same)
        out[f"exact R@1 knowing {name} alone"] = len(set(key)) / len(key)
    return out


def retrieval_examples(ranks, best, pool):
    """12 texts with their best three clips, for the report: [{"index", "rank", "own", "top"}, ...].

    Which texts depends on the pool's size alone: hits and misses alike, the same for every run.
    """
    drawn = data.numpy_generator(0, "report").permutation(len(pool))[:12]
    examples = []
    for index in sorted(drawn.tolist()):
        top = [pool[other] for other in best[index].tolist()]
        examples.append({"index": index, "rank": int(ranks[index]), "own": pool[index], "top": top})
    return examples


def openings(clips, tokenizer):
    """The first clip of each video, as rows of a clip bank."""
    starts = clips.spans[:, 0].tolist()
    return [data.bank_row(clips, index, start, tokenizer) for index, start in enumerate(starts)]


def retrieval_pool(data_folder, bank, held_out, tokenizer):
    """The clips to search among: a bank's, each once; else the mini world's; else openings."""
    file = Path(bank or Path(data_folder) / "retrieval.json")
    if not bank and not file.exists():
        return openings(held_out, tokenizer)
    valid = set(held_out.ids)
    clips = {}
    for row in data.read_bank(file):
        if row["video"] not in valid:
            raise model.UserError(f"{file}: {row['video']} is no held-out video; `python data.py "
                                  f"bank --data {data_folder} --split valid` makes a bank")
        clips.setdefault((row["video"], row["start"], row["end"]), row)
    return list(clips.values())


def trained_encoder(run):
    """(VideoEncoder, settings) of a run's model folder; None where there is no trained one."""
    path = Path(run) / "model" / "video_encoder.pt"
    if not path.exists():
        return None
    encoder, settings = model.load_video_encoder(path)
    return (encoder.eval(), settings) if settings["trained"] else None


def retrieval_vectors(rows, clips, tokenizer, bert, encoder, text_map):
    """Mean hidden states [N, H], means of text_map(hidden) [N, D], video vectors [N, Hv]; all unit.

    Means are over the real tokens. Without a text_map (None) the second are the first. All on
    bert's device, where encoder and text_map must be, too.
    """
    device = bert.tokens.weight.device
    means = []
    texts = []
    videos = []
    for low in range(0, len(rows), 256):   # a bank's features need not fit into memory
        batch = data.bank_batch(rows[low:low + 256], clips, tokenizer)
        tokens, mask, features, step_mask = [tensor.to(device) for tensor in batch]
        hidden = bert(tokens, mask)                                    # [256, L, H]
        real = ~data.special_mask(tokens, data.special_ids(tokenizer))   # True = counts
        mapped = text_map(hidden) if text_map else hidden
        means.append(model.sentence_vectors(hidden, real))             # [256, H]
        texts.append(model.sentence_vectors(mapped, real))             # [256, D]
        videos.append(F.normalize(encoder(features, step_mask), dim=-1))   # [256, Hv]
    return torch.cat(means), torch.cat(texts), torch.cat(videos)


def names_only(text, known, nouns):
    """True where a text names some of `nouns` (a set of words), and only ones of `known`.

    A text of two captions may name two: of one clip in twelve the narration is another video's.
    """
    named = nouns.intersection(text.split())
    return bool(named) and named <= known


@torch.no_grad()
def retrieve(run, data_folder, bank=None, lender=None, device="cpu"):
    """Text-to-video retrieval of a run -> what is written to RUN/retrieval.json.

    distill.retrieval_maps puts the run's texts beside videos. With the video encoder of another
    run, the lender, they share no coordinates: no ranks, only the ridge map. That map, in the mini
    world, goes from mean hidden state to video vector and is fitted on training clips of task-train
    nouns: what could be read off, not what was aligned. "new nouns": all other nouns.
    """
    folder = Path(run) / "model"
    data.check_world(folder, data_folder)
    encoder, settings = trained_encoder(lender or run)
    encoder.to(device)
    with torch.device(device):   # where the maps' heads are made
        how, text_map, video_map = distill.retrieval_maps(folder)
    if lender:
        how = f"not defined (ridge map: video encoder of {lender})"
        text_map = None
    config, bert, _ = model.load_hf(folder)
    tokenizer = data.load_tokenizer(folder)
    bert.eval().to(device)

    def clips_of(split):
        return data.Clips(data_folder, split, settings["streams"], tokenizer, config.block,
                          settings["max_steps_clip"], settings["frames"])
    held_out = clips_of("valid")
    pool = retrieval_pool(data_folder, bank, held_out, tokenizer)
    means, texts, videos = retrieval_vectors(pool, held_out, tokenizer, bert, encoder, text_map)
    metrics = {"chance R@1": 1 / len(pool)}
    ranks = torch.tensor([])
    examples = []
    if text_map:   # texts and videos share coordinates
        ranks, best = search(texts, video_map(videos))
        metrics |= retrieval_metrics(ranks, best, pool)
        examples = retrieval_examples(ranks, best, pool)

    # True = a noun that the ridge map was not fitted on
    new = torch.tensor([row.get("group", "train") != "train" for row in pool])
    if new.any():
        nouns = {row["noun"] for row in pool}
        known = {row["noun"] for row in pool if row["group"] == "train"}
        training = clips_of("train")
        rows = [row for row in openings(training, tokenizer)
                if names_only(row["text"], known, nouns)]
        seen, _, shown = retrieval_vectors(rows, training, tokenizer, bert, encoder, None)
        x, y, new_x = [vectors.cpu().double().numpy() for vectors in (seen, shown, means)]
        mapped = torch.from_numpy(ridge_probe(x, y, new_x)).float().to(device)
        mapped, _ = search(F.normalize(mapped, dim=-1), videos)
        if text_map:
            metrics["R@1, new nouns"] = float((ranks[new] == 1).float().mean())
        metrics["ridge map, R@1, new nouns"] = float((mapped[new] == 1).float().mean())
    among = f"{len(pool):,} clips of {len({row['video'] for row in pool}):,} held-out videos"
    result = {**metrics, "how": how, "pool": among, "ranks": ranks.tolist(),
              "data": str(data_folder), "examples": examples}
    data.write_json(Path(run) / "retrieval.json", result)
    return result


def show_retrieval(args):
    """`retrieve`: prints the metrics of each run."""
    lenders = [run for run in args.runs if trained_encoder(run)]
    if not lenders:
        raise model.UserError(f"no trained video encoder in the model folder of "
                              f"{', '.join(args.runs)}: list a teacher of videos, or its student")
    device = data.Processes(args.device).device
    for run in args.runs:
        lender = None if run in lenders else lenders[0]
        result = retrieve(run, args.data, args.bank, lender, device)
        print(f"{run}: text -> video among {result['pool']}; {result['how']}")
        for name, value in result.items():
            if isinstance(value, float):
                shown = f"{value:6.1f}" if name == "median rank" else f"{100 * value:6.1f} %"
                print(f"  {name:<32} {shown}")


# --------------------------------------------------------------------------------------------------
# Linear probes, in closed form


def ridge_probe(train_x, train_y, test_x):
    """Scores [M, C] of a ridge regression; its strength has the least leave-one-out error.

    train_x: [N, H]; train_y: [N, C], +-1 for classes; test_x: [M, H]. Standardised on train_x.
    """
    mean = train_x.mean(0)
    std = train_x.std(0) + 1e-6
    offset = train_y.mean(0)
    u, s, vt = np.linalg.svd((train_x - mean) / std, full_matrices=False)
    projected = u.T @ (train_y - offset)                               # [H, C]
    lowest = math.inf
    for strength in 10.0 ** np.arange(-1, 5):
        shrink = s ** 2 / (s ** 2 + strength)
        fitted = (u * shrink) @ projected                              # [N, C]
        # the hat matrix's diagonal, by which a residual becomes that of a fit without its row
        leverage = ((u ** 2) * shrink).sum(1, keepdims=True) + 1 / len(u)
        error = (((train_y - offset - fitted) / (1 - leverage)) ** 2).mean()
        if error < lowest:
            lowest = error
            weights = vt.T @ ((s / (s ** 2 + strength))[:, None] * projected)   # [H, C]
    return ((test_x - mean) / std) @ weights + offset


@torch.no_grad()
def noun_vectors(folder, texts, device="cpu"):
    """The hidden state of each noun, averaged over texts of equal weight: float64 [N, H].

    texts: {noun, a single token: its texts, each of which names it}.
    """
    config, bert, _ = model.load_hf(folder)
    bert.eval().to(device)
    tokenizer = data.load_tokenizer(folder)
    tokenizer.enable_padding(pad_id=config.pad_token_id)
    vectors = []
    for noun, naming in texts.items():
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(naming)]
        tokens = torch.tensor(encoded, device=device)                  # [sentences, L]
        hidden = bert(tokens, tokens != config.pad_token_id)           # [sentences, L, H]
        named = tokens == tokenizer.token_to_id(noun)                  # True = the noun
        vectors.append(model.masked_mean(hidden, named).mean(0))       # [H]
    return torch.stack(vectors).cpu().double().numpy()


def naming_texts(nouns):
    """{noun: texts that name it once}, of a mini world's captions: a model has seen their like."""
    texts = {noun: [] for noun in nouns}
    for noun in nouns:
        for template in data.SPOKEN:
            texts[noun] += [template.format(a=action, n=noun) for action in data.ACTIONS]
    return texts


def probe(run, world, device="cpu"):
    """Accuracy of a linear probe of each property from the noun, fitted on task-train nouns.

    Returns {property: {"validation": accuracy, "test": ..., "unfilmed": ...}}, and writes it to
    RUN/probe.json.
    """
    nouns = list(world["nouns"])
    vectors = noun_vectors(Path(run) / "model", naming_texts(nouns), device)
    group = np.array([world["nouns"][noun]["group"] for noun in nouns])
    fitted = group == "train"
    out = {}
    for name, (_, values) in world["properties"].items():
        truth = np.array([values.index(world["nouns"][noun][name]) for noun in nouns])
        targets = 2.0 * np.eye(len(values))[truth] - 1                 # [N, values]
        scores = ridge_probe(vectors[fitted], targets[fitted], vectors)
        right = scores.argmax(1) == truth
        out[name] = {tested: float(right[group == tested].mean())
                     for tested in ("validation", "test", "unfilmed")}
    data.write_json(Path(run) / "probe.json", out)
    return out


def show_probes(args):
    """`probe`: accuracy on unseen nouns, a row a run, a column a property."""
    world = data.read_json(Path(args.data) / "world.json", "python data.py mini", "nouns")
    rows = {"chance": {name: 1 / len(values) for name, (_, values) in world["properties"].items()}}
    device = data.Processes(args.device).device
    for name, run in zip(names_of(args.runs), args.runs):
        data.check_world(Path(run) / "model", args.data)
        probed = probe(run, world, device)
        for group in ("test", "unfilmed"):
            rows[f"{name}, {group} nouns"] = {key: probed[key][group] for key in probed}
    columns = []
    for name in rows["chance"]:
        columns.append((name, [f"{100 * row[name]:.1f}" for row in rows.values()]))
    print("linear probe of the noun's hidden state, fitted on task-train nouns, accuracy in %")
    print_columns(list(rows), columns)


# --------------------------------------------------------------------------------------------------
# Similarity of sentences, without fine-tuning


def sts_pairs(folder, left_out=()):
    """STS-B's train and dev pairs -> ({genre: [(sentence, sentence, score by people)]}, {genre: how
    many were left out}). Genres: captions by their file (MSRvid, images, ...), news, forums.

    left_out: sentences; pairs with one of them, whatever its articles and marks, stay out.
    """
    barred = {tuple(finetune.normal_words(sentence)) for sentence in left_out}
    pairs = defaultdict(list)
    missing = defaultdict(int)
    for split in ("train.tsv", "dev.tsv"):
        columns = ["genre", "filename", "sentence1", "sentence2", "score"]
        for _, row in finetune.read_table(Path(folder, split), columns):
            genre = row["genre"].removeprefix("main-")
            if genre == "captions":
                genre = row["filename"]
            if genre == "forum":   # train's name of dev's forums
                genre = "forums"
            sentences = row["sentence1"], row["sentence2"]
            if barred.isdisjoint(tuple(finetune.normal_words(each)) for each in sentences):
                pairs[genre].append((*sentences, float(row["score"])))
            else:
                missing[genre] += 1
    return pairs, missing


@torch.no_grad()
def sts(run, pairs, device="cpu"):
    """{genre: Spearman of people's scores with the cosines of mean hidden states}, of a run or of
    any BERT folder. The mean of all sentences of a genre is taken off first."""
    folder, _, _ = finetune.locate_model(run)
    config, bert, _ = model.load_hf(folder)
    bert.eval().to(device)
    tokenizer = data.load_tokenizer(folder)
    tokenizer.enable_padding(pad_id=config.pad_token_id)
    tokenizer.enable_truncation(config.block)
    out = {}
    for genre, rows in pairs.items():
        first, second, scores = zip(*rows)
        sentences = [*first, *second]
        means = []
        for low in range(0, len(sentences), 256):
            encoded = tokenizer.encode_batch(sentences[low:low + 256])
            tokens = torch.tensor([each.ids for each in encoded], device=device)   # [256, L]
            hidden = bert(tokens, tokens != config.pad_token_id)           # [256, L, H]
            real = ~data.special_mask(tokens, data.special_ids(tokenizer))   # True = counts
            means.append(model.masked_mean(hidden, real))                  # [256, H]
        vectors = torch.cat(means)
        vectors = vectors - vectors.mean(0)                                # [2 pairs, H]
        cosines = F.cosine_similarity(*vectors.chunk(2))                   # [pairs]
        out[genre] = finetune.spearman(scores, cosines.tolist())
    return out


def captions_less_rest(similarity):
    """Captions of films and pictures, less news and forums: what sight should help, less the rest.
    similarity: {genre: Spearman}."""
    seen = (similarity["MSRvid"] + similarity["images"]) / 2
    return seen - (similarity["news"] + similarity["forums"]) / 2


def show_sts(args):
    """`sts`: a row a genre, a column a run."""
    left_out = []
    if args.leave_out:
        for captions in data.read_json(args.leave_out, "make data/msrvtt").values():
            left_out += captions["text"]
    pairs, missing = sts_pairs(args.data, left_out)
    device = data.Processes(args.device).device
    columns = [("pairs", [str(len(rows)) for rows in pairs.values()] + [""])]
    for name, run in zip(names_of(args.runs, args.names), args.runs):
        similarity = sts(run, pairs, device)
        values = [*similarity.values(), captions_less_rest(similarity)]
        columns.append((name, [f"{100 * value:.1f}" for value in values]))
    print("Spearman x 100 of people's scores with cosines of mean hidden states (STS-B)\n")
    print_columns([*pairs, "(MSRvid + images - news - forums) / 2"], columns)
    if args.leave_out:
        counts = ", ".join(f"{count} of {genre}" for genre, count in missing.items())
        print(f"left out, with a sentence of {args.leave_out}: {counts or 'none'}")


# --------------------------------------------------------------------------------------------------
# Claims: each comparison of the paper on mini worlds, one a seed, everything redrawn.

TEACHERS = {   # arm -> flags of teacher.py
    "teacher": "",
    "text-teacher": "--contrastive none",
    "image-teacher": "--frames 1 --streams frame",
    "2d-teacher": "--streams frame",
    "3d-teacher": "--streams motion",
    "shuffled-teacher": "--shuffle-pairs",
    # learns some of colour, shape and size, then stops: MNLI, which asks for these, judges it
    "hinge-teacher": "--contrastive hinge --lr 5e-4 --steps 1500",
    "hinge-text-teacher": "--contrastive none --lr 5e-4 --steps 1500",
    # of questions
    "contrastive-teacher": "--mlm-weight 0",
    "noisy-20-teacher": "--shuffle-pairs 0.2",
    "noisy-50-teacher": "--shuffle-pairs 0.5",
    "half-teacher": "--train-limit 1152",
    "quarter-teacher": "--train-limit 576",
    "1-layer-teacher": "--layers 1",
    "4-layer-teacher": "--layers 4",
    "wide-teacher": "--width 256",
}
STUDENTS = {   # arm -> (its teacher, flags of distill.py, gradient ratio: see RATIOS)
    "text-only": (None, "--objective none", None),
    "nst+crd": ("teacher", "--objective nst crd", 30),
    "nst": ("teacher", "--objective nst", 30),
    "crd": ("teacher", "--objective crd", 100),
    "soft-label": ("teacher", "--objective soft-label", 3),
    "regression": ("teacher", "--objective regression", 10),
    "no-head": ("teacher", "--objective nst crd --head none", 10),
    "voken": ("teacher", "--objective voken", 10),
    "voken-shuffled": ("teacher", "--objective voken --voken-labels shuffled", 10),
    "voken-mixed": ("teacher", "--objective voken --voken-labels mixed", 10),
    "voken-random": ("teacher", "--objective voken --voken-labels random", 10),
    "two-stage-500": ("teacher", "--objective none --init {teacher}/model --steps 500", None),
    "distilled-500": ("teacher", "--objective nst crd --steps 500", 30),
    "two-stage-1000": ("teacher", "--objective none --init {teacher}/model --steps 1000", None),
    "two-stage-2000": ("teacher", "--objective none --init {teacher}/model --steps 2000", None),
    "distilled-2000": ("teacher", "--objective nst crd --steps 2000", 30),
    "two-stage-4000": ("teacher", "--objective none --init {teacher}/model --steps 4000", None),
    "distilled-4000": ("teacher", "--objective nst crd --steps 4000", 30),
    # of questions
    "1-layer": ("teacher", "--objective nst crd --layers 1", 30),
    "4-layer": ("teacher", "--objective nst crd --layers 4", 30),
    "wide": ("teacher", "--objective nst crd --width 256", 30),
    "clean": ("teacher", "--objective nst crd --teacher-reads clean", 30),
}
for name in ("nst+crd", "nst", "crd", "soft-label", "regression"):
    STUDENTS[f"{name}-of-hinge"] = ("hinge-teacher", *STUDENTS[name][1:])
for name in ("text", "shuffled", "hinge-text", "contrastive", "noisy-20", "noisy-50", "half",
             "quarter", "1-layer", "4-layer", "wide", "image"):
    STUDENTS[f"of-{name}-teacher"] = (f"{name}-teacher", *STUDENTS["nst+crd"][1:])
RIVALS = (("nst", "soft-label"), ("nst", "regression"), ("crd", "soft-label"),
          ("crd", "regression"), ("nst+crd", "nst"), ("nst+crd", "crd"))   # of claim 6
LENGTHS = (500, 1000, 2000, 4000)   # steps of claim 3's text stage, fixed before any was run
CURVE = {   # arms of these lengths; nst+crd's own is 1,000
    "two-stage": ("two-stage-500", "two-stage-1000", "two-stage-2000", "two-stage-4000"),
    "distilled": ("distilled-500", "nst+crd", "distilled-2000", "distilled-4000"),
}
QUESTION_CURVES = {   # of what: (its values, {line: an arm for each value})
    "By % of captions that meet another film": ((0, 20, 50), {
        "teacher": ("teacher", "noisy-20-teacher", "noisy-50-teacher"),
        "student": ("nst+crd", "of-noisy-20-teacher", "of-noisy-50-teacher")}),
    "By number of films": ((576, 1152, 2304), {
        "teacher": ("quarter-teacher", "half-teacher", "teacher"),
        "student": ("of-quarter-teacher", "of-half-teacher", "nst+crd")}),
    "By layers of the teacher": ((1, 2, 4), {
        "teacher": ("1-layer-teacher", "teacher", "4-layer-teacher"),
        "student": ("of-1-layer-teacher", "nst+crd", "of-4-layer-teacher")}),
    "By layers of the student": ((1, 2, 4), {"student": ("1-layer", "nst+crd", "4-layer")}),
}
# Ratios tried for TUNED (`make claims CLAIMS=weights SEEDS="100 101 102 103"`, worlds never
# reported). In STUDENTS stands the least whose mean on validation nouns is within 2 points of the
# best; other arms have that of the arm that they are compared with. Equal weights: 12 for CRD.
RATIOS = (1, 3, 10, 30, 100, 300, 1000)
TUNED = ("nst", "crd", "nst+crd", "soft-label", "regression", "voken", "no-head")
GRID = {}   # "nst@3" -> as in STUDENTS
for arm in TUNED:
    for ratio in RATIOS:
        GRID[f"{arm}@{ratio}"] = (*STUDENTS[arm][:2], ratio)
TRAINED = {**STUDENTS, **GRID}

MINI_TASKS = ("SST-2", "QNLI", "QQP", "MNLI", "PIQA", "SWAG", "SQuAD1", "SQuAD2", "TRACIE")
# Tasks of every arm: two ways to ask of behaviours, a sentence and a pair of choices.
TWO = "SST-2 PIQA"


class Part(NamedTuple):
    """One question of a claim: an arm against another one, or against chance, in one measure."""
    arm: str
    against: str               # an arm, or "chance"
    measure: str = "grounded"  # see measured
    tasks: str = TWO           # tasks, or properties of a probe; "all" of them
    question: str = "better"   # see verdict_of; or "shown": none


class Claim(NamedTuple):
    kind: str              # mechanism, magnitude: the paper's; hinge, control; question, grid: none
    text: str
    parts: list
    controls: tuple = ()   # claims that stand beside it
    arms: tuple = ()       # more arms to run


def against(reference, *others):
    """Other arms less a reference: on behaviours, by tasks and probes; in what stills show; in
    language."""
    parts = []
    for measure, tasks in (("grounded", TWO), ("probe", "dynamic"), ("probe", "static"),
                           ("MLM", "")):
        parts += [Part(arm, reference, measure, tasks, "shown") for arm in others]
    return parts


def by_property(arm, other):
    """The difference of two arms' probes, a property each."""
    return [Part(arm, other, "probe", name, "shown") for name in data.PROPERTIES]


CLAIMS = {
    "1": Claim(
        "mechanism", "A student distilled from video beats a text-only one of the same size, "
        "tokens and steps",
        [Part("nst+crd", "text-only"),
         Part("nst+crd", "text-only", tasks="all")],
        controls=("pairs", "unfilmed")),
    "2": Claim(
        "mechanism", "It beats a student of a text-only teacher: same captions, no video",
        [Part("nst+crd", "of-text-teacher")],
        controls=("pairs", "unfilmed")),
    "3": Claim(
        "mechanism", "It beats two-stage pretraining, at the longest text stage (4,000 steps)",
        [Part("distilled-4000", "two-stage-4000")],
        arms=(*CURVE["two-stage"], *CURVE["distilled"])),
    "4": Claim(
        "mechanism", "It beats a voken student: same teacher, a bank of clips",
        [Part("nst+crd", "voken")],
        controls=("vokens",)),
    "5": Claim(
        "mechanism", "A video teacher beats an image teacher on dynamic properties only; partly by "
        "construction: in a mini world one frame tells no behaviour",
        [Part("teacher", "image-teacher"),
         Part("teacher", "image-teacher", "probe", "dynamic"),
         Part("image-teacher", "teacher", "probe", "static", "not worse")]),
    "6": Claim(
        "magnitude", "NST and CRD each beat soft labels and regression; NST + CRD beats each",
        [Part(arm, other) for arm, other in RIVALS]),
    "7": Claim(
        "magnitude", "2D and 3D features together beat either; partly by construction: in a mini "
        "world a behaviour is a movement, and SST-2 and PIQA ask behaviours alone",
        [Part("teacher", "2d-teacher"),
         Part("teacher", "3d-teacher"),
         Part("teacher", "2d-teacher", "probe", "all"),
         Part("teacher", "3d-teacher", "probe", "all")]),
    "8": Claim(
        "magnitude", "A distillation head beats none",
        [Part("nst+crd", "no-head")]),
    "9": Claim(
        "mechanism", "The student finds videos from text: above chance, below its teacher",
        [Part("crd", "chance", "R@1", ""),
         Part("regression", "chance", "R@1", ""),
         Part("teacher", "crd", "R@1", ""),
         Part("teacher", "regression", "R@1", ""),
         Part("nst", "chance", "ridge map, R@1, new nouns", "", "shown")]),
    "10": Claim(
        "mechanism", "It gains on what is grounded: diagnostics' knowledge, PIQA, TRACIE; on the "
        "rest its mean is not worse",
        [Part("nst+crd", "text-only", "knowledge", "MNLI"),
         Part("nst+crd", "text-only", tasks="PIQA"),
         Part("nst+crd", "text-only", tasks="TRACIE"),
         Part("nst+crd", "text-only", "ungrounded", "all", "not worse")],
        controls=("unfilmed",)),
    "1h": Claim(
        "hinge", "Claim 1 with a hinge teacher",
        [Part("nst+crd-of-hinge", "text-only", tasks="MNLI")]),
    "2h": Claim(
        "hinge", "Claim 2 with a hinge teacher",
        [Part("nst+crd-of-hinge", "of-hinge-text-teacher", tasks="MNLI")]),
    "6h": Claim(
        "hinge", "Claim 6 with a hinge teacher",
        [Part(f"{arm}-of-hinge", f"{other}-of-hinge", tasks="MNLI") for arm, other in RIVALS]),
    "pairs": Claim(
        "control", "A student of a teacher of shuffled video-caption pairs is as the text-only one",
        [Part("of-shuffled-teacher", "text-only", question="no effect")]),
    "vokens": Claim(
        "control", "Students of vokens mixed over the batch, or random, are as the text-only one; "
        "shuffled within a block, vokens still tell its topic",
        [Part("voken-mixed", "text-only", question="no effect"),
         Part("voken-random", "text-only", question="no effect"),
         Part("voken-shuffled", "text-only", question="shown")]),
    "unfilmed": Claim(
        "control", "Nobody knows the nouns that no clip shows",
        [Part("teacher", "chance", "unfilmed", question="no effect"),
         Part("nst+crd", "chance", "unfilmed", question="no effect"),
         Part("text-only", "chance", "unfilmed", question="no effect")]),
    "losses": Claim(
        "question", "Which of the teacher's losses does its student need?",
        against("nst+crd", "of-contrastive-teacher", "of-text-teacher")),
    "noise": Claim(
        "question", "What costs more: captions that do not match their film, or fewer films?",
        against("nst+crd", "of-noisy-20-teacher", "of-noisy-50-teacher", "of-half-teacher",
                "of-quarter-teacher")
        + [Part("of-noisy-50-teacher", "of-half-teacher", question="shown")]),   # as many match
    "sizes": Claim(
        "question", "What does a larger teacher bring, and what a larger student?",
        against("nst+crd", "of-1-layer-teacher", "of-4-layer-teacher", "of-wide-teacher",
                "1-layer", "4-layer", "wide")),
    "properties": Claim(
        "question", "Where does an image teacher lose, and where do vokens, by property?",
        by_property("image-teacher", "teacher") + by_property("voken", "nst+crd"),
        arms=("of-image-teacher",)),
    "masks": Claim(
        "question", "Should the teacher read masked text, as the authors', or clean text?",
        against("nst+crd", "clean")),
    "weights": Claim("grid", "Which gradient ratios suit", [], arms=tuple(GRID)),
}
ALL = [name for name, claim in CLAIMS.items() if claim.kind not in ("question", "grid")]
QUESTIONS = [name for name, claim in CLAIMS.items() if claim.kind == "question"]
PAPERS = [name for name, claim in CLAIMS.items() if claim.kind in ("mechanism", "magnitude")]


def teacher_of(arm):
    """The teacher whose run an arm starts from: a teacher itself; None for text alone."""
    return arm if arm in TEACHERS else TRAINED[arm][0]


def flags_of(arm):
    """The script that trains an arm, and its flags."""
    if arm in TEACHERS:
        return f"teacher.py {TEACHERS[arm]}".strip()
    _, flags, ratio = TRAINED[arm]
    return f"distill.py {flags}" + (f" --gradient-ratio {ratio}" if ratio else "")


def recipe(arm):
    """Flags of an arm and of its teacher: what its values were made with."""
    teacher = teacher_of(arm)
    return flags_of(arm) if teacher in (None, arm) else f"{flags_of(teacher)}; {flags_of(arm)}"


def tasks_of(measure, tasks):
    """The tasks that a measure is a mean of."""
    if measure not in ("dev", "knowledge", *finetune.PARTS):
        return []
    return list(MINI_TASKS) if tasks == "all" else tasks.split()


# --- cells: an arm in a world


def with_controls(names):
    """Claims (none: all), then the controls that stand beside them."""
    names = list(names or ALL)
    beside = set()
    for name in names:
        beside.update(CLAIMS[name].controls)
    return names + [name for name in ALL if name in beside.difference(names)]


def cells_for(names, seeds):
    """What claims need: {(arm, seed): tasks}."""
    if "weights" in names and min(seeds) < 100:
        raise model.UserError('weights are chosen on worlds that are never reported: '
                              'SEEDS="100 101"')
    needed = defaultdict(set)   # arm -> tasks
    for name in with_controls(names):
        for arm in CLAIMS[name].arms:
            needed[arm].update(TWO.split())
        for part in CLAIMS[name].parts:
            tasks = tasks_of(part.measure, part.tasks)
            for arm in (part.arm, part.against):
                needed[arm].update(tasks)
                if "of-hinge" in arm:   # does their teacher know what they are asked?
                    needed[teacher_of(arm)].update(tasks)
                else:
                    needed[arm].update(TWO.split())
    needed.pop("chance", None)
    for arm in list(needed):
        if teacher_of(arm):   # what a teacher knows itself stands beside its students
            needed[teacher_of(arm)].update(TWO.split())
    cells = {}
    for seed in seeds:
        for arm, tasks in needed.items():
            cells[arm, seed] = sorted(tasks, key=MINI_TASKS.index)
    return cells


def run_script(log, *command):
    """Runs one of our scripts; its output is added to the log. Raises UserError where it fails."""
    script = Path(__file__).with_name(command[0])
    with open(log, "a", encoding="utf-8") as file:
        failed = subprocess.call([sys.executable, script, *map(str, command[1:])],
                                 stdout=file, stderr=subprocess.STDOUT)
    if failed:
        raise model.UserError(f"{command[0]} failed, see {log}")


def world_of(seed):
    """The folder of a mini world, as the Makefile names it."""
    return Path("data", f"mini-{seed}" if seed else "mini")


def make_cell(arm, seed, tasks, folder, teacher):
    """Trains an arm once its teacher's cell, a future or None, is made; fine-tunes and measures it.

    A stage that is complete returns at once.
    """
    if teacher:
        teacher.result()
    run = folder / arm
    log = folder / f"{arm}.log"
    world = world_of(seed)
    taught_by = folder / str(teacher_of(arm))
    command = [word.format(teacher=taught_by) for word in flags_of(arm).split()]
    command += ["--data", world, "--size", "mini", "--seed", seed, "--out", run]
    if arm in TRAINED:
        command += ["--text", world / "text"]
        if teacher_of(arm):
            command += ["--teacher", taught_by]
    run_script(log, *command)
    run_script(log, "finetune.py", "--model", run, "--data", world / "tasks", "--seed", seed,
               "--task", *tasks)
    return measure_cell(arm, seed, run)


def measure_cell(arm, seed, run):
    """All that is known of one arm in one world, as values.jsonl holds it."""
    tasks = {}
    for path in sorted(run.glob(f"finetune/*/seed-{seed}/metrics.json")):
        metrics = data.read_json(path, "")
        scores = {**metrics["parts"]["test"], "dev": metrics["parts"]["dev"]["grounded"],
                  "stuck": metrics["majority"]}
        if "categories" in metrics:   # diagnostics, of filmed nouns
            scores["knowledge"] = metrics["categories"]["grounded"]
        tasks[metrics["task"]] = scores
    world = data.read_json(world_of(seed) / "world.json", "python data.py mini", "nouns")
    device = data.Processes().device
    retrieval = {}
    if trained_encoder(run):
        found = retrieve(run, world_of(seed), device=device)
        retrieval = {key: value for key, value in found.items() if isinstance(value, float)}
    probed = probe(run, world, device)
    losses = [line["valid_mlm"] for line in read_log(run) if "valid_mlm" in line]
    return {"arm": arm, "seed": seed, "flags": recipe(arm), **made_with(run),
            "seconds": seconds_by_stage(run), "tasks": tasks, "retrieval": retrieval,
            "mlm": losses[-1],
            "probe": {name: groups["test"] for name, groups in probed.items()}}


def make_cells(cells, runs, jobs):
    """Makes the cells that RUNS/values.jsonl lacks, `jobs` at once. Returns how many failed."""
    file = Path(runs, "values.jsonl")
    known = read_values(file)
    missing = {}
    for (arm, seed), tasks in cells.items():
        cell = known.get((arm, seed), {"flags": None})
        if cell["flags"] != recipe(arm) or not cell["tasks"].keys() >= set(tasks):
            missing[arm, seed] = tasks
    for arm, seed in list(missing):   # of a teacher the values may be here, the run elsewhere
        teacher = teacher_of(arm)
        if teacher and not Path(runs, f"world-{seed}", teacher, "model").exists():
            missing[teacher, seed] = cells.get((teacher, seed), TWO.split())

    def make(arm, seed, teacher):
        folder = Path(runs, f"world-{seed}")
        folder.mkdir(parents=True, exist_ok=True)
        return make_cell(arm, seed, missing[arm, seed], folder, teacher)
    # a world after the other, its teachers first: what waits for one never keeps it from running
    ordered = sorted(missing, key=lambda key: (key[1], key[0] in TRAINED))
    return run_cells(ordered, teacher_of, make, file, jobs)


def run_cells(ordered, needed_by, make, file, jobs):
    """Makes cells [(arm, seed)], teachers before their students, `jobs` at once. Returns how many
    failed.

    make(arm, seed, teacher): the cell, a dict; teacher: the future of its teacher's cell, or None
    where that is there. A cell is added to the file as soon as it is made. One that fails stops
    none but those it is the teacher of.
    """
    if Path(file).exists() and Path(file).read_bytes()[-1:] not in (b"", b"\n"):
        with open(file, "a", encoding="utf-8") as values:   # a line that was cut stays alone
            values.write("\n")
    pool = ThreadPoolExecutor(jobs)
    started = {}
    for arm, seed in ordered:
        teacher = started.get((needed_by(arm), seed))
        started[arm, seed] = pool.submit(make, arm, seed, teacher)
    keys = {future: key for key, future in started.items()}
    failed = 0
    try:
        for future in tqdm(as_completed(keys), total=len(keys), unit="cell"):
            if future.exception():
                failed += 1
                tqdm.write(f"{keys[future]} not made: {future.exception()!r}")
                continue
            with open(file, "a", encoding="utf-8") as values:
                values.write(json.dumps(future.result()) + "\n")
    finally:   # at Ctrl-C the scripts that run save and stop; no other starts
        pool.shutdown(cancel_futures=True)
    return failed


def read_values(file):
    """Cells of known arms from a file of one a line, the last of each: {(arm, seed): cell}."""
    cells = {}
    for cell in data.log_lines(file):
        if cell["arm"] in TEACHERS or cell["arm"] in TRAINED:
            cells[cell["arm"], cell["seed"]] = cell
    return dict(sorted(cells.items()))


# --- judging


def measured(cell, measure, tasks):
    """A cell's (value, chance) in one measure, x 100; None where cell or value was not made.

    grounded, ungrounded, unfilmed: accuracy on test nouns, mean of the tasks; dev: grounded, on
    validation nouns. knowledge: MNLI's grounded diagnostics. probe: on test nouns; tasks: a
    property, "dynamic", "static" or "all". MLM: loss in nats, not x 100. Else of retrieval.json.
    """
    if cell is None:
        return None
    if measure == "MLM":
        return cell["mlm"], math.nan
    scores = []   # (value, chance)
    if measure == "probe":
        for name, accuracy in cell["probe"].items():
            if tasks in ("all", name, "dynamic" if name in data.DYNAMIC else "static"):
                scores.append((accuracy, 1 / len(data.PROPERTIES[name][1])))
    elif measure in cell["retrieval"]:
        scores.append((cell["retrieval"][measure], cell["retrieval"]["chance R@1"]))
    elif cell["tasks"].keys() >= set(tasks_of(measure, tasks)):
        for name in tasks_of(measure, tasks):
            score = cell["tasks"][name][measure]
            scores.append((score["accuracy"], score["chance"]))
    if not scores:
        return None
    value, chance = zip(*scores)
    return 100 * statistics.fmean(value), 100 * statistics.fmean(chance)


def values_of(cells, arm, measure, tasks):
    """An arm's values, a seed each."""
    results = [measured(cell, measure, tasks) for (other, _), cell in cells.items()
               if other == arm]
    return [result[0] for result in results if result]


MARGINS = {"better": 0, "not worse": -2}   # points that a difference has to exceed


def verdict_of(question, low, high):
    """The verdict of a 95 % interval, in points: holds, fails or not decided.

    better: holds above 0, fails below +2 (so great a lead is excluded). not worse: holds above -2,
    fails below 0. no effect: holds around 0 with a mean within 4, fails without 0.
    """
    if question == "no effect":
        holds = low <= 0 <= high and abs(low + high) / 2 <= 4
        fails = low > 0 or high < 0
    else:
        holds = low > MARGINS[question]
        fails = high < MARGINS[question] + 2
    if holds:
        return "holds"
    return "fails" if fails else "not decided"


def p_of(question, differences):
    """Twice the one-sided p of Student's t-test, at most 1; None for "no effect"."""
    if question == "no effect":
        return None
    test = scipy.stats.ttest_1samp(differences, MARGINS[question], alternative="greater")
    return min(1.0, 2 * float(test.pvalue))


def seeds_needed(values, decided, level=0.05):
    """How many values of this mean and spread have a 1 - level interval that decided(low, high)
    accepts. Text: "over 10,000" where so many do not."""
    mean = statistics.fmean(values)
    spread = statistics.stdev(values)
    for n in range(2, 10_001):
        half = scipy.stats.t.ppf(1 - level / 2, n - 1) * spread / n ** 0.5
        if decided(mean - half, mean + half):
            return f"{n:,}"
    return "over 10,000"


def holm(values):
    """Holm's correction of p-values {name: p}: the k-th smallest of m times m - k + 1."""
    order = sorted(values, key=values.get)
    scaled = [(len(order) - rank) * values[name] for rank, name in enumerate(order)]
    return dict(zip(order, np.maximum.accumulate(scaled).clip(max=1).tolist()))


def judge(part, cells, seeds):
    """One part of a claim, paired over the seeds that have both arms.

    "worlds": how many of this mean and spread would decide it, where these do not. Without values
    the verdict is "not run", of one "one seed", of a student "teacher carries no signal" where its
    hinge teacher is less than 10 points above chance itself.
    """
    differences = []
    for seed in seeds:
        ours = measured(cells.get((part.arm, seed)), part.measure, part.tasks)
        theirs = measured(cells.get((part.against, seed)), part.measure, part.tasks)
        if ours and part.against == "chance":
            differences.append(ours[0] - ours[1])
        elif ours and theirs:
            differences.append(ours[0] - theirs[0])
    mean, low, high = t_interval(differences)
    p = None
    verdict = "one seed" if differences else "not run"
    if differences and part.question == "shown":
        verdict = "-"
    elif len(differences) > 1:
        verdict = verdict_of(part.question, low, high)
        p = p_of(part.question, differences)
    if differences and "of-hinge" in part.arm:
        known = judge(Part("hinge-teacher", "chance", part.measure, part.tasks), cells, seeds)
        if known["mean"] < 10:
            verdict = "teacher carries no signal"
    worlds = None
    if verdict == "not decided":
        worlds = seeds_needed(differences, lambda low, high: verdict_of(
            part.question, low, high) != "not decided")
    name = part.measure if part.tasks == TWO else f"{part.measure} {part.tasks}".strip()
    return {"name": f"{name}: {part.arm} - {part.against}", "question": part.question,
            "values": differences, "mean": mean, "low": low, "high": high, "p": p,
            "verdict": verdict, "worlds": worlds}


WORST = ("teacher carries no signal", "fails", "not run", "one seed", "not decided", "holds")


def judge_claims(cells, names, seeds):
    """Claims with their parts and verdicts, as claims.json holds them: the worst verdict of the
    parts; "not decided" where p after Holm's correction is not below 0.05. How many worlds of the
    weakest part's mean and spread would pass the same correction is said."""
    judged = {}
    largest = {}   # p of a joined claim (Berger's intersection-union test)
    for name in names:
        claim = CLAIMS[name]
        parts = [judge(part, cells, seeds) for part in claim.parts]
        asked = [part for part in parts if part["question"] != "shown"]
        verdicts = [part["verdict"] for part in asked]
        kind = "" if claim.kind == "question" else f" ({claim.kind})"
        judged[name] = {"number": name, "text": claim.text + kind, "parts": parts,
                        "verdict": min(verdicts, key=WORST.index, default="-")}
        tests = [part["p"] for part in asked]
        if name in PAPERS and None not in tests:
            largest[name] = max(tests)
    corrected = holm(largest)
    order = sorted(largest, key=largest.get)
    for name, claim in judged.items():
        more = ""
        if claim["verdict"] in ("holds", "not decided") and corrected.get(name, 0) >= 0.05:
            claim["verdict"] = "not decided"
            weakest = max(claim["parts"], key=lambda part: part["p"] or 0)
            level = 0.05 / (len(order) - order.index(name))   # Holm's, of its rank
            if weakest["mean"] > MARGINS[weakest["question"]] + 1:   # it would hold, not fail
                worlds = seeds_needed(weakest["values"],
                                      lambda low, high: low > MARGINS[weakest["question"]], level)
                more = f" ({worlds} worlds would, corrected)"
        claim["said"] = claim["verdict"] + more
        if name in corrected:
            claim["said"] += f", p {corrected[name]:.2g} corrected over {len(corrected)} claims"
        for control in CLAIMS[name].controls:
            if judged[control]["verdict"] != "holds":
                claim["said"] += f"; its control {control}: {judged[control]['verdict']}"
    return list(judged.values())


# --- showing

SHOWN = {   # heading -> (measure, tasks)
    "grounded": ("grounded", TWO), "ungrounded": ("ungrounded", TWO), "unfilmed": ("unfilmed", TWO),
    "MNLI": ("grounded", "MNLI"), "behaviours": ("probe", "dynamic"), "R@1": ("R@1", ""),
    "MLM": ("MLM", "")}
for name in data.PROPERTIES:
    SHOWN[name] = ("probe", name)


def arm_rows(cells):
    """What each arm reached -> {arm: {heading: [a number a seed]}} of SHOWN; "worlds": the seeds of
    its grounded numbers."""
    out = {}
    for arm in [*TEACHERS, *STUDENTS]:
        row = {}
        for heading, (measure, tasks) in SHOWN.items():
            row[heading] = values_of(cells, arm, measure, tasks)
        if any(row.values()):
            worlds = [seed for (other, seed), cell in cells.items()
                      if other == arm and measured(cell, *SHOWN["grounded"])]
            out[arm] = {**row, "worlds": worlds}
    return out


def effect_of(part):
    """"+36.5 [+26.6, +46.5] holds" of a judged part; without worlds its verdict alone."""
    if not part["values"]:
        return part["verdict"]
    digits = 2 if part["name"].startswith("MLM") else 1   # nats, else points
    effect = f"{part['mean']:+.{digits}f}"
    if not math.isnan(part["low"]):   # more than one world
        effect += f" [{part['low']:+.{digits}f}, {part['high']:+.{digits}f}]"
    worlds = part.get("worlds")   # of tests/film.py: none
    more = f" ({worlds} worlds would)" if worlds else ""
    return f"{effect} {part['verdict'].strip('-')}{more}".rstrip()


def headline(claim):
    """"1. What is claimed (mechanism): holds"; a question alone."""
    said = "" if claim["said"] == "-" else f": {claim['said']}"
    return f"{claim['number']}. {claim['text']}{said}"


def print_wrapped(text):
    print(textwrap.fill(text, 110, subsequent_indent="   "))


def print_claims(judged):
    """Each claim's verdict, then its parts."""
    most = max((len(part["values"]) for claim in judged for part in claim["parts"]), default=0)
    print(f"\nDifferences of two arms in points, mean [95 % interval], n={most} worlds where no n "
          f"stands;\ngrounded: in SST-2 and PIQA; MLM: nats")
    for claim in judged:
        print()
        print_wrapped(headline(claim))
        for part in claim["parts"]:
            asked = "" if part["question"] in ("better", "shown") else f" ({part['question']})"
            p = "" if part["p"] is None else f" p {part['p']:.2g}"
            n = "" if len(part["values"]) in (0, most) else f", n={len(part['values'])}"
            print(f"   {part['name'] + asked:<55} {effect_of(part)}{p}{n}".rstrip())


def chosen_ratio(cells, arm):
    """The least ratio whose mean on validation nouns is within 2 points of the best, of those that
    were tried in most worlds; None where none was."""
    tried = {ratio: values_of(cells, f"{arm}@{ratio}", "dev", TWO) for ratio in RATIOS}
    most = max(1, *map(len, tried.values()))
    means = {ratio: statistics.fmean(values) for ratio, values in tried.items()
             if len(values) == most}
    near = [ratio for ratio, mean in means.items() if mean >= max(means.values()) - 2]
    return min(near, default=None)


def print_grid(cells):
    """What each arm of TUNED reaches at each gradient ratio: on validation nouns, which choose; its
    probes of behaviours; held-out MLM."""
    seeds = sorted({seed for _, seed in cells})
    asked = {f"grounded {TWO} on validation nouns, x 100": ("dev", TWO),
             "probes of behaviours, x 100": ("probe", "dynamic"),
             "held-out MLM, nats": ("MLM", "")}
    for title, (measure, tasks) in asked.items():
        columns = []
        counts = set()
        for ratio in RATIOS:
            tried = [values_of(cells, f"{name}@{ratio}", measure, tasks) for name in TUNED]
            counts.update(len(values) for values in tried if values)
            if any(tried):
                digits = 2 if measure == "MLM" else 1
                shown = [show_points(values, digits) for values in tried]
                columns.append((f"ratio {ratio}", shown))
        columns.append(("taken", [str(chosen_ratio(cells, name)) for name in TUNED]))
        some = " (some in a part of them)" if len(counts) > 1 else ""
        print(f"\n{title}, by gradient ratio; worlds {' '.join(map(str, seeds))}{some}\n")
        print_columns(list(TUNED), columns)
    print_halted(cells)


def print_halted(cells):
    """Which models fine-tuning left near chance though probes read what it asks for."""
    known = 0
    halted = []
    for (arm, seed), cell in cells.items():
        probed = measured(cell, "probe", "dynamic")
        if probed and probed[0] > 80 and cell["tasks"].keys() >= set(TWO.split()):
            known += 1
            if min(measured(cell, "grounded", task)[0] for task in TWO.split()) < 65:
                halted.append(f"{arm} seed {seed}")
    print_wrapped(f"{len(halted)} of {known} models whose probes of behaviours average above 80 "
                  f"are below 65 in SST-2 or PIQA: {', '.join(halted) or 'none'}")


def print_arms(cells, rows):
    """Every arm in every measure, tasks, what fine-tuning left at chance, and what stuck."""
    print()
    print_wrapped("Every arm, mean ± standard deviation over worlds. Grounded, ungrounded, "
                  "unfilmed: in SST-2 and PIQA; MNLI: its grounded rows; behaviours: mean of their "
                  "four probes; R@1: text to video; MLM: nats on held-out text (teachers: "
                  "captions). Below: probes on test nouns.")
    print()
    columns = []
    for heading in SHOWN:
        digits = 2 if heading == "MLM" else 1
        columns.append((heading, [show_points(row[heading], digits) for row in rows.values()]))
    print_columns(list(rows), columns[:-len(data.PROPERTIES)])
    print_columns(list(rows), columns[-len(data.PROPERTIES):])
    print_tasks(cells)
    stuck = []
    for (arm, seed), cell in cells.items():
        stuck += [f"{arm} {task} seed {seed}" for task, scores in cell["tasks"].items()
                  if scores.get("stuck")]
    print_halted(cells)
    if stuck:
        print_wrapped(f"! gives every row one answer, and counts as it is: {', '.join(stuck)}")


def print_tasks(cells):
    """Each task of the arms that were fine-tuned on all of them."""
    columns = []
    for arm in STUDENTS:
        if values_of(cells, arm, "grounded", "all"):
            for part in ("grounded", "ungrounded"):
                scores = [values_of(cells, arm, part, task) for task in MINI_TASKS]
                columns.append((f"{arm} {part}", [show_points(values) for values in scores]))
    if columns:
        print_columns(list(MINI_TASKS), columns)


def claims(args):
    """`claims`: makes the cells that are missing (--make), then judges those that are there.

    Unless --seeds names worlds, these are 1 to 99: all others chose settings.
    """
    if args.make and not args.seeds:
        raise model.UserError("--make needs --seeds: which worlds?")
    file = Path(args.values or Path(args.runs, "values.jsonl"))
    failed = 0
    if args.make:
        failed = make_cells(cells_for(args.claims, args.seeds), args.runs, args.make)
    undone = f"{failed} cells were not made; the same command tries them again"
    if not file.exists():
        absent = f"no values in {file}; `make claims` makes them"
        raise model.UserError(undone if failed else absent)
    grid = {}
    cells = {}
    other = []
    for (arm, seed), cell in read_values(file).items():
        if cell["flags"] != recipe(arm):
            other.append(f"{arm} seed {seed}")
        elif arm in GRID:
            grid[arm, seed] = cell
        elif seed in (args.seeds or range(1, 100)):
            cells[arm, seed] = cell
    if args.claims == ["weights"] and not grid:
        raise model.UserError(undone if failed else f"no values of the grid in {file}; "
                              'make claims CLAIMS=weights SEEDS="100 101" makes them')
    if grid:
        print_grid(grid)
    if args.claims != ["weights"]:
        judge_worlds(args, cells)
    if other:
        print(f"! left out, made with other flags: {', '.join(other)}")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    damaged = len(lines) - len(data.log_lines(file))
    if damaged:
        print(f"! left out, damaged: {damaged} of the {len(lines)} lines of {file}")
    if failed:
        raise model.UserError(undone)


def judge_worlds(args, cells):
    """Prints the claims asked for, judged from these cells, and writes them as JSON."""
    if not cells:
        raise model.UserError(f"no values of worlds {args.seeds or '1 to 99'} made with the arms' "
                              f"flags; `make claims` makes them, --seeds names worlds")
    seeds = sorted({seed for _, seed in cells})
    every = judge_claims(cells, ALL + QUESTIONS, seeds)   # Holm's family, whatever is asked for
    asked = with_controls(args.claims)
    if not args.claims:
        asked += [claim["number"] for claim in every
                  if all(part["values"] for part in claim["parts"])]
    judged = [claim for claim in every if claim["number"] in asked]
    rows = arm_rows(cells)
    print_claims(judged)
    print_arms(cells, rows)
    facts = {"seeds": seeds}
    for key in ("commit", "hardware", "threads"):
        facts[key] = once(str(cell[key]) for cell in cells.values())
    hours = sum(sum(cell["seconds"].values()) for cell in cells.values()) / 3600
    print()
    print_wrapped(f"{len(cells)} cells, {hours:.1f} hours of training, {facts['threads']} thread "
                  f"each; commit {facts['commit']}; {facts['hardware']}")
    if args.out or not args.values:
        data.write_json(args.out or Path(args.runs, "claims.json"),
                        {**facts, "claims": judged, "arms": rows})


# --------------------------------------------------------------------------------------------------
# Report: one HTML file that needs nothing else. `tag` escapes all text that is not Raw.

CLIP_SECONDS = 4
COLOURS = "#1f82c8", "#d2601a", "#16916a", "#c0569a", "#7c6fd6", "#967a14"   # on light and dark
DASHES = "none", "7 3", "2 3", "9 3 2 3"   # lines differ without colours, too
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>VidLanKD: what these runs learnt</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --soft: light-dark(#595959, #adadad);
  --line: light-dark(#dcdcdc, #444) }
body { margin: 0 3vw 32px; background: Canvas; font: 16px/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere }
h1 { font-size: clamp(1.4rem, 2.4vw, 2.4rem); line-height: 1.25 }
h2 { margin-top: 40px; border-top: 1px solid var(--line) }
p { max-width: 90ch }
ul { padding: 0; list-style: none }
nav li, .key li { display: inline-block; margin: 4px 20px 4px 0 }
.wide { overflow-x: auto }
table { border-collapse: collapse }
td, th { padding: 5px 16px 5px 0; text-align: left; vertical-align: top;
  overflow-wrap: break-word; border-bottom: 1px solid var(--line) }
td span { display: block; min-width: 5ch; padding: 0 4px;
  background: linear-gradient(90deg, #1f82c855 calc(100% * var(--share)), transparent 0) }
tbody th { position: sticky; left: 0; background: Canvas; max-width: 40vw }
.grid, .clips { display: grid; gap: 32px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.clips { grid-template-columns: repeat(auto-fill, minmax(120px, 1fr)); gap: 12px }
figure { margin: 0; min-width: 0; max-width: 640px }
figcaption { font-weight: bold }
small { display: block }
.key, .rows, small { font: .9rem system-ui, sans-serif; color: var(--soft) }
svg { width: 100% }
svg[viewBox] { max-width: 26rem }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft) }
.key svg { width: 28px; height: 10px }
.rows li { display: flex; flex-wrap: wrap; justify-content: space-between; column-gap: 16px }
.rows svg { height: 24px }
label { position: sticky; top: 0; z-index: 1; padding: 8px; background: Canvas }
video { width: 100%; aspect-ratio: 1; background: var(--line) }
.true video { outline: 3px solid #16916a }
@media (min-width: 1000px) {
  header { display: grid; grid-template-columns: 1fr 1fr; gap: 56px; padding-top: 24px } }
</style>
</head>
<body>BODY<script>
const box = document.getElementById("play");
const seen = new IntersectionObserver(entries => {
  for (const {target, isIntersecting} of entries)
    if (isIntersecting && box.checked) target.play().catch(() => {});
    else target.pause();
});
function watch() {
  seen.disconnect();
  for (const clip of document.querySelectorAll("video")) seen.observe(clip);
}
if (box) {
  box.checked = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  box.onchange = watch;
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


def html_table(header, rows):
    """A table in a box that scrolls by itself; a row's first cell names it."""
    body = []
    for first, *others in rows:
        cells = []
        for cell in others:
            shown = cell if isinstance(cell, Raw) else str(cell).replace(" ± ", "\u00a0±\u00a0")
            cells.append(tag("td", shown))
        body.append(tag("tr", tag("th", first, scope="row"), *cells))
    head = tag("tr", *[tag("th", cell, scope="col") for cell in header])
    table = tag("table", tag("thead", head), tag("tbody", *body))
    return tag("div", table, class_="wide", tabindex=0, role="group", aria_label=header[0])


def paint(colour):
    """Attributes of a line in one of the colours."""
    return {"stroke": COLOURS[colour % len(COLOURS)], "stroke_width": 2, "fill": "none"}


def line_plot(title, series):
    """A figure of lines, its axes named at their ends. series: [(name, colour, [(x, y)], hollow)];
    hollow: circles alone."""
    every = np.concatenate([points for _, _, points, _ in series])   # [N, 2]
    (left, low), (right, high) = every.min(0), every.max(0)
    shapes = [
        tag("line", x1=60, x2=354, y1=6, y2=6, stroke="var(--line)"),
        tag("line", x1=60, x2=354, y1=180, y2=180, stroke="var(--line)"),
        tag("text", f"{high:.3g}", x=56, y=10, text_anchor="end"),
        tag("text", f"{low:.3g}", x=56, y=184, text_anchor="end"),
        tag("text", f"{left:g}", x=60, y=197),
        tag("text", f"{right:g}", x=354, y=197, text_anchor="end")]
    key = {}
    words = []
    for name, colour, points, hollow in series:
        points = np.array(sorted(points))
        words.append(f"{name}: {points[-1, 1]:.4g} at {points[-1, 0]:g}")
        points = points[::-(len(points) // 200 + 1)]   # a long log is thinned, from its end
        xs = np.interp(points[:, 0], (left, right), (60, 354)).round(1)
        ys = np.interp(points[:, 1], (low, high), (180, 6)).round(1)
        if hollow:
            shapes += [tag("circle", cx=x, cy=y, r=3, **paint(colour)) for x, y in zip(xs, ys)]
            swatch = tag("circle", cx=14, cy=5, r=3, **paint(colour))
        else:
            dashed = {**paint(colour), "stroke_dasharray": DASHES[colour % len(DASHES)]}
            path = " ".join(f"{x},{y}" for x, y in zip(xs, ys))
            shapes.append(tag("polyline", points=path, **dashed))
            swatch = tag("line", x1=0, x2=28, y1=5, y2=5, **dashed)
        if name not in key or not hollow:   # a line stands for its circles, too
            key[name] = tag("li", tag("svg", swatch), " ", name)
    picture = tag("svg", tag("title", "; ".join(words)), *shapes, role="img",
                  viewBox="0 0 360 202")
    key = tag("ul", *key.values(), class_="key")
    return tag("figure", tag("figcaption", title), picture, key)


def interval_plots(figures):
    """Figures of values on one axis, "" of none. figures: {title: rows}; a row: (name, text,
    values, colour, reference or None). Hollow dots: values; full: their mean; bar: its 95 %
    interval; dashed: reference."""
    numbers = []
    for rows in figures.values():
        for _, _, values, _, reference in rows:
            numbers += [*values, *t_interval(values), reference]
    numbers = [number for number in numbers if number is not None and not math.isnan(number)]
    if not numbers:
        return ""
    ends = min(numbers), max(numbers)
    digits = 0 if ends[1] - ends[0] > 5 else 2   # points, or nats

    def place(x):
        return np.interp(x, ends, (3, 97))

    def at(x):
        return f"{place(x):.1f}%"

    def axis(rows):
        marks = [tag("text", f"{ends[0]:.{digits}f}", x="0%", y=16),
                 tag("text", f"{ends[1]:.{digits}f}", x="100%", y=16, text_anchor="end")]
        for reference in {row[-1] for row in rows} - {None}:
            if 15 < place(reference) < 85:   # else it would touch an end's number
                marks.append(tag("text", f"{reference:.0f}", x=at(reference), y=16,
                                 text_anchor="middle"))
        return tag("li", tag("svg", *marks, aria_hidden="true"))

    def picture(values, colour, reference):
        mean, low, high = t_interval(values)
        words = f"mean {mean:.{digits + 1}f}" if values else "no value"
        shapes = []
        if reference is not None:   # a score may have no chance
            shapes.append(tag("line", x1=at(reference), x2=at(reference), y1=0, y2=24,
                              stroke="var(--soft)", stroke_dasharray="3 3"))
        if len(values) > 1:
            words += f", interval {low:.{digits + 1}f} to {high:.{digits + 1}f}"
            shapes.append(tag("line", x1=at(low), x2=at(high), y1=12, y2=12, **paint(colour)))
            shapes += [tag("circle", cx=at(value), cy=12, r=3, **paint(colour))
                       for value in values]
        if values:
            shapes.append(tag("circle", cx=at(mean), cy=12, r=4, fill=paint(colour)["stroke"]))
        return tag("svg", tag("title", words), *shapes, role="img")

    drawn = []
    for title, rows in figures.items():
        items = []
        for name, text, values, colour, reference in rows:
            drawing = picture(values, colour, reference)
            items.append(tag("li", tag("span", name), tag("span", text), drawing))
        rows = tag("ul", *items, axis(rows), class_="rows")
        drawn.append(tag("figure", tag("figcaption", title), rows))
    return tag("div", *drawn, class_="grid")


# --- sections: "" where there is nothing to show

FILM_ALONE = "No student ever saw a frame. Right answers to questions that only film answers"


def result(names, cells):
    """(The result in one sentence, its picture): grounded questions, else real tasks' scores.

    The sentence is of the tasks that all runs have which have any.
    """
    keys = [key for key in table_keys(cells) if key[0] in finetune.TASKS]   # no diagnostics' parts
    grounded = [key for key in keys if key[1] == "grounded"]
    keys = grounded or [key for key in keys if key[1] in ("dev", "test")]
    means = {}   # name -> {key: mean over seeds}
    figures = {}
    for colour, (name, row) in enumerate(zip(names, cells)):
        for key in keys:
            entries = row.get(key, [])
            values = [entry["value"] for entry in entries if entry["value"] is not None]
            if values:
                means.setdefault(name, {})[key] = statistics.fmean(values)
                title = f"{' '.join(key)}, chance {agreed(cells, key, 'chance', '.1f')}"
                figures.setdefault(title, []).append(
                    (name, show_cell(entries), values, colour, entries[0]["chance"]))
    shared = keys
    for scores in means.values():
        shared = [key for key in shared if key in scores]
    if not shared:
        return "No task has a result of all these runs yet.", interval_plots(figures)
    texts = []
    for name, scores in means.items():
        texts.append(f"{name} {statistics.fmean(scores[key] for key in shared):.1f} %")
    asked = FILM_ALONE
    if not grounded:
        asked = f"In the mean of {', '.join(task for task, _ in shared)}"
    chances = [agreed(cells, key, "chance", ".1f") for key in shared]
    chance = once(each for each in chances if each != "-")   # a correlation has none
    return f"{asked}: {', '.join(texts)}; chance {chance} %.", interval_plots(figures)


def report_results(names, cells):
    """The cells of `table`: runs as columns, tasks and parts as rows."""
    rows = []
    for key in table_keys(cells):
        shown = [show_cell(row.get(key)) for row in cells]
        rows.append([" ".join(key), agreed(cells, key, "chance", ".1f"), *shown])
    return html_table(["task", "chance", *names], rows) if rows else ""


def read_each(file, names, runs):
    """{name: what the run's file holds} of the runs that have it."""
    return {name: data.read_json(run / file, "") for name, run in zip(names, runs)
            if (run / file).exists()}


def report_probes(names, runs):
    """A figure a property, of nouns seen in clips and never filmed."""
    figures = {}
    for name, probed in read_each("probe.json", names, runs).items():
        for key, accuracy in probed.items():
            chance = 100 / len(data.PROPERTIES[key][1])
            for nouns in ("test", "unfilmed"):
                value = 100 * accuracy[nouns]
                figures.setdefault(f"{key}, chance {chance:g}", []).append(
                    (f"{name}, {nouns} nouns", f"{value:.1f}", [value], names.index(name), chance))
    return interval_plots(figures)


def report_curves(names, runs):
    """A plot a logged quantity of pretraining, and a task's loss; hollow: the held-out values."""
    plots = defaultdict(list)   # title -> series
    for colour, (name, run) in enumerate(zip(names, runs)):
        for folder in sorted(run.glob("finetune/*/seed-*")):
            points = [(line["step"], line["loss"]) for line in read_log(folder)]
            if points:
                plots[f"{folder.parent.name} loss"].append((name, colour, points, False))
        curves = defaultdict(dict)   # quantity -> {step: value}
        for line in read_log(run):
            for key, value in line.items():
                if type(value) in (int, float) and math.isfinite(value):   # no bool
                    curves[key][line["step"]] = value
        for key in sorted(curves.keys() - {"step", "seconds", "lr", "valid_pool"}):
            title = key.removeprefix("valid_").replace("_", " ")
            plots[title].append((name, colour, list(curves[key].items()), "valid_" in key))
    figures = [line_plot(title, plots[title]) for title in sorted(plots)]
    return tag("div", *figures, class_="grid") if figures else ""


VERDICT_COLOURS = {"holds": 2, "fails": 1}   # of COLOURS


def result_of_claims(judged):
    """(The models in one sentence, which of the paper's claims hold as a picture, by a part of
    each); None where none was judged."""
    numbers = defaultdict(list)   # verdict -> claims
    rows = []
    for claim in judged["claims"]:
        if claim["number"] in PAPERS:
            verdict = claim["verdict"]
            numbers[verdict].append(claim["number"])
            # the part that decides it, else the first
            part = min(claim["parts"], key=lambda part: part["verdict"] != verdict)
            rows.append((f"{claim['number']}. {claim['text']}: {verdict}", part["name"],
                         part["values"], VERDICT_COLOURS.get(verdict, 0), 0))
    if not rows:
        return None
    worlds = len(judged["seeds"])
    means = []
    for arm, name in (("text-only", "text-only student"), ("nst+crd", "NST+CRD student"),
                      ("teacher", "its teacher")):
        values = judged["arms"].get(arm, {}).get("grounded")
        if values:
            n = "" if len(values) == worlds else f" (n={len(values)})"
            means.append(f"{name} {statistics.fmean(values):.1f} %{n}")
    sentence = f"{FILM_ALONE}, mean of {worlds} worlds: {', '.join(means)}; chance 50.0 %."
    said = [f"{verdict}: {', '.join(some)}" for verdict, some in numbers.items()]
    title = (f"The paper's claims in {worlds} mini worlds, by one difference of each, in points – "
             f"{'; '.join(said)}")
    return sentence, interval_plots({title: rows})


def report_claims(judged, questions=False):
    """A figure a claim, or a question: its parts' differences over worlds."""
    points = defaultdict(list)
    nats = defaultdict(list)   # on an axis of their own
    for claim in judged["claims"]:
        if (claim["said"] == "-") != questions:
            continue
        for part in claim["parts"]:
            colour = VERDICT_COLOURS.get(part["verdict"], 0)
            asked = "" if questions else f" ({part['question']})"
            row = (part["name"] + asked, effect_of(part), part["values"], colour, 0)
            if part["name"].startswith("MLM"):
                nats[headline(claim) + " (MLM, in nats)"].append(row)
            else:
                points[headline(claim)].append(row)
    drawn = Raw(interval_plots(points) + interval_plots(nats))
    if not drawn:
        return ""
    worlds = ", ".join(map(str, judged["seeds"]))
    source = f"Worlds {worlds}; commit {judged['commit']}; {judged['hardware']}."
    arms = judged["arms"]
    plots = [curve_plot("Claim 3, by steps of text", LENGTHS, CURVE, arms)]
    if questions:
        plots = [curve_plot(title, *shown, arms) for title, shown in QUESTION_CURVES.items()]
    arrived = arrival_table(arms) if questions else ""
    return tag("div", drawn, tag("div", *plots, class_="grid"), arrived, tag("p", source))


def curve_plot(title, places, lines, arms):
    """A plot of grounded tasks over the arms of each line, in the worlds that all of them have;
    hollow: a world."""
    arms = {arm: row for arm, row in arms.items() if "worlds" in row}   # older claims.json: none
    members = [arm for line in lines.values() for arm in line if arm in arms]
    shared = set.intersection(*[set(arms[arm]["worlds"]) for arm in members] or [set()])
    series = []
    for colour, (line, members) in enumerate(lines.items()):
        means = []
        every = []
        for place, arm in zip(places, members):
            row = arms.get(arm, {"worlds": [], "grounded": []})
            values = [value for world, value in zip(row["worlds"], row["grounded"])
                      if world in shared]
            every += [(place, value) for value in values]
            if values:
                means.append((place, statistics.fmean(values)))
        if len(means) > 1:
            series += [(line, colour, means, False), (line, colour, every, True)]
    return line_plot(f"{title}: grounded questions", series) if series else ""


def arrival_table(arms):
    """Probes of the teacher and of its students by objective, then of an image teacher and its
    student; a bar behind each runs from chance to 100 %."""
    rows = []
    for arm in ("teacher", *TUNED, "image-teacher", "of-image-teacher", "text-only"):
        probes = arms.get(arm, {})
        if not probes.get("lift"):
            continue
        cells = []
        for name, (_, answers) in data.PROPERTIES.items():
            known = statistics.fmean(probes[name])
            share = 1 - (100 - known) / (100 - 100 / len(answers))
            cells.append(tag("span", f"{known:.0f}", style=f"--share: {share:.2f}"))
        rows.append([arm, *cells])
    title = ("What arrives: probes of the teacher and of its students, accuracy in %; a bar runs "
             "from chance to 100 %")
    table = html_table(["arm", *data.PROPERTIES], rows)
    return tag("figure", tag("figcaption", title), table) if rows else ""


def films_of(folder):
    """{id: path} of the films that a data folder was made of; {} where they are gone."""
    splits = Path(folder, "splits.json")
    if not splits.exists():
        return {}
    videos = Path(data.read_json(splits, "", "videos")["videos"])
    return data.film_files(videos) if videos.is_dir() else {}


@functools.cache
def clip_uri(path, start, end):
    """Seconds start..end of a film, at most CLIP_SECONDS, as a data: URI of a small MP4: H.264, 10
    frames a second, the short side 112 pixels. Raises data.VideoError."""
    pictures = data.clip_pictures(path, start, min(end, start + CLIP_SECONDS), 10, 112)
    height, width, _ = pictures[0].shape
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "30"})
        stream.pix_fmt = "yuv420p"
        stream.height = height // 2 * 2   # yuv420p halves the colours' sides
        stream.width = width // 2 * 2
        for picture in pictures:
            picture = np.ascontiguousarray(picture[:stream.height, :stream.width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return "data:video/mp4;base64," + base64.b64encode(file.getvalue()).decode()


def show_clip(row, label, own, films):
    """A figure of one clip; where there is no film, the reason stands in its place."""
    place = f"{row['video']}, {row['start']:g} to {row['end']:g} s"
    words = f"{row['noun']}: {', '.join(row['shown'].values())}" if "shown" in row else place
    try:
        if row["video"] not in films:
            raise data.VideoError(f"no film {row['video']}")
        uri = clip_uri(films[row["video"]], row["start"], row["end"])
        clip = tag("video", src=uri, muted="", loop="", playsinline="", controls="",
                   preload="metadata", aria_label=f"{label}: {place}")
    except data.VideoError as error:
        clip = tag("p", error)
    caption = tag("figcaption", label, tag("small", words))
    return tag("figure", clip, caption, class_="true" if row == own else "")


def show_text(text, answers, films):
    """One text with its true clip and each run's best three. answers: {run: its example}."""
    own = next(iter(answers.values()))["own"]
    figures = [show_clip(own, "true clip", own, films)]
    ranks = []
    for name, example in answers.items():
        for place, row in enumerate(example["top"], 1):
            figures.append(show_clip(row, f"{name}: {place}", own, films))
        ranks.append(f"{name} ranks the true clip {example['rank']}")
    return tag("article", tag("h3", "“", text, "”"), tag("p", "; ".join(ranks), "."),
               tag("div", *figures, class_="clips"))


def report_clips(names, runs):
    """Texts with the clips that they found, then retrieval's numbers."""
    searched = read_each("retrieval.json", names, runs)
    if not searched:
        return ""
    texts = defaultdict(dict)   # runs that searched the same clips share a text
    scores = []
    for name, written in searched.items():
        for example in written["examples"]:
            texts[written["data"], example["index"], example["own"]["text"]][name] = example
        shares = [f"{key} {100 * value:.1f} %" for key, value in written.items()
                  if isinstance(value, float) and key != "median rank"]
        scores.append([name, written["how"], written["pool"], ", ".join(shares)])
    articles = []
    for (folder, _, text), answers in texts.items():
        films = films_of(folder)
        if films:   # there may be features alone
            articles.append(show_text(text, answers, films))
    play = tag("label", tag("input", type="checkbox", id="play"), " play the clips in view")
    shown = [play, tag("div", *articles, class_="grid")] if articles else []
    return tag("div", *shown, html_table(["run", "text beside video", "among", "found"], scores))


def report_runs(names, runs):
    """What was run: steps, seconds, versions and flags of each run, folded."""
    out = []
    for name, run in zip(names, runs):
        steps = max([line["step"] for line in read_log(run)], default=0)
        about = {"steps": steps, "seconds": seconds_by_stage(run), **run_facts(run)}
        out.append(tag("details", tag("summary", name), tag("pre", json.dumps(about, indent=1))))
    return tag("div", *out) if out else ""


def report(args):
    """`report`: writes one HTML file from what the run folders hold; no model is loaded. Names the
    commands whose results are missing; the last line is the result."""
    given = [Path(run) for run in args.runs or sorted(Path("runs").glob("*"))]
    files = args.claims or []
    runs = [run for run in given if (run / "args.json").exists() or (run / "finetune").exists()]
    absent = [str(run) for run in given if not run.exists()]
    if absent or not (runs or (files and not args.runs)):
        raise model.UserError(f"no run in {', '.join(absent) or 'runs/'}; `make` makes some")
    beside = Path((runs + files)[0]).resolve().parent
    names = names_of(runs, args.names)
    cells = [cells_of(read_results(run)) for run in runs]
    files = files or list(beside.glob("claims/claims.json"))
    judged = [data.read_json(file, "make claims") for file in files]
    films = [each for each in judged if "sentence" in each]   # of tests/film.py: the result itself
    judged = [each for each in judged if "sentence" not in each]
    sections = [   # heading, what makes it, what to look for, content
        ("Clips", "evaluate.py retrieve",
         "A text should bring the true clip (green) first; texts were drawn before any score was "
         "seen.",
         report_clips(names, runs)),
        ("Results", "finetune.py",
         "The student should lead where only film answers (grounded) and stand at chance on nouns "
         "never filmed. !: a seed that gives every row one answer; *: trained on half a dev file.",
         report_results(names, cells)),
        ("Probes", "evaluate.py probe",
         "What a noun's vector tells of the thing, by a linear map that never saw that noun.",
         report_probes(names, runs)),
        ("Training", "make",
         "By step; hollow: held-out text or clips (r1, median rank: within a batch).",
         report_curves(names, runs)),
        ("Claims", "" if films else "make claims",
         "Differences of two arms (models) in points; hollow: a world. text-only: a student by MLM "
         "alone; nst+crd: one that also learns from the teacher by NST and CRD; of-X-teacher: "
         "nst+crd with teacher X. Mechanism: is there an effect? Magnitude: how large, which needs "
         "the paper's scale.",
         Raw("".join(report_claims(each) for each in judged))),
        ("Questions", "",
         "Arms that differ in one thing, less the usual one, on a few worlds; hollow: a world.",
         Raw("".join(report_claims(each, questions=True) for each in judged))),
        ("Runs", "", "What was run.", report_runs(names, runs))]
    if args.claims:   # what was asked for comes first
        sections.sort(key=lambda section: section[0] not in ("Claims", "Questions"))
    links = []
    shown = []
    missing = []
    for heading, command, look, content in sections:
        if content:
            links.append(tag("li", tag("a", heading, href=f"#{heading}")))
            shown.append(tag("section", tag("h2", heading), tag("p", look), content, id=heading))
        elif command and runs:
            missing.append(f"No {heading.lower()} yet: `{command}` makes them. ")
    sentence, picture = result(names, cells)
    if judged and not runs:
        sentence = judged[0]["claims"][0]["text"]
    if films:
        sentence, picture = films[0]["sentence"], report_claims(films[0])
    elif args.claims:
        sentence, picture = next(filter(None, map(result_of_claims, judged)), (sentence, picture))
    legend = ("Hollow: seeds, or worlds; full: their mean; bar: its 95 % interval; dashed: chance, "
              "or no difference. A mini world shows whether the mechanism works, not what "
              "HowTo100M does for GLUE. ")
    head = tag("div", tag("h1", sentence.replace(" %", "\u00a0%")), tag("p", legend, *missing),
               tag("nav", tag("ul", *links)))
    out = Path(args.out or beside / "report.html")
    data.write_text(out, PAGE.replace("BODY", tag("header", head, picture) + tag("main", *shown)))
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB", *missing, sentence, sep="\n")


# --------------------------------------------------------------------------------------------------


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("table", help="a column a run; rows: tasks and their parts")
    command.add_argument("runs", nargs="+", help="run folders")
    command.add_argument("--names", nargs="+", help="their names (default: the folders')")
    command.set_defaults(function=table)

    command = commands.add_parser("squad", help="exact and F1, as SQuAD's official script counts")
    command.add_argument("dataset", help="the data set's JSON")
    command.add_argument("predictions", help="JSON, id -> text")
    command.add_argument("--na-prob", help="JSON, id -> probability or odds of no answer")
    command.set_defaults(function=show_squad)

    command = commands.add_parser("retrieve", help="text-to-video retrieval among held-out clips")
    command.add_argument("runs", nargs="+", help="run folders; one at least with a video encoder")
    command.add_argument("--data", default="data/mini", help="the data folder")
    command.add_argument("--bank", help="clips to search (default: the mini world's, else the "
                                        "first of each held-out video)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    command.set_defaults(function=show_retrieval)

    command = commands.add_parser("probe", help="linear probes of the mini world's properties")
    command.add_argument("runs", nargs="+", help="run folders")
    command.add_argument("--data", default="data/mini", help="the mini world's folder")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    command.set_defaults(function=show_probes)

    command = commands.add_parser("sts", help="similarity of sentences by genre, no fine-tuning")
    command.add_argument("runs", nargs="+", help="run folders, or any BERT in Hugging Face form")
    command.add_argument("--names", nargs="+", help="their names (default: the folders')")
    command.add_argument("--data", default="data/tasks/STS-B", help="STS-B's folder")
    command.add_argument("--leave-out", help="captions as JSON: pairs with one of them stay out")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    command.set_defaults(function=show_sts)

    command = commands.add_parser("claims", help="the paper's comparisons over worlds")
    command.add_argument("--runs", default="runs/claims", help="holds values.jsonl, claims.json")
    command.add_argument("--seeds", nargs="+", type=int, help="worlds (default: all of 1 to 99)")
    command.add_argument("--claims", nargs="+", choices=CLAIMS, default=[], metavar="CLAIM",
                         help=f"of {', '.join(CLAIMS)} (default: all claims)")
    command.add_argument("--make", type=data.positive, metavar="N", help="first train and measure "
                         "what is missing for --seeds, N runs at once")
    command.add_argument("--values", help="judge this file instead; writes only --out")
    command.add_argument("--out", help="the JSON file (default: RUNS/claims.json)")
    command.set_defaults(function=claims)

    command = commands.add_parser("report", help="one HTML file of all the run folders hold")
    command.add_argument("runs", nargs="*", help="run folders (default: those in runs/)")
    command.add_argument("--names", nargs="+", help="their names (default: the folders')")
    command.add_argument("--out", help="the file (default: report.html beside the first run, or "
                                       "file of --claims)")
    command.add_argument("--claims", nargs="+", help="files that `claims` or tests/*.py judged "
                         "(default: claims/claims.json beside the first run)")
    command.set_defaults(function=report)

    args = parser.parse_args(argv)
    args.function(args)


if __name__ == "__main__":
    model.command(main)
