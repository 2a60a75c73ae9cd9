"""The report of detections: how good they are, where they fail, at which score to cut them."""
