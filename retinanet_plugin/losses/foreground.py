"""A box loss on the foreground anchors of all levels: picked out, or all anchors under a mask."""


def foreground_box_loss(
    box_loss, foreground, pred_anchor_deltas, anchors, matched_gt_boxes, masked
):
    """Sum of a box loss over the foreground anchors of a batch.

    Args:
        box_loss (callable): see :meth:`retinanet_plugin.losses.SmoothL1BoxLoss.forward`.
        foreground (Tensor): (N, R), bool.
        pred_anchor_deltas (list[Tensor]): of each level, (N, Hi, Wi, A, 4).
        anchors (list[Boxes]): of each level, Hi*Wi*A boxes, absolute pixels.
        matched_gt_boxes (Tensor): (N, R, 4), absolute pixels; read where there is foreground.
        masked (bool): give ``box_loss`` every anchor, with a perfect prediction where it is not
            foreground, instead of picking out those that are. More work in fixed shapes, for which
            no GPU has to be waited for.

    Returns:
        Tensor: a float32 scalar; exactly 0, with gradients of 0, without foreground.
    """
    sizes = [len(boxes) for boxes in anchors]
    rows = _masked_rows if masked else _picked_rows
    total = 0.0
    for is_fg, deltas, boxes, gt_boxes in zip(
        foreground.split(sizes, dim=1),
        pred_anchor_deltas,
        anchors,
        matched_gt_boxes.split(sizes, dim=1),
    ):
        boxes = boxes.tensor.expand_as(gt_boxes)
        losses = box_loss(*rows(is_fg, deltas, boxes, gt_boxes))
        if masked:
            losses = losses.masked_fill(~is_fg.flatten(), 0)
        total = total + losses.sum()
    return total


def _picked_rows(is_fg, deltas, anchors, gt_boxes):
    shape = deltas.shape  # a view that cannot be flattened without a copy
    index = is_fg.view(shape[:-1]).nonzero(as_tuple=True)
    return deltas[index].float(), anchors.view(shape)[index], gt_boxes.view(shape)[index]


def _masked_rows(is_fg, deltas, anchors, gt_boxes):
    # What stands in is finite, and so are its gradients, which the mask then multiplies by 0.
    is_bg = ~is_fg.flatten().unsqueeze(1)
    anchors = anchors.reshape(-1, 4)
    deltas = deltas.reshape(-1, 4).float().masked_fill(is_bg, 0)
    return deltas, anchors, gt_boxes.reshape(-1, 4).where(~is_bg, anchors)
