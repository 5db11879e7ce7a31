"""The digits, the model trained on them, and the script that made both; see README.md here."""
