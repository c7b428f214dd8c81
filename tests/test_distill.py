"""The distillation objectives against slow loops written from their equations.

    python -m pytest -q tests/test_distill.py
"""
import math

import pytest
import torch
import torch.nn.functional as F

import data
import distill
import model


ALONE = data.Processes("cpu")


def unit_neurons(hidden):
    """Each hidden unit's activations [L] at the tokens of one sequence, made unit vectors."""
    return [F.normalize(hidden[:, unit], dim=0) for unit in range(hidden.shape[1])]


def mean_kernel(xs, ys):
    """Mean over pairs of (x.y)^2, one pair at a time."""
    total = 0
    for x in xs:
        for y in ys:
            total = total + (x @ y) ** 2
    return total / (len(xs) * len(ys))


def slow_nst(student, teacher):
    """mean k(s,s) + mean k(t,t) - 2 mean k(s,t) over pairs of neurons, a sequence at a time."""
    total = 0
    for b in range(len(student)):
        s = unit_neurons(student[b])
        t = unit_neurons(teacher[b])
        total = total + mean_kernel(s, s) + mean_kernel(t, t) - 2 * mean_kernel(s, t)
    return total / len(student)


@pytest.mark.parametrize("teacher_width", [6, 9])
def test_nst_equals_the_pairwise_kernel_form(teacher_width):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(3, 5, 6, generator=generator, requires_grad=True)
    teacher = torch.randn(3, 5, teacher_width, generator=generator)
    fast = distill.nst_loss(student, teacher)
    slow = slow_nst(student, teacher)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5) and fast.item() > 1e-3
    ours, theirs = [torch.autograd.grad(loss, student)[0] for loss in (fast, slow)]
    assert theirs.abs().max() > 1e-4
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_nst_is_blind_to_permuted_and_flipped_neurons():
    teacher = torch.randn(2, 7, 10, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(10)
    sign = torch.randint(2, (10,)) * 2.0 - 1
    assert distill.nst_loss((teacher * sign)[:, :, order], teacher).item() < 1e-10
    assert distill.nst_loss(torch.randn(2, 7, 10), teacher).item() > 1e-4


def tian(anchor, positive, queue, temperature, mean, data_size, negatives):
    """Tian et al.'s loss of one side by loops: p = exp(s/T) / Z with Z = mean x n, Pn = 1 / n."""
    total = 0
    for a, p in zip(anchor, positive):
        z = mean * data_size
        right = torch.exp(a @ p / temperature) / z
        total = total - torch.log(right / (right + negatives / data_size))
        for q in queue:
            wrong = torch.exp(a @ q / temperature) / z
            total = total - torch.log((negatives / data_size) / (wrong + negatives / data_size))
    return total / len(anchor)


@pytest.mark.parametrize("data_size", [50, 1_000_000])
def test_crd_equals_tians_form(data_size):
    torch.manual_seed(0)
    crd = distill.CRD(6, 9, width=5, queue=7).double()
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 9, dtype=torch.float64)
    # float() inside casts to fp32 for training; the oracle is compared through the same embeddings
    e_s = F.normalize(crd.student_embed(student), dim=1)
    e_t = F.normalize(crd.teacher_embed(teacher), dim=1)
    slow = 0
    for anchor, positive, queue in ((e_s, e_t, crd.teacher_queue), (e_t, e_s, crd.student_queue)):
        scores = []
        for a, p in zip(anchor, positive):
            scores += [torch.exp(a @ x / 0.07) for x in [p, *queue.clone()]]
        constant = (sum(scores) / len(scores)).detach()
        slow = slow + tian(anchor, positive, queue.clone(), 0.07, constant, data_size, 7)
    crd.float()
    student32 = student.detach().float().requires_grad_(True)
    crd.settle(e_s.float(), e_t.float(), ALONE)
    fast, *_ = crd(student32, teacher.float())
    assert fast.item() == pytest.approx(slow.item(), rel=1e-4)
    ours = torch.autograd.grad(fast, student32)[0]
    theirs = torch.autograd.grad(slow, student)[0]
    assert theirs.abs().max() > 1e-2
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-3, atol=2e-4)


def test_crd_queue_is_first_in_first_out():
    torch.manual_seed(2)
    crd = distill.CRD(4, 4, width=3, queue=5)
    start = crd.teacher_queue.clone()
    seen = []
    for _ in range(2):
        before = crd.teacher_queue.clone()
        _, *embedded = crd(torch.randn(3, 4), torch.randn(3, 4))
        assert torch.equal(crd.teacher_queue, before)   # what is scored is not yet there
        crd.push(*embedded, ALONE)
        seen.append(embedded[1].detach())
    torch.testing.assert_close(crd.teacher_queue[3:], seen[1][:2])   # slots 3, 4, then 0
    torch.testing.assert_close(crd.teacher_queue[0], seen[1][2])
    torch.testing.assert_close(crd.teacher_queue[1:3], seen[0][1:])
    assert int(crd.position) == 1 and not torch.equal(start[3:], crd.teacher_queue[3:])
    _, *many = crd(torch.randn(12, 4), torch.randn(12, 4))   # more than fit: the latest stay
    crd.push(*many, ALONE)
    for row in many[1][-5:]:
        assert any(torch.allclose(row, slot) for slot in crd.teacher_queue)


def test_both_embeddings_are_trained():
    crd = distill.CRD(4, 4, width=3, queue=5)
    loss, *_ = crd(torch.randn(3, 4), torch.randn(3, 4))
    loss.backward()
    for parameter in crd.parameters():
        assert parameter.grad.abs().sum() > 0


def test_sample_tokens():
    special = torch.zeros(6, 10, dtype=torch.bool)
    special[:, [0, 9]] = True
    drawn = distill.sample_tokens(special, 5, data.torch_generator(1), slice(0, 6), 6)
    for row in drawn.tolist():
        assert len(set(row)) == 5 and not {0, 9} & set(row)
    half = distill.sample_tokens(special[3:], 5, data.torch_generator(1), slice(3, 6), 6)
    assert torch.equal(half, drawn[3:])
    other = distill.sample_tokens(special, 5, data.torch_generator(2), slice(0, 6), 6)
    assert not torch.equal(drawn, other)
    with pytest.raises(model.UserError, match="lower --crd-tokens"):
        distill.sample_tokens(special, 9, data.torch_generator(1), slice(0, 6), 6)


def test_take_tokens():
    hidden = torch.arange(24.0).view(2, 4, 3)
    taken = distill.take_tokens(hidden, torch.tensor([[3, 0], [1, 1]]))
    assert torch.equal(taken, torch.stack([hidden[0, 3], hidden[0, 0], hidden[1, 1], hidden[1, 1]]))


def slow_ntxent(student, teacher, temperature):
    """-log softmax of the partner among the 2B - 1 others, one position and anchor at a time."""
    B, L, _ = student.shape
    terms = []
    for l in range(L):
        z = [vector / vector.norm() for vector in [*student[:, l], *teacher[:, l]]]
        for i in range(2 * B):
            partner = i + B if i < B else i - B
            rivals = sum(torch.exp(z[i] @ z[j] / temperature) for j in range(2 * B) if j != i)
            terms.append(-torch.log(torch.exp(z[i] @ z[partner] / temperature) / rivals))
    return sum(terms) / len(terms)


def slow_regression(student, teacher):
    """Squared distances of unit vectors, a token at a time."""
    terms = []
    for s, t in zip(student.flatten(0, 1), teacher.flatten(0, 1)):
        terms.append(sum((s / s.norm() - t / t.norm()) ** 2))
    return sum(terms) / len(terms)


def slow_soft_label(student, teacher, temperature):
    """tau^2 sum_v p log(p / q), a token at a time, without any log-softmax."""
    terms = []
    for s, t in zip(student[:-1], teacher[:-1]):   # the last one only fills up
        q = torch.exp(s / temperature) / torch.exp(s / temperature).sum()
        p = torch.exp(t / temperature) / torch.exp(t / temperature).sum()
        terms.append(temperature ** 2 * sum(p * torch.log(p / q)))
    return sum(terms)


def soft_label_of_three(student, teacher, temperature):
    return distill.soft_label_loss(student, teacher, torch.arange(4) < 3, temperature)


@pytest.mark.parametrize("fast, slow, setting, shape", [
    (distill.ntxent_loss, slow_ntxent, [0.5], (3, 5, 6)),
    (distill.regression_loss, slow_regression, [], (3, 5, 6)),
    (soft_label_of_three, slow_soft_label, [2.0], (4, 9)),
], ids=["ntxent", "regression", "soft-label"])
def test_objective_equals_its_slow_loop(fast, slow, setting, shape):
    generator = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, *shape, generator=generator).unbind()
    student.requires_grad_(True)
    fast = fast(student, teacher, *setting)
    slow = slow(student, teacher, *setting)
    assert fast.item() == pytest.approx(slow.item(), rel=1e-5) and fast.item() > 0.1
    ours, theirs = [torch.autograd.grad(loss, student)[0] for loss in (fast, slow)]
    assert theirs.abs().max() > 1e-2
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_least_values_and_shares_of_the_objectives():
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 4, 5, 6, generator=generator)
    assert distill.regression_loss(3 * teacher, teacher).item() < 1e-10
    assert distill.regression_loss(-teacher, teacher).item() == pytest.approx(4)
    mask = torch.ones(5, dtype=torch.bool)
    shifted = distill.soft_label_loss(teacher[0] + 7, teacher[0], mask, 2.0)
    assert shifted.item() == pytest.approx(0, abs=1e-6)
    same = torch.ones(4, 5, 6)   # nothing tells partners from rivals
    assert distill.ntxent_loss(same, same, 1.0).item() == pytest.approx(math.log(7))
    # processes count their own sequences, and together the whole
    shares = 0
    for rows in (slice(0, 1), slice(1, 4)):
        shares += distill.ntxent_loss(student, teacher, 0.5, rows).item()
    whole = distill.ntxent_loss(student, teacher, 0.5).item()
    assert shares == pytest.approx(whole, rel=1e-6)


def labels_of(kind, rows=slice(0, 4), step=0):
    """Labels, vectors and bank of 4 blocks of 12 tokens and 7 clips."""
    generator = torch.Generator().manual_seed(5)
    vectors = F.normalize(torch.randn(4, 12, 6, generator=generator), dim=-1)[rows]
    bank = F.normalize(torch.randn(7, 6, generator=generator), dim=-1)
    generator = data.torch_generator(0, "voken", step)
    lots = torch.rand(4, 10, generator=generator)[rows]
    labels = distill.voken_labels(kind, vectors, bank, lots)
    return labels, vectors, bank


@pytest.mark.parametrize("kind", distill.VOKEN_LABELS)
def test_voken_labels(kind):
    labels, vectors, bank = labels_of(kind)
    assert (labels[:, [0, -1]] == -100).all()
    given = labels[:, 1:-1].tolist()
    nearest = []
    for row in vectors[:, 1:-1]:
        nearest.append([max(range(7), key=lambda c: float(each @ bank[c])) for each in row])
    assert all(len(set(row)) > 2 for row in nearest)
    if kind == "nearest":
        assert given == nearest
    if kind == "shuffled":   # within each block
        assert given != nearest
        assert [sorted(row) for row in given] == [sorted(row) for row in nearest]
    if kind == "mixed":   # over the batch
        assert sorted(sum(given, [])) == sorted(sum(nearest, []))
        assert sorted(given[0]) != sorted(nearest[0])
    if kind == "random":
        assert set(sum(given, [])) == set(range(7))
    # whatever process takes a sequence
    if kind != "mixed":
        assert torch.equal(labels_of(kind, slice(2, 4))[0], labels[2:])
    again = torch.equal(labels_of(kind, step=1)[0], labels)
    assert again == (kind == "nearest")


def heads_for(objective, head="mlp", width=48):
    config = model.BertConfig(hidden_size=width, num_attention_heads=4)
    return distill.make_heads(objective, head, config, 64, {"queue": 8, "temperature": 0.1}, 7)


def test_make_heads():
    every = ["crd", "nst", "ntxent", "regression", "soft-label", "voken"]
    heads = heads_for(every)
    widths = {name: head.decoder.out_features for name, head in heads.items() if name != "crd"}
    assert widths == {"crd_head": 48, "nst_head": 48, "ntxent_head": 64, "regression_head": 64,
                      "voken_head": 7}
    assert heads["crd"].student_queue.shape == (8, 128) and heads["crd"].temperature == 0.1
    assert len(heads_for([])) == 0
    bare = heads_for(every, "none", 64)
    assert sum(isinstance(head, torch.nn.Identity) for head in bare.values()) == 4
    with pytest.raises(model.UserError, match="ntxent needs a student as wide as its teacher"):
        heads_for(["ntxent"], "none")
