"""Training of native anchors."""
