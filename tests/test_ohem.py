"""Online hard example mining against loops over anchors that read as the paper does."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou

from retinanet_plugin.losses import CrossEntropyLoss, OHEMLoss, ohem_loss

K = 3


def make_batch(num_anchors=(120, 30), num_images=2):
    """Two levels of overlapping anchors, a tenth of them foreground and a tenth ignored."""
    rng = torch.Generator().manual_seed(0)
    logits, labels, anchors = [], [], []
    for count in num_anchors:
        corner = torch.rand(count, 2, generator=rng) * 60
        anchors.append(Boxes(torch.cat([corner, corner + 30], dim=1)))
        logits.append(torch.randn(num_images, count, 1, 1, K, generator=rng).requires_grad_())
        kind = torch.rand(num_images, count, 1, 1, generator=rng)
        level = torch.full(kind.shape, K)
        level[kind < 0.1] = torch.randint(K, kind.shape, generator=rng)[kind < 0.1]
        level[kind > 0.9] = -1
        labels.append(level)
    return logits, labels, anchors


def mine_one_image(losses, labels, iou, batch_size, nms_thresh, one_to_three):
    """Indices of the minibatch: sort, suppress, take."""
    order = sorted((i for i in range(len(labels)) if labels[i] >= 0), key=lambda i: -losses[i])
    survivors = []
    for i in order:
        if all(iou[i][j] <= nms_thresh for j in survivors):
            survivors.append(i)
    if not one_to_three:
        return survivors[:batch_size]
    foreground = [i for i in survivors if labels[i] < K][: batch_size // 4]
    background = [i for i in survivors if labels[i] == K][: 3 * len(foreground)]
    return foreground + background


@pytest.mark.parametrize("block_size", [3, 40, 1 << 14])
@pytest.mark.parametrize("one_to_three", [False, True])
@pytest.mark.parametrize("nms_thresh", [0.3, 0.7, 1.0])
@pytest.mark.parametrize("batch_size", [4, 16, 1000])  # 1000: more than there are
def test_equals_loops(monkeypatch, batch_size, nms_thresh, one_to_three, block_size):
    monkeypatch.setattr(ohem_loss, "_BLOCK_SIZE", block_size)
    logits, labels, anchors = make_batch()
    loss = OHEMLoss(
        batch_size_per_image=batch_size, nms_thresh=nms_thresh, one_to_three=one_to_three
    )
    mined = torch.cat([level.flatten(1) for level in loss.mine(logits, labels, anchors)], dim=1)

    all_labels = torch.cat([level.flatten(1) for level in labels], dim=1)
    targets = F.one_hot(all_labels.clamp(min=0), K + 1)[..., :K].float()
    losses = F.binary_cross_entropy_with_logits(
        torch.cat([x.flatten(1, 3) for x in logits], dim=1), targets, reduction="none"
    ).sum(-1)
    boxes = Boxes.cat(anchors)
    iou = pairwise_iou(boxes, boxes).tolist()
    for image in range(len(mined)):
        chosen = mine_one_image(
            losses[image].tolist(), all_labels[image].tolist(), iou,
            batch_size, nms_thresh, one_to_three,
        )  # fmt: skip
        right = torch.full_like(all_labels[image], -1)
        right[chosen] = all_labels[image, chosen]
        assert torch.equal(mined[image], right)


def test_loss_is_cross_entropy_of_the_minibatch():
    logits, labels, anchors = make_batch()
    loss = OHEMLoss(batch_size_per_image=10, nms_thresh=0.5)
    value = loss(logits, labels, anchors)
    mined = loss.mine(logits, labels, anchors)
    assert sum((level >= 0).sum().item() for level in mined) == 2 * 10
    torch.testing.assert_close(value, CrossEntropyLoss()(logits, mined, anchors))

    grads = torch.autograd.grad(value, logits)
    for grad, level in zip(grads, mined):
        assert torch.equal((grad != 0).any(-1), level >= 0)


def test_one_to_three_takes_nothing_from_an_image_without_foreground():
    logits, labels, anchors = make_batch()
    labels = [torch.full_like(level, K) for level in labels]
    loss = OHEMLoss(batch_size_per_image=16, nms_thresh=0.5, one_to_three=True)
    value = loss(logits, labels, anchors)
    assert value.item() == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(value, logits))


def test_all_anchors_ignored():
    logits, labels, anchors = make_batch()
    loss = OHEMLoss(batch_size_per_image=16, nms_thresh=0.5)
    assert loss(logits, [torch.full_like(level, -1) for level in labels], anchors).item() == 0
