"""The review room: pages where people read a change to a model's weights before they sign it."""
