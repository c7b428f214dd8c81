"""Real film, small (tests/film.py): its data, similarity of sentences, and how it is judged.

    REAL_DATA=FOLDER python -m pytest -q tests/test_film.py
"""
import copy
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch

import data
import evaluate
import film
import model
import teacher

HERE = Path(__file__).resolve().parent
KEPT = HERE / "film.jsonl"


@pytest.fixture(scope="module")
def films(real_data, tmp_path_factory):
    """The folder of the films' data, as `make data/msrvtt` makes it; beside it msrvtt-words."""
    folder = tmp_path_factory.mktemp("film") / "msrvtt"
    film.write_files(real_data / "msrvtt", folder)
    data.captions_command(SimpleNamespace(
        videos=folder / "features" / "film", captions=folder / "caption.json", out=folder,
        vocab=real_data / "vocab" / "bert-base-uncased-vocab.txt", held_out=None))
    film.word_data(folder, folder.with_name("msrvtt-words"))
    return folder


# --------------------------------------------------------------------------------------------------
# Data


def test_nothing_of_the_held_out_films_is_trained_on(films, real_data):
    splits = data.read_json(films / "splits.json", "")
    by_hash = sorted(film.FILMS, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    assert splits["valid"] == sorted(by_hash[:100])
    assert splits["train"] == sorted(by_hash[100:])
    words = data.read_json(films.with_name("msrvtt-words") / "splits.json", "")
    assert words == splits
    # the text is of the 9,000 other films, each sentence once
    sentences = film.read_sentences(real_data / "msrvtt")
    assert len(sentences) == 10_000 and {len(each) for each in sentences.values()} == {20}
    written = ""
    for split in ("train", "valid"):
        written += (films / "text" / f"{split}.txt").read_text()
    others = [text for name, texts in sentences.items() if name not in film.FILMS
              for text in texts]
    assert written.splitlines() == others and len(others) == 180_000


def test_words_are_never_of_the_examples_own_sentences(films):
    """Each different sentence of a film gets a column of its own, instead of its words' signs."""
    folder = films.with_name("msrvtt-words")
    tokenizer = data.load_tokenizer(folder)
    for split in ("train", "valid"):
        clips = data.Clips(folder, split, ["words"], tokenizer, 32, 48, 1)
        given = data.Clips(films, split, ["film"], tokenizer, 32, 48)
        for index, (first, last) in enumerate(clips.spans.tolist()):
            marked = copy.copy(clips)
            marked.tokens = np.zeros_like(clips.tokens)
            numbers = {}
            for row in range(first, last):
                inside = slice(clips.bounds[row], clips.bounds[row + 1])
                marked.tokens[inside] = numbers.setdefault(clips.tokens[inside].tobytes(),
                                                           len(numbers))
            steps = film.word_steps(marked, index, np.eye(len(numbers)))    # [T, sentences]
            assert len(steps) == last - first and (steps.sum(1) > 0.999).all()
            for row in range(first, last):
                _, start, end = clips.stretch(index, row)
                own, _, _ = marked.stretch(index, row)
                assert (steps[int(start):int(end)][:, own] == 0).all()
        # the same examples as beside films
        for index in range(0, len(clips), 50):
            draws = [np.random.default_rng(index) for _ in range(2)]
            words, step = clips.example(index, draws[0])
            same, seen = given.example(index, draws[1])
            assert np.array_equal(words, same)
            assert step.shape == (1, 128) and seen.shape == (48, 128)


def test_a_teacher_of_films_learns_in_20_steps(films, tmp_path):
    teacher.main(["--data", str(films), "--size", "mini", "--steps", "20", "--batch", "64",
                  "--warmup", "5", "--log-every", "1", "--out", str(tmp_path / "film")])
    log = [line for line in evaluate.read_log(tmp_path / "film") if "mlm" in line]
    for loss in ("contrastive", "mlm"):
        values = [line[loss] for line in log]
        assert np.mean(values[-5:]) < 0.95 * np.mean(values[:5])
    # then it can be measured
    assert evaluate.retrieve(tmp_path / "film", films)["chance R@1"] == 0.01


# --------------------------------------------------------------------------------------------------
# Similarity of sentences


def test_sts_is_that_of_scipy_a_sentence_at_a_time(real_data, films, tmp_path):
    folder = real_data / "glue" / "STS-B"
    tokenizer = data.load_tokenizer(films)
    torch.manual_seed(0)
    config = model.BertConfig(vocab_size=tokenizer.get_vocab_size(), hidden_size=32,
                              num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
                              max_position_embeddings=128, block=32)
    bert = model.Bert(config).eval()
    model.save_hf(tmp_path, config, bert, model.MLMHead(config, bert.tokens), tokenizer)
    pairs, missing = evaluate.sts_pairs(folder)
    assert {genre: len(rows) for genre, rows in pairs.items()} == {
        "MSRvid": 1250, "images": 1250, "track5.en-en": 125, "news": 3799, "forums": 825}
    assert not missing
    pairs = {genre: pairs[genre][:60] for genre in ("MSRvid", "news", "forums")}
    found = evaluate.sts(tmp_path, pairs)
    for genre, rows in pairs.items():
        means = []
        for row in rows:
            for sentence in row[:2]:
                tokens = tokenizer.encode(sentence).ids[1:-1][:30]
                tokens = torch.tensor([[101, *tokens, 102]])
                means.append(bert(tokens)[0, 1:-1].mean(0).detach().numpy())
        means = np.array(means) - np.mean(means, 0)
        cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                   for a, b in zip(means[::2], means[1::2])]
        expected = scipy.stats.spearmanr([row[2] for row in rows], cosines).statistic
        assert found[genre] == pytest.approx(expected, abs=1e-4)


def test_sentences_of_films_stay_out(real_data, tmp_path, capsys):
    folder = real_data / "glue" / "STS-B"
    everything, _ = evaluate.sts_pairs(folder)
    pairs, missing = evaluate.sts_pairs(folder, ["the plane is taking off"])
    gone = [row for row in everything["MSRvid"] if row not in pairs["MSRvid"]]
    assert ("A plane is taking off.", "An air plane is taking off.", 5.0) in gone
    assert len(gone) == missing["MSRvid"] == sum(missing.values())
    assert all("plane is taking off" in f"{first} {second}" for first, second, _ in gone)


# --------------------------------------------------------------------------------------------------
# Judging


def cell(arm, seed, captions):
    return {"arm": arm, "seed": seed, "flags": film.recipe(arm), "mlm": 2.5, "seconds": 60.0,
            "sts": {"MSRvid": captions, "images": captions, "news": 0.3, "forums": 0.2},
            "retrieval": {"R@1": 0.1, "R@10": 0.3, "median rank": 9.0} if "film" in arm else {},
            "probe": {"color": 0.5, "chance color": 0.4, "material": 0.4, "chance material": 0.3},
            "commit": "abc", "hardware": "2 x CPU", "threads": 1}


def test_comparisons_are_paired_and_corrected(tmp_path, capsys):
    values = {"of film": (0.60, 0.70, 0.65), "of shuffled": (0.50, 0.52, 0.45),
              "of words": (0.61, 0.69, 0.66), "film": (0.5, 0.5, 0.5)}
    with open(tmp_path / "values.jsonl", "w") as file:
        for arm, of_arm in values.items():
            for seed, value in enumerate(of_arm, 10):
                file.write(json.dumps(cell(arm, seed, value)) + "\n")
        file.write(json.dumps(cell("of film", 0, 0.9)) + "\n")   # chose settings: not reported
        file.write(json.dumps({**cell("of words", 13, 0.1), "flags": "other"}) + "\n")
    film.main(["judge", "--values", str(tmp_path / "values.jsonl"),
               "--out", str(tmp_path / "film.json")])
    judged = data.read_json(tmp_path / "film.json", "")
    shuffled, words = judged["claims"][0]["parts"]
    assert judged["seeds"] == [10, 11, 12]
    assert shuffled["values"] == pytest.approx([10, 18, 20])
    interval = scipy.stats.t.interval(0.95, 2, 16, scipy.stats.sem([10, 18, 20]))
    assert (shuffled["low"], shuffled["high"]) == pytest.approx(interval)
    assert shuffled["verdict"] == "above 0" and words["verdict"] == "includes 0"
    p = scipy.stats.ttest_rel(values["of film"], values["of shuffled"]).pvalue
    printed = capsys.readouterr().out
    assert f"n=3, p {2 * p:.2g} after Holm" in printed   # the smaller of two, doubled
    assert "would exclude 0 with" in printed
    # the report shows it with every arm
    assert judged["sentence"].count(" [") == 2 and "one of words by" in judged["sentence"]
    page = evaluate.report_claims(judged)
    assert all(f">{arm} (student)<" in page for arm in ("of film", "of words"))


def test_the_readme_says_what_the_kept_values_say(capsys):
    film.main(["judge", "--values", str(KEPT)])
    effects = r"^of film less of \w+: ([+-][\d.]+(?: \[.*?\])?)"
    printed = re.findall(effects, capsys.readouterr().out, re.M)
    said = " ".join((HERE.parent / "README.md").read_text().split())
    assert len(printed) == 2
    for effect in printed:
        assert effect in said
