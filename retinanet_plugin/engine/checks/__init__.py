"""What is checked before anything long starts."""
