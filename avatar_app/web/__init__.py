"""The pages. Whatever is imported first, gradio keeps to itself."""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
