"""What keeps the pictures honest: consent, signed credentials, an invisible watermark, and the check of all three."""
