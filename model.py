"""The networks of VidLanKD: BERT, its MLM head, the video encoder, distillation and task heads.

The text encoder is BERT (Devlin et al. 2019), computed exactly as Hugging Face's BertForMaskedLM.
The video encoder is the paper's (section 3.1). What differs from the authors' code:
- one fused projection for query, key and value, and `scaled_dot_product_attention`;
- MLM logits at the masked positions only, 15 % of the largest matrix product;
- features are standardised, then projected with a non-linearity (theirs: raw, two linear layers);
- video positions are added once (theirs: twice);
- a clip's vector is the mean over its real steps (theirs: what stands at the first step).

Axes: B sequences, L tokens, T video steps, H hidden width, D feature width, V vocabulary.
Every mask is True for real tokens or steps. This file imports nothing of ours.
"""
import io
import json
import math
import os
import sys
import zipfile
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F


class UserError(ValueError):
    """What the user can mend: a file, a flag, a setting. Scripts show it as one sentence."""


def command(main):
    """Runs a script's main(): what the user can mend, and Ctrl-C, end in one sentence."""
    name = Path(sys.argv[0]).name
    end = None
    try:
        main()
    except UserError as error:
        end = f"{name}: {error}"
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        end = 130
    sys.exit(end)   # here the error's frames are gone, and with them the workers that they held


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
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0
    block: int = 128   # tokens of a pretraining example; no later position is ever trained

    @classmethod
    def from_dict(cls, values):
        """Takes the fields that this class knows; what is absent or null keeps its default."""
        names = [field.name for field in fields(cls)]
        config = cls(**{name: values[name] for name in names if values.get(name) is not None})
        if "block" not in values:   # made elsewhere: all its positions count as trained
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
    """softmax(query key' / sqrt(d)) value, with dropout of the softmax's weights.

    query, key, value: [B, heads, L, d]; mask: bool [B, 1, 1, L], True = may be attended to, or
    None for all. Returns [B, heads, L, d].
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # four times as fast as the backward of PyTorch 2.13's fused kernel
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
        self.attention_dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.qkv = nn.Linear(width, 3 * width)   # rows: all of query, all of key, all of value
        self.attention_out = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp_in = nn.Linear(width, config.intermediate_size)
        self.mlp_out = nn.Linear(config.intermediate_size, width)
        self.mlp_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x, mask, first_only=False):
        """x: [B, L, H]; mask: bool [B, 1, 1, L], True = may be attended to, or None for all.

        first_only: only the first token is carried on, to which all are still shown: [B, 1, H].
        """
        B, L, H = x.shape
        qkv = self.qkv(x).view(B, L, 3, self.heads, H // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)                      # [B, heads, L, d]
        if first_only:
            x = x[:, :1]
            query = query[:, :, :1]
        dropout = self.attention_dropout.p if self.training else 0.0
        attended = attention(query, key, value, mask, dropout)
        attended = attended.transpose(1, 2).reshape(x.shape)                # [B, L, H]
        x = self.attention_norm(x + self.dropout(self.attention_out(attended)))
        return self.mlp_norm(x + self.dropout(self.mlp_out(F.gelu(self.mlp_in(x)))))


def init_weights(module, std):
    """BERT's initialisation: normal weights of deviation std, zero biases; layer norms keep
    PyTorch's ones."""
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
        self.segments = nn.Embedding(2, width)
        self.embedding_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        init_weights(self, config.initializer_range)

    def forward(self, tokens, mask=None, segments=None, first_only=False):
        """tokens: int [B, L]; mask: bool [B, L], True = real (None: all); segments: int [B, L].

        Returns the last hidden states [B, L, H], or of the first token alone [B, 1, H], which saves
        most of the last layer. Segments default to 0.
        """
        segment = self.segments.weight[0] if segments is None else self.segments(segments)
        positions = self.positions.weight[:tokens.shape[1]]                 # [L, H]
        x = self.tokens(tokens) + positions + segment                       # [B, L, H]
        x = self.dropout(self.embedding_norm(x))
        attend = None if mask is None else mask[:, None, None, :]           # [B, 1, 1, L]
        *earlier, last = self.layers
        for layer in earlier:
            x = layer(x, attend)
        return last(x, attend, first_only)


def set_dropout(config, bert, dropout):
    """Changes the dropout of an encoder and of its config."""
    config.hidden_dropout_prob = dropout
    config.attention_probs_dropout_prob = dropout
    for module in bert.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout


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


def shapes_are_free(device):
    """May shapes follow the data? Not on a GPU, which would be waited for; not while compiling."""
    return device.type == "cpu" and not torch.compiler.is_compiling()


def mlm_loss(mlm_head, hidden, positions, labels):
    """Cross-entropy of the true tokens at the masked positions, in nats, summed. A scalar.

    hidden: [B, L, H]; positions: int [n], places in the flattened batch of B L tokens; labels: int
    [n], -100 where a position only fills the list up, at its end (see data.predicted).
    """
    if shapes_are_free(hidden.device):   # what only fills up would cost a fifteenth of the step
        count = int((labels != -100).sum())
        count += -count % 16   # oneDNN keeps a kernel, and its memory, for every shape
        positions, labels = positions[:count], labels[:count]
    logits = mlm_head(hidden.flatten(0, 1)[positions]).float()              # [n, V]
    return F.cross_entropy(logits, labels, reduction="sum")


def masked_mean(hidden, mask):
    """Mean over the real tokens or steps: hidden [B, L, H], mask bool [B, L] -> [B, H]."""
    weights = mask[:, :, None].to(hidden.dtype)                             # [B, L, 1]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


def sentence_vectors(hidden, mask):
    """Unit vectors [B, H] of texts: hidden states [B, L, H], averaged where mask [B, L] is True."""
    return F.normalize(masked_mean(hidden, mask), dim=-1)


# --------------------------------------------------------------------------------------------------
# Frozen CNNs: one bottleneck network, over frames and over windows of frames. They only make
# features (`data.py video`). Module names are the published checkpoints' key names.


class Bottleneck(nn.Module):
    """relu(conv1(conv3(conv1 x)) + shortcut), each convolution normalised (He et al. 2016).

    Conv, Norm: of 2D or 3D; groups > 1: Xie et al. 2017; stride: of the middle convolution.
    """

    def __init__(self, Conv, Norm, inputs, middle, outputs, stride, groups):
        super().__init__()
        self.conv1 = Conv(inputs, middle, 1, bias=False)
        self.bn1 = Norm(middle)
        self.conv2 = Conv(middle, middle, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = Norm(middle)
        self.conv3 = Conv(middle, outputs, 1, bias=False)
        self.bn3 = Norm(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            shortcut = Conv(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, Norm(outputs))

    def forward(self, x):
        shortcut = self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + shortcut)


class CNN(nn.Module):
    """Stem, four stages of bottlenecks, and the mean over all positions: features [N, 2048].

    blocks: bottlenecks of each stage; middle: width of the first stage's middle convolutions.
    """

    def __init__(self, Conv, Norm, Pool, stem_stride, blocks, middle, groups, classes):
        super().__init__()
        self.conv1 = Conv(3, 64, 7, stem_stride, 3, bias=False)
        self.bn1 = Norm(64)
        self.maxpool = Pool(3, 2, 1)
        inputs = 64
        for stage in range(4):
            outputs = 256 * 2 ** stage
            stride = 1 if stage == 0 else 2
            layers = nn.Sequential()
            for _ in range(blocks[stage]):
                layers.append(Bottleneck(Conv, Norm, inputs, middle * 2 ** stage, outputs, stride,
                                         groups))
                inputs = outputs
                stride = 1
            setattr(self, f"layer{stage + 1}", layers)
        self.fc = nn.Linear(2048, classes)   # class scores: in the published files, never used

    def forward(self, x):
        """x: frames [N, 3, H, W] or windows [N, 3, T, H, W], normalised. Returns [N, 2048]."""
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return x.flatten(2).mean(2)


def resnet152():
    """ResNet-152 as torchvision has it, 60 M parameters.

    Frames [N, 3, H, W] of any size, values in 0..1 less the ImageNet mean, over its deviation.
    """
    return CNN(nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, stem_stride=2, blocks=(3, 8, 36, 3),
               middle=64, groups=1, classes=1000)


def resnext101_3d():
    """3D ResNeXt-101, 32 groups (Hara et al. 2018), trained on Kinetics-400, 48 M parameters.

    Windows [N, 3, 16, 112, 112], values in 0..255 less the mean.
    """
    return CNN(nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d, stem_stride=(1, 2, 2),
               blocks=(3, 4, 23, 3), middle=128, groups=32, classes=400)


CNNS = {   # stream -> (network, the file that HowTo100M's features were made with)
    "resnet152": (resnet152, "resnet152-394f9c45.pth"),
    "resnext101": (resnext101_3d, "resnext101.pth"),
}


def load_cnn(name, folder):
    """A frozen CNN of CNNS with the published weights in `folder`: evaluation mode, on the CPU.

    Raises UserError on a file that is absent, damaged or another network's.
    """
    make, file_name = CNNS[name]
    path = Path(folder) / file_name
    state = read_file(path, f"`make data/weights/{name}` fetches it, once a damaged one is deleted")
    with torch.device("meta"):   # 60 M random numbers need not be drawn first
        cnn = make()
    try:
        cnn.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise UserError(f"{path} is not the published {name}: {str(error)[:200]}") from None
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
        self.config = config
        self.stream_dims = dict(stream_dims)
        width = config.hidden_size
        total = sum(stream_dims.values())
        # fit_scale's; a layer norm over a step's features would erase how strong a motion is
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
        mean = features.float().mean(0)
        std = features.float().std(0)
        varies = std > 1e-4 * (1e-6 + mean.abs())                           # bool [D]
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(torch.where(varies, std, math.inf))

    def forward(self, features, mask):
        """features: [B, T, D]; mask: bool [B, T], True = a real step, of which each clip has one.

        Returns [B, H], not made unit vectors.
        """
        x = (features - self.feature_mean) / self.feature_std               # [B, T, D]
        x = self.project(x) + self.positions.weight[:x.shape[1]]            # [B, T, H]
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        return self.output(masked_mean(x, mask))


# --------------------------------------------------------------------------------------------------
# Heads


class DistillHead(nn.Module):
    """The student's MLP head of one distillation objective: Linear - GELU - LayerNorm - Linear.

    It leaves the hidden states themselves to MLM.
    """

    def __init__(self, config, out_width):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, out_width)
        init_weights(self, config.initializer_range)

    def forward(self, hidden):
        """hidden: [..., H] -> [..., out_width]."""
        return self.decoder(self.norm(F.gelu(self.dense(hidden))))


class SequenceHead(nn.Module):
    """[CLS] -> dense + tanh (BERT's pooler) -> dropout -> `outputs` values.

    Regression, and each candidate of a multiple choice: outputs=1. No pretraining trains a pooler,
    so it starts at random for every model.
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


class WhitenedHead(nn.Module):
    """[CLS], whitened -> dense + GELU -> dropout -> `outputs` values.

    Of what [CLS] varies in over texts, what one of their words means may be a hundredth. A plain
    head sees too little of it to begin with, and the encoder forgets it meanwhile. So differences
    are measured by their own spread over `states` [N, H], the [CLS] of N texts before training.
    """

    def __init__(self, config, outputs, states):
        super().__init__()
        mean = states.mean(0)
        variances, axes = torch.linalg.eigh(torch.cov((states - mean).T, correction=0))
        floor = 0.1 * variances.mean() + 1e-6   # what hardly varies stays small
        self.register_buffer("mean", mean)
        # an axis may point either way: its largest component is positive
        axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
        self.register_buffer("whitening", axes * (variances + floor).rsqrt())   # [H, H]
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(config.intermediate_size, outputs)
        init_weights(self, config.initializer_range)

    def forward(self, hidden):
        """hidden: [B, L, H] -> [B, outputs]."""
        x = (hidden[:, 0] - self.mean) @ self.whitening                     # [B, H]
        return self.classifier(self.dropout(F.gelu(self.dense(x))))


# --------------------------------------------------------------------------------------------------
# Hugging Face files

PLAIN_BERT = {   # what config.json must say, if anything: all else is another network
    "model_type": "bert",
    "is_decoder": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "type_vocab_size": 2,
}

HF_NAMES = {   # our module -> Hugging Face's
    "tokens": "bert.embeddings.word_embeddings",
    "positions": "bert.embeddings.position_embeddings",
    "segments": "bert.embeddings.token_type_embeddings",
    "embedding_norm": "bert.embeddings.LayerNorm",
    "layers": "bert.encoder.layer",
    "attention_out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
    "head": "cls.predictions",
    "dense": "transform.dense",
    "norm": "transform.LayerNorm",
}
TIED_NAMES = {   # one tensor under two names, of which a file may hold either
    "bert.embeddings.word_embeddings.weight": "cls.predictions.decoder.weight",
    "cls.predictions.bias": "cls.predictions.decoder.bias",
}


def to_hf(bert, mlm_head):
    """{name in `BertForMaskedLM`: tensor}: views, so that writing to one changes our model."""
    state = {}
    for key, tensor in (bert.state_dict() | mlm_head.state_dict(prefix="head.")).items():
        name = ".".join(HF_NAMES.get(part, part) for part in key.split("."))
        if ".qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3)):
                state[name.replace("qkv", f"attention.self.{part}")] = third
        else:
            state[name] = tensor
    return state


def save_hf(folder, config, bert, mlm_head, tokenizer):
    """Writes a folder that transformers' AutoModelForMaskedLM and AutoTokenizer load.

    tokenizer: a tokenizers.Tokenizer. vocab.txt and do_lower_case are for other tools.
    """
    folder = Path(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    folder.mkdir(exist_ok=True)
    # on the CPU: other tools may have no GPU
    state = {name: tensor.cpu() for name, tensor in to_hf(bert, mlm_head).items()}
    save_checkpoint(temporary / "pytorch_model.bin", **state)
    tokenizer.save(str(temporary / "tokenizer.json"))
    words = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    (temporary / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    rules = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]",
        "mask_token": "[MASK]", "unk_token": "[UNK]",
        "do_lower_case": getattr(tokenizer.normalizer, "lowercase", False),
        "model_max_length": config.max_position_embeddings,
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (temporary / "tokenizer_config.json").write_text(json.dumps(rules, indent=1))
    described = {"architectures": ["BertForMaskedLM"], **PLAIN_BERT, **asdict(config),
                 "pad_token_id": tokenizer.token_to_id("[PAD]")}
    (temporary / "config.json").write_text(json.dumps(described, indent=1))
    # config.json last: without it there is no model
    for path in sorted(temporary.iterdir(), reverse=True):
        os.replace(path, folder / path.name)
    temporary.rmdir()


DOWNLOAD = "copy or download it again (a git-lfs pointer: `git lfs pull`)"


def read_config(folder):
    """The BertConfig of a folder. Raises UserError where it is absent, or of another network."""
    values = read_file(Path(folder) / "config.json", "a model is a folder like runs/student/model; "
                       "`make teacher distill` makes the first two")
    for key, value in PLAIN_BERT.items():
        if values.get(key, value) not in (value, None):
            raise UserError(f"{folder}: config.json says {key} {values[key]!r}; only a plain BERT "
                            f"is read here ({key} {value!r})")
    return BertConfig.from_dict(values)


def load_hf(folder):
    """Reads a BERT folder in Hugging Face form, ours or anyone's: (config, Bert, MLMHead).

    On the CPU, in fp32. Raises UserError on what is absent, damaged, or not a plain BERT.
    """
    config = read_config(folder)
    given = {}
    for path in weight_files(folder):
        for name, tensor in read_file(path, DOWNLOAD).items():
            # old files say gamma and beta; those of a bare encoder lack "bert."
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
            name = name.replace("LayerNorm.beta", "LayerNorm.bias")
            if name.startswith(("embeddings.", "encoder.")):
                name = "bert." + name
            given[name] = tensor
    for name, twin in TIED_NAMES.items():
        if twin in given:
            given.setdefault(name, given[twin])

    bert = Bert(config)
    mlm_head = MLMHead(config, bert.tokens)
    wanted = to_hf(bert, mlm_head)
    for name in wanted | given:
        if name not in given and name.startswith("bert."):
            raise UserError(f"{folder}: the weights lack {name}")
        if name not in wanted and name.startswith("bert.encoder."):
            raise UserError(f"{folder}: config.json does not describe {name} of the weights")
        if name in given and name in wanted:
            if given[name].shape != wanted[name].shape:
                raise UserError(f"{folder}: {name} is {list(given[name].shape)}, config.json asks "
                                f"for {list(wanted[name].shape)}")
            wanted[name].copy_(given[name])
    if not wanted.keys() <= given.keys():
        print(f"{folder}: no MLM head, which therefore starts at random")
    return config, bert, mlm_head


def weight_files(folder):
    """The files of a model's weights, one or all shards: those that transformers would read."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        path = Path(folder) / name
        index = Path(folder) / f"{name}.index.json"
        if path.exists():
            return [path]
        if index.exists():
            shards = read_file(index, DOWNLOAD)["weight_map"].values()
            return [index.with_name(shard) for shard in sorted(set(shards))]
    raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin")


SAFE_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16,
              "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}


def read_safetensors(path):
    """{name: tensor} of a .safetensors file: N in 8 bytes, N bytes of JSON, raw numbers.

    All little-endian; the JSON gives each tensor's type, shape and place among the numbers.
    """
    content = memoryview(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8:8 + size]))
    header.pop("__metadata__", None)
    numbers = content[8 + size:]
    state = {}
    for name, described in header.items():
        start, end = described["data_offsets"]
        kind = SAFE_TYPES[described["dtype"]]
        tensor = torch.frombuffer(bytearray(numbers[start:end]), dtype=kind)
        state[name] = tensor.view(described["shape"])
    return state


def read_file(path, way_out):
    """The dict in a .json or .safetensors file, or in one of torch.save, on the CPU.

    Raises UserError that names an absent, cut, damaged or foreign file, and the way out.
    """
    try:
        if path.suffix == ".json":
            return dict(**json.loads(path.read_bytes()))
        if path.suffix == ".safetensors":
            return read_safetensors(path)
        # torch.load does not look at the checksums in its zip file
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():
            raise ValueError("a checksum does not fit")
        return dict(**torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:   # a damaged file fails in many ways: zip, pickle, JSON, its end
        sentence = getattr(error, "strerror", None) or str(error)   # without the path once more
        sentence = sentence.partition("\n")[0].partition(". ")[0]
        raise UserError(f"{path} cannot be read: {sentence or 'too short'}; {way_out}") from None


def save_video_encoder(path, video_encoder, settings):
    """Writes a video encoder, its shape, and how clips were fed to it (settings: plain values)."""
    save_checkpoint(path, config=asdict(video_encoder.config), settings=settings,
                    stream_dims=video_encoder.stream_dims, weights=video_encoder.state_dict())


def load_video_encoder(path):
    """Reads what save_video_encoder wrote. Returns (VideoEncoder on the CPU, settings)."""
    state = read_file(Path(path), "`python teacher.py` makes a video encoder")
    video_encoder = VideoEncoder(BertConfig.from_dict(state["config"]), state["stream_dims"])
    video_encoder.load_state_dict(state["weights"])
    return video_encoder, state["settings"]


# --------------------------------------------------------------------------------------------------
# Optimiser, schedule, checkpoint


def optimizer_for(modules, lr, weight_decay, eps=1e-6):
    """AdamW (authors' script) over every trainable parameter of the modules, each once.

    Biases and layer norms are not decayed. It takes modules, not a list of parameters, so that
    none can be forgotten: the authors' video branch was.
    """
    parameters = nn.ModuleList(modules).parameters()   # what two modules share comes once
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.dim() > 1]
    plain = [parameter for parameter in trained if parameter.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay},
              {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, eps=eps, fused=True)


def lr_at(step, peak, warmup, total):
    """Learning rate of step 0, 1, ...: linear to `peak` in `warmup` steps, then to 0 at `total`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * max(0.0, (total - step) / max(1, total - warmup))


def gradient_norm(loss, parameters, total):
    """L2 norm of d loss / d parameters: how hard a loss pulls. A scalar; leaves .grad untouched.

    total: adds a tensor up over the processes.
    """
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
    return total(torch.cat([gradient.flatten() for gradient in gradients])).norm()


def compiled(function, asked, device, say, graphs=False):
    """`function` compiled, if `asked` is "on", or "auto" and the device a GPU; else as it is.

    graphs: as CUDA graphs, which launch all kernels at once; what it returns is good until its next
    call, and so are the gradients. Where compiling fails (no compiler, an old GPU), that is said
    once, and it goes on as it is.
    """
    if asked == "off" or (asked == "auto" and device.type != "cuda"):
        return function
    chosen = torch.compile(function, mode="reduce-overhead" if graphs else None)

    def call(*given):
        nonlocal chosen
        try:
            return chosen(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            say(f"compiling failed, so it goes on without: {str(error).splitlines()[0]}")
            chosen = function
            return function(*given)
    return call


def save_checkpoint(path, before=None, **state):
    """Writes state dicts and numbers to path, through a temporary name: path is always whole.

    before: what stood at path is kept under this name.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    content = io.BytesIO()   # to a full disk, torch.save would not say what is wrong
    torch.save(state, content)
    with open(temporary, "wb") as file:
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())   # else a machine that loses power may keep the name alone
    if before and path.exists():
        os.replace(path, before)
    os.replace(temporary, path)


def load_checkpoint(path, before=None, say=print):
    """What save_checkpoint wrote, on the CPU; if it is damaged or gone, the one before it.

    None where there is neither. Raises UserError where neither can be read.
    """
    path = Path(path)
    way_out = "delete it, and the run that wrote it starts again from step 0"
    if not before or not Path(before).exists():
        return read_file(path, way_out) if path.exists() else None
    try:
        return read_file(path, f"going on from {before}")
    except UserError as error:
        say(error)
        return read_file(Path(before), way_out)
