"""Stage 2: distillation on plain text (paper section 3.3): the frozen teacher -> a text-only BERT.

    python distill.py                                                # NST + CRD from runs/teacher
    python distill.py --objective none --out runs/text-only          # the baseline: MLM alone
    torchrun --nproc_per_node=8 distill.py --text data/enwiki        # paper scale
    python distill.py --init runs/teacher/model --objective none     # two-stage pretraining
    python distill.py --objective nst regression --gradient-ratio 1  # each pulls as hard as MLM
    python distill.py --objective voken --bank data/mini/bank.json   # clips as labels

Size, data and text default to the teacher's. Loss = MLM + sum of (weight x objective). The
teacher sees the student's own masked tokens (for vokens: the unmasked ones), in evaluation mode,
without gradients. Writes runs/NAME/{args.json, log.jsonl, checkpoint.pt, model/}; started again, it
goes on.
Axes: B text blocks of the global batch, b of this process, L tokens, H width (Hs the student's,
Ht the teacher's), K queue.
"""
import math
import time
from collections import Counter
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

import data
import model

# --------------------------------------------------------------------------------------------------
# Objectives


def nst_loss(student, teacher):
    """Neuron Selectivity Transfer (section 3.3; Huang & Wang 2017), kernel k(x, y) = (x.y)^2.

    A neuron is one hidden unit; its sample is what it did at each of the L tokens of a sequence,
    made a unit vector in R^L: so the normalisation runs over tokens. The loss is the squared
    maximum mean discrepancy of the student's Hs neurons s_i and the teacher's Ht neurons t_j:

        mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)

    With unit columns, S~ [L, Hs] and G_S = S~ S~' [L, L], this is || G_S / Hs - G_T / Ht ||_F^2:
    products of L x L instead of H x H, no H x H x L tensor (the authors build two), and Hs may
    differ from Ht. It sees neurons as a set: permuting or flipping the teacher's changes nothing,
    so NST alone gives the student no coordinates in video space.
    student: [B, L, Hs], teacher: [B, L, Ht]. Returns the mean over sequences.
    """
    def gram(hidden):
        neurons = F.normalize(hidden, dim=1)                 # [B, L, H], unit columns
        return neurons @ neurons.transpose(1, 2) / hidden.shape[2]          # [B, L, L]

    return (gram(student) - gram(teacher)).pow(2).sum((1, 2)).mean()


class CRD(nn.Module):
    """Contrastive Representation Distillation (section 3.3; Tian, Krishnan & Isola 2020), by token.

    e_s = unit(W_s student), e_t = unit(W_t teacher). Each is an anchor in turn: its positive is
    the other model's vector of the same token, its K negatives are the other model's vectors of
    earlier tokens, in a first-in first-out queue (random unit vectors to begin with). With s a
    cosine, tau the temperature and z = s / tau - log(K c),

        loss = sum over both sides, mean over anchors, of
               softplus(-z+) + sum over the queue of softplus(z-).

    This is Tian's binary loss -log p / (p + K/n) - sum log (K/n) / (p + K/n), p = exp(s / tau) / Z:
    their constant is Z = n c, so the data size n cancels. c is the mean of exp(s / tau) over the
    first global batch, a side each, then frozen. A queue stands for their memory, whose row for
    each of 2.8 B tokens would fit nowhere; a vector that is written once needs no momentum.
    """

    def __init__(self, student_width, teacher_width, width=128, queue=4096, temperature=0.07):
        super().__init__()
        self.temperature = temperature
        self.student_embed = nn.Linear(student_width, width)
        self.teacher_embed = nn.Linear(teacher_width, width)
        self.register_buffer("student_queue", F.normalize(torch.randn(queue, width), dim=1))
        self.register_buffer("teacher_queue", F.normalize(torch.randn(queue, width), dim=1))
        self.register_buffer("student_constant", torch.zeros(()))   # log c of student anchors
        self.register_buffer("teacher_constant", torch.zeros(()))   # log c of teacher anchors
        self.register_buffer("position", torch.zeros((), dtype=torch.long))   # next slot of both

    def forward(self, student, teacher):
        """student: [N, Hs], teacher: [N, Ht], the same N tokens in the same order.

        Returns (loss, e_s, e_t [N, width]). Those of the first batch go to settle, until when the
        loss means nothing; those of every batch go to push, after backward.
        """
        e_s = F.normalize(self.student_embed(student), dim=1)       # [N, width]
        e_t = F.normalize(self.teacher_embed(teacher), dim=1)
        loss = self.side(e_s, e_t, self.teacher_queue, self.student_constant)
        loss = loss + self.side(e_t, e_s, self.student_queue, self.teacher_constant)
        return loss, e_s, e_t

    @torch.no_grad()
    def settle(self, e_s, e_t, processes):
        """Fixes c of both sides, for good, by the first global batch."""
        self.student_constant.copy_(self.log_c(e_s, e_t, self.teacher_queue, processes))
        self.teacher_constant.copy_(self.log_c(e_t, e_s, self.student_queue, processes))

    def side(self, anchor, positive, queue, log_c):
        """Loss of one side, a mean over N: unit anchor, positive [N, width], queue [K, width]."""
        shift = math.log(len(queue)) + log_c                                # log(K c)
        anchor = anchor / self.temperature                                  # cheaper than [N, K]
        right = (anchor * positive).sum(1) - shift                          # [N]
        wrong = anchor @ queue.T - shift                                    # [N, K]
        return (F.softplus(-right) + F.softplus(wrong).sum(1)).mean()

    def log_c(self, anchor, positive, queue, processes):
        """log of the mean of exp(s / tau) over positives and negatives of all processes."""
        right = (anchor * positive).sum(1, keepdim=True)                    # [N, 1]
        scores = torch.cat([right, anchor @ queue.T], 1)                    # [N, 1 + K]
        if scores.device.type != "mps":   # which has no float64
            scores = scores.double()
        mean = (scores / self.temperature).exp().mean()
        return (processes.sum(mean) / processes.world).log()

    @torch.no_grad()
    def push(self, e_s, e_t, processes):
        """Writes the vectors of all processes over the oldest of both queues."""
        for queue, new in ((self.student_queue, e_s), (self.teacher_queue, e_t)):
            new = processes.gather(new)[-len(queue):]   # where more come than fit, the latest stay
            slots = self.position + torch.arange(len(new), device=new.device)
            queue[slots % len(queue)] = new
        self.position.copy_((self.position + len(new)) % len(queue))


def sample_tokens(special, count, generator, rows, batch):
    """`count` ordinary positions of each sequence by lot, none twice. Returns int [b, count].

    special: bool [b, L], True = [CLS], [SEP] or padding. Drawn for `batch` sequences, of which
    these are `rows`.
    """
    if count > int((~special).sum(1).min()):
        raise model.UserError(f"a text has fewer than {count} tokens; lower --crd-tokens")
    lots = torch.rand(batch, special.shape[1], generator=generator)[rows]
    return lots.masked_fill(special, -1.0).topk(count, dim=1).indices


def take_tokens(hidden, positions):
    """Vectors at positions: hidden [b, L, H], positions int [b, n] -> [b n, H]."""
    return torch.take_along_dim(hidden, positions[:, :, None], 1).flatten(0, 1)


def ntxent_loss(student, teacher, temperature, rows=slice(None)):
    """The authors' loss in place of CRD: NT-Xent (Chen et al. 2020) over the batch, by position.

    At position l, z = the 2B unit vectors [student_1l .. student_Bl, teacher_1l .. teacher_Bl],
    and i' is the other model's vector of i's sequence:

        mean over l and i in 1..2B of
        -log( exp(z_i.z_i' / tau) / sum over j != i of exp(z_i.z_j / tau) )

    The rivals include vectors of the same model. Unrelated vectors score about log(2B - 1). The
    authors divide this mean by 2B once more, so it weighs less the larger the batch.
    student, teacher: [B, L, H], the whole global batch; rows: the sequences whose two anchors a
    position are counted, so that the sum over processes is the loss.
    """
    B, L, _ = student.shape
    z = F.normalize(torch.cat([student, teacher]), dim=-1)
    z = z.transpose(0, 1)                                                   # [L, 2B, H]
    each = torch.arange(2 * B, device=z.device)
    anchors = torch.cat([each[:B][rows], each[B:][rows]])                   # [2b]
    scores = z[:, anchors] @ z.transpose(1, 2) / temperature                # [L, 2b, 2B]
    itself = anchors[:, None] == each                                       # True = i is j
    scores = scores.masked_fill(itself, -math.inf)
    partner = ((anchors + B) % (2 * B)).expand(L, -1)                       # [L, 2b]
    total = F.cross_entropy(scores.flatten(0, 1), partner.flatten(), reduction="sum")
    return total / (2 * B * L)


def regression_loss(student, teacher):
    """mean over tokens of || unit(student) - unit(teacher) ||^2 = 2 - 2 cos.

    It asks for the teacher's very coordinates; the authors' code has it as a comment.
    student, teacher: [B, L, H].
    """
    distance = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    return distance.pow(2).sum(-1).mean()


def soft_label_loss(student_logits, teacher_logits, mask, temperature):
    """Soft labels (Hinton et al. 2015): tau^2 KL(p_teacher || p_student), p = softmax(z / tau).

    student_logits, teacher_logits: z [N, V] of the MLM heads; mask: bool [N], True = counts.
    Returns the sum over tokens. Called at the masked positions only: elsewhere both models see the
    token that they are asked for. (The authors' history: all positions, tau = 1, 1,000 x the mean.)
    """
    student = F.log_softmax(student_logits.float() / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits.float() / temperature, dim=1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)   # [N]
    return temperature ** 2 * (each * mask).sum()


VOKEN_LABELS = ("nearest", "random", "shuffled", "mixed")


def voken_labels(kind, vectors, bank, lots):
    """Vokens (Tan & Bansal 2020) with clips for images: which clip of a bank belongs to each token.

        nearest   argmax over clips c of t_l . v_c
        random    a clip by lot, anew each time the block comes
        shuffled  the block's nearest clips in another order, by lot: an article's topic stays
        mixed     the batch's nearest clips in another order, by lot: nothing stays

    vectors t: unit [b, L, Ht], the teacher's of unmasked blocks; bank v: unit [C, Ht]; lots: by
    lot, in 0..1, [b, L - 2]. Returns int [b, L], -100 at [CLS] and [SEP]. The loss is cross-entropy
    over all other tokens, masked or not. Vokenization reads sentence by sentence; here the teacher
    reads whole blocks, as in its training.
    """
    if kind == "random":
        labels = (lots * len(bank)).long()                                  # [b, L - 2]
    else:   # by sequence: C scores for every token of a batch would be the step's largest tensor
        labels = torch.stack([(each @ bank.T).argmax(1) for each in vectors[:, 1:-1]])
    if kind == "shuffled":
        labels = labels.gather(1, lots.argsort(1))
    if kind == "mixed":
        labels = labels.flatten()[lots.flatten().argsort()].view_as(lots)
    return F.pad(labels, (1, 1), value=-100)


@torch.no_grad()
def bank_vectors(args, tokenizer, device, progress):
    """Unit vectors [C, Ht] of the clips of --bank, whose features lie in --data, by the teacher."""
    encoder, settings = model.load_video_encoder(f"{args.teacher}/model/video_encoder.pt")
    if not settings["trained"]:
        raise model.UserError(f"{args.teacher} is a text-only teacher, and gives no vokens")
    encoder.to(device).eval()
    clips = data.Clips(args.data, "train", settings["streams"], tokenizer, encoder.config.block,
                       settings["max_steps_clip"], settings["frames"])
    bank = data.read_bank(args.bank)
    vectors = []
    starts = range(0, len(bank), 64)
    for start in tqdm(starts, desc="bank", unit=" x 64 clips", disable=not progress):
        _, _, features, mask = data.bank_batch(bank[start:start + 64], clips, tokenizer)
        video = encoder(features.to(device), mask.to(device))               # [64, Ht]
        vectors.append(F.normalize(video, dim=-1))
    return torch.cat(vectors)


# --------------------------------------------------------------------------------------------------
# Heads: what stands between the student and its objectives; trained with it, needed for retrieval


def make_heads(objective, head, config, teacher_width, crd, classes=None):
    """ModuleDict of an MLP head for each objective, and of CRD with its two embeddings.

    head: "mlp", or "none" for the student's bare hidden states; config: the student's BertConfig;
    crd: {"queue", "temperature"}; classes: of the vokens.
    """
    width = config.hidden_size
    # ntxent and regression compare coordinate by coordinate; soft-label has the MLM head
    widths = {"nst": width, "crd": width, "ntxent": teacher_width, "regression": teacher_width,
              "voken": classes}
    heads = nn.ModuleDict()
    for name in [name for name in objective if name in widths]:
        if head == "mlp" or name == "voken":
            heads[f"{name}_head"] = model.DistillHead(config, widths[name])
        elif widths[name] == width:
            heads[f"{name}_head"] = nn.Identity()
        else:
            raise model.UserError(f"--head none: {name} needs a student as wide as its teacher, "
                                  f"not {width} against {teacher_width}")
    if "crd" in objective:
        heads["crd"] = CRD(width, teacher_width, **crd)
    return heads


def retrieval_maps(folder):
    """How the model in a folder meets videos. Returns (how, text map, video map).

        a teacher   mean of h_l          against v       (section 3.2)
        CRD         mean of e_s(token)   against e_t(v)  (both embeddings were trained on words)
        regression  mean of head(h_l)    against v

    Text maps take hidden states [B, L, H], video maps unit vectors v [B, Ht]; None where the
    objectives share no coordinates with the video space.
    """
    path = Path(folder) / "distill_heads.pt"
    if not path.exists():
        return "mean of h against v", nn.Identity(), nn.Identity()
    saved = model.read_file(path, "delete it and start distill.py again")
    heads = make_heads(config=model.read_config(folder), **saved["shape"])
    heads.load_state_dict(saved["weights"])

    def e_s(hidden):
        return F.normalize(heads["crd"].student_embed(heads["crd_head"](hidden)), dim=-1)

    def e_t(video):
        return F.normalize(heads["crd"].teacher_embed(video), dim=-1)

    def regressed(hidden):
        return F.normalize(heads["regression_head"](hidden), dim=-1)

    if "crd" in heads:
        return "mean of e_s(token) against e_t(v)", e_s, e_t
    if "regression_head" in heads:
        return "mean of head(h) against v", regressed, nn.Identity()
    return "not defined", None, None


# --------------------------------------------------------------------------------------------------
# Settings

DEFAULTS = {   # sources: (a) the authors' scripts, (o) ours
    "mini": {
        "batch": 64, "steps": 1000,  # (o) what 100 s allow
        "lr": 1e-3, "warmup": 100, "weight_decay": 0.01, "dropout": 0.0,  # (o)
        "crd_queue": 1024, "crd_tokens": 8,  # (o) a quarter of the step's cost
        "nst_weight": 10.0,  # (o) at 1 it pulls a 200th of CRD
        "log_every": 100, "valid_every": 600, "save_every": 300,  # (o)
        "compile": "off",  # (o) on a GPU it would take longer than the steps
    },
    "small": {
        "batch": 256, "epochs": 40, "lr": 2e-4, "warmup": 10000,  # (a) on Wiki103
        "weight_decay": 0.01, "dropout": 0.1,  # (a)
        "crd_queue": 4096, "crd_tokens": 16,  # (o) the paper's sampling is not known
        "log_every": 100, "valid_every": 5000, "save_every": 2000, "compile": "auto",  # (o)
    },
}
DEFAULTS["base"] = DEFAULTS["small"] | {
    "steps": 500000, "epochs": None, "warmup": 5000,  # (a) on Wikipedia; baseline: 220,000 steps
}
OBJECTIVES = ("none", "nst", "crd", "ntxent", "soft-label", "regression", "voken")
MEASURED = 8   # --gradient-ratio: the last steps of warm-up, over which norms are averaged


def parse_args(argv=None):
    """Flags, filled up from the teacher's args.json and the column of DEFAULTS of --size."""
    parser = data.stage_parser(__doc__)
    flag = parser.add_argument
    flag("--teacher", default="runs/teacher", help="the teacher's run folder")
    flag("--data", help="folder that `data.py captions` wrote (default: the teacher's)")
    flag("--text", help="folder that `data.py text` wrote (default: --data + /text)")
    flag("--out", default="runs/student", help="run folder")
    flag("--size", choices=DEFAULTS, help="column of defaults, and shape (default: the "
         "teacher's --size, whatever its --layers and --width)")
    flag("--objective", nargs="+", choices=OBJECTIVES, default=["nst", "crd"], help="one or more")
    for name in OBJECTIVES[1:]:
        flag(f"--{name}-weight", dest=f"{name}_weight", type=float, help="of this loss in the sum")
    flag("--gradient-ratio", type=float, help="sets the weights: the gradient of each objective in "
         "the encoder is this times MLM's, which includes the tied output matrix; measured at step "
         "0 and, for good, as warm-up ends")
    flag("--accumulate", type=data.positive, default=1, help="parts that a batch is worked off in, "
         "so that it fits into memory: the same loss and gradient")
    flag("--graphs", action="store_true", help="compiled steps are CUDA graphs: quicker where the "
         "batch of a process is small")
    flag("--crd-queue", type=data.positive, help="negatives a side")
    flag("--crd-tokens", type=data.positive, help="anchors a sequence")
    flag("--crd-temperature", type=data.above_zero, default=0.07, help="as Tian et al.")
    flag("--ntxent-temperature", type=data.above_zero, default=1.0, help="as the authors")
    flag("--soft-label-temperature", type=data.above_zero, default=1.0, help="as the authors; "
         "Tian et al.: 4")
    flag("--bank", help="clips for voken, by `data.py bank` (default: --data + /bank.json)")
    flag("--voken-labels", choices=VOKEN_LABELS, default="nearest", help="others are ablations")
    flag("--teacher-reads", choices=["masked", "clean"], default="masked", help="text (masked: as "
         "the authors; vokens are always of clean text)")
    flag("--head", choices=["mlp", "none"], default="mlp", help="between student and objective "
         "(soft-label has the MLM head, voken always one of its own)")
    args = parser.parse_args(argv)
    args.objective = sorted(set(args.objective) - {"none"})
    reads_data = args.text is None or "voken" in args.objective
    if args.size is None or (args.data is None and reads_data):
        facts = data.read_json(f"{args.teacher}/args.json", "make teacher", "arguments")
        args.size = args.size or facts["arguments"]["size"]
        args.data = args.data or facts["arguments"]["data"]
    if reads_data:
        if args.data is None:
            raise model.UserError(f"{args.teacher}/args.json names no --data: say --data")
        args.text = args.text or f"{args.data}/text"
        args.bank = args.bank or f"{args.data}/bank.json"
    weights = {f"{name}_weight": 1.0 for name in OBJECTIVES[1:]}   # (a)
    given = [name for name in weights if getattr(args, name) is not None]
    if args.gradient_ratio is not None and (given or args.gradient_ratio <= 0):
        raise model.UserError("--gradient-ratio is above 0, and takes the place of the weights")
    whole = ("ntxent" in args.objective or args.gradient_ratio is not None
             or args.voken_labels == "mixed")
    if args.accumulate > 1 and whole:
        raise model.UserError("ntxent, --gradient-ratio and --voken-labels mixed need the whole "
                              "batch at once: leave --accumulate out")
    if args.accumulate > 1 and args.graphs:
        raise model.UserError("--graphs is for batches that fit whole: leave --accumulate out")
    data.fill_in(args, {**weights, **DEFAULTS[args.size]})
    if args.graphs and args.compile == "off":
        raise model.UserError("--graphs is for compiled steps: add --compile on")
    return args


# --------------------------------------------------------------------------------------------------
# A step


class Batches:
    """The rows of global batch `step` that this process takes, in parts: tensors by name."""

    def __init__(self, args, blocks, tokenizer, rows):
        self.args = args
        self.blocks = blocks
        self.ids = data.special_ids(tokenizer)
        self.words = tokenizer.get_vocab_size()
        self.rows = rows

    def __getitem__(self, key):
        """key: (step, indices of the blocks, int [b])."""
        step, indices = key
        args = self.args
        tokens = self.blocks.batch(indices)   # [b, L]
        special = data.special_mask(tokens, self.ids)   # True = [CLS], [SEP]: left alone
        generator = data.torch_generator(args.seed, "mask", step)
        inputs, labels = data.mask_tokens(tokens, special, generator, self.ids["mask"], self.words,
                                          rows=self.rows, batch=args.batch)
        whole = {"tokens": tokens, "inputs": inputs, "labels": labels}
        if "crd" in args.objective:
            generator = data.torch_generator(args.seed, "crd", step)
            whole["anchors"] = sample_tokens(special, args.crd_tokens, generator, self.rows,
                                             args.batch)   # [b, crd_tokens]
        if "voken" in args.objective:
            generator = data.torch_generator(args.seed, "voken", step)
            lots = torch.rand(args.batch, tokens.shape[1] - 2, generator=generator)
            whole["lots"] = lots[self.rows]   # [b, L - 2], in 0..1
        parts = []
        for number in range(args.accumulate):
            part = {name: each.chunk(args.accumulate)[number] for name, each in whole.items()}
            part["positions"], part["labels"] = data.predicted(part["labels"])
            parts.append(part)
        return parts


def losses_of(args, networks, frozen, part, label_count, part_count, autocast_type):
    """The losses of a part: divided so that those of all parts and processes add up to the batch's.

    frozen: {"teacher", "mlm_head", "words" (of the tokenizer), "bank" [C, Ht]}; label_count: of the
    whole batch; part_count: of all processes. Returns ({name: scalar}, kept):
    kept["crd"] = (e_s, e_t) for the queues, kept["ntxent"] = both sides of that loss.
    """
    student = networks["student"]
    mlm_head = networks["mlm_head"]
    heads = networks["heads"]
    losses = {}
    kept = {}
    mapped = {}   # the student's states through the head of each objective
    device = part["inputs"].device
    with torch.autocast(device.type, autocast_type, enabled=autocast_type is not None):
        hidden = student(part["inputs"])   # [b, L, Hs]
        mlm = model.mlm_loss(mlm_head, hidden, part["positions"], part["labels"])
        losses["mlm"] = mlm / label_count
        with torch.no_grad():
            if set(args.objective) - {"voken"}:
                read = part["tokens" if args.teacher_reads == "clean" else "inputs"]
                taught = frozen["teacher"](read)   # [b, L, Ht]
                target = F.normalize(taught.float(), dim=-1)   # unit vectors
            if "voken" in args.objective:
                clean = F.normalize(frozen["teacher"](part["tokens"]).float(), dim=-1)
        if "soft-label" in args.objective:
            words = frozen["words"]   # a padded embedding has more rows
            chosen = hidden.flatten(0, 1)[part["positions"]]   # [n, Hs]
            shown = taught.flatten(0, 1)[part["positions"]]   # [n, Ht]
            total = soft_label_loss(mlm_head(chosen)[:, :words],
                                    frozen["mlm_head"](shown)[:, :words],
                                    part["labels"] != -100, args.soft_label_temperature)
            losses["soft-label"] = total / label_count
        for name in ("nst", "ntxent", "regression", "voken"):
            if name in args.objective:
                mapped[name] = heads[f"{name}_head"](hidden).float()
    # the objectives in fp32; equally many rows a part, so a mean is divided by the parts
    if "nst" in args.objective:
        student_unit = F.normalize(mapped["nst"], dim=-1)
        losses["nst"] = nst_loss(student_unit, target) / part_count
    if "crd" in args.objective:
        sampled = heads["crd_head"](take_tokens(hidden, part["anchors"]).float())
        loss, *kept["crd"] = heads["crd"](sampled, take_tokens(target, part["anchors"]))
        losses["crd"] = loss / part_count
    if "ntxent" in args.objective:
        kept["ntxent"] = mapped["ntxent"], target
    if "regression" in args.objective:
        losses["regression"] = regression_loss(mapped["regression"], target) / part_count
    if "voken" in args.objective:
        vokens = voken_labels(args.voken_labels, clean, frozen["bank"], part["lots"])   # [b, L]
        loss = F.cross_entropy(mapped["voken"].flatten(0, 1), vokens.flatten())
        losses["voken"] = loss / part_count
    return losses, kept


# --------------------------------------------------------------------------------------------------
# Validation


@torch.no_grad()
def validate(text, student, mlm_head, tokenizer, device, limit=512):
    """MLM loss, nats a masked token, on up to `limit` held-out blocks with fixed masks."""
    student.eval()
    ids = data.special_ids(tokenizer)
    limit = min(limit, len(text))
    total = 0.0
    count = 0
    for start in range(0, limit, 64):
        tokens = text.batch(range(start, min(start + 64, limit)))   # [64, L]
        generator = data.torch_generator(0, "validation", start)
        inputs, labels = data.mask_tokens(tokens, data.special_mask(tokens, ids), generator,
                                          ids["mask"], tokenizer.get_vocab_size())
        positions, labels = data.predicted(labels)
        count += int((labels != -100).sum())
        hidden = student(inputs.to(device))   # [64, L, H]
        total += float(model.mlm_loss(mlm_head, hidden, positions.to(device), labels.to(device)))
    return total / max(1, count)


# --------------------------------------------------------------------------------------------------
# The stage


def main(argv=None):
    # --- setup
    args = parse_args(argv)
    processes = data.Processes(args.device)
    device = processes.device
    precision, autocast_type = data.settle_precision(args.precision, device)
    run = Path(args.out)
    rows = processes.rows(args.batch, args.accumulate)
    if "voken" in args.objective and args.voken_labels == "mixed" and processes.world > 1:
        raise model.UserError("--voken-labels mixed needs the whole batch in one process")
    writes = processes.master and not args.dry_run
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")

    # --- data and student
    tokenizer = data.load_tokenizer(args.text)
    words = tokenizer.get_vocab_size()
    config, student, mlm_head = data.make_encoder(args, tokenizer, args.text)
    train = data.TextBlocks(args.text, "train", tokenizer, config.block)
    valid = data.TextBlocks(args.text, "valid", tokenizer, config.block)
    block = config.block
    steps = args.steps or max(1, round(args.epochs * len(train) / args.batch))

    # --- models: frozen teacher, the student's heads
    shape = {"objective": args.objective, "head": args.head, "teacher_width": None, "classes": None,
             "crd": {"queue": args.crd_queue, "temperature": args.crd_temperature}}
    frozen = {"words": words}
    if args.objective:
        teacher_folder = Path(args.teacher) / "model"
        teacher_config, teacher, teacher_mlm_head = model.load_hf(teacher_folder)
        data.check_tokenizer(teacher_folder, teacher_config, tokenizer, args.text)
        if block > teacher_config.block:
            raise model.UserError(f"blocks of {block} tokens, but the teacher never saw a text "
                                  f"longer than {teacher_config.block}")
        for module in (teacher, teacher_mlm_head):
            module.to(device).eval().requires_grad_(False)
        frozen |= {"teacher": teacher, "mlm_head": teacher_mlm_head}
        shape["teacher_width"] = teacher_config.hidden_size
    if "voken" in args.objective:
        frozen["bank"] = bank_vectors(args, tokenizer, device, processes.master)   # [C, Ht]
        shape["classes"] = len(frozen["bank"])
    heads = make_heads(config=config, **shape)
    networks = nn.ModuleDict({"student": student, "mlm_head": mlm_head, "heads": heads})
    networks.to(device)

    # --- optimizer
    optimizer = model.optimizer_for([networks], args.lr, args.weight_decay)
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    gradients = data.GradientSum(networks.parameters(), processes.world)
    encoder_parameters = list(student.parameters())   # tokens.weight, MLM's output matrix, too
    weights = {name: getattr(args, f"{name}_weight") for name in args.objective}
    norms = Counter()   # for --gradient-ratio: sums over steps of each loss's gradient norm

    # --- resume
    inputs = {}
    if not args.dry_run:
        inputs = {"text": data.file_hash(f"{args.text}/train.bin"),
                  "tokenizer": data.tokenizer_hash(tokenizer)}
        if args.init:
            inputs["init"] = data.weights_hash(args.init)
        if args.objective:
            inputs["teacher"] = data.weights_hash(teacher_folder)
        if "voken" in args.objective:
            inputs["bank"] = data.file_hash(args.bank)
            inputs["video encoder"] = data.file_hash(teacher_folder / "video_encoder.pt")
    if writes:
        data.open_run(run, vars(args), processes, precision, inputs)
    paths = run / "checkpoint.pt", run / "checkpoint-before.pt"
    state = None if args.dry_run else model.load_checkpoint(*paths, processes.print)
    first_step = state["step"] if state else 0
    if state:
        weights = state["weights"]
        norms = Counter(state["norms"])
        networks.load_state_dict(state["networks"])
        optimizer.load_state_dict(state["optimizer"])
    facts = {**vars(args), **inputs, "step": first_step, "precision": precision}
    processes.check_equal(run, facts, networks)
    if first_step == steps and (run / "model" / "distill_heads.pt").exists():
        processes.print(f"{run}: complete after {steps} steps, nothing to do")
        return processes.close()
    size = sum(each.numel() for each in parameters) / 1e6
    queues = ""
    if "crd" in heads:
        queues = f"; CRD queues 2 x {heads['crd'].student_queue.nbytes / 2 ** 20:.1f} MB"
    processes.print(f"student {args.size}: {size:.1f} M parameters; objective "
                    f"{' + '.join(['mlm'] + args.objective)}; {len(train):,} blocks of {block}; "
                    f"batch {args.batch} = {processes.world} x {args.accumulate} x "
                    f"{args.batch // processes.world // args.accumulate}; "
                    f"{steps} steps{queues}; {device.type}, {precision}; "
                    f"from step {first_step}")
    log = data.Log(run / "log.jsonl", writes, first_step)

    losses_fast = model.compiled(losses_of, args.compile, device, processes.print, args.graphs)
    names = ["mlm", *args.objective]
    tracker = data.Tracker(names, device)
    part_count = processes.world * args.accumulate

    # --- loop: steps + 1 times, so that the last validation and save are the lines of all others
    processes.note_signals()
    feed = data.Feed(Batches(args, train, tokenizer, rows), len(train), args, rows, first_step,
                     processes)
    last_step = first_step + data.DRY_STEPS + feed.ahead if args.dry_run else steps
    advice = f"the last good state, if one was saved, is {paths[0]}; try a lower --lr"
    for step in range(first_step, last_step + 1):
        last = step == last_step
        noted = processes.noted(step)
        if writes and step > first_step and (step % args.valid_every == 0 or last):
            log(step, steps, valid_mlm=validate(valid, student, mlm_head, tokenizer, device))
        if step > first_step and (step % args.save_every == 0 or last or noted):
            tracker.read(processes, advice, parameters)   # stops where one is not finite
            if writes:
                model.save_checkpoint(*paths, step=step, networks=networks.state_dict(),
                                      optimizer=optimizer.state_dict(), weights=weights,
                                      norms=dict(norms))
        if args.dry_run and step == first_step + feed.ahead:   # compiled, warm, nothing made ahead
            tracker.read(processes, advice)
            feed.waited = 0.0
            started = time.time()
        if last or noted:
            break
        for group in optimizer.param_groups:
            group["lr"] = model.lr_at(step, args.lr, args.warmup, steps)
        networks.train()
        parts = next(feed)
        label_count = processes.sum(sum((part["labels"] != -100).sum() for part in parts))
        given = label_count.clamp(min=1), part_count, autocast_type

        if "crd" in heads and step == 0:   # its constants, by a look at the whole batch
            data.seed_dropout(args.seed, step, processes.rank)
            with torch.no_grad():
                seen = [losses_of(args, networks, frozen, part, *given)[1]["crd"] for part in parts]
            heads["crd"].settle(*[torch.cat(side) for side in zip(*seen)], processes)

        # how hard each loss pulls on the encoder is logged; --gradient-ratio weighs by it
        logged = step % args.log_every == 0 or step + 1 == steps
        measuring = step == 0 or args.warmup - MEASURED <= step < args.warmup
        measured = bool(args.gradient_ratio) and measuring
        apart = (logged or measured) and args.accumulate == 1   # single losses' gradients
        pulls = {}
        seen = []   # of all parts, for CRD's queues
        totals = torch.zeros(len(names), device=device)   # of all parts
        data.seed_dropout(args.seed, step, processes.rank)
        optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts, 1):
            # a compiled step keeps no graph to take single losses' gradients from
            chosen = losses_of if apart else losses_fast
            losses, kept = chosen(args, networks, frozen, part, *given)
            if "ntxent" in kept:   # every process sees all sequences, and counts its own
                ours, theirs = map(processes.gather, kept["ntxent"])
                losses["ntxent"] = ntxent_loss(ours, theirs, args.ntxent_temperature, rows)
            if "crd" in kept:
                seen.append(kept["crd"])
            if apart:
                pulls = [model.gradient_norm(losses[name], encoder_parameters, processes.sum)
                         for name in names]
                pulls = dict(zip(names, torch.stack(pulls).tolist()))
            if measured:
                if step in (0, args.warmup - MEASURED):
                    norms.clear()
                norms.update(pulls)   # adds them up
                for name in weights:
                    if norms[name] > 0:
                        weights[name] = args.gradient_ratio * norms["mlm"] / norms[name]
            loss = losses["mlm"] + sum(weight * losses[name] for name, weight in weights.items())
            gradients.on = number == len(parts)
            loss.backward()
            totals += torch.stack([losses[name].detach() for name in names])
        if "crd" in heads:
            heads["crd"].push(*[torch.cat(side) for side in zip(*seen)], processes)
        gradients.finish()
        norm = nn.utils.clip_grad_norm_(parameters, args.clip)
        tracker.add(step, totals, norm)
        optimizer.step()

        if logged:
            values = tracker.read(processes, advice)
            values |= {"lr": optimizer.param_groups[0]["lr"], "waited": round(feed.waited, 2)}
            values |= {f"{name}_grad": pull for name, pull in pulls.items()}
            if args.gradient_ratio:
                values |= {f"{name}_weight": weight for name, weight in weights.items()}
            log(step + 1, steps, **values)
    if noted and not last:
        processes.stop(noted, f"{run}, step {step}")
    if args.dry_run:
        tracker.read(processes, advice)
        seconds = (time.time() - started) / data.DRY_STEPS
        data.print_plan(processes, parameters, seconds, feed.waited / data.DRY_STEPS, steps)
        return processes.close()

    # --- last save
    if processes.master:
        model.save_hf(run / "model", config, student, mlm_head, tokenizer)
        if args.objective and (teacher_folder / "video_encoder.pt").exists():
            encoder, settings = model.load_video_encoder(teacher_folder / "video_encoder.pt")
            if settings["trained"]:   # then retrieval needs this folder alone
                model.save_video_encoder(run / "model" / "video_encoder.pt", encoder, settings)
        model.save_checkpoint(run / "model" / "distill_heads.pt", shape=shape,
                              weights=heads.cpu().state_dict())
        print(f"{run}: complete after {steps} steps")

    # --- cleanup
    processes.close()


if __name__ == "__main__":
    model.command(main)
