"""Video -> features: which frames and pixels, which features; shards, good files and bad.

    python -m pytest tests/test_video.py
    REAL_DATA=/folder/of/real/files python -m pytest tests/test_video.py      # also real clips
"""
import functools
import itertools
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import model

BITS = 8
SMALL = ["frame", "motion"]
LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="Linux only")
FFMPEG = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the oracle is not installed")


def numbered(k, height=64, width=64):
    """The picture [height, width, 3] of the number k in binary: 8 black or white stripes."""
    stripes = np.array([k >> bit & 1 for bit in range(BITS)], np.uint8) * 255
    row = stripes.repeat(width // BITS)[None, :, None]
    return np.ascontiguousarray(np.broadcast_to(row, (height, width, 3)))


def write_silence(container, stream, seconds):
    for _ in range(int(8 * seconds)):
        silence = np.zeros((1, 1000), np.int16)
        frame = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_film(path, pictures, fps=8, times=None, sound=0, turn=None, codec="libx264",
               pix_fmt="yuv420p", **options):
    """A film of pictures [N, H, W, 3]; times: of each, seconds; sound: seconds of silence beside.

    turn: (degrees, hflip, vflip) of its display matrix.
    """
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        if codec == "libx264":
            stream.options = {"crf": "10"}
        if times:
            stream.codec_context.time_base = Fraction(1, 1000)
        if turn:
            stream.set_display_rotation(turn[0], hflip=turn[1], vflip=turn[2])
        if sound:
            write_silence(container, container.add_stream("aac", rate=8000), sound)
        for k, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if times:
                frame.time_base = Fraction(1, 1000)
                frame.pts = round(1000 * times[k])
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_numbered(path, count, fps, **given):
    """A film whose frame k shows the number k: decoded frames say who they are."""
    write_film(path, [numbered(k) for k in range(count)], fps, **given)


def smooth_pictures(count, height, width):
    """Smooth noise, uint8 [count, height, width, 3]."""
    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 255, (count, 3, height // 8, width // 8)).astype(np.float32)
    fine = F.interpolate(torch.from_numpy(coarse), (height, width), mode="bilinear")
    return fine.permute(0, 2, 3, 1).numpy().astype(np.uint8)


def read_numbers(frames):
    """The numbers that `numbered` drew. A mixture of two frames would hold greys: refused."""
    stripe = frames.shape[2] / BITS
    columns = [int((bit + 0.5) * stripe) for bit in range(BITS)]
    middles = frames[:, frames.shape[1] // 2, columns].astype(float).mean(-1)   # [N, BITS]
    assert ((middles < 50) | (middles > 205)).all()
    return ((middles > 127) @ (1 << np.arange(BITS))).tolist()


def look(path, *names):
    """All pictures [N, h, w, 3] that each stream sees, and the seconds."""
    views = [data.STREAMS[name].view for name in names]
    shown = {view: [] for view in views}
    for view, picture, seconds in data.decode(path, views):
        shown[view].append(picture)
    return [np.stack(pictures) for pictures in shown.values()] + [seconds]


def nearest(times, end, fps):
    """Which frame ffmpeg's fps filter shows at each output time.

    Frames' times and the end are rounded to the nearest output step (half: up), a step shows the
    last frame at or before it, and the first frame fills what is before it.
    """
    steps = [math.floor(time * fps + Fraction(1, 2)) for time in times]
    shown = []
    for n in range(math.floor(end * fps + Fraction(1, 2))):
        shown.append(max([k for k, step in enumerate(steps) if step <= n], default=0))
    return shown


SMALL_FUNCTIONS = {name: data.STREAMS[name].function for name in SMALL}


def make(films, out, streams=SMALL, **given):
    return data.extract_features(films, streams, out, 1, **given)


@pytest.fixture
def command(monkeypatch):
    """data.py's command line, in this process: command("video", "--videos", ...)."""
    def run(*words):
        monkeypatch.setattr(sys, "argv", ["data.py", *map(str, words)])
        data.main()
    return run


def tree(folder):
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths
            if not path.name.startswith("lock")}


def reasons_in(path):
    return dict(line.split("\t") for line in path.read_text().splitlines())


def children(pid):
    words = ["ps", "-o", "pid=", "--ppid", str(pid)]
    listed = subprocess.run(words, capture_output=True, text=True)
    return [int(word) for word in listed.stdout.split()]


def is_running(pid):
    state = Path(f"/proc/{pid}/stat")
    return state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z"


# --- which frames

@pytest.mark.parametrize("fps, count", [
    (8, 20), (25, 132), (Fraction(30000, 1001), 75), (5, 15), (60, 100)])
def test_all_streams_take_ffmpegs_frames(tmp_path, fps, count):
    write_numbered(tmp_path / "v.mp4", count, fps)
    small, one, many, seconds = look(tmp_path / "v.mp4", "frame", "resnet152", "resnext101")
    times = [Fraction(k) / fps for k in range(count)]
    end = Fraction(count) / fps
    assert seconds == pytest.approx(float(end), abs=1e-3)
    assert read_numbers(small) == nearest(times, end, 8)
    assert read_numbers(one) == nearest(times, end, 1)
    assert read_numbers(many) == nearest(times, end, 24)
    assert small.dtype == one.dtype == many.dtype == np.uint8


def test_uneven_frames_and_a_late_start(tmp_path):
    """Times run from the container's start: sound that begins before moves the pictures."""
    times = [1.0, 1.1, 1.5, 1.52, 1.54, 2.9, 3.0, 4.4]
    write_numbered(tmp_path / "v.mp4", len(times), 25, times=times, sound=6)
    with av.open(str(tmp_path / "v.mp4")) as container:
        assert container.streams.video[0].start_time > 0 == container.streams.audio[0].start_time
    shown = look(tmp_path / "v.mp4", "frame", "resnet152", "resnext101")
    end = Fraction(shown.pop()).limit_denominator(1000)
    exact = [Fraction(round(1000 * time), 1000) for time in times]
    assert end >= exact[-1]
    for pictures, fps in zip(shown, (8, 1, 24)):
        assert read_numbers(pictures) == nearest(exact, end, fps)


def test_frames_without_times_are_refused(tmp_path):
    """Captions could not be matched to them."""
    write_numbered(tmp_path / "raw.h264", 30, 10, format="h264")
    with pytest.raises(data.VideoError, match="frames without a time"):
        look(tmp_path / "raw.h264", "resnext101")


@pytest.mark.parametrize("name, codec", [("v.mp4", "libx264"), ("v.mkv", "libx264"),
                                         ("v.webm", "libvpx"), ("v.wmv", "wmv2")])
def test_slides_stand_for_minutes(tmp_path, name, codec):
    times = [0, 75, 150, 151]
    write_numbered(tmp_path / name, 4, 10, times=times, codec=codec)
    small, seconds = look(tmp_path / name, "frame")
    assert seconds == pytest.approx(151.1, abs=0.01)
    assert read_numbers(small) == nearest(times, Fraction(round(10 * seconds), 10), 8)


@pytest.mark.parametrize("name, times", [
    ("v.ts", [0, 0.04, 100, 100.04]),      # a broadcast's clock, which may start anew
    ("v.mkv", [0, 0.04, 9000, 9000.04])])  # hours of one picture
def test_a_clock_that_jumps_is_refused(tmp_path, name, times):
    write_numbered(tmp_path / name, 4, 25, times=times)
    with pytest.raises(data.VideoError, match=f"timestamps jump from 0 to {times[2]} seconds"):
        look(tmp_path / name, "frame")


# --- which pixels

@pytest.mark.parametrize("height, width", [(64, 64), (90, 160), (320, 240), (102, 180)])
def test_scale_and_crop_rule(tmp_path, height, width):
    """The short side is 224, or 112 and cut to the middle square. Red grows to the right, green
    down."""
    ramp = np.zeros((8, height, width, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 255, width).astype(np.uint8)
    ramp[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    write_film(tmp_path / "v.mkv", ramp, codec="ffv1", pix_fmt="bgr0")   # lossless
    small, whole, middle, _ = look(tmp_path / "v.mkv", "frame", "resnet152", "resnext101")
    short = min(height, width)
    assert small.shape[1:] == (48, 48, 3)
    assert whole.shape[1:] == (int(height * 224 / short), int(width * 224 / short), 3)
    assert middle.shape[1:] == (112, 112, 3)
    sides = int(height * 112 / short), int(width * 112 / short)
    top, left = [int((side - 112) / 2) for side in sides]
    rows = (np.arange(112) + top + 0.5) / sides[0] * 255
    columns = (np.arange(112) + left + 0.5) / sides[1] * 255
    assert np.abs(middle[0, 50, :, 0] - columns)[4:-4].max() < 4
    assert np.abs(middle[0, :, 50, 1] - rows)[4:-4].max() < 4


def ffmpeg_pictures(path, view, height, width):
    """What the ffmpeg command gives for a view; height, width: of the picture as shown."""
    size = view.size
    short = min(height, width)
    shape = int(height * size / short), int(width * size / short)
    if view.stretch:
        shape = size, size
    filters = f"fps={view.fps},scale={shape[1]}:{shape[0]}"
    if view.crop:
        filters += f",crop={size}:{size}:{(shape[1] - size) // 2}:{(shape[0] - size) // 2}"
        shape = size, size
    words = ["ffmpeg", "-v", "error", "-i", path, "-vf", filters]
    raw = subprocess.run([*words, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"],
                         capture_output=True, check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, *shape, 3)


def compare_with_ffmpeg(path, height, width):
    """Every stream's pictures are the command's, but for one at the end.

    Versions of ffmpeg guess a last frame's length differently where the file says an odd one.
    """
    names = "frame", "resnet152", "resnext101"
    for name, ours in zip(names, look(path, *names)):
        theirs = ffmpeg_pictures(path, data.STREAMS[name].view, height, width)
        count = min(len(ours), len(theirs))
        assert abs(len(ours) - len(theirs)) <= 1 and count > 0
        assert ours.shape[1:] == theirs.shape[1:]
        off = np.abs(ours[:count].astype(int) - theirs[:count]).max((1, 2, 3))
        # one frame in a hundred: an AVI whose times run backwards, where a neighbour is taken
        assert (off > 2).sum() <= count / 100, f"{name}: {np.flatnonzero(off > 2)[:5]} differ"


@FFMPEG
@pytest.mark.parametrize("name, height, width, fps, times", [
    ("wide.mp4", 90, 162, 30, None), ("tall.mkv", 178, 100, 12, None),
    ("late.mp4", 64, 64, 25, [0.52 + 0.043 * k for k in range(60)])])
def test_pictures_equal_the_ffmpeg_commands(tmp_path, name, height, width, fps, times):
    write_film(tmp_path / name, smooth_pictures(60, height, width), fps, times)
    compare_with_ffmpeg(tmp_path / name, height, width)


TURNS = list(itertools.product((0, 90, 180, 270), (False, True), (False, True)))


@FFMPEG
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_every_stream_is_turned_and_mirrored_as_ffmpeg_does(tmp_path, ending, turn):
    path = tmp_path / f"v.{ending}"
    write_film(path, smooth_pictures(4, 80, 120), 4, turn=turn)
    sides = (120, 80) if turn[0] in (90, 270) else (80, 120)
    compare_with_ffmpeg(path, *sides)


@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_a_turned_film_has_the_features_of_the_film_stored_upright(tmp_path, turn):
    degrees, hflip, vflip = turn   # counter-clockwise, then mirrored
    clip = data.draw_clip(data.make_world(0)["teapot"], "drop", data.numpy_generator(0))
    write_film(tmp_path / "lying.mp4", clip, turn=turn)
    shown = np.rot90(clip, degrees // 90, (1, 2))
    if hflip:
        shown = shown[:, :, ::-1]
    if vflip:
        shown = shown[:, ::-1]
    write_film(tmp_path / "upright.mp4", shown)
    lying, upright = [look(tmp_path / name, "frame")[0] for name in ("lying.mp4", "upright.mp4")]
    assert np.abs(lying.astype(int) - upright).mean() < 3


@FFMPEG
@pytest.mark.parametrize("name", ["bigbuckbunny.mp4", "skateboarding_dog.mp4",
                                  "mmaction2_test.avi", "nasa_13013.mp4"])
def test_real_pictures_equal_the_ffmpeg_commands(real_data, name):
    with av.open(str(real_data / "video" / name)) as container:
        stream = container.streams.best("video")
        sides = stream.height, stream.width
    compare_with_ffmpeg(real_data / "video" / name, *sides)


def test_size_may_change_in_mid_stream(tmp_path):
    """Broadcast streams do: later frames are scaled to what the first ones were."""
    joined = b""
    for first, size in ((0, 64), (20, 128)):
        pictures = [numbered(k, size, size) for k in range(first, first + 20)]
        times = [1 + k / 10 for k in range(first, first + 20)]   # before it no dts
        write_film(tmp_path / "part.ts", pictures, 10, times)
        joined += (tmp_path / "part.ts").read_bytes()
    (tmp_path / "v.ts").write_bytes(joined)
    small, many, seconds = look(tmp_path / "v.ts", "frame", "resnext101")
    assert seconds == pytest.approx(4.0, abs=0.1) and many.shape[1:] == (112, 112, 3)
    assert {*read_numbers(many)} == {*range(40)}
    assert read_numbers(small)[-1] >= 38


def test_clip_pictures(tmp_path):
    """A stretch at its own times; a still goes on; past the end there is nothing."""
    write_numbered(tmp_path / "v.mp4", 100, 10)
    pictures = data.clip_pictures(tmp_path / "v.mp4", 3.0, 5.0, 10, 32)
    assert isinstance(pictures, list) and pictures[0].shape == (32, 32, 3)
    assert read_numbers(np.stack(pictures)) == list(range(30, 50))
    pictures = data.clip_pictures(tmp_path / "v.mp4", 9.0, 30.0, 10, 32)
    assert read_numbers(np.stack(pictures)) == list(range(90, 100))
    with pytest.raises(data.VideoError, match="no frame between 20"):
        data.clip_pictures(tmp_path / "v.mp4", 20.0, 22.0, 10, 32)
    times = [1 + k / 10 for k in range(100)]   # a broadcast's key frame may lie after the start
    write_film(tmp_path / "v.ts", [numbered(k, 64, 64) for k in range(100)], 10, times)
    pictures = data.clip_pictures(tmp_path / "v.ts", 2.5, 3.5, 10, 32)
    assert read_numbers(np.stack(pictures)) == list(range(25, 35))
    write_numbered(tmp_path / "slides.mkv", 4, 10, times=[0, 75, 150, 151])
    pictures = data.clip_pictures(tmp_path / "slides.mkv", 100.0, 102.0, 10, 32)
    assert read_numbers(np.stack(pictures)) == [1] * 20
    write_film(tmp_path / "lying.mp4", smooth_pictures(8, 80, 120), turn=(90, False, False))
    assert data.clip_pictures(tmp_path / "lying.mp4", 0, 1, 8, 32)[0].shape == (48, 32, 3)
    (tmp_path / "text.mp4").write_text("no film")
    with pytest.raises(data.VideoError, match="cannot be decoded"):
        data.clip_pictures(tmp_path / "text.mp4", 0, 1, 8, 32)


# --- which features

def test_windows_are_filled_with_zeros_before_the_mean():
    numbers = np.random.default_rng(0).integers(0, 256, (35, 8, 8, 3), dtype=np.uint8)
    frames = torch.from_numpy(numbers)
    windows = data.prepare_windows(frames)
    assert windows.shape == (3, 3, 16, 8, 8)
    mean = np.array([110.6, 103.2, 96.3], np.float32)
    for k in range(48):
        wanted = (numbers[k] if k < 35 else 0) - mean                         # [8, 8, 3] or [3]
        window = windows[k // 16, :, k % 16].permute(1, 2, 0).numpy()
        assert np.abs(window - wanted).max() < 1e-4
    x = data.prepare_frames(frames)
    assert x.shape == (35, 3, 8, 8)
    wanted = (numbers[3, 5, 6] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert np.abs(x[3, :, 5, 6].numpy() - wanted).max() < 1e-5


def corner(pictures):
    """Stands for a CNN: something quick that shows which pictures it got."""
    return pictures[:, 56, ::14].reshape(len(pictures), -1)


def test_streams_do_not_depend_on_company_or_batches(tmp_path):
    """A stream's numbers are those it has alone, and those of the whole film at once."""
    write_numbered(tmp_path / "v.mp4", 600, 8)   # two batches of the small descriptors
    functions = SMALL_FUNCTIONS | dict.fromkeys(model.CNNS, corner)
    together, seconds, damaged = data.describe(tmp_path / "v.mp4", functions)
    assert (seconds, damaged) == (75, 0)
    for name in functions:
        alone = data.describe(tmp_path / "v.mp4", {name: functions[name]})[0][name]
        assert np.array_equal(alone, together[name])
        pictures, _ = look(tmp_path / "v.mp4", name)
        whole = functions[name](pictures).astype(np.float16)
        assert whole.shape == together[name].shape
        assert np.abs(whole.astype(np.float32) - together[name]).max() < 5e-2


def test_memory_does_not_grow_with_the_film(tmp_path):
    """No more pictures wait than one batch, even where one frame stands for ten minutes."""
    write_numbered(tmp_path / "v.mp4", 4, 2, times=[0, 1, 600, 601])
    batches = []

    def measure(pictures):
        batches.append(len(pictures))
        return np.ones((1, 1))
    data.describe(tmp_path / "v.mp4", {"resnext101": measure})
    assert max(batches) == 128 and sum(batches) == pytest.approx(24 * 601.5, abs=24)
    view = data.View(24, 112)
    pushed = data.decode(tmp_path / "v.mp4", [view])
    first = [next(pushed) for _ in range(100)]   # far into the still: no list of it was made
    assert len(first) == 100


def as_published(network, pictures, windows):
    """Features as HowTo100M's extractor makes them: [N, H, W, 3] -> unit vectors [steps, 2048]."""
    x = torch.from_numpy(pictures.astype(np.float32)).permute(0, 3, 1, 2)
    if windows:
        x = torch.cat([x, torch.zeros(-len(x) % 16, *x.shape[1:])])
        x = x - torch.tensor([110.6, 103.2, 96.3]).view(1, 3, 1, 1)
        x = x.view(-1, 16, *x.shape[1:]).transpose(1, 2)
    else:
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        x = (x / 255 - mean) / torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    with torch.no_grad():
        return F.normalize(network(x), dim=1).numpy()


def test_the_command_makes_cnn_features(tmp_path, cnn_weights, command, capsys):
    """All four streams from one decode, through the command, against the extractor's own steps."""
    thing = data.make_world(0)["teapot"]
    clip = data.draw_clip(thing, "drop", data.numpy_generator(0))
    # 1.5 seconds: 36 frames, so the last of 3 windows is filled up
    data.write_video(tmp_path / "good.mp4", clip[:12])
    (tmp_path / "bad.mp4").write_bytes(b"")
    command("video", "--videos", tmp_path, "--streams", *SMALL, *model.CNNS, "--out", tmp_path,
            "--weights", cnn_weights, "--workers", 1, "--device", "cpu")
    printed = capsys.readouterr().out
    assert "the CNNs run on cpu in fp32" in printed and "1 processes that" in printed
    assert "1 videos, 2 seconds of film, " in printed and "left out: 1" in printed
    for name, rate, span, steps in (("resnet152", 1.0, 1, 2), ("resnext101", 1.5, 16, 3)):
        folder = tmp_path / "features" / name
        assert json.loads((folder / "stream.json").read_text()) == {
            "rate": rate, "width": 2048, "frames_seen": span, "precision": "fp32"}
        features = np.load(folder / "good.npy")
        pictures, _ = look(tmp_path / "good.mp4", name)
        network = model.load_cnn(name, cnn_weights)
        wanted = as_published(network, pictures, name == "resnext101")
        assert features.dtype == np.float16 and features.shape == wanted.shape == (steps, 2048)
        assert np.abs(features - wanted).max() < 1e-3 * np.abs(wanted).max()
        norms = np.linalg.norm(features.astype(np.float32), axis=1)
        assert norms == pytest.approx(1, abs=1e-3)
        assert np.abs(wanted[0] - wanted[1]).max() > 1e-3   # frames differ
    assert "cannot be decoded" in reasons_in(tmp_path / "features" / "left_out.tsv")["bad"]


def test_settings_that_cannot_be_kept(tmp_path, cnn_weights):
    """Said before any work: other precision than the folder's, no such device, no weights."""
    def settle(**given):
        return make({}, tmp_path, ["resnext101"], **{"weights": cnn_weights, **given})
    assert settle(device="cpu") == 0
    with pytest.raises(model.UserError, match="made otherwise, now .*bf16"):
        settle(device="cpu", precision="bf16")
    with pytest.raises(model.UserError, match="resnext101"):
        settle(device="cpu", weights=tmp_path)
    if not torch.cuda.is_available():
        with pytest.raises(model.UserError, match="--device cuda: this machine has none"):
            settle(device="cuda")


# --- which files are films

def test_films_are_told_by_their_endings(tmp_path):
    for name in ("v1.mp4", "v2.MKV", "v3.en.webm", "v4.gif", "._v1.mp4", ".DS_Store", "v1.srt",
                 "v1.tsv", "v1.txt", "v1.json", "v1.vtt", "v1.jpg", "v5.mp4.part", "v6.xyz",
                 "README"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.mp4").mkdir()
    films = data.film_files(tmp_path)
    names = {video: path.name for video, path in films.items()}
    assert names == {"v1": "v1.mp4", "v2": "v2.MKV", "v3.en": "v3.en.webm", "v4": "v4.gif"}
    (tmp_path / "v1.webm").write_text("")
    with pytest.raises(model.UserError, match="v1.mp4 and v1.webm are two films of one id"):
        data.film_files(tmp_path)
    with pytest.raises(model.UserError, match="no folder of videos at .*none"):
        data.film_files(tmp_path / "none")


def test_the_command_says_what_it_passes_over(tmp_path, command, capsys):
    write_numbered(tmp_path / "v1.mp4", 16, 8)
    for name in ("._v1.mp4", "v1.tsv", "v1.xyz", "v2.xyz"):
        (tmp_path / name).write_text("no film")
    (tmp_path / "only.csv").write_text("video_id\nv7\n")
    words = "video", "--videos", tmp_path, "--out", tmp_path / "out", "--workers", 1
    command(*words)
    printed = capsys.readouterr().out
    assert "'.xyz': 2" in printed and "'.tsv': 1" in printed and ".mp4" not in printed
    assert "next, with the features of all videos: python data.py captions" in printed
    assert (tmp_path / "out" / "features" / "left_out.tsv").read_text() == ""
    with pytest.raises(model.UserError, match="no film in"):
        command(*words, "--only", tmp_path / "only.csv")


def test_captions_are_looked_at_before_the_work(tmp_path, command, tiny_vocab):
    write_numbered(tmp_path / "v1.mp4", 16, 8)
    words = "video", "--videos", tmp_path, "--out", tmp_path / "out", "--vocab", tiny_vocab
    with pytest.raises(model.UserError, match="no captions of any of the 1 films"):
        command(*words)
    (tmp_path / "captions.json").write_text('{"v1": {"text": ["a"], "start": [0]}}')
    with pytest.raises(model.UserError, match="video 'v1', caption 0: needs"):
        command(*words, "--captions", tmp_path / "captions.json")
    assert not (tmp_path / "out").exists()


# --- bad files

def bad_films(folder):
    """Files that no feature can come from: {id: part of the reason}."""
    write_numbered(folder / "whole.tmp.mp4", 80, 8, sound=10)
    write_numbered(folder / "front.tmp.mp4", 80, 8, options={"movflags": "faststart"})
    write_numbered(folder / "front.tmp.mkv", 160, 8)   # states the length of the file alone
    for source, target, share in (("whole.tmp.mp4", "cut.mp4", 1 / 2),   # its index lay at the end
                                  ("front.tmp.mp4", "cutfront.mp4", 2 / 3),
                                  ("front.tmp.mkv", "cutmkv.mkv", 1 / 2)):
        whole = (folder / source).read_bytes()
        (folder / target).write_bytes(whole[:int(len(whole) * share)])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("this is not a video")
    write_numbered(folder / "short.mp4", 1, 8)
    with av.open(str(folder / "sound.avi"), "w") as container:
        write_silence(container, container.add_stream("pcm_s16le", rate=8000), 1)
    with av.open(str(folder / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        cover = container.add_stream("mjpeg", rate=1)   # a video stream of one picture
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame.from_ndarray(numbered(3), format="rgb24")))
        container.mux(cover.encode())
        write_silence(container, stream, 1)
    write_numbered(folder / "unknown.tmp.avi", 16, 8)
    unknown = (folder / "unknown.tmp.avi").read_bytes().replace(b"H264", b"ZZZZ")
    (folder / "unknown.avi").write_bytes(unknown)
    for path in folder.glob("*.tmp.*"):
        path.unlink()
    return {
        "cut": "cannot be decoded", "cutfront": "cannot be decoded|cut: it ends",
        "cutmkv": "cut: it ends", "empty": "cannot be decoded", "text": "cannot be decoded",
        "short": "too short for one step of", "sound": "no video stream",
        "song": "no video stream", "unknown": "in a format that FFmpeg cannot decode"}


def test_unusable_films_say_why(tmp_path):
    def ones(pictures):
        return np.ones((1, 2048))
    for video, reason in bad_films(tmp_path).items():
        path = next(tmp_path.glob(f"{video}.*"))
        for functions in (SMALL_FUNCTIONS, dict.fromkeys(model.CNNS, ones)):
            with pytest.raises(data.VideoError, match=reason):
                data.describe(path, functions)
    write_numbered(tmp_path / "good.mp4", 32, 8)
    for value in (1e6, math.nan):   # past float16
        def function(pictures):
            return np.full((1, 4), value)
        with pytest.raises(data.VideoError, match="stream resnet152 is not finite"):
            data.describe(tmp_path / "good.mp4", {"resnet152": function})


@pytest.mark.parametrize("ending, codec", [("mp4", "libx264"), ("mkv", "libx264"), ("wmv", "wmv2")])
def test_sound_may_outlast_the_picture(tmp_path, ending, codec):
    path = tmp_path / f"v.{ending}"
    write_numbered(path, 24, 8, sound=12, codec=codec)
    features, seconds, _ = data.describe(path, SMALL_FUNCTIONS)
    assert seconds == pytest.approx(3, abs=0.1)
    assert 6 <= len(features["frame"]) <= 7


def remux(sources, path, offset=0):
    """Joins the first streams of files in one; the film's begin `offset` seconds later."""
    with av.open(str(path), "w") as target, ExitStack() as stack:
        packets = []
        for source in sources:
            opened = stack.enter_context(av.open(str(source)))
            stream = target.add_stream_from_template(opened.streams[0])
            for packet in opened.demux(0):
                if packet.dts is not None:
                    packet.stream = stream
                    packet.pts += round(offset / packet.time_base)
                    packet.dts += round(offset / packet.time_base)
                    packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            target.mux(packet)


def test_what_matroska_states_is_not_the_pictures_length(tmp_path):
    """It counts from 0 where the film begins later, and to the last subtitle."""
    film = tmp_path / "film.mp4"
    write_numbered(film, 24, 8)
    (tmp_path / "v.srt").write_text("1\n00:00:18,000 --> 00:00:22,000\nthe end\n")
    remux([film], tmp_path / "late.mkv", offset=5)
    remux([film, tmp_path / "v.srt"], tmp_path / "titled.mkv")
    for name in ("late", "titled"):
        assert look(tmp_path / f"{name}.mkv", "frame")[1] == pytest.approx(3, abs=0.1)


def damaged(source, target, indices):
    """Copies a film with the packets of these numbers zeroed."""
    content = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        for index in indices:
            packet = packets[index]
            content[packet.pos:packet.pos + packet.size] = bytes(packet.size)
    target.write_bytes(content)


@pytest.mark.parametrize("index", [0, 7, 29])
def test_one_bad_packet_costs_its_frame(tmp_path, index):
    write_numbered(tmp_path / "v.mp4", 30, 8)
    damaged(tmp_path / "v.mp4", tmp_path / "bad.mp4", [index])
    whole, _, none = data.describe(tmp_path / "v.mp4", SMALL_FUNCTIONS)
    features, _, skipped = data.describe(tmp_path / "bad.mp4", SMALL_FUNCTIONS)
    assert (none, skipped) == (0, 1)
    assert abs(len(features["frame"]) - len(whole["frame"])) <= 1
    damaged(tmp_path / "v.mp4", tmp_path / "worse.mp4", range(3, 30, 3))
    with pytest.raises(data.VideoError, match="cannot be decoded .* 9 of 31 packets"):
        data.describe(tmp_path / "worse.mp4", SMALL_FUNCTIONS)


# --- many films: records, shards, errors

def write_films(folder, ids):
    films = {}
    for k, video in enumerate(ids):
        films[video] = folder / f"{video}.mp4"
        write_numbered(films[video], 16 + k, 8)
    return films


def check_none_left():
    """No child process, once the threads of their pools have noted the ends of all."""
    for _ in range(50):
        if not multiprocessing.active_children():
            return
        time.sleep(0.1)
    raise AssertionError(multiprocessing.active_children())


def made_in(out, stream="frame"):
    return {path.stem for path in (out / "features" / stream).glob("*.npy")}


def test_only_what_is_missing_is_made(tmp_path):
    films = write_films(tmp_path, "abc")
    films["d"] = tmp_path / "d.mp4"
    films["d"].write_bytes(b"")
    make(films, tmp_path, ["frame"])
    first = tree(tmp_path / "features")
    listed = tmp_path / "features" / "left_out.tsv"
    assert made_in(tmp_path) == set("abc") and set(reasons_in(listed)) == {"d"}
    make({"a": films["a"]}, tmp_path, ["frame"])   # as by --only: of d all is still known
    assert set(reasons_in(listed)) == {"d"}
    # killed at any moment: files that are not there yet, and one that was being written
    array = tmp_path / "features" / "frame" / "b.npy"
    array.rename(f"{array}.tmp")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    make(films, tmp_path, ["frame"])
    assert tree(tmp_path / "features") == first
    write_numbered(films["d"], 16, 8)   # mended: tried again
    make(films, tmp_path, ["frame"])
    make(films, tmp_path, ["motion"])
    assert made_in(tmp_path) == made_in(tmp_path, "motion") == set("abcd")
    assert all(path.stat().st_mtime_ns == times[path] for path in times)
    assert listed.read_text() == ""


def test_shards_join_to_the_whole(tmp_path):
    films = write_films(tmp_path, [f"good{k}" for k in range(7)])
    for k in range(4):
        films[f"bad{k}"] = tmp_path / f"bad{k}.mp4"
        films[f"bad{k}"].write_bytes(b"")
    make(films, tmp_path / "whole")
    out = tmp_path / "out"
    assert data.missing_shards(out) == []
    listed = {}
    for k in (1, 3, 2):
        before = made_in(out)
        make(films, out, shard=(k, 3))
        shard = reasons_in(out / "features" / f"left_out.{k}-of-3.tsv")
        mine = {video for video in films if data.in_shard(video, (k, 3))}
        assert (made_in(out) - before) | set(shard) == mine
        listed |= shard
        if k == 3:
            (out / "features" / "lock.2-of-3").write_text("")   # begun, and killed
            assert data.missing_shards(out) == ["2/3"]
            with pytest.raises(model.UserError, match="shards 2/3 are not complete: run them fi"):
                make(films, out)
    assert data.missing_shards(out) == []
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.npy")}
    make(films, out)
    assert set(listed) == {"bad0", "bad1", "bad2", "bad3"}
    joined = tree(out / "features")
    for k in (1, 2, 3):
        joined.pop(f"left_out.{k}-of-3.tsv")
    assert joined == tree(tmp_path / "whole" / "features")
    assert all(path.stat().st_mtime_ns == times[path] for path in times)   # nothing made twice


def test_a_shard_that_runs_again_is_missing_until_it_ends(tmp_path, monkeypatch):
    films = write_films(tmp_path, "ab")
    make(films, tmp_path, ["frame"], shard=(1, 1))
    assert data.missing_shards(tmp_path) == []

    def killed(*_):
        raise KeyboardInterrupt
        yield
    monkeypatch.setattr(data, "extract_all", killed)
    with pytest.raises(KeyboardInterrupt):
        make(films, tmp_path, shard=(1, 1))   # another stream
    assert data.missing_shards(tmp_path) == ["1/1"]


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/3"])
def test_malformed_shards(command, text, capsys):
    with pytest.raises(SystemExit):
        command("video", "--videos", ".", "--out", ".", f"--shard={text}")
    assert "invalid parse_shard value" in capsys.readouterr().err
    assert data.parse_shard("3/64") == (3, 64)


def break_at(monkeypatch, breaks):
    """Makes data.extract do breaks[id](path) before it works on a film of that id."""
    extract = data.extract

    @functools.wraps(extract)   # it is pickled by its name, under which the forked process finds it
    def broken(path, *rest):
        if path.stem in breaks:
            breaks[path.stem](path)
        return extract(path, *rest)
    monkeypatch.setattr(data, "extract", broken)


def cuda_error(path):
    raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")


def die(path):
    os._exit(1)


def once(breaks):
    """breaks(path), but only the first time, in whichever process."""
    def broken(path):
        mark = path.with_suffix(".broke")
        if not mark.exists():
            mark.touch()
            breaks(path)
    return broken


@pytest.mark.parametrize("workers", [1, 2])
def test_no_film_ends_the_extraction(tmp_path, monkeypatch, command, capsys, workers):
    films = write_films(tmp_path, "abcdefgh")
    films["h"].write_bytes(b"")
    break_at(monkeypatch, {"b": cuda_error, "c": once(cuda_error), "d": die, "e": once(die)})
    words = "video", "--videos", tmp_path, "--out", tmp_path, "--workers", workers
    with pytest.raises(model.UserError, match="2 videos met an error that is not their own, "
                       ".*: the same command tries them again"):
        command(*words)
    assert "b: RuntimeError: CUDA error" in capsys.readouterr().out
    assert made_in(tmp_path) == set("acefg")
    reasons = reasons_in(tmp_path / "features" / "left_out.tsv")
    assert set(reasons) == set("bdh")
    assert reasons["b"] == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert reasons["d"].startswith("BrokenProcessPool: A process")
    monkeypatch.setattr(data, "extract", data.extract.__wrapped__)
    command(*words)   # they are tried again
    assert made_in(tmp_path) == set("abcdefg")


def test_no_process_is_left_where_its_user_stops_early(tmp_path):
    films = write_films(tmp_path, "abcd")
    (tmp_path / "features" / "frame").mkdir(parents=True)
    outcomes = data.extract_all(films, ["frame"], tmp_path, 2, [], None, None)
    next(outcomes)
    outcomes.close()
    check_none_left()


def all_children(pid):
    """Its processes, and theirs."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def start_command(tmp_path, *words):
    """`data.py video` of tmp_path's films into tmp_path/out, in a group of its own."""
    words = [sys.executable, data.__file__, "video", "--videos", tmp_path, "--out",
             tmp_path / "out", *words]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            start_new_session=True)


def wait_until_ended(pids):
    end = time.time() + 10
    while any(is_running(pid) for pid in pids):
        assert time.time() < end
        time.sleep(0.1)


@LINUX
def test_kill_9_loses_nothing_and_leaves_no_process(tmp_path):
    films = write_films(tmp_path, [f"v{k}" for k in range(24)])
    make(films, tmp_path / "whole")
    run = start_command(tmp_path, "--workers", "1")
    while not made_in(tmp_path / "out") and run.poll() is None:
        time.sleep(0.01)
    workers = children(run.pid)
    run.kill()
    run.wait()
    assert workers and not (tmp_path / "out" / "features" / "left_out.tsv").exists()
    wait_until_ended(workers)
    make(films, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@LINUX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("streams", [SMALL, ["resnet152"]])
def test_no_process_outlives_the_command(tmp_path, cnn_weights, streams, number):
    """One worker is at a long film, the other has nothing to do. Ctrl-C reaches all of them."""
    write_numbered(tmp_path / "long.mp4", 4, 2, times=[0, 1, 3000, 3001])
    write_numbered(tmp_path / "short.mp4", 16, 8)
    run = start_command(tmp_path, "--streams", *streams, "--weights", cnn_weights, "--device",
                        "cpu", "--workers", "2")
    try:
        while not made_in(tmp_path / "out", streams[0]) and run.poll() is None:
            time.sleep(0.05)
        processes = all_children(run.pid)
        if number == signal.SIGINT:
            os.killpg(run.pid, number)
            printed = run.communicate(timeout=20)[0]
            assert run.returncode == 130 and "Traceback" not in printed
            assert printed.splitlines()[-1] == "data.py: interrupted"
    finally:
        run.kill()
    assert len(processes) >= 2
    wait_until_ended(processes)


# --- CNNs: one process for each device runs them for all workers

@pytest.fixture(scope="module")
def own(tmp_path_factory, cnn_weights):
    """(films, their folder, {id: features of resnet152 by the network alone})"""
    folder = tmp_path_factory.mktemp("own")
    films = write_films(folder, "abcdef")
    network = data.cnn_function("resnet152", cnn_weights, "cpu", "fp32")
    features = {}
    for video, path in films.items():
        arrays, _, _ = data.describe(path, {"resnet152": network})
        features[video] = arrays["resnet152"].astype(np.float32)
    return films, features


def assert_close(out, features):
    assert made_in(out, "resnet152") == made_in(out) == set(features)
    for video, wanted in features.items():
        ours = np.load(out / "features" / "resnet152" / f"{video}.npy").astype(np.float32)
        assert np.abs(ours - wanted).max() < 1e-4   # of 0.1: one step of float16


@LINUX
@pytest.mark.parametrize("kind", [None, "Networks", "ForkProcess"])
def test_killed_processes_are_replaced(tmp_path, own, cnn_weights, kind):
    films, features = own
    killed = []

    def kill():
        while not made_in(tmp_path, "resnet152"):
            time.sleep(0.02)
        for process in multiprocessing.active_children():
            if process.name.startswith(kind):
                process.kill()
                killed.append(process.name)
    killer = threading.Thread(target=kill)
    if kind:
        killer.start()
    unexpected = data.extract_features(films, ["resnet152", "frame"], tmp_path, 3, None,
                                       cnn_weights, "cpu", "fp32")
    if kind:
        killer.join()
    assert bool(killed) == bool(kind) and unexpected == 0
    assert_close(tmp_path, features)
    check_none_left()


def test_all_gpus_and_cores_are_used(tmp_path, monkeypatch):
    """Without GPUs: what would be begun. bf16 where a GPU computes in it."""
    films = {f"v{k}": tmp_path for k in range(6)}
    begun = []

    def extract_all(films, streams, out, workers, devices, weights, precision):
        begun[:] = workers, devices, precision
        yield from ()

    def begin(device, precision="auto"):
        data.extract_features(films, ["resnet152", "frame"], tmp_path, None, None, "w", device,
                              precision)
        return begun
    monkeypatch.setattr(data, "extract_all", extract_all)
    monkeypatch.setattr(data, "open_streams", lambda streams, out, *settings: [
        (out / "features" / name).mkdir(parents=True, exist_ok=True) for name in streams])
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    for capability, precision in (((9, 0), "bf16"), ((7, 5), "fp32")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        assert begin("auto") == [5, ["cuda:0", "cuda:1"], precision]
    assert begin("cuda:1") == [5, ["cuda:1"], "fp32"]
    assert begin("cpu") == [5, ["cpu"], "fp32"]
    assert begin("cpu", "bf16") == [5, ["cpu"], "bf16"]


def test_a_process_that_no_longer_works_is_replaced(tmp_path, monkeypatch):
    """Some errors of CUDA's last; a new process that does not work either ends the command."""
    films = {video: video for video in ("a", "b", "cuda error", "c")}
    log = []
    networks = SimpleNamespace(shutdown=lambda: log.append("shutdown"))

    def start_networks(cnns, weights, device, precision):
        assert (cnns, weights, device, precision) == (["resnet152"], "w", "cuda:0", "bf16")
        log.append("start")
        return networks, {"resnet152": log.count("start")}

    def try_out(functions):
        if functions["resnet152"] in broken:
            raise RuntimeError("CUDA error")
    monkeypatch.setattr(data, "start_networks", start_networks)
    monkeypatch.setattr(data, "try_out", try_out)
    monkeypatch.setattr(data, "extract", extract_or_fail)
    for broken, wanted in (((), ["start", "shutdown"]),
                           ((1,), ["start", "shutdown", "start", "shutdown"])):
        log.clear()
        outcomes = dict(data.extract_all(films, ["resnet152"], tmp_path, 1, ["cuda:0"], "w",
                                         "bf16"))
        assert log == wanted
        assert str(outcomes.pop("cuda error")) == "CUDA error"
        assert set(outcomes) == {"a", "b", "c"} and set(outcomes.values()) <= {1, 2}


def extract_or_fail(path, streams, out, functions):
    if path == "cuda error":
        raise RuntimeError("CUDA error")
    return functions["resnet152"]


# --- streams of other tools

def test_streams_of_other_tools(tmp_path):
    """What their folder must hold is said where it does not."""
    folder = tmp_path / "features" / "audio"
    folder.mkdir(parents=True)
    for wrong in (None, {"rate": 10}, {"rate": 0, "width": 2}, {"rate": "2", "width": 2}, [1]):
        if wrong:
            (folder / "stream.json").write_text(json.dumps(wrong))
        with pytest.raises(model.UserError, match=r"audio/stream.json must hold \{\"rate\": steps"):
            data.read_stream(folder, "python data.py video")
    (folder / "stream.json").write_text('{"rate": 10, "width": 2}')
    assert data.read_stream(folder, "") == {"rate": 10, "width": 2, "frames_seen": 1}
