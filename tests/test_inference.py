"""From head outputs to detections, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes

from retinanet_plugin import inference as inference_module
from retinanet_plugin.compat import best_scores
from retinanet_plugin.inference import RetinaNetInference
from retinanet_plugin.score_voting import score_voting


def detect(
    anchors, scores, score_thresh=0.3, topk_candidates=10, max_detections=10, deltas=None, **others
):
    """Detections in one image of one level: anchors (R, 4) in a row, scores (R, K)."""
    inference = RetinaNetInference(
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)),
        score_thresh=score_thresh,
        topk_candidates=topk_candidates,
        nms_thresh=0.5,
        max_detections_per_image=max_detections,
        **others,
    )
    scores = torch.tensor(scores)
    logits = scores.logit()[None, None, :, None]
    deltas = torch.zeros(1, 1, len(scores), 1, 4) if deltas is None else deltas
    return inference([Boxes(torch.tensor(anchors))], [logits], [deltas], [(100, 100)])[0]


APART = [[0.0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
# The second overlaps the first with IoU 0.6, the third with IoU 0.25 at most.
CROWD = [[0.0, 0, 8, 10], [2, 0, 10, 10], [8, 0, 16, 10]]


def test_scores_above_the_threshold_are_kept_best_first():
    found = detect(APART, [[0.4], [0.9], [0.2]])
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.4]))
    assert found.pred_boxes.tensor.tolist() == [APART[1], APART[0]]


def test_a_score_of_exactly_the_threshold_is_dropped():
    # The sigmoid of 0 is 0.5 exactly.
    assert len(detect(APART, [[0.5]] * 3, score_thresh=0.5)) == 0
    assert len(detect(APART, [[0.5]] * 3, score_thresh=0.4999)) == 3


def test_thresholds_zero_and_one():
    assert len(detect(APART, [[1e-30], [0.0], [0.5]], score_thresh=0.0)) == 2
    assert len(detect(APART, [[1.0]] * 3, score_thresh=1.0)) == 0


def test_every_class_of_an_anchor_is_a_candidate():
    found = detect(APART, [[0.4, 0.8], [0.1, 0.1], [0.1, 0.7]])
    assert found.pred_classes.tolist() == [1, 1, 0]
    assert found.pred_boxes.tensor.tolist() == [APART[0], APART[2], APART[0]]


def test_nms_drops_the_lower_score_of_the_same_class():
    found = detect(CROWD, [[0.6], [0.9], [0.5]])
    assert found.pred_boxes.tensor.tolist() == [CROWD[1], CROWD[2]]


def test_nms_leaves_other_classes_alone():
    found = detect(CROWD, [[0.6, 0.0], [0.0, 0.9], [0.0, 0.0]])
    assert found.pred_classes.tolist() == [1, 0]


def test_limits_of_candidates_and_detections():
    assert len(detect(APART, [[0.4], [0.5], [0.6]], topk_candidates=2)) == 2
    found = detect(APART, [[0.4], [0.5], [0.6]], max_detections=1)
    torch.testing.assert_close(found.scores, torch.tensor([0.6]))


def test_deltas_move_and_scale_the_anchor():
    deltas = torch.zeros(1, 1, 3, 1, 4)
    deltas[..., 0] = 0.5  # half a width to the right
    deltas[..., 3] = torch.tensor(2.0).log()  # twice as high
    found = detect(APART, [[0.9], [0.1], [0.1]], deltas=deltas)
    torch.testing.assert_close(found.pred_boxes.tensor, torch.tensor([[5.0, -5, 15, 15]]))


def test_no_detections():
    found = detect(APART, [[0.1]] * 3)
    assert len(found) == 0
    assert found.pred_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("traced_count", [0, 3, 20])
def test_a_traced_choice_takes_as_many_as_there_are(traced_count):
    with torch.no_grad():
        traced = torch.jit.trace(
            lambda scores: best_scores(scores, 5), torch.rand(traced_count), check_trace=False
        )
        for count in (0, 2, 5, 6, 50):
            scores = torch.rand(count)
            for found, expected in zip(traced(scores), best_scores(scores, 5)):
                assert torch.equal(found, expected)


def test_score_voting_averages_boxes_of_a_class():
    """By hand: two boxes of IoU 1/2 have a say; one of another class and one apart have none."""
    voters = torch.tensor([[0.0, 0, 10, 10], [0.0, 0, 20, 10], [0.0, 0, 20, 10], [90.0, 0, 99, 9]])
    scores, classes = torch.tensor([0.8, 0.4, 0.7, 0.9]), torch.tensor([1, 1, 0, 1])
    share = 0.4 * math.exp(-0.25 / 0.025)
    right = (0.8 * voters[0] + share * voters[1]) / (0.8 + share)
    found = score_voting(voters[:1], classes[:1], voters, scores, classes)
    torch.testing.assert_close(found, right[None])


def test_a_box_alone_or_without_area_keeps_its_place_in_a_vote():
    boxes, classes = torch.tensor([[5.0, 5, 9, 9], [7.0, 7, 7, 7]]), torch.tensor([0, 0])
    found = score_voting(boxes, classes, boxes, torch.tensor([0.5, 0.9]), classes)
    torch.testing.assert_close(found, boxes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_does_not_round_what_is_voted(dtype):
    voters = 1000 + 300 * torch.rand(40, 2, generator=torch.Generator().manual_seed(0))
    voters = torch.cat([voters, voters + 500], dim=1)
    classes, scores = torch.zeros(40, dtype=torch.long), torch.full((40,), 0.9)
    arguments = voters[:3], classes[:3], voters, scores, classes
    expected = score_voting(*arguments)
    with torch.autocast("cpu", dtype):
        found = score_voting(*arguments)
    assert torch.equal(found, expected)


def test_score_voting_in_parts_gives_the_same(monkeypatch):
    scores = [[0.9], [0.8], [0.4]]
    whole = detect(CROWD, scores, score_voting=True)
    monkeypatch.setattr("retinanet_plugin.score_voting._VOTES_AT_ONCE", 1)
    parts = detect(CROWD, scores, score_voting=True)
    assert len(parts) > 1
    torch.testing.assert_close(parts.pred_boxes.tensor, whole.pred_boxes.tensor, rtol=0, atol=1e-4)


def test_score_voting_changes_boxes_alone():
    scores = [[0.9], [0.8], [0.4]]
    plain, voted = detect(CROWD, scores), detect(CROWD, scores, score_voting=True)
    assert torch.equal(plain.scores, voted.scores)
    assert torch.equal(plain.pred_classes, voted.pred_classes)
    assert plain.pred_boxes.tensor[0].tolist() == CROWD[0]
    x1, _, x2, _ = voted.pred_boxes.tensor[0].tolist()
    assert 0 < x1 < 2  # towards the second, which NMS took out
    assert 8 < x2 < 10


@pytest.mark.parametrize("at_once", [2, 3, 7])
@pytest.mark.parametrize("has_ious", [False, True])
def test_images_looked_at_together_have_the_detections_of_each_alone(
    at_once, has_ious, monkeypatch
):
    torch.manual_seed(0)
    inference = RetinaNetInference(
        box2box_transform=Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0)), topk_candidates=5
    )
    sizes = [(8, 8), (4, 4)]
    anchors = [Boxes(torch.rand(h * w * 3, 4).cumsum(1) * 50) for h, w in sizes]
    logits = [torch.randn(5, h, w, 3, 2).mul(3).round() for h, w in sizes]  # many are equal
    logits[0][1] = logits[1][1] = -9.0  # this image has no candidate
    logits[1][3] = -9.0
    deltas = [torch.randn(5, h, w, 3, 4) / 5 for h, w in sizes]
    ious = [torch.randn(5, h, w, 3) for h, w in sizes] if has_ious else None

    expected = inference(anchors, logits, deltas, [(60, 60)] * 5, ious)
    monkeypatch.setattr(inference_module, "_images_at_once", lambda logits: at_once)
    found = inference(anchors, logits, deltas, [(60, 60)] * 5, ious)

    assert [len(x) > 0 for x in found] == [True, False, True, True, True]
    for x, y in zip(found, expected):
        assert x.image_size == y.image_size
        assert torch.equal(x.pred_boxes.tensor, y.pred_boxes.tensor)
        assert torch.equal(x.scores, y.scores)
        assert torch.equal(x.pred_classes, y.pred_classes)


def test_few_large_or_many_small_images_are_looked_at_together():
    def at_once(*shape, device="cuda"):
        logits = SimpleNamespace(shape=shape, is_cuda=device == "cuda")
        return inference_module._images_at_once(logits)

    assert at_once(8, 100, 168, 9, 80) == 2
    assert at_once(8, 60, 80, 9, 80) == 9
    assert at_once(2, 1000, 1000, 9, 80) == 1
    assert at_once(8, 60, 80, 9, 80, device="cpu") == 1
