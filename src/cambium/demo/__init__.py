"""The main job from end to end, on text that every Python carries."""
