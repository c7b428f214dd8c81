"""Intervals by hand, tables from files, retrieval of runs that were moved or lack something.

    python -m pytest tests/test_evaluate.py
"""
import json
import math
import shutil

import numpy as np
import pytest
import torch

import data
import distill
import evaluate
import finetune
import model
import teacher

# --------------------------------------------------------------------------------------------------
# Intervals and tables


def test_t_interval_by_hand():
    # 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653: half-width 4.302653 / sqrt(3)
    expected = (2, pytest.approx(2 - 2.484138, abs=1e-5), pytest.approx(2 + 2.484138, abs=1e-5))
    assert evaluate.t_interval([1, 2, 3]) == expected
    nan = pytest.approx(math.nan, nan_ok=True)
    assert evaluate.t_interval([5]) == (5, nan, nan)
    assert evaluate.t_interval([]) == (nan, nan, nan)
    part = {"name": "R@1: a - b", "values": [1], "mean": 0.5, "low": -1, "high": 2, "verdict": "-"}
    assert evaluate.effect_of(part) == "+0.5 [-1.0, +2.0]"
    assert evaluate.effect_of({**part, "name": "MLM: a - b"}) == "+0.50 [-1.00, +2.00]"
    assert evaluate.effect_of({**part, "low": math.nan}) == "+0.5"


def write(run, task, seed, grounded=None, majority=False, **splits):
    """A metrics.json as finetune.py writes it; grounded: {part: accuracy} of a mini test split."""
    parts = {}
    if grounded:
        cells = {part: {"accuracy": value, "n": 10, "chance": 0.5}
                 for part, value in grounded.items()}
        parts = {"test": cells}
    folder = run / "finetune" / task / f"seed-{seed}"
    folder.mkdir(parents=True)
    data.write_json(folder / "metrics.json", {
        "task": task, "seed": seed, "seconds": 4.0, "majority": majority, "split_dev": False,
        "parts": parts, **splits})


def rows_of(printed):
    """The rows of a printed table: {label: its cells}, two or more spaces between them."""
    rows = {}
    for line in printed.splitlines():
        label, *cells = [cell.strip() for cell in line.split("  ") if cell.strip()] or [""]
        rows.setdefault(label, []).extend(cells)
    return rows


def test_the_median_of_an_even_count_lies_between_the_middle_two():
    ranks = torch.tensor([9, 1, 10, 2])
    found = evaluate.retrieval_metrics(ranks, torch.zeros(4, 3), [{}] * 4)
    assert found["median rank"] == 5.5 and found["R@1"] == 0.25 and found["R@10"] == 1.0


def test_table_has_a_column_a_run(tmp_path, capsys):
    student = tmp_path / "student"
    for seed, value in enumerate((0.6, 0.7, 0.8)):
        parts = {"grounded": value, "ungrounded": 1.0, "unfilmed": 0.5}
        write(student, "QNLI", seed, parts, majority=seed == 2)
    write(student, "QQP", 0, dev={"accuracy": 0.8, "f1": 0.6, "n": 9, "chance": 0.3})
    (tmp_path / "other").mkdir()
    evaluate.main(["table", str(student), str(tmp_path / "other")])
    printed = capsys.readouterr().out
    rows = rows_of(printed)
    # 60, 70, 80: deviation 10 with n - 1; QQP is the mean of 80 and 60
    assert rows["QNLI grounded"] == ["50.0", "10", "70.0 ± 10.0 (n=3, median 70.0)!", "not run"]
    assert rows["QQP dev"] == ["30.0", "9", "70.0 (n=1)", "not run"]
    labels = [label for label in rows if label.startswith("Q")]
    assert labels == ["QQP dev", "QNLI grounded", "QNLI ungrounded", "QNLI unfilmed"]
    assert "! a seed that gives every row one answer: student QNLI seed 2" in printed


def test_seconds_of_a_run(tmp_path):
    assert evaluate.seconds_by_stage(tmp_path) == {}
    for seed in (0, 1):
        write(tmp_path, "QQP", seed)
    lines = [json.dumps({"step": step, "seconds": 12.5 * step}) + "\n" for step in (1, 2)]
    (tmp_path / "log.jsonl").write_text("".join([*lines, '{"step": 3, "sec']))   # cut
    assert evaluate.seconds_by_stage(tmp_path) == {"pretraining": 25, "fine-tuning": 8}


def test_a_table_fits_a_terminal(tmp_path, capsys, monkeypatch):
    """Four runs of three seeds need more than 100 columns: what does not fit comes below."""
    monkeypatch.setenv("COLUMNS", "100")
    names = ("text-only", "student", "teacher", "image teacher")
    for name in names:
        for seed in (0, 1, 2):
            write(tmp_path / name, "TRACIE-uniform-prior", seed, {"ungrounded": 0.5 + 0.1 * seed})
    evaluate.main(["table", *[str(tmp_path / name) for name in names]])
    table = capsys.readouterr().out.split("\nchance:")[0]
    assert max(len(line) for line in table.splitlines()) <= 100
    assert rows_of(table)["TRACIE-uniform-prior ungrounded"][2:] == [
        "60.0 ± 10.0 (n=3, median 60.0)"] * 4


def test_runs_of_one_name_stay_apart():
    runs = ["world-1/crd", "world-2/crd", "world-2/nst"]
    assert evaluate.names_of(runs) == ["world-1/crd", "world-2/crd", "nst"]
    with pytest.raises(model.UserError, match="gives 1 names for 3 runs"):
        evaluate.names_of(runs, ["student"])


def test_analysis_sets_are_rows(tmp_path, capsys):
    """GLUE-diagnostics' categories of MNLI's model, TRACIE's scores of mini and of real files."""
    categories = {"overall": {"accuracy": 0.6, "matthews": 0.3, "n": 9, "chance": 0.4},
                  "Logic: Negation": {"accuracy": 0.95, "matthews": 0.9, "n": 2, "chance": 0.5},
                  "Knowledge": {"accuracy": 0.5, "matthews": 0.25, "n": 4, "chance": 0.375}}
    dev = {"accuracy": 0.8, "n": 9, "chance": 0.3}
    write(tmp_path / "real", "MNLI", 0, dev=dev, categories=categories)
    scores = {"accuracy": 0.7, "n": 8, "chance": 0.5, "start": 0.625, "end": None, "story": 0.125,
              "starts": 8, "ends": 0, "stories": 3}
    write(tmp_path / "real", "TRACIE-iid", 0, test=scores)
    write(tmp_path / "mini", "TRACIE", 0, {"grounded": 0.875}, test=scores)
    evaluate.main(["table", str(tmp_path / "real"), str(tmp_path / "mini")])
    rows = rows_of(capsys.readouterr().out)
    assert rows["MNLI dev"] == ["30.0", "9", "80.0 (n=1)", "not run"]
    assert rows["diagnostics accuracy overall"] == ["40.0", "9", "60.0 (n=1)", "not run"]
    assert rows["diagnostics Matthews Knowledge"] == ["0.0", "4", "25.0 (n=1)", "not run"]
    assert "diagnostics Matthews Logic: Negation" not in rows   # of two questions
    assert rows["TRACIE-iid test"] == ["50.0", "8", "70.0 (n=1)", "not run"]
    assert rows["TRACIE-iid end"] == ["-", "0", "not defined", "not run"]
    assert rows["TRACIE grounded"] == ["50.0", "10", "not run", "87.5 (n=1)"]
    assert rows["TRACIE story"] == ["-", "3", "not run", "12.5 (n=1)"]


def test_table_says_what_is_missing(tmp_path):
    with pytest.raises(model.UserError, match="no run folder"):
        evaluate.main(["table", str(tmp_path / "nowhere")])
    with pytest.raises(model.UserError, match="finetune.py"):
        evaluate.main(["table", str(tmp_path)])


# --------------------------------------------------------------------------------------------------
# Retrieval


def test_ties_and_what_is_no_number_count_against_a_text():
    nan = float("nan")   # times 0 it is nan, too
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.9, 0.2, 0.1], [0.1, 0.2, nan]])
    assert evaluate.search(scores, torch.eye(3))[0].tolist()[:2] == [2, 2]
    ranks, _ = evaluate.search(torch.tensor([[0.1], [nan]]), torch.tensor([[1.0], [1.0]]))
    assert ranks.tolist() == [2, 2]


def test_search_in_pieces_is_the_whole_search():
    """1,500 texts are searched in six pieces: against all scores at once, sorted."""
    generator = torch.Generator().manual_seed(0)
    texts, videos = torch.randn(2, 1500, 8, generator=generator, dtype=torch.float64)
    order = (texts @ videos.T).argsort(1, descending=True)
    ranks, best = evaluate.search(texts, videos)
    own = order == torch.arange(1500)[:, None]
    assert torch.equal(ranks, own.nonzero()[:, 1] + 1)
    assert torch.equal(best, order[:, :3])


def test_ties_do_not_depend_on_the_place_in_a_piece():
    """Each clip thrice, anywhere: against scores of the distinct clips, each counted three times.

    A float32 product of matrices sums the columns of its edges in another order.
    """
    generator = torch.Generator().manual_seed(0)
    clips = torch.nn.functional.normalize(torch.randn(342, 768, generator=generator), dim=1)
    which = torch.arange(342).repeat(3)[torch.randperm(1026, generator=generator)]
    texts = clips[which] + 0.02 * torch.randn(1026, 768, generator=generator)
    scores = (texts.double() @ clips.double().T).float()               # [1026, 342]
    own = scores.gather(1, which[:, None])                             # [1026, 1]
    ranks, _ = evaluate.search(texts, clips[which])
    assert torch.equal(ranks, 3 * (scores >= own).sum(1))


def test_a_ridge_map_is_fitted_on_texts_of_known_nouns_alone():
    nouns = {"pear", "kite", "drum", "sofa"}
    known = {"pear", "kite"}
    assert evaluate.names_only("we heat the pear and see me push a kite again", known, nouns)
    assert not evaluate.names_only("we heat the pear and now we push the drum", known, nouns)
    assert not evaluate.names_only("see what happens to it then", known, nouns)


FLAGS = ["--batch", "16", "--steps", "2", "--size", "mini", "--precision", "fp32"]


@pytest.fixture(scope="module")
def runs(mini, tmp_path_factory):
    """A folder of a teacher, its student and a text-only student of two steps each."""
    folder = tmp_path_factory.mktemp("runs")
    text = ["--text", str(mini / "text"), *FLAGS]
    teacher.main(["--data", str(mini), "--out", str(folder / "teacher"), *FLAGS])
    distill.main(["--teacher", str(folder / "teacher"), "--objective", "crd", "--crd-queue", "64",
                  "--crd-tokens", "4", "--out", str(folder / "student"), *text])
    distill.main(["--objective", "none", "--out", str(folder / "text-only"), *text])
    return folder


def test_a_student_needs_no_teacher_to_search(mini, runs, tmp_path, capsys):
    """Moved, its teacher gone, even its args.json lost: the same ranks."""
    before = evaluate.retrieve(runs / "student", mini)
    assert 0 <= before["ridge map, R@1, new nouns"] <= 1
    shutil.copytree(runs, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "teacher")
    moved = tmp_path / "moved" / "student"
    (moved / "args.json").unlink()
    evaluate.main(["retrieve", str(moved), "--data", str(mini)])
    assert json.loads((moved / "retrieval.json").read_text())["ranks"] == before["ranks"]
    printed = capsys.readouterr().out
    assert "among 288 clips of 288 held-out videos; mean of e_s(token) against e_t(v)" in printed


def test_a_run_without_video_borrows_an_encoder(mini, runs, capsys):
    names = [str(runs / name) for name in ("text-only", "teacher")]
    evaluate.main(["retrieve", *names, "--data", str(mini)])
    printed = capsys.readouterr().out
    assert f"not defined (ridge map: video encoder of {names[1]})" in printed
    written = json.loads((runs / "text-only" / "retrieval.json").read_text())
    assert written["ranks"] == written["examples"] == [] and "R@1" not in written
    assert 0 <= written["ridge map, R@1, new nouns"] <= 1
    with pytest.raises(model.UserError, match="no trained video encoder .* list a teacher"):
        evaluate.main(["retrieve", names[0], "--data", str(mini)])


def test_banks_hold_held_out_clips_each_once(mini, runs, tmp_path, capsys):
    """Clips that the teacher learnt from tell nothing of retrieval."""
    rows = data.read_json(mini / "retrieval.json", "")
    splits = data.read_json(mini / "splits.json", "")
    bank = tmp_path / "bank.json"
    command = ["retrieve", str(runs / "teacher"), "--data", str(mini), "--bank", str(bank)]
    bank.write_text(json.dumps([*rows[:4], {**rows[5], "video": splits["train"][0]}]))
    with pytest.raises(model.UserError, match="is no held-out video.* bank .*--split valid"):
        evaluate.main(command)
    later = {**rows[0], "start": rows[0]["end"], "end": rows[0]["end"] + 1}
    bank.write_text(json.dumps([*rows[:4], later, rows[1]]))
    evaluate.main(command)
    assert "among 5 clips of 4 held-out videos" in capsys.readouterr().out


def test_any_data_folder_has_a_pool(mini, runs, tmp_path, capsys):
    """A user's own folder holds no retrieval.json: the opening of each held-out video serves."""
    own = tmp_path / "own"
    own.mkdir()
    for path in mini.iterdir():
        if path.name not in ("retrieval.json", "world.json", "splits.json"):
            (own / path.name).symlink_to(path)
    splits = data.read_json(mini / "splits.json", "")
    (own / "splits.json").write_text(json.dumps({**splits, "valid": splits["valid"][:9]}))
    evaluate.main(["retrieve", str(runs / "student"), "--data", str(own)])
    assert "among 9 clips of 9 held-out videos" in capsys.readouterr().out
    written = json.loads((runs / "student" / "retrieval.json").read_text())
    assert len(written["ranks"]) == len(written["examples"]) == 9
    assert written["data"] == str(own)
    assert {example["own"]["video"] for example in written["examples"]} == set(splits["valid"][:9])
    assert not any("new nouns" in key for key in written)


@pytest.mark.parametrize("objective, head", [
    ("crd", "mlp"), ("regression", "none"), ("regression", "mlp")])
def test_students_search_as_their_objective_says(mini, runs, tmp_path, objective, head):
    """Ranks against sums over tokens, a text and a clip at a time, from the saved weights."""
    run = tmp_path / "run"
    distill.main(["--teacher", str(runs / "teacher"), "--text", str(mini / "text"), "--head", head,
                  "--objective", objective, "--crd-queue", "64", "--crd-tokens", "4",
                  "--out", str(run), *FLAGS])
    weights = torch.load(run / "model" / "distill_heads.pt", weights_only=True)["weights"]
    config, bert, _ = model.load_hf(run / "model")
    encoder, settings = model.load_video_encoder(run / "model" / "video_encoder.pt")
    tokenizer = data.load_tokenizer(run / "model")
    clips = data.Clips(mini, "valid", settings["streams"], tokenizer, config.block,
                       settings["max_steps_clip"])
    mapped = torch.nn.Identity()
    if head == "mlp":
        mapped = model.DistillHead(config, config.hidden_size)
        start = f"{objective}_head."
        own = {key[len(start):]: weights[key] for key in weights if key.startswith(start)}
        mapped.load_state_dict(own)

    def embedded(name, x):
        if objective == "crd":
            x = weights[f"crd.{name}_embed.weight"] @ x + weights[f"crd.{name}_embed.bias"]
        return x / x.norm()
    texts = []
    videos = []
    pool = data.read_bank(mini / "retrieval.json")[:40]
    with torch.no_grad():
        for row in pool:
            tokens = torch.tensor([tokenizer.encode(row["text"]).ids])
            hidden = mapped(bert.eval()(tokens))[0, 1:-1]              # [L - 2, H]
            total = sum(embedded("student", vector) for vector in hidden)
            texts.append(total / total.norm())
            features = torch.from_numpy(clips.clip(row["video"], row["start"], row["end"]))[None]
            real = torch.ones(1, features.shape[1], dtype=torch.bool)
            video = encoder.eval()(features, real)[0]
            videos.append(embedded("teacher", video / video.norm()))
    (tmp_path / "bank.json").write_text(json.dumps(pool))
    result = evaluate.retrieve(run, mini, tmp_path / "bank.json")
    for index, rank in enumerate(result["ranks"]):
        scores = [float(texts[index] @ video) for video in videos]
        above = sum(score > scores[index] + 1e-5 for score in scores) + 1
        near = sum(score >= scores[index] - 1e-5 for score in scores)
        assert above <= rank <= near


def test_probe_prints_and_writes_every_property(mini, runs, capsys, monkeypatch):
    monkeypatch.setattr(data, "SPOKEN", data.SPOKEN[:2])   # ten sentences take seconds
    evaluate.main(["probe", str(runs / "teacher"), "--data", str(mini)])
    rows = rows_of(capsys.readouterr().out)
    assert rows["chance"] == ["50.0", "50.0", "50.0", "50.0", "25.0", "50.0", "50.0"]
    written = json.loads((runs / "teacher" / "probe.json").read_text())
    assert set(written) == set(data.PROPERTIES)
    shown = [f"{100 * written[name]['test']:.1f}" for name in data.PROPERTIES]
    assert rows["teacher, test nouns"] == shown


def test_a_run_is_asked_about_its_own_world(mini, runs, tiny_tokenizer, tmp_path):
    """Another world's questions would be answered by lot, and read as if it knew nothing."""
    world = json.loads((mini / "world.json").read_text())
    (tmp_path / "world.json").write_text(json.dumps(world))
    data.keep_tokenizer(tiny_tokenizer, tmp_path)
    run = str(runs / "teacher")
    for command in (["probe", run], ["retrieve", run]):
        with pytest.raises(model.UserError, match=f"teacher/model .* world of {tmp_path}"):
            evaluate.main([*command, "--data", str(tmp_path)])
    with pytest.raises(model.UserError, match=f"teacher/model .* world of {tmp_path}"):
        finetune.main(["--model", run, "--data", str(tmp_path / "tasks")])
    data.check_world(tmp_path / "anyone" / "model", tmp_path)   # a model that is no run of ours
    unfinished = tmp_path / "run"
    unfinished.mkdir()
    data.write_json(unfinished / "args.json", {})
    with pytest.raises(model.UserError, match="config.json"):
        evaluate.main(["probe", str(unfinished), "--data", str(mini)])


def test_ridge_probe_takes_the_strength_of_the_least_error():
    """Against the normal equations at each strength, judged by the hat matrix's diagonal."""
    generator = data.numpy_generator(0, "ridge")
    x = generator.normal(size=(12, 3))
    y = x @ generator.normal(size=(3, 2)) + 0.3 * generator.normal(size=(12, 2))
    scaled = (x - x.mean(0)) / (x.std(0) + 1e-6)
    centred = y - y.mean(0)
    fits = []
    for strength in (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0):
        hat = scaled @ np.linalg.inv(scaled.T @ scaled + strength * np.eye(3)) @ scaled.T
        left_out = (centred - hat @ centred) / (1 - np.diag(hat) - 1 / 12)[:, None]
        fits.append(((left_out ** 2).mean(), strength, hat @ centred + y.mean(0)))
    best = min(fits, key=lambda fit: fit[:2])
    assert evaluate.ridge_probe(x, y, x) == pytest.approx(best[2])


def test_noun_vectors_are_means_over_single_sentences(mini, runs):
    """Against a sentence at a time, without padding."""
    folder = runs / "student" / "model"
    _, bert, _ = model.load_hf(folder)
    tokenizer = data.load_tokenizer(folder)
    texts = {}
    expected = []
    with torch.no_grad():
        for noun in list(data.read_json(mini / "world.json", "")["nouns"])[:5]:
            texts[noun] = [f"we drop the {noun}", f"my {noun} is this so heat it"]
            vectors = []
            for text in texts[noun]:
                encoding = tokenizer.encode(text)
                hidden = bert.eval()(torch.tensor([encoding.ids]))[0]           # [L, H]
                vectors.append(hidden[encoding.tokens.index(noun)])
            expected.append(torch.stack(vectors).mean(0))
    assert evaluate.noun_vectors(folder, texts) == pytest.approx(torch.stack(expected), abs=1e-6)


# --------------------------------------------------------------------------------------------------
# Another device. (test_gpu.py compares a GPU's numbers with the CPU's.)


@pytest.fixture
def given(monkeypatch):
    """On "meta", a second device on any machine; its values come back as zeros.

    Yields {network, or "search": devices of the tensors that it was given}.
    """
    cpu = torch.Tensor.cpu

    def zeros(tensor):
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else cpu(tensor)
    monkeypatch.setattr(torch.Tensor, "cpu", zeros)
    search = evaluate.search
    devices = {}

    def note(name, inputs):
        for tensor in filter(torch.is_tensor, inputs):
            devices.setdefault(name, set()).add(tensor.device.type)

    def searched(*vectors):
        note("search", vectors)
        return search(*vectors)
    monkeypatch.setattr(evaluate, "search", searched)
    hook = torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, inputs: note(type(module).__name__, inputs))
    yield devices
    hook.remove()


@pytest.mark.filterwarnings("ignore:.*copying from a non-meta parameter")
def test_retrieval_runs_on_the_device_asked_for(mini, runs, given):
    evaluate.main(["retrieve", str(runs / "student"), "--data", str(mini), "--device", "meta"])
    assert set(map(tuple, given.values())) == {("meta",)}
    assert {"Bert", "VideoEncoder", "DistillHead", "search"} <= given.keys()


def test_probes_run_on_the_best_device_by_themselves(mini, runs, given, monkeypatch):
    monkeypatch.setattr(data.Processes, "best_device", lambda processes: "meta")
    evaluate.main(["probe", str(runs / "teacher"), "--data", str(mini)])
    assert given["Bert"] == {"meta"}
