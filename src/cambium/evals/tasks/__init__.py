"""Evaluation tasks as files: data, prompt, scorer and metrics, run on any `Subject`."""
