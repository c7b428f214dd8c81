"""Stage 1: the video-text teacher (paper section 3.2): a token-level contrastive loss and MLM on narrated video.

    python teacher.py --data data/mini --out runs/teacher                              # mini, minutes on a laptop
    torchrun --nproc_per_node=8 teacher.py --data data/howto100m --size base           # paper scale
    python teacher.py --data data/mini --out runs/image --frames 1 --streams frame     # the image teacher
    python teacher.py --data data/mini --out runs/captions --contrastive none          # the text-only teacher
    python teacher.py --data data/mini --out runs/shuffled --shuffle-pairs             # a control: others' clips

Writes runs/NAME/{args.json, log.jsonl, checkpoint.pt, model/, model/video_encoder.pt}. Started again, it goes on from
checkpoint.pt; finished, it says so.
Axes: B clips of the global batch, L tokens, T video steps, H width. Masks are True for real tokens.
"""
import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

import data
import model

# ---------------------------------------------------------------------------------------------------------------------
# Losses. All take the whole global batch, gathered; `rows` are the anchors this process counts, and every mean divides
# by global counts, so that the sum over processes is the one-process loss and so are its gradients.


def hinge_loss(text, video, mask, negatives, margin, rows=slice(None)):
    """Token-level contrastive loss with one negative each way (paper section 3.2, its hinge):

        mean over tokens (i,l) of max(0, margin - h_il.v_i + h_il.v_n(i))                a negative video
      + mean over (i,l), l real in n(i) too, of max(0, margin - h_il.v_i + h_n(i)l.v_i)  a negative text

    text: [B, L, H]; video: [B, H] (both made unit vectors here); mask: bool [B, L], True = a token that takes part;
    negatives: int [B], n(i) != i; margin in cosine. A collapsed pair of encoders scores 2 x margin. The authors' code
    has the first term only. Returns a scalar.
    """
    text, video = F.normalize(text, dim=-1), F.normalize(video, dim=-1)
    positive = torch.einsum("blh,bh->bl", text, video)                              # [B, L]
    other_video = torch.einsum("blh,bh->bl", text, video[negatives])                # [B, L]
    other_text = torch.einsum("blh,bh->bl", text[negatives], video)                 # [B, L]
    both = mask & mask[negatives]                                                   # True = real in text and rival
    first = (F.relu(margin - positive + other_video) * mask)[rows].sum() / mask.sum().clamp(min=1)
    second = (F.relu(margin - positive + other_text) * both)[rows].sum() / both.sum().clamp(min=1)
    return first + second


def hinge_all_loss(text, video, mask, margin, rows=slice(None)):
    """The hinge against all in-batch negatives, each way: averages over every (token, rival) instead of one rival."""
    text, video = F.normalize(text, dim=-1), F.normalize(video, dim=-1)
    B = len(text)
    scores = torch.einsum("ilh,jh->ilj", text, video)                               # [B, L, B] token (i,l), video j
    positive = scores.diagonal(dim1=0, dim2=2).T                                    # [B, L]
    rival = ~torch.eye(B, dtype=torch.bool, device=text.device)                     # True = not the same clip
    by_video = mask[:, :, None] & rival[:, None, :]                                 # [B, L, B]
    by_text = by_video & mask.T[None]                                               # token l must be real in text j too
    first = (F.relu(margin - positive[:, :, None] + scores) * by_video)[rows].sum() / by_video.sum().clamp(min=1)
    swapped = scores.permute(2, 1, 0)                                               # [i, l, j] = text j, video i
    second = (F.relu(margin - positive[:, :, None] + swapped) * by_text)[rows].sum() / by_text.sum().clamp(min=1)
    return first + second


def nce_loss(text, video, mask, temperature, pool, rows=slice(None)):
    """Softmax over all in-batch pairs (NT-Xent between two views). Collapse value: log B.

    pool "token": each real token against all videos, mean over tokens.
    pool "sentence": the mean of a text's real tokens against all videos, and each video against all texts, averaged.
    text: [B, L, H]; video: [B, H]; mask: bool [B, L]; temperature divides cosines. Returns a scalar in nats.
    """
    video = F.normalize(video, dim=-1)
    target = torch.arange(len(text), device=text.device)
    if pool == "token":
        logits = torch.einsum("ilh,jh->ilj", F.normalize(text, dim=-1), video) / temperature   # [B, L, B]
        each = F.cross_entropy(logits.transpose(1, 2), target[:, None].expand(mask.shape), reduction="none")  # [B, L]
        return (each * mask)[rows].sum() / mask.sum().clamp(min=1)
    if pool != "sentence":
        raise ValueError(f"unknown pool {pool!r}; known: token, sentence")
    logits = model.sentence_vectors(text, mask) @ video.T / temperature                     # [B, B]
    each = F.cross_entropy(logits, target, reduction="none") + F.cross_entropy(logits.T, target, reduction="none")
    return each[rows].sum() / (2 * len(text))


def contrastive_loss(args, text, video, mask, negatives, rows):
    """The chosen contrastive loss, on gathered tensors."""
    if args.contrastive == "hinge":
        return hinge_loss(text, video, mask, negatives, args.margin, rows)
    if args.contrastive == "hinge-all":
        return hinge_all_loss(text, video, mask, args.margin, rows)
    return nce_loss(text, video, mask, args.temperature, args.pool, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {
    # Text and video encoders share a shape. Sources: (a) the authors' scripts, (o) ours.
    "mini": {
        "contrastive": "nce",    # (o) the hinge learns far more slowly here; measured in the README
        "pool": "sentence",      # (o)
        "margin": 0.2,           # (o) for --contrastive hinge
        "batch": 256, "steps": 600, "epochs": None, "decay_epochs": None,   # (o) at batch 64 colours and shapes tell most
        # clips of a batch apart and motion is hardly learnt; among 256 rivals it must be. Steps: what 150 s allow.
        "lr": 2e-3, "warmup": 100, "weight_decay": 0.01, "dropout": 0.0,    # (o) too few steps to overfit
        "max_steps_clip": 48, "precision": "auto",                          # (o)
        "log_every": 50, "valid_every": 400, "save_every": 400},
    "small": {
        "contrastive": "hinge", "pool": "token", "margin": 1.0,             # (a)
        "batch": 128, "steps": None, "epochs": 20, "decay_epochs": 200,     # (a) checkpoint 19 of a 200-epoch schedule
        "lr": 5e-5, "warmup": 0, "weight_decay": 0.01, "dropout": 0.1,      # (a)
        "max_steps_clip": 384, "precision": "auto",                         # (a) 384 video steps
        "log_every": 50, "valid_every": 2000, "save_every": 2000},          # (o)
    "base": {
        "contrastive": "hinge", "pool": "token", "margin": 1.0,             # (a)
        "batch": 64, "steps": None, "epochs": 20, "decay_epochs": 200,      # (a)
        "lr": 5e-5, "warmup": 0, "weight_decay": 0.01, "dropout": 0.1,      # (a)
        "max_steps_clip": 384, "precision": "auto",                         # (a)
        "log_every": 50, "valid_every": 2000, "save_every": 2000},          # (o)
}


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/mini", help="folder that `data.py video` wrote")
    # not --run: torchrun takes that for a cut-short option of its own, even behind the script's name
    parser.add_argument("--out", default="runs/teacher", help="run folder")
    parser.add_argument("--size", default="mini", help="column of defaults and shape: mini, small, base")
    parser.add_argument("--init", help="start the text encoder from this BERT folder in Hugging Face form")
    parser.add_argument("--streams", nargs="+", default=None, help="feature streams (default: all in the data folder)")
    parser.add_argument("--frames", type=int, help="video steps that stand for a clip; 1: an image teacher")
    parser.add_argument("--contrastive", choices=["hinge", "hinge-all", "nce", "none"])
    parser.add_argument("--pool", choices=["token", "sentence"], help="for nce")
    parser.add_argument("--margin", type=float, help="for the hinges, in cosine")
    parser.add_argument("--temperature", type=float, default=0.07, help="for nce")
    parser.add_argument("--shuffle-pairs", action="store_true", help="control: captions meet another video's clip")
    parser.add_argument("--mlm-weight", type=float, default=1.0, help="L = contrastive + this x MLM")
    parser.add_argument("--batch", type=int, help="global batch, in clips")
    parser.add_argument("--steps", type=int, help="optimiser steps; overrides --epochs")
    parser.add_argument("--epochs", type=float, help="passes over the training videos")
    parser.add_argument("--decay-epochs", type=float, help="epochs over which the rate falls to 0, never fewer than are run")
    parser.add_argument("--lr", type=float)
    parser.add_argument("--warmup", type=int, help="steps")
    parser.add_argument("--weight-decay", type=float)
    parser.add_argument("--clip", type=float, default=1.0, help="gradient norm limit")
    parser.add_argument("--dropout", type=float)
    parser.add_argument("--max-steps-clip", type=int, help="longer clips are thinned to this many video steps")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int)
    parser.add_argument("--valid-every", type=int)
    parser.add_argument("--dry-run", action="store_true", help="time three steps, print what the run would take, stop")
    parser.add_argument("--save-every", type=int)
    args = parser.parse_args(argv)
    if args.size not in DEFAULTS:
        raise ValueError(f"unknown size {args.size!r}; known: {', '.join(DEFAULTS)}")
    for key, value in DEFAULTS[args.size].items():
        # of --steps and --epochs, the one that is given decides
        if getattr(args, key) is None and not {"steps": args.epochs, "epochs": args.steps}.get(key):
            setattr(args, key, value)
    return args


# ---------------------------------------------------------------------------------------------------------------------


def partners(args, clips, split):
    """Whose clip each video's captions are trained against: int [videos]. Its own; with --shuffle-pairs always the same
    other video's, so that pairs can be learnt by heart as before, but say nothing about the world."""
    return (data.derangement(len(clips), data.numpy_generator(args.seed, "pairs", split)) if args.shuffle_pairs
            else range(len(clips)))


def pair(clips, index, partner, generator=None):
    """One example: (token ids [n] of video `index`, features [T, D] of video `partner`)."""
    tokens, features = clips.example(index, generator)
    return tokens, features if partner == index else clips.example(int(partner), generator)[1]


@torch.no_grad()
def validate(args, clips, bert, mlm_head, video_encoder, ids, device, limit=256):
    """Losses and text-to-video retrieval on up to `limit` held-out clips with fixed masks. Returns a dict."""
    bert.eval(), mlm_head.eval(), video_encoder.eval()
    count = min(limit, len(clips))
    other = partners(args, clips, "valid")
    tokens, token_mask, features, step_mask = clips.collate([pair(clips, row, other[row]) for row in range(count)])
    special = data.special_mask(tokens, ids)
    inputs, labels = data.mask_tokens(tokens, special, data.torch_generator(0, "validation"), ids["mask"],
                                      bert.config.vocab_size)
    inputs, labels, token_mask, special = inputs.to(device), labels.to(device), token_mask.to(device), special.to(device)
    hidden = bert(inputs, token_mask)
    out = {"valid_mlm": float(model.mlm_loss(mlm_head, hidden, labels))}
    if args.contrastive != "none" and count > 1:
        video = video_encoder(features.to(device), step_mask.to(device))
        negatives = torch.roll(torch.arange(count), 1).to(device)
        out["valid_contrastive"] = float(contrastive_loss(args, hidden, video, ~special, negatives, slice(None)))
        clean = bert(tokens.to(device), token_mask)
        scores = model.sentence_vectors(clean, ~special) @ F.normalize(video, dim=-1).T
        ranks = (~(scores < scores.diagonal()[:, None])).sum(1).cpu()
        out["valid_r1"] = float((ranks == 1).float().mean())
        out["valid_median_rank"] = float(ranks.float().median())
        out["valid_pool"] = count
    return out


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    device, rank = processes.device, processes.rank
    precision, autocast_type = data.settle_precision(args.precision, device)
    run = Path(args.out)
    rows = processes.rows(args.batch)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")

    # --- data
    if args.streams is None:
        args.streams = sorted(path.parent.name for path in Path(args.data).glob("features/*/stream.json"))
        if not args.streams:
            raise FileNotFoundError(f"no features in {args.data}; `python data.py video --out {args.data}` makes them")
    tokenizer = data.load_tokenizer(args.data)
    ids = data.special_ids(tokenizer)
    config = dataclasses.replace(model.SIZES[args.size], vocab_size=tokenizer.get_vocab_size(),
                                 hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.dropout)
    if args.init:
        config, bert, mlm_head = model.load_hf(args.init)
        model.set_dropout(config, bert, args.dropout)
        config.block = bert.config.block = min(config.block, model.SIZES[args.size].block)
        if data.tokenizer_hash(data.load_tokenizer(args.init)) != data.tokenizer_hash(tokenizer):
            raise ValueError(f"--init {args.init} splits text into other tokens than the captions of {args.data} were; "
                             f"run `python data.py video --vocab {args.init} ...`")
    steps_a_clip = min(args.max_steps_clip, config.max_position_embeddings)
    train = data.Clips(args.data, "train", args.streams, tokenizer, config.block, steps_a_clip, args.frames)
    valid = data.Clips(args.data, "valid", args.streams, tokenizer, config.block, steps_a_clip, args.frames)
    still = args.frames == 1 and [name for name in args.streams if train.frames_seen[name] > 1]
    if still:
        raise ValueError(f"--frames 1 asks for an image teacher, but one step of {', '.join(still)} sees several "
                         f"frames; add --streams with the others only")
    steps = args.steps or max(1, round(args.epochs * len(train) / args.batch))
    decay_steps = max(steps, round((args.decay_epochs or 0) * len(train) / args.batch))
    if not args.dry_run:
        inputs = [train.sha256, *[data.file_hash(Path(args.data) / name) for name in ("splits.json", "vocab.txt")]]
        data.open_run(run, {**vars(args), "inputs": inputs}, processes, precision)

    # --- models
    if not args.init:
        bert = model.Bert(config)
        mlm_head = model.MLMHead(config, bert.tokens)
    video_config = dataclasses.replace(model.SIZES[args.size], hidden_size=config.hidden_size,
                                       num_attention_heads=config.num_attention_heads,
                                       hidden_dropout_prob=args.dropout, attention_probs_dropout_prob=args.dropout)
    video_encoder = model.VideoEncoder(video_config, train.stream_dims)
    some = data.numpy_generator(args.seed, "scale").permutation(len(train))[:500]
    video_encoder.fit_scale(torch.from_numpy(data.np.concatenate([train.example(int(index))[1] for index in some])))
    modules = [bert, mlm_head] + ([video_encoder] if args.contrastive != "none" else [])
    for module in (bert, mlm_head, video_encoder):
        module.to(device)

    # --- optimizer
    optimizer = model.optimizer_for(modules, args.lr, args.weight_decay)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    # --- resume
    state, first_step = None if args.dry_run else model.load_checkpoint(run / "checkpoint.pt"), 0
    if state:
        first_step = state["step"]
        if first_step > steps:
            raise ValueError(f"{run}/checkpoint.pt is at step {first_step}, past the {steps} of this run: its data "
                             f"changed; choose another --out")
        bert.load_state_dict(state["bert"]), mlm_head.load_state_dict(state["mlm_head"])
        video_encoder.load_state_dict(state["video_encoder"]), optimizer.load_state_dict(state["optimizer"])
        if first_step == steps and (run / "model" / "video_encoder.pt").exists():
            if processes.master:
                print(f"{run}: complete after {steps} steps, nothing to do")
            return processes.close()
    if processes.master:
        counts = [sum(parameter.numel() for parameter in module.parameters()) / 1e6 for module in (bert, video_encoder)]
        print(f"teacher {args.size}: text {counts[0]:.1f} M, video {counts[1]:.1f} M parameters; {len(train):,} videos; "
              f"batch {args.batch} = {processes.world} x {args.batch // processes.world}; {steps} steps; "
              f"streams {train.stream_dims}; {device.type}, {precision}; from step {first_step}", flush=True)
    log = data.Log(run / "log.jsonl", processes.master and not args.dry_run, first_step)
    collapse = {"none": None, "nce": math.log(args.batch)}.get(args.contrastive, 2 * args.margin)

    other = partners(args, train, "train")

    def make_batch(step):
        indices = data.batch_indices(len(train), args.batch, args.seed, step)
        return train.collate([pair(train, int(indices[row]), other[indices[row]],
                                   data.numpy_generator(args.seed, "start", step, row))
                              for row in range(rows.start, rows.stop)])

    # --- loop: runs steps + 1 times, so that the last validation and save are the same lines as all others
    batches = data.prefetch(make_batch, first_step, max(steps, 4) if args.dry_run else steps)
    for step in range(first_step, (max(steps, 4) if args.dry_run else steps) + 1):
        last = step == steps
        if args.dry_run and step == 1:   # the first step also warms up
            started = time.time()
        if args.dry_run and step == 4:
            data.print_plan(processes, modules, (time.time() - started) / 3, steps)
            return processes.close()
        if processes.master and not args.dry_run and step > first_step and (step % args.valid_every == 0 or last):
            log(step, steps, **validate(args, valid, bert, mlm_head, video_encoder, ids, device))
        if processes.master and not args.dry_run and step > first_step and (step % args.save_every == 0 or last):
            model.save_checkpoint(run / "checkpoint.pt", step=step, bert=bert.state_dict(),
                                  mlm_head=mlm_head.state_dict(), video_encoder=video_encoder.state_dict(),
                                  optimizer=optimizer.state_dict())
        if last and not args.dry_run:
            break
        for group in optimizer.param_groups:
            group["lr"] = model.lr_at(step, args.lr, args.warmup, decay_steps)
        for module in modules:
            module.train()
        data.seed_dropout(args.seed, step, rank)

        tokens, token_mask, features, step_mask = next(batches)
        special = data.special_mask(tokens, ids)   # True = [CLS], [SEP], [PAD]: neither masked nor contrasted
        inputs, labels = data.mask_tokens(tokens, special, data.torch_generator(args.seed, "mask", step), ids["mask"],
                                          config.vocab_size, rows=rows, batch=args.batch)
        negatives = torch.from_numpy(data.derangement(args.batch, data.numpy_generator(args.seed, "negatives", step)))
        label_count = int(processes.sum((labels != -100).sum().item()))
        inputs, labels, token_mask, features, step_mask, contrast_mask, negatives = [
            tensor.to(device, non_blocking=True)
            for tensor in (inputs, labels, token_mask, features, step_mask, ~special, negatives)]

        with torch.autocast(device.type, dtype=autocast_type, enabled=autocast_type is not None):
            hidden = bert(inputs, token_mask)                                       # [b, L, H]
            mlm = model.mlm_loss(mlm_head, hidden, labels, label_count)
            contrastive = torch.zeros((), device=device)
            if args.contrastive != "none":
                video = video_encoder(features, step_mask)                          # [b, H]
        if args.contrastive != "none":
            # every process sees all texts and videos, and counts the loss of its own
            contrastive = contrastive_loss(args, processes.gather(hidden.float()), processes.gather(video.float()),
                                           processes.gather(contrast_mask), negatives, rows)
        loss = contrastive + args.mlm_weight * mlm
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} at step {step} (contrastive {contrastive.item()}, MLM "
                                     f"{mlm.item()}); the last good state is {run / 'checkpoint.pt'}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        processes.sum_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, args.clip)
        if not torch.isfinite(norm):   # before the step, which would write it into every weight and the next checkpoint
            raise FloatingPointError(f"gradient norm is {norm.item()} at step {step}; the last good state is "
                                     f"{run / 'checkpoint.pt'}")
        optimizer.step()

        if step % args.log_every == 0 or step + 1 == steps:
            shown = {"contrastive": processes.sum(contrastive.detach().clone()).item(),
                     "mlm": processes.sum(mlm.detach().clone()).item(),
                     "lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm)}
            if args.contrastive != "none":
                shown["video_grad_norm"] = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in video_encoder.parameters()))
                if step > max(200, args.warmup) and abs(shown["contrastive"] / collapse - 1) < 0.02:
                    shown["collapsed"] = True
            log(step + 1, steps, **shown)
            if shown.get("collapsed") and processes.master:
                print(f"  warning: the contrastive loss sits at {collapse:.3f}, what encoders that give every input the "
                      f"same vector score; try a lower --lr, a smaller --margin or --contrastive nce", flush=True)

    # --- last save
    if processes.master:
        config.block = train.block   # the longest text this teacher saw: distill.py asks for no longer one
        model.save_hf(run / "model", config, bert, mlm_head, tokenizer)
        model.save_video_encoder(run / "model" / "video_encoder.pt", video_encoder,
                                 {"streams": args.streams, "frames": args.frames, "max_steps_clip": steps_a_clip,
                                  "trained": args.contrastive != "none"})
        print(f"{run}: complete after {steps} steps")

    # --- cleanup
    processes.close()


if __name__ == "__main__":
    try:
        main()
    except (FileNotFoundError, ValueError, FloatingPointError) as error:
        sys.exit(f"teacher.py: {error}")
