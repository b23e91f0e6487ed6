"""What both sides know: the study, messages, tasks, models, metrics, accounting."""
