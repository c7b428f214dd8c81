"""The networks against transformers, and the optimisation helpers against plain arithmetic.

    python -m pytest tests/test_model.py
"""
import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F

import model

# dropout stays on in the config, so that a forgotten eval() shows as a difference
CONFIG = model.BertConfig(vocab_size=120, hidden_size=48, num_hidden_layers=3, num_attention_heads=4,
                          intermediate_size=96, max_position_embeddings=40, block=32)


def make(config=CONFIG, seed=0):
    """A Bert and its head with every parameter random: zero biases and unit norms would hide swapped tensors."""
    torch.manual_seed(seed)
    bert = model.Bert(config)
    head = model.MLMHead(config, bert.tokens)
    with torch.no_grad():
        for parameter in [*bert.parameters(), *head.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return bert.eval(), head.eval()


def batch(config=CONFIG, B=5, L=17):
    """Tokens, mask (True = real), segments of B texts of different lengths, the first one full."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(config.vocab_size, (B, L), generator=generator)
    mask = torch.arange(L) < torch.tensor([L, 1, 9, 12, 16])[:B, None]
    segments = (torch.arange(L) >= torch.tensor([8, 0, 4, 12, 3])[:B, None]).long()
    return tokens, mask, segments


def hf_config(transformers, **changes):
    shape = {key: value for key, value in dataclasses.asdict(CONFIG).items() if key != "block"}
    return transformers.BertConfig(**{**shape, **changes})


def assert_same_network(theirs, bert, head):
    """Hidden states and MLM logits of transformers' model and ours agree within 1e-5 at every real position."""
    tokens, mask, segments = batch()
    theirs.eval(), bert.eval(), head.eval()
    with torch.no_grad():
        out = theirs(tokens, attention_mask=mask.long(), token_type_ids=segments, output_hidden_states=True)
        hidden = bert(tokens, mask, segments)
        assert (out.hidden_states[-1] - hidden)[mask].abs().max() < 1e-5
        assert (out.logits - head(hidden))[mask].abs().max() < 1e-5
        assert out.logits.std() > 0.1   # not two constants
        short = tokens[:, :9]   # no mask, no segments: the defaults mean the same on both sides
        assert (theirs(short).logits - head(bert(short))).abs().max() < 1e-5


# --- Hugging Face files

def test_our_folder_opens_in_transformers(transformers, tiny_tokenizer, tmp_path):
    config = dataclasses.replace(CONFIG, vocab_size=tiny_tokenizer.get_vocab_size())
    bert, head = make(config)
    model.save_hf(tmp_path / "model", config, bert, head, tiny_tokenizer)
    theirs, info = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    tokens, mask, _ = batch(config)
    tokens = tokens % config.vocab_size
    with torch.no_grad():
        difference = theirs.eval()(tokens, attention_mask=mask.long()).logits - head(bert(tokens, mask))
    assert difference[mask].abs().max() < 1e-5

    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
    texts = ["The cat sat on the mat.", "a DOG, and zebras!", "", "crème", "the red [MASK] ran"]
    for text in texts:
        assert their_tokenizer(text)["input_ids"] == tiny_tokenizer.encode(text).ids
    pair, ours = their_tokenizer("the cat", "ran to it"), tiny_tokenizer.encode("the cat", "ran to it")
    assert pair["input_ids"] == ours.ids and pair["token_type_ids"] == ours.type_ids
    assert their_tokenizer.mask_token_id == tiny_tokenizer.token_to_id("[MASK]")

    again, bert2, head2 = model.load_hf(tmp_path / "model")
    assert again == config
    for before, after in ((bert, bert2), (head, head2)):
        assert all(torch.equal(value, after.state_dict()[key]) for key, value in before.state_dict().items())
    model.save_hf(tmp_path / "model", config, bert, head, tiny_tokenizer)   # over an older folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_transformers_safetensors_folder_opens_here(transformers, tmp_path):
    pytest.importorskip("safetensors")
    torch.manual_seed(3)
    theirs = transformers.BertForMaskedLM(hf_config(transformers, initializer_range=0.2)).eval()
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config, bert, head = model.load_hf(tmp_path)
    assert config.block == config.max_position_embeddings == 40   # made elsewhere: every position counts as trained
    assert_same_network(theirs, bert, head)


@pytest.fixture
def theirs(transformers):
    """transformers' model with random biases and norms too."""
    torch.manual_seed(4)
    made = transformers.BertForMaskedLM(hf_config(transformers)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def write_folder(folder, theirs, state, **changes):
    (folder / "config.json").write_text(json.dumps({**theirs.config.to_dict(), **changes}, default=str))
    torch.save(state, folder / "pytorch_model.bin")


def test_pytorch_bin_opens_here(theirs, tmp_path):
    state = theirs.state_dict()
    state["bert.embeddings.position_ids"] = torch.arange(40)[None]       # a buffer that transformers 3 wrote
    state["bert.pooler.dense.weight"] = torch.randn(48, 48)              # pretraining heads that MLM does not have
    state["cls.seq_relationship.weight"] = torch.randn(2, 48)
    write_folder(tmp_path, theirs, state)
    _, bert, head = model.load_hf(tmp_path)
    assert_same_network(theirs, bert, head)


def test_old_layer_norm_names(theirs, tmp_path):
    state = {key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
             for key, value in theirs.state_dict().items()}
    assert any("gamma" in key for key in state)
    write_folder(tmp_path, theirs, state)
    _, bert, head = model.load_hf(tmp_path)
    assert_same_network(theirs, bert, head)


@pytest.mark.parametrize("absent", [["cls.predictions.decoder.bias"], ["cls.predictions.bias"],
                                    ["cls.predictions.decoder.weight", "cls.predictions.decoder.bias"]])
def test_a_tied_tensor_may_be_stored_once(theirs, tmp_path, absent, capsys):
    state = {key: value for key, value in theirs.state_dict().items() if key not in absent}
    write_folder(tmp_path, theirs, state)
    _, bert, head = model.load_hf(tmp_path)
    assert_same_network(theirs, bert, head)
    assert "no MLM head" not in capsys.readouterr().out


def test_bare_encoder(transformers, tmp_path, capsys):
    """BertModel's own file: no "bert." prefix, no MLM head; the head starts at random and that is said."""
    torch.manual_seed(5)
    bare = transformers.BertModel(hf_config(transformers)).eval()
    write_folder(tmp_path, bare, bare.state_dict())
    _, bert, head = model.load_hf(tmp_path)
    tokens, mask, segments = batch()
    with torch.no_grad():
        theirs = bare(tokens, attention_mask=mask.long(), token_type_ids=segments).last_hidden_state
        assert (theirs - bert.eval()(tokens, mask, segments))[mask].abs().max() < 1e-5
    assert "no MLM head" in capsys.readouterr().out
    assert head.dense.weight.std() > 0


def test_wrong_files_are_refused(theirs, tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json is missing"):
        model.load_hf(tmp_path)
    whole = theirs.state_dict()
    name = "bert.encoder.layer.1.attention.self.key.weight"
    write_folder(tmp_path, theirs, {key: value for key, value in whole.items() if key != name})
    with pytest.raises(ValueError, match=f"1 tensors are missing, the first is {name}"):
        model.load_hf(tmp_path)
    write_folder(tmp_path, theirs, {**whole, name: torch.zeros(48, 47)})
    with pytest.raises(ValueError, match=rf"{name} is \[48, 47\], config.json asks for \[48, 48\]"):
        model.load_hf(tmp_path)
    write_folder(tmp_path, theirs, whole, hidden_act="relu")
    with pytest.raises(ValueError, match="hidden_act='relu'"):
        model.load_hf(tmp_path)
    write_folder(tmp_path, theirs, whole, position_embedding_type="relative_key")
    with pytest.raises(ValueError, match="relative_key"):
        model.load_hf(tmp_path)
    write_folder(tmp_path, theirs, whole)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match="neither pytorch_model.bin nor model.safetensors"):
        model.load_hf(tmp_path)
    with pytest.raises(ValueError, match="hidden_size 48 is not a multiple of num_attention_heads 5"):
        dataclasses.replace(CONFIG, num_attention_heads=5)


def test_more_layers_in_the_file_than_in_the_config(theirs, tmp_path):
    """A config.json that does not belong to the weights must not load as a shallower network without a word."""
    write_folder(tmp_path, theirs, theirs.state_dict(), num_hidden_layers=2)
    with pytest.raises(ValueError):
        model.load_hf(tmp_path)


# --- text encoder

def test_padding_changes_nothing():
    bert, _ = make()
    tokens, mask, segments = batch()
    with torch.no_grad():
        hidden = bert(tokens, mask, segments)
        other = bert(torch.where(mask, tokens, (tokens + 7) % CONFIG.vocab_size), mask, segments)
        assert (hidden - other)[mask].abs().max() < 1e-6
        for row, length in enumerate(mask.sum(1).tolist()):   # each text alone, without padding
            alone = bert(tokens[row:row + 1, :length], None, segments[row:row + 1, :length])[0]
            assert (alone - hidden[row, :length]).abs().max() < 1e-5
        assert (hidden - bert(tokens, None, segments))[2, :9].abs().max() > 1e-2   # without the mask it would matter


def test_position_order_and_segments_matter_and_length_is_checked():
    bert, _ = make()
    tokens, _, segments = batch()
    with torch.no_grad():
        assert (bert(tokens).mean(1) - bert(tokens.flip(1)).mean(1)).abs().max() > 1e-3
        assert (bert(tokens) - bert(tokens, None, segments)).abs().max() > 1e-3
        assert torch.equal(bert(tokens), bert(tokens, None, torch.zeros_like(segments)))
    with pytest.raises(ValueError, match="text of 41 tokens, but this model has 40 positions"):
        bert(torch.zeros(1, 41, dtype=torch.long))


def test_sizes():
    count = {size: sum(p.numel() for p in model.Bert(config).parameters()) for size, config in model.SIZES.items()
             if size != "base"}
    layer = 4 * 512 * 513 + 2 * 512 * 2048 + 2048 + 5 * 512   # attention, two matrices, their biases, two norms
    assert count["small"] == (30522 + 512 + 2 + 2) * 512 + 6 * layer
    assert [model.SIZES[size].block for size in ("mini", "small", "base")] == [32, 128, 128]


def test_mlm_loss_is_cross_entropy_at_masked_positions():
    bert, head = make()
    tokens, mask, _ = batch()
    labels = torch.full_like(tokens, -100)
    for row, column in ((0, 2), (0, 5), (2, 8), (4, 0)):
        labels[row, column] = (tokens[row, column] + 3) % CONFIG.vocab_size
    parameters = [*bert.parameters(), *head.parameters()]

    def slow(divide_by):
        logits, total = head(bert(tokens, mask)), 0.0
        for row in range(len(tokens)):
            for column in range(tokens.shape[1]):
                if labels[row, column] != -100:
                    total = total - F.log_softmax(logits[row, column], 0)[labels[row, column]]
        return total / divide_by

    for given, divide_by in ((None, 4), (9, 9)):
        loss, reference = model.mlm_loss(head, bert(tokens, mask), labels, given), slow(divide_by)
        assert abs(float((loss - reference).detach())) < 1e-5 and loss > 0.1
        ours = torch.autograd.grad(loss, parameters, allow_unused=True)
        theirs = torch.autograd.grad(reference, parameters, allow_unused=True)
        for one, other in zip(ours, theirs):
            assert (one is None) == (other is None)
            assert one is None or (one - other).abs().max() < 1e-5
    nothing = model.mlm_loss(head, bert(tokens, mask), torch.full_like(tokens, -100))
    assert float(nothing.detach()) == 0.0   # not 0 / 0
    nothing.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in parameters)


# --- video encoder

def make_video(seed=0):
    torch.manual_seed(seed)
    encoder = model.VideoEncoder(dataclasses.replace(CONFIG, max_position_embeddings=12), {"frame": 5, "motion": 3})
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder.eval()


def clips(B=4, T=7):
    features = torch.randn(B, T, 8, generator=torch.Generator().manual_seed(2))
    return features, torch.arange(T) < torch.tensor([7, 1, 4, 6])[:B, None]


def test_video_padding_changes_nothing():
    encoder = make_video()
    features, mask = clips()
    with torch.no_grad():
        pooled = encoder(features, mask)
        other = encoder(torch.where(mask[:, :, None], features, torch.full_like(features, 50.0)), mask)
        assert (pooled - other).abs().max() < 1e-5
        wider = encoder(F.pad(features, (0, 0, 0, 5)), F.pad(mask, (0, 5)))
        assert (pooled - wider).abs().max() < 1e-5
        for row, length in enumerate(mask.sum(1).tolist()):
            alone = encoder(features[row:row + 1, :length], torch.ones(1, length, dtype=torch.bool))[0]
            assert (alone - pooled[row]).abs().max() < 1e-5
        assert pooled.std(0).min() > 1e-4   # clips do differ


def test_video_frame_order_matters():
    encoder = make_video()
    features, _ = clips()
    everything = torch.ones(features.shape[:2], dtype=torch.bool)
    with torch.no_grad():
        assert (encoder(features, everything) - encoder(features.flip(1), everything)).abs().max() > 1e-3


def test_every_video_parameter_gets_a_gradient():
    encoder = make_video()
    features, mask = clips()
    encoder(F.pad(features, (0, 0, 0, 5)), F.pad(mask, (0, 5), value=True)).pow(2).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_fit_scale():
    encoder = make_video()
    features = torch.randn(300, 8, generator=torch.Generator().manual_seed(0))
    features *= torch.tensor([1, 5, 100, 1e-3, 2, 1, 1, 1.])
    features += torch.tensor([0, 3, -700, 0, 0, 0, 0, 0.])
    features[:, 5] = 7.25      # constant channels: a blank one, and one that is large and exactly constant
    features[:, 6] = 0.0
    encoder.fit_scale(features)
    scaled = (features - encoder.feature_mean) / encoder.feature_std
    varying = [0, 1, 2, 3, 4, 7]
    assert scaled[:, varying].mean(0).abs().max() < 1e-3
    assert (scaled[:, varying].std(0) - 1).abs().max() < 1e-3
    assert (scaled[:, [5, 6]] == 0).all()
    clip, mask = clips()
    odd = clip.clone()
    odd[:, :, 5] += 1000   # what never varied in training says nothing, whatever it does later
    with torch.no_grad():
        assert torch.equal(encoder(clip, mask), encoder(odd, mask))
    with pytest.raises(ValueError, match="7 wide.*add up to 8"):
        encoder.fit_scale(features[:, :7])


def test_video_refusals():
    encoder = make_video()
    features, mask = clips()
    with pytest.raises(ValueError, match="clip of 13 steps, but this encoder has 12"):
        encoder(torch.zeros(1, 13, 8), torch.ones(1, 13, dtype=torch.bool))
    mask[2] = False
    with pytest.raises(ValueError, match="without a single real step"):
        encoder(features, mask)
    with pytest.raises(ValueError, match="at least one feature stream"):
        model.VideoEncoder(CONFIG, {})


def test_video_encoder_file(tmp_path):
    encoder = make_video()
    features, mask = clips()
    encoder.fit_scale(features[mask] * 3 + 1)
    model.save_video_encoder(tmp_path / "video_encoder.pt", encoder, {"streams": ["frame", "motion"], "frames": None})
    again, settings = model.load_video_encoder(tmp_path / "video_encoder.pt")
    assert settings == {"streams": ["frame", "motion"], "frames": None}
    assert again.stream_dims == {"frame": 5, "motion": 3}
    with torch.no_grad():
        assert torch.equal(encoder(features, mask), again.eval()(features, mask))
    with pytest.raises(FileNotFoundError, match="teacher.py"):
        model.load_video_encoder(tmp_path / "other.pt")


# --- heads

def test_heads():
    torch.manual_seed(0)
    hidden = torch.randn(3, 6, 48)
    distil, sequence = model.DistillHead(CONFIG, 20).eval(), model.SequenceHead(CONFIG, 3).eval()
    assert distil(hidden).shape == (3, 6, 20) and sequence(hidden).shape == (3, 3)
    changed = hidden.clone()
    changed[:, 1:] += 1
    assert torch.equal(sequence(hidden), sequence(changed))   # reads [CLS] only
    assert not torch.equal(distil(hidden), distil(changed))


# --- optimisation and checkpoints

def test_optimizer_holds_every_trainable_parameter_once():
    bert, head = make()
    video = make_video()
    video.positions.weight.requires_grad_(False)
    optimizer = model.optimizer_for([bert, head, video, bert], lr=0.1, weight_decay=0.3)   # bert given twice
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trainable = {id(p): name for module in (bert, head, video) for name, p in module.named_parameters()
                 if p.requires_grad}
    assert sorted(held) == sorted(trainable)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for key, name in trainable.items():
        undecayed = name.endswith("bias") or "norm" in name
        assert decay[key] == (0.0 if undecayed else 0.3), name
    linear = torch.nn.Linear(2, 2)   # and a step moves both kinds
    optimizer = model.optimizer_for([linear], lr=0.1, weight_decay=0.0)
    before = [p.clone() for p in linear.parameters()]
    linear(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, linear.parameters()))


def test_lr_at():
    values = [model.lr_at(step, 2.0, warmup=4, total=10) for step in range(11)]
    assert values == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 10 / 6, 8 / 6, 1.0, 4 / 6, 2 / 6, 0.0])
    assert [model.lr_at(step, 1.0, 0, 4) for step in range(5)] == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert model.lr_at(20, 1.0, 2, 10) == 0.0   # never negative


def test_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    assert model.load_checkpoint(path) is None
    bert, _ = make()
    optimizer = model.optimizer_for([bert], 0.1, 0.01)
    bert(torch.ones(1, 3, dtype=torch.long)).sum().backward()
    optimizer.step()
    model.save_checkpoint(path, step=7, bert=bert.state_dict(), optimizer=optimizer.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    state = torch.load(path, weights_only=True)   # nothing in it needs pickle's code execution
    assert state["step"] == 7
    assert all(torch.equal(value, state["bert"][key]) for key, value in bert.state_dict().items())
    assert model.load_checkpoint(path)["optimizer"]["param_groups"] == optimizer.state_dict()["param_groups"]

    def cut(state, file):   # killed in the middle of writing
        open(file, "wb").write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(model.torch, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        model.save_checkpoint(path, step=8)
    monkeypatch.undo()
    assert model.load_checkpoint(path)["step"] == 7


def test_gradient_norm():
    bert, head = make()
    tokens, mask, _ = batch()
    parameters = list(bert.parameters())
    loss = bert(tokens, mask).pow(3).mean()
    norm = model.gradient_norm(loss, parameters)
    assert all(p.grad is None for p in parameters)   # left untouched
    loss.backward()
    manual = math.sqrt(sum(float((p.grad ** 2).sum()) for p in parameters if p.grad is not None))
    assert norm == pytest.approx(manual, rel=1e-5) and norm > 0
    of_bias = model.gradient_norm(head(bert(tokens)).sum(), [head.bias])   # each of 120 logits counts every token once
    assert of_bias == pytest.approx(tokens.numel() * math.sqrt(120), rel=1e-4)
