"""The networks of VidLanKD: BERT, its MLM head, the video encoder, and the heads that distil and fine-tune.

Provenance. The text encoder is BERT (Devlin et al. 2019) exactly as Hugging Face's `BertForMaskedLM` computes it:
post-layer-norm, erf GELU, tied output embedding. The video encoder follows the paper's section 3.1 (frozen features of
each second -> transformer -> one vector a clip). What differs from the authors' code:
- one fused projection for query, key and value, and `scaled_dot_product_attention`;
- MLM logits only where something was masked, which is 15 % of the work of the largest matrix product;
- the video projection has a non-linearity (theirs stacks two linear layers), positions are added once (theirs: twice),
  and pooling is the mean over valid frames (theirs: whatever the first frame's position holds).

Sections: configuration, transformer, frozen CNNs, video encoder, heads, Hugging Face files, optimisation, checkpoints.
Axes: B sequences, L tokens, T video steps, H hidden width, D feature width, V vocabulary. Every mask is True for real
tokens or frames. This file imports nothing of ours.
"""
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F


class UserError(ValueError):
    """What the user can mend: a file, a flag, a setting. The scripts show it as one sentence, without a traceback."""


# ---------------------------------------------------------------------------------------------------------------------
# Configuration


@dataclass
class BertConfig:
    """Shape of a BERT, under the names of Hugging Face's config.json."""
    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    block: int = 128   # tokens a pretraining example holds, [CLS] and [SEP] included; no later position is ever trained

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of "
                             f"num_attention_heads {self.num_attention_heads}")

    @classmethod
    def from_dict(cls, values):
        """Keeps the fields this class knows; refuses what would make the network compute something else.

        Raises ValueError on an activation or position scheme other than BERT's own.
        """
        activation = values.get("hidden_act", "gelu")
        positions = values.get("position_embedding_type", "absolute")
        if activation != "gelu" or positions != "absolute":
            raise ValueError(f"only BERT with erf gelu and absolute positions is implemented here, "
                             f"not hidden_act={activation!r}, position_embedding_type={positions!r}")
        known = {field.name for field in fields(cls)}
        config = cls(**{key: value for key, value in values.items() if key in known})
        if "block" not in values:   # a checkpoint made elsewhere: all its positions count as trained
            config.block = config.max_position_embeddings
        return config


# mini: ours, the smallest that learns the mini world in minutes on two CPU cores; its vocab_size is a ceiling, the mini
# tokenizer decides. small, base: the authors' configuration files.
SIZES = {
    "mini": BertConfig(vocab_size=2048, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=512, max_position_embeddings=128, block=32),
    "small": BertConfig(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048),
    "base": BertConfig(),
}

# ---------------------------------------------------------------------------------------------------------------------
# Transformer


def attention(query, key, value, mask, dropout):
    """softmax(query key' / sqrt(d)) value, all [B, heads, L, d]; mask: bool [B, 1, 1, L], True = may be attended to, or
    None for all; dropout: of the softmax's weights."""
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # PyTorch's fused kernel, written out: its backward is slow in bf16 on CPUs (2.13: four times these products)
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])                                   # [B, heads, L, L]
        if mask is not None:
            scores = scores.masked_fill(~mask, -math.inf)
        return F.dropout(scores.softmax(-1), dropout) @ value
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


class Layer(nn.Module):
    """One post-layer-norm transformer layer: x = norm(x + attention(x)); x = norm(x + mlp(x))."""

    def __init__(self, config):
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self.qkv = nn.Linear(width, 3 * width)   # rows: all of query, then all of key, then all of value
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_in = nn.Linear(width, config.intermediate_size)
        self.mlp_out = nn.Linear(config.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask):
        """x: [B, L, H]; mask: bool [B, 1, 1, L], True = may be attended to, or None for all. Returns [B, L, H]."""
        B, L, H = x.shape
        query, key, value = self.qkv(x).view(B, L, 3, self.heads, H // self.heads).permute(2, 0, 3, 1, 4)  # [B, heads, L, H/heads]
        attended = attention(query, key, value, mask, self.attention_dropout if self.training else 0.0)
        attended = attended.transpose(1, 2).reshape(B, L, H)                                               # [B, L, H]
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        return self.mlp_norm(x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(x)))))


def init_weights(module, std):
    """BERT's initialisation: normal weights of the given deviation, zero biases, unit layer norms."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


class Bert(nn.Module):
    """The text encoder: token + position + segment embeddings, then the layers."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        width = config.hidden_size
        self.tokens = nn.Embedding(config.vocab_size, width)
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.segments = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        init_weights(self, config.initializer_range)

    def forward(self, tokens, mask=None, segments=None):
        """tokens: int [B, L]; mask: bool [B, L], True = real token (None: all); segments: int [B, L] (None: 0).

        Returns the last hidden states [B, L, H]. Raises ValueError on a text longer than the position table.
        """
        B, L = tokens.shape
        if L > self.config.max_position_embeddings:
            raise ValueError(f"text of {L} tokens, but this model has {self.config.max_position_embeddings} positions")
        segment_vectors = self.segments.weight[0] if segments is None else self.segments(segments)
        x = self.tokens(tokens) + self.positions.weight[:L] + segment_vectors                              # [B, L, H]
        x = self.dropout(self.norm(x))
        attend = None if mask is None else mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, attend)
        return x


def set_dropout(config, bert, dropout):
    """Another dropout than the one an encoder was made with: in config, in the layers, and on attention weights."""
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        if isinstance(module, Layer):
            module.attention_dropout = dropout


class MLMHead(nn.Module):
    """Hidden states -> vocabulary logits, with the token embedding as output matrix (tied)."""

    def __init__(self, config, token_embedding):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        init_weights(self, config.initializer_range)
        self._tied = [token_embedding]   # in a list, so that the embedding is not registered, saved and stepped twice

    def forward(self, hidden):
        """hidden: [..., H] -> logits [..., V]. Callers pass only the masked positions."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), self._tied[0].weight, self.bias)


def mlm_loss(mlm_head, hidden, labels, label_count=None):
    """Masked-language-modelling loss: cross-entropy of the true token, averaged over the masked positions.

    hidden: [B, L, H]; labels: int [B, L], -100 where nothing was masked; label_count: what to divide by (None: the
    number of labels here; with several processes the caller passes all processes' count). Returns a scalar in nats.
    """
    chosen = labels != -100                                  # True = this position was masked and is predicted
    logits = mlm_head(hidden[chosen]).float()                # [masked, V]
    total = F.cross_entropy(logits, labels[chosen], reduction="sum")
    # max(1): a batch in which chance masked nothing costs nothing, rather than 0 / 0
    return total / max(1, int(chosen.sum()) if label_count is None else label_count)


# ---------------------------------------------------------------------------------------------------------------------
# Frozen CNNs. One bottleneck network, twice: over frames and over windows of frames. They only make features
# (`data.py video`); no stage trains them. Module names are the published checkpoints' key names.


class Bottleneck(nn.Module):
    """relu(conv1(conv3(conv1 x)) + shortcut), every convolution normalised (He et al. 2016; grouped: Xie et al. 2017).

    Conv, Norm: the 2D or the 3D layers. The stride sits on the middle convolution, in all its dimensions.
    """

    def __init__(self, Conv, Norm, inputs, middle, outputs, stride, groups):
        super().__init__()
        self.conv1, self.bn1 = Conv(inputs, middle, 1, bias=False), Norm(middle)
        self.conv2, self.bn2 = Conv(middle, middle, 3, stride, 1, groups=groups, bias=False), Norm(middle)
        self.conv3, self.bn3 = Conv(middle, outputs, 1, bias=False), Norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(Conv(inputs, outputs, 1, stride, bias=False), Norm(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class CNN(nn.Module):
    """Stem, four stages of bottlenecks, and the mean over all positions: pooled features [N, 2048].

    blocks, middles: how many bottlenecks a stage holds, and the width of their middle convolutions.
    """

    def __init__(self, Conv, Norm, Pool, stem_stride, blocks, middles, groups, classes):
        super().__init__()
        self.conv1 = Conv(3, 64, 7, stem_stride, 3, bias=False)
        self.bn1, self.maxpool = Norm(64), Pool(3, 2, 1)
        width = 64
        for stage, (count, middle, outputs) in enumerate(zip(blocks, middles, (256, 512, 1024, 2048)), 1):
            layers = []
            for index in range(count):
                stride = 2 if stage > 1 and index == 0 else 1
                layers.append(Bottleneck(Conv, Norm, width, middle, outputs, stride, groups))
                width = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(width, classes)   # the class scores: in the published files, never used here

    def forward(self, x):
        """x: [N, 3, H, W] frames or [N, 3, T, H, W] windows, normalised. Returns features [N, 2048], before fc."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.flatten(2).mean(2)


def resnet152():
    """ResNet-152 as torchvision has it (v1.5: the stride is on the 3 x 3), 60 M parameters. Frames [N, 3, H, W] of any
    size, values in 0..1 less the ImageNet mean, over its deviation."""
    return CNN(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, 2, (3, 8, 36, 3), (64, 128, 256, 512), 1, 1000)


def resnext101_3d():
    """3D ResNeXt-101, 32 groups (Hara et al. 2018), trained on Kinetics-400, 48 M parameters. Windows [N, 3, 16, 112,
    112], values in 0..255 less the mean."""
    return CNN(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, (1, 2, 2), (3, 4, 23, 3), (128, 256, 512, 1024), 32, 400)


CNNS = {   # stream -> (network, the file that HowTo100M's features were made with)
    "resnet152": (resnet152, "resnet152-394f9c45.pth"),
    "resnext101": (resnext101_3d, "resnext101.pth"),
}


def load_cnn(name, folder):
    """A frozen CNN of CNNS with the public checkpoint in `folder`, in evaluation mode, on the CPU.

    Raises FileNotFoundError naming the command that fetches the file, ValueError where it is not that network's.
    """
    make, file = CNNS[name]
    path = Path(folder) / file
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}; `python data.py weights {name}` fetches them")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:   # a cut or foreign file fails in many ways: zip, pickle, end of file
        raise ValueError(f"{path} cannot be read as weights ({str(error).splitlines()[0]}); delete it and "
                         f"`python data.py weights {name}` fetches it again") from None
    with torch.device("meta"):   # 60 M random numbers need not be drawn first
        cnn = make()
    wanted = {key: value.shape for key, value in cnn.state_dict().items()}
    found = {key: getattr(value, "shape", None) for key, value in state.items()} if isinstance(state, dict) else {}
    wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
                   and (key in found or not key.endswith("num_batches_tracked")))   # PyTorch's first versions kept none
    if wrong:
        raise ValueError(f"{path} does not hold the published {name}: of its {len(wanted)} tensors, {len(wrong)} are "
                         f"missing, unknown or of another shape, the first {wrong[0]}")
    cnn.load_state_dict(state, assign=True)
    return cnn.float().eval().requires_grad_(False)


# ---------------------------------------------------------------------------------------------------------------------
# Video encoder


class VideoEncoder(nn.Module):
    """Frozen per-step features of any number of streams -> one vector a clip (paper section 3.1).

    config gives the transformer's shape (its vocabulary is not used); stream_dims: {stream name: D}, in the order in
    which the streams are concatenated along the feature axis.
    """

    def __init__(self, config, stream_dims):
        super().__init__()
        if not stream_dims:
            raise ValueError("a video encoder needs at least one feature stream")
        self.config = config
        self.stream_dims = dict(stream_dims)
        width, total = config.hidden_size, sum(stream_dims.values())
        # Streams come in their authors' units (unit-norm CNN features, raw flows), so each channel is standardised by
        # statistics that `fit_scale` takes once from training clips. Rejected: a layer norm over a step's features,
        # which erases how strong the motion is.
        self.register_buffer("feature_mean", torch.zeros(total))
        self.register_buffer("feature_std", torch.ones(total))
        self.project = nn.Sequential(nn.Linear(total, width), nn.GELU(), nn.Linear(width, width))
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.output = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.hidden_dropout_prob),
                                    nn.Linear(width, width))
        init_weights(self, config.initializer_range)

    def fit_scale(self, features):
        """Sets the standardisation from features [N, D] of N valid steps; a constant channel becomes 0, not noise."""
        if features.shape[1] != len(self.feature_mean):
            raise ValueError(f"features are {features.shape[1]} wide, the streams {self.stream_dims} "
                             f"add up to {len(self.feature_mean)}")
        mean, std = features.float().mean(0), features.float().std(0)
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(std > 1e-4 * (1e-6 + mean.abs()), std, torch.full_like(std, math.inf)))

    def forward(self, features, mask):
        """features: [B, T, D]; mask: bool [B, T], True = a real step. Returns [B, H], not normalised.

        Raises ValueError when a clip has more steps than positions, or no real step at all.
        """
        B, T, D = features.shape
        if T > self.config.max_position_embeddings:
            raise ValueError(f"clip of {T} steps, but this encoder has {self.config.max_position_embeddings} positions")
        if not bool(mask.any(1).all()):
            raise ValueError("a clip without a single real step has no video vector")
        x = (features - self.feature_mean) / self.feature_std                                    # [B, T, D]
        x = self.project(x) + self.positions.weight[:T]                                          # [B, T, H]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        valid = mask[:, :, None].to(x.dtype)                                                     # [B, T, 1]
        pooled = (x * valid).sum(1) / valid.sum(1)                                               # [B, H]
        return self.output(pooled)


# ---------------------------------------------------------------------------------------------------------------------
# Heads


class DistillHead(nn.Module):
    """The student-side MLP head of one distillation objective: Linear - GELU - LayerNorm - Linear.

    Why a head at all (users asked): the student's last hidden states must also serve MLM; the head lets the objective
    shape a function of them instead of the states themselves. Ablated by `distill.py --head none`.
    """

    def __init__(self, config, out_width):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, out_width)
        init_weights(self, config.initializer_range)

    def forward(self, hidden):
        """[B, L, H] -> [B, L, out_width]; the objectives normalise as their equations say."""
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class SequenceHead(nn.Module):
    """[CLS] -> dense + tanh (BERT's pooler) -> dropout -> `outputs` values.

    Classification: one value a class. Regression: outputs=1. Multiple choice: outputs=1, a softmax over the candidates
    in the loss. Neither MLM nor distillation trains a pooler, so it starts at random for every model alike.
    """

    def __init__(self, config, outputs):
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.hidden_size, outputs)
        init_weights(self, config.initializer_range)

    def forward(self, hidden):
        """hidden: [B, L, H] -> [B, outputs]."""
        return self.classifier(self.dropout(torch.tanh(self.pooler(hidden[:, 0]))))


# ---------------------------------------------------------------------------------------------------------------------
# Hugging Face files

# Our name -> Hugging Face's, inside one layer; qkv is split in three on the way out and joined on the way in.
LAYER_NAMES = {
    "attention_out": "attention.output.dense", "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense", "mlp_out": "output.dense", "mlp_norm": "output.LayerNorm",
}
EMBEDDING_NAMES = {"tokens": "word_embeddings", "positions": "position_embeddings", "segments": "token_type_embeddings",
                   "norm": "LayerNorm"}


def to_hf(bert, mlm_head):
    """State dict of `BertForMaskedLM` holding these weights (the tied output matrix is stored under both its names)."""
    ours, out = bert.state_dict(), {}
    for key, value in ours.items():
        part, _, rest = key.partition(".")
        if part != "layers":
            out[f"bert.embeddings.{EMBEDDING_NAMES[part]}.{rest}"] = value
            continue
        index, name, kind = rest.split(".")
        prefix = f"bert.encoder.layer.{index}."
        if name == "qkv":
            for which, third in zip(("query", "key", "value"), value.chunk(3, 0)):
                out[f"{prefix}attention.self.{which}.{kind}"] = third
        else:
            out[f"{prefix}{LAYER_NAMES[name]}.{kind}"] = value
    for name in ("dense", "norm"):
        target = "cls.predictions.transform." + ("dense" if name == "dense" else "LayerNorm")
        for kind in ("weight", "bias"):
            out[f"{target}.{kind}"] = getattr(getattr(mlm_head, name), kind).detach()
    out["cls.predictions.bias"] = out["cls.predictions.decoder.bias"] = mlm_head.bias.detach()
    out["cls.predictions.decoder.weight"] = ours["tokens.weight"]
    return {key: value.detach().cpu().clone() for key, value in out.items()}


def from_hf(state, bert, mlm_head):
    """Copies a Hugging Face state dict into bert and mlm_head. Returns the keys of bert's own that were absent.

    Accepts a bare encoder (no "bert." prefix, no MLM head: mlm_head then keeps its initialisation, and says so through
    the returned names) and the old gamma/beta layer-norm names. Raises ValueError naming what an encoder lacks.
    """
    state = {key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
             for key, value in state.items()}
    if not any(key.startswith("bert.") for key in state):
        state = {("bert." + key if key.startswith(("embeddings.", "encoder.")) else key): value
                 for key, value in state.items()}
    wanted, missing = to_hf(bert, mlm_head), []
    unknown = [key for key in state if key.startswith("bert.encoder.layer.") and key not in wanted]
    if unknown:
        raise ValueError(f"the file holds {len(unknown)} encoder tensors that config.json does not describe, "
                         f"the first is {unknown[0]}")
    for key in wanted:
        if key in state:
            if state[key].shape != wanted[key].shape:
                raise ValueError(f"{key} is {list(state[key].shape)}, config.json asks for {list(wanted[key].shape)}")
            wanted[key] = state[key].float()
        else:
            missing.append(key)
    absent = [key for key in missing if key.startswith("bert.")]
    if absent:
        raise ValueError(f"not a complete BERT encoder: {len(absent)} tensors are missing, the first is {absent[0]}")
    embeddings = {ours: wanted[f"bert.embeddings.{theirs}.{kind}"]
                  for part, theirs in EMBEDDING_NAMES.items()
                  for kind in (("weight", "bias") if part == "norm" else ("weight",))
                  for ours in [f"{part}.{kind}"]}
    layers = {}
    for index in range(bert.config.num_hidden_layers):
        prefix = f"bert.encoder.layer.{index}."
        for kind in ("weight", "bias"):
            layers[f"layers.{index}.qkv.{kind}"] = torch.cat(
                [wanted[f"{prefix}attention.self.{which}.{kind}"] for which in ("query", "key", "value")])
            for ours, theirs in LAYER_NAMES.items():
                layers[f"layers.{index}.{ours}.{kind}"] = wanted[f"{prefix}{theirs}.{kind}"]
    bert.load_state_dict({**embeddings, **layers})
    bias, bias_stored_elsewhere = "cls.predictions.bias", None
    if bias in missing and "cls.predictions.decoder.bias" not in missing:
        bias, bias_stored_elsewhere = "cls.predictions.decoder.bias", bias
    transform = "cls.predictions.transform."
    mlm_head.load_state_dict({"bias": wanted[bias],
                              "dense.weight": wanted[transform + "dense.weight"],
                              "dense.bias": wanted[transform + "dense.bias"],
                              "norm.weight": wanted[transform + "LayerNorm.weight"],
                              "norm.bias": wanted[transform + "LayerNorm.bias"]})
    # the tied tensors may be stored under one of their two names
    return [key for key in missing if "decoder" not in key and key != bias_stored_elsewhere]


def save_hf(folder, config, bert, mlm_head, tokenizer):
    """Writes config.json, pytorch_model.bin, tokenizer.json and vocab.txt: a folder for transformers' AutoModelForMaskedLM.

    tokenizer: a tokenizers.Tokenizer. The folder appears whole or not at all (written beside it, then renamed).
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    torch.save(to_hf(bert, mlm_head), temporary / "pytorch_model.bin")
    described = {"architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_act": "gelu",
                 "position_embedding_type": "absolute", "tie_word_embeddings": True, **asdict(config)}
    (temporary / "config.json").write_text(json.dumps(described, indent=1))
    tokenizer.save(str(temporary / "tokenizer.json"))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (temporary / "vocab.txt").write_text("".join(word + "\n" for word, _ in vocabulary), encoding="utf-8")
    rule = tokenizer.normalizer
    (temporary / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "BertTokenizer", "do_lower_case": rule.lowercase, "strip_accents": rule.strip_accents,
         "tokenize_chinese_chars": rule.handle_chinese_chars, "model_max_length": config.max_position_embeddings}))
    replace_folder(temporary, folder)


def load_hf(folder):
    """Reads a BERT folder in Hugging Face form, ours or anyone's. Returns (config, Bert, MLMHead), on the CPU, in fp32.

    Raises FileNotFoundError naming the missing file and what makes it; ValueError on weights that do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"no model in {folder}: config.json is missing. A finished run keeps its model in "
                                f"runs/NAME/model; `make teacher distill` makes the first two")
    config = BertConfig.from_dict(json.loads((folder / "config.json").read_text()))
    if (folder / "pytorch_model.bin").exists():
        state = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    elif (folder / "model.safetensors").exists():
        try:
            from safetensors.torch import load_file
        except ImportError:
            raise ImportError(f"{folder} holds model.safetensors only: `pip install safetensors`, or save it again "
                              f"with transformers' save_pretrained(..., safe_serialization=False)") from None
        state = load_file(folder / "model.safetensors")
    else:
        raise FileNotFoundError(f"{folder} has a config.json but neither pytorch_model.bin nor model.safetensors")
    bert = Bert(config)
    mlm_head = MLMHead(config, bert.tokens)
    lacking = from_hf(state, bert, mlm_head)
    if lacking:
        print(f"{folder}: the file holds no MLM head, which therefore starts at random ({len(lacking)} tensors)")
    return config, bert, mlm_head


def save_video_encoder(path, video_encoder, settings):
    """Writes a video encoder with its configuration, its streams and how clips were fed to it (settings: plain values)."""
    save_checkpoint(path, config=asdict(video_encoder.config), stream_dims=video_encoder.stream_dims, settings=settings,
                    weights={key: value.cpu() for key, value in video_encoder.state_dict().items()})


def load_video_encoder(path):
    """Reads what save_video_encoder wrote. Returns (VideoEncoder on the CPU, settings)."""
    state = load_checkpoint(path)
    if state is None:
        raise FileNotFoundError(f"no video encoder at {path}; `python teacher.py` makes one")
    video_encoder = VideoEncoder(BertConfig.from_dict(state["config"]), state["stream_dims"])
    video_encoder.load_state_dict(state["weights"])
    return video_encoder, state["settings"]


# ---------------------------------------------------------------------------------------------------------------------
# Optimisation and checkpoints


def sentence_vectors(hidden, mask):
    """Unit vector of each text: the mean of its hidden states. hidden: [B, L, H]; mask: bool [B, L], True = counts."""
    weights = mask[:, :, None].to(hidden.dtype)                                              # [B, L, 1]
    return F.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)      # [B, H]


def optimizer_for(modules, lr, weight_decay, eps=1e-6):
    """AdamW over every trainable parameter of the modules; biases and layer norms are not decayed (authors' script).

    Takes the modules rather than a parameter list so that none can be forgotten: the authors' video branch was.
    """
    decayed, plain, seen = [], [], set()
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                (decayed if parameter.dim() > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in decayed)   # several times faster on small models
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=eps, fused=fused)


def lr_at(step, peak, warmup, total):
    """Learning rate of step 0, 1, ...: linear from 0 to peak over `warmup` steps, then linear to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.0, (total - step) / max(1, total - warmup))


def replace_folder(temporary, folder):
    """Puts a finished folder in the place of an older one. A kill in between leaves the new one whole under its
    temporary name and the checkpoint untouched, so the stage simply writes it again."""
    folder = Path(folder)
    if folder.exists():
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
    os.replace(temporary, folder)


def save_checkpoint(path, **state):
    """Writes state dicts and numbers to path, through a temporary name: path is always whole."""
    temporary = Path(str(path) + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path):
    """What save_checkpoint wrote, on the CPU, or None where there is no such file."""
    return torch.load(path, map_location="cpu", weights_only=True) if Path(path).exists() else None


def gradient_norm(loss, parameters, total=None):
    """L2 norm of d loss / d parameters, leaving .grad untouched: to log how hard each loss pulls on the encoder.

    total: what adds a flat tensor up over processes (None: one process).
    """
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    flat = torch.cat([gradient.float().flatten() for gradient in gradients if gradient is not None])
    return float((flat if total is None else total(flat)).norm())
