"""Speed against references, on this machine, in one run. A command, not a test: `make bench`.

    python tests/bench.py              # on a CPU its rows, 6 minutes on two quiet cores; on a GPU
                                       # (CUDA) those of the section "On a GPU", 6 minutes likewise
    python tests/bench.py --only mlm nst --repeats 15
    python tests/bench.py --small --only mlm gpu-base      # tiny sizes: only shows that it runs

A row builds a reference and ours, compares their numbers where both compute the same thing, warms
both up, and times them in turn, so that other work on the machine hits both. Times are medians.
The ratio is the median, in brackets the quartiles, of reference / ours over neighbouring runs.
A missing reference is said, and the other rows run.
Axes: B sequences, L tokens, H width, D = H neurons. Masks: True = real.
"""
import argparse
import contextlib
import copy
import dataclasses
import io
import itertools
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, NamedTuple
from unittest import mock

import av
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data
import distill
import finetune
import model
import teacher

IDS = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}
BATCH = 8   # sequences of a pretraining row


class Row(NamedTuple):
    """What a row times, and what is asked of it."""
    what: str
    reference: str          # what the reference is
    theirs: Callable
    ours: dict              # {variant: callable}; the target is the last one's
    target: float | None = None   # theirs / ours is to be at least this
    cost: bool = False      # instead: ours / theirs is to be at most the target
    scale: float = 1.0      # the reference does 1 / scale of the work: its time counts so often
    cpu: bool = False       # CPU seconds are shown and judged, too


def same(what, theirs, ours, tolerance=1e-4):
    """Raises UserError unless two numbers agree: else the times would be of different things."""
    if not abs(theirs - ours) <= tolerance * abs(theirs):
        raise model.UserError(f"{what}: the reference gives {theirs:.6g}, ours {ours:.6g}; "
                              f"there is nothing to time")


def gradient_norm(loss, modules):
    """Norm of a loss's gradient over all parameters: hardly two different networks share it."""
    parameters = list(nn.ModuleList(modules).parameters())
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return nn.utils.get_total_norm([g for g in gradients if g is not None]).item()


# --------------------------------------------------------------------------------------------------
# Pretraining steps


def networks(args, objectives, size=None, batch=BATCH):
    """What distill.py trains, at the same random weights at every call, and random tokens."""
    size = size or args.size
    settings = distill.DEFAULTS[size]
    config = dataclasses.replace(model.SIZES[size], hidden_dropout_prob=settings["dropout"],
                                 attention_probs_dropout_prob=settings["dropout"])
    torch.manual_seed(0)
    student = model.Bert(config)
    teacher = model.Bert(config)
    mlm_head = model.MLMHead(config, student.tokens)
    heads = distill.make_heads(objectives, "mlp", config, config.hidden_size,
                               {"queue": settings["crd_queue"], "temperature": 0.07})
    tokens = torch.randint(len(IDS), config.vocab_size, (batch, config.block))
    tokens[:, 0] = IDS["cls"]
    tokens[:, -1] = IDS["sep"]
    for module in (student, teacher, mlm_head, heads):
        module.to(args.processes.device)
    teacher.eval().requires_grad_(False)
    return SimpleNamespace(config=config, settings=settings, tokens=tokens, student=student,
                           teacher=teacher, mlm_head=mlm_head, heads=heads,
                           modules=[student, mlm_head, heads], objectives=objectives, kept={})


def masked(nets, step, device):
    """What both sides see at a step: inputs [B, L], labels [B, L], -100 where nothing is asked."""
    special = data.special_mask(nets.tokens, IDS)   # True = [CLS] or [SEP]
    generator = data.torch_generator(0, "mask", step)
    inputs, labels = data.mask_tokens(nets.tokens, special, generator, IDS["mask"],
                                      nets.config.vocab_size)
    return inputs.to(device), labels.to(device)


def part_of(nets, step, device):
    """The batch of a step, as distill.Batches makes it."""
    inputs, labels = masked(nets, step, device)
    positions, labels = data.predicted(labels)
    special = data.special_mask(nets.tokens, IDS)
    generator = data.torch_generator(0, "crd", step)
    anchors = distill.sample_tokens(special, nets.settings["crd_tokens"], generator, slice(None),
                                    len(inputs))                                    # [B, K]
    return {"inputs": inputs, "positions": positions, "labels": labels,
            "real": torch.ones_like(inputs, dtype=torch.bool), "anchors": anchors.to(device)}


def our_losses(args, nets, autocast_type, step, function=distill.losses_of, parts=None):
    """The losses of one step, objective none or nst + crd; parts: batches that are there already.
    """
    part = parts[step % len(parts)] if parts else part_of(nets, step, args.processes.device)
    trained = {"student": nets.student, "mlm_head": nets.mlm_head, "heads": nets.heads}
    if "crd" in nets.kept:   # of the step before: its backward had to see the queues as they were
        nets.heads["crd"].push(*nets.kept["crd"], args.processes)
    flags = SimpleNamespace(objective=nets.objectives, teacher_reads="masked")
    losses, kept = function(flags, trained, {"teacher": nets.teacher}, part,
                            (part["labels"] != -100).sum(), 1, autocast_type)
    for name, sides in kept.items():   # a CUDA graph's own are gone by then
        nets.kept[name] = [side.clone() for side in sides]
    return losses


def stepper(modules, optimizer, losses_of, waits=True):
    """One optimiser step as every stage does it, as a function; losses_of: step -> {name: loss}.

    waits: looks at once whether its numbers are finite, for which a GPU would be waited.
    """
    parameters = list(nn.ModuleList(modules).train().parameters())
    count = itertools.count()

    def step():
        loss = sum(losses_of(next(count)).values())
        assert not waits or torch.isfinite(loss)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, 1.0)
        assert not waits or torch.isfinite(norm)
        optimizer.step()
    return step


def our_step(args, objectives, autocast_type, **shape):
    nets = networks(args, objectives, **shape)
    optimizer = model.optimizer_for(nets.modules, 1e-4, nets.settings["weight_decay"])
    return stepper(nets.modules, optimizer, partial(our_losses, args, nets, autocast_type))


def transformers_bert(nets, bert):
    """BertForMaskedLM of transformers with these weights, in evaluation mode."""
    # torchvision is not needed, and one made for another torch would stop the import
    sys.modules.setdefault("torchvision", None)
    import transformers
    shape = dataclasses.asdict(nets.config)
    del shape["block"]
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    theirs.load_state_dict(model.to_hf(bert, nets.mlm_head), strict=False)   # tied tensors once
    return theirs.to(bert.tokens.weight.device).eval()


def their_losses(nets, bert, teacher, heads, step):
    """transformers' MLM, and NST and NT-Xent in the authors' form; heads: none or two."""
    inputs, labels = masked(nets, step, bert.device)
    out = bert(input_ids=inputs, labels=labels, output_hidden_states=len(heads) > 0)
    losses = {"mlm": out.loss}
    if len(heads):
        with torch.no_grad():
            target = F.normalize(teacher.bert(inputs).last_hidden_state, dim=-1)    # [B, L, H]
        first = F.normalize(heads[0](out.hidden_states[-1]), dim=-1)
        second = F.normalize(heads[1](out.hidden_states[-1]), dim=-1)
        losses["nst"] = authors_nst(first, target)
        losses["ntxent"] = authors_ntxent(second, target)
    return losses


def pretraining(objectives, what, reference, target, args):
    """A step on transformers in fp32, with logits at all positions, against ours."""
    nets = networks(args, objectives)
    bert = transformers_bert(nets, nets.student)
    teacher = transformers_bert(nets, nets.teacher).requires_grad_(False)
    heads = nn.ModuleList([copy.deepcopy(nets.heads["nst_head"]) for _ in objectives])
    losses_of = partial(their_losses, nets, bert, teacher, heads)
    for module in nets.modules:
        module.eval()
    theirs = losses_of(0)
    ours = our_losses(args, nets, None, 0)
    lower = our_losses(args, nets, args.autocast_type, 0)
    same("MLM loss", theirs["mlm"].item(), ours["mlm"].item())
    same(f"MLM loss, {args.precision}", theirs["mlm"].item(), lower["mlm"].item(), 1e-2)
    same("MLM gradient", gradient_norm(theirs["mlm"], [bert]),
         gradient_norm(ours["mlm"], nets.modules), 1e-3)
    if objectives:
        scale = nets.config.block / BATCH   # the authors divide by L, we by B
        same("NST gradient", scale * gradient_norm(theirs["nst"], [bert, heads]),
             gradient_norm(ours["nst"], nets.modules), 1e-3)
    optimizer = torch.optim.AdamW([*bert.parameters(), *heads.parameters()], 1e-4)
    return Row(f"{what}, {args.size}, {BATCH} x {nets.config.block}", reference,
               stepper([bert, heads], optimizer, losses_of),
               {"fp32": our_step(args, objectives, None),
                args.precision: our_step(args, objectives, args.autocast_type)}, target)


def cost(args):
    """What distilling costs: our step with NST + CRD as a multiple of our MLM step."""
    return Row("distillation step over MLM step", f"our MLM step, {args.precision}",
               our_step(args, (), args.autocast_type),
               {args.precision: our_step(args, ("nst", "crd"), args.autocast_type)}, 1.45,
               cost=True)


def share(args):
    """Our MLM step against square products: how much of the machine's own product rate it reaches.

    On a GPU: size base and 64 sequences, since 8 short ones leave it idle.
    """
    device = args.processes.device
    size = args.size
    batch = BATCH
    n = 2048
    if device.type == "cuda":
        size = "base"
        batch = 64
        n = 8192
    step = our_step(args, (), args.autocast_type, size=size, batch=batch)
    with FlopCounterMode(display=False) as counter:
        step()
    work = counter.get_total_flops()
    kind = args.autocast_type or torch.float32
    a, b = torch.randn(2, n, n, device=device, dtype=kind)
    return Row(f"share of the matmul rate, MLM step, {size}",
               f"its {work / 1e9:.0f} GFLOP as {n} x {n} products",
               partial(torch.mm, a, b, out=torch.empty_like(a)), {args.precision: step},
               0.5 if device.type == "cuda" else 0.6, scale=work / (2 * n ** 3))


# --------------------------------------------------------------------------------------------------
# Objectives in the authors' form, as their code computes them


def squared_kernel(x, y):
    """Every pair of neurons by way of D x D x L products: [D, L], [D, L] -> [D, D]."""
    return (x[:, None] * y[None]).sum(-1).pow(2)


def authors_nst(student, teacher):
    """Sequence by sequence; no teacher term; the sum divided by L. student, teacher: [B, L, D]."""
    total = 0.0
    for s, t in zip(student, teacher):
        s = F.normalize(s.T, dim=1)                                                 # [D, L]
        t = F.normalize(t.T, dim=1)
        total = total + squared_kernel(s, s).mean() - 2 * squared_kernel(s, t).mean()
    return total / student.shape[1]


def authors_ntxent(student, teacher):
    """Position by position: cosines by way of 2B x 2B x D numbers, a new mask of the rivals, and
    the mean of cross-entropy (temperature 1) divided by 2B once more. student, teacher: [B, L, D].
    """
    B, L, _ = student.shape
    total = 0.0
    for l in range(L):
        z = torch.cat([student[:, l], teacher[:, l]])                               # [2B, D]
        scores = F.cosine_similarity(z[:, None], z[None], dim=-1)                   # [2B, 2B]
        itself = torch.eye(2 * B, dtype=torch.bool, device=z.device)
        rival = ~(itself | itself.roll(B, 1))   # True = neither the anchor nor its partner
        partner = torch.cat([scores.diagonal(B), scores.diagonal(-B)])[:, None]     # [2B, 1]
        logits = torch.cat([partner, scores[rival].view(2 * B, -1)], 1)             # [2B, 2B - 1]
        first = torch.zeros(2 * B, dtype=torch.long, device=z.device)
        total = total + F.cross_entropy(logits, first) / (2 * B)
    return total / L


def nst(args):
    """NST alone, forward and backward; our gradient is L / B times the authors'."""
    config = model.SIZES[args.size]
    shape = BATCH, config.block, config.hidden_size
    torch.manual_seed(0)
    student, teacher = F.normalize(torch.randn(2, *shape), dim=-1).to(args.processes.device)
    student.requires_grad_(True)

    def theirs():
        return torch.autograd.grad(authors_nst(student, teacher), student)[0]

    def ours():
        return torch.autograd.grad(distill.nst_loss(student, teacher), student)[0]

    expected = config.block / BATCH * theirs()
    distance = (expected - ours()).norm() / expected.norm()
    same("NST gradient", 1.0, 1.0 + distance.item(), 1e-3)
    size = " x ".join(map(str, shape))
    return Row(f"NST, forward + backward, {size}", "authors' form, fp32", theirs, {"fp32": ours})


# --------------------------------------------------------------------------------------------------
# Fine-tuning, video, text


def finetuning(args):
    """One batch in five of an epoch, padded to its longest row as finetune.py does, against all of
    126 tokens. Lengths as GLUE's: lognormal, 40 tokens in the mean."""
    batch = 4 if args.small else finetune.DEFAULTS["base"]["batch"]
    generator = data.numpy_generator(0, "bench")
    lengths = generator.lognormal(np.log(40) - 0.18, 0.6, 50 * batch).clip(5, 126).astype(int)
    batches = finetune.length_sorted_batches(lengths, batch, 0, 0)
    batches = sorted(batches, key=lambda rows: lengths[rows].sum())[2::5]
    nets = networks(args, ())
    device = args.processes.device
    head = model.SequenceHead(nets.config, 2).to(device)
    modules = [nets.student, head]

    def losses_of(padded, autocast_type, step):
        own = torch.from_numpy(lengths[batches[step % len(batches)]])               # [B]
        mask = torch.arange(126 if padded else own.max()) < own[:, None]            # True = real
        tokens = mask * nets.tokens[0, 1]                                           # [B, L]
        inputs = [tensor.to(device) for tensor in (tokens, mask, 0 * tokens)]
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            scores = finetune.scores_of("classification", nets.student, head, inputs, 1)
        return {"task": F.cross_entropy(scores.float(), (own % 2).to(device))}

    nn.ModuleList(modules).eval()
    same("task loss", losses_of(True, None, 0)["task"].item(),
         losses_of(False, None, 0)["task"].item())
    optimizer = model.optimizer_for(modules, 1e-4, 0.01)
    theirs = stepper(modules, optimizer, partial(losses_of, True, args.autocast_type))
    ours = stepper(modules, optimizer, partial(losses_of, False, args.autocast_type))

    def epoch(step):
        for _ in batches:
            step()

    return Row(f"fine-tuning, {len(batches)} x {batch} rows of {lengths.mean():.0f} tokens",
               f"padded to 126, {args.precision}", partial(epoch, theirs),
               {args.precision: partial(epoch, ours)}, 3.0)


def video(args):
    """The pictures of both CNN streams of a clip: two ffmpeg commands against our one decode."""
    path = args.folder / "clip.mp4"
    seconds = 1 if args.small else 15
    picture = f"testsrc2=size=480x360:rate=30:duration={seconds}"
    ffmpeg = ["ffmpeg", "-v", "error"]
    subprocess.run([*ffmpeg, "-f", "lavfi", "-i", picture, "-pix_fmt", "yuv420p", path], check=True)

    def theirs():
        streams = []
        for filters in ("fps=1,scale=298:224", "fps=24,scale=149:112,crop=112:112:18:0"):
            command = [*ffmpeg, "-i", path, "-vf", filters, "-f", "rawvideo", "-pix_fmt", "rgb24",
                       "-"]
            shown = subprocess.run(command, capture_output=True, check=True).stdout
            streams.append(np.frombuffer(shown, np.uint8))
        return streams

    def ours():
        views = [data.STREAMS[name].view for name in ("resnet152", "resnext101")]
        pictures = {view: [] for view in views}
        for view, picture, _ in data.decode(path, views):
            pictures[view].append(picture)
        return [np.stack(pictures[view]).ravel() for view in views]

    for a, b in zip(theirs(), ours()):
        shorter = min(len(a), len(b))   # versions of ffmpeg differ by one picture at the end
        same("pictures", a[:shorter].mean(), b[:shorter].mean(), 1e-3)
    return Row(f"both views of a video, {seconds} s of 480 x 360", "two ffmpeg passes", theirs,
               {"": ours}, 1.8, cpu=True)


def tokens(args):
    """Text to packed tokens on disk, against the tokenizers library alone on lines in memory."""
    lines = data.make_text(data.make_world(0), 0, 1000)
    text = args.folder / "text.txt"
    text.write_text("\n".join(lines) + "\n")
    data.train_tokenizer([text], 2048, args.folder)
    tokenizer = data.load_tokenizer(args.folder)
    lines *= 1 if args.small else 8_000_000 // text.stat().st_size
    text.write_text("\n".join(lines) + "\n")
    count = itertools.count()

    def theirs():
        total = 0
        for start in range(0, len(lines), 1000):
            batch = tokenizer.encode_batch_fast(lines[start:start + 1000], add_special_tokens=False)
            total += sum(map(len, batch))
        return total

    def ours():
        out = args.folder / f"packed{next(count)}"   # what is up to date would be left alone
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            data.pack_text([text], args.folder, out, "train")
        return data.read_json(out / "train.json", "")["tokens"]
    same("tokens", theirs(), ours(), 0)
    return Row(f"tokenising {text.stat().st_size / 1e6:.1f} MB of the mini world",
               "tokenizers alone, nothing written", theirs, {"": ours}, 0.9)


# --------------------------------------------------------------------------------------------------
# On a GPU, in bf16: steps whose batches lie there already, in turn, and teacher.py as it is run

GPU_HEADER = ("on a GPU", "ms [quartiles]", "of rate", "peak GB", "aim", "1st step, s")
THEIRS = {"transformers, eager": None, "transformers, compiled": None}
GPU_STEPS = {   # row: (size, sequences, {step: aim, at most this, in ms or "x" the compiled one})
    "gpu-base": ("base", 256, THEIRS | {"MLM": (0.75, "x"), "NST + CRD": (1.0, "x")}),
    "gpu-small": ("small", 256, THEIRS | {"MLM": (0.62, "x"), "NST + CRD": (26.0, "ms")}),
    "gpu-rank": ("base", 64,   # what one process of four does
                 {"MLM": None, "MLM, graphs": (16.0, "ms"), "NST + CRD, graphs": None}),
}


def refuse(said):
    """What model.compiled says where it fails: the times would be of something else."""
    raise model.UserError(said)


def gpu_step(args, size, batch, name):
    """(one of GPU_STEPS as a function, FLOPs of its forward and backward)"""
    device = args.processes.device
    nets = networks(args, ("nst", "crd") if name.startswith("NST") else (), size, batch)
    asked = "off" if name == "transformers, eager" else "auto"
    if name in THEIRS:
        bert = transformers_bert(nets, nets.student)   # sdpa is its own choice
        optimizer = torch.optim.AdamW(bert.parameters(), 1e-4, fused=True)
        modules = [bert]
        batches = [masked(nets, step, device) for step in range(4)]

        def function(inputs, labels):
            with torch.autocast(device.type, args.autocast_type, args.autocast_type is not None):
                return bert(input_ids=inputs, labels=labels).loss

        def losses_of(function, step):
            return {"mlm": function(*batches[step % 4])}
    else:
        optimizer = model.optimizer_for(nets.modules, 1e-4, nets.settings["weight_decay"])
        modules = nets.modules
        parts = [part_of(nets, step, device) for step in range(4)]
        function = distill.losses_of

        def losses_of(function, step):
            return our_losses(args, nets, args.autocast_type, step, function, parts)
    with FlopCounterMode(display=False) as counter:
        sum(losses_of(function, 0).values()).backward()
    fast = model.compiled(function, asked, device, refuse, "graphs" in name)
    step = stepper(modules, optimizer, partial(losses_of, fast), waits=False)
    return step, counter.get_total_flops()


def peak_memory(function, device):
    """Calls a function; returns the bytes of a GPU's tensors at their most."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated()   # 0 without a GPU


def product_rate(args):
    """FLOP a second of the machine's own square products in bf16."""
    n = 256 if args.small else 8192
    a, b = torch.randn(2, n, n, device=args.processes.device, dtype=torch.bfloat16)
    product = Row("product", "", partial(torch.mm, a, b), {})
    return 2 * n ** 3 / np.median(measure(product, 9, args.processes.device)[0])


def gpu_line(what, seconds, work, rate, peak):
    """A line of the table, without its aim; seconds: [repeats]."""
    low, middle, high = 1000 * np.percentile(seconds, (25, 50, 75))
    return (what, f"{middle:.1f} [{low:.1f}, {high:.1f}]", f"{1000 * work / middle / rate:.2f}",
            f"{peak / 2 ** 30:.1f}")


def aimed(args, value, unit, most=None, least=None):
    """The aim's cell: at most, at least, or both."""
    if args.small:
        return ""
    asked = f"{least} to {most}"
    if least is None:
        asked = f"at most {most}"
    if most is None:
        asked = f"at least {least}"
    met = (least is None or value >= least) and (most is None or value <= most)
    return f"{value:.2f} {unit}, {asked}: {'met' if met else 'NOT MET'}"


def gpu_steps(name, args):
    """The lines of a row of GPU_STEPS."""
    size, batch, aims = GPU_STEPS[name]
    if args.small:
        size, batch = "mini", BATCH
    device = args.processes.device
    if "transformers, compiled" in aims:
        pretraining((), "", "", None, args)   # compares their numbers with ours
    torch.set_float32_matmul_precision("high")
    torch.compiler.reset()   # a run compiles for its own shapes only
    rate = product_rate(args)
    steps = {}
    facts = {}   # FLOPs, rate, memory
    first_steps = {}   # seconds, of which compiling takes most
    for step in aims:
        before = torch.cuda.memory_allocated()   # of the steps before
        steps[step], work = gpu_step(args, size, batch, step)
        started = time.perf_counter()
        steps[step]()
        first_steps[step] = f"{time.perf_counter() - started:.1f}"
        for _ in range(3):   # graphs are recorded at the second
            steps[step]()
        facts[step] = work, rate, peak_memory(steps[step], device) - before
    first, *others = steps.values()
    seconds = measure(Row(name, "", first, dict(enumerate(others))), args.repeats or 9, device)[0]
    seconds = dict(zip(steps, seconds))   # {step: [repeats]}
    lines = [GPU_HEADER, (f"square bf16 products: {rate / 1e12:,.1f} TFLOP/s",)]
    for step, aim in aims.items():
        asked = ""
        if aim:
            most, unit = aim
            value = 1000 * np.median(seconds[step])
            if unit == "x":
                value /= 1000 * np.median(seconds["transformers, compiled"])
            asked = aimed(args, value, unit, most)
        what = f"{step}, {size}, {batch} x {model.SIZES[size].block}"
        line = gpu_line(what, seconds[step], *facts[step])
        lines.append((*line, asked, first_steps[step]))
    return lines


def make_howto100m(folder, videos, width, vocabulary):
    """A data folder of random features, 1 and 1.5 a second, and captions in HowTo100M's form.

    Videos of 4 to 9 minutes, captions of 6 to 14 words, one in 4 seconds: a block is about 50
    seconds of film.
    """
    generator = data.numpy_generator(0, "howto100m")
    noise = generator.standard_normal((2000, width), np.float32).astype(np.float16)
    words = np.array([f"w{number}" for number in range(vocabulary - len(data.SPECIAL))])
    lengths = generator.integers(240, 540, videos)   # seconds
    captions = {}
    for video, seconds in enumerate(lengths):
        starts = np.sort(generator.integers(0, seconds, seconds // 4)).tolist()
        spoken = [generator.choice(words, generator.integers(6, 15)) for _ in starts]
        captions[f"v{video}"] = {"text": list(map(" ".join, spoken)), "start": starts,
                                 "end": [start + 4 for start in starts]}
    for rate, name in ((1.0, "resnet152"), (1.5, "resnext101")):
        stream = folder / "features" / name
        stream.mkdir(parents=True)
        data.write_json(stream / "stream.json", {"rate": rate, "width": width})
        for video, seconds in enumerate(lengths):
            first = generator.integers(1000)
            np.save(stream / f"v{video}.npy", noise[first:first + int(rate * seconds)])
    (folder / "vocab.txt").write_text("\n".join([*data.SPECIAL, *words]) + "\n")
    data.write_json(folder / "caption.json", captions)
    data.captions_command(SimpleNamespace(
        videos=folder, captions=folder / "caption.json", vocab=folder / "vocab.txt", out=folder,
        held_out=None))


def gpu_teacher(args):
    """The lines of teacher.py: its step, its wait for data, and what --dry-run says of it."""
    device = args.processes.device
    folder = args.folder / "howto100m"
    size, batch, width, videos, every = ("base", 64, 2048, 256, 20)
    if args.small:
        size, batch, width, videos, every = ("mini", 8, 16, 32, 2)
    command = ["--data", folder, "--size", size, "--batch", batch, "--steps", 8 * every + 1,
               "--log-every", every, "--device", device.type, "--out", folder / "run"]
    command = list(map(str, command))
    torch.compiler.reset()
    rate = product_rate(args)
    counted = []   # an entry for each step whose FLOPs are counted
    printed = io.StringIO()
    before = torch.cuda.memory_allocated()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        make_howto100m(folder, videos, width, model.SIZES[size].vocab_size)
        hook = register_optimizer_step_post_hook(lambda *given: counted.append(1))
        with (FlopCounterMode(display=False) as counter, mock.patch.object(data, "DRY_STEPS", 1)):
            teacher.main([*command, "--dry-run", "--compile", "off", "--workers", "0"])
        hook.remove()
        teacher.main([*command, "--dry-run"])
        peak = peak_memory(partial(teacher.main, command), device) - before
    if "compiling failed" in printed.getvalue():
        refuse("teacher.py: compiling failed")
    told = float(re.findall(r"(\d+) ms a step", printed.getvalue())[-1])
    log = [json.loads(line) for line in open(folder / "run" / "log.jsonl")]
    times = [(line["seconds"], line["waited"]) for line in log if "waited" in line]
    seconds, waited = np.diff(times, axis=0)[3:].T / every   # [5] each: what is compiled is by then
    took = 1000 * np.median(seconds)
    what = f"teacher.py, {size}, {batch} clips of 2 x {width} features"
    work = counter.get_total_flops() / len(counted)
    return [GPU_HEADER,
            (*gpu_line(what, seconds, work, rate, peak), aimed(args, took, "ms", 40.0)),
            ("its wait for data", f"{1000 * np.median(waited):.1f}", "", "",
             aimed(args, waited.sum() / seconds.sum(), "of it", 0.05)),
            ("what its --dry-run says", f"{told:.0f}", "", "",
             aimed(args, told / took, "of it", 1.2, 0.8))]


def make_films(folder, films, seconds):
    """Films of 480 x 360, all the same one, encoded by PyAV. Returns {id: path}."""
    picture = f"testsrc2=size=480x360:rate=30:duration={seconds}"
    paths = {f"film{number}": folder / f"film{number}.mp4" for number in range(films)}
    first, *others = paths.values()
    with av.open(picture, format="lavfi") as source, av.open(first, "w") as target:
        stream = target.add_stream("libx264", rate=30, width=480, height=360, pix_fmt="yuv420p")
        for frame in source.decode(video=0):
            frame.pts = None   # counted anew
            target.mux(stream.encode(frame))
        target.mux(stream.encode())
    for other in others:
        shutil.copy(first, other)
    return paths


def decode_alone(path):
    for _ in data.decode(path, {data.STREAMS[name].view for name in model.CNNS}):
        pass


def gpu_video(args):
    """The lines of `data.py video` with both CNNs: seconds of film a second, and of its parts."""
    device = args.processes.device
    workers, seconds, many = os.cpu_count(), 20, 6
    if args.small:
        workers, seconds, many = 2, 1, 2
    films = make_films(args.folder, many * workers, seconds)
    for make, file in model.CNNS.values():
        torch.save(make().state_dict(), args.folder / file)
    rates = {}   # seconds of film a second

    with ProcessPoolExecutor(workers) as pool:
        list(pool.map(decode_alone, list(films.values())[:workers]))   # starts all
        started = time.perf_counter()
        list(pool.map(decode_alone, films.values()))
        rates["decoding alone"] = len(films) * seconds / (time.perf_counter() - started)

    precision, _ = data.settle_precision("auto", device)
    used = 0.0   # seconds for a second of film
    for name in model.CNNS:
        stream = data.STREAMS[name]
        function = data.cnn_function(name, args.folder, device, precision)
        height = stream.view.size
        width = height if stream.view.crop else height * 4 // 3
        shape = stream.batch, height, width, 3
        pictures = data.numpy_generator(0, name).integers(0, 256, shape, np.uint8)
        batches = 1 if args.small else 2 * workers

        def feed():
            with ThreadPoolExecutor(batches) as pool:
                list(pool.map(function, [pictures] * batches))
        feed()
        started = time.perf_counter()
        feed()
        took = time.perf_counter() - started
        used += took / (batches * stream.batch / stream.view.fps)
    rates["networks alone"] = 1 / used

    took = {}
    for count in (workers, len(films)):   # their difference leaves out how long starting takes
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            data.extract_features(dict(list(films.items())[:count]), list(model.CNNS),
                                  args.folder / f"out{count}", workers, weights=args.folder,
                                  device=device.type)
        took[count] = time.perf_counter() - started
    more = (len(films) - workers) * seconds
    rates["data.py video"] = more / (took[len(films)] - took[workers])
    lines = [("films, both CNNs", "seconds of film a second", "", "", "aim")]
    for what, rate in rates.items():
        asked = ""
        if what == "data.py video":
            asked = aimed(args, rate, "s", least=150)
        lines.append((f"{what}, {workers} cores, {precision}", f"{rate:,.0f}", "", "", asked))
    return lines


# --------------------------------------------------------------------------------------------------
# Timing

ROWS = {   # name: (row, repeats)
    "mlm": (partial(pretraining, (), "MLM step", "transformers + AdamW, fp32", 2.5), 9),
    "nst": (nst, 5),
    "distill": (partial(pretraining, ("nst", "crd"), "distillation step", "authors' form, fp32",
                        8.0), 5),
    "cost": (cost, 15),
    "finetune": (finetuning, 3),
    "video": (video, 7),
    "tokens": (tokens, 7),
    "share": (share, 15),
}
GPU_ROWS = {**{name: partial(gpu_steps, name) for name in GPU_STEPS}, "gpu-teacher": gpu_teacher,
            "gpu-video": gpu_video}


def cpu_seconds():
    """CPU seconds of this process and of the children that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(row, repeats, device):
    """Seconds a call [2, callables, repeats]: wall and CPU, the reference first.

    In turn, after one warm-up each. Calls shorter than 0.1 s are repeated to that length.
    """
    callables = [row.theirs, *row.ours.values()]
    calls = [1] * len(callables)
    seconds = np.zeros((2, len(callables), 1 + repeats))   # run 0 is the warm-up
    for run in tqdm(range(1 + repeats), desc=row.what, leave=False, disable=None):
        for k, timed in enumerate(callables):
            wall = time.perf_counter()
            cpu = cpu_seconds()
            for _ in range(calls[k]):
                timed()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[0, k, run] = (time.perf_counter() - wall) / calls[k]
            seconds[1, k, run] = (cpu_seconds() - cpu) / calls[k]
            calls[k] = 1 + int(0.1 / seconds[0, k, 0])
    seconds[:, 0] *= row.scale
    return seconds[:, :, 1:]


def judge(row, seconds):
    """The table's lines: medians in ms, their ratio and its quartiles, the verdict, as texts."""
    lines = []
    for suffix, measured in zip(("", ", CPU time"), seconds[:2 if row.cpu else 1]):
        theirs = measured[0]
        for variant, ours in zip(row.ours, measured[1:]):
            ratios = ours / theirs if row.cost else theirs / ours
            low, ratio, high = np.percentile(ratios, (25, 50, 75))
            asked = ""
            if row.target is not None and variant == list(row.ours)[-1]:
                met = ratio <= row.target if row.cost else ratio >= row.target
                asked = f"{row.target}: {'met' if met else 'NOT MET'}"
            lines.append((f"{row.what} {variant}".strip() + suffix, row.reference,
                          f"{1000 * np.median(theirs):,.1f}", f"{1000 * np.median(ours):,.1f}",
                          f"{ratio:.2f} [{low:.2f}, {high:.2f}]", asked))
    return lines


def show(*cells):
    widths = 62, 36, 10, 10, 22, 15
    print("|", " | ".join(map(str.ljust, cells, widths)), "|", flush=True)


def run_row(name, args):
    """Builds, checks, times and shows one row."""
    make, repeats = ROWS.get(name) or (GPU_ROWS[name], None)
    if name in GPU_ROWS and args.processes.device.type != "cuda" and not args.small:
        show(name, "not run: no GPU")
        return
    failures = ImportError, FileNotFoundError   # transformers, ffmpeg
    if name in GPU_ROWS:
        failures += model.UserError, torch.OutOfMemoryError
    torch.set_float32_matmul_precision("highest")   # in which numbers are compared
    try:
        row = make(args)
    except failures as failure:
        show(name, f"not run: {failure}")
        return
    if name in GPU_ROWS:
        for line in row:
            show(*line)
        return
    if args.small:
        row = row._replace(target=None)
    torch.set_float32_matmul_precision("high")   # as in the stages
    for line in judge(row, measure(row, args.repeats or repeats, args.processes.device)):
        show(*line)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*ROWS, *GPU_ROWS], metavar="ROW",
                        help=f"on a CPU {', '.join(ROWS)}; on a GPU {', '.join(GPU_ROWS)}")
    parser.add_argument("--repeats", type=int, help="of every row (default: each row's own)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    args = parser.parse_args(argv)
    args.processes = data.Processes(args.device)
    args.only = args.only or list(GPU_ROWS if args.processes.device.type == "cuda" else ROWS)
    args.size = "mini" if args.small else "small"
    args.precision, args.autocast_type = data.settle_precision("auto", args.processes.device)
    facts = data.provenance(args.processes.device)
    load = os.getloadavg()[0] / os.cpu_count()
    print(f"{facts['hardware']}, {facts['threads']} threads, torch {facts['torch']}, commit "
          f"{facts['commit']}, uncommitted changes: {facts['uncommitted changes']}, "
          f"{args.precision}, load {load:.2f} a core")
    if args.small or load > 0.5:
        print("Not to be quoted: the sizes are tiny, or the machine is busy with other work.")
    show("what", "reference", "its ms", "our ms", "ratio [quartiles]", "target")
    show(*["---"] * 6)
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        for name in args.only:
            run_row(name, args)


if __name__ == "__main__":
    model.command(main)
