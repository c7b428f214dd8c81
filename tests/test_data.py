"""Masks, order, tokens, captions, videos and clips: each against a slow or known answer.

    python -m pytest tests/test_data.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_data.py      # also the real corpus, vocabulary, videos
"""
import json
import os
import re
import socket

import av
import numpy as np
import pytest
import torch

import data
from test_video import bad_videos, look, tree, write_numbered

IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


# --- randomness

def test_streams_repeat_and_differ():
    def draw(*key):
        return data.numpy_generator(*key).integers(2 ** 60)
    keys = [(0, "mask", 0), (1, "mask", 0), (0, "mask", 1), (0, "order", 0),
            (0, "start", 0, 0), (0, "start", 0, 1), (0, "start", 1, 0)]
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]
    assert len({draw(*key) for key in keys}) == len(keys)

    def dropout(*key):
        data.seed_dropout(*key)
        return torch.rand(4).tolist()
    assert dropout(0, 5, 0) == dropout(0, 5, 0)
    assert len({tuple(dropout(*key)) for key in ((0, 5, 0), (0, 5, 1), (0, 6, 0), (1, 5, 0))}) == 4
    one, two = [torch.rand(3, generator=data.torch_generator(3, "x")) for _ in range(2)]
    assert torch.equal(one, two)


@pytest.mark.parametrize("count, batch", [(10, 5), (10, 4), (7, 3), (5, 8), (3, 10)])
def test_every_epoch_holds_each_example_once(count, batch):
    steps = 3 * count   # a whole number of epochs
    stream, other = [np.concatenate([data.batch_indices(count, batch, seed, step) for step in range(steps)])
                     for seed in (1, 2)]
    assert len(stream) == steps * batch
    epochs = stream.reshape(-1, count)
    assert (np.sort(epochs, 1) == np.arange(count)).all()
    assert len({tuple(epoch) for epoch in epochs[:6].tolist()}) > 1   # reshuffled
    assert not np.array_equal(stream, other)
    # resuming at a step, in any order, gives the same batch
    assert np.array_equal(data.batch_indices(count, batch, 1, 2), stream[2 * batch:3 * batch])


def test_derangement():
    seen = set()
    for trial in range(300):
        order = data.derangement(4, data.numpy_generator(trial))
        assert sorted(order) == [0, 1, 2, 3] and (order != np.arange(4)).all()
        seen.add(tuple(order.tolist()))
    assert len(seen) == 9   # all derangements of four do occur
    with pytest.raises(ValueError, match="at least 2"):
        data.derangement(1, data.numpy_generator(0))


def test_prefetch_keeps_order_and_passes_errors_on():
    assert list(data.prefetch(lambda step: step * step, 3, 9)) == [9, 16, 25, 36, 49, 64]

    def bad(step):
        if step == 2:
            raise ValueError("step 2 is bad")
        return step
    with pytest.raises(ValueError, match="step 2 is bad"):
        list(data.prefetch(bad, 0, 5))


# --- masking

def test_mask_tokens_rates():
    generator = torch.Generator().manual_seed(0)
    vocabulary, tokens = 1000, torch.randint(5, 1000, (2000, 100), generator=generator)
    tokens[:, 0], tokens[:, 60], tokens[:, 61:70] = IDS["cls"], IDS["sep"], IDS["pad"]
    special = data.special_mask(tokens, IDS)
    assert special.sum() == 2000 * 11
    before = tokens.clone()
    inputs, labels = data.mask_tokens(tokens, special, data.torch_generator(0), IDS["mask"], vocabulary)
    assert torch.equal(tokens, before)   # not in place: the teacher's contrast needs the originals
    chosen = labels != -100
    assert not chosen[special].any() and torch.equal(inputs[special], tokens[special])
    assert torch.equal(labels[chosen], tokens[chosen]) and torch.equal(inputs[~chosen], tokens[~chosen])
    count, eligible = int(chosen.sum()), int((~special).sum())
    assert abs(count / eligible - 0.15) < 5 * (0.15 * 0.85 / eligible) ** 0.5
    masked = (inputs == IDS["mask"]) & chosen
    same = (inputs == tokens) & chosen
    other = chosen & ~masked & ~same
    for part, share in ((masked, 0.8), (same, 0.1), (other, 0.1)):   # 5 deviations; a random id is the old one in 1,000
        assert abs(int(part.sum()) / count - share) < 5 * (share * (1 - share) / count) ** 0.5 + 2e-3
    replaced = inputs[other]   # uniform over the whole vocabulary, low ids too
    assert abs(replaced.float().mean() / (vocabulary - 1) - 0.5) < 0.03 and replaced.min() < 10 and replaced.max() > 990
    everything, _ = data.mask_tokens(tokens, special, data.torch_generator(0), IDS["mask"], vocabulary, probability=0.0)
    assert torch.equal(everything, tokens)


def test_masks_do_not_depend_on_the_number_of_processes():
    tokens = torch.randint(5, 100, (8, 20), generator=torch.Generator().manual_seed(1))
    special = torch.zeros_like(tokens, dtype=torch.bool)

    def draw(rows, step=3):
        generator = data.torch_generator(0, "mask", step)
        return data.mask_tokens(tokens[rows], special[rows], generator, 4, 100, rows=rows, batch=8)
    whole = data.mask_tokens(tokens, special, data.torch_generator(0, "mask", 3), 4, 100)
    for each in (2, 4):
        parts = [draw(slice(start, start + each)) for start in range(0, 8, each)]
        assert all(torch.equal(torch.cat([part[k] for part in parts]), whole[k]) for k in (0, 1))
    assert not torch.equal(draw(slice(0, 4))[1] != -100, draw(slice(4, 8))[1] != -100)         # ranks differ
    assert not torch.equal(draw(slice(0, 8))[1] != -100, draw(slice(0, 8), step=4)[1] != -100)  # steps differ


# --- JSON

def test_bad_json_names_file_and_line(tmp_path):
    (tmp_path / "caption.json").write_text('{\n "a": 1,\n "b" 2\n}')
    with pytest.raises(ValueError, match="caption.json, line 3: not valid JSON"):
        data.read_json(tmp_path / "caption.json", "x")
    with pytest.raises(FileNotFoundError, match="`python data.py mini` makes it"):
        data.read_json(tmp_path / "none.json", "python data.py mini")


# --- videos (tests/test_video.py holds what is decoded)

def test_decode_colours_and_sides(tmp_path):
    """RGB, rows before columns, first row on top."""
    picture = np.zeros((16, 48, 48, 3), np.uint8)
    picture[:, :24, :, 0], picture[:, 24:, :24, 1], picture[:, 24:, 24:, 2] = 220, 220, 220
    data.write_video(tmp_path / "v.mp4", picture)
    frames = look(tmp_path / "v.mp4", data.OnDisplay())[0].astype(int)
    assert len(frames) == 16
    for part, channel in ((frames[:, 4:20, 4:44], 0), (frames[:, 28:44, 4:20], 1), (frames[:, 28:44, 28:44], 2)):
        colour = part.mean((0, 1, 2))
        assert colour.argmax() == channel and colour[channel] > 170 and np.delete(colour, channel).max() < 60


def test_make_features(tmp_path, tiny_vocab):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir(), out.mkdir()
    reasons = bad_videos(videos)
    good = [f"good{k}" for k in range(3)]
    thing = data.make_world(0)["teapot"]
    moving = np.concatenate([data.draw_clip(thing, "drop", data.numpy_generator(k)) for k in range(2)])
    for k, video in enumerate(good):
        data.write_video(videos / f"{video}.mp4", moving[:16 + 8 * k])
    write_numbered(videos / "uncaptioned.mp4", 16, 8)
    captions = {video: {"text": ["the cat sat", "on the mat"], "start": [0, 1], "end": [1, 2]}
                for video in [*good, *reasons, "unfilmed"]}
    (tmp_path / "caption.json").write_text(json.dumps(captions))

    def run(streams=("frame", "motion")):
        data.make_features(videos, tmp_path / "caption.json", tiny_vocab, list(streams), out, 1)
    run()
    left_out = dict(line.split("\t") for line in (out / "left_out.tsv").read_text().splitlines())
    assert set(left_out) == {*reasons, "uncaptioned", "unfilmed"}
    assert all(re.search(reason, left_out[video]) for video, reason in reasons.items())
    assert left_out["uncaptioned"] == "a video file, but no captions"
    assert left_out["unfilmed"] == "captions, but no video file"
    for stream in ("frame", "motion"):
        rate, span = data.STREAMS[stream].rate, data.STREAMS[stream].frames_seen
        written = sorted(path.stem for path in (out / "features" / stream).glob("*.npy"))
        assert written == good   # nothing, not zeros, for the rest
        described = json.loads((out / "features" / stream / "stream.json").read_text())
        assert (described["rate"], described["frames_seen"]) == (rate, span)
        for k, video in enumerate(good):
            array = np.load(out / "features" / stream / f"{video}.npy")
            steps = range(0, 16 + 8 * k - span + 1, data.HOP)
            assert array.shape == (len(steps), described["width"])
            assert array.dtype == np.float16 and array.std(0).max() > 0
    frames, _ = look(videos / "good0.mp4", data.OnDisplay())
    shown, moved = [np.load(out / "features" / stream / "good0.npy") for stream in ("frame", "motion")]
    assert data.FPS / data.HOP == data.STREAMS["frame"].rate == data.STREAMS["motion"].rate
    for step in range(len(moved)):   # what a step shows is what is there at step / rate, for both streams
        first = step * data.HOP
        assert np.abs(shown[step] - data.frame_descriptor(frames[first:first + 1])[0]).max() < 1e-2
        reference = data.motion_descriptor(frames[first:first + data.WINDOW])[0]
        assert np.allclose(moved[step], reference, rtol=2e-3, atol=2e-3)
    splits = json.loads((out / "splits.json").read_text())
    assert sorted(splits["train"] + splits["valid"]) == good and len(splits["valid"]) == 1
    assert json.loads((out / "durations.json").read_text()) == {"good0": 2.0, "good1": 3.0, "good2": 4.0}
    assert (out / "vocab.txt").read_bytes() == tiny_vocab.read_bytes()

    first = tree(out)   # killed at any moment = some files not there yet
    (out / "features" / "motion" / "good1.npy").unlink()
    (out / "splits.json").unlink()
    run()
    assert tree(out) == first
    for name in ("durations.json", "captions/bounds.bin", "features/frame/good0.npy", "features/frame/good2.npy"):
        (out / name).unlink()
    run()
    assert tree(out) == first

    # A file that went bad since takes its video out of the data set, wherever it was listed before.
    (videos / "good1.mp4").write_bytes(b"")
    (out / "features" / "motion" / "good1.npy").unlink()
    run()
    assert "good1\tcannot be decoded" in (out / "left_out.tsv").read_text()
    splits = json.loads((out / "splits.json").read_text())
    assert sorted(splits["train"] + splits["valid"]) == ["good0", "good2"]
    assert json.loads((out / "captions" / "index.json").read_text())["ids"] == ["good0", "good2"]

    with pytest.raises(ValueError, match="unknown stream flow; known: frame, motion"):
        run(["flow"])


def test_features_need_a_usable_video(tmp_path, tiny_vocab):
    (tmp_path / "videos").mkdir()
    reasons = bad_videos(tmp_path / "videos")
    captions = {video: {"text": ["the cat"], "start": [0], "end": [1]} for video in reasons}
    (tmp_path / "caption.json").write_text(json.dumps(captions))
    with pytest.raises(ValueError, match="not one usable video"):
        data.make_features(tmp_path / "videos", tmp_path / "caption.json", tiny_vocab, ["frame", "motion"],
                           tmp_path / "out", 1)
    with pytest.raises(FileNotFoundError, match="no folder of videos"):
        data.make_features(tmp_path / "none", tmp_path / "caption.json", tiny_vocab, ["frame"], tmp_path / "out", 1)


def test_real_videos(real_data, tiny_vocab, tmp_path):
    """Ten clips, h264 and mpeg4, 5 to 30 frames a second: all usable, as long as their captions say."""
    folder = real_data / "video"
    captions = json.loads((folder / "caption.json").read_text())
    data.make_features(folder, folder / "caption.json", tiny_vocab, ["frame", "motion"], tmp_path, 2)
    assert (tmp_path / "left_out.tsv").read_text() == "" and len(captions) == 10
    durations = json.loads((tmp_path / "durations.json").read_text())
    for video, entry in captions.items():
        seconds = entry["end"][0]   # the captions span the clips, to the hundredth of a second
        with av.open(str(next(folder.glob(f"{video}.*")))) as container:
            stream = container.streams.best("video")
            assert abs(float(stream.duration * stream.time_base) - durations[video]) <= 0.25, video
        frame, motion = [np.load(tmp_path / "features" / name / f"{video}.npy").astype(np.float32)
                         for name in ("frame", "motion")]
        rate = data.STREAMS["frame"].rate
        assert abs(len(frame) - durations[video] * rate) <= 1 and 0 <= len(frame) - len(motion) <= 2, video
        assert durations[video] == pytest.approx(seconds, abs=0.3), video
        assert np.isfinite(frame).all() and frame.std(0).max() > 0.01
        assert np.isfinite(motion).all() and np.abs(motion).max() > 0.01


# --- clips

def make_clips(folder, tokenizer, lengths, rates, captions, **given):
    """A folder as `data.py video` leaves it, one video "v"; each stream's feature 0 is its step's index."""
    vocabulary = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(piece + "\n" for piece in sorted(vocabulary, key=vocabulary.get)))
    data.write_json(folder / "caption.json", {"v": captions})
    data.pack_captions(folder / "caption.json", {"v": 100.0}, folder / "vocab.txt", folder)
    for name in rates:
        (folder / "features" / name).mkdir(parents=True)
        array = np.stack([np.arange(lengths[name]), np.full(lengths[name], 7)], 1).astype(np.float16)
        np.save(folder / "features" / name / "v.npy", array)
        data.write_json(folder / "features" / name / "stream.json", {"rate": rates[name], "width": 2})
    data.write_json(folder / "splits.json", {"train": ["v"], "valid": []})
    return data.Clips(folder, "train", list(rates), tokenizer, **{"block": 12, "max_steps": 50, **given})


CAPTIONS = {"text": ["the cat sat on", "a mat and the dog", "ran to the red mat", "we see it"],
            "start": [1, 3, 5, 20], "end": [3.5, 5, 8, 22]}


def test_clip_holds_the_steps_of_its_seconds(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 200}, {"a": 4.0}, CAPTIONS)
    def steps(start, end):
        return clips.clip("v", start, end)[:, 0].tolist()
    assert steps(1.0, 2.0) == [4, 5, 6, 7]
    assert steps(1.1, 2.1) == [4, 5, 6, 7, 8]          # a step belongs if its interval meets [start, end)
    assert steps(1.25, 1.5) == [5] and steps(0, 0.1) == [0]
    assert steps(49.0, 80.0) == [196, 197, 198, 199]   # past the end: what there is
    assert steps(70.0, 80.0) == [199]                  # at least one step
    thinned = steps(0.0, 50.0)
    assert len(thinned) == 50 and thinned == [4 * k + 2 for k in range(50)]   # evenly, from the middles of 50 parts
    assert clips.clip("v", 1, 2).dtype == np.float32 and clips.clip("v", 1, 2).shape == (4, 2)


def test_streams_of_different_rates_stay_aligned(tmp_path, tiny_tokenizer):
    rates = {"a": 4.0, "b": 1.5, "c": 10.0}
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 80, "b": 30, "c": 200}, rates, CAPTIONS)
    generator = np.random.default_rng(0)
    for _ in range(100):
        start = generator.uniform(0, 18)
        end = start + generator.uniform(0.5, 19.9 - start)
        steps = clips.clip("v", start, end)[:, ::2]                               # [T, 3]
        times = (steps + 0.5) / np.array(list(rates.values()))                    # the middle of each step, seconds
        assert (np.abs(times[:, 1] - times[:, 0]) <= 0.5 / 1.5 + 1e-6).all()      # the slow step on at that moment
        assert (np.abs(times[:, 2] - times[:, 0]) <= 0.5 / 4.0 + 1e-6).all()
        assert (np.diff(steps, axis=0) >= 0).all()


def test_a_shorter_stream_does_not_drift(tmp_path, tiny_tokenizer):
    """The motion stream ends a step before the frame stream; the steps before the end must stay where they are."""
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 32, "b": 31}, {"a": 4.0, "b": 4.0}, CAPTIONS)
    assert clips.clip("v", 6.0, 8.0)[:, ::2].tolist() == [[k, min(k, 30)] for k in range(24, 32)]


def test_one_frame_is_the_middle_one(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 80, "b": 40}, {"a": 4.0, "b": 2.0}, CAPTIONS, frames=1)
    assert clips.clip("v", 2.0, 4.0)[:, ::2].tolist() == [[12, 6]]      # steps 8..15 and 4..7: both start at second 3
    assert clips.clip("v", 2.0, 3.25)[:, 0].tolist() == [10]            # steps 8..12: the very middle
    clips.frames = 3
    assert clips.clip("v", 2.0, 5.0)[:, 0].tolist() == [10, 14, 18]


def test_example_fills_the_block_and_its_clip_ends_with_its_last_caption(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 200}, {"a": 4.0}, CAPTIONS)
    texts = [tiny_tokenizer.encode(text, add_special_tokens=False).ids for text in CAPTIONS["text"]]
    ids = data.special_ids(tiny_tokenizer)

    def wanted(first):
        """By hand: join captions until 10 tokens are there."""
        joined, last = [], first
        for last in range(first, 4):
            joined += texts[last]
            if len(joined) >= 10:
                break
        start, end = CAPTIONS["start"][first], max(CAPTIONS["end"][first:last + 1])
        return [ids["cls"], *joined[:10], ids["sep"]], list(range(int(4 * start), int(4 * end)))

    tokens, features = clips.example(0)   # validation: from the first caption
    assert (tokens.tolist(), features[:, 0].tolist()[:50]) == wanted(0) or len(wanted(0)[1]) > 50
    starts = set()
    for seed in range(40):
        tokens, features = clips.example(0, data.numpy_generator(seed))
        assert tokens[0] == ids["cls"] and tokens[-1] == ids["sep"] and len(tokens) <= 12
        found = [first for first in range(4) if (tokens.tolist(), features[:, 0].tolist()) == wanted(first)
                 or (len(wanted(first)[1]) > 50 and tokens.tolist() == wanted(first)[0])]
        assert len(found) == 1
        starts.add(found[0])
    assert starts == {0, 1, 2, 3}   # every caption is a start
    assert tokens.dtype == np.int64

    again = [clips.example(0, data.numpy_generator(5, "start"))[0].tolist() for _ in range(2)]
    assert again[0] == again[1]
    tiny = np.array([ids["cls"], ids["sep"]]), np.ones((2, 2), np.float32)
    batch, mask, features, steps = clips.collate([clips.example(0), tiny])
    assert batch.shape == mask.shape == (2, 12) and features.shape[:2] == steps.shape
    assert mask[0].all() and mask[1].tolist() == [True] * 2 + [False] * 10 and (batch[1, 2:] == ids["pad"]).all()
    assert steps[1].sum() == 2 and steps[0].all() and (features[1, 2:] == 0).all() and (features[1, :2] == 1).all()


def test_missing_features_are_named(tmp_path, tiny_tokenizer):
    clips = make_clips(tmp_path, tiny_tokenizer, {"a": 20}, {"a": 4.0}, CAPTIONS)
    path = tmp_path / "features" / "a" / "v.npy"
    np.save(path, np.zeros((5, 3), np.float16))
    with pytest.raises(ValueError, match=r"v.npy: expected \[T, 2\] with T > 0, found \[5, 3\]"):
        clips.clip("v", 0, 1)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="features/a/v.npy is missing; `python data.py video"):
        clips.example(0)
    with pytest.raises(FileNotFoundError, match="features/z/stream.json is missing. `python data.py video"):
        data.Clips(tmp_path, "train", ["z"], tiny_tokenizer, 12, 50)
    with pytest.raises(ValueError, match="valid split holds no video"):
        data.Clips(tmp_path, "valid", ["a"], tiny_tokenizer, 12, 50)


# --- log and run folder

def test_log_resumes_at_the_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"
    log = data.Log(path, True, 0)
    for step in (10, 20, 30):
        log(step, 100, loss=step / 7, note="x")
    log.file.close()
    with open(path, "a") as file:
        file.write('{"step": 40, "loss": 1.')   # killed while writing
    log = data.Log(path, True, 20)              # the checkpoint is of step 20: 30 and 40 will come again
    log(30, 100, loss=0.5)
    log.file.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(10, 10 / 7), (20, 20 / 7), (30, 0.5)]
    assert "seconds" in rows[0] and rows[0]["note"] == "x"
    quiet = data.Log(tmp_path / "other.jsonl", False, 0)
    quiet(1, 2, loss=1.0)
    assert not (tmp_path / "other.jsonl").exists()   # only the master writes


def test_a_run_folder_keeps_its_arguments(tmp_path):
    processes = data.Processes("cpu")
    data.open_run(tmp_path / "run", {"seed": 0, "lr": 1e-3, "device": "auto"}, processes, "fp32")
    written = json.loads((tmp_path / "run" / "args.json").read_text())
    assert written["arguments"]["lr"] == 1e-3 and written["precision"] == "fp32"
    assert written["torch"] == torch.__version__
    data.open_run(tmp_path / "run", {"seed": 0, "lr": 1e-3, "device": "cpu"}, processes, "fp32")   # a device may change
    with pytest.raises(ValueError, match="--lr 0.001 -> 0.002"):
        data.open_run(tmp_path / "run", {"seed": 0, "lr": 2e-3, "device": "auto"}, processes, "fp32")


def test_precision():
    assert data.settle_precision("fp32", torch.device("cpu")) == ("fp32", None)
    assert data.settle_precision("bf16", torch.device("cpu")) == ("bf16", torch.bfloat16)
    assert data.settle_precision("auto", torch.device("cpu"))[0] in ("fp32", "bf16")
    with pytest.raises(ValueError, match="unknown precision 'fp8'"):
        data.settle_precision("fp8", torch.device("cpu"))


# --- processes

def test_rows_cover_the_batch():
    processes = data.Processes("cpu")
    assert (processes.rank, processes.world, processes.master) == (0, 1, True)
    assert processes.rows(6) == slice(0, 6) and processes.sum(2.5) == 2.5
    processes.world, taken = 3, []
    for processes.rank in range(3):
        taken += range(12)[processes.rows(12)]
    assert taken == list(range(12))
    with pytest.raises(ValueError, match="global batch 10 does not divide by 3 processes"):
        processes.rows(10)


B, H = 6, 4   # of the two-process check


def make_loss(weight, inputs, targets, processes):
    """A loss in which every row meets every other, through gather; each process counts its own rows of it."""
    rows = processes.rows(B)
    vectors = torch.tanh(inputs[rows] @ weight)                       # this process's rows
    everyone = processes.gather(vectors)                              # [B, H]
    scores = everyone[rows] @ everyone.T                              # own anchors against all
    return torch.nn.functional.cross_entropy(scores, targets[rows], reduction="sum") / B, everyone


def inputs_of_all():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(H, H, generator=generator), torch.randn(B, H, generator=generator),
            torch.randint(B, (B,), generator=generator))


def worker(rank, port, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    processes = data.Processes("cpu")
    weight, inputs, targets = inputs_of_all()
    weight.requires_grad_()
    unused = torch.zeros(3, requires_grad=True)   # a parameter that got no gradient must not disturb the message
    loss, everyone = make_loss(weight, inputs, targets, processes)
    loss.backward()
    processes.sum_gradients([weight, unused])
    torch.save({"loss": processes.sum(loss.detach().clone()), "gradient": weight.grad, "everyone": everyone.detach(),
                "rows": [processes.rows(B).start, processes.rows(B).stop], "master": processes.master,
                "count": processes.sum(rank + 1), "unused": unused.grad}, f"{folder}/{rank}.pt")
    processes.barrier()
    processes.close()


def test_two_processes_equal_one(tmp_path):
    """Loss and gradients through gather and sum_gradients: 2 gloo processes against one on the joined batch."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(worker, args=(port, str(tmp_path)), nprocs=2)
    weight, inputs, targets = inputs_of_all()
    weight.requires_grad_()
    loss, everyone = make_loss(weight, inputs, targets, data.Processes("cpu"))
    loss.backward()
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [state["rows"] for state in two] == [[0, 3], [3, 6]] and [state["master"] for state in two] == [True, False]
    for state in two:
        assert (state["everyone"] - everyone).abs().max() < 1e-6      # rank order
        assert (state["loss"] - loss).abs() < 1e-6 and state["count"] == 3 and state["unused"] is None
        assert (state["gradient"] - weight.grad).abs().max() < 1e-6 and weight.grad.abs().max() > 0.01


def test_a_run_without_git_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = data.provenance(torch.device("cpu"))
    assert found["commit"] is None and not found["uncommitted changes"] and found["torch"] == torch.__version__
