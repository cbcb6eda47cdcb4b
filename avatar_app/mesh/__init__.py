"""Bodies, cameras and the GL-free renderers that turn poses into condition maps and previews."""
