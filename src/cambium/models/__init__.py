"""The tensor base: loading, tokenising, batched LoRA and the generation engine."""
