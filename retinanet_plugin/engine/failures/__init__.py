"""What happens when something fails: one sentence, the log, and a step that can be run again."""
