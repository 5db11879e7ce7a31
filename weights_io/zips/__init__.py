"""The zip container, read strictly and written plainly."""
