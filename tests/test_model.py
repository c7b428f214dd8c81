"""The networks against transformers; files of other tools; optimiser, schedule and checkpoint.

    python -m pytest tests/test_model.py
"""
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

import data
import model

# dropout stays on in the config, so that a forgotten eval() shows as a difference
CONFIG = model.BertConfig(vocab_size=120, hidden_size=48, num_hidden_layers=3,
                          num_attention_heads=4, intermediate_size=96, max_position_embeddings=40,
                          block=32)


def shake(module):
    """Makes every parameter random: zero biases and unit norms would hide swapped tensors."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def make(config=CONFIG):
    torch.manual_seed(0)
    bert = shake(model.Bert(config))
    return bert, shake(model.MLMHead(config, bert.tokens))


def batch(config=CONFIG, B=5, L=17):
    """Tokens, mask (True = real) and segments of B texts of several lengths, the first full."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(config.vocab_size, (B, L), generator=generator)
    mask = torch.arange(L) < torch.tensor([L, 1, 9, 12, 16])[:B, None]
    segments = (torch.arange(L) >= torch.tensor([8, 0, 4, 12, 3])[:B, None]).long()
    return tokens, mask, segments


def test_the_first_token_alone_is_the_same():
    """Output and every gradient: to attention, the last layer still shows all tokens."""
    bert, _ = make()
    bert.double()
    tokens, mask, segments = batch()
    weights = torch.randn(5, 1, CONFIG.hidden_size, dtype=torch.float64)

    def gradients(hidden):
        return torch.autograd.grad((hidden * weights).sum(), list(bert.parameters()))

    whole = bert(tokens, mask, segments)[:, :1]
    alone = bert(tokens, mask, segments, first_only=True)
    assert alone.shape == whole.shape and (alone - whole).abs().max() < 1e-12
    for one, other in zip(gradients(alone), gradients(whole)):
        assert (one - other).abs().max() < 1e-11


# --- Hugging Face files


@pytest.fixture
def theirs(transformers):
    """transformers' model, every parameter random."""
    shape = dataclasses.asdict(CONFIG)
    del shape["block"]
    torch.manual_seed(4)
    return shake(transformers.BertForMaskedLM(transformers.BertConfig(**shape)))


def write_bin(folder, theirs, state=None, **changes):
    """A folder with config.json, some values changed, and pytorch_model.bin."""
    config = {**theirs.config.to_dict(), **changes}
    (folder / "config.json").write_text(json.dumps(config, default=str))
    torch.save(theirs.state_dict() if state is None else state, folder / "pytorch_model.bin")


def assert_opens_as(folder, theirs, tolerance=1e-5):
    """load_hf's hidden states and MLM logits are transformers', at every real position."""
    config, bert, head = model.load_hf(folder)
    bert.eval()
    tokens, mask, segments = batch()
    with torch.no_grad():
        out = theirs(tokens, attention_mask=mask.long(), token_type_ids=segments,
                     output_hidden_states=True)
        hidden = bert(tokens, mask, segments)
        assert out.logits.std() > 0.1   # not two constants
        assert (out.hidden_states[-1] - hidden)[mask].abs().max() < tolerance
        assert (out.logits - head(hidden))[mask].abs().max() < tolerance
        short = tokens[:, :9]   # no mask, no segments: the defaults mean the same on both sides
        assert (theirs(short).logits - head(bert(short))).abs().max() < tolerance
    return config


def test_our_folder_opens_in_transformers(transformers, tiny_tokenizer, tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=tiny_tokenizer.get_vocab_size())
    bert, head = make(config)
    folder = tmp_path / "model"
    model.save_hf(folder, config, bert, head, tiny_tokenizer)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(
        folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokens, mask, _ = batch(config)
    tokens = tokens % config.vocab_size
    with torch.no_grad():
        logits = theirs.eval()(tokens, attention_mask=mask.long()).logits
        assert (logits - head(bert(tokens, mask)))[mask].abs().max() < 1e-5

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("The cat sat on the mat.", "a DOG, and zebras!", "", "crème", "the [MASK] ran"):
        assert their_tokenizer(text)["input_ids"] == tiny_tokenizer.encode(text).ids
    pair = their_tokenizer("the cat", "ran to it")
    ours = tiny_tokenizer.encode("the cat", "ran to it")
    assert pair["input_ids"] == ours.ids
    assert pair["token_type_ids"] == ours.type_ids
    assert their_tokenizer.mask_token_id == tiny_tokenizer.token_to_id("[MASK]")

    again, bert2, head2 = model.load_hf(folder)
    assert again == config
    for before, after in ((bert, bert2), (head, head2)):
        for key, value in before.state_dict().items():
            assert torch.equal(value, after.state_dict()[key])


def test_padding_is_the_vocabularys_own(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\n[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    tokenizer = data.load_tokenizer(tmp_path)
    bert, head = make()
    model.save_hf(tmp_path / "model", CONFIG, bert, head, tokenizer)
    assert model.load_hf(tmp_path / "model")[0].pad_token_id == 1


def test_saving_again_deletes_nothing_of_others(tiny_tokenizer, tmp_path):
    bert, head = make()
    for _ in range(2):
        model.save_hf(tmp_path / "model", CONFIG, bert, head, tiny_tokenizer)
        (tmp_path / "model" / "notes.txt").write_text("mine")
    assert (tmp_path / "model" / "notes.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_changed_tokenizer_is_followed_by_transformers(transformers, tiny_tokenizer, tmp_path):
    """Added words and a pre-tokenizer that is not BERT's, as tokenizer.json has them."""
    import tokenizers
    tokenizer = tokenizers.Tokenizer.from_str(tiny_tokenizer.to_str())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.add_tokens(["covid19"])
    model.save_hf(tmp_path / "model", CONFIG, *make(), tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("the cat saw covid19", "the cat !! ran"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids


@pytest.mark.parametrize("kind, shard", [
    (torch.float32, "10GB"), (torch.float32, "50KB"), (torch.float64, "10GB"),
    (torch.float16, "10GB"), (torch.bfloat16, "10GB")])
def test_transformers_safetensors_open_here(theirs, tmp_path, kind, shard):
    theirs.to(kind).save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "10GB")
    torch.save({}, tmp_path / "pytorch_model.bin")   # an older file beside: transformers passes it
    config = assert_opens_as(tmp_path, theirs.float())
    assert config.block == 40   # made elsewhere: every position counts as trained


@pytest.mark.parametrize("absent", [
    [], ["cls.predictions.decoder.bias"], ["cls.predictions.bias"],
    ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"],
    ["bert.embeddings.word_embeddings.weight"]])
def test_old_files_open_here(theirs, tmp_path, absent, capsys):
    """Old names of layer norms, tied tensors stored once, tensors that MLM does not have."""
    state = {"bert.embeddings.position_ids": torch.arange(40)[None],
             "bert.pooler.dense.weight": torch.randn(48, 48),
             "cls.seq_relationship.weight": torch.randn(2, 48)}
    for key, value in theirs.state_dict().items():
        if key not in absent:
            key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
            state[key.replace("LayerNorm.bias", "LayerNorm.beta")] = value
    write_bin(tmp_path, theirs, state)
    assert_opens_as(tmp_path, theirs)
    assert "no MLM head" not in capsys.readouterr().out


def test_shards_of_pytorch_bin_open_here(theirs, tmp_path):
    write_bin(tmp_path, theirs)
    (tmp_path / "pytorch_model.bin").unlink()
    state = theirs.state_dict()
    weight_map = {key: f"part-{number % 2}.bin" for number, key in enumerate(state)}
    for part in ("part-0.bin", "part-1.bin"):
        torch.save({key: state[key] for key in state if weight_map[key] == part}, tmp_path / part)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert_opens_as(tmp_path, theirs)
    (tmp_path / "part-1.bin").unlink()
    with pytest.raises(model.UserError, match="part-1.bin cannot be read: .*No such file"):
        model.load_hf(tmp_path)


def test_bare_encoder(theirs, tmp_path, capsys):
    """BertModel's own file has no "bert." before its names and no MLM head, which is said."""
    write_bin(tmp_path, theirs, theirs.bert.state_dict())
    _, bert, head = model.load_hf(tmp_path)
    tokens, mask, segments = batch()
    with torch.no_grad():
        hidden = theirs.bert(tokens, attention_mask=mask.long(), token_type_ids=segments)[0]
        assert (hidden - bert.eval()(tokens, mask, segments))[mask].abs().max() < 1e-5
    assert "no MLM head, which therefore starts at random" in capsys.readouterr().out
    assert head.dense.weight.std() > 0


@pytest.mark.parametrize("changes, message", [
    ({"model_type": "distilbert"}, "says model_type 'distilbert'; only a plain BERT .*'bert'"),
    ({"model_type": "roberta"}, "says model_type 'roberta'"),
    ({"is_decoder": True}, "says is_decoder True"),
    ({"add_cross_attention": True}, "says add_cross_attention True"),
    ({"tie_word_embeddings": False}, "says tie_word_embeddings False"),
    ({"hidden_act": "gelu_new"}, "says hidden_act 'gelu_new'"),
    ({"position_embedding_type": "relative_key"}, "says position_embedding_type 'relative_key'"),
    ({"type_vocab_size": 1}, "says type_vocab_size 1; only a plain BERT is read here .*2"),
])
def test_what_is_not_a_plain_bert_is_refused_before_a_weight_is_read(
        theirs, tmp_path, monkeypatch, changes, message):
    write_bin(tmp_path, theirs, **changes)
    monkeypatch.setattr(model, "weight_files", None)
    with pytest.raises(model.UserError, match=message) as caught:
        model.load_hf(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_encoder_that_does_not_fit_its_config_is_refused(theirs, tmp_path):
    state = theirs.state_dict()
    name = "bert.encoder.layer.1.attention.self.key.weight"
    write_bin(tmp_path, theirs, {key: state[key] for key in state if key != name})
    with pytest.raises(model.UserError, match=f"{tmp_path}: the weights lack {name}"):
        model.load_hf(tmp_path)
    write_bin(tmp_path, theirs, {**state, name: torch.zeros(48, 47)})
    with pytest.raises(model.UserError, match=r"\[48, 47\], config.json asks for \[48, 48\]"):
        model.load_hf(tmp_path)
    write_bin(tmp_path, theirs, num_hidden_layers=2)   # not a shallower network without a word
    with pytest.raises(model.UserError, match="config.json does not describe bert.*layer.2"):
        model.load_hf(tmp_path)


def test_missing_files_are_named(theirs, tmp_path):
    with pytest.raises(model.UserError, match="config.json cannot be read.*make teacher distill"):
        model.load_hf(tmp_path)
    write_bin(tmp_path, theirs)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(model.UserError, match="neither model.safetensors nor pytorch_model.bin"):
        model.load_hf(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(model.UserError, match="config.json cannot be read: .* must be a mapping"):
        model.load_hf(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", ["cut", "cut at its head", "empty", "pointer", "page"])
def test_a_damaged_file_is_named_in_one_line(theirs, tmp_path, name, damage):
    write_bin(tmp_path, theirs)
    if name == "model.safetensors":
        theirs.save_pretrained(tmp_path)
    whole = (tmp_path / name).read_bytes()
    content = {"cut": whole[:len(whole) // 2], "cut at its head": whole[:100], "empty": b"",
               "pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
               "page": b"<html>not found</html>"}
    (tmp_path / name).write_bytes(content[damage])
    with pytest.raises(model.UserError, match=f"{name} cannot be read: .+; .*git lfs") as caught:
        model.load_hf(tmp_path)
    assert "\n" not in str(caught.value)


# --- text encoder


def test_padding_changes_nothing():
    bert, _ = make()
    tokens, mask, segments = batch()
    with torch.no_grad():
        hidden = bert(tokens, mask, segments)
        moved = torch.where(mask, tokens, (tokens + 7) % CONFIG.vocab_size)
        assert (hidden - bert(moved, mask, segments))[mask].abs().max() < 1e-6
        for row, length in enumerate(mask.sum(1).tolist()):   # each text alone, without padding
            alone = bert(tokens[row:row + 1, :length], None, segments[row:row + 1, :length])[0]
            assert (alone - hidden[row, :length]).abs().max() < 1e-5
        # without the mask it would matter
        assert (hidden - bert(tokens, None, segments))[2, :9].abs().max() > 1e-2


def test_order_and_segments_matter():
    bert, _ = make()
    tokens, _, segments = batch()
    with torch.no_grad():
        hidden = bert(tokens)
        assert (hidden.mean(1) - bert(tokens.flip(1)).mean(1)).abs().max() > 1e-3
        assert (hidden - bert(tokens, None, segments)).abs().max() > 1e-3
        assert torch.equal(hidden, bert(tokens, None, torch.zeros_like(segments)))


def test_sizes():
    count = sum(parameter.numel() for parameter in model.Bert(model.SIZES["small"]).parameters())
    # attention, two matrices, their biases, two norms
    layer = 4 * 512 * 513 + 2 * 512 * 2048 + 2048 + 5 * 512
    assert count == (30522 + 512 + 2 + 2) * 512 + 6 * layer
    assert [model.SIZES[size].block for size in ("mini", "small", "base")] == [32, 128, 128]


def test_mlm_loss_is_cross_entropy_at_masked_positions():
    bert, head = make()
    tokens, mask, _ = batch()
    labels = torch.full_like(tokens, -100)
    hidden = bert(tokens, mask)
    assert model.mlm_loss(head, hidden, *data.predicted(labels)).item() == 0.0   # nothing masked
    slow = 0.0
    for place in ((0, 2), (0, 5), (2, 8), (4, 0)):
        labels[place] = (tokens[place] + 3) % CONFIG.vocab_size
        slow = slow - F.log_softmax(head(hidden)[place], 0)[labels[place]]
    loss = model.mlm_loss(head, hidden, *data.predicted(labels))
    assert loss.item() == pytest.approx(slow.item(), abs=1e-5) and loss > 0.1
    parameters = [*bert.parameters(), *head.parameters()]
    ours = torch.autograd.grad(loss, parameters, retain_graph=True)
    for one, other in zip(ours, torch.autograd.grad(slow, parameters)):
        assert (one - other).abs().max() < 1e-5


def test_sentence_vectors():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 2.0]] * 3])
    mask = torch.tensor([[True, True, False], [False] * 3])
    assert torch.allclose(model.sentence_vectors(hidden, mask),
                          torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


# --- video encoder


def make_video():
    torch.manual_seed(0)
    config = dataclasses.replace(CONFIG, max_position_embeddings=12)
    return shake(model.VideoEncoder(config, {"frame": 5, "motion": 3}))


def clips(B=4, T=7):
    features = torch.randn(B, T, 8, generator=torch.Generator().manual_seed(2))
    return features, torch.arange(T) < torch.tensor([7, 1, 4, 6])[:B, None]


def test_video_padding_changes_nothing_and_order_matters():
    encoder = make_video()
    features, mask = clips()
    with torch.no_grad():
        pooled = encoder(features, mask)
        padded = torch.where(mask[:, :, None], features, 50.0)
        assert (pooled - encoder(padded, mask)).abs().max() < 1e-5
        wider = encoder(F.pad(features, (0, 0, 0, 5)), F.pad(mask, (0, 5)))
        assert (pooled - wider).abs().max() < 1e-5
        for row, length in enumerate(mask.sum(1).tolist()):
            everything = torch.ones(1, length, dtype=torch.bool)
            alone = encoder(features[row:row + 1, :length], everything)[0]
            assert (alone - pooled[row]).abs().max() < 1e-5
        assert pooled.std(0).min() > 1e-4   # clips do differ
        full = torch.ones_like(mask)
        assert (encoder(features, full) - encoder(features.flip(1), full)).abs().max() > 1e-3


def test_every_video_parameter_gets_a_gradient():
    encoder = make_video()
    features, mask = clips(T=12)
    encoder(features, torch.ones_like(mask)).pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_fit_scale():
    encoder = make_video()
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    features = features * torch.tensor([1, 5, 100, 1e-3, 2, 0, 0, 1.])
    features += torch.tensor([0, 3, -700, 0, 0, 7.25, 0, 0])   # channels 5 and 6 never vary
    encoder.fit_scale(features)
    scaled = (features - encoder.feature_mean) / encoder.feature_std
    assert scaled.mean(0).abs().max() < 1e-3
    assert (scaled.std(0) - torch.tensor([1, 1, 1, 1, 1, 0, 0, 1])).abs().max() < 1e-3
    clip, mask = clips()
    odd = clip.clone()
    odd[:, :, 5] += 1000   # what never varied in training says nothing, whatever it does later
    with torch.no_grad():
        assert torch.equal(encoder(clip, mask), encoder(odd, mask))


def test_video_encoder_file(tmp_path):
    encoder = make_video()
    features, mask = clips()
    encoder.fit_scale(features[mask] * 3 + 1)
    settings = {"streams": ["frame", "motion"], "frames": None}
    model.save_video_encoder(tmp_path / "video_encoder.pt", encoder, settings)
    again, kept = model.load_video_encoder(tmp_path / "video_encoder.pt")
    assert kept == settings
    assert again.stream_dims == {"frame": 5, "motion": 3}
    with torch.no_grad():
        assert torch.equal(encoder(features, mask), again.eval()(features, mask))
    with pytest.raises(model.UserError, match="teacher.py"):
        model.load_video_encoder(tmp_path / "other.pt")


# --- heads of tasks


def test_a_whitened_head_by_hand():
    """[CLS] varies by 2 in one direction and by 0.5 in the other: mean 1.25, its tenth 0.125."""
    config = dataclasses.replace(CONFIG, hidden_size=2, num_attention_heads=1, intermediate_size=3)
    states = torch.tensor([[3.0, 5], [-1, 5], [1, 6], [1, 4]])
    head = shake(model.WhitenedHead(config, 2, states))
    assert torch.allclose(head.mean, torch.tensor([1.0, 5]))
    whitening = torch.tensor([[0, 2.125 ** -0.5], [0.625 ** -0.5, 0]])   # least variance first
    assert torch.allclose(head.whitening, whitening, atol=1e-5)
    hidden = torch.randn(4, 7, 2)
    for row, scores in zip(hidden, head(hidden)):
        x = (row[0] - torch.tensor([1.0, 5])) @ head.whitening
        inner = [F.gelu(weight @ x + bias) for weight, bias in
                 zip(head.dense.weight, head.dense.bias)]
        expected = head.classifier.weight @ torch.stack(inner) + head.classifier.bias
        assert torch.allclose(scores, expected, atol=1e-5)
    # rows that do not differ
    alone = model.WhitenedHead(config, 2, states[:1])
    assert alone(hidden).isfinite().all()
    assert not {"mean", "whitening"} & dict(alone.named_parameters()).keys()


# --- optimiser, schedule, checkpoint


def test_optimizer_holds_every_trainable_parameter_once():
    bert, head = make()
    video = make_video()
    video.positions.weight.requires_grad_(False)
    optimizer = model.optimizer_for([bert, head, video, bert], lr=0.1, weight_decay=0.3)
    decay = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            assert id(parameter) not in decay   # bert was given twice
            decay[id(parameter)] = group["weight_decay"]
    for module in (bert, head, video):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                undecayed = name.endswith("bias") or "norm" in name
                assert decay.pop(id(parameter)) == (0.0 if undecayed else 0.3), name
    assert not decay


def test_lr_at():
    values = [model.lr_at(step, 2.0, warmup=4, total=10) for step in range(11)]
    assert values == pytest.approx(
        [0.5, 1.0, 1.5, 2.0, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6, 0.0])
    assert [model.lr_at(step, 1.0, 0, 4) for step in range(5)] == [1, 0.75, 0.5, 0.25, 0]
    assert model.lr_at(20, 1.0, 2, 10) == 0.0   # never negative


def test_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    assert model.load_checkpoint(path) is None
    bert, _ = make()
    model.save_checkpoint(path, step=7, bert=bert.state_dict())
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]
    state = model.load_checkpoint(path)
    assert state["step"] == 7
    for key, value in bert.state_dict().items():
        assert torch.equal(value, state["bert"][key])

    def cut(state, file):   # killed in the middle of writing
        file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(model.torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        model.save_checkpoint(path, step=8)
    assert model.load_checkpoint(path)["step"] == 7


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "list"])
def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    model.save_checkpoint(path, step=7, weights=torch.randn(100, 100))
    content = bytearray(path.read_bytes())
    content[20000] ^= 16   # one bit of one weight: torch.load itself does not see it
    damaged = {"cut": content[:20000], "empty": b"", "flipped": content}
    if damage == "list":
        torch.save([1], path)
    else:
        path.write_bytes(damaged[damage])
    with pytest.raises(model.UserError, match="checkpoint.pt cannot be read: .* delete it, and"):
        model.load_checkpoint(path)


def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path):
    path = tmp_path / "checkpoint.pt"
    before = tmp_path / "checkpoint-before.pt"
    said = []
    assert model.load_checkpoint(path, before) is None
    model.save_checkpoint(path, before, step=7)
    model.save_checkpoint(path, before, step=8)
    assert model.load_checkpoint(path, before, said.append)["step"] == 8 and not said
    path.write_bytes(path.read_bytes()[:100])
    assert model.load_checkpoint(path, before, said.append)["step"] == 7
    assert "checkpoint.pt cannot be read" in str(said[0])
    assert str(said[0]).endswith(f"going on from {before}")
    path.unlink()   # killed between two renames
    assert model.load_checkpoint(path, before, said.append)["step"] == 7
    before.write_bytes(b"")
    with pytest.raises(model.UserError, match="checkpoint-before.pt cannot be read: .* delete it"):
        model.load_checkpoint(path, before, said.append)


def test_gradient_norm():
    bert, head = make()
    tokens, _, _ = batch()
    # each of 120 logits counts every token once; two equal processes
    loss = head(bert(tokens)).sum()
    norm = model.gradient_norm(loss, [head.bias], lambda flat: 2 * flat).item()
    assert norm == pytest.approx(2 * tokens.numel() * math.sqrt(120), rel=1e-4)
    parameters = list(bert.parameters())
    norm = model.gradient_norm(loss, parameters, torch.clone).item()
    assert all(parameter.grad is None for parameter in parameters)   # left untouched
    loss.backward()
    squares = [float((each.grad ** 2).sum()) for each in parameters]
    assert norm == pytest.approx(math.sqrt(sum(squares)), rel=1e-5) and norm > 0
