"""The networks of VidLanKD: BERT, its MLM head, the video encoder, distillation and task heads.

Provenance. The text encoder is BERT (Devlin et al. 2019), computed exactly as Hugging Face's
`BertForMaskedLM`: post-layer-norm, erf GELU, tied output embedding. The video encoder follows the
paper's section 3.1: frozen features of each second -> transformer -> one vector a clip.
What differs from the authors' code:
- one fused projection for query, key and value, and `scaled_dot_product_attention`;
- MLM logits at the masked positions only, 15 % of the largest matrix product;
- the video projection has a non-linearity (theirs stacks two linear layers);
- video positions are added once (theirs: twice);
- a clip's vector is the mean over its real steps (theirs: what stands at the first step).

Axes: B sequences, L tokens, T video steps, H hidden width, D feature width, V vocabulary.
Every mask is True for real tokens or steps. This file imports nothing of ours.
"""
import json
import math
import os
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F


class UserError(ValueError):
    """What the user can mend: a file, a flag, a setting. Scripts show it as one sentence."""


# --------------------------------------------------------------------------------------------------
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
    block: int = 128   # tokens of a pretraining example; no later position is ever trained

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads:
            raise UserError(f"hidden_size {self.hidden_size} is not a multiple of "
                            f"num_attention_heads {self.num_attention_heads}")

    @classmethod
    def from_dict(cls, values):
        """Takes the fields that this class knows; what is absent or null keeps its default."""
        known = {}
        for field in fields(cls):
            if values.get(field.name) is not None:
                known[field.name] = values[field.name]
        config = cls(**known)
        if "block" not in known:   # made elsewhere: all its positions count as trained
            config.block = config.max_position_embeddings
        return config


SIZES = {
    # ours: the smallest that learns the mini world in minutes; its tokenizer sets the vocabulary
    "mini": BertConfig(vocab_size=2048, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                       intermediate_size=512, max_position_embeddings=128, block=32),
    # the authors' configuration files
    "small": BertConfig(hidden_size=512, num_hidden_layers=6, num_attention_heads=8,
                        intermediate_size=2048),
    "base": BertConfig(),
}

# --------------------------------------------------------------------------------------------------
# Transformer


def attention(query, key, value, mask, dropout):
    """softmax(query key' / sqrt(d)) value.

    query, key, value: [B, heads, L, d]; mask: bool [B, 1, 1, L], True = may be attended to, or
    None for all; dropout: of the softmax's weights. Returns [B, heads, L, d].
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # PyTorch 2.13's fused kernel has a slow backward here: four times these products
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[3])    # [B, heads, L, L]
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
        self.qkv = nn.Linear(width, 3 * width)   # rows: all of query, all of key, all of value
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_in = nn.Linear(width, config.intermediate_size)
        self.mlp_out = nn.Linear(config.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask):
        """x: [B, L, H]; mask: bool [B, 1, 1, L], True = may be attended to, or None for all."""
        B, L, H = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.heads, H // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)                      # [B, heads, L, d]
        dropout = self.attention_dropout if self.training else 0.0
        attended = attention(query, key, value, mask, dropout)
        attended = attended.transpose(1, 2).reshape(B, L, H)                # [B, L, H]
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        return self.mlp_norm(x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(x)))))


def init_weights(module, std):
    """BERT's initialisation: normal weights of deviation std, zero biases, unit layer norms."""
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
        """tokens: int [B, L]; mask: bool [B, L], True = real (None: all); segments: int [B, L].

        Returns the last hidden states [B, L, H]. Segments default to 0. Raises ValueError on a
        text longer than the position table.
        """
        B, L = tokens.shape
        if L > self.config.max_position_embeddings:
            raise ValueError(f"text of {L} tokens, but this model has "
                             f"{self.config.max_position_embeddings} positions")
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        x = self.tokens(tokens) + self.positions.weight[:L] + segment       # [B, L, H]
        x = self.dropout(self.norm(x))
        attend = None if mask is None else mask[:, None, None, :]           # [B, 1, 1, L]
        for layer in self.layers:
            x = layer(x, attend)
        return x


def set_dropout(config, bert, dropout):
    """Changes the dropout of an encoder: in its config, its layers and its attention weights."""
    config.hidden_dropout_prob = dropout
    config.attention_probs_dropout_prob = dropout
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        if isinstance(module, Layer):
            module.attention_dropout = dropout


# --------------------------------------------------------------------------------------------------
# Masked language modelling and pooling


class MLMHead(nn.Module):
    """Hidden states -> vocabulary logits, with the token embedding as output matrix (tied)."""

    def __init__(self, config, token_embedding):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        init_weights(self, config.initializer_range)
        self._tied = [token_embedding]   # in a list: not registered, saved and stepped twice

    def forward(self, hidden):
        """hidden: [..., H] -> logits [..., V]. Callers pass the masked positions only."""
        return F.linear(self.norm(F.gelu(self.dense(hidden))), self._tied[0].weight, self.bias)


def mlm_loss(mlm_head, hidden, labels, label_count=None):
    """Cross-entropy of the true token in nats, averaged over the masked positions. A scalar.

    hidden: [B, L, H]; labels: int [B, L], -100 where nothing was masked; label_count: what to
    divide by (None: the labels here; with several processes: those of all processes).
    """
    chosen = labels != -100                                  # True = masked, to be predicted
    logits = mlm_head(hidden[chosen]).float()                # [masked, V]
    total = F.cross_entropy(logits, labels[chosen], reduction="sum")
    if label_count is None:
        label_count = int(chosen.sum())
    return total / max(1, label_count)   # a batch without a masked token costs nothing


def sentence_vectors(hidden, mask):
    """Unit vector of each text: the mean of its hidden states.

    hidden: [B, L, H]; mask: bool [B, L], True = the token counts. Returns [B, H].
    """
    weights = mask[:, :, None].to(hidden.dtype)                             # [B, L, 1]
    mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
    return F.normalize(mean, dim=-1)


# --------------------------------------------------------------------------------------------------
# Frozen CNNs: one bottleneck network, over frames and over windows of frames. They only make
# features (`data.py video`). Module names are the published checkpoints' key names.


class Bottleneck(nn.Module):
    """relu(conv1(conv3(conv1 x)) + shortcut), each convolution normalised (He et al. 2016).

    Conv, Norm: the 2D or the 3D layers; groups > 1: Xie et al. 2017. The stride sits on the
    middle convolution, in all its dimensions.
    """

    def __init__(self, Conv, Norm, inputs, middle, outputs, stride, groups):
        super().__init__()
        self.conv1 = Conv(inputs, middle, 1, bias=False)
        self.bn1 = Norm(middle)
        self.conv2 = Conv(middle, middle, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = Norm(middle)
        self.conv3 = Conv(middle, outputs, 1, bias=False)
        self.bn3 = Norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = Conv(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, Norm(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class CNN(nn.Module):
    """Stem, four stages of bottlenecks, and the mean over all positions: features [N, 2048].

    blocks, middles: bottlenecks of each stage, and the width of their middle convolutions.
    """

    def __init__(self, Conv, Norm, Pool, stem_stride, blocks, middles, groups, classes):
        super().__init__()
        self.conv1 = Conv(3, 64, 7, stem_stride, 3, bias=False)
        self.bn1 = Norm(64)
        self.maxpool = Pool(3, 2, 1)
        width = 64
        for stage in range(4):
            outputs = 256 * 2 ** stage
            layers = []
            for index in range(blocks[stage]):
                stride = 2 if stage > 0 and index == 0 else 1
                layers.append(
                    Bottleneck(Conv, Norm, width, middles[stage], outputs, stride, groups))
                width = outputs
            setattr(self, f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(width, classes)   # class scores: in the published files, never used

    def forward(self, x):
        """x: frames [N, 3, H, W] or windows [N, 3, T, H, W], normalised. Returns [N, 2048]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.flatten(2).mean(2)


def resnet152():
    """ResNet-152 as torchvision has it (v1.5: the stride is on the 3 x 3), 60 M parameters.

    Frames [N, 3, H, W] of any size, values in 0..1 less the ImageNet mean, over its deviation.
    """
    return CNN(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, stem_stride=2, blocks=(3, 8, 36, 3),
               middles=(64, 128, 256, 512), groups=1, classes=1000)


def resnext101_3d():
    """3D ResNeXt-101, 32 groups (Hara et al. 2018), trained on Kinetics-400, 48 M parameters.

    Windows [N, 3, 16, 112, 112], values in 0..255 less the mean.
    """
    return CNN(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, stem_stride=(1, 2, 2),
               blocks=(3, 4, 23, 3), middles=(128, 256, 512, 1024), groups=32, classes=400)


CNNS = {   # stream -> (network, the file that HowTo100M's features were made with)
    "resnet152": (resnet152, "resnet152-394f9c45.pth"),
    "resnext101": (resnext101_3d, "resnext101.pth"),
}


def load_cnn(name, folder):
    """A frozen CNN of CNNS with the published weights in `folder`: evaluation mode, on the CPU.

    Raises UserError that names the command that fetches the file.
    """
    make, file_name = CNNS[name]
    path = Path(folder) / file_name
    fetch = f"`make data/weights/{name}`"
    if not path.exists():
        raise UserError(f"no weights at {path}; {fetch} fetches them")
    state = read_weights(path, f"delete it and {fetch} fetches it again")
    with torch.device("meta"):   # 60 M random numbers need not be drawn first
        cnn = make()
    try:
        cnn.load_state_dict(state, assign=True)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} does not hold the published {name}: {reason}") from None
    return cnn.float().eval().requires_grad_(False)


# --------------------------------------------------------------------------------------------------
# Video encoder


class VideoEncoder(nn.Module):
    """Frozen features of each step, of any number of streams -> one vector a clip (section 3.1).

    config gives the transformer's shape (its vocabulary is not used); stream_dims: {stream: D},
    in the order in which the streams are concatenated along the feature axis.
    """

    def __init__(self, config, stream_dims):
        super().__init__()
        if not stream_dims:
            raise ValueError("a video encoder needs at least one feature stream")
        self.config = config
        self.stream_dims = dict(stream_dims)
        width = config.hidden_size
        total = sum(stream_dims.values())
        # Streams come in their own units, so fit_scale standardises each channel once. A layer
        # norm over a step's features would erase how strong a motion is.
        self.register_buffer("feature_mean", torch.zeros(total))
        self.register_buffer("feature_std", torch.ones(total))
        self.project = nn.Sequential(nn.Linear(total, width), nn.GELU(), nn.Linear(width, width))
        self.positions = nn.Embedding(config.max_position_embeddings, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.output = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Dropout(config.hidden_dropout_prob),
            nn.Linear(width, width))
        init_weights(self, config.initializer_range)

    def fit_scale(self, features):
        """Takes the scale of features [N, D]; a constant channel becomes 0, not noise."""
        if features.shape[1] != len(self.feature_mean):
            raise ValueError(f"features are {features.shape[1]} wide, the streams "
                             f"{self.stream_dims} add up to {len(self.feature_mean)}")
        mean = features.float().mean(0)
        std = features.float().std(0)
        varies = std > 1e-4 * (1e-6 + mean.abs())                           # bool [D]
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(varies, std, math.inf))

    def forward(self, features, mask):
        """features: [B, T, D]; mask: bool [B, T], True = a real step. Returns [B, H], any length.

        Raises ValueError where a clip has more steps than positions, or no real step.
        """
        B, T, D = features.shape
        if T > self.config.max_position_embeddings:
            raise ValueError(f"clip of {T} steps, but this encoder has "
                             f"{self.config.max_position_embeddings} positions")
        if not bool(mask.any(1).all()):
            raise ValueError("a clip without a single real step has no video vector")
        x = (features - self.feature_mean) / self.feature_std               # [B, T, D]
        x = self.project(x) + self.positions.weight[:T]                     # [B, T, H]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        valid = mask[:, :, None].to(x.dtype)                                # [B, T, 1]
        pooled = (x * valid).sum(1) / valid.sum(1)                          # [B, H]
        return self.output(pooled)


# --------------------------------------------------------------------------------------------------
# Heads


class DistillHead(nn.Module):
    """The student's MLP head of one distillation objective: Linear - GELU - LayerNorm - Linear.

    The student's last hidden states must also serve MLM; with a head, the objective shapes a
    function of them instead of the states themselves. `distill.py --head none` leaves it out.
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

    Classification: a value for each class. Regression: outputs=1. Multiple choice: outputs=1, and
    the loss takes a softmax over the candidates. Neither MLM nor distillation trains a pooler, so
    it starts at random for every model alike.
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


# --------------------------------------------------------------------------------------------------
# Hugging Face files

PLAIN_BERT = {   # what config.json must say, if anything: all else is another network
    "model_type": "bert",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
}

# our module -> Hugging Face's; qkv is three of theirs
EMBEDDING_NAMES = {
    "tokens": "word_embeddings",
    "positions": "position_embeddings",
    "segments": "token_type_embeddings",
    "norm": "LayerNorm",
}
LAYER_NAMES = {
    "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention_out": ("attention.output.dense",),
    "attention_norm": ("attention.output.LayerNorm",),
    "mlp_in": ("intermediate.dense",),
    "mlp_out": ("output.dense",),
    "mlp_norm": ("output.LayerNorm",),
}
HEAD_NAMES = {
    "dense.weight": "cls.predictions.transform.dense.weight",
    "dense.bias": "cls.predictions.transform.dense.bias",
    "norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "bias": "cls.predictions.bias",
}
TIED_NAMES = {   # one tensor under two names, of which a file may hold either
    "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
    "cls.predictions.bias": "cls.predictions.decoder.bias",
}


def hf_names(key):
    """Hugging Face's names of one of our encoder's tensors: three for qkv, else one."""
    module, _, rest = key.partition(".")
    if module != "layers":
        return [f"bert.embeddings.{EMBEDDING_NAMES[module]}.{rest}"]
    index, module, kind = rest.split(".")
    return [f"bert.encoder.layer.{index}.{name}.{kind}" for name in LAYER_NAMES[module]]


def to_hf(bert, mlm_head):
    """State dict of `BertForMaskedLM` with these weights; tied tensors stand under both names."""
    state = {}
    for key, value in bert.state_dict().items():
        names = hf_names(key)
        for name, part in zip(names, value.chunk(len(names))):
            state[name] = part
    for key, value in mlm_head.state_dict().items():
        state[HEAD_NAMES[key]] = value
    for name, twin in TIED_NAMES.items():
        state[twin] = state[name]
    return {name: value.cpu().clone() for name, value in state.items()}


def from_hf(state, bert, mlm_head):
    """Copies a Hugging Face state dict into bert and mlm_head.

    It may be a bare encoder (no "bert." before its names, no MLM head), and may have the old
    gamma / beta names. Returns the names of the MLM head's tensors that it lacks, which keep
    their initial values. Raises UserError where the encoder does not fit.
    """
    bare = not any(name.startswith("bert.") for name in state)
    given = {}
    for name, value in state.items():
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if bare and name.startswith(("embeddings.", "encoder.")):
            name = "bert." + name
        given[name] = value
    for name, twin in TIED_NAMES.items():
        if name not in given and twin in given:
            given[name] = given[twin]
    wanted = to_hf(bert, mlm_head)
    absent = [name for name in wanted if name not in given and name not in TIED_NAMES.values()]
    lacking = [name for name in absent if name.startswith("bert.")]
    if lacking:
        raise UserError(f"not a complete BERT encoder: {len(lacking)} tensors are missing, the "
                        f"first is {lacking[0]}")
    for name in given:
        if name.startswith("bert.encoder.layer.") and name not in wanted:
            raise UserError(f"the weights hold {name}, which config.json does not describe")
        if name in wanted and given[name].shape != wanted[name].shape:
            raise UserError(f"{name} is {list(given[name].shape)}, config.json asks for "
                            f"{list(wanted[name].shape)}")
    values = wanted | given
    encoder = {}
    for key in bert.state_dict():
        encoder[key] = torch.cat([values[name].float() for name in hf_names(key)])
    bert.load_state_dict(encoder)
    mlm_head.load_state_dict({key: values[name].float() for key, name in HEAD_NAMES.items()})
    return absent


def save_hf(folder, config, bert, mlm_head, tokenizer):
    """Writes a folder that transformers' AutoModelForMaskedLM and AutoTokenizer load.

    config.json, without which load_hf takes the folder for absent, comes last. tokenizer: a
    tokenizers.Tokenizer; transformers follows tokenizer.json as it stands, vocab.txt and
    do_lower_case are for other tools.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    torch.save(to_hf(bert, mlm_head), temporary / "pytorch_model.bin")
    tokenizer.save(str(temporary / "tokenizer.json"))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    words = "".join(word + "\n" for word, _ in vocabulary)
    (temporary / "vocab.txt").write_text(words, encoding="utf-8")
    rules = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]",
        "mask_token": "[MASK]", "unk_token": "[UNK]",
        "do_lower_case": getattr(tokenizer.normalizer, "lowercase", False),
        "strip_accents": getattr(tokenizer.normalizer, "strip_accents", None),
        "model_max_length": config.max_position_embeddings,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (temporary / "tokenizer_config.json").write_text(json.dumps(rules, indent=1))
    described = {"architectures": ["BertForMaskedLM"], **PLAIN_BERT, **asdict(config)}
    (temporary / "config.json").write_text(json.dumps(described, indent=1))
    for name in ("pytorch_model.bin", "tokenizer.json", "vocab.txt", "tokenizer_config.json",
                 "config.json"):
        os.replace(temporary / name, folder / name)
    temporary.rmdir()


def read_object(path):
    """A JSON file that holds an object, as a dict. Raises UserError that names the file."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return dict(values.items())
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path} is not a JSON object ({error})") from None


def read_config(folder):
    """BertConfig of a model folder. Raises UserError that names what is not a plain BERT's."""
    path = Path(folder) / "config.json"
    if not path.exists():
        raise UserError(f"no model in {folder}: config.json is missing. A finished run keeps its "
                        f"model in runs/NAME/model; `make teacher distill` makes the first two")
    values = read_object(path)
    for key, value in PLAIN_BERT.items():
        if values.get(key, value) not in (value, None):
            raise UserError(f"{folder}: config.json says {key} {values[key]!r}; only a plain BERT "
                            f"is read here ({key} {value!r})")
    config = BertConfig.from_dict(values)
    if config.type_vocab_size < 2:
        raise UserError(f"{folder}: config.json says type_vocab_size {config.type_vocab_size}; "
                        f"only a BERT with two segments is read here (type_vocab_size 2)")
    return config


def weight_files(folder):
    """The files of a model's weights: one, or all shards; the ones that transformers would read.

    Raises UserError where there are none, or a shard is missing.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = Path(folder) / name
        index = Path(folder) / f"{name}.index.json"
        if path.exists():
            return [path]
        if index.exists():
            shards = read_object(index).get("weight_map", {})
            paths = [index.with_name(shard) for shard in sorted(set(shards.values()))]
            for path in paths:
                if not path.exists():
                    raise UserError(f"{path} is missing, {index.name} names it; download it again")
            return paths
    raise UserError(f"{folder} has a config.json, but neither model.safetensors nor "
                    f"pytorch_model.bin, nor shards of either with an index")


def load_hf(folder):
    """Reads a BERT folder in Hugging Face form, ours or anyone's.

    Returns (config, Bert, MLMHead), on the CPU, in fp32. Raises UserError that names the folder or
    file and what is wrong with it.
    """
    config = read_config(folder)
    state = {}
    for path in weight_files(folder):
        state |= read_weights(path, "download or copy it again")
    bert = Bert(config)
    mlm_head = MLMHead(config, bert.tokens)
    try:
        lacking = from_hf(state, bert, mlm_head)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    if lacking:
        print(f"{folder}: no MLM head, which therefore starts at random ({len(lacking)} tensors)")
    return config, bert, mlm_head


SAFE_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}


def read_safetensors(path):
    """{name: tensor} of a .safetensors file: N in 8 bytes, N bytes of JSON, raw numbers.

    All little-endian; the JSON gives each tensor's type, shape and place among the numbers.
    """
    state = {}
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > path.stat().st_size:
            raise ValueError("it is cut, or another kind of file")
        header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        for name, described in header.items():
            start, end = described["data_offsets"]
            value = torch.empty(described["shape"], dtype=SAFE_TYPES[described["dtype"]])
            file.seek(8 + size + start)
            numbers = bytearray(file.read(end - start))
            if len(numbers) < value.nbytes:
                raise ValueError("it is cut")
            if numbers:
                value = torch.frombuffer(numbers, dtype=value.dtype).view(value.shape)
            state[name] = value
    return state


def read_torch(path):
    """What torch.save wrote, on the CPU."""
    # a zip file carries a checksum of each part, at which torch.load does not look
    if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
        raise ValueError("a checksum does not fit")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_weights(path, way_out):
    """A dict of tensors from a .safetensors file, or what torch.save wrote.

    Raises UserError that names a cut, empty, damaged or foreign file, and the way out.
    """
    with open(path, "rb") as file:
        start = file.read(40)
    if start.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a git-lfs pointer; `git lfs pull` in its folder fetches it")
    try:
        state = read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
        return dict(state.items())
    except Exception as error:   # a damaged file fails in many ways: zip, pickle, JSON, its end
        reason = (str(error) or type(error).__name__).splitlines()[0] if start else "it is empty"
        raise UserError(f"{path} cannot be read: {reason}; {way_out}") from None


def save_video_encoder(path, video_encoder, settings):
    """Writes a video encoder, its shape, and how clips were fed to it (settings: plain values)."""
    weights = {key: value.cpu() for key, value in video_encoder.state_dict().items()}
    save_checkpoint(path, config=asdict(video_encoder.config), weights=weights,
                    stream_dims=video_encoder.stream_dims, settings=settings)


def load_video_encoder(path):
    """Reads what save_video_encoder wrote. Returns (VideoEncoder on the CPU, settings)."""
    state = load_checkpoint(path)
    if state is None:
        raise UserError(f"no video encoder at {path}; `python teacher.py` makes one")
    video_encoder = VideoEncoder(BertConfig.from_dict(state["config"]), state["stream_dims"])
    video_encoder.load_state_dict(state["weights"])
    return video_encoder, state["settings"]


# --------------------------------------------------------------------------------------------------
# Optimiser, schedule, checkpoint


def optimizer_for(modules, lr, weight_decay, eps=1e-6):
    """AdamW over every trainable parameter of the modules (authors' script).

    Biases and layer norms are not decayed. It takes modules, not a list of parameters, so that
    none can be forgotten: the authors' video branch was.
    """
    parameters = {}   # by identity: a parameter that two modules share is stepped once
    for module in modules:
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameters[id(parameter)] = parameter
    decayed = [parameter for parameter in parameters.values() if parameter.dim() > 1]
    plain = [parameter for parameter in parameters.values() if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay},
              {"params": plain, "weight_decay": 0.0}]
    # several times faster on small models
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in decayed)
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=eps, fused=fused)


def lr_at(step, peak, warmup, total):
    """Learning rate of step 0, 1, ...: linear to `peak` in `warmup` steps, then to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.0, (total - step) / max(1, total - warmup))


def gradient_norm(loss, parameters, total=None):
    """L2 norm of d loss / d parameters: how hard a loss pulls. Leaves .grad untouched.

    total: adds a flat tensor up over processes (None: one process).
    """
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    flat = [gradient.float().flatten() for gradient in gradients if gradient is not None]
    flat = torch.cat(flat)
    if total is not None:
        flat = total(flat)
    return float(flat.norm())


def save_checkpoint(path, **state):
    """Writes state dicts and numbers to path, through a temporary name: path is always whole."""
    temporary = Path(str(path) + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_checkpoint(path):
    """What save_checkpoint wrote, on the CPU, or None where there is no such file.

    Raises UserError that names a cut, empty or damaged file and the way out.
    """
    path = Path(path)
    if not path.exists():
        return None
    return read_weights(path, "delete it, and the run that wrote it starts again from step 0")
