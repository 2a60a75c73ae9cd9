"""What a training or an evaluation is fed, and in which order."""
