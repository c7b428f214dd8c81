"""Speed against references, in one run, on this machine. A command, never collected as a test; `make bench` runs it.

    python tests/bench.py                                    # every row, some 6 minutes on two quiet cores
    python tests/bench.py --only mlm nst --repeats 15        # some rows
    REAL_DATA=/folder/of/real/files python tests/bench.py    # real text and a real clip for `tokens` and `video`
    python tests/bench.py --small                            # tiny sizes: shows that it runs, says nothing of speed

Each row builds a reference and ours, compares their numbers where they compute the same thing, warms both up, and times
them in turn, so that whatever else the machine does hits both. ratio = median of the reference / median of ours; in
brackets the quartiles of the ratios of neighbouring runs. A missing oracle is said, and the others run.
Axes: B sequences, L tokens, H width, V vocabulary, D = H neurons.
"""
import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Callable, NamedTuple

import av
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data
import distill
import finetune
import model

IDS = {"pad": 0, "cls": 1, "sep": 2, "mask": 3}


class Row(NamedTuple):
    """What one row times: two callables or more, and what is asked of their ratio."""
    what: str
    reference: str        # what the reference is
    theirs: Callable
    ours: dict            # {variant: callable}; the target is the last one's
    target: float | None  # of theirs / ours, at least; None: none was set
    cost: bool = False    # of ours / theirs instead, at most
    scale: float = 1.0    # the reference's time counts this many times: it does only 1 / scale of the work
    cpu: bool = False     # judged by CPU seconds, too: a job that runs one process a core pays those


class NotRun(Exception):
    """Why a row cannot be measured here; it is printed in its place."""


def same(what, theirs, ours, tolerance=1e-4):
    """Raises ValueError unless two numbers agree within the relative tolerance: else the times are of two things."""
    if not abs(float(theirs) - float(ours)) <= tolerance * abs(float(theirs)):
        raise ValueError(f"{what}: the reference gives {float(theirs):.6g}, ours {float(ours):.6g}; nothing to time")


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining steps


def networks(args, size, objectives=(), batch=8):
    """What distill.py trains, at random weights that are the same at every call, and one batch of random tokens."""
    settings = distill.DEFAULTS[size]
    config = dataclasses.replace(model.SIZES[size], hidden_dropout_prob=settings["dropout"],
                                 attention_probs_dropout_prob=settings["dropout"])
    torch.manual_seed(0)
    student, teacher, heads = model.Bert(config), model.Bert(config), nn.ModuleDict()
    mlm_head = model.MLMHead(config, student.tokens)
    for name in objectives:
        heads[name + "_head"] = model.DistillHead(config, config.hidden_size)
    if "crd" in objectives:
        heads["crd"] = distill.CRD(config.hidden_size, config.hidden_size, queue=settings["crd_queue"])
    tokens = torch.randint(len(IDS), config.vocab_size, (batch, config.block))
    tokens[:, 0], tokens[:, -1] = IDS["cls"], IDS["sep"]
    nets = SimpleNamespace(config=config, settings=settings, tokens=tokens, teacher=teacher, student=student,
                           mlm_head=mlm_head, heads=heads, modules=[student, mlm_head, heads])
    for module in (teacher, *nets.modules):
        module.to(args.processes.device)
    teacher.eval().requires_grad_(False)
    return nets


def masked(nets, step):
    """Both sides' input of a step: (special [B, L], True = [CLS] or [SEP]; inputs [B, L]; labels [B, L]), on the CPU."""
    special = data.special_mask(nets.tokens, IDS)
    return special, *data.mask_tokens(nets.tokens, special, data.torch_generator(0, "mask", step), IDS["mask"],
                                      nets.config.vocab_size)


def our_losses(args, nets, step, autocast_type):
    """The losses of one step, line by line as in distill.py's loop, objectives none or nst + crd."""
    processes, device, losses = args.processes, args.processes.device, {}
    special, inputs, labels = masked(nets, step)
    label_count = int(processes.sum((labels != -100).sum().item()))
    inputs, labels, real = inputs.to(device), labels.to(device), (nets.tokens != IDS["pad"]).to(device)
    with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
        hidden = nets.student(inputs)                                               # [B, L, H]
        losses["mlm"] = model.mlm_loss(nets.mlm_head, hidden, labels, label_count)
        if nets.heads:
            with torch.no_grad():
                target = F.normalize(nets.teacher(inputs).float(), dim=-1)          # [B, L, H]
            mapped = nets.heads["nst_head"](hidden).float()
    if nets.heads:
        losses["nst"] = distill.nst_loss(F.normalize(mapped, dim=-1), target, real)
        drawn = distill.sample_tokens(special, nets.settings["crd_tokens"], data.torch_generator(0, "crd", step),
                                      slice(None), len(inputs)).to(device)
        pick = lambda vectors: vectors.gather(1, drawn[:, :, None].expand(-1, -1, vectors.shape[2])).flatten(0, 1)
        losses["crd"] = nets.heads["crd"](nets.heads["crd_head"](pick(hidden).float()), pick(target), processes)
    return losses


def stepper(modules, optimizer, losses_of):
    """One optimiser step as the stages do it; losses_of: step -> {name: loss}. Returns a function of nothing.

    Left out of ours: the step in a hundred that also measures gradient norms for the log.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    count = itertools.count()

    def step():
        number = next(count)
        for group in optimizer.param_groups:
            group["lr"] = model.lr_at(number, 1e-4, 1000, 10000)
        for module in modules:
            module.train()
        data.seed_dropout(0, number, 0)
        loss = sum(losses_of(number).values())
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, 1.0)):
            raise FloatingPointError("gradient norm is not finite")
        optimizer.step()
    return step


def our_step(args, size, objectives, autocast_type, batch=8):
    nets = networks(args, size, objectives, batch)
    return stepper(nets.modules, model.optimizer_for(nets.modules, 1e-4, nets.settings["weight_decay"]),
                   lambda step: our_losses(args, nets, step, autocast_type))


def transformers_bert(nets):
    """BertForMaskedLM of transformers with the student's weights, on the student's device."""
    sys.modules.setdefault("torchvision", None)   # not needed, and one made for another torch would stop the import
    try:
        import transformers
    except ImportError as error:
        raise NotRun(f"transformers is not installed ({error})") from None
    shape = {key: value for key, value in dataclasses.asdict(nets.config).items() if key != "block"}
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**shape))
    theirs.load_state_dict(model.to_hf(nets.student, nets.mlm_head))
    return theirs.to(nets.student.tokens.weight.device)


def loss_and_pull(losses, modules):
    """Sum of the losses, and the norm of its gradient over all parameters: of two networks, these tell apart much."""
    loss = sum(losses.values())
    loss.backward()
    pull = torch.nn.utils.clip_grad_norm_([p for module in modules for p in module.parameters()], float("inf"))
    return float(loss.detach()), float(pull)


def mlm(args):
    """Masked language modelling: logits at every position and labels of -100, against ours at masked positions only."""
    nets = networks(args, args.size)
    theirs = transformers_bert(nets)

    def losses(step):
        _, inputs, labels = masked(nets, step)
        return {"mlm": theirs(input_ids=inputs.to(theirs.device), labels=labels.to(theirs.device)).loss}
    for module in (theirs, *nets.modules):
        module.eval()
    for what, a, b in zip(("MLM loss", "its gradient"), loss_and_pull(losses(0), [theirs]),
                          loss_and_pull(our_losses(args, nets, 0, None), nets.modules)):
        same(what, a, b)
    with torch.no_grad():
        same("MLM loss, autocast", losses(0)["mlm"], our_losses(args, nets, 0, args.autocast_type)["mlm"], 1e-2)
    ours = {name: our_step(args, args.size, (), kind)
            for name, kind in {"fp32": None, args.precision: args.autocast_type}.items()}
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, weight_decay=nets.settings["weight_decay"])
    return Row(f"MLM step, {args.size}, 8 x {nets.config.block}", "transformers + AdamW, fp32",
               stepper([theirs], optimizer, losses), ours, 2.5)


def distillation(args):
    """NST + CRD, against the authors' form: NST by broadcasting and their NT-Xent loop, on transformers, in fp32."""
    nets = networks(args, args.size, ("nst", "crd"))
    theirs, teacher = transformers_bert(nets), transformers_bert(SimpleNamespace(**{**vars(nets), "student": nets.teacher}))
    teacher.eval().requires_grad_(False)
    heads = nn.ModuleList([model.DistillHead(nets.config, nets.config.hidden_size) for _ in range(2)]).to(theirs.device)
    heads[0].load_state_dict(nets.heads["nst_head"].state_dict())

    def losses(step):
        _, inputs, labels = [tensor.to(theirs.device) for tensor in masked(nets, step)]
        out = theirs(input_ids=inputs, labels=labels, output_hidden_states=True)
        with torch.no_grad():
            target = F.normalize(teacher.bert(inputs).last_hidden_state, dim=-1)    # [B, L, H]
        first, second = [F.normalize(head(out.hidden_states[-1]), dim=-1) for head in heads]
        return {"mlm": out.loss, "nst": authors_nst(first, target), "ntxent": authors_ntxent(second, target)}
    for module in (theirs, *nets.modules):
        module.eval()
    with torch.no_grad():
        a, b = losses(0), our_losses(args, nets, 0, None)
        target = F.normalize(nets.teacher(masked(nets, 0)[1].to(theirs.device)), dim=-1)
        same("MLM loss", a["mlm"], b["mlm"])
        same("NST loss", whole_nst(a["nst"], target), b["nst"], 1e-3)   # a difference of nearly equal numbers
    optimizer = torch.optim.AdamW([*theirs.parameters(), *heads.parameters()], lr=1e-4,
                                  weight_decay=nets.settings["weight_decay"])
    return Row(f"distillation step, {args.size}, 8 x {nets.config.block}", "authors' form, fp32",
               stepper([theirs, heads], optimizer, losses),
               {args.precision: our_step(args, args.size, ("nst", "crd"), args.autocast_type)}, 8.0)


def cost(args):
    """What distilling costs: our step with NST + CRD, as a multiple of our MLM step of the same student."""
    steps = [our_step(args, args.size, objectives, args.autocast_type) for objectives in ((), ("nst", "crd"))]
    return Row("distillation step, its cost", f"our MLM step, {args.precision}", steps[0], {args.precision: steps[1]},
               1.45, cost=True)


def share(args):
    """Our MLM step against a large square product: how much of the machine's matmul rate it reaches.

    Work of a step: 6 x weights of the layers' matrices a token, attention's two products, and the MLM head at the 15 %
    of the positions that are masked. On a GPU: size base and 64 sequences, since 8 short ones leave it idle.
    """
    size, batch, n, target = (args.size, 8, 2048, 0.6)
    if args.processes.device.type == "cuda":
        size, batch, n, target = ("base", 64, 8192, 0.5)
    config = model.SIZES[size]
    H, tokens, chosen = config.hidden_size, batch * config.block, 0.15 * batch * (config.block - 2)
    weights = config.num_hidden_layers * (4 * H * H + 2 * H * config.intermediate_size)
    work = 6 * weights * tokens + 12 * config.num_hidden_layers * config.block * H * tokens + \
        6 * chosen * (H * H + H * config.vocab_size)
    a, b = torch.randn(2, n, n, device=args.processes.device, dtype=args.autocast_type or torch.float32)
    product = torch.empty_like(a)
    return Row(f"MLM step, share of matmul rate, {size}", f"its {work / 1e9:.0f} GFLOP in {n} x {n} products",
               lambda: torch.mm(a, b, out=product), {args.precision: our_step(args, size, (), args.autocast_type, batch)},
               target, scale=work / (2 * n ** 3))


# ---------------------------------------------------------------------------------------------------------------------
# Objectives, in the authors' form


def authors_nst(student, teacher):
    """NST as the authors compute it: sequence by sequence, every kernel from a [D, D, L] product; no teacher term, and
    divided by L. student, teacher: [B, L, D]."""
    def kernel(x, y):
        return (x[:, None] * y[None]).sum(-1).pow(2)                                # [D, D], by way of [D, D, L]
    total = 0.0
    for one, other in zip(student, teacher):
        s, t = F.normalize(one.T, dim=1), F.normalize(other.T, dim=1)               # [D, L], unit rows
        total = total + kernel(s, s).mean() - 2 * kernel(s, t).mean()
    return total / student.shape[1]


def whole_nst(value, teacher):
    """The authors' value made ours: mean over sequences, and the teacher's own term, which no gradient sees, added."""
    t = F.normalize(teacher.float(), dim=1)                                         # [B, L, D], unit columns
    return value * teacher.shape[1] / len(teacher) + (t.transpose(1, 2) @ t).pow(2).mean()


def authors_ntxent(student, teacher, temperature=1.0):
    """NT-Xent as the authors compute it: a loop over positions, cross-entropy's mean divided by 2B once more."""
    B, L, _ = student.shape
    rival = ~torch.eye(2 * B, dtype=torch.bool, device=student.device).roll(B, 1)   # True = not the partner ...
    rival &= ~torch.eye(2 * B, dtype=torch.bool, device=student.device)             # ... nor the anchor itself
    right, total = torch.zeros(2 * B, dtype=torch.long, device=student.device), 0.0
    for l in range(L):
        z = F.normalize(torch.cat([student[:, l], teacher[:, l]]), dim=-1)          # [2B, D]
        scores = z @ z.T / temperature
        partner = torch.cat([scores.diagonal(B), scores.diagonal(-B)])[:, None]     # [2B, 1]
        total = total + F.cross_entropy(torch.cat([partner, scores[rival].view(2 * B, -1)], 1), right) / (2 * B)
    return total / L


def objective(args, what, theirs, ours, to_ours):
    """A row of one objective, forward and backward; theirs, ours: functions of (student, teacher), [8, L, H] with unit
    rows; to_ours: (their value, teacher) -> what ours should be."""
    config = model.SIZES[args.size]
    torch.manual_seed(0)
    student, teacher = F.normalize(torch.randn(2, 8, config.block, config.hidden_size), dim=-1).to(args.processes.device)
    student.requires_grad_(True)
    a, b = theirs(student, teacher), ours(student, teacher)
    same(f"{what} loss", to_ours(a, teacher), b)
    (pull_a,), (pull_b,) = torch.autograd.grad(to_ours(a, teacher), student), torch.autograd.grad(b, student)
    same(f"{what}, its gradient", pull_a.norm(), pull_b.norm(), 1e-3)
    same(f"{what}, its gradient's direction", 1.0, F.cosine_similarity(pull_a.flatten(), pull_b.flatten(), dim=0), 1e-3)
    timed = [lambda form=form: torch.autograd.grad(form(student, teacher), student) for form in (theirs, ours)]
    return Row(f"{what} forward + backward, 8 x {config.block} x {config.hidden_size}", "authors' form, fp32", timed[0],
               {"fp32": timed[1]}, None)


def nst(args):
    """Theirs through [D, D, L] products, against ours through L x L Gram matrices."""
    real = torch.ones(8, model.SIZES[args.size].block, dtype=torch.bool, device=args.processes.device)   # True = real
    return objective(args, "NST", authors_nst, lambda s, t: distill.nst_loss(s, t, real), whole_nst)


def ntxent(args):
    """Theirs in a loop over positions, against one batched product."""
    return objective(args, "NT-Xent", authors_ntxent, lambda s, t: distill.ntxent_loss(s, t, 1.0),
                     lambda value, teacher: value * 2 * len(teacher))


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning, video, text


@functools.lru_cache
def corpus(folder, small):
    """(a text of some MB, a vocabulary, their name): REAL_DATA's Wikipedia, or the mini world's."""
    text = folder / "text.txt"
    if "REAL_DATA" in os.environ:
        real = Path(os.environ["REAL_DATA"])
        lines, vocab = (real / "corpus" / "wiki.valid.raw").read_text().splitlines(), real / "vocab" / "bert-base-uncased-vocab.txt"
    else:
        lines, vocab = data.make_text(data.make_world(0), 0, 1000), folder / "vocab.txt"
        text.write_text("\n".join(lines))
        data.train_tokenizer([text], 2048, vocab)
    copies = 1 if small else -(-4_000_000 // sum(map(len, lines)))
    text.write_text("\n".join(lines * copies) + "\n")
    return text, vocab, "Wikipedia" if "REAL_DATA" in os.environ else "mini world"


def finetuning(args):
    """One batch in five of an epoch, across its lengths: batches as finetune.py makes them, padded to their longest row,
    against the same rows padded to the maximum. Lengths are lognormal, mean about 40, as GLUE's are."""
    settings, device = finetune.DEFAULTS["base"], args.processes.device
    tokenizer = data.load_tokenizer(corpus(args.folder, args.small)[1])
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha())
    generator = data.numpy_generator(0, "bench")
    batch, longest = (8, 64) if args.small else (settings["batch"], settings["max_length"])
    lengths = generator.lognormal(np.log(40) - 0.18, 0.6, 50 * batch).clip(5, longest).astype(int)
    rows = finetune.Rows([finetune.Example([(" ".join(generator.choice(words, n - 2)), None)], "0", "0", "bench")
                          for n in lengths], generator.integers(2, size=len(lengths)), tokenizer, longest)
    batches = finetune.length_sorted_batches(rows.lengths, batch, 0, 0)
    batches = sorted(batches, key=lambda chosen: rows.lengths[chosen].sum())[2::25 if args.small else 5]

    config = dataclasses.replace(model.SIZES[args.size], hidden_dropout_prob=settings["dropout"],
                                 attention_probs_dropout_prob=settings["dropout"])
    config.vocab_size = max(config.vocab_size, tokenizer.get_vocab_size())
    torch.manual_seed(0)
    bert, head = model.Bert(config).to(device), model.SequenceHead(config, 2).to(device)
    optimizer = model.optimizer_for([bert, head], settings["lr"], settings["weight_decay"], settings["eps"])

    def scores(chosen, padded, autocast_type):
        inputs = rows.batch(chosen)                                                 # tokens, mask, segments [B, L]
        if padded:
            inputs = [F.pad(x, (0, longest - x.shape[1]), value=rows.pad if k == 0 else 0) for k, x in enumerate(inputs)]
        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            return finetune.scores_of("classification", bert, head, [x.to(device) for x in inputs], 1)

    def epoch(padded):
        def losses(step):
            chosen = batches[step % len(batches)]
            targets = torch.from_numpy(rows.targets[chosen]).to(device)
            return {"task": finetune.loss_of("classification", scores(chosen, padded, args.autocast_type), targets)
                    / len(chosen)}
        step = stepper([bert, head], optimizer, losses)
        return lambda: [step() for _ in batches]
    bert.eval(), head.eval()
    with torch.no_grad():
        for column in (0, 1):
            same("a score", *[scores(batches[0], padded, None)[:, column].norm() for padded in (True, False)], 1e-3)
    width = np.mean([rows.lengths[chosen].max() for chosen in batches])
    return Row(f"fine-tuning, {len(batches)} steps of {batch}, rows of {rows.lengths.mean():.0f} padded to {width:.0f}",
               f"padded to {longest}, {args.precision}", epoch(True), {args.precision: epoch(False)}, 3.0)


def clip(args):
    """A video file: REAL_DATA's, or coarse noise that drifts, generated."""
    if "REAL_DATA" in os.environ:
        return Path(os.environ["REAL_DATA"]) / "video" / "bigbuckbunny.mp4"
    generator, count, path = torch.Generator().manual_seed(0), 40 if args.small else 450, args.folder / "clip.mp4"
    # corners of what moves: a picture of 640 x 360 is a window that slides over a larger one
    wall = F.interpolate(torch.rand(1, 3, 60, 100, generator=generator), (480, 800), mode="bicubic")[0].clamp(0, 1)
    wall = (255 * wall).byte().permute(1, 2, 0).numpy()                             # [480, 800, 3]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for k in range(count):
            top, left = int(60 + 60 * np.sin(k / 20)), int(80 + 80 * np.cos(k / 30))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(wall[top:top + 360, left:left + 640]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def video(args):
    """The pictures of both CNN streams: two passes of the ffmpeg command, against one decode for both views."""
    if shutil.which("ffmpeg") is None:
        raise NotRun("the ffmpeg command is not installed")
    path = clip(args)
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        h, w, seconds = stream.height, stream.width, float(stream.duration * stream.time_base)
    kinds = [data.STREAMS[name].view for name in ("resnet152", "resnext101")]

    def theirs():
        pictures = []
        for view in (kind() for kind in kinds):
            height, width = (int(h * view.size / w), view.size) if h >= w else (view.size, int(w * view.size / h))
            filters, sides = f"fps={view.fps},scale={width}:{height}", (height, width)
            if view.crop:
                filters += f",crop={view.size}:{view.size}:{(width - view.size) // 2}:{(height - view.size) // 2}"
                sides = view.size, view.size
            made = subprocess.run(["ffmpeg", "-v", "error", "-i", path, "-vf", filters, "-f", "rawvideo", "-pix_fmt",
                                   "rgb24", "-"], capture_output=True, check=True)
            pictures.append(np.frombuffer(made.stdout, np.uint8).reshape(-1, *sides, 3))
        return pictures

    def ours():
        views = [kind() for kind in kinds]
        pictures = {view: [] for view in views}
        for view, some, _ in data.decode(path, views):
            pictures[view] += some
        return [np.stack(pictures[view]) for view in views]
    for a, b in zip(theirs(), ours()):
        if abs(len(a) - len(b)) > 1:   # versions of ffmpeg differ by one at the end
            raise ValueError(f"video: ffmpeg shows {len(a)} pictures, ours {len(b)}")
        same("pictures", a[:len(b)].mean(), b[:len(a)].mean(), 1e-3)
    return Row(f"video, {seconds:.0f} s of {w} x {h}, both views", "two ffmpeg passes", theirs, {"": ours}, 1.8, cpu=True)


def tokens(args):
    """Text to packed tokens on disk, against the tokenizers library alone, which gets its lines from memory."""
    text, vocab, name = corpus(args.folder, args.small)
    tokenizer, lines, runs = data.load_tokenizer(vocab), list(data.text_lines(text)), itertools.count()

    def theirs():
        return sum(len(encoding) for start in range(0, len(lines), 1000)
                   for encoding in tokenizer.encode_batch_fast(lines[start:start + 1000], add_special_tokens=False))

    def ours():
        out = args.folder / f"packed{next(runs)}"   # a new one: pack_text leaves alone what is up to date
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            data.pack_text([text], vocab, out, "train")
        return data.read_json(out / "train.json", "")["tokens"]
    same("tokens", theirs(), ours(), 0)
    return Row(f"tokenising {text.stat().st_size / 1e6:.1f} MB, {name}", "tokenizers alone, nothing written", theirs,
               {"": ours}, 0.9)


# ---------------------------------------------------------------------------------------------------------------------
# Timing

ROWS = {   # name -> (row, repeats)
    "mlm": (mlm, 9), "nst": (nst, 5), "ntxent": (ntxent, 15), "distill": (distillation, 5), "cost": (cost, 15),
    "finetune": (finetuning, 3), "video": (video, 7), "tokens": (tokens, 7), "share": (share, 15),
}


def cpu_seconds():
    """CPU seconds of this process and of the children that it waited for."""
    return sum(used.ru_utime + used.ru_stime
               for used in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


def measure(row, repeats, device):
    """Seconds [2, callables, repeats]: wall and CPU, the reference first, in turn after one warm-up each."""
    seconds, callables = np.zeros((2, 1 + len(row.ours), repeats)), [row.theirs, *row.ours.values()]
    for repeat in tqdm(range(-1, repeats), desc=row.what, leave=False, disable=None):
        for k, timed in enumerate(callables):
            wall, cpu = time.perf_counter(), cpu_seconds()
            timed()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat >= 0:   # -1: the warm-up
                seconds[:, k, repeat] = time.perf_counter() - wall, cpu_seconds() - cpu
    return seconds


def judge(row, seconds):
    """Yields one dict a printed line."""
    seconds[:, 0] *= row.scale
    for kind, (theirs, *ours) in zip(("", "CPU "), seconds[:2 if row.cpu else 1]):
        for k, (variant, our) in enumerate(zip(row.ours, ours)):
            a, b = (our, theirs) if row.cost else (theirs, our)
            ratio, target = np.median(a) / np.median(b), row.target if k + 1 == len(ours) else None
            yield {"what": row.what, "reference": row.reference, "ours": variant, "measure": kind + "ms",
                   "reference_ms": 1000 * np.median(theirs), "ours_ms": 1000 * np.median(our), "ratio": ratio,
                   "quartiles": list(np.percentile(a / b, [25, 75])), "target": target, "at most": row.cost,
                   "met": None if target is None else bool(ratio <= target if row.cost else ratio >= target)}


def shown(line):
    """A line of the table: {what judge yields} -> cells."""
    low, high = line["quartiles"]
    target = "" if line["target"] is None else f"{'<=' if line['at most'] else '>='} {line['target']:g}"
    return [f"{line['what']} {line['ours']}".strip(), line["reference"],
            *(f"{line[key]:,.1f} {line['measure']}" for key in ("reference_ms", "ours_ms")),
            f"{line['ratio']:.2f} [{low:.2f}, {high:.2f}]", target, {None: "", True: "met", False: "NOT met"}[line["met"]]]


def table_row(cells):
    return "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(cells, (58, 38, 14, 14, 24, 8, 7))) + " |"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="NAME",
                        help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--repeats", type=int, help="of every row (default: each row's own)")
    parser.add_argument("--small", action="store_true", help="tiny sizes: only shows that it runs")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    parser.add_argument("--json", help="also write the table, with hardware and versions, to this file")
    args = parser.parse_args(argv)
    args.processes, args.size = data.Processes(args.device), "mini" if args.small else "small"
    args.precision, args.autocast_type = data.settle_precision("auto", args.processes.device)
    told, load = data.provenance(args.processes.device), os.getloadavg()[0] / os.cpu_count()
    print(f"{told['hardware']}, {told['threads']} threads, torch {told['torch']}, tokenizers {told['tokenizers']}, commit "
          f"{str(told['commit'])[:12]}{' + changes' if told['uncommitted changes'] else ''}, {args.precision}, load a core "
          f"{load:.2f}")
    if load > 0.5:
        print("This machine is busy: these timings are not to be quoted.")
    if args.small:
        print("--small: tiny sizes, whose timings say nothing.")
    print(table_row(["what", "reference", "its", "ours", "ratio [quartiles]", "target", ""]))
    print(table_row(["---"] * 7), flush=True)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        args.folder = Path(folder)
        for name in args.only:
            make, repeats = ROWS[name]
            try:
                row = make(args)
            except NotRun as why:
                lines.append({"what": name, "not run": str(why)})
                print(table_row([name, f"not run: {why}", *[""] * 5]), flush=True)
                continue
            torch.set_float32_matmul_precision("high")      # as the stages do, for both sides; comparisons are exact
            found = list(judge(row, measure(row, args.repeats or repeats, args.processes.device)))
            torch.set_float32_matmul_precision("highest")
            for line in found:
                print(table_row(shown(line)), flush=True)
            lines += [{"row": name, **line} for line in found]
    if args.json:
        data.write_json(args.json, {**told, "precision": args.precision, "load a core": load, "small": args.small,
                                    "lines": lines})


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FloatingPointError) as error:
        sys.exit(f"bench.py: {error}")
