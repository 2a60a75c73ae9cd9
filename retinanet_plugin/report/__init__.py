"""What a trained model does: its detections against the truth."""
