"""Development-time tools that make what checkpoints/motion and samples hold. Never imported by the application."""
