"""Masks, features, data sets, banks: each against a slow or known answer.

    python -m pytest tests/test_data.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_data.py      # also the real films
"""
import json
import math
import re

import numpy as np
import pytest
import torch

import data
import model
from test_video import bad_films, look, made_in, make, tree, write_numbered
from test_video import command   # noqa: F401, a fixture

IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


# --- masking

def test_mask_tokens_rates():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 1000, (2000, 100), generator=generator)
    tokens[:, 0] = IDS["cls"]
    tokens[:, 60] = IDS["sep"]
    tokens[:, 61:70] = IDS["pad"]
    special = data.special_mask(tokens, IDS)
    assert special.sum() == 2000 * 11
    before = tokens.clone()
    inputs, labels = data.mask_tokens(tokens, special, data.torch_generator(0), IDS["mask"], 1000)
    assert torch.equal(tokens, before)   # not in place: the teacher's contrast needs the originals
    chosen = labels != -100
    assert not chosen[special].any() and torch.equal(inputs[special], tokens[special])
    assert torch.equal(labels[chosen], tokens[chosen])
    assert torch.equal(inputs[~chosen], tokens[~chosen])
    count = int(chosen.sum())
    eligible = int((~special).sum())
    assert abs(count / eligible - 0.15) < 5 * (0.15 * 0.85 / eligible) ** 0.5
    masked = (inputs == IDS["mask"]) & chosen
    same = (inputs == tokens) & chosen
    other = chosen & ~masked & ~same
    for part, share in ((masked, 0.8), (same, 0.1), (other, 0.1)):
        # 5 deviations; a random id is the old one in 1,000
        bound = 5 * (share * (1 - share) / count) ** 0.5 + 2e-3
        assert abs(int(part.sum()) / count - share) < bound
    replaced = inputs[other]   # uniform over the whole vocabulary, low ids too
    assert abs(replaced.float().mean() / 999 - 0.5) < 0.03
    assert replaced.min() < 10 and replaced.max() > 990


def test_masks_do_not_depend_on_the_number_of_processes():
    tokens = torch.randint(5, 100, (8, 20), generator=torch.Generator().manual_seed(1))
    special = torch.zeros_like(tokens, dtype=torch.bool)

    def draw(rows, step=3):
        generator = data.torch_generator(0, "mask", step)
        return data.mask_tokens(tokens[rows], special[rows], generator, 4, 100, rows=rows, batch=8)
    whole = data.mask_tokens(tokens, special, data.torch_generator(0, "mask", 3), 4, 100)
    for each in (2, 4):
        parts = [draw(slice(start, start + each)) for start in range(0, 8, each)]
        for k in (0, 1):
            assert torch.equal(torch.cat([part[k] for part in parts]), whole[k])
    chosen = draw(slice(0, 8))[1] != -100
    assert not torch.equal(chosen[:4], chosen[4:])                               # ranks differ
    assert not torch.equal(chosen, draw(slice(0, 8), step=4)[1] != -100)         # steps differ


# --- films (tests/test_video.py holds what is decoded)

def test_features_are_the_descriptors_of_the_films_pictures(tmp_path):
    """What a step shows is what is there at step / rate, for both streams."""
    thing = data.make_world(0)["teapot"]
    clips = [data.draw_clip(thing, "drop", data.numpy_generator(k)) for k in range(2)]
    films = {}
    for frames in (16, 24, 32):
        films[f"v{frames}"] = tmp_path / f"v{frames}.mp4"
        data.write_video(films[f"v{frames}"], np.concatenate(clips)[:frames])
    make(films, tmp_path)
    for name in ("frame", "motion"):
        stream = data.STREAMS[name]
        described = data.read_stream(tmp_path / "features" / name, "")
        assert described == {"rate": stream.rate, "width": stream.width,
                             "frames_seen": stream.frames_seen}
        assert data.FPS / data.HOP == stream.rate
        for video, path in films.items():
            array = np.load(tmp_path / "features" / name / f"{video}.npy")
            frames, _ = look(path, name)
            starts = range(0, len(frames) - stream.frames_seen + 1, data.HOP)
            assert array.shape == (len(starts), stream.width)
            assert array.dtype == np.float16 and array.std(0).max() > 0
            for step, first in enumerate(starts):
                reference = data.frame_descriptor(frames[first:first + 1])
                if name == "motion":
                    reference = data.motion_descriptor(frames[first:first + data.WINDOW])
                assert np.allclose(array[step], reference[0], rtol=2e-3, atol=1e-2)


def test_one_command_makes_a_data_folder(tmp_path, tiny_vocab, command):
    """Features of every film, then the captions packed; bad films are listed, no zeros for them."""
    videos = tmp_path / "videos"
    out = tmp_path / "out"
    videos.mkdir()
    reasons = bad_films(videos)
    good = [f"good{k}" for k in range(3)]
    for k, video in enumerate(good):
        write_numbered(videos / f"{video}.mp4", 16 + 8 * k, 8)
    entry = {"text": ["the cat sat", "on the mat"], "start": [0, 1], "end": [1, 2]}
    captions = dict.fromkeys([*good, *reasons], entry)
    (tmp_path / "caption.json").write_text(json.dumps(captions))
    words = ["video", "--videos", videos, "--captions", tmp_path / "caption.json", "--vocab",
             tiny_vocab, "--out", out, "--workers", 1]
    command(*words)   # a film that cannot be decoded is no error
    lines = (out / "features" / "left_out.tsv").read_text().splitlines()
    left_out = dict(line.split("\t") for line in lines)
    assert set(left_out) == set(reasons)
    assert all(re.search(reason, left_out[video]) for video, reason in reasons.items())
    assert made_in(out) == made_in(out, "motion") == set(good)
    splits = json.loads((out / "splits.json").read_text())
    assert sorted(splits["train"] + splits["valid"]) == good and len(splits["valid"]) == 1
    assert json.loads((out / "captions" / "index.json").read_text())["ids"] == good
    first = tree(out)   # killed at any moment = some files not there yet
    for name in ("features/motion/good1.npy", "splits.json"):
        (out / name).unlink()
    command(*words)
    assert tree(out) == first
    with pytest.raises(model.UserError, match="none.txt"):
        command(*words, "--vocab", tmp_path / "none.txt", "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists()   # said before the work


def test_real_films(real_data, tmp_path):
    """Ten clips, h264 and mpeg4, 5 to 30 frames a second: all usable, as long as they say."""
    folder = real_data / "video"
    films = data.film_files(folder)
    make(films, tmp_path)
    assert (tmp_path / "features" / "left_out.tsv").read_text() == "" and len(films) == 10
    captions = json.loads((folder / "caption.json").read_text())
    for video in films:
        frame, motion = [np.load(tmp_path / "features" / name / f"{video}.npy")
                         for name in ("frame", "motion")]
        assert np.isfinite(frame).all() and np.isfinite(motion).all()
        seconds = captions[video]["end"][0]
        assert abs(len(frame) - seconds * data.STREAMS["frame"].rate) <= 1.6, video
        assert 0 <= len(frame) - len(motion) <= 2, video
        assert frame.astype(np.float32).std(0).max() > 0.01


# --- text

def test_text_blocks(tmp_path, tiny_tokenizer):
    tokens = np.arange(5, 105, dtype=np.uint16)
    tokens.tofile(tmp_path / "train.bin")
    data.write_json(tmp_path / "train.json", {"dtype": "uint16", "tokens": 100})
    ids = data.special_ids(tiny_tokenizer)
    blocks = data.TextBlocks(tmp_path, "train", tiny_tokenizer, 32)
    batch = blocks.batch(np.array([2, 0]))
    assert len(blocks) == 3 and batch.shape == (2, 32) and batch.dtype == torch.int64
    assert batch[0].tolist() == [ids["cls"], *range(65, 95), ids["sep"]]
    assert batch[1].tolist() == [ids["cls"], *range(5, 35), ids["sep"]]
    with pytest.raises(model.UserError, match="less than one block of 128"):
        data.TextBlocks(tmp_path, "train", tiny_tokenizer, 128)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),   # no whole number at the end
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a pointer": lambda path: path.write_text("version https://git-lfs.github.com/spec/v1, odd\n"),
}


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_damaged_tokens_are_named(tmp_path, tiny_tokenizer, damage):
    np.arange(5, 105, dtype=np.uint16).tofile(tmp_path / "train.bin")
    data.write_json(tmp_path / "train.json", {"dtype": "uint16", "tokens": 100})
    DAMAGES[damage](tmp_path / "train.bin")
    with pytest.raises(model.UserError, match="train.bin cannot be read .*`python data.py text"):
        data.TextBlocks(tmp_path, "train", tiny_tokenizer, 32)
    data.write_json(tmp_path / "train.json", {})
    with pytest.raises(model.UserError, match="train.json lacks dtype, tokens; `python data.py te"):
        data.TextBlocks(tmp_path, "train", tiny_tokenizer, 32)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_features_are_named(tmp_path, tiny_tokenizer, damage):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 20}, {"a": 4.0}, CAPTIONS)
    DAMAGES[damage](tmp_path / "features" / "a" / "v.npy")
    with pytest.raises(model.UserError, match="a/v.npy cannot be read .*`python data.py video"):
        clips.clip("v", 0, 1)
    if damage != "gone":   # captions are made of the videos that have features
        with pytest.raises(model.UserError, match="a/v.npy cannot be read .*`python data.py video"):
            data.feature_seconds(tmp_path)


@pytest.mark.parametrize("name", data.CAPTION_ARRAYS)
@pytest.mark.parametrize("damage", ["cut", "empty", "gone", "shorter"])
def test_damaged_captions_are_named(tmp_path, tiny_tokenizer, name, damage):
    make_clips(tmp_path, tiny_tokenizer, {"a": 20}, {"a": 4.0}, CAPTIONS)
    path = tmp_path / "captions" / f"{name}.bin"
    if damage == "shorter":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        DAMAGES[damage](path)
    with pytest.raises(model.UserError, match=f"{name}.bin cannot be read .*data.py captions"):
        data.Clips(tmp_path, "train", ["a"], tiny_tokenizer, 12, 50)


# --- clips

def write_captions(folder, tokenizer, captions, splits):
    """A folder's captions/ and splits.json. captions: {id: {"text": [], "start": [], "end": []}}"""
    data.write_json(folder / "caption.json", captions)
    seconds = dict.fromkeys(captions, 50.0)
    data.pack_captions(folder / "caption.json", seconds, tokenizer, folder)
    data.write_json(folder / "splits.json", splits)


def make_clips(folder, tokenizer, lengths, rates, captions, **given):
    """A data folder with one video "v"; each stream's feature 0 is its step's index."""
    write_captions(folder, tokenizer, {"v": captions}, {"train": ["v"], "valid": []})
    for name in rates:
        stream = folder / "features" / name
        stream.mkdir(parents=True)
        array = np.stack([np.arange(lengths[name]), np.full(lengths[name], 7)], 1)
        np.save(stream / "v.npy", array.astype(np.float16))
        data.write_json(stream / "stream.json", {"rate": rates[name], "width": 2})
    settings = {"block": 12, "max_steps": 50, **given}
    return data.Clips(folder, "train", list(rates), tokenizer, **settings)


CAPTIONS = {"text": ["the cat sat on", "a mat and the dog", "ran to the red mat", "we see it"],
            "start": [1, 3, 5, 20], "end": [3.5, 5, 8, 22]}


def test_clip_holds_the_steps_of_its_seconds(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 200}, {"a": 4.0}, CAPTIONS)

    def steps(start, end):
        return clips.clip("v", start, end)[:, 0].tolist()
    assert steps(1.0, 2.0) == [4, 5, 6, 7]
    assert steps(1.1, 2.1) == [4, 5, 6, 7, 8]          # its interval meets [start, end)
    assert steps(1.25, 1.5) == [5] and steps(0, 0.1) == [0]
    assert steps(49.0, 80.0) == [196, 197, 198, 199]   # past the end: what there is
    assert steps(70.0, 80.0) == [199]                  # at least one step
    # thinned evenly: from the middles of 50 parts
    assert steps(0.0, 50.0) == [4 * k + 2 for k in range(50)]
    clip = clips.clip("v", 1, 2)
    assert clip.dtype == np.float16 and clip.shape == (4, 2)


def test_streams_of_different_rates_stay_aligned(tmp_path, tiny_tokenizer):
    rates = {"a": 4.0, "b": 1.5, "c": 10.0}
    lengths = {"a": 80, "b": 30, "c": 200}
    clips = make_clips(tmp_path, tiny_tokenizer, lengths, rates, CAPTIONS)
    generator = np.random.default_rng(0)
    for _ in range(100):
        start = generator.uniform(0, 18)
        end = start + generator.uniform(0.5, 19.9 - start)
        steps = clips.clip("v", start, end)[:, ::2]                           # [T, 3]
        times = (steps + 0.5) / np.array(list(rates.values()))                # middles, seconds
        assert (np.abs(times[:, 1] - times[:, 0]) <= 0.5 / 1.5 + 1e-6).all()  # the one that is on
        assert (np.abs(times[:, 2] - times[:, 0]) <= 0.5 / 4.0 + 1e-6).all()
        assert (np.diff(steps, axis=0) >= 0).all()


def test_the_step_that_is_on_at_a_moment(tmp_path, tiny_tokenizer):
    """Of another tool's faster stream; of one that ends a step before the first: no drift."""
    clips = make_clips(tmp_path, tiny_tokenizer, {"frame": 32, "audio": 160, "motion": 31},
                       {"frame": 4.0, "audio": 20, "motion": 4.0}, CAPTIONS)
    assert clips.clip("v", 1, 2)[:, 2].tolist() == [22, 27, 32, 37]
    assert clips.frames_seen == {"frame": 1, "audio": 1, "motion": 1}
    wanted = [[k, min(k, 30)] for k in range(24, 32)]
    assert clips.clip("v", 6.0, 8.0)[:, [0, 4]].tolist() == wanted


def test_one_frame_is_the_middle_one(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 80, "b": 40}, {"a": 4.0, "b": 2.0}, CAPTIONS,
                       frames=1)
    # steps 8..15 and 4..7: both start at second 3
    assert clips.clip("v", 2.0, 4.0)[:, ::2].tolist() == [[12, 6]]
    assert clips.clip("v", 2.0, 3.25)[:, 0].tolist() == [10]   # steps 8..12: the very middle
    clips.frames = 3
    assert clips.clip("v", 2.0, 5.0)[:, 0].tolist() == [10, 14, 18]


def by_hand(first, tokenizer):
    """(token ids, steps of the clip at rate 4) of the example that starts at caption `first`."""
    ids = data.special_ids(tokenizer)
    joined = []
    for last in range(first, 4):
        joined += tokenizer.encode(CAPTIONS["text"][last], add_special_tokens=False).ids
        if len(joined) >= 10:
            break
    end = max(CAPTIONS["end"][first:last + 1])
    steps = range(int(4 * CAPTIONS["start"][first]), int(4 * end))
    return [ids["cls"], *joined[:10], ids["sep"]], list(steps)


def test_example_fills_the_block_and_its_clip_ends_with_its_last_caption(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 200}, {"a": 4.0}, CAPTIONS, max_steps=100)
    tokens, features = clips.example(0)   # validation: from the first caption
    assert (tokens.tolist(), features[:, 0].tolist()) == by_hand(0, tiny_tokenizer)
    assert tokens.dtype == np.int64
    wanted = [by_hand(first, tiny_tokenizer) for first in range(4)]
    starts = set()
    for seed in range(40):
        tokens, features = clips.example(0, data.numpy_generator(seed))
        starts.add(wanted.index((tokens.tolist(), features[:, 0].tolist())))
    assert starts == {0, 1, 2, 3}   # every caption is a start
    again = [clips.example(0, data.numpy_generator(5))[0].tolist() for _ in range(2)]
    assert again[0] == again[1]


@pytest.mark.parametrize("value", [math.nan, -math.inf, 1e30])   # the last is none in float16
def test_features_that_are_no_numbers_are_named(tmp_path, tiny_tokenizer, value):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 80, "b": 40}, {"a": 4.0, "b": 2.0}, CAPTIONS)
    path = tmp_path / "features" / "b" / "v.npy"
    array = np.load(path).astype(np.float32)
    array[7, 1] = value
    np.save(path, array)
    assert np.isfinite(clips.clip("v", 1.0, 3.0)).all()   # up to its step 5
    with pytest.raises(model.UserError, match=r"features/b/v.npy holds a NaN .*data.py video"):
        clips.clip("v", 1.0, 4.0)


def test_collate_pads(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 200}, {"a": 4.0}, CAPTIONS)
    tiny = np.array([2, 3]), np.ones((2, 2), np.float16)
    tokens, mask, features, steps = clips.collate([clips.example(0), tiny])
    assert tokens.shape == mask.shape == (2, 12) and features.shape[:2] == steps.shape
    assert mask[0].all() and mask[1].tolist() == [True] * 2 + [False] * 10
    assert (tokens[1, 2:] == clips.special["pad"]).all()
    assert steps[0].all() and steps[1].sum() == 2
    assert (features[1, 2:] == 0).all() and (features[1, :2] == 1).all()


def test_features_are_kept_in_memory_up_to_a_bound(tmp_path, tiny_tokenizer, monkeypatch):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 200, "b": 100}, {"a": 4.0, "b": 2.0},
                       CAPTIONS)
    wanted = clips.example(0)[1]
    assert clips.cached == sum(array.nbytes for array in clips.cache.values()) == 300 * 2 * 2
    monkeypatch.setattr(data, "CACHE", 500)   # fits stream b alone
    bounded = data.Clips(tmp_path, "train", ["a", "b"], tiny_tokenizer, 12, 50)
    assert np.array_equal(bounded.example(0)[1], wanted)
    assert list(bounded.cache) == [("b", "v")] and bounded.cached == 400


def test_what_a_data_folder_lacks_is_named(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 20}, {"a": 4.0}, CAPTIONS)
    path = tmp_path / "features" / "a" / "v.npy"
    np.save(path, np.zeros((5, 3), np.float16))
    with pytest.raises(model.UserError, match=r"v.npy: expected \[T > 0, 2\], found \[5, 3\]"):
        clips.clip("v", 0, 1)
    with pytest.raises(model.UserError, match="features/z/stream.json must hold .*`python data.py"):
        data.Clips(tmp_path, "train", ["z"], tiny_tokenizer, 12, 50)
    with pytest.raises(model.UserError, match="valid split holds no video"):
        data.Clips(tmp_path, "valid", ["a"], tiny_tokenizer, 12, 50)
    data.write_json(tmp_path / "splits.json", {"train": ["v", "w"]})   # of other captions
    with pytest.raises(model.UserError, match="splits.json names w, captions/ does not; `python"):
        data.Clips(tmp_path, "train", ["a"], tiny_tokenizer, 12, 50)
    with pytest.raises(model.UserError, match="splits.json is missing; `python data.py captions"):
        data.Clips(tmp_path / "nowhere", "train", ["a"], tiny_tokenizer, 12, 50)


# --- banks

SAID = ["We do not sit, don't we?", "ünd the cat 's mat\u2603s", "the dogcat [UNK] is ran-on",
        "matdogredcat to day"]


@pytest.fixture
def bank_folder(tmp_path, tiny_tokenizer):
    """Eight videos of four captions each, three held out."""
    captions = {}
    (tmp_path / "features" / "a").mkdir(parents=True)
    for k in range(8):
        text = SAID[k % 4:] + SAID[:k % 4]
        captions[f"v{k}"] = {"text": text, "start": [0, 1, 2, 3], "end": [1, 2, 3, 4]}
        steps = np.arange(16 * k, 16 * k + 16, dtype=np.float16)
        np.save(tmp_path / "features" / "a" / f"v{k}.npy", steps[:, None])
    data.write_json(tmp_path / "features" / "a" / "stream.json", {"rate": 4, "width": 1})
    splits = {"train": [f"v{k}" for k in range(5)], "valid": ["v5", "v6", "v7"], "videos": "x"}
    write_captions(tmp_path, tiny_tokenizer, captions, splits)
    data.keep_tokenizer(tiny_tokenizer, tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", [6, 13, 40])   # cut inside words, and after all
def test_bank(bank_folder, tiny_tokenizer, block):
    """Random captions, all videos once before any twice; its texts become the tokens again that
    training would see from there."""
    path = bank_folder / "own.json"
    clips = data.Clips(bank_folder, "train", ["a"], tiny_tokenizer, block, 32)
    data.make_bank(bank_folder, "train", 40, 0, block, path)
    rows = data.read_bank(path)
    assert len(rows) == 40 and {row["video"] for row in rows[:5]} == set(clips.ids)
    assert {row["start"] for row in rows} == {0, 1, 2, 3}
    tokens, mask, features, steps = data.bank_batch(rows, clips, tiny_tokenizer)
    unknown = 0
    for number, row in enumerate(rows):
        index = clips.ids.index(row["video"])
        caption = int(clips.spans[index, 0] + row["start"])
        wanted, start, end = clips.stretch(index, caption)
        assert tokens[number][mask[number]].tolist()[1:-1] == wanted.tolist()
        clip = features[number][steps[number]].numpy()
        assert (clip == clips.clip(row["video"], start, end)).all() and row["end"] == end
        unknown += tiny_tokenizer.token_to_id("[UNK]") in wanted
    assert unknown or block == 6
    first = path.read_bytes()
    data.make_bank(bank_folder, "train", 40, 0, block, path)
    assert path.read_bytes() == first
    data.make_bank(bank_folder, "train", 40, 1, block, path)
    assert path.read_bytes() != first


@pytest.mark.parametrize("words, file, videos, purpose", [
    ([], "bank.json", {"v0", "v1", "v2", "v3", "v4"}, "for vokens (distill.py --objective voken)"),
    (["--split", "valid"], "bank-valid.json", {"v5", "v6", "v7"}, "evaluate.py retrieve --bank")])
def test_a_bank_says_what_it_is_for(bank_folder, command, capsys, words, file, videos, purpose):
    """Held-out clips for retrieval and the training clips for vokens never share a file."""
    command("bank", "--data", bank_folder, "--clips", 10, "--block", 13, *words)
    printed = capsys.readouterr().out
    assert f"{file}: 10 clips of {len(videos)} " in printed and purpose in printed
    assert {row["video"] for row in data.read_bank(bank_folder / file)} == videos
