"""Video -> features: which frames, which pixels, which features, in shards, from good files and bad ones.

    python -m pytest tests/test_video.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_video.py      # also real clips
"""
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import model

BITS = 8
SMALL = ["frame", "motion"]
FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command, the oracle, is not installed")


def numbered(k, height=64, width=64):
    """The picture [height, width, 3] of the number k in binary: 8 black or white stripes from the left."""
    stripes = np.array([k >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    return np.ascontiguousarray(np.broadcast_to(stripes.repeat(width // BITS)[None, :, None], (height, width, 3)))


def write_silence(container, stream, seconds):
    for _ in range(int(8 * seconds)):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_numbered(path, count, fps, size=64, times=None, sound=0, **options):
    """A video whose frame k shows the number k; times: of each frame, seconds; sound: seconds of silence beside it.

    Decoded frames so say who they are.
    """
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"crf": "10"})
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if sound:
            write_silence(container, container.add_stream("aac", rate=8000), sound)
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(k, size, size), format="rgb24")
            if times:
                frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * times[k])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def read_numbers(frames):
    """The numbers that `numbered` drew. A mixture of two frames would hold greys: refused."""
    stripe = frames.shape[2] / BITS
    columns = [int((bit + 0.5) * stripe) for bit in range(BITS)]
    middles = frames[:, frames.shape[1] // 2, columns].astype(float).mean(-1)                 # [N, BITS]
    assert ((middles < 50) | (middles > 205)).all()
    return ((middles > 127) @ (1 << np.arange(BITS))).tolist()


def look(path, *views):
    """All pictures of each view [N, h, w, 3], and the seconds."""
    shown = {view: [] for view in views}
    for view, pictures, seconds in data.decode(path, views):
        shown[view] += pictures
    return [np.stack(pictures) if pictures else np.zeros((0, 1, 1, 3)) for pictures in shown.values()] + [seconds]


def nearest(times, end, fps):
    """Which frame ffmpeg's fps filter shows at each output time: frames' times and the end are rounded to the nearest
    output step (half: up), a step shows the last frame at or before it, and the first frame fills what is before it."""
    steps = [math.floor(time * fps + Fraction(1, 2)) for time in times]
    return [max([k for k, step in enumerate(steps) if step <= n], default=0)
            for n in range(math.floor(end * fps + Fraction(1, 2)))]


# --- which frames

@pytest.mark.parametrize("fps, count", [(8, 20), (25, 132), (30, 90), (Fraction(30000, 1001), 75), (5, 15), (60, 100)])
def test_cnn_views_take_ffmpegs_frames(tmp_path, fps, count):
    write_numbered(tmp_path / "v.mp4", count, fps)
    small, one, many, seconds = look(tmp_path / "v.mp4", *[data.STREAMS[name].view() for name in
                                                           ("frame", "resnet152", "resnext101")])
    times, end = [Fraction(k) / fps for k in range(count)], Fraction(count) / fps
    assert seconds == pytest.approx(float(end), abs=1e-3)
    assert read_numbers(one) == nearest(times, end, 1) and len(one) == math.floor(end + Fraction(1, 2))
    assert read_numbers(many) == nearest(times, end, 24)
    assert read_numbers(small) == [int(Fraction(k, 8) * fps) for k in range(200) if Fraction(k, 8) < end]   # on display
    assert one.shape[1:] == (224, 224, 3) and many.shape[1:] == (112, 112, 3) and one.dtype == many.dtype == np.uint8


def test_uneven_frames_and_a_late_start(tmp_path):
    """Times run from the container's start: sound that begins a second before the pictures moves them."""
    times = [1.0, 1.1, 1.5, 1.52, 1.54, 2.9, 3.0, 4.4]
    write_numbered(tmp_path / "v.mp4", len(times), 25, times=times, sound=6)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].start_time > 0 == container.streams.audio[0].start_time
    views = [data.STREAMS[name].view() for name in ("frame", "resnet152", "resnext101")]
    small, one, many, seconds = look(tmp_path / "v.mp4", *views)
    end = Fraction(seconds).limit_denominator(1000)
    exact = [Fraction(round(1000 * time), 1000) for time in times]
    assert end >= exact[-1]
    assert read_numbers(one) == nearest(exact, end, 1) and read_numbers(many) == nearest(exact, end, 24)
    assert read_numbers(small) == [max([k for k, time in enumerate(exact) if time <= Fraction(n, 8)], default=0)
                                   for n in range(math.ceil(8 * end))]


def test_missing_or_jumping_timestamps(tmp_path):
    write_numbered(tmp_path / "v.mp4", 30, 10)
    with av.open(str(tmp_path / "v.mp4")) as source, av.open(str(tmp_path / "raw.h264"), "w", format="h264") as target:
        copy = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = copy
                target.mux(packet)
    with pytest.raises(data.VideoError, match="frames without a time"):   # captions could not be matched to them
        look(tmp_path / "raw.h264", data.STREAMS["resnext101"].view())
    write_numbered(tmp_path / "jump.mkv", 4, 25, times=[0, 0.04, 100, 100.04])
    with pytest.raises(data.VideoError, match="jump by more than a minute"):
        look(tmp_path / "jump.mkv", data.OnDisplay())


# --- which pixels

@pytest.mark.parametrize("height, width", [(64, 64), (90, 160), (160, 90), (240, 320), (102, 180), (270, 480)])
def test_scale_and_crop_rule(tmp_path, height, width):
    """The short side is 224, or 112 and cut to the middle square; sides and corner are cut to whole pixels."""
    ramp = np.zeros((4, height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    ramp[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    with av.open(str(tmp_path / "v.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=8)   # lossless
        stream.width, stream.height, stream.pix_fmt = width, height, "bgr0"
        for picture in ramp.repeat(4, 0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    views = [data.STREAMS[name].view() for name in ("resnet152", "resnext101")]
    whole, middle, _ = look(tmp_path / "v.mkv", *views)
    sides = (int(height * 224 / width), 224) if height >= width else (224, int(width * 224 / height))
    assert whole.shape[1:] == (*sides, 3) and middle.shape[1:] == (112, 112, 3)
    h, w = (int(height * 112 / width), 112) if height >= width else (112, int(width * 112 / height))
    top, left = int((h - 112) / 2), int((w - 112) / 2)
    rows, columns = [(np.arange(112) + corner + 0.5) / side * 255 for corner, side in ((top, h), (left, w))]
    assert np.abs(middle[0, 50, :, 0] - columns)[4:-4].max() < 4 and np.abs(middle[0, :, 50, 1] - rows)[4:-4].max() < 4


def turned(source, target, degrees):
    """Copies a video and marks it as turned, as a phone does."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", "-i", source, "-c", "copy", "-metadata:s:v:0", f"rotate={degrees}",
                    target], check=True)


def ffmpeg_pictures(path, fps, size, crop, height, width):
    """What the ffmpeg command gives for one view; height, width: of the picture as shown."""
    h, w = (int(height * size / width), size) if height >= width else (size, int(width * size / height))
    filters = f"fps={fps},scale={w}:{h}"
    if crop:
        filters += f",crop={size}:{size}:{int((w - size) / 2)}:{int((h - size) / 2)}"
    made = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24",
                           "-"], capture_output=True, check=True)
    return np.frombuffer(made.stdout, np.uint8).reshape(-1, *((size, size) if crop else (h, w)), 3)


def compare_with_ffmpeg(path, height, width):
    """Pictures of both CNN views equal the command's, but for one at the end.

    Versions of ffmpeg guess the length of a last frame differently where the file says an odd one.
    """
    for name in ("resnet152", "resnext101"):
        view = data.STREAMS[name].view()
        ours, _ = look(path, view)
        theirs = ffmpeg_pictures(path, view.fps, view.size, view.crop, height, width)
        count = min(len(ours), len(theirs))
        assert abs(len(ours) - len(theirs)) <= 1 and count > 0 and ours.shape[1:] == theirs.shape[1:]
        off = np.abs(ours[:count].astype(int) - theirs[:count]).max((1, 2, 3))
        # one frame in a hundred: an AVI whose times run backwards, where a neighbour is taken
        assert (off > 2).sum() <= count / 100, f"{name}: pictures {np.flatnonzero(off > 2)[:5]} differ"


@FFMPEG
def test_pictures_equal_the_ffmpeg_commands(tmp_path):
    generator = np.random.default_rng(0)
    for name, (height, width), fps, times in (("wide.mp4", (90, 162), 30, None), ("tall.mkv", (178, 100), 12, None),
                                              ("late.mp4", (64, 64), 25, [0.52 + 0.043 * k for k in range(60)])):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": "18"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            coarse = torch.from_numpy(generator.uniform(0, 255, (60, 3, height // 8, width // 8)).astype(np.float32))
            smooth = F.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1).numpy()
            for k, picture in enumerate(smooth.astype(np.uint8)):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                if times:
                    frame.time_base, frame.pts = Fraction(1, 1000), round(1000 * times[k])
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        compare_with_ffmpeg(tmp_path / name, height, width)
    for degrees in (90, 180, 270):
        target = tmp_path / f"turned{degrees}.mp4"
        turned(tmp_path / "wide.mp4", target, degrees)
        if degrees != 180:
            assert look(target, data.STREAMS["resnet152"].view())[0].shape[1:] == (int(162 * 224 / 90), 224, 3)
        compare_with_ffmpeg(target, *((90, 162) if degrees == 180 else (162, 90)))


@FFMPEG
def test_real_pictures_equal_the_ffmpeg_commands(real_data):
    for name in ("bigbuckbunny.mp4", "skateboarding_dog.mp4", "mmaction2_test.avi", "nasa_13013.mp4"):
        with av.open(str(real_data / "video" / name)) as container:
            stream = container.streams.best("video")
            sides = stream.height, stream.width
        compare_with_ffmpeg(real_data / "video" / name, *sides)


def test_size_may_change_in_mid_stream(tmp_path):
    """Broadcast streams do: later frames are scaled to what the first ones were."""
    with av.open(str(tmp_path / "v.ts"), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "10", "tune": "zerolatency"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for part, size in enumerate((64, 128)):
            encoder = av.CodecContext.create("libx264", "w")
            encoder.width = encoder.height = size
            encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 10), Fraction(10)
            encoder.options = {"crf": "10", "tune": "zerolatency"}
            for k in range(20 * part, 20 * part + 20):
                frame = av.VideoFrame.from_ndarray(numbered(k, size, size), format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 10)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    small, many, seconds = look(tmp_path / "v.ts", data.OnDisplay(), data.STREAMS["resnext101"].view())
    assert seconds == pytest.approx(4.0, abs=0.1) and many.shape[1:] == (112, 112, 3)
    assert {*range(40)} == {*read_numbers(many)}
    assert read_numbers(small)[-1] >= 38


# --- which features

def test_windows_are_filled_with_zeros_before_the_mean():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (35, 8, 8, 3), dtype=np.uint8))
    windows = data.prepare_windows(frames)
    assert windows.shape == (3, 3, 16, 8, 8)
    mean = np.array([110.6, 103.2, 96.3], np.float32)
    for k in range(48):
        wanted = (frames[k].numpy() if k < 35 else 0) - mean                                  # [8, 8, 3] or [3]
        assert np.abs(windows[k // 16, :, k % 16].permute(1, 2, 0).numpy() - wanted).max() < 1e-4
    x = data.prepare_frames(frames)
    assert x.shape == (35, 3, 8, 8)
    wanted = (frames[3, 5, 6].numpy() / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(x[3, :, 5, 6].numpy() - wanted).max() < 1e-5


def test_streams_do_not_depend_on_company_or_batches(tmp_path):
    """A stream's numbers are those it has alone, and those of the whole video at once."""
    write_numbered(tmp_path / "v.mp4", 1100, 8)   # 137 seconds: three batches of the small descriptors
    functions = {name: data.STREAMS[name].function for name in SMALL}
    # a CNN's place is taken by something quick that shows which pictures it got
    functions |= {name: lambda pictures: pictures[:, 56, ::14].reshape(len(pictures), -1) for name in model.CNNS}
    together, seconds = data.describe(tmp_path / "v.mp4", functions)
    assert seconds == 137.5
    for name in functions:
        assert np.array_equal(data.describe(tmp_path / "v.mp4", {name: functions[name]})[0][name], together[name])
        pictures, _ = look(tmp_path / "v.mp4", data.STREAMS[name].view())
        whole = functions[name](pictures).astype(np.float16)
        assert whole.shape == together[name].shape
        assert np.abs(whole.astype(np.float32) - together[name]).max() < 2e-2


def test_memory_does_not_grow_with_the_video(tmp_path):
    """Batches are worked off while decoding goes on: at no time do more pictures wait than one batch."""
    write_numbered(tmp_path / "v.mp4", 200, 2)
    seen = []
    def count(name):
        def function(pictures):
            seen.append((name, len(pictures)))
            return np.ones((1, 1))
        return function
    data.describe(tmp_path / "v.mp4", {name: count(name) for name in model.CNNS})
    assert max(n for name, n in seen if name == "resnet152") == 16
    assert max(n for name, n in seen if name == "resnext101") == 128
    assert seen.index(("resnet152", 16)) < len(seen) - 3   # not all at the end


def as_published(network, pictures, windows):
    """Features as HowTo100M's extractor makes them: numpy pictures [N, H, W, 3] -> unit vectors [steps, 2048]."""
    x = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
    if windows:
        mean, std, scale = [110.6, 103.2, 96.3], [1, 1, 1], 1
        x = torch.cat([x, torch.zeros(-len(x) % 16, *x.shape[1:])])
    else:
        mean, std, scale = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 255
    x = (x / scale - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    if windows:
        x = x.view(-1, 16, *x.shape[1:]).transpose(1, 2)
    with torch.no_grad():
        return F.normalize(torch.cat([network(part) for part in x.split(4)]), dim=1).numpy()


def run_command(*words):
    return subprocess.run([sys.executable, str(Path(data.__file__)), *map(str, words)], capture_output=True, text=True)


def test_the_command_makes_cnn_features(tmp_path, tiny_vocab, cnn_weights):
    """All four streams from one decode, through the command, against the extractor's own steps."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    thing = data.make_world(0)["teapot"]
    moving = np.concatenate([data.draw_clip(thing, "drop", data.numpy_generator(k)) for k in range(2)])
    data.write_video(videos / "good.mp4", moving[:20])   # 2.5 seconds: 60 frames, so the last of 4 windows is filled up
    (videos / "bad.mp4").write_bytes(b"")
    captions = {video: {"text": ["the cat sat"], "start": [0], "end": [1]} for video in ("good", "bad")}
    (tmp_path / "caption.json").write_text(json.dumps(captions))
    words = ("video", "--videos", videos, "--captions", tmp_path / "caption.json", "--streams", *SMALL, *model.CNNS,
             "--out", out, "--weights", cnn_weights, "--workers", 1)
    made = run_command(*words, "--vocab", tiny_vocab, "--device", "cpu")
    assert made.returncode == 0, made.stderr
    assert "on cpu in fp32, 1 processes of" in made.stdout
    for name, rate, span in (("resnet152", 1.0, 1), ("resnext101", 1.5, 16)):
        assert json.loads((out / "features" / name / "stream.json").read_text()) == {
            "rate": rate, "width": 2048, "frames_seen": span, "precision": "fp32"}
        features = np.load(out / "features" / name / "good.npy")
        pictures, seconds = look(videos / "good.mp4", data.STREAMS[name].view())
        wanted = as_published(model.load_cnn(name, cnn_weights), pictures, name == "resnext101")
        assert features.dtype == np.float16 and features.shape == wanted.shape
        assert len(wanted) == (math.floor(seconds + 0.5) if name == "resnet152" else math.ceil(24 * seconds / 16))
        assert np.abs(features - wanted).max() < 1e-3 * np.abs(wanted).max()
        assert np.linalg.norm(features.astype(np.float32), axis=1) == pytest.approx(1, abs=1e-3)
        assert len(wanted) < 2 or np.abs(wanted[0] - wanted[1]).max() > 1e-3   # frames differ
    assert (out / "left_out.tsv").read_text().startswith("bad\tcannot be decoded")
    clips = data.Clips(out, "train", ["resnet152", "resnext101", *SMALL], data.load_tokenizer(tiny_vocab), 12, 50)
    assert clips.clip("good", 0, 2.5).shape == (3, 2048 * 2 + 56 + 40)


def test_cnn_settings_that_cannot_be_kept(tmp_path, cnn_weights):
    """Said before any work: other precision than the folder's, no such device, no weights."""
    def make(**given):
        return data.extract_features({}, ["resnext101"], tmp_path / "out", 1, **{"weights": cnn_weights, **given})
    assert make(device="cpu") == ({}, {})
    with pytest.raises(ValueError, match="resnext101 has features made otherwise .*fp32.* now .*bf16"):
        make(device="cpu", precision="bf16")
    with pytest.raises(FileNotFoundError, match="`python data.py weights resnext101` fetches them"):
        make(device="cpu", weights=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="PyTorch sees no CUDA device here; --device cpu works"):
            make(device="cuda")


def test_real_clip_through_a_cnn(real_data, cnn_weights):
    """8 seconds at 5 frames a second: 8 steps of ResNet-152, 12 of ResNeXt-101, the first two of each checked."""
    path = real_data / "video" / "internvideo_example1.mp4"
    functions = {name: data.cnn_function(name, str(cnn_weights), "cpu", "fp32") for name in model.CNNS}
    features, seconds = data.describe(path, functions)
    data.cnn_function.cache_clear()
    assert seconds == 8.0 and len(features["resnet152"]) == 8 and len(features["resnext101"]) == 12
    for name in model.CNNS:
        pictures, _ = look(path, data.STREAMS[name].view())
        wanted = as_published(model.load_cnn(name, cnn_weights), pictures[:data.STREAMS[name].frames_seen * 2],
                              name == "resnext101")
        assert np.abs(features[name][:2] - wanted).max() < 1e-3 * np.abs(wanted).max()


# --- bad files

def bad_videos(folder):
    """Files that no feature can come from: {id: part of the reason}."""
    write_numbered(folder / "whole.tmp.mp4", 80, 8, sound=10)
    whole = (folder / "whole.tmp.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[:len(whole) // 2])   # its index lay at the end
    write_numbered(folder / "front.tmp.mp4", 80, 8, options={"movflags": "faststart"})
    whole = (folder / "front.tmp.mp4").read_bytes()
    (folder / "cutfront.mp4").write_bytes(whole[:len(whole) * 2 // 3])   # its index lies in front: the start decodes
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video\n" * 100)
    write_numbered(folder / "short.mp4", 1, 8)
    for name, form, codec in (("sound.wav", "wav", "pcm_s16le"), ("song.m4a", "mp4", "aac")):
        with av.open(str(folder / name), "w", format=form) as container:
            stream = container.add_stream(codec, rate=8000)
            if form == "mp4":   # its cover is a video stream of one picture
                cover = container.add_stream("mjpeg", rate=1)
                cover.width = cover.height = 64
                cover.pix_fmt, cover.disposition = "yuvj420p", av.stream.Disposition.attached_pic
                container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(3), format="rgb24")))
                container.mux(cover.encode())
            write_silence(container, stream, 1)
    write_numbered(folder / "unknown.tmp.avi", 16, 8)
    (folder / "unknown.avi").write_bytes((folder / "unknown.tmp.avi").read_bytes().replace(b"H264", b"ZZZZ"))
    for path in folder.glob("*.tmp.*"):
        path.unlink()
    return {"cut": "cannot be decoded", "cutfront": "cannot be decoded|cut: it ends", "empty": "cannot be decoded",
            "text": "cannot be decoded", "short": "too short for one step of", "sound": "no video stream",
            "song": "no video stream", "unknown": "in a format that FFmpeg cannot decode"}


def test_unusable_videos_say_why(tmp_path):
    functions = {name: data.STREAMS[name].function for name in SMALL}
    functions |= {name: lambda pictures: np.ones((1, 2048)) for name in model.CNNS}
    for video, reason in bad_videos(tmp_path).items():
        for part in (SMALL, list(model.CNNS)):
            with pytest.raises(data.VideoError, match=reason):
                data.describe(next(tmp_path.glob(f"{video}.*")), {name: functions[name] for name in part})
    write_numbered(tmp_path / "good.mp4", 32, 8)
    with pytest.raises(data.VideoError, match="stream resnet152 is not finite"):
        data.describe(tmp_path / "good.mp4", {"resnet152": lambda pictures: np.full((1, 4), 1e6)})   # past float16


# --- shards, streams of other tools

def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_shards_join_to_the_whole(tmp_path, tiny_vocab, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    reasons = bad_videos(videos)
    good = [f"good{k}" for k in range(7)]
    for k, video in enumerate(good):
        write_numbered(videos / f"{video}.mp4", 16 + k, 8)
    new = [tmp_path / f"new{n}.mp4" for n in range(5)]
    for path in new:
        shutil.copy(videos / "good0.mp4", path)
    captions = {video: {"text": ["the cat sat"], "start": [0], "end": [1]} for video in [*good, *reasons]}
    (tmp_path / "caption.json").write_text(json.dumps(captions))

    def run(out, shard=None):
        data.make_features(videos, tmp_path / "caption.json", None if shard else tiny_vocab, SMALL, out, 1, shard=shard)
        return capsys.readouterr().out
    run(tmp_path / "whole")
    out = tmp_path / "out"
    for k in (1, 2, 3):
        before = {path.stem for path in (out / "features" / "frame").glob("*.npy")}
        assert f"shard {k} of 3" in (said := run(out, (k, 3))) and "without --shard, with --vocab" in said
        mine = {path.stem for path in (out / "features" / "frame").glob("*.npy")} - before
        assert mine == set(json.loads((out / f"durations.{k}-of-3.json").read_text()))
        listed = dict(line.split("\t") for line in (out / f"left_out.{k}-of-3.tsv").read_text().splitlines())
        assert set(listed) <= set(reasons)
        assert not (out / "splits.json").exists() and not (out / "captions").exists()
        listed_files, _ = data.list_videos(videos, tmp_path / "caption.json", None)
        files = listed_files | {path.stem: path for path in new}   # new videos move no other
        more, worse = data.extract_features(files, SMALL, tmp_path / "more", 1, (k, 3))
        assert set(more) - {path.stem for path in new} == mine and set(worse) == set(listed)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    run(out)
    assert tree(out) == tree(tmp_path / "whole")   # nothing is left of the shards' records
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")} == times   # and nothing was made twice
    (out / "durations.json").unlink()   # a killed shard, then all of it in one
    (out / "features" / "motion" / "good3.npy").unlink()
    run(out, (2, 2)), run(out)
    assert tree(out) == tree(tmp_path / "whole")
    for bad in ("0/3", "4/3", "1", "a/b", "1/0", "-1/3"):
        with pytest.raises(ValueError, match="shards are counted from 1"):
            data.parse_shard(bad)
    assert data.parse_shard("3/64") == (3, 64)


def test_a_video_that_kills_its_process_is_named_and_loses_no_other(tmp_path, monkeypatch):
    extract, files = data.extract, {}
    for video in "abcdefgh":
        files[video] = tmp_path / f"{video}.mp4"
        write_numbered(files[video], 16, 8)

    def killed(path, **settings):
        return os._exit(1) if path.stem == "d" else extract(path, **settings)
    # wraps: it is pickled by its name, under which the forked process finds it
    monkeypatch.setattr(data, "extract", functools.wraps(extract)(killed))
    with pytest.raises(data.BrokenProcessPool, match="at one of .*d.mp4"):
        data.extract_features(files, ["frame"], tmp_path, 1)
    assert set(json.loads((tmp_path / "durations.json").read_text())) == set("abc")
    monkeypatch.setattr(data, "extract", extract)
    assert set(data.extract_features(files, ["frame"], tmp_path, 1)[0]) == set("abcdefgh")


def test_a_reason_is_one_line(tmp_path, monkeypatch):
    def refuse(path, functions):
        raise data.VideoError("odd:\n  a\u2028b")
    monkeypatch.setattr(data, "describe", refuse)
    assert data.extract("x.mp4", tmp_path, ["frame"], ()) == ("x", 0.0, "odd: a b")


def test_results_come_as_they_are_done_and_few_are_under_way():
    taken = []
    items = (taken.append(k) or k for k in range(50))
    with ThreadPoolExecutor(2) as pool:
        free = threading.Event()
        found = []
        for result in data.as_completed(pool, lambda k: free.wait(60) and k if k == 0 else k, items, 4):
            assert len(taken) <= len(found) + 5
            found.append(result)
            if len(found) == 49:   # all but the first, which waits for them
                free.set()
    assert found == [*found[:-1], 0] and sorted(found) == list(range(50))


def test_streams_of_other_tools(tmp_path, tiny_vocab):
    """An audio-like stream, 10 steps a second, beside ours; what its folder must hold is said where it does not."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    write_numbered(videos / "v.mp4", 32, 8)
    (tmp_path / "caption.json").write_text(json.dumps({"v": {"text": ["the cat sat"], "start": [1], "end": [3]}}))
    data.make_features(videos, tmp_path / "caption.json", tiny_vocab, SMALL, out, 1)
    folder = out / "features" / "audio"
    folder.mkdir()
    np.save(folder / "v.npy", np.arange(40, dtype=np.float32)[:, None] * [1, -1])

    def clips():
        return data.Clips(out, "train", ["frame", "audio"], data.load_tokenizer(tiny_vocab), 12, 50)
    with pytest.raises(FileNotFoundError, match=r"audio/stream.json is missing.* it yourself: \{\"rate\": steps a"):
        clips()
    for wrong in ({"rate": 10}, {"rate": "10", "width": 2}, {"rate": 0, "width": 2}, [10, 2],
                  {"rate": 10, "width": 2.5}, {"rate": 10, "width": 2, "frames_seen": 0}, {"rate": True, "width": 2}):
        (folder / "stream.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"audio/stream.json must hold \{\"rate\": steps a second"):
            clips()
    (folder / "stream.json").write_text('{"rate": 10, "width": 2}')
    assert clips().clip("v", 1, 3)[:, 56].tolist() == [12, 17, 22, 27]   # the step on in the middle of each half second
    assert clips().frames_seen == {"frame": 1, "audio": 1}
    with pytest.raises(ValueError, match="unknown stream audio; known: .*its arrays go to .*features/audio"):
        data.make_features(videos, tmp_path / "caption.json", tiny_vocab, ["audio"], out, 1)
